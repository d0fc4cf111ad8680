"""What the paper prints, in our names: every line of the file is read, and says which runs belong beside it."""

import numpy as np
import pandas as pd
import pytest

from dasolib import published
from dasolib.comparison import SETTING
from dasolib.results import method_label
from tests.test_results import legal_combinations

LINES = pd.read_csv(published.FILE, dtype=str, keep_default_na=False)
ALL = pd.concat([published.table(number).assign(number=number) for number in published.TABLES], ignore_index=True)
ABLATIONS = ("5", "6", "7", "8", "15", "16", "17")


def cell(number, dataset, row):
    cells = published.table(number, dataset=dataset)
    return cells[cells["row"] == row].iloc[0]


def test_every_line_of_the_file_is_a_cell_of_a_table_or_an_average_of_a_figure():
    n_averages = sum(published.averages(figure).notna().sum().sum() for figure in "56789")
    assert len(ALL) + n_averages == len(LINES) == 459
    of_the_paper = LINES["paper_table"] != "Tseed"
    assert of_the_paper.sum() == 451
    assert LINES["source"].str.contains("DASO, CVPR 2022 (arXiv 2106.05682)", regex=False).eq(of_the_paper).all()


def test_the_authors_own_seed_has_one_number_for_each_method_and_split():
    """Each within 4 points of the mean of three seeds in table 2."""
    cells = published.table("seed")
    assert set(LINES[LINES["paper_table"] == "Tseed"]["source"]) == {
        f"DASO's authors, github.com/ytaek-oh/daso, issue 3: seed {published.AUTHORS_SEED}"}
    assert cells[["unlabeled", "gamma_l", "gamma_u"]].drop_duplicates().to_numpy().tolist() == [["reversed", 100, 100]]
    by_size = (100 * cells.pivot(index="n1", columns="method", values="published")).round(2).to_dict("list")
    assert by_size == {"FixMatch": [62.11, 73.79], "FixMatch + DARP": [70.21, 81.0], "FixMatch + CReST": [72.0, 81.05],
                       "FixMatch + DASO": [70.78, 81.08]}
    assert cells["published_std"].isna().all() and cells["m1"].isin([4000, 3000]).all()
    both = cells.merge(published.table("2"), on=[*SETTING, "method"], suffixes=("", "_table"))
    assert len(both) == 8 and (both["published"] - both["published_table"]).abs().max() < 0.04


def test_table_14_has_the_split_of_table_1_whose_rows_without_la_it_repeats():
    """Its header has a misprint."""
    columns = [*SETTING, "method", "published", "published_std"]
    rows = published.table("14")
    rows = rows[rows["method"].isin(["FixMatch"]) & (rows["measure"] == "accuracy")][columns]
    assert len(rows) == 4 and len(rows.merge(published.table("1")[columns])) == 4


def test_methods_are_legal_combinations_and_numbers_are_shares():
    labels = {method_label(*combination) for combination in legal_combinations()}
    assert set(ALL["method"]) <= labels
    assert ALL["published"].between(0.2, 0.95).all()
    assert ALL["published_std"].dropna().between(0, 0.06).all()


def test_numbers_are_those_of_the_file():
    """Of each table the same numbers, in the same order."""
    for number in published.TABLES:
        lines = LINES[LINES["paper_table"].str.fullmatch(f"T{number}(-.*)?")]
        cells = published.table(number)
        np.testing.assert_allclose(100 * cells["published"], lines["mean"].astype(float))
        np.testing.assert_allclose(100 * cells["published_std"], pd.to_numeric(lines["std"], errors="coerce"))
        assert cells["note"].tolist() == lines["note"].tolist()


@pytest.mark.parametrize(
    ("number", "dataset", "line", "split"),
    [
        ("1", "cifar100", 1, ("equal", 10.0, 10.0, 150, 300)),
        ("2", "cifar10", 0, ("uniform", 100.0, 1.0, 500, 4000)),
        ("2", "cifar10", 3, ("reversed", 100.0, 100.0, 1500, 3000)),
        ("2", "stl10", 3, ("unknown", 20.0, None, 450, None)),
    ],
)
def test_splits_are_written_as_in_a_configuration(number, dataset, line, split):
    values = published.table(number, dataset=dataset).loc[line, list(SETTING[1:])]
    assert tuple(None if pd.isna(value) else value for value in values) == split


