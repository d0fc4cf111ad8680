"""Every notebook, run by papermill from both folders that processes start it in, and as it is stored."""

import ast
import functools
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import papermill
import pytest
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import load_notebook_node

from dasolib.config import make_config
from dasolib.papermill_errors import text_of
from dasolib.results import format_estimate, load_run
from dasolib.train import run
from tests.hand_made import make_run
from tests.tiny import save_tiny, tiny_arrays

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
TABLES = {"cifar10_lt": 110, "cifar100_lt": 84, "stl10_lt": 68, "semi_aves": 24}  # and how many published cells
STUDIES = {"ablations", "cpu_study", "training_curves", "confusion"}
# Of committed runs; only these store outputs.
READ_ONLY = {"pseudo_label_bias", "other_learners", "features", "open_set", *TABLES, *STUDIES}

TINY = {"n1": 12, "m1": 24, "gamma_l": 4.0, "batch_size": 4, "unlabeled": "reversed", "threads": 1, "device": "cpu"}

slow = pytest.mark.slow
each_notebook = pytest.mark.parametrize("name", NAMES)


@functools.cache
def stored(name):
    return load_notebook_node(str(NOTEBOOKS / f"{name}.ipynb"))


class OneKernel(NBClientEngine):
    """An engine of papermill with one kernel for all notebooks, as each start takes seconds to import torch.

    A notebook finds nothing of those before it but the modules that they have imported.
    """

    manager = None

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **settings):
        client = ClearedClient(nb_man, km=cls.manager, kernel_name=kernel_name, timeout=None)
        client.execute(cleanup_kc=False)  # which leaves the kernel alive
        client.kc.stop_channels()
        cls.manager = client.km


class ClearedClient(PapermillNotebookClient):
    """Empties the kernel and goes to this process's working folder before the first cell."""

    def papermill_execute_cells(self):
        clear = f"get_ipython().reset(new_session=True); __import__('os').chdir({os.getcwd()!r})"
        self.wait_for_reply(self.kc.execute(clear, store_history=False))
        super().papermill_execute_cells()


papermill_engines.register("one_kernel", OneKernel)


def execute(name, folder, parameters=None, *, cwd=ROOT):
    """Run a notebook with papermill and return it, executed; raises if a cell does. Those that train start a kernel."""
    out = folder / f"{name}-{cwd.name}.ipynb"
    notebook = papermill.execute_notebook(NOTEBOOKS / f"{name}.ipynb", out, parameters or {}, cwd=cwd,
                                          progress_bar=False, engine_name="one_kernel" if name in READ_ONLY else None)
    assert outputs_of(notebook, "error") == []
    return notebook


def outputs_of(notebook, kind):
    return [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == kind]


def printed(notebook):
    return "".join(output.text for output in outputs_of(notebook, "stream") if output.name == "stdout")


def reading(notebook):
    """Return the last thing printed, which is the line of reading; a kernel may hand it over in parts."""
    line = printed(notebook).splitlines()[-1]
    assert line.startswith("Reading: ")
    return line


def pictures(notebook):
    shown = outputs_of(notebook, "display_data") + outputs_of(notebook, "execute_result")
    return [output.data["image/png"] for output in shown if "image/png" in output.data]


@each_notebook
def test_a_notebook_is_stored_whole_and_tied_to_no_machine(name):
    notebook = stored(name)
    text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < 750_000
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    ids = [cell["id"] for cell in json.loads(text)["cells"]]
    assert len(set(ids)) == len(ids)
    assert notebook.metadata.kernelspec.name == "python3"
    assert outputs_of(notebook, "error") == []
    said = "".join(json.dumps(output) for kind in ("stream", "display_data", "execute_result")
                   for output in outputs_of(notebook, kind))
    assert not re.search(r'["\s(=\']/[a-z]+/|[A-Z]:\\\\', said)  # an absolute path


