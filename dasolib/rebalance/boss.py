"""BOSS: rarely predicted classes get a lower confidence threshold and a larger weight."""

from dasolib.pseudo_labels import confident_labels, count_classes, one_hot
from dasolib.rebalance.part import Part


class Boss(Part):
    """The re-balancing part of BOSS: thresholds by the classes predicted in the batch, weights by those that passed.

    Parameters
    ----------
    drop : float
        The threshold of class k is lowered by ``drop (1 - c_k / max c)`` with c the counts over all rows; 0.25 in the
        paper.

    References
    ----------
    Smith and Conovaloff, "Building One-Shot Semi-supervised (BOSS) Learning up to Fully Supervised Performance",
    2020, arXiv:2006.09363, and the code of its authors; the variant that changes thresholds and weights.
    """

    def __init__(self, *, drop):
        super().__init__()
        self.drop = drop

    def confident(self, probs, threshold):
        """Class, mask and weight ``1 / (Z c'_k)`` (n,) of labels (n, K), with c' the counts over the rows that passed.

        The weights of these rows sum to their number, so that the loss keeps FixMatch's scale; other rows weigh 0.
        """
        counts = count_classes(probs.argmax(dim=-1), probs.shape[1]).to(probs.dtype)
        target, mask = confident_labels(probs, threshold - self.drop * (1 - counts / counts.max()))
        passed = mask @ one_hot(target, probs.shape[1]).to(mask.dtype)  # (K,) counts c'
        mean = passed.sum() / (passed > 0).sum().clamp(min=1)
        return target, mask, mask * (mean / passed.clamp(min=1))[target]
