"""Replay recordings of the published implementation and compare what comes out.

    python -m tests.replay FILE.npz
    python -m tests.replay FILE.npz FILE.npz ...

A recording of a training holds its configuration, batches and random draws; the initial weights lie in a file beside
it. Other recordings hold inputs and outputs of single functions. For one file the largest relative error of each output
is printed, for several files one line each, in which a file of weights has nothing to compare. The exit code is 1 if an
output is above its tolerance, and 2 if a recording cannot be replayed. The formats are described in
tests/data/golden/README.md.
"""

import re
import sys
import zipfile
from pathlib import Path

import numpy as np

from tests.replay_primitives import compare, digest_rows, float64, replay_primitive
from tests.replay_trajectory import NOT_OUTPUTS, replay_trajectory


class OnlyWeights(ValueError):
    """A file of weights, for the recordings beside it."""


def replay(path):
    """Compare every output in the recording at `path` with ours; a list of `tests.replay_primitives.Row`."""
    path = Path(path)
    with np.load(path, allow_pickle=False) as archive:
        z = {name: archive[name] for name in archive.files}
    if all(name.startswith(("encoder.", "classifier.")) for name in z):
        raise OnlyWeights("it holds weights for other recordings, and no outputs")
    if "step0/x_labeled" not in z:
        return replay_primitive(path)
    with float64():
        got = replay_trajectory(z, path.parent)
    outputs = [name for name in z if not re.fullmatch(NOT_OUTPUTS, name)]
    if not outputs:
        raise ValueError(f"{path}: it holds no outputs")
    rows = {row.name: row for key in ("final/model", "final/ema") if f"{key}/name" in z and key in got
            for row in digest_rows(z, key, got.pop(key))}
    forgotten = [name for name in outputs if name not in rows and name not in got]
    if forgotten:
        raise ValueError(f"{path}: outputs that no replay covers: {', '.join(forgotten)}")
    return [rows[name] if name in rows else compare(name, got[name], z[name]) for name in outputs]


def number_failed(rows):
    """How many outputs are above their tolerance."""
    return sum(not row.error <= row.tolerance for row in rows)


def worst(rows):
    """The row to report: one above its tolerance if there is one, and of these the one with the largest error."""
    compared = [row for row in rows if not row.note.startswith("statistical") or not row.error <= row.tolerance]
    return max(compared or rows, key=lambda row: (not row.error <= row.tolerance, row.error, -row.tolerance))


def print_outputs(path, rows):
    """Print a line for each output of one recording, and a summary."""
    for row in rows:
        mark = "" if row.error <= row.tolerance else "  <-- above tolerance"
        print(f"{row.name:60} {row.error:9.2e}  tolerance {row.tolerance:.0e}  {row.note}{mark}".rstrip())
    print(f"{Path(path).name}: {len(rows)} outputs, largest error {worst(rows).error:.2e}, "
          f"{number_failed(rows)} above tolerance")


def print_line(path, rows):
    """Print one recording's line of the table."""
    verdict = f"FAIL: {number_failed(rows)} outputs" if number_failed(rows) else "pass"
    row = worst(rows)
    print(f"{Path(path).name:32} {len(rows):8} {row.error:14.2e} {row.tolerance:10.0e}  {verdict}", flush=True)


def main(paths):
    """Print what `replay` finds for each of `paths`; return the exit code."""
    if not paths:
        print(__doc__)
        return 2
    if len(paths) > 1:
        print(f"{'recording':32} {'outputs':>8} {'largest error':>14} {'tolerance':>10}")
    code = 0
    for path in paths:
        try:
            rows = replay(path)
        except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
            if len(paths) > 1 and isinstance(error, OnlyWeights):
                print(f"{Path(path).name:32} weights, nothing to compare")
                continue
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            print(f"{path}: cannot be replayed: {reason}", file=sys.stderr)
            code = 2
            continue
        (print_outputs if len(paths) == 1 else print_line)(path, rows)
        code = max(code, 1 if number_failed(rows) else 0)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
