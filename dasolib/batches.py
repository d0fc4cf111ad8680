"""From data and configuration to the batch of each step: splitting, sampling and augmenting, all on the device."""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dasolib import augment, resample
from dasolib.config import SPLITS, dataset_name
from dasolib.data import DATASETS
from dasolib.methods import LEARNERS
from dasolib.methods.step import Batch
from dasolib.rebalance import REBALANCERS
from dasolib.rebalance.part import Population
from dasolib.residency import Ahead, ready_for, send
from dasolib.seeds import host_generator
from dasolib.splits import (
    class_aware_rows,
    class_aware_weights,
    epoch_rows,
    estimation_split,
    long_tailed_split,
    natural_split,
)

SAMPLER_BETA = 0.999  # of the class-aware sampler


def make_split(config, data):
    """Split `data` as `config` says: labeled, unlabeled and validation positions."""
    try:
        split = _run_split(config, data)
    except ValueError as error:
        name = dataset_name(config.dataset)
        if config.dataset in DATASETS or name not in SPLITS:
            raise
        taken = ", ".join(f"{setting}={value!r}" for setting, value in SPLITS[name].items()
                          if getattr(config, setting) == value)
        raise ValueError(f"dataset={config.dataset!r}: is called like a known data set and gets its settings, {taken}, "
                         f"which do not fit ({error}); rename it to keep its own class frequencies, or give these "
                         "settings values that fit") from error
    if LEARNERS[config.method].estimates:
        try:
            split = estimation_split(data.y_train.numpy(), split, n_classes=data.n_classes)
        except ValueError as error:
            raise ValueError(f"{error}; {_way_to_hold_out(config, data)}") from None
    return split


def _way_to_hold_out(config, data):
    """Say how images can be held out for an estimate: by validation images, if that is a split of `data`."""
    if config.n1 is None:  # validation images would be labeled ones, too
        return "label more of each class, or name the class counts for DARP as unlabeled_counts"
    n_val = 10 * data.n_classes
    try:
        if config.n_val < n_val:
            make_split(config.model_copy(update={"n_val": n_val}), data)
            return f"raise n_val to {n_val}, here and in the run that takes the estimate"
    except ValueError:
        pass
    return "no n_val makes up for that: choose n1 > 10 gamma_l, or name the class counts for DARP as unlabeled_counts"


def _run_split(config, data):
    labels, has_pile = data.y_train.numpy(), data.x_unlabeled is not None
    if config.n1 is None:
        if has_pile and config.labeled_indices is not None and len(config.labeled_indices) < len(labels):
            warnings.warn(f"labeled_indices names {len(config.labeled_indices)} of {len(labels)} training images, and "
                          f"dataset={config.dataset!r} has separate unlabeled images: the others are not used",
                          stacklevel=2)
        return natural_split(labels, n_classes=data.n_classes, labeled_indices=config.labeled_indices,
                             has_pile=has_pile, n_val=config.n_val, seed=config.seed)
    if has_pile and config.unlabeled != "unknown":
        warnings.warn(f"unlabeled={config.unlabeled!r} takes the unlabeled images from the training images: the "
                      f"{len(data.x_unlabeled)} separate ones of dataset={config.dataset!r} are not used; "
                      "unlabeled='unknown' takes those", stacklevel=2)
    if config.unlabeled == "unknown" and not has_pile:
        raise ValueError(f"unlabeled='unknown': dataset={config.dataset!r} has no separate unlabeled images; "
                         "choose equal, uniform or reversed")
    return long_tailed_split(labels, n_classes=data.n_classes, n1=config.n1, m1=config.m1, gamma_l=config.gamma_l,
                             gamma_u=config.gamma_u, unlabeled=config.unlabeled, n_val=config.n_val,
                             seed=config.seed)


class Gathered(NamedTuple):
    """Images of a step before augmentation: on the device, or on the host and ready to be copied there."""

    rows: Tensor  # (B,) of the labeled images
    x: Tensor  # (B, C, H, W) uint8
    u_rows: Tensor | None  # (mu * B,) of the unlabeled images; None for a method without them
    u: Tensor | None  # (mu * B, C, H, W) uint8


