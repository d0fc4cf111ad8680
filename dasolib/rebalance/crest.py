"""CReST: the surest pseudo-labels, above all of rare classes, join the labeled set, and training starts anew."""

import torch

from dasolib.pseudo_labels import count_classes
from dasolib.rebalance.part import Part


def selection_share(counts, alpha):
    """Share of the images predicted as each class that is selected: ``(N_r' / N_max)^(1 / alpha)``.

    r' is the mirrored frequency rank: the rarest class gets the count of the most frequent one, hence all its images.

    Parameters
    ----------
    counts : Tensor of shape (K,)
        Labeled images of each class.
    alpha : float
        3 in the paper.

    Returns
    -------
    Tensor of shape (K,)
        In (0, 1], float64.

    References
    ----------
    Wei et al., "CReST", CVPR 2021, section 3.3.

    Examples
    --------
    >>> selection_share(torch.tensor([1, 8, 64]), 3)
    tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64)
    """
    order = counts.argsort(descending=True, stable=True)
    share = torch.empty(len(counts), dtype=torch.float64, device=counts.device)
    share[order] = counts[order.flip(0)].double()
    return (share / counts.max()) ** (1 / alpha)


def progressive_temperature(generation, n_generations, t_min):
    """Exponent of CReST+'s alignment: from 1 in the first of the generations (0) down to `t_min` in the last.

    References
    ----------
    Wei et al., "CReST", CVPR 2021, section 3.4.

    Examples
    --------
    >>> [progressive_temperature(generation, 5, 0.5) for generation in (0, 2, 4)]
    [1.0, 0.75, 0.5]
    """
    passed = generation / (n_generations - 1)
    return 1 - passed + passed * t_min


class Crest(Part):
    """Class-rebalancing self-training.

    Parameters
    ----------
    counts : Tensor of shape (K,)
        Labeled images of each class, without those that were selected.
    alpha : float
        As in `selection_share`.
    alignment : dasolib.rebalance.distribution_alignment.DistributionAlignment, optional
        Of CReST+; None for CReST.
    """

    def __init__(self, counts, *, alpha, alignment=None):
        super().__init__()
        self.register_buffer("share", selection_share(counts, alpha), persistent=False)
        self.alignment = alignment

    def align(self, probs, *, update=True):
        """Align the probabilities (n, K), in CReST+."""
        return probs if self.alignment is None else self.alignment.align(probs, update=update)

    def select(self, probs):
        """Return the rows (n,) of the most confident images of each predicted class, and these classes (n,).

        Parameters
        ----------
        probs : Tensor of shape (U, K)
            Of the moving average, in eval mode, for all unlabeled images.

        Notes
        -----
        By class, the most confident first. Waits for the device: it happens once in a generation.
        """
        confidence, predicted = probs.max(dim=-1)
        n_selected = (self.share * count_classes(predicted, probs.shape[1])).long().tolist()
        order = confidence.argsort(descending=True, stable=True)
        rows = [order[predicted[order] == k][:n] for k, n in enumerate(n_selected)]
        rows = torch.cat(rows)
        return rows, predicted[rows]

    def carry_over(self, old):
        """Keep the window of the alignment, in CReST+."""
        if self.alignment is not None:
            self.alignment.carry_over(old.alignment)
