"""MixUp of labeled and unlabeled images, and the passes of the mixed batch."""

import torch
from scipy.special import betaincinv

from dasolib.pseudo_labels import one_hot


def draw_mixup(n, alpha, *, generator):
    """Draw what one MixUp of `n` images takes, on the host.

    Parameters
    ----------
    n : int
        Images of the whole batch, all views together.
    alpha : float
        The mixing share is drawn from Beta(alpha, alpha).
    generator : torch.Generator

    Returns
    -------
    dict of str to Tensor
        ``beta`` (), the share as drawn, and ``permutation`` (n,), the partner of each image.
    """
    uniform = torch.rand((), generator=generator, dtype=torch.float64)
    beta = torch.tensor(betaincinv(alpha, alpha, uniform.item()), dtype=torch.get_default_dtype())
    return {"beta": beta, "permutation": torch.randperm(n, generator=generator)}


def mixup(x, target, beta, permutation):
    """Mix every image with its partner, and its target likewise; the image itself has the larger share.

    Parameters
    ----------
    x : Tensor of shape (n, C, H, W)
    target : Tensor of shape (n, K)
        Probabilities.
    beta : Tensor of shape ()
        Share in [0, 1]; the larger of it and its complement is used.
    permutation : Tensor of shape (n,)

    Returns
    -------
    x : Tensor of shape (n, C, H, W)
    target : Tensor of shape (n, K)

    References
    ----------
    Zhang et al., "mixup", ICLR 2018; Berthelot et al., "MixMatch", NeurIPS 2019, equations 8 to 11.

    Examples
    --------
    >>> mixup(torch.tensor([0.0, 4.0]), torch.eye(2), torch.tensor(0.25), torch.tensor([1, 0]))
    (tensor([1., 3.]), tensor([[0.7500, 0.2500],
            [0.2500, 0.7500]]))
    """
    share = torch.maximum(beta, 1 - beta)
    return share * x + (1 - share) * x[permutation], share * target + (1 - share) * target[permutation]


def interleave(rows, size):
    """Exchange rows between the first chunk of `size` rows and each other one, so that every chunk holds some of all.

    Of G chunks cut into G slots each, slot i of the first is exchanged with slot i of chunk i. Doing it twice gives
    back what was.

    Parameters
    ----------
    rows : Tensor of shape (G * size, ...)
    size : int

    Returns
    -------
    Tensor of shape (G * size, ...)

    References
    ----------
    Berthelot et al., "MixMatch", NeurIPS 2019, the authors' implementation, for BatchNorm's sake.

    Examples
    --------
    >>> interleave(torch.tensor([10, 11, 20, 21]), 2)
    tensor([10, 21, 20, 11])
    """
    n = len(rows) // size
    widths = [size // n + (i >= n - size % n) for i in range(n)]  # what does not divide goes to the last slots
    slots = [list(chunk.split(widths)) for chunk in rows.split(size)]
    for i in range(1, n):
        slots[0][i], slots[i][i] = slots[i][i], slots[0][i]
    return torch.cat([slot for chunk in slots for slot in chunk])


def forward_mixed(net, batch, guess):
    """Mix the labeled images with all unlabeled views, and pass them interleaved in chunks of the labeled batch's size.

    Parameters
    ----------
    net : dasolib.models.Network
    batch : dasolib.methods.step.Batch
        With the draws of `draw_mixup`; every view of an unlabeled image has the same target.
    guess : Tensor of shape (n_unlabeled, K)
        Target of the unlabeled images.

    Returns
    -------
    labeled, unlabeled : pair of Tensor
        Logits and mixed targets, (B, K) each, and (n_views * n_unlabeled, K) each.
    """
    b, views = len(batch.x), list(batch.views.values())
    target = torch.cat([one_hot(batch.y, guess.shape[1]).to(guess.dtype), *[guess] * len(views)])
    x, target = mixup(torch.cat([batch.x, *views]), target, batch.draws["beta"], batch.draws["permutation"])
    chunks = interleave(x, b).split(b)
    logits = interleave(torch.cat([net.head(net.features(chunk)) for chunk in chunks]), b)
    return (logits[:b], target[:b]), (logits[b:], target[b:])
