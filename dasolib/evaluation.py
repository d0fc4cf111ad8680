"""What a trained network is worth: test counts along the way, stored outputs, and the numbers that are reported."""

import math
import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dasolib.diagnostics import accuracy as accuracy_of
from dasolib.diagnostics import class_groups, confusion_counts, recall
from dasolib.estimate import estimate_unlabeled_counts
from dasolib.pseudo_labels import PseudoLabels
from dasolib.rebalance.logit_adjustment import adjust_for_balanced_test
from dasolib.residency import send
from dasolib.seeds import host_generator

LAST = 20  # evaluations whose median is reported: the paper's protocol
# Images that are predicted at once. On a CPU the activations should stay in its cache: 500 at once take up to 1.8 times
# as long. A GPU needs enough of them to be busy for longer than the host takes to launch its kernels.
PREDICT_BATCH = {"cpu": 100, "cuda": 500}
STORED_FEATURES = 5000  # images whose features are kept


@torch.no_grad()
def predict(net, images, normalize):
    """Features and logits of images that are not augmented.

    Parameters
    ----------
    net : dasolib.models.Network
        Used in eval mode and left in the mode it was in.
    images : Tensor of shape (N, C, H, W)
        uint8, on the device of `net` or on the host.
    normalize : callable
        uint8 images -> what the network takes.

    Returns
    -------
    feats : Tensor of shape (N, feat_dim)
    logits : Tensor of shape (N, K)

    Raises
    ------
    FloatingPointError
        If one of the logits is NaN or infinite.
    """
    device = next(net.parameters()).device
    was_training, feats, done = net.training, None, 0
    net.eval()
    for part in images.split(PREDICT_BATCH[device.type]):
        # From the host, a part is copied while a GPU works on the one before.
        part = net.features(normalize(send(part, device)))
        if feats is None:  # once for all: small results between large temporaries would leave holes in the memory
            feats = part.new_empty(len(images), part.shape[1])
        feats[done:done + len(part)] = part
        done += len(part)
    net.train(was_training)
    logits = net.predict(feats)
    if not logits.isfinite().all():
        raise FloatingPointError(f"the logits of {int((~logits.isfinite()).any(dim=1).sum())} of {len(images)} images "
                                 "are not finite")
    return feats, logits


class TestSet:
    """The test images, and a fixed part of them for the evaluations along the way.

    Parameters
    ----------
    data : dasolib.data.ImageData
    config : dasolib.config.Config
    prior : Tensor of shape (K,)
        Labeled class shares, for logit adjustment at test time.
    normalize : callable
        uint8 images -> what the network takes.
    home : torch.device
        Where the images live.
    """

    __test__ = False  # the name is not for pytest

    def __init__(self, data, config, prior, normalize, home):
        self.config, self.prior, self.normalize = config, prior, normalize
        self.images, self.target = data.x_test.to(home), data.y_test.to(home)
        n = len(self.images) if config.eval_images is None else min(config.eval_images, len(self.images))
        rows = torch.randperm(len(self.images), generator=host_generator(0, "evaluation"))[:n]  # the same in every run
        self.part = rows.sort().values.to(home)

    def evaluate(self, net, *, step):
        """Count true against predicted class after `step` steps, on all test images if it is one of the last 20 times.

        Returns
        -------
        plain, adjusted : ndarray of shape (K, K)
            Without and with logit adjustment of the predictions.
        """
        is_among_last = math.ceil((self.config.total_steps - step) / self.config.eval_steps) < LAST
        rows = slice(None) if is_among_last else self.part
        logits = predict(net, self.images[rows], self.normalize)[1]
        k, target = logits.shape[1], self.target[rows].to(logits.device)
        predicted = (logits.argmax(dim=-1), adjust_for_balanced_test(logits, self.prior).argmax(dim=-1))
        return tuple(confusion_counts(target, classes, k)[:k].cpu().numpy() for classes in predicted)


def share_correct(net, images, target, normalize):
    """Share of images whose most likely class is theirs; of validation images it is what settings are chosen on.

    Parameters
    ----------
    net : dasolib.models.Network
    images : Tensor of shape (N, C, H, W), uint8
    target : Tensor of shape (N,)
    normalize : callable
        uint8 images -> what the network takes.

    Returns
    -------
    float
        In [0, 1].
    """
    predicted = predict(net, images, normalize)[1].argmax(dim=-1)
    return (predicted.cpu() == target.cpu()).double().mean().item()


