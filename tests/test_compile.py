"""A compiled step: one graph from views to losses and state, the same numbers, and no graph made twice for nothing."""

import functools
import os
import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from dasolib import train
from dasolib.config import make_config
from dasolib.train import check_compiler, run
from tests.replay_primitives import float64
from tests.test_methods import label, new_training, random_batch
from tests.test_no_synchronisation import N_STEPS, few_iterations, late_config  # noqa: F401 - a fixture
from tests.test_resume import CASES
from tests.tiny import contents, interrupt, save_tiny, tiny_config

WITH_COMPILER = [("supervised", ()), ("fixmatch", ()), ("fixmatch", ("daso",)), ("fixmatch", ("la", "daso"))]
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None,
                                    reason="torch compiles for the CPU with a C++ compiler, and there is none here")


@pytest.fixture(autouse=True)
def forget_graphs():
    """Start with nothing compiled, and leave nothing behind."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch):
    """Let the compiler trace the graphs but run them as they are, which takes no C++ compiler and little time."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def numbers(training, out):
    """All that a step leaves behind: losses, gradients, weights and state, by name."""
    state = training.state(1, 0.0)
    named = {f"loss {name}": loss.detach() for name, loss in out.losses.items()}
    named |= {f"gradient {name}": p.grad for name, p in training.net.named_parameters() if p.grad is not None}
    for part in ("net", "ema", "rebalance", "memory"):
        named |= {f"{part} {name}": tensor.clone() for name, tensor in (state[part] or {}).items()}
    return named


def both_ways(combination, **settings):
    """Yield (name, compiled, eager) for each number of some steps, in which every branch of a method is taken."""
    compiled, eager = (new_training(late_config(combination, compile=way, **settings)) for way in (True, False))
    for t in range(N_STEPS):
        batch = random_batch(late_config(combination), t)
        first, second = (numbers(training, training.step(batch, t)) for training in (compiled, eager))
        assert first.keys() == second.keys()
        for name in first:
            yield f"step {t} {name}", first[name], second[name]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_method_is_one_graph_from_views_to_losses_and_state(case, traced, few_iterations):  # noqa: F811
    """A break in the graph would be an error, as fullgraph is asked for."""
    combination = (case[0], tuple(name for name in case[1].split(",") if name))
    for name, compiled, eager in both_ways(combination):
        assert torch.equal(compiled, eager), name
    assert 1 <= counters["stats"]["unique_graphs"] <= 4


def test_daso_is_compiled_once_before_and_once_after_its_start(traced):
    """The same for the end of a step, with and without a new histogram; later steps find their graph."""
    config = late_config(("fixmatch", ("daso",)), compile=True, total_steps=40)
    training, graphs = new_training(config), []
    for t in range(12):
        training.step(random_batch(config, t), t)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == 2 and graphs[4:] == [4] * 8


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("combination", WITH_COMPILER, ids=label)
def test_a_compiled_step_gives_the_same_numbers(combination):
    """In float64, so that nothing hides behind rounding; in float32 the same code rounds to seven digits."""
    with float64():
        for name, compiled, eager in both_ways(combination, channels_last=True):
            assert torch.allclose(compiled.double(), eager.double(), rtol=0, atol=1e-9), name


@needs_compiler
@pytest.mark.slow
def test_a_compiled_run_goes_on_bit_for_bit(monkeypatch, tmp_path):
    config = tiny_config(save_tiny(tmp_path), method="supervised", rebalance="", compile=True)  # few graphs to compile
    run(config, tmp_path / "undisturbed", progress=False)
    interrupt(monkeypatch, config, tmp_path / "stopped", at=3)
    run(config, tmp_path / "stopped", progress=False)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "undisturbed")


def test_each_generation_of_crest_is_compiled(traced, tmp_path):
    config = tiny_config(save_tiny(tmp_path), rebalance="crest", n_generations=6, compile=True)
    run(config, tmp_path / "compiled", progress=False)
    run(config.model_copy(update={"compile": False}), tmp_path / "eager", progress=False)
    assert contents(tmp_path / "compiled") == contents(tmp_path / "eager")


def test_a_run_is_refused_where_torch_cannot_compile(monkeypatch, tmp_path):
    def no_compiler(*arguments, **settings):
        raise RuntimeError("no C++ compiler found\nmore of the message")
    monkeypatch.setattr(train.torch, "compile", no_compiler)
    with pytest.raises(ValueError, match=r"compile=True: torch cannot compile for cpu here \(RuntimeError: no C\+\+ "
                                         r"compiler found\); install a C\+\+ compiler, or choose compile=False"):
        run(tiny_config(save_tiny(tmp_path), compile=True), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@needs_compiler
def test_the_compiler_here_is_found():
    check_compiler(torch.device("cpu"))


def test_compiling_is_off_unless_asked_for_and_names_another_run():
    for preset in ("paper", "cpu"):
        config = make_config(preset, dataset="mnist5k", method="fixmatch")
        assert not config.compile and "compile" not in config.identity()
        compiled = make_config(preset, dataset="mnist5k", method="fixmatch", compile=True)
        assert compiled.identity()["compile"] and compiled.run_name() != config.run_name()
