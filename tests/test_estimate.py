"""Estimated class counts: known confusions are undone, and doubtful estimates are not accepted."""

import numpy as np
import pytest
import torch

from dasolib.estimate import average_estimates, estimate_unlabeled_counts


def confused(counts, confusion):
    """Soft predictions of `counts[k]` images of each class k, all equal to column k of the confusion, and classes."""
    target = np.repeat(np.arange(len(counts)), counts)
    return confusion.T[target], target


def random_confusion(k, seed):
    """Columns that sum to 1, the diagonal the larger part."""
    noise = np.random.default_rng(seed).random((k, k))
    return 0.6 * np.eye(k) + 0.4 * noise / noise.sum(axis=0)


def test_an_estimate_matches_a_case_worked_by_hand():
    """C = ((.8, .4), (.2, .6)), predicted (20, 20): det C = .4, so m = (.6 20 - .4 20, .8 20 - .2 20) / .4 = (10, 30).

    Singular values of C: their squares have the sum .64 + .16 + .04 + .36 = 1.2 and the product .4^2 = .16, so they
    are .6 +- sqrt(.2), and the condition number is sqrt((.6 + sqrt(.2)) / (.6 - sqrt(.2))).
    """
    held_out = [[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]]
    got = estimate_unlabeled_counts(held_out, [0, 0, 1], [[0.5, 0.5]] * 40)
    np.testing.assert_allclose(got.confusion_sum, [[1.6, 0.4], [0.4, 0.6]])
    np.testing.assert_allclose(got.predicted_mass, [20, 20])
    np.testing.assert_allclose(got.counts, [10, 30])
    assert got.condition_number == pytest.approx(np.sqrt((0.6 + np.sqrt(0.2)) / (0.6 - np.sqrt(0.2))))
    assert got.accepted is True


@pytest.mark.parametrize("k", [2, 10, 100])
@pytest.mark.parametrize("seed", range(3))
def test_known_counts_come_back_from_an_exact_confusion(k, seed):
    confusion = random_confusion(k, seed)
    counts = np.random.default_rng(seed + 100).integers(0, 60, k)
    held_out, target = confused([10] * k, confusion)
    got = estimate_unlabeled_counts(held_out, target, confused(counts, confusion)[0])
    np.testing.assert_allclose(got.counts, counts, atol=1e-8)
    assert got.counts.sum() == pytest.approx(counts.sum())


def test_classes_may_be_held_out_in_different_numbers():
    """The confusion is normalized per true class, so the held-out set's own frequencies do not matter."""
    confusion = random_confusion(3, 0)
    unlabeled, _ = confused([5, 50, 20], confusion)
    for held_out_counts in ([10, 10, 10], [1, 7, 30]):
        got = estimate_unlabeled_counts(*confused(held_out_counts, confusion), unlabeled)
        np.testing.assert_allclose(got.counts, [5, 50, 20], atol=1e-9)


def test_tensors_in_single_precision_are_computed_in_double():
    confusion = random_confusion(4, 0)
    held_out, target = confused([2] * 4, confusion)
    unlabeled, _ = confused([1, 2, 3, 4], confusion)
    got = estimate_unlabeled_counts(torch.from_numpy(held_out).float(), torch.from_numpy(target),
                                    torch.from_numpy(unlabeled).float())
    assert got.counts.dtype == got.confusion_sum.dtype == got.predicted_mass.dtype == np.float64
    np.testing.assert_allclose(got.counts, [1, 2, 3, 4], atol=1e-5)


def test_a_negative_count_is_not_accepted():
    """C = ((.8, .2), (.2, .8)), but all images look like class 0 with certainty: m = (4/3, -1/3) times 30."""
    got = estimate_unlabeled_counts([[0.8, 0.2], [0.2, 0.8]], [0, 1], [[1.0, 0.0]] * 30)
    np.testing.assert_allclose(got.counts, [40, -10])
    assert got.accepted is False


def test_a_condition_number_at_the_limit_is_not_accepted():
    """C = ((.75, .25), (.25, .75)): singular values 1 and .5, condition number 2."""
    case = ([[0.75, 0.25], [0.25, 0.75]], [0, 1], [[0.5, 0.5]] * 4)
    condition = estimate_unlabeled_counts(*case).condition_number
    assert condition == pytest.approx(2)
    assert not estimate_unlabeled_counts(*case, max_condition=condition).accepted
    assert estimate_unlabeled_counts(*case, max_condition=condition * 1.001).accepted


def test_the_usual_limit_is_a_hundred():
    for difference, accepted in ((0.021, True), (0.019, False)):  # singular values 1 and the difference: 47.6 and 52.6
        p = (1 + difference / 2) / 2
        got = estimate_unlabeled_counts([[p, 1 - p], [1 - p, p]], [0, 1], [[0.5, 0.5]] * 4)
        assert got.condition_number == pytest.approx(2 / difference)
        assert got.accepted is accepted


def test_a_network_that_says_the_same_of_all_images_gives_no_estimate():
    got = estimate_unlabeled_counts([[0.5, 0.5], [0.5, 0.5]], [0, 1], [[0.5, 0.5]] * 4)
    assert np.isnan(got.counts).all()
    assert got.accepted is False
    assert got.condition_number > 1e15


def test_estimates_are_averaged_over_the_accepted_ones():
    counts = [[1.0, 3.0], None, [2.0, 2.0], None]
    assert average_estimates(counts) == [1.5, 2.5]
    assert average_estimates(counts[1::2]) is None
    assert average_estimates([]) is None


@pytest.mark.parametrize(
    ("held_out", "target", "unlabeled", "message"),
    [
        (np.eye(2), [0, 1, 1], np.ones((3, 2)), "shapes disagree"),
        (np.eye(2), [0, 1], np.ones((3, 3)), "shapes disagree"),
        (np.eye(2), [0, 1], np.ones(2), "shapes disagree"),
        (np.ones(2), [0, 1], np.ones((3, 2)), "shapes disagree"),
        (np.eye(2), [0, 0], np.ones((3, 2)), r"each class in 0..1 and no other, got \[0\]"),
        (np.ones((3, 2)) / 2, [0, 1, 2], np.ones((3, 2)), r"each class in 0..1 and no other, got \[0, 1, 2\]"),
        (np.full((2, 2), np.nan), [0, 1], np.ones((3, 2)), "probs_held_out: 4 entries are not finite"),
        (np.eye(2), [0, 1], np.array([[np.inf, 0.0]]), "probs_unlabeled: 1 entries are not finite"),
    ],
)
def test_bad_input_is_refused(held_out, target, unlabeled, message):
    with pytest.raises(ValueError, match=message):
        estimate_unlabeled_counts(held_out, target, unlabeled)
