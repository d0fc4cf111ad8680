"""What a run takes from an earlier one: cRT its trained network, DARP the class counts of the unlabeled images."""

import functools
import hashlib
import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from dasolib import augment
from dasolib.batches import make_split
from dasolib.config import make_config
from dasolib.data import load_data
from dasolib.evaluation import predict
from dasolib.models import WideResNet
from dasolib.run_files import read_result, write_result
from dasolib.sources import SAME_SPLIT, estimate_command, trained_network, unlabeled_counts
from dasolib.splits import class_aware_rows, class_aware_weights
from dasolib.train import run
from tests.tiny import N_CLASSES, contents, interrupt, make_training, read_metrics, save_tiny, tiny_config

CRT = {"method": "supervised", "rebalance": "crt"}
# Ten images of each class are held out of the validation set: the tail has only three labeled ones.
SPLIT = {"n_val": 40, "m1": 16}
ESTIMATE = {"method": "distribution_estimate", "rebalance": "", **SPLIT}
DARP = {"rebalance": "darp", "unlabeled": "reversed", **SPLIT}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """Yield a function that trains a configuration once and returns its folder."""
    root = tmp_path_factory.mktemp("sources")

    @functools.cache
    def train(**changes):
        torch.set_num_threads(1)
        config = tiny_config(dataset, **changes)
        run(config, root / config.run_name(), progress=False)
        return root / config.run_name()

    return train


def edit_result(folder, **changes):
    """Make a run one of those that were made before there were checksums, with something else in its result."""
    result = {name: value for name, value in read_result(folder).items() if name != "sha256"}
    (folder / "result.json").write_text(json.dumps(result | changes))
    (folder / "environment.json").unlink()


def is_encoder(name):
    return not name.startswith(("head.", "heads."))


# ---- cRT: a trained encoder, a new head ----

# Methods without and with a moving average, with a further head that predicts, and with one that does not.
TRAINED = [("supervised", ""), ("fixmatch", ""), ("fixmatch", "abc"), ("remixmatch", "")]


@pytest.mark.parametrize(("method", "rebalance"), TRAINED, ids=str)
def test_crt_starts_from_the_encoder_as_it_was_evaluated_and_a_new_head(method, rebalance, dataset, finished):
    folder = finished(method=method, rebalance=rebalance)
    config, data = tiny_config(dataset, **CRT, source=str(folder)), load_data(dataset)
    evaluated = load_file(folder / "model.safetensors")
    loaded = trained_network(config, data)
    assert loaded.record == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()

    training, _ = make_training(config, data)
    fresh = {name: value.clone() for name, value in training.net.state_dict().items()}
    assert set(loaded.weights) == {*fresh} - {"head.weight", "head.bias"}
    training.net.load_state_dict(fresh | loaded.weights)
    for name, value in training.net.state_dict().items():
        assert torch.equal(value, (evaluated if is_encoder(name) else fresh)[name]), name
    assert not torch.equal(fresh["head.weight"], evaluated["head.weight"])
    assert not torch.equal(fresh["stem.weight"], evaluated["stem.weight"])
    if method == "fixmatch":  # the moving average, not the network that was trained
        state = torch.load(folder / "checkpoint.pt", weights_only=True)
        assert torch.equal(evaluated["stem.weight"], state["ema"]["stem.weight"])
        assert not torch.equal(evaluated["stem.weight"], state["net"]["stem.weight"])


@pytest.mark.parametrize("method", ["supervised", "fixmatch"])
def test_crt_trains_the_head_alone_while_the_buffers_of_the_encoder_move(method, dataset, finished, tmp_path):
    source = finished(method=method, rebalance="")
    run(tiny_config(dataset, **CRT, source=str(source)), tmp_path, progress=False)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path))
    data = load_data(dataset)
    training, _ = make_training(tiny_config(dataset, **CRT, source=str(source)), data)
    buffers = {name for name, _ in training.net.named_buffers()}
    assert set(after) == set(before) == set(training.net.state_dict())
    for name, value in after.items():
        if is_encoder(name):
            assert torch.equal(value, before[name]) == (name not in buffers), name
        else:  # from its own start
            assert not torch.equal(value, training.net.state_dict()[name]), name