@each_notebook
def test_a_notebook_is_stored_as_jupyterlab_saves_it(name):
    """So that opening and saving it changes nothing in git, but for the version of another Python."""
    text = (NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert text == json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    for cell in notebook["cells"]:
        streams = [output["text"] for output in cell.get("outputs", ()) if output["output_type"] == "stream"]
        for lines in (cell["source"], *streams):
            assert lines == "".join(lines).splitlines(keepends=True)
    assert re.fullmatch(r"3\.\d+\.\d+", notebook["metadata"]["language_info"].pop("version"))
    assert notebook["metadata"] == {  # as the kernel of ipykernel describes itself
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"codemirror_mode": {"name": "ipython", "version": 3}, "file_extension": ".py",
                          "mimetype": "text/x-python", "name": "python", "nbconvert_exporter": "python",
                          "pygments_lexer": "ipython3"}}


@each_notebook
def test_outputs_are_stored_where_they_come_from_committed_runs_and_nowhere_else(name):
    for cell in stored(name).cells:
        assert "execution" not in cell.metadata  # times, which differ each time it is run
        if name not in READ_ONLY:
            assert cell.get("outputs", []) == [] and cell.get("execution_count") is None
    assert name not in READ_ONLY or "Reading: " in printed(stored(name))


def test_make_checks_the_outputs_of_exactly_these_notebooks():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    (names,) = re.findall(r"^STORED := (.+)$", makefile, flags=re.MULTILINE)
    assert set(names.split()) == READ_ONLY


@each_notebook
def test_a_notebook_declares_its_parameters_and_checks_them_right_after(name):
    cells = stored(name).cells
    (at,) = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    declaration = re.compile(r"\w+: [\w |]+ = .+  # .+")  # a name, its type, a default and what it is
    lines = [line for line in cells[at].source.splitlines() if not line.startswith("#")]
    assert all(declaration.fullmatch(line) for line in lines)
    assert not cells[at].source.startswith("# Parameters")
    assert cells[at + 1].source == stored("train").cells[2].source
    assert cells[at + 1].source.endswith("check_parameters(In)")


def test_a_kernel_of_another_python_is_called_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "dasolib.config", None)  # as if it could not be imported
    with pytest.raises(ModuleNotFoundError, match="dasolib.config.*: this kernel is of another Python; ch"):
        exec(stored("train").cells[2].source)


SHELL = """
from IPython.core.interactiveshell import InteractiveShell
from dasolib.notebooks import show_errors_in

shell = InteractiveShell()
show_errors_in(shell)
for cell in {cells!r}:
    print("=====")
    shell.run_cell(cell)
"""
SENTENCES = {  # a cell, and how many frames it ends with
    "from dasolib.papermill_errors import text_of": 0,
    "from dasolib.run_folder import resolve; resolve(1)": 0,  # what this package says is wrong,
    "raise ValueError(\n    'path=1: must be text')": 0,  # or a cell
    "%tb": 1,
    "def f(): raise ValueError('path=1: must be text')\nf()": 2,  # raised by no line that begins so
    "from pathlib import Path; Path('/nowhere/run').mkdir()": 0,  # a place that cannot be written
    "import json; json.loads('{')": 4,  # a fault, perhaps
    "import time\ndef g():\n    raise KeyboardInterrupt\ng()": 0,
}


@pytest.mark.parametrize("everything", ["", "1"])
def test_what_is_wrong_in_the_input_is_one_sentence_in_a_notebook(everything, tmp_path):
    ran = subprocess.run([sys.executable, "-c", SHELL.format(cells=list(SENTENCES))], capture_output=True, text=True,
                         env=os.environ | {"IPYTHONDIR": str(tmp_path), "DASO_TRACEBACK": everything})
    said = re.sub(r"\x1b\[[\d;]*m", "", ran.stdout).split("=====\n")[1:]
    frames = [len(re.findall("^(?:File|Cell) ", part, re.MULTILINE)) for part in said]
    if everything:
        assert all(n >= least for n, least in zip(frames, SENTENCES.values(), strict=True)) and sum(frames) > 11
    else:
        assert frames == list(SENTENCES.values())
        assert said[1].split("\n\n")[1].strip() == "ValueError: path=1: must be text, or a pathlib.Path"


