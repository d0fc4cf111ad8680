"""A run's folder: who owns it, what is in it, and how it survives being killed at any moment."""

import fcntl
import io
import json
import os
import platform
import shutil
import subprocess
import warnings
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from dasolib.config import SCHEMA
from dasolib.diagnostics import KINDS

COUNTS = ("step", "pseudo_labels", "test", "test_adjusted")  # arrays of pseudo_labels.npz
PACKAGES = ("torch", "torchvision", "numpy", "daso-study")


def project_root():
    """Return the folder that relative paths start from: the source tree of the package, or the current folder.

    The latter where the package is installed without its source tree. papermill, JupyterLab and nbval start notebooks
    in different folders, so nothing may depend on where a process started inside the source tree.
    """
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").exists() else Path.cwd()


def resolve(path):
    """Absolute form of a path; a relative one starts from `project_root`."""
    return project_root() / path


def write_bytes(path, data):
    """Write a file under a temporary name, sync it and rename it: readers see the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path, value):
    """Write `value` as JSON, atomically. NaN, which JSON lacks, is an error."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_npz(path, arrays):
    """Write named arrays as a compressed .npz, atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


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
        self.notes = []  # what a user should know of this start; warned about and recorded
        self.checkpoint, self.previous = self.path / "checkpoint.pt", self.path / "checkpoint.previous.pt"

    def __enter__(self):
        """Check that the folder is free for this run, and take it."""
        self._check_record()  # before anything is written
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "a")  # noqa: SIM115 - held as long as the folder is owned
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it when its owner dies
            self._check_record()  # again: another process may have come first
        except BlockingIOError:
            self._lock.close()
            raise ValueError(f"run_dir={self.path}: another process is working in this folder") from None
        except ValueError:
            self._lock.close()
            raise
        return self

    def __exit__(self, *error):
        """Give the folder back."""
        self._lock.close()

    def _check_record(self):
        file = self.path / "config.json"
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"run_dir={self.path} is a file; choose a folder, which may be absent")
        if not file.exists():
            strangers = sorted(p.name for p in self.path.glob("*.json*") if p.suffix != ".tmp")
            if strangers:
                raise ValueError(f"run_dir={self.path} holds {strangers[0]} but no config.json: not a run")
            return
        try:
            there = json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is damaged ({error}); move the folder away to start the run anew") from None
        differing = [
            f"{name}: {there.get(name)!r} there, {self.record.get(name)!r} here"
            for name in sorted({*there, *self.record} - {"schema", "threads"})
            if there.get(name) != self.record.get(name)
        ]
        if differing:
            raise ValueError(f"run_dir={self.path} holds another run; " + "; ".join(differing))

    def result(self):
        """Return the result of a finished run, or None."""
        file = self.path / "result.json"
        return json.loads(file.read_text()) if file.exists() else None

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
        starts = json.loads(file.read_text())["starts"] if file.exists() and step else []
        if starts:
            schema = json.loads((self.path / "config.json").read_text())["schema"]
            changed = [f"{name}: {starts[0].get(name)!r} before, {now[name]!r} now"
                       for name in now if starts[0].get(name) != now[name]]
            changed += [f"schema: {schema} before, {SCHEMA} now"] if schema != SCHEMA else []
            if changed:
                self._note("resumes in another environment; numbers may differ from an undisturbed run. "
                           + "; ".join(changed))
        else:
            write_json(self.path / "config.json", self.record)
        notes = {"notes": self.notes} if self.notes else {}
        write_json(file, {"starts": [*starts, {"from_step": step, **now, **notes}]})

    def _note(self, text):
        self.notes.append(text)
        warnings.warn(f"{self.path}: {text}", stacklevel=3)

    def save_checkpoint(self, state):
        """Make `state` (tensors, numbers and strings in containers) the latest checkpoint; keep the one before."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        temporary = self.checkpoint.with_name("checkpoint.new.pt")
        write_bytes(temporary, buffer.getbuffer())
        if self.checkpoint.exists():
            os.replace(self.checkpoint, self.previous)
        os.replace(temporary, self.checkpoint)

    def load_checkpoint(self, device):
        """Return the latest readable checkpoint, or None if there is none yet.

        Raises
        ------
        ValueError
            If there are checkpoints and none can be read.
        """
        problems = []
        for file in (self.checkpoint, self.previous):
            if not file.exists():
                continue
            try:
                with zipfile.ZipFile(file) as archive:  # torch.load itself does not notice a flipped bit
                    damaged = archive.testzip()
                if damaged:
                    raise zipfile.BadZipFile(f"check sum of {damaged}")
                state = torch.load(file, map_location=device, weights_only=True)
            except Exception as error:  # whatever damage makes of a file
                problems.append(f"{file.name} is damaged ({type(error).__name__}: {error})")
                continue
            if problems:
                self._note(f"{problems[0]}; {file.name} of step {state['step']} is used")
                os.replace(self.previous, self.checkpoint)  # else the next save would keep the damaged one instead
            return state
        if problems:
            raise ValueError(f"{self.path}: {'; '.join(problems)}; move the folder away to start the run anew")
        return None

    def append_metrics(self, record):
        """Add one evaluation to ``metrics.jsonl``."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def cut_back(self, step):
        """Drop what was recorded after `step`, which the run will do again; return (metrics, counts) up to it.

        Returns
        -------
        metrics : list of dict
        counts : dict of str to list
            As `write_counts` takes them.

        Raises
        ------
        ValueError
            If one of the files is damaged, or lacks an evaluation that the checkpoint's `step` has behind it.
        """
        metrics, counts = [], {name: [] for name in COUNTS}
        if step:
            try:
                lines = (self.path / "metrics.jsonl").read_text().splitlines(keepends=True)
                # A kill may have cut the last line short, and no other.
                metrics = [json.loads(line) for line in lines if line.endswith("\n")]
                with np.load(self.path / "pseudo_labels.npz", allow_pickle=False) as there:
                    kept = int((there["step"] <= step).sum())
                    counts = {name: list(there[name][:kept]) for name in COUNTS}
            except Exception as error:  # whatever damage makes of a file
                raise ValueError(f"{self.path}: metrics.jsonl or pseudo_labels.npz is damaged or missing ({error}); "
                                 "move the folder away to start the run anew") from error
            metrics = [record for record in metrics if record["step"] <= step]
            if [record["step"] for record in metrics] != counts["step"] or step not in counts["step"]:
                raise ValueError(f"{self.path}: metrics.jsonl or pseudo_labels.npz lacks an evaluation up to step "
                                 f"{step}, where the checkpoint is; move the folder away to start the run anew")
            self.write_counts(counts)
        else:
            (self.path / "pseudo_labels.npz").unlink(missing_ok=True)
        lines = [json.dumps(record) + "\n" for record in metrics]
        write_bytes(self.path / "metrics.jsonl", "".join(lines).encode())
        shutil.rmtree(self.path / "events", ignore_errors=True)  # written anew from the metrics
        return metrics, counts

    def write_counts(self, counts):
        """Write ``pseudo_labels.npz``: K x K counts, one entry for each evaluation.

        Parameters
        ----------
        counts : dict of str to list
            ``step``, an int; ``pseudo_labels``, an array (len(KINDS), K + 1, K) of the window that ends there; ``test``
            and ``test_adjusted``, arrays (K, K) of the evaluation, without and with logit adjustment.
        """
        arrays = {name: np.stack(values) for name, values in counts.items()}
        write_npz(self.path / "pseudo_labels.npz", arrays | {"kinds": np.array(KINDS)})
