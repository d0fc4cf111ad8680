"""What is read from stored outputs: maps of features and entropies, on arrays made by hand."""

import dataclasses

import numpy as np
import pytest

from dasolib.outputs import (
    FILE,
    entropy_table,
    feature_map,
    features_reading,
    format_features,
    format_open_set,
    format_outputs,
    neighbour_table,
    open_set_reading,
    open_set_table,
    runs_with_outputs,
)
from dasolib.results import load_runs
from tests.hand_made import make_run, write_run

CERTAIN, UNSURE = [1.0, 0.0, 0.0, 0.0], [0.25] * 4


def arrays_of(target, probs, feats=None):
    """Outputs of as many unlabeled images, as a run stores them."""
    probs = np.array(probs, dtype=np.float16)
    feats = np.zeros((len(target), 2)) if feats is None else np.asarray(feats)
    return {"unlabeled_target": np.array(target), "linear": probs, "final": probs, "feats": feats.astype(np.float16),
            "feats_row": np.arange(len(feats))}


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


@pytest.fixture
def clusters():
    """24 images, 12 of class 0 and 12 of class 3, whose features point in two directions; two have the other's."""
    target = np.repeat([0, 3], 12)
    angle = np.where(target == 0, 0.0, 1.5) + 0.01 * np.arange(24)
    angle[[0, 12]] = angle[[12, 0]]
    return arrays_of(target, np.eye(4)[target], 5 * np.stack([np.cos(angle), np.sin(angle)], axis=1))


def test_only_finished_runs_that_still_have_outputs_are_found(tmp_path):
    for name, settings in {"whole": {}, "small": {}, "unfinished": {"finished": False}}.items():
        folder = write_run(tmp_path / name, **settings)
        if name != "small":
            np.savez(folder / FILE, **arrays_of([0, -1], [CERTAIN, UNSURE]))
    ((found, arrays),) = runs_with_outputs(load_runs(tmp_path))
    assert found.name == "whole" and arrays["unlabeled_target"].tolist() == [0, -1]
    assert format_outputs([(found, arrays)]) == (
        "FixMatch on mnist5k, unlabeled classes reversed, seed 0: 2 unlabeled images")
    assert format_outputs([]) == "No run to show: the commands above make such runs."


def test_neighbours_are_counted_among_the_features(run, clusters):
    """All but the two exchanged images have 10 of the 11 others of their direction near, one of which is exchanged."""
    table = feature_map(run, clusters, n_images=100)
    assert len(table) == 24 and table[["x", "y"]].notna().all(axis=None)
    assert table["group"].tolist() == ["head"] * 12 + ["tail"] * 12
    assert table.loc[[0, 12], "neighbours"].tolist() == [0, 0]
    assert table.drop([0, 12])["neighbours"].between(0.9, 1).all()
    (row,) = neighbour_table([table]).to_dict("records")
    assert (row["method"], row["images"], row["known"]) == ("FixMatch", 24, 24)
    assert row["head"] == pytest.approx(table["neighbours"][:12].mean()) and np.isnan(row["medium"])
    assert format_features([table]).splitlines()[1].split()[:3] == ["FixMatch", "24", "24"]
    assert features_reading([table]).startswith("Reading: FixMatch: of the nearest neighbours of an image 8")
    assert features_reading([]) == "Reading: no run with stored features."


def test_a_map_is_the_same_each_time_and_of_at_most_so_many_images(run, clusters):
    first, second = (feature_map(run, clusters, n_images=12, seed=3) for _ in range(2))
    assert len(first) == 12 and first.equals(second)
    assert not first["target"].equals(feature_map(run, clusters, n_images=12, seed=4)["target"])


def test_images_of_unknown_class_are_mapped_and_not_counted(run, clusters):
    clusters["unlabeled_target"][:4] = -1
    table = feature_map(run, clusters, n_images=100)
    assert table["group"].tolist()[:4] == [""] * 4 and table["neighbours"].isna().sum() == 4
    assert neighbour_table([table])["known"].tolist() == [20]


def test_maps_of_nothing_are_refused(run, clusters):
    with pytest.raises(ValueError, match="run run has no unlabeled images"):
        feature_map(run, {"test_logits": np.zeros((3, 4))}, n_images=10)
    with pytest.raises(ValueError, match="n_images=2: at least 3 are needed, and run run has 24"):
        feature_map(run, clusters, n_images=2)


def test_entropy_is_a_share_of_that_of_the_uniform_distribution(run):
    table = entropy_table(run, arrays_of([0, 1, -1], [CERTAIN, [0.5, 0.5, 0, 0], UNSURE]))
    assert table["entropy"].tolist() == pytest.approx([0, 0.5, 1])
    assert table["is_confident"].tolist() == [1, 0, 0] and table["is_known"].tolist() == [True, True, False]
    with pytest.raises(ValueError, match="kind='semantic': run run has linear, final"):
        entropy_table(run, arrays_of([0], [CERTAIN]), kind="semantic")


def test_entropy_tells_unknown_classes_from_known_ones_as_far_as_it_does(run):
    """Entropies 0, .5 of known and 1, 0 of unknown classes: of four pairs two right, one tie, one wrong."""
    table = entropy_table(run, arrays_of([0, 1, -1, -1], [CERTAIN, [0.5, 0.5, 0, 0], UNSURE, CERTAIN]))
    (row,) = open_set_table([table]).to_dict("records")
    assert (row["known"], row["unknown"], row["auroc"]) == (2, 2, pytest.approx(2.5 / 4))
    assert (row["entropy known"], row["entropy unknown"]) == pytest.approx((0.25, 0.5))
    assert (row["confident known"], row["confident unknown"]) == (0.5, 0.5)
    no_threshold = dataclasses.replace(run, config={name: value for name, value in run.config.items()
                                                    if name != "threshold"})
    assert entropy_table(no_threshold, arrays_of([0], [UNSURE]))["is_confident"].all()  # it learns every pseudo-label
    for settings in ({"rebalance": ["boss"]}, {"method": "usadtm"}, {"method": "supervised"}):
        other = dataclasses.replace(run, config=run.config | settings)
        assert entropy_table(other, arrays_of([0], [CERTAIN]))["is_confident"].isna().all()


def test_confident_is_what_the_final_pseudo_label_is_whatever_kind_is_shown(run):
    arrays = arrays_of([0, 1], [CERTAIN, UNSURE]) | {"final": np.array([UNSURE, CERTAIN])}
    table = entropy_table(run, arrays, kind="linear")
    assert table["entropy"].tolist() == pytest.approx([0, 1]) and table["is_confident"].tolist() == [0, 1]


def test_an_open_set_table_is_printed_in_percent(run):
    table = entropy_table(run, arrays_of([0, 1, -1, -1], [CERTAIN, [0.5, 0.5, 0, 0], UNSURE, CERTAIN]))
    assert format_open_set(open_set_table([table])).splitlines()[1].split() == (
        "FixMatch 2 2 25.0 50.0 50.0 50.0 62.5".split())


def test_where_all_classes_are_known_there_is_nothing_to_tell_apart(run):
    summary = open_set_table([entropy_table(run, arrays_of([0, 1], [CERTAIN, UNSURE]))])
    assert np.isnan(summary[["auroc", "entropy unknown", "confident unknown"]]).all(axis=None)
    assert "entropy 50.0 % for known and - % for unknown classes" in open_set_reading(summary)
    assert open_set_reading(open_set_table([])) == "Reading: no run with stored predictions."
