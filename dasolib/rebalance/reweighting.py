"""Class weights in the labeled loss: class-balanced cross-entropy and LDAM with deferred re-weighting."""

from dasolib.losses import class_balanced_weights, cross_entropy, ldam_loss, ldam_margins
from dasolib.rebalance.part import Part


class ClassBalanced(Part):
    """Cross-entropy with class-balanced weights; the batch mean is over rows, not over weights.

    Parameters
    ----------
    counts : Tensor of shape (K,)
        Labeled images of each class, > 0.
    beta : float
        .999 in the paper; 0 is the base learner.
    warmup_steps : int
        W: weights act from step W - 1 (t from 0); 0 or 1 from the start.

    References
    ----------
    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.
    """

    def __init__(self, counts, *, beta, warmup_steps):
        super().__init__()
        self.warmup_steps = warmup_steps
        self.register_buffer("weights", class_balanced_weights(counts, beta), persistent=False)

    def labeled_loss(self, logits, target, t):
        """Weighted cross-entropy of logits (n, K), or None while the warm-up lasts.

        A row whose target is a mixture of classes (n, K) gets the same mixture of their weights; the published
        implementation of DASO ignores the weights there.
        """
        if t + 1 < self.warmup_steps:
            return None
        row_weight = self.weights[target] if target.ndim == 1 else target @ self.weights
        return cross_entropy(logits, target, row_weight=row_weight)


class LdamDrw(Part):
    """LDAM loss with class-balanced weights, both from step W - 1 on; plain cross-entropy until then.

    The paper's LDAM uses the margin from the start; the published implementation of DASO, which this follows,
    starts margin and weights together.

    Parameters
    ----------
    counts : Tensor of shape (K,)
        Labeled images of each class, > 0.
    beta : float
        Of the class-balanced weights.
    warmup_steps : int
        W, 80 % of the run in the paper.
    max_margin, scale : float
        Largest margin (.5) and the factor on the logits (30).

    References
    ----------
    Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019.
    """

    def __init__(self, counts, *, beta, warmup_steps, max_margin, scale):
        super().__init__()
        self.warmup_steps = warmup_steps
        self.scale = scale
        self.register_buffer("weights", class_balanced_weights(counts, beta), persistent=False)
        self.register_buffer("margins", ldam_margins(counts, max_margin), persistent=False)

    def labeled_loss(self, logits, target, t):
        """LDAM loss of logits (n, K) and classes (n,), or None while the warm-up lasts."""
        if t + 1 < self.warmup_steps:
            return None
        return ldam_loss(logits, target, self.margins, scale=self.scale, class_weight=self.weights)
