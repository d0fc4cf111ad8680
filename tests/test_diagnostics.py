"""Counts of true against predicted class against scikit-learn, and what follows from them."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, precision_score, recall_score

from dasolib.diagnostics import (
    KINDS,
    PseudoLabelCounts,
    accuracy,
    class_ends,
    class_groups,
    confusion_counts,
    gain,
    imbalance,
    precision,
    predicted_share,
    recall,
)
from dasolib.pseudo_labels import PseudoLabels

K = 5


def pairs(n=200, seed=0, n_unknown=0):
    """True and predicted classes; class 3 never occurs and class 4 is never predicted."""
    rng = np.random.default_rng(seed)
    target = rng.choice([0, 1, 2, 4], n)
    predicted = np.where(rng.random(n) < 0.6, target, rng.integers(0, 4, n)) % 4
    target[:n_unknown] = -1
    return torch.from_numpy(target), torch.from_numpy(predicted)


# --- counting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_counts_of_known_images_equal_scikit_learns_confusion_matrix(seed):
    target, predicted = pairs(seed=seed)
    got = confusion_counts(target, predicted, K)
    assert got.shape == (K + 1, K) and got.dtype == torch.int64
    np.testing.assert_array_equal(got[:K], confusion_matrix(target, predicted, labels=range(K)))
    assert (got[K] == 0).all()


def test_images_of_unknown_class_are_counted_in_the_last_row_alone():
    target, predicted = pairs(n_unknown=50)
    got = confusion_counts(target, predicted, K)
    np.testing.assert_array_equal(got[:K], confusion_matrix(target[50:], predicted[50:], labels=range(K)))
    np.testing.assert_array_equal(got[K], np.bincount(predicted[:50], minlength=K))


def test_rows_of_weight_zero_are_not_counted():
    target, predicted = pairs(n_unknown=20)
    mask = (torch.arange(200) % 3 == 0).float()
    want = confusion_counts(target[mask == 1], predicted[mask == 1], K)
    assert torch.equal(confusion_counts(target, predicted, K, weight=mask), want)


def one_hot(classes):
    return torch.eye(K)[classes]


def test_each_kind_of_pseudo_label_is_counted_by_its_own_prediction():
    target = torch.tensor([0, 1, -1])
    labels = PseudoLabels(one_hot([0, 0, 0]), one_hot([1, 1, 1]), one_hot([2, 2, 2]))
    window = PseudoLabelCounts(K, torch.device("cpu"))
    window.add(labels, torch.tensor([1.0, 0.0, 1.0]), target)
    counts = dict(zip(KINDS, window.take(), strict=True))
    for column, kind in enumerate(("linear", "semantic", "final")):
        assert counts[kind][[0, 1, K], column].tolist() == [1, 1, 1] and counts[kind].sum() == 3
    assert counts["confident"][[0, 1, K], 2].tolist() == [1, 0, 1] and counts["confident"].sum() == 2


def test_a_window_adds_up_its_batches_and_taking_it_starts_a_new_one():
    window = PseudoLabelCounts(K, torch.device("cpu"))
    labels = PseudoLabels(one_hot([0, 1]), None, one_hot([1, 1]))
    for _ in range(3):
        window.add(labels, torch.ones(2), torch.tensor([0, 1]))
    taken = window.take()
    assert taken.sum(axis=(1, 2)).tolist() == [6, 0, 6, 6]  # no semantic labels
    assert window.take().sum() == 0
    assert taken.sum() == 18  # what was taken does not change afterwards


# --- what follows from the counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_unknown", [0, 40])
def test_recall_precision_and_accuracy_equal_scikit_learns_where_defined(n_unknown):
    target, predicted = pairs(n_unknown=n_unknown)
    counts = confusion_counts(target, predicted, K).numpy()
    target, predicted = target[n_unknown:].numpy(), predicted[n_unknown:].numpy()
    each = {"labels": range(K), "average": None, "zero_division": np.nan}
    np.testing.assert_allclose(recall(counts), recall_score(target, predicted, **each))
    np.testing.assert_allclose(precision(counts), precision_score(target, predicted, **each))
    assert accuracy(counts) == pytest.approx(accuracy_score(target, predicted))


def test_a_class_that_does_not_occur_has_no_recall_and_one_never_predicted_no_precision():
    counts = confusion_counts(*pairs(), K).numpy()
    assert np.isnan(recall(counts)).tolist() == [False, False, False, True, False]
    assert np.isnan(gain(counts)).tolist() == [False, False, False, True, False]
    assert np.isnan(precision(counts)).tolist() == [False, False, False, False, True]
    assert recall(counts)[4] == 0


def test_undefined_values_raise_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = np.zeros((K + 1, K), dtype=np.int64)
        for function in (recall, precision, gain, predicted_share, imbalance, accuracy):
            assert np.isnan(function(empty)).all()


def test_gain_is_predictions_over_occurrences():
    """Class 0 occurs 4 times and is predicted 6 times, class 1 occurs 6 times and is predicted 4 times."""
    counts = np.array([[3, 1], [3, 3], [9, 0]])
    np.testing.assert_allclose(gain(counts), [1.5, 4 / 6])


def test_predicted_shares_and_imbalance_include_unknown_images():
    counts = np.array([[3, 1], [3, 3], [9, 1]])
    np.testing.assert_allclose(predicted_share(counts), [0.75, 0.25])
    assert imbalance(counts) == 3
    assert imbalance(np.array([[1, 0], [1, 0]])) == np.inf


def test_a_stack_of_tables_gives_a_stack_of_values():
    tables = np.stack([confusion_counts(*pairs(seed=seed, n_unknown=10), K).numpy() for seed in range(3)])
    for function in (recall, precision, gain, predicted_share, imbalance, accuracy):
        np.testing.assert_array_equal(function(tables), np.stack([function(table) for table in tables]))


# --- groups ----------------------------------------------------------------------------------------------------------


def test_ten_classes_make_groups_of_three_four_and_three():
    groups = class_groups(range(100, 0, -10))
    assert groups == {"head": [0, 1, 2], "medium": [3, 4, 5, 6], "tail": [7, 8, 9]}


def test_groups_follow_the_rank_of_the_counts_and_not_the_class_number():
    groups = class_groups([5, 50, 8, 40, 6, 30, 7, 20, 9, 10])
    assert groups == {"head": [1, 3, 5], "medium": [7, 9, 8, 2], "tail": [6, 4, 0]}


@pytest.mark.parametrize("k", [2, 3, 4, 5, 7, 10, 100, 200])
def test_every_class_is_in_exactly_one_group_and_head_and_tail_are_equally_large(k):
    groups = class_groups([7] * k)
    assert sorted(sum(groups.values(), [])) == list(range(k))
    assert len(groups["head"]) == len(groups["tail"]) >= 1
    assert groups["head"] == list(range(len(groups["head"])))  # equal counts keep the order


@pytest.mark.parametrize(("k", "n"), [(3, 1), (4, 1), (10, 2), (100, 20)])
def test_majority_and_minority_are_fifths_of_the_classes_by_labeled_counts(k, n):
    ends = class_ends(np.random.default_rng(0).permutation(k))
    assert len(ends["majority"]) == len(ends["minority"]) == n
    counts = np.random.default_rng(0).permutation(k)
    assert counts[ends["majority"]].min() >= counts.max() - n + 1 and counts[ends["minority"]].max() <= n - 1
