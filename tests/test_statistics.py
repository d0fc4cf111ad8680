"""Intervals over seeds, paired differences, and orders of methods: against scipy, and worked by hand."""

import numpy as np
import pytest
from scipy import stats

from dasolib import published
from dasolib.statistics import (
    best_gaps,
    estimate,
    format_estimates,
    format_orders,
    holm,
    order_agreement,
    order_table,
    p_value,
    paired_changes,
    reading,
    sampling_errors,
)
from tests.hand_made import TEST, make_run
from tests.test_comparison import paper_run
from tests.test_results import BETTER

MAIN = published.main_columns()
EQUAL = MAIN[MAIN["unlabeled"] == "equal"]
WORSE = np.array([[6, 4, 0, 0], [2, 8, 0, 0], [4, 0, 6, 0], [10, 0, 0, 0]])  # 20 of 40 right; TEST 26, BETTER 32


def test_a_paired_difference_has_scipys_interval_and_p():
    before, after = np.array([0.61, 0.65, 0.66, 0.72, 0.8]), np.array([0.64, 0.64, 0.71, 0.79, 0.81])
    found, theirs = estimate(after - before), stats.ttest_rel(after, before)
    interval = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(0.03) and found.std == pytest.approx(np.std(after - before, ddof=1))
    assert p_value(after - before) == pytest.approx(theirs.pvalue) and found.seeds == 5


@pytest.mark.parametrize("n", [3, 5])
def test_an_interval_holds_the_mean_as_often_as_it_says(n):
    """Of 2,000 samples with the mean 0; 3 standard errors are 1.5 %."""
    found = [estimate(sample) for sample in np.random.default_rng(0).normal(size=(2000, n))]
    assert np.mean([each.low <= 0 <= each.high for each in found]) == pytest.approx(0.95, abs=0.015)


def test_below_three_seeds_there_is_no_interval_and_no_p():
    assert estimate([0.5]).mean == 0.5 and np.isnan(estimate([0.5])[1:4]).all()
    assert np.isnan(estimate([])[:4]).all() and estimate([]).seeds == 0
    assert estimate([0.5, 0.7]).std == pytest.approx(0.2 / 2**0.5) and np.isnan(estimate([0.5, 0.7])[2:4]).all()
    assert np.isnan([p_value([]), p_value([0.5]), p_value([0.5, 0.7])]).all()


def test_equal_differences_have_an_interval_without_width():
    assert estimate([0.5] * 3)[2:4] == (0.5, 0.5) and p_value([0.5] * 3) == 0
    assert estimate([0.0] * 3)[2:4] == (0, 0) and np.isnan(p_value([0.0] * 3))


def test_holm_rejects_no_true_hypothesis_in_95_of_100_tables():
    """Of 20 comparisons without any difference; raw, two tables of three have a p below .05."""
    p = np.random.default_rng(0).uniform(size=(2000, 20))
    assert (p.min(axis=1) < 0.05).mean() > 0.6
    assert np.mean([(holm(each) < 0.05).any() for each in p]) == pytest.approx(0.05, abs=0.015)


def test_daso_is_compared_on_the_seeds_of_both(tmp_path):
    """On seeds 0 and 1: .8 - .65 and .5 - .8; seed 2 has no run without DASO, seed 3 none with it."""
    runs = [paper_run(tmp_path, seed=0), paper_run(tmp_path, seed=1, test=BETTER), paper_run(tmp_path, seed=3),
            paper_run(tmp_path, seed=0, rebalance="daso", test=BETTER),
            paper_run(tmp_path, seed=1, rebalance="daso", test=WORSE), paper_run(tmp_path, seed=2, rebalance="daso")]
    (row,) = paired_changes(runs).to_dict("records")
    assert (row["dataset"], row["unlabeled"], row["method"], row["change"]) == ("cifar10", "equal", "FixMatch",
                                                                                "+ DASO")
    assert (row["mean"], row["seeds"], row["std"]) == pytest.approx((-0.075, 2, 0.45 / 2**0.5))
    assert np.isnan([row[name] for name in ("low", "high", "p", "p_holm")]).all()


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
        "dataset unlabeled n1 total_steps paper methods seeds rank correlation p Holm".split())
    with pytest.raises(ValueError, match="several splits or scales of FixMatch"):
        order_agreement(EQUAL, runs)


