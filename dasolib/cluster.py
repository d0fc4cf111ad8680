"""Runs of a sweep as tasks of a Ray cluster, with a folder that all its machines see; needs the extra ``ray``."""

import os
import re
import signal
import socket
import time
import traceback
from pathlib import Path

import papermill

from dasolib.launch import BUSY, LOG, NOTEBOOK, ask_kernels_to_stop, notebook_parameters, own
from dasolib.progress import is_finished
from dasolib.run_folder import project_root

try:
    import ray
except ImportError:
    ray = None

THREADS = 1  # of a run, and CPU cores that a task asks for
SECONDS_TO_ANSWER = 10  # of the cluster's address
SECONDS_TO_APPEAR = 120  # of a result that another machine has written; network file systems remember absent files
RETRIES = 20  # when a worker or its machine is lost; a run that fails by itself is not tried again


def train(folder, parameters):
    """Run a run's notebook in this process, which Ray has given a core or a part of a GPU.

    Parameters
    ----------
    folder : str
        Of the run, on the shared path.
    parameters : dict
        Of the notebook.

    Returns
    -------
    str
        "" once the run is finished, or `BUSY`.
    """
    folder = Path(folder)
    lock = own(folder)
    if lock is None:
        return "" if is_finished(folder) else BUSY
    def stop(number, frame):  # Ray cancels a task by what Ctrl-C does
        if not ask_kernels_to_stop(os.getpid()):
            raise KeyboardInterrupt

    with lock:
        before = signal.signal(signal.SIGINT, stop)
        try:
            papermill.execute_notebook(project_root() / NOTEBOOK, folder / "train.ipynb", parameters,
                                       cwd=project_root(), progress_bar=False)
        except Exception:
            (folder / LOG).write_text(traceback.format_exc())
            raise
        finally:
            signal.signal(signal.SIGINT, before)
    return ""


class Cluster:
    """Runs as tasks of an existing Ray cluster: a part of a GPU each where it has any, else a CPU core.

    Parameters
    ----------
    address : str, optional
        Of the cluster; default: the one this machine belongs to.
    seeds_per_device : int, optional
        Runs that share a GPU; default 1.

    Raises
    ------
    ValueError
        If Ray is not installed, there is no such cluster, or there are seeds for each device and no GPU.
    """

    def __init__(self, address=None, seeds_per_device=None):
        if ray is None:
            raise ValueError("--engine ray: Ray is not installed; pip install -e '.[ray]'")
        try:
            if address is not None and (at := re.fullmatch(r"([^:/]+):(\d+)", address)):
                socket.create_connection((at[1], int(at[2])), SECONDS_TO_ANSWER).close()  # Ray would try for minutes
            ray.init(address=address or "auto", log_to_driver=False, logging_level="error")
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"--address {address or 'auto'}: no Ray cluster there: {error}") from None
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        if seeds_per_device is not None and not has_gpus:
            raise ValueError(f"--seeds-per-device {seeds_per_device}: this Ray cluster has no GPU; a run takes "
                             f"{THREADS} CPU core")
        self.task = ray.remote(train).options(
            num_cpus=THREADS, num_gpus=1 / (seeds_per_device or 1) if has_gpus else 0, max_retries=RETRIES,
            scheduling_strategy="SPREAD")

    def has_room(self):
        """Whether one more run can be handed over: always, as Ray itself waits for room."""
        return True

    def start(self, run):
        """Hand a run to Ray; return a `Task`, or None if another process works on it or has just finished it."""
        lock = own(run.folder)
        if lock is None:
            return None
        lock.close()  # the task takes it, on its machine
        return Task(run.folder, self.task.remote(str(run.folder), notebook_parameters(run, THREADS)))


class Task:
    """A run that a `Cluster` has been given."""

    def __init__(self, folder, reference):
        self.folder, self.reference, self.deadline = folder, reference, None

    def poll(self):
        """Return None while it waits or works, "" once it has succeeded, `BUSY`, or what went wrong."""
        done, _ = ray.wait([self.reference], timeout=0)
        if not done:
            return None
        try:
            outcome = ray.get(self.reference)
        except ray.exceptions.RayError as error:
            return (str(error).strip() or type(error).__name__).splitlines()[-1]
        if outcome or is_finished(self.folder):
            return outcome
        self.deadline = self.deadline or time.monotonic() + SECONDS_TO_APPEAR
        if time.monotonic() < self.deadline:
            return None
        return f"its result has not appeared in {self.folder}: --runs must be a folder that all machines share"

    def stop(self):
        """Ask it to end; `wait` waits for that."""
        ray.cancel(self.reference, force=False)

    def wait(self, deadline):
        """Wait until it has ended, and end it by force at `deadline`, a time of `time.monotonic`."""
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if self.poll() is None:
            ray.cancel(self.reference, force=True)
