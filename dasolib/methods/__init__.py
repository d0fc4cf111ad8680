"""Base learners: one file, one step function each; adding one is a file and a line in `LEARNERS`."""

from collections.abc import Callable
from dataclasses import dataclass

from dasolib.methods import fixmatch, supervised


@dataclass(frozen=True)
class Learner:
    """A base learner as the trainer sees it."""

    step: Callable  # see `dasolib.methods.step`
    views: dict[str, str]  # unlabeled views by name: "weak" or "strong"; empty if it uses no unlabeled images
    ema: bool  # whether it keeps a moving average, which is then what is evaluated
    settings: tuple[str, ...]  # fields of the configuration that `step` takes


LEARNERS = {
    "supervised": Learner(supervised.step, supervised.VIEWS, ema=False, settings=()),
    "fixmatch": Learner(fixmatch.step, fixmatch.VIEWS, ema=True, settings=("threshold", "lambda_u")),
}
