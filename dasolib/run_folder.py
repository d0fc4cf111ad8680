"""A run's folder: who owns it, what is in it, and how it survives being killed at any moment."""

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from filelock import SoftFileLease, Timeout, lock_descriptor

from dasolib.config import SCHEMA, YOUNGER, Config, has_control_characters
from dasolib.diagnostics import KINDS
from dasolib.host import names_file
from dasolib.run_files import (
    CHECKED,
    CHECKPOINT,
    COUNTED,
    COUNTS,
    COUNTS_SO_FAR,
    PREVIOUS,
    SMALL,
    DamagedError,
    Evaluations,
    content,
    name_in_run,
    parse_records,
    read_checked,
    read_config,
    read_counts,
    read_result,
    read_run,
    read_starts,
    sha256,
    sound_checkpoint,
    write_bytes,
    write_json,
    write_npz,
    write_result,
)

PACKAGES = ("torch", "torchvision", "numpy", "daso-study")
WRITTEN = ("*.json*", "checkpoint*.pt", "model.safetensors", "outputs.npz", "predictions.csv", "pseudo_labels*",
           "events")  # by a run, after its config.json
SECONDS_BETWEEN_CHECKPOINTS = 45
SHARE_OF_CHECKPOINTS = 0.008  # of the time, and with a look at the state 1 %: where one takes long, fewer are written
LOCK = ".lock"  # file in a run folder; whoever has its lock owns the folder
OWNER = ".owner"  # names host and process of the owner, and changes as long as it lives: where locks have no effect
SECONDS_OF_SILENCE = 60  # after which the owner on another host is taken for dead
REFUSED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # a file system without locks says so


def project_root():
    """Return the folder that relative paths start from: the source tree of the package, or the current folder.

    The latter where the package is installed without its source tree. papermill, JupyterLab and nbval start notebooks
    in different folders, so nothing may depend on where a process started inside the source tree.
    """
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").exists() else Path.cwd()


def resolve(path):
    """Absolute form of a path; a relative one starts from `project_root`, and ``~`` is the home folder.

    Raises
    ------
    ValueError
        If it is no path.
    """
    if not isinstance(path, str | Path):
        raise ValueError(f"path={path!r}: must be text, or a pathlib.Path")
    if has_control_characters(str(path)):
        raise ValueError(f"path={str(path)!r}: must not hold a line break, a NUL or another control character")
    return project_root() / Path(path).expanduser()


