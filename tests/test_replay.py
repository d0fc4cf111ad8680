"""The recordings of the published implementation come out again, and would not if the method were wrong."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dasolib import losses
from dasolib.ema import EMA, ema_decay
from dasolib.methods import fixmatch
from dasolib.models import View
from dasolib.pseudo_labels import PseudoLabels, blend, blend_weights, confident_labels, count_classes
from dasolib.rebalance import daso as daso_module
from dasolib.rebalance.daso import Daso
from tests import replay as replay_module
from tests.replay import NOT_OUTPUTS, main, replay, replay_trajectory
from tests.replay_primitives import FLOAT_TOLERANCE, float64

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "tests" / "data" / "golden"
SUPPORTED = (
    "supervised", "supervised_la", "supervised_cb", "supervised_ldam_drw", "fixmatch", "fixmatch_la", "fixmatch_daso",
    "fixmatch_daso_la", "fixmatch_daso_fixed_blend", "fixmatch_daso_no_psa", "splits", "schedules", "losses", "wrn",
    "randaugment",
)


def recordings():
    """Every supported recording that ships with the tests, then those in the folder that DASO_GOLDEN names."""
    shipped = [SHIPPED / f"{name}.npz" for name in SUPPORTED if (SHIPPED / f"{name}.npz").exists()]
    yield from (pytest.param(path, id=f"shipped-{path.stem}") for path in shipped)
    folder = os.environ.get("DASO_GOLDEN")
    if not folder:
        yield pytest.param(None, id="DASO_GOLDEN", marks=pytest.mark.skip(reason="DASO_GOLDEN is not set"))
        return
    for name in SUPPORTED:
        yield pytest.param(Path(folder).resolve() / f"{name}.npz", id=f"DASO_GOLDEN-{name}")


def above_tolerance(rows):
    return [row.name for row in rows if not row.error <= row.tolerance]


# --- the recordings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", list(recordings()))
def test_every_output_of_the_published_implementation_comes_out_again(path):
    rows = replay(path)
    assert not above_tolerance(rows), [row for row in rows if not row.error <= row.tolerance]
    assert len(rows) >= 10


def test_the_shipped_recordings_are_the_published_ones():
    sums = dict(reversed(line.split()) for line in (SHIPPED / "SHA256SUMS").read_text().splitlines())
    there = {path.name for path in SHIPPED.glob("*.npz")}
    assert there and there <= set(sums)
    assert there == {name for name in sums if name.endswith(".npz")}
    assert {"fixmatch_daso.npz", "fixmatch_daso_la.npz", "supervised_ldam_drw.npz", "wrn.npz"} <= there
    for name in there:
        assert hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() == sums[name], name


def test_the_tolerances_are_those_of_the_readme():
    """1e-9 relative to the largest value, integers exact."""
    assert FLOAT_TOLERANCE == 1e-9
    rows = {row.name: row for row in replay(SHIPPED / "splits.npz")}
    assert {row.tolerance for name, row in rows.items() if "index" in name} == {0}


# --- small recordings of our own -------------------------------------------------------------------------------------
# With every fourth pixel of the shipped images a replay takes a second. Our own outputs stand for the published ones:
# the test above has shown that they agree.


def digest(tensors, names):
    own = [tensors[name].double().flatten() for name in names]
    first8 = np.full((len(own), 8), np.nan)
    for row, tensor_ in zip(first8, own, strict=True):
        row[:min(8, len(tensor_))] = tensor_[:8]
    return {"size": np.array([len(t) for t in own]), "sum": torch.stack([t.sum() for t in own]).numpy(),
            "l2": torch.stack([t.norm() for t in own]).numpy(), "first8": first8}


def record(source, target, **changes):
    """Write the small recording `target` of the shipped one `source`, with `changes` to its configuration."""
    with np.load(SHIPPED / f"{source}.npz") as archive:
        z = {name: array[..., ::4, ::4] if array.ndim == 4 else array for name, array in archive.items()}
    z["config"] = np.array(json.dumps(json.loads(str(z["config"])) | changes))
    shutil.copy(SHIPPED / "init_wrn28_1.npz", target.parent / "init_wrn28_1.npz")
    target.parent.joinpath("init_wrn28_1.npz").chmod(0o644)
    with float64():
        got = replay_trajectory(z, target.parent)
    for key in ("final/model", "final/ema"):
        if f"{key}/name" in z:
            got |= {f"{key}/{name}": array for name, array in digest(got[key], z[f"{key}/name"].tolist()).items()}
    for name in z:
        if name in got:
            z[name] = np.asarray(got[name]).astype(z[name].dtype)
    np.savez(target, **z)
    return z


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small recording of FixMatch with DASO, whose branches are all taken."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("recording") / "fixmatch_daso.npz"
    z = record("fixmatch_daso", path)
    steps = json.loads(str(z["config"]))["steps"]
    for k in range(steps):
        assert 0 < z[f"step{k}/out/mask"].sum() < 20
    weights, linear, semantic = (z[f"step{steps - 1}/out/{name}"] for name in
                                 ("blend_weight_per_class", "linear_pseudo_label", "semantic_pseudo_label"))
    assert (weights[linear] != weights[semantic]).any() and weights.min() == 0 and len(set(weights)) > 4
    assert z[f"step{steps - 1}/out/queue_length"].tolist().count(4) >= 3  # full queues
    return path


def altered_copy(path, folder, name, alter):
    """Copy a recording with its initial weights; `alter` changes its arrays in place."""
    shutil.copy(path.parent / "init_wrn28_1.npz", folder)
    with np.load(path) as archive:
        z = dict(archive.items())
    alter(z)
    np.savez(folder / name, **z)
    return folder / name


def alter_config(**changes):
    def alter(z):
        z["config"] = np.array(json.dumps(json.loads(str(z["config"])) | changes))
    return alter


def test_a_small_recording_comes_out_again(small):
    assert max(row.error for row in replay(small)) == 0


def test_a_recording_under_another_name_with_other_settings_comes_out_again(tmp_path):
    daso = {"distribution_aware": False, "distribution_temperature": 0.7, "distribution_update_period": 1,
            "fixed_blend": 0.3, "pretrain_steps": 1, "prototype_temperature": 0.1, "queue_size_per_class": 2,
            "semantic_alignment_weight": 0.5}
    schedule = {"name": "multistep", "milestones": [1, 3], "gamma": 0.5, "warmup_iterations": 2,
                "warmup_factor": 0.25, "warmup_method": "linear"}
    record("fixmatch_daso", tmp_path / "anything.npz", daso=daso, schedule=schedule, ema_decay=0.6,
           ema_weight_decay=0.01, confidence_threshold=0.3, unlabeled_loss_weight=0.5, steps=3,
           start_iteration=0, max_iterations=9)
    with np.load(tmp_path / "anything.npz") as archive:
        recorded = {name for name in archive.files if not name.startswith(("step3", "step4"))}
        np.savez(tmp_path / "shorter.npz", **{name: archive[name] for name in recorded})
    rows = replay(tmp_path / "shorter.npz")
    assert max(row.error for row in rows) == 0
    with np.load(tmp_path / "shorter.npz") as archive:
        assert archive["step0/out/lr_used"] == pytest.approx(0.25 * 0.03)
        assert archive["step2/out/blend_weight"] == 0.3


@pytest.mark.parametrize("name", ["splits", "schedules", "losses"])
def test_primitives_are_known_by_their_arrays_under_another_name(name, tmp_path):
    shutil.copy(SHIPPED / f"{name}.npz", tmp_path / "anything.npz")
    assert not above_tolerance(replay(tmp_path / "anything.npz"))


# --- what a replay must notice ---------------------------------------------------------------------------------------


def previous_semantic_labels(patch):
    """Blend with the similarities of the batch before, as a benchmark in wide use does."""
    ours, kept = Daso.refine, []

    def refine(self, labels, feats, t):
        got = ours(self, labels, feats, t)
        kept.append(got.semantic)
        if len(kept) < 2 or kept[-2] is None:
            return got
        return PseudoLabels(labels.linear, kept[-2], blend(labels.final, kept[-2], self.blend_weight()))
    patch.setattr(Daso, "refine", refine)


def weight_of_the_semantic_class(patch):
    def by_semantic(linear, semantic, weight):
        weight = weight[semantic.argmax(dim=-1)].unsqueeze(-1)
        return (1 - weight) * linear + weight * semantic
    patch.setattr(daso_module, "blend", by_semantic)


def histogram_of_confident_labels_alone(patch):
    ours = Daso.end_step

    def end_step(self, labels, t):
        kept = labels.final[confident_labels(labels.final, 0.39)[1] > 0]
        ours(self, labels._replace(final=kept), t)
    patch.setattr(Daso, "end_step", end_step)


def histogram_of_linear_labels(patch):
    ours = Daso.end_step
    patch.setattr(Daso, "end_step", lambda self, labels, t: ours(self, labels._replace(final=labels.linear), t))


def histogram_renewed_a_step_early(patch):
    ours = Daso.end_step
    patch.setattr(Daso, "end_step", lambda self, labels, t: ours(self, labels, t + 1))


def histogram_that_is_never_emptied(patch):
    def end_step(self, labels, t):
        self.pending += count_classes(labels.final.argmax(dim=-1), len(self.pending))
        if (t + 1) % self.refresh_steps == 0 and t + 1 < self.total_steps:
            self.class_freq.copy_(self.pending)
    patch.setattr(Daso, "end_step", end_step)


def change_configuration(**changes):
    def mutate(patch):
        ours = replay_module.config_of
        patch.setattr(replay_module, "config_of", lambda *args: ours(*args).model_copy(update=changes))
    mutate.__name__ = f"{changes}"
    return mutate


def buffers_left_out_of_the_average(patch):
    ours = EMA.update

    def update(self, net, t, *, lr):
        kept = [buffer.clone() for buffer in self.model.buffers()]
        ours(self, net, t, lr=lr)
        for buffer, old in zip(self.model.buffers(), kept, strict=True):
            buffer.copy_(old)
    patch.setattr(EMA, "update", update)


def buffers_copied_into_the_average(patch):
    ours = EMA.update

    def update(self, net, t, *, lr):
        ours(self, net, t, lr=lr)
        for buffer, new in zip(self.model.buffers(), net.buffers(), strict=True):
            buffer.copy_(new)
    patch.setattr(EMA, "update", update)


def average_updated_with_the_decay_of_the_next_step(patch):
    patch.setattr("dasolib.ema.ema_decay", lambda t, cap: ema_decay(t + 1, cap))


def prototypes_updated_after_the_joint_pass(patch):
    """Semantic labels then come from prototypes that lack this step's labeled images."""
    ours_see, ours_extra, waiting = Daso.see_labeled, Daso.extra_losses, []
    patch.setattr(Daso, "see_labeled", lambda self, *seen: waiting.append(seen))

    def extra_losses(self, labels, strong_feats, t):
        ours_see(self, *waiting.pop())
        return ours_extra(self, labels, strong_feats, t)
    patch.setattr(Daso, "extra_losses", extra_losses)


