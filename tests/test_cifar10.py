"""CIFAR-10 comes out in the order of the committed runs, from whatever order it is downloaded in."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dasolib import cifar10
from dasolib.data import load_data
from tests.tiny import save_tiny

ROOT = Path(__file__).resolve().parents[1]


def shuffled(data, seed):
    rows = {part: torch.from_numpy(np.random.default_rng(seed).permutation(len(getattr(data, f"y_{part}"))))
            for part in ("train", "test")}
    return dataclasses.replace(data, **{f"{name}_{part}": getattr(data, f"{name}_{part}")[rows[part]]
                                        for name in "xy" for part in rows})


@pytest.fixture
def ours(tmp_path, monkeypatch):
    """A data set in an order of its own, and that order as the module stores one."""
    data = shuffled(load_data(save_tiny(tmp_path)), 0)
    np.savez(tmp_path / "order.npz", train=np.argsort(cifar10.sorted_rows(data.x_train.numpy(), data.y_train.numpy())),
             test=np.argsort(cifar10.sorted_rows(data.x_test.numpy(), data.y_test.numpy())))
    monkeypatch.setattr(cifar10, "ORDER", tmp_path / "order.npz")
    monkeypatch.setattr(cifar10, "FINGERPRINT", data.fingerprint)
    return data


def test_the_file_is_the_same_from_whatever_order_the_images_come_in(ours, tmp_path, monkeypatch, capsys):
    for seed in (1, 2):
        monkeypatch.setattr(cifar10, "load_data", lambda name, root, seed=seed: shuffled(ours, seed))
        file = tmp_path / f"cifar10_{seed}.npz"
        assert cifar10.main([str(file)]) == 0
        assert load_data(file).fingerprint == ours.fingerprint != shuffled(ours, seed).fingerprint
        assert "160 training and 60 test images" in capsys.readouterr().out


def test_other_images_and_a_file_that_is_there_are_refused(ours, tmp_path, monkeypatch, capsys):
    other = dataclasses.replace(ours, x_train=ours.x_train + 1)
    for data, message in ((other, "are not those that the runs were trained on"),
                          (dataclasses.replace(ours, y_test=ours.y_test[1:], x_test=ours.x_test[1:]),
                           "data has 59 test images, and the order is that of 60")):
        monkeypatch.setattr(cifar10, "load_data", lambda name, root, data=data: data)
        assert cifar10.main([str(tmp_path / "new" / "a.npz")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert cifar10.main([str(tmp_path / "order.npz")]) == 2
    assert "order.npz exists; move it away" in capsys.readouterr().err
    for arguments in ([], ["data/cifar10"], ["a.npz", "b.npz"]):
        assert cifar10.main(arguments) == 2
        assert "usage: python -m dasolib.cifar10 FILE.npz" in capsys.readouterr().err


def test_the_stored_order_is_of_all_images_and_of_the_data_of_the_committed_runs():
    with np.load(cifar10.ORDER) as order:
        for part, n in (("train", 50_000), ("test", 10_000)):
            assert np.array_equal(np.sort(order[part]), np.arange(n))
    records = [json.loads(file.read_text()) for file in (ROOT / "runs/cpu_study").glob("cifar10-*/config.json")]
    assert {record["data_sha256"] for record in records} == {cifar10.FINGERPRINT}
