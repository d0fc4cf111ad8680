"""Run folders as records and tables: worked by hand on four classes."""

import dataclasses
import itertools
import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest

from dasolib.config import SCHEMA
from dasolib.methods import LEARNERS
from dasolib.rebalance import BUILT_IN, REBALANCERS, check_combination
from dasolib.results import (
    NAMES,
    STUDY,
    bias_table,
    class_names,
    confusion_reading,
    format_bias,
    format_chance,
    format_confusion,
    format_estimate,
    format_runs,
    format_shares,
    format_table,
    format_validation,
    last_tests,
    load_run,
    load_runs,
    method_label,
    over_seeds,
    results_table,
    select,
    share_change,
    share_table,
    study_runs,
    telling,
    validation_table,
)
from dasolib.run_files import read_result, write_json, write_result
from tests.hand_made import FINAL, TEST, counts_of, make_run, write_run

ALL_UNKNOWN = np.array([[0] * 4] * 4 + [[14, 2, 1, 4]])  # the labels of FINAL, without any true class
SOME_UNKNOWN = np.array([*FINAL[:4], [3, 0, 2, 0]])  # FINAL and five images of unknown class
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


def test_every_method_has_a_name_of_its_own_in_the_order_of_the_tables():
    assert list(NAMES) == [*LEARNERS, *BUILT_IN]
    assert len(set(NAMES.values())) == len(NAMES)


def test_labels_are_written_as_in_the_paper_in_table_order():
    labels = {method_label(*combination) for combination in legal_combinations()}
    assert {"Pseudo-Label", "Mean Teacher + DASO", "MixMatch", "ReMixMatch + CReST+", "USADTM", "Supervised + cRT",
            "FixMatch + DA", "FixMatch + LA + DARP", "FixMatch + DASO + ABC", "FixMatch + BOSS", "FixMatch + CReST",
            "Supervised + LDAM-DRW", "Distribution estimate"} <= labels


def test_an_own_method_is_printed_as_it_is_named_and_never_like_a_built_in_one():
    assert method_label("fixmatch", ("la", "divide_by_prior")) == "FixMatch + LA + divide_by_prior"
    assert method_label("fixmatch", ("DASO",)) == "FixMatch + DASO (own)"


def edit_config(folder, **changes):
    """As a script that converts runs does."""
    write_json(folder / "config.json", json.loads((folder / "config.json").read_text()) | changes)
    write_result(folder, read_result(folder))


def test_a_run_of_an_own_method_is_read_and_tabled_where_it_is_not_registered(tmp_path):
    folder = write_run(tmp_path / "r")
    edit_config(folder, rebalance=["divide_by_prior"])
    assert "divide_by_prior" not in REBALANCERS
    runs = load_runs(tmp_path)
    assert results_table(runs)["method"].tolist() == ["FixMatch + divide_by_prior"]
    assert format_bias(bias_table(runs)).splitlines()[1].startswith("FixMatch + divide_by_prior recall")


def test_runs_come_by_base_learner_then_number_of_methods_then_table_order_and_own_ones_last(tmp_path):
    order = [("supervised", ["crt"]), ("mean_teacher", []), ("mean_teacher", ["daso"]), ("usadtm", []),
             ("fixmatch", []), ("fixmatch", ["la"]), ("fixmatch", ["darp"]), ("fixmatch", ["daso"]),
             ("fixmatch", ["crest_plus"]), ("fixmatch", ["abc"]), ("fixmatch", ["a_method"]),
             ("fixmatch", ["the_method"]), ("fixmatch", ["la", "daso"]), ("fixmatch", ["daso", "abc"]),
             ("own_learner", [])]
    for i, (method, rebalance) in enumerate(order):
        folder = write_run(tmp_path / f"{len(order) - i:02}")
        edit_config(folder, method=method, rebalance=rebalance)
    assert [(run.config["method"], run.config["rebalance"]) for run in load_runs(tmp_path)] == order


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
    write_result(folder, read_result(folder))
    with pytest.raises(ValueError, match="metrics.jsonl is damaged .*different evaluations.; restore it from a copy"):
        load_run(folder)


def test_a_folder_that_is_no_run_or_has_another_schema_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no run: it has no config.json"):
        load_run(tmp_path)
    folder = write_run(tmp_path / "r")
    edit_config(folder, schema=99)
    with pytest.raises(ValueError, match=f"schema=99, and only {SCHEMA} can be read"):
        load_run(folder)


