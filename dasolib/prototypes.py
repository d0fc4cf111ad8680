"""Queues of labeled features and the class prototypes they give."""

import torch
from torch import nn

from dasolib.pseudo_labels import one_hot

QUEUE_RATIO = 5  # queues by frequency keep so many features for each labeled image of their class


class PrototypeBank(nn.Module):
    """For each class a queue of its latest labeled features, and their mean.

    Ring buffers of fixed shape: a push costs the same whatever the number of classes or the length of the queues,
    and never waits for the device. All state is in buffers, so it is part of a checkpoint.

    Parameters
    ----------
    queue_sizes : list of int
        Length of the queue of each of the K classes, >= 1.
    feat_dim : int
        Length of a feature.

    Attributes
    ----------
    prototypes : Tensor of shape (K, feat_dim)
        Mean of each queue; zero until the class appears.
    n_pushed : Tensor of shape (K,)
        Features seen of each class, int64.

    References
    ----------
    Oh, Kim and Kweon, "DASO", CVPR 2022, arXiv:2106.05682, section 3.3; ytaek-oh/daso@3541a6c,
    ``lib/models/feature_queue.py``.

    Examples
    --------
    >>> bank = PrototypeBank([2, 2], feat_dim=1)
    >>> bank.push(torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([0, 0, 0]))
    >>> bank.prototypes, bank.lengths()
    (tensor([[4.],
            [0.]]), tensor([2, 0]))
    """

    def __init__(self, queue_sizes, feat_dim):
        super().__init__()
        if min(queue_sizes) < 1:
            raise ValueError(f"queue_sizes={list(queue_sizes)}: every class needs a queue of at least 1")
        k, longest = len(queue_sizes), max(queue_sizes)
        self.register_buffer("queue_sizes", torch.tensor(queue_sizes), persistent=False)
        # One slot more than the longest queue: rows that a batch itself pushes out again are written there.
        self.register_buffer("queues", torch.zeros(k, longest + 1, feat_dim))
        self.register_buffer("sums", torch.zeros(k, feat_dim, dtype=torch.float64))
        self.register_buffer("n_pushed", torch.zeros(k, dtype=torch.int64))
        self.register_buffer("prototypes", torch.zeros(k, feat_dim))

    def lengths(self):
        """Features held of each class, (K,) int64."""
        return torch.minimum(self.n_pushed, self.queue_sizes)

    @torch.no_grad()
    def push(self, feats, target):
        """Append features (n, feat_dim) of classes `target` (n,), oldest out, and renew the classes' prototypes.

        A batch may hold more of a class than its queue: the last ones in row order stay.
        """
        k = len(self.queue_sizes)
        is_class = one_hot(target, k)  # (n, K)
        rank = (is_class.cumsum(dim=0) - 1).gather(1, target[:, None]).squeeze(1)  # among the rows of its class
        in_batch = is_class.sum(dim=0)  # (K,)
        size = self.queue_sizes[target]
        stays = in_batch[target] - rank <= size
        slot = torch.where(stays, (self.n_pushed[target] + rank) % size, self.queues.shape[1] - 1)
        # Sums move by what comes in minus what goes out, in double precision so that nothing drifts over a run.
        change = feats.double() - self.queues[target, slot].double()
        self.sums += is_class.double().T @ (change * stays[:, None])
        self.queues[target, slot] = feats.to(self.queues.dtype)
        self.n_pushed += in_batch
        self.prototypes.copy_(self.sums / self.lengths().clamp(min=1)[:, None])
