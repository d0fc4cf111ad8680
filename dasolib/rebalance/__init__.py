"""Re-balancing methods: one class each; `REBALANCERS` is the table of what exists, in the order in which they act."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from dasolib.losses import cross_entropy
from dasolib.methods import LEARNERS
from dasolib.pseudo_labels import PseudoLabels, confident_labels, sharpen
from dasolib.rebalance import abc
from dasolib.rebalance.boss import Boss
from dasolib.rebalance.crest import Crest, progressive_temperature
from dasolib.rebalance.darp import Darp
from dasolib.rebalance.daso import Daso, daso_queue_sizes
from dasolib.rebalance.distribution_alignment import DistributionAlignment
from dasolib.rebalance.logit_adjustment import LogitAdjustment
from dasolib.rebalance.part import Part
from dasolib.rebalance.reweighting import ClassBalanced, LdamDrw

# A set has at most one method of each role; the text says why.
ROLES = {
    "labeled_loss": "both decide what is learned from the labeled images; choose one",
    "alignment": "both align the pseudo-labels with a class distribution; choose one",
    "pseudo_labels": "both correct the pseudo-labels; choose one",
    "heads": "nobody has said what becomes of the second head when CReST starts a generation; choose one",
}


@dataclass(frozen=True)
class Rebalancer:
    """A line of the table."""

    build: Callable  # (population, feat_dim, **settings) -> Part
    learners: frozenset[str]  # the base learners it can be put on
    refusal: str  # why not on the others
    roles: tuple[str, ...]  # keys of `ROLES`
    settings: tuple[str, ...] = ()  # fields of the configuration that `build` takes
    own_settings: dict = field(default_factory=dict)  # what `build` takes besides, in a method of your own
    draw: Callable | None = None  # (n_labeled, n_unlabeled, *, generator) -> further draws of a batch
    head: str | None = None  # a further head of the network with K outputs, which then predicts
    needs: tuple[str, ...] = ()  # of NEEDS: what a run must be given, or does otherwise


# What a line may need of the trainer.
NEEDS = {
    "source": "starts from the trained network of another run, of which only the head is trained",
    "unlabeled_counts": "aims at class counts of the unlabeled images: the label frequency, given or estimated",
    "generations": "starts afresh several times",
}

SEMI_SUPERVISED = frozenset(name for name, learner in LEARNERS.items() if learner.views)
TRAINED = frozenset(LEARNERS) - {"distribution_estimate"}
NO_LABELS = "it corrects pseudo-labels, and there are none"
PLAIN_ESTIMATE = "the estimate comes from plain supervised training"
CREST_SETTINGS = ("n_generations", "crest_alpha")


def _build_crt(population, feat_dim, cb_beta, reweight_warmup_steps, crt_balancing):
    if crt_balancing == "batches":
        return Part()  # `dasolib.batches` samples, and the loss is plain cross-entropy
    return ClassBalanced(population.labeled, beta=cb_beta, warmup_steps=reweight_warmup_steps)


def _build_crest_plus(population, feat_dim, n_generations, crest_alpha, crest_t_min, alignment_window, alignment_eps):
    temperature = progressive_temperature(population.generation, n_generations, crest_t_min)
    alignment = DistributionAlignment(population.labeled, temperature=temperature, window=alignment_window,
                                      eps=alignment_eps)
    return Crest(population.labeled, alpha=crest_alpha, alignment=alignment)


REBALANCERS = {
    "la": Rebalancer(
        lambda population, feat_dim, la_tau: LogitAdjustment(population.current, tau=la_tau),
        settings=("la_tau",),
        learners=TRAINED,
        refusal=PLAIN_ESTIMATE,
        roles=("labeled_loss",),
    ),
    "cb": Rebalancer(
        lambda population, feat_dim, cb_beta, reweight_warmup_steps: ClassBalanced(
            population.labeled, beta=cb_beta, warmup_steps=reweight_warmup_steps
        ),
        settings=("cb_beta", "reweight_warmup_steps"),
        learners=TRAINED,
        refusal=PLAIN_ESTIMATE,
        roles=("labeled_loss",),
    ),
    "ldam_drw": Rebalancer(
        lambda population, feat_dim, cb_beta, reweight_warmup_steps, ldam_max_margin, ldam_scale: LdamDrw(
            population.labeled, beta=cb_beta, warmup_steps=reweight_warmup_steps, max_margin=ldam_max_margin,
            scale=ldam_scale,
        ),
        settings=("cb_beta", "reweight_warmup_steps", "ldam_max_margin", "ldam_scale"),
        learners=frozenset({"supervised"}),
        refusal="its scaled logits would make every pseudo-label of a semi-supervised method look confident",
        roles=("labeled_loss",),
    ),
    "crt": Rebalancer(
        _build_crt,
        settings=("cb_beta", "reweight_warmup_steps", "crt_balancing"),
        learners=frozenset({"supervised"}),
        refusal="it trains a new head on labeled images alone; name a run of this method as source instead",
        roles=("labeled_loss",),
        needs=("source",),
    ),
    "distribution_alignment": Rebalancer(
        lambda population, feat_dim, alignment_temperature, alignment_window, alignment_eps: DistributionAlignment(
            population.labeled if population.aligned is None else population.aligned,
            temperature=alignment_temperature, window=alignment_window, eps=alignment_eps,
        ),
        settings=("alignment_temperature", "alignment_window", "alignment_eps"),
        learners=frozenset({"fixmatch"}),
        refusal="it is made for FixMatch here; ReMixMatch has it as its own setting, alignment",
        roles=("alignment",),
    ),
    "darp": Rebalancer(
        lambda population, feat_dim, **settings: Darp(
            population.unlabeled, population.n_unlabeled,
            **{name.removeprefix("darp_"): value for name, value in settings.items()},
        ),
        settings=("darp_warmup_steps", "darp_period", "darp_alpha", "darp_iterations", "darp_newton_iterations",
                  "darp_newton_tolerance"),
        learners=frozenset({"fixmatch", "remixmatch"}),
        refusal="its authors put it on FixMatch and ReMixMatch",
        roles=("pseudo_labels",),
        needs=("unlabeled_counts",),
    ),
    "daso": Rebalancer(
        lambda population, feat_dim, queue_size, queue_sizing, **settings: Daso(
            feat_dim, daso_queue_sizes(population.labeled.tolist(), queue_size, queue_sizing), **settings
        ),
        settings=(
            "queue_size", "queue_sizing", "pretrain_steps", "refresh_steps", "dist_temperature", "proto_temperature",
            "fixed_blend", "lambda_align", "prototypes_from", "ema_train_mode", "total_steps",
        ),
        learners=frozenset({"fixmatch", "remixmatch", "mixmatch", "mean_teacher"}),
        refusal="its authors put it on FixMatch, ReMixMatch, MixMatch and Mean Teacher",
        roles=("pseudo_labels",),
    ),
    "crest": Rebalancer(
        lambda population, feat_dim, n_generations, crest_alpha: Crest(population.labeled, alpha=crest_alpha),
        settings=CREST_SETTINGS,
        learners=frozenset({"fixmatch", "remixmatch"}),
        refusal="its authors put it on FixMatch and ReMixMatch",
        roles=("pseudo_labels", "heads"),
        needs=("generations",),
    ),
    "crest_plus": Rebalancer(
        _build_crest_plus,
        settings=(*CREST_SETTINGS, "crest_t_min", "alignment_window", "alignment_eps"),
        learners=frozenset({"fixmatch", "remixmatch"}),
        refusal="its authors put it on FixMatch and ReMixMatch",
        roles=("pseudo_labels", "heads", "alignment"),
        needs=("generations",),
    ),
    "boss": Rebalancer(
        lambda population, feat_dim, boss_drop: Boss(drop=boss_drop),
        settings=("boss_drop",),
        learners=frozenset({"fixmatch"}),
        refusal="it changes the confidence threshold of FixMatch",
        roles=("pseudo_labels",),
    ),
    "abc": Rebalancer(
        lambda population, feat_dim, threshold, abc_epoch_steps, abc_epochs, abc_semantic: abc.Abc(
            population.labeled, threshold=threshold, epoch_steps=abc_epoch_steps, n_epochs=abc_epochs,
            semantic=abc_semantic,
        ),
        settings=("threshold", "abc_epoch_steps", "abc_epochs", "abc_semantic"),
        learners=frozenset({"fixmatch"}),
        refusal="its losses are those of FixMatch's weak and strong view",
        roles=("heads",),
        draw=abc.draw,
        head=abc.HEAD,
    ),
}


def register(name, build, *, learners, role="pseudo_labels", settings=None):
    """Add a re-balancing method of your own to the table, for this process.

    Parameters
    ----------
    name : str
        What ``rebalance`` calls it; an own method of the same name is replaced.
    build : callable
        ``build(population, feat_dim, **settings) -> Part``, with `dasolib.rebalance.part.Population` and the length of
        a feature.
    learners : iterable of str
        The base learners it can be put on.
    role : str
        It cannot be combined with another method of the same role, see `ROLES`.
    settings : dict, optional
        What `build` takes by name: numbers, texts, truth values, None, and lists and dicts of them. They are part of
        what a run is, so that another value makes another run folder.

    Raises
    ------
    ValueError
        If the name is that of a built-in method, or no name, or a base learner or the role is unknown, or the settings
        cannot be written down.

    Notes
    -----
    A run is told by its settings, not by code. After a change of the method's code choose another name or run folder:
    a finished run under the old one is read, not trained again.
    """
    learners = tuple(learners)
    if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict(), name):
        raise ValueError(f"name={name!r}: must be a Python name, and none that torch's modules use themselves")
    if name in (*BUILT_IN, *LEARNERS):
        raise ValueError(f"name={name!r} is a built-in method; choose another name than "
                         f"{', '.join((*BUILT_IN, *LEARNERS))}")
    if not learners or not set(learners) <= set(LEARNERS):
        raise ValueError(f"learners={learners}: choose from {', '.join(LEARNERS)}")
    if role not in ROLES:
        raise ValueError(f"role={role!r}: choose one of {', '.join(ROLES)}")
    try:
        own_settings = json.loads(json.dumps(dict(settings or {}), allow_nan=False))  # as config.json will have them
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings={settings!r}: must be a dict of numbers, texts, truth values, None, and lists and "
                         f"dicts of them ({error})") from None
    REBALANCERS[name] = Rebalancer(build, learners=frozenset(learners), roles=(role,), own_settings=own_settings,
                                   refusal=f"it was registered for {', '.join(learners)}")


BUILT_IN = tuple(REBALANCERS)
MOMENTS = tuple(name for name, moment in vars(Part).items() if callable(moment) and not name.startswith("_"))


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
            raise ValueError(f"rebalance={name!r}: choose from {', '.join(REBALANCERS)}, or leave it empty")
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
    >>> check_combination("fixmatch", ("darp", "daso"))
    Traceback (most recent call last):
    ValueError: rebalance='darp,daso': both correct the pseudo-labels; choose one
    """
    if not isinstance(method, str) or method not in LEARNERS:
        raise ValueError(f"method={method!r}: choose one of {', '.join(LEARNERS)}")
    taken = {}
    for name in rebalance:
        line = REBALANCERS[name]
        if method not in line.learners:
            reason = NO_LABELS if "pseudo_labels" in line.roles and method not in SEMI_SUPERVISED else line.refusal
            raise ValueError(f"method={method!r} with rebalance={name!r}: {reason}")
        for role in line.roles:
            if role in taken:
                raise ValueError(f"rebalance='{taken[role]},{name}': {ROLES[role]}")
            taken[role] = name


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

    @property
    def uses_feats(self):
        """Whether a method works on features, so that the step must provide them."""
        return any(part.uses_feats for part in self.parts.values())

    def labeled_loss(self, logits, target, t):
        """Loss of labeled logits (n, K) and classes (n,) or probabilities (n, K): cross-entropy unless replaced."""
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

    def see_feats(self, feats, y, encoder):
        """Show labeled features of "student" or "ema" and their classes, where the learner's own pass gives them."""
        for part in self.parts.values():
            part.see_feats(feats, y, encoder)

    @torch.no_grad()
    def refine(self, probs, feats, index, t, *, temperature=1, update=True):
        """Turn the head's probabilities into pseudo-labels: aligned, sharpened, then refined.

        Parameters
        ----------
        probs : Tensor of shape (n, K)
        feats : Tensor of shape (n, feat_dim)
            Of the same view.
        index : Tensor of shape (n,)
            Which of the run's unlabeled images they are.
        t : int
            The step, from 0.
        temperature : float
            Of the sharpening; 1 for a base learner without.
        update : bool
            False in an evaluation: no state changes.

        Returns
        -------
        PseudoLabels
            ``linear`` is sharpened but not aligned; with DASO it is what enters the blend, aligned as well.
        """
        final = probs
        for part in self.parts.values():
            final = part.align(final, update=update)
        labels = PseudoLabels(linear=sharpen(probs, temperature), semantic=None, final=sharpen(final, temperature))
        for part in self.parts.values():
            labels = part.refine(labels, feats, index, t, update=update)
        return labels

    def refine_predicted(self, probs, feats, index, t, *, temperature=1):
        """`refine` in an evaluation, of the probabilities of the head that predicts, be it the second one."""
        labels = self.refine(probs, feats, index, t, temperature=temperature, update=False)
        for part in self.parts.values():
            target = part.head_target(probs, labels)
            if target is not None:
                return labels._replace(linear=probs, final=target)
        return labels

    def confident(self, probs, threshold):
        """Class, mask and weight in the loss, (n,) each, of final pseudo-labels (n, K)."""
        for part in self.parts.values():
            chosen = part.confident(probs, threshold)
            if chosen is not None:
                return chosen
        target, mask = confident_labels(probs, threshold)
        return target, mask, mask

    def extra_losses(self, net, batch, views, labels, t):
        """Further loss terms of the methods, by name."""
        losses = {}
        for part in self.parts.values():
            losses |= part.extra_losses(net, batch, views, labels, t)
        return losses

    def end_step(self, labels, t):
        """Close step `t` (from 0), whose pseudo-labels were `labels`."""
        for part in self.parts.values():
            part.end_step(labels, t)

    def select(self, probs):
        """Rows and classes of the unlabeled images that the next generation has labels for; (U, K) probabilities."""
        for part in self.parts.values():
            selected = part.select(probs)
            if selected is not None:
                return selected
        raise ValueError(f"no method of {', '.join(self.parts) or 'none'} selects images for a next generation")

    def carry_over(self, old):
        """Take over from the `Rebalance` of the last generation what does not start afresh."""
        for name, part in self.parts.items():
            part.carry_over(old.parts[name])


