"""K x K counts of true against predicted classes, and what follows from them."""

import numpy as np
import torch

KINDS = ("linear", "semantic", "final", "confident")  # pseudo-labels that are counted; confident: final and in the mask


def confusion_counts(target, predicted, n_classes, *, weight=None):
    """Count pairs of true and predicted class on their device, without waiting for it.

    Parameters
    ----------
    target : Tensor of shape (n,)
        True classes; -1 where unknown.
    predicted : Tensor of shape (n,)
        Predicted classes in 0..K-1.
    n_classes : int
        K.
    weight : Tensor of shape (n,), optional
        How often a row counts, 0 or 1; 1 by default.

    Returns
    -------
    Tensor of shape (K + 1, K)
        int64; row = true class, the last row holds the images of unknown class, column = predicted class.

    Examples
    --------
    >>> confusion_counts(torch.tensor([0, 0, -1]), torch.tensor([0, 1, 1]), 2)
    tensor([[1, 1],
            [0, 0],
            [0, 1]])
    """
    cell = torch.where(target < 0, n_classes, target) * n_classes + predicted
    weight = torch.ones_like(cell) if weight is None else weight.long()
    counts = torch.zeros((n_classes + 1) * n_classes, dtype=torch.int64, device=target.device)
    return counts.index_add_(0, cell, weight).view(n_classes + 1, n_classes)


class PseudoLabelCounts:
    """Counts of pseudo-labels over a window of steps, for each of `KINDS`.

    Parameters
    ----------
    n_classes : int
        K.
    device : torch.device
        Where they are counted; nothing is read back before `take`.
    """

    def __init__(self, n_classes, device):
        self.n_classes = n_classes
        self.counts = torch.zeros(len(KINDS), n_classes + 1, n_classes, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, labels, mask, target):
        """Count one batch of `dasolib.pseudo_labels.PseudoLabels`.

        Parameters
        ----------
        labels : PseudoLabels
            Probabilities (n, K); semantic may be None.
        mask : Tensor of shape (n,)
            1.0 where the final label counts in the loss, else 0.0.
        target : Tensor of shape (n,)
            True classes, -1 where unknown. Training never sees them.
        """
        counted = labels._asdict() | {"confident": labels.final}
        for counts, kind in zip(self.counts, KINDS, strict=True):
            probs, weight = counted[kind], mask if kind == "confident" else None
            if probs is not None:
                counts += confusion_counts(target, probs.argmax(dim=-1), self.n_classes, weight=weight)

    def take(self):
        """Return the counts as a numpy array (len(KINDS), K + 1, K) and start a new window."""
        counts = self.counts.cpu().numpy()
        self.counts = torch.zeros_like(self.counts)
        return counts


def recall(counts):
    """Share of each true class that is predicted as it.

    Parameters
    ----------
    counts : ndarray of shape (..., K, K) or (..., K + 1, K)
        Row = true class, column = predicted class; a last row of images of unknown class is left out.

    Returns
    -------
    ndarray of shape (..., K)
        In [0, 1]; NaN for a class that does not occur.

    Examples
    --------
    >>> recall(np.array([[3, 1], [0, 4]]))
    array([0.75, 1.  ])
    """
    known = _known(counts)
    return _ratio(np.diagonal(known, axis1=-2, axis2=-1), known.sum(axis=-1))


def precision(counts):
    """Share of the images predicted as each class that belong to it; NaN for a class never predicted.

    Examples
    --------
    >>> precision(np.array([[3, 1], [0, 4]]))
    array([1. , 0.8])
    """
    known = _known(counts)
    return _ratio(np.diagonal(known, axis1=-2, axis2=-1), known.sum(axis=-2))


def gain(counts):
    """How many times more often each class is predicted than it occurs; NaN for a class that does not occur.

    Examples
    --------
    >>> gain(np.array([[3, 1], [0, 4]]))
    array([0.75, 1.25])
    """
    known = _known(counts)
    return _ratio(known.sum(axis=-2), known.sum(axis=-1))


def predicted_share(counts):
    """Share of each class among all predictions, images of unknown class included; (..., K), sums to 1.

    Examples
    --------
    >>> predicted_share(np.array([[3, 1], [0, 4]]))
    array([0.375, 0.625])
    """
    predicted = counts.sum(axis=-2)
    return _ratio(predicted, predicted.sum(axis=-1, keepdims=True))


def imbalance(counts):
    """Predictions of the most frequent class over those of the rarest; infinite if a class is never predicted.

    Examples
    --------
    >>> float(imbalance(np.array([[3, 1], [0, 4]])))
    1.6666666666666667
    """
    predicted = counts.sum(axis=-2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return predicted.max(axis=-1) / predicted.min(axis=-1)


def accuracy(counts):
    """Share of all images of known class that are predicted right, in [0, 1].

    Examples
    --------
    >>> float(accuracy(np.array([[3, 1], [0, 4]])))
    0.875
    """
    known = _known(counts)
    return _ratio(np.trace(known, axis1=-2, axis2=-1), known.sum(axis=(-2, -1)))


def class_groups(counts):
    """Head, medium and tail classes by the rank of their labeled counts: 30 %, the rest, and 30 % of the classes.

    Parameters
    ----------
    counts : sequence of K int
        Labeled images of each class; equal counts keep the order of the classes.

    Returns
    -------
    dict of str to list of int
        Class ids, most frequent first; {0, 1, 2}, {3, 4, 5, 6}, {7, 8, 9} for ten classes in order.

    Examples
    --------
    >>> class_groups([50, 40, 30, 20, 10, 9, 8, 7, 6, 5])
    {'head': [0, 1, 2], 'medium': [3, 4, 5, 6], 'tail': [7, 8, 9]}
    """
    ranked = np.argsort(-np.asarray(counts), kind="stable").tolist()
    n = round(0.3 * len(ranked))
    return {"head": ranked[:n], "medium": ranked[n : len(ranked) - n], "tail": ranked[len(ranked) - n :]}


def class_ends(counts):
    """Majority and minority classes: the first and the last 20 % of the classes by the rank of their labeled counts.

    Parameters
    ----------
    counts : sequence of K int
        Labeled images of each class; equal counts keep the order of the classes.

    Returns
    -------
    dict of str to list of int
        Class ids, most frequent first; at least one each.

    Examples
    --------
    >>> class_ends([50, 40, 30, 20, 10, 9, 8, 7, 6, 5])
    {'majority': [0, 1], 'minority': [8, 9]}
    """
    ranked = np.argsort(-np.asarray(counts), kind="stable").tolist()
    n = max(1, round(0.2 * len(ranked)))
    return {"majority": ranked[:n], "minority": ranked[-n:]}


def _known(counts):
    return counts[..., : counts.shape[-1], :]


def _ratio(part, whole):
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(np.shape(part), np.shape(whole)), np.nan),
                     where=np.asarray(whole) != 0)
