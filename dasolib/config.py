"""One frozen record of a run, its checks, and the paper's settings as functions."""

import ast
import hashlib
import json
import math
import os
import platform
import re
import unicodedata
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from dasolib.methods import LEARNERS
from dasolib.prototypes import QUEUE_RATIO
from dasolib.rebalance import REBALANCERS, check_combination, parse_rebalance
from dasolib.schedules import SCHEDULES

SCHEMA = 1  # of the run folder; raised when its files change in meaning
NOT_IDENTITY = ("threads", "device")  # recorded and warned about on resume, but part of neither hash nor comparison
DEVICES = "choose auto, cpu, cuda, or one of several GPUs as in cuda:0"
# Fields that older runs of this schema lack, and what they had.
YOUNGER = {
    "network": "wrn", "crop": "padded", "compile": False, "crt_balancing": "batches", "skip_unreadable": False,
    "unlabeled_counts": None, "nesterov": True, "queue_ratio": QUEUE_RATIO, "alignment_eps": 1e-6,
    "darp_iterations": 10, "darp_newton_iterations": 30, "darp_newton_tolerance": 0.1, "abc_semantic": True,
}
LABEL_FREQUENCY = "label_frequency"  # a value of `unlabeled_counts`


class Config(BaseModel):
    """One run. Everything that can change a number is here.

    Build it with `make_config`, which starts from a preset and turns a wrong value into a readable `ValueError`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # What is run
    dataset: str  # a name of `dasolib.data`, an .npz file or an image folder
    method: str  # base learner, a key of `LEARNERS`
    rebalance: tuple[str, ...]  # keys of `REBALANCERS`, in table order
    seed: int = Field(ge=0, lt=2**32)  # split, initial weights, sampling and augmentation

    # Data and split
    resolution: int | None = Field(ge=8, le=4096)  # side to which images of a folder or list are decoded; None: 32
    skip_unreadable: bool  # images of a folder or list that cannot be read are left out, not refused
    n1: int | None = Field(ge=1)  # labeled images of the head class; None: natural imbalance, no synthetic split
    m1: int | None = Field(ge=1)  # unlabeled images of the head class; None with natural or unknown unlabeled data
    gamma_l: float | None = Field(ge=1)  # labeled imbalance ratio; None with natural imbalance
    gamma_u: float | None = Field(ge=1)  # unlabeled imbalance ratio; None where it is not made
    unlabeled: Literal["equal", "uniform", "reversed", "unknown"]  # class distribution of the unlabeled images
    n_val: int = Field(ge=0)  # class-balanced validation images, taken from the training set first
    labeled_indices: tuple[int, ...] | None  # natural imbalance: these training images are labeled, the rest is not

    # Augmentation
    flip: bool  # horizontal flips; off for digits
    crop: Literal["padded", "resized"]  # of the image padded by reflection, or a random part of it resized
    train_resolution: int | None = Field(ge=8, le=4096)  # side to which augmented images are resized; None: not at all

    # Network
    network: Literal["wrn", "resnet34"]  # the latter starts from torchvision's ImageNet weights
    depth: int = Field(le=1000)  # of a WideResNet, 6 n + 4
    width: int = Field(ge=1, le=100)  # of a WideResNet

    # Optimiser
    batch_size: int = Field(ge=1)  # B, labeled images of a step
    mu: int = Field(ge=1)  # unlabeled : labeled images of a step
    total_steps: int = Field(ge=1)  # T
    lr: float = Field(gt=0)
    momentum: float = Field(ge=0, lt=1)
    nesterov: bool  # Nesterov's momentum instead of the plain one
    weight_decay: float = Field(ge=0)  # on every parameter
    schedule: Literal[SCHEDULES]
    warmup_steps: int = Field(ge=0)
    warmup_factor: float = Field(ge=0, le=1)  # of the learning rate at step 0
    warmup_shape: Literal["linear", "constant"]
    milestones: tuple[NonNegativeInt, ...]  # steps of the multistep schedule; never reached beyond a generation's end
    lr_decay: float = Field(gt=0, le=1)  # factor at each milestone
    cosine_ratio: float = Field(gt=0)
    ema_decay: float = Field(ge=0, lt=1)  # largest decay of the moving average
    ema_weight_decay: float = Field(ge=0)

    # Base learner
    threshold: float = Field(ge=0, le=1)  # confidence from which a pseudo-label counts
    lambda_u: float = Field(ge=0)  # weight of the unlabeled loss
    ramp_steps: float = Field(gt=0)  # over which losses on unlabeled images gain their weight, anew in each generation
    ramp_shape: Literal["linear", "exp"]
    sharpen_temperature: float = Field(gt=0)  # T of MixMatch's sharpening; 1 leaves the labels as they are
    mixup_alpha: float = Field(gt=0)  # the mixing share comes from Beta(alpha, alpha)
    lambda_premixup: float = Field(ge=0)  # ReMixMatch: weight of the loss on the first strong view before mixing
    lambda_rotation: float = Field(ge=0)  # ReMixMatch: weight of the rotation loss
    alignment: bool  # ReMixMatch: distribution alignment
    similarity_threshold: float = Field(ge=-1, le=1)  # USADTM: similarity from which a pseudo-label counts
    lambda_mi: float = Field(ge=0)  # USADTM: weight of the mutual-information loss
    queue_ratio: int = Field(ge=1)  # USADTM: labeled features kept of each class, as a multiple of its images

    # Re-balancing on labels
    la_tau: float = Field(ge=0)  # strength of train-time logit adjustment; 0 is the base learner
    cb_beta: float = Field(ge=0, le=1)  # class-balanced weights; 0 is the base learner
    reweight_warmup_steps: int = Field(ge=0)  # W: class weights (and LDAM) act from step W - 1
    crt_balancing: Literal["weights", "batches"]  # cRT: class weights in the loss, or class-aware sampling of batches
    ldam_max_margin: float = Field(gt=0)
    ldam_scale: float = Field(gt=0)
    source: str | None  # run folder: cRT's trained network; DARP's estimate, where None looks for one under runs/

    # Re-balancing on pseudo-labels
    alignment_window: int = Field(ge=1)  # batches whose mean prediction is aligned
    alignment_temperature: float = Field(ge=0)  # exponent of the target distribution; 0 is the uniform one
    alignment_eps: float = Field(gt=0)  # added to target and mean
    # Class distribution that DARP aims at: of the labeled images, one number for each class, or None for an estimate.
    unlabeled_counts: Literal[LABEL_FREQUENCY] | tuple[float, ...] | None
    darp_warmup_steps: int = Field(ge=0)  # before them pseudo-labels stay as they are
    darp_period: int = Field(ge=1)  # steps from one refinement of all pseudo-labels to the next
    darp_alpha: float = Field(gt=0)  # class k keeps its alpha * target_k surest images
    darp_iterations: int = Field(ge=1)  # rounds of a refinement
    darp_newton_iterations: int = Field(ge=1)  # steps of the root search in a round, at most
    darp_newton_tolerance: float = Field(ge=0)  # length of a step that ends the search
    n_generations: int = Field(ge=2)  # CReST: equal parts of total_steps, each a training from scratch
    crest_alpha: float = Field(gt=0)  # the share that is selected of class k goes with count ** (1 / alpha)
    crest_t_min: float = Field(ge=0, le=1)  # CReST+: exponent of the alignment's target in the last generation
    abc_epoch_steps: int = Field(ge=1)  # ABC: its sampling of unlabeled images moves every so many steps
    abc_epochs: float = Field(gt=0)  # ABC: and is balanced after so many epochs
    abc_semantic: bool  # ABC: DASO's semantic labels are blended into the targets of the second head, too
    boss_drop: float = Field(ge=0, le=1)  # BOSS: how far the threshold of a rare class falls

    # DASO
    pretrain_steps: int = Field(ge=0)  # P; USADTM: labels count from this step on
    refresh_steps: int = Field(ge=1)  # period of the pseudo-label histogram
    dist_temperature: float = Field(gt=0)  # T_dist
    proto_temperature: float = Field(gt=0)  # T_proto
    fixed_blend: float | None = Field(ge=0, le=1)  # semantic share for every class; None: distribution-aware
    lambda_align: float = Field(ge=0)  # weight of the semantic alignment loss
    queue_size: int = Field(ge=1)  # L, labeled features kept per class
    queue_sizing: Literal["balanced", "frequency"]
    prototypes_from: Literal["ema", "student"]
    ema_train_mode: bool  # EMA network in train mode while it fills the queues, as published

    # Evaluation
    eval_steps: int = Field(ge=1)  # period; the end of the run is always evaluated
    eval_images: int | None = Field(ge=1)  # test images of all but the last 20 evaluations; None: all of them

    # Arithmetic
    precision: Literal["fp32", "bf16"]  # fp32 on a GPU: torch's default, in which convolutions round to TF32
    channels_last: bool
    compile: bool  # passes and losses of a step as one compiled graph; numbers agree to rounding
    threads: int = Field(ge=1, le=1024)  # CPU threads; results are equal bit for bit only at the same number
    device: str  # "auto", "cpu", "cuda", "cuda:1"

    @field_validator("rebalance", mode="before")
    @classmethod
    def _in_table_order(cls, value):
        return parse_rebalance(value)

    @field_validator("*", mode="before")
    @classmethod
    def _as_people_write_it(cls, value, info):
        kind, value = cls.model_fields[info.field_name].annotation, _plain(value)
        if kind in (int, int | None):
            value = _whole(value)
        elif isinstance(value, list | tuple):
            if any(isinstance(each, bool | np.bool_) for each in value):
                raise ValueError("must be positions, not a mask of True and False: numpy.flatnonzero(mask) gives them")
            value = tuple(map(_whole, value))
        elif kind is str or kind == str | None and value is not None:
            if not isinstance(value, str):
                raise ValueError("must be text" + (f"; {DEVICES}" if info.field_name == "device" else ""))
            if has_control_characters(value):
                raise ValueError("must not hold a line break, a NUL or another control character")
        if isinstance(value, bool) and kind is not bool:
            raise ValueError("must not be True or False")
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value):
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError(DEVICES)
        return value

    @field_validator("depth")
    @classmethod
    def _wide_resnet_depth(cls, value):
        if value < 10 or (value - 4) % 6:
            raise ValueError("a WideResNet has depth 6 n + 4: 10, 16, 22, 28, ...")
        return value

    @field_validator("unlabeled_counts", mode="before")
    @classmethod
    def _distribution(cls, value):
        if value is None or isinstance(value, str) and value == LABEL_FREQUENCY:
            return value
        try:
            counts = TypeAdapter(tuple[float, ...]).validate_python(value)
        except ValidationError:
            counts = ()
        if len(counts) < 2 or min(counts) < 0 or not 0 < sum(counts) < math.inf:
            raise ValueError(f"choose {LABEL_FREQUENCY}, None, or a number >= 0 for each class, not all of them 0")
        return counts

    @model_validator(mode="after")
    def _fields_agree(self):
        check_combination(self.method, self.rebalance)
        if self.schedule == "multistep" and not self.milestones:
            raise ValueError("schedule='multistep' with milestones=(): give the steps at which the learning rate drops")
        if self.total_steps % self.generations:
            raise ValueError(f"total_steps={self.total_steps} must be divisible by n_generations={self.n_generations}; "
                             f"the next such length is {-(-self.total_steps // self.generations) * self.generations}")
        if self.n1 is None:
            for name in ("m1", "gamma_l", "gamma_u"):
                value = getattr(self, name)
                if value is not None:
                    raise ValueError(f"{name}={value} needs n1; without n1 the data's own imbalance is kept")
            if self.unlabeled != "unknown":
                raise ValueError(f"unlabeled={self.unlabeled!r} needs n1; natural imbalance goes with 'unknown'")
        else:
            if self.labeled_indices is not None:
                raise ValueError(f"labeled_indices goes with natural imbalance: n1={self.n1} must be None")
            if self.gamma_l is None:
                raise ValueError(f"gamma_l=None: n1={self.n1} makes a long-tailed labeled set; give gamma_l >= 1")
            made = {"m1": self.m1, "gamma_u": self.gamma_u}
            for name, value in made.items():
                if (value is None) != (self.unlabeled == "unknown"):
                    raise ValueError(
                        f"{name}={value} with unlabeled={self.unlabeled!r}: give {name} for equal, uniform and "
                        "reversed, and leave it None for unknown"
                    )
            if self.unlabeled == "uniform" and self.gamma_u != 1:
                raise ValueError(f"gamma_u={self.gamma_u} with unlabeled='uniform': uniform means gamma_u = 1")
        if self.needs("source") and self.source is None:
            raise ValueError("source=None: rebalance='crt' starts from a trained network; give the folder of a "
                             "finished run as source")
        from_student = "daso" in self.rebalance and self.prototypes_from == "student"
        if from_student and "see_feats" not in LEARNERS[self.method].asks:
            raise ValueError(f"prototypes_from='student' with method={self.method!r}: its passes show labeled images "
                             "only mixed; choose prototypes_from='ema'")
        if self.nesterov and self.momentum == 0:
            raise ValueError("momentum=0.0 with nesterov=True: that is a kind of momentum; choose nesterov=False")
        if self._reads_histogram() and self.pretrain_steps < self.refresh_steps:
            raise ValueError(
                f"pretrain_steps={self.pretrain_steps} is smaller than refresh_steps={self.refresh_steps}: blending "
                "would start with an empty histogram (0/0); choose pretrain_steps >= refresh_steps, or a fixed_blend"
            )
        return self

    def _reads_histogram(self):
        """Whether DASO's blend follows the histogram in a head; a fixed one is the first head's alone, as published."""
        blends_second = "abc" in self.rebalance and self.abc_semantic
        return "daso" in self.rebalance and (self.fixed_blend is None or blends_second)

    def needs(self, what):
        """Whether a re-balancing method needs what `dasolib.rebalance.NEEDS` calls by this name."""
        return any(what in REBALANCERS[name].needs for name in self.rebalance)

    @property
    def generations(self):
        """How often training starts from scratch: 1 without CReST."""
        return self.n_generations if self.needs("generations") else 1

    @property
    def generation_steps(self):
        """Steps of a generation; without CReST those of the run."""
        return self.total_steps // self.generations

    def parts(self):
        """Names of the re-balancing methods that act, in table order: `rebalance`, and ReMixMatch's own alignment."""
        own = LEARNERS[self.method].aligns and self.alignment and not self._has_alignment()
        return tuple(name for name in REBALANCERS if name in self.rebalance or own and name == "distribution_alignment")

    def _has_alignment(self):
        return any("alignment" in REBALANCERS[name].roles for name in self.rebalance)

    def learner_settings(self):
        """Return the settings of the base learner's step, by name."""
        return {name: getattr(self, name) for name in LEARNERS[self.method].settings}

    def without_effect(self):
        """Return the settings that change nothing in this run, by name, with the reason."""
        learner = LEARNERS[self.method]
        own = {"alignment"} if learner.aligns and not self._has_alignment() else set()
        own |= {"source"} if self.needs("source") else set()
        own |= {"source", "unlabeled_counts"} if self.needs("unlabeled_counts") else set()
        used = {*learner.settings, *learner.draw_settings, *learner.memory_settings, *own}
        used |= {name for part in self.parts() for name in REBALANCERS[part].settings}
        specific = {name for line in (*LEARNERS.values(), *REBALANCERS.values()) for name in line.settings}
        specific |= {name for line in LEARNERS.values() for name in line.memory_settings}
        specific |= {"mixup_alpha", "alignment", "source", "unlabeled_counts"}
        combination = " + ".join((self.method, *self.rebalance))
        unused = {name: f"{combination} has no such setting" for name in specific - used}
        unused |= {name: reason for name, reason in learner.no_effect.items() if name in used}
        if not learner.views:
            unused["mu"] = f"{self.method} uses no unlabeled images"
        if not learner.ema:
            unused |= dict.fromkeys(("ema_decay", "ema_weight_decay"), f"{self.method} keeps no moving average")
        if self.network != "wrn":
            unused |= dict.fromkeys(("depth", "width"), f"network={self.network!r} has a depth and width of its own")
        if self.schedule != "multistep":
            unused |= dict.fromkeys(("milestones", "lr_decay"), f"schedule={self.schedule!r} has no milestones")
        if self.schedule != "cosine":
            unused["cosine_ratio"] = f"schedule={self.schedule!r} has no such ratio"
        if self.warmup_steps == 0:
            unused |= dict.fromkeys(("warmup_factor", "warmup_shape"), "there is no warm-up")
        if self.needs("unlabeled_counts") and self.unlabeled_counts is not None:
            unused["source"] = f"with unlabeled_counts={self.unlabeled_counts!r} no estimate is read"
        if "crt" in self.rebalance and self.crt_balancing == "batches":
            unused |= dict.fromkeys(("cb_beta", "reweight_warmup_steps"), "crt_balancing='batches' weighs no loss")
        if "abc" in self.rebalance and "daso" not in self.rebalance:
            unused["abc_semantic"] = "without daso there are no semantic labels"
        if self.fixed_blend is not None and not self._reads_histogram():
            unused["dist_temperature"] = "with a fixed_blend no histogram is used"
        if self.queue_sizing == "frequency":
            unused["queue_size"] = "queue_sizing='frequency' sizes queues by the labeled images of their class"
        if self.prototypes_from == "student":
            unused["ema_train_mode"] = "the prototypes come from the student"
        unused.pop("total_steps", None)  # whoever names it as a setting, every run has a length
        return unused

    def identity(self):
        """Everything that makes this run another run, as JSON types: what has an effect, but not `NOT_IDENTITY`."""
        values = self.model_dump(mode="json", exclude={*NOT_IDENTITY, *self.without_effect()})
        values = {name: value for name, value in values.items() if (name, value) not in YOUNGER.items()}
        values["dataset"] = dataset_name(self.dataset)  # the path of the data is not part of it
        own = {name: REBALANCERS[name].own_settings for name in self.rebalance if REBALANCERS[name].own_settings}
        if own:
            values["own_settings"] = own
        if self.needs("source"):
            values["source"] = Path(self.source).name  # nor is that of a run
        else:
            values.pop("source", None)  # the class counts that are found there are, see `dasolib.sources`
        return values

    def run_name(self):
        """``<dataset>-<method>-<rebalance>-s<seed>-<8 hex>``, the last part a hash of `identity`."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]
        parts = [dataset_name(self.dataset), self.method, *self.rebalance, f"s{self.seed}", digest]
        return "-".join(parts)


def _plain(value):
    """Return a NumPy number as Python's own, an array as a list, and everything else as it is."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _whole(value):
    """Return a whole number as an int, be it text such as 1e3 of YAML 1.1, and everything else as it is."""
    value = _plain(value)
    if isinstance(value, str):
        try:
            value = float(value) if {*".eE"} & {*value} else int(value)
        except ValueError:  # no number
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def has_control_characters(text):
    """Whether a name holds a NUL, a line break or another control character, which no path or table takes well."""
    return any(unicodedata.category(each) == "Cc" for each in text)


