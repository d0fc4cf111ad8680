"""A sweep runs what is missing, once, whatever interrupts it, and says what went wrong; most runs here are fakes."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dasolib import launch, progress, sweep
from dasolib.config import available_cores
from dasolib.cost import estimate, flop
from dasolib.data import load_data
from dasolib.grid import load_grid
from dasolib.progress import last_record, run_line, shortened
from dasolib.run_folder import LOCK, take_lock, write_json
from dasolib.train import run as train
from tests.fake_runs import command
from tests.tiny import contents, save_tiny

ROOT = Path(__file__).resolve().parents[1]
GRID = """
name: study
preset: cpu
common: {dataset: mnist5k, n_val: 100, total_steps: 20, seed: [0, 1]}
runs:
- name: trained
  method: supervised
- method: usadtm
- method: supervised
  rebalance: crt
  source: trained
"""
DEADLINE = 600  # seconds that a test waits for what must happen


class Study:
    """A grid of fake runs in a folder, and the sweeps started on it.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder):
        self.file, self.runs, self.started = folder / "grid.yaml", folder / "runs", []
        self.file.write_text(GRID)
        (self.runs / "study").mkdir(parents=True)
        self.set()

    def set(self, **options):
        """Say how fake runs of a method behave, to those that are running, too: they never read half a file."""
        write_json(self.runs / "study" / "fake.json", options)

    def grid(self):
        return load_grid(self.file, self.runs).runs

    def start(self, *options, module="tests.fake_runs"):
        process = subprocess.Popen([sys.executable, "-m", module, self.file, "--runs", self.runs, *options], cwd=ROOT,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        self.started.append(process)
        return process

    def finish(self, process, code=0):
        """Wait for a sweep; return what it printed."""
        out, err = process.communicate(timeout=DEADLINE)
        assert process.returncode == code, err
        return out + err

    def sweep(self, *options, code=0):
        return self.finish(self.start(*options), code)

    def starts(self):
        """Step from which each run was started, each time."""
        return {run.name: [int(line.split()[0]) for line in (run.folder / "starts.txt").read_text().splitlines()]
                for run in self.grid() if (run.folder / "starts.txt").exists()}

    def results(self):
        return [run for run in self.grid() if (run.folder / "result.json").exists()]


@pytest.fixture
def study(tmp_path):
    study = Study(tmp_path)
    yield study
    for process in study.started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    for process in workers(study):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def workers(study):
    """Process ids of the runs of a study that are alive."""
    ran = subprocess.run(["ps", "-eww", "-o", "pid=,stat=,args="], capture_output=True, text=True, check=True)
    lines = [line.split(None, 2) for line in ran.stdout.splitlines()]
    return [int(pid) for pid, state, args in lines
            if str(study.runs) in args and "grid.yaml" not in args and not state.startswith("Z")]


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def step_of(run):
    return (last_record(run.folder) or {"step": 0})["step"]


def held(study, method, step=3):
    """Wait until both runs of a method are held after a step."""
    runs = [run for run in study.grid() if run.config.method == method and not run.config.rebalance]
    wait_until(lambda: [step_of(run) for run in runs] == [step, step])


# ---- what is run, and when ----


def test_every_run_is_trained_once_and_a_second_sweep_finds_nothing_to_do(study):
    printed = study.sweep("--jobs", "3")
    assert study.starts() == {run.name: [0] for run in study.grid()} and len(study.results()) == 6
    assert f"study: 6 of 6 runs are finished in {study.runs / 'study'}" in printed
    assert printed.count("started ") == printed.count("finished study") + 6 == 6
    again = study.sweep("--jobs", "3")
    assert study.starts() == {run.name: [0] for run in study.grid()}
    assert "6 of 6" in again and "started" not in again


def test_a_run_starts_when_the_run_it_needs_is_finished_and_others_do_not_wait(study):
    study.set(usadtm={"hold_at": 3})
    process = study.start("--jobs", "4")
    wait_until(lambda: len(study.results()) == 4)  # all but the two that are held
    study.set()
    study.finish(process)
    needing = [run for run in study.grid() if run.after is not None]
    assert len(needing) == 2
    for run in needing:
        began = (run.folder / "train.ipynb").stat().st_mtime
        assert (run.after / "result.json").stat().st_mtime <= began


def test_each_of_several_runs_gets_its_part_of_the_cores(study):
    jobs = 2
    study.sweep("--jobs", str(jobs))
    threads = {(run.folder / "starts.txt").read_text().split()[1] for run in study.grid()}
    assert threads == {str(max(1, available_cores() // jobs))}
    events = sorted(((run.folder / name).stat().st_mtime, change) for run in study.grid()
                    for name, change in (("starts.txt", 1), ("result.json", -1)))
    assert max(sum(change for _, change in events[:i]) for i in range(len(events) + 1)) <= jobs


# ---- what fails ----


def test_a_run_that_fails_is_reported_at_the_end_and_the_others_go_on(study):
    study.set(supervised={"fail_at": 5})
    printed = study.sweep("--jobs", "2", code=1)
    assert {run.config.method for run in study.results()} == {"usadtm"}
    trained, needing = ([run for run in study.grid() if run.config.rebalance == parts and run.config.method != "usadtm"]
                        for parts in ((), ("crt",)))
    assert not any(run.folder.exists() for run in needing)
    report = printed[printed.index("2 of 6 runs are finished"):]
    assert "4 failed:" in report
    for run in trained:
        log = run.folder / launch.LOG
        assert f"{run.name}\n    FloatingPointError: the loss is not finite since step 5\n    {log}\n" in report
        assert "Traceback" in log.read_text()
    for run in needing:
        assert f"{run.name}\n    not started, as it needs {run.after.name}, which failed\n" in report


def test_a_run_whose_result_is_there_is_started_from_whatever_failed_behind_it(study):
    study.set(supervised={"fail_at": 20})
    printed = study.sweep("--jobs", "2", code=1)
    assert len(study.results()) == 6
    assert "RuntimeError: a figure failed" in printed and "not started" not in printed


def test_a_network_that_is_not_there_is_missed_before_anything_starts(study, capsys):
    """As in a fresh clone, where results are committed and networks are not."""
    (trained, *_), (needing, *_) = ([run for run in study.grid() if run.config.rebalance == parts] for parts in
                                    ((), ("crt",)))
    trained.folder.mkdir()
    (trained.folder / "result.json").write_text(json.dumps({"seconds": 1.0, "plain": {"accuracy": 0.5}}))
    assert sweep.main([str(study.file), "--runs", str(study.runs)]) == 2
    message = capsys.readouterr().err
    assert f"source={trained.name!r} has no model.safetensors, which {needing.name} starts from" in message
    assert f"move {trained.folder} away" in message and study.starts() == {}


def test_after_the_cause_is_gone_the_same_command_goes_on_with_what_failed(study):
    study.set(supervised={"fail_at": 5})
    study.sweep("--jobs", "2", code=1)
    study.set()
    study.sweep("--jobs", "2")
    assert len(study.results()) == 6
    for run in study.grid():
        failed_first = run.config.method == "supervised" and not run.config.rebalance
        assert study.starts()[run.name] == ([0, 5] if failed_first else [0])


def test_a_run_that_ends_without_a_result_or_by_a_signal_has_failed(study):
    (run, *_) = study.grid()
    for code, outcome in (("pass", "left no result.json"), ("import os; os.abort()", "ended by signal 6")):
        engine = launch.Local([{}], 1, lambda run, threads, code=code: [sys.executable, "-c", code])
        job = engine.start(run)
        assert not engine.has_room()
        wait_until(lambda job=job: job.process.poll() is not None)
        assert job.poll() == outcome
        assert engine.has_room()


# ---- what interrupts ----


def test_interrupted_it_stops_its_runs_and_the_same_command_goes_on_with_them(study):
    for step, number in ((3, signal.SIGINT), (5, signal.SIGTERM), (8, signal.SIGHUP)):
        study.set(supervised={"hold_at": step})
        process = study.start("--jobs", "2")
        held(study, "supervised", step)
        assert len(workers(study)) == 2
        os.killpg(process.pid, number)  # to the group, as a terminal does
        printed = study.finish(process, code=130)
        assert printed.index("stopping 2 runs") < printed.index("interrupted; nothing is lost")
        assert workers(study) == []
    study.set()
    study.sweep("--jobs", "2")
    again = [0, 3, 5, 8]
    assert sorted(study.starts().values()) == [[0], [0], [0], [0], again, again] and len(study.results()) == 6


def test_it_says_at_once_that_it_stops_and_who_asks_again_changes_nothing(study):
    study.set(supervised={"hold_at": 3})
    process = study.start("--jobs", "2")
    held(study, "supervised")
    slow = workers(study)
    for pid in slow:
        os.kill(pid, signal.SIGSTOP)  # a run that takes its time to end
    os.killpg(process.pid, signal.SIGINT)
    assert process.stderr.readline().startswith("stopping 2 runs")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.killpg(process.pid, number)
        time.sleep(0.1)
    assert process.poll() is None and workers(study) == slow
    for pid in slow:
        os.kill(pid, signal.SIGCONT)
    printed = study.finish(process, code=130)
    assert "interrupted; nothing is lost" in printed and "Traceback" not in printed
    assert workers(study) == []
    study.set()
    study.sweep("--jobs", "2")
    assert sorted(study.starts().values()) == [[0], [0], [0], [0], [0, 3], [0, 3]] and len(study.results()) == 6


def test_interrupted_while_it_starts_a_run_it_leaves_none_behind(study, monkeypatch, capsys):
    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGINT)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", Popen)
        assert sweep.main([str(study.file), "--runs", str(study.runs), "--jobs", "2"], command=command) == 130
    assert workers(study) == []
    assert "stopping 1 run; " in capsys.readouterr().err
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers


def test_runs_that_do_not_end_are_ended_by_force_all_at_one_time(study):
    study.set(supervised={"hold_at": 3})
    engine = launch.Local([{}] * 2, 1, command)
    jobs = [engine.start(run) for run in study.grid()[:2]]
    held(study, "supervised")
    for pid in workers(study):
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    for job in jobs:
        job.stop()
    for job in jobs:
        job.wait(began + 2)
    assert 2 <= time.monotonic() - began < 4
    assert workers(study) == [] and len(engine.free) == 2


def test_a_terminal_that_is_gone_does_not_keep_it_from_waiting_for_its_runs(study):
    study.set(supervised={"hold_at": 3})
    screen, terminal = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "tests.fake_runs", study.file, "--runs", study.runs, "--jobs",
                                "2"], cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal)
    study.started.append(process)
    os.close(terminal)
    held(study, "supervised")
    slow = workers(study)
    for pid in slow:
        os.kill(pid, signal.SIGSTOP)
    os.close(screen)
    process.send_signal(signal.SIGHUP)
    time.sleep(2)  # in which it would have ended
    assert process.poll() is None
    for pid in slow:
        os.kill(pid, signal.SIGCONT)
    process.wait(DEADLINE)
    assert workers(study) == []


def test_killed_with_all_its_runs_it_goes_on_with_them(study):
    study.set(supervised={"hold_at": 3})
    process = study.start("--jobs", "2")
    held(study, "supervised")
    for pid in (process.pid, *workers(study)):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    study.set()
    study.sweep("--jobs", "2")
    assert sorted(study.starts().values()) == [[0], [0], [0], [0], [0, 3], [0, 3]] and len(study.results()) == 6


def test_killed_alone_it_leaves_its_runs_to_go_on_and_another_sweep_waits_for_them(study):
    study.set(supervised={"hold_at": 3})
    process = study.start("--jobs", "2")
    held(study, "supervised")
    process.kill()
    process.communicate()
    assert len(workers(study)) == 2
    process = study.start("--jobs", "2")
    wait_until(lambda: len(study.results()) == 2)  # those that need none of the others
    study.set()
    printed = study.finish(process)
    assert study.starts() == {run.name: [0] for run in study.grid()} and len(study.results()) == 6
    assert printed.count("another process works on ") == 2 and printed.count("finished elsewhere ") == 2


# ---- several at once ----


def test_two_sweeps_at_once_train_each_run_once_and_both_end_with_all_of_them(study):
    study.set(supervised={"hold_at": 3}, usadtm={"hold_at": 3})
    both = [study.start("--jobs", "2") for _ in range(2)]
    held(study, "supervised")
    held(study, "usadtm")  # so that each sweep has two of them
    study.set()
    printed = [study.finish(process) for process in both]
    assert study.starts() == {run.name: [0] for run in study.grid()} and len(study.results()) == 6
    assert all("6 of 6 runs are finished" in text for text in printed)
    started = [re.findall("^started (.*)$", text, re.M) for text in printed]
    assert all(len(names) >= 2 for names in started)
    assert sorted(started[0] + started[1]) == sorted(run.name for run in study.grid())


def test_a_run_that_somebody_trains_without_a_sweep_is_left_to_them_until_they_let_go(study):
    run = study.grid()[0]
    run.folder.mkdir()
    lock = take_lock(run.folder / LOCK)
    process = study.start("--jobs", "2")
    wait_until(lambda: {run.config.method for run in study.results()} >= {"usadtm"} and len(study.results()) == 4)
    assert run.name not in study.starts()
    lock.close()
    printed = study.finish(process)
    assert f"another process works on {run.name}; waiting for it" in printed
    assert study.starts()[run.name] == [0] and len(study.results()) == 6


# ---- what it prints ----


def test_a_dry_run_prints_every_run_its_state_and_what_it_would_cost(study, capsys):
    def dry_run(*options):
        assert sweep.main([str(study.file), "--runs", str(study.runs), "--dry-run", *options]) == 0
        return capsys.readouterr().out

    nothing = dry_run()
    assert len(re.findall("^missing .* (s|min)  mnist5k-", nothing, re.M)) == 6
    assert not any(run.folder.exists() for run in study.grid())
    total = sum(flop(run.config.model_dump()) for run in study.grid())
    assert f"; {total / 1e15:.3g} PFLOP in the networks" in nothing
    assert "0 finished, 0 in work, 0 interrupted, 6 missing" in nothing
    assert "Estimated 0 from finished runs that differ in the seed alone, 6 from their arithmetic at " in nothing
    assert "what one CPU thread reached" in nothing

    first, second, third, *_ = study.grid()
    seconds = 3000
    for run in (first, second, third):
        run.folder.mkdir()
    (first.folder / "config.json").write_text(json.dumps(first.config.identity() | {"threads": 1, "schema": 1}))
    (first.folder / "result.json").write_text(json.dumps({"seconds": seconds, "plain": {"accuracy": 0.5}}))
    (second.folder / "metrics.jsonl").write_text('{"step": 5}\n{"step": 1')
    with take_lock(third.folder / launch.SWEEP_LOCK):
        printed = dry_run("--jobs", "2")
    assert re.search(rf"^finished +-  {first.name}$", printed, re.M)
    assert re.search(rf"^step 5 of 20 +38 min  {second.name}$", printed, re.M)  # three quarters of 3,010 s
    assert re.search(rf"^in work, missing .*  {third.name}$", printed, re.M)
    assert "1 finished, 1 in work, 1 interrupted, 3 missing" in printed
    assert "Estimated 1 from finished runs that differ in the seed alone, 4 from their arithmetic at " in printed
    assert f"{flop(first.config.model_dump()) / seconds / 1e9:,.0f} GFLOP/s, the median of the 1 finished" in printed
    assert re.search(r"To do: .* one run after the other, .* with 2 at a time; ", printed)
    assert "at 7 GFLOP/s, as given" in dry_run("--gflops", "7")


def test_a_dry_run_says_which_settings_tell_runs_of_one_name_apart(study, capsys):
    study.file.write_text(GRID.replace("- method: usadtm", "- method: usadtm\n  unlabeled: [equal, reversed]\n"
                                       "  n1: 60"))
    sweep.main([str(study.file), "--runs", str(study.runs), "--dry-run"])
    printed = capsys.readouterr().out
    assert re.findall(r"mnist5k-usadtm-s0-\w{8}  (.*)", printed) == ["unlabeled=equal", "unlabeled=reversed"]


def test_the_dry_run_on_the_page_on_full_scale_prints_what_stands_there(tmp_path, capsys):
    page = (ROOT / "docs" / "full_scale.md").read_text()
    (line,) = re.findall(r"`(To do: .*?)`", page)
    (options,) = re.findall(r"`python -m dasolib\.sweep (\S+ --dry-run .*?)`", page)
    assert sweep.main([*options.split(), "--runs", str(tmp_path)]) == 0
    assert f"\n{line}\n" in capsys.readouterr().out


def test_a_dry_run_says_what_would_be_refused(study, capsys):
    study.file.write_text(GRID.replace("mnist5k", "data/absent.npz"))
    assert sweep.main([str(study.file), "--runs", str(study.runs), "--dry-run"]) == 0
    assert "Not to be started as it is: dataset='data/absent.npz': choose from " in capsys.readouterr().out


def test_a_sweep_leaves_warnings_to_its_runs(study, capsys, recwarn):
    study.file.write_text("name: study\npreset: cpu\ncommon: {dataset: mnist5k, total_steps: 20, unlabeled: equal}\n"
                          "runs:\n"
                          "- {method: usadtm, pretrain_steps: 20}\n"
                          "- {method: fixmatch, rebalance: darp, darp_warmup_steps: 20}\n"
                          "- {method: fixmatch, rebalance: cb, reweight_warmup_steps: 30}\n")
    load_grid(study.file, study.runs)
    assert len(recwarn) == 3
    recwarn.clear()
    assert sweep.main([str(study.file), "--runs", str(study.runs), "--dry-run"]) == 0
    assert "3 missing" in capsys.readouterr().out and len(recwarn) == 0


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_file_in_the_place_of_a_folder_is_refused_before_anything_starts(study, capsys, options):
    run = study.grid()[3]
    run.folder.write_text("")
    for place, runs in ((run.folder, study.runs), (study.file, study.file)):
        assert sweep.main([str(study.file), "--runs", str(runs), *options]) == 2
        assert f"error: {place} is a file, and runs would go there; move it away, or choose" in capsys.readouterr().err
    assert [path.name for path in (study.runs / "study").iterdir() if path.is_dir()] == []


def test_images_of_another_order_than_those_of_finished_runs_are_refused(study, tmp_path, capsys):
    """They would have the same names of runs, and no table could hold both."""
    dataset = save_tiny(tmp_path)
    study.file.write_text(GRID.replace("mnist5k", dataset).replace("n_val: 100", "batch_size: 4"))
    run = study.grid()[0]
    run.folder.mkdir()
    (run.folder / "result.json").write_text(json.dumps({"seconds": 1.0, "plain": {"accuracy": 0.5}}))
    for there, refused in ((load_data(dataset).fingerprint, False), ("0" * 64, True)):
        (run.folder / "config.json").write_text(json.dumps(run.config.identity() | {"schema": 1, "data_sha256": there}))
        (run.folder / "model.safetensors").touch()
        assert sweep.main([str(study.file), "--runs", str(study.runs), "--dry-run"]) == 0
        assert ("Not to be started as it is: dataset=" in capsys.readouterr().out) == refused


@pytest.mark.parametrize("width", [80, 140])
def test_on_a_terminal_there_is_a_line_for_each_running_run_and_one_for_all(study, width):
    study.set(usadtm={"fail_at": 2})
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    process = subprocess.Popen([sys.executable, "-m", "tests.fake_runs", study.file, "--runs", study.runs, "--jobs",
                                "2"], cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal,
                               env={k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")})
    study.started.append(process)
    os.close(terminal)
    printed = b""
    with contextlib.suppress(OSError):  # which is how a closed terminal ends
        while piece := os.read(screen, 65536):
            printed += piece
    os.close(screen)
    assert process.wait(DEADLINE) == 1
    lines = re.split(r"[\r\n]|\x1b\[A", printed.decode())
    run = study.grid()[0]
    name = re.escape(shortened(run.name, 30).rstrip()) if width == 80 else re.escape(run.name)
    loss = r"loss 1\.750  " if width == 140 else ""
    assert any(re.search(rf"{name} +\d+ of 20  {loss}\d+\.0 %  00:0\d left", line) for line in lines)
    assert any(re.match(r"\d of 6 runs  2 failed  \d+ %  00:\d\d so far, (00:\d\d|\?) left \|", line) for line in lines)
    assert max(len(line) for line in lines if "left" in line) <= width
    assert any(line.startswith("failed mnist5k-usadtm-s0") for line in lines)


@pytest.mark.parametrize("width", [40, 60, 80, 140, 200])
def test_the_line_of_a_run_fits_the_terminal(study, width):
    run = study.grid()[4]
    run.folder.mkdir()
    assert run_line(run, width).endswith("  starting") and len(run_line(run, width)) <= width
    record = {"step": 5, "losses": {"labeled": 1.5, "unlabeled": 0.25}, "accuracy": 0.125, "seconds": 300}
    for mask_rate, text in ((None, "12.5 %"), (0.071, "12.5 %, mask rate 0.07")):
        line = json.dumps(record | {"mask_rate": mask_rate})
        (run.folder / "metrics.jsonl").write_text(line + '\n{"step"')
        assert run_line(run, width).endswith(f" {text}  15:00 left")
        assert len(run_line(run, width)) <= max(width, 42 + len(text))
    assert ("loss 1.750" in run_line(run, width)) == (width >= progress.WIDE)


def test_the_last_evaluation_is_read_from_the_end_of_a_long_file(tmp_path):
    assert last_record(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text('{"step": 1')
    assert last_record(tmp_path) is None
    lines = [json.dumps({"step": step, "text": "x" * 300}) for step in range(200)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 200, ')
    assert last_record(tmp_path)["step"] == 199
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": step, "text": "x" * 30_000}) + "\n"
                                                    for step in range(3)))
    assert last_record(tmp_path)["step"] == 2  # one estimate for each of very many classes


# ---- what it is told ----


@pytest.mark.parametrize(("options", "message"), [
    (["--jobs", "0"], "argument --jobs: 0: must be a whole number of at least 1"),
    (["--jobs", "x"], "argument --jobs: x: must be a whole number of at least 1"),
    (["--seeds-per-device", "1.5"], "argument --seeds-per-device: 1.5: must be a whole number of at least 1"),
    (["--dry-run", "--gflops", "-3"], "argument --gflops: -3: must be a whole number of at least 1"),
    (["--jobs", "2", "--seeds-per-device", "2"], "not allowed with argument"),
    (["--address", "auto"], "--address auto: goes with --engine ray"),
    (["--engine", "ray", "--jobs", "2"], "--jobs 2: goes with --engine local"),
    (["--gflops", "5"], "--gflops 5: goes with --dry-run"),
])
def test_wrong_options_and_those_without_effect_are_refused(options, message, capsys):
    with pytest.raises(SystemExit) as raised:
        sweep.main(["grid.yaml", *options])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_seeds_per_device_needs_a_gpu(study, capsys):
    assert sweep.main([str(study.file), "--runs", str(study.runs), "--seeds-per-device", "2"]) == 2
    assert "--seeds-per-device 2: torch finds no CUDA device here; on the CPU, --jobs says" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "message"), [
    (GRID.replace("usadtm", "usadmt"), "entry 2 of runs: method='usadmt': choose one of "),
    (GRID.replace("mnist5k", "data/absent.npz"), "dataset='data/absent.npz': choose from mnist5k, cifar10, "),
    (GRID.replace("- method: usadtm", "- method: usadtm\n  unlabeled, n1, m1, gamma_l, gamma_u: "
                  "[[unknown, null, null, null, null]]"), "n1, m1, gamma_l, gamma_u = null: "),
])
def test_bad_input_is_refused_before_anything_starts(study, text, message, capsys):
    study.file.write_text(text)
    assert sweep.main([str(study.file), "--runs", str(study.runs)], command=command) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in (study.runs / "study").iterdir()] == ["fake.json"]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("is_complete", [True, False])
