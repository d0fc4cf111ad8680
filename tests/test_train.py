"""A run from configuration to result: going on after a kill, what is written when, and what stops it."""

import dataclasses
import errno
import functools
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dasolib.train
from dasolib import augment
from dasolib.batches import make_split
from dasolib.data import load_data
from dasolib.evaluation import predict, predictions, pseudo_label
from dasolib.host import EXIT_INTERRUPTED
from dasolib.methods import LEARNERS
from dasolib.models import WideResNet, rebuild_network
from dasolib.outputs import format_predictions, read_predictions
from dasolib.results import load_run
from dasolib.train import Training, _float_tensors, choose_device, run, write_events
from tests.tiny import (
    N_CLASSES,
    N_TEST,
    make_training,
    read_arrays,
    read_metrics,
    save_tiny,
    tiny_arrays,
    tiny_config,
    without_times,
)

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """Yield a function that trains a configuration once and returns its folder."""
    root = tmp_path_factory.mktemp("runs")

    @functools.cache
    def train(**changes):
        torch.set_num_threads(1)
        config = tiny_config(dataset, **changes)
        run(config, root / config.run_name(), progress=False)
        return root / config.run_name()

    return train


# ---- killed and started again, by the same command ----

COMMAND = """
import sys
from dasolib.config import make_config
from dasolib.train import run
daso = {"pretrain_steps": 10, "refresh_steps": 5} if sys.argv[3] == "daso" else {}
total_steps, eval_steps = map(int, sys.argv[4:])
config = make_config("cpu", dataset="mnist5k", method=sys.argv[2], rebalance=sys.argv[3], total_steps=total_steps,
                     eval_steps=eval_steps, batch_size=8, eval_images=200, precision="fp32", threads=1,
                     device="cpu", **daso)
run(config, sys.argv[1], progress=False)
"""


def start(folder, *arguments):
    return subprocess.Popen([sys.executable, "-c", COMMAND, folder, *map(str, arguments)], cwd=ROOT,
                            stderr=subprocess.PIPE, text=True)


def n_lines(folder):
    file = folder / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def wait_for(condition, process, *, pause):
    """Look every `pause` seconds until `condition` holds or the process ends."""
    while process.poll() is None and not condition():
        time.sleep(pause)


def test_a_process_that_is_asked_to_stop_saves_its_step_and_ends_with_the_documented_code(tmp_path):
    process = start(tmp_path / "run", "supervised", "", 100_000, 50_000)
    wait_for((tmp_path / "run" / "metrics.jsonl").exists, process, pause=0.05)  # then it hears signals
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == EXIT_INTERRUPTED == 130 and "Traceback" not in errors
    assert 0 < torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] < 50_000