def dataset_name(dataset):
    """Name of a data set: the name itself, or the stem of a path.

    Examples
    --------
    >>> dataset_name("cifar10"), dataset_name("data/cifar10.npz"), dataset_name("photos/birds/")
    ('cifar10', 'cifar10', 'birds')
    """
    return Path(dataset).name.removesuffix(".npz")


# The paper's data sets (section 4.1, table 1), and the embedded one; other data keep their natural imbalance.
SPLITS = {
    "cifar10": {"n1": 1500, "m1": 3000, "gamma_l": 100, "n_val": 5000},
    "cifar100": {"n1": 150, "m1": 300, "gamma_l": 10, "n_val": 5000},
    "stl10": {"n1": 150, "gamma_l": 10, "n_val": 500, "unlabeled": "unknown", "train_resolution": 32},
    "mnist5k": {"n1": 60, "m1": 300, "gamma_l": 30, "n_val": 0, "unlabeled": "reversed", "flip": False},
} | dict.fromkeys(("semi_aves", "semi_aves_unknown"), {
    "unlabeled": "unknown", "resolution": 256, "train_resolution": 224, "crop": "resized", "network": "resnet34",
    "n_generations": 3, "crest_alpha": 1 / 0.7,
})
SEMI_AVES = {"semi_aves": 26_640, "semi_aves_unknown": 26_640 + 122_208}  # unlabeled images, which make an epoch
SEMI_AVES_LABELED, SEMI_AVES_EPOCHS = 5959, 90
PRESETS = {"paper": 250_000, "cpu": 10_000}  # steps of a run


