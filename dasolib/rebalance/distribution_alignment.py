"""Distribution alignment: pseudo-labels are scaled so that their mean approaches a class distribution."""

import torch

from dasolib.rebalance.part import Part


class DistributionAlignment(Part):
    """Distribution alignment: ``p * (target + eps) / (mean + eps)``, rows scaled to sum to 1.

    Parameters
    ----------
    counts : Tensor of shape (K,)
        The class distribution to approach, as counts: of the labeled images, or those that DARP aims at on ReMixMatch.
    temperature : float
        t, exponent of the target; below 1 it is flatter than the counts.
    window : int
        The mean is that of the last so many batches, this one included; 128 in the paper.
    eps : float
        Added to target and mean.

    References
    ----------
    Berthelot et al., "ReMixMatch", ICLR 2020, section 3.1; the exponent is that of Wei et al., "CReST", CVPR 2021,
    section 3.4.
    """

    def __init__(self, counts, *, temperature, window, eps=1e-6):
        super().__init__()
        self.eps = eps
        target = (counts.double() / counts.sum()) ** temperature
        target = (target / target.sum()).to(torch.get_default_dtype())
        self.register_buffer("target", target, persistent=False)
        self.register_buffer("means", torch.zeros(window, len(counts)))
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.int64))

    def align(self, probs, *, update=True):
        """Probabilities (n, K) -> probabilities whose mean over many batches is near the target."""
        if update:
            slot = self.n_seen % len(self.means)
            self.means.index_copy_(0, slot[None], probs.mean(dim=0, keepdim=True))
            self.n_seen += 1
        eps = self.eps
        aligned = probs * (self.target + eps) / (self.running_mean() + eps)
        return aligned / aligned.sum(dim=-1, keepdim=True)

    def running_mean(self):
        """Mean (K,) over the batches in the window."""
        return self.means.sum(dim=0) / self.n_seen.clamp(1, len(self.means))

    def carry_over(self, old):
        """Keep the window; the target starts afresh, with the exponent of its generation."""
        self.load_state_dict(old.state_dict())
