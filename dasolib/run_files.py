"""The files of a run's folder: written whole or not at all, and read with their checksums."""

import contextlib
import hashlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dasolib.diagnostics import KINDS
from dasolib.host import names_file

COUNTED = ("pseudo_labels", "test", "test_adjusted")  # what an evaluation counts
COUNTS = "pseudo_labels.npz"
CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
COUNTS_SO_FAR = "pseudo_labels"  # folder of the same in training, a file for each evaluation
CHECKED = ("config.json", "environment.json", "metrics.jsonl", COUNTS, "model.json", "model.safetensors", "outputs.npz",
           "predictions.csv")  # files of a finished run whose checksums are in its result
SMALL = 2**26  # bytes of counts that are packed as tightly as can be, which takes minutes where there are more
REMEDY = "restore it from a copy, or move the folder away and train again"


class DamagedError(ValueError):
    """A file of a run is not what the run wrote; says which, why, and what to do."""

    def __init__(self, folder, name, reason):
        self.problem = f"{name} is damaged ({reason})"
        super().__init__(f"{Path(folder) / name} is damaged ({reason}); {REMEDY}")


class NoRunError(DamagedError):
    """A ``config.json`` is not that of a run, or is only half of one."""


@contextlib.contextmanager
def _replacing(path):
    """Give a file to write; synced and renamed to `path` in the end: readers see the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with names_file(path):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()  # what did not fit is of no use, and in the way
            raise


def write_bytes(path, data):
    """Write a file, atomically."""
    with _replacing(path) as file:
        file.write(data)


def write_json(path, value):
    """Write `value` as JSON, atomically. NaN, which JSON lacks, is an error."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_npz(path, arrays, compression=zipfile.ZIP_DEFLATED, level=None):
    """Write named arrays as a compressed .npz, atomically; NumPy reads every compression of `zipfile`.

    An array can be a sequence of its rows, which are then in memory one at a time.
    """
    with _replacing(path) as file, zipfile.ZipFile(file, "w", compression, compresslevel=level) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                if not isinstance(array, Evaluations):
                    np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)
                    continue
                header = np.lib.format.header_data_from_array_1_0(array[0])
                np.lib.format.write_array_header_1_0(entry, header | {"shape": (len(array), *header["shape"])})
                for row in array:
                    entry.write(row.tobytes())


class Evaluations(Sequence):
    """One array of each evaluation of an unfinished run, read from its file whenever it is asked for.

    Parameters
    ----------
    files : list of Path
    name : str
        Of the array.
    """

    def __init__(self, files, name):
        self.files, self.name = files, name

    def __len__(self):
        """Return the number of evaluations."""
        return len(self.files)

    def __getitem__(self, i):
        """Return the array of an evaluation, or those of a slice of them, stacked."""
        if isinstance(i, slice):
            return np.stack([self[j] for j in range(*i.indices(len(self)))])
        file = self.files[i]
        return np.asarray(_npz(file, content(file), [self.name])[self.name], order="C")


