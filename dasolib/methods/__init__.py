"""Base learners: one file, one step function each; adding one is a file and a line in `LEARNERS`."""

from collections.abc import Callable
from dataclasses import dataclass, field

from dasolib.methods import fixmatch, mean_teacher, mixmatch, pseudo_label, remixmatch, supervised, usadtm


@dataclass(frozen=True)
class Learner:
    """A base learner as the trainer sees it."""

    step: Callable  # see `dasolib.methods.step`
    asks: tuple[str, ...]  # the moments of `dasolib.rebalance.part.Part` that `step` and the trainer have
    views: dict[str, str] = field(default_factory=dict)  # unlabeled views by name: "weak", "strong" or "plain"
    ema: bool = True  # whether it keeps a moving average, which is then what is evaluated
    settings: tuple[str, ...] = ()  # fields of the configuration that `step` takes
    draw: Callable | None = None  # (n_labeled, n_unlabeled, *, generator, **settings) -> a batch's draws
    draw_settings: tuple[str, ...] = ()  # fields of the configuration that `draw` takes
    heads: dict[str, int] = field(default_factory=dict)  # further heads of the network and their outputs
    # (counts (K,), feat_dim, **settings) -> nn.Module that labels, and `step` gets as ``memory``
    memory: Callable | None = None
    memory_settings: tuple[str, ...] = ()  # fields of the configuration that `memory` takes
    aligns: bool = False  # whether distribution alignment is a setting of its own, ``alignment``
    rotates: bool = False  # whether it turns images, then square; strong views are resized before RandAugment, Cutout
    estimates: bool = False  # whether a run of it estimates the class counts of the unlabeled images
    no_effect: dict[str, str] = field(default_factory=dict)  # settings of re-balancing methods it has no use for: why


LABELED = ("adjust_labeled", "labeled_loss", "end_step")
PSEUDO_LABELED = (*LABELED, "align", "refine")
RAMP = ("lambda_u", "ramp_steps", "ramp_shape")
NO_ALIGNMENT = {"lambda_align": "this base learner has no strong view to align"}
TEACHER = "the teacher's own pass fills the queues"

LEARNERS = {
    "supervised": Learner(supervised.step, LABELED, ema=False),
    "distribution_estimate": Learner(supervised.step, LABELED, ema=False, estimates=True),
    "pseudo_label": Learner(pseudo_label.step, PSEUDO_LABELED, pseudo_label.VIEWS, settings=("threshold", *RAMP)),
    "mean_teacher": Learner(
        mean_teacher.step, (*PSEUDO_LABELED, "see_feats"), mean_teacher.VIEWS, settings=RAMP,
        no_effect=NO_ALIGNMENT | {"prototypes_from": TEACHER, "ema_train_mode": TEACHER},
    ),
    "mixmatch": Learner(
        mixmatch.step, (*PSEUDO_LABELED, "see_labeled"), mixmatch.VIEWS, settings=("sharpen_temperature", *RAMP),
        draw=mixmatch.draw, draw_settings=("mixup_alpha",), no_effect=NO_ALIGNMENT,
    ),
    "remixmatch": Learner(
        remixmatch.step, (*PSEUDO_LABELED, "see_labeled", "extra_losses"), remixmatch.VIEWS,
        settings=("sharpen_temperature", "lambda_premixup", "lambda_rotation", *RAMP), draw=remixmatch.draw,
        draw_settings=("mixup_alpha",), heads=remixmatch.HEADS, aligns=True, rotates=True,
    ),
    "usadtm": Learner(
        usadtm.step, LABELED, usadtm.VIEWS, memory=usadtm.Memory, memory_settings=("queue_ratio",),
        settings=("pretrain_steps", "similarity_threshold", "lambda_u", "lambda_mi"),
    ),
    "fixmatch": Learner(
        fixmatch.step, (*PSEUDO_LABELED, "see_labeled", "see_feats", "confident", "extra_losses"), fixmatch.VIEWS,
        settings=("threshold", "lambda_u"),
    ),
}
