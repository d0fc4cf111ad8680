"""Runs in the shape of Semi-Aves: lists of images, ImageNet weights, unlabeled images of unknown class."""

import functools
import json

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torchvision.models.resnet import BasicBlock, ResNet

import dasolib.models
from dasolib import augment
from dasolib.config import make_config
from dasolib.data import load_data
from dasolib.evaluation import predict
from dasolib.models import rebuild_network
from dasolib.train import run
from tests.listed import N_CLASSES, save_lists
from tests.test_methods import LEGAL, label, new_training, random_batch, tiny_config
from tests.tiny import contents, interrupt, read_metrics

SMALL = {"resolution": 40, "train_resolution": 32, "batch_size": 4, "total_steps": 2, "threads": 1,
         "device": "cpu"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with the data where a run looks for them."""
    monkeypatch.setattr("dasolib.train.project_root", lambda: tmp_path)
    save_lists(tmp_path / "data" / "semi_aves", n_unknown=5)
    return tmp_path


@pytest.fixture
def shallow(imagenet, monkeypatch):
    """A quarter of ResNet-34: the first block of each of its four stages."""
    monkeypatch.setattr(torchvision.models, "resnet34", lambda: ResNet(BasicBlock, [1, 1, 1, 1]))


def aves(dataset="semi_aves_unknown", **changes):
    settings = {"dataset": dataset, "method": "fixmatch", "rebalance": "daso"} | SMALL | changes
    return make_config("paper", **settings | ({"mu": 2} if settings["method"] != "supervised" else {}))


def finish(folder, **changes):
    return run(aves(**changes), folder, progress=False)


def test_two_steps_of_daso_with_resnet_34_leave_a_finished_run(project, imagenet):
    result = finish(project / "run", eval_steps=2)
    assert result["steps"] == 2 and result["labeled_counts"] == [3, 3, 3]
    (record,) = read_metrics(project / "run")
    assert set(record["losses"]) == {"labeled", "unlabeled", "semantic_alignment"}  # the last from P = 1 on
    assert sum(weight.numel() for weight in load_file(project / "run" / "model.safetensors").values()) > 21_000_000


@pytest.mark.parametrize(("dataset", "n_unlabeled"), [("semi_aves", 12), ("semi_aves_unknown", 17)])
def test_a_run_on_lists_tells_its_unlabeled_images_by_name_and_the_unknown_ones_apart(dataset, n_unlabeled, project,
                                                                                      shallow):
    finish(project / "run", dataset=dataset)
    with np.load(project / "run" / "outputs.npz") as arrays:
        assert arrays["test_logits"].shape == (3, N_CLASSES) and arrays["feats"].shape == (n_unlabeled, 512)
        hidden = [0, 1, 2, -1] * 3 + [-1] * (n_unlabeled - 12)
        assert arrays["unlabeled_target"].tolist() == hidden
    with np.load(project / "run" / "pseudo_labels.npz") as counts:
        windows = counts["pseudo_labels"]  # two of a step each
        assert windows.shape[2:] == (N_CLASSES + 1, N_CLASSES) and windows[:, 0].sum() == 2 * 8
        assert windows[:, 0, N_CLASSES].sum() > 0  # images of unknown class have a row of their own
    lines = (project / "run" / "predictions.csv").read_text().splitlines()
    assert lines[0].startswith("index,file,predicted,confidence,") and len(lines) == 1 + n_unlabeled
    assert lines[1].startswith("0,unlabeled images/00.png,")
    assert lines[-1].startswith("16,unknown/04.png," if n_unlabeled == 17 else "11,unlabeled images/11.png,")


def test_training_starts_from_the_imagenet_weights_and_is_evaluated_at_the_training_resolution(project, imagenet,
                                                                                               shallow):
    """A learning rate that moves nothing leaves the convolutions as the file has them."""
    finish(project / "run", lr=1e-30, weight_decay=0.0)
    weights, published = load_file(project / "run" / "model.safetensors"), torch.load(imagenet, weights_only=True)
    convolutions = [name for name, weight in weights.items() if weight.ndim == 4]
    assert len(convolutions) == 1 + 4 * 2 + 3
    assert all(torch.equal(weights[name], published[name.removeprefix("encoder.")]) for name in convolutions)

    about = json.loads((project / "run" / "model.json").read_text())
    assert (about["network"], about["resolution"], about["evaluated"]) == ("ResNet34", 32, "ema")
    net = rebuild_network(about)
    net.load_state_dict(weights)
    data = load_data("semi_aves", root=project / "data", resolution=40)
    normalize = functools.partial(augment.normalize, **{name: about[name] for name in ("mean", "std", "resolution")})
    with np.load(project / "run" / "outputs.npz") as arrays:
        logits = predict(net, data.x_test, normalize)[1]
        np.testing.assert_allclose(logits, arrays["test_logits"], rtol=1e-4, atol=1e-4)


def test_an_interrupted_run_on_lists_ends_as_if_it_had_not_been(project, shallow, monkeypatch):
    whole, broken = project / "whole", project / "broken"
    finish(whole, total_steps=3)
    interrupt(monkeypatch, aves(total_steps=3), broken, at=2)
    assert json.loads((broken / "config.json").read_text())["network"] == "resnet34"
    finish(broken, total_steps=3)
    assert contents(broken) == contents(whole)


def test_a_run_without_the_weights_stops_before_it_reads_an_image_or_makes_a_folder(project, monkeypatch):
    def absent():
        raise ConnectionError("no weights")

    monkeypatch.setattr(dasolib.models, "imagenet_weights", absent)
    monkeypatch.setattr("dasolib.train.load_data", None)
    with pytest.raises(ConnectionError, match="no weights"):
        run(aves(), project / "run", progress=False)
    assert not (project / "run").exists()


def test_crt_takes_the_encoder_of_a_run_with_the_same_network_and_no_other(project, shallow):
    supervised = {"method": "supervised", "rebalance": ""}
    finish(project / "source", **supervised)
    crt = supervised | {"rebalance": "crt", "source": str(project / "source")}
    finish(project / "crt", **crt)
    before, after = (load_file(project / name / "model.safetensors") for name in ("source", "crt"))
    assert torch.equal(before["encoder.conv1.weight"], after["encoder.conv1.weight"])
    with pytest.raises(ValueError, match="network: 'resnet34' there, 'wrn' here; depth: None there, 28 here"):
        finish(project / "other", **crt, network="wrn")
    assert not (project / "other").exists()


# Each base learner alone, and each re-balancing method on one of them.
ONCE = list({combination[1] or combination[0]: combination for combination in reversed(LEGAL)
             if len(combination[1]) < 2}.values())  # the first of a kind stays


@pytest.mark.parametrize("combination", ONCE, ids=label)
def test_each_method_takes_steps_on_features_of_a_resnet(combination, shallow):
    source = {"source": "runs/trained"} if "crt" in combination[1] else {}
    config = tiny_config(*combination, network="resnet34", **source)
    training = new_training(config)
    before = [weight.clone() for weight in training.net.parameters()]
    for t in range(2):
        out = training.step(random_batch(config, t, side=8), t)
        assert torch.isfinite(sum(out.losses.values()))
    moved = [not torch.equal(a, b) for a, b in zip(before, training.net.parameters(), strict=True)]
    trained = [weight.requires_grad for weight in training.net.parameters()]
    assert moved == trained or combination[0] == "usadtm"  # whose labels and losses need more steps
