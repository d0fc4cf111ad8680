"""DARP: the pseudo-labels of all unlabeled images are refined together, so that the classes get their target counts."""

import torch

from dasolib.rebalance.part import Part

FIRST_STEP = 1e-4  # of the secant iteration: its second point lies this far from its first, plus this share of it


def keep_largest(probs, n_kept):
    """Mask (U, K), True for the `n_kept[k]` largest entries of column k.

    Which of equal entries are kept is up to torch's sort, as published, and may differ between devices. Images that
    have not been seen yet are equal; after the warm-up of a real run there are none.

    Examples
    --------
    >>> probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> keep_largest(probs, torch.tensor([2, 1]))
    tensor([[ True, False],
            [False,  True],
            [ True, False]])
    """
    order = probs.argsort(dim=0, descending=True)  # (U, K): in each column the row of its largest entry first
    kept = torch.arange(len(probs), device=probs.device)[:, None] < n_kept  # by rank; `topk` needs numbers on the host
    return torch.zeros_like(kept).scatter_(0, order, kept)


def class_scale(probs, kept, target_counts, *, eps=1e-6):
    """Factor of each class (K,) that brings the entries (U, K) under the mask `kept` to the sum `target_counts`.

    Examples
    --------
    >>> probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> class_scale(probs, probs > 0.5, torch.tensor([3.0, 0.4]), eps=0.0)
    tensor([2.0000, 0.5000])
    """
    return (target_counts + eps) / (probs.where(kept, 0).sum(dim=0) + eps)


def scale_to_counts(probs, target_counts, *, alpha=2.0, eps=1e-6):
    """Keep the surest images of each class, scale each class to its target, and normalize rows.

    Parameters
    ----------
    probs : Tensor of shape (U, K)
        Probabilities of all unlabeled images.
    target_counts : Tensor of shape (K,)
        Images that each class should get, >= 0.
    alpha : float
        Class k keeps its ``int(alpha * target_counts[k])`` largest entries; the others become 0.
    eps : float
        Added to targets, sums and every entry, so that no row and no column is 0.

    Returns
    -------
    Tensor of shape (U, K)
        In (0, 1); rows sum to 1. A row that no class kept is uniform.

    Examples
    --------
    Each class keeps two images, scaled by 1 / 1.2 and 1 / 1.4: the middle row has .4 / 1.2 and .6 / 1.4, or 7 : 9.

    >>> probs = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.2, 0.8]])
    >>> scale_to_counts(probs, torch.tensor([1.0, 1.0]), alpha=2.0).round(decimals=4)
    tensor([[1.0000, 0.0000],
            [0.4375, 0.5625],
            [0.0000, 1.0000]])
    """
    kept = keep_largest(probs, (alpha * target_counts).long())
    scaled = (probs * class_scale(probs, kept, target_counts, eps=eps)).where(kept, 0) + eps
    return scaled / scaled.sum(dim=-1, keepdim=True)


def secant_roots(f, start, *, iterations, tolerance):
    """Find a root of each of K functions of one number, all at once, by the secant method.

    Parameters
    ----------
    f : callable
        Tensor (K,) -> Tensor (K,): the value of function k at point k.
    start : Tensor of shape (K,)
        First points. The second ones lie 1e-4 and 1e-4 of the start further from 0.
    iterations : int
        Secant steps at most; a function that needs more is left where it is then.
    tolerance : float
        A function is done when a step is no longer than this. Its point then stays, whatever the others do.

    Returns
    -------
    Tensor of shape (K,)

    Notes
    -----
    Each point is the same as that of ``scipy.optimize.newton`` without a derivative, which starts with the point of
    the larger value as the later one, and which stops halfway between two points with equal values.

    Examples
    --------
    >>> square_roots = secant_roots(lambda x: x**2 - torch.tensor([4.0, 9.0]), torch.ones(2), iterations=30,
    ...                             tolerance=1e-6)
    >>> square_roots
    tensor([2., 3.])
    """
    second = start * (1 + FIRST_STEP) + FIRST_STEP * torch.where(start >= 0, 1.0, -1.0)
    f_start, f_second = f(start), f(second)
    swap = f_second.abs() < f_start.abs()
    before, f_before = torch.where(swap, second, start), torch.where(swap, f_second, f_start)
    last, f_last = torch.where(swap, start, second), torch.where(swap, f_start, f_second)
    root, done = last, torch.zeros_like(swap)
    for _ in range(iterations):
        # The line through both points meets 0 here; dividing by the larger value keeps the ratio within -1 and 1.
        grew = f_last.abs() > f_before.abs()
        near, far = torch.where(grew, before, last), torch.where(grew, last, before)
        ratio = torch.where(grew, f_before / f_last, f_last / f_before)
        level = f_last == f_before
        new = torch.where(level, (last + before) / 2, (near - ratio * far) / (1 - ratio))
        root = torch.where(done, root, new)
        done = done | level | ((new - last).abs() <= tolerance)
        before, f_before = last, f_last
        last, f_last = root, f(root)
    return root


