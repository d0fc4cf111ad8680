"""Intervals over seeds, paired differences, and orders of methods: against scipy, and worked by hand."""

import re

import numpy as np
import pytest
from scipy import stats

from dasolib import published
from dasolib.statistics import (
    best_gaps,
    estimate,
    format_estimates,
    format_orders,
    order_agreement,
    order_table,
    paired_changes,
    reading,
)
from tests.hand_made import TEST, make_run
from tests.test_comparison import paper_run
from tests.test_results import BETTER

MAIN = published.main_columns()
EQUAL = MAIN[MAIN["unlabeled"] == "equal"]
WORSE = np.array([[6, 4, 0, 0], [2, 8, 0, 0], [4, 0, 6, 0], [10, 0, 0, 0]])  # 20 of 40 right; TEST 26, BETTER 32


def test_an_estimate_has_scipys_percentile_bootstrap():
    """Up to the chance of 9,999 draws each."""
    values = [0.61, 0.65, 0.66, 0.72, 0.8]
    found = estimate(values)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9999).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert found.mean == pytest.approx(0.688) and found.std == pytest.approx(np.std(values, ddof=1))
    assert estimate(values) == found and found.seeds == 5


def test_few_seeds_say_as_little_as_they_can():
    assert estimate([0.5]).mean == 0.5 and np.isnan(estimate([0.5])[1:4]).all()
    assert np.isnan(estimate([])[:4]).all() and estimate([]).seeds == 0
    assert estimate([0.5, 0.7])[2:4] == (0.5, 0.7)


def test_daso_is_compared_on_the_seeds_of_both(tmp_path):
    """On seeds 0 and 1: .8 - .65 and .5 - .8; seed 2 has no run without DASO, seed 3 none with it."""
    runs = [paper_run(tmp_path, seed=0), paper_run(tmp_path, seed=1, test=BETTER), paper_run(tmp_path, seed=3),
            paper_run(tmp_path, seed=0, rebalance="daso", test=BETTER),
            paper_run(tmp_path, seed=1, rebalance="daso", test=WORSE), paper_run(tmp_path, seed=2, rebalance="daso")]
    (row,) = paired_changes(runs).to_dict("records")
    assert (row["dataset"], row["unlabeled"], row["method"], row["change"]) == ("cifar10", "equal", "FixMatch",
                                                                                "+ DASO")
    assert (row["mean"], row["low"], row["high"], row["seeds"]) == pytest.approx((-0.075, -0.3, 0.15, 2))
    assert row["std"] == pytest.approx(0.45 / 2**0.5)


def test_a_changed_setting_is_compared_with_daso_as_published(tmp_path):
    runs = [paper_run(tmp_path / "a", rebalance="la,daso"), paper_run(tmp_path / "b", rebalance="la"),
            paper_run(tmp_path / "c", rebalance="la,daso", ema_train_mode=False, test=BETTER)]
    assert paired_changes(runs)[["method", "change", "mean"]].to_numpy().tolist() == [
        ["FixMatch + LA", "+ DASO", 0.0],
        ["FixMatch + LA + DASO", "ema_train_mode = False", pytest.approx(0.15)]]


def test_daso_of_which_the_train_mode_is_left_is_compared_with_its_base_learner(tmp_path):
    """TEST has .65, BETTER .8."""
    runs = [paper_run(tmp_path / "a"), paper_run(tmp_path / "b", rebalance="daso"),
            paper_run(tmp_path / "c", rebalance="daso", fixed_blend=0.0, lambda_align=0.0, test=BETTER)]
    assert paired_changes(runs)[["method", "change", "mean"]].to_numpy().tolist() == [
        ["FixMatch", "+ DASO", 0.0], ["FixMatch", "+ train mode", pytest.approx(0.15)]]


def test_a_change_names_what_else_is_changed_with_it(tmp_path):
    """On CIFAR10-LT the paper's ReMixMatch does not align with DASO."""
    runs = [paper_run(tmp_path / "a", method="remixmatch"),
            paper_run(tmp_path / "b", method="remixmatch", rebalance="daso"),
            paper_run(tmp_path / "c"), paper_run(tmp_path / "d", rebalance="daso", lr=0.01)]
    assert paired_changes(runs)["change"].tolist() == ["+ DASO, alignment = False", "+ DASO, lr = 0.01"]


