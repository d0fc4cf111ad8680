"""What a run takes from an earlier one: cRT its trained network, DARP the estimated class counts."""

import hashlib
import json
import shlex
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from dasolib.config import YOUNGER
from dasolib.run_folder import project_root, resolve

SAME_SPLIT = ("seed", "n1", "m1", "gamma_l", "gamma_u", "unlabeled", "n_val", "labeled_indices", "data_sha256")
SAME_NETWORK = ("network", "depth", "width")
NETWORK = "model.safetensors"  # of a run folder


class TrainedNetwork(NamedTuple):
    """The network that cRT starts from."""

    weights: dict[str, Tensor]  # of the encoder, as evaluated in the run they come from
    record: str  # SHA-256 of the file, for config.json


class UnlabeledCounts(NamedTuple):
    """How many unlabeled images each class has, as far as a run is told."""

    counts: Tensor  # (K,) float64
    record: list  # the same numbers, for config.json


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
        If the source is no run, is not finished, or had other data, another split, or another network.
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
    weights = {name: weight for name, weight in load_file(file).items() if not name.startswith(("head.", "heads."))}
    return TrainedNetwork(weights, hashlib.sha256(file.read_bytes()).hexdigest())


def unlabeled_counts(config, data, hidden):
    """Class counts of the unlabeled images that a run aims at; None for a run that aims at none.

    Where the unlabeled classes are imbalanced like the labeled ones, the hidden labels are counted, as published.
    Otherwise a finished run of ``method="distribution_estimate"`` on the same split has the numbers: the one that
    ``source`` names, or else the one under ``runs/``.

    Parameters
    ----------
    config : dasolib.config.Config
    data : dasolib.data.ImageData
    hidden : Tensor of shape (U,)
        Classes of the unlabeled images.

    Raises
    ------
    ValueError
        If there is no such run, several disagree, or none of its estimates was accepted.
    """
    if not config.needs("unlabeled_counts"):
        return None
    if config.counts_hidden_labels:
        counts = torch.bincount(hidden.cpu(), minlength=data.n_classes).tolist()
        return UnlabeledCounts(torch.tensor(counts, dtype=torch.float64), counts)
    if config.source is not None:
        folder = resolve(config.source)
        record = _finished(folder)
        _check_same(folder, record, config, data, SAME_SPLIT)
        if record["method"] != "distribution_estimate":
            raise ValueError(f"source={config.source!r} is a run of {record['method']}; the class counts come from one "
                             "of distribution_estimate")
        found = {folder: _estimate(folder)}
    else:
        found = {folder: _estimate(folder) for folder in _estimate_runs(config, data)}
    if not found:
        raise ValueError(f"rebalance='darp' aims at the class counts of the unlabeled images, and "
                         f"unlabeled={config.unlabeled!r} does not tell them. Estimate them first:\n"
                         f"    {estimate_command(config)}\nor name the folder of such a run as source")
    found = {folder: counts for folder, counts in found.items() if counts is not None} or found
    if len({json.dumps(counts) for counts in found.values()}) > 1:
        names = ", ".join(str(folder) for folder in found)
        raise ValueError(f"source=None: several runs estimate these class counts differently; name one of {names}")
    folder, counts = next(iter(found.items()))
    if counts is None:
        raise ValueError(f"source={str(folder)!r}: none of its estimates was accepted (each has a negative count, or "
                         "a confusion matrix that cannot be undone), so DARP cannot aim at it; a longer run may help")
    return UnlabeledCounts(torch.tensor(counts, dtype=torch.float64), counts)


def estimate_command(config):
    """Return the command, for a shell, that makes the estimate a run of `config` needs: its split to the last image."""
    given = {"dataset": config.dataset, "method": "distribution_estimate", "seed": config.seed}
    split = {name: getattr(config, name) for name in ("n1", "m1", "gamma_l", "gamma_u", "unlabeled", "resolution")}
    given |= {name: value for name, value in split.items() if value is not None}
    more = {"settings": {"n_val": config.n_val}}
    if config.skip_unreadable:
        more["settings"]["skip_unreadable"] = True
    if config.labeled_indices is not None:
        more["labeled_indices"] = config.labeled_indices
    command = ["papermill", "notebooks/train.ipynb", "runs/estimate.ipynb"]
    for name, value in given.items():
        command += ["-p", name, str(value)]
    return shlex.join([*command, "-y", json.dumps(more)])  # JSON is YAML


def _finished(folder):
    if not (folder / "config.json").exists():
        raise ValueError(f"source={str(folder)!r} is not the folder of a run: it has no config.json")
    if not (folder / "result.json").exists():
        raise ValueError(f"source={str(folder)!r} is not finished: it has no result.json; start it again to finish it")
    return json.loads((folder / "config.json").read_text())


def _check_same(folder, record, config, data, names):
    there, here = YOUNGER | record, YOUNGER | config.identity() | {"data_sha256": data.fingerprint}
    differing = [f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
                 for name in names if there.get(name) != here.get(name)]
    if differing:
        raise ValueError(f"source={str(folder)!r} does not fit this run; " + "; ".join(differing))


def _estimate_runs(config, data):
    wanted = config.model_dump(mode="json") | {"data_sha256": data.fingerprint}
    for file in sorted((project_root() / "runs").glob("**/config.json")):
        record = json.loads(file.read_text())
        is_estimate = record.get("method") == "distribution_estimate" and (file.parent / "result.json").exists()
        if is_estimate and all(record.get(name) == wanted[name] for name in SAME_SPLIT):
            yield file.parent


def _estimate(folder):
    return json.loads((folder / "result.json").read_text())["unlabeled_counts"]