class PseudoLabeled(NamedTuple):
    """What the evaluated network says of the unlabeled images, in their order."""

    feats: Tensor  # (U, feat_dim)
    probs: Tensor  # (U, K) of the head that predicts, as it is tested
    labels: PseudoLabels  # (U, K) each


def pseudo_label(training, test, batches, *, t):
    """Pseudo-label all unlabeled images, not augmented, with the evaluated network.

    Parameters
    ----------
    training : dasolib.train.Training
    test : TestSet
    batches : dasolib.batches.Batches
    t : int
        Step (from 0) as which the re-balancing methods refine the labels; before DASO's start they stay linear.

    Notes
    -----
    The re-balancing methods keep their state: nothing is counted, queued or averaged in.

    Returns
    -------
    PseudoLabeled or None
        None if there are no unlabeled images.
    """
    if len(batches.u) == 0:
        return None
    feats, logits = predict(training.evaluated, batches.u, test.normalize)
    rows = torch.arange(len(batches.u), device=feats.device)
    probs = logits.softmax(dim=-1)
    if training.memory is not None:  # the base learner has labels of its own
        return PseudoLabeled(feats, probs, training.memory.pseudo_label(probs, feats))
    labels = training.rebalance.refine_predicted(probs, feats, rows, t, temperature=training.temperature)
    return PseudoLabeled(feats, probs, labels)


