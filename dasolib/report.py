"""Every notebook executed and rendered, and a front page: pages that need nothing but a browser.

``make report``, or ``python -m dasolib.report``, writes ``runs/report/index.html``.
"""

import argparse
import base64
import contextlib
import html
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from string import Template

import papermill
import torch
from nbconvert import HTMLExporter
from papermill.iorw import load_notebook_node
from tqdm import tqdm

from dasolib import comparison, plots, published, results
from dasolib.config import available_cores, fastest_precision
from dasolib.evaluation import LAST
from dasolib.run_folder import environment, project_root, resolve

FOLDER = "runs/report"
STYLE = Path(__file__).with_suffix(".css")
# In this order on the front page; others follow by name.
ORDER = ("cifar10_lt", "cifar100_lt", "stl10_lt", "semi_aves", "ablations", "cpu_study", "pseudo_label_bias",
         "other_learners", "training_curves", "confusion", "features", "open_set")
MAIN_METHODS = ("FixMatch", "FixMatch + LA", "FixMatch + DASO")  # of the figure on the front page
CELLS = (f"ours: median of the last {LAST} evaluations of a run; mean over seeds, ± sample std.\n"
         f"{results.MASK}\n-: under paper, not in print; under ours, no finished run.")
FEW_STEPS = 10  # of a notebook that trains; a run this short evaluates after each
PACKAGES = ("daso-study", "torch", "torchvision", "numpy", "pandas", "scipy", "scikit-learn", "matplotlib", "papermill",
            "nbconvert")
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
$body
</body>
</html>
""")


def build(folder=FOLDER, names=None):
    """Execute and render the notebooks, those that train with a few steps, and write the front page.

    Parameters
    ----------
    folder : path
        Created if absent; a relative one starts from the project. Receives ``index.html`` and, for each notebook,
        ``<name>.html`` and the executed ``<name>.ipynb``.
    names : sequence of str, optional
        Default: every notebook of the project.

    Returns
    -------
    Path
        The front page.

    Raises
    ------
    ValueError
        If there is no notebook of a name, or the folder is that of the notebooks, or a file.
    papermill.exceptions.PapermillExecutionError
        If a cell fails; nothing is rendered then.
    """
    notebooks = project_root() / "notebooks"
    there = {path.stem: path for path in notebooks.glob("*.ipynb")}
    if names is None:
        names = sorted(there, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
    for name in names:
        if name not in there:
            raise ValueError(f"names has {name!r}; choose from {', '.join(sorted(there))}")
    folder = resolve(folder)
    if folder.is_file() or folder.resolve() == notebooks.resolve():
        raise ValueError(f"folder={str(folder)!r}: must be another folder than that of the notebooks, and no file")
    folder.mkdir(parents=True, exist_ok=True)
    # Threads, so that no two kernels choose the same ports. All share a working folder: none may change it for itself.
    with contextlib.chdir(notebooks), ThreadPoolExecutor(available_cores()) as pool:
        executing = pool.map(partial(execute, folder=folder), [there[name] for name in names])
        executed = dict(zip(names, tqdm(executing, total=len(names), unit="notebook"), strict=True))
    for name in names:
        write_page(folder / f"{name}.html", executed[name], trained=trains(there[name]))
    index = folder / "index.html"
    index.write_text(page("DASO study", front_page(executed)), encoding="utf-8")
    return index


def trains(notebook):
    """Whether a notebook trains: one that takes something of the trainer."""
    return any("dasolib.train" in cell.source for cell in cells(notebook) if cell.cell_type == "code")


def cells(notebook):
    """Cells of a stored notebook."""
    return load_notebook_node(str(notebook)).cells


def execute(notebook, folder):
    """Run a notebook, one that trains for `FEW_STEPS` in a passing folder; return the executed one's path."""
    out = folder / notebook.name
    with tempfile.TemporaryDirectory() as place:
        parameters = {}
        if trains(notebook):
            declared = papermill.inspect_notebook(str(notebook))
            where = next(name for name in ("run_dir", "runs_dir") if name in declared)
            parameters = {"total_steps": FEW_STEPS, "threads": 1, where: str(Path(place) / notebook.stem)}
            if "precision" in declared:  # others choose by themselves
                parameters["precision"] = fastest_precision()
        papermill.execute_notebook(notebook, out, parameters, progress_bar=False, log_output=False)
    return out


def write_page(path, notebook, *, trained):
    """Render an executed notebook as a page that needs no file and no address but the front page's."""
    body, resources = HTMLExporter(template_name="basic").from_filename(str(notebook))
    head = '<nav><a href="index.html">DASO study</a></nav>\n'
    if trained:
        head += (f'<p class="note">This notebook trains. For the report it took {FEW_STEPS} steps, so its numbers mean '
                 "nothing. Open it with <code>make lab</code>, or run <code>papermill "
                 f"notebooks/{notebook.name} out.ipynb</code>.</p>\n")
    highlighting = "\n".join(resources["inlining"]["css"])
    path.write_text(page(question(notebook), head + body, style=highlighting), encoding="utf-8")


