import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dasolib.splits import (
    Split,
    class_aware_rows,
    class_aware_weights,
    epoch_rows,
    estimation_split,
    hold_out,
    long_tailed_counts,
    long_tailed_split,
    make_imbalanced,
    natural_split,
    split_pools,
    split_validation,
)
from tests.replay_primitives import replay_primitive

GOLDEN = Path(__file__).parent / "data" / "golden" / "splits.npz"
LABELS = np.random.RandomState(0).permutation(np.repeat(np.arange(5), 40))  # 40 images of each of 5 classes
SPLIT = {"n_classes": 5, "n1": 10, "m1": 20, "gamma_l": 5, "gamma_u": 4, "unlabeled": "equal", "n_val": 25, "seed": 3}


def counts(indices, labels=LABELS):
    return np.bincount(labels[indices], minlength=labels.max() + 1).tolist()


# Reference numbers


def test_every_recorded_split_comes_out_index_for_index(golden_folder):
    rows = replay_primitive(golden_folder / "splits.npz")
    assert len(rows) >= 64
    assert [row for row in rows if not row.error <= row.tolerance] == []


def test_the_replay_recognises_a_recording_without_its_name_and_reports_two_swapped_indices(tmp_path):
    arrays = dict(np.load(GOLDEN))
    arrays["setting1/labeled_index"][:2] = arrays["setting1/labeled_index"][1::-1]
    np.savez(tmp_path / "renamed.npz", **arrays)
    wrong = [row for row in replay_primitive(tmp_path / "renamed.npz") if not row.error <= row.tolerance]
    assert [(row.name, row.error) for row in wrong] == [("setting1/labeled_index", 2)]


def test_the_replay_refuses_a_recording_with_an_output_that_it_does_not_cover(tmp_path):
    np.savez(tmp_path / "splits.npz", **np.load(GOLDEN), **{"setting0/surplus_index": np.arange(3)})
    with pytest.raises(ValueError, match="outputs that no replay covers: setting0/surplus_index"):
        replay_primitive(tmp_path / "splits.npz")


def test_the_replay_refuses_a_file_that_is_no_recording(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.arange(3))
    with pytest.raises(ValueError, match="no recording of one of splits, schedules"):
        replay_primitive(tmp_path / "other.npz")


def test_the_replay_names_an_unchanged_copy_clean(tmp_path):
    shutil.copy(GOLDEN, tmp_path / "anything.npz")
    assert all(row.error <= row.tolerance for row in replay_primitive(tmp_path / "anything.npz"))


# Long-tailed splits


@pytest.mark.parametrize("gamma_l", [1, 5])
@pytest.mark.parametrize(("unlabeled", "gamma_u"), [("equal", 1), ("equal", 4), ("uniform", 1), ("reversed", 20)])
@pytest.mark.parametrize("n_val", [0, 25])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_parts_of_a_split_are_disjoint_and_repeat_no_image(gamma_l, unlabeled, gamma_u, n_val, seed):
    options = {"gamma_l": gamma_l, "gamma_u": gamma_u, "unlabeled": unlabeled, "n_val": n_val, "seed": seed}
    split = long_tailed_split(LABELS, **SPLIT | options)
    together = np.concatenate([split.labeled, split.unlabeled, split.validation])
    assert len(np.unique(together)) == len(together)
    assert together.dtype == np.int64


def test_each_part_has_the_counts_asked_for():
    split = long_tailed_split(LABELS, **SPLIT)
    assert counts(split.labeled) == long_tailed_counts(10, 5, 5) == [10, 6, 4, 2, 2]
    assert counts(split.unlabeled) == long_tailed_counts(20, 4, 5) == [20, 14, 10, 7, 5]
    assert counts(split.validation) == [5] * 5


def test_uniform_takes_m1_unlabeled_images_of_every_class():
    split = long_tailed_split(LABELS, **SPLIT | {"unlabeled": "uniform", "gamma_u": 1})
    assert counts(split.unlabeled) == [20] * 5


def test_reversed_turns_the_order_of_the_unlabeled_classes_only():
    equal, backward = (long_tailed_split(LABELS, **SPLIT | {"unlabeled": order}) for order in ("equal", "reversed"))
    assert counts(backward.unlabeled) == counts(equal.unlabeled)[::-1]
    np.testing.assert_array_equal(backward.labeled, equal.labeled)
    np.testing.assert_array_equal(backward.validation, equal.validation)


def test_unknown_leaves_the_unlabeled_images_to_the_pile_and_draws_the_labeled_ones_from_all_the_rest():
    options = SPLIT | {"n1": 35, "m1": None, "gamma_u": None, "unlabeled": "unknown"}
    split = long_tailed_split(LABELS, **options)
    assert split.unlabeled is None
    assert counts(split.labeled) == long_tailed_counts(35, 5, 5)  # 35 of 40 - 5: no pool is set aside
    assert len(np.intersect1d(split.labeled, split.validation)) == 0


