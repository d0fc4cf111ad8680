"""Run folders as records and tables: worked by hand on four classes."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from dasolib.methods import LEARNERS
from dasolib.rebalance import REBALANCERS, check_combination
from dasolib.results import (
    bias_table,
    format_bias,
    format_shares,
    format_table,
    load_run,
    load_runs,
    method_label,
    over_seeds,
    results_table,
    select,
    share_change,
    share_table,
)
from tests.hand_made import FINAL, TEST, counts_of, make_run, write_run

BETTER = np.array([[9, 1, 0, 0], [0, 10, 0, 0], [0, 0, 10, 0], [7, 0, 0, 3]])  # 32 of 40 right


def legal_combinations():
    """Yield every base learner with every set of re-balancing methods that is not refused."""
    for method in LEARNERS:
        for n in range(len(REBALANCERS) + 1):
            for names in itertools.combinations(REBALANCERS, n):
                try:
                    check_combination(method, names)
                except ValueError:
                    continue
                yield method, names


def test_every_legal_combination_has_a_label_of_its_own():
    labels = [method_label(method, names) for method, names in legal_combinations()]
    assert len(labels) == len(set(labels)) >= 10
    assert {"Supervised", "FixMatch", "FixMatch + LA", "FixMatch + DASO", "FixMatch + LA + DASO"} <= set(labels)


def test_a_name_without_label_is_refused():
    with pytest.raises(ValueError, match="'fixmach' has no label; choose from supervised, fixmatch"):
        method_label("fixmach", ())


def test_a_run_is_read_from_the_small_files_alone(tmp_path):
    folder = write_run(tmp_path / "r", rebalance="daso", seed=3)
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json", "metrics.jsonl", "pseudo_labels.npz", "result.json"]
    run = load_run(folder)
    assert (run.name, run.label, run.config["seed"]) == ("r", "FixMatch + DASO", 3)
    assert run.result["plain"]["accuracy"] == 0.65
    assert run.metrics["step"].tolist() == [10, 20, 30]
    assert run.metrics["losses/labeled"].tolist() == [1.0] * 3
    np.testing.assert_array_equal(run.counts["test"][-1], TEST)
    np.testing.assert_array_equal(run.pseudo_labels("final")[0], FINAL)


def test_last_pseudo_labels_add_up_the_last_twenty_windows(tmp_path):
    np.testing.assert_array_equal(make_run(tmp_path, evaluations=25).last_pseudo_labels(), 20 * FINAL)


def test_an_unknown_kind_of_pseudo_label_is_refused(tmp_path):
    with pytest.raises(ValueError, match="kind='best': choose one of linear, semantic, final, confident"):
        make_run(tmp_path).pseudo_labels("best")


def test_a_run_in_training_is_read_up_to_its_last_complete_evaluation(tmp_path):
    folder = write_run(tmp_path / "r", finished=False)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "accuracy": 0.7}\n{"step": 50, "accu')
    run = load_run(folder)
    assert run.result is None
    assert run.metrics["step"].tolist() == run.counts["step"].tolist() == [10, 20, 30]


def test_a_run_that_has_just_begun_has_no_evaluation(tmp_path):
    run = load_run(write_run(tmp_path / "r", evaluations=0, finished=False))
    assert len(run.metrics) == 0 and run.counts == {} and run.result is None


def test_a_finished_run_whose_files_disagree_is_refused(tmp_path):
    folder = write_run(tmp_path / "r")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="is finished, and metrics.jsonl and pseudo_labels.npz hold different"):
        load_run(folder)


def test_a_folder_that_is_no_run_or_has_another_schema_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no run: it has no config.json"):
        load_run(tmp_path)
    folder = write_run(tmp_path / "r")
    (folder / "config.json").write_text(json.dumps({"schema": 99}))
    with pytest.raises(ValueError, match="schema=99, and only 1 can be read"):
        load_run(folder)


def test_runs_come_by_method_and_seed_and_other_files_are_left_alone(tmp_path):
    for rebalance, seed in (("la,daso", 0), ("daso", 1), ("", 0), ("daso", 0)):
        make_run(tmp_path, rebalance=rebalance, seed=seed)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes.txt").write_text("not a run")
    assert [(run.label, run.config["seed"]) for run in load_runs(tmp_path)] == [
        ("FixMatch", 0), ("FixMatch + DASO", 0), ("FixMatch + DASO", 1), ("FixMatch + LA + DASO", 0)]


def test_a_missing_folder_of_runs_is_refused_and_an_empty_one_is_not(tmp_path):
    assert load_runs(tmp_path) == []
    with pytest.raises(ValueError, match="folder='.*absent' does not exist"):
        load_runs(tmp_path / "absent")


def test_select_takes_settings_and_labels(tmp_path):
    runs = [make_run(tmp_path, rebalance="daso", unlabeled=u) for u in ("equal", "reversed")]
    assert select(runs, method="FixMatch + DASO", unlabeled="equal") == runs[:1]
    assert select(runs, method="FixMatch") == []
    with pytest.raises(ValueError, match="settings has 'unlabelled'; choose from dataset"):
        select(runs, unlabelled="equal")


def test_table_has_mean_and_sample_std_over_seeds(tmp_path):
    """Accuracies .65 and .8: mean .725, sample standard deviation .15 / sqrt(2)."""
    runs = [make_run(tmp_path, seed=0), make_run(tmp_path, seed=1, test=BETTER)]
    (row,) = results_table(runs).to_dict("records")
    assert (row["method"], row["unlabeled"], row["dataset"], row["seeds"]) == ("FixMatch", "reversed", "mnist5k", 2)
    assert row["accuracy"] == row["adjusted"] == pytest.approx(0.725)
    assert row["accuracy_std"] == row["adjusted_std"] == pytest.approx(0.15 / 2**0.5)
    assert row["minutes"] == pytest.approx(3.0)
    assert row["missing"] == ""


def test_one_seed_has_no_std(tmp_path):
    (row,) = results_table([make_run(tmp_path)]).to_dict("records")
    assert np.isnan(row["accuracy_std"]) and row["seeds"] == 1


def test_the_number_is_the_stored_median_and_best_stands_beside_it(tmp_path):
    folder = write_run(tmp_path / "r")
    result = json.loads((folder / "result.json").read_text())
    result["plain"] |= {"accuracy": 0.5, "last": 0.6, "best": 0.9}
    result["adjusted"] |= {"accuracy": 0.55, "best": 0.95}
    (folder / "result.json").write_text(json.dumps(result))
    (row,) = results_table([load_run(folder)]).to_dict("records")
    assert [row[name] for name in ("accuracy", "accuracy_best", "adjusted", "adjusted_best")] == [0.5, 0.9, 0.55, 0.95]


def test_absent_and_unfinished_runs_are_named_and_never_averaged(tmp_path):
    runs = [make_run(tmp_path, seed=0), make_run(tmp_path, seed=1, test=BETTER, finished=False)]
    methods = ("FixMatch + DASO", "FixMatch")
    expected = [("mnist5k", "reversed", method, seed) for method in methods for seed in (0, 1, 2)]
    absent, partial = results_table(runs, expected=expected).to_dict("records")
    assert (absent["method"], absent["seeds"], absent["missing"]) == (
        "FixMatch + DASO", 0, "s0 absent, s1 absent, s2 absent")
    assert np.isnan(absent["accuracy"])
    assert (partial["accuracy"], partial["seeds"]) == (0.65, 1)
    assert partial["missing"] == "s1 unfinished at step 30 of 10000, s2 absent"


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path):
    runs = [make_run(tmp_path, seed=0), make_run(tmp_path, seed=1, lr=0.01)]
    with pytest.raises(ValueError, match="differ in lr: 0.03, 0.01; leave one out, or add lr to by"):
        results_table(runs)
    table = results_table(runs, by=("method", "lr"))
    assert table[["lr", "seeds"]].to_numpy().tolist() == [[0.03, 1], [0.01, 1]]


def test_two_runs_of_one_seed_are_refused(tmp_path):
    runs = [make_run(tmp_path, seed=0), make_run(tmp_path / "again", seed=0)]
    with pytest.raises(ValueError, match="are in one group and have the same seed"):
        results_table(runs)


def test_a_column_that_is_no_setting_is_refused():
    with pytest.raises(ValueError, match="by has 'colour'; choose from"):
        results_table([], by=("colour",))
    with pytest.raises(ValueError, match=r"expected has \('FixMatch', 0\); give a value for each of dataset"):
        results_table([], expected=[("FixMatch", 0)])


def test_the_printed_table_is_in_percent_and_says_what_its_columns_are(tmp_path):
    runs = [make_run(tmp_path, seed=0), make_run(tmp_path, seed=1, test=BETTER), make_run(tmp_path, rebalance="daso")]
    head, fixmatch, daso, *notes = format_table(results_table(runs)).splitlines()
    assert head.split() == ["dataset", "unlabeled", "method", "acc.", "acc.+LA", "best*", "best+LA*", "minutes",
                            "seeds", "missing"]
    assert fixmatch.split() == "mnist5k reversed FixMatch 72.5 ± 10.6 72.5 ± 10.6 72.5 72.5 3.0 2 -".split()
    assert daso.split() == "mnist5k reversed FixMatch + DASO 65.0 65.0 65.0 65.0 3.0 1 -".split()
    assert any("median of the last 20 evaluations" in note for note in notes)
    assert any("never used to choose" in note for note in notes)


def test_bias_per_class_and_per_group_is_as_worked_by_hand(tmp_path):
    table = bias_table([make_run(tmp_path)]).set_index("part")
    np.testing.assert_allclose(table.loc[[0, 1, 2, 3], "recall"].astype(float), [0.8, 0.5, 0.5, 0.4])
    np.testing.assert_allclose(table.loc[[0, 1, 2, 3], "precision"].astype(float), [8 / 14, 1, 1, 0.5])
    np.testing.assert_allclose(table.loc[[0, 1, 2, 3], "accuracy"].astype(float), [0.9, 0.8, 0.6, 0.3])
    np.testing.assert_allclose(table.loc[["head", "medium", "tail"], ["recall", "precision", "accuracy"]].astype(float),
                               [[0.8, 8 / 14, 0.9], [0.5, 1, 0.7], [0.4, 0.5, 0.3]])


def test_precision_of_a_class_never_predicted_is_missing_and_left_out_of_its_group(tmp_path):
    never_two = counts_of([8, 0, 0, 2], [2, 2, 0, 0], [2, 0, 0, 0], [3, 0, 0, 2])
    run = make_run(tmp_path, final=never_two)
    table = bias_table([run]).set_index("part")
    assert np.isnan(table.loc[2, "precision"]) and table.loc[2, "recall"] == 0
    assert table.loc["medium", "precision"] == 1
    assert format_bias(bias_table([run])).splitlines()[2].split()[-2] == "-"


def test_an_unfinished_run_has_no_place_in_the_bias_table(tmp_path):
    with pytest.raises(ValueError, match="run r is unfinished"):
        bias_table([load_run(write_run(tmp_path / "r", finished=False))])


def test_mean_over_seeds_is_missing_where_one_seed_lacks_the_value(tmp_path):
    never_two = counts_of([8, 0, 0, 2], [2, 2, 0, 0], [2, 0, 0, 0], [3, 0, 0, 2])
    stats = over_seeds(bias_table([make_run(tmp_path, seed=0), make_run(tmp_path, seed=1, final=never_two)]))
    assert np.isnan(stats["mean"].loc[("FixMatch", 2), "precision"])
    assert stats["mean"].loc[("FixMatch", 2), "recall"] == pytest.approx(0.25)
    assert stats["std"].loc[("FixMatch", 2), "recall"] == pytest.approx(0.5 / 2**0.5)
    assert stats["count"].loc[("FixMatch", 2)] == 2


def test_the_printed_bias_has_groups_first_and_a_row_of_std_only_for_several_seeds(tmp_path):
    one = format_bias(bias_table([make_run(tmp_path, seed=0)])).splitlines()
    assert one[0].split() == ["method", "in", "%", "seeds", "head", "medium", "tail", "0", "1", "2", "3"]
    assert one[1].split() == "FixMatch recall 1 mean 80.0 50.0 40.0 80.0 50.0 50.0 40.0".split()
    assert not any(" std " in line for line in one)
    two = format_bias(bias_table([make_run(tmp_path, seed=1), make_run(tmp_path, seed=2, test=BETTER)])).splitlines()
    assert two[6].split() == "FixMatch accuracy 2 std 0.0 21.2 0.0 0.0 14.1 28.3 0.0".split()
    assert format_bias(bias_table([])) == "no finished run"


def test_shares_are_those_of_all_pseudo_labels_and_of_their_true_classes(tmp_path):
    table = share_table([make_run(tmp_path, rebalance="daso")])
    np.testing.assert_allclose(table.loc["FixMatch + DASO"], np.array([14, 2, 1, 4]) / 21)
    np.testing.assert_allclose(table.loc["true"], np.array([10, 4, 2, 5]) / 21)
    assert format_shares(table).splitlines()[1].split() == "FixMatch + DASO share 66.7 9.5 4.8 19.0".split()
    assert format_shares(share_table([])) == "no finished run"


def test_the_change_of_shares_is_half_the_summed_difference_between_successive_windows(tmp_path):
    run = make_run(tmp_path)
    counts = np.zeros((3, 4, 3, 2), dtype=np.int64)  # three windows of two classes
    counts[:, 2, 0] = [[8, 2], [2, 8], [8, 2]]
    swinging = dataclasses.replace(run, counts=run.counts | {"pseudo_labels": counts})
    assert share_change([swinging]) == {"FixMatch": pytest.approx(0.6)}
    counts = np.repeat(counts[:1], 3, axis=0)
    steady = dataclasses.replace(run, counts=run.counts | {"pseudo_labels": counts})
    assert share_change([steady]) == {"FixMatch": 0.0}
    assert share_change([swinging, steady]) == {"FixMatch": pytest.approx(0.3)}
