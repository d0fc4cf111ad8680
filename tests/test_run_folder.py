"""Who owns a run's folder, what it refuses, and how its files survive a kill."""

import errno
import fcntl
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dasolib.run_files
import dasolib.run_folder
import dasolib.train
from dasolib.config import SCHEMA
from dasolib.data import load_data
from dasolib.diagnostics import KINDS
from dasolib.run_files import CHECKED, DamagedError, read_checked, read_result, read_run, sound_checkpoint
from dasolib.run_folder import (
    COUNTED,
    COUNTS,
    COUNTS_SO_FAR,
    OWNER,
    RunFolder,
    environment,
    is_owned,
    project_root,
    read_counts,
    resolve,
    write_bytes,
    write_json,
)
from dasolib.train import run
from tests.tiny import N_CLASSES, contents, interrupt, read_metrics, save_tiny, tiny_arrays, tiny_config

DATA = SimpleNamespace(fingerprint="abc", mean=(0.5,), std=(0.25,), x_train=(), x_test=(), x_unlabeled=None)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    """Folder of a run that nothing disturbed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    run(tiny_config(dataset), folder, progress=False)
    return folder


def events_of(folder, tag):
    reader = EventAccumulator(str(folder / "events"))
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(tag)]


# ---- killed at any moment ----


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


def kill_at_call(patch, number):
    """Make the `number`-th call that syncs or renames a file raise; return a list that grows by one with each call.

    Nothing is really synced: that is slow, and outlives a power cut, of which no test can tell.
    """
    calls = []

    def counted(function):
        def call(*args):
            calls.append(function.__name__)
            if len(calls) == number:
                raise Killed
            return function(*args)
        return call

    def fsync(file):
        pass

    patch.setattr(os, "fsync", counted(fsync))
    patch.setattr(os, "replace", counted(os.replace))
    return calls


def test_a_run_survives_a_kill_at_each_of_its_file_operations(dataset, monkeypatch, tmp_path):
    config = tiny_config(dataset, total_steps=2, eval_steps=1, pretrain_steps=1, refresh_steps=1, batch_size=2)
    with monkeypatch.context() as patch:
        calls = kill_at_call(patch, number=0)
        run(config, tmp_path / "undisturbed", progress=False)
    expected = contents(tmp_path / "undisturbed")
    assert len(calls) > 25  # as many moments to be killed at
    for number in range(1, len(calls) + 1):
        folder = tmp_path / str(number)
        with monkeypatch.context() as patch:
            kill_at_call(patch, number)
            with pytest.raises(Killed):
                run(config, folder, progress=False)
        assert not (folder / "result.json").exists()
        with monkeypatch.context() as patch:
            kill_at_call(patch, number=0)
            run(config, folder, progress=False)
        assert contents(folder) == expected, f"killed before call {number}, {calls[number - 1]}"
        assert list(folder.glob("*.tmp")) == []


def test_a_file_is_old_or_new_but_never_half(monkeypatch, tmp_path):
    write_bytes(tmp_path / "file", b"old")
    with monkeypatch.context() as patch:
        kill_at_call(patch, number=1)
        with pytest.raises(Killed):
            write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    write_bytes(tmp_path / "file", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"new"}


def test_json_without_a_meaning_elsewhere_is_not_written(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "file.json", {"accuracy": float("nan")})
    assert list(tmp_path.iterdir()) == []


# ---- checkpoints ----


def state_at(step):
    return {"step": step, "net": {"weight": torch.full((50, 7), float(step))}, "ema": None, "name": "x"}


@pytest.fixture
def folder(dataset, tmp_path):
    """Yield an entered folder without checkpoints."""
    with RunFolder(tmp_path / "run", tiny_config(dataset), DATA) as entered:
        yield entered


@pytest.fixture
def two_checkpoints(folder):
    """Yield a folder with the checkpoints of steps 1 and 2."""
    folder.cut_back(0)
    folder.save_checkpoint(state_at(1))
    folder.save_checkpoint(state_at(2))
    return folder


def test_a_new_folder_has_no_checkpoint(folder):
    assert folder.load_checkpoint("cpu") is None


def test_the_latest_checkpoint_is_loaded_and_the_one_before_kept(two_checkpoints):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = two_checkpoints.load_checkpoint("cpu")
    assert state["step"] == 2 and (state["net"]["weight"] == 2).all() and state["ema"] is None
    assert torch.load(two_checkpoints.previous, weights_only=True)["step"] == 1
    two_checkpoints.save_checkpoint(state_at(3))
    assert torch.load(two_checkpoints.previous, weights_only=True)["step"] == 2
    assert two_checkpoints.load_checkpoint("cpu")["step"] == 3


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "lacking its last byte": lambda content: content[:-1],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "another file": lambda content: b"#!/bin/sh\n",
}


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(two_checkpoints, monkeypatch):
    load, replaced = dasolib.run_files._load_state, []

    def load_late(folder, name, device):
        if replaced:
            return load(folder, name, device)
        replaced.append(name)
        two_checkpoints.save_checkpoint(state_at(3))
        raise DamagedError(folder, name, "there is no such file")

    monkeypatch.setattr(dasolib.run_files, "_load_state", load_late)
    found = sound_checkpoint(two_checkpoints.path, "cpu")
    assert (found.name, found.state["step"], found.problems, replaced) == ("checkpoint.pt", 3, [], ["checkpoint.pt"])


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_previous_one_with_a_warning(damage, two_checkpoints):
    folder = two_checkpoints
    folder.checkpoint.write_bytes(damage(folder.checkpoint.read_bytes()))
    with pytest.warns(UserWarning, match=r"checkpoint.pt is damaged .*; checkpoint.previous.pt of step 1 is used"):
        assert folder.load_checkpoint("cpu")["step"] == 1
    folder.save_checkpoint(state_at(2))  # the sound one must be what is kept beside it
    assert torch.load(folder.previous, weights_only=True)["step"] == 1


def test_no_flipped_bit_changes_what_is_loaded(two_checkpoints):
    folder = two_checkpoints
    sound, previous = folder.checkpoint.read_bytes(), folder.previous.read_bytes()
    rng, fell_back = random.Random(0), 0
    for position in rng.sample(range(len(sound)), 150):
        flipped = bytearray(sound)
        flipped[position] ^= 1 << rng.randrange(8)
        folder.checkpoint.write_bytes(flipped)
        folder.previous.write_bytes(previous)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            state = folder.load_checkpoint("cpu")
        assert state["step"] == (1 if caught else 2)
        assert (state["net"]["weight"] == state["step"]).all()
        fell_back += bool(caught)
    assert fell_back > 50  # the other bits are padding, or say nothing of the content


def test_two_damaged_checkpoints_are_refused_and_left_alone(two_checkpoints):
    for file in (two_checkpoints.checkpoint, two_checkpoints.previous):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint.pt is damaged .*checkpoint.previous.pt is damaged .*move the"):
        two_checkpoints.load_checkpoint("cpu")
    assert two_checkpoints.checkpoint.exists() and two_checkpoints.previous.exists()


def test_the_previous_checkpoint_is_enough(two_checkpoints):
    two_checkpoints.checkpoint.unlink()
    assert two_checkpoints.load_checkpoint("cpu")["step"] == 1
    two_checkpoints.save_checkpoint(state_at(2))
    assert two_checkpoints.load_checkpoint("cpu")["step"] == 2
    assert torch.load(two_checkpoints.previous, weights_only=True)["step"] == 1


def test_a_checkpoint_that_would_run_code_is_not_loaded(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({"step": 1, "trap": Trap()}, folder.checkpoint)
    with pytest.raises(ValueError, match="checkpoint.pt is damaged"):
        folder.load_checkpoint("cpu")
    assert not (tmp_path / "sprung").exists()


def leaves(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def test_the_checkpoint_of_a_run_holds_only_tensors_numbers_and_text(undisturbed):
    state = torch.load(undisturbed / "checkpoint.pt", weights_only=True)
    assert {type(leaf) for leaf in leaves(state)} <= {torch.Tensor, int, float, bool, str, type(None)}
    assert {name for name, tensor in state["rebalance"].items() if tensor.any()} >= {
        "parts.daso.bank.queues", "parts.daso.bank.prototypes", "parts.daso.class_freq", "parts.daso.pending"}


# ---- metrics, counts and events ----


def record_at(step):
    return {"step": step, "accuracy": 0.1 + step / 3, "losses": {"labeled": 1 / 3}}


def counts_at(step):
    k = N_CLASSES
    return np.full((len(KINDS), k + 1, k), step), np.full((k, k), 10 * step), np.full((k, k), -step)


@pytest.fixture
def three_evaluations(folder):
    """Yield a folder with the records of steps 2, 4 and 6."""
    for step in (2, 4, 6):
        folder.write(record_at(step), counts_at(step), state_at(step))
    folder.flush()
    (folder.path / "events").mkdir()
    (folder.path / "events" / "old").touch()
    return folder


@pytest.mark.parametrize("n_read", [0, 1, 5, 12])
def test_counts_are_whole_at_whatever_moment_of_its_end_a_run_is_read(n_read, three_evaluations, monkeypatch):
    """Before the reader opens an array of its file number `n_read`, the run ends."""
    read, opened = dasolib.run_files._npz, []

    def read_late(*args):
        if len(opened) == n_read:
            opened.append(None)
            three_evaluations.finish_counts()
            three_evaluations.finish({"seconds": 1.0, "plain": {"accuracy": 0.5}})
        opened.append(args)
        return read(*args)

    monkeypatch.setattr(dasolib.run_files, "_npz", read_late)
    assert_counts(read_counts(three_evaluations.path), (2, 4, 6))


@pytest.mark.parametrize("steps", [(2,), (2, 4), (2, 4, 6)])
def test_what_was_recorded_after_the_checkpoint_is_dropped(steps, three_evaluations):
    folder = three_evaluations
    metrics = folder.cut_back(steps[-1])
    assert metrics == read_metrics(folder.path) == [record_at(step) for step in steps]
    assert not (folder.path / "events" / "old").exists()
    assert_counts(read_counts(folder.path), steps)


def assert_counts(counts, steps):
    assert counts["step"].tolist() == list(steps) and counts["kinds"].tolist() == list(KINDS)
    for i, step in enumerate(steps):
        for name, expected in zip(COUNTED, counts_at(step), strict=True):
            np.testing.assert_array_equal(counts[name][i], expected)


def test_without_a_checkpoint_everything_is_dropped(three_evaluations):
    assert three_evaluations.cut_back(0) == read_metrics(three_evaluations.path) == []
    assert read_counts(three_evaluations.path) == {}


def test_counts_become_an_npz_file_at_the_end_and_the_file_of_training_goes(three_evaluations):
    folder = three_evaluations
    counts = folder.finish_counts()
    assert_counts({name: counts[name][:] for name in counts} | {"kinds": np.array(KINDS)}, (2, 4, 6))
    assert_counts(read_counts(folder.path), (2, 4, 6))  # it may be killed here
    folder.finish({"seconds": 1.0, "plain": {"accuracy": 0.5}})
    with np.load(folder.path / COUNTS) as there:
        assert_counts(there, (2, 4, 6))
    assert not (folder.path / COUNTS_SO_FAR).exists()
    assert_counts(read_counts(folder.path), (2, 4, 6))


def test_at_the_end_counts_are_in_memory_one_evaluation_at_a_time(folder, monkeypatch):
    """As packed tightly, so packed fast; the arrays are the same."""
    for step in (2, 4, 6):
        folder.write_counts(step, counts_at(step))
    held, most, read = [], [], dasolib.run_files._npz

    class Noted(np.ndarray):
        def __del__(self):
            held.remove(1)

    def read_noted(*args):
        arrays = read(*args)
        held.append(1)
        most.append(len(held))
        return {name: array.view(Noted) if i == 0 else array for i, (name, array) in enumerate(arrays.items())}

    monkeypatch.setattr(dasolib.run_files, "_npz", read_noted)
    for small in (dasolib.run_files.SMALL, 0):
        monkeypatch.setattr(dasolib.run_folder, "SMALL", small)
        folder.finish_counts()
        with np.load(folder.path / COUNTS) as there:
            assert_counts(there, (2, 4, 6))
    assert max(most) <= 2  # the next is read before the last is dropped


def test_a_run_stopped_when_its_counts_were_an_npz_file_goes_on(three_evaluations):
    """Just before its result, as runs wrote it before this version."""
    folder = three_evaluations
    folder.finish_counts()
    shutil.rmtree(folder.path / COUNTS_SO_FAR)
    folder.cut_back(4)
    assert not (folder.path / COUNTS).exists()
    folder.write(record_at(6), counts_at(6), state_at(6))
    folder.flush()
    assert_counts(read_counts(folder.path), (2, 4, 6))


def test_an_evaluation_costs_the_same_however_many_came_before(folder):
    """No file of an earlier one is written again, and the metrics only grow."""
    before = {}
    for step in (2, 4, 6):
        metrics = (folder.path / "metrics.jsonl").read_text() if before else ""
        folder.write(record_at(step), counts_at(step), state_at(step))
        folder.flush()
        files = {file.name: file.stat().st_mtime_ns for file in (folder.path / COUNTS_SO_FAR).iterdir()}
        assert {name: files[name] for name in before} == before and len(files) == len(before) + 1
        after = (folder.path / "metrics.jsonl").read_text()
        assert after.startswith(metrics) and json.loads(after.removeprefix(metrics)) == record_at(step)
        before = files


def test_no_flipped_bit_changes_the_counts_that_are_read(three_evaluations):
    folder = three_evaluations
    file, rng, n_refused = folder.path / COUNTS_SO_FAR / "000000004.npz", random.Random(0), 0
    sound = file.read_bytes()
    for position in rng.sample(range(len(sound)), 100):
        flipped = bytearray(sound)
        flipped[position] ^= 1 << rng.randrange(8)
        file.write_bytes(flipped)
        try:
            counts = read_counts(folder.path)
        except Exception:  # whatever damage makes of a file; a run refuses to go on from it
            n_refused += 1
        else:
            assert_counts(counts, (2, 4, 6))
    assert n_refused > 30  # the other bits say nothing of the content


# ---- the thread that writes ----


def test_training_goes_on_while_an_evaluation_is_written_and_what_it_changes_is_not(folder, monkeypatch):
    gate, weight = threading.Event(), torch.ones(3)
    save = RunFolder.save_checkpoint

    def save_late(self, state):
        assert gate.wait(60)
        save(self, state)

    monkeypatch.setattr(RunFolder, "save_checkpoint", save_late)
    folder.write(record_at(2), counts_at(2), {"step": 2, "net": {"weight": weight}, "list": [weight]})
    weight += 1  # the next step, while the first is being written
    gate.set()
    folder.flush()
    state = folder.load_checkpoint("cpu")
    assert state["net"]["weight"].tolist() == state["list"][0].tolist() == [1, 1, 1]


def test_an_evaluation_is_written_before_its_checkpoint_and_after_the_one_before(folder, monkeypatch):
    written = []
    monkeypatch.setattr(RunFolder, "append_metrics", lambda self, record: written.append(record["step"]))
    monkeypatch.setattr(RunFolder, "write_counts", lambda self, step, counts: written.append(("counts", step)))
    monkeypatch.setattr(RunFolder, "save_checkpoint", lambda self, state: written.append(("state", state["step"])))
    for step in (2, 4):
        folder.write(record_at(step), counts_at(step), state_at(step))
    folder.flush()
    assert written == [2, ("counts", 2), ("state", 2), 4, ("counts", 4), ("state", 4)]


@pytest.mark.parametrize("ask", [lambda folder: folder.write(record_at(4), counts_at(4), state_at(4)),
                                 RunFolder.flush, RunFolder.__exit__], ids=["write", "flush", "exit"])
def test_what_went_wrong_in_writing_is_raised_where_the_run_looks_next(ask, dataset, monkeypatch, tmp_path):
    def full(self, record):
        raise OSError("no space left")

    folder = RunFolder(tmp_path, tiny_config(dataset), DATA).__enter__()
    monkeypatch.setattr(RunFolder, "append_metrics", full)
    folder.write(record_at(2), counts_at(2), state_at(2))
    with pytest.raises(OSError, match="no space left"):
        ask(folder)
    folder.__exit__()
    assert list(tmp_path.glob("*.pt")) == []  # nothing after what failed


def test_leaving_the_folder_waits_for_what_is_being_written(dataset, monkeypatch, tmp_path):
    """Also on an exception, and only then may another process have it."""
    events, save = [], RunFolder.save_checkpoint

    def save_slowly(self, state):
        time.sleep(0.2)
        events.append(self._lock.closed)
        save(self, state)

    monkeypatch.setattr(RunFolder, "save_checkpoint", save_slowly)
    n_threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        with RunFolder(tmp_path, tiny_config(dataset), DATA) as folder:
            folder.write(record_at(2), counts_at(2), state_at(2))
            raise KeyboardInterrupt
    assert events == [False] and torch.load(folder.checkpoint, weights_only=True)["step"] == 2
    assert threading.active_count() == n_threads


# ---- metrics that a kill left behind ----


@pytest.mark.parametrize("length", [1, 20, -1])
def test_a_line_that_a_kill_cut_short_is_dropped(length, three_evaluations):
    folder = three_evaluations
    file = folder.path / "metrics.jsonl"
    first, second, third = file.read_text().splitlines(keepends=True)
    file.write_text(first + second + third[:length])
    assert folder.cut_back(4) == [record_at(2), record_at(4)]
    folder.append_metrics(record_at(6))
    assert file.read_text() == first + second + third


@pytest.mark.parametrize("lines", ["", "{2}", "{2}{6}", "{4}", "x\n{2}{4}", "{2}{4}{4}"],
                         ids=["empty", "too short", "a gap", "no beginning", "garbage", "twice"])
def test_metrics_that_lack_an_evaluation_before_the_checkpoint_are_refused(lines, three_evaluations):
    for step in (2, 4, 6):
        lines = lines.replace(f"{{{step}}}", json.dumps(record_at(step)) + "\n")
    file = three_evaluations.path / "metrics.jsonl"
    file.write_text(lines)
    with pytest.raises(ValueError, match=r"metrics.jsonl or pseudo_labels/ .*; move the folder away"):
        three_evaluations.cut_back(4)
    assert file.read_text() == lines


@pytest.mark.parametrize("content", [b"", b"PK"], ids=["empty", "cut"])
@pytest.mark.parametrize("finished", [False, True])
def test_unreadable_counts_are_refused(finished, content, three_evaluations):
    folder = three_evaluations
    if finished:
        folder.finish_counts()
    (folder.path / (COUNTS if finished else f"{COUNTS_SO_FAR}/000000004.npz")).write_bytes(content)
    with pytest.raises(ValueError, match="metrics.jsonl or pseudo_labels/ is damaged or missing"):
        folder.cut_back(4)


@pytest.mark.parametrize("lacking", [(2,), (4,), (2, 4, 6)])
def test_counts_that_lack_an_evaluation_before_the_checkpoint_are_refused(lacking, three_evaluations):
    for step in lacking:
        (three_evaluations.path / COUNTS_SO_FAR / f"{step:09}.npz").unlink()
    with pytest.raises(ValueError, match="lacks an evaluation up to step 4"):
        three_evaluations.cut_back(4)


def test_a_resumed_run_has_each_evaluation_once_in_all_its_records(dataset, undisturbed, monkeypatch, tmp_path):
    config, folder = tiny_config(dataset), tmp_path / "run"
    save = RunFolder.save_checkpoint

    def save_until_step_4(self, state):
        if state["step"] >= 4:  # the evaluation is recorded by now
            raise KeyboardInterrupt
        save(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", save_until_step_4)
        with pytest.raises(KeyboardInterrupt):
            run(config, folder, progress=False)
    assert [record["step"] for record in read_metrics(folder)] == [2, 4]
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 2
    run(config, folder, progress=False)
    assert contents(folder) == contents(undisturbed)
    assert events_of(folder, "accuracy") == events_of(undisturbed, "accuracy")
    assert [step for step, _ in events_of(folder, "accuracy")] == [2, 4, 6]


# ---- what is not as it was written ----


@pytest.fixture(scope="module")
def stopped(dataset, tmp_path_factory):
    """Return folders of two runs that were stopped with checkpoints of steps 2 and 4, and differ in the seed."""
    torch.set_num_threads(1)
    folders = [tmp_path_factory.mktemp("stopped") / str(seed) for seed in (0, 1)]
    with pytest.MonkeyPatch.context() as patch:
        for seed, folder in enumerate(folders):
            interrupt(patch, tiny_config(dataset, seed=seed), folder, at=5)
    return folders


def flipped(content):
    """Change a digit in the first half, or else a bit."""
    at = next((i for i in range(len(content) // 3, len(content)) if chr(content[i]).isdigit()), len(content) // 3)
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1:]


LATEST = f"{COUNTS_SO_FAR}/000000004.npz"


@pytest.mark.parametrize(("damage", "name"), [
    *itertools.product(("flipped", "of another run"), ("checkpoint.pt", LATEST, "metrics.jsonl")),
    *itertools.product(("missing",), ("checkpoint.pt", LATEST)),  # metrics.jsonl holds the earlier ones, too
])
def test_if_the_latest_of_a_run_is_not_as_it_was_the_one_before_is_used_and_said(damage, name, stopped, dataset,
                                                                                undisturbed, tmp_path):
    ours, other = stopped
    folder = tmp_path / "run"
    shutil.copytree(ours, folder)
    if damage == "missing":
        (folder / name).unlink()
    elif name == "metrics.jsonl":  # its last line
        mine, its = ((place / name).read_text().splitlines(keepends=True) for place in (ours, other))
        (folder / name).write_text(mine[0] + (its[1] if damage != "flipped" else mine[1].replace("0.", "1.")))
    else:
        (folder / name).write_bytes((other / name).read_bytes() if damage != "flipped"
                                    else flipped((folder / name).read_bytes()))
    said = "checkpoint.previous.pt of step 2 is used"
    if (folder / "checkpoint.pt").exists():
        with pytest.warns(UserWarning, match=f"is damaged .*; {said}"):
            assert read_run(folder)[2]["step"].tolist() == [2]
        with pytest.warns(UserWarning, match=f"is damaged .*; {said}"):
            run(tiny_config(dataset), folder, progress=False)
        assert said in environments(folder)[1]["notes"][0]
    else:  # as a kill between two renames leaves it
        run(tiny_config(dataset), folder, progress=False)
    assert contents(folder) == contents(undisturbed)


@pytest.mark.parametrize("name", ["config.json", "environment.json", "metrics.jsonl",
                                  f"{COUNTS_SO_FAR}/000000002.npz"])
@pytest.mark.parametrize("damage", ["flipped", "of another run", "missing", "foreign"])
def test_what_both_checkpoints_need_is_named_with_a_remedy_if_it_is_not_as_it_was(damage, name, stopped, dataset,
                                                                                tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped[0], folder)
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage != "missing":
        (folder / name).write_bytes({"flipped": flipped(content), "of another run": (stopped[1] / name).read_bytes(),
                                     "foreign": b'{"lr": 0.1}'}[damage])
    if (damage, name) == ("of another run", "environment.json"):
        assert content == (stopped[1] / name).read_bytes()  # it says nothing of the seed
        return
    for attempt in (lambda: read_run(folder), lambda: run(tiny_config(dataset), folder, progress=False)):
        with pytest.raises(ValueError, match=rf"{folder}.*(restore it from a copy|choose another)") as caught:
            attempt()
        assert "allow_pickle" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("damage", ["flipped", "of another run"])
def test_no_file_of_a_finished_run_is_read_that_is_not_as_it_was_written(damage, name, undisturbed, dataset, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    result = read_result(folder)
    content = (folder / name).read_bytes()
    assert read_checked(folder, name, result) == content
    (folder / name).write_bytes(flipped(content) if damage == "flipped" else b"x" + content)
    with pytest.raises(ValueError, match=rf"{folder}/{name} is damaged .*; restore it from a copy"):
        read_checked(folder, name, result)
    with pytest.raises(ValueError, match=rf"{folder}/{name} is damaged .*; restore it from a copy|another run"):
        run(tiny_config(dataset), folder, progress=False)


def test_a_result_of_another_run_costs_an_unfinished_one_nothing(stopped, undisturbed, dataset, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped[0], folder)
    shutil.copy(undisturbed / "result.json", folder)
    with pytest.raises(ValueError, match=f"{folder}/metrics.jsonl is damaged .*; restore it from a copy"):
        run(tiny_config(dataset), folder, progress=False)
    (folder / "result.json").unlink()
    run(tiny_config(dataset), folder, progress=False)
    assert contents(folder) == contents(undisturbed)


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused(two_checkpoints):
    """torch compresses nothing; what is compressed may be of any size."""
    with zipfile.ZipFile(two_checkpoints.checkpoint) as archive, zipfile.ZipFile(
            two_checkpoints.path / "bomb", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in archive.infolist():
            bomb.writestr(entry.filename, archive.read(entry))
    os.replace(two_checkpoints.path / "bomb", two_checkpoints.checkpoint)
    with pytest.warns(UserWarning, match="checkpoint.pt is damaged"):
        assert two_checkpoints.load_checkpoint("cpu")["step"] == 1


def test_the_later_of_two_checkpoints_is_used_whatever_they_are_called(stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run")
    for name, other in (("checkpoint.pt", "checkpoint.previous.pt"), ("checkpoint.previous.pt", "checkpoint.pt")):
        shutil.copy(stopped[0] / other, tmp_path / "run" / name)
    with pytest.warns(UserWarning, match="checkpoint.pt is of step 2, not after checkpoint.previous.pt; "
                                         "checkpoint.previous.pt of step 4 is used"):
        assert read_run(tmp_path / "run")[2]["step"].tolist() == [2, 4]
    shutil.copy(stopped[0] / "checkpoint.previous.pt", tmp_path / "run")
    with pytest.warns(UserWarning, match="not after checkpoint.previous.pt; checkpoint.pt of step 2 is used"):
        assert read_run(tmp_path / "run")[2]["step"].tolist() == [2]


def test_lost_checkpoints_are_said(stopped, dataset, undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped[0], folder)
    for file in folder.glob("*.pt"):
        file.unlink()
    with pytest.warns(UserWarning, match="there is no checkpoint any more; training starts at step 0"):
        run(tiny_config(dataset), folder, progress=False)
    assert contents(folder) == contents(undisturbed)


# ---- whose folder it is ----


def test_a_folder_of_another_run_is_refused_and_the_differing_settings_are_named(dataset, undisturbed):
    before = (undisturbed / "config.json").read_bytes()
    other = tiny_config(dataset, seed=3, threshold=0.5)
    with pytest.raises(ValueError, match=r"holds another run; seed: 0 there, 3 here; threshold: 0.95 there, 0.5 "
                                         r"here; choose another run_dir, .* or take seed=0 and threshold=0.95 to "):
        run(other, undisturbed, progress=False)
    assert (undisturbed / "config.json").read_bytes() == before


def test_a_folder_of_another_method_is_refused_and_names_what_only_one_of_them_has(dataset, undisturbed):
    with pytest.raises(ValueError, match=r"queue_size: 8 there, None here.*rebalance: \['daso'\] there, \[\] here.*"
                                         r", or take rebalance=\['daso'\] to go on there$"):
        run(tiny_config(dataset, rebalance=""), undisturbed, progress=False)
    with pytest.raises(ValueError, match=r", or take rebalance=\['daso'\] and seed=0 to go on there$"):
        run(tiny_config(dataset, rebalance="", seed=1), undisturbed, progress=False)


@pytest.mark.parametrize(("rebalance", "other", "message"), [
    ("abc", "daso,abc", r"queue_size: None there, 8 here.*rebalance: \['abc'\] there, \['daso', 'abc'\] here"),
    ("abc", "", r"abc_epoch_steps: 1 there, None here.*rebalance: \['abc'\] there, \[\] here"),
    ("crest", "crest_plus", r"crest_t_min: None there, 0.5 here.*rebalance: \['crest'\] there, \['crest_plus'\] here"),
    ("crest", "la,crest", r"la_tau: None there, 1.0 here.*rebalance: \['crest'\] there, \['la', 'crest'\] here;"),
])
def test_an_interrupted_run_goes_on_as_the_same_combination_only(rebalance, other, message, dataset, monkeypatch,
                                                                 tmp_path):
    interrupt(monkeypatch, tiny_config(dataset, rebalance=rebalance), tmp_path, at=5)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=f"holds another run; .*{message}"):
        run(tiny_config(dataset, rebalance=other), tmp_path, progress=False)
    assert snapshot(tmp_path) == before


def test_crest_with_other_generations_is_another_run(dataset, monkeypatch, tmp_path):
    interrupt(monkeypatch, tiny_config(dataset, rebalance="crest"), tmp_path, at=5)
    with pytest.raises(ValueError, match="holds another run; n_generations: 3 there, 2 here; choose"):
        run(tiny_config(dataset, rebalance="crest", n_generations=2), tmp_path, progress=False)


def test_a_damaged_configuration_is_not_taken_for_that_of_another_run(dataset, tmp_path):
    run(tiny_config(dataset), tmp_path, progress=False)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace("queue_size", "queue_sizf"))
    with pytest.raises(ValueError, match="config.json is damaged .*its checksum is another one"):
        run(tiny_config(dataset), tmp_path, progress=False)


def test_a_setting_that_older_runs_lack_is_named_with_what_they_had(dataset, undisturbed):
    with pytest.raises(ValueError, match="; nesterov: True there, False here; choose .*, or take nesterov=True to go"):
        run(tiny_config(dataset, nesterov=False), undisturbed, progress=False)


def test_other_data_in_the_same_place_is_refused_and_said_in_words(undisturbed, tmp_path):
    x_test = np.zeros((N_CLASSES, 12, 12), np.uint8)
    other = save_tiny(tmp_path, x_test=x_test, y_test=np.arange(N_CLASSES))
    with pytest.raises(ValueError, match=r"another run; the images are not those it was trained on \(60 test there, 4 "
                                         r"here\); choose another run_dir, .* or take the images as they were"):
        run(tiny_config(other), undisturbed, progress=False)
    same = save_tiny(tmp_path, x_train=255 - tiny_arrays()["x_train"])
    with pytest.raises(ValueError, match=r"not those it was trained on \(other pixels, labels or order\); choose"):
        run(tiny_config(same), undisturbed, progress=False)


@pytest.mark.parametrize(("changes", "message"), [
    ({"nesterov": False}, r"nesterov: True there, False here; .* or take nesterov=True to go on there$"),
    ({"rebalance": "daso,abc"}, r"abc_epochs: None there, .* or take rebalance=\['daso'\] to go on there$"),
], ids=["a default of older runs", "no setting there"])
def test_what_is_said_to_go_on_is_a_value_that_can_be_given(changes, message, dataset, undisturbed):
    with pytest.raises(ValueError, match=message):
        run(tiny_config(dataset, **changes), undisturbed, progress=False)


def test_more_steps_are_another_run_and_what_to_do_is_said(dataset, undisturbed):
    with pytest.raises(ValueError, match=r"another run; total_steps: 6 there, 9 here; choose another run_dir, where "
                                         r"training starts at step 0, or take total_steps=6 to go on there$"):
        run(tiny_config(dataset, total_steps=9), undisturbed, progress=False)


def test_moved_data_and_another_device_or_number_of_threads_is_the_same_run(undisturbed, tmp_path):
    moved = tiny_config(save_tiny(tmp_path), threads=2, device="auto")
    assert run(moved, undisturbed, progress=False) == json.loads((undisturbed / "result.json").read_text())


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint.previous.pt", "model.safetensors", "outputs.npz",
                                  "predictions.csv", "pseudo_labels.npz", "pseudo_labels/mine.csv", "events/mine.jpg"])
def test_what_a_run_would_replace_is_not_touched_where_there_is_no_run(dataset, tmp_path, name):
    file = tmp_path / "folder" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(ValueError, match=rf"holds {name.split('/')[0]} but no config.json: not a run; choose another"):
        run(tiny_config(dataset), tmp_path / "folder", progress=False)
    assert file.read_text() == "mine" and [path for path in (tmp_path / "folder").rglob("*.*")] == [file]


def test_a_folder_with_foreign_json_is_not_taken_for_a_run(dataset, tmp_path):
    (tmp_path / "package.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds package.json but no config.json: not a run"):
        run(tiny_config(dataset), tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["package.json"]


def test_a_file_in_place_of_the_folder_is_refused(dataset, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"run_dir=.*file is a file"):
        run(tiny_config(dataset), tmp_path / "file", progress=False)


def test_a_folder_that_holds_only_a_notebook_is_free(dataset, tmp_path):
    (tmp_path / "train.ipynb").write_text("{}")
    with RunFolder(tmp_path, tiny_config(dataset), DATA) as folder:
        assert folder.result() is None


def test_a_damaged_record_is_refused_by_name(dataset, tmp_path):
    (tmp_path / "config.json").write_text('{"schema":')
    with pytest.raises(ValueError, match=r"config.json is damaged .*move the folder away"):
        run(tiny_config(dataset), tmp_path, progress=False)


def test_a_folder_has_one_owner_at_a_time(folder, dataset):
    with pytest.raises(ValueError, match=r"run_dir=.*run: another process is working in this folder"):
        run(tiny_config(dataset), folder.path, progress=False)


def test_a_folder_that_was_given_back_is_free(dataset, tmp_path):
    for _ in range(2):
        with RunFolder(tmp_path, tiny_config(dataset), DATA):
            pass


def test_another_process_owns_the_folder_until_it_is_killed(dataset, tmp_path):
    code = ("import fcntl, sys, time; lock = open(sys.argv[1]); fcntl.flock(lock, fcntl.LOCK_EX); print(flush=True); "
            "time.sleep(60)")
    folder = RunFolder(tmp_path, tiny_config(dataset), DATA)
    with folder:
        pass  # makes the lock's file
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / ".lock"], stdout=subprocess.PIPE) as owner:
        owner.stdout.readline()
        with pytest.raises(ValueError, match="another process is working"):
            folder.__enter__()
        owner.send_signal(signal.SIGKILL)
    with folder:
        assert folder.result() is None


@pytest.mark.parametrize(("here", "there", "pause"), [(0.0, 0.0, 45), (0.05, 0.3, 45), (0.2, 0.6, 100)])
def test_a_checkpoint_between_evaluations_costs_at_most_a_hundredth_of_the_time(here, there, pause, folder,
                                                                              monkeypatch):
    """Writing one takes seconds of the training and of the thread that writes; 45 s lie between two at least."""
    clock = [1000.0]

    def write(*args):
        clock[0] += there

    monkeypatch.setattr("dasolib.run_folder.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(folder, "save_checkpoint", write)
    monkeypatch.setattr("dasolib.run_folder.host_copy", lambda state: clock.__setitem__(0, clock[0] + here))
    folder.write(None, None, {})
    folder.flush()
    written = folder._written
    for after, is_due in ((pause - 0.1, False), (pause + 0.1, True)):
        clock[0] = written + after
        assert folder.is_checkpoint_due() == is_due


def test_a_record_that_appears_while_the_folder_is_taken_is_seen(dataset, monkeypatch, tmp_path):
    """Another process may start and finish a run of its own between the first look and the lock."""
    def lock_late(*args, flock=fcntl.flock):
        write_json(tmp_path / "config.json", folder.record | {"seed": 5})
        flock(*args)

    folder = RunFolder(tmp_path, tiny_config(dataset), DATA)
    monkeypatch.setattr(fcntl, "flock", lock_late)
    with pytest.raises(ValueError, match="holds another run; seed: 5 there, 0 here"):
        folder.__enter__()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_refuses_locks_is_named_with_a_remedy(number, dataset, monkeypatch, tmp_path):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ValueError, match=rf"{tmp_path}/run: this file system refuses locks \({os.strerror(number)}\), "
                                         ".*; choose a folder on another disk, or mount"):
        run(tiny_config(dataset), tmp_path / "run", progress=False)


@pytest.fixture
def locks_without_effect(monkeypatch):
    """As on a file system that hosts share without a lock daemon; and silence is short."""
    monkeypatch.setattr(fcntl, "flock", lambda *args: None)
    monkeypatch.setattr(dasolib.run_folder, "SECONDS_OF_SILENCE", 1.5)
    dasolib.run_folder._lease.cache_clear()
    yield
    dasolib.run_folder._lease.cache_clear()


OWNING = """
import socket, sys, time
host, file = sys.argv[1:]
socket.gethostname = lambda: host or "here"
from filelock import SoftFileLease
lease = SoftFileLease(file, lease_duration=1.5, thread_local=False)
lease.acquire(timeout=0)
print(flush=True)
time.sleep(60)
"""


@pytest.fixture
def owned(tmp_path, locks_without_effect):
    """Yield a function that starts a process on a host which owns a folder, and returns that process."""
    owners = []

    def start(host):
        owners.append(subprocess.Popen([sys.executable, "-c", OWNING, host, tmp_path / OWNER], stdout=subprocess.PIPE))
        owners[-1].stdout.readline()
        return owners[-1]

    yield start
    for owner in owners:
        owner.kill()
        owner.communicate()


def test_where_locks_have_no_effect_the_process_decides_at_once_on_the_same_host(dataset, owned, tmp_path):
    owner = owned(socket.gethostname())
    folder = RunFolder(tmp_path, tiny_config(dataset), DATA)
    with pytest.raises(ValueError, match=rf"another process is working in this folder, {owner.pid} on "):
        folder.__enter__()
    assert is_owned(tmp_path)
    owner.kill()
    owner.wait()
    assert not is_owned(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with folder:
            assert (tmp_path / OWNER).exists()
    assert not (tmp_path / OWNER).exists()


def test_a_live_process_of_another_host_keeps_the_folder(dataset, owned, tmp_path):
    owner = owned("elsewhere")
    folder = RunFolder(tmp_path, tiny_config(dataset), DATA)
    with pytest.warns(UserWarning, match=rf"process {owner.pid} on elsewhere may be working"):
        with pytest.raises(ValueError, match=rf"another process is working in this folder, {owner.pid} on elsewhere"):
            folder.__enter__()


def test_a_dead_process_of_another_host_is_replaced_after_its_silence_and_that_is_said(dataset, owned, tmp_path):
    owner = owned("elsewhere")
    owner.kill()
    folder = RunFolder(tmp_path, tiny_config(dataset), DATA)
    with pytest.warns(UserWarning, match=rf"taken over from process {owner.pid} on elsewhere, which gave no sign"):
        with folder:
            pass
    assert "taken over" in folder.notes[0]


def test_a_sweep_leaves_a_run_of_another_host_alone_until_that_is_silent(owned, tmp_path):
    owner = owned("elsewhere")
    owner.kill()
    assert is_owned(tmp_path)
    deadline = time.monotonic() + 30
    while is_owned(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_process_whose_folder_was_taken_over_writes_nothing_more(folder):
    (folder.path / OWNER).write_text((folder.path / OWNER).read_text().replace(f"pid={os.getpid()}", "pid=1"))
    before = snapshot(folder.path)
    folder.write(record_at(2), counts_at(2), state_at(2))
    with pytest.raises(ValueError, match="process 1 on .* has taken this folder over; this one writes nothing more"):
        folder.flush()
    assert snapshot(folder.path) == before


# ---- finished runs ----


def snapshot(folder):
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_a_finished_run_is_neither_trained_nor_written_again(dataset, undisturbed, monkeypatch, capsys):
    before = snapshot(undisturbed)
    monkeypatch.setattr(dasolib.train, "Training", None)  # not even a network is made
    result = run(tiny_config(dataset), undisturbed)
    assert result == json.loads((undisturbed / "result.json").read_text())
    assert snapshot(undisturbed) == before
    assert "undisturbed is finished; nothing to do" in capsys.readouterr().out


def test_there_is_a_result_only_at_the_end(dataset, monkeypatch, tmp_path):
    interrupt(monkeypatch, tiny_config(dataset), tmp_path, at=5)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"config.json", "environment.json", "metrics.jsonl", COUNTS_SO_FAR, "checkpoint.pt", "events"}
    assert not names & {"result.json", COUNTS, "outputs.npz", "model.safetensors", "predictions.csv"}


def test_config_json_holds_what_can_change_a_number_and_no_paths(dataset, undisturbed):
    record = json.loads((undisturbed / "config.json").read_text())
    config = tiny_config(dataset)
    data = load_data(dataset)
    assert record == {"schema": SCHEMA, **config.identity(), "threads": 1, "mean": list(data.mean),
                      "std": list(data.std), "data_sha256": data.fingerprint}
    assert record["dataset"] == "tiny" and "device" not in record and len(record["data_sha256"]) == 64


# ---- the environment ----


def environments(folder):
    return json.loads((folder / "environment.json").read_text())["starts"]


def test_an_undisturbed_run_has_one_start_that_says_what_it_ran_in(undisturbed):
    (start,) = environments(undisturbed)
    images = {"train": 160, "test": 60, "unlabeled": 0}
    assert start == {"from_step": 0, "images": images, **environment(torch.device("cpu"), 1)}
    assert start["torch"] == torch.__version__.partition("+")[0]
    assert start["device"] == "cpu" and start["threads"] == 1
    assert re.fullmatch(r"[A-Za-z]+-\w+", start["platform"])  # system and machine, no release of a kernel


def test_without_git_the_commit_is_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "")
    now = environment(torch.device("cpu"), 1)
    assert now["commit"] is None and now["dirty"] is None


@pytest.fixture
def one_thread_only(monkeypatch):
    """Threads that wait for each other on a busy machine make a small run slow; their number is what matters here."""
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)


@pytest.mark.usefixtures("one_thread_only")
def test_resuming_with_other_threads_warns_and_records_it(dataset, monkeypatch, tmp_path):
    interrupt(monkeypatch, tiny_config(dataset), tmp_path, at=3)
    with pytest.warns(UserWarning, match="resumes in another environment; .* threads: 1 before, 2 now$"):
        run(tiny_config(dataset, threads=2), tmp_path, progress=False)
    assert [(s["from_step"], s["threads"]) for s in environments(tmp_path)] == [(0, 1), (2, 2)]
    assert json.loads((tmp_path / "config.json").read_text())["threads"] == 1


def test_resuming_in_the_same_environment_is_recorded_without_a_warning(dataset, monkeypatch, tmp_path):
    for at in (3, 5):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            interrupt(monkeypatch, tiny_config(dataset), tmp_path, at=at)
    assert [start["from_step"] for start in environments(tmp_path)] == [0, 2]


@pytest.mark.parametrize("name", ["commit", "dirty", "torch", "numpy", "python", "daso-study", "device"])
def test_a_change_of_commit_version_or_device_warns(name, folder):
    before = environment(torch.device("cpu"), 1)
    folder.begin(before, 0)
    with pytest.warns(UserWarning, match=f"numbers may differ from an undisturbed run. {name}: .* before, 'new' now$"):
        folder.begin(before | {name: "new"}, 2)
    first, second = environments(folder.path)
    (note,) = second.pop("notes")
    assert note.endswith("before, 'new' now")
    images = {"images": folder.images}
    assert (first, second) == ({"from_step": 0, **before} | images, {"from_step": 2, **before, name: "new"} | images)


def test_another_schema_warns(folder, monkeypatch):
    now = environment(torch.device("cpu"), 1)
    folder.begin(now, 0)
    monkeypatch.setattr(dasolib.run_folder, "SCHEMA", SCHEMA + 1)
    with pytest.warns(UserWarning, match=f"schema: {SCHEMA} before, {SCHEMA + 1} now$"):
        folder.begin(now, 2)


@pytest.mark.usefixtures("one_thread_only")
def test_a_run_that_never_reached_a_checkpoint_begins_anew_with_its_present_threads(dataset, monkeypatch, tmp_path):
    interrupt(monkeypatch, tiny_config(dataset), tmp_path, at=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interrupt(monkeypatch, tiny_config(dataset, threads=2), tmp_path, at=3)
    assert [(s["from_step"], s["threads"]) for s in environments(tmp_path)] == [(0, 2)]
    assert json.loads((tmp_path / "config.json").read_text())["threads"] == 2


# ---- paths ----


def test_relative_paths_start_from_the_project_wherever_the_process_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    root = project_root()
    assert (root / "pyproject.toml").exists() and (root / "dasolib" / "train.py").exists()
    assert resolve("runs/x") == root / "runs" / "x"
    assert resolve(tmp_path / "x") == tmp_path / "x"


@pytest.mark.parametrize("path", ["runs/a\0b", "runs/two\nlines"])
def test_a_path_with_a_control_character_is_refused(path):
    with pytest.raises(ValueError, match=r"path='runs/.*': must not hold a line break, a NUL or another control"):
        resolve(path)


def test_an_installed_package_without_its_sources_starts_from_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dasolib.run_folder, "__file__", str(tmp_path / "site-packages" / "dasolib" / "run_folder.py"))
    assert resolve("x") == tmp_path / "x"


# ---- what a user is told ----


def test_what_was_noted_on_resuming_is_kept_with_the_run(dataset, monkeypatch, tmp_path):
    interrupt(monkeypatch, tiny_config(dataset), tmp_path, at=5)
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.warns(UserWarning, match="checkpoint.pt is damaged"):
        run(tiny_config(dataset), tmp_path, progress=False)
    first, second = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert "notes" not in first
    (note,) = second["notes"]
    assert "checkpoint.previous.pt of step 2 is used" in note


def test_data_normalised_otherwise_is_another_run(dataset, tmp_path):
    """The same pixels under another mean give other numbers, though their fingerprint is the same."""
    with RunFolder(tmp_path, tiny_config(dataset), DATA) as folder:
        folder.begin(environment(torch.device("cpu"), 1), 0)
    other = SimpleNamespace(fingerprint="abc", mean=(0.4,), std=(0.25,), x_train=(), x_test=(), x_unlabeled=None)
    with pytest.raises(ValueError, match=r"holds another run; mean: \[0.5\] there, \[0.4\] here"):
        RunFolder(tmp_path, tiny_config(dataset), other).__enter__()
