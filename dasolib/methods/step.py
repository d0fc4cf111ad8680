"""What goes into a step of a base learner, and what comes out.

A base learner is a function ``step(net, ema, batch, rebalance, *, t, **settings) -> StepOutput``:

* ``net``: the network that is trained, in train mode;
* ``ema``: its `dasolib.ema.EMA`, or None for a method that keeps none;
* ``batch``: a `Batch`;
* ``rebalance``: the `dasolib.rebalance.Rebalance` of the run, asked at fixed moments;
* ``t``: the step's number from 0, a plain int; CReST counts anew in every generation;
* ``settings``: the fields of the configuration that the method names in `dasolib.methods.LEARNERS`;
* ``memory``: only for a method that has state of its own, what it built.

It reads nothing else, and it does not wait for the device.
"""

from typing import NamedTuple

from torch import Tensor

from dasolib.models import View
from dasolib.pseudo_labels import PseudoLabels


class Batch(NamedTuple):
    """Normalised images on the device; the unlabeled images' hidden labels are not among them."""

    x: Tensor  # (B, C, H, W) labeled images, weak view
    y: Tensor  # (B,) class ids
    views: dict[str, Tensor]  # by name, each (mu * B, C, H, W): the same unlabeled images in the same order
    index: Tensor | None = None  # (mu * B,) which of the run's unlabeled images they are; None if there are none
    draws: dict[str, Tensor] | None = None  # further random numbers of the step, by name; None if it takes none


class StepOutput(NamedTuple):
    """Losses with their graph; the rest is for diagnostics and tests."""

    losses: dict[str, Tensor]  # weighted terms; their sum is minimised
    views: dict[str, View]  # features and logits by name; "labeled" is the labeled batch
    labels: PseudoLabels | None  # None for a method without pseudo-labels
    mask: Tensor | None  # (mu * B,) 1.0 where the pseudo-label counts; None where all do, or there are none