def estimate_counts(net, batches, test):
    """Estimate the class counts of the unlabeled images, as one line of ``metrics.jsonl`` holds it.

    Parameters
    ----------
    net : dasolib.models.Network
    batches : dasolib.batches.Batches
        With held-out images. Unlabeled images beyond the last whole batch are not counted, as published; where there
        is none, all are.
    test : TestSet

    Returns
    -------
    dict
        ``unlabeled_estimate``: K numbers that sum to the images counted, or None for an estimate that is not accepted.
    """
    images, target = batches.held_out
    whole = batches.u[:len(batches.u) // batches.config.batch_size * batches.config.batch_size or None]
    held_out, unlabeled = (predict(net, part, test.normalize)[1].softmax(dim=-1) for part in (images, whole))
    estimate = estimate_unlabeled_counts(held_out.cpu(), target.cpu(), unlabeled.cpu())
    return {"unlabeled_estimate": estimate.counts.tolist() if estimate.accepted else None}


def predictions(probs, labels, class_names, *, index, files=None):
    """Tabulate the most likely class of each unlabeled image, as ``predictions.csv`` holds it.

    Warns about names that a spreadsheet takes for formulas: they are not changed, as they name files and classes.

    Parameters
    ----------
    probs : Tensor of shape (U, K)
        Of the network that is tested and stored.
    labels : Tensor of shape (U, K)
        Final pseudo-labels, which the method makes of them.
    class_names : sequence of K str
    index : ndarray of shape (U,)
        Position of each image in the training images or in the separate pile.
    files : sequence of U str, optional
        Their names, where images have one.

    Returns
    -------
    DataFrame
        ``index``, ``file`` (only if there are names); ``predicted``, a class by its name, and ``confidence`` in [0, 1],
        its probability; ``pseudo_label`` and ``pseudo_label_confidence`` likewise.

    Examples
    --------
    >>> predictions(torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.5]]), ("cat", "dog"), index=np.array([7]))
       index predicted  confidence pseudo_label  pseudo_label_confidence
    0      7       dog        0.75          cat                      0.5
    """
    names, columns = np.array(class_names), {"index": index} | ({} if files is None else {"file": files})
    if formulas := [name for name in (*class_names, *(files or ())) if name[:1] in {*"=+-@\t\r"}]:
        warnings.warn(f"predictions.csv: a spreadsheet takes {len(formulas)} names for formulas, the first of them "
                      f"{formulas[0]!r}; open it there only with these columns imported as text", stacklevel=2)
    for name, values in {"predicted": probs, "pseudo_label": labels}.items():
        confidence, likely = (each.cpu().numpy() for each in values.max(dim=-1))
        prefix = "" if name == "predicted" else f"{name}_"
        columns |= {name: names[likely], f"{prefix}confidence": confidence}
    return pd.DataFrame(columns)


def outputs(training, test, batches, pseudo_labeled):
    """Return what the evaluated network says of test and unlabeled images, as arrays for ``outputs.npz``.

    Parameters
    ----------
    training : dasolib.train.Training
    test : TestSet
    batches : dasolib.batches.Batches
    pseudo_labeled : PseudoLabeled or None
        From `pseudo_label`.

    Returns
    -------
    dict of str to ndarray
        ``test_logits`` (M, K) float32, ``test_target`` (M,); ``unlabeled_index`` (U,) position in the training images
        or in the separate pile, ``unlabeled_target`` (U,) with -1 for unknown, ``linear``, ``semantic`` (where the
        method has it) and ``final`` probabilities (U, K) float16; ``feats`` (at most 5000, feat_dim) float16 and
        ``feats_row`` their rows among the unlabeled images.

    Raises
    ------
    FloatingPointError
        If a number is NaN or infinite, or a feature too large for float16.
    """
    arrays = {"test_logits": predict(training.evaluated, test.images, test.normalize)[1], "test_target": test.target,
              "unlabeled_index": torch.as_tensor(batches.unlabeled_index), "unlabeled_target": batches.u_target}
    if pseudo_labeled is not None:
        feats, _, labels = pseudo_labeled
        by_kind = {"linear": labels.linear, "semantic": labels.semantic, "final": labels.final}
        arrays |= {kind: probs.half() for kind, probs in by_kind.items() if probs is not None}
        rows = torch.randperm(len(feats), generator=host_generator(0, "stored features"))
        rows = rows[:STORED_FEATURES].sort().values
        arrays |= {"feats_row": rows, "feats": feats[rows.to(feats.device)].half()}
    if bad := [name for name, tensor in arrays.items() if not tensor.isfinite().all()]:
        raise FloatingPointError(f"outputs.npz: {', '.join(bad)} would not be finite")
    return {name: tensor.cpu().numpy() for name, tensor in arrays.items()}


def describe(record):
    """Write a line of ``metrics.jsonl`` for people: accuracy, and the mask rate of a method with pseudo-labels.

    Examples
    --------
    >>> describe({"accuracy": 0.4832, "mask_rate": 0.0712}), describe({"accuracy": 0.4832, "mask_rate": None})
    ('48.3 %, mask rate 0.07', '48.3 %')
    """
    rate = record.get("mask_rate")
    return f"{100 * record['accuracy']:.1f} %" + ("" if rate is None else f", mask rate {rate:.2f}")


def summarize(metrics, counts, labeled_counts):
    """Summarise a finished run as ``result.json`` holds it.

    Parameters
    ----------
    metrics : list of dict
        The lines of ``metrics.jsonl``.
    counts : dict of str to sequence of ndarray
        ``test`` and ``test_adjusted`` of each evaluation, as `dasolib.run_folder.read_counts` returns them.
    labeled_counts : list of K int
        Labeled images of each class; their rank decides what head, medium and tail are.

    Returns
    -------
    dict
        For ``plain`` and ``adjusted`` (logit adjustment at test time): ``accuracy`` (the median of the last 20
        evaluations, the paper's number), ``last``, ``best`` (over all evaluations, at step ``best_step``, on
        ``best_images`` test images: never used to choose anything), and medians of the last 20 for ``per_class``
        (None for a class without test images), their mean ``balanced``, and ``groups``; beside them ``mask_rate``, the
        mean share of pseudo-labels in the loss over the windows of the same 20, None for a method without
        pseudo-labels. All in [0, 1].
    """
    groups = class_groups(labeled_counts)
    rates = [record["mask_rate"] for record in metrics[-LAST:] if record.get("mask_rate") is not None]
    result = {"steps": metrics[-1]["step"], "evaluations": len(metrics), "seconds": metrics[-1]["seconds"],
              "mask_rate": float(np.mean(rates)) if rates else None, "labeled_counts": labeled_counts}
    for name, key in (("plain", "test"), ("adjusted", "test_adjusted")):
        curve = [float(accuracy_of(table)) for table in counts[key]]
        best = int(np.argmax(curve))
        per_class = np.array([recall(table) for table in counts[key][-LAST:]])  # (at most 20, K)
        has_images = ~np.isnan(per_class[-1])
        members = {group: [k for k in classes if has_images[k]] for group, classes in groups.items()}
        result[name] = {
            "accuracy": float(np.median(curve[-LAST:])),
            "last": curve[-1],
            "best": curve[best],
            "best_step": metrics[best]["step"],
            "best_images": metrics[best]["test_images"],
            "balanced": float(np.median(per_class[:, has_images].mean(axis=1))),
            "per_class": [float(np.median(column)) if ok else None
                          for column, ok in zip(per_class.T, has_images, strict=True)],
            "groups": {group: float(np.median(per_class[:, classes].mean(axis=1)))
                       for group, classes in members.items() if classes},
        }
    return result
