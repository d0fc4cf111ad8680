"""Mean Teacher: the moving average's prediction for one view is the target for another one."""

import torch

from dasolib.losses import squared_error
from dasolib.methods.step import StepOutput
from dasolib.models import forward_views
from dasolib.schedules import ramp_up

VIEWS = {"student": "weak", "teacher": "weak"}


def step(net, ema, batch, rebalance, *, t, lambda_u, ramp_steps, ramp_shape):
    """One Mean Teacher step; the teacher is the moving average in train mode.

    Parameters
    ----------
    lambda_u : float
        Weight of the unlabeled loss after its ramp-up; 50 in the paper.
    ramp_steps, ramp_shape
        As in `dasolib.schedules.ramp_up`.

    Notes
    -----
    The other arguments and the result are as `dasolib.methods.step` describes.

    References
    ----------
    Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, equation 1.
    """
    with torch.no_grad():
        if rebalance.uses_feats:  # the teacher's one pass also gives the labeled features
            shown, teacher = forward_views(ema.model, batch.x, batch.views["teacher"])
            rebalance.see_feats(shown.feats, batch.y, "ema")
        else:
            (teacher,) = forward_views(ema.model, batch.views["teacher"])
    labeled, student = forward_views(net, batch.x, batch.views["student"])
    labels = rebalance.refine(teacher.logits.softmax(dim=-1), teacher.feats, batch.index, t)
    ramp = ramp_up(t, length=ramp_steps, shape=ramp_shape)
    losses = {
        "labeled": rebalance.labeled_loss(labeled.logits, batch.y, t),
        "unlabeled": ramp * lambda_u * squared_error(student.logits.softmax(dim=-1), labels.final),
    }
    return StepOutput(losses, {"labeled": labeled, "student": student, "teacher": teacher}, labels, mask=None)
