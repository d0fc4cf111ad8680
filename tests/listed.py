"""A folder of images with lists beside them, in the shape in which Semi-Aves is distributed."""

from PIL import Image

N_CLASSES = 3


def save_lists(folder, *, side=40, n_unknown=0):
    """Write nine training, three test and twelve unlabeled images, of three classes or unknown class; return `folder`.

    An image is 60 times its class bright, and blue by its number in its list; classes of unknown ones are listed from
    3 on. They are not all square.
    """
    lists = {
        "l_train_val": ("train/{}.png", [(2 - i) % N_CLASSES for i in range(9)]),
        "test": ("test/{}.png", list(range(N_CLASSES))),
        "u_train_in": ("unlabeled images/{:02d}.png", 3 * [*range(N_CLASSES), -1]),
    }
    if n_unknown:
        lists["u_train_out"] = ("unknown/{:02d}.png", [N_CLASSES + i for i in range(n_unknown)])
    for name, (pattern, labels) in lists.items():
        lines = []
        for i, label in enumerate(labels):
            path = folder / pattern.format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            brightness = 60 * (label % 4)
            Image.new("RGB", (side, side + 8 * (i % 2)), (brightness, brightness, i)).save(path)
            lines.append(f"{pattern.format(i)} {label}")
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder
