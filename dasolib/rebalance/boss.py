"""BOSS: rarely predicted classes get a lower confidence threshold and a larger weight."""

from dasolib.pseudo_labels import confident_labels, count_classes
from dasolib.rebalance.part import Part


class Boss(Part):
    """The re-balancing part of BOSS, by the counts c of the classes predicted in the batch.

    Parameters
    ----------
    drop : float
        The threshold of class k is lowered by ``drop (1 - c_k / max c)``; .25 in the paper.

    References
    ----------
    Smith and Conovaloff, "Building One-Shot Semi-supervised (BOSS) Learning up to Fully Supervised Performance",
    2020, arXiv:2006.09363; no code of it was published.
    """

    def __init__(self, *, drop):
        super().__init__()
        self.drop = drop

    def confident(self, probs, threshold):
        """Class, mask and weight (n,) of labels (n, K); before the mask the weights ``1 / (Z c_k)`` average 1."""
        counts = count_classes(probs.argmax(dim=-1), probs.shape[1]).clamp(min=1).to(probs.dtype)
        target, mask = confident_labels(probs, threshold - self.drop * (1 - counts / counts.max()))
        weight = 1 / counts[target]
        return target, mask, mask * weight / weight.mean()