def test_differences_of_three_seeds_are_counted_raw_and_corrected(tmp_path):
    """+ DASO on three seeds: .15, .15, .25; on LA .15, .15, -.15. Two comparisons: Holm doubles the smaller p."""
    best = np.array([[10, 0, 0, 0], [0, 10, 0, 0], [0, 0, 10, 0], [4, 0, 0, 6]])
    runs = [paper_run(tmp_path, seed=seed, rebalance=rebalance, test=test)
            for seed, tests in enumerate(((TEST, BETTER, TEST, BETTER), (TEST, BETTER, TEST, BETTER),
                                          (TEST, best, BETTER, TEST)))
            for rebalance, test in zip(("", "daso", "la", "la,daso"), tests, strict=True)]
    changes, orders = paired_changes(runs), order_table(runs)
    p = [p_value([0.15, 0.15, 0.25]), p_value([0.15, 0.15, -0.15])]
    assert changes[["p", "p_holm"]].to_numpy().tolist() == [
        pytest.approx([p[0], 2 * p[0]]), pytest.approx([p[1], p[1]])]
    assert format_estimates(changes).splitlines()[-1] == "Holm: for 2 comparisons"
    line = "+ DASO: 2 of 2 differences are above 0, +11.7 points on average"
    assert p[0] < 0.05 < 2 * p[0]
    assert (f"; {line}; intervals from 3 seeds or more: 1 of 2 above 0, 0 below; corrected for 2 comparisons 0 above, "
            "0 below;") in reading(best_gaps(runs), changes, orders)
    few = [run for run in runs if run.config["seed"] < 2]
    assert "intervals" not in reading(best_gaps(few), paired_changes(few), orders)


def test_the_choice_of_test_images_has_its_own_error(tmp_path):
    """.65 and .8 of 40 images: 7.5 and 6.3 points."""
    runs = [paper_run(tmp_path), paper_run(tmp_path, rebalance="daso", test=BETTER),
            paper_run(tmp_path, seed=1, finished=False)]
    assert sampling_errors(runs).startswith("cifar10: 40 test images, whose choice alone gives an accuracy a standard "
                                            "error of 6.3 to 7.5 points (binomial)")


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
    assert (row["mean"], row["std"]) == pytest.approx((0.075, 0.05 / 2**0.5))


def test_estimates_are_printed_in_points(tmp_path):
    runs = [make_run(tmp_path, seed=seed, rebalance=rebalance, test=test)
            for seed, last in enumerate((BETTER, TEST, TEST)) for rebalance, test in (("", TEST), ("daso", last))]
    head, line, note = format_estimates(paired_changes(runs)).splitlines()
    assert head.split() == "dataset unlabeled method change points interval seeds p Holm".split()
    assert line.split() == "mnist5k reversed FixMatch + DASO +5.0 ± 8.7 [-16.5, +26.5] 3 0.4226 0.4226".split()
    assert note == "Holm: for 1 comparison"
    few = format_estimates(paired_changes(runs[:4])).splitlines()
    assert few[1].split()[-7:] == "+7.5 ± 10.6 - 2 - -".split() and few[2] == "Holm: for 0 comparisons"


def ranked_runs(folder, orders):
    """FixMatch, with LA and with DASO; for each seed the tests that they get."""
    return [paper_run(folder, seed=seed, rebalance=rebalance, test=test) for seed, tests in enumerate(orders)
            for rebalance, test in zip(("", "la", "daso"), tests, strict=True)]


