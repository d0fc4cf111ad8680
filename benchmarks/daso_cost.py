"""What DASO adds to a FixMatch step, and that it does not grow with the number of classes or the length of the queues.

    python -m benchmarks.daso_cost [--device cuda] [--rounds 7] [--json FILE]

The paper's network and batches (WRN-28-2, B = 64, mu = 2) in bf16 and channels_last on random images of CIFAR-10's
size, all threads. Rounds go over all variants in turn; a ratio is the median over rounds of the ratio within a round.
Each row is set against FixMatch with the same number of classes, whose head grows with K as well.
"""

import statistics

from tqdm import tqdm

from benchmarks.step import FIRST, WARM_UP, paper_config, timed
from benchmarks.workload import argument_parser, build, parse, random_data, tell
from dasolib.config import available_cores
from dasolib.host import prepare_host

CLASSES = (10, 100, 1000)
QUEUES = (128, 256, 512, 1024, 2048)
PUBLISHED_QUEUE = 256
N1 = {10: 1500, 100: 150, 1000: 15}  # labeled and, twice as many, unlabeled images of the head class


def variants():
    """Yield (K, queue length), None for FixMatch alone: every K with the paper's queue, and every queue with K = 10."""
    for k in CLASSES:
        yield k, None
        yield k, PUBLISHED_QUEUE
    yield from ((CLASSES[0], length) for length in QUEUES if length != PUBLISHED_QUEUE)


def prepare(k, length, data, device):
    """Return a function of t that takes a whole step, augmentation included."""
    settings = {"precision": "bf16", "channels_last": True, "n1": N1[k], "m1": 2 * N1[k], "gamma_l": 10}
    more = {"rebalance": ""} if length is None else {"queue_size": length}
    config = paper_config(device, **settings | more)
    batches, training = build(config, data, device)
    return lambda t: training.step(batches.at(t)[0], t)


def measure(device, rounds):
    """Return a row for each variant: milliseconds, and the ratio to FixMatch with as many classes."""
    prepare_host(available_cores())
    data = {k: random_data(k) for k in CLASSES}
    steps = {(k, length): prepare(k, length, data[k], device) for k, length in variants()}
    seconds = {variant: [] for variant in steps}
    for i in tqdm(range(WARM_UP + rounds), desc="rounds"):
        for variant, step in steps.items():
            passed = timed(device, lambda: step(FIRST + i))  # noqa: B023 - called at once
            if i >= WARM_UP:
                seconds[variant].append(passed)
    rows = []
    for (k, length), own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds[k, None], strict=True)]
        rows.append({"classes": k, "queue": length, "ms": 1000 * statistics.median(own),
                     "of FixMatch": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)})
    return rows


def format_rows(rows):
    """Text of the table."""
    lines = [f"{'K':>5} {'queue':>6} {'ms':>8} {'of FixMatch':>12} {'over rounds':>14}"]
    for row in rows:
        spread = f"{row['lowest']:.3f} - {row['highest']:.3f}"
        lines.append(f"{row['classes']:5} {row['queue'] or '-':>6} {row['ms']:8.1f} {row['of FixMatch']:12.3f} "
                     f"{spread:>14}")
    return "\n".join([*lines, "queue -: FixMatch alone"])


def main():
    """Measure, print and store."""
    arguments = parse(argument_parser("daso_cost", __doc__, rounds=7, device=True))
    rows = measure(arguments.device, arguments.rounds)
    tell(format_rows(rows), {"rows": rows}, arguments.json, arguments.device)


if __name__ == "__main__":
    main()
