"""The moments of a step at which a re-balancing method may take part."""

from torch import nn


class Part(nn.Module):
    """One re-balancing method; at each moment it does nothing, unless it says otherwise.

    Whatever must survive a step is a buffer, so that it is in the checkpoint and on the device. Nothing that
    belongs to one batch is kept: it comes and goes as an argument.
    """

    def adjust_labeled(self, logits):
        """Labeled logits (n, K) -> what the labeled loss sees."""
        return logits

    def labeled_loss(self, logits, target, t):
        """Return the loss that replaces cross-entropy on labeled rows; None leaves it as it is."""
        return None

    def see_labeled(self, net, ema, x, y):
        """Look at the labeled images (B, C, H, W) and classes (B,) before the step's own pass."""

    def refine(self, labels, feats, t):
        """`PseudoLabels` (n_unlabeled, K) and the features they belong to (n_unlabeled, feat_dim) -> `PseudoLabels`."""
        return labels

    def extra_losses(self, labels, strong_feats, t):
        """Further loss terms by name, from the pseudo-labels and the strong view's features of the same images."""
        return {}

    def end_step(self, labels, t):
        """Take note of the step's `PseudoLabels`; None for a base learner without them."""
