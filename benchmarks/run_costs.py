"""What a run costs beside its steps: evaluation, checkpoints, records, its start, and the memory of STL-10.

    python -m benchmarks.run_costs [--rounds 5] [--threads 1] [--stl10] [--json FILE]

*evaluation*: test images a second, from bytes to counts of predictions, relative to the plain forward rate of the same
network on images that are normalised already, at its best batch size. 10,000 images for the CPU preset's network
(WRN-10-1) and 1,000 for the paper's (WRN-28-2), bf16, channels_last.
*checkpoint*: a FixMatch + DASO step with an evaluation to be written before it, and without: the difference is the
stall, in steps. *handed over* is what of it passes before the step begins, and *in place* what writing would take
without a thread. *record* is what metrics and counts of an evaluation take in that thread, the first time and the
500th.
*start*: importing `dasolib.train` once torch is imported, and the two-step command a user types, by papermill.
*STL-10* (``--stl10``, about 3 GB on the disk and 2 minutes): peak memory of a two-step run with 100,000 unlabeled
images, from reading them to the table of their pseudo-labels; Linux only.
"""

import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.workload import argument_parser, build, parse, random_data, tell
from dasolib.augment import normalize
from dasolib.config import make_config
from dasolib.diagnostics import KINDS
from dasolib.evaluation import TestSet
from dasolib.models import WideResNet
from dasolib.run_folder import RunFolder, project_root

CPU = torch.device("cpu")
NETWORKS = {"WRN-10-1": {"depth": 10, "width": 1, "images": 10_000},
            "WRN-28-2": {"depth": 28, "width": 2, "images": 1_000}}
FORWARD_BATCHES = (50, 100, 250, 500)
PRESETS = ("cpu", "paper")
CLASSES = {"cifar10": 10, "cifar100": 100}
LAST_EVALUATION = 500  # of the paper's run
COMMAND = ("-p", "total_steps", "2")
STL10_IMAGES = {"unlabeled": 100_000, "train": 5_000, "test": 8_000}

IMPORT = """
import time, torch
began = time.perf_counter()
import dasolib.train
print(time.perf_counter() - began)
"""
# The archive's files have check sums, which no made-up images have. What `resource` tells of a child process includes
# the memory of its parent, so the system's own record is read, which Linux has.
RUN_STL10 = """
import json, re, sys
from pathlib import Path
import dasolib.data
from dasolib.config import make_config
from dasolib.train import run
def peak_memory():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
folder, threads = Path(sys.argv[1]), int(sys.argv[2])
dasolib.data._fetch = lambda name, dataset_class, root: folder
config = make_config("cpu", dataset="stl10", method="fixmatch", rebalance="daso", total_steps=2, pretrain_steps=1,
                     refresh_steps=1, eval_images=2000, threads=threads, device="cpu")
before = peak_memory()
run(config, folder / "run", progress=False)
print(json.dumps({"peak_mib": peak_memory(), "imports_mib": before}))
"""


# ---- evaluation ----


def forward_rate(net, x, batch):
    """Images a second of `net` on normalised images."""
    began = time.perf_counter()
    with torch.no_grad():
        for part in x.split(batch):
            net(part)
    return len(x) / (time.perf_counter() - began)


def evaluation_rate(test, net):
    """Test images a second, from bytes to counts."""
    began = time.perf_counter()
    plain, _ = test.evaluate(net, step=test.config.total_steps)
    return int(plain.sum()) / (time.perf_counter() - began)


def measure_evaluation(rounds):
    """Return a row for each network."""
    data, rows = random_data(), []
    config = make_config("cpu", dataset="cifar10", method="fixmatch", rebalance="")
    to_network = functools.partial(normalize, mean=data.mean, std=data.std, memory_format=torch.channels_last)
    for name, size in tqdm(NETWORKS.items(), desc="networks"):
        net = WideResNet(depth=size["depth"], width=size["width"], n_classes=10, precision="bf16")
        net = net.to(memory_format=torch.channels_last).eval()
        test = TestSet(data, config, torch.full((10,), 0.1), to_network, CPU)
        test.images, test.target = data.x_train[:size["images"]], data.y_train[:size["images"]]
        x = to_network(test.images)
        forward, evaluated = {batch: [] for batch in FORWARD_BATCHES}, []
        for _ in range(rounds):
            for batch, rates in forward.items():
                rates.append(forward_rate(net, x, batch))
            evaluated.append(evaluation_rate(test, net))
        rates = {batch: statistics.median(values) for batch, values in forward.items()}
        best = max(rates, key=rates.get)
        ratio = statistics.median(mine / theirs for mine, theirs in zip(evaluated, forward[best], strict=True))
        rows.append({"network": name, "images": size["images"], "evaluated_per_s": statistics.median(evaluated),
                     "forward_per_s": {str(batch): rate for batch, rate in rates.items()},  # as JSON will have it
                     "best_batch": best, "ratio": ratio})
    return rows


