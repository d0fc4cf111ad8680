"""Logit adjustment: the class prior is added to the logits in training, or subtracted in prediction."""

from dasolib.rebalance.part import Part


def adjust_for_balanced_test(logits, prior):
    """Logits (n, K) minus the log of the labeled class prior (K,): logit adjustment at test time, of strength 1.

    References
    ----------
    Menon et al., "Long-tail Learning via Logit Adjustment", ICLR 2021, equation 9.
    """
    return logits - prior.log()


class LogitAdjustment(Part):
    """Logit adjustment at train time: ``logits + tau log(pi)`` on labeled rows.

    Parameters
    ----------
    counts : Tensor of shape (K,)
        Labeled images of each class, > 0, those that CReST has added among them.
    tau : float
        Strength; 0 is the base learner, 1 the paper's setting.

    References
    ----------
    Menon et al., "Long-tail Learning via Logit Adjustment", ICLR 2021, equation 10.
    """

    def __init__(self, counts, *, tau):
        super().__init__()
        self.register_buffer("offset", tau * (counts / counts.sum()).log(), persistent=False)

    def adjust_labeled(self, logits):
        """Logits (n, K) -> ``logits + tau log(pi)``."""
        return logits + self.offset
