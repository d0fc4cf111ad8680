"""DASO: linear pseudo-labels blended with semantic ones, more so for classes that were pseudo-labeled often."""

import torch

from dasolib.losses import cross_entropy
from dasolib.prototypes import QUEUE_RATIO, PrototypeBank
from dasolib.pseudo_labels import blend, blend_weights, count_classes, semantic_logits
from dasolib.rebalance.part import Part


def daso_queue_sizes(counts, length, sizing):
    """Queue length of each class: `length` for all (``balanced``), or five times its labeled images (``frequency``).

    Parameters
    ----------
    counts : sequence of K int
        Labeled images of each class.
    length : int
        L, per class; 256 in the paper. Only for ``balanced``.
    sizing : {"balanced", "frequency"}
        ``frequency`` is the paper's ablation ("bal." off in table 7).

    Examples
    --------
    >>> daso_queue_sizes([6, 2], 4, "balanced"), daso_queue_sizes([6, 2], 4, "frequency")
    ([4, 4], [30, 10])
    """
    return [length] * len(counts) if sizing == "balanced" else [QUEUE_RATIO * n for n in counts]


class Daso(Part):
    """Distribution-aware semantics-oriented pseudo-labels.

    Parameters
    ----------
    feat_dim : int
        Length of the encoder's features.
    queue_sizes : list of K int
        From `daso_queue_sizes`.
    pretrain_steps : int
        P: before it queues and histogram fill, and pseudo-labels stay linear.
    proto_temperature : float
        T_proto of the similarity to the prototypes.
    dist_temperature : float
        T_dist of the blend weights.
    refresh_steps : int
        The histogram of pseudo-labels is renewed every so many steps.
    total_steps : int
        T; the last step renews nothing.
    fixed_blend : float or None
        The semantic share for every class; None makes it follow the histogram (distribution-aware).
    lambda_align : float
        Weight of the semantic alignment loss; 0 leaves the term out.
    prototypes_from : {"ema", "student"}
        Whose encoder gives the queued features: the moving average, in a pass over the labeled images alone, or the
        network itself, in the joint pass of the step.
    ema_train_mode : bool
        True, as published: the pass of the EMA network normalises with the labeled batch's statistics and moves its
        BatchNorm buffers. False: it uses the buffers and leaves them.

    References
    ----------
    Oh, Kim and Kweon, "DASO", CVPR 2022, arXiv:2106.05682, sections 3.2 to 3.4; ytaek-oh/daso@3541a6c,
    ``lib/models/daso_model.py``.
    """

    uses_feats = True

    def __init__(self, feat_dim, queue_sizes, *, pretrain_steps, proto_temperature, dist_temperature, refresh_steps,
                 total_steps, fixed_blend, lambda_align, prototypes_from, ema_train_mode):
        super().__init__()
        self.pretrain_steps = pretrain_steps
        self.proto_temperature = proto_temperature
        self.dist_temperature = dist_temperature
        self.refresh_steps = refresh_steps
        self.total_steps = total_steps
        self.fixed_blend = fixed_blend
        self.lambda_align = lambda_align
        self.prototypes_from = prototypes_from
        self.ema_train_mode = ema_train_mode
        self.bank = PrototypeBank(queue_sizes, feat_dim)
        self.register_buffer("class_freq", torch.zeros(len(queue_sizes), dtype=torch.int64))  # m, in use
        self.register_buffer("pending", torch.zeros(len(queue_sizes), dtype=torch.int64))  # since the last refresh

    @torch.no_grad()
    def see_labeled(self, net, ema, x, y):
        """Queue the moving average's features of the labeled images and renew the prototypes."""
        if self.prototypes_from == "ema":
            self.bank.push(ema.model.train(self.ema_train_mode).features(x), y)

    def see_feats(self, feats, y, encoder):
        """Queue labeled features (B, feat_dim) and renew the prototypes, if they come from this encoder."""
        if self.prototypes_from == encoder:
            self.bank.push(feats, y)

    def refine(self, labels, feats, index, t, *, update=True):
        """Blend the semantic pseudo-labels of weak features (n, feat_dim) into `labels`, from step P on."""
        labels = labels._replace(linear=labels.final)  # what is blended: aligned, too, where an alignment is on
        if t < self.pretrain_steps:
            return labels
        semantic = semantic_logits(feats, self.bank.prototypes, self.proto_temperature).softmax(dim=-1)
        weight = self.blend_weight()
        final = blend(labels.final, semantic, weight if self.fixed_blend is None else self.fixed_blend)
        return labels._replace(semantic=semantic, final=final, blend_weight=weight)

    def blend_weight(self):
        """Share (K,) of the semantic label by predicted class, as the histogram has it."""
        return blend_weights(self.class_freq.to(self.bank.prototypes.dtype), self.dist_temperature)

    def extra_losses(self, net, batch, views, labels, t):
        """Semantic alignment: the strong view's similarities shall agree with the weak view's semantic label."""
        if t < self.pretrain_steps or self.lambda_align == 0:
            return {}
        strong = semantic_logits(views["strong"].feats, self.bank.prototypes, self.proto_temperature)
        return {"semantic_alignment": self.lambda_align * cross_entropy(strong, labels.semantic)}

    def end_step(self, labels, t):
        """Count the final pseudo-labels, confident or not; the next step uses the histogram if it is renewed here."""
        self.pending += count_classes(labels.final.argmax(dim=-1), len(self.pending))
        if (t + 1) % self.refresh_steps == 0 and t + 1 < self.total_steps:
            self.class_freq.copy_(self.pending)
            self.pending.zero_()
