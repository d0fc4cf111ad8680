"""The tables of docs/speed.md are those of the committed measurements, and of the committed runs."""

import json
from pathlib import Path

import pytest

from benchmarks import augment, daso_cost, host_memory, roofline, run_costs, seeds, step
from dasolib.residency import RESIDENT_SHARE
from dasolib.results import format_table, load_runs, results_table

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/speed.md").read_text()


def table(name, text_of):
    return text_of(json.loads((ROOT / f"benchmarks/{name}.json").read_text()))


TABLES = {
    "augment": lambda numbers: augment.format_rows(numbers["views"]),
    "step": step.format_numbers,
    "step_without_amx": step.format_numbers,
    "host_memory": lambda numbers: host_memory.format_rows(numbers["rows"]),
    "daso_cost": lambda numbers: daso_cost.format_rows(numbers["rows"]),
    "roofline": roofline.format_numbers,
    "run_costs": run_costs.format_costs,
    "seeds": lambda numbers: seeds.format_rows(numbers["rows"]),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_that_of_the_committed_measurement(name):
    assert f"```text\n{table(name, TABLES[name])}\n```" in TEXT


def test_the_table_of_precisions_is_that_of_the_committed_runs():
    runs = load_runs(ROOT / "runs/precision")
    assert {(run.config["precision"], run.config["seed"]) for run in runs} == {(precision, seed) for seed in (0, 1, 2)
                                                                               for precision in ("bf16", "fp32")}
    assert f"```text\n{format_table(results_table(runs, by=('method', 'precision')))}\n```" in TEXT


def test_the_share_of_memory_is_that_of_the_code():
    assert f"{RESIDENT_SHARE:.0%} of its free memory" in TEXT.replace("\n", " ")