def fit_counts(probs, target_counts, *, iterations=10, newton_iterations=30, newton_tolerance=0.1, eps=1e-6):
    """Change probabilities as little as possible so that their column sums come near the target counts.

    Row i, column k of the result is ``probs[i, k] * exp(-nu[k] * entropy[i])``, rows normalized: an image of which the
    network is sure changes least. The duals ``nu`` are found in rounds: normalize the rows, then solve the column sum
    of each class for its own dual, with the row factors held.

    Parameters
    ----------
    probs : Tensor of shape (U, K)
        In (0, 1), float64; rows sum to 1.
    target_counts : Tensor of shape (K,)
        Column sums to reach, >= 0.
    iterations : int
        Rounds.
    newton_iterations : int
        Secant steps of a round at most.
    newton_tolerance : float
        Length of a step of a dual that ends its search; at .1 column sums meet their targets only roughly.
    eps : float
        Added within the logarithm of the entropy.

    Returns
    -------
    Tensor of shape (U, K)
        Rows sum to 1.

    References
    ----------
    Kim et al., "Distribution Aligning Refinery of Pseudo-label for Imbalanced Semi-supervised Learning", NeurIPS 2020,
    arXiv:2007.08844, algorithm 1.
    """
    entropy = -(probs * (probs + eps).log()).sum(dim=-1, keepdim=True)  # (U, 1)
    log_probs = probs.log()  # a search may try duals at which the factors themselves would overflow
    nu = torch.ones_like(target_counts)
    start = torch.zeros_like(target_counts)  # of the first search; the rows were normalized with 1 before it
    for _ in range(iterations):
        normalized = log_probs - (log_probs - nu * entropy).logsumexp(dim=-1, keepdim=True)

        def surplus(nu, normalized=normalized):
            return torch.addcmul(normalized, entropy, nu, value=-1).exp_().sum(dim=0) - target_counts

        nu = start = secant_roots(surplus, start, iterations=newton_iterations, tolerance=newton_tolerance)
    return (log_probs - nu * entropy).softmax(dim=-1)


