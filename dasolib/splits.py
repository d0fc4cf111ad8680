"""Which images are labeled, unlabeled and held out, and which rows a step sees.

The long-tailed split has three stages, each with its own generator made from the same seed: validation images, pools of
labeled and unlabeled candidates, and the imbalance of each pool. Every function takes a vector of labels and returns
positions in that vector, in the order produced; `long_tailed_split` chains them. Rows of a step are functions of the
step, so that a resumed run sees the same rows without storing any state.

References
----------
Oh, Kim and Kweon, "DASO", CVPR 2022, arXiv:2106.05682; ytaek-oh/daso@3541a6c.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dasolib.seeds import host_generator

UNLABELED_CHOICES = ("equal", "uniform", "reversed", "unknown")


@dataclass(frozen=True)
class Split:
    """Positions in the training images; no image is in two of the three parts.

    Attributes
    ----------
    labeled : ndarray of shape (n_labeled,), int64
        The labeled images X.
    unlabeled : ndarray of shape (n_unlabeled,), int64, or None
        The unlabeled images U; None if U is the separate unlabeled pile of the data.
    validation : ndarray of shape (n_val,), int64
        Held-out images, as many of each class; empty if none were asked for.
    """

    labeled: np.ndarray
    unlabeled: np.ndarray | None
    validation: np.ndarray


def long_tailed_counts(n_head: int, gamma: float, n_classes: int) -> list[int]:
    """Images per frequency rank: ``int(n_head * (1 / gamma) ** (k / (n_classes - 1)))`` for rank k.

    Parameters
    ----------
    n_head : int
        Images of the most frequent class, >= 1.
    gamma : float
        Imbalance ratio, head count over tail count, >= 1.
    n_classes : int
        Number of classes, >= 2.

    Returns
    -------
    list of int
        One count per rank, never rising, the first equal to `n_head`. Fractions are cut off, so the last may be 0.

    Raises
    ------
    ValueError
        If an argument is below its range.

    References
    ----------
    ytaek-oh/daso@3541a6c, ``lib/dataset/utils.py``.

    Examples
    --------
    >>> long_tailed_counts(1500, 100, 10)
    [1500, 899, 539, 323, 193, 116, 69, 41, 25, 15]
    """
    if n_head < 1:
        raise ValueError(f"n_head must be >= 1, got {n_head}")
    if not gamma >= 1:
        raise ValueError(
            f"gamma must be >= 1, got {gamma}; a reversed class order is asked for by name, not by a ratio below 1"
        )
    if n_classes < 2:
        raise ValueError(f"n_classes must be >= 2, got {n_classes}")
    return [int(n_head * (1 / gamma) ** (k / (n_classes - 1))) for k in range(n_classes)]


def split_validation(labels: np.ndarray, n_val: int, n_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``n_val / n_classes`` validation images of every class.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        Class ids in 0..n_classes-1.
    n_val : int
        Validation images in all, a multiple of `n_classes`.
    n_classes : int
        Number of classes.
    seed : int
        Seed of the generator, in 0..2**32-1.

    Returns
    -------
    validation, rest : ndarray of shape (n_val,) and (n - n_val,), int64
        Positions in `labels`, both ordered by class and shuffled within a class.

    Raises
    ------
    ValueError
        If a label or the seed is out of range, `n_val` is negative or no multiple of `n_classes`, or a class has too
        few images.

    Examples
    --------
    >>> validation, rest = split_validation(np.array([0, 0, 0, 1, 1]), n_val=2, n_classes=2, seed=0)
    >>> len(validation), len(rest)
    (2, 3)
    """
    positions = _positions_by_class(labels, n_classes)
    if n_val < 0 or n_val % n_classes:
        raise ValueError(f"n_val must be a multiple of n_classes={n_classes} and >= 0, got {n_val}")
    per_class = n_val // n_classes
    for k, own in enumerate(positions):
        if len(own) < per_class:
            raise ValueError(f"n_val={n_val} takes {per_class} images of each class, but class {k} has {len(own)}")
    rng = _generator(seed)
    for own in positions:
        rng.shuffle(own)
    return np.concatenate([own[:per_class] for own in positions]), np.concatenate(
        [own[per_class:] for own in positions]
    )


