"""What a DASO step of the paper's size must compute and move, and how long that takes a GPU at its best.

    python -m benchmarks.roofline [--json FILE]

Nothing is timed. One step (WRN-28-2, B = 64, mu = 2, bf16, channels_last) runs on the CPU under counters: the
floating-point operations of convolutions and matrix products, and the bytes of the tensors that each operator call
reads and writes, as if no cache held anything from one call to the next. *convolutions*: the same bytes of the
convolutions alone; what lies between them could be fused into them at best. The GPUs' rates are those of their data
sheets, for dense bf16 products and for their memory.
"""

import argparse
from pathlib import Path

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step import FIRST, VARIANTS, paper_config
from benchmarks.workload import build, random_data, tell
from dasolib.train import Window, choose_device

PAPER_STEPS = 250_000
GOAL_MINUTES = 45
# Dense bf16 operations and bytes a second: NVIDIA's data sheets of the H100 SXM (2022) and the A100 80 GB SXM (2021).
GPUS = {"H100": (989.4e12, 3.35e12), "A100": (312e12, 2.039e12)}


class CallCounter(TorchDispatchMode):
    """Count operator calls that do something on a device, and the bytes they read and write.

    Attributes
    ----------
    calls, convolutions : int
    bytes, convolution_bytes : int
    """

    def __init__(self):
        super().__init__()
        self.calls, self.convolutions = 0, 0
        self.bytes, self.convolution_bytes = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Carry out one call and count it."""
        out = func(*args, **kwargs or {})
        returns = func._schema.returns
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in returns)
        name = func._schema.name.removeprefix("aten::")
        if not is_view and not name.startswith(("empty", "new_empty", "_local_scalar")):
            tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)}
            moved = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            self.calls += 1
            self.bytes += moved
            if "convolution" in name:
                self.convolutions += 1
                self.convolution_bytes += moved
        return out


def measure():
    """Return the counts of a step, and the least time of each GPU."""
    device = choose_device("cpu")
    data = random_data()
    batches, training = build(paper_config(device, **VARIANTS["bf16, channels_last"]), data, device)
    window = Window(data.n_classes, device)
    with FlopCounterMode(display=False) as operations, CallCounter() as counter:
        batch, u_target = batches.at(FIRST)
        calls_of_views = counter.calls
        window.add(training.step(batch, FIRST), u_target, FIRST)
    counts = {"flop": operations.get_total_flops(), "bytes": counter.bytes,
              "convolution_bytes": counter.convolution_bytes, "calls": counter.calls,
              "calls_of_views": calls_of_views, "convolutions": counter.convolutions}
    rows = []
    for name, (flops, bandwidth) in GPUS.items():
        row = {"gpu": name, "arithmetic_ms": 1000 * counts["flop"] / flops,
               "traffic_ms": 1000 * counts["bytes"] / bandwidth,
               "fused_traffic_ms": 1000 * counts["convolution_bytes"] / bandwidth}
        least = {kind: max(row["arithmetic_ms"], row[kind]) * PAPER_STEPS / 60_000
                 for kind in ("traffic_ms", "fused_traffic_ms")}
        rows.append(row | {"minutes": least["traffic_ms"], "fused_minutes": least["fused_traffic_ms"]})
    goal_ms = GOAL_MINUTES * 60_000 / PAPER_STEPS
    return {"counts": counts, "rows": rows, "goal_ms": goal_ms, "goal_us_per_call": 1000 * goal_ms / counts["calls"]}


def format_numbers(numbers):
    """Text of the tables."""
    counts = numbers["counts"]
    lines = [f"a step: {counts['flop'] / 1e9:.0f} GFLOP; {counts['bytes'] / 1e9:.1f} GB read and written, "
             f"{counts['convolution_bytes'] / 1e9:.1f} GB of it by convolutions;",
             f"{counts['calls']} operator calls, {counts['calls_of_views']} of them for views, "
             f"{counts['convolutions']} convolutions (a backward pass counts as one call)",
             f"{'GPU':5} {'arithmetic':>11} {'traffic':>9} {'fused':>9} {'250,000 steps':>14} {'fused':>9}"]
    lines += [f"{row['gpu']:5} {row['arithmetic_ms']:8.2f} ms {row['traffic_ms']:6.2f} ms "
              f"{row['fused_traffic_ms']:6.2f} ms {row['minutes']:10.0f} min {row['fused_minutes']:5.0f} min"
              for row in numbers["rows"]]
    return "\n".join([*lines, f"{GOAL_MINUTES} minutes: {numbers['goal_ms']:.1f} ms a step, "
                              f"{numbers['goal_us_per_call']:.1f} us for each of today's calls"])


def main():
    """Count, print and store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    numbers = measure()
    tell(format_numbers(numbers), numbers, arguments.json)


if __name__ == "__main__":
    main()
