"""The benchmarks of a step run on a small network, their opponent computes the same, and their tables add up."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from benchmarks import daso_cost, host_memory, roofline, seeds, step
from benchmarks.roofline import CallCounter
from benchmarks.workload import build, random_data
from dasolib.config import make_config

CPU = torch.device("cpu")


def small_config(device, **changes):
    """What `step.paper_config` returns, for a network and batches that a test can train."""
    settings = {"rebalance": "daso"} | changes
    settings |= {"pretrain_steps": 100} if settings["rebalance"] else {}
    return make_config("paper", dataset="cifar10", method="fixmatch", depth=10, width=1, batch_size=4, threads=1,
                       unlabeled="equal", n_val=0, total_steps=100_000, device=str(device), **settings)


@pytest.fixture
def small(monkeypatch):
    """Small networks and matrices in the benchmarks."""
    for module in (step, daso_cost):
        monkeypatch.setattr(module, "paper_config", small_config)
        monkeypatch.setattr(module, "WARM_UP", 0)
    monkeypatch.setattr(step, "PRODUCT_SIDE", 64)
    monkeypatch.setattr(daso_cost, "CLASSES", (10, 100))
    monkeypatch.setattr(daso_cost, "QUEUES", (128, 256))
    monkeypatch.setattr(seeds, "SIZES", {"small": {"depth": 10, "width": 1, "images": 4}})
    monkeypatch.setattr(seeds, "ON_CPU", ("small",))
    monkeypatch.setattr(seeds, "SECONDS", 0.1)
    monkeypatch.setattr(seeds, "N_SEEDS", (2,))


def test_the_plain_step_computes_what_ours_computes():
    """Same losses and weights, over a new histogram and a queue that overflows: else a ratio would mean nothing."""
    config = small_config(CPU, queue_size=3, refresh_steps=2, threshold=0.3)
    data = random_data()
    batches, training = build(config, data, CPU)
    plain = step.PlainDaso(training, config, data.n_classes)
    training.rebalance.parts["daso"].class_freq += 1  # the plain step starts with a histogram of ones
    for t in range(200, 206):
        batch = batches.at(t)[0]
        expected, losses = training.step(batch, t).losses, plain.step(batch, t)
        assert losses.keys() == expected.keys()
        for name in losses:
            torch.testing.assert_close(losses[name], expected[name], rtol=1e-3, atol=1e-4)
    assert plain.class_freq.tolist() == training.rebalance.parts["daso"].class_freq.tolist()
    for ours, theirs in ((training.net, plain.net), (training.ema.model, plain.ema)):
        for name, weight in ours.state_dict().items():
            torch.testing.assert_close(theirs.state_dict()[name], weight, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_the_plain_step_keeps_its_histogram_where_the_network_is():
    with FakeTensorMode():
        net = torch.nn.Linear(2, 2, device="cuda")
        plain = step.PlainDaso(SimpleNamespace(net=net, ema=SimpleNamespace(model=net)), small_config(CPU), 10)
        assert plain.class_freq.device == plain.pending.device == net.weight.device


@pytest.mark.slow
def test_step_prints_tables_that_add_up(small, monkeypatch, tmp_path, capsys):
    file = tmp_path / "step.json"
    monkeypatch.setattr("sys.argv", ["step", "--rounds", "1", "--device", "cpu", "--json", str(file)])
    step.main()
    numbers = json.loads(file.read_text())
    assert [row["variant"] for row in numbers["rows"]] == ["plain", *step.VARIANTS]
    assert numbers["rows"][0]["plain / own"] == 1 and numbers["peak_memory_mib"] > 100
    shares = numbers["profile"]
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) > 0
    network = sum(share for section, share in shares.items() if section.startswith("network"))
    assert numbers["outside_network"] == pytest.approx(1 - network)
    stem, units = 1024 * 27 * 16, (1024 * 9 * 2 * 16 * 16, 256 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32),
                                   64 * (9 * 32 * 64 + 9 * 64 * 64 + 32 * 64))
    # 20 images forward and back, where images get no gradient; 4 more forward, by the moving average.
    products = 20 * (3 * sum(units) + 2 * stem) + 4 * (sum(units) + stem)
    assert numbers["gflop_per_step"] == pytest.approx(2 * products / 1e9, rel=1e-3)
    assert step.format_numbers(numbers) in capsys.readouterr().out


@pytest.mark.slow
def test_daso_cost_sets_each_variant_against_fixmatch_with_its_number_of_classes(small, monkeypatch, tmp_path, capsys):
    file = tmp_path / "cost.json"
    monkeypatch.setattr("sys.argv", ["daso_cost", "--rounds", "1", "--device", "cpu", "--json", str(file)])
    daso_cost.main()
    rows = json.loads(file.read_text())["rows"]
    assert [(row["classes"], row["queue"]) for row in rows] == [(10, None), (10, 256), (100, None), (100, 256),
                                                                (10, 128)]
    ms = {(row["classes"], row["queue"]): row["ms"] for row in rows}
    for row in rows:
        assert row["of FixMatch"] == pytest.approx(row["ms"] / ms[row["classes"], None])
    assert daso_cost.format_rows(rows) in capsys.readouterr().out


@pytest.mark.slow
def test_seeds_measures_both_ways(small, monkeypatch, tmp_path, capsys):
    file = tmp_path / "seeds.json"
    monkeypatch.setattr(seeds, "process_rate", lambda size, precision, n, device: 100.0 * n)
    monkeypatch.setattr("sys.argv", ["seeds", "--rounds", "1", "--device", "cpu", "--json", str(file)])
    seeds.main()
    rows = json.loads(file.read_text())["rows"]
    assert [(row["precision"], row["processes"]) for row in rows] == [("fp32", 2.0), ("bf16", 2.0)]
    assert rows[0]["batched"] > 0 and rows[1]["batched"] is None
    assert seeds.format_rows(rows) in capsys.readouterr().out


@pytest.mark.parametrize("module", [step, daso_cost, seeds])
def test_bad_arguments_are_refused(module, monkeypatch, capsys):
    for arguments, message in ((["--rounds", "0"], "--rounds 0: must be at least 1"),
                               (["--device", "gpu"], "device='gpu': choose auto, or a device that torch has here")):
        monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
        with pytest.raises(SystemExit):
            module.main()
        assert message in capsys.readouterr().err


def test_calls_are_counted_with_the_bytes_they_read_and_write():
    """Views and empty tensors move nothing; an argument given twice is read once; a convolution counts for its own."""
    x, weight = torch.zeros(2, 3, 8, 8), torch.zeros(4, 3, 3, 3)
    with CallCounter() as counter:
        torch.empty(1000)
        y = x.view(2, 192)[:1]
        y + y
    assert (counter.calls, counter.bytes, counter.convolutions) == (1, 2 * 192 * 4, 0)
    with CallCounter() as counter:
        F.conv2d(x, weight)
    assert (counter.calls, counter.convolutions) == (1, 1)
    assert counter.bytes == counter.convolution_bytes == 4 * (2 * 3 * 64 + 4 * 27 + 2 * 4 * 36)


def test_the_least_time_of_a_gpu_is_that_of_arithmetic_or_traffic(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(roofline, "paper_config", small_config)
    monkeypatch.setattr(roofline, "GPUS", {"slow": (1e9, 1e30), "narrow": (1e30, 1e9)})
    monkeypatch.setattr("sys.argv", ["roofline", "--json", str(tmp_path / "roofline.json")])
    roofline.main()
    numbers = json.loads((tmp_path / "roofline.json").read_text())
    counts, (slow, narrow) = numbers["counts"], numbers["rows"]
    assert slow["minutes"] == slow["fused_minutes"] == pytest.approx(counts["flop"] / 1e9 * 250_000 / 60)
    assert narrow["minutes"] == pytest.approx(counts["bytes"] / 1e9 * 250_000 / 60)
    assert narrow["fused_minutes"] < narrow["minutes"]
    assert roofline.format_numbers(numbers) in capsys.readouterr().out


@pytest.mark.slow
def test_host_memory_measures_the_way_it_is_told_and_no_step_of_the_warm_up(monkeypatch):
    told, steps, clock = [], [], iter([10.0, 16.0])
    monkeypatch.setattr(host_memory, "SIZES", {"small": ({}, 2)})
    monkeypatch.setattr(host_memory, "HOSTS", {"kept": told.append})
    monkeypatch.setattr(host_memory.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(host_memory, "build", lambda config, data, device: (
        SimpleNamespace(at=lambda t: (t, None)), SimpleNamespace(step=lambda batch, t: steps.append((batch, t)))))
    ms, faults = host_memory.measure_one("small", "kept")
    assert told == [1] and steps == [(t, t) for t in range(host_memory.WARM_UP + 2)]
    assert ms == 3000 and 0 <= faults < 100  # two steps in six seconds, which touch no new page
    rows = [{"step": "small", "ms_default": 150.0, "ms_kept": 100.0, "faults_default": 5661, "faults_kept": 1,
             "faster": 1.5}]
    assert host_memory.format_rows(rows).splitlines()[1].split() == "small 150.0 100.0 1.50x 5,661 1".split()
