"""What a step on a CPU gains from memory that is kept: `dasolib.host.prepare_host` against the C library's default.

    python -m benchmarks.host_memory [--rounds 3] [--json FILE]

FixMatch + DASO in bf16 with channels_last on one thread, with the CPU preset's network and batch and with the paper's.
Each measurement is a process of its own, since the C library does not go back to its default; the two ways take turns.
A ratio is that of the medians over rounds.
"""

import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from tqdm import tqdm

from benchmarks.workload import argument_parser, build, parse, random_data, tell
from dasolib.config import make_config
from dasolib.host import prepare_host

WARM_UP = 3
SIZES = {  # settings, and steps of a measurement
    "WRN-10-1, 32 labeled images": ({}, 40),
    "WRN-28-2, 64 labeled images": ({"depth": 28, "width": 2, "batch_size": 64}, 6),
}
HOSTS = {"default": torch.set_num_threads, "kept": prepare_host}


def measure_one(size, host):
    """Return the milliseconds and the page faults of a step."""
    HOSTS[host](1)
    settings, n_steps = SIZES[size]
    config = make_config("cpu", dataset="cifar10", method="fixmatch", rebalance="daso", total_steps=1000, threads=1,
                         unlabeled="equal", device="cpu", **settings)
    batches, training = build(config, random_data(), torch.device("cpu"))
    for t in range(WARM_UP + n_steps):
        if t == WARM_UP:
            began, faults = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        training.step(batches.at(t)[0], t)
    return (1000 * (time.perf_counter() - began) / n_steps,
            (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / n_steps)


def measure(rounds):
    """Return one row for each size."""
    found = {(size, host): [] for size in SIZES for host in HOSTS}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for _ in tqdm(range(rounds), desc="rounds"):
            for (size, host), values in found.items():
                values.append(pool.submit(measure_one, size, host).result())
    rows = []
    for size in SIZES:
        row = {"step": size}
        for host in HOSTS:
            times, faults = zip(*found[size, host], strict=True)
            row |= {f"ms_{host}": statistics.median(times), f"faults_{host}": statistics.median(faults)}
        rows.append(row | {"faster": row["ms_default"] / row["ms_kept"]})
    return rows


def format_rows(rows):
    """Text of the table."""
    lines = [f"{'':28} {'ms':>7} {'ms, kept':>9} {'faster':>7} {'page faults':>12} {'kept':>7}"]
    lines += [f"{row['step']:28} {row['ms_default']:7.1f} {row['ms_kept']:9.1f} {row['faster']:6.2f}x "
              f"{row['faults_default']:12,.0f} {row['faults_kept']:7,.0f}" for row in rows]
    return "\n".join(lines)


def main():
    """Run the command line."""
    arguments = parse(argument_parser("host_memory", __doc__, rounds=3))
    rows = measure(arguments.rounds)
    tell(format_rows(rows), {"rows": rows}, arguments.json)


if __name__ == "__main__":
    main()
