"""The files around the package agree with each other: dependencies, versions, commands, what git keeps."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import golden_folders

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def ranges(requirements):
    """Name -> version range, names in their canonical form; refuses a name that is listed twice."""
    parsed = [Requirement(text) for text in requirements]
    found = {canonicalize_name(r.name): r.specifier for r in parsed}
    assert len(found) == len(parsed), f"listed twice among {[r.name for r in parsed]}"
    return found


EXTRAS = PROJECT["optional-dependencies"]
DECLARED = ranges(PROJECT["dependencies"] + EXTRAS["test"])
OPTIONAL = ranges(EXTRAS["benchmarks"])  # need not be installed, so in no environment


def lock_lines():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_environment_yml_has_the_names_and_ranges_of_pyproject():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert entries[-2:] == ["pip", {"pip": ["-e ."]}]
    conda = ranges(entries[:-2])
    for name, on_conda in {"torch": "pytorch", "ray": "ray-core"}.items():  # conda-forge's names
        conda[name] = conda.pop(on_conda)
    assert str(conda.pop("python")) == PROJECT["requires-python"]
    assert conda == DECLARED


def test_the_tests_install_ray():
    assert ranges(EXTRAS["ray"]) == {"ray": DECLARED["ray"]}


def test_lock_pins_every_declared_package_inside_its_range():
    locked = {name: str(pin).removeprefix("==") for name, pin in ranges(lock_lines()).items()}
    outside = {name: locked.get(name) for name, wanted in DECLARED.items() if locked.get(name) not in wanted}
    assert not outside


def test_lock_is_sorted_and_each_line_is_one_exact_version_from_any_registry():
    lines = lock_lines()
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*( ; .+)?", line)] == []
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted(names)


def test_lock_asks_for_cuda_wheels_on_linux_x86_64_only():
    cuda = [r for r in map(Requirement, lock_lines()) if re.match(r"nvidia-|cuda-|triton$", r.name)]
    assert cuda
    linux = {"platform_system": "Linux", "platform_machine": "x86_64"}
    mac, arm = {"platform_system": "Darwin", "platform_machine": "arm64"}, linux | {"platform_machine": "aarch64"}
    assert all(r.marker.evaluate(linux) and not r.marker.evaluate(mac) and not r.marker.evaluate(arm) for r in cuda)


def sources():
    """Yield (path, Python text) of every module, test and notebook cell by cell, line magics left out."""
    for folder in ("dasolib", "tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                yield path, re.sub(r"^\s*[%!].*$", "", "".join(cell["source"]), flags=re.MULTILINE)


def imported(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def test_every_imported_package_is_declared_in_pyproject():
    ours = set(sys.stdlib_module_names) | {"dasolib", "tests", "benchmarks"}
    distributions = packages_distributions()
    undeclared = {
        f"{name} in {path.relative_to(ROOT)}"
        for path, text in sources()
        for name in set(imported(text)) - ours
        if not (DECLARED | OPTIONAL).keys() & {canonicalize_name(d) for d in distributions.get(name, [name])}
    }
    assert not undeclared


def test_changelog_has_a_section_for_what_is_being_built():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {"Unreleased", PROJECT["version"]} & set(headings)


def test_citation_names_the_paper_and_the_version_of_pyproject():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert paper["title"].startswith("DASO:")
    assert {"value": "arXiv:2106.05682"}.items() <= paper["identifiers"][0].items()


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[-2:] == ["make test", "make quickstart"]


def make_commands(markdown):
    """Targets of each `make ...` in the code spans and fenced blocks of a Markdown text."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL))
    found = set()
    for line in "\n".join(blocks + spans).splitlines():
        for command in re.split(r"&&|;", line.partition("#")[0]):
            words = command.removeprefix("$ ").split()
            if words[:1] == ["make"]:
                found |= {word for word in words[1:] if "=" not in word and not word.startswith("-")}
    return found