def test_rows_of_several_splits_and_scales_say_what_tells_them_apart(tmp_path):
    runs = [paper_run(tmp_path / "a"), paper_run(tmp_path / "b", n1=500), paper_run(tmp_path / "c", total_steps=500)]
    assert best_gaps(runs)[["dataset", "unlabeled", "n1", "total_steps", "method"]].to_numpy().tolist() == [
        ["cifar10", "equal", 1500, 10_000, "FixMatch"], ["cifar10", "equal", 500, 10_000, "FixMatch"],
        ["cifar10", "equal", 1500, 500, "FixMatch"]]
    assert list(best_gaps(runs[:1]))[:4] == ["dataset", "unlabeled", "method", "mean"]
    orders = order_table(runs)
    assert orders[["n1", "total_steps", "methods"]].to_numpy().tolist() == [[1500, 10_000, 1], [500, 10_000, 1],
                                                                           [1500, 500, 1]]
    assert format_orders(orders).splitlines()[0].split() == (
        "dataset unlabeled n1 total_steps paper methods seeds rank correlation interval".split())
    with pytest.raises(ValueError, match="several splits or scales of FixMatch"):
        order_agreement(EQUAL, runs)


def test_the_interval_of_an_order_holds_the_correlation(tmp_path):
    """Two seeds that differ by less than what they are drawn with."""
    cells = EQUAL[EQUAL["measure"].eq("accuracy") & EQUAL["variant"].eq("")]
    close = cells.assign(published=[0.7 + 1e-4 * i for i in range(len(cells))])
    found = order_agreement(close, ranked_runs(tmp_path, [(WORSE, BETTER, TEST)] * 2))
    assert found["low"] <= found["correlation"] <= found["high"]


def test_an_interval_is_counted_from_four_seeds_on(tmp_path):
    runs = [paper_run(tmp_path, seed=seed, rebalance=rebalance, test=test)
            for seed in range(4) for rebalance, test in (("", TEST), ("daso", BETTER))]
    orders = order_table(runs)
    line = "+ DASO: 1 of 1 differences are above 0, +15.0 points on average"
    assert f"; {line}; intervals from 4 seeds or more: 1 of 1 above 0, 0 below" in (
        reading(best_gaps(runs), paired_changes(runs), orders))
    assert reading(best_gaps(runs[:6]), paired_changes(runs[:6]), orders).endswith(f"; {line}.")


@pytest.mark.parametrize("settings", [{"unlabeled": "reversed"}, {"n1": 400}, {"total_steps": 5000}, {"n_val": 100},
                                      {"preset": "paper"}, {"finished": False}])
def test_runs_of_another_split_or_scale_and_unfinished_ones_are_no_pair(tmp_path, settings):
    runs = [paper_run(tmp_path / "a"), paper_run(tmp_path / "b", rebalance="daso", **settings)]
    assert paired_changes(runs).empty
    assert format_estimates(paired_changes(runs)) == "no finished runs to compare"


def test_runs_of_one_group_are_the_same_but_for_the_seed(tmp_path):
    for settings, message in (({}, "have the same seed"), ({"seed": 1, "lr": 0.01}, "differ in lr")):
        with pytest.raises(ValueError, match=message):
            paired_changes([paper_run(tmp_path / message), paper_run(tmp_path / f"{message} too", **settings)])


def test_the_gap_is_best_minus_median_of_each_run(tmp_path):
    runs = [paper_run(tmp_path, seed=seed) for seed in (0, 1)]
    for run, best in zip(runs, (0.7, 0.75), strict=True):
        run.result["plain"]["best"] = best
    (row,) = best_gaps([*runs, paper_run(tmp_path / "other", seed=5, finished=False)]).to_dict("records")
    assert (row["method"], row["seeds"]) == ("FixMatch", 2)
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((0.075, 0.05, 0.1))


def test_estimates_are_printed_in_points(tmp_path):
    runs = [make_run(tmp_path, seed=0), make_run(tmp_path, seed=1),
            make_run(tmp_path, seed=0, rebalance="daso", test=BETTER), make_run(tmp_path, seed=1, rebalance="daso")]
    head, line = format_estimates(paired_changes(runs)).splitlines()
    assert head.split() == ["dataset", "unlabeled", "method", "change", "points", "interval", "seeds"]
    assert line.split() == "mnist5k reversed FixMatch + DASO +7.5 ± 10.6 [+0.0, +15.0] 2".split()


def ranked_runs(folder, orders):
    """FixMatch, with LA and with DASO; for each seed the tests that they get."""
    return [paper_run(folder, seed=seed, rebalance=rebalance, test=test) for seed, tests in enumerate(orders)
            for rebalance, test in zip(("", "la", "daso"), tests, strict=True)]


def test_the_order_of_methods_is_compared_with_the_papers(tmp_path):
    """In the paper FixMatch 77.5 < DASO 79.1 < LA 82.0, so far apart that printed errors move them seldom."""
    same = order_agreement(EQUAL, ranked_runs(tmp_path / "a", [(WORSE, BETTER, TEST)] * 3))
    assert (same["methods"], same["seeds"], same["correlation"], same["high"]) == (3, 3, 1, 1)
    assert same["low"] == 0.5  # where DASO and FixMatch are drawn in the other order
    opposite = order_agreement(EQUAL, ranked_runs(tmp_path / "b", [(BETTER, WORSE, TEST)] * 3))
    assert (opposite["correlation"], opposite["low"]) == (-1, -1)


