"""Pseudo-Label: the network's own confident predictions are targets for the same view."""

from dasolib.losses import cross_entropy
from dasolib.methods.step import StepOutput
from dasolib.models import forward_views
from dasolib.pseudo_labels import confident_labels
from dasolib.schedules import ramp_up

VIEWS = {"weak": "weak"}


def step(net, ema, batch, rebalance, *, t, threshold, lambda_u, ramp_steps, ramp_shape):
    """One Pseudo-Label step.

    Parameters
    ----------
    threshold : float
        Pseudo-labels of at least this confidence count, in [0, 1].
    lambda_u : float
        Weight of the unlabeled loss after its ramp-up.
    ramp_steps, ramp_shape
        As in `dasolib.schedules.ramp_up`.

    Notes
    -----
    The other arguments and the result are as `dasolib.methods.step` describes.

    References
    ----------
    Lee, "Pseudo-Label", ICML 2013 workshop, equations 15 and 16; confidence threshold as in
    ytaek-oh/daso@3541a6c, ``lib/algorithm/pseudo_label.py``.
    """
    labeled, weak = forward_views(net, batch.x, batch.views["weak"])
    labels = rebalance.refine(weak.logits.detach().softmax(dim=-1), weak.feats.detach(), batch.index, t)
    target, mask = confident_labels(labels.final, threshold)
    ramp = ramp_up(t, length=ramp_steps, shape=ramp_shape)
    losses = {
        "labeled": rebalance.labeled_loss(labeled.logits, batch.y, t),
        "unlabeled": ramp * lambda_u * cross_entropy(weak.logits, target, row_weight=mask),
    }
    return StepOutput(losses, {"labeled": labeled, "weak": weak}, labels, mask)
