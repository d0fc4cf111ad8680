"""What a run takes from an earlier one: cRT its trained network, DARP the estimated class counts."""

import hashlib
import json
import math
import shlex
import warnings
from typing import NamedTuple

import torch
from safetensors import torch as safetensors
from torch import Tensor

from dasolib.batches import make_split
from dasolib.config import LABEL_FREQUENCY, YOUNGER
from dasolib.models import build_network
from dasolib.run_files import DamagedError, read_checked, read_config, read_result
from dasolib.run_folder import project_root, resolve

SAME_SPLIT = ("seed", "n1", "m1", "gamma_l", "gamma_u", "unlabeled", "n_val", "labeled_indices", "data_sha256")
SAME_NETWORK = ("network", "depth", "width")
NETWORK = "model.safetensors"  # of a run folder
NAMED = 3  # weights that a refusal names; of further ones it gives the number


class TrainedNetwork(NamedTuple):
    """The network that cRT starts from."""

    weights: dict[str, Tensor]  # of the encoder, as evaluated in the run they come from
    record: str  # SHA-256 of the file, for config.json


class UnlabeledCounts(NamedTuple):
    """How many unlabeled images each class should get."""

    counts: Tensor  # (K,) float64, which sum to U
    record: list | None  # the estimate they come from, for config.json; None where data and settings say them


def trained_network(config, data):
    """Load the encoder that a run starts from; None for a run that trains its own.

    Parameters
    ----------
    config : dasolib.config.Config
        Names the folder as ``source``.
    data : dasolib.data.ImageData

    Raises
    ------
    ValueError
        If the source is no run, is not finished, had other data, another split, or another network, or its file does
        not hold exactly the weights of the encoder, all of them finite.
    """
    if not config.needs("source"):
        return None
    folder = resolve(config.source)
    record = _finished(folder)
    _check_same(folder, record, config, data, (*SAME_SPLIT, *SAME_NETWORK))
    file = folder / NETWORK
    if not file.exists():
        raise ValueError(f"source={config.source!r} has no {file.name}: committed results come without the network; "
                         "run it again in another folder")
    content = read_checked(folder, NETWORK, read_result(folder))
    try:
        weights = _encoder(safetensors.load(content))
    except Exception as error:  # whatever damage makes of a file
        raise DamagedError(folder, NETWORK, f"no weights can be read from it: {type(error).__name__}") from None
    net = build_network(config, n_classes=data.n_classes, in_channels=data.x_train.shape[1], heads={}, predictor=None,
                        generator=torch.Generator())
    wrong = _differences(weights, _encoder(net.state_dict()))
    if wrong:
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise ValueError(f"source={config.source!r}: {file} is not the network of this run: "
                         f"{'; '.join(wrong[:NAMED])}{more}; run it again in another folder")
    return TrainedNetwork(weights, hashlib.sha256(content).hexdigest())


def _encoder(weights):
    return {name: weight for name, weight in weights.items() if not name.startswith(("head.", "heads."))}


def _differences(weights, expected):
    """Say of each weight what keeps it from taking the place of the expected one."""
    found = [f"no {name}" for name in expected if name not in weights]
    for name, weight in weights.items():
        there = f"{weight.dtype} {tuple(weight.shape)}".removeprefix("torch.")
        if name not in expected:
            found.append(f"unknown {name}")
        elif (weight.dtype, weight.shape) != (expected[name].dtype, expected[name].shape):
            here = f"{expected[name].dtype} {tuple(expected[name].shape)}".removeprefix("torch.")
            found.append(f"{name} is {there}, not {here}")
        elif not weight.isfinite().all():
            found.append(f"{name} is not finite")
    return found


def unlabeled_counts(config, data, labeled_counts, n_unlabeled):
    """Class counts of the unlabeled images that a run aims at; None for a run that aims at none.

    ``unlabeled_counts`` gives them up to a factor: the labeled images' or its own numbers. Where it is None, a finished
    run of ``method="distribution_estimate"`` on the same split has them: the one that ``source`` names, or else the one
    under ``runs/``.

    Parameters
    ----------
    config : dasolib.config.Config
    data : dasolib.data.ImageData
    labeled_counts : Tensor of shape (K,)
    n_unlabeled : int
        U.

    Raises
    ------
    ValueError
        If not as many numbers are given as there are classes, or there is no such run, several disagree, one holds
        anything else than a finite count >= 0 for each class, or none of its estimates was accepted.
    """
    if not config.needs("unlabeled_counts"):
        return None
    estimate = None
    if config.unlabeled_counts is None:
        counts = estimate = _estimated_counts(config, data)
    elif config.unlabeled_counts == LABEL_FREQUENCY:
        counts = labeled_counts.tolist()
    elif len(counts := config.unlabeled_counts) != data.n_classes:
        raise ValueError(f"unlabeled_counts={counts}: {len(counts)} numbers, and dataset={config.dataset!r} has "
                         f"{data.n_classes} classes; give one for each")
    counts = torch.tensor(counts, dtype=torch.float64)
    return UnlabeledCounts(counts * n_unlabeled / counts.sum(), estimate)


