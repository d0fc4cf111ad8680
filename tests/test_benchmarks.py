"""The benchmarks run, count passes right, and refuse bad arguments; what they measure is not tested."""

import functools
import json

import pytest

from benchmarks import methods
from dasolib.config import make_config


@pytest.fixture
def quick(monkeypatch):
    """Two methods, a step each, beside FixMatch, in a precision that every CPU has."""
    monkeypatch.setattr(methods, "make_config", functools.partial(make_config, precision="fp32"))
    monkeypatch.setattr(methods, "BLOCK", 1)
    monkeypatch.setattr(methods, "WARM_UP", 21)  # past DASO's P
    chosen = [("fixmatch", ()), ("mixmatch", ("daso",)), ("supervised", ("crt",))]
    monkeypatch.setattr(methods, "combinations", lambda: chosen)


@pytest.mark.slow
def test_methods_prints_a_table_and_stores_it(quick, monkeypatch, tmp_path, capsys):
    """FixMatch: 32 + 2 * 64 images forward and back; MixMatch: two guesses, the mixed batch, the EMA pass of DASO."""
    monkeypatch.setattr("sys.argv", ["methods", "--rounds", "2", "--json", str(tmp_path / "methods.json")])
    methods.main()
    rows = json.loads((tmp_path / "methods.json").read_text())["methods"]
    assert [row["method"] for row in rows] == ["FixMatch", "MixMatch + DASO", "Supervised + cRT"]
    assert [row["image_passes"] for row in rows] == [3 * 160, 2 * 32 + 3 * 96 + 32, 32]
    assert rows[0]["step"] == rows[0]["training"] == rows[0]["passes"] == 1
    assert methods.format_rows(rows) in capsys.readouterr().out


def test_methods_needs_a_round(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["methods", "--rounds", "0"])
    with pytest.raises(SystemExit):
        methods.main()
    assert "--rounds 0: must be at least 1" in capsys.readouterr().err


def test_every_method_is_measured_on_some_base_learner():
    pairs = list(methods.combinations())
    assert {method for method, _ in pairs} == set(methods.LEARNERS) - {"distribution_estimate"}
    assert {name for _, names in pairs for name in names} == set(methods.REBALANCERS)
    assert len(set(pairs)) == len(pairs)