def test_another_seed_draws_other_images():
    one, other = (long_tailed_split(LABELS, **SPLIT | {"seed": seed}) for seed in (0, 1))
    assert set(one.labeled) != set(other.labeled)


def test_a_split_leaves_the_labels_and_numpys_global_generator_alone():
    labels = LABELS.copy()
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    long_tailed_split(labels, **SPLIT)
    np.testing.assert_array_equal(labels, LABELS)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unlabeled": "revers"}, "unknown unlabeled 'revers'; choose from equal, uniform, reversed, unknown"),
        ({"unlabeled": "uniform"}, "gamma_u must be 1 with unlabeled='uniform', got 4"),
        ({"unlabeled": "unknown"}, "m1 and gamma_u must be None with unlabeled='unknown'.* got m1=20, gamma_u=4"),
        ({"m1": None}, "m1 and gamma_u must be numbers with unlabeled='equal'; got m1=None"),
        ({"gamma_l": 0.5}, "gamma_l must be >= 1, got 0.5"),
        ({"gamma_u": 0.01}, "gamma_u must be >= 1, got 0.01; ask for unlabeled='reversed'"),
        ({"gamma_l": float("nan")}, "gamma_l must be >= 1, got nan"),
        ({"n1": 0}, "n1 must be >= 1, got 0"),
        ({"m1": 0}, "m1 must be >= 1, got 0"),
        ({"gamma_l": 11}, "class 4 would have no labeled image with n1=10 and gamma_l=11"),
        ({"m1": 26}, r"n1 \+ m1 = 10 \+ 26 = 36 .* class 0 has 35 left after validation"),
        ({"n_val": 24}, "n_val must be a multiple of n_classes=5 and >= 0, got 24"),
        ({"n_val": -5}, "n_val must be a multiple of n_classes=5 and >= 0, got -5"),
        ({"n_val": 205}, "n_val=205 takes 41 images of each class, but class 0 has 40"),
        ({"n_classes": 4, "n_val": 0}, r"labels must be in 0..3, got values from 0 to 4"),
        ({"n_classes": 6, "n_val": 0}, "class 5 has 0 left after validation"),
        ({"n_classes": 1}, "n_classes must be >= 2, got 1"),
        ({"seed": -1}, "seed must be in 0..4294967295, got -1"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        long_tailed_split(LABELS, **SPLIT | change)


def test_an_unknown_label_is_refused_where_a_class_is_needed():
    with pytest.raises(ValueError, match=r"labels must be in 0..4, got values from -1 to 4"):
        long_tailed_split(np.append(LABELS, -1), **SPLIT)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (lambda: make_imbalanced(LABELS, 41, 2, 5, seed=0), "n_head=41 and gamma=2 need 41 images of class 0.* has 40"),
        (lambda: make_imbalanced(LABELS, 41, 2, 5, seed=0, reversed=True), "need 41 images of class 4, which has 40"),
        (lambda: make_imbalanced(LABELS, 4, 0.5, 5, seed=0), "gamma must be >= 1, got 0.5"),
        (lambda: split_pools(LABELS, 0, 5, 5, seed=0), "n1 must be >= 1, got 0"),
        (lambda: split_validation(LABELS, 7, 5, seed=0), "n_val must be a multiple of n_classes=5"),
        (lambda: hold_out(LABELS, 5, per_class=41), "per_class=41 images of each class are needed, but class 0 has 40"),
        (lambda: hold_out(LABELS, 5, per_class=0), "per_class must be >= 1, got 0"),
        (lambda: long_tailed_counts(0, 2, 5), "n_head must be >= 1, got 0"),
    ],
)
def test_a_stage_refuses_what_it_cannot_do(stage, message):
    with pytest.raises(ValueError, match=message):
        stage()


# Estimation


def test_the_estimation_holds_labeled_images_out_when_the_tail_is_longer_than_what_is_held_out():
    split = long_tailed_split(LABELS, **SPLIT | {"gamma_l": 3})  # the tail has 3
    estimation = estimation_split(LABELS, split, n_classes=5, per_class=2)
    assert counts(estimation.validation) == [2] * 5
    assert set(estimation.validation) | set(estimation.labeled) == set(split.labeled)
    assert len(estimation.validation) + len(estimation.labeled) == len(split.labeled)
    np.testing.assert_array_equal(estimation.unlabeled, split.unlabeled)


