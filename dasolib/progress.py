"""What a sweep shows: a line for each run in work and a bar for all of them, or plain lines where no terminal is."""

import contextlib
import os
import shutil
import sys
import time

from tqdm import tqdm

from dasolib.cost import flop
from dasolib.evaluation import describe
from dasolib.run_files import DamagedError, parse_records, read_result

TAIL = 8192  # bytes at the end of metrics.jsonl that hold its last line, unless that has very many classes
WIDE = 110  # columns from which the loss is shown, too


def last_record(folder):
    """Return the last complete line of a run's ``metrics.jsonl``, or None before the first evaluation."""
    try:
        with open(folder / "metrics.jsonl", "rb") as file:
            size, tail, lines = file.seek(0, os.SEEK_END), TAIL, []
            while len(lines) < 2 and tail < 2 * size + TAIL:  # two line breaks, or all of the file
                file.seek(max(size - tail, 0))
                lines = file.read(min(size, tail)).split(b"\n")[:-1]  # behind the last line break nothing is complete
                tail *= 2
    except FileNotFoundError:
        return None
    try:
        return parse_records(folder / "metrics.jsonl", lines[-1:])[0]
    except (DamagedError, IndexError):  # the run itself says so, when it goes on
        return None


def is_finished(folder):
    """Whether the run in a folder has its result."""
    return (folder / "result.json").exists()


def share_done(run):
    """Share of a run's steps that are done and evaluated, in [0, 1]."""
    if is_finished(run.folder):
        return 1.0
    record = last_record(run.folder)
    return record["step"] / run.config.total_steps if record else 0.0


def run_line(run, width):
    """Say how far a run is, in at most `width` columns: a long name is cut in its middle.

    Parameters
    ----------
    run : dasolib.grid.GridRun
    width : int
    """
    record, total = last_record(run.folder), run.config.total_steps
    if record is None:
        text = "starting"
    else:
        left = record["seconds"] / record["step"] * (total - record["step"])
        loss = f"loss {sum(record['losses'].values()):.3f}  " if width >= WIDE else ""
        text = (f"{record['step']:,} of {total:,}  {loss}{describe(record)}  "
                f"{tqdm.format_interval(left)} left")
    return f"{shortened(run.name, width - len(text) - 2)}  {text}"


def shortened(name, width):
    """Cut a name in its middle to `width` characters; its end, seed and hash, stays.

    Examples
    --------
    >>> shortened("cifar10-fixmatch-daso-s0-1a2b3c4d", 24), shortened("mnist5k-fixmatch", 24)
    ('cifar10-fix…-s0-1a2b3c4d', 'mnist5k-fixmatch        ')
    """
    width, end = max(width, 16), len("-s0-1a2b3c4d")
    return name.ljust(width) if len(name) <= width else f"{name[:width - end - 1]}…{name[-end:]}"


class Board:
    """What is shown of a sweep, on the terminal or, where there is none, as plain lines.

    Parameters
    ----------
    runs : list of dasolib.grid.GridRun
        Of the whole grid.
    """

    def __init__(self, runs):
        self.runs = {run.name: run for run in runs}
        self.flop = {run.name: flop(run.config.model_dump()) for run in runs}
        self.shares = {run.name: share_done(run) for run in runs}
        self.n_finished = sum(is_finished(run.folder) for run in runs)
        self.began, self.at_begin = time.monotonic(), self._done()
        self.live = sys.stderr.isatty()
        self.total = tqdm(total=sum(self.flop.values()), initial=self.at_begin, disable=not self.live,
                          dynamic_ncols=True, bar_format="{desc} |{bar}|")
        self.lines = []

    def _done(self):
        return sum(self.flop[name] * share for name, share in self.shares.items())

    def _time_left(self):
        done = self._done()
        if done <= self.at_begin:
            return "?"
        elapsed = time.monotonic() - self.began
        return tqdm.format_interval(elapsed * (sum(self.flop.values()) - done) / (done - self.at_begin))

    def _count(self):
        return f"{self.n_finished} of {len(self.shares)} runs"

    def show(self, running, elsewhere, n_failed):
        """Show the state of affairs.

        Parameters
        ----------
        running, elsewhere : list of dasolib.grid.GridRun
            In work here, and in the hands of other processes.
        n_failed : int
        """
        for run in (*running, *elsewhere):
            self.shares[run.name] = share_done(run)
        if not self.live:
            return
        width, height = shutil.get_terminal_size()
        shown = running[:max(height - 4, 0)]
        while len(self.lines) < len(shown):
            self.lines.append(tqdm(total=0, position=len(self.lines) + 1, bar_format="{desc}", leave=False,
                                   dynamic_ncols=True))
        for i, line in enumerate(self.lines):
            line.set_description_str(run_line(shown[i], width - 1) if i < len(shown) else "")
        notes = [f"{n} {what}" for n, what in ((len(elsewhere), "elsewhere"), (n_failed, "failed")) if n]
        share = 100 * self._done() / sum(self.flop.values())
        times = f"{tqdm.format_interval(time.monotonic() - self.began)} so far, {self._time_left()} left"
        self.total.set_description_str("  ".join([self._count(), *notes, f"{share:.0f} %", times]), refresh=False)
        self.total.n = self._done()
        self.total.refresh()

    def say(self, text, *, always=True):
        """Print a line above the bars; with ``always=False`` only where there are no bars that show it."""
        if not self.live:
            print(text, flush=True)
        elif always:
            tqdm.write(text, file=sys.stdout)

    def stopping(self, n, seconds):
        """Say that `n` runs are being stopped, which may take so many seconds."""
        with contextlib.suppress(OSError):  # of a closed terminal; the runs must be waited for all the same
            tqdm.write(f"stopping {n} {'run' if n == 1 else 'runs'}; this may take {seconds} s, as each saves its "
                       "last step", file=sys.stderr)

    def finished(self, run, how):
        """Report a finished run, and count it."""
        self.shares[run.name] = 1.0
        self.n_finished += 1
        result = read_result(run.folder)
        left = "" if self.live else f"; {self._count()}, {self._time_left()} left"
        self.say(f"{how} {run.name}: {100 * result['plain']['accuracy']:.1f} % in "
                 f"{tqdm.format_interval(result['seconds'])}{left}")

    def close(self):
        """Leave the terminal tidy."""
        for line in reversed(self.lines):
            line.close()
        self.total.close()
