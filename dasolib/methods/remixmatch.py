"""ReMixMatch: MixMatch whose target comes from a weak view and is learned on strong ones, and a rotation task."""

import torch

from dasolib.losses import cross_entropy
from dasolib.methods.step import StepOutput
from dasolib.mixup import draw_mixup, forward_mixed
from dasolib.models import View, forward_views
from dasolib.schedules import ramp_up

VIEWS = {"weak": "weak", "strong1": "strong", "strong2": "strong"}
HEADS = {"rotation": 4}


def draw(n_labeled, n_unlabeled, *, generator, mixup_alpha):
    """Draw what a step takes besides its views: a MixUp, and quarter turns (n_unlabeled,) in 0..3."""
    draws = draw_mixup(n_labeled + len(VIEWS) * n_unlabeled, mixup_alpha, generator=generator)
    return draws | {"quarter_turns": torch.randint(4, (n_unlabeled,), generator=generator)}


def rotate(images, quarter_turns):
    """Turn each of the square images (n, C, H, H) counter-clockwise by its number of quarter turns (n,)."""
    turned = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(4)])
    return turned[quarter_turns, torch.arange(len(images), device=images.device)]


def step(net, ema, batch, rebalance, *, t, sharpen_temperature, lambda_u, lambda_premixup, lambda_rotation, ramp_steps,
         ramp_shape):
    """One ReMixMatch step; distribution alignment, where it is on, is one of the methods in `rebalance`.

    Parameters
    ----------
    sharpen_temperature : float
        T of the sharpening; .5 in the paper.
    lambda_u, lambda_premixup : float
        Weights after the ramp-up of the loss on the mixed unlabeled images and of that on the first strong view
        before mixing; 1.5 and .5 in the paper.
    lambda_rotation : float
        Weight of the rotation loss, .5 in the paper; it has no ramp-up.
    ramp_steps, ramp_shape
        As in `dasolib.schedules.ramp_up`.

    Notes
    -----
    The other arguments and the result are as `dasolib.methods.step` describes.

    References
    ----------
    Berthelot et al., "ReMixMatch", ICLR 2020, section 3; with DASO as in ytaek-oh/daso@3541a6c,
    ``lib/algorithm/rm_daso.py``.
    """
    rebalance.see_labeled(net, ema, batch.x, batch.y)
    if rebalance.uses_feats:  # one pass gives the guess, the features that are compared, and the loss before mixing
        weak, strong = forward_views(net, batch.views["weak"], batch.views["strong1"])
    else:
        with torch.no_grad():
            (weak,) = forward_views(net, batch.views["weak"])
    labels = rebalance.refine(weak.logits.detach().softmax(dim=-1), weak.feats.detach(), batch.index, t,
                              temperature=sharpen_temperature)
    (labeled, labeled_target), (mixed, target) = forward_mixed(net, batch, labels.final)
    if not rebalance.uses_feats:
        (strong,) = forward_views(net, batch.views["strong1"])
    quarter_turns = batch.draws["quarter_turns"]
    rotation = net.heads["rotation"](net.features(rotate(batch.views["strong1"], quarter_turns)))

    ramp = ramp_up(t, length=ramp_steps, shape=ramp_shape)
    views = {"labeled": View(None, labeled), "weak": weak, "strong": strong, "mixed_unlabeled": View(None, mixed),
             "rotation": View(None, rotation)}
    losses = {
        "labeled": rebalance.labeled_loss(labeled, labeled_target, t),
        "unlabeled": ramp * lambda_u * cross_entropy(mixed, target),
        "premixup": ramp * lambda_premixup * cross_entropy(strong.logits, labels.final),
        "rotation": lambda_rotation * cross_entropy(rotation, quarter_turns),
    } | rebalance.extra_losses(net, batch, views, labels, t)
    return StepOutput(losses, views, labels, mask=None)