@pytest.mark.parametrize(("name", "changed"), [("accuracy", 0.66), ("last", 0.5), ("balanced", None)])
@pytest.mark.parametrize("has_checksums", [True, False])
def test_a_result_that_does_not_follow_from_its_counts_is_refused(name, changed, has_checksums, tmp_path):
    folder = write_run(tmp_path / "r")
    result = read_result(folder)
    result["plain"] |= {name: changed}
    if has_checksums:
        write_result(folder, result)
    else:
        del result["sha256"]
        write_json(folder / "result.json", result)
    with pytest.raises(ValueError, match=r"r/result.json is damaged \(it does not fit the counts .*: plain\); restore"):
        load_run(folder)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "pseudo_labels.npz", "result.json"])
def test_a_finished_run_without_checksums_is_read_without_a_warning(name, tmp_path):
    folder = write_run(tmp_path / "r")
    write_json(folder / "result.json", {key: value for key, value in read_result(folder).items() if key != "sha256"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_run(folder).result["plain"]["accuracy"] == 0.65
    (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"r/{name} is damaged .*; restore it from a copy, or move the folder away"):
        load_run(folder)


@pytest.mark.parametrize("content", ['{\n  // rate\n  "lr": 0.1\n}', "", '["vit"]', "{}", "\x00", '{"schema": 1, "met'])
def test_what_is_no_run_is_left_out_with_a_warning_and_refused_by_name(content, tmp_path):
    write_run(tmp_path / "r")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(content)
    with pytest.warns(UserWarning, match="left out: .*other/config.json is damaged"):
        assert [run.name for run in load_runs(tmp_path)] == ["r"]
    with pytest.raises(ValueError, match="other/config.json is damaged"):
        load_run(tmp_path / "other")


def test_a_finished_run_that_lost_its_configuration_is_left_out_with_a_warning(tmp_path):
    write_run(tmp_path / "r")
    write_run(tmp_path / "other", seed=1)
    (tmp_path / "other" / "config.json").unlink()
    with pytest.warns(UserWarning, match="left out: .*other/config.json is damaged .there is no such file"):
        assert [run.name for run in load_runs(tmp_path)] == ["r"]


def test_a_changed_list_of_checksums_is_noticed(tmp_path):
    write_run(tmp_path / "r")
    result = write_result(tmp_path / "r", {name: value for name, value in read_result(tmp_path / "r").items()
                                           if name != "sha256"})
    result["sha256"]["metrics.json"] = result["sha256"].pop("metrics.jsonl")
    (tmp_path / "r" / "result.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match="r/result.json is damaged .its checksum"):
        load_run(tmp_path / "r")


@pytest.mark.parametrize("name", ["config.json", "result.json", "environment.json"])
def test_a_damaged_file_of_a_run_is_named(tmp_path, name):
    folder = write_run(tmp_path / "r")
    (folder / name).write_text("{")
    with pytest.raises(ValueError, match=f"{name} is damaged \\("):
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


def test_runs_of_several_folders_are_read_together_and_counted_by_folder(tmp_path):
    make_run(tmp_path / "a", seed=1)
    make_run(tmp_path / "b", seed=0, finished=False)
    make_run(tmp_path / "b", seed=2)
    runs = load_runs(tmp_path / "a", tmp_path / "b")
    assert [run.config["seed"] for run in runs] == [0, 1, 2]
    assert study_runs(f"{tmp_path / 'a'}, {tmp_path / 'b'}")[1].name == runs[1].name == "1"
    assert format_runs(runs) == "b: 1 finished and 1 unfinished runs\na: 1 finished and 0 unfinished runs"
    assert format_runs([]) == "no runs"
    with pytest.raises(ValueError, match="folder='.*absent' does not exist"):
        load_runs(tmp_path / "a", tmp_path / "absent")


def test_notebooks_show_the_study_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr("dasolib.results.resolve", lambda path: tmp_path / path)
    for seed, folder in enumerate((*STUDY, "other")):
        make_run(tmp_path / folder, seed=seed)
    assert [run.config["seed"] for run in study_runs()] == list(range(len(STUDY)))
    assert [run.config["seed"] for run in study_runs("other")] == [len(STUDY)]


def test_settings_are_compared_on_validation_images(tmp_path):
    runs = [make_run(tmp_path, seed=seed) for seed in (0, 1)]
    with pytest.raises(ValueError, match="0 has no validation_accuracy: it is not finished, or no images were held"):
        validation_table(runs, by=("method", "seed"))
    runs = [dataclasses.replace(run, result=run.result | {"validation_accuracy": share, "seconds": 90})
            for run, share in zip(runs, (0.875, 0.5), strict=True)]
    table = validation_table(runs, by=("method", "seed"))
    assert table.to_dict("list") == {"method": ["FixMatch"] * 2, "seed": [0, 1], "validation": [0.875, 0.5],
                                     "minutes": [1.5, 1.5]}
    assert format_validation(table).splitlines()[1].split()[1:] == ["0", "87.5", "1.5"]
    with pytest.raises(ValueError, match="by"):
        validation_table(runs, by=("seeds",))


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
    run = load_run(folder)
    run.result["plain"] |= {"accuracy": 0.5, "last": 0.6, "best": 0.9}
    run.result["adjusted"] |= {"accuracy": 0.55, "best": 0.95}
    (row,) = results_table([run]).to_dict("records")
    assert [row[name] for name in ("accuracy", "accuracy_best", "adjusted", "adjusted_best")] == [0.5, 0.9, 0.55, 0.95]


def test_the_mask_rate_is_that_of_the_result_or_of_the_last_twenty_evaluations(tmp_path):
    run = make_run(tmp_path, evaluations=25)
    rates = [1.0] * 5 + [0.25] * 10 + [0.75] * 10
    without_it = {name: value for name, value in run.result.items() if name != "mask_rate"}
    older = dataclasses.replace(run, metrics=run.metrics.assign(mask_rate=rates), result=without_it)
    assert older.mask_rate == 0.5 and results_table([older])["mask_rate"].tolist() == [0.5]
    assert dataclasses.replace(older, result=run.result | {"mask_rate": 0.125}).mask_rate == 0.125
    for without in (older.metrics.assign(mask_rate=None), older.metrics[:0], older.metrics.drop(columns="mask_rate")):
        assert np.isnan(dataclasses.replace(older, metrics=without).mask_rate)
    assert np.isnan(dataclasses.replace(older, result=run.result | {"mask_rate": None}).mask_rate)


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
    with pytest.raises(ValueError, match="differ in lr: 0.03, 0.01; leave one out, or tell them apart by lr"):
        results_table(runs)
    table = results_table(runs, by=("method", "lr"))
    assert table[["lr", "seeds"]].to_numpy().tolist() == [[0.03, 1], [0.01, 1]]


def test_runs_that_each_start_from_a_run_of_their_own_seed_are_averaged(tmp_path):
    runs = [make_run(tmp_path, seed=seed, method="supervised", rebalance="crt", source=f"runs/source-s{seed}")
            for seed in (0, 1)]
    runs = [dataclasses.replace(run, config=run.config | {"taken": seed}) for seed, run in enumerate(runs)]
    assert results_table(runs)["seeds"].tolist() == [2]


def test_what_tells_runs_apart_is_found_in_their_split_and_scale(tmp_path):
    runs = [make_run(tmp_path, seed=0), make_run(tmp_path / "long", seed=0, total_steps=20_000)]
    assert telling(runs) == ("dataset", "unlabeled", "total_steps")
    assert telling([runs[0], make_run(tmp_path / "other", unlabeled="uniform", n1=20)]) == ("dataset", "unlabeled")
    assert telling([]) == ("dataset", "unlabeled") and telling(runs, among=("lr",)) == ("dataset", "unlabeled")
    table = results_table(runs, by=(*telling(runs), "method"))
    assert table[["total_steps", "seeds"]].to_numpy().tolist() == [[10_000, 1], [20_000, 1]]


def test_settings_are_found_however_a_run_writes_them(tmp_path):
    """An older run lacks what all had then, and JSON has lists."""
    runs = [make_run(tmp_path, rebalance="daso")]
    for settings in ({"network": "wrn"}, {"compile": False}, {"rebalance": ("daso",)}, {"rebalance": ["daso"]}):
        assert select(runs, **settings) == runs
    assert results_table(runs, by=("rebalance",))["rebalance"].tolist() == [("daso",)]


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
    assert head.split() == ["dataset", "unlabeled", "method", "acc.", "acc.+LA", "best*", "best+LA*", "mask",
                            "minutes", "seeds", "missing"]
    assert fixmatch.split() == "mnist5k reversed FixMatch 72.5 ± 10.6 72.5 ± 10.6 72.5 72.5 25.0 3.0 2 -".split()
    assert daso.split() == "mnist5k reversed FixMatch + DASO 65.0 65.0 65.0 65.0 25.0 3.0 1 -".split()
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
    np.testing.assert_allclose(table.loc["FixMatch + DASO", [0, 1, 2, 3]], np.array([14, 2, 1, 4]) / 21)
    np.testing.assert_allclose(table.loc["true", [0, 1, 2, 3]], np.array([10, 4, 2, 5]) / 21)
    head, daso, true = format_shares(table).splitlines()
    assert head.split() == ["method", "in", "%", "0", "1", "2", "3"]
    assert daso.split() == "FixMatch + DASO share 66.7 9.5 4.8 19.0".split()
    assert true.split() == "true share 47.6 19.0 9.5 23.8".split()
    assert format_shares(share_table([])) == "no finished run"


@pytest.mark.parametrize("table", [share_table, bias_table])
def test_runs_of_one_method_on_different_data_are_not_put_together(tmp_path, table):
    runs = [make_run(tmp_path / "a", dataset="mnist5k"), make_run(tmp_path / "b", dataset="cifar10")]
    with pytest.raises(ValueError, match="are in one group and differ in dataset: 'mnist5k', 'cifar10'; leave"):
        table(runs)


def test_without_any_known_class_tables_hold_counts_of_predictions_and_say_so(tmp_path):
    runs = [make_run(tmp_path, final=ALL_UNKNOWN)]
    bias = bias_table(runs)
    assert bias[["recall", "precision"]].isna().all(axis=None)
    assert bias.set_index("part").loc["tail", "accuracy"] == 0.3
    _, recall, precision, accuracy, *notes = format_bias(bias).splitlines()
    assert recall.split() == "FixMatch recall 1 mean - - - - - - -".split()
    assert accuracy.split() == "FixMatch accuracy 1 mean 90.0 70.0 30.0 90.0 80.0 60.0 30.0".split()
    assert notes == ["FixMatch: no recall and precision, true classes unknown: 63 pseudo-labels, counts of predictions "
                     "only"]
    _, shares, true, *notes = format_shares(share_table(runs)).splitlines()
    assert shares.split() == "FixMatch share 66.7 9.5 4.8 19.0".split()
    assert true.split() == "true share - - - -".split()
    assert notes == ["true: unknown for all 63 pseudo-labels, counts of predictions only"]


def test_with_some_classes_unknown_tables_say_how_many_pseudo_labels_are_left_out(tmp_path):
    """Three windows of 21 known and 5 unknown ones, of which 17, 2, 3 and 4 get each label."""
    runs = [make_run(tmp_path, final=SOME_UNKNOWN), make_run(tmp_path, rebalance="daso")]
    bias = bias_table(runs)
    assert bias[["method", "known", "unknown"]].drop_duplicates().to_numpy().tolist() == [
        ["FixMatch", 63, 15], ["FixMatch + DASO", 63, 0]]
    known_only = bias_table(runs[1:]).set_index("part")["recall"]
    np.testing.assert_array_equal(bias[bias["method"] == "FixMatch"].set_index("part")["recall"], known_only)
    assert format_bias(bias).splitlines()[7:] == [
        "FixMatch: 15 of 78 pseudo-labels left out of recall and precision: true class unknown"]
    _, fixmatch, _, true, *notes = format_shares(share_table(runs)).splitlines()
    assert fixmatch.split() == "FixMatch share 65.4 7.7 11.5 15.4".split()
    assert true.split() == "true share 47.6 19.0 9.5 23.8".split()
    assert notes == ["true: without 15 of 141 pseudo-labels, whose true class is unknown"]


def test_pseudo_labels_left_out_are_added_up_over_seeds(tmp_path):
    table = bias_table([make_run(tmp_path, seed=seed, final=SOME_UNKNOWN) for seed in (0, 1)])
    assert format_bias(table).splitlines()[-1].startswith("FixMatch: 30 of 156 pseudo-labels left out")
    assert "left out" not in format_bias(bias_table([make_run(tmp_path, seed=2)]))


def test_confusions_are_those_of_the_last_twenty_evaluations_of_all_seeds(tmp_path):
    runs = [make_run(tmp_path, seed=0, evaluations=25), make_run(tmp_path, seed=1, evaluations=20, test=BETTER)]
    np.testing.assert_array_equal(last_tests(runs), 20 * (TEST + BETTER))
    head, fixmatch, confusions = format_confusion(runs, n_largest=2).splitlines()
    assert head.split() == ["method", "seeds", "all", "0", "1", "2", "3"]
    assert fixmatch.split() == "FixMatch 2 72.5 90.0 90.0 80.0 30.0".split()
    assert confusions == "FixMatch: 70.0 % of class 3 as 0, 20.0 % of class 2 as 0"
    assert confusion_reading(runs) == ("Reading: FixMatch predicts tail classes for 30.0 % of the test images of the "
                                       "tail and head classes for 70.0 %.")
    assert format_confusion([]) == "no finished run" and confusion_reading([]) == "Reading: no finished run."


def test_of_a_class_without_test_images_nothing_is_said(tmp_path):
    """Class 3 is the tail; class 1 is never taken for another."""
    run = make_run(tmp_path, test=np.array([[9, 1, 0, 0], [0, 10, 0, 0], [4, 0, 6, 0], [0, 0, 0, 0]]))
    _, fixmatch, confusions = format_confusion([run]).splitlines()
    assert fixmatch.split() == "FixMatch 1 83.3 90.0 100.0 60.0 -".split()
    assert confusions == "FixMatch: 40.0 % of class 2 as 0, 10.0 % of class 0 as 1"
    assert confusion_reading([run]) == "Reading: FixMatch: no test image of the tail classes."


@pytest.mark.parametrize("k", [1, 2, 3, 25])
def test_what_is_right_is_no_confusion(tmp_path, k):
    """Of K classes all right, then all but one image, which for two classes leaves one pair to name."""
    run = make_run(tmp_path)
    right = 5 * np.eye(k, dtype=int)
    for counts, said in ((right, "no confusion"), (0 * right, "no confusion"), (right + np.eye(k, k=1, dtype=int), "")):
        line = format_confusion([dataclasses.replace(run, counts=run.counts | {"test": counts[None]})]).splitlines()[-1]
        named = re.findall(r"([0-9.]+) % of class ([0-9]+) as ([0-9]+)", line)
        assert named == [("16.7", str(j), str(j + 1)) for j in range(min(3, k - 1))] if not said else said in line


def test_tables_of_own_data_name_its_classes_and_its_chance_level(tmp_path):
    """A class may be called like another column."""
    names = ["ant", "head", "all", "bee fly"]
    run = make_run(tmp_path, rebalance="daso", dataset="insects", test=np.array([*TEST[:3], [0, 0, 0, 2]]))
    (run.folder / "model.json").write_text(json.dumps({"class_names": names}))
    assert run.class_names == class_names([make_run(tmp_path, dataset="insects"), run]) == names
    head, _, confusions = format_confusion([run]).splitlines()
    assert head == "method          seeds  all  ant head  all bee fly"
    assert confusions.startswith("FixMatch + DASO: 40.0 % of class all as ant, 20.0 % of class head as ant")
    assert format_bias(bias_table([run]), class_names=names).splitlines()[0].split() == (
        "method in % seeds head medium tail ant head all bee fly".split())
    assert format_shares(share_table([run]), class_names=names).splitlines()[0].split() == (
        "method in % ant head all bee fly".split())
    assert format_chance(run) == "chance: 25.0 %; 31.2 % by always predicting the most frequent test class"
    assert format_chance(make_run(tmp_path / "digits")) == "chance: 25.0 %"


def test_the_papers_data_sets_keep_class_ids_whatever_lies_beside_a_run(tmp_path):
    run = make_run(tmp_path)
    (run.folder / "model.json").write_text(json.dumps({"class_names": ["a", "b", "c", "d"]}))
    assert run.class_names is None and class_names([run]) is None and class_names([]) is None


def estimating(run, counts, estimates):
    """Make of a run one of distribution_estimate, with an estimate for each evaluation and what they come to."""
    return dataclasses.replace(run, config=run.config | {"method": "distribution_estimate"},
                               metrics=run.metrics.assign(unlabeled_estimate=pd.Series(estimates, dtype=object)),
                               result=run.result | {"unlabeled_counts": counts})


def test_an_estimate_is_a_table_of_images_and_shares(tmp_path):
    estimates = [None, [1500.0, 301.0, 150.0, 49.0], [1500.0, 300.0, 150.0, 50.0]]
    run = estimating(make_run(tmp_path), [1500.0, 300.5, 150.0, 49.5], estimates)
    assert [line.split() for line in format_estimate(run).splitlines()] == [line.split() for line in (
        "class estimated images share in %", "0 1,500.0 75.0", "1 300.5 15.0", "2 150.0 7.5", "3 49.5 2.5",
        "2,000 unlabeled images; mean of the estimates accepted in 2 of 3 evaluations")]


def test_where_no_estimate_was_accepted_a_line_says_so(tmp_path):
    text = format_estimate(estimating(make_run(tmp_path), None, [None, None, None]))
    assert text.startswith("no estimate was accepted in 3 evaluations: ") and "\n" not in text


def test_a_run_without_estimate_is_refused(tmp_path):
    with pytest.raises(ValueError, match="run run estimates no class counts: its method is 'fixmatch', and only 'dist"):
        format_estimate(make_run(tmp_path))
    with pytest.raises(ValueError, match="run r is unfinished"):
        format_estimate(load_run(write_run(tmp_path / "r", finished=False)))


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
