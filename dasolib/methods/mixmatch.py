"""MixMatch: the sharpened mean prediction for two views is their target, and everything is mixed with everything."""

import torch

from dasolib.losses import squared_error
from dasolib.methods.step import StepOutput
from dasolib.mixup import draw_mixup, forward_mixed
from dasolib.models import View, forward_views
from dasolib.schedules import ramp_up

VIEWS = {"weak1": "weak", "weak2": "weak"}


def draw(n_labeled, n_unlabeled, *, generator, mixup_alpha):
    """Draw what a step takes besides its views: see `dasolib.mixup.draw_mixup`."""
    return draw_mixup(n_labeled + len(VIEWS) * n_unlabeled, mixup_alpha, generator=generator)


def step(net, ema, batch, rebalance, *, t, sharpen_temperature, lambda_u, ramp_steps, ramp_shape):
    """One MixMatch step.

    Parameters
    ----------
    sharpen_temperature : float
        T of the sharpening; .5 in the paper.
    lambda_u : float
        Weight of the unlabeled loss after its ramp-up; 100 in DASO's paper.
    ramp_steps, ramp_shape
        As in `dasolib.schedules.ramp_up`.

    Notes
    -----
    The other arguments and the result are as `dasolib.methods.step` describes. The guess takes a pass for each view,
    without gradient, in train mode.

    References
    ----------
    Berthelot et al., "MixMatch", NeurIPS 2019, equations 2 to 5.
    """
    rebalance.see_labeled(net, ema, batch.x, batch.y)
    with torch.no_grad():
        weak1, weak2 = (forward_views(net, view)[0] for view in batch.views.values())
    guess = (weak1.logits.softmax(dim=-1) + weak2.logits.softmax(dim=-1)) / 2
    labels = rebalance.refine(guess, weak1.feats, batch.index, t, temperature=sharpen_temperature)
    (labeled, labeled_target), (mixed, target) = forward_mixed(net, batch, labels.final)
    ramp = ramp_up(t, length=ramp_steps, shape=ramp_shape)
    losses = {
        "labeled": rebalance.labeled_loss(labeled, labeled_target, t),
        "unlabeled": ramp * lambda_u * squared_error(mixed.softmax(dim=-1), target),
    }
    views = {"labeled": View(None, labeled), "weak1": weak1, "weak2": weak2, "mixed_unlabeled": View(None, mixed)}
    return StepOutput(losses, views, labels, mask=None)