def same_distribution(unlabeled, gamma_l, gamma_u):
    """Whether labeled and unlabeled classes are made equally imbalanced, in the same order; shares may still differ.

    Examples
    --------
    >>> same_distribution("equal", 100, 100), same_distribution("reversed", 100, 100)
    (True, False)
    """
    return unlabeled == "equal" and gamma_l == gamma_u or unlabeled == "uniform" and gamma_l == 1


def paper_dist_temperature(dataset, unlabeled, gamma_l, gamma_u):
    """T_dist as the paper sets it: 1.5 for CIFAR10-LT with gamma_u = gamma_l, .5 for Semi-Aves, .3 everywhere else.

    Examples
    --------
    >>> paper_dist_temperature("cifar10", "equal", 100, 100), paper_dist_temperature("cifar10", "reversed", 100, 100)
    (1.5, 0.3)
    """
    if dataset in SEMI_AVES:
        return 0.5
    return 1.5 if dataset == "cifar10" and same_distribution(unlabeled, gamma_l, gamma_u) else 0.3


def paper_unlabeled_counts(dataset, unlabeled, gamma_l, gamma_u):
    """Return what DARP aims at as published: the label frequency on Semi-Aves and for equal imbalance, else None.

    Examples
    --------
    >>> paper_unlabeled_counts("cifar10", "equal", 100, 100), paper_unlabeled_counts("stl10", "unknown", 10, None)
    ('label_frequency', None)
    """
    natural = dataset in SEMI_AVES and gamma_l is None
    return LABEL_FREQUENCY if natural or same_distribution(unlabeled, gamma_l, gamma_u) else None