@pytest.mark.slow
@pytest.mark.parametrize(("method", "steps", "kills", "after"), [
    (("fixmatch", "daso"), (60, 5), (False, True), (1, 4)),
    (("remixmatch", "crest_plus"), (20, 2), (False,), (3, 7)),  # killed after the first of five generations
], ids=str)
def test_a_run_killed_at_random_moments_ends_bit_for_bit_like_an_undisturbed_one(method, steps, kills, after, tmp_path):
    """Real processes, killed between steps and while a file is being written; the same command each time."""
    undisturbed, folder, rng = tmp_path / "undisturbed", tmp_path / "killed", random.Random(0)
    killed_at, whole = [], start(undisturbed, *method, *steps)
    for while_writing in kills:
        process, already = start(folder, *method, *steps), n_lines(folder)
        target = already + rng.randint(*after)
        # A run that goes on cuts the lines back first, so it must be seen training before it is killed.
        wait_for(lambda: (folder / "events").exists() and n_lines(folder) >= target, process,  # noqa: B023
                 pause=0.02)
        if while_writing:
            wait_for(lambda: any(folder.glob("*.tmp")), process, pause=0.001)
        else:
            time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            killed_at.append(n_lines(folder))
        process.stderr.close()
    assert not (folder / "result.json").exists()
    last = start(folder, *method, *steps)
    for process in (whole, last):
        _, errors = process.communicate()
        assert process.returncode == 0, errors

    assert any(0 < n < steps[0] // steps[1] for n in killed_at)
    starts = json.loads((folder / "environment.json").read_text())["starts"]
    assert any(start["from_step"] > 0 for start in starts)
    for name in ("result.json", "model.json"):
        ours, theirs = (json.loads((path / name).read_text()) for path in (folder, undisturbed))
        assert without_times(ours) == without_times(theirs)
    assert list(map(without_times, read_metrics(folder))) == list(map(without_times, read_metrics(undisturbed)))
    assert [record["step"] for record in read_metrics(folder)] == list(range(steps[1], steps[0] + 1, steps[1]))
    for name in ("pseudo_labels.npz", "outputs.npz"):
        assert read_arrays(folder / name) == read_arrays(undisturbed / name)
    for name in ("model.safetensors", "predictions.csv"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()


# ---- the state of a run ----


def take_steps(training, batches, steps):
    for t in steps:
        training.step(batches.at(t)[0], t)


def flat(state, prefix=""):
    """Tensors and other values of a nested state by their path."""
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {name: value for key, item in items for name, value in flat(item, f"{prefix}/{key}").items()}
    return {prefix: state}


def assert_same_state(one, other):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert same, name


@pytest.mark.parametrize("numbers", [{}, {"precision": "bf16", "channels_last": True}], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("method", "rebalance"), [("supervised", ""), ("fixmatch", "la"), ("fixmatch", "daso")])
def test_saving_and_loading_at_any_step_equals_going_on(method, rebalance, numbers, dataset):
    data = load_data(dataset)
    config = tiny_config(dataset, method=method, rebalance=rebalance, total_steps=12, **numbers)
    step = random.Random(method + rebalance + str(numbers)).randint(5, 10)
    undisturbed, batches = make_training(config, data)
    take_steps(undisturbed, batches, range(step))
    buffer = io.BytesIO()
    torch.save(undisturbed.state(step, 1.5), buffer)
    take_steps(undisturbed, batches, range(step, 12))

    resumed, batches = make_training(config, data)
    take_steps(resumed, batches, range(3))  # whatever was there must be gone
    buffer.seek(0)
    assert resumed.restore(torch.load(buffer, weights_only=True)) == 1.5
    take_steps(resumed, batches, range(step, 12))
    assert_same_state(resumed.state(12, 0.0), undisturbed.state(12, 0.0))


def test_the_state_holds_momentum_moving_average_queues_histogram_and_pending_counts(dataset):
    training, batches = make_training(tiny_config(dataset, total_steps=9), load_data(dataset))
    take_steps(training, batches, range(5))
    state = flat(training.state(5, 0.0))
    filled = {name for name, value in state.items() if isinstance(value, torch.Tensor) and value.any()}
    assert filled >= {"/optimizer/state/0/momentum_buffer", "/net/stem.weight", "/ema/head.weight",
                      "/ema/bn.running_mean", "/ema/bn.num_batches_tracked", "/rebalance/parts.daso.bank.queues",
                      "/rebalance/parts.daso.bank.sums", "/rebalance/parts.daso.bank.n_pushed",
                      "/rebalance/parts.daso.class_freq", "/rebalance/parts.daso.pending"}
    assert not torch.equal(state["/net/head.weight"], state["/ema/head.weight"])


def test_two_runs_of_one_configuration_are_equal_and_another_seed_is_another_run(dataset, finished, tmp_path):
    folder = finished()
    again, other = tmp_path / "again", finished(seed=1)
    run(tiny_config(dataset), again, progress=False)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (other / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()


# ---- what is evaluated and written ----


def test_a_run_learns_what_can_be_learned(finished):
    """Of four classes; chance is 25 %."""
    result = json.loads((finished(method="supervised", rebalance="", total_steps=60, eval_steps=60, lr=0.05)
                         / "result.json").read_text())
    assert result["plain"]["balanced"] > 0.6


def test_metrics_have_one_line_for_each_evaluation_with_the_mean_losses_of_its_window(finished, dataset):
    folder = finished(eval_steps=4)
    first, second = read_metrics(folder)
    assert (first["step"], second["step"]) == (4, 6)  # the end is always evaluated
    training, batches = make_training(tiny_config(dataset, eval_steps=4), load_data(dataset))
    losses = [{name: loss.item() for name, loss in training.step(batches.at(t)[0], t).losses.items()}
              for t in range(6)]
    for record, window in ((first, losses[:4]), (second, losses[4:])):
        for name, value in record["losses"].items():
            has_it = [terms[name] for terms in window if name in terms]  # DASO's alignment begins at step P
            assert value == pytest.approx(sum(has_it) / len(has_it), rel=1e-5)
    assert set(second["losses"]) == {"labeled", "unlabeled", "semantic_alignment"}
    assert first["test_images"] == N_CLASSES * N_TEST and first["images_per_s"] > 0


def test_the_learning_rate_in_metrics_is_that_of_the_last_step(finished):
    folder = finished(method="supervised", rebalance="", lr=0.1, milestones=(3, 5), warmup_steps=0, lr_decay=0.5)
    assert [record["lr"] for record in read_metrics(folder)] == pytest.approx([0.1, 0.05, 0.025])


def test_accuracies_counts_and_mask_rate_belong_together(finished):
    folder = finished(threshold=0.4)
    with np.load(folder / "pseudo_labels.npz") as file:
        counts = {name: file[name] for name in file}
    assert counts["step"].tolist() == [2, 4, 6]
    for record, plain, adjusted, pseudo_labels in zip(
            read_metrics(folder), counts["test"], counts["test_adjusted"], counts["pseudo_labels"], strict=True):
        assert record["accuracy"] == np.trace(plain) / plain.sum()
        assert record["accuracy_adjusted"] == np.trace(adjusted) / adjusted.sum()
        linear, semantic, final, confident = pseudo_labels.sum(axis=(1, 2)).tolist()
        assert linear == final == 2 * 8  # two steps of mu * B images
        assert semantic == (0 if record["step"] == 2 else 16)  # there are none before DASO starts
        assert record["mask_rate"] == pytest.approx(confident / final)
    assert counts["pseudo_labels"].shape == (3, 4, N_CLASSES + 1, N_CLASSES)
    true_classes = counts["pseudo_labels"][:, 2].sum(axis=(0, 2))
    assert true_classes[-1] == 0 and true_classes[:-1].min() > 0
    assert 0 < counts["pseudo_labels"][:, 3].sum() < counts["pseudo_labels"][:, 2].sum()


# One method of each kind: labels of the network and of the moving average, with and without a mask, sharpened, aligned,
# semantic, blended, of a second head, and selected for a next generation.
KINDS_OF_METHODS = [
    ("pseudo_label", ""), ("mean_teacher", "daso"), ("mixmatch", ""), ("remixmatch", "daso"), ("usadtm", ""),
    ("fixmatch", "la,daso"), ("fixmatch", "distribution_alignment,boss"), ("fixmatch", "abc"),
    ("fixmatch", "crest_plus"),
]


@pytest.fixture(scope="module")
def pile(tmp_path_factory):
    """Data like STL-10: besides the labeled images a pile of 50 whose classes nobody knows."""
    images = np.random.default_rng(1).integers(0, 256, (50, 12, 12), dtype=np.uint8)
    return save_tiny(tmp_path_factory.mktemp("pile"), x_unlabeled=images, y_unlabeled=np.full(50, -1))


@pytest.mark.parametrize(("method", "rebalance"), KINDS_OF_METHODS, ids=str)
def test_pseudo_labels_of_images_of_unknown_class_are_counted_in_a_row_of_their_own(method, rebalance, pile, tmp_path):
    changes = {"threshold": 0.3} if method in ("fixmatch", "pseudo_label") else {}
    config = tiny_config(pile, method=method, rebalance=rebalance, unlabeled="unknown", m1=None, **changes)
    run(config, tmp_path, progress=False)
    with np.load(tmp_path / "pseudo_labels.npz") as file:
        counts = file["pseudo_labels"]
        kinds = dict(zip(file["kinds"].tolist(), range(4), strict=True))
    assert not counts[:, :, :N_CLASSES].any()
    n_seen = counts[:, :, N_CLASSES].sum(axis=-1)  # (windows, kinds)
    n_window = 2 * config.mu * config.batch_size
    assert (n_seen[:, kinds["linear"]] == n_window).all() and (n_seen[:, kinds["final"]] == n_window).all()
    semantic = {"usadtm": [n_window] * 3}.get(method, [0, n_window, n_window] if "daso" in rebalance else [0] * 3)
    assert n_seen[:, kinds["semantic"]].tolist() == semantic
    mask_rates = [record["mask_rate"] for record in read_metrics(tmp_path)]
    assert mask_rates == pytest.approx((n_seen[:, kinds["confident"]] / n_window).tolist())
    if method in ("mean_teacher", "mixmatch", "remixmatch"):  # all labels count in their losses
        assert mask_rates == [1.0] * 3
    with np.load(tmp_path / "outputs.npz") as file:
        assert file["unlabeled_target"].tolist() == [-1] * 50 and file["unlabeled_index"].tolist() == list(range(50))
        assert file["final"].shape == (50, N_CLASSES) and np.isfinite(file["final"]).all()
        assert ("semantic" in file) == (method == "usadtm" or "daso" in rebalance)
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 50


def test_a_supervised_run_has_no_mask_rate_and_no_pseudo_labels(finished):
    folder = finished(method="supervised", rebalance="")
    assert {record["mask_rate"] for record in read_metrics(folder)} == {None}
    assert json.loads((folder / "result.json").read_text())["mask_rate"] is None
    with np.load(folder / "pseudo_labels.npz") as file:
        assert not file["pseudo_labels"].any()


@pytest.mark.parametrize(("method", "stored", "name"), [("fixmatch", "ema", "ema"), ("supervised", "net", "student")])
def test_the_evaluated_network_is_the_moving_average_where_there_is_one(method, stored, name, finished):
    folder = finished(method=method, rebalance="")
    weights = load_file(folder / "model.safetensors")
    state = torch.load(folder / "checkpoint.pt", weights_only=True)[stored]
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[key], state[key]) for key in state)
    assert json.loads((folder / "model.json").read_text())["evaluated"] == name


@pytest.mark.parametrize("numbers", [
    {}, {"precision": "bf16", "channels_last": True}, {"train_resolution": 8}, {"rebalance": "abc"},
    {"method": "remixmatch", "rebalance": "", "train_resolution": 8},
], ids=["fp32", "bf16", "resized", "second head", "rotation head"])
def test_the_network_can_be_rebuilt_from_its_two_files(numbers, finished, dataset):
    folder = finished(**numbers)
    about = json.loads((folder / "model.json").read_text())
    net = rebuild_network(about)
    assert isinstance(net, WideResNet)
    net.load_state_dict(load_file(folder / "model.safetensors"))
    normalize = functools.partial(augment.normalize, **{name: about[name] for name in ("mean", "std", "resolution")})
    logits = predict(net, load_data(dataset).x_test, normalize)[1]
    with np.load(folder / "outputs.npz") as file:
        np.testing.assert_allclose(logits, file["test_logits"], atol=0.02 if numbers.get("precision") else 1e-4)
        table = confusion(file["test_target"], file["test_logits"].argmax(axis=1))
    with np.load(folder / "pseudo_labels.npz") as file:
        np.testing.assert_array_equal(file["test"][-1], table)
    assert about["class_names"] == [str(k) for k in range(N_CLASSES)]


def test_a_run_tells_how_accurate_it_is_on_the_images_held_out_for_that(finished, dataset):
    folder = finished(n_val=20, n1=8)
    about, data = json.loads((folder / "model.json").read_text()), load_data(dataset)
    net = rebuild_network(about)
    net.load_state_dict(load_file(folder / "model.safetensors"))
    normalize = functools.partial(augment.normalize, mean=about["mean"], std=about["std"])
    rows = make_split(tiny_config(dataset, n_val=20, n1=8), data).validation
    right = predict(net, data.x_train[rows], normalize)[1].argmax(dim=-1) == data.y_train[rows]
    result = json.loads((folder / "result.json").read_text())
    assert len(rows) == 20 and result["validation_accuracy"] == right.double().mean().item()
    assert "validation_accuracy" not in json.loads((finished() / "result.json").read_text())


def confusion(target, predicted):
    table = np.zeros((N_CLASSES, N_CLASSES), int)
    np.add.at(table, (target, predicted), 1)
    return table


def test_tensorboard_shows_the_numbers_of_the_metrics(finished):
    folder = finished()
    reader = EventAccumulator(str(folder / "events"))
    reader.Reload()
    records = read_metrics(folder)
    for tag, values in {"accuracy": [record["accuracy"] for record in records],
                        "loss/labeled": [record["losses"]["labeled"] for record in records]}.items():
        events = reader.Scalars(tag)
        assert [event.step for event in events] == [2, 4, 6]
        assert [event.value for event in events] == pytest.approx(values, rel=1e-6)


def test_outputs_of_a_run_that_ends_before_daso_acts_are_linear_labels(finished):
    """The histogram is never filled then, so that blending would divide 0 by 0."""
    folder = finished(pretrain_steps=6, refresh_steps=6)
    with np.load(folder / "outputs.npz") as file:
        assert "semantic" not in file and np.isfinite(file["final"]).all()


# ---- predictions for the unlabeled images ----


def checked_predictions(folder):
    """Return the table, after comparing what it says of pseudo-labels with ``outputs.npz``."""
    table, names = read_predictions(folder), json.loads((folder / "model.json").read_text())["class_names"]
    with np.load(folder / "outputs.npz") as file:
        assert table["index"].tolist() == file["unlabeled_index"].tolist()
        np.testing.assert_allclose(table["pseudo_label_confidence"], file["final"].max(axis=1), atol=1e-3)
        likely = np.array(names)[file["final"].argmax(axis=1)]
        clear = np.sort(file["final"].astype(float), axis=1)[:, -2:] @ [-1, 1] > 2e-3  # no tie by rounding
    assert (table["pseudo_label"] == likely)[clear].all() and clear.sum() > 0.7 * len(table)
    return table


def test_a_run_predicts_the_class_of_each_unlabeled_training_image(finished):
    table = checked_predictions(finished())
    assert table.columns.tolist() == ["index", "predicted", "confidence", "pseudo_label", "pseudo_label_confidence"]
    assert len(table) == 54 and table["confidence"].between(0.25, 1).all()


@pytest.mark.parametrize(("method", "rebalance"), [
    ("fixmatch", "daso"), ("fixmatch", "abc"), ("remixmatch", ""), ("usadtm", ""), ("supervised", "")])
def test_what_is_predicted_is_what_the_stored_network_says(method, rebalance, finished, dataset):
    """Not the pseudo-label: DASO blends, ReMixMatch aligns and sharpens, USADTM asks its prototypes."""
    folder = finished(method=method, rebalance=rebalance)
    table, about = checked_predictions(folder), json.loads((folder / "model.json").read_text())
    net = rebuild_network(about)
    net.load_state_dict(load_file(folder / "model.safetensors"))
    normalize = functools.partial(augment.normalize, **{name: about[name] for name in ("mean", "std", "resolution")})
    images = load_data(dataset).x_train[table["index"].tolist()]
    assert about["image_size"] == list(images.shape[-2:])
    probs = predict(net, images, normalize)[1].softmax(dim=-1).numpy()
    np.testing.assert_allclose(table["confidence"], probs.max(axis=1), atol=1e-5)
    clear = np.sort(probs, axis=1)[:, -2:] @ [-1, 1] > 1e-4
    assert (table["predicted"].astype(int) == probs.argmax(axis=1))[clear].all()
    said, n = format_predictions(load_run(folder)), (table["predicted"] != table["pseudo_label"]).sum()
    assert said.startswith(f"predictions.csv, {len(table)} unlabeled images. predicted, confidence: the ")
    assert said.endswith(f"differ in the class of {n} images.")
    assert ("moving average" in said) == (method != "supervised")


def save_folder(root, n_unlabeled):
    rng = np.random.default_rng(0)
    names = [f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(6)]
    names += [f"test/{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]
    names += [f"unlabeled/roll {i % 2}/{i}.png" for i in range(n_unlabeled)]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(root / name)
    return str(root)


FOLDER = {"n1": None, "m1": None, "gamma_l": None, "unlabeled": "unknown", "resolution": 12}


def test_predictions_for_a_folder_name_its_files_and_classes(tmp_path):
    pets = save_folder(tmp_path / "pets", n_unlabeled=9)
    run(tiny_config(pets, **FOLDER), tmp_path / "run", progress=False)
    table = checked_predictions(tmp_path / "run")
    assert table.columns.tolist()[:4] == ["index", "file", "predicted", "confidence"]
    assert table["file"].tolist() == [f"roll {i}/{j}.png" for i in (0, 1) for j in range(i, 9, 2)]
    assert {*table["predicted"], *table["pseudo_label"]} <= {"cat", "dog"}
    about = json.loads((tmp_path / "run" / "model.json").read_text())
    assert (about["image_size"], about["image_crop"]) == ([12, 12], "center")


def test_predictions_that_are_not_as_the_run_wrote_them_are_not_read(finished, tmp_path):
    shutil.copytree(finished(), tmp_path / "run")
    for text, reason in (("index,predicted\n0,1\n", "its checksum"), ("", "no table can be read")):
        (tmp_path / "run" / "predictions.csv").write_text(text)
        with pytest.raises(ValueError, match=f"run/predictions.csv is damaged .{reason} .*; restore it from a copy"):
            read_predictions(tmp_path / "run")
        (tmp_path / "run" / "result.json").unlink(missing_ok=True)  # a copy without checksums


def test_names_that_look_like_numbers_or_nothing_come_back_as_they_are(tmp_path):
    names = ("007", "NA", "None", "")
    probs = torch.eye(4)
    predictions(probs, probs.flip(0), names, index=np.arange(4), files=("1.0", "nan", "null", "x")).to_csv(
        tmp_path / "predictions.csv", index=False)
    table = read_predictions(tmp_path)
    assert table["predicted"].tolist() == list(names) and table["pseudo_label"].tolist() == list(names[::-1])
    assert table["file"].tolist() == ["1.0", "nan", "null", "x"] and table["confidence"].tolist() == [1] * 4


def test_a_file_name_that_is_no_text_is_kept_byte_for_byte(tmp_path):
    """As archives from other systems have them."""
    pets = save_folder(tmp_path / "pets", n_unlabeled=9)
    os.rename(f"{pets}/unlabeled/roll 0/0.png", os.fsencode(f"{pets}/unlabeled/roll 0/") + b"K\xe4fer.png")
    run(tiny_config(pets, **FOLDER), tmp_path / "run", progress=False)
    assert b",roll 0/K\xe4fer.png," in (tmp_path / "run" / "predictions.csv").read_bytes()
    assert (tmp_path / "run" / "result.json").exists()


def test_without_unlabeled_images_there_are_no_predictions(tmp_path):
    pets = save_folder(tmp_path / "pets", n_unlabeled=0)
    run(tiny_config(pets, method="supervised", rebalance="", **FOLDER), tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "predictions.csv").exists()


# ---- losses that are not finite ----


def break_step(monkeypatch, method, factors, at):
    """Multiply loss terms of step `at` and all later ones; return a list that grows by each step taken."""
    learner, taken = LEARNERS[method], []

    def step(*args, t, **settings):
        taken.append(t)
        out = learner.step(*args, t=t, **settings)
        if t < at:
            return out
        return out._replace(losses={name: loss * factors.get(name, 1.0) for name, loss in out.losses.items()})

    monkeypatch.setitem(LEARNERS, method, dataclasses.replace(learner, step=step))
    return taken


@pytest.mark.parametrize("at", [2, 3])
def test_a_loss_that_is_not_a_number_stops_the_run_at_the_next_evaluation(at, dataset, monkeypatch, tmp_path):
    taken = break_step(monkeypatch, "supervised", {"labeled": float("nan")}, at)
    with pytest.raises(FloatingPointError, match=rf"the loss is not finite since step {at}: labeled = nan\."):
        run(tiny_config(dataset, method="supervised", rebalance=""), tmp_path, progress=False)
    assert taken == [0, 1, 2, 3]  # the losses are looked at where the run waits for the device anyhow
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
    assert [record["step"] for record in read_metrics(tmp_path)] == [2]
    assert not (tmp_path / "result.json").exists()


def test_each_term_of_the_first_bad_step_is_named_with_its_value(dataset, monkeypatch, tmp_path):
    break_step(monkeypatch, "fixmatch", {"labeled": float("inf"), "unlabeled": 0.0}, at=1)
    with pytest.raises(FloatingPointError, match=r"since step 1: labeled = inf, unlabeled = 0\.0\. "):
        run(tiny_config(dataset, rebalance=""), tmp_path, progress=False)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_run_stopped_by_its_loss_goes_on_from_the_checkpoint_before(dataset, finished, monkeypatch, tmp_path):
    config = tiny_config(dataset)
    with monkeypatch.context() as patch:
        break_step(patch, "fixmatch", {"labeled": float("nan")}, at=5)
        with pytest.raises(FloatingPointError, match="since step 5"):
            run(config, tmp_path, progress=False)
    run(config, tmp_path, progress=False)
    assert (tmp_path / "model.safetensors").read_bytes() == (finished() / "model.safetensors").read_bytes()


def test_a_learning_rate_that_is_too_large_is_found_out(dataset, tmp_path):
    with pytest.raises(FloatingPointError, match="not finite since step 1: labeled = (nan|inf)"):
        run(tiny_config(dataset, method="supervised", rebalance="", lr=1e30, warmup_steps=0), tmp_path, progress=False)


def test_a_weight_that_is_not_finite_is_found_out_though_the_losses_so_far_were(dataset, tmp_path):
    config = tiny_config(dataset, method="supervised", rebalance="", lr=1e45, warmup_steps=6)  # step 0 has rate 0
    with pytest.raises(FloatingPointError, match=r"net\.stem\.weight and \d+ more of 71 tensors are not finite\. The "
                                                 r"run stopped after 2 steps, and there is no checkpoint before; run"):
        run(config, tmp_path, progress=False)
    assert not (tmp_path / "checkpoint.pt").exists()


def spoil_after(monkeypatch, at, change):
    """Have `change` act on the `Training` after its step `at`, from 0."""
    step = Training.step

    def spoil(self, batch, t):
        out = step(self, batch, t)
        if t == at:
            change(self)
        return out

    monkeypatch.setattr(Training, "step", spoil)


def parts_of(training):
    """A parameter, a buffer and a number of each further part of the state, by its name there."""
    momentum = training.optimizer.state[training.optimizer.param_groups[0]["params"][3]]["momentum_buffer"]
    return {"net.head.bias": training.net.head.bias, "net.bn.running_var": training.net.bn.running_var,
            "ema.bn.running_var": training.ema.model.bn.running_var, "ema.head.bias": training.ema.model.head.bias,
            "optimizer.state.3.momentum_buffer": momentum,
            "rebalance.parts.daso.bank.queues": training.rebalance.parts["daso"].bank.queues}


@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("name", ["net.head.bias", "net.bn.running_var", "ema.bn.running_var", "ema.head.bias",
                                  "optimizer.state.3.momentum_buffer", "rebalance.parts.daso.bank.queues"])
def test_no_number_of_a_checkpoint_is_infinite_or_none(name, value, dataset, monkeypatch, tmp_path):
    spoil_after(monkeypatch, 3, lambda training: parts_of(training)[name].data.view(-1)[:1].fill_(value))
    for _ in range(2):  # going on from the checkpoint before says the same
        with pytest.raises(FloatingPointError, match=rf"^{re.escape(name)} is not finite\. The run stopped after 4 "
                                                     r"steps, and the checkpoint before is kept; run again, it stops"):
            run(tiny_config(dataset), tmp_path, progress=False)
        assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2
        assert [record["step"] for record in read_metrics(tmp_path)] == [2]


def test_logits_that_are_not_finite_stop_the_run_though_its_state_is(dataset, monkeypatch, tmp_path):
    spoil_after(monkeypatch, 3, lambda training: training.ema.model.head.weight.fill_(3e38))
    with pytest.raises(FloatingPointError, match=r"the logits of \d+ of 60 images are not finite\. The run .* 4 steps"):
        run(tiny_config(dataset), tmp_path, progress=False)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


def test_no_generation_is_labeled_by_a_network_that_is_not_finite(dataset, monkeypatch, tmp_path):
    """Steps 2 and 4 begin one; an infinite variance makes all logits equal, which are finite."""
    spoil_after(monkeypatch, 1, lambda training: training.ema.model.bn.running_var.fill_(float("inf")))
    with pytest.raises(FloatingPointError, match=r"ema\.bn\.running_var is not finite"):
        run(tiny_config(dataset, rebalance="crest", eval_steps=6), tmp_path, progress=False)


def test_what_is_stored_at_the_end_is_finite_or_there_is_no_result(dataset, monkeypatch, tmp_path):
    def too_large_for_16_bits(*args, **kwargs):
        labeled = pseudo_label(*args, **kwargs)
        return labeled._replace(feats=1e6 * labeled.feats)

    monkeypatch.setattr(dasolib.train, "pseudo_label", too_large_for_16_bits)
    with pytest.raises(FloatingPointError, match=r"outputs\.npz: feats would not be finite\. The run stopped after 6"):
        run(tiny_config(dataset), tmp_path, progress=False)
    assert not (tmp_path / "outputs.npz").exists() and not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("lr", [1e4, 1e12, 1e20, 1e30])
@pytest.mark.parametrize("case", [("supervised", ""), ("fixmatch", "daso"), ("remixmatch", "")], ids=str)
def test_a_run_that_diverges_neither_finishes_nor_leaves_a_number_that_is_not_finite(case, lr, dataset, tmp_path):
    method, rebalance = case
    config, said = tiny_config(dataset, method=method, rebalance=rebalance, lr=lr, warmup_steps=0), []
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="The run stopped after [246] steps") as raised:
            run(config, tmp_path, progress=False)
        said.append(str(raised.value))
    assert said[0] == said[1] and not (tmp_path / "result.json").exists()
    for file in tmp_path.glob("checkpoint*.pt"):
        assert all(tensor.isfinite().all() for _, tensor in _float_tensors(torch.load(file, weights_only=True)))


# ---- arithmetic ----


@pytest.mark.parametrize(("numbers", "tolerance"), [({"channels_last": True}, 1e-4), ({"precision": "bf16"}, 0.1),
                                                    ({"precision": "bf16", "channels_last": True}, 0.1)])
def test_other_arithmetic_gives_nearly_the_same_numbers(numbers, tolerance, dataset):
    data, losses, weights = load_data(dataset), [], []
    for changes in ({}, numbers):
        training, batches = make_training(tiny_config(dataset, rebalance="", **changes), data)
        losses.append([sum(training.step(batches.at(t)[0], t).losses.values()).item() for t in range(2)])
        weights.append(training.evaluated.head.weight.detach())
    assert losses[1] == pytest.approx(losses[0], rel=tolerance) and losses[0] != losses[1]
    change = (weights[0] - weights[1]).norm() / weights[0].norm()
    assert 0 < change < tolerance


# ---- what is said ----


def test_a_run_says_what_it_trains_on_and_shows_its_progress(dataset, tmp_path, capsys):
    run(tiny_config(dataset, device="auto"), tmp_path / "shown")
    said = capsys.readouterr()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert f"shown: 26 labeled, 54 unlabeled, 60 test images of 12 x 12 pixels; {device}, 1 threads, fp32\n" in said.out
    assert "fixmatch-daso: 100%" in said.err and "6/6" in said.err
    record = read_metrics(tmp_path / "shown")[-1]
    assert f"{100 * record['accuracy']:.1f} %, mask rate {record['mask_rate']:.2f}]" in said.err


def test_a_resumed_run_says_from_where(dataset, monkeypatch, tmp_path, capsys):
    break_step(monkeypatch, "supervised", {"labeled": float("nan")}, at=3)
    for _ in range(2):
        with pytest.raises(FloatingPointError):
            run(tiny_config(dataset, method="supervised", rebalance=""), tmp_path)
    assert ", from step 2\n" in capsys.readouterr().out


def test_without_progress_nothing_is_said(dataset, tmp_path, capsys):
    run(tiny_config(dataset), tmp_path, progress=False)
    assert capsys.readouterr() == ("", "")


# ---- devices ----


def test_auto_is_a_gpu_if_there_is_one():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_does_not_exist_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"device='{name}': choose auto, or a device that torch has here"):
        choose_device(name)