def build_rebalance(config, population, feat_dim):
    """Build the `Rebalance` of a configuration.

    Parameters
    ----------
    config : dasolib.config.Config
    population : dasolib.rebalance.part.Population
    feat_dim : int
        Length of the encoder's features.

    Raises
    ------
    ValueError
        If a method of your own takes part in no moment, or in one that the base learner does not have.
    """
    parts, asks = {}, {*LEARNERS[config.method].asks, "carry_over"}
    for name in config.parts():
        line = REBALANCERS[name]
        settings = {setting: getattr(config, setting) for setting in line.settings} | line.own_settings
        parts[name] = line.build(population, feat_dim, **settings)
        if name not in BUILT_IN and all(getattr(type(parts[name]), each) is getattr(Part, each) for each in MOMENTS):
            raise ValueError(f"rebalance={name!r}: {type(parts[name]).__name__} takes part in nothing; its moments are "
                             f"methods of these names: {', '.join(MOMENTS)}")
        unasked = [moment for moment in MOMENTS
                   if moment not in asks and getattr(type(parts[name]), moment) is not getattr(Part, moment)]
        if unasked and name not in BUILT_IN:
            raise ValueError(f"rebalance={name!r}: method={config.method!r} never asks for its {', '.join(unasked)}, "
                             f"only for {', '.join(LEARNERS[config.method].asks)}")
    return Rebalance(parts)