def blend_by_the_power_itself(patch):
    patch.setattr(daso_module, "blend_weights", lambda freq, temperature: blend_weights(freq, 1 / temperature))


def blend_weights_that_sum_to_one(patch):
    def as_shares(freq, temperature):
        weights = blend_weights(freq, temperature)
        return weights / weights.sum()
    patch.setattr(daso_module, "blend_weights", as_shares)


def unlabeled_loss_over_confident_rows_alone(patch):
    def masked(logits, target, *, row_weight=None):
        return losses.cross_entropy(logits, target, row_weight=row_weight, denominator=row_weight.sum())
    patch.setattr(fixmatch, "cross_entropy", masked)


def views_passed_one_by_one(patch):
    def one_by_one(net, *views):
        feats = [net.features(view) for view in views]
        return [View(own, net.head(own)) for own in feats]
    patch.setattr(fixmatch, "forward_views", one_by_one)


def alignment_that_trains_the_head_alone(patch):
    ours = Daso.extra_losses
    patch.setattr(Daso, "extra_losses",
                  lambda self, labels, strong_feats, t: ours(self, labels, strong_feats.detach(), t))


MUTATIONS = {
    previous_semantic_labels: "step3/out/soft_pseudo_label",
    weight_of_the_semantic_class: "step2/out/soft_pseudo_label",
    histogram_of_confident_labels_alone: "step0/out/pseudo_labels_pending",
    histogram_of_linear_labels: "step3/out/pseudo_label_counts",
    histogram_renewed_a_step_early: "step0/out/pseudo_label_counts",
    histogram_that_is_never_emptied: "step1/out/pseudo_labels_pending",
    change_configuration(ema_train_mode=False): "step0/out/prototypes",
    change_configuration(prototypes_from="student"): "step0/out/model_l2",  # its buffers move
    buffers_left_out_of_the_average: "step0/out/ema_l2",
    buffers_copied_into_the_average: "step1/out/ema_l2",
    average_updated_with_the_decay_of_the_next_step: "step0/out/ema_l2",
    prototypes_updated_after_the_joint_pass: "step2/out/semantic_probability",
    blend_by_the_power_itself: "step2/out/soft_pseudo_label",
    blend_weights_that_sum_to_one: "step2/out/soft_pseudo_label",
    unlabeled_loss_over_confident_rows_alone: "step0/out/unlabeled_loss",
    views_passed_one_by_one: "step0/out/logits_weak",
    alignment_that_trains_the_head_alone: "step2/out/gradient_l2",
    change_configuration(weight_decay=0.0): "step0/out/model_l2",
    change_configuration(refresh_steps=1): "step0/out/pseudo_label_counts",
}


