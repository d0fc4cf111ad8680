"""A grid of runs through papermill, on this machine or a Ray cluster: what is finished stays, what is missing is run.

    python -m dasolib.sweep studies/FILE.yaml [--dry-run] [--jobs N | --seeds-per-device N]
                            [--engine ray --address ADDRESS]

A run lies in ``runs/<study>/<name of the run>/``, with its executed notebook. Interrupt a sweep at any time: the same
command goes on. Two sweeps can work on one study at once, and leave each other's runs alone.
"""

import argparse
import sys
import time
import warnings

from dasolib.config import available_cores
from dasolib.cost import START_SECONDS, estimate
from dasolib.data import DATASETS, DECODED, LISTED, load_data
from dasolib.grid import load_grid
from dasolib.host import EXIT_INTERRUPTED, stop_signals
from dasolib.launch import (
    BUSY,
    LOG,
    SECONDS_TO_STOP,
    Local,
    is_in_work,
    local_slots,
    notebook_parameters,
    papermill_command,
)
from dasolib.progress import Board, is_finished, last_record, share_done
from dasolib.run_files import read_config
from dasolib.run_folder import project_root, resolve
from dasolib.sources import NETWORK

SECONDS_BETWEEN_LOOKS = 0.5


def sweep(runs, engine, board, ends=()):
    """Run what is missing of a grid; whoever interrupts it finds all runs stopped.

    Parameters
    ----------
    runs : list of dasolib.grid.GridRun
    engine : Local or dasolib.cluster.Cluster
    board : dasolib.progress.Board
    ends : sequence
        What has asked for an end so far, see `dasolib.host.stop_signals`.

    Returns
    -------
    dict
        GridRun -> what went wrong, of the runs that failed or wait for one that did.

    Raises
    ------
    KeyboardInterrupt
        If something asked for an end before all was done.
    """
    waiting = [run for run in runs if not is_finished(run.folder)]
    done = {run.folder for run in runs} - {run.folder for run in waiting}
    running, elsewhere, failed = {}, [], {}
    try:
        while waiting or running:
            for run, job in list(running.items()):
                outcome = job.poll()
                if outcome is None:
                    continue
                del running[run]
                if outcome == BUSY:
                    waiting.insert(0, run)
                elif outcome:
                    failed[run] = outcome
                    board.say(f"failed {run.name}: {outcome}")
                else:
                    done.add(run.folder)
                    board.finished(run, "finished")
            failed_folders = {run.folder for run in failed}
            for run in list(waiting):
                if is_finished(run.folder):
                    done.add(run.folder)
                    waiting.remove(run)
                    board.finished(run, "finished elsewhere")
                elif run.after in failed_folders and not is_finished(run.after):  # a figure after the result may fail
                    failed[run] = f"not started, as it needs {run.after.name}, which failed"
                    waiting.remove(run)
                elif ends or not engine.has_room():
                    break
                elif run.after is None or run.after in done or is_finished(run.after):
                    job = engine.start(run)
                    if job is not None:
                        running[run] = job
                        waiting.remove(run)
                        board.say(f"started {run.name}", always=False)
                    elif run not in elsewhere:
                        elsewhere.append(run)
                        board.say(f"another process works on {run.name}; waiting for it", always=False)
            elsewhere = [run for run in elsewhere if run in waiting]
            board.show(list(running), elsewhere, len(failed))
            if waiting or running:
                if ends:
                    raise KeyboardInterrupt
                time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        for job in running.values():
            job.stop()
        if running:
            board.stopping(len(running), SECONDS_TO_STOP)
        deadline = time.monotonic() + SECONDS_TO_STOP
        for job in running.values():
            job.wait(deadline)
    return failed


