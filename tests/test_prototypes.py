"""Queues and prototypes against a plain deque for each class."""

from collections import deque

import numpy as np
import pytest
import torch

from dasolib.prototypes import PrototypeBank

SIZES = [[1, 1], [2, 5, 3], [4, 4, 4, 4], [7, 1, 2]]


def random_pushes(k, n_pushes, largest_batch, feat_dim=3, seed=0):
    """Batches of 0 to `largest_batch` rows; low classes are frequent and the last one may never come."""
    rng = np.random.default_rng(seed)
    for _ in range(n_pushes):
        n = int(rng.integers(0, largest_batch + 1))
        target = np.minimum(rng.geometric(0.5, n) - 1, k - 1)
        yield torch.from_numpy(rng.normal(size=(n, feat_dim))).float(), torch.from_numpy(target)


def mean_of(rows, feat_dim):
    return np.mean(np.stack(rows).astype(np.float64), axis=0) if rows else np.zeros(feat_dim)


@pytest.mark.parametrize("largest_batch", [3, 20])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_bank_holds_what_a_deque_for_each_class_holds(sizes, largest_batch):
    """Batches of up to 20 rows hold more of a class than its queue: the last ones in row order must stay."""
    bank, queues = PrototypeBank(sizes, 3), [deque(maxlen=size) for size in sizes]
    overflows = 0
    for feats, target in random_pushes(len(sizes), 40, largest_batch, seed=largest_batch):
        bank.push(feats, target)
        for row, k in zip(feats.numpy(), target.tolist(), strict=True):
            queues[k].append(row)
        overflows += any((target == k).sum() > size for k, size in enumerate(sizes))
        assert bank.lengths().tolist() == [len(queue) for queue in queues]
        held = [sorted(map(tuple, bank.queues[k, : len(queue)].tolist())) for k, queue in enumerate(queues)]
        assert held == [sorted(map(tuple, np.array(queue).tolist())) for queue in queues]
        want = np.stack([mean_of(queue, 3) for queue in queues])
        np.testing.assert_allclose(bank.prototypes.numpy(), want, atol=1e-6)
    assert overflows > 0 or largest_batch == 3


def test_the_last_rows_of_a_class_stay_when_a_batch_has_too_many():
    """Queue of 2: rows 1, 2, 3 leave 2 and 3; then 10 pushes out 2, and the mean of 3 and 10 is 6.5."""
    bank = PrototypeBank([2], 1)
    bank.push(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 0, 0]))
    assert bank.prototypes.item() == 2.5
    bank.push(torch.tensor([[10.0]]), torch.tensor([0]))
    assert bank.prototypes.item() == 6.5


def test_a_class_never_seen_has_a_zero_prototype_and_an_empty_queue():
    bank = PrototypeBank([3, 3], 4)
    bank.push(torch.ones(5, 4), torch.zeros(5, dtype=torch.int64))
    assert bank.lengths().tolist() == [3, 0]
    assert torch.equal(bank.prototypes, torch.tensor([[1.0] * 4, [0.0] * 4]))


def test_a_push_leaves_the_prototypes_of_other_classes_alone():
    bank = PrototypeBank([3, 3], 2)
    bank.push(torch.tensor([[1.0, 2.0], [5.0, 6.0]]), torch.tensor([0, 1]))
    before = bank.prototypes[0].clone()
    bank.push(torch.tensor([[9.0, 9.0]]), torch.tensor([1]))
    assert torch.equal(bank.prototypes[0], before)
    assert bank.prototypes[1].tolist() == [7.0, 7.5]


def test_one_push_equals_row_by_row_pushes():
    together, alone = PrototypeBank([4, 2, 3], 3), PrototypeBank([4, 2, 3], 3)
    for feats, target in random_pushes(3, 10, 15, seed=5):
        together.push(feats, target)
        for row, k in zip(feats.split(1), target.split(1), strict=True):
            alone.push(row, k)
        assert torch.equal(together.n_pushed, alone.n_pushed)
        torch.testing.assert_close(together.prototypes, alone.prototypes)
        assert torch.equal(together.queues[:, :-1], alone.queues[:, :-1])


def test_a_bank_restored_from_its_state_goes_on_like_the_first():
    bank, restored = PrototypeBank([4, 2, 3], 3), PrototypeBank([4, 2, 3], 3)
    pushes = list(random_pushes(3, 20, 8, seed=6))
    for push in pushes[:10]:
        bank.push(*push)
    restored.load_state_dict({name: value.clone() for name, value in bank.state_dict().items()})
    for push in pushes[10:]:
        bank.push(*push)
        restored.push(*push)
    for name, value in bank.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name


def test_prototypes_do_not_drift_over_ten_thousand_pushes():
    """Large features pass through the queues first: an error of a running sum in single precision would stay."""
    bank = PrototypeBank([8, 8], 2)
    rng = np.random.default_rng(0)
    feats = torch.from_numpy(rng.normal(size=(10_000, 3, 2))).float()
    feats[:5000] *= 1e4
    target = torch.from_numpy(rng.integers(0, 2, (10_000, 3)))
    for rows, classes in zip(feats, target, strict=True):
        bank.push(rows, classes)
    want = bank.queues[:, :8].double().mean(dim=1).float()
    torch.testing.assert_close(bank.prototypes, want, atol=1e-7, rtol=1e-6)


def test_features_are_stored_without_gradient():
    bank = PrototypeBank([2], 2)
    bank.push(torch.ones(1, 2, requires_grad=True), torch.tensor([0]))
    assert not bank.prototypes.requires_grad and not bank.queues.requires_grad


def test_a_queue_of_length_zero_is_refused():
    with pytest.raises(ValueError, match=r"queue_sizes=\[3, 0\]: every class needs a queue of at least 1"):
        PrototypeBank([3, 0], 2)
