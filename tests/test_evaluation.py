"""Test counts along the way, stored outputs and the numbers that are reported."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score

from dasolib import augment
from dasolib.data import ImageData
from dasolib.evaluation import (
    LAST,
    PREDICT_BATCH,
    TestSet,
    estimate_counts,
    outputs,
    predict,
    predictions,
    pseudo_label,
    summarize,
)
from dasolib.models import WideResNet
from dasolib.pseudo_labels import PseudoLabels, sharpen
from tests.tiny import tiny_config

K, SIDE = 3, 8
CPU = torch.device("cpu")
NORMALIZE = functools.partial(augment.normalize, mean=(0.5,), std=(0.25,))


def random_data(n_test=70, absent=None):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n_test, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    target = torch.arange(n_test) % K
    if absent is not None:
        target[target == absent] = (absent + 1) % K
    return ImageData(name="toy", x_train=images[:K], y_train=torch.arange(K), x_test=images, y_test=target,
                     class_names=tuple("abc"), mean=(0.5,), std=(0.25,))


def network(precision="fp32"):
    generator = torch.Generator().manual_seed(1)
    return WideResNet(depth=10, width=1, n_classes=K, in_channels=1, precision=precision, generator=generator)


def test_set(data, prior=(0.6, 0.3, 0.1), **changes):
    return TestSet(data, tiny_config("toy", **changes), torch.tensor(prior), NORMALIZE, CPU)


test_set.__test__ = False


# ---- predictions ----


@pytest.mark.parametrize("train_mode", [True, False])
def test_prediction_uses_the_stored_statistics_and_leaves_the_network_as_it_was(train_mode):
    net, images = network().train(train_mode), random_data().x_test
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    feats, logits = predict(net, images, NORMALIZE)
    assert net.training == train_mode
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    with torch.no_grad():
        alone = net.eval()(NORMALIZE(images[:1]))
    torch.testing.assert_close(logits[:1], alone)  # in train mode it would depend on the images beside it
    assert feats.shape == (70, 64) and logits.shape == (70, K) and not logits.requires_grad


def test_prediction_in_parts_equals_prediction_at_once(monkeypatch):
    net, images = network(), random_data().x_test
    whole = predict(net, images, NORMALIZE)
    monkeypatch.setitem(PREDICT_BATCH, "cpu", 32)
    for parts, once in zip(predict(net, images, NORMALIZE), whole, strict=True):
        torch.testing.assert_close(parts, once)


# ---- counts ----


def test_counts_are_the_confusion_matrices_of_plain_and_adjusted_predictions():
    data, net, prior = random_data(), network(), (0.6, 0.3, 0.1)
    logits = predict(net, data.x_test, NORMALIZE)[1].double().numpy()
    plain, adjusted = test_set(data, prior, eval_images=None).evaluate(net, step=6)
    np.testing.assert_array_equal(plain, confusion_matrix(data.y_test, logits.argmax(1), labels=range(K)))
    expected = confusion_matrix(data.y_test, (logits - np.log(prior)).argmax(1), labels=range(K))
    np.testing.assert_array_equal(adjusted, expected)
    assert plain.dtype == np.int64 and (plain != adjusted).any()


def test_a_class_without_test_images_has_an_empty_row():
    plain, _ = test_set(random_data(absent=1), eval_images=None).evaluate(network(), step=6)
    assert plain.shape == (K, K) and plain[1].sum() == 0 and plain.sum() == 70


@pytest.mark.parametrize(("total_steps", "eval_steps"), [(100, 4), (98, 4), (101, 4), (25, 1), (6, 2), (3, 10)])
def test_the_last_20_evaluations_see_all_test_images_and_those_before_a_part(total_steps, eval_steps):
    test = test_set(random_data(), total_steps=total_steps, eval_steps=eval_steps, eval_images=30, refresh_steps=1,
                    pretrain_steps=1)
    steps = [t + 1 for t in range(total_steps) if (t + 1) % eval_steps == 0 or t + 1 == total_steps]
    n_images = [int(test.evaluate(network(), step=step)[0].sum()) for step in steps]
    assert n_images == [30] * max(0, len(steps) - 20) + [70] * min(20, len(steps))


def test_the_part_is_the_same_in_every_run():
    data = random_data()
    parts = [test_set(data, eval_images=30, seed=seed, method=method, rebalance="").part
             for seed in (0, 1) for method in ("supervised", "fixmatch")]
    assert all(torch.equal(part, parts[0]) for part in parts)
    assert len(parts[0].unique()) == 30 and parts[0].max() < 70
    assert not torch.equal(parts[0], torch.arange(30))  # classes may come in order: the first 30 would not do


def test_all_test_images_are_used_where_fewer_than_asked_for_exist():
    assert len(test_set(random_data(), eval_images=500).part) == 70


# ---- estimated class counts ----


class PixelsAsLogits(torch.nn.Module):
    """Stands for a network that says of an image what its pixels are."""

    def __init__(self):
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(()))  # says on which device the network is

    def features(self, x):
        return x.flatten(1)

    def predict(self, feats):
        return feats


def flat_images(rows):
    """Images (n, 1, 1, K) of whole numbers, which `PixelsAsLogits` takes for logits."""
    return torch.tensor(rows, dtype=torch.uint8).view(-1, 1, 1, len(rows[0]))


@pytest.mark.parametrize(("held_out", "estimate"), [
    # Classes 0 and 1 are told apart without fail: 3 and 5 images are counted as they are predicted.
    ([[200, 0], [0, 200]], [3.0, 5.0]),
    # Both held-out images are taken for class 0: the confusion cannot be undone.
    ([[200, 0], [200, 0]], None),
])
def test_an_estimate_that_is_not_accepted_leaves_no_numbers(held_out, estimate):
    assert_estimate(held_out, 4, estimate)


@pytest.mark.parametrize(("batch_size", "estimate"), [(8, [3.0, 5.0]), (3, [3.0, 3.0]), (9, [3.0, 5.0])])
def test_an_estimate_leaves_out_the_last_incomplete_batch_unless_it_is_the_only_one(batch_size, estimate):
    assert_estimate([[200, 0], [0, 200]], batch_size, estimate)


def assert_estimate(held_out, batch_size, estimate):
    batches = SimpleNamespace(held_out=(flat_images(held_out), torch.tensor([0, 1])),
                              u=flat_images([[200, 0]] * 3 + [[0, 200]] * 5),
                              config=SimpleNamespace(batch_size=batch_size))
    got = estimate_counts(PixelsAsLogits(), batches, SimpleNamespace(normalize=torch.Tensor.float))
    assert got == {"unlabeled_estimate": estimate and pytest.approx(estimate)}


# ---- summary ----


def random_counts(n, k=4, seed=0):
    return list(np.random.default_rng(seed).integers(1, 9, (n, k, k)))


def lines(n, images=100):
    return [{"step": 10 * (i + 1), "seconds": 2.5 * (i + 1), "test_images": images} for i in range(n)]


def test_the_summary_of_one_evaluation_worked_by_hand():
    """Class counts (1, 50, 10, 5): class 1 is head, class 0 tail; class 3 has no test image."""
    plain = np.array([[8, 2, 0, 0], [0, 10, 0, 0], [5, 0, 5, 0], [0, 0, 0, 0]])
    adjusted = np.array([[10, 0, 0, 0], [0, 6, 4, 0], [0, 0, 10, 0], [0, 0, 0, 0]])
    counts = {"test": [plain], "test_adjusted": [adjusted]}
    got = summarize([{"step": 7, "seconds": 1.5, "test_images": 30}], counts, [1, 50, 10, 5])
    assert got == {
        "labeled_counts": [1, 50, 10, 5], "steps": 7, "evaluations": 1, "seconds": 1.5, "mask_rate": None,
        "plain": {
            "accuracy": pytest.approx(23 / 30), "last": pytest.approx(23 / 30), "best": pytest.approx(23 / 30),
            "best_step": 7, "best_images": 30, "balanced": pytest.approx(2.3 / 3), "per_class": [0.8, 1.0, 0.5, None],
            "groups": {"head": 1.0, "medium": 0.5, "tail": 0.8},
        },
        "adjusted": {
            "accuracy": pytest.approx(26 / 30), "last": pytest.approx(26 / 30), "best": pytest.approx(26 / 30),
            "best_step": 7, "best_images": 30, "balanced": pytest.approx(2.6 / 3), "per_class": [1.0, 0.6, 1.0, None],
            "groups": {"head": 0.6, "medium": 1.0, "tail": 1.0},
        },
    }


@pytest.mark.parametrize(("rates", "mean"), [
    ([0.9] * 5 + [0.25] * 10 + [0.75] * 10, 0.5),  # of the last 20
    ([0.0, 0.5], 0.25), ([1.0], 1.0), ([None] * 30, None),
], ids=["25", "2", "1", "none"])
def test_the_mask_rate_of_a_result_is_the_mean_over_the_windows_of_the_last_20_evaluations(rates, mean):
    records = [line | {"mask_rate": rate} for line, rate in zip(lines(len(rates)), rates, strict=True)]
    table = np.array([[1, 0], [0, 1]])
    assert summarize(records, {"test": [table], "test_adjusted": [table]}, [2, 1])["mask_rate"] == mean


@pytest.mark.parametrize("n", [1, 5, 20, 33])
def test_the_summary_agrees_with_scikit_learn(n):
    plain, adjusted = random_counts(n), random_counts(n, seed=1)
    got = summarize(lines(n), {"test": plain, "test_adjusted": adjusted}, [40, 30, 20, 10])
    for name, tables in (("plain", plain), ("adjusted", adjusted)):
        rows = []
        for table in tables:
            pairs = [(i, j) for i in range(4) for j in range(4) for _ in range(table[i, j])]
            target, predicted = zip(*pairs, strict=True)
            rows.append({"accuracy": accuracy_score(target, predicted),
                         "balanced": balanced_accuracy_score(target, predicted),
                         "per_class": recall_score(target, predicted, average=None)})
        last = rows[-LAST:]
        assert got[name]["accuracy"] == pytest.approx(np.median([row["accuracy"] for row in last]))
        assert got[name]["last"] == pytest.approx(rows[-1]["accuracy"])
        assert got[name]["best"] == pytest.approx(max(row["accuracy"] for row in rows))
        assert got[name]["best_step"] == 10 * (1 + np.argmax([row["accuracy"] for row in rows]))
        assert got[name]["balanced"] == pytest.approx(np.median([row["balanced"] for row in last]))
        assert got[name]["per_class"] == pytest.approx(np.median([row["per_class"] for row in last], axis=0))


def test_accuracy_is_the_median_of_the_last_20_evaluations_and_no_earlier_one():
    """25 evaluations of 100 images with 0, 1, ..., 24 right: the last 20 have 5..24, median 14.5."""
    tables = [np.array([[right, 50 - right], [50, 0]]) for right in range(25)]
    got = summarize(lines(25), {"test": tables, "test_adjusted": tables[::-1]}, [2, 1])
    assert got["plain"]["accuracy"] == pytest.approx(0.145) and got["adjusted"]["accuracy"] == pytest.approx(0.095)
    assert (got["plain"]["best_step"], got["adjusted"]["best_step"]) == (250, 10)
    assert got["plain"]["per_class"] == pytest.approx([0.29, 0.0])


def test_the_number_of_images_behind_the_best_evaluation_is_that_of_its_step():
    metrics = lines(2, images=30)
    metrics[1]["test_images"] = 70
    tables = [np.diag([15, 15]), np.array([[0, 35], [35, 0]])]
    got = summarize(metrics, {"test": tables, "test_adjusted": tables}, [2, 1])["plain"]
    assert (got["best"], got["best_step"], got["best_images"]) == (1.0, 10, 30)


def test_groups_follow_the_rank_of_the_labeled_counts_not_the_order_of_the_classes():
    table = np.diag(np.arange(1, 11)) + np.eye(10, k=1, dtype=int) + np.eye(10, k=-9, dtype=int)  # recall k / (k + 1)
    counts = {"test": [table], "test_adjusted": [table]}
    got = summarize(lines(1), counts, [1, 5, 2, 9, 3, 8, 4, 7, 6, 10])["plain"]
    share = np.arange(1, 11) / np.arange(2, 12)
    assert got["groups"] == {"head": pytest.approx(share[[9, 3, 5]].mean()),
                             "medium": pytest.approx(share[[7, 8, 1, 6]].mean()),
                             "tail": pytest.approx(share[[4, 2, 0]].mean())}


def test_a_group_without_test_images_is_left_out():
    table = np.array([[3, 1, 0], [1, 3, 0], [0, 0, 0]])
    got = summarize(lines(1), {"test": [table], "test_adjusted": [table]}, [9, 5, 1])["plain"]
    assert got["groups"] == {"head": 0.75, "medium": 0.75}


# ---- stored outputs ----


class Halving:
    """Stands for a re-balancing method: its final label says more of class 0, from step 5 on."""

    def refine_predicted(self, probs, feats, index, t, *, temperature):
        assert torch.equal(index, torch.arange(len(probs))) and len(feats) == len(probs)
        linear = sharpen(probs, temperature)
        semantic = torch.eye(K)[[0] * len(probs)] if t >= 5 else None
        return PseudoLabels(linear, semantic, linear if semantic is None else (linear + semantic) / 2)


def stored(n_unlabeled=20, t=5, temperature=1):
    data, net = random_data(), network()
    training = SimpleNamespace(evaluated=net, rebalance=Halving(), memory=None, temperature=temperature)
    batches = SimpleNamespace(u=data.x_test[:n_unlabeled], u_target=data.y_test[:n_unlabeled] - 1,
                              unlabeled_index=np.arange(n_unlabeled) + 100)
    test = test_set(data)
    pseudo_labeled = pseudo_label(training, test, batches, t=t)
    return data, net, pseudo_labeled, outputs(training, test, batches, pseudo_labeled)


def test_outputs_hold_what_the_network_says_of_test_and_unlabeled_images():
    data, net, _, arrays = stored()
    feats, logits = predict(net, data.x_test, NORMALIZE)
    np.testing.assert_array_equal(arrays["test_logits"], logits)
    np.testing.assert_array_equal(arrays["test_target"], data.y_test)
    np.testing.assert_array_equal(arrays["unlabeled_index"], np.arange(100, 120))
    np.testing.assert_array_equal(arrays["unlabeled_target"], data.y_test[:20] - 1)
    linear = predict(net, data.x_test[:20], NORMALIZE)[1].softmax(dim=-1)
    np.testing.assert_allclose(arrays["linear"], linear, atol=1e-3)
    np.testing.assert_allclose(arrays["final"], (linear + torch.tensor([1.0, 0.0, 0.0])) / 2, atol=1e-3)
    np.testing.assert_array_equal(arrays["feats_row"], np.arange(20))
    np.testing.assert_allclose(arrays["feats"], feats[:20], atol=1e-2)
    assert {arrays[name].dtype for name in ("linear", "semantic", "final", "feats")} == {np.dtype(np.float16)}


def test_outputs_have_no_semantic_labels_where_there_are_none():
    _, _, _, arrays = stored(t=4)
    assert "semantic" not in arrays
    np.testing.assert_array_equal(arrays["linear"], arrays["final"])


def test_labels_of_a_learner_that_sharpens_are_stored_sharpened():
    _, _, plain, _ = stored(t=4)
    _, _, sharpened, arrays = stored(t=4, temperature=0.5)
    squares = plain.labels.linear**2
    torch.testing.assert_close(sharpened.labels.linear, squares / squares.sum(dim=-1, keepdim=True))
    np.testing.assert_allclose(arrays["final"], sharpened.labels.linear, atol=1e-3)


def test_without_unlabeled_images_outputs_are_those_of_the_test_images():
    _, _, pseudo_labeled, arrays = stored(n_unlabeled=0)
    assert pseudo_labeled is None
    assert set(arrays) == {"test_logits", "test_target", "unlabeled_index", "unlabeled_target"}


def test_features_are_kept_of_some_images_only_and_rows_say_of_which(monkeypatch):
    monkeypatch.setattr("dasolib.evaluation.STORED_FEATURES", 6)
    _, _, pseudo_labeled, arrays = stored()
    rows = arrays["feats_row"]
    assert len(rows) == 6 and (np.diff(rows) > 0).all() and rows.tolist() != list(range(6))
    np.testing.assert_array_equal(arrays["feats"], pseudo_labeled.feats[rows].half())


def test_the_table_of_predictions_names_what_the_network_and_the_pseudo_label_find_likeliest():
    probs = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]])
    labels = torch.tensor([[0.0, 0.1, 0.9], [0.625, 0.25, 0.125]])
    table = predictions(probs, labels, ("a", "b", "c"), index=np.array([4, 9]))
    assert table.columns.tolist() == ["index", "predicted", "confidence", "pseudo_label", "pseudo_label_confidence"]
    assert table["index"].tolist() == [4, 9]
    assert table["predicted"].tolist() == ["b", "a"] and table["pseudo_label"].tolist() == ["c", "a"]
    assert table["confidence"].tolist() == pytest.approx([0.7, 0.5])
    assert table["pseudo_label_confidence"].tolist() == pytest.approx([0.9, 0.625])
    named = predictions(probs, labels, ("a", "b", "c"), index=np.array([4, 9]), files=("x.png", "deep/y.png"))
    assert named.columns.tolist()[:3] == ["index", "file", "predicted"]
    assert named["file"].tolist() == ["x.png", "deep/y.png"]


@pytest.mark.parametrize(("class_names", "files", "first"), [
    (("=cmd|' /C calc'!A0", "b"), None, "=cmd"), (("a", "@SUM(1)"), ("x.png",), "@SUM"),
    (("a", "b"), ("-1.png",), "-1")])
def test_names_that_a_spreadsheet_takes_for_formulas_are_warned_about_and_kept(class_names, files, first):
    probs = torch.tensor([[0.75, 0.25]])
    with pytest.warns(UserWarning, match=f"predictions.csv: a spreadsheet takes 1 names .* .{first}"):
        table = predictions(probs, probs, class_names, index=np.array([0]), files=files)
    assert table["predicted"].tolist() == [class_names[0]] and (files is None or table["file"].tolist() == list(files))
