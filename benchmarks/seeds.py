"""Whether several seeds at once on one device are faster than one after the other.

    python -m benchmarks.seeds [--device cuda] [--rounds 5] [--json FILE]

Two ways. *batched*: one process holds S networks as one, their weights stacked; ``torch.func.vmap`` turns their
convolutions into grouped ones. Measured is the forward and backward pass of a training step's images (FixMatch's 160 of
the CPU preset, WRN-10-1, or on a GPU also 320 of the paper's, WRN-28-2) for S networks, relative to S networks one
after the other; in fp32 only, as torch's batched BatchNorm refuses bf16 images with fp32 weights.
*processes*: S processes share the device, as ``seeds_per_device`` has it; on a CPU each gets its share of the cores.
Measured are the images a second of all together, relative to one process with everything.
"""

import multiprocessing
import statistics
import time

import torch
from torch.func import functional_call, grad, stack_module_state, vmap
from tqdm import tqdm

from benchmarks.step import timed
from benchmarks.workload import argument_parser, parse, tell
from dasolib.config import available_cores
from dasolib.models import WideResNet

N_SEEDS = (2, 4)
SIZES = {"WRN-10-1": {"depth": 10, "width": 1, "images": 160}, "WRN-28-2": {"depth": 28, "width": 2, "images": 320}}
ON_CPU = ("WRN-10-1",)  # grouped convolutions of the other would take a quarter of an hour
SECONDS = 6  # that processes train at once


def networks(size, precision, n, device):
    """Return `n` networks in channels_last, and a batch for each: (n, images, 3, 32, 32)."""
    nets = [WideResNet(depth=size["depth"], width=size["width"], n_classes=10, precision=precision)
            .to(device, memory_format=torch.channels_last) for _ in range(n)]
    x = torch.randn(n, size["images"], 3, 32, 32, device=device)
    return nets, x


def train_one(net, x):
    """Forward and backward pass of one network; the loss stands for any."""
    net.zero_grad()
    net(x.contiguous(memory_format=torch.channels_last)).logsumexp(dim=-1).mean().backward()


def batched_ratio(size, n, device, rounds):
    """Seconds of `n` networks as one, relative to one after the other; the median over rounds."""
    nets, x = networks(size, "fp32", n, device)
    weights, buffers = stack_module_state(nets)

    def loss(weights, buffers, x):
        return functional_call(nets[0], (weights, buffers), (x,)).logsumexp(dim=-1).mean()

    together, ratios = vmap(grad(loss)), []
    for i in range(rounds + 1):
        apart = timed(device, lambda: [train_one(net, part) for net, part in zip(nets, x, strict=True)])
        at_once = timed(device, lambda: together(weights, buffers, x))
        if i:  # the first round warms up
            ratios.append(at_once / apart)
    return statistics.median(ratios)


def train_for(size, precision, threads, device, start, results):
    """Train passes from the moment all processes are ready, and tell how many images a second that were."""
    torch.set_num_threads(threads)
    (net,), (x,) = networks(size, precision, 1, device)
    train_one(net, x)
    start.wait()
    began, n = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        timed(device, lambda: train_one(net, x))
        n += len(x)
    results.put(n / (time.perf_counter() - began))


def process_rate(size, precision, n, device):
    """Images a second of `n` processes together."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(n), context.Queue()
    threads = max(1, available_cores() // n)
    started = [context.Process(target=train_for, args=(size, precision, threads, device, start, results))
               for _ in range(n)]
    for process in started:
        process.start()
    rate = sum(results.get() for _ in started)
    for process in started:
        process.join()
    return rate


def measure(device, rounds):
    """Return a row for each network, precision and number of seeds."""
    torch.set_num_threads(available_cores())
    rows = []
    for name in tqdm(ON_CPU if device.type == "cpu" else SIZES, desc="networks"):
        size = SIZES[name]
        for precision in ("fp32", "bf16"):
            alone = process_rate(size, precision, 1, device)
            for n in N_SEEDS:
                rows.append({"network": name, "precision": precision, "seeds": n,
                             "batched": batched_ratio(size, n, device, rounds) if precision == "fp32" else None,
                             "processes": process_rate(size, precision, n, device) / alone})
    return rows


def format_rows(rows):
    """Text of the table."""
    lines = [f"{'network':9} {'precision':>9} {'seeds':>6} {'batched: time':>14} {'processes: rate':>16}"]
    for row in rows:
        batched = "-" if row["batched"] is None else f"{row['batched']:.2f}"
        lines.append(f"{row['network']:9} {row['precision']:>9} {row['seeds']:6} {batched:>14} "
                     f"{row['processes']:16.2f}")
    return "\n".join([*lines, "batched: of one after the other, less is faster; processes: of one process, more is "
                              "faster"])


def main():
    """Measure, print and store."""
    arguments = parse(argument_parser("seeds", __doc__, rounds=5, device=True))
    rows = measure(arguments.device, arguments.rounds)
    tell(format_rows(rows), {"rows": rows}, arguments.json, arguments.device)


if __name__ == "__main__":
    main()
