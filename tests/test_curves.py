"""Curves over training of parts of the classes, worked by hand on four classes."""

import dataclasses

import numpy as np
import pytest

from dasolib.curves import curve_table, format_curves, mean_curves, reading
from dasolib.results import load_run
from tests.hand_made import FINAL, counts_of, make_run, write_run
from tests.test_results import BETTER


def test_majority_and_minority_are_the_ends_and_all_is_the_mean_over_classes(tmp_path):
    """Of four classes one each: recall .8 and .4, accuracy .9 and .3; all: mean recall .55, accuracy 26 of 40."""
    table = curve_table([make_run(tmp_path)])
    assert table["step"].tolist() == [10, 20, 30] * 3
    last = table[table["step"] == 30].set_index("part")[["recall", "accuracy"]]
    np.testing.assert_allclose(last.loc[["majority", "minority", "all"]], [[0.8, 0.9], [0.4, 0.3], [0.55, 0.65]])


def test_recall_is_that_of_the_window_and_missing_where_no_image_of_the_classes_was_seen(tmp_path):
    run = make_run(tmp_path)
    counts = run.counts["pseudo_labels"].copy()
    counts[0, 2], counts[1, 2] = 0, counts_of([2, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0])
    table = curve_table([dataclasses.replace(run, counts=run.counts | {"pseudo_labels": counts})])
    by_part = {part: rows["recall"].tolist() for part, rows in table.groupby("part")}
    np.testing.assert_allclose(by_part["minority"], [np.nan, np.nan, 0.4])
    np.testing.assert_allclose(by_part["all"], [np.nan, 0.75, 0.55])


def test_seeds_are_averaged_where_all_of_them_were_evaluated(tmp_path):
    runs = [make_run(tmp_path, seed=0), make_run(tmp_path, seed=1, test=BETTER, evaluations=2)]
    mean, std = mean_curves(curve_table(runs), "accuracy")
    assert mean.loc["FixMatch", "all"].to_dict() == {10: pytest.approx(0.725), 20: pytest.approx(0.725)}
    assert std.loc["FixMatch", "all"].tolist() == pytest.approx([0.15 / 2**0.5] * 2)


def test_some_evaluations_are_printed_and_the_reading_is_about_the_last(tmp_path):
    table = curve_table([make_run(tmp_path, evaluations=40)])
    head, *lines = format_curves(table).splitlines()
    assert head.split() == ["method", "in", "%", "classes", "10%", "25%", "50%", "75%", "100%"]
    assert lines[1].split() == ["FixMatch", "recall", "minority", *["40.0"] * 5] and len(lines) == 6
    assert reading(table) == (
        "Reading: over the last 20 evaluations, in %. FixMatch: recall of pseudo-labels majority 80.0, minority 40.0, "
        "all 55.0; test accuracy majority 90.0, minority 30.0, all 65.0.")
    assert format_curves(curve_table([])) == "no finished run"
    assert reading(curve_table([])) == "Reading: no finished run."


def test_a_run_without_pseudo_labels_has_curves_of_its_test_accuracy(tmp_path):
    table = curve_table([make_run(tmp_path, final=0 * FINAL)])
    assert table["recall"].isna().all() and "recall of pseudo-labels majority -" in reading(table)


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="run r is unfinished"):
        curve_table([load_run(write_run(tmp_path / "r", finished=False))])