def paper_alignment(dataset, rebalance):
    """Whether ReMixMatch aligns distributions as the paper sets it: not on STL10-LT, nor with DASO on CIFAR10-LT.

    Examples
    --------
    >>> paper_alignment("cifar10", ()), paper_alignment("cifar10", ("daso",)), paper_alignment("cifar100", ("daso",))
    (True, False, True)
    """
    return dataset != "stl10" and not (dataset == "cifar10" and "daso" in rebalance)


# Weight of the unlabeled loss, and the share of a training (a generation, with CReST) over which it is reached.
LAMBDA_U = {"mean_teacher": 50.0, "mixmatch": 100.0, "remixmatch": 1.5}
RAMP_SHARE = {"pseudo_label": 0.4, "mean_teacher": 0.4, "mixmatch": 0.016, "remixmatch": 0.016}


def paper_settings(dataset, method, rebalance, total_steps):
    """Return the paper's settings (section 4.1 and appendix), which depend on method and length; `Config` names them.

    Parameters
    ----------
    dataset : str
        As `dataset_name` gives it.
    method : str
        A base learner.
    rebalance : tuple of str
        In table order.
    total_steps : int
        T.

    Returns
    -------
    dict
    """
    supervised = not LEARNERS[method].views and not LEARNERS[method].estimates  # published estimates were made so
    return {
        "resolution": None, "n1": None, "m1": None, "gamma_l": None, "n_val": 0, "labeled_indices": None,
        "skip_unreadable": False,
        "unlabeled": "equal" if dataset in SPLITS else "unknown", "flip": True, "crop": "padded",
        "train_resolution": None, "network": "wrn", "depth": 28, "width": 2,
        "batch_size": 64, "mu": 2 if method == "fixmatch" else 1,
        "lr": 0.1 if supervised else 0.03, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4,
        "schedule": "multistep" if supervised else "constant",
        "warmup_steps": int(0.025 * total_steps) if supervised else 0, "warmup_factor": 0.0,
        "warmup_shape": "linear",
        "milestones": (int(0.8 * total_steps), int(0.9 * total_steps)) if supervised else (),
        "lr_decay": 0.01, "cosine_ratio": 7, "ema_decay": 0.999, "ema_weight_decay": 0.0,
        "threshold": 0.95, "lambda_u": LAMBDA_U.get(method, 1.0),
        "ramp_shape": "linear",
        "sharpen_temperature": 0.5, "mixup_alpha": 0.75 if method == "remixmatch" else 0.5,
        "lambda_premixup": 0.5, "lambda_rotation": 0.5, "alignment": paper_alignment(dataset, rebalance),
        "similarity_threshold": 0.85, "lambda_mi": 0.1, "queue_ratio": QUEUE_RATIO,
        "source": None, "alignment_window": 128, "alignment_temperature": 1.0, "alignment_eps": 1e-6,
        "darp_warmup_steps": int(0.4 * total_steps), "darp_period": 10, "darp_alpha": 2.0,
        "darp_iterations": 10, "darp_newton_iterations": 30, "darp_newton_tolerance": 0.1,
        "n_generations": 5, "crest_alpha": 3.0, "crest_t_min": 0.5,
        "abc_epoch_steps": 500, "abc_epochs": total_steps / 500, "abc_semantic": True, "boss_drop": 0.25,
        "la_tau": 1.0, "cb_beta": 0.999, "ldam_max_margin": 0.5, "ldam_scale": 30.0,
        "reweight_warmup_steps": int(0.8 * total_steps) if "ldam_drw" in rebalance else 0, "crt_balancing": "weights",
        "pretrain_steps": 500 if method == "usadtm" else 5000, "refresh_steps": 100, "proto_temperature": 0.05,
        "fixed_blend": None, "lambda_align": 1.0, "queue_size": 256, "queue_sizing": "balanced",
        "prototypes_from": "ema", "ema_train_mode": True,
        "eval_steps": 500, "eval_images": None, "precision": "fp32", "channels_last": False,
        "compile": False,
    }


