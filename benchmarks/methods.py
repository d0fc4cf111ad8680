"""What a step of each method costs, relative to FixMatch, and how much of that its passes explain.

    python -m benchmarks.methods [--rounds 5] [--json FILE]

Every method trains the CPU preset's network (WRN-10-1, B = 32) on random images of CIFAR10-LT's size and split, on one
thread. Rounds go over all methods in turn, ten steps each, so that a disturbance of the machine hits all of them alike;
a ratio is the median over rounds. A round holds one refinement of DARP, which happens every ten steps.

Passes are counted in image passes: an image that goes forward counts one, and two more if gradients go back.
"""

import statistics
import time

import torch
from tqdm import tqdm

from benchmarks.workload import argument_parser, build, parse, random_data, tell
from dasolib.config import make_config
from dasolib.host import prepare_host
from dasolib.methods import LEARNERS
from dasolib.rebalance import REBALANCERS, check_combination
from dasolib.results import method_label

BLOCK = 10  # steps of a method in a round
WARM_UP = 30  # steps before the first round: past DASO's P
PAIRS = [("remixmatch", ("darp",)), ("remixmatch", ("crest_plus",)), ("fixmatch", ("la", "daso")),
         ("fixmatch", ("daso", "abc"))]


def combinations():
    """Every base learner alone, every re-balancing method on FixMatch or else where it can be, DASO wherever it can."""
    yield from ((method, ()) for method in LEARNERS if method != "distribution_estimate")
    for name, line in REBALANCERS.items():
        yield ("fixmatch" if "fixmatch" in line.learners else "supervised"), (name,)
    yield from ((method, ("daso",)) for method in LEARNERS if method in REBALANCERS["daso"].learners - {"fixmatch"})
    yield from PAIRS


class Timed:
    """One method: it trains a block of steps when asked to and says how long that took.

    Parameters
    ----------
    method : str
    rebalance : tuple of str
    data : dasolib.data.ImageData
    """

    def __init__(self, method, rebalance, data):
        check_combination(method, rebalance)
        settings = {"darp_warmup_steps": 0} if "darp" in rebalance else {}
        settings |= {"source": "none"} if "crt" in rebalance else {}  # its weights do not matter here
        config = make_config("cpu", dataset="cifar10", method=method, rebalance=rebalance, total_steps=1000, threads=1,
                             unlabeled="equal", n_val=0, device="cpu", **settings)
        self.label = method_label(method, rebalance)
        self.batches, self.training = build(config, data, torch.device("cpu"))
        self.t, self.passes = 0, 0
        networks = [self.training.net] + ([self.training.ema.model] if self.training.ema else [])
        for net in networks:
            net.stem.register_forward_hook(self._count)
        self.block(WARM_UP)
        self.passes = 0

    def _count(self, module, arguments, output):
        self.passes += len(output) * (3 if output.requires_grad else 1)

    def block(self, n_steps):
        """Train `n_steps` steps; return the seconds for views and for everything else."""
        seconds = [0.0, 0.0]
        for _ in range(n_steps):
            began = time.perf_counter()
            batch, _ = self.batches.at(self.t)
            viewed = time.perf_counter()
            self.training.step(batch, self.t)
            seconds[0] += viewed - began
            seconds[1] += time.perf_counter() - viewed
            self.t += 1
        return seconds


def measure(rounds):
    """Return one row for each method: ratios to FixMatch of the whole step, of its views, its rest and its passes."""
    prepare_host(1)
    data = random_data()
    methods = [Timed(*combination, data) for combination in tqdm(list(combinations()), desc="warm-up")]
    times = {timed.label: [] for timed in methods}
    for _ in tqdm(range(rounds), desc="rounds"):
        for timed in methods:
            times[timed.label].append(timed.block(BLOCK))
    base = times["FixMatch"]
    n_steps = rounds * BLOCK
    base_passes = next(timed.passes for timed in methods if timed.label == "FixMatch")
    rows = []
    for timed in methods:
        mine = times[timed.label]
        row = {"method": timed.label, "ms": 1000 * statistics.median(sum(block) for block in mine) / BLOCK,
               "step": statistics.median(sum(a) / sum(b) for a, b in zip(mine, base, strict=True)),
               "training": statistics.median(a[1] / b[1] for a, b in zip(mine, base, strict=True)),
               "passes": timed.passes / base_passes, "image_passes": timed.passes / n_steps}
        rows.append(row | {"beyond": row["training"] / row["passes"]})
    return rows


def format_rows(rows):
    """Text of the table."""
    lines = [f"{'method':30} {'ms':>6} {'step':>6} {'training':>9} {'passes':>7} {'training / passes':>18}"]
    lines += [f"{row['method']:30} {row['ms']:6.1f} {row['step']:6.2f} {row['training']:9.2f} {row['passes']:7.2f} "
              f"{row['beyond']:18.2f}" for row in rows]
    return "\n".join([*lines, "step, training (a step without its views) and passes: relative to FixMatch"])


def main():
    """Measure, print and store."""
    arguments = parse(argument_parser("methods", __doc__, rounds=5))
    rows = measure(arguments.rounds)
    tell(format_rows(rows), {"methods": rows}, arguments.json)


if __name__ == "__main__":
    main()
