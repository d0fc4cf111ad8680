"""How a run of a grid is started: its notebook with papermill, in a process of this machine, once at a time."""

import ast
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import cycle, islice

import psutil
import torch
import yaml

from dasolib.config import make_config
from dasolib.papermill_errors import TRACEBACK
from dasolib.progress import is_finished
from dasolib.run_folder import LOCK, is_owned, project_root, take_lock

NOTEBOOK = "notebooks/train.ipynb"
SWEEP_LOCK = ".sweep.lock"  # of whoever works on a run, from before its notebook starts until after it has ended
LOG = "sweep.log"  # in a run folder: what papermill printed, the traceback of a run that failed included
BUSY = "another process works on this run"  # what a run may come back with that a cluster has started
SECONDS_TO_STOP = 90  # that a run gets to end a step, or an evaluation, and to save it


def notebook_parameters(run, threads):
    """Return the parameters of ``notebooks/train.ipynb`` for a run of a grid.

    Parameters
    ----------
    run : dasolib.grid.GridRun
    threads : int

    Raises
    ------
    ValueError
        If a setting is None that the preset has a value for, where None as a parameter leaves it to the preset.
    """
    declared = _declared()
    values = run.config.model_dump(mode="json", include=set(run.given))
    values["rebalance"] = ",".join(run.config.rebalance)
    parameters = {name: value for name, value in values.items() if name in declared and value is not None}
    settings = {name: value for name, value in values.items() if name not in declared}
    try:
        is_same = make_config(run.preset, threads=threads, **parameters, **settings).run_name() == run.name
    except ValueError:
        is_same = False
    if not is_same:
        nulls = ", ".join(name for name in values if name in declared and name not in parameters)
        raise ValueError(f"{run.name}: {nulls} = null: the notebook would take the preset's values instead, and that "
                         "is another run; give values")
    return parameters | {"preset": run.preset, "settings": settings, "threads": threads, "run_dir": str(run.folder)}


@functools.cache
def _declared():
    """Names of the notebook's parameters. papermill tells them, too, but it takes seconds to import."""
    cells = json.loads((project_root() / NOTEBOOK).read_text(encoding="utf-8"))["cells"]
    (cell,) = (cell for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
    return {node.target.id for node in ast.parse("".join(cell["source"])).body if isinstance(node, ast.AnnAssign)}


def papermill_command(run, threads):
    """Return the command that runs a run's notebook."""
    return [sys.executable, "-m", "papermill", str(project_root() / NOTEBOOK), str(run.folder / "train.ipynb"),
            "--cwd", str(project_root()), "--no-progress-bar", "-y", yaml.safe_dump(notebook_parameters(run, threads))]


def own(folder):
    """Take a run for this process: return its lock, or None if another process works on it or it is finished."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = take_lock(folder / SWEEP_LOCK)
    if lock is None:
        return None
    by_hand = take_lock(folder / LOCK)  # somebody may train it without a sweep
    if by_hand is not None:
        by_hand.close()
    if by_hand is None or is_owned(folder) or is_finished(folder):
        lock.close()
        return None
    return lock


def is_in_work(folder):
    """Whether a process works on a run; asks without leaving a trace."""
    for name in (SWEEP_LOCK, LOCK):
        if (folder / name).exists():
            lock = take_lock(folder / name)
            if lock is None:
                return True
            lock.close()
    return is_owned(folder)


def ask_kernels_to_stop(pid):
    """Ask the kernels that process `pid` has started to save their run and to end; return whether there are any.

    papermill ends with its kernel. Asked itself, it would end the kernel by force after some seconds.
    """
    try:
        kernels = psutil.Process(pid).children()
        for kernel in kernels:
            kernel.terminate()
    except psutil.NoSuchProcess:  # it has ended just now
        return True
    return bool(kernels)


class Local:
    """Runs as processes of this machine.

    Parameters
    ----------
    slots : list of dict
        One for each run at a time: what its environment has beyond this process's own.
    threads : int
        CPU threads of a run.
    command : callable
        (`dasolib.grid.GridRun`, threads) -> list of str.
    """

    def __init__(self, slots, threads, command=papermill_command):
        self.free, self.threads, self.command = list(slots), threads, command

    def has_room(self):
        """Whether one more run can be started."""
        return bool(self.free)

    def start(self, run):
        """Start a run; return a `Job`, or None if another process works on it or has just finished it."""
        lock = own(run.folder)
        return lock and Job(self, run, lock)


class Job:
    """A run that a `Local` has started."""

    def __init__(self, engine, run, lock):
        self.engine, self.folder, self.lock, self.slot = engine, run.folder, lock, engine.free.pop(0)
        environment = os.environ | {"OMP_NUM_THREADS": str(engine.threads), TRACEBACK: "1"} | self.slot
        with open(self.folder / LOG, "w") as log:
            # In a session of its own: Ctrl-C reaches the sweep alone, which stops its runs in order. It shares the
            # lock: if the sweep is killed, the run goes on, and another sweep leaves it alone.
            self.process = subprocess.Popen(engine.command(run, engine.threads), stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=subprocess.STDOUT, env=environment, start_new_session=True,
                                            pass_fds=[lock.fileno()])

    def poll(self):
        """Return None while it works, "" once it has succeeded, and what it ended with if it has failed."""
        if self.process.poll() is None:
            return None
        self._give_back()
        if self.process.returncode == 0 and is_finished(self.folder):
            return ""
        said = (self.folder / LOG).read_text(errors="replace").strip()
        # What it ended with may have several lines.
        lines = re.split(r"^(?=\w+(?:Error|Exception): )", said, flags=re.MULTILINE)[1:] or said.splitlines()
        code = self.process.returncode
        if code < 0:
            return f"ended by signal {-code}"
        return " ".join(lines[-1].split()) if code and lines else "left no result.json"

    def stop(self):
        """Ask it to save its last step and to end; `wait` waits for that."""
        if not ask_kernels_to_stop(self.process.pid):
            self.process.send_signal(signal.SIGINT)

    def wait(self, deadline):
        """Wait until it has ended, and end it by force at `deadline`, a time of `time.monotonic`."""
        try:
            self.process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._give_back()

    def _give_back(self):
        if not self.lock.closed:
            self.lock.close()
            self.engine.free.append(self.slot)


def local_slots(jobs, seeds_per_device):
    """Return one environment for each run at a time: which GPU it sees, in turn; nothing on a machine without.

    Parameters
    ----------
    jobs, seeds_per_device : int or None
        At most one is given. Without any: one run on each GPU, or one run.

    Raises
    ------
    ValueError
        If there are seeds for each device and no GPU.
    """
    n_devices = torch.cuda.device_count()
    if not n_devices:
        if seeds_per_device is not None:
            raise ValueError(f"--seeds-per-device {seeds_per_device}: torch finds no CUDA device here; on the CPU, "
                             "--jobs says how many runs share the cores")
        return [{}] * (jobs or 1)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:n_devices] if visible else [str(i) for i in range(n_devices)]
    n_slots = jobs or n_devices * (seeds_per_device or 1)
    return [{"CUDA_VISIBLE_DEVICES": name} for name in islice(cycle(names), n_slots)]
