"""A sweep on a real Ray cluster of two nodes, both on this computer."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from dasolib import cluster, sweep
from dasolib.grid import load_grid
from dasolib.launch import LOG, SWEEP_LOCK, is_in_work
from dasolib.progress import is_finished, last_record
from dasolib.run_folder import take_lock
from tests.tiny import save_tiny

ROOT = Path(__file__).resolve().parents[1]
STEPS = 400  # more than tests need otherwise: a run must be stopped in the middle
GRID = f"""
name: study
preset: cpu
common:
  {{dataset: DATASET, method: fixmatch, total_steps: {STEPS}, unlabeled: reversed, n1: 12, m1: 18, gamma_l: 4,
   n_val: 40, batch_size: 4, eval_steps: 20, eval_images: 30, flip: false, precision: fp32, channels_last: false}}
runs:
- rebalance: ["", daso]
"""
MEMORY = {"object_store_memory": 80 * 2 ** 20}  # of a node
DEADLINE = 600  # seconds that the test waits for what must happen


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def step_of(run):
    return (last_record(run.folder) or {"step": 0})["step"]


def has_checkpoint(run):
    # The record of an evaluation says nothing of it, as it is written before: without one a run begins anew.
    return (run.folder / "checkpoint.pt").exists()


def processes_of(raylet, run):
    """The processes of a node that work on a run and its kernel, or none: one of them holds the run's lock."""
    with contextlib.suppress(psutil.NoSuchProcess):  # one that ends while it is asked
        for worker in raylet.children():
            if run.folder / SWEEP_LOCK in [Path(file.path) for file in worker.open_files()]:
                return [worker, *worker.children(recursive=True)]
    return []


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "grid.yaml").write_text(GRID.replace("DATASET", save_tiny(tmp_path)))
    return tmp_path / "grid.yaml"


@pytest.fixture(scope="module")
def head():
    """A cluster whose first node has a core."""
    pytest.importorskip("ray", reason="Ray is not installed; it is the optional extra 'ray'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # else tests that run beside it take the cores from its tasks
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **MEMORY})
        yield started
        started.shutdown()


@pytest.fixture
def nodes(head):
    """The cluster with a second node of a core, which can be lost."""
    head.add_node(num_cpus=1, **MEMORY)
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node)


@pytest.mark.slow
def test_runs_of_a_lost_node_go_on_elsewhere_and_every_result_arrives(grid, nodes):
    runs = load_grid(grid, grid.parent / "runs").runs
    command = [sys.executable, "-m", "dasolib.sweep", grid, "--runs", grid.parent / "runs", "--engine", "ray",
               "--address", nodes.address]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    (lost,) = nodes.worker_nodes
    raylet = psutil.Process(lost.all_processes["raylet"][0].process.pid)
    halted = []

    def is_halted_in_a_run():
        for run in runs:
            if has_checkpoint(run) and not is_finished(run.folder):
                for worker in processes_of(raylet, run):
                    worker.suspend()  # so that its run cannot end while the node goes
                    halted.append(worker)
        return halted

    try:
        wait_until(is_halted_in_a_run)
        nodes.remove_node(lost, allow_graceful=False)
        for worker in halted:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        printed, _ = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert process.returncode == 0, printed
    assert "study: 2 of 2 runs are finished in " in printed
    starts = [[start["from_step"] for start in json.loads((run.folder / "environment.json").read_text())["starts"]]
              for run in runs]
    assert sorted(map(len, starts)) == [1, 2]  # nothing but the lost run was begun twice
    assert all(steps[0] == 0 < steps[-1] for steps in starts if len(steps) > 1)
    for run in runs:
        assert json.loads((run.folder / "result.json").read_text())["steps"] == STEPS
        assert "Reading: " in (run.folder / "train.ipynb").read_text()