def test_crt_evaluates_the_network_itself_and_says_what_it_came_from(dataset, finished, tmp_path):
    source = finished(method="fixmatch", rebalance="")
    run(tiny_config(dataset, **CRT, source=str(source)), tmp_path, progress=False)
    assert json.loads((tmp_path / "model.json").read_text())["evaluated"] == "student"
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["ema"] is None
    stored = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in state["net"].items())
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["source"] == source.name  # where it lies is no part of the run, what is in it is
    assert record["taken"] == {"source": hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()}


def test_crt_weighs_rows_by_effective_numbers_from_the_first_step_on_batches_as_of_any_supervised_run(dataset):
    """Counts 12, 7, 4, 3 and beta .999: weights nearly 1 / N, scaled to sum to four; the mean is over rows."""
    data = load_data(dataset)
    training, batches = make_training(tiny_config(dataset, **CRT, source="runs/any"), data)
    _, plain = make_training(tiny_config(dataset, method="supervised", rebalance=""), data)
    assert all(torch.equal(batches.labeled_rows(t), plain.labeled_rows(t)) for t in range(6))
    per_image = torch.tensor([(1 - 0.999) / (1 - 0.999**n) for n in (12, 7, 4, 3)], dtype=torch.float64)
    logits, y = torch.randn(8, 4, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
    want = (4 * per_image / per_image.sum())[y] * torch.nn.functional.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(training.rebalance.labeled_loss(logits, y, 0), want.mean(), rtol=1e-6, atol=0)
    aware, _ = make_training(tiny_config(dataset, **CRT, source="runs/any", crt_balancing="batches"), data)
    torch.testing.assert_close(aware.rebalance.labeled_loss(logits, y, 0),
                               torch.nn.functional.cross_entropy(logits, y))


def test_batches_of_crt_draw_the_classes_nearly_alike_though_the_tail_has_a_quarter_of_the_head(dataset):
    """Weights .001 / (1 - .999^N) are nearly 1 / N for N <= 12, so each class has nearly a quarter of the rows."""
    data = load_data(dataset)
    config = tiny_config(dataset, **CRT, source="runs/any", crt_balancing="batches", total_steps=1500)
    _, batches = make_training(config, data)
    rows = torch.stack([batches.labeled_rows(t) for t in range(1500)])
    counts = torch.tensor([12, 7, 4, 3])
    weights = class_aware_weights(counts, 0.999)
    share = counts * weights / (counts * weights).sum()
    drawn = torch.bincount(batches.y[rows].flatten()) / rows.numel()
    assert share.tolist() == pytest.approx([0.25] * 4, abs=2e-3)
    assert drawn.tolist() == pytest.approx(share.tolist(), abs=0.0225)  # four standard deviations
    expected = class_aware_rows(batches.y, weights, batch_size=4, step=7, seed=0)
    assert torch.equal(rows[7], expected)
    assert torch.equal(batches.at(7)[0].y, batches.y[expected])


def test_the_place_of_the_source_makes_no_other_run(dataset):
    names = {tiny_config(dataset, **CRT, source=source).run_name() for source in ("runs/x", "/elsewhere/x", "x")}
    assert len(names) == 1
    assert tiny_config(dataset, **CRT, source="runs/y").run_name() not in names


def test_crt_goes_on_from_its_checkpoint_only_with_the_network_it_began_with(dataset, finished, monkeypatch, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(finished(method="supervised", rebalance=""), source)
    config = tiny_config(dataset, **CRT, source=str(source))
    interrupt(monkeypatch, config, tmp_path / "run", at=5)
    other = finished(method="fixmatch", rebalance="") / "model.safetensors"
    shutil.copy(other, source / "model.safetensors")
    with pytest.raises(ValueError, match="source/model.safetensors is damaged .its checksum"):
        run(config, tmp_path / "run", progress=False)
    write_result(source, read_result(source))  # somebody else's network, and not by accident
    with pytest.raises(ValueError, match=r"holds another run; taken: {'source': '\w{64}'} there, {'source': '\w{64}'}"):
        run(config, tmp_path / "run", progress=False)


# ---- what cRT refuses to start from ----


def test_crt_without_a_source_is_refused_by_the_configuration(dataset):
    with pytest.raises(ValueError, match="source=None: rebalance='crt' starts from a trained network"):
        tiny_config(dataset, **CRT)


def refuses(config, folder, message):
    with pytest.raises(ValueError, match=message):
        run(config, folder, progress=False)
    assert not folder.exists()


def test_a_source_that_is_no_run_is_refused(dataset, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        config = tiny_config(dataset, **CRT, source=str(tmp_path / name))
        refuses(config, tmp_path / "run", rf"source='.*{name}' is not the folder of a run: it has no config.json")


def test_a_source_that_is_not_finished_is_refused(dataset, monkeypatch, tmp_path):
    interrupt(monkeypatch, tiny_config(dataset, method="supervised", rebalance=""), tmp_path / "source", at=5)
    config = tiny_config(dataset, **CRT, source=str(tmp_path / "source"))
    refuses(config, tmp_path / "run", r"source='.*source' is not finished: it has no result.json; start it again")


def test_a_source_without_its_network_is_refused(dataset, finished, tmp_path):
    shutil.copytree(finished(method="supervised", rebalance=""), tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").unlink()
    config = tiny_config(dataset, **CRT, source=str(tmp_path / "source"))
    refuses(config, tmp_path / "run", "source='.*' has no model.safetensors: committed results come without")


def without(part):
    return lambda weights: {name: weight for name, weight in weights.items() if part not in name}


def changed(**new):
    return lambda weights: weights | {name: change(weights[name]) for name, change in new.items()}


@pytest.mark.parametrize(("change", "message"), [
    (lambda weights: {name: weight for name, weight in weights.items() if not is_encoder(name)},
     r"no stem\.weight; no [\w.]+; no [\w.]+ and \d+ more"),
    (without("bn.running_var"), r"no bn\.running_var"),
    (lambda weights: weights | {"stem.bias": torch.zeros(16)}, r"unknown stem\.bias"),
    (changed(**{"stem.weight": lambda weight: weight[:8].clone()}),
     r"stem\.weight is float32 \(8, 1, 3, 3\), not float32 \(16, 1, 3, 3\)"),
    (changed(**{"bn.weight": lambda weight: weight.double()}), r"bn\.weight is float64 \(64,\), not float32 \(64,\)"),
    (changed(**{"bn.running_var": lambda weight: weight * float("inf")}), r"bn\.running_var is not finite"),
    (changed(**{"bn.bias": lambda weight: weight.fill_(float("nan"))}), r"bn\.bias is not finite"),
], ids=["encoder missing", "one missing", "one more", "shape", "type", "infinite", "not a number"])
def test_a_source_that_is_not_exactly_the_encoder_is_refused_by_name(change, message, dataset, finished, tmp_path):
    shutil.copytree(finished(method="supervised", rebalance=""), tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    save_file(change(load_file(file)), file)
    write_result(file.parent, read_result(file.parent))
    config = tiny_config(dataset, **CRT, source=str(tmp_path / "source"))
    refuses(config, tmp_path / "run", f"^source='.*source': .*{file.name} is not the network of this run: {message};")


def test_a_source_whose_file_is_damaged_is_refused_by_name(dataset, finished, tmp_path):
    shutil.copytree(finished(method="supervised", rebalance=""), tmp_path / "source")
    file = tmp_path / "source" / "model.safetensors"
    content = file.read_bytes()
    config = tiny_config(dataset, **CRT, source=str(tmp_path / "source"))
    for damaged in (b"", content[:-1], b"x" + content):
        file.write_bytes(damaged)
        refuses(config, tmp_path / "run", rf"^{file} is damaged \(its checksum .*; restore it from a copy, or move")
        write_result(file.parent, read_result(file.parent))
        refuses(config, tmp_path / "run", rf"^{file} is damaged \(no weights can .*; restore it from a copy, or move")


@pytest.mark.parametrize(("changes", "difference"), [
    ({"seed": 1}, "seed: 0 there, 1 here"),
    ({"n1": 10}, "n1: 12 there, 10 here"),
    ({"m1": 20}, "m1: 24 there, 20 here"),
    ({"gamma_l": 3.0, "gamma_u": 4.0}, "gamma_l: 4.0 there, 3.0 here"),
    ({"gamma_u": 2.0}, "gamma_u: 4.0 there, 2.0 here"),
    ({"unlabeled": "equal"}, "unlabeled: 'reversed' there, 'equal' here"),
    ({"n_val": 4}, "n_val: 0 there, 4 here"),
    ({"depth": 16}, "depth: 10 there, 16 here"),
    ({"width": 2, "seed": 1}, "seed: 0 there, 1 here; width: 1 there, 2 here"),
], ids=str)
def test_a_source_of_another_split_or_network_is_refused_and_the_difference_named(changes, difference, dataset,
                                                                                  finished, tmp_path):
    source = str(finished(method="supervised", rebalance=""))
    config = tiny_config(dataset, **CRT, source=source, **changes)
    refuses(config, tmp_path / "run", rf"source='.*' does not fit this run; {difference}$")


def test_a_source_of_other_data_is_refused(finished, tmp_path):
    other = save_tiny(tmp_path, x_test=np.zeros((N_CLASSES, 12, 12), np.uint8), y_test=np.arange(N_CLASSES))
    config = tiny_config(other, **CRT, source=str(finished(method="supervised", rebalance="")))
    refuses(config, tmp_path / "run", r"does not fit this run; data_sha256: '\w{64}' there, '\w{64}' here$")


# ---- the run that estimates the class counts of the unlabeled images ----

TRUE_COUNTS = [4, 6, 10, 16]  # of the unlabeled images in SPLIT, reversed


def mean_of(metrics):
    accepted = [record["unlabeled_estimate"] for record in metrics if record["unlabeled_estimate"] is not None]
    return np.mean(accepted, axis=0).tolist()


def test_the_result_is_the_mean_of_the_accepted_estimates(finished):
    folder = finished(**ESTIMATE, total_steps=12, lr=0.05)
    metrics, result = read_metrics(folder), json.loads((folder / "result.json").read_text())
    accepted = [record["unlabeled_estimate"] is not None for record in metrics]
    assert not all(accepted) and sum(accepted) > 1  # a network that has learned nothing yet gives none
    assert result["unlabeled_counts"] == mean_of(metrics)
    assert sum(result["unlabeled_counts"]) == pytest.approx(sum(TRUE_COUNTS))


def test_a_network_that_has_learned_estimates_the_counts_though_they_are_the_reverse_of_the_labeled(finished):
    folder = finished(**ESTIMATE, total_steps=36, lr=0.05)
    result = json.loads((folder / "result.json").read_text())
    assert result["labeled_counts"] == [12, 7, 4, 3]
    assert result["unlabeled_counts"] == pytest.approx(TRUE_COUNTS, abs=2.5)


def test_the_last_estimate_follows_from_the_network_and_the_held_out_images(dataset, finished):
    """Columns of the confusion matrix: mean prediction of each class's held-out images; its inverse times the sums."""
    folder, data = finished(**ESTIMATE, total_steps=12, lr=0.05), load_data(dataset)
    config = tiny_config(dataset, **ESTIMATE, total_steps=12, lr=0.05)
    split = make_split(config, data)
    net = WideResNet(depth=10, width=1, n_classes=N_CLASSES, in_channels=1)
    net.load_state_dict(load_file(folder / "model.safetensors"))
    normalize = functools.partial(augment.normalize, mean=data.mean, std=data.std)
    held_out, unlabeled = (predict(net, data.x_train[rows], normalize)[1].softmax(dim=-1).double().numpy()
                           for rows in (split.validation, split.unlabeled))
    target = data.y_train[split.validation].numpy()
    confusion = np.stack([held_out[target == k].mean(axis=0) for k in range(N_CLASSES)], axis=1)
    expected = np.linalg.inv(confusion) @ unlabeled.sum(axis=0)
    np.testing.assert_allclose(read_metrics(folder)[-1]["unlabeled_estimate"], expected, rtol=1e-5)


def test_without_an_accepted_estimate_there_are_no_counts(finished):
    folder = finished(**ESTIMATE, lr=1e-6)
    assert {record["unlabeled_estimate"] for record in read_metrics(folder)} == {None}
    assert json.loads((folder / "result.json").read_text())["unlabeled_counts"] is None


def held_out_of(dataset, **changes):
    data, config = load_data(dataset), tiny_config(dataset, **ESTIMATE | changes)
    split, batches = make_split(config, data), make_training(config, data)[1]
    images, target = batches.held_out
    assert torch.equal(images, data.x_train[split.validation])
    assert torch.equal(target, data.y_train[split.validation])
    assert torch.bincount(target).tolist() == [10] * N_CLASSES
    return split, batches, make_split(tiny_config(dataset, **ESTIMATE | changes | {"method": "supervised"}), data)


def test_held_out_images_leave_the_labeled_set_where_the_tail_has_more_than_ten(dataset):
    """int(14 * (1 / 1.2)^(k / 3)) = 14, 13, 12, 11."""
    split, batches, plain = held_out_of(dataset, n1=14, gamma_l=1.2, gamma_u=4.0, n_val=0)
    assert batches.labeled_counts.tolist() == [4, 3, 2, 1] and len(batches.x) == 10
    assert set(split.validation) | set(split.labeled) == set(plain.labeled)
    assert not set(split.validation) & set(split.labeled)
    np.testing.assert_array_equal(split.unlabeled, plain.unlabeled)


def test_held_out_images_come_from_the_validation_set_where_the_tail_has_ten_or_fewer(dataset):
    split, batches, plain = held_out_of(dataset)
    assert batches.labeled_counts.tolist() == [12, 7, 4, 3]
    np.testing.assert_array_equal(split.labeled, plain.labeled)
    assert set(split.validation) <= set(plain.validation)


def test_a_tail_too_short_without_validation_images_is_refused(dataset, tmp_path):
    refuses(tiny_config(dataset, **ESTIMATE | {"n_val": 0}), tmp_path / "run", "raise n_val to 40, here and in the run")


def test_only_such_a_run_holds_images_out(dataset):
    _, batches = make_training(tiny_config(dataset, method="supervised", rebalance=""), load_data(dataset))
    assert batches.held_out is None


# ---- the counts that DARP aims at ----


@pytest.fixture
def project(monkeypatch, tmp_path):
    """Yield an empty folder in place of the project's root."""
    monkeypatch.setattr("dasolib.sources.project_root", lambda: tmp_path)
    monkeypatch.setattr("dasolib.sources.resolve", lambda path: tmp_path / path)
    return tmp_path


@pytest.fixture
def with_estimate(finished, project):
    """Yield the project with one estimate among its runs."""
    shutil.copytree(finished(**ESTIMATE), project / "runs" / "deep" / "estimate")
    return project


def aim_of(dataset, **changes):
    config, data = tiny_config(dataset, **DARP | changes), load_data(dataset)
    batches = make_training(config, data)[1]
    return unlabeled_counts(config, data, batches.labeled_counts, len(batches.u))


def test_darp_aims_at_the_label_frequency_where_labeled_and_unlabeled_are_made_alike(dataset, with_estimate):
    """Not at the true counts 24, 15, 9, 6, whose integer parts have other shares; no estimate is read."""
    aim = aim_of(dataset, unlabeled="equal", m1=24, n_val=0)
    assert aim.counts.tolist() == pytest.approx([54 * n / 26 for n in (12, 7, 4, 3)]) and aim.record is None
    assert aim.counts.dtype == torch.float64


@pytest.mark.parametrize("unlabeled", ["equal", "reversed"])
def test_given_counts_are_scaled_to_the_unlabeled_images_wherever_the_target_would_come_from(unlabeled, dataset,
                                                                                             with_estimate):
    """A published estimate can be named for all seeds."""
    aim = aim_of(dataset, unlabeled=unlabeled, m1=24, n_val=0, unlabeled_counts=(4, 2, 2, 1))
    assert aim.counts.tolist() == pytest.approx([24, 12, 12, 6]) and aim.record is None


def test_as_many_counts_as_classes_must_be_given(dataset, project):
    with pytest.raises(ValueError, match=r"unlabeled_counts=\(4.0, 2.0\): 2 numbers, and dataset=.* has 4 classes"):
        aim_of(dataset, unlabeled_counts=(4, 2))


@pytest.mark.parametrize("changes", [{"unlabeled": "reversed"}, {"unlabeled": "uniform"},
                                     {"unlabeled": "equal", "gamma_u": 2.0}], ids=str)
def test_darp_asks_for_an_estimate_of_another_distribution(changes, dataset, project):
    with pytest.raises(ValueError, match=r"unlabeled_counts=None leaves .* Estimate them first:\n    papermill"):
        aim_of(dataset, **changes)


def test_a_run_that_aims_at_nothing_takes_nothing(dataset, project):
    config = tiny_config(dataset, rebalance="distribution_alignment")
    assert unlabeled_counts(config, load_data(dataset), torch.ones(N_CLASSES), 5) is None
    assert trained_network(config, load_data(dataset)) is None


@pytest.mark.parametrize("source", [{}, {"source": "runs/deep/estimate"}], ids=["found", "named"])
def test_darp_takes_the_estimate_of_its_split(source, dataset, with_estimate, finished):
    aim = aim_of(dataset, **source)
    expected = json.loads((finished(**ESTIMATE) / "result.json").read_text())["unlabeled_counts"]
    assert aim.record == expected and aim.counts.tolist() == pytest.approx(expected)


def test_a_darp_run_aims_at_the_estimate_and_records_it(dataset, with_estimate, tmp_path):
    run(tiny_config(dataset, **DARP), tmp_path / "run", progress=False)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    result = json.loads((with_estimate / "runs" / "deep" / "estimate" / "result.json").read_text())
    assert record["taken"] == {"unlabeled_counts": result["unlabeled_counts"]}
    assert "source" not in record  # whoever names the folder and whoever lets it be found make the same run
    refined = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["rebalance"]["parts.darp.refined"]
    # Newton's method stops where the sums are nearly met.
    assert refined.sum(dim=0).tolist() == pytest.approx(result["unlabeled_counts"], abs=1.0)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"n1": 11}, {"n_val": 44}, {"gamma_u": 3.0}], ids=str)
def test_an_estimate_of_another_split_is_not_found_and_refused_where_it_is_named(changes, dataset, with_estimate):
    with pytest.raises(ValueError, match="Estimate them first"):
        aim_of(dataset, **changes)
    (name, value), = changes.items()
    with pytest.raises(ValueError, match=f"does not fit this run; {name}: .* there, {value} here"):
        aim_of(dataset, source="runs/deep/estimate", **changes)


def test_a_source_that_estimates_nothing_is_refused(dataset, project, finished):
    shutil.copytree(finished(rebalance="", **SPLIT), project / "runs" / "other")
    with pytest.raises(ValueError, match="source='runs/other' is a run of fixmatch; the class counts come from one of"):
        aim_of(dataset, source="runs/other")


def test_an_unfinished_estimate_is_not_found_and_refused_where_it_is_named(dataset, with_estimate):
    (with_estimate / "runs" / "deep" / "estimate" / "result.json").unlink()
    with pytest.raises(ValueError, match="Estimate them first"):
        aim_of(dataset)
    with pytest.raises(ValueError, match="is not finished: it has no result.json"):
        aim_of(dataset, source="runs/deep/estimate")


@pytest.mark.parametrize("content", ["{}", '{  // rate\n  "lr": 0.1}', "", '["vit"]', '{"method": "distribution_esti'])
def test_foreign_files_under_runs_do_no_harm(content, dataset, with_estimate):
    for folder, name in (("half", "result.json"), ("other half", "config.json")):
        (with_estimate / "runs" / folder).mkdir()
        (with_estimate / "runs" / folder / name).write_text(content)
    with pytest.warns(UserWarning, match="left out: .*other half/config.json is damaged"):
        assert aim_of(dataset) is not None


def test_several_estimates_that_differ_are_refused_and_named(dataset, with_estimate, finished):
    shutil.copytree(finished(**ESTIMATE, total_steps=12, lr=0.05), with_estimate / "runs" / "longer")
    with pytest.raises(ValueError, match="several runs estimate .* differently; name one of .*deep/estimate, .*longer"):
        aim_of(dataset)
    chosen = aim_of(dataset, source="runs/longer")
    assert chosen.record != aim_of(dataset, source="runs/deep/estimate").record


def test_several_estimates_that_agree_are_one(dataset, with_estimate):
    shutil.copytree(with_estimate / "runs" / "deep" / "estimate", with_estimate / "runs" / "copy")
    assert aim_of(dataset).record == aim_of(dataset, source="runs/copy").record


def test_an_estimate_that_was_not_accepted_does_not_hide_one_that_was(dataset, with_estimate, finished):
    shutil.copytree(finished(**ESTIMATE, lr=1e-6), with_estimate / "runs" / "useless")
    assert aim_of(dataset).record == aim_of(dataset, source="runs/deep/estimate").record


@pytest.mark.parametrize("source", [{}, {"source": "runs/useless"}], ids=["found", "named"])
def test_an_estimate_without_an_accepted_one_is_refused(source, dataset, project, finished):
    shutil.copytree(finished(**ESTIMATE, lr=1e-6), project / "runs" / "useless")
    with pytest.raises(ValueError, match="source='.*runs/useless': none of its estimates was accepted"):
        aim_of(dataset, **source)


@pytest.mark.parametrize("source", [{}, {"source": "runs/deep/estimate"}], ids=["found", "named"])
@pytest.mark.parametrize("counts", [[9.0, 9.0, 9.0], [9.0] * 5, [9.0, 9.0, 9.0, -1.0], [9.0, 9.0, 9.0, float("nan")],
                                    [9.0, 9.0, 9.0, float("inf")], [0.0] * 4, "9999", [True] * 4, {}], ids=str)
def test_an_estimate_that_is_no_count_for_each_class_is_refused_by_name(source, counts, dataset, with_estimate):
    edit_result(with_estimate / "runs" / "deep" / "estimate", unlabeled_counts=counts)
    with pytest.raises(ValueError, match=r"source='.*estimate': unlabeled_counts=.* must hold 4 finite counts >= 0"):
        aim_of(dataset, **source)


def test_darp_goes_on_with_the_estimate_it_began_with(dataset, with_estimate, monkeypatch, tmp_path):
    config = tiny_config(dataset, **DARP)
    interrupt(monkeypatch, config, tmp_path / "stopped", at=5)
    for name in ("stopped", "undisturbed"):
        run(config, tmp_path / name, progress=False)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "undisturbed")


def test_darp_refuses_to_go_on_with_another_estimate(dataset, with_estimate, monkeypatch, tmp_path):
    config = tiny_config(dataset, **DARP)
    interrupt(monkeypatch, config, tmp_path / "run", at=5)
    folder = with_estimate / "runs" / "deep" / "estimate"
    write_result(folder, read_result(folder) | {"unlabeled_counts": [9.0, 9.0, 9.0, 9.0]})
    with pytest.raises(ValueError, match=r"holds another run; taken: .* there, {'unlabeled_counts': \[9.0, 9.0, 9.0, "):
        run(config, tmp_path / "run", progress=False)


# ---- the command that a refusal names ----


def parameters_of(command):
    """What papermill makes of a command: `-p` values are numbers where they look like one, `-y` is YAML."""
    words = shlex.split(command)
    assert words[:3] == ["papermill", "notebooks/train.ipynb", "runs/estimate.ipynb"]
    parameters, rest = {}, iter(words[3:])
    for option in rest:
        if option == "-p":
            name = next(rest)
            parameters[name] = yaml.safe_load(next(rest))
        else:
            assert option == "-y"
            parameters |= yaml.safe_load(next(rest))
    return parameters


NATURAL = {"n1": None, "m1": None, "gamma_l": None, "unlabeled": "unknown"}


@pytest.mark.parametrize(("dataset", "changes"), [
    ("cifar10", {"unlabeled": "reversed"}),
    ("cifar10", {"unlabeled": "uniform", "seed": 2}),
    ("cifar10", {"unlabeled": "equal", "gamma_u": 50.0}),
    ("cifar100", {"unlabeled": "reversed", "n1": 50, "m1": 400, "gamma_l": 20.0}),
    ("stl10", {"n1": 450}),
    ("semi_aves_unknown", {}),
    ("mnist5k", {"n_val": 100, "n1": 40}),
    ("my data/birds", {"resolution": 64, **NATURAL}),
    ("flowers", {"labeled_indices": (3, 1, 4), **NATURAL}),
], ids=str)
@pytest.mark.parametrize("preset", ["paper", "cpu"])
def test_the_command_of_the_refusal_makes_the_estimate_of_the_same_split(preset, dataset, changes):
    """The notebook hands its parameters to `make_config`, those under ``settings`` among them."""
    config = make_config(preset, dataset=dataset, method="fixmatch", rebalance="darp", **changes)
    parameters = parameters_of(estimate_command(config))
    estimate = make_config("cpu", **parameters | parameters.pop("settings"))
    assert estimate.method == "distribution_estimate" and estimate.rebalance == ()
    names = {*SAME_SPLIT, "dataset", "resolution"} - {"data_sha256"}
    assert {name: getattr(estimate, name) for name in names} == {name: getattr(config, name) for name in names}


def own_images(dataset, every, **changes):
    """DARP on own images of which every so-manieth is labeled."""
    return tiny_config(dataset, rebalance="darp", labeled_indices=tuple(range(0, 160, every)), **NATURAL | changes)


@pytest.mark.parametrize("made", [lambda data: own_images(data, 3, batch_size=40),
                                  lambda data: tiny_config(data, **DARP)], ids=["own images", "made split"])
def test_the_command_of_the_refusal_runs_and_the_refused_run_then_starts(made, dataset, project):
    """With a smaller batch, where the images held out leave too few labeled ones for it."""
    config = made(dataset)
    with pytest.raises(ValueError, match="Estimate them first") as caught:
        run(config, project / "darp", progress=False)
    (command,) = re.findall("papermill .*", str(caught.value))
    parameters = parameters_of(command)
    estimate = make_config("cpu", **parameters | parameters.pop("settings"), total_steps=1, threads=1)
    run(estimate, project / "runs" / "estimate", progress=False)
    result = json.loads((project / "runs" / "estimate" / "result.json").read_text())
    write_result(project / "runs" / "estimate", result | {"unlabeled_counts": [27.0] * N_CLASSES})
    assert run(config, project / "darp", progress=False)["steps"] == config.total_steps


@pytest.mark.parametrize(("method", "rebalance"), [("distribution_estimate", ""), ("fixmatch", "darp")])
def test_own_images_that_are_too_few_for_an_estimate_get_no_command(method, rebalance, dataset, project):
    """And no n_val, which would come from the same images."""
    config = own_images(dataset, 4).model_copy(update={"method": method, "rebalance": (rebalance,) * bool(rebalance)})
    with pytest.raises(ValueError, match="rarest class has 10 labeled images.*; label more of each") as caught:
        run(config, project / "run", progress=False)
    assert "papermill" not in str(caught.value) and "n_val" not in str(caught.value)


def test_a_made_split_without_room_for_more_validation_images_is_not_told_to_take_them(dataset, project):
    with pytest.raises(ValueError, match="; no n_val makes up for that: choose n1 > 10 gamma_l"):
        run(tiny_config(dataset, **DARP | {"n_val": 0, "m1": 28}), project / "run", progress=False)