def _estimated_counts(config, data):
    """Return the counts that a finished run of ``distribution_estimate`` ends with."""
    if config.source is not None:
        folder = resolve(config.source)
        record = _finished(folder)
        _check_same(folder, record, config, data, SAME_SPLIT)
        if record["method"] != "distribution_estimate":
            raise ValueError(f"source={config.source!r} is a run of {record['method']}; the class counts come from one "
                             "of distribution_estimate")
        found = {folder: _estimate(folder, data.n_classes)}
    else:
        found = {folder: _estimate(folder, data.n_classes) for folder in _estimate_runs(config, data)}
    if not found:
        config = _with_estimate(config, data)
        raise ValueError("rebalance='darp' aims at the class counts of the unlabeled images, and "
                         "unlabeled_counts=None leaves them to an estimate. Estimate them first:\n"
                         f"    {estimate_command(config)}\nor name the folder of such a run as source, or give "
                         "unlabeled_counts")
    found = {folder: counts for folder, counts in found.items() if counts is not None} or found
    if len({json.dumps(counts) for counts in found.values()}) > 1:
        names = ", ".join(str(folder) for folder in found)
        raise ValueError(f"source=None: several runs estimate these class counts differently; name one of {names}")
    folder, counts = next(iter(found.items()))
    if counts is None:
        raise ValueError(f"source={str(folder)!r}: none of its estimates was accepted (each has a negative count, or "
                         "a confusion matrix that cannot be undone), so DARP cannot aim at it; a longer run may help")
    return counts


def estimate_command(config):
    """Return the command, for a shell, that makes the estimate a run of `config` needs: its split to the last image."""
    given = {"dataset": config.dataset, "method": "distribution_estimate", "seed": config.seed}
    split = {name: getattr(config, name) for name in ("n1", "m1", "gamma_l", "gamma_u", "unlabeled", "resolution")}
    given |= {name: value for name, value in split.items() if value is not None} | {"batch_size": config.batch_size}
    more = {"settings": {"n_val": config.n_val}}
    if config.skip_unreadable:
        more["settings"]["skip_unreadable"] = True
    if config.labeled_indices is not None:
        more["labeled_indices"] = config.labeled_indices
    command = ["papermill", "notebooks/train.ipynb", "runs/estimate.ipynb"]
    for name, value in given.items():
        command += ["-p", name, str(value)]
    return shlex.join([*command, "-y", json.dumps(more)])  # JSON is YAML


def _with_estimate(config, data):
    """Return `config` with a batch that the labeled images of an estimate fill; refuse one that has no estimate."""
    estimate = config.model_copy(update={"method": "distribution_estimate", "rebalance": ()})
    try:
        n_labeled = len(make_split(estimate, data).labeled)
    except ValueError as error:
        raise ValueError(f"rebalance='darp' aims at the class counts of the unlabeled images, and they cannot be "
                         f"estimated: {error}") from None
    return config.model_copy(update={"batch_size": min(config.batch_size, n_labeled)})


def _finished(folder):
    if not (folder / "config.json").exists():
        raise ValueError(f"source={str(folder)!r} is not the folder of a run: it has no config.json")
    if not (folder / "result.json").exists():
        raise ValueError(f"source={str(folder)!r} is not finished: it has no result.json; start it again to finish it")
    read_checked(folder, "config.json", read_result(folder))
    return read_config(folder)


def _check_same(folder, record, config, data, names):
    there, here = YOUNGER | record, YOUNGER | config.identity() | {"data_sha256": data.fingerprint}
    differing = [f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
                 for name in names if there.get(name) != here.get(name)]
    if differing:
        raise ValueError(f"source={str(folder)!r} does not fit this run; " + "; ".join(differing))


def _estimate_runs(config, data):
    wanted = config.model_dump(mode="json") | {"data_sha256": data.fingerprint}
    for file in sorted((project_root() / "runs").glob("**/config.json")):
        try:
            record = read_config(file.parent)
            if record["method"] == "distribution_estimate" and (file.parent / "result.json").exists() and all(
                    record.get(name) == wanted[name] for name in SAME_SPLIT):
                read_checked(file.parent, file.name, read_result(file.parent))
                yield file.parent
        except DamagedError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)


def _estimate(folder, n_classes):
    counts = read_result(folder).get("unlabeled_counts", ())
    is_estimate = counts is None or (
        isinstance(counts, list) and len(counts) == n_classes
        and all(type(count) in (int, float) and 0 <= count < math.inf for count in counts) and sum(counts) > 0)
    if not is_estimate:
        raise ValueError(f"source={str(folder)!r}: unlabeled_counts={counts!r} in its result.json must hold "
                         f"{n_classes} finite counts >= 0 that are not all 0; run it again in another folder")
    return counts