def test_semi_aves_has_no_synthetic_split_and_two_protocols():
    cells = published.table("4")
    assert cells[list(SETTING[2:])].isna().all(axis=None) and set(cells["unlabeled"]) == {"unknown"}
    assert cells["measure"].value_counts().to_dict() == {"last": 12, "accuracy": 12}
    assert cells["row"].tolist()[:2] == ["Supervised, last evaluation", "Supervised"]


def test_rows_at_test_time_la_belong_to_the_run_without_it():
    row = cell("14", "cifar10", "FixMatch + DASO, LA at test time")
    assert (row["method"], row["measure"], row["published"]) == ("FixMatch + DASO", "adjusted", 0.845)
    assert cell("14", "cifar10", "FixMatch + LA + DASO")["measure"] == "accuracy"


@pytest.mark.parametrize(
    ("number", "dataset", "row", "method", "variant"),
    [
        ("5", "cifar10", "FixMatch", "FixMatch", ""),
        ("5", "cifar10", "lambda_align = 0", "FixMatch + DASO", "lambda_align = 0"),
        ("5", "cifar10", "fixed_blend = 0", "FixMatch + DASO", "fixed_blend = 0"),
        ("6", "stl10", "fixed_blend = 0.5", "FixMatch + DASO", "fixed_blend = 0.5"),
        ("6", "stl10", "FixMatch + DASO", "FixMatch + DASO", ""),
        ("7", "cifar10", "queue_sizing = frequency, prototypes_from = ema", "FixMatch + DASO",
         "queue_sizing = frequency"),
        ("7", "cifar10", "queue_sizing = balanced, prototypes_from = ema", "FixMatch + DASO", ""),
        ("8", "cifar10", "dist_temperature = 1.5", "FixMatch + DASO", ""),
        ("8", "stl10", "dist_temperature = 1.5", "FixMatch + DASO", "dist_temperature = 1.5"),
        ("8", "stl10", "dist_temperature = 0.3", "FixMatch + DASO", ""),
        ("15", "cifar10", "queue_size = 256", "FixMatch + DASO", ""),
        ("16", "cifar10", "proto_temperature = 0.02", "FixMatch + DASO", "proto_temperature = 0.02"),
        ("17", "cifar10", "lambda_align = 1", "FixMatch + DASO", ""),
    ],
)
def test_a_row_of_an_ablation_names_its_settings_and_what_of_them_is_not_the_papers(number, dataset, row, method,
                                                                                    variant):
    found = cell(number, dataset, row)
    assert (found["method"], found["variant"]) == (method, variant)


@pytest.mark.parametrize("number", ABLATIONS)
def test_every_ablation_has_one_row_of_full_daso_for_each_data_set(number):
    full = published.table(number).query("variant == '' and method == 'FixMatch + DASO'")
    assert sorted(full["dataset"]) == ["cifar10", "stl10"]
    assert (100 * full.set_index("dataset")["published"]).round(2).to_dict() == {"cifar10": 75.97, "stl10": 70.21}


def test_a_cell_that_two_tables_print_differently_is_noted_in_both():
    """Left out are the ablations, which print numbers of their own without a standard deviation."""
    cells = ALL[~ALL["number"].isin([*ABLATIONS, "seed"])]
    for _, same in cells.groupby([*SETTING, "method", "measure"], dropna=False):
        differ = len(same[["published", "published_std"]].drop_duplicates()) > 1
        assert same["note"].str.contains("prints").all() == differ, same
    assert (ALL["note"] != "").sum() == 7
    assert cell("3", "stl10", "Mean Teacher + DASO")["note"].startswith("equal to FixMatch+DASO in Table 2")


def test_averages_of_figures_are_shares_by_method():
    assert published.averages("8").loc["MixMatch"].to_dict() == {"recall": 0.35, "precision": 0.68, "accuracy": 0.373}
    assert published.averages("9")["accuracy"].to_dict() == {
        "FixMatch": 0.686, "FixMatch + DASO": 0.765, "FixMatch + DASO + ABC": 0.808}


def test_unknown_tables_data_sets_and_figures_are_refused():
    with pytest.raises(ValueError, match="number='9': choose one of '1', '2', '3'"):
        published.table("9")
    with pytest.raises(ValueError, match="dataset='mnist': table 3 has cifar10, cifar100, stl10"):
        published.table("3", dataset="mnist")
    with pytest.raises(ValueError, match="figure='2': choose one of 5, 6"):
        published.averages("2")