# ---- nothing is written for a run that cannot be ----


@pytest.mark.parametrize(("changes", "message"), [
    ({"n1": 30}, "n1.*m1"),
    ({"batch_size": 27}, "batch_size=27 is larger than the labeled set"),
    ({"mu": 14}, "is larger than the unlabeled set"),
    ({"unlabeled": "unknown", "m1": None}, "unlabeled='unknown': .* has no separate unlabeled images"),
    ({"device": "cuda:99"}, "device='cuda:99'"),
    ({"n_val": 5}, "n_val"),
    ({"depth": 1000, "width": 100}, r"depth=1000, width=100: takes \d+\.\d GB of memory, .*; choose a smaller depth"),
])
def test_nothing_is_written_when_data_and_settings_do_not_fit(changes, message, dataset, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tiny_config(dataset, **changes), tmp_path / "run", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_when_the_data_are_damaged(dataset, tmp_path):
    content = Path(dataset).read_bytes()
    damaged = tmp_path / "tiny.npz"
    damaged.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="tiny.npz is damaged"):
        run(tiny_config(str(damaged)), tmp_path / "run", progress=False)
    assert list(tmp_path.iterdir()) == [damaged]


def test_a_run_without_a_folder_gets_one_named_after_it(dataset, monkeypatch, tmp_path):
    monkeypatch.setattr(dasolib.train, "resolve", lambda path: tmp_path / path)
    config = tiny_config(dataset, method="supervised", rebalance="")
    run(config, progress=False)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == config.run_name() and folder.name.startswith("tiny-supervised-s0-")
    assert (folder / "result.json").exists()


