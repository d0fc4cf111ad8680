"""The moving average of a network, which the semi-supervised methods evaluate."""

import copy

import torch
from torch import nn


def ema_decay(t, cap):
    """Decay of the update after step `t` (from 0): ``min(1 - 1 / (t + 1), cap)``; the first update is a plain copy.

    Examples
    --------
    >>> [ema_decay(t, 0.999) for t in (0, 1, 5000)]
    [0.0, 0.5, 0.999]
    """
    return min(1 - 1 / (t + 1), cap)


class EMA:
    """Exponential moving average of every parameter and BatchNorm buffer of a network.

    Parameters
    ----------
    net : nn.Module
        The network that is trained; `model` starts as its copy, in train mode and without gradients.
    cap : float
        Largest decay, in [0, 1).
    weight_decay : float
        After each update convolution and linear weights are multiplied by ``1 - lr * weight_decay``; 0 in the paper.

    References
    ----------
    ytaek-oh/daso@3541a6c, ``lib/models/ema_model.py``.
    """

    def __init__(self, net, *, cap, weight_decay=0.0):
        self.model = copy.deepcopy(net).requires_grad_(False)
        self.cap = cap
        self.weight_decay = weight_decay
        self._decayed = [m.weight for m in self.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]

    @torch.no_grad()
    def update(self, net, t, *, lr):
        """Average `net` in after step `t` (from 0); `lr` is the learning rate of the step that comes next."""
        new = [*net.parameters(), *net.buffers()]
        old = [*self.model.parameters(), *self.model.buffers()]
        torch._foreach_lerp_(old, new, 1 - ema_decay(t, self.cap))
        if self.weight_decay:
            torch._foreach_mul_(self._decayed, 1 - lr * self.weight_decay)