def test_the_estimation_uses_validation_images_when_the_tail_would_be_used_up():
    split = long_tailed_split(LABELS, **SPLIT | {"gamma_l": 3})
    estimation = estimation_split(LABELS, split, n_classes=5, per_class=3)
    np.testing.assert_array_equal(estimation.labeled, split.labeled)
    assert counts(estimation.validation) == [3] * 5
    assert set(estimation.validation) <= set(split.validation)


def test_the_estimation_is_refused_when_neither_set_can_spare_the_images():
    split = long_tailed_split(LABELS, **SPLIT | {"n_val": 0})
    with pytest.raises(
        ValueError, match="rarest class has 2 labeled images.* and 0 validation images$"
    ):
        estimation_split(LABELS, split, n_classes=5, per_class=10)
    with pytest.raises(ValueError, match="per_class must be >= 1, got 0"):
        estimation_split(LABELS, split, n_classes=5, per_class=0)


# Data with its own frequencies

NATURAL = np.array([2, 0, 0, 1, 0, 1, 2, 0, -1, -1])


def test_a_list_names_the_labeled_images_and_the_others_are_unlabeled():
    split = natural_split(NATURAL, n_classes=3, labeled_indices=[6, 3, 1], n_val=0, seed=0)
    assert split.labeled.tolist() == [6, 3, 1]
    assert split.unlabeled.tolist() == [0, 2, 4, 5, 7, 8, 9]
    assert split.validation.tolist() == []


def test_with_a_pile_the_unlabeled_images_are_the_pile():
    with_list = natural_split(NATURAL, n_classes=3, labeled_indices=[6, 3, 1], has_pile=True, n_val=0, seed=0)
    without = natural_split(NATURAL[:8], n_classes=3, has_pile=True, n_val=0, seed=0)
    assert with_list.labeled.tolist() == [6, 3, 1] and with_list.unlabeled is None
    assert without.labeled.tolist() == list(range(8)) and without.unlabeled is None


def test_validation_images_of_natural_data_come_balanced_from_the_labeled_ones():
    listed = [7, 6, 5, 4, 3, 2, 0]
    split = natural_split(NATURAL, n_classes=3, labeled_indices=listed, n_val=3, seed=0)
    assert NATURAL[split.validation].tolist() == [0, 1, 2]
    assert sorted([*split.labeled, *split.validation]) == sorted(listed)
    assert split.unlabeled.tolist() == [1, 8, 9]


@pytest.mark.parametrize(
    ("labels", "change", "message"),
    [
        (NATURAL, {"labeled_indices": []}, "at least one integer, got shape \\(0,\\)"),
        (NATURAL, {"labeled_indices": [0.0, 1.0, 3.0]}, "at least one integer, got shape \\(3,\\) of float64"),
        (NATURAL, {"labeled_indices": [True] * 10}, "labeled_indices must be positions, not a mask; numpy.flatnonzero"),
        (NATURAL, {"labeled_indices": [0, 1, 1, 0]}, "labeled_indices must be positions, not a mask"),
        (NATURAL, {"labeled_indices": [0, 1, 10]}, "labeled_indices must be in 0..9, got 10"),
        (NATURAL, {"labeled_indices": [0, 1, -1]}, "labeled_indices must be in 0..9, got -1"),
        (NATURAL, {"labeled_indices": [0, 1, 3, 1]}, "must name each image once, got 1 2 times"),
        (NATURAL, {"labeled_indices": [0, 1, 2]}, "class 1 has no labeled image; each of the 3 classes needs one"),
        (NATURAL, {"labeled_indices": [0, 1, 3, 8]}, r"labels must be in 0..2, got values from -1 to 2"),
        (np.append(NATURAL, 3), {}, r"labels must be in 0..2, or -1 for unknown .*got values from -1 to 3"),
        (np.append(NATURAL, -2), {}, r"labels must be in 0..2, or -1 for unknown .*got values from -2 to 0"),
        (NATURAL, {"n_val": 6}, "n_val=6 takes 2 images of each class, but class 0 has 2 labeled images; one at least"),
        (NATURAL, {"n_val": 4}, "n_val must be a multiple of n_classes=3"),
        (NATURAL, {"n_val": -3}, "n_val must be a multiple of n_classes=3 and >= 0, got -3"),
    ],
)
def test_natural_data_that_cannot_be_split_is_refused(labels, change, message):
    options = {"n_classes": 3, "labeled_indices": [0, 1, 2, 3, 5, 6], "n_val": 0, "seed": 0}
    with pytest.raises(ValueError, match=message):
        natural_split(labels, **options | change)


def test_a_split_cannot_be_changed_by_assignment():
    with pytest.raises(AttributeError):
        Split(np.arange(1), None, np.arange(0)).labeled = np.arange(2)