def test_other_images_under_the_same_name_are_refused(study, tmp_path, capsys, kind, is_complete):
    """Be something missing or not: else they would pass for what the finished runs were trained on."""
    if kind == "file":
        dataset = save_tiny(tmp_path)
    else:
        dataset = str(tmp_path / "photos")
        for part in ("train", "test"):
            for name in "ab":
                (tmp_path / "photos" / part / name).mkdir(parents=True)
                Image.new("L", (8, 8), ord(name)).save(tmp_path / "photos" / part / name / "0.png")
    study.file.write_text(f"name: study\npreset: cpu\ncommon: {{dataset: {dataset}, total_steps: 20}}\n"
                          "runs:\n- {method: supervised, seed: [0, 1]}\n")
    grid = load_grid(study.file, study.runs)
    for run in grid.runs[:None if is_complete else 1]:
        run.folder.mkdir(parents=True)
        fingerprint = load_data(dataset).fingerprint
        record = run.config.identity() | {"schema": 1, "data_sha256": fingerprint}
        (run.folder / "config.json").write_text(json.dumps(record))
        (run.folder / "result.json").write_text(json.dumps({"seconds": 1.0, "plain": {"accuracy": 0.5}}))
    sweep.check_inputs(grid)
    if kind == "file":
        save_tiny(tmp_path, x_test=np.zeros((60, 12, 12), dtype=np.uint8))
    else:
        Image.new("L", (8, 8), 7).save(tmp_path / "photos/train/a/1.png")
    assert sweep.main([str(study.file), "--runs", str(study.runs)], command=command) == 2
    assert "holds other images, or in another order, than the finished runs of" in capsys.readouterr().err