# ---- checkpoints and records ----


def run_folder(path, config, data):
    """Return an entered run folder; hashing the data takes no part in any time here."""
    data.__dict__["fingerprint"] = "0"  # where a cached property keeps its value
    return RunFolder(path, config, data).__enter__()


def counts_of(k, seed=0):
    """Return counts of an evaluation as a network at its beginning has them: in all cells."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 8 * 100**2 // k**2, (len(KINDS), k + 1, k)), rng.integers(0, 9, (k, k)),
            rng.integers(0, 9, (k, k)))


def timed(function, *arguments):
    """Milliseconds of a call."""
    began = time.perf_counter()
    function(*arguments)
    return 1000 * (time.perf_counter() - began)


def checkpoint_costs(preset, dataset, k, rounds, threads):
    """Return a row: milliseconds that writing a checkpoint of one preset holds its training up."""
    config = make_config(preset, dataset=dataset, method="fixmatch", rebalance="daso", unlabeled="equal",
                         precision="bf16", channels_last=True, threads=threads, device="cpu")
    data = random_data(k)
    batches, training = build(config, data, CPU)
    times = {name: [] for name in ("step", "handed_over", "stall", "in_place")}

    def step(t):
        training.step(batches.at(t)[0], t)

    with tempfile.TemporaryDirectory() as scratch:
        folder = run_folder(Path(scratch), config, data)
        for i in range(rounds + 1):
            evaluation = ({"step": i + 1}, counts_of(k), training.state(2 * i, 0.0))
            alone, begun, disturbed = timed(step, 2 * i), timed(folder.write, *evaluation), timed(step, 2 * i + 1)
            folder.flush()
            in_place = timed(folder._write, *evaluation)
            if i:  # the first round warms up
                for values, value in zip(times.values(), (alone, begun, begun + disturbed - alone, in_place),
                                         strict=True):
                    values.append(value)
        size = folder.checkpoint.stat().st_size / 2**20
        folder.__exit__()
    row = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    row["stall_steps"] = row["stall_ms"] / row["step_ms"]
    return {"preset": preset, "classes": k, "checkpoint_mib": size} | row


def record_costs(dataset, k, rounds):
    """Return a row: milliseconds of an evaluation's record with `k` classes, the first and the last time."""
    config = make_config("cpu", dataset=dataset, method="fixmatch", rebalance="", device="cpu")
    times = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = run_folder(Path(scratch), config, random_data(k))

        def record(n, counts):
            folder.append_metrics({"step": n, "losses": {"labeled": 0.1}})
            folder.write_counts(n, counts)

        for n in tqdm(range(1, LAST_EVALUATION + rounds), desc=f"records, {k} classes"):
            times.append(timed(record, n, counts_of(k, seed=n)))
        folder.__exit__()
    return {"classes": k, "first_ms": statistics.median(times[:rounds]), "last_ms": statistics.median(times[-rounds:])}


# ---- start ----


def measure_start(rounds):
    """Return seconds of importing beyond torch, and of the command of a two-step run."""
    imports = [float(subprocess.run([sys.executable, "-c", IMPORT], cwd=project_root(), check=True, capture_output=True,
                                    text=True).stdout) for _ in range(rounds)]
    commands = []
    for _ in tqdm(range(rounds), desc="two-step runs"):
        with tempfile.TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "papermill", "notebooks/train.ipynb", f"{scratch}/train.ipynb", *COMMAND,
                       "-p", "run_dir", f"{scratch}/run"]
            began = time.perf_counter()
            subprocess.run(command, cwd=project_root(), check=True, capture_output=True)
            commands.append(time.perf_counter() - began)
    return {"import_s": statistics.median(imports), "two_steps_s": statistics.median(commands)}


# ---- memory of STL-10 ----