# Rows of a step


@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (10, 10), (7, 5), (12, 4), (1, 1)])
def test_the_rows_of_an_epoch_are_a_permutation_wherever_batches_end(n, batch_size):
    rows = torch.cat([epoch_rows(n, batch_size, step, seed=5) for step in range(4 * n)])
    for epoch in rows[: len(rows) // n * n].view(-1, n):
        assert sorted(epoch.tolist()) == list(range(n))


def test_the_rows_of_a_step_do_not_depend_on_the_steps_before():
    in_order = [epoch_rows(50, 8, step, seed=1) for step in range(100)]
    for step in (99, 3, 57, 0):
        assert torch.equal(epoch_rows(50, 8, step, seed=1), in_order[step])


def test_epochs_seeds_and_purposes_give_different_permutations():
    first = epoch_rows(50, 50, 0, seed=1)
    others = [epoch_rows(50, 50, 1, seed=1), epoch_rows(50, 50, 0, seed=2), epoch_rows(50, 50, 0, seed=1, purpose="u")]
    assert not any(torch.equal(first, other) for other in others)


def test_changing_the_rows_of_a_step_does_not_change_a_later_epoch():
    rows = epoch_rows(20, 20, 0, seed=9)
    kept = rows.clone()
    rows.zero_()
    assert torch.equal(epoch_rows(20, 20, 0, seed=9), kept)


def test_the_rows_of_a_step_leave_torchs_global_generator_alone():
    before = torch.get_rng_state()
    epoch_rows(33, 4, 0, seed=11)
    class_aware_rows(torch.arange(3), torch.ones(3), batch_size=2, step=0, seed=11)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch_size", [0, 11])
def test_a_batch_that_is_empty_or_larger_than_the_data_set_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be in 1..10, got {batch_size}.*larger than the data set"):
        epoch_rows(10, batch_size, 0, seed=0)


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match="step must be >= 0, got -1"):
        epoch_rows(10, 2, -1, seed=0)
    with pytest.raises(ValueError, match="step must be >= 0, got -1"):
        class_aware_rows(torch.arange(3), torch.ones(3), batch_size=2, step=-1, seed=0)


def test_class_aware_rows_draw_classes_in_proportion_to_count_times_weight():
    """Counts (90, 10), weights (0.1, 0.9): classes are drawn evenly, so 4,000 draws give 2,000 +- 4.4 * 32 of each."""
    labels = torch.cat([torch.zeros(90), torch.ones(10)]).long()
    weights = class_aware_weights(labels.bincount(), beta=1.0)
    torch.testing.assert_close(weights, torch.tensor([0.1, 0.9], dtype=torch.float64))
    steps = [class_aware_rows(labels, weights, batch_size=100, step=step, seed=0) for step in range(40)]
    rows = torch.cat(steps)
    assert abs(labels[rows].sum().item() - 2000) < 140
    assert rows.unique().numel() == 100  # within a class all images are drawn
    assert not torch.equal(steps[0], steps[1])
    assert torch.equal(class_aware_rows(labels, weights, batch_size=100, step=17, seed=0), steps[17])


def test_class_aware_weights_go_from_equal_images_to_equal_classes():
    n_labeled = torch.tensor([100, 10, 1])
    equal_images, equal_classes = (class_aware_weights(n_labeled, beta) for beta in (0.0, 1.0))
    torch.testing.assert_close(equal_images, torch.full((3,), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(equal_classes * n_labeled, torch.full((3,), 100 / 111, dtype=torch.float64))
    torch.testing.assert_close(class_aware_weights(n_labeled, 1 - 1e-9), equal_classes, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_aware_weights(torch.tensor([3, 0]), 0.9), r"counts must all be >= 1, got \[3.0, 0.0\]"),
        (lambda: class_aware_weights(torch.tensor([3, 1]), 1.1), r"beta must be in \[0, 1\], got 1.1"),
        (lambda: class_aware_rows(torch.arange(3), torch.ones(3), batch_size=0, step=0, seed=0), "batch_size .* got 0"),
        (lambda: class_aware_rows(torch.arange(4), torch.ones(3), batch_size=1, step=0, seed=0), "4 rows from 0 to 3"),
        (lambda: class_aware_rows(torch.arange(0), torch.ones(3), batch_size=1, step=0, seed=0), "got 0 rows"),
    ],
)
def test_the_class_aware_sampler_refuses_what_it_cannot_draw_from(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_natural_data_without_list_or_pile_is_all_labeled():
    split = natural_split(NATURAL[:8], n_classes=3, n_val=0, seed=0)
    np.testing.assert_array_equal(split.labeled, np.arange(8))
    assert split.unlabeled.size == 0
