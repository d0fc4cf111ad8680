"""From data and configuration to the batch of each step: splitting, sampling and augmenting, all on the device."""

import numpy as np
import torch

from dasolib import augment
from dasolib.methods import LEARNERS
from dasolib.methods.step import Batch
from dasolib.seeds import host_generator
from dasolib.splits import epoch_rows, long_tailed_split, natural_split


def make_split(config, data):
    """Split `data` as `config` says: labeled, unlabeled and validation positions."""
    labels = data.y_train.numpy()
    if config.n1 is None:
        return natural_split(labels, n_classes=data.n_classes, labeled_indices=config.labeled_indices,
                             has_pile=data.x_unlabeled is not None, n_val=config.n_val, seed=config.seed)
    if config.unlabeled == "unknown" and data.x_unlabeled is None:
        raise ValueError(f"unlabeled='unknown': dataset={config.dataset!r} has no separate unlabeled images; "
                         "choose equal, uniform or reversed")
    return long_tailed_split(labels, n_classes=data.n_classes, n1=config.n1, m1=config.m1, gamma_l=config.gamma_l,
                             gamma_u=config.gamma_u, unlabeled=config.unlabeled, n_val=config.n_val,
                             seed=config.seed)


class Batches:
    """The images of a run as uint8 on their device, and the batch of each step as a function of its number.

    Parameters
    ----------
    config : dasolib.config.Config
    data : dasolib.data.ImageData
    split : dasolib.splits.Split
    normalize : callable
        uint8 images (N, C, H, W) -> what the network takes.
    device : torch.device

    Attributes
    ----------
    labeled_counts : Tensor of shape (K,)
        Labeled images of each class, on `device`.
    prior : Tensor of shape (K,)
        Their shares.
    unlabeled_index : ndarray of shape (U,)
        Position of each unlabeled image in the training images or in the separate pile.
    unlabeled_names : tuple of U str or None
        Their file names, where the pile of a folder has them.

    Raises
    ------
    ValueError
        If a batch is larger than the set it is drawn from, or the method needs unlabeled images and there are none.
    """

    def __init__(self, config, data, split, normalize, device):
        self.config, self.normalize, self.device = config, normalize, device
        self.kinds = LEARNERS[config.method].views
        side = min(data.x_train.shape[2:])
        if side <= augment.PAD:
            raise ValueError(f"dataset={config.dataset!r} has images of {side} pixels a side; crops need more than "
                             f"{augment.PAD}")
        x_train = data.x_train.to(device)
        labels = data.y_train[split.labeled]
        self.x, self.y = x_train[split.labeled], labels.to(device)
        if split.unlabeled is None:
            self.unlabeled_index, self.unlabeled_names = np.arange(len(data.x_unlabeled)), data.unlabeled_names
            self.u, self.u_target = data.x_unlabeled.to(device), data.y_unlabeled.to(device)
        else:
            self.unlabeled_index, self.unlabeled_names = split.unlabeled, None
            self.u, self.u_target = x_train[split.unlabeled], data.y_train[split.unlabeled].to(device)
        self.labeled_counts = torch.bincount(labels, minlength=data.n_classes).to(device)
        self.prior = self.labeled_counts / self.labeled_counts.sum()
        n_unlabeled = config.mu * config.batch_size if self.kinds else 0
        self.images_per_step = config.batch_size + n_unlabeled
        if config.batch_size > len(self.x):
            raise ValueError(f"batch_size={config.batch_size} is larger than the labeled set of {len(self.x)} images")
        if self.kinds and len(self.u) == 0:
            raise ValueError(f"method={config.method!r} needs unlabeled images, dataset={config.dataset!r} has none: "
                             "give labeled_indices, or data with unlabeled images")
        if n_unlabeled > len(self.u):
            raise ValueError(f"mu * batch_size = {config.mu} * {config.batch_size} is larger than the unlabeled set "
                             f"of {len(self.u)} images")

    def at(self, t):
        """Return the `Batch` of step `t` and the hidden classes (mu * B,) of its unlabeled images, for diagnostics."""
        b, seed = self.config.batch_size, self.config.seed
        rows = epoch_rows(len(self.x), b, t, seed, purpose="labeled").to(self.device, non_blocking=True)
        x, y = self.view(self.x[rows], "weak", "labeled", t), self.y[rows]
        if not self.kinds:
            return Batch(x, y, views={}), None
        rows = epoch_rows(len(self.u), self.config.mu * b, t, seed, purpose="unlabeled")
        rows = rows.to(self.device, non_blocking=True)
        images = self.u[rows]
        views = {name: self.view(images, kind, name, t) for name, kind in self.kinds.items()}
        return Batch(x, y, views), self.u_target[rows]

    def view(self, images, kind, name, t):
        """Augment uint8 `images` as ``weak`` or ``strong`` with the draws of view `name` at step `t`, and normalise."""
        (n, _, height, width), flip = images.shape, self.config.flip
        generator = host_generator(self.config.seed, f"view {name}", t)
        if kind == "weak":
            images = augment.weak_view(images, augment.draw_weak(n, generator=generator, flip=flip))
        else:
            draws = augment.draw_strong(n, height, width, generator=generator, flip=flip)
            images = augment.strong_view(images, draws)
        return self.normalize(images)
