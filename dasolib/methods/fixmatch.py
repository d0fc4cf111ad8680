"""FixMatch: the confident pseudo-label of a weak view is the target for a strong view."""

from dasolib.losses import cross_entropy
from dasolib.methods.step import StepOutput
from dasolib.models import forward_views

VIEWS = {"weak": "weak", "strong": "strong"}


def step(net, ema, batch, rebalance, *, t, threshold, lambda_u):
    """One FixMatch step, with whatever re-balancing methods take part in it.

    Parameters
    ----------
    threshold : float
        Pseudo-labels of at least this confidence count, in [0, 1]; .95 in the paper.
    lambda_u : float
        Weight of the unlabeled loss.

    Notes
    -----
    The other arguments and the result are as `dasolib.methods.step` describes. The unlabeled loss is summed over
    the confident rows and divided by all of them.

    References
    ----------
    Sohn et al., "FixMatch", NeurIPS 2020, equations 3 and 4.
    """
    rebalance.see_labeled(net, ema, batch.x, batch.y)
    labeled, weak, strong = forward_views(net, batch.x, batch.views["weak"], batch.views["strong"])
    rebalance.see_feats(labeled.feats.detach(), batch.y, "student")
    labels = rebalance.refine(weak.logits.detach().softmax(dim=-1), weak.feats.detach(), batch.index, t)
    target, mask, row_weight = rebalance.confident(labels.final, threshold)
    views = {"labeled": labeled, "weak": weak, "strong": strong}
    losses = {
        "labeled": rebalance.labeled_loss(labeled.logits, batch.y, t),
        "unlabeled": lambda_u * cross_entropy(strong.logits, target, row_weight=row_weight),
    } | rebalance.extra_losses(net, batch, views, labels, t)
    return StepOutput(losses, views, labels, mask)
