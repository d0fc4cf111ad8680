"""The report: pages that need no other file and no network, and a front page that leads to them."""

import re
from pathlib import Path

import pytest

from dasolib import comparison, published, report, results
from dasolib.run_folder import resolve

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = {path.stem: path for path in (ROOT / "notebooks").glob("*.ipynb")}
# What a browser fetches by itself: sources of any element, links to styles and fonts, imports and addresses in styles.
FETCHED = re.compile(r"""\ssrc\s*=\s*(?!["']?data:)|<link\b|@import|url\((?!["']?data:)|<script\b|<iframe\b""")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The report of one notebook that reads runs and one that trains, by name."""
    folder, working = tmp_path_factory.mktemp("report"), Path.cwd()
    assert report.build(folder, ["other_learners", "train"]) == folder / "index.html"
    assert Path.cwd() == working  # which notebooks executed at the same time share
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.html")}


@pytest.mark.parametrize("text", ['<script src="https://x/y.js">', "<link href='a.css'>", '<img src="a.png">',
                                  "@import 'a.css'", "src: url(https://x/font.woff)", "<script>let x = 1</script>"])
def test_the_search_for_what_a_browser_fetches_finds_it(text):
    assert FETCHED.search(text)
    assert not FETCHED.search('<img src="data:image/png;base64,AA"> <a href="https://arxiv.org">x</a> url(data:AA)')


@pytest.mark.slow
def test_pages_need_no_other_file_and_no_network(pages):
    assert set(pages) == {"index", "other_learners", "train"}
    for name, text in pages.items():
        assert not FETCHED.search(text), name
        assert text.startswith("<!DOCTYPE html>") and '<meta name="viewport"' in text
        assert {link for link in re.findall(r'href="([^"#]*)', text) if link} <= {f"{each}.html" for each in (
            *pages, "pseudo_label_bias")}


@pytest.mark.slow
def test_a_notebook_that_reads_runs_is_executed_and_one_that_trains_takes_a_few_steps(pages):
    assert re.search(r"Mean Teacher \+ DASO +63\.8 ", pages["other_learners"])
    stored = NOTEBOOKS["other_learners"].read_text(encoding="utf-8").count('"image/png": "')  # of the same runs
    assert pages["other_learners"].count("data:image/png;base64,") == stored > 0
    assert f"This notebook trains. For the report it took {report.FEW_STEPS} steps" in pages["train"]
    assert f"after {report.FEW_STEPS} steps" in pages["train"] and "data:image/png;base64," in pages["train"]
    assert "This notebook trains" not in pages["other_learners"]


@pytest.mark.slow
def test_the_front_page_has_the_main_table_and_figure_readings_links_versions_and_commit(pages):
    index = pages["index"]
    assert "Mean Teacher 30.3 % -&gt; with DASO 63.8 %" in index
    for name in ("other_learners", "train"):
        assert f'<a href="{name}.html">' in index
    main = published.table("1", dataset="cifar10").query("n1 == 1500 and gamma_l == 100")
    table = comparison.compare(main, results.study_runs()).set_index("row")
    ours = results.plus_minus(*table.loc["FixMatch", ["accuracy", "accuracy_std"]])
    for text in ("77.5 ± 1.32", ours):
        assert f"<td>{text}</td>" in index
    unprinted = [run for run in results.study_runs() if run.label == "FixMatch + LA" and run.result is not None
                 and run.config["dataset"] == "cifar10" and run.config["unlabeled"] == "reversed"]
    row = results.results_table(unprinted).iloc[0]  # the paper has no number for it
    assert f"<td>{results.plus_minus(*row[['accuracy', 'accuracy_std']])}</td>" in index
    assert index.count("data:image/png;base64,") == 1
    for name in ("commit", "python", "torch", "papermill"):
        assert f"<tr><td>{name}</td><td>" in index


def test_a_notebook_trains_if_it_takes_something_of_the_trainer():
    training = {name for name, path in NOTEBOOKS.items() if report.trains(path)}
    assert {"train", "quickstart", "add_your_own"} <= training
    assert not {"cifar10_lt", "pseudo_label_bias", "other_learners"} & training


def test_the_order_of_the_front_page_names_notebooks_that_exist():
    assert set(report.ORDER) <= set(NOTEBOOKS)


def test_an_unknown_notebook_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="names has 'cifar11_lt'; choose from ablations, add_your_own"):
        report.build(tmp_path / "report", ["cifar11_lt"])
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("arguments", [["cifar11_lt"], ["cifar10_lt", "--folder", "notebooks"],
                                       ["cifar10_lt", "--folder", "README.md"]])
def test_the_command_refuses_what_it_cannot_write_and_touches_nothing(arguments, capsys):
    before = (ROOT / "notebooks" / "cifar10_lt.ipynb").read_bytes()
    with pytest.raises(SystemExit) as raised:
        report.main(arguments)
    assert raised.value.code == 2
    assert f"{arguments[-1]}'" in capsys.readouterr().err
    assert (ROOT / "notebooks" / "cifar10_lt.ipynb").read_bytes() == before


def test_without_runs_the_front_page_says_so(monkeypatch):
    monkeypatch.setattr(results, "study_runs", lambda: [])
    text = report.front_page({})
    assert "No finished run yet." in text and "<img" not in text


def test_the_report_goes_where_git_ignores_it():
    assert resolve(report.FOLDER) == ROOT / "runs" / "report"