def split_pools(labels: np.ndarray, n1: int, m1: int, n_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw two disjoint balanced pools: `n1` images of every class, then `m1` others of every class.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        Class ids in 0..n_classes-1.
    n1, m1 : int
        Images of each class in the labeled and in the unlabeled pool, both >= 1.
    n_classes : int
        Number of classes.
    seed : int
        Seed of the generator, in 0..2**32-1.

    Returns
    -------
    labeled, unlabeled : ndarray of shape (n1 * n_classes,) and (m1 * n_classes,), int64
        Positions in `labels`, ordered by class.

    Raises
    ------
    ValueError
        If a label, a count or the seed is out of range, or a class has fewer than ``n1 + m1`` images.

    Examples
    --------
    >>> labeled, unlabeled = split_pools(np.array([0, 1, 0, 1, 0, 1]), n1=1, m1=2, n_classes=2, seed=0)
    >>> len(labeled), len(unlabeled), len(np.union1d(labeled, unlabeled))
    (2, 4, 6)
    """
    positions = _positions_by_class(labels, n_classes)
    for name, count in (("n1", n1), ("m1", m1)):
        if count < 1:
            raise ValueError(f"{name} must be >= 1, got {count}")
    for k, own in enumerate(positions):
        if len(own) < n1 + m1:
            raise ValueError(
                f"n1 + m1 = {n1} + {m1} = {n1 + m1} images of each class are needed, but class {k} has {len(own)}"
                " left after validation"
            )
    rng = _generator(seed)
    for own in positions:
        rng.shuffle(own)
    return np.concatenate([own[:n1] for own in positions]), np.concatenate([own[n1 : n1 + m1] for own in positions])


def make_imbalanced(
    labels: np.ndarray, n_head: int, gamma: float, n_classes: int, seed: int, *, reversed: bool = False
) -> np.ndarray:
    """Draw a long-tailed subset with the counts of `long_tailed_counts`.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        Class ids in 0..n_classes-1.
    n_head : int
        Images kept of the most frequent class, >= 1.
    gamma : float
        Imbalance ratio, >= 1.
    n_classes : int
        Number of classes, >= 2.
    seed : int
        Seed of the generator, in 0..2**32-1.
    reversed : bool, default False
        If true the last class is the head and the first one the tail.

    Returns
    -------
    ndarray of shape (sum of the counts,), int64
        Positions in `labels`, ordered from head to tail.

    Raises
    ------
    ValueError
        If an argument is out of range or a class has fewer images than its count.

    Examples
    --------
    >>> labels = np.repeat([0, 1, 2], 4)
    >>> labels[make_imbalanced(labels, n_head=4, gamma=4, n_classes=3, seed=0)]
    array([0, 0, 0, 0, 1, 1, 2])
    >>> labels[make_imbalanced(labels, n_head=4, gamma=4, n_classes=3, seed=0, reversed=True)]
    array([2, 2, 2, 2, 1, 1, 0])
    """
    counts = long_tailed_counts(n_head, gamma, n_classes)
    positions = _positions_by_class(labels, n_classes)
    order = list(range(n_classes))[:: -1 if reversed else 1]
    for k, count in zip(order, counts, strict=True):
        if len(positions[k]) < count:
            raise ValueError(
                f"n_head={n_head} and gamma={gamma} need {count} images of class {k}, which has {len(positions[k])}"
            )
    rng = _generator(seed)
    for k in order:  # the generator serves the head first, so the order of the draws is part of the result
        rng.shuffle(positions[k])
    return np.concatenate([positions[k][:count] for k, count in zip(order, counts, strict=True)])


def hold_out(labels: np.ndarray, n_classes: int, per_class: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Set the first `per_class` images of every class aside, without drawing.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        Class ids in 0..n_classes-1.
    n_classes : int
        Number of classes.
    per_class : int, default 10
        Images of each class, >= 1.

    Returns
    -------
    held_out, rest : ndarray of shape (per_class * n_classes,) and the others, int64
        Positions in `labels`, ordered by class; within a class the given order stays.

    Raises
    ------
    ValueError
        If a label or `per_class` is out of range, or a class has fewer than `per_class` images.

    Examples
    --------
    >>> hold_out(np.array([1, 0, 1, 0]), n_classes=2, per_class=1)
    (array([1, 0]), array([3, 2]))
    """
    positions = _positions_by_class(labels, n_classes)
    if per_class < 1:
        raise ValueError(f"per_class must be >= 1, got {per_class}")
    for k, own in enumerate(positions):
        if len(own) < per_class:
            raise ValueError(f"per_class={per_class} images of each class are needed, but class {k} has {len(own)}")
    return np.concatenate([own[:per_class] for own in positions]), np.concatenate(
        [own[per_class:] for own in positions]
    )


def long_tailed_split(
    labels: np.ndarray,
    *,
    n_classes: int,
    n1: int,
    m1: int | None,
    gamma_l: float,
    gamma_u: float | None,
    unlabeled: str,
    n_val: int,
    seed: int,
) -> Split:
    """Split a balanced training set into long-tailed labeled and unlabeled images and a balanced validation set.

    Validation images go first, then the pools, then the imbalance of each pool. As in the published code, a stage with
    nothing to do draws nothing: no validation stage for ``n_val == 0``, no imbalance stage for a ratio of 1.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        Class ids of the training images, in 0..n_classes-1.
    n_classes : int
        Number of classes, >= 2.
    n1, m1 : int
        Labeled and unlabeled images of the most frequent class. `m1` is None if `unlabeled` is "unknown".
    gamma_l, gamma_u : float
        Imbalance ratios, >= 1. `gamma_u` is 1 if `unlabeled` is "uniform" and None if it is "unknown".
    unlabeled : {"equal", "uniform", "reversed", "unknown"}
        Order of the classes among the unlabeled images: as the labeled ones, as many of each (`m1`), or with the first
        class as the tail. With "unknown" they are a separate pile of the data: no pool is set aside, and the labeled
        images come from all that is left after validation.
    n_val : int
        Validation images in all, a multiple of `n_classes`; 0 for none.
    seed : int
        Seed, in 0..2**32-1.

    Returns
    -------
    Split
        Disjoint positions in `labels`; labeled and unlabeled ones ordered from head to tail.

    Raises
    ------
    ValueError
        If an argument is out of range or contradicts `unlabeled`, a class has too few images, or a class would have no
        labeled one.

    References
    ----------
    ytaek-oh/daso@3541a6c, ``lib/dataset``.

    Examples
    --------
    >>> labels = np.tile([0, 1, 2], 20)
    >>> split = long_tailed_split(
    ...     labels, n_classes=3, n1=4, m1=9, gamma_l=4, gamma_u=9, unlabeled="reversed", n_val=6, seed=0
    ... )
    >>> np.bincount(labels[split.labeled]), np.bincount(labels[split.unlabeled]), np.bincount(labels[split.validation])
    (array([4, 2, 1]), array([1, 3, 9]), array([2, 2, 2]))
    """
    labels = np.asarray(labels)
    if unlabeled not in UNLABELED_CHOICES:
        raise ValueError(f"unknown unlabeled {unlabeled!r}; choose from {', '.join(UNLABELED_CHOICES)}")
    if unlabeled == "unknown":
        if m1 is not None or gamma_u is not None:
            raise ValueError(
                f"m1 and gamma_u must be None with unlabeled='unknown', whose images are a separate pile; got m1={m1}, "
                f"gamma_u={gamma_u}"
            )
    elif m1 is None or gamma_u is None:
        raise ValueError(f"m1 and gamma_u must be numbers with unlabeled={unlabeled!r}; got m1={m1}, gamma_u={gamma_u}")
    elif unlabeled == "uniform" and gamma_u != 1:
        raise ValueError(f"gamma_u must be 1 with unlabeled='uniform', got {gamma_u}")
    for name, count in (("n1", n1), ("m1", m1)):
        if count is not None and count < 1:
            raise ValueError(f"{name} must be >= 1, got {count}")
    for name, gamma in (("gamma_l", gamma_l), ("gamma_u", gamma_u)):
        if gamma is not None and not gamma >= 1:
            raise ValueError(
                f"{name} must be >= 1, got {gamma}; ask for unlabeled='reversed' to reverse the order of the classes"
            )
    for k, count in enumerate(long_tailed_counts(n1, gamma_l, n_classes)):
        if count == 0:
            raise ValueError(
                f"class {k} would have no labeled image with n1={n1} and gamma_l={gamma_l}; raise n1 or lower gamma_l"
            )

    validation, rest = np.empty(0, dtype=np.int64), np.arange(len(labels))
    if n_val != 0:
        validation, rest = split_validation(labels, n_val, n_classes, seed)
    if unlabeled == "unknown":
        return Split(rest[make_imbalanced(labels[rest], n1, gamma_l, n_classes, seed)], None, validation)
    for_labeled, for_unlabeled = (rest[pool] for pool in split_pools(labels[rest], n1, m1, n_classes, seed))
    if gamma_l != 1:
        for_labeled = for_labeled[make_imbalanced(labels[for_labeled], n1, gamma_l, n_classes, seed)]
    if gamma_u != 1:
        kept = make_imbalanced(labels[for_unlabeled], m1, gamma_u, n_classes, seed, reversed=unlabeled == "reversed")
        for_unlabeled = for_unlabeled[kept]
    return Split(for_labeled, for_unlabeled, validation)


def estimation_split(labels: np.ndarray, split: Split, *, n_classes: int, per_class: int = 10) -> Split:
    """Split for the run that estimates the class distribution of the unlabeled images.

    `per_class` images of every class are held out to measure the confusion of the classes. They leave the labeled set,
    unless its rarest class has no more than that: then they are the first ones of the validation set and the labeled
    set stays whole.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        Class ids of the training images.
    split : Split
        The split of the run that needs the estimate.
    n_classes : int
        Number of classes.
    per_class : int, default 10
        Held-out images of each class, >= 1.

    Returns
    -------
    Split
        `validation` holds the held-out images, `unlabeled` is unchanged.

    Raises
    ------
    ValueError
        If the rarest class has too few labeled images and the validation set cannot serve instead.

    References
    ----------
    ytaek-oh/daso@3541a6c, ``lib/algorithm/darp_estim.py``.

    Examples
    --------
    >>> labels = np.tile([0, 1], 20)
    >>> split = Split(labeled=np.arange(30), unlabeled=np.arange(30, 40), validation=np.arange(0))
    >>> estimation = estimation_split(labels, split, n_classes=2, per_class=3)
    >>> estimation.validation, len(estimation.labeled)
    (array([0, 2, 4, 1, 3, 5]), 24)
    """
    labels = np.asarray(labels)
    if per_class < 1:
        raise ValueError(f"per_class must be >= 1, got {per_class}")
    n_tail = np.bincount(labels[split.labeled], minlength=n_classes).min()
    if n_tail > per_class:
        held_out, rest = hold_out(labels[split.labeled], n_classes, per_class)
        return Split(split.labeled[rest], split.unlabeled, split.labeled[held_out])
    n_held_out = np.bincount(labels[split.validation], minlength=n_classes).min()
    if n_held_out < per_class:
        raise ValueError(
            f"per_class={per_class} images of each class must be held out, but the rarest class has {n_tail} labeled "
            f"images (more than {per_class} are needed) and {n_held_out} validation images"
        )
    held_out, _ = hold_out(labels[split.validation], n_classes, per_class)
    return Split(split.labeled, split.unlabeled, split.validation[held_out])


def natural_split(
    labels: np.ndarray,
    *,
    n_classes: int,
    labeled_indices: np.ndarray | list[int] | None = None,
    has_pile: bool = False,
    n_val: int,
    seed: int,
) -> Split:
    """Split data that comes with its own class frequencies, changing none of them.

    ============== ======================= ========================
    pile           with `labeled_indices`  without
    ============== ======================= ========================
    there is one   X: the list, U: pile    X: all images, U: pile
    there is none  X: the list, U: others  X: all images, U: none
    ============== ======================= ========================

    Parameters
    ----------
    labels : ndarray of shape (n,)
        Class ids of the training images, in 0..n_classes-1; -1 (unknown) is allowed where the image is not labeled.
    n_classes : int
        Number of classes.
    labeled_indices : sequence of int, optional
        Positions of the labeled images, each once; at least one of every class.
    has_pile : bool, default False
        Whether the data has a separate unlabeled pile. With a list, training images outside it are then not used.
    n_val : int
        Validation images in all, a multiple of `n_classes`, drawn from the labeled images, as many of each class; 0, as
        in the paper's natural data, keeps them all for training.
    seed : int
        Seed of the draw of validation images, in 0..2**32-1; nothing else is drawn.

    Returns
    -------
    Split
        With `n_val` 0 the labeled images keep the order of the list, or of the data.

    Raises
    ------
    ValueError
        If the list has a position that is no integer, out of range or repeated, a label is
        out of range, or a class has no labeled image, be it before or after `n_val` are taken out.

    Examples
    --------
    >>> split = natural_split(np.array([0, 1, 0, -1, -1]), n_classes=2, labeled_indices=[0, 1, 2], n_val=0, seed=0)
    >>> split.labeled, split.unlabeled
    (array([0, 1, 2]), array([3, 4]))
    """
    labels = np.asarray(labels)
    if labeled_indices is None:
        labeled = np.arange(len(labels))
    else:
        labeled = _checked_indices(labeled_indices, len(labels))
    others = np.setdiff1d(np.arange(len(labels)), labeled)
    if len(others) and (labels[others].min() < -1 or labels[others].max() >= n_classes):
        raise ValueError(
            f"labels must be in 0..{n_classes - 1}, or -1 for unknown where the image is not labeled, got values from "
            f"{labels[others].min()} to {labels[others].max()}"
        )

    counts = [len(own) for own in _positions_by_class(labels[labeled], n_classes)]
    for k, count in enumerate(counts):
        if count == 0:
            raise ValueError(f"class {k} has no labeled image; each of the {n_classes} classes needs one")
        if n_val > 0 and count <= n_val // n_classes:
            raise ValueError(
                f"n_val={n_val} takes {n_val // n_classes} images of each class, but class {k} has {count} labeled "
                "images; one at least must be left"
            )
    validation = np.empty(0, dtype=np.int64)
    if n_val != 0:
        held_out, rest = split_validation(labels[labeled], n_val, n_classes, seed)
        labeled, validation = labeled[rest], labeled[held_out]
    return Split(labeled, None if has_pile else others, validation)


def class_aware_weights(counts: Tensor, beta: float) -> Tensor:
    """Weight of one image of each class in the class-aware sampler.

    It is ``(1 - beta) / (1 - beta ** counts)``, scaled to sum to 1 over the classes.

    Parameters
    ----------
    counts : Tensor of shape (n_classes,)
        Labeled images of each class, all >= 1.
    beta : float
        In [0, 1]. 0 weighs all images alike; 1 is the limit ``1 / counts``, which draws all classes alike.

    Returns
    -------
    Tensor of shape (n_classes,), float64
        Weights > 0 that sum to 1 over the classes.

    Raises
    ------
    ValueError
        If a count is below 1 or `beta` is out of range.

    References
    ----------
    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019; ytaek-oh/daso@3541a6c.

    Examples
    --------
    >>> class_aware_weights(torch.tensor([3, 1]), beta=1.0)
    tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    counts = torch.as_tensor(counts).double()
    if counts.numel() == 0 or counts.min() < 1:
        raise ValueError(f"counts must all be >= 1, got {counts.tolist()}")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1], got {beta}")
    weights = 1 / counts if beta == 1 else (1 - beta) / (1 - beta**counts)
    return weights / weights.sum()


def epoch_rows(n: int, batch_size: int, step: int, seed: int, *, purpose: str = "rows") -> Tensor:
    """Rows of one step, without a repeat within an epoch.

    They are the next `batch_size` of an endless sequence of random permutations, one per epoch.

    Parameters
    ----------
    n : int
        Size of the data set.
    batch_size : int
        Rows of a step, in 1..n.
    step : int
        Step, >= 0.
    seed : int
        Seed of the run, >= 0.
    purpose : str, default "rows"
        Name of the stream; labeled and unlabeled rows of a run need two.

    Returns
    -------
    Tensor of shape (batch_size,), int64, on the CPU
        Rows in 0..n-1; a batch may end one epoch and begin the next.

    Raises
    ------
    ValueError
        If `batch_size` or `step` is out of range.

    Examples
    --------
    >>> torch.cat([epoch_rows(6, 4, step, seed=0) for step in range(3)])[:6].sort().values
    tensor([0, 1, 2, 3, 4, 5])
    """
    if not 1 <= batch_size <= n:
        raise ValueError(
            f"batch_size must be in 1..{n}, got {batch_size}: a batch larger than the data set would repeat images"
        )
    if step < 0:
        raise ValueError(f"step must be >= 0, got {step}")
    epoch, first = divmod(step * batch_size, n)
    head = _permutation(n, seed, purpose, epoch)[first : first + batch_size]
    if len(head) == batch_size:
        return head.clone()  # the permutation is kept for later steps
    return torch.cat([head, _permutation(n, seed, purpose, epoch + 1)[: batch_size - len(head)]])


def class_aware_rows(
    labels: Tensor, class_weights: Tensor, *, batch_size: int, step: int, seed: int, purpose: str = "class-aware rows"
) -> Tensor:
    """Rows of one step of the class-aware sampler, drawn with replacement.

    Parameters
    ----------
    labels : Tensor of shape (n,), int64, on the CPU
        Class ids of the rows.
    class_weights : Tensor of shape (n_classes,), on the CPU
        Weight of one image of each class, >= 0 (see `class_aware_weights`): row i has probability proportional to
        ``class_weights[labels[i]]``.
    batch_size : int
        Rows of a step, >= 1; may exceed n.
    step : int
        Step, >= 0.
    seed : int
        Seed of the run, >= 0.
    purpose : str, default "class-aware rows"
        Name of the stream.

    Returns
    -------
    Tensor of shape (batch_size,), int64, on the CPU
        Rows in 0..n-1.

    Raises
    ------
    ValueError
        If `batch_size` or `step` is out of range, or `labels` has no row or one outside the classes of `class_weights`.

    Examples
    --------
    >>> class_aware_rows(torch.tensor([0, 1, 1]), torch.tensor([1.0, 0.0]), batch_size=4, step=0, seed=0)
    tensor([0, 0, 0, 0])
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    if step < 0:
        raise ValueError(f"step must be >= 0, got {step}")
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(class_weights):
        raise ValueError(
            f"labels must hold at least one row, all in 0..{len(class_weights) - 1}, got {len(labels)} rows"
            + (f" from {int(labels.min())} to {int(labels.max())}" if len(labels) else "")
        )
    return torch.multinomial(
        class_weights[labels], batch_size, replacement=True, generator=host_generator(seed, purpose, step)
    )


def _positions_by_class(labels, n_classes):
    """Positions of each class in ascending order, a fresh int64 array per class."""
    labels = np.asarray(labels)
    if len(labels) and (labels.min() < 0 or labels.max() >= n_classes):
        raise ValueError(f"labels must be in 0..{n_classes - 1}, got values from {labels.min()} to {labels.max()}")
    return [np.flatnonzero(labels == k) for k in range(n_classes)]


def _checked_indices(labeled_indices, n):
    indices = np.asarray(labeled_indices)
    if indices.dtype == bool or indices.size > 2 and set(np.unique(indices)) <= {0, 1}:
        raise ValueError("labeled_indices must be positions, not a mask; numpy.flatnonzero(mask) gives them")
    if indices.ndim != 1 or indices.size == 0 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(
            f"labeled_indices must be a list of at least one integer, got shape {indices.shape} of {indices.dtype}"
        )
    indices = indices.astype(np.int64)
    outside = indices[(indices < 0) | (indices >= n)]
    if len(outside):
        raise ValueError(f"labeled_indices must be in 0..{n - 1}, got {outside[0]}")
    values, repeats = np.unique(indices, return_counts=True)
    if len(values) < len(indices):
        raise ValueError(
            f"labeled_indices must name each image once, got {values[repeats > 1][0]} {repeats.max()} times"
        )
    return indices


def _generator(seed):
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in 0..{2**32 - 1}, got {seed}")
    return np.random.RandomState(seed)  # the legacy generator, as the published splits were drawn with it


@lru_cache(maxsize=8)  # two streams, each with the epoch that ends and the one that begins, and room for a second run
def _permutation(n, seed, purpose, epoch):
    return torch.randperm(n, generator=host_generator(seed, purpose, epoch))