def page(title, body, *, style=""):
    """Text of a whole page, its style within it."""
    return PAGE.substitute(title=html.escape(title), style=style + STYLE.read_text(encoding="utf-8"), body=body)


def question(notebook):
    """Return the first line of a notebook, which is its question."""
    return cells(notebook)[0].source.splitlines()[0].lstrip("# ")


def reading(notebook):
    """Return what an executed notebook printed last, its line of reading, without its first word."""
    texts = [output.text for output in cells(notebook)[-1].outputs if output.output_type == "stream"]
    return "".join(texts).strip().removeprefix("Reading: ")  # a kernel may hand a line over in parts


def front_page(executed):
    """Body of the front page.

    Parameters
    ----------
    executed : dict of str to Path
        The executed notebooks by name.
    """
    runs = results.study_runs()
    with_reading, training = [], []
    for name, path in executed.items():
        line = f'<a href="{name}.html">{html.escape(question(path))}</a>'
        if trains(path):
            training.append(f"<li>{line}</li>")
        else:
            with_reading.append(f'<li>{line}<br><span class="soft">{html.escape(reading(path))}</span></li>')
    return "\n".join([
        "<h1>DASO: pseudo-labels for long-tailed, partly labeled images</h1>",
        "<p>A re-implementation of DASO (CVPR 2022, arXiv 2106.05682) and of what it was compared with: the paper's "
        "tables and figures, from the runs that are there.</p>",
        f'<p class="soft">{html.escape(results.format_runs(runs)).replace(chr(10), "; ")}</p>',
        *_main_table(runs), *_main_figure(runs),
        "<h2>Tables and figures</h2>", '<ul class="notebooks">', *with_reading, "</ul>",
        "<h2>Notebooks that train</h2>", '<ul class="notebooks">', *training, "</ul>",
        "<h2>What made this report</h2>", *_versions()])


def _main_table(runs):
    """CIFAR10-LT: the methods that have runs, beside the paper's numbers."""
    table, parts = comparison.compare(comparison.with_unprinted(published.main_columns(), runs), runs), []
    for scale, part in table.groupby("scale", sort=False) if table["seeds"].any() else ():
        part = part[part["method"].isin(part.loc[part["seeds"] > 0, "method"])]
        parts += [f"<p><strong>{html.escape(scale)}.</strong></p>", '<div class="scroll">',
                  comparison.paper_layout(part, mask=True).reset_index().to_html(index=False, border=0), "</div>",
                  _lines(comparison.splits_text(part)), _lines(comparison.notes_text(part)), _lines(CELLS)]
    return ["<h2>Test accuracy on CIFAR10-LT, in %</h2>", *(parts or ["<p>No finished run yet.</p>"])]


def _main_figure(runs):
    """Figure 2 of the paper, on CIFAR10-LT with reversed unlabeled classes."""
    part = comparison.pick(runs, methods=MAIN_METHODS, dataset="cifar10", unlabeled="reversed")
    if not part:
        return []
    table = results.bias_table(part)
    figure = plots.pseudo_label_bias(table)
    picture, width = base64.b64encode(plots.png(figure)).decode(), plots.shown_size(figure)["width"]
    return ["<h2>Where pseudo-labels go</h2>", "<figure>",
            f'<img src="data:image/png;base64,{picture}" width="{width}" '
            'alt="Recall and precision of pseudo-labels and test accuracy, '
            f'per class and per group, of {html.escape(", ".join(table["method"].unique()))}">',
            "<figcaption>CIFAR10-LT with the unlabeled classes reversed: class 0 is the most frequent labeled class "
            "and the rarest unlabeled one. Above per class, below for head, medium and tail; the numbers are in "
            '<a href="pseudo_label_bias.html">its notebook</a>.</figcaption>', "</figure>"]


def _versions():
    """Commit, machine and versions, as rows of a table."""
    made_in = environment(torch.device("cpu"), available_cores())
    commit = f"{made_in['commit'] or 'no repository'}{', with changes' if made_in['dirty'] else ''}"
    rows = {"commit": commit, "python": made_in["python"], "platform": made_in["platform"]}
    rows |= {name: version(name) for name in PACKAGES}
    lines = (f"<tr><td>{name}</td><td>{html.escape(text)}</td></tr>" for name, text in rows.items())
    return ['<div class="scroll"><table>', *lines, "</table></div>"]


def _lines(text):
    return f'<p class="soft">{"<br>".join(map(html.escape, text.splitlines()))}</p>' if text else ""


def main(arguments=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m dasolib.report", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="notebooks; all of them by default")
    parser.add_argument("--folder", default=FOLDER, help="where the pages go (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        print(f"Read {build(options.folder, options.names or None)}")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
