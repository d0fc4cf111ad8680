"""Pseudo-labels: what a classifier or a set of prototypes says of unlabeled images, and how the two are blended."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class PseudoLabels(NamedTuple):
    """Probabilities (n_unlabeled, K), without gradient, for the same images in the same order."""

    linear: Tensor  # from the classifier head
    semantic: Tensor | None  # from similarity to the class prototypes; None for methods and steps without them
    final: Tensor  # what the base learner trains on
    blend_weight: Tensor | None = None  # (K,) share of `semantic` by class, in `final` unless that one's is fixed


def confident_labels(probs, threshold):
    """Class ids (n,) of probabilities (n, K), and a mask (n,), 1.0 where the largest is >= `threshold`, else 0.0.

    The threshold is one number, or a tensor (K,) of one for each class.

    Examples
    --------
    >>> confident_labels(torch.tensor([[0.96, 0.04], [0.4, 0.6]]), 0.95)
    (tensor([0, 1]), tensor([1., 0.]))
    """
    confidence, target = probs.max(dim=-1)
    threshold = threshold[target] if isinstance(threshold, Tensor) else threshold
    return target, (confidence >= threshold).to(probs.dtype)


def sharpen(probs, temperature):
    """Probabilities (n, K) made more certain: ``p^(1 / T)``, rows scaled to sum to 1; T = 1 leaves them as they are.

    References
    ----------
    Berthelot et al., "MixMatch", NeurIPS 2019, equation 7.

    Examples
    --------
    >>> sharpen(torch.tensor([[0.8, 0.2]]), 0.5)
    tensor([[0.9412, 0.0588]])
    """
    if temperature == 1:
        return probs
    powers = probs ** (1 / temperature)
    return powers / powers.sum(dim=-1, keepdim=True)


def semantic_logits(feats, prototypes, temperature):
    """Cosine similarity to each class prototype, divided by a temperature.

    Parameters
    ----------
    feats : Tensor of shape (n, feat_dim)
    prototypes : Tensor of shape (K, feat_dim)
        A class never seen has a zero prototype and similarity 0.
    temperature : float
        T_proto > 0; .05 in the paper.

    Returns
    -------
    Tensor of shape (n, K)
        In [-1 / temperature, 1 / temperature]; the gradient flows to `feats`.

    References
    ----------
    Oh, Kim and Kweon, "DASO", CVPR 2022, arXiv:2106.05682, equation 1.

    Examples
    --------
    >>> semantic_logits(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 0.5)
    tensor([[1.2000, 0.0000]])
    """
    return F.normalize(feats, dim=-1) @ F.normalize(prototypes, dim=-1).T / temperature


def blend_weights(class_freq, temperature):
    """Share of the semantic pseudo-label for each class: ``m_k^(1/T) / max_j m_j^(1/T)``.

    Parameters
    ----------
    class_freq : Tensor of shape (K,)
        How often each class was pseudo-labeled lately; counts or fractions >= 0, not all 0.
    temperature : float
        T_dist > 0. Larger values bring the weight closer to 1 for every class that was seen.

    Returns
    -------
    Tensor of shape (K,)
        In [0, 1]; 1 for the most frequent class, 0 for a class not seen.

    References
    ----------
    Oh, Kim and Kweon, "DASO", CVPR 2022, arXiv:2106.05682, equation 3.

    Examples
    --------
    >>> blend_weights(torch.tensor([8.0, 1.0, 0.0]), 3.0)
    tensor([1.0000, 0.5000, 0.0000])
    """
    return (class_freq / class_freq.max()) ** (1 / temperature)


@torch.no_grad()
def blend(linear, semantic, weight):
    """Blend linear and semantic pseudo-labels: row i becomes ``(1 - w) linear[i] + w semantic[i]``.

    Parameters
    ----------
    linear, semantic : Tensor of shape (n, K)
        Probabilities of the same images.
    weight : Tensor of shape (K,) or float
        The share w of the semantic label in [0, 1]: one for the class that ``linear[i]`` picks, or one for all.

    Returns
    -------
    Tensor of shape (n, K)
        Probabilities, without gradient.

    Raises
    ------
    ValueError
        If the shapes disagree.

    References
    ----------
    Oh, Kim and Kweon, "DASO", CVPR 2022, arXiv:2106.05682, equation 2.

    Examples
    --------
    >>> linear, semantic = torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([[0.2, 0.8], [0.5, 0.5]])
    >>> blend(linear, semantic, torch.tensor([1.0, 0.5]))
    tensor([[0.2000, 0.8000],
            [0.4500, 0.5500]])
    """
    if linear.shape != semantic.shape:
        raise ValueError(f"shapes disagree: linear {tuple(linear.shape)}, semantic {tuple(semantic.shape)}")
    if isinstance(weight, Tensor):
        if weight.shape != linear.shape[1:]:
            raise ValueError(f"shapes disagree: linear {tuple(linear.shape)}, weight {tuple(weight.shape)}")
        weight = weight[linear.argmax(dim=-1)].unsqueeze(-1)  # (n, 1)
    return (1 - weight) * linear + weight * semantic


def one_hot(target, n_classes):
    """Whether `target` (n,) is each of the classes, as booleans (n, K); unlike torch's it does not wait for the device.

    Examples
    --------
    >>> one_hot(torch.tensor([1, 0]), 3).int()
    tensor([[0, 1, 0],
            [1, 0, 0]], dtype=torch.int32)
    """
    return target[:, None] == torch.arange(n_classes, device=target.device)


def count_classes(target, n_classes):
    """How often each class occurs in `target` (n,), as a tensor (K,) of integers; does not wait for the device.

    Examples
    --------
    >>> count_classes(torch.tensor([2, 0, 2]), 4)
    tensor([1, 0, 2, 0])
    """
    return one_hot(target, n_classes).sum(dim=0)
