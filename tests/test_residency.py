"""Images that stay on the host give the same run, and the thread that gathers them comes to an end."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import dasolib.train
from dasolib.batches import Batches, make_split
from dasolib.data import load_data
from dasolib.image_batch import send_array
from dasolib.residency import RESIDENT_SHARE, Ahead, fits, ready_for, send
from dasolib.train import run
from tests.test_augment import RefuseWaits
from tests.test_batches import NORMALIZE_TO_BYTES, textured_data, toy_data
from tests.tiny import contents, interrupt, read_metrics, save_tiny, tiny_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("data"))


# ---- where the images live ----


@pytest.mark.parametrize(("free", "fit"), [(1.01, True), (0.99, False)])
def test_images_live_on_a_gpu_if_they_fit_a_share_of_its_free_memory(free, fit, monkeypatch):
    data = toy_data(pile=True)
    n_bytes = data.x_train.nbytes + data.x_test.nbytes + data.x_unlabeled.nbytes
    assert n_bytes == (160 + 160 + 50) * 144
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * n_bytes / RESIDENT_SHARE, 1e9))
    assert fits(data, CUDA) == fit


def test_on_the_host_everything_fits_and_no_gpu_is_asked_for():
    huge = SimpleNamespace(x_train=None, x_test=None, x_unlabeled=SimpleNamespace(nbytes=1e15))
    assert fits(huge, CPU)


@pytest.mark.parametrize("fit", [True, False])
def test_a_run_decides_by_what_fits_unless_it_is_told(fit, dataset, monkeypatch, tmp_path):
    monkeypatch.setattr(dasolib.train, "fits", lambda data, device: fit)
    seen = []
    monkeypatch.setattr(dasolib.train, "Batches", lambda *args, resident: seen.append(resident) or 1 / 0)
    for resident in (None, True, False):
        with pytest.raises(ZeroDivisionError):
            run(tiny_config(dataset), tmp_path / "run", progress=False, resident=resident)
    assert seen == [fit, True, False]


def test_only_what_goes_from_the_host_to_a_gpu_is_pinned(monkeypatch):
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: "pinned")
    assert ready_for(images, CUDA) == "pinned"
    assert ready_for(images, CPU) is images
    with FakeTensorMode():
        on_gpu = torch.empty(2, 1, 4, 4, device="cuda")
        assert ready_for(on_gpu, CUDA) is on_gpu
    assert send(images, CPU) is images


def test_what_is_sent_to_a_gpu_goes_from_pinned_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, *, non_blocking: calls.append((device, non_blocking)))
    send(torch.zeros(2), CUDA)
    send_array(np.zeros(2), CUDA)
    assert calls == 2 * ["pinned", (CUDA, True)]


# ---- the same batches ----


@pytest.fixture
def host_batches():
    """Yield a function that makes batches of images that stay on the host, and stop their threads."""
    made = []

    def make(data=None, **changes):
        data, config = data or textured_data(), tiny_config("toy", **changes)
        made.append(Batches(config, data, make_split(config, data), NORMALIZE_TO_BYTES, CPU, resident=False))
        return made[-1]

    yield make
    for batches in made:
        batches.close()
    assert threads() == []


def resident_batches(**changes):
    data, config = textured_data(), tiny_config("toy", **changes)
    return Batches(config, data, make_split(config, data), NORMALIZE_TO_BYTES, CPU)


def assert_same_batch(one, other):
    for mine, theirs in zip(one[0], other[0], strict=True):
        if isinstance(mine, dict):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
        else:
            assert mine is theirs is None or torch.equal(mine, theirs)
    assert one[1] is other[1] is None or torch.equal(one[1], other[1])


COMBINATIONS = [("supervised", ""), ("fixmatch", "daso"), ("fixmatch", "abc"), ("remixmatch", ""), ("usadtm", "")]


@pytest.mark.parametrize(("method", "rebalance"), COMBINATIONS)
@pytest.mark.parametrize("steps", [range(6), (4, 5, 0, 0, 1, 5)], ids=["in order", "out of order"])
def test_batches_of_images_on_the_host_are_the_same(method, rebalance, steps, host_batches):
    changes = {"method": method, "rebalance": rebalance}
    resident, on_host = resident_batches(**changes), host_batches(**changes)
    for t in steps:
        assert_same_batch(on_host.at(t), resident.at(t))


def test_images_gathered_before_a_selection_are_dropped(host_batches):
    """The step that was gathered ahead lies in the next generation, whose labeled images are others."""
    changes = {"rebalance": "crest", "total_steps": 30, "n_generations": 3}
    selected = {"rows": torch.arange(14), "classes": torch.arange(14) % 4}
    resident, on_host = resident_batches(**changes), host_batches(**changes)
    for batches in (resident, on_host):
        batches.at(9)
        batches.select(selected)
    for t in (10, 11, 12, 13):
        assert_same_batch(on_host.at(t), resident.at(t))


def test_the_next_step_is_gathered_in_a_thread_while_the_present_one_is_used(host_batches, monkeypatch):
    gathered, gather = [], Batches.gather

    def record(self, t):
        gathered.append((t, threading.current_thread().name.split("_")[0]))
        return gather(self, t)

    monkeypatch.setattr(Batches, "gather", record)
    batches = host_batches(total_steps=3)
    batches.at(0)
    batches.ahead.pending[1].result()
    assert gathered == [(0, "ahead"), (1, "ahead")]
    batches.at(1)
    batches.at(2)
    assert [t for t, _ in gathered] == [0, 1, 2]  # each once, and none after the last


def test_images_from_the_host_go_to_a_gpu_without_a_wait(host_batches, monkeypatch):
    """Views are made on the device, without a wait as well: `tests.test_augment`."""
    batches = host_batches()
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # there is nothing to pin for without a GPU
    monkeypatch.setattr(batches, "view", lambda images, kind, name, t: images)
    monkeypatch.setattr(batches, "device", CUDA)
    gathered = batches.ahead(0)
    monkeypatch.setattr(batches, "ahead", lambda t: gathered)
    with FakeTensorMode(allow_non_fake_inputs=True), RefuseWaits():
        for name in ("y", "u_target"):
            monkeypatch.setattr(batches, name, torch.empty(len(getattr(batches, name)), device="cuda"))
        batch, target = batches.at(0)
        sent = (batch.x, batch.y, batch.index, target, *batch.views.values())
        assert {part.device.type for part in sent} == {"cuda"}
    monkeypatch.undo()


# ---- the same run ----

CASES = [("supervised", ""), ("fixmatch", "daso"), ("fixmatch", "crest"), ("remixmatch", "la,crest_plus"),
         ("distribution_estimate", "")]


def config_of(dataset, method, rebalance):
    more = {"n_val": 40, "m1": 16} if method == "distribution_estimate" else {}
    more |= {"threshold": 0.4} if method == "fixmatch" else {}
    return tiny_config(dataset, method=method, rebalance=rebalance, total_steps=9, **more)


@pytest.mark.parametrize(("method", "rebalance"), CASES)
def test_a_run_whose_images_stay_on_the_host_is_the_same_bit_for_bit(method, rebalance, dataset, monkeypatch, tmp_path):
    """Undisturbed, and stopped and started again, by turns."""
    config = config_of(dataset, method, rebalance)
    run(config, tmp_path / "resident", progress=False)
    run(config, tmp_path / "host", progress=False, resident=False)
    assert threads() == []
    for at, resident in ((5, False), (8, True)):
        interrupt(monkeypatch, config, tmp_path / "stopped", at=at, resident=resident)
        assert threads() == []
    run(config, tmp_path / "stopped", progress=False, resident=False)
    expected = contents(tmp_path / "resident")
    assert contents(tmp_path / "host") == contents(tmp_path / "stopped") == expected
    assert [record["step"] for record in read_metrics(tmp_path / "stopped")] == [2, 4, 6, 8, 9]


# ---- one step ahead ----


def test_values_are_those_of_the_function_in_any_order():
    ahead = Ahead(lambda t: 10 * t, end=5)
    assert [ahead(t) for t in (0, 1, 2, 2, 4, 0, 1)] == [0, 10, 20, 20, 40, 0, 10]
    ahead.close()
    assert threads() == []


def test_a_value_computed_ahead_is_used_once_and_not_after_it_was_forgotten():
    state = {"factor": 10}
    ahead = Ahead(lambda t: state["factor"] * t, end=9)
    ahead(1)
    ahead.pending[2].result()
    state["factor"] = 100
    assert ahead(2) == 20
    ahead.pending[3].result()
    ahead.forget()
    assert ahead(3) == 300
    ahead.close()


def test_forgetting_waits_for_the_thread():
    """It may be reading what is about to change."""
    running, done = threading.Event(), []

    def slow(t):
        if t == 1:
            running.set()
            time.sleep(0.2)
            done.append(t)

    ahead = Ahead(slow, end=9)
    ahead(0)
    assert running.wait(60)
    ahead.forget()
    assert done == [1]
    ahead.close()


def test_an_error_is_raised_by_the_step_it_belongs_to():
    def fail(t):
        if t == 1:
            raise MemoryError("no room for step 1")
        return t

    ahead = Ahead(fail, end=9)
    assert ahead(0) == 0
    with pytest.raises(MemoryError, match="no room for step 1"):
        ahead(1)
    assert ahead(2) == 2
    ahead.close()
    assert threads() == []


def test_closing_twice_or_before_the_first_step_is_allowed():
    ahead = Ahead(lambda t: t, end=2)
    ahead.close()
    assert ahead(0) == 0
    ahead.close()
    ahead.close()
    assert threads() == []


# ---- on a GPU ----


@pytest.mark.gpu
@pytest.mark.parametrize("rebalance", ["daso", "crest"])
def test_a_run_on_a_gpu_does_not_depend_on_where_its_images_live(rebalance, dataset, tmp_path):
    config = config_of(dataset, "fixmatch", rebalance).model_copy(update={"device": "cuda"})
    for resident in (True, False):
        run(config, tmp_path / str(resident), progress=False, resident=resident)
    one, other = (read_metrics(tmp_path / str(resident)) for resident in (True, False))
    assert [record["losses"] for record in one] == [pytest.approx(record["losses"], rel=1e-3) for record in other]


@pytest.mark.gpu
def test_batches_from_the_host_do_not_wait_for_a_gpu(dataset):
    data, config = load_data(dataset), tiny_config(dataset)
    batches = Batches(config, data, make_split(config, data), NORMALIZE_TO_BYTES, CUDA, resident=False)
    batches.at(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches.at(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        batches.close()
