"""Pseudo-labels with and without DASO: which runs are shown, and averages beside the paper's."""

import numpy as np
import pytest

from dasolib.bias import accuracy_table, averages, choose, finished, format_averages, format_chosen, reading
from tests.hand_made import TEST, make_run
from tests.test_comparison import paper_run
from tests.test_results import BETTER

BOTH = "FixMatch + DASO, FixMatch"


@pytest.fixture
def runs(tmp_path):
    """FixMatch with seeds 0 and 1, with DASO seed 0 and unfinished seed 1, on equal classes; others beside them."""
    return [
        paper_run(tmp_path), paper_run(tmp_path, seed=1, rebalance=""), paper_run(tmp_path, seed=0, rebalance="la"),
        paper_run(tmp_path / "daso", rebalance="daso", test=BETTER),
        paper_run(tmp_path / "daso", rebalance="daso", seed=1, finished=False),
        paper_run(tmp_path / "changed", rebalance="daso", ema_train_mode=False), make_run(tmp_path / "digits")]


def test_runs_are_chosen_by_kind_and_in_the_order_of_the_methods(runs):
    chosen = choose(runs, dataset="cifar10", unlabeled="equal, reversed", methods=BOTH)
    assert [(run.label, run.config["seed"]) for run in chosen["equal"]] == [
        ("FixMatch + DASO", 0), ("FixMatch + DASO", 1), ("FixMatch", 0), ("FixMatch", 1)]
    assert chosen["reversed"] == [] and [len(part) for part in finished(chosen).values()] == [3, 0]
    assert format_chosen(chosen, dataset="cifar10", methods=BOTH).splitlines() == [
        "cifar10, unlabeled classes equal: runs of all these methods",
        "cifar10, unlabeled classes reversed: no run of FixMatch + DASO, FixMatch"]
    table = accuracy_table(chosen, dataset="cifar10")
    assert table[["method", "seeds", "missing"]].to_numpy().tolist() == [
        ["FixMatch + DASO", 1, "s1 unfinished at step 30 of 10000"], ["FixMatch", 2, ""]]
    with pytest.raises(ValueError, match="settings has 'colour'"):
        choose(runs, dataset="cifar10", unlabeled="equal", methods=BOTH, colour=1)


def test_averages_are_over_classes_and_stand_beside_those_of_the_paper(runs):
    """Recall .8, .5, .5, .4 and precision 8/14, 1, 1, .5; figure 5 has .79, .76 and 76.3 % of DASO."""
    part = finished(choose(runs, dataset="cifar10", unlabeled="equal", methods=BOTH))["equal"]
    table = averages(part, dataset="cifar10", kind="equal", methods=f"{BOTH}, USADTM")
    assert table.index.tolist() == ["FixMatch + DASO", "FixMatch", "USADTM"]
    assert table.loc["FixMatch + DASO"].tolist() == pytest.approx(
        [1, 0.55, (8 / 14 + 2.5) / 4, 0.8, 0.79, 0.76, 0.763])
    assert table.loc["USADTM", "seeds"] == 0 and np.isnan(table.loc["USADTM", "recall"])
    text = format_averages({"equal": part, "reversed": []}, dataset="cifar10", methods=BOTH)
    assert text.startswith("cifar10, unlabeled classes equal; paper°: figure 5 (n1 = 500, m1 = 4000)\n")
    assert "USADTM" not in text
    assert text.endswith("\n\ncifar10, unlabeled classes reversed; no averages in the paper\nno finished run")


def test_the_reading_is_about_the_seeds_of_both(runs):
    """On seed 0 .8 against .65; FixMatch has seed 1 alone."""
    parts = finished(choose(runs, dataset="cifar10", unlabeled="equal", methods=BOTH))
    assert reading(parts, dataset="cifar10") == (
        "Reading: cifar10 equal: FixMatch 65.0 % -> with DASO 80.0 % (+15.0 points, 1 seed, too few to say); "
        "recall of pseudo-labels, head 80.0 -> 80.0 %, tail 40.0 -> 40.0 %.")
    assert reading({"equal": []}, dataset="cifar10") == "Reading: no pair of finished runs to compare."


def test_the_reading_counts_seeds_from_three_on(tmp_path):
    runs = [paper_run(tmp_path / rebalance, rebalance=rebalance, seed=seed, test=test)
            for seed in range(3) for rebalance, test in (("", TEST), ("daso", BETTER if seed else TEST))]
    assert "(+10.0 ± 8.7 points, above 0 on 2 of 3 seeds); recall" in reading({"equal": runs}, dataset="cifar10")
    assert "(+7.5 ± 10.6 points, 2 seeds, too few to say); recall" in reading({"equal": runs[:4]}, dataset="cifar10")