@pytest.mark.parametrize(("error", "last"), [
    (PapermillExecutionError(3, 4, "run()", "ValueError", "n1=0", ["use %tb", "ValueError: n1=0"]), "ValueError: n1=0"),
    (PapermillExecutionError(1, 2, "# Parameters\nseed = 1\nbatch-size = 3\n", "SyntaxError", "", ["SyntaxError: no"]),
     "batch-size: cannot be a parameter, whose words are joined by _; papermill --help-notebook lists those of a "
     "notebook"),
    (type("DeadKernelError", (Exception,), {})("Kernel died"), "Run the same command again to resume."),
])
def test_papermill_says_what_a_notebook_ended_with_and_not_where_it_noticed(error, last):
    assert text_of(error).endswith(last) and "site-packages" not in text_of(error)
    assert text_of(KeyError("a fault of papermill")) is None


@slow
def test_the_command_line_of_papermill_ends_in_one_sentence(tmp_path):
    """With the entry point as installed, or as pyproject.toml has it where the package was installed before that."""
    about = tmp_path / "path" / "entry-0.dist-info"
    about.mkdir(parents=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (point,) = project["entry-points"]["papermill.engine"].items()
    (about / "entry_points.txt").write_text("[papermill.engine]\n{} = {}\n".format(*point))
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: entry\nVersion: 0\n")
    path = os.pathsep.join([str(ROOT), str(tmp_path / "path"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "papermill", NOTEBOOKS / "train.ipynb", tmp_path / "out.ipynb", "--cwd", ROOT,
               "--no-progress-bar", "-p", "dataset", "nowhere"]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("ValueError: dataset")
    assert "Traceback" not in ran.stderr and "site-packages" not in ran.stderr and ".py" not in ran.stderr
    (error,) = outputs_of(load_notebook_node(str(tmp_path / "out.ipynb")), "error")
    assert "nowhere" in error.traceback[-1] and ".py" not in "".join(error.traceback)


@each_notebook
def test_a_notebook_opens_with_its_question_and_the_published_answer(name):
    first = stored(name).cells[0].source
    assert "?" in first.splitlines()[0]
    assert "Published answer" in first and "2106.05682" in first


@slow
def test_an_unknown_parameter_is_refused_by_name(tmp_path):
    """By the line behind its parameters that every notebook has."""
    with pytest.raises(PapermillExecutionError, match="sead=1: this notebook has no such parameter; choose from"):
        execute("train", tmp_path, {"sead": 1})


@slow
def test_train_reads_a_finished_run_and_prints_the_same_from_another_folder(tmp_path):
    parameters = TINY | {"dataset": save_tiny(tmp_path), "run_dir": str(tmp_path / "run"), "total_steps": 3,
                         "rebalance": "daso,la"}
    trained = execute("train", tmp_path, parameters, cwd=ROOT)
    stamp = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    again = execute("train", tmp_path, parameters, cwd=NOTEBOOKS)
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == stamp
    assert reading(again) == reading(trained)
    assert pictures(again) == pictures(trained) and len(pictures(trained)) == 2
    assert "FixMatch + LA + DASO on " in reading(trained)
    result = load_run(tmp_path / "run").result
    assert f"reaches {100 * result['plain']['accuracy']:.1f} % after 3 steps" in reading(trained)


@slow
def test_train_takes_parameters_as_text_from_the_command_line(tmp_path):
    command = [sys.executable, "-m", "papermill", NOTEBOOKS / "train.ipynb", tmp_path / "run" / "train.ipynb",
               "--cwd", ROOT, "--no-progress-bar", "-y", "{settings: {lambda_u: 0.5}, m1: 24}"]
    texts = {"dataset": save_tiny(tmp_path), "method": "fixmatch", "rebalance": "", "seed": "1", "n1": "12",
             "gamma_l": "4", "unlabeled": "equal", "batch_size": "4", "total_steps": "2", "threads": "1",
             "run_dir": str(tmp_path / "run")}
    for name, text in texts.items():
        command += ["-p", name, text]
    (tmp_path / "run").mkdir()
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    config = load_run(tmp_path / "run").config
    assert (config["seed"], config["rebalance"], config["lambda_u"], config["total_steps"]) == (1, [], 0.5, 2)


@slow
def test_train_has_the_papers_preset(tmp_path):
    np.savez(tmp_path / "cifar10.npz", **tiny_arrays())
    own = {"m1": 24, "n1": 12, "gamma_l": 4.0, "batch_size": 8, "threads": 1, "device": "cpu"}
    execute("train", tmp_path, own | {
        "preset": "paper", "dataset": str(tmp_path / "cifar10.npz"), "rebalance": "daso", "total_steps": 2,
        "run_dir": str(tmp_path / "run"), "settings": {"n_val": 0},
    })
    config = load_run(tmp_path / "run").config
    assert (config["depth"], config["width"], config["mu"], config["pretrain_steps"]) == (28, 2, 2, 5000)


@slow
def test_train_takes_own_data_with_natural_imbalance_and_a_method_without_pseudo_labels(tmp_path):
    arrays = tiny_arrays()
    tested = arrays["y_test"] != 3
    dataset = save_tiny(tmp_path, **{name: arrays[name][tested] for name in ("x_test", "y_test")})
    notebook = execute("train", tmp_path, {
        "dataset": dataset, "method": "supervised", "rebalance": "la", "total_steps": 2, "batch_size": 4,
        "labeled_indices": list(range(0, 160, 4)), "flip": False, "threads": 1, "run_dir": str(tmp_path / "run"),
    }, cwd=NOTEBOOKS)
    assert load_run(tmp_path / "run").config["flip"] is False
    assert "Supervised + LA on tiny" in reading(notebook)
    assert len(pictures(notebook)) == 2
    # What is warned about stays, and the bar is one output, however often it changed.
    warned = "".join(output.text for output in outputs_of(notebook, "stream") if output.name == "stderr")
    assert "classes without a test image, of which accuracies say nothing: '3'" in warned
    (bar,) = outputs_of(notebook, "display_data")
    assert "100%" in bar.data["text/plain"] and " 2/2 " in bar.data["text/plain"]


@slow
def test_train_refuses_a_setting_given_twice(tmp_path):
    with pytest.raises(PapermillExecutionError, match="settings has seed=3: give it as the parameter seed"):
        execute("train", tmp_path, {"settings": {"seed": 3}})


@slow
def test_quickstart_trains_both_methods_and_then_reads_them(tmp_path):
    parameters = {"total_steps": 10, "runs_dir": str(tmp_path / "runs"), "threads": 1}
    trained = execute("quickstart", tmp_path, parameters, cwd=ROOT)
    again = execute("quickstart", tmp_path, parameters, cwd=NOTEBOOKS)
    assert reading(again) == reading(trained)
    assert pictures(again) == pictures(trained) and len(pictures(trained)) == 3
    accuracy = [load_run(folder).result["plain"]["accuracy"] for folder in sorted((tmp_path / "runs").iterdir())]
    with_daso, without = accuracy  # in order of their names
    assert f"test accuracy {100 * without:.1f} -> {100 * with_daso:.1f} %" in reading(trained)
    assert ("does not win" in reading(trained)) == (with_daso <= without)


@pytest.fixture(scope="module")
def tiny_study(tmp_path_factory):
    """The runs of the bias study on a data set of tiny images, but for mnist5k's last DASO run, which is missing."""
    folder = tmp_path_factory.mktemp("study")
    for name in ("cifar10", "mnist5k"):
        np.savez(folder / f"{name}.npz", **tiny_arrays())
    settings = {"method": "fixmatch", "total_steps": 3, "n1": 12, "m1": 24, "gamma_l": 4.0, "batch_size": 4,
                "n_val": 0, "flip": False, "precision": "fp32", "threads": 1, "device": "cpu"}
    for dataset, unlabeled, seeds in (("cifar10", "reversed", 1), ("cifar10", "equal", 1), ("mnist5k", "reversed", 3)):
        for rebalance in ("", "la", "daso"):
            for seed in range(seeds if rebalance != "daso" or seeds == 1 else 2):
                config = make_config("cpu", dataset=str(folder / f"{dataset}.npz"), unlabeled=unlabeled,
                                     rebalance=rebalance, seed=seed, **settings)
                run(config, folder / "runs" / f"{config.run_name()}-{unlabeled}", progress=False)
    return folder / "runs"


@slow
def test_pseudo_label_bias_reports_any_study_and_names_what_is_missing(tiny_study, tmp_path):
    parameters = {"runs_dirs": str(tiny_study), "dataset": "mnist5k"}
    root, notebooks = (execute("pseudo_label_bias", tmp_path, parameters, cwd=cwd) for cwd in (ROOT, NOTEBOOKS))
    assert printed(root) == printed(notebooks)
    assert pictures(root) == pictures(notebooks) and len(pictures(root)) == 4
    (line,) = [line for line in printed(root).splitlines() if line.endswith("s2 absent")]
    assert re.match(r"mnist5k +reversed +FixMatch \+ DASO ", line)
    assert "mnist5k, unlabeled classes reversed: no run of USADTM\n" in printed(root)
    assert "mnist5k, unlabeled classes equal: no finished run\n" in printed(root)
    assert re.search(r"^FixMatch +3 .*\n.*\nFixMatch \+ DASO +2 ", printed(root), re.MULTILINE)  # averages over seeds
    assert reading(root).count(" 2 seeds, too few to say)") == 1


@slow
def test_averages_stand_beside_those_of_the_papers_figure(tiny_study, tmp_path):
    notebook = execute("pseudo_label_bias", tmp_path, {"runs_dirs": str(tiny_study), "figures_dir": str(tmp_path)})
    _, beside = printed(notebook).split("; paper°: figure 5 (n1 = 500, m1 = 4000)\n")
    assert re.search(r"^FixMatch +1 .* 68\.0 +84\.0 +68\.6$", beside, re.MULTILINE)
    assert re.search(r"^USADTM +0 +- +- +- +74\.0 +57\.0 +72\.3$", beside, re.MULTILINE)
    assert reading(notebook).count(" 1 seed, too few to say)") == 2
    assert {path.stem for path in tmp_path.glob("*.png")} == {
        f"cifar10-{kind}-{name}" for kind in ("equal", "reversed")
        for name in ("bias", "classes", "curves", "fixmatch-daso-linear-semantic")}


@slow
@pytest.mark.parametrize(("name", "kinds"), [("pseudo_label_bias", 2), ("other_learners", 3)])
def test_figures_of_pseudo_labels_cope_with_an_empty_folder(name, kinds, tmp_path):
    (tmp_path / "runs").mkdir()
    notebook = execute(name, tmp_path, {"runs_dirs": str(tmp_path / "runs")})
    assert reading(notebook) == "Reading: no pair of finished runs to compare."
    assert printed(notebook).count("no run of ") == kinds
    assert pictures(notebook) == []


@slow
@pytest.mark.parametrize("name", ["cifar10_lt", "confusion"])
def test_a_notebook_of_committed_runs_prints_by_default_what_is_stored(name, tmp_path):
    """A table and a figure, from the project's root; nbval checks all of them from the notebooks' own folder."""
    assert printed(execute(name, tmp_path)) == printed(stored(name))


@slow
@pytest.mark.parametrize("name", TABLES)
def test_tables_of_an_empty_folder_have_the_published_numbers_alone(name, tmp_path):
    (tmp_path / "runs").mkdir()
    notebook = execute(name, tmp_path, {"runs_dirs": str(tmp_path / "runs"), "tables_dir": str(tmp_path / "tables")})
    assert reading(notebook) == f"Reading: no finished run beside the {TABLES[name]} cells of the paper."
    assert "CPU scale" not in printed(notebook)
    written = sorted(path.suffix for path in (tmp_path / "tables").iterdir())
    assert len(written) == 2 * printed(notebook).count("Full scale: no run yet") and set(written) == {".csv", ".tex"}


@slow
def test_tables_hold_runs_of_any_folder_under_the_name_of_their_scale(tmp_path):
    paper = {"dataset": "cifar10", "unlabeled": "equal", "n1": 1500, "m1": 3000, "gamma_l": 100.0}
    make_run(tmp_path / "small", **paper)
    make_run(tmp_path / "small", **paper, rebalance="daso", finished=False)
    make_run(tmp_path / "large", **paper, preset="paper")
    folders = f"{tmp_path / 'small'},{tmp_path / 'large'}"
    notebook = execute("cifar10_lt", tmp_path, {"runs_dirs": folders})
    assert reading(notebook) == (
        "Reading: Full scale: finished runs in 2 of 110 cells; our numbers minus the paper's are -15.1 points on "
        "average. CPU scale: finished runs in 2 of 110 cells.")  # in its own and in that of LA at test time
    assert "unfinished at step 30 of 10000" in printed(notebook)


@slow
def test_train_reports_an_estimate_of_the_unlabeled_class_counts(tmp_path):
    parameters = TINY | {"dataset": save_tiny(tmp_path), "run_dir": str(tmp_path / "run"), "total_steps": 2,
                         "method": "distribution_estimate", "m1": 18, "settings": {"n_val": 40}}
    notebook = execute("train", tmp_path, parameters)
    assert format_estimate(load_run(tmp_path / "run")) in printed(notebook)


@slow
@pytest.mark.parametrize(("name", "said"), [
    ("ablations", "no finished run beside the 46 cells of the paper."), ("cpu_study", "no finished runs."),
    ("training_curves", "no finished run."), ("confusion", "no finished run.")])
def test_notebooks_of_a_study_say_that_there_is_none(name, said, tmp_path):
    (tmp_path / "runs").mkdir()
    notebook = execute(name, tmp_path, {"runs_dirs": str(tmp_path / "runs")}, cwd=NOTEBOOKS)
    assert reading(notebook) == f"Reading: {said}"
    assert "no runs" in printed(notebook) and pictures(notebook) == []


@slow
def test_figures_of_a_study_are_drawn_and_written(tiny_study, tmp_path):
    parameters = {"runs_dirs": str(tiny_study), "unlabeled": "equal", "methods": "FixMatch + LA,FixMatch + ABC",
                  "settings": {"n1": 12}, "figures_dir": str(tmp_path / "figures")}
    for name in ("training_curves", "confusion"):
        notebook = execute(name, tmp_path, parameters)
        assert "FixMatch + LA" in reading(notebook) and len(pictures(notebook)) == 1
        assert "FixMatch + LA: seeds [0]\nFixMatch + ABC: seeds none finished" in printed(notebook)
        assert (tmp_path / "figures" / f"cifar10-equal-{name.replace('_', '-')}.png").exists()


@slow
def test_the_cpu_study_compares_daso_on_the_seeds_that_there_are(tiny_study, tmp_path):
    notebook = execute("cpu_study", tmp_path, {"runs_dirs": str(tiny_study)})
    assert re.search(r"mnist5k +reversed +FixMatch +\+ DASO .* 2\n", printed(notebook))
    assert "+ DASO: " in reading(notebook) and "order of 3 methods on cifar10, equal" in reading(notebook)


@slow
def test_features_of_runs_that_have_them_are_mapped(tiny_study, tmp_path):
    parameters = {"runs_dirs": str(tiny_study), "dataset": "cifar10", "n_images": 20,
                  "methods": "FixMatch,FixMatch + DASO,FixMatch + ABC", "figures_dir": str(tmp_path / "figures")}
    notebook = execute("features", tmp_path, parameters)
    assert printed(notebook).count(" on cifar10, unlabeled classes reversed, seed 0: ") == 2
    assert "FixMatch + ABC: no finished run on cifar10, unlabeled classes reversed, seed 0\n" in printed(notebook)
    assert reading(notebook).count("of the nearest neighbours of an image") == 2 and len(pictures(notebook)) == 1
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["cifar10-reversed-features.png"]


@slow
def test_without_images_of_unknown_class_the_open_set_notebook_says_so(tiny_study, tmp_path):
    parameters = {"runs_dirs": str(tiny_study), "dataset": "cifar10", "unlabeled": "reversed"}
    notebook = execute("open_set", tmp_path, parameters)
    assert "No image of unknown class in these runs" in printed(notebook) and len(pictures(notebook)) == 1
    assert reading(notebook).startswith("Reading: no image of unknown class in these runs; entropy for known classes: ")


def fenced(name, language):
    """Return the one code block of a language in the first cell of a notebook."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", stored(name).cells[0].source, re.S)
    return block


@slow
def test_entropies_of_digits_of_unknown_classes_are_drawn(tmp_path):
    """The notebook's own lines make the file that its commands train on; here for two steps."""
    subprocess.run([sys.executable, "-c", fenced("open_set", "python")], cwd=tmp_path, check=True)
    config = make_config("cpu", dataset=str(tmp_path / "data/open_digits.npz"), method="fixmatch", total_steps=2,
                         flip=False, precision="fp32", threads=1, device="cpu")
    run(config, tmp_path / "runs/run", progress=False)
    made, *committed = (json.loads(file.read_text())["data_sha256"] for file in (
        tmp_path / "runs/run/config.json", *sorted((ROOT / "runs/open_set").glob("*/config.json"))))
    assert committed == [made, made]  # the same images as those that the stored figure is about
    notebook = execute("open_set", tmp_path, {"runs_dirs": str(tmp_path / "runs")})
    (line,) = [line for line in printed(notebook).splitlines() if line.startswith("FixMatch  ")]
    known, unknown = map(int, line.split()[1:3])
    assert (known, unknown) == (8 * 400 - 153, 800)
    assert "which it tells apart in" in reading(notebook) and len(pictures(notebook)) == 1


@slow
@pytest.mark.parametrize(("name", "said"), [("features", "no run with stored features"),
                                            ("open_set", "no run with stored predictions")])
def test_without_stored_outputs_a_notebook_says_how_to_make_a_run(name, said, tmp_path):
    make_run(tmp_path / "runs")  # finished, without outputs.npz
    parameters = {"runs_dirs": str(tmp_path / "runs"), "dataset": "mnist5k", "unlabeled": "reversed"}
    notebook = execute(name, tmp_path, parameters, cwd=NOTEBOOKS)
    assert reading(notebook) == f"Reading: {said}."
    assert "FixMatch: no outputs.npz in runs/run; the commands above make" in printed(notebook)
    assert "FixMatch + DASO: no finished run on mnist5k" in printed(notebook) and pictures(notebook) == []


def own_method():
    (cell,) = [cell for cell in stored("add_your_own").cells if "own-method" in cell.metadata.get("tags", ())]
    return cell.source


def test_the_own_method_is_one_short_file_and_the_readme_shows_the_same(tmp_path):
    assert len(own_method().splitlines()) <= 30
    assert f"```python\n{own_method()}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")


@slow
def test_the_own_method_registered_in_a_notebook_trains_and_is_reported_beside_fixmatch(tmp_path):
    parameters = {"total_steps": 10, "runs_dir": str(tmp_path / "runs"), "threads": 1}
    trained = execute("add_your_own", tmp_path, parameters, cwd=ROOT)
    again = execute("add_your_own", tmp_path, parameters, cwd=NOTEBOOKS)
    assert reading(again) == reading(trained)
    plain, own = sorted((load_run(folder) for folder in (tmp_path / "runs").iterdir()),
                        key=lambda each: len(each.config["rebalance"]))
    assert own.config["rebalance"] == ["divide_by_prior"] and own.label == "FixMatch + divide_by_prior"
    assert (own.counts["pseudo_labels"] != plain.counts["pseudo_labels"]).any()
    accuracy, with_own = (100 * each.result["plain"]["accuracy"] for each in (plain, own))
    assert f"test accuracy {accuracy:.1f} -> {with_own:.1f} %" in reading(trained)


@each_notebook
def test_papermill_lists_every_declared_parameter(name):
    (cell,) = [cell for cell in stored(name).cells if "parameters" in cell.metadata.get("tags", ())]
    declared = [node.target.id for node in ast.parse(cell.source).body if isinstance(node, ast.AnnAssign)]
    assert list(papermill.inspect_notebook(str(NOTEBOOKS / f"{name}.ipynb"))) == declared