def semi_aves_steps(dataset, method, batch_size, mu):
    """Count the steps of 90 epochs; one is as many whole steps as come nearest to all unlabeled images once.

    For a supervised run they are the 5,959 labeled ones: its published result is the same with and without unlabeled
    images of unknown class.

    Examples
    --------
    >>> [semi_aves_steps(name, "fixmatch", 256, 5) // 90 for name in ("semi_aves", "semi_aves_unknown")]
    [21, 116]
    """
    if LEARNERS[method].views:
        return SEMI_AVES_EPOCHS * max(1, round(SEMI_AVES[dataset] / (mu * batch_size)))
    return SEMI_AVES_EPOCHS * max(1, round(SEMI_AVES_LABELED / batch_size))


def semi_aves_settings(method, total_steps):
    """Return what Semi-Aves changes in the paper's settings: another optimizer, and periods in epochs.

    Published are batch sizes, rates, decays, the EMA's decay, 90 epochs, 5 of them for warm-up, a tenth of the rate
    after 30 and 60, an evaluation after each, DASO's start after 20 and its histogram anew in each; of CReST 3
    generations of 30 epochs, with a selection exponent of 0.7 and a warm-up of 5 epochs in each generation. An epoch is
    a ninetieth of `total_steps` here, so that shorter runs keep these shares. The rate inside a generation is not
    printed: milestones count epochs of the generation, as in the published scheduler, so that one of 30 epochs never
    drops. Ours are the start of the warm-up at 0, ABC's count of such epochs, and the preparation of images: they are
    held as central squares of 256 pixels, crops are parts of those, the test sees all of them at 224 pixels, and strong
    views have RandAugment and Cutout as on the other data sets. Whatever else is in steps stays as it is.

    Examples
    --------
    >>> {name: semi_aves_settings("fixmatch", 1890)[name] for name in ("milestones", "pretrain_steps")}
    {'milestones': (630, 1260), 'pretrain_steps': 420}
    """
    def epochs(n):
        return total_steps * n // SEMI_AVES_EPOCHS

    epoch = max(1, epochs(1))
    return {
        "batch_size": 256, "mu": 5, "lr": 0.04 if LEARNERS[method].views else 0.1, "weight_decay": 3e-4,
        "schedule": "multistep", "warmup_steps": epochs(5), "milestones": (epochs(30), epochs(60)), "lr_decay": 0.1,
        "ema_decay": 0.9, "eval_steps": epoch, "refresh_steps": epoch,
        "abc_epoch_steps": epoch, "abc_epochs": total_steps / epoch,
    } | ({} if method == "usadtm" else {"pretrain_steps": max(epoch, epochs(20))})


