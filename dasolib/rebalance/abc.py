"""ABC: a second, balanced classifier on the same features, which is the one that predicts."""

import torch

from dasolib.losses import cross_entropy
from dasolib.pseudo_labels import blend, confident_labels
from dasolib.rebalance.part import Part

HEAD = "balanced"


def draw(n_labeled, n_unlabeled, *, generator):
    """Draw uniform numbers in [0, 1) for each image: it is kept where they are below its probability."""
    return {"keep_labeled": torch.rand(n_labeled, generator=generator),
            "keep_unlabeled": torch.rand(n_unlabeled, generator=generator)}


class Abc(Part):
    """Auxiliary balanced classifier.

    Parameters
    ----------
    counts : Tensor of shape (K,)
        Labeled images of each class, > 0.
    threshold : float
        Targets of at least this confidence count.
    epoch_steps, n_epochs : int, float
        The unlabeled images' probability of being kept falls by ``1 / n_epochs`` of its way every `epoch_steps` steps;
        500 and T / 500 in the published implementation.
    semantic : bool
        Blend DASO's semantic labels into the targets as well, by the histogram even where its own blend is fixed.

    References
    ----------
    Lee, Shin and Kim, "ABC: Auxiliary Balanced Classifier for Class-imbalanced Semi-supervised Learning", NeurIPS
    2021, section 3; with DASO as in ytaek-oh/daso@3541a6c, ``lib/models/daso_model.py``.
    """

    def __init__(self, counts, *, threshold, epoch_steps, n_epochs, semantic=True):
        super().__init__()
        self.threshold = threshold
        self.epoch_steps = epoch_steps
        self.n_epochs = n_epochs
        self.semantic = semantic
        self.register_buffer("labeled_share", counts.min() / counts, persistent=False)

    def unlabeled_share(self, t):
        """Probability (K,) that an image of predicted class k is kept in step `t`."""
        passed = t // self.epoch_steps / self.n_epochs
        return 1 - passed * (1 - self.labeled_share)

    def head_target(self, probs, labels):
        """Probabilities (n, K) of the balanced head, blended with the semantic ones where DASO gives these.

        Of `PseudoLabels` of the same images nothing else counts: alignment and DARP are for the other head.
        """
        is_blended = self.semantic and labels.semantic is not None
        return blend(probs, labels.semantic, labels.blend_weight) if is_blended else probs

    def extra_losses(self, net, batch, views, labels, t):
        """Cross-entropy of the balanced head on the labeled rows that are kept, and on the confident unlabeled ones."""
        labeled, weak, strong = (net.heads[HEAD](views[name].feats) for name in ("labeled", "weak", "strong"))
        keep = (batch.draws["keep_labeled"] < self.labeled_share[batch.y]).to(labeled.dtype)
        target = self.head_target(weak.detach().softmax(dim=-1), labels)
        predicted, mask = confident_labels(target, self.threshold)
        mask = mask * (batch.draws["keep_unlabeled"] < self.unlabeled_share(t)[predicted])
        return {
            "auxiliary_labeled": cross_entropy(labeled, batch.y, row_weight=keep),
            "auxiliary_unlabeled": cross_entropy(strong, target, row_weight=mask),
        }
