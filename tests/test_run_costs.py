"""The benchmark of what a run costs beside its steps: it runs on small sizes, and refuses bad arguments."""

import json

import numpy as np
import pytest

from benchmarks import run_costs
from dasolib.data import load_data


def call(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["run_costs", *map(str, arguments)])
    run_costs.main()


def test_its_tables_hold_what_it_stores(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run_costs, "NETWORKS", {"WRN-10-1": {"depth": 10, "width": 1, "images": 60}})
    monkeypatch.setattr(run_costs, "FORWARD_BATCHES", (20, 60))
    monkeypatch.setattr(run_costs, "PRESETS", ("cpu",))
    monkeypatch.setattr(run_costs, "LAST_EVALUATION", 3)
    monkeypatch.setattr(run_costs, "measure_start", lambda rounds: {"import_s": 0.25, "two_steps_s": 7.5})
    monkeypatch.setattr(run_costs, "measure_stl10",
                        lambda threads: {"peak_mib": 900.0, "imports_mib": 300.0, "images_mib": 500.0,
                                         "beyond_mib": 100.0})
    file = tmp_path / "costs.json"
    call(monkeypatch, "--rounds", 1, "--stl10", "--json", file)
    costs = json.loads(file.read_text())
    assert costs["threads"] == 1 and costs["peak_memory_mib"] > 0
    (evaluation,) = costs["evaluation"]
    best = evaluation["forward_per_s"][str(evaluation["best_batch"])]
    assert best == max(evaluation["forward_per_s"].values()) and len(evaluation["forward_per_s"]) == 2
    assert evaluation["ratio"] == pytest.approx(evaluation["evaluated_per_s"] / best)
    ten, hundred = costs["checkpoints"]
    assert (ten["classes"], hundred["classes"]) == (10, 100)
    assert 1 < ten["checkpoint_mib"] < hundred["checkpoint_mib"]  # queues of 90 classes more
    for row in (ten, hundred):
        assert row["stall_steps"] == pytest.approx(row["stall_ms"] / row["step_ms"]) and row["handed_over_ms"] > 0
    assert [row["classes"] for row in costs["records"]] == [10, 100]
    printed = capsys.readouterr().out
    assert run_costs.format_costs(costs) in printed
    assert "peak 900 MiB = 500 of images + 300 of imports + 100" in printed and "by papermill: 7.5 s" in printed
    assert f"peak memory: {costs['peak_memory_mib']} MiB" in printed


@pytest.mark.slow
def test_the_start_is_that_of_the_commands_a_user_types(monkeypatch):
    monkeypatch.setattr(run_costs, "COMMAND", (*run_costs.COMMAND, "-p", "threads", "1", "-p", "precision", "fp32"))
    assert set(run_costs.measure_start(1)) == {"import_s", "two_steps_s"}


@pytest.mark.slow
def test_the_memory_of_stl10_counts_its_images(monkeypatch):
    monkeypatch.setattr(run_costs, "STL10_IMAGES", {"unlabeled": 200, "train": 2100, "test": 40})
    memory = run_costs.measure_stl10(threads=1)
    assert memory["images_mib"] == pytest.approx(2340 * 3 * 96 * 96 / 2**20)
    assert memory["peak_mib"] > memory["imports_mib"] > 0


def test_made_up_files_have_the_layout_of_stl10(monkeypatch, tmp_path):
    monkeypatch.setattr(run_costs, "STL10_IMAGES", {"unlabeled": 30, "train": 20, "test": 10})
    run_costs.write_stl10(tmp_path)
    monkeypatch.setattr("dasolib.data._fetch", lambda name, dataset_class, root: tmp_path)
    data = load_data("stl10")
    assert (len(data.x_unlabeled), len(data.x_train), len(data.x_test)) == (30, 20, 10)
    assert np.bincount(data.y_train).tolist() == [2] * 10 and (data.y_unlabeled == -1).all()


@pytest.mark.parametrize(("arguments", "message"), [
    (("--rounds", 0), "--rounds 0: must be at least 1"), (("--threads", 0), "--threads 0: must be at least 1"),
    (("--threads", "many"), "invalid int value"), (("--stl11",), "unrecognized arguments"),
])
def test_arguments_that_make_no_sense_are_refused(arguments, message, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, *arguments)
    assert message in capsys.readouterr().err
