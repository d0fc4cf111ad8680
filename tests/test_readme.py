"""Every command of the README is run: those of make by CI itself, all others here, shortened."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import papermill
import pytest
import yaml
from PIL import Image

from benchmarks.methods import combinations, format_rows
from dasolib.comparison import as_published, expected_runs
from dasolib.config import Config
from dasolib.grid import load_grid
from dasolib.results import format_table, load_runs, method_label, results_table
from dasolib.run_files import write_result

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S)
            for line in block.splitlines()]
RUN_BY_CI = ("make quickstart", "make test")  # .ci/run
RUN_ELSEWHERE = (
    "python -m benchmarks.methods --rounds 1",  # tests/test_benchmarks.py
    "python -m dasolib.sweep studies/table1.yaml --jobs 4",  # a smaller grid: tests/test_sweep.py
)
OF_THE_SHELL = ("source .venv/bin/activate", "mkdir -p runs/first runs/photos runs/alone")


def write_photos(folder):
    """Write a folder of tiny photos of two classes, with some unlabeled ones."""
    rng = np.random.default_rng(0)
    for place, n in {"train/cat": 40, "train/dog": 10, "test/cat": 4, "test/dog": 4, "unlabeled": 80}.items():
        (folder / place).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{i}.png")


def write_cifar10(file):
    """Write a file of CIFAR-10's size and name, so that the paper's split can be made of it."""
    labels = np.repeat(np.arange(10), 5000)
    images = np.broadcast_to((labels * 20).astype(np.uint8)[:, None, None, None], (50_000, 32, 32, 3))
    np.savez_compressed(file, x_train=images, y_train=labels, x_test=images[::500], y_test=labels[::500])


def test_the_readme_has_commands_and_ci_runs_those_of_make():
    assert len(COMMANDS) > 5
    ci = (ROOT / ".ci/run").read_text()
    for command in COMMANDS:
        if command.startswith("make"):
            assert command in RUN_BY_CI and command in ci


def run_command(command, folder):
    """Run a command of the README, a training for two steps, with its run folders in `folder`."""
    if "path/to/photos" in command:
        write_photos(folder / "photos")
        command = command.replace("path/to/photos", shlex.quote(str(folder / "photos"))) + " -p batch_size 8"
    if "dataset cifar10" in command:
        write_cifar10(folder / "cifar10.npz")
        command = command.replace("dataset cifar10", f"dataset {shlex.quote(str(folder / 'cifar10.npz'))}")
    if command.startswith("papermill"):
        command = re.sub(r" -p total_steps \d+", "", command).replace("runs/", f"{shlex.quote(str(folder))}/runs/")
        subprocess.run(shlex.split(OF_THE_SHELL[1]), cwd=folder, check=True)
        command += " -p total_steps 2 -p threads 1 --no-progress-bar"  # other tests have the other cores
        command += "" if "-p precision" in command else " -p precision fp32"  # bf16 is slow on CPUs that have none
    if "preset paper" in command:  # in the end its network is tried on all unlabeled and validation images
        command += " -p m1 300 -p batch_size 8 -y 'settings: {n_val: 100}'"
    program, *arguments = shlex.split(command)
    programs = {"python": [sys.executable], "papermill": [sys.executable, "-m", "papermill"]}
    ran = subprocess.run([*programs[program], *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
                         env=os.environ | {"MPLBACKEND": "agg"})
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))])
def test_settings_given_to_the_notebook_are_none_that_it_has_as_parameters(document):
    """Wherever a document has them, be it in a command that no test runs: the notebook would refuse it."""
    text = (ROOT / document).read_text(encoding="utf-8")
    parameters = papermill.inspect_notebook(str(ROOT / "notebooks/train.ipynb"))
    for settings in re.findall(r'-y "settings: (.*?)"', text):
        assert yaml.safe_load(settings).keys() <= Config.model_fields.keys() - parameters.keys()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all commands put what they make; some start from what others have made."""
    return tmp_path_factory.mktemp("readme")


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("make")
                                     and c not in (*OF_THE_SHELL, *RUN_ELSEWHERE)])
def test_every_command_of_the_readme_runs(command, folder):
    if source := re.search(r"-p source (\S+)", command):
        file = folder / source[1] / "result.json"
        if not file.exists():  # where this test is run alone
            (before,) = [other for other in COMMANDS if other.endswith(f"-p run_dir {source[1]}")]
            run_command(before, folder)
        result = json.loads(file.read_text())
        if "unlabeled_counts" in result:  # two steps give no estimate that could be accepted
            write_result(file.parent, result | {"unlabeled_counts": [86.0] * 10})
    run_command(command, folder)
    if "photos" in command:
        assert (folder / "runs/photos/predictions.csv").exists()


def test_the_table_of_results_is_that_of_the_committed_runs():
    """And of no others: whoever trains more of the study has a table of their own."""
    if not (ROOT / ".git").exists():
        pytest.skip("no repository, as in a source archive")
    listed = subprocess.run(["git", "ls-files", "runs/cpu_study"], cwd=ROOT, capture_output=True, text=True, check=True)
    committed = {Path(file).parent.name for file in listed.stdout.splitlines() if file.endswith("result.json")}
    shown, by = ("FixMatch", "FixMatch + LA", "FixMatch + DASO"), ("dataset", "unlabeled", "method")
    runs = [run for run in as_published(load_runs(ROOT / "runs/cpu_study"))
            if run.name in committed and run.label in shown]
    configs = [run.config for name in ("wide", "deep") for run in load_grid(ROOT / f"studies/cpu_{name}.yaml").runs]
    planned = [run for run in expected_runs(configs, runs, by) if run[2] in shown]
    assert f"```text\n{format_table(results_table(runs, by=by, expected=planned))}\n```" in README
    runs = load_runs(ROOT / "runs/uniform")
    settings = [("cifar10", "uniform", method + daso, 0) for method in ("MixMatch", "Mean Teacher")
                for daso in ("", " + DASO")]
    assert f"```text\n{format_table(results_table(runs, expected=settings))}\n```" in README


def test_the_table_of_costs_is_that_of_the_committed_measurement():
    rows = json.loads((ROOT / "benchmarks/methods.json").read_text())["methods"]
    assert [row["method"] for row in rows] == [method_label(*combination) for combination in combinations()]
    assert f"```text\n{format_rows(rows)}\n```" in README
