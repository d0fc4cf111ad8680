"""Learning rates and ramp-ups at the steps where their value is known."""

import math

import pytest

from dasolib.schedules import SCHEDULES, lr_at, ramp_up

MULTISTEP = {"lr": 0.1, "schedule": "multistep", "total_steps": 1000}


@pytest.mark.parametrize("t", [0, 1, 500, 1000])
def test_a_constant_rate_is_the_base_rate(t):
    assert lr_at(t, lr=0.03, schedule="constant", total_steps=1000) == 0.03


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_starts_at_the_base_rate(schedule):
    assert lr_at(0, lr=0.03, schedule=schedule, total_steps=1000, milestones=(800,)) == 0.03


def test_the_fixmatch_cosine_ends_at_cos_of_seven_sixteenths_of_pi():
    got = lr_at(1000, lr=0.03, schedule="cosine", total_steps=1000)
    assert got == pytest.approx(0.03 * 0.19509032201612825)
    assert lr_at(500, lr=1.0, schedule="cosine", total_steps=1000, cosine_ratio=8) == pytest.approx(math.sqrt(0.5))


def test_the_half_cosine_passes_one_half_and_ends_at_zero():
    got = [lr_at(t, lr=0.2, schedule="cosine_half", total_steps=10) for t in (0, 5, 10)]
    assert got == pytest.approx([0.2, 0.1, 0.0], abs=1e-15)


@pytest.mark.parametrize("schedule", ["cosine", "cosine_half"])
def test_a_cosine_falls_at_every_step(schedule):
    rates = [lr_at(t, lr=0.03, schedule=schedule, total_steps=50) for t in range(51)]
    assert all(later < earlier for earlier, later in zip(rates, rates[1:], strict=False))
    assert min(rates) >= 0


def test_a_milestone_counts_from_its_own_step():
    at = {t: lr_at(t, milestones=(800, 900), lr_decay=0.01, **MULTISTEP) for t in (799, 800, 899, 900)}
    assert at == pytest.approx({799: 0.1, 800: 1e-3, 899: 1e-3, 900: 1e-5})


def test_linear_warm_up_rises_evenly_from_its_factor_to_the_base_rate():
    rates = [lr_at(t, warmup_steps=4, warmup_factor=0.2, milestones=(800,), **MULTISTEP) for t in range(6)]
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])


def test_linear_warm_up_from_zero_takes_a_first_step_of_rate_zero():
    assert lr_at(0, warmup_steps=25, warmup_factor=0.0, **MULTISTEP) == 0


def test_constant_warm_up_stays_at_its_factor():
    shape = {"warmup_steps": 3, "warmup_factor": 0.25, "warmup_shape": "constant"}
    assert [lr_at(t, **shape, **MULTISTEP) for t in range(4)] == pytest.approx([0.025, 0.025, 0.025, 0.1])


def test_warm_up_and_schedule_multiply():
    got = lr_at(1, lr=1.0, schedule="cosine_half", total_steps=4, warmup_steps=2, warmup_factor=0.0)
    assert got == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)) / 2)


def test_an_unknown_schedule_or_shape_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="schedule='step': choose one of constant, cosine, cosine_half, multistep"):
        lr_at(0, lr=0.1, schedule="step", total_steps=10)
    with pytest.raises(ValueError, match="warmup_shape='quadratic': choose linear or constant"):
        lr_at(0, lr=0.1, schedule="constant", total_steps=10, warmup_shape="quadratic")


def test_a_linear_ramp_rises_from_zero_and_stays_at_one():
    assert [ramp_up(t, length=4) for t in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]


def test_an_exponential_ramp_starts_at_e_to_minus_five():
    got = [ramp_up(t, length=2, shape="exp") for t in range(4)]
    assert got == pytest.approx([math.exp(-5), math.exp(-1.25), 1, 1])


def test_an_unknown_ramp_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="shape='cosine': choose linear or exp"):
        ramp_up(0, length=4, shape="cosine")