def host_copy(value):
    """Copy nested containers with every tensor in them, which then is on the host and no step changes."""
    if isinstance(value, dict):
        return {key: host_copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [host_copy(item) for item in value]
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


def environment(device, threads):
    """Return what a run happened in, as JSON types: versions, processor, device, threads, commit, dirty or not."""

    def git(*command):
        try:
            ran = subprocess.run(["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True)
        except FileNotFoundError:  # no git on this machine
            return None
        return ran.stdout.strip() if ran.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "platform": f"{platform.system()}-{platform.machine()}",
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": threads,
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
    }


def take_lock(file):
    """Take the lock that a file stands for, unless another process has it.

    Returns
    -------
    file object or None
        Open as long as the lock is held; the kernel drops it when its owner dies. None: another process has it.

    Raises
    ------
    ValueError
        If the file system has no locks.
    """
    lock = open(file, "a")  # noqa: SIM115 - held as long as the lock is
    try:
        taken = lock_descriptor(lock.fileno(), blocking=False)
    except OSError as error:
        lock.close()
        if error.errno not in REFUSED:
            raise
        raise ValueError(f"{file.parent}: this file system refuses locks ({error.strerror}), which keep two processes "
                         "out of one run; choose a folder on another disk, or mount this one with locks (NFS: version "
                         "4, or with its lock daemon)") from None
    if not taken:
        lock.close()
        return None
    return lock


def is_owned(folder):
    """Whether another process says in the folder of a run that it works there; ask again, as long as it may be dead."""
    if not (folder / OWNER).exists():
        return False
    lease = _lease(folder / OWNER)
    try:
        lease.acquire(timeout=0)
    except Timeout:
        return True
    lease.release()
    return False


@functools.cache  # one and the same for each file: it must see for itself for how long nothing changes
def _lease(file):
    return SoftFileLease(file, lease_duration=SECONDS_OF_SILENCE, thread_local=False)


def _owner(file):
    """Return the host and process that a file names as owner, and when it changed last; empty without one."""
    try:
        text, changed = file.read_text(errors="replace"), file.stat().st_mtime_ns
    except FileNotFoundError:
        return "", "", None
    host, pid = (match[1] if (match := re.search(rf"^{key}=(\S+)", text, re.M)) else "?" for key in ("host", "pid"))
    return host, pid, changed


class RunFolder:
    """The folder of one run, owned by one process at a time; a context manager.

    Parameters
    ----------
    path : Path
        Created if absent.
    config : dasolib.config.Config
    data : dasolib.data.ImageData
        Its fingerprint, mean and std are part of what the run is.
    taken : dict, optional
        What the run takes from an earlier one, as JSON types: part of what it is, too.

    Raises
    ------
    ValueError
        On entering: if another process owns the folder, or the folder holds another run or other files.
    """

    def __init__(self, path, config, data, taken=None):
        self.path = Path(path)
        self.threads = config.threads
        self.record = {"schema": SCHEMA, **config.identity(), "threads": config.threads,
                       "mean": list(data.mean), "std": list(data.std), "data_sha256": data.fingerprint}
        if taken:
            self.record["taken"] = taken
        parts = {"train": data.x_train, "test": data.x_test, "unlabeled": data.x_unlabeled}
        self.images = {name: 0 if images is None else len(images) for name, images in parts.items()}
        self.notes = []  # what a user should know of this start; warned about and recorded
        self.checkpoint, self.previous = self.path / CHECKPOINT, self.path / PREVIOUS
        self._writing = None  # what the thread is writing
        self._written, self._seconds = time.perf_counter(), [0.0, 0.0]  # since when, and what it takes here and there
        self._lock = self._ownership = None
        self._sha256, self._metrics = {}, hashlib.sha256()  # of what is recorded so far
        self._starts, self._found = [], None

    def __enter__(self):
        """Check that the folder is free for this run, and take it."""
        self._check_record()  # before anything is written
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        if (self.path / "result.json").exists():  # nothing is written any more
            return self
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = take_lock(self.path / LOCK)
        if self._lock is None:
            raise ValueError(f"run_dir={self.path}: another process is working in this folder; wait until it has "
                             "ended, or choose another folder")
        try:
            self._own()
            self._check_record()  # again: another process may have come first
        except BaseException:
            self._give_back()
            raise
        return self

    def __exit__(self, *error):
        """Write what is left to write, and give the folder back."""
        try:
            self.flush()
        finally:
            self._thread.shutdown()
            self._give_back()

    def _own(self):
        """Own the folder by a file as well, since locks have no effect on some file systems that hosts share."""
        file = self.path / OWNER
        host, pid, changed = _owner(file)
        self._ownership = SoftFileLease(file, lease_duration=SECONDS_OF_SILENCE, thread_local=False)
        try:
            with contextlib.suppress(Timeout):
                self._ownership.acquire(timeout=0)
                return
            if host not in ("", socket.gethostname()):  # no process can be looked for on another host
                warnings.warn(f"{self.path}: process {pid} on {host} may be working in this folder; waiting for "
                              f"{SECONDS_OF_SILENCE} s for a sign of life", stacklevel=4)
                self._ownership.acquire(timeout=2 * SECONDS_OF_SILENCE, poll_interval=SECONDS_OF_SILENCE / 100,
                                        cancel_check=lambda: _owner(file) not in ((host, pid, changed), ("", "", None)))
                self._note(f"taken over from process {pid} on {host}, which gave no sign of life for "
                           f"{SECONDS_OF_SILENCE} s")
                return
        except Timeout:
            pass
        host, pid, _ = _owner(file)
        raise ValueError(f"run_dir={self.path}: another process is working in this folder, {pid} on {host}; wait until "
                         "it has ended, or choose another folder")

    def _give_back(self):
        if self._ownership is not None:
            self._ownership.release()
        if self._lock is not None:
            self._lock.close()

    def _check_owner(self):
        """Refuse to write where another host has taken the folder over, as after a long standstill of this process."""
        if self._ownership and not self._ownership.is_lock_held_by_us and (self.path / OWNER).exists():
            host, pid, _ = _owner(self.path / OWNER)
            raise ValueError(f"run_dir={self.path}: process {pid} on {host} has taken this folder over; this one "
                             "writes nothing more into it")

    def _check_record(self):
        file = self.path / "config.json"
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"run_dir={self.path} is a file; choose a folder, which may be absent")
        if not file.exists():
            written = (each for pattern in WRITTEN for each in self.path.glob(pattern))
            strangers = sorted(each.name for each in written if each.suffix != ".tmp")
            if strangers:  # somebody else's files, which a run would replace
                raise ValueError(f"run_dir={self.path} holds {strangers[0]} but no config.json: not a run; choose "
                                 "another folder")
            return
        there, here = YOUNGER | read_config(self.path), YOUNGER | self.record
        names = sorted({*there, *here} - {"schema", "threads"})
        differing = {name: f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
                     for name in names if there.get(name) != here.get(name)}
        # What only one of two methods has follows from the method; what is recorded on neither side had no effect.
        common = there if differing.keys().isdisjoint(("method", "rebalance")) else there.keys() & here
        back = " and ".join(f"{name}={there[name]!r}" for name in differing
                            if name in Config.model_fields and name in common)
        if "data_sha256" in differing:
            differing = {name: text for name, text in differing.items() if name not in ("data_sha256", "mean", "std")}
            differing["images"] = self._images_changed()
            back = " and ".join(filter(None, [back, "the images as they were"]))
        if differing:
            if (result := read_result(self.path)) is not None:
                read_checked(self.path, file.name, result)  # damage is no other run
            raise ValueError(f"run_dir={self.path} holds another run; {'; '.join(differing.values())}; choose another "
                             "run_dir, where training starts at step 0" + (f", or take {back} to go on there" if back
                                                                           else ""))

    def _images_changed(self):
        """Say in words how the images differ from those that the run there began with."""
        starts = read_starts(self.path, {})
        before = starts[0].get("images", {}) if starts else {}
        changed = [f"{before[name]:,} {name} there, {n:,} here" for name, n in self.images.items()
                   if before.get(name, n) != n]
        return "the images are not those it was trained on (" + (", ".join(changed) or "other pixels, labels or order"
                                                                 ) + ")"

    def result(self):
        """Return the result of a finished run, or None.

        Raises
        ------
        DamagedError
            As `read_run` does.
        """
        if not (self.path / "result.json").exists():
            return None
        result = read_run(self.path)[3]
        for name in result.get("sha256", ()):
            if name in CHECKED and (self.path / name).exists():  # large files may have been left behind
                read_checked(self.path, name, result)
        # A kill right after the result left them behind; a result that is another run's must not cost them.
        shutil.rmtree(self.path / COUNTS_SO_FAR, ignore_errors=True)
        return result

    def begin(self, now, step):
        """Record what the run goes on in from `step`, and warn where that differs from how it began.

        Parameters
        ----------
        now : dict
            From `environment`.
        step : int
            Steps done so far.
        """
        file = self.path / "environment.json"
        starts = read_starts(self.path, {}) if step else []
        if starts:
            schema = read_config(self.path)["schema"]
            changed = [f"{name}: {starts[0].get(name)!r} before, {now[name]!r} now"
                       for name in now if starts[0].get(name) != now[name]]
            changed += [f"schema: {schema} before, {SCHEMA} now"] if schema != SCHEMA else []
            if changed:
                self._note("resumes in another environment; numbers may differ from an undisturbed run. "
                           + "; ".join(changed))
        else:
            write_json(self.path / "config.json", self.record)
        notes = {"notes": self.notes} if self.notes else {}
        self._starts = [*starts, {"from_step": step, **now, "images": self.images, **notes}]
        write_json(file, {"starts": self._starts})
        self._sha256["config.json"] = sha256(self.path / "config.json")

    def _note(self, text):
        self.notes.append(text)
        warnings.warn(f"{self.path}: {text}", stacklevel=3)

    def save_checkpoint(self, state):
        """Make `state` the latest checkpoint, and keep the one before.

        Parameters
        ----------
        state : dict
            ``step``, the steps done, and whatever training needs to go on: tensors, numbers and strings in containers.
            What is recorded of the run so far is added, with checksums.
        """
        self._check_owner()
        sums = self._sha256 | {"metrics.jsonl": self._metrics.hexdigest()}
        buffer = io.BytesIO()
        torch.save(state | {"sha256": sums, "starts": self._starts}, buffer)
        temporary = self.checkpoint.with_name("checkpoint.new.pt")
        write_bytes(temporary, buffer.getbuffer())
        if self.checkpoint.exists():
            os.replace(self.checkpoint, self.previous)
        os.replace(temporary, self.checkpoint)

    def load_checkpoint(self, device):
        """Return the state of the latest checkpoint that what is recorded fits, or None if there is none yet.

        Raises
        ------
        DamagedError
            As `sound_checkpoint` does.
        """
        found = self._found = sound_checkpoint(self.path, device)
        if found is None:
            if (self.path / "metrics.jsonl").exists() and (self.path / "metrics.jsonl").read_bytes().count(b"\n") > 1:
                self._note("there is no checkpoint any more; training starts at step 0")
            return None
        if found.problems:
            self._note(found.said())
        for file in (self.checkpoint, self.previous):
            if file.is_dir():  # in the way of the next save
                shutil.rmtree(file)
        if found.name == PREVIOUS:
            os.replace(self.previous, self.checkpoint)  # else the next save would keep the damaged one instead
        return found.state

    def write(self, metrics, counts, state):
        """Have an evaluation and the state of training after it written by a thread, while training goes on.

        The thread writes them in this order, so that there is never a checkpoint without the records before it. At most
        one evaluation is being written: the call waits for the one before.

        Parameters
        ----------
        metrics : dict or None
            A line of ``metrics.jsonl``; None where a checkpoint comes between two evaluations.
        counts : sequence of ndarray or None
            Its entries of the arrays of `COUNTED`, see `read_counts`.
        state : dict
            As `save_checkpoint` takes it. It is copied here, on the host.

        Raises
        ------
        Exception
            What went wrong in writing the evaluation before.
        """
        began = time.perf_counter()
        self.flush()
        state = host_copy(state)
        self._written = time.perf_counter()
        self._seconds[0] = self._written - began
        self._writing = self._thread.submit(self._write, metrics, counts, state)

    def _write(self, metrics, counts, state):
        began = time.perf_counter()
        if metrics is not None:
            self.append_metrics(metrics)
            self.write_counts(metrics["step"], counts)
        self.save_checkpoint(state)
        self._seconds[1] = time.perf_counter() - began

    def is_checkpoint_due(self):
        """Whether the last state is so old that one should be written before the next evaluation."""
        pause = max(SECONDS_BETWEEN_CHECKPOINTS, sum(self._seconds) / SHARE_OF_CHECKPOINTS)
        return time.perf_counter() - self._written >= pause

    def flush(self):
        """Wait until everything is written; raise what went wrong."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def append_metrics(self, record):
        """Add one evaluation to ``metrics.jsonl``."""
        self._check_owner()
        path, line = self.path / "metrics.jsonl", _metrics_line(record).encode()
        with names_file(path), open(path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._metrics.update(line)

    def write_counts(self, step, counts):
        """Write the counts of the evaluation after `step` steps, whose arrays are those of `COUNTED`.

        32 bits are enough: so many pseudo-labels are 16 million steps of the paper's setting within one window.
        """
        arrays = {name: array.astype(np.int32) for name, array in zip(COUNTED, counts, strict=True)}
        file = self.path / COUNTS_SO_FAR / _counts_file(step)
        file.parent.mkdir(exist_ok=True)
        write_npz(file, {"step": np.int64(step)} | arrays)
        self._sha256[name_in_run(file)] = sha256(file)

    def cut_back(self, step):
        """Drop what was recorded after `step`, which the run will do again; return the metrics up to it.

        Returns
        -------
        list of dict

        Raises
        ------
        ValueError
            If one of the files is damaged, or lacks an evaluation that the checkpoint's `step` has behind it.
        """
        metrics, recorded = [], []
        if step and self._found is not None and self._found.metrics is not None:
            metrics = self._found.metrics
            recorded = [record["step"] for record in metrics]
        elif step:
            try:
                lines = content(self.path / "metrics.jsonl").splitlines(keepends=True)
                # A kill may have cut the last line short, and no other.
                metrics = parse_records(self.path / "metrics.jsonl", [line for line in lines if line.endswith(b"\n")])
                counts = read_counts(self.path)
            except DamagedError as error:
                raise ValueError(f"{self.path}: metrics.jsonl or {COUNTS_SO_FAR}/ is damaged or missing "
                                 f"({error.problem}); move the folder away to start the run anew") from None
            recorded = [int(there) for there in counts.get("step", ()) if there <= step]
            metrics = [record for record in metrics if record["step"] <= step]
            if [record["step"] for record in metrics] != recorded or step not in recorded:
                raise ValueError(f"{self.path}: metrics.jsonl or {COUNTS_SO_FAR}/ lacks an evaluation up to step "
                                 f"{step}, where the checkpoint is; move the folder away to start the run anew")
            if (self.path / COUNTS).exists():  # the run was stopped just before its result, or is an older one
                for i, there in enumerate(recorded):
                    self.write_counts(there, [counts[name][i] for name in COUNTED])
        (self.path / COUNTS).unlink(missing_ok=True)
        names = {_counts_file(there) for there in recorded}
        for file in (self.path / COUNTS_SO_FAR).glob("*"):
            if file.is_dir():
                shutil.rmtree(file)
            elif file.name not in names:
                file.unlink()
            else:
                self._sha256[name_in_run(file)] = sha256(file)
        text = "".join(map(_metrics_line, metrics)).encode()
        write_bytes(self.path / "metrics.jsonl", text)
        self._metrics = hashlib.sha256(text)
        shutil.rmtree(self.path / "events", ignore_errors=True)  # written anew from the metrics
        return metrics

    def finish_counts(self):
        """Pack the counts of all evaluations into ``pseudo_labels.npz``, one after the other.

        Returns
        -------
        dict of str to Evaluations
            By name, as in `COUNTED`; the arrays can be read until `finish`.
        """
        names = sorted(name for name in self._sha256 if name.startswith(COUNTS_SO_FAR))
        files = [self.path / name for name in names]
        for file in files:
            content(file, self._sha256[name_in_run(file)])
        counts = {name: Evaluations(files, name) for name in ("step", *COUNTED)}
        size = len(files) * sum(counts[name][0].nbytes for name in COUNTED)
        packed = (zipfile.ZIP_LZMA, None) if size < SMALL else (zipfile.ZIP_DEFLATED, 1)  # hundreds of them are tracked
        write_npz(self.path / COUNTS, counts | {"kinds": np.array(KINDS)}, *packed)
        return counts

    def finish(self, result):
        """Write the result, by which the run is finished, drop what only an unfinished one needs, and return it."""
        self._check_owner()
        result = write_result(self.path, result)
        shutil.rmtree(self.path / COUNTS_SO_FAR, ignore_errors=True)  # as the next start does, which may be there now
        return result


def _metrics_line(record):
    return json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"


def _counts_file(step):
    return f"{step:09}.npz"