def test_a_source_that_is_not_finished_is_refused(study, tmp_path, capsys):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text("{}")
    study.file.write_text("name: study\npreset: cpu\ncommon: {dataset: mnist5k, total_steps: 20}\n"
                          f"runs:\n- {{method: supervised, rebalance: crt, source: {tmp_path / 'source'}}}\n")
    assert sweep.main([str(study.file), "--runs", str(study.runs)], command=command) == 2
    assert "source' is not finished, and mnist5k-supervised-crt" in capsys.readouterr().err


def test_lists_and_images_that_are_put_by_hand_are_asked_for(study, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "project_root", lambda: tmp_path)
    study.file.write_text("name: study\npreset: paper\ncommon: {dataset: semi_aves}\nruns:\n- {method: fixmatch}\n")
    assert sweep.main([str(study.file), "--runs", str(study.runs)], command=command) == 2
    assert f"dataset='semi_aves' is read from {tmp_path / 'data' / 'semi_aves'}, where" in capsys.readouterr().err


def test_runs_share_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def seen(*arguments):
        return [slot["CUDA_VISIBLE_DEVICES"] for slot in launch.local_slots(*arguments)]

    assert seen(None, None) == ["0", "1"]
    assert seen(None, 3) == ["0", "1", "0", "1", "0", "1"]
    assert seen(3, None) == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,5")
    assert seen(None, 2) == ["GPU-a", "5", "GPU-a", "5"]