# ---- what a run refuses before it writes ----


def test_images_too_small_to_be_cropped_are_refused_before_anything_is_written(tmp_path):
    arrays = {name: array[:, :4, :4] if name.startswith("x") else array for name, array in tiny_arrays().items()}
    np.savez(tmp_path / "small.npz", **arrays)
    with pytest.raises(ValueError, match="images of 4 pixels a side; crops need more than 4"):
        run(tiny_config(str(tmp_path / "small.npz")), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_data_set_that_does_not_exist_is_named_as_it_was_given(tmp_path):
    with pytest.raises(ValueError, match="'cifar11'.*mnist5k, cifar10"):
        run(tiny_config("cifar11"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("fastest", "n_warnings"), [("fp32", 1), ("bf16", 0)])
def test_bf16_on_a_cpu_without_it_is_warned_about(fastest, n_warnings, dataset, tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(dasolib.train, "fastest_precision", lambda: fastest)
    run(tiny_config(dataset, total_steps=1, precision="bf16"), tmp_path / "run", progress=False)
    warned = [str(warning.message) for warning in recwarn]
    assert sum("precision='bf16': this CPU has no arithmetic in it" in message for message in warned) == n_warnings


def test_a_device_without_double_precision_is_refused():
    with pytest.raises(ValueError, match="device='mps': choose auto, or .*cpu and cuda are supported"):
        choose_device("mps")


def test_events_that_find_no_room_name_their_folder(tmp_path):
    def write(*value):
        raise OSError(errno.ENOSPC, "No space left on device")

    events = SimpleNamespace(log_dir=tmp_path / "events", add_scalar=write)
    with pytest.raises(OSError, match=r"No space left on device: '.*events'$"):
        write_events(events, {"step": 1, "lr": 0.1, "losses": {}})
