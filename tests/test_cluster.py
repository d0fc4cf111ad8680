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
import yaml

from dasolib import cluster, sweep
from dasolib.grid import load_grid
from dasolib.launch import SWEEP_LOCK, is_in_work
from dasolib.progress import last_record
from dasolib.run_folder import take_lock

ROOT = Path(__file__).resolve().parents[1]
STEPS = 480  # more than tests need otherwise: a node must be lost in the middle of a run
GRID = f"""
name: study
preset: cpu
common:
  {{dataset: mnist5k, method: fixmatch, total_steps: {STEPS}, batch_size: 4, eval_steps: 40,
   precision: fp32}}
runs:
- rebalance: ["", daso, la]
"""
DEADLINE = 600  # seconds that the test waits for what must happen


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)


def step_of(run):
    return (last_record(run.folder) or {"step": 0})["step"]


def two_are_in_the_first_half(runs):
    # Their first checkpoint is asked for, not the record that is written before it: without one a run begins anew.
    return sum((run.folder / "checkpoint.pt").exists() and step_of(run) < STEPS // 2 for run in runs) == 2


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "grid.yaml").write_text(GRID)
    return tmp_path / "grid.yaml"


@pytest.fixture
def nodes(monkeypatch):
    """Two nodes with a core each, of which the second can be lost."""
    pytest.importorskip("ray", reason="Ray is not installed; it is the optional extra 'ray'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # else tests that run beside it take the cores from its tasks
    memory = {"object_store_memory": 80 * 2 ** 20}
    both = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **memory})
    both.add_node(num_cpus=1, **memory)
    yield both
    both.shutdown()


@pytest.mark.slow
def test_runs_of_a_lost_node_go_on_elsewhere_and_every_result_arrives(grid, nodes):
    runs = load_grid(grid, grid.parent / "runs").runs
    command = [sys.executable, "-m", "dasolib.sweep", grid, "--runs", grid.parent / "runs", "--engine", "ray",
               "--address", nodes.address]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_until(lambda: two_are_in_the_first_half(runs))  # one on each node
        (lost,) = nodes.worker_nodes
        raylet = psutil.Process(lost.all_processes["raylet"][0].process.pid)
        of_lost = raylet.children(recursive=True)
        for worker in of_lost:
            worker.suspend()  # so that its run cannot end while the node goes
        nodes.remove_node(lost, allow_graceful=False)
        for worker in of_lost:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        printed, _ = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert process.returncode == 0, printed
    assert "study: 3 of 3 runs are finished in " in printed
    starts = [[start["from_step"] for start in json.loads((run.folder / "environment.json").read_text())["starts"]]
              for run in runs]
    assert sorted(map(len, starts)) == [1, 1, 2]  # nothing but the lost run was begun twice
    assert all(steps[0] == 0 < steps[-1] for steps in starts if len(steps) > 1)
    for run in runs:
        assert json.loads((run.folder / "result.json").read_text())["steps"] == STEPS
        assert "Reading: " in (run.folder / "train.ipynb").read_text()


@pytest.mark.slow
def test_a_cluster_runs_what_it_can_and_says_what_it_cannot(grid, nodes, tmp_path, capsys):
    ray = pytest.importorskip("ray")
    of_8_steps = GRID.replace(str(STEPS), "8")
    grid.write_text(of_8_steps.replace('["", daso, la]', '["", la]').replace("batch_size: 4", "n1: 10"))
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
def test_interrupted_it_stops_all_tasks_and_the_same_command_goes_on(grid, nodes):
    runs = load_grid(grid, grid.parent / "runs").runs
    command = [sys.executable, "-m", "dasolib.sweep", grid, "--runs", grid.parent / "runs", "--engine", "ray",
               "--address", nodes.address]

    def start():
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    process = start()
    try:
        wait_until(lambda: two_are_in_the_first_half(runs))  # the third waits for a core
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == 130, printed
        assert printed.index("stopping 3 runs") < printed.index("interrupted; nothing is lost")
        assert not any(is_in_work(run.folder) or (run.folder / "result.json").exists() for run in runs)
        steps = [step_of(run) for run in runs]
        process = start()
        printed, _ = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert process.returncode == 0, printed
    starts = [[start["from_step"] for start in json.loads((run.folder / "environment.json").read_text())["starts"]]
              for run in runs]
    for run_starts, step in zip(starts, steps, strict=True):
        assert run_starts == [0] if step == 0 else run_starts[0] == 0 < run_starts[1] <= step


@pytest.mark.slow
def test_runs_share_a_gpu_as_they_are_told(grid, nodes, monkeypatch, capsys):
    """The GPU is one that a node of four cores says it has; what a run does is to tell when, and which GPU it sees."""
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # else Ray believes it, not the node
    nodes.add_node(num_cpus=4, num_gpus=1, object_store_memory=80 * 2 ** 20)
    grid.write_text(GRID.replace('["", daso, la]', '["", daso, la, "la,daso"]'))
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
    commands = re.findall(r"python -m dasolib\.sweep (studies/.*?)(?:['\"]?)$", text, re.M)
    assert len(commands) == 4
    for command in commands:
        given = sweep.parse_arguments(shlex.split(command))
        assert given.engine == "ray" and (ROOT / given.file).exists()
    (job,) = re.findall("```yaml\n(.*?)```", text, re.S)
    assert yaml.safe_load(job)["kind"] == "RayJob"