def describe(grid, gflops=None, n_jobs=1):
    """Text of a dry run: every run of a grid, its state, what it would cost, and what that estimate rests on."""
    missing = [run for run in grid.runs if not is_finished(run.folder)]
    estimates, basis = estimate([run.config for run in missing], grid.folder, gflops)
    estimates = dict(zip([run.name for run in missing], estimates, strict=True))
    fields = {name for run in grid.runs for name in run.given} - {"dataset", "method", "rebalance", "seed", "source"}
    varying = [name for name in grid.runs[0].config.model_dump() if name in fields
               and len({getattr(run.config, name) for run in grid.runs}) > 1]
    lines, seconds, flop, n_interrupted, n_in_work = [], 0, 0, 0, 0
    for run in grid.runs:
        if run.name in estimates:
            left = 1 - share_done(run)
            seconds += left * estimates[run.name].seconds
            flop += left * estimates[run.name].flop
            record = last_record(run.folder)
            in_work = is_in_work(run.folder)
            n_in_work += in_work
            n_interrupted += record is not None and not in_work
            state = f"step {record['step']:,} of {run.config.total_steps:,}" if record else "missing"
            state = f"in work, {state}" if in_work else state
            cost = _duration(left * estimates[run.name].seconds)
        else:
            state, cost = "finished", "-"
        settings = " ".join(f"{name}={getattr(run.config, name)}" for name in varying)
        lines.append(f"{state:30} {cost:>8}  {run.name}  {settings}".rstrip())
    n_measured = sum(each.measured for each in estimates.values())
    lines += [
        "", f"{grid.name}: {len(grid.runs)} runs in {grid.folder}: {len(grid.runs) - len(missing)} finished, "
        f"{n_in_work} in work, {n_interrupted} interrupted, {len(missing) - n_in_work - n_interrupted} missing"]
    n_jobs = min(n_jobs, len(missing))
    if missing:
        lines += [
            f"To do: {_duration(seconds)} one run after the other"
            + (f", {_duration(seconds / n_jobs)} with {n_jobs} at a time" if n_jobs > 1 else "")
            + f"; {_amount(flop)} in the networks",
            f"Estimated {n_measured} from finished runs that differ in the seed alone, {len(missing) - n_measured} "
            f"from their arithmetic at {basis}; {START_SECONDS} s each for the start"]
    try:
        check_inputs(grid)
    except ValueError as error:
        lines.append(f"Not to be started as it is: {error}")
    return "\n".join(lines)


def _duration(seconds):
    """Write seconds for people.

    Examples
    --------
    >>> _duration(40), _duration(700), _duration(12345)
    ('40 s', '12 min', '3.4 h')
    """
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min" if seconds < 3600 else (
        f"{seconds / 3600:,.1f} h")


def _amount(flop):
    """Write floating-point operations for people.

    Examples
    --------
    >>> _amount(4.684e15), _amount(9.996e17), _amount(2.644e18), _amount(97.9e18)
    ('4.68 PFLOP', '1.0 EFLOP', '2.6 EFLOP', '97.9 EFLOP')
    """
    # From 999.5 on, three digits of PFLOP would be written as 1e+03.
    return f"{flop / 1e15:.3g} PFLOP" if flop < 999.5e15 else f"{flop / 1e18:,.1f} EFLOP"


def check_folders(grid):
    """Refuse a file where the folder of a study or of a run would be.

    Raises
    ------
    ValueError
        Naming the file.
    """
    for place in (*grid.folder.parents, grid.folder, *(run.folder for run in grid.runs)):
        if place.exists() and not place.is_dir():
            raise ValueError(f"{place} is a file, and runs would go there; move it away, or choose another --runs")


def check_inputs(grid):
    """Refuse what would make a run fail when it starts, or make it one of another study.

    Raises
    ------
    ValueError
        If data or another run that a missing one starts from are not there, or data hold other images than the study's
        finished runs were trained on.
    """
    finished = [run for run in grid.runs if is_finished(run.folder)]
    missing = [run for run in grid.runs if run not in finished]
    ours = {run.folder for run in grid.runs}
    for run in missing:
        source = run.after if run.config.needs("source") else None
        if source is not None and is_finished(source) and not (source / NETWORK).exists():
            raise ValueError(f"source={source.name!r} has no {NETWORK}, which {run.name} starts from: committed "
                             f"results come without it; move {source} away, and the sweep trains it again")
        outside = resolve(run.config.source or "")
        if run.config.source and outside not in ours and not is_finished(outside):
            raise ValueError(f"source={run.config.source!r} is not finished, and {run.name} starts from it")
    for dataset in sorted({run.config.dataset for run in missing}):
        if dataset not in DATASETS and not resolve(dataset).exists():
            raise ValueError(f"dataset={dataset!r}: choose from {', '.join(DATASETS)}, or the path of an .npz file or "
                             f"of a folder; there is no {resolve(dataset)}")
        by_hand = project_root() / "data" / LISTED
        if dataset in DECODED and not by_hand.is_dir():
            raise ValueError(f"dataset={dataset!r} is read from {by_hand}, where lists and images must be put by hand, "
                             "and there is no such folder")
    there = {}  # data_sha256 of finished runs, by data
    for run in finished:
        # What has a name is one and the same everywhere.
        if run.config.dataset not in DATASETS and resolve(run.config.dataset).exists():
            record = read_config(run.folder)
            decoded = (run.config.dataset, run.config.resolution, run.config.skip_unreadable)
            there.setdefault(decoded, set()).add(record.get("data_sha256"))
    for (dataset, resolution, skip_unreadable), known in there.items():
        data = load_data(resolve(dataset), resolution=resolution, skip_unreadable=skip_unreadable)
        if known != {data.fingerprint}:
            raise ValueError(f"dataset={dataset!r}: holds other images, or in another order, than the finished runs of "
                             f"{grid.folder} were trained on; no table could hold both. Choose another --runs")


