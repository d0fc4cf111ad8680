"""How many unlabeled images each class has, estimated from a trained network and a few held-out labeled images."""

from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """One estimate of the unlabeled class counts, and what it rests on."""

    counts: np.ndarray  # (K,) estimated images of each class; NaN if the confusion matrix has no inverse
    accepted: bool  # no negative count, and the condition number is below the limit
    confusion_sum: np.ndarray  # (K, K) row = predicted, column = true class: sums of the held-out predictions
    predicted_mass: np.ndarray  # (K,) sum of the unlabeled predictions
    condition_number: float  # of the confusion matrix with columns that sum to 1


def estimate_unlabeled_counts(probs_held_out, target, probs_unlabeled, *, max_condition=100.0):
    """Estimate the class counts of unlabeled images by undoing the network's confusion.

    If a share ``C[j, k]`` of class k is predicted as class j, counts ``m`` are predicted as ``C m``. C is measured on
    held-out labeled images and the predicted counts on the unlabeled ones; solving for ``m`` gives the estimate. All
    predictions count softly, as probabilities.

    Parameters
    ----------
    probs_held_out : array of shape (n, K)
        Probabilities of labeled images that the network was not trained on; an array, or a tensor on the CPU.
    target : array of shape (n,)
        Their classes; each class occurs.
    probs_unlabeled : array of shape (U, K)
        Probabilities of the unlabeled images; rows sum to 1.
    max_condition : float
        An estimate whose matrix has this condition number or a larger one is not accepted.

    Returns
    -------
    Estimate
        In float64. Counts sum to U, and may be negative where the estimate is not accepted. A matrix without an
        inverse is no error: the counts are NaN then, and not accepted.

    Raises
    ------
    ValueError
        If shapes disagree, a probability is not finite, or a class has no held-out image.

    References
    ----------
    Kim et al., "Distribution Aligning Refinery of Pseudo-label for Imbalanced Semi-supervised Learning", NeurIPS 2020,
    arXiv:2007.08844, which takes the idea from Lipton, Wang and Smola, "Detecting and Correcting for Label Shift with
    Black Box Predictors", ICML 2018; ytaek-oh/daso@3541a6c, ``lib/algorithm/darp_estim.py``.

    Examples
    --------
    A quarter of class 0 is taken for class 1, so the 30 images predicted as class 0 are three quarters of 40.

    >>> held_out, target = [[0.75, 0.25], [0.0, 1.0]], [0, 1]
    >>> unlabeled = [[1.0, 0.0]] * 30 + [[0.0, 1.0]] * 70
    >>> estimate = estimate_unlabeled_counts(held_out, target, unlabeled)
    >>> estimate.counts, estimate.accepted
    (array([40., 60.]), True)
    """
    held_out, unlabeled = (np.asarray(probs, dtype=np.float64) for probs in (probs_held_out, probs_unlabeled))
    target = np.asarray(target)
    if held_out.ndim != 2 or target.shape != held_out.shape[:1] or unlabeled.shape[1:] != held_out.shape[1:]:
        raise ValueError(f"shapes disagree: probs_held_out {held_out.shape}, target {target.shape}, probs_unlabeled "
                         f"{unlabeled.shape}")
    for name, probs in (("probs_held_out", held_out), ("probs_unlabeled", unlabeled)):
        if not np.isfinite(probs).all():
            raise ValueError(f"{name}: {np.count_nonzero(~np.isfinite(probs))} entries are not finite")
    is_class = target[:, None] == np.arange(held_out.shape[1])  # (n, K)
    if not (is_class.any(axis=0).all() and is_class.any(axis=1).all()):
        raise ValueError(f"target: must hold each class in 0..{held_out.shape[1] - 1} and no other, got "
                         f"{np.unique(target).tolist()}")
    confusion_sum = held_out.T @ is_class
    predicted_mass = unlabeled.sum(axis=0)
    confusion = confusion_sum / confusion_sum.sum(axis=0)
    condition_number = float(np.linalg.cond(confusion))
    try:
        counts = np.linalg.solve(confusion, predicted_mass)
    except np.linalg.LinAlgError:
        counts = np.full(len(predicted_mass), np.nan)
    accepted = bool((counts >= 0).all()) and condition_number < max_condition
    return Estimate(counts, accepted, confusion_sum, predicted_mass, condition_number)


def average_estimates(counts):
    """Mean over the accepted ones of a list of estimated counts (K,), with None for one that is not; None without any.

    Examples
    --------
    >>> average_estimates([[2.0, 6.0], None, [4.0, 4.0]]), average_estimates([None])
    ([3.0, 5.0], None)
    """
    accepted = [estimate for estimate in counts if estimate is not None]
    return np.mean(accepted, axis=0).tolist() if accepted else None
