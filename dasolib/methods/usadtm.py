"""USADTM: the nearest class prototype is the target, and the predictions for three views shall agree."""

import torch

from dasolib.losses import cross_entropy, mutual_information_triplet_loss
from dasolib.methods.step import StepOutput
from dasolib.models import forward_views
from dasolib.prototypes import PrototypeBank
from dasolib.pseudo_labels import PseudoLabels, confident_labels, semantic_logits

VIEWS = {"identity": "plain", "weak": "weak", "strong": "strong"}


class Memory(PrototypeBank):
    """Queues of the labeled features and their prototypes, for labeled class counts (K,).

    A queue is `queue_ratio` times as long as its class has images; 5 in the published implementation of DASO.
    """

    def __init__(self, counts, feat_dim, *, queue_ratio):
        super().__init__([queue_ratio * n for n in counts.tolist()], feat_dim)

    def pseudo_label(self, probs, feats):
        """Label images by their features (n, feat_dim); the head's probabilities (n, K) are only kept beside it."""
        return as_labels(probs, semantic_logits(feats, self.prototypes, 1.0))


def as_labels(probs, similarity):
    """Pseudo-labels (n, K): the softmax of the similarities to the prototypes, of which only the order matters."""
    semantic = similarity.softmax(dim=-1)
    return PseudoLabels(probs, semantic, semantic)


def step(net, ema, batch, rebalance, *, t, memory, pretrain_steps, similarity_threshold, lambda_u, lambda_mi):
    """One USADTM step.

    Parameters
    ----------
    memory : Memory
        Takes the network's own labeled features.
    pretrain_steps : int
        Pseudo-labels count from this step on; 500 in the published implementation of DASO.
    similarity_threshold : float
        Pseudo-labels of at least this cosine similarity count, in [-1, 1]; .85 in the same.
    lambda_u, lambda_mi : float
        Weights of the unlabeled loss and of the mutual-information loss, which acts from the first step on; 1 and .1.

    Notes
    -----
    The other arguments and the result are as `dasolib.methods.step` describes. A label also counts only if the nearest
    prototype in Euclidean distance is of the same class.

    References
    ----------
    Han et al., "Unsupervised Semantic Aggregation and Deformable Template Matching for Semi-Supervised Learning",
    NeurIPS 2020; as in ytaek-oh/daso@3541a6c, ``lib/models/usadtm_model.py``.
    """
    labeled, identity, weak, strong = forward_views(net, batch.x, *batch.views.values())
    memory.push(labeled.feats.detach(), batch.y)
    feats = weak.feats.detach()
    similarity = semantic_logits(feats, memory.prototypes, 1.0)
    labels = as_labels(weak.logits.detach().softmax(dim=-1), similarity)
    target, is_similar = confident_labels(similarity, similarity_threshold)
    is_nearest = torch.cdist(feats, memory.prototypes).argmin(dim=-1) == target
    mask = is_similar * is_nearest * (t >= pretrain_steps)
    probs = (view.logits.softmax(dim=-1) for view in (identity, weak, strong))
    losses = {
        "labeled": rebalance.labeled_loss(labeled.logits, batch.y, t),
        "unlabeled": lambda_u * cross_entropy(strong.logits, target, row_weight=mask),
        "mutual_information": lambda_mi * mutual_information_triplet_loss(*probs),
    }
    return StepOutput(losses, {"labeled": labeled, "identity": identity, "weak": weak, "strong": strong}, labels, mask)
