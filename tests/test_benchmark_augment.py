"""The contenders of the benchmark of augmentation make the same views; what it measures is not tested."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import augment as benchmark
from dasolib.augment import StrongDraws, WeakDraws, draw_weak, normalize, strong_view, weak_view
from dasolib.randaugment import OPERATIONS

KORNIA = importlib.util.find_spec("kornia") is not None


@pytest.fixture
def image():
    return torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [
    lambda: benchmark.ours("weak"),
    lambda: benchmark.torchvision("weak"),
    pytest.param(lambda: benchmark.kornia_weak(), marks=pytest.mark.skipif(not KORNIA, reason="needs kornia")),
])
def test_every_weak_view_is_one_of_the_162_flips_and_crops(image, make):
    """40 views of everybody are among all of them, and are not one and the same."""
    choices = torch.cartesian_prod(torch.arange(2), torch.arange(9), torch.arange(9)).T
    flip, dy, dx = choices
    every = weak_view(image.expand(162, -1, -1, -1), WeakDraws(flip.bool(), dy, dx))
    every = normalize(every, benchmark.MEAN, benchmark.STD)
    torch.manual_seed(0)
    views = make()(image.expand(40, -1, -1, -1))
    distance = (views[:, None] - every).abs().amax(dim=(2, 3, 4))
    assert distance.amin(dim=1).max() < 1e-5
    assert len(distance.argmin(dim=1).unique()) > 20


def test_the_policy_on_a_pillow_image_equals_our_strong_view(image, monkeypatch):
    """Two operations, the first of which is applied, a negative strength, and the Cutout centre at a quarter."""
    for name, level in (("Rotate", 7), ("Color", 2), ("Equalize", 5)):
        chance = iter([0.1, 0.2, 0.9])  # apply, negate; not apply
        monkeypatch.setattr(benchmark.random, "choices", lambda names, k, name=name: [name, "Solarize"])
        monkeypatch.setattr(benchmark.random, "random", lambda chance=chance: next(chance))
        monkeypatch.setattr(benchmark.random, "randint", lambda low, high, level=level: level)
        monkeypatch.setattr(benchmark.random, "uniform", lambda low, high: high / 4)
        got = benchmark.pillow_policy(Image.fromarray(image[0].permute(1, 2, 0).numpy()))
        draws = StrongDraws(
            draw_weak(1, generator=torch.Generator(), flip=False, pad=0),
            operation=torch.tensor([[OPERATIONS.index(name)], [OPERATIONS.index("Solarize")]]),
            apply=torch.tensor([[True], [False]]),
            level=torch.full((2, 1), level),
            negative=torch.ones(2, 1, dtype=torch.bool),
            centre=torch.full((1, 2), 8.0, dtype=torch.float64),
        )
        want = strong_view(image, draws, pad=0)[0].permute(1, 2, 0).numpy()
        assert np.array_equal(np.array(got), want), name


@pytest.mark.parametrize("kornia", [pytest.param(True, marks=pytest.mark.skipif(not KORNIA, reason="needs kornia")),
                                    False])
def test_the_benchmark_prints_a_table_and_stores_it(kornia, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "BATCHES", (2, 3))
    monkeypatch.setattr(benchmark, "REPEATS", 1)
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: name if kornia else None)
    monkeypatch.setattr("sys.argv", ["augment", "--rounds", "1", "--json", str(tmp_path / "augment.json")])
    benchmark.main()
    stored = json.loads((tmp_path / "augment.json").read_text())
    rows = stored["views"]
    assert [(row["view"], row["batch"]) for row in rows] == [(v, n) for v in ("weak", "strong") for n in (2, 3)]
    assert all(row["ours"] > 0 and row["ours / torchvision"] > 0 for row in rows)
    assert [row["view"] for row in rows if "kornia" in row] == ["weak"] * 2 * kornia
    text = benchmark.format_rows(rows)
    assert text.count("not installed") == 2 * (not kornia) and text.count("cannot") == 2
    assert f"{text}\npeak memory: {stored['peak_memory_mib']} MiB" in capsys.readouterr().out


def test_the_ratio_is_the_median_within_rounds():
    """Twice as long in the first round, four and eight times as long in the others; rates come from median times."""
    found = benchmark.rates(6, {"ours": [1, 2, 3], "theirs": [2, 8, 24]})
    assert found == {"ours": 3, "theirs": 0.75, "ours / theirs": 4}


@pytest.mark.parametrize("rounds", ["0", "-3"])
def test_the_benchmark_needs_a_round(rounds, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["augment", "--rounds", rounds])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert f"--rounds {rounds}: must be at least 1" in capsys.readouterr().err
