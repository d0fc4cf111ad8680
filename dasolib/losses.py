"""Loss terms: functions of tensors, each a mean over rows unless said otherwise."""

import torch
from torch.nn import functional as F

from dasolib.pseudo_labels import one_hot


def cross_entropy(logits, target, *, row_weight=None, denominator=None):
    """Cross-entropy with a weight for each row, summed and divided by **all** rows.

    Parameters
    ----------
    logits : Tensor of shape (n, K)
    target : Tensor of shape (n,) or (n, K)
        Class ids, or probabilities.
    row_weight : Tensor of shape (n,), optional
        A mask or class weights; rows of weight 0 still count in the denominator.
    denominator : float, optional
        What the weighted sum is divided by; n by default.

    Returns
    -------
    Tensor of shape ()

    Examples
    --------
    >>> logits = torch.zeros(2, 4)
    >>> cross_entropy(logits, torch.tensor([0, 3]), row_weight=torch.tensor([1.0, 0.0])) / torch.tensor(4.0).log()
    tensor(0.5000)
    """
    per_row = F.cross_entropy(logits, target, reduction="none")
    if row_weight is not None:
        per_row = per_row * row_weight
    return per_row.sum() / (len(logits) if denominator is None else denominator)


def squared_error(probs, target, *, row_weight=None, denominator=None):
    """Squared error between probabilities (n, K), averaged over classes, then over rows as in `cross_entropy`.

    Examples
    --------
    >>> squared_error(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]]))
    tensor(0.2500)
    """
    per_row = (probs - target).square().mean(dim=-1)
    if row_weight is not None:
        per_row = per_row * row_weight
    return per_row.sum() / (len(probs) if denominator is None else denominator)


def class_balanced_weights(counts, beta):
    """Weights of K classes ``(1 - beta) / (1 - beta^N_k)``, scaled to sum to K.

    Parameters
    ----------
    counts : Tensor of shape (K,)
        Labeled images of each class, > 0.
    beta : float
        In [0, 1]; 0 gives equal weights, and 1 the limit ``1 / N_k``.

    References
    ----------
    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019, equation 2.

    Examples
    --------
    >>> class_balanced_weights(torch.tensor([3.0, 1.0]), 1.0)
    tensor([0.5000, 1.5000])
    """
    # float64: 1 - beta^N loses digits that a single-precision weight needs
    counts = counts.double()
    weights = 1 / counts if beta == 1 else (1 - beta) / (1 - beta**counts)
    return (weights * len(counts) / weights.sum()).to(torch.get_default_dtype())


def ldam_margins(counts, max_margin):
    """Margins of K classes, ``N_k^(-1/4)`` scaled so that the largest is `max_margin`.

    References
    ----------
    Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019, equation 13.

    Examples
    --------
    >>> ldam_margins(torch.tensor([16.0, 1.0]), 0.5)
    tensor([0.2500, 0.5000])
    """
    margins = counts.double() ** -0.25
    return (margins * max_margin / margins.max()).to(torch.get_default_dtype())


def ldam_loss(logits, target, margins, *, scale, class_weight=None):
    """Cross-entropy after the margin of the true class is subtracted from its logit and all are scaled.

    Parameters
    ----------
    logits : Tensor of shape (n, K)
    target : Tensor of shape (n,)
        Class ids.
    margins : Tensor of shape (K,)
        From `ldam_margins`.
    scale : float
        Multiplies the logits; 30 in the paper.
    class_weight : Tensor of shape (K,), optional
        Rows are averaged with the weight of their class: divided by the sum of the weights, not by n.

    Returns
    -------
    Tensor of shape ()
    """
    is_true = one_hot(target, logits.shape[1])
    return F.cross_entropy(scale * (logits - margins * is_true), target, weight=class_weight)


def mutual_information_loss(p, q):
    """Negative mutual information between the class predictions of two views.

    Parameters
    ----------
    p, q : Tensor of shape (n, K)
        Probabilities of the same images in two views.

    Returns
    -------
    Tensor of shape ()
        In [-log K, 0]: ``-sum P (log P - log P_i - log P_j)`` of the symmetrised, normalised joint distribution P.

    References
    ----------
    Ji, Henriques and Vedaldi, "Invariant Information Clustering", ICCV 2019, equation 3.

    Examples
    --------
    >>> sure = torch.eye(2)
    >>> torch.allclose(mutual_information_loss(sure, sure), -torch.tensor(2.0).log())
    True
    """
    joint = p.T @ q
    joint = (joint + joint.T) / (2 * joint.sum())
    smallest = torch.finfo(joint.dtype).eps
    log_row, log_column = (joint.sum(dim=d, keepdim=True).clamp(min=smallest).log() for d in (0, 1))
    return -(joint * (joint.clamp(min=smallest).log() - log_row - log_column)).sum()


def mutual_information_triplet_loss(p, q, r):
    """Mean of `mutual_information_loss` over the three pairs of views."""
    return (mutual_information_loss(p, q) + mutual_information_loss(p, r) + mutual_information_loss(q, r)) / 3