def test_the_order_of_methods_is_compared_with_the_papers(tmp_path):
    """In the paper FixMatch 77.5 < DASO 79.1 < LA 82.0; of the six orders of three, two are as far from 0."""
    same = order_agreement(EQUAL, ranked_runs(tmp_path / "a", [(WORSE, BETTER, TEST)] * 3))
    assert same == {"methods": 3, "seeds": 3, "correlation": pytest.approx(1), "p": pytest.approx(1 / 3)}
    opposite = order_agreement(EQUAL, ranked_runs(tmp_path / "b", [(BETTER, WORSE, TEST)] * 3))
    assert opposite["correlation"] == pytest.approx(-1) and opposite["p"] == pytest.approx(1 / 3)
    level = order_agreement(EQUAL, ranked_runs(tmp_path / "c", [(TEST, TEST, TEST)] * 3))
    assert np.isnan([level["correlation"], level["p"]]).all()


def test_the_correlation_is_spearmans_with_a_p_from_permutations(tmp_path):
    """Six methods, two of which are equal here."""
    tests = [TEST, BETTER, WORSE, np.diag([9, 9, 9, 9]) + np.eye(4, k=1, dtype=int), np.diag([10] * 4), TEST]
    names = ("", "la", "daso", "darp", "crest", "abc")
    runs = [paper_run(tmp_path, rebalance=name, test=test) for name, test in zip(names, tests, strict=True)]
    cells = EQUAL[(EQUAL["measure"] == "accuracy") & (EQUAL["variant"] == "")].drop_duplicates("method")
    paper = cells.set_index("method").loc[[run.label for run in runs], "published"].to_numpy()
    ours = np.array([run.result["plain"]["accuracy"] for run in runs])
    found = order_agreement(EQUAL, runs)
    assert found["methods"] == 6
    assert found["correlation"] == pytest.approx(stats.spearmanr(ours, paper).statistic)
    theirs = stats.permutation_test((ours,), lambda values: stats.spearmanr(values, paper).statistic,
                                    permutation_type="pairings", n_resamples=np.inf)
    assert found["p"] == pytest.approx(theirs.pvalue)


def test_methods_are_compared_on_the_seeds_of_all_of_them(tmp_path):
    runs = ranked_runs(tmp_path, [(WORSE, BETTER, TEST)]) + [paper_run(tmp_path / "more", seed=1)]
    found = order_agreement(EQUAL, runs)
    assert (found["methods"], found["seeds"], found["correlation"]) == (3, 1, pytest.approx(1))
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
        "mnist5k", "reversed", "CIFAR10-LT", "3", "1", "+0.50", "1.0000", "1.0000"]
    assert reading(best_gaps([]), paired_changes([]), table) == (
        "Reading: order of 3 methods on cifar10, equal: rank correlation with the paper +1.00 (p = 0.33, Holm "
        "0.67; 1 seed); "
        "order of 3 methods on mnist5k, reversed: rank correlation with the paper's on CIFAR10-LT +0.50 (p = 1, "
        "Holm 1; 1 seed).")


def test_the_reading_tells_splits_apart(tmp_path):
    tests = (WORSE, BETTER, TEST)
    runs = ranked_runs(tmp_path / "a", [tests] * 3) + [
        paper_run(tmp_path / "b", n1=500, m1=4000, rebalance=rebalance, test=test)
        for rebalance, test in (("", WORSE), ("la", TEST), ("daso", BETTER))]
    text = reading(best_gaps([]), paired_changes([]), order_table(runs))
    assert "equal (n1 = 1500, m1 = 3000): rank correlation with the paper +1.00 (p = 0.33, Holm 0.67; 3 seeds)" in text
    assert "equal (n1 = 500, m1 = 4000): rank correlation with the paper +1.00 (p = 0.33, Holm 0.67; 1 seed)" in text


def test_the_reading_sets_crest_apart(tmp_path):
    """Its last generation is as long as the window: what it gains there is in the difference."""
    runs = [paper_run(tmp_path), paper_run(tmp_path, rebalance="crest"), paper_run(tmp_path, rebalance="crest_plus")]
    for run, best in zip(runs, (0.66, 0.75, 0.85), strict=True):
        run.result["plain"]["best"] = best
    text = reading(best_gaps(runs), paired_changes([]), order_table([]))
    assert "evaluation of a run is 1.0 to 1.0 points" in text
    assert "evaluation of CReST, whose last generation these 20 are, is 10.0 to 20.0 points" in text
    assert format_orders(order_table([])) == "no finished runs to compare"