@pytest.mark.slow
def test_a_cluster_runs_what_it_can_and_says_what_it_cannot(grid, nodes, tmp_path, capsys):
    ray = pytest.importorskip("ray")
    grid.write_text(grid.read_text().replace('["", daso]', '["", la]').replace("gamma_l: 4", "gamma_l: 40"))
    options = [str(grid), "--runs", str(tmp_path / "runs"), "--engine", "ray", "--address", nodes.address]
    try:
        assert sweep.main([*options, "--seeds-per-device", "2"]) == 2
        assert "--seeds-per-device 2: this Ray cluster has no GPU; a run takes 1 CPU core" in capsys.readouterr().err
        ray.shutdown()
        assert sweep.main(options) == 1
        printed = capsys.readouterr().out
        assert "2 failed:" in printed and printed.count("ValueError: class ") == 4
        for run in load_grid(grid, tmp_path / "runs").runs:
            assert "would have no labeled image" in (run.folder / "sweep.log").read_text()
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_interrupted_it_stops_all_tasks_and_the_same_command_goes_on(grid, head):
    runs = load_grid(grid, grid.parent / "runs").runs
    command = [sys.executable, "-m", "dasolib.sweep", grid, "--runs", grid.parent / "runs", "--engine", "ray",
               "--address", head.address]

    def start():
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    process = start()
    try:
        wait_until(lambda: any(map(has_checkpoint, runs)))  # one is in work, and the other waits for the only core
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == 130, printed
        assert printed.index("stopping 2 runs") < printed.index("interrupted; nothing is lost")
        assert not any(is_in_work(run.folder) or (run.folder / "result.json").exists() for run in runs)
        steps = sorted(map(step_of, runs))
        assert steps[0] == 0 < steps[1]
        (stopped,) = filter(has_checkpoint, runs)
        saved = torch.load(stopped.folder / "checkpoint.pt", weights_only=True)["step"]
        assert f"saved at step {saved:,} of {STEPS:,}; run again to continue" in (stopped.folder / LOG).read_text()
        process = start()
        printed, _ = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert process.returncode == 0, printed
    waited, interrupted = sorted(
        [start["from_step"] for start in json.loads((run.folder / "environment.json").read_text())["starts"]]
        for run in runs)
    assert waited == [0] and interrupted == [0, saved] and saved >= steps[1]


@pytest.mark.slow
def test_runs_share_a_gpu_as_they_are_told(grid, nodes, monkeypatch, capsys):
    """The GPU is one that a node of four cores says it has; what a run does is to tell when, and which GPU it sees."""
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # else Ray believes it, not the node
    nodes.add_node(num_cpus=4, num_gpus=1, **MEMORY)
    grid.write_text(grid.read_text().replace('["", daso]', '["", daso, la, "la,daso"]'))
    for options, at_a_time in ((["--seeds-per-device", "2"], 2), ([], 1)):
        def train(folder, parameters, at_a_time=at_a_time):
            folder = Path(folder)
            (folder / "gpu").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
            while len(list(folder.parent.glob("*/gpu"))) < at_a_time:
                time.sleep(0.1)
            time.sleep(1)  # in which others would start that have room
            (folder / "result.json").write_text(json.dumps({"seconds": 1.0, "plain": {"accuracy": 0.5}}))
            return ""

        monkeypatch.setattr(cluster, "train", train)
        folder = grid.parent / f"runs_{at_a_time}"
        try:
            assert sweep.main([str(grid), "--runs", str(folder), "--engine", "ray", "--address", nodes.address,
                               *options]) == 0
        finally:
            ray.shutdown()
        runs = load_grid(grid, folder).runs
        assert {(run.folder / "gpu").read_text() for run in runs} == {"0"}
        events = sorted(((run.folder / name).stat().st_mtime, change) for run in runs
                        for name, change in (("gpu", 1), ("result.json", -1)))
        assert max(sum(change for _, change in events[:i + 1]) for i in range(len(events))) == at_a_time


def test_without_a_cluster_at_the_address_nothing_starts(grid, tmp_path, capsys):
    pytest.importorskip("ray", reason="Ray is not installed; it is the optional extra 'ray'")
    options = [str(grid), "--runs", str(tmp_path / "runs"), "--engine", "ray", "--address", "127.0.0.1:1"]
    assert sweep.main(options) == 2
    assert "--address 127.0.0.1:1: no Ray cluster there: " in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_without_ray_the_engine_is_refused_and_nothing_else_needs_it(grid, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "ray", None)
    assert sweep.main([str(grid), "--runs", str(tmp_path / "runs"), "--engine", "ray"]) == 2
    assert "--engine ray: Ray is not installed; pip install -e '.[ray]'" in capsys.readouterr().err
    code = "import sys, dasolib.sweep; print('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


def test_a_task_leaves_a_run_alone_that_another_process_has(grid, tmp_path):
    run = load_grid(grid, tmp_path / "runs").runs[0]
    run.folder.mkdir(parents=True)
    with take_lock(run.folder / SWEEP_LOCK):
        assert cluster.train(str(run.folder), {}) == cluster.BUSY
    (run.folder / "result.json").write_text("{}")
    assert cluster.train(str(run.folder), {}) == ""


def test_the_commands_of_the_page_on_clusters_are_those_of_a_sweep():
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    commands = re.findall(r"python -m dasolib\.sweep (studies/.*?)(?:['\"]?| &)$", text, re.M)
    given = [sweep.parse_arguments(shlex.split(command)) for command in commands]
    assert [each.engine for each in given].count("ray") == 4 and len(given) == 5  # one of a single node
    assert all((ROOT / each.file).exists() for each in given)
    (job,) = re.findall("```yaml\n(.*?)```", text, re.S)
    assert yaml.safe_load(job)["kind"] == "RayJob"
