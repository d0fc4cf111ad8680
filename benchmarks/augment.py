"""How many views a second one thread makes, against torchvision's transforms of Pillow images, and against kornia.

    python -m benchmarks.augment [--rounds 15] [--json FILE]

Everybody starts from the same bytes of RGB images and ends at a normalised float batch. Ours draws, makes the views of
the whole batch and normalises it into channels_last. torchvision turns one image after the other into a Pillow image,
transforms it and stacks the results, as a data set and its loader do; the strong view is written from Pillow's public
functions, operation by operation as the published implementation has them, with the same probabilities. kornia, if it
is installed, flips, crops and normalises the whole batch.

In a round everybody makes every batch in turn, so that a disturbance of the machine hits all of them alike: a rate is
a median over rounds, and a ratio the median of the ratios within a round.

kornia's RandAugment (0.9) cannot express the strong view: it picks its operations once per batch, not for each image,
and without replacement; it applies them all, never half of them; one magnitude, set when it is built, holds for all
images and operations; and it knows no identity.
"""

import importlib.util
import random
import statistics
import time

import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torchvision import transforms
from tqdm import tqdm

from benchmarks.workload import argument_parser, parse, tell
from dasolib.augment import (
    APPLY_PROBABILITY,
    CUTOUT_GREY,
    N_SLOTS,
    PAD,
    draw_strong,
    draw_weak,
    normalize,
    strong_view,
    weak_view,
)
from dasolib.randaugment import MAX_LEVEL, OPERATIONS

SIDE = 32
BATCHES = (128, 32, 64, 320)
REPEATS = 8  # batches that ours and kornia make in a round; torchvision makes one, which takes longer
FREED = 16 * 2**20  # bytes
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


# Each contender is a function of uint8 images (N, 3, H, W) that returns their normalised float views.


def ours(kind):
    """Return what makes ``weak`` or ``strong`` views with this package."""
    generator = torch.Generator().manual_seed(0)

    def make_views(images):
        n, _, height, width = images.shape
        if kind == "weak":
            views = weak_view(images, draw_weak(n, generator=generator), memory_format=torch.channels_last)
        else:
            views = strong_view(images, draw_strong(n, height, width, generator=generator))
        return normalize(views, MEAN, STD, memory_format=torch.channels_last)

    return make_views


# --- Pillow and torchvision ------------------------------------------------------------------------------------------


def pillow_operation(image, name, level, negative):
    """One operation of RandAugment on one Pillow image."""
    strength = -level / 10 * 0.3 if negative else level / 10 * 0.3
    match name:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return getattr(ImageEnhance, name)(image).enhance(level / 10 * 0.9 + 0.05)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Identity":
            return image
        case "Posterize":
            return ImageOps.posterize(image, int(level / 10 * 4) + 4)
        case "Rotate":
            return image.rotate(-int(level / 10 * 30) if negative else int(level / 10 * 30))
        case "ShearX":
            return _affine(image, 1, strength, 0, 0, 1, 0)
        case "ShearY":
            return _affine(image, 1, 0, 0, strength, 1, 0)
        case "Solarize":
            return ImageOps.solarize(image, 256 - int(level / 10 * 256))
        case "TranslateX":
            return _affine(image, 1, 0, int(strength * image.width), 0, 1, 0)
        case "TranslateY":
            return _affine(image, 1, 0, 0, 0, 1, int(strength * image.height))


def _affine(image, *coefficients):
    return image.transform(image.size, Image.Transform.AFFINE, coefficients)


def pillow_cutout(image, x, y, size=16):
    """Paint the grey square about (x, y) into a Pillow image."""
    left, top = int(max(0, x - size / 2)), int(max(0, y - size / 2))
    corners = (left, top, min(image.width, left + size), min(image.height, top + size))
    ImageDraw.Draw(image).rectangle(corners, (CUTOUT_GREY,) * len(image.getbands()))
    return image