def cpu_settings(method, total_steps):
    """Return what the CPU preset changes in the paper's: a small network, and periods that fit a short run.

    With T far below 250,000 the paper's constants cannot act, so they are scaled: an evaluation every T / 100 steps,
    rounded up, all but the last 20 on 2,000 test images, a faster moving average, and P and the histogram's period as
    shares of T.

    Examples
    --------
    >>> {name: cpu_settings("fixmatch", 10_000)[name] for name in ("eval_steps", "refresh_steps", "pretrain_steps")}
    {'eval_steps': 100, 'refresh_steps': 100, 'pretrain_steps': 200}
    """
    period = max(1, -(-total_steps // 100))
    return {
        "depth": 10, "width": 1, "batch_size": 32, "precision": "bf16", "channels_last": True, "ema_decay": 0.99,
        "eval_steps": period, "eval_images": 2000, "refresh_steps": period,
        "pretrain_steps": int(0.002 * total_steps) if method == "usadtm" else max(int(0.02 * total_steps), period),
        "abc_epoch_steps": period, "abc_epochs": total_steps / period,
    }


def fastest_precision():
    """Precision in which this CPU trains fastest: ``bf16`` where it multiplies such numbers itself, else ``fp32``.

    On x86 that is AVX-512 with bf16. On others bf16 takes longer than fp32: `python -m benchmarks.step`.
    """
    if not torch.backends.mkldnn.is_available():
        return "fp32"
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    fast = torch.cpu._is_avx512_bf16_supported() if is_x86 else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if fast else "fp32"


def available_cores():
    """CPU cores that this process may use; all of the machine's where the system does not tell, as on macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def make_config(preset="cpu", *, dataset, method, rebalance=(), seed=0, total_steps=None, threads=None, device="auto",
                **changes):
    """Build a `Config` from a preset and what shall differ from it.

    Parameters
    ----------
    preset : {"cpu", "paper"}
        ``cpu``: WRN-10-1, B = 32, 10,000 steps.
        ``paper``: WRN-28-2, B = 64, mu = 2, 250,000 steps; for Semi-Aves ResNet-34, B = 256, mu = 5, 90 epochs.
    dataset : str
        A name of `dasolib.data`, or a path; a file or folder called like a known set gets its split settings.
    method, rebalance, seed
        As in `Config`; `rebalance` may be a comma-separated string.
    total_steps, threads : int, optional
        Default: the preset's length (in whole generations), and the number of CPU cores this process may use.
    device : str
        ``auto`` takes a GPU if there is one.
    **changes
        Any other field of `Config`.

    Returns
    -------
    Config

    Raises
    ------
    ValueError
        Naming the argument, its value and the choices; also for a change that would have no effect.

    Examples
    --------
    >>> config = make_config("cpu", dataset="mnist5k", method="fixmatch", rebalance="daso", total_steps=600)
    >>> config.n1, config.unlabeled, config.pretrain_steps, config.dist_temperature
    (60, 'reversed', 12, 0.3)
    """
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r}: choose one of {', '.join(PRESETS)}")
    if not isinstance(dataset, str) or not dataset:
        raise ValueError(f"dataset={dataset!r}: must be the name of a data set, or a path as text")
    given_steps, total_steps = total_steps, _whole(total_steps)
    is_count = isinstance(total_steps, int) and not isinstance(total_steps, bool) and total_steps >= 1
    if total_steps is not None and not is_count:
        raise ValueError(f"total_steps={given_steps!r}: must be a whole number >= 1")
    rebalance = parse_rebalance(rebalance)
    check_combination(method, rebalance)
    unknown = sorted(set(changes) - set(Config.model_fields))
    if unknown:
        choices = ", ".join(Config.model_fields)
        raise ValueError(f"{unknown[0]}={changes[unknown[0]]!r}: no such setting; choose from {choices}")
    name = dataset_name(dataset)
    given = SPLITS.get(name, {}) | changes
    restarts = any("generations" in REBALANCERS[part].needs for part in rebalance)
    n_generations = _count(given, "n_generations", 5) if restarts else 1
    if total_steps is None:
        total_steps = PRESETS[preset]
        if preset == "paper" and name in SEMI_AVES:
            total_steps = semi_aves_steps(name, method, _count(changes, "batch_size", 256), _count(changes, "mu", 5))
        total_steps = total_steps * (2 if "crt" in rebalance else 5) // 5  # a new head takes 100,000 in the paper
        total_steps = max(total_steps - total_steps % n_generations, n_generations)
    settings = paper_settings(name, method, rebalance, total_steps)
    settings |= semi_aves_settings(method, total_steps) if name in SEMI_AVES else {}
    settings |= cpu_settings(method, total_steps) if preset == "cpu" else {}
    settings |= given
    if "gamma_u" not in settings:
        settings["gamma_u"] = {"uniform": 1.0, "unknown": None}.get(settings["unlabeled"], settings["gamma_l"])
    relevant = (settings["unlabeled"], settings["gamma_l"], settings["gamma_u"])
    settings = {"dist_temperature": paper_dist_temperature(name, *relevant),
                "unlabeled_counts": paper_unlabeled_counts(name, *relevant)} | settings
    if "ramp_steps" not in settings:
        settings["ramp_steps"] = RAMP_SHARE.get(method, 1.0) * total_steps / n_generations
    threads = threads if threads is not None else available_cores()
    try:
        config = Config(dataset=dataset, method=method, rebalance=rebalance, seed=seed, total_steps=total_steps,
                        threads=threads, device=device, **settings)
    except ValidationError as error:
        raise ValueError(_readable(error)) from None
    n_devices = torch.cuda.device_count()
    if config.device.startswith("cuda") and int(config.device.partition(":")[2] or 0) >= n_devices:
        raise ValueError(f"device={device!r}: torch finds {n_devices} CUDA devices here; {DEVICES}")
    for part in (method, *rebalance):
        name, lead, never = STARTS.get(part, (None, 0, ""))
        if name and getattr(config, name) - lead >= config.generation_steps:
            length = ("generation_steps" if restarts else "total_steps") + f"={config.generation_steps}"
            warnings.warn(f"{name}={getattr(config, name)} is not below {length}: {never} in this run", stacklevel=2)
    for name, reason in config.without_effect().items():
        if name in changes:
            raise ValueError(f"{name}={changes[name]!r} would change nothing: {reason}")
    return config


# The setting that says from which step on a method acts, how many steps before it does, and what a shorter run lacks.
STARTS = {
    "daso": ("pretrain_steps", 0, "DASO will change no pseudo-label"),
    "usadtm": ("pretrain_steps", 0, "no pseudo-label will count"),
    "darp": ("darp_warmup_steps", 0, "DARP will change no pseudo-label"),
    "cb": ("reweight_warmup_steps", 1, "class weights will not act"),
    "crt": ("reweight_warmup_steps", 1, "class weights will not act"),
    "ldam_drw": ("reweight_warmup_steps", 1, "class weights and margins will not act"),
}


def _count(changes, name, otherwise):
    """Return a changed setting, or `otherwise` where it is not changed, or is no count and will be refused."""
    try:
        value = TypeAdapter(int).validate_python(_whole(changes[name]))  # "128" and 128.0, too, as `Config` takes them
    except (KeyError, ValidationError):
        return otherwise
    return value if value >= 1 else otherwise


def _readable(error):
    """One line for each wrong setting: its name, its value and what would be right."""
    problems = error.errors()
    lines = [] if len(problems) <= 20 else [f"{len(problems)} wrong values, of which the first are"]
    for problem in problems[:20]:
        message = problem["msg"].removeprefix("Value error, ")
        place = ".".join(str(part) for part in problem["loc"])
        value = repr(problem["input"])
        value = value if len(value) <= 300 else f"{value[:100]} ..."
        lines.append(f"{place}={value}: {message}" if place else message)
    return "\n".join(lines)


def check_parameters(cells):
    r"""Refuse a parameter that a notebook does not declare, or no mapping for one; papermill itself only warns.

    Parameters
    ----------
    cells : list of str
        The code run so far, IPython's ``In``: the cell that declares the parameters with types, and after it,
        if papermill injected one, the cell that begins with ``# Parameters``.

    Raises
    ------
    ValueError
        Naming the parameter, its value and the declared ones.

    Examples
    --------
    >>> check_parameters(["seed: int = 0", "# Parameters\nsead = 1"])
    Traceback (most recent call last):
    ValueError: sead=1: this notebook has no such parameter; choose from seed
    """
    declared = {}
    for cell in cells:
        if cell.startswith("# Parameters\n"):
            for node in ast.parse(cell).body:
                if not isinstance(node, ast.Assign):
                    continue
                name, value = node.targets[0].id, ast.unparse(node.value)
                if name not in declared:
                    if name in Config.model_fields and "settings" in declared:
                        choices = f"give it as one of the settings, with papermill -y 'settings: {{{name}: ...}}'"
                    else:
                        choices = f"choose from {', '.join(declared)}"
                    raise ValueError(f"{name}={value}: this notebook has no such parameter; {choices}")
                kind = ast.unparse(declared[name].annotation)
                text = node.value.value if isinstance(node.value, ast.Constant) else ""
                if kind == "str" and not isinstance(text, str | None):
                    raise ValueError(f"{name}={value}: must be text, where papermill's -p {name} makes a number or "
                                     f"truth value of it; give it with -r {name}"
                                     + (f"; {DEVICES}" if name == "device" else ""))
                if kind == "dict" and not isinstance(node.value, ast.Dict):
                    raise ValueError(f"{name}={value}: must be a mapping; with papermill -y '{name}: {{lr: 0.1}}'")
        elif not declared:
            tree = _parse_or_none(cell)
            nodes = tree.body if tree else []
            declared = {n.target.id: n for n in nodes if isinstance(n, ast.AnnAssign)}


def _parse_or_none(cell):
    try:
        return ast.parse(cell)
    except SyntaxError:  # a cell with IPython magics declares no parameters
        return None
