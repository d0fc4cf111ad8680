"""The recordings of the published implementation come out again, and would not if the method were wrong."""

import copy
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.mutations import MUTATIONS, RECORDINGS
from tests.replay import NOT_OUTPUTS, main, replay, replay_trajectory
from tests.replay_config import config_of
from tests.replay_primitives import FLOAT_TOLERANCE, float64

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "tests" / "data" / "golden"
SUPPORTED = (
    "supervised", "supervised_la", "supervised_cb", "supervised_ldam_drw", "crt", "pseudo_label", "mean_teacher",
    "mean_teacher_daso", "mixmatch", "mixmatch_daso", "remixmatch", "remixmatch_da", "remixmatch_darp",
    "remixmatch_crest_plus", "remixmatch_daso", "usadtm", "fixmatch", "fixmatch_la", "fixmatch_da", "fixmatch_darp",
    "fixmatch_crest", "fixmatch_crest_plus", "fixmatch_abc", "fixmatch_daso", "fixmatch_daso_la", "fixmatch_daso_abc",
    "fixmatch_daso_fixed_blend", "fixmatch_daso_no_psa", "splits", "schedules", "losses", "wrn", "randaugment", "darp",
    "darp_estimate",
)
WEIGHTS = "init_wrn28_1"


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


def recordings_of_trainings():
    for path in sorted(SHIPPED.glob("*.npz")):
        with np.load(path) as archive:
            if "step0/x_labeled" in archive:
                yield path


def test_every_shipped_recording_is_replayed():
    assert {path.stem for path in SHIPPED.glob("*.npz")} <= {*SUPPORTED, WEIGHTS}


def above_tolerance(rows):
    return [row.name for row in rows if not row.error <= row.tolerance]


# --- the recordings --------------------------------------------------------------------------------------------------


@pytest.mark.slow
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


def record(source, target, alter=None, **changes):
    """Write a small recording `target` with the inputs of the shipped one `source` and all outputs that we have.

    `changes` are made to its configuration; `alter` changes its inputs in place.
    """
    with np.load(SHIPPED / f"{source}.npz") as archive:
        z = {name: array[..., ::4, ::4] if array.ndim == 4 else array for name, array in archive.items()
             if re.fullmatch(NOT_OUTPUTS, name)}
        names = archive["final/model/name"]
    z["config"] = np.array(json.dumps(json.loads(str(z["config"])) | changes))
    if alter is not None:
        alter(z)
    shutil.copy(SHIPPED / f"{WEIGHTS}.npz", target.parent)
    target.parent.joinpath(f"{WEIGHTS}.npz").chmod(0o644)
    with float64():
        got = replay_trajectory(z | {"final/model/name": names}, target.parent)
    for key in ("final/model", "final/ema"):
        if key in got:
            arrays = {"name": names} | digest(got.pop(key), names.tolist())
            got |= {f"{key}/{name}": array for name, array in arrays.items()}
    np.savez(target, **z, **got)


@pytest.fixture(scope="module")
def small_recording(tmp_path_factory):
    """Path of a small recording, by its name in `RECORDINGS`; each is written when it is first asked for."""
    @functools.cache
    def path_of(name):
        source, changes, alter = RECORDINGS[name]
        path = tmp_path_factory.mktemp(name) / f"{name}.npz"
        record(source, path, alter, **changes)
        return path
    return path_of


@pytest.fixture(scope="module")
def small(small_recording):
    """A small recording of FixMatch with DASO, whose branches are all taken."""
    path = small_recording("fixmatch_daso")
    with np.load(path) as archive:
        z = dict(archive.items())
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
    shutil.copy(path.parent / f"{WEIGHTS}.npz", folder)
    with np.load(path) as archive:
        z = dict(archive.items())
    alter(z)
    np.savez(folder / name, **z)
    return folder / name


def alter_config(**changes):
    def alter(z):
        z["config"] = np.array(json.dumps(json.loads(str(z["config"])) | changes))
    return alter


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_small_recording_comes_out_again(name, small_recording):
    assert max(row.error for row in replay(small_recording(name))) == 0