def write_stl10(folder):
    """Write random images in STL-10's layout: uint8, channels first, column by column; labels 1 to 10."""
    block = np.random.default_rng(0).integers(0, 256, (1000, 3, 96, 96), dtype=np.uint8)
    for part, n in STL10_IMAGES.items():
        with open(folder / f"{part}_X.bin", "wb") as file:
            for start in range(0, n, len(block)):
                block[:min(len(block), n - start)].tofile(file)
        if part != "unlabeled":
            (np.arange(n) % 10 + 1).astype(np.uint8).tofile(folder / f"{part}_y.bin")


def measure_stl10(threads):
    """Return peak memory of a two-step run, of its imports, and the size of its images, in MiB."""
    with tempfile.TemporaryDirectory() as scratch:
        write_stl10(Path(scratch))
        ran = subprocess.run([sys.executable, "-c", RUN_STL10, scratch, str(threads)], cwd=project_root(), check=True,
                             stdout=subprocess.PIPE, text=True)
    memory = json.loads(ran.stdout.splitlines()[-1])
    images = sum(STL10_IMAGES.values()) * 3 * 96 * 96 / 2**20
    return memory | {"images_mib": images, "beyond_mib": memory["peak_mib"] - memory["imports_mib"] - images}


# ---- table ----


def format_costs(costs):
    """Text of the tables."""
    lines = [f"{'evaluation':10} {'images':>7} {'evaluated/s':>12} {'forward/s':>10} {'at batch':>9} {'ratio':>6}"]
    lines += [f"{row['network']:10} {row['images']:7} {row['evaluated_per_s']:12.0f} "
              f"{row['forward_per_s'][str(row['best_batch'])]:10.0f} {row['best_batch']:9} {row['ratio']:6.2f}"
              for row in costs["evaluation"]]
    lines.append(f"\n{'checkpoint':10} {'classes':>7} {'MiB':>6} {'step ms':>8} {'handed over ms':>15} {'stall ms':>9} "
                 f"{'in place ms':>12} {'stall in steps':>15}")
    lines += [f"{row['preset']:10} {row['classes']:7} {row['checkpoint_mib']:6.1f} {row['step_ms']:8.1f} "
              f"{row['handed_over_ms']:15.1f} {row['stall_ms']:9.1f} {row['in_place_ms']:12.1f} "
              f"{row['stall_steps']:15.2f}" for row in costs["checkpoints"]]
    lines.append(f"\n{'record':10} {'classes':>7} {'first ms':>9} {f'{LAST_EVALUATION}th ms':>9}")
    lines += [f"{'':10} {row['classes']:7} {row['first_ms']:9.1f} {row['last_ms']:9.1f}"
              for row in costs["records"]]
    start = costs["start"]
    lines.append(f"\nimport of dasolib.train beyond torch: {start['import_s']:.2f} s"
                 f"\ntwo steps of mnist5k by papermill: {start['two_steps_s']:.1f} s")
    if "stl10" in costs:
        stl10 = costs["stl10"]
        lines.append(f"STL-10: peak {stl10['peak_mib']:.0f} MiB = {stl10['images_mib']:.0f} of images + "
                     f"{stl10['imports_mib']:.0f} of imports + {stl10['beyond_mib']:.0f}")
    return "\n".join(lines)


def measure(rounds, threads, stl10):
    """Return all costs by name."""
    torch.set_num_threads(threads)
    settings = [(preset, dataset, k) for preset in PRESETS for dataset, k in CLASSES.items()]
    costs = {
        "evaluation": measure_evaluation(rounds),
        "checkpoints": [checkpoint_costs(*setting, rounds, threads) for setting in tqdm(settings, desc="checkpoints")],
        "records": [record_costs(dataset, k, rounds) for dataset, k in CLASSES.items()],
        "start": measure_start(rounds),
    }
    return costs | ({"stl10": measure_stl10(threads)} if stl10 else {})


def main():
    """Measure, print and store."""
    parser = argument_parser("run_costs", __doc__, rounds=5)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, at least 1 (default 1)")
    parser.add_argument("--stl10", action="store_true", help="also the memory of STL-10, 3 GB on the disk, 2 minutes")
    arguments = parse(parser)
    if arguments.threads < 1:
        parser.error(f"--threads {arguments.threads}: must be at least 1")
    costs = measure(arguments.rounds, arguments.threads, arguments.stl10)
    tell(format_costs(costs), costs | {"threads": arguments.threads}, arguments.json)


if __name__ == "__main__":
    main()