def test_a_run_sees_the_gpu_of_its_slot_and_gives_it_back(study):
    engine = launch.Local([{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "4"}], 1, command)
    for _ in range(2):
        runs = [run for run in study.grid() if not (run.folder / "result.json").exists()][:2]
        jobs = [engine.start(run) for run in runs]
        assert not engine.has_room()
        wait_until(lambda jobs=jobs: None not in [job.poll() for job in jobs])
        seen = [(run.folder / "starts.txt").read_text().split()[2] for run in runs]
        assert sorted(seen) == ["3", "4"]


# ---- what it costs ----


def test_the_arithmetic_of_a_run_is_that_of_its_passes(study):
    """The paper's FixMatch + DASO step: three passes for 64 + 128 + 128 images, one for 64 in the moving average."""
    study.file.write_text(
        "name: study\npreset: paper\nruns:\n- dataset: cifar10\n  method: fixmatch\n"
        "  rebalance: ['', daso, 'la,daso']\n- dataset: cifar10\n  method: [supervised, distribution_estimate]\n"
        "- dataset: cifar10\n  method: fixmatch\n  mu: 4\n")
    pass_ = 428_703_744  # multiplications and additions of WRN-28-2's encoder on 32 x 32 pixels
    evaluations = 500 * 10_000
    counted = [flop(run.config.model_dump()) / pass_ - evaluations for run in study.grid()]
    assert counted == pytest.approx([250_000 * 64 * passes for passes in (15, 16, 16, 3, 3, 27)])