def sha256(file):
    """SHA-256 of a file in hexadecimal."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def name_in_run(file):
    """Name of a file within the folder of its run."""
    return f"{COUNTS_SO_FAR}/{file.name}" if file.parent.name == COUNTS_SO_FAR else file.name


def _damaged(file, reason):
    folder = file.parent.parent if file.parent.name == COUNTS_SO_FAR else file.parent
    return DamagedError(folder, name_in_run(file), reason)


def content(file, checksum=None):
    """Bytes of a file, which must have the checksum, if there is one."""
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise _damaged(file, "it is a folder" if file.is_dir() else "there is no such file") from None
    if checksum is not None and checksum != hashlib.sha256(data).hexdigest():
        raise _damaged(file, "its checksum is another one than the run recorded")
    return data


def _json(file, data):
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from None
    if not isinstance(value, dict):
        raise _damaged(file, "it holds no JSON object")
    return value


def _npz(file, data, names=None):
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays.files}
    except Exception as error:  # whatever damage makes of a file
        raise _damaged(file, f"no .npz of this kind can be read from it: {type(error).__name__}") from None


def read_checked(folder, name, result):
    """Return the bytes of a file of a finished run.

    Raises
    ------
    DamagedError
        If it is not there, or not as the checksum in the `result` says.
    """
    return content(folder / name, _checksums(result).get(name))


def read_json(folder, name, result):
    """Return a JSON object of a run, as `read_checked` reads it."""
    return _json(folder / name, read_checked(folder, name, result))


def read_arrays(folder, name, result):
    """Return the arrays of an .npz of a finished run, as `read_checked` reads it."""
    return _npz(folder / name, read_checked(folder, name, result))


def _checksums(record):
    there = record.get("sha256")
    return there if isinstance(there, dict) else {}


def read_config(folder):
    """Return ``config.json`` of a run.

    Raises
    ------
    NoRunError
        If it is of something else, or only half of it is there.
    """
    file = folder / "config.json"
    try:
        record = _json(file, content(file))
    except DamagedError as error:
        raise NoRunError(folder, file.name, error.problem.partition("(")[2][:-1]) from None
    kinds = {"schema": int, "dataset": str, "method": str, "rebalance": list, "seed": int}
    lacking = [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]
    if lacking:
        raise NoRunError(folder, file.name, f"it is not that of a run: it lacks {', '.join(lacking)}")
    return record


def read_result(folder):
    """Return ``result.json`` of a finished run, and None of an unfinished one.

    Raises
    ------
    DamagedError
        If it is not as it was written.
    """
    file = folder / "result.json"
    if not file.exists():
        return None
    result = _json(file, content(file))
    if "sha256" in result and _checksums(result).get(file.name) != _digest(result):
        raise _damaged(file, "its checksum is another one than the run recorded")
    if "sha256" not in result and _has_checksums(read_starts(folder, {})):
        raise _damaged(file, "it is not of this run: it has no checksums")
    plain = result.get("plain")
    if not (isinstance(result.get("seconds"), int | float) and isinstance(plain, dict)
            and isinstance(plain.get("accuracy"), int | float)):
        raise _damaged(file, "it is not that of a run")
    return result


def write_result(folder, result):
    """Write ``result.json``, which says that a run is finished, with checksums of its files and of itself; return it.

    Whatever changes a file of a finished run must call it again.
    """
    sums = {name: sha256(folder / name) for name in CHECKED if (folder / name).exists()}
    result = result | {"sha256": sums}
    result["sha256"]["result.json"] = _digest(result)
    write_json(folder / "result.json", result)
    return result


def _digest(result):
    """SHA-256 of a result with the checksums of all other files."""
    others = {name: checksum for name, checksum in _checksums(result).items() if name != "result.json"}
    return hashlib.sha256(json.dumps(result | {"sha256": others}, sort_keys=True).encode()).hexdigest()


def read_run(folder):
    """Read the small files of a run, be it finished or not.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    config : dict
    metrics : list of dict
    counts : dict of str to ndarray
        See `read_counts`.
    result : dict or None
    starts : list of dict
        Those of ``environment.json``.

    Raises
    ------
    DamagedError
        If one of them is missing or is not as it was written. Of an unfinished run, the latest checkpoint or
        evaluation may be: then those before are read, with a warning.
    """
    config, result = read_config(folder), read_result(folder)
    if result is None:
        try:
            metrics, counts = _read_unfinished(folder)
        except DamagedError:
            if (folder / "result.json").exists():  # it ended meanwhile, and what was read is gone
                return read_run(folder)
            raise
    else:
        read_checked(folder, "config.json", result)
        metrics = parse_records(folder / "metrics.jsonl", read_checked(folder, "metrics.jsonl", result).splitlines())
        counts = read_arrays(folder, COUNTS, result)
        _check_counts(folder / COUNTS, counts)
    return config, metrics, counts, result, read_starts(folder, _checksums(result or {}))


def read_starts(folder, sums):
    """Return the starts in ``environment.json``, whose checksum is in `sums`, if it must be there."""
    file = folder / "environment.json"
    if not file.exists() and file.name not in sums:
        return []
    starts = _json(file, content(file, sums.get(file.name))).get("starts")
    if not (isinstance(starts, list) and all(isinstance(start, dict) and "from_step" in start for start in starts)):
        raise _damaged(file, "it is not that of a run")
    return starts


def _has_checksums(starts):
    """Whether a run was made by a version that records checksums."""
    return any("images" in start for start in starts)


def parse_records(file, lines):
    """Return the records in lines of ``metrics.jsonl``."""
    records = [_json(file, line) for line in lines]
    if not all(isinstance(record.get("step"), int) for record in records):
        raise _damaged(file, "a line has no step")
    return records


def _check_counts(file, counts):
    try:
        n, k = len(counts["step"]), counts["test"].shape[-1]
        shapes = {"step": (n,), "pseudo_labels": (n, len(KINDS), k + 1, k), "test": (n, k, k)}
        shapes["test_adjusted"] = shapes["test"]
        fit = all(counts[name].shape == shape and counts[name].dtype.kind == "i" for name, shape in shapes.items())
        fit = fit and counts["kinds"].tolist() == list(KINDS)
    except (KeyError, IndexError, TypeError):
        fit = False
    if not fit:
        raise _damaged(file, "its arrays are not those of a run")


def _read_unfinished(folder):
    """Metrics and counts up to the latest checkpoint that fits them, or all there are, where no checkpoint says."""
    found = sound_checkpoint(folder, "cpu")
    if found is not None:
        if found.problems:
            warnings.warn(f"{folder}: {found.said()}", stacklevel=4)
        if found.metrics is not None:
            return found.metrics, _stacked(found.files)
    try:
        lines = content(folder / "metrics.jsonl").splitlines(keepends=True)
    except DamagedError:
        lines = []  # in its first moment, or made by hand
    metrics = parse_records(folder / "metrics.jsonl", [line for line in lines if line.endswith(b"\n")])
    counts = read_counts(folder)
    return [record for record in metrics if record["step"] in counts.get("step", ())], counts


def _stacked(files):
    if not files:
        return {}
    counts = {name: Evaluations(files, name)[:] for name in ("step", *COUNTED)} | {"kinds": np.array(KINDS)}
    _check_counts(files[-1], counts)
    return counts


def read_counts(folder):
    """Return the counts of a run's evaluations, be it finished or not.

    Parameters
    ----------
    folder : Path
        Of the run.

    Returns
    -------
    dict of str to ndarray
        The arrays of ``pseudo_labels.npz``, one entry for each evaluation: ``step`` (n,); ``pseudo_labels``
        (n, len(KINDS), K + 1, K) of the window that ends there; ``test`` and ``test_adjusted`` (n, K, K) of the
        evaluation, without and with logit adjustment; and the names of the ``kinds``. Empty before the first
        evaluation.

    Raises
    ------
    DamagedError
        If a file of theirs cannot be read.
    """
    try:
        counts = _stacked(sorted((folder / COUNTS_SO_FAR).glob("*.npz")))
    except DamagedError:  # the run ends now, and they go
        if not (folder / COUNTS).exists():
            raise
    if (folder / COUNTS).exists():  # asked after they were listed: they are not all there while the run ends
        counts = _npz(folder / COUNTS, content(folder / COUNTS))
        _check_counts(folder / COUNTS, counts)
    return counts


class Checkpoint(NamedTuple):
    """A checkpoint that can be read, and that what is recorded beside it fits."""

    name: str
    state: dict
    metrics: list | None  # up to it, and so the files of the counts; None if it has no checksums
    files: list
    problems: list  # why a later one is not used

    def said(self):
        """Say what is wrong, and what is used instead."""
        return f"{'; '.join(self.problems)}; {self.name} of step {self.state['step']} is used"


def sound_checkpoint(folder, device):
    """Return the latest `Checkpoint` of a run that can be gone on from, or None if there is none yet.

    Raises
    ------
    DamagedError
        If there are checkpoints, and for none of them all is as it was.
    """
    problems, found, written = [], None, _written(folder / CHECKPOINT)
    for name in (CHECKPOINT, PREVIOUS):
        try:
            state = _load_state(folder, name, device)
            if state is None or (found is not None and state["step"] < found.state["step"]):
                continue
            recorded = _recorded(folder, name, state)
            if name == PREVIOUS and _written(folder / CHECKPOINT) != written:  # in training, just now
                return sound_checkpoint(folder, device)
            if found is not None:
                problems.append(f"{found.name} is of step {found.state['step']}, not after {name}")
            if found is None or state["step"] > found.state["step"]:
                found = Checkpoint(name, state, *recorded, problems)
        except DamagedError as error:
            if found is None:
                problems.append(error.problem)
    if found is not None:
        return found
    if problems:
        name, _, reason = "; ".join(dict.fromkeys(problems)).partition(" is damaged (")
        raise DamagedError(folder, name, reason[:-1])
    return None


def _written(file):
    return file.stat().st_mtime_ns if file.exists() else None


def _load_state(folder, name, device):
    if not (folder / name).exists():
        return None
    data = content(folder / name)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:  # torch.load itself does not notice a flipped bit
            if any(entry.compress_type for entry in archive.infolist()):  # torch compresses nothing; this may be huge
                raise zipfile.BadZipFile
            if archive.testzip():
                raise zipfile.BadZipFile
        state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
        if not isinstance(state["step"], int):
            raise TypeError
    except Exception as error:  # whatever damage makes of a file
        raise DamagedError(folder, name, f"no checkpoint can be read from it: {type(error).__name__}") from None
    return state


def _recorded(folder, name, state):
    """Metrics up to a checkpoint, and the files of the counts, which all must be as it says; (None, []) if it does not.

    What came later is left aside.
    """
    sums, starts = state.get("sha256"), read_starts(folder, {})
    if sums is None:
        if _has_checksums(starts):
            raise DamagedError(folder, name, "it is not of this run: it has no checksums")
        return None, []
    if starts[:len(state["starts"])] != state["starts"]:
        raise DamagedError(folder, "environment.json", f"it is missing, or not what {name} recorded")
    if "config.json" in sums:
        content(folder / "config.json", sums["config.json"])
    names = sorted(each for each in sums if each.startswith(COUNTS_SO_FAR))
    file = folder / "metrics.jsonl"
    lines = content(file).splitlines(keepends=True)[:len(names)]
    if hashlib.sha256(b"".join(lines)).hexdigest() != sums[file.name]:
        raise DamagedError(folder, file.name, f"its checksum is another one than {name} recorded")
    for each in names:
        content(folder / each, sums[each])
    return parse_records(file, lines), [folder / each for each in names]