class Batches:
    """The images of a run as uint8, and the batch of each step as a function of its number.

    Parameters
    ----------
    config : dasolib.config.Config
    data : dasolib.data.ImageData
    split : dasolib.splits.Split
    normalize : callable
        uint8 images (N, C, H, W) -> what the network takes.
    device : torch.device
        Where batches are made.
    resident : bool, default True
        Whether the images live on `device`. Else they stay on the host, and a thread, which `close` stops, gathers
        those of the next step. The batches are the same.

    Attributes
    ----------
    x, u : Tensor of shape (n, C, H, W)
        Labeled and unlabeled images, where they live; their classes ``y`` and ``u_target`` (n,) are on `device`.
    labeled_counts : Tensor of shape (K,)
        Labeled images of each class, on `device`; without those that CReST has selected.
    prior : Tensor of shape (K,)
        Their shares.
    unlabeled_index : ndarray of shape (U,)
        Position of each unlabeled image in the training images or in the separate pile.
    unlabeled_names : tuple of U str or None
        Their file names, where the pile of a folder has them.
    held_out : tuple of Tensor or None
        Images and classes that a run uses which estimates the class counts of the unlabeled images.
    selected : dict of str to Tensor or None
        ``rows`` of unlabeled images and the ``classes`` they joined the labeled set with, by `select`.

    Raises
    ------
    ValueError
        If a batch is larger than the set it is drawn from, the method needs unlabeled images and there are none, or
        method or network need images of another shape.
    """

    def __init__(self, config, data, split, normalize, device, *, resident=True):
        self.config, self.normalize, self.device = config, normalize, device
        self.learner = LEARNERS[config.method]
        self.kinds = self.learner.views
        lines = [REBALANCERS[name] for name in config.parts()]
        self.part_draws = [line.draw for line in lines if line.draw is not None]
        side = min(data.x_train.shape[2:])
        if self.learner.rotates and config.train_resolution is None and side != max(data.x_train.shape[2:]):
            height, width = data.x_train.shape[2:]
            raise ValueError(f"method={config.method!r} turns images, and those of dataset={config.dataset!r} are "
                             f"{height} x {width}; give train_resolution={side}")
        if config.network == "resnet34" and data.x_train.shape[1] != 3:
            raise ValueError(f"network='resnet34' takes images of three channels, those of dataset={config.dataset!r} "
                             f"have {data.x_train.shape[1]}")
        if side <= augment.PAD:
            raise ValueError(f"dataset={config.dataset!r} has images of {side} pixels a side; crops need more than "
                             f"{augment.PAD}")
        home = device if resident else torch.device("cpu")
        self.ahead = None if resident else Ahead(self.gather, config.total_steps)
        labels = data.y_train[split.labeled]
        self.x, self.y = data.x_train[split.labeled].to(home), labels.to(device)
        if split.unlabeled is None:
            self.unlabeled_index, self.unlabeled_names = np.arange(len(data.x_unlabeled)), data.unlabeled_names
            self.u, self.u_target = data.x_unlabeled.to(home), data.y_unlabeled.to(device)
        else:
            self.unlabeled_index, self.unlabeled_names = split.unlabeled, None
            self.u, self.u_target = data.x_train[split.unlabeled].to(home), data.y_train[split.unlabeled].to(device)
        self.held_out = None
        if self.learner.estimates:
            self.held_out = data.x_train[split.validation].to(home), data.y_train[split.validation].to(device)
        self.selected = None
        self.original_x, self.original_y = self.x, self.y
        counts = torch.bincount(labels, minlength=data.n_classes)
        self.host_y, self.class_weights = labels, None  # the sampler works on the host
        if "crt" in config.rebalance and config.crt_balancing == "batches":
            self.class_weights = class_aware_weights(counts, SAMPLER_BETA)
        self.labeled_counts = counts.to(device)
        self.prior = self.labeled_counts / self.labeled_counts.sum()
        n_unlabeled = config.mu * config.batch_size if self.kinds else 0
        self.images_per_step = config.batch_size + n_unlabeled
        if config.batch_size > len(self.x):
            raise ValueError(f"batch_size={config.batch_size} is larger than the labeled set of {len(self.x)} images; "
                             "choose a smaller one")
        if (self.kinds or self.learner.estimates) and len(self.u) == 0:
            raise ValueError(f"method={config.method!r} needs unlabeled images, dataset={config.dataset!r} has none: "
                             "choose method=supervised, or give labeled_indices, or data with unlabeled images")
        if n_unlabeled > len(self.u):
            raise ValueError(f"mu * batch_size = {config.mu} * {config.batch_size} is larger than the unlabeled set "
                             f"of {len(self.u)} images; choose a smaller batch_size or mu")

    def select(self, selected):
        """Add unlabeled images to the original labeled ones, in place of those added before; None adds none.

        They stay among the unlabeled ones.

        Parameters
        ----------
        selected : dict of str to Tensor or None
            ``rows`` (n,) among the unlabeled images and the ``classes`` (n,) they are labeled as.
        """
        if self.ahead is not None:
            self.ahead.forget()
        self.selected, self.x, self.y = selected, self.original_x, self.original_y
        if selected is not None:
            self.x = torch.cat([self.x, self.u[selected["rows"].to(self.u.device)]])
            self.y = torch.cat([self.y, selected["classes"]])

    def population(self, unlabeled_counts, generation):
        """Return the `Population` that the re-balancing methods of a generation are built for."""
        current = self.labeled_counts
        if self.selected is not None:
            current = current + torch.bincount(self.selected["classes"], minlength=len(current))
        # ReMixMatch's own alignment shares DARP's target; the one put on FixMatch keeps the labeled classes.
        aligned = unlabeled_counts if self.learner.aligns else None
        return Population(self.labeled_counts, current, len(self.u), unlabeled_counts, generation, aligned)

    def at(self, t):
        """Return the `Batch` of step `t` and the hidden classes (mu * B,) of its unlabeled images, for diagnostics."""
        gathered = self.gather(t) if self.ahead is None else self.ahead(t)
        rows, x, u_rows, u = (part if part is None else send(part, self.device) for part in gathered)
        x, y = self.view(x, "weak", "labeled", t), self.y[rows]
        if not self.kinds:
            return Batch(x, y, views={}), None
        views = {name: self.view(u, kind, name, t) for name, kind in self.kinds.items()}
        draws = {name: send(value, self.device) for name, value in self.draws(len(u), t).items()}
        return Batch(x, y, views, u_rows, draws), self.u_target[u_rows]

    def gather(self, t):
        """Return the images of step `t` as `Gathered`; called by a thread where they live on the host."""
        rows = send(self.labeled_rows(t), self.x.device)
        x = ready_for(self.x[rows], self.device)
        if not self.kinds:
            return Gathered(rows, x, None, None)
        n_unlabeled = self.config.mu * self.config.batch_size
        u_rows = epoch_rows(len(self.u), n_unlabeled, t, self.config.seed, purpose="unlabeled")
        u_rows = send(u_rows, self.u.device)
        return Gathered(rows, x, u_rows, ready_for(self.u[u_rows], self.device))

    def close(self):
        """Stop the thread that gathers images, if there is one."""
        if self.ahead is not None:
            self.ahead.close()

    def labeled_rows(self, t):
        """Rows (B,) of the labeled images of step `t`, on the host; every generation begins an epoch."""
        config, (generation, t) = self.config, divmod(t, self.config.generation_steps)
        if self.class_weights is not None:
            return class_aware_rows(self.host_y, self.class_weights, batch_size=config.batch_size, step=t,
                                    seed=config.seed)
        purpose = f"labeled {generation}" if generation else "labeled"
        return epoch_rows(len(self.x), config.batch_size, t, config.seed, purpose=purpose)

    def draws(self, n_unlabeled, t):
        """Further random numbers of step `t` by name, on the host: those of the base learner and of its parts."""
        draws = {}
        if self.learner.draw is not None:
            settings = {name: getattr(self.config, name) for name in self.learner.draw_settings}
            generator = host_generator(self.config.seed, "draws", t)
            draws |= self.learner.draw(self.config.batch_size, n_unlabeled, generator=generator, **settings)
        for draw in self.part_draws:
            generator = host_generator(self.config.seed, f"draws of {draw.__module__}", t)
            draws |= draw(self.config.batch_size, n_unlabeled, generator=generator)
        return draws

    def view(self, images, kind, name, t):
        """Augment uint8 `images` as ``weak``, ``strong`` or ``plain`` (not at all) with the draws of view `name`.

        The draws are those of step `t`; the result is normalised.
        """
        resolution, flip, pad = self.config.train_resolution, self.config.flip, augment.PAD
        generator = host_generator(self.config.seed, f"view {name}", t)
        if self.config.crop == "resized" and kind != "plain":
            n, _, height, width = images.shape
            draws = resample.draw_resized_crop(n, height, width, generator=generator, flip=flip)
            images = resample.resized_crop(images, draws, resolution or height, resolution or width)
            flip, pad = False, 0  # both are done
        elif kind == "strong" and self.learner.rotates and resolution is not None:
            draws = augment.draw_weak(len(images), generator=generator, flip=flip)
            images = resample.resize(augment.weak_view(images, draws), resolution)
            flip, pad = False, 0
        n, _, height, width = images.shape
        if kind == "weak":
            draws = augment.draw_weak(n, generator=generator, flip=flip, pad=pad)
            layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
            images = augment.weak_view(images, draws, pad=pad, memory_format=layout)
        elif kind == "strong":
            draws = augment.draw_strong(n, height, width, generator=generator, flip=flip, pad=pad)
            images = augment.strong_view(images, draws, pad=pad)
        return self.normalize(images)