@pytest.mark.parametrize(
    ("markdown", "targets"),
    [
        ("Then make sure of it.", set()),
        ("Run `make test` or `make -n PYTHON=python3.12 lab`.", {"test", "lab"}),
        ("```bash\ngit clone x && cd x && make quickstart  # make tea\n$ make a b\n```\n", {"quickstart", "a", "b"}),
    ],
)
def test_make_commands_are_found_in_code_and_not_in_prose(markdown, targets):
    assert make_commands(markdown) == targets


def test_every_make_target_the_readme_names_exists():
    asked = make_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {"quickstart", "test"} <= asked
    assert asked <= set(re.findall(r"^([a-z]+):(?!=)", MAKEFILE, flags=re.MULTILINE))


def test_make_alone_lists_every_target_with_what_it_does():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (phony,) = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.MULTILINE)
    assert re.findall(r"^make (\w+)  .+$", listed, flags=re.MULTILINE) == phony.split()


@pytest.fixture(scope="module")
def ignored(tmp_path_factory):
    """Say whether the project's .gitignore ignores a path; asked in a new repository, where nothing is tracked."""
    folder = tmp_path_factory.mktemp("repository")
    # Without this a git hook's GIT_DIR would win over the working directory.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run(["git", "init", "-q", folder], env=environment, check=True)
    (folder / ".gitignore").write_text((ROOT / ".gitignore").read_text(encoding="utf-8"))

    def ask(path):
        answer = subprocess.run(["git", "check-ignore", "-q", path], cwd=folder, env=environment)
        assert answer.returncode in (0, 1)  # 128: git itself failed
        return answer.returncode == 0

    return ask


@pytest.mark.parametrize(
    "path",
    [
        "runs/cifar10_lt/fixmatch-s0/config.json",
        "runs/cifar10_lt/fixmatch-s0/environment.json",
        "runs/cifar10_lt/fixmatch-s0/metrics.jsonl",
        "runs/cifar10_lt/fixmatch-s0/pseudo_labels.npz",
        "runs/cifar10_lt/fixmatch-s0/result.json",
        "tests/data/golden/fixmatch.npz",
        "dasolib/data.py",
    ],
)
def test_git_keeps_sources_and_the_small_results_of_studies(ignored, path):
    assert not ignored(path)


@pytest.mark.parametrize(
    "path",
    [
        "runs/cifar10_lt/fixmatch-s0/checkpoint.pt",
        "runs/cifar10_lt/fixmatch-s0/outputs.npz",
        "runs/cifar10_lt/fixmatch-s0/model.json",
        "runs/cifar10_lt/fixmatch-s0/train.ipynb",
        "runs/cifar10_lt/fixmatch-s0/tensorboard/config.json",
        "runs/cifar10_lt/notes.txt",
        "runs/single-run/result.json",
        "runs/quickstart/quickstart.html",
        "runs/quickstart/fixmatch/result.json",
        "data/cifar10.npz",
        ".venv/bin/python",
        "dasolib/methods/__pycache__/fixmatch.cpython-311.pyc",
        "notebooks/.ipynb_checkpoints/train-checkpoint.ipynb",
    ],
)
def test_git_ignores_large_results_data_and_caches(ignored, path):
    assert ignored(path)


def test_reference_folders_are_the_shipped_one_and_the_one_the_user_names(monkeypatch, tmp_path):
    shipped = ROOT / "tests" / "data" / "golden"
    monkeypatch.delenv("DASO_GOLDEN", raising=False)
    assert golden_folders() == [shipped]
    monkeypatch.setenv("DASO_GOLDEN", str(tmp_path))
    assert golden_folders() == [shipped, tmp_path.resolve()]


def test_a_missing_reference_folder_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("DASO_GOLDEN", str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="DASO_GOLDEN must name an existing folder, got '.*absent'"):
        golden_folders()


def test_the_runs_of_the_study_are_tracked_in_at_most_15_megabytes():
    if not (ROOT / ".git").exists():
        pytest.skip("no repository, as in a source archive")
    listed = subprocess.run(["git", "ls-files", "runs/cpu_study"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0 < sum((ROOT / file).stat().st_size for file in listed.stdout.splitlines()) <= 15e6