def pillow_policy(image):
    """Two random operations, each applied half of the time, then Cutout."""
    for name in random.choices(OPERATIONS, k=N_SLOTS):
        if random.random() < APPLY_PROBABILITY:
            image = pillow_operation(image, name, random.randint(1, MAX_LEVEL), random.random() < 0.5)
    return pillow_cutout(image, random.uniform(0, image.width), random.uniform(0, image.height))


def torchvision(kind):
    """Return what makes ``weak`` or ``strong`` views image by image with torchvision and Pillow."""
    transform = transforms.Compose([
        transforms.RandomHorizontalFlip(),
        transforms.RandomCrop(SIDE, padding=PAD, padding_mode="reflect"),
        *([pillow_policy] if kind == "strong" else []),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ])

    def make_views(images):
        pixels = images.permute(0, 2, 3, 1).numpy()
        return torch.stack([transform(Image.fromarray(image)) for image in pixels])

    return make_views


# --- kornia ----------------------------------------------------------------------------------------------------------


def kornia_weak():
    """Return what makes weak views with kornia."""
    from kornia import augmentation  # need not be installed

    transform = torch.nn.Sequential(
        augmentation.RandomHorizontalFlip(),
        augmentation.RandomCrop((SIDE, SIDE), padding=PAD, padding_mode="reflect"),
        augmentation.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )

    def make_views(images):
        return transform(images.float() / 255).contiguous(memory_format=torch.channels_last)

    return make_views


# --- measurement -----------------------------------------------------------------------------------------------------


def seconds(make_views, images, repeats):
    """Mean time of a batch."""
    began = time.perf_counter()
    for _ in range(repeats):
        make_views(images)
    return (time.perf_counter() - began) / repeats


def measure(rounds):
    """Return a row for each view and batch size: views a second, and how many times as many as theirs ours makes."""
    torch.set_num_threads(1)
    # A training frees larger tensors than these batches. Once one was freed, glibc keeps that much memory; before, it
    # returns each batch to the system and asks for it again, page by page.
    torch.zeros(FREED, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (max(BATCHES), 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    contenders = {kind: {"ours": ours(kind), "torchvision": torchvision(kind)} for kind in ("weak", "strong")}
    if importlib.util.find_spec("kornia"):
        contenders["weak"]["kornia"] = kornia_weak()
    times = {(kind, n): {name: [] for name in contenders[kind]} for kind in contenders for n in BATCHES}
    for i in tqdm(range(rounds + 1), desc="rounds"):
        for kind, n in times:
            for name, make_views in contenders[kind].items():
                took = seconds(make_views, images[:n], 1 if name == "torchvision" else REPEATS)
                if i > 0:  # the first round warms up
                    times[kind, n][name].append(took)
    return [{"view": kind, "batch": n} | rates(n, taken) for (kind, n), taken in times.items()]


def rates(n, times):
    """Return views a second, and ratios to ours, from the seconds that batches of `n` took in each round."""
    found = {name: n / statistics.median(taken) for name, taken in times.items()}
    for name in times.keys() - {"ours"}:
        found[f"ours / {name}"] = statistics.median(a / b for a, b in zip(times[name], times["ours"], strict=True))
    return found


def format_rows(rows):
    """Text of the table."""
    lines = [f"{'view':6} {'batch':>5} {'ours':>8} {'torchvision':>12} {'ratio':>6} {'kornia':>14} {'ratio':>6}"]
    for row in rows:
        line = f"{row['view']:6} {row['batch']:5} {row['ours']:8.0f}"
        line += f" {row['torchvision']:12.0f} {row['ours / torchvision']:6.1f}"
        if "kornia" in row:
            line += f" {row['kornia']:14.0f} {row['ours / kornia']:6.1f}"
        else:
            line += f" {'not installed' if row['view'] == 'weak' else 'cannot':>14}"
        lines.append(line)
    return "\n".join([*lines, "views a second on one thread; ratio: of ours to theirs"])


def main():
    """Measure, print and store."""
    arguments = parse(argument_parser("augment", __doc__, rounds=15))
    rows = measure(arguments.rounds)
    tell(format_rows(rows), {"views": rows}, arguments.json)


if __name__ == "__main__":
    main()