@pytest.mark.parametrize(
    ("mutate", "first_wrong"), MUTATIONS.items(), ids=lambda value: getattr(value, "__name__", value)
)
def test_a_method_that_goes_wrong_is_noticed(mutate, first_wrong, small, monkeypatch):
    """And not before it goes wrong: the outputs of earlier steps still agree."""
    mutate(monkeypatch)
    rows = replay(small)
    wrong = above_tolerance(rows)
    assert first_wrong in wrong
    step = int(first_wrong[4])
    earlier = tuple(f"step{k}/" for k in range(step))
    assert not [name for name in wrong if name.startswith(earlier)]


@pytest.mark.parametrize(
    ("alter", "first_wrong"),
    [
        (lambda z: z["step1/out/logits_strong"].__setitem__((3, 2), z["step1/out/logits_strong"][3, 2] + 1e-6),
         "step1/out/logits_strong"),
        (lambda z: z["step2/out/pseudo_label_counts"].__setitem__(4, 99), "step2/out/pseudo_label_counts"),
        (lambda z: z["final/prototypes"].__setitem__((9, 0), 1e-6), "final/prototypes"),
        (lambda z: z["final/ema/first8"].__setitem__((5, 0), np.nan), "final/ema/first8"),
        (lambda z: z.update({"step0/out/mask": z["step0/out/mask"][:-1]}), "step0/out/mask"),
    ],
    ids=["float", "integer", "prototype", "NaN", "shape"],
)
def test_one_altered_output_is_marked_and_the_exit_code_is_1(alter, first_wrong, small, tmp_path, capsys):
    path = altered_copy(small, tmp_path, "altered.npz", alter)
    assert main([str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    marked = [line.split()[0] for line in lines if "above tolerance" in line and line != lines[-1]]
    assert marked == [first_wrong]
    assert lines[-1].startswith("altered.npz: 163 outputs, largest error ") and lines[-1].endswith("1 above tolerance")


@pytest.mark.parametrize(
    "alter",
    [
        lambda z: z["step0/x_labeled"].__setitem__((0, 0, 0, 0), 3.0),
        lambda z: z["step0/y_labeled"].__setitem__(0, (z["step0/y_labeled"][0] + 1) % 10),
        alter_config(confidence_threshold=0.5),
        alter_config(optimizer={"lr": 0.031, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}),
    ],
    ids=["image", "label", "threshold", "learning rate"],
)
def test_another_input_or_setting_gives_other_outputs(alter, small, tmp_path):
    assert above_tolerance(replay(altered_copy(small, tmp_path, "fixmatch_daso.npz", alter)))


def test_another_initial_weight_gives_other_outputs(small, tmp_path):
    path = altered_copy(small, tmp_path, "fixmatch_daso.npz", lambda z: None)
    with np.load(tmp_path / "init_wrn28_1.npz") as archive:
        weights = dict(archive.items())
    weights["encoder.init_conv.weight"][0, 0, 0, 0] += 1e-3
    np.savez(tmp_path / "init_wrn28_1.npz", **weights)
    assert {"step0/out/logits_all", "final/ema/l2"} <= set(above_tolerance(replay(path)))


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_each_output_and_a_summary_and_exits_with_0(small, capsys):
    assert main([str(small)]) == 0
    lines = capsys.readouterr().out.splitlines()
    with np.load(small) as archive:
        outputs = {name for name in archive.files if not re.fullmatch(NOT_OUTPUTS, name)}
    assert {line.split()[0] for line in lines[:-1]} == outputs
    assert all("tolerance" in line for line in lines[:-1])
    assert lines[-1] == f"fixmatch_daso.npz: {len(outputs)} outputs, largest error 0.00e+00, 0 above tolerance"


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (alter_config(algorithm="no_such_method"), "method='no_such_method': choose one of supervised, fixmatch"),
        (alter_config(rebalancers=["daso", "no_such_part"]), "rebalance='no_such_part': choose from la"),
        (lambda z: z.update({"step4/out/temperature_of_tomorrow": np.zeros(3)}),
         "outputs that no replay covers: step4/out/temperature_of_tomorrow"),
        (lambda z: z.pop("step1/x_weak"), "it lacks 'step1/x_weak"),
        (alter_config(initial_weights="elsewhere.npz"), "elsewhere.npz"),
    ],
    ids=["method", "part", "output", "input", "weights"],
)
def test_a_recording_that_cannot_be_replayed_exits_with_2_and_says_why(alter, message, small, tmp_path, capsys):
    path = altered_copy(small, tmp_path, "altered.npz", alter)
    assert main([str(path)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{path}: cannot be replayed: " in told.err and message in told.err


def test_a_primitive_without_a_row_exits_with_2(tmp_path, capsys):
    with np.load(SHIPPED / "schedules.npz") as archive:
        np.savez(tmp_path / "schedules.npz", **archive, invented=np.zeros(2))
    assert main([str(tmp_path / "schedules.npz")]) == 2
    assert "outputs that no replay covers: invented" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"no archive at all", b"PK\x03\x04 cut off"])
def test_a_missing_or_damaged_file_exits_with_2(content, tmp_path, capsys):
    path = tmp_path / "recording.npz"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path)]) == 2
    assert f"{path}: cannot be replayed: " in capsys.readouterr().err


def test_without_exactly_one_file_the_command_explains_itself(capsys):
    assert main([]) == main(["a", "b"]) == 2
    assert "python -m tests.replay FILE.npz" in capsys.readouterr().out


def test_the_command_runs_as_a_program():
    ran = subprocess.run([sys.executable, "-m", "tests.replay", str(SHIPPED / "schedules.npz")], cwd=ROOT,
                         capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "schedules.npz: 10 outputs, largest error 0.00e+00, 0 above tolerance"