@torch.no_grad()
def refine_to_counts(probs, target_counts, *, alpha=2.0, iterations=10, newton_iterations=30, newton_tolerance=0.1,
                     eps=1e-6):
    """Refine the pseudo-labels of all unlabeled images so that the classes get about their target counts.

    `scale_to_counts` drops what is unlikely in view of the targets, then `fit_counts` reconciles rows and columns.

    Parameters
    ----------
    probs : Tensor of shape (U, K)
        Probabilities; rows sum to 1.
    target_counts : Tensor of shape (K,)
        Images that each class should get, >= 0. If they do not sum to U, they are met only as far as rows that sum
        to 1 allow.
    alpha : float
        Class k keeps its ``int(alpha * target_counts[k])`` surest images.
    iterations, newton_iterations, newton_tolerance : int, int, float
        Rounds, secant steps of a round at most, and the length of a step that ends a search; see `fit_counts`.
    eps : float
        Keeps sums and logarithms away from 0.

    Returns
    -------
    Tensor of shape (U, K)
        Probabilities without gradient, in the type of `probs`; computed in float64. Rows sum to 1.

    Raises
    ------
    ValueError
        If the shapes disagree. Values are not checked here, as that would wait for the device; `Darp` checks its
        targets.

    References
    ----------
    Kim et al., "Distribution Aligning Refinery of Pseudo-label for Imbalanced Semi-supervised Learning", NeurIPS 2020,
    arXiv:2007.08844, section 3; ytaek-oh/daso@3541a6c, ``lib/algorithm/darp_reproduce.py``.

    Examples
    --------
    Two images that look alike, one for each class: both become undecided.

    >>> refine_to_counts(torch.tensor([[0.9, 0.1], [0.9, 0.1]]), torch.tensor([1.0, 1.0]))
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    if probs.ndim != 2 or target_counts.shape != probs.shape[1:]:
        raise ValueError(f"shapes disagree: probs {tuple(probs.shape)}, target_counts {tuple(target_counts.shape)}")
    targets = target_counts.double()  # single precision would keep one image less here and there
    scaled = scale_to_counts(probs.double(), targets, alpha=alpha, eps=eps)
    refined = fit_counts(scaled, targets, iterations=iterations, newton_iterations=newton_iterations,
                         newton_tolerance=newton_tolerance, eps=eps)
    return refined.to(probs.dtype)


class Darp(Part):
    """Distribution aligning refinery of pseudo-labels.

    A table holds the latest prediction of every unlabeled image; every `period` steps it is refined as a whole, and
    until the next time an image gets its row of the refined table, whatever the network says of it meanwhile.

    Parameters
    ----------
    target_counts : Tensor of shape (K,)
        Unlabeled images that each class should get; >= 0, not all 0.
    n_unlabeled : int
        U.
    warmup_steps : int
        So many steps leave pseudo-labels as they are; 40 % of the run in the paper. Predictions are kept from the
        first step on.
    period : int
        The table is refined in each step, counted from 1, that is a multiple of this; 10 in the paper.
    alpha : float
        Class k keeps its ``int(alpha * target_counts[k])`` surest images; 2 in the paper.
    iterations, newton_iterations, newton_tolerance : int, int, float
        As `refine_to_counts` takes them.

    Attributes
    ----------
    predictions : Tensor of shape (U, K)
        Latest pseudo-label of each image before it was refined; uniform for an image not seen yet.
    refined : Tensor of shape (U, K)
        The refined table; uniform before the first refinement.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    References
    ----------
    Kim et al., "Distribution Aligning Refinery of Pseudo-label for Imbalanced Semi-supervised Learning", NeurIPS 2020,
    arXiv:2007.08844; ytaek-oh/daso@3541a6c, ``lib/algorithm/darp_reproduce.py``.
    """

    def __init__(self, target_counts, n_unlabeled, *, warmup_steps, period, alpha, iterations=10, newton_iterations=30,
                 newton_tolerance=0.1):
        super().__init__()
        if target_counts.ndim != 1 or len(target_counts) < 2:
            raise ValueError(f"target_counts {tuple(target_counts.shape)}: one number for each of two classes or more")
        if not (target_counts.isfinite().all() and (target_counts >= 0).all() and target_counts.sum() > 0):
            raise ValueError(f"target_counts={target_counts.tolist()}: must be >= 0, finite and not all 0")
        for name, value, least in (("n_unlabeled", n_unlabeled, 1), ("warmup_steps", warmup_steps, 0),
                                   ("period", period, 1)):
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        if not alpha > 0:
            raise ValueError(f"alpha must be > 0, got {alpha}")
        self.warmup_steps = warmup_steps
        self.period = period
        self.refinement = {"alpha": alpha, "iterations": iterations, "newton_iterations": newton_iterations,
                           "newton_tolerance": newton_tolerance}
        uniform = torch.full((n_unlabeled, len(target_counts)), 1 / len(target_counts))
        self.register_buffer("target_counts", target_counts, persistent=False)
        self.register_buffer("predictions", uniform)
        self.register_buffer("refined", uniform.clone())

    @torch.no_grad()
    def refine(self, labels, feats, index, t, *, update=True):
        """Replace the final pseudo-labels of the images `index` (n,) by their refined rows, after the warm-up.

        Without `update` nothing is stored and no table is refined: the labels are those of the last refinement.

        Raises
        ------
        ValueError
            If `index` does not name one image for each row of the labels.
        """
        if index.shape != labels.final.shape[:1]:
            raise ValueError(f"shapes disagree: index {tuple(index.shape)}, labels {tuple(labels.final.shape)}")
        step = t + 1
        if update:
            self.store(labels.final, index)
        if step <= self.warmup_steps:
            return labels
        if update and step % self.period == 0:
            self.refined.copy_(refine_to_counts(self.predictions, self.target_counts, **self.refinement))
        return labels._replace(final=self.refined[index])

    def store(self, probs, index):
        """Keep the probabilities (n, K) of the images `index` (n,); of an image that comes twice, the later row."""
        # All rows of an image write the same values: a device may write them in any order.
        row = torch.arange(len(index), device=index.device)
        latest = ((index[:, None] == index) * row).amax(dim=-1)  # (n,)
        self.predictions[index] = probs[latest].to(self.predictions.dtype)