def test_the_interval_of_the_order_widens_where_our_seeds_disagree(tmp_path):
    runs = ranked_runs(tmp_path, [(WORSE, BETTER, TEST), (WORSE, BETTER, TEST), (BETTER, WORSE, TEST)])
    found = order_agreement(EQUAL, runs)
    assert (found["low"], found["high"]) == (-1, 1)


def test_methods_are_compared_on_the_seeds_of_all_of_them(tmp_path):
    runs = ranked_runs(tmp_path, [(WORSE, BETTER, TEST)]) + [paper_run(tmp_path / "more", seed=1)]
    found = order_agreement(EQUAL, runs)
    assert (found["methods"], found["seeds"], found["correlation"]) == (3, 1, 1) and np.isnan(found["low"])
    few = order_agreement(EQUAL, runs[:2])
    assert few["methods"] == 2 and np.isnan(few["correlation"])
    assert order_agreement(EQUAL, [])["methods"] == 0


def test_a_split_of_the_paper_is_compared_with_its_own_column(tmp_path):
    """CIFAR100-LT with 50 labels: FixMatch 45.2 < LA 47.3 < DASO 49.8; on CIFAR10-LT DASO is below LA."""
    split = {"dataset": "cifar100", "n1": 50, "m1": 400, "gamma_l": 10.0, "gamma_u": 10.0}
    runs = [paper_run(tmp_path, rebalance=rebalance, test=test, **split)
            for rebalance, test in (("", WORSE), ("la", TEST), ("daso", BETTER))]
    (row,) = order_table(runs).to_dict("records")
    assert (row["paper"], row["methods"], row["correlation"]) == ("same split", 3, pytest.approx(1))


def test_every_data_set_is_compared_with_the_column_of_its_unlabeled_classes(tmp_path):
    digits = [make_run(tmp_path / "digits", unlabeled="reversed", rebalance=rebalance, test=test)
              for rebalance, test in (("", TEST), ("daso", BETTER), ("darp", WORSE), ("la", TEST))]
    table = order_table(ranked_runs(tmp_path, [(WORSE, BETTER, TEST)]) + digits)
    assert table[["dataset", "unlabeled", "paper", "methods"]].to_numpy().tolist() == [
        ["cifar10", "equal", "same split", 3],
        ["mnist5k", "reversed", "CIFAR10-LT", 3]]  # the paper has no LA with reversed classes
    assert table["correlation"].tolist() == pytest.approx([1, 0.5])  # 71.8 < 80.0 < 80.3
    assert format_orders(table).splitlines()[2].split() == [
        "mnist5k", "reversed", "CIFAR10-LT", "3", "1", "+0.50", "-"]
    assert reading(best_gaps([]), paired_changes([]), table) == (
        "Reading: order of 3 methods on cifar10, equal: rank correlation with the paper +1.00 (1 seed); "
        "order of 3 methods on mnist5k, reversed: rank correlation with the paper's on CIFAR10-LT +0.50 (1 seed).")


def test_the_reading_tells_splits_apart_and_prints_intervals_from_four_seeds_on(tmp_path):
    few = ranked_runs(tmp_path / "few", [(WORSE, BETTER, TEST)] * 3)
    many = [run for seed in range(4) for run in (
        paper_run(tmp_path / f"{seed}", seed=seed, n1=500, m1=4000, rebalance=rebalance, test=test)
        for rebalance, test in (("", WORSE), ("la", TEST), ("daso", BETTER)))]
    text = reading(best_gaps([]), paired_changes([]), order_table(few + many))
    assert "equal (n1 = 1500, m1 = 3000): rank correlation with the paper +1.00 (3 seeds)" in text
    assert re.search(r"equal \(n1 = 500, m1 = 4000\): rank correlation with the paper \+1.00 \[[+-]", text)


def test_the_reading_sets_crest_apart(tmp_path):
    """Its last generation is as long as the window: what it gains there is in the difference."""
    runs = [paper_run(tmp_path), paper_run(tmp_path, rebalance="crest"), paper_run(tmp_path, rebalance="crest_plus")]
    for run, best in zip(runs, (0.66, 0.75, 0.85), strict=True):
        run.result["plain"]["best"] = best
    text = reading(best_gaps(runs), paired_changes([]), order_table([]))
    assert "evaluation of a run is 1.0 to 1.0 points" in text
    assert "evaluation of CReST, whose last generation these 20 are, is 10.0 to 20.0 points" in text
    assert format_orders(order_table([])) == "no finished runs to compare"
