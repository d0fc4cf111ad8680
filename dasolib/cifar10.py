"""CIFAR-10 with its images in the order in which the runs of this repository have them: sorted by class.

    python -m dasolib.cifar10 data/cifar10.npz

Downloads the published data set, where it is absent, and writes the file that ``studies/cpu_deep.yaml`` trains on. A
split takes images by their index, so that another order would be another split.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from dasolib.data import load_data
from dasolib.run_folder import project_root, resolve, write_npz

ORDER = Path(__file__).with_name("cifar10_order.npz")
FINGERPRINT = "84104ea6b26147920d327c91e684802188f09077c7926e5fd130ef389733b08d"  # of the data in this order


def sorted_rows(images, target):
    """Rows of images (n, ...) by class, then by the bytes of the image: the same from whatever order they come in.

    Examples
    --------
    >>> sorted_rows(np.array([[3], [1], [2]], dtype=np.uint8), np.array([0, 1, 0])).tolist()
    [2, 0, 1]
    """
    return np.array(sorted(range(len(target)), key=lambda i: (int(target[i]), images[i].tobytes())))


def in_our_order(data, order):
    """Return a data set with its images in our order.

    Parameters
    ----------
    data : dasolib.data.ImageData
        In any order.
    order : mapping of str to ndarray
        ``train`` and ``test``: for each of our images its place among the `sorted_rows`.

    Returns
    -------
    ImageData

    Raises
    ------
    ValueError
        If the data set has another number of images.
    """
    changed = {}
    for part in ("train", "test"):
        x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
        if len(order[part]) != len(y):
            raise ValueError(f"data has {len(y)} {part} images, and the order is that of {len(order[part])}")
        rows = sorted_rows(x.numpy(), y.numpy())[order[part]]
        changed |= {f"x_{part}": x[rows], f"y_{part}": y[rows]}
    return dataclasses.replace(data, **changed)


def main(arguments=None):
    """Write the file; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1 or not arguments[0].endswith(".npz"):
        print("usage: python -m dasolib.cifar10 FILE.npz", file=sys.stderr)
        return 2
    file = resolve(arguments[0])
    try:
        if file.exists():
            raise ValueError(f"{file} exists; move it away to write it anew")
        with np.load(ORDER) as order:
            data = in_our_order(load_data("cifar10", root=project_root() / "data"), order)
        if data.fingerprint != FINGERPRINT:
            raise ValueError("the images of data/cifar-10-batches-py are not those that the runs were trained on")
    except (ValueError, ConnectionError) as error:
        print(f"python -m dasolib.cifar10: error: {error}", file=sys.stderr)
        return 2
    file.parent.mkdir(parents=True, exist_ok=True)
    write_npz(file, {"x_train": data.x_train.permute(0, 2, 3, 1), "y_train": data.y_train,
                     "x_test": data.x_test.permute(0, 2, 3, 1), "y_test": data.y_test,
                     "class_names": np.array(data.class_names)})
    print(f"{file}: {len(data.y_train):,} training and {len(data.y_test):,} test images, sorted by class")
    return 0


if __name__ == "__main__":
    sys.exit(main())