def _positive(text):
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1")
    return value


def parse_arguments(arguments):
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m dasolib.sweep", description=__doc__.split("\n\n")[0],
                                     epilog="Exit code: 0 all finished, 1 a run failed, 2 bad input, "
                                            f"{EXIT_INTERRUPTED} interrupted, and the same command goes on.")
    parser.add_argument("file", metavar="FILE", help="a grid, such as studies/cpu_wide.yaml")
    parser.add_argument("--runs", default="runs", metavar="DIR",
                        help="folder of studies, relative to the project (default runs)")
    how_many = parser.add_mutually_exclusive_group()
    how_many.add_argument("--jobs", type=_positive, metavar="N",
                          help="runs at a time, each with an N-th of the cores (default 1, or one on each GPU)")
    how_many.add_argument("--seeds-per-device", type=_positive, metavar="N", help="runs at a time on each GPU")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster")
    parser.add_argument("--address", help="of the Ray cluster (default: the one this machine belongs to)")
    parser.add_argument("--dry-run", action="store_true", help="print the grid and what it would cost; start nothing")
    parser.add_argument("--gflops", type=_positive, metavar="N",
                        help="with --dry-run: GFLOP/s, where no finished run tells")
    given = parser.parse_args(arguments)
    if given.address is not None and given.engine != "ray":
        parser.error(f"--address {given.address}: goes with --engine ray")
    if given.jobs is not None and given.engine == "ray":
        parser.error(f"--jobs {given.jobs}: goes with --engine local; a Ray cluster runs as many as it has room for")
    if given.gflops is not None and not given.dry_run:
        parser.error(f"--gflops {given.gflops}: goes with --dry-run")
    return given


def report(grid, failed):
    """Text at the end: how many runs are finished, and of those that failed why, and where to read more."""
    n_finished = sum(is_finished(run.folder) for run in grid.runs)
    lines = [f"{grid.name}: {n_finished} of {len(grid.runs)} runs are finished in {grid.folder}"]
    if failed:
        lines.append(f"{len(failed)} failed:")
        for run, text in failed.items():
            log = run.folder / LOG
            lines += [f"  {run.name}", f"    {text}"] + ([f"    {log}"] if log.exists() else [])
    return "\n".join(lines)


def main(arguments=None, command=papermill_command):
    """Run a grid; return the exit code.

    Parameters
    ----------
    arguments : list of str, optional
        Default: those of the command line.
    command : callable
        As of `Local`.
    """
    given = parse_arguments(arguments)
    warnings.filterwarnings("ignore", r"\w+_steps=.* is not below ")  # the run itself will say it
    try:
        grid = load_grid(given.file, given.runs)
        check_folders(grid)
        if given.engine == "ray":
            slots = [{}]
        else:
            slots = local_slots(given.jobs, given.seeds_per_device)
        if given.dry_run:
            print(describe(grid, given.gflops, len(slots)))
            return 0
        check_inputs(grid)
        for run in grid.runs:
            notebook_parameters(run, 1)
        if given.engine == "ray":
            from dasolib.cluster import Cluster  # Ray is an optional dependency

            engine = Cluster(given.address, given.seeds_per_device)
        else:
            engine = Local(slots, max(1, available_cores() // len(slots)), command)
    except ValueError as error:
        print(f"python -m dasolib.sweep: error: {error}", file=sys.stderr)
        return 2
    board = Board(grid.runs)
    with stop_signals() as ends:  # only now: Ray, too, sets a handler
        try:
            failed = sweep(grid.runs, engine, board, ends)
        except KeyboardInterrupt:
            board.close()
            print("interrupted; nothing is lost, and the same command goes on", file=sys.stderr)
            return EXIT_INTERRUPTED
    board.close()
    print(report(grid, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