def test_an_estimate_is_that_of_runs_that_differ_in_the_seed_alone(study):
    runs = [run for run in study.grid() if run.config.method == "usadtm"]
    (runs[0].folder).mkdir()
    (runs[0].folder / "config.json").write_text(json.dumps(runs[0].config.identity() | {"schema": 1}))
    (runs[0].folder / "result.json").write_text(json.dumps({"seconds": 100, "plain": {"accuracy": 0.5}}))
    estimates, _ = estimate([run.config for run in study.grid()], runs[0].folder.parent)
    assert [each.measured for each in estimates] == [False, False, True, True, False, False]
    assert estimates[3].seconds == 110
    rate = flop(runs[0].config.model_dump()) / 100
    assert estimates[0].seconds == pytest.approx(10 + estimates[0].flop / rate)


# ---- real runs ----


@pytest.mark.slow
def test_real_runs_go_through_papermill_and_end_after_interruptions_like_undisturbed_ones(study, tmp_path):
    study.file.write_text(f"""
name: study
preset: cpu
common: {{dataset: {save_tiny(tmp_path)}, unlabeled: reversed, n1: 12, m1: 18, gamma_l: 4, n_val: 40, batch_size: 4,
          eval_steps: 4, eval_images: 30, flip: false, precision: fp32, channels_last: false}}
runs:
- name: trained
  method: fixmatch
  rebalance: daso
  total_steps: 300
  pretrain_steps: 12
- method: supervised
  rebalance: crt
  source: trained
  total_steps: 8
""")
    first, second = study.grid()
    process = study.start("--jobs", "2", module="dasolib.sweep")
    wait_until(lambda: step_of(first) > 0)
    process.send_signal(signal.SIGINT)
    study.finish(process, code=130)
    assert workers(study) == [] and not (first.folder / "result.json").exists()
    said = re.search(rf"Interrupted: {first.name}: saved at step (\d+) of 300; run again to continue",
                     (first.folder / launch.LOG).read_text())
    interrupted_at = torch.load(first.folder / "checkpoint.pt", weights_only=True)["step"]
    assert int(said[1]) == interrupted_at >= step_of(first)

    process = study.start("--jobs", "2", module="dasolib.sweep")
    wait_until(lambda: step_of(first) > interrupted_at)
    for pid in (process.pid, *workers(study)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert not (first.folder / "result.json").exists()

    study.finish(study.start("--jobs", "2", module="dasolib.sweep"))
    starts = json.loads((first.folder / "environment.json").read_text())["starts"]
    assert [start["from_step"] for start in starts][:2] == [0, interrupted_at] and len(starts) == 3
    assert {start["threads"] for start in starts} == {max(1, available_cores() // 2)}
    for run in (first, second):
        assert "Reading: " in (run.folder / "train.ipynb").read_text()
    undisturbed = first.config.model_copy(update={"threads": max(1, available_cores() // 2)})
    train(undisturbed, tmp_path / "undisturbed", progress=False)
    assert contents(first.folder) == contents(tmp_path / "undisturbed")


@pytest.mark.slow
def test_what_stopped_a_real_run_is_read_from_its_notebook(study, tmp_path):
    study.file.write_text(f"name: study\npreset: cpu\nruns:\n- dataset: {save_tiny(tmp_path)}\n  method: fixmatch\n"
                          "  total_steps: 4\n  unlabeled, n1, m1, gamma_l: [[equal, 1000, 10, 4]]\n")
    (run,) = study.grid()
    printed = study.finish(study.start(module="dasolib.sweep"), code=1)
    assert re.search(rf"{run.name}\n    ValueError: .*1000.*\n    {re.escape(str(run.folder / launch.LOG))}\n", printed)
    assert "ValueError" in (run.folder / "train.ipynb").read_text()
