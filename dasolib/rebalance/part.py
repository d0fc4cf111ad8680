"""The moments of a step at which a re-balancing method may take part."""

from typing import NamedTuple

from torch import Tensor, nn


class Population(NamedTuple):
    """What is known of a run's images when its re-balancing methods are built."""

    labeled: Tensor  # (K,) labeled images of each class
    current: Tensor  # (K,) the same with the images that CReST has added
    n_unlabeled: int
    unlabeled: Tensor | None = None  # (K,) unlabeled images of each class that DARP aims at; None where not needed
    generation: int = 0  # of CReST
    aligned: Tensor | None = None  # (K,) what distribution alignment aims at instead of `labeled`


class Part(nn.Module):
    """One re-balancing method; at each moment it does nothing, unless it says otherwise.

    Not every base learner has all moments: see ``asks`` in `dasolib.methods.LEARNERS`. `select` and `carry_over` are
    CReST's, between its generations.

    Whatever must survive a step is a buffer, so that it is in the checkpoint and on the device. Nothing that
    belongs to one batch is kept: it comes and goes as an argument.
    """

    uses_feats = False  # True for a method that needs `see_labeled` or `see_feats`, and the features of `refine`

    def adjust_labeled(self, logits):
        """Labeled logits (n, K) -> what the labeled loss sees."""
        return logits

    def labeled_loss(self, logits, target, t):
        """Return the loss that replaces cross-entropy on labeled rows; None leaves it as it is.

        `target` holds classes (n,), or probabilities (n, K) where the base learner mixes images.
        """
        return None

    def see_labeled(self, net, ema, x, y):
        """Look at the labeled images (B, C, H, W) and classes (B,) before the step's own pass."""

    def see_feats(self, feats, y, encoder):
        """Look at labeled features (B, feat_dim) and classes (B,), from a base learner that has them anyway.

        `encoder` says whose they are: "student", or "ema" for those of the moving average.
        """

    def align(self, probs, *, update=True):
        """Probabilities (n_unlabeled, K) as the head gives them -> probabilities, before they are sharpened."""
        return probs

    def refine(self, labels, feats, index, t, *, update=True):
        """Sharpened `PseudoLabels` (n, K), the features (n, feat_dim) and rows (n,) they belong to -> `PseudoLabels`.

        Without `update` no state may change: then the labels are those of an evaluation.
        """
        return labels

    def head_target(self, probs, labels):
        """Return what a second head learns from its probabilities and the `PseudoLabels` (n, K); None without one."""
        return None

    def confident(self, probs, threshold):
        """Return class, mask and weight in the loss (n,) of final labels (n, K); None leaves it to the threshold."""
        return None

    def extra_losses(self, net, batch, views, labels, t):
        """Further loss terms by name, from a `Batch` and its `View` by name: "labeled", "weak" and "strong"."""
        return {}

    def end_step(self, labels, t):
        """Take note of the step's `PseudoLabels`; None for a base learner without them."""

    def select(self, probs):
        """Rows and classes of the unlabeled images that the next generation has labels for; (U, K) probabilities."""
        return None

    def carry_over(self, old):
        """Take over from `old`, the same part of the last generation, what does not start afresh."""