def test_a_recording_under_another_name_with_other_settings_comes_out_again(tmp_path):
    daso = {"distribution_aware": False, "distribution_temperature": 0.7, "distribution_update_period": 1,
            "fixed_blend": 0.3, "pretrain_steps": 1, "prototype_temperature": 0.1, "queue_size_per_class": 2,
            "semantic_alignment_weight": 0.5}
    schedule = {"name": "multistep", "milestones": [1, 3], "gamma": 0.5, "warmup_iterations": 2,
                "warmup_factor": 0.25, "warmup_method": "linear"}
    record("fixmatch_daso", tmp_path / "anything.npz", daso=daso, schedule=schedule, ema_decay=0.6,
           ema_weight_decay=0.01, confidence_threshold=0.3, unlabeled_loss_weight=0.5, steps=3,
           start_iteration=0, max_iterations=9)
    rows = replay(tmp_path / "anything.npz")
    assert max(row.error for row in rows) == 0
    with np.load(tmp_path / "anything.npz") as archive:
        assert archive["step0/out/lr_used"] == pytest.approx(0.25 * 0.03)
        assert archive["step2/out/blend_weight"] == 0.3
        assert "step3/out/lr_used" not in archive.files


@pytest.mark.parametrize("name", ["splits", "schedules", "losses"])
def test_primitives_are_known_by_their_arrays_under_another_name(name, tmp_path):
    shutil.copy(SHIPPED / f"{name}.npz", tmp_path / "anything.npz")
    assert not above_tolerance(replay(tmp_path / "anything.npz"))


# What of a recorded configuration is no setting: it describes the inputs, follows from others, or is used as it is.
NO_SETTINGS = {
    "case", "source", "num_classes", "feature_dim", "pixel_mean", "pixel_std", "initial_weights", "steps",
    "start_iteration", "labeled_class_counts", "unlabeled_class_counts", "unlabeled_batch_size", "algorithm",
    "rebalancers", "class_reweighting.loss", "crest.generation_weights", "crest.progressive_alignment",
    "darp.warmup_fraction", "distribution_alignment.target", "ramp_up.fraction",
    "usadtm.cluster_warmup_iterations_unused",
}


def without_effect(recorded):
    """Which entries nothing reads next to the others."""
    section = {name: recorded.get(name) or {} for name in ("schedule", "crest", "daso")}
    if not section["schedule"].get("warmup_iterations"):
        yield from ("schedule.warmup_factor", "schedule.warmup_method")
    if section["crest"].get("progressive_alignment"):
        yield "distribution_alignment.temperature"
    if not section["crest"]:
        yield "ramp_up.restarts_each_generation"
    if section["daso"].get("distribution_aware"):
        yield "daso.fixed_blend"
    if recorded["algorithm"] == "remixmatch":  # always by the histogram, as published
        yield "daso.distribution_aware"


def entries(recorded, path=()):
    for key, value in recorded.items():
        if isinstance(value, dict):
            yield from entries(value, (*path, key))
        elif value is not None:
            yield (*path, key), value


