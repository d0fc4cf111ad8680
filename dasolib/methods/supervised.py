"""Training on the labeled images alone."""

from dasolib.methods.step import StepOutput
from dasolib.models import forward_views


def step(net, ema, batch, rebalance, *, t):
    """Cross-entropy on the labeled images, or what the re-balancing methods put in its place.

    Arguments and result as `dasolib.methods.step` describes; `ema` is None.
    """
    (labeled,) = forward_views(net, batch.x)
    losses = {"labeled": rebalance.labeled_loss(labeled.logits, batch.y, t)}
    return StepOutput(losses, {"labeled": labeled}, labels=None, mask=None)
