"""Re-balancing methods: one class each; `REBALANCERS` is the table of what exists, in the order in which they act."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from dasolib.losses import cross_entropy
from dasolib.methods import LEARNERS
from dasolib.pseudo_labels import PseudoLabels
from dasolib.rebalance.daso import Daso, daso_queue_sizes
from dasolib.rebalance.logit_adjustment import LogitAdjustment
from dasolib.rebalance.reweighting import ClassBalanced, LdamDrw


@dataclass(frozen=True)
class Rebalancer:
    """A line of the table."""

    build: Callable  # (counts (K,), feat_dim, **settings) -> Part
    settings: tuple[str, ...]  # fields of the configuration that `build` takes
    learners: frozenset[str]  # the base learners it can be put on
    refusal: str  # why not on the others
    role: str  # a set has at most one method of each role


REBALANCERS = {
    "la": Rebalancer(
        lambda counts, feat_dim, la_tau: LogitAdjustment(counts, tau=la_tau),
        settings=("la_tau",),
        learners=frozenset({"supervised", "fixmatch"}),
        refusal="",
        role="the labeled loss",
    ),
    "cb": Rebalancer(
        lambda counts, feat_dim, cb_beta, reweight_warmup_steps: ClassBalanced(
            counts, beta=cb_beta, warmup_steps=reweight_warmup_steps
        ),
        settings=("cb_beta", "reweight_warmup_steps"),
        learners=frozenset({"supervised", "fixmatch"}),
        refusal="",
        role="the labeled loss",
    ),
    "ldam_drw": Rebalancer(
        lambda counts, feat_dim, cb_beta, reweight_warmup_steps, ldam_max_margin, ldam_scale: LdamDrw(
            counts, beta=cb_beta, warmup_steps=reweight_warmup_steps, max_margin=ldam_max_margin, scale=ldam_scale
        ),
        settings=("cb_beta", "reweight_warmup_steps", "ldam_max_margin", "ldam_scale"),
        learners=frozenset({"supervised"}),
        refusal="its scaled logits would make every pseudo-label of a semi-supervised method look confident",
        role="the labeled loss",
    ),
    "daso": Rebalancer(
        lambda counts, feat_dim, queue_size, queue_sizing, **settings: Daso(
            feat_dim, daso_queue_sizes(counts.tolist(), queue_size, queue_sizing), **settings
        ),
        settings=(
            "queue_size", "queue_sizing", "pretrain_steps", "refresh_steps", "dist_temperature", "proto_temperature",
            "fixed_blend", "lambda_align", "prototypes_from", "ema_train_mode", "total_steps",
        ),
        learners=frozenset({"fixmatch"}),
        refusal="it blends pseudo-labels, and there are none",
        role="the pseudo-labels",
    ),
}


def parse_rebalance(text):
    """Return the names in a comma-separated string or a sequence as a tuple in table order; listing order is nothing.

    Raises
    ------
    ValueError
        If a name is unknown or given twice, or if `text` is neither a string nor a list of strings.

    Examples
    --------
    >>> parse_rebalance("daso, la"), parse_rebalance("")
    (('la', 'daso'), ())
    """
    names = text.split(",") if isinstance(text, str) else text
    if not isinstance(names, list | tuple | set | frozenset) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"rebalance={text!r}: must be text or a list of names; choose from {', '.join(REBALANCERS)}")
    names = [name.strip() for name in names]
    names = [name for name in names if name]
    for name in names:
        if name not in REBALANCERS:
            raise ValueError(f"rebalance={name!r}: choose from {', '.join(REBALANCERS)}, or none")
        if names.count(name) > 1:
            raise ValueError(f"rebalance={text!r}: {name} is named twice")
    return tuple(name for name in REBALANCERS if name in names)


def check_combination(method, rebalance):
    """Refuse a base learner and a set of re-balancing methods that do not go together.

    Raises
    ------
    ValueError
        Naming the method or the pair, and the reason.

    Examples
    --------
    >>> check_combination("fixmatch", ("la", "daso"))
    >>> check_combination("supervised", ("daso",))
    Traceback (most recent call last):
    ValueError: method='supervised' with rebalance='daso': it blends pseudo-labels, and there are none
    """
    if not isinstance(method, str) or method not in LEARNERS:
        raise ValueError(f"method={method!r}: choose one of {', '.join(LEARNERS)}")
    taken = {}
    for name in rebalance:
        line = REBALANCERS[name]
        if method not in line.learners:
            raise ValueError(f"method={method!r} with rebalance={name!r}: {line.refusal}")
        if line.role in taken:
            raise ValueError(f"rebalance='{taken[line.role]},{name}': both correct {line.role}; choose one")
        taken[line.role] = name


class Rebalance(nn.Module):
    """The re-balancing methods of a run; a base learner's step asks all of them at each moment, in table order.

    Parameters
    ----------
    parts : dict of str to Part
        By name; empty for a base learner alone.
    """

    def __init__(self, parts):
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def labeled_loss(self, logits, target, t):
        """Loss of labeled logits (n, K) and classes (n,): cross-entropy, unless a method replaces it."""
        logits = self.adjust_labeled(logits)
        for part in self.parts.values():
            loss = part.labeled_loss(logits, target, t)
            if loss is not None:
                return loss
        return cross_entropy(logits, target)

    def adjust_labeled(self, logits):
        """Labeled logits (n, K) as the labeled loss sees them."""
        for part in self.parts.values():
            logits = part.adjust_labeled(logits)
        return logits

    def see_labeled(self, net, ema, x, y):
        """Show the labeled images and their classes to the methods, before the step's own pass."""
        for part in self.parts.values():
            part.see_labeled(net, ema, x, y)

    @torch.no_grad()
    def refine(self, probs, feats, t):
        """`PseudoLabels` from the head's probabilities (n, K) and the features (n, feat_dim) of the same view."""
        labels = PseudoLabels(linear=probs, semantic=None, final=probs)
        for part in self.parts.values():
            labels = part.refine(labels, feats, t)
        return labels

    def extra_losses(self, labels, strong_feats, t):
        """Further loss terms of the methods, by name."""
        losses = {}
        for part in self.parts.values():
            losses |= part.extra_losses(labels, strong_feats, t)
        return losses

    def end_step(self, labels, t):
        """Close step `t` (from 0), whose pseudo-labels were `labels`."""
        for part in self.parts.values():
            part.end_step(labels, t)


def build_rebalance(config, counts, feat_dim):
    """Build the `Rebalance` of a configuration.

    Parameters
    ----------
    config : dasolib.config.Config
    counts : Tensor of shape (K,)
        Labeled images of each class.
    feat_dim : int
        Length of the encoder's features.
    """
    parts = {}
    for name in config.rebalance:
        settings = {field: getattr(config, field) for field in REBALANCERS[name].settings}
        parts[name] = REBALANCERS[name].build(counts, feat_dim, **settings)
    return Rebalance(parts)