def another(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [another(item) for item in value]
    other = {"linear": "exp", "exp": "linear", "constant": "cosine_half", "cosine": "constant", "multistep": "constant",
             "mse": "cross_entropy", "cross_entropy": "mse", "sgd": "adam"}
    return other[value] if isinstance(value, str) else value + 1 if isinstance(value, int) else value / 2 + 0.01


@pytest.mark.parametrize("path", list(recordings_of_trainings()), ids=lambda path: path.stem)
def test_every_recorded_setting_reaches_the_run_or_is_refused(path):
    """So that a recording with other hyper-parameters is not compared with a run that has the old ones."""
    with np.load(path) as archive:
        recorded = json.loads(str(archive["config"]))
    plain, checked = config_of(recorded), 0
    for keys, value in entries(recorded):
        if ".".join(keys) in {*NO_SETTINGS, *without_effect(recorded)}:
            continue
        changed = copy.deepcopy(recorded)
        functools.reduce(dict.get, keys[:-1], changed)[keys[-1]] = another(value)
        try:
            with warnings.catch_warnings(action="ignore"):  # DASO may begin too late
                reached = config_of(changed) != plain
        except ValueError:
            reached = True
        assert reached, keys
        checked += 1
    assert checked > 5


# --- what a replay must notice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recording", "mutate", "first_wrong"),
    [pytest.param(recording, mutate, first_wrong, id=f"{recording}-{mutate.__name__}")
     for recording, mutations in MUTATIONS.items() for mutate, first_wrong in mutations.items()],
)
def test_a_method_that_goes_wrong_is_noticed(recording, mutate, first_wrong, small_recording, monkeypatch):
    """And not before it goes wrong: the outputs of earlier steps still agree."""
    path = small_recording(recording)
    mutate(monkeypatch)
    wrong = above_tolerance(replay(path))
    assert first_wrong in wrong
    with np.load(path) as archive:
        settings = json.loads(str(archive["config"]))
    kind, number = re.match(r"(step|generation|final)(\d*)/", first_wrong).groups()
    first_step = {"step": lambda: int(number), "final": lambda: settings["steps"],
                  "generation": lambda: (int(number) - 1) * settings["crest"]["generation_steps"]}[kind]()
    earlier = tuple(f"step{k}/" for k in range(first_step))
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
    summary = f"altered.npz: {len(lines) - 1} outputs, largest error "
    assert lines[-1].startswith(summary) and lines[-1].endswith("1 above tolerance")


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
    with np.load(tmp_path / f"{WEIGHTS}.npz") as archive:
        weights = dict(archive.items())
    weights["encoder.init_conv.weight"][0, 0, 0, 0] += 1e-3
    np.savez(tmp_path / f"{WEIGHTS}.npz", **weights)
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
        (alter_config(algorithm="no_such_method"), "method='no_such_method': choose one of supervised, "),
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


def test_without_a_file_the_command_explains_itself(capsys):
    assert main([]) == 2
    assert "python -m tests.replay FILE.npz" in capsys.readouterr().out


def test_several_files_give_a_line_each(small, tmp_path, capsys):
    """The exit code is that of the worst: 0 if all agree, 1 if one does not, 2 if one cannot be replayed."""
    weights = small.parent / f"{WEIGHTS}.npz"
    fine = [str(SHIPPED / "schedules.npz"), str(small), str(weights)]
    assert main(fine) == 0
    header, schedules, trajectory, passed_over = capsys.readouterr().out.splitlines()
    assert header.split() == ["recording", "outputs", "largest", "error", "tolerance"]
    assert schedules.split() == ["schedules.npz", "10", "0.00e+00", "1e-09", "pass"]
    assert trajectory.startswith("fixmatch_daso.npz ") and trajectory.endswith(" pass")
    assert passed_over.split() == [weights.name, "weights,", "nothing", "to", "compare"]

    altered = altered_copy(small, tmp_path, "altered.npz",
                           lambda z: z["step2/out/pseudo_label_counts"].__setitem__(4, 99))
    assert main([str(altered), *fine]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[2:] == ["1.00e+00", "0e+00", "FAIL:", "1", "outputs"]
    assert [line.endswith("pass") for line in lines[2:4]] == [True, True]

    assert main([str(altered), str(tmp_path / "missing.npz"), *fine]) == 2
    told = capsys.readouterr()
    assert told.out.splitlines() == lines and "missing.npz: cannot be replayed: " in told.err


def test_weights_alone_are_no_recording(capsys):
    assert main([str(SHIPPED / f"{WEIGHTS}.npz")]) == 2
    assert "it holds weights for other recordings, and no outputs" in capsys.readouterr().err


def test_a_setting_that_dasolib_does_not_have_is_refused(small_recording, tmp_path, capsys):
    path = small_recording("fixmatch_da_darp")
    with np.load(path) as archive:
        optimizer = json.loads(str(archive["config"]))["optimizer"]
    path = altered_copy(path, tmp_path, "altered.npz", alter_config(optimizer=optimizer | {"name": "adam"}))
    assert main([str(path)]) == 2
    assert "optimizer.name='adam': dasolib has 'sgd'" in capsys.readouterr().err


def test_the_command_runs_as_a_program():
    ran = subprocess.run([sys.executable, "-m", "tests.replay", str(SHIPPED / "schedules.npz")], cwd=ROOT,
                         capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "schedules.npz: 10 outputs, largest error 0.00e+00, 0 above tolerance"
