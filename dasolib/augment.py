"""Weak and strong views of a whole uint8 batch, on the device where the batch lives.

A view takes two steps. `draw_weak` and `draw_strong` draw every random number on the host from a CPU generator;
`weak_view` and `strong_view` are then pure functions of images and draws. As the host knows which image gets which
operation, it also knows the size of every sub-batch, so nothing has to be read back from the device.

The arithmetic is Pillow's (16-bit luminance weights, float32 blends, 16.16 fixed-point coordinates), so that the
views equal those of the published implementation byte for byte. Images are (N, C, H, W) with C 1 or 3; height and
width are free.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

OPERATIONS = (
    "AutoContrast",
    "Brightness",
    "Color",
    "Contrast",
    "Equalize",
    "Identity",
    "Posterize",
    "Rotate",
    "Sharpness",
    "ShearX",
    "ShearY",
    "Solarize",
    "TranslateX",
    "TranslateY",
)
"""The 14 operations of RandAugment; draws name an operation by its position here."""

N_SLOTS = 2  # operations drawn per image
MAX_LEVEL = 9  # levels are 1..9; a strength is level / 10 of its maximum, so the maximum itself never occurs
APPLY_PROBABILITY = 0.5  # of each drawn operation
PAD = 4  # pixels by which a crop may be shifted
CROP_AREA = (0.08, 1.0)  # share of the image that a resized crop shows
CROP_RATIO = (3 / 4, 4 / 3)  # its width over its height
CROP_TRIES = 10  # until it lies in the image
CUTOUT_GREY = 127


# --- draws, on the host ----------------------------------------------------------------------------------------------


class WeakDraws(NamedTuple):
    """Random choices behind the weak views of N images; all tensors are on the host.

    Attributes
    ----------
    flip : Tensor of shape (N,), bool
        Mirror the image left to right.
    dy, dx : Tensor of shape (N,), int64
        Top and left corner of the crop in the padded image, in pixels, 0..2 * pad; ``pad`` is the centre.
    """

    flip: Tensor
    dy: Tensor
    dx: Tensor


class CropDraws(NamedTuple):
    """Random choices behind the resized crops of N images; all tensors are on the host.

    Attributes
    ----------
    flip : Tensor of shape (N,), bool
        Mirror the image left to right.
    top, left : Tensor of shape (N,), int64
        First row and column of the crop, in pixels.
    height, width : Tensor of shape (N,), int64
        Its size in pixels, >= 1.
    """

    flip: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


class StrongDraws(NamedTuple):
    """Random choices behind the strong views of N images; all tensors are on the host.

    Attributes
    ----------
    weak : WeakDraws
        Flip and crop, which come first.
    operation : Tensor of shape (2, N), int64
        First and second operation of each image, as a position in `OPERATIONS`.
    apply : Tensor of shape (2, N), bool
        Whether that operation is carried out.
    level : Tensor of shape (2, N), int64
        Its level, 1..9.
    negative : Tensor of shape (2, N), bool
        Whether its strength is negated; read by rotations, shears and translations only.
    centre : Tensor of shape (N, 2), float64
        Cutout centre (x, y) in pixels, 0 <= x <= W and 0 <= y <= H.
    """

    weak: WeakDraws
    operation: Tensor
    apply: Tensor
    level: Tensor
    negative: Tensor
    centre: Tensor


def draw_weak(n, *, generator, flip=True, pad=PAD):
    """Draw the choices of `n` weak views.

    Parameters
    ----------
    n : int
        Number of images, >= 0.
    generator : torch.Generator
        On the CPU; advanced by the same amount whatever `flip` is.
    flip : bool
        Mirror with probability 0.5; False for images whose mirror image means something else, such as digits.
    pad : int
        Largest shift in pixels, >= 0.

    Returns
    -------
    WeakDraws
        Host tensors.

    Raises
    ------
    ValueError
        If `n` or `pad` is negative or `generator` is not on the CPU.

    Examples
    --------
    >>> draws = draw_weak(1000, generator=torch.Generator().manual_seed(0), pad=2)
    >>> draws.dy.unique().tolist()
    [0, 1, 2, 3, 4]
    """
    _check_draw_arguments(n, generator, pad=pad)
    mirrored = torch.rand(n, generator=generator) < 0.5
    dy, dx = torch.randint(0, 2 * pad + 1, (2, n), generator=generator)
    return WeakDraws(mirrored if flip else torch.zeros_like(mirrored), dy, dx)


def draw_resized_crop(n, height, width, *, generator, flip=True):
    """Draw the choices of `n` resized crops from images of one size.

    A crop shows a share of the image that is uniform over 0.08..1, at an aspect ratio whose logarithm is uniform over
    that of 3/4..4/3, at a uniform place. Where ten draws of them do not fit into the image, it is the largest central
    crop of a ratio in that range.

    Parameters
    ----------
    n : int
        Number of images, >= 0.
    height, width : int
        Size of the images in pixels, >= 1.
    generator, flip
        As in `draw_weak`.

    Returns
    -------
    CropDraws
        Host tensors.

    Raises
    ------
    ValueError
        If `n` is negative, `height` or `width` is below 1, or `generator` is not on the CPU.

    References
    ----------
    Szegedy et al., "Going Deeper with Convolutions", CVPR 2015; torchvision's ``RandomResizedCrop``.

    Examples
    --------
    >>> draws = draw_resized_crop(1000, 64, 64, generator=torch.Generator().manual_seed(0))
    >>> bool(((draws.left + draws.width) <= 64).all()), round(float((draws.height * draws.width / 64**2).min()), 2)
    (True, 0.08)
    """
    _check_draw_arguments(n, generator, pad=0)
    _check_size(height, width)
    flips = torch.rand(n, generator=generator) < 0.5
    shares, ratios = torch.rand((2, CROP_TRIES, n), generator=generator, dtype=torch.float64)
    places = torch.rand((2, n), generator=generator, dtype=torch.float64)

    area = height * width * (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * shares)
    low, high = (math.log(ratio) for ratio in CROP_RATIO)
    ratio = torch.exp(low + (high - low) * ratios)
    rows, cols = (area / ratio).sqrt().round().long(), (area * ratio).sqrt().round().long()
    fits = (rows >= 1) & (rows <= height) & (cols >= 1) & (cols <= width)
    first = fits.to(torch.uint8).argmax(dim=0, keepdim=True)
    none = ~fits.any(dim=0)
    central = min(height, round(width / CROP_RATIO[0])), min(width, round(height * CROP_RATIO[1]))
    rows, cols = (torch.where(none, whole, drawn.gather(0, first)[0])
                  for drawn, whole in zip((rows, cols), central, strict=True))
    top, left = (torch.where(none, (side - length) // 2, (place * (side - length + 1)).long())
                 for place, side, length in zip(places, (height, width), (rows, cols), strict=True))
    return CropDraws(flips if flip else torch.zeros_like(flips), top, left, rows, cols)


def draw_strong(n, height, width, *, generator, flip=True, pad=PAD):
    """Draw the choices of `n` strong views of images of one size.

    Two operations per image, uniform over `OPERATIONS` and with replacement, each applied with probability 0.5 at a
    level uniform over 1..9 with a random sign; the Cutout centre is uniform over the image.

    Parameters
    ----------
    n : int
        Number of images, >= 0.
    height, width : int
        Size of the images in pixels, >= 1.
    generator, flip, pad
        As in `draw_weak`.

    Returns
    -------
    StrongDraws
        Host tensors.

    Raises
    ------
    ValueError
        As `draw_weak`, and if `height` or `width` is below 1.

    References
    ----------
    ytaek-oh/daso@3541a6c, ``dataset/transform/randaugment.py``: level 10 is never drawn and the probability is fixed.

    Examples
    --------
    >>> draws = draw_strong(1000, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> draws.operation.shape, draws.level.min().item(), draws.level.max().item()
    (torch.Size([2, 1000]), 1, 9)
    """
    _check_draw_arguments(n, generator, pad=pad)
    _check_size(height, width)
    return StrongDraws(
        weak=draw_weak(n, generator=generator, flip=flip, pad=pad),
        operation=torch.randint(0, len(OPERATIONS), (N_SLOTS, n), generator=generator),
        apply=torch.rand((N_SLOTS, n), generator=generator) < APPLY_PROBABILITY,
        level=torch.randint(1, MAX_LEVEL + 1, (N_SLOTS, n), generator=generator),
        negative=torch.rand((N_SLOTS, n), generator=generator) < 0.5,
        centre=torch.rand((n, 2), generator=generator, dtype=torch.float64) * torch.tensor([float(width), height]),
    )


# --- views, on the device --------------------------------------------------------------------------------------------


def weak_view(images, draws, *, pad=PAD, memory_format=torch.contiguous_format):
    """Flip, then crop from the image padded by reflection.

    Parameters
    ----------
    images : Tensor of shape (N, C, H, W), uint8
        C is 1 or 3. Not changed.
    draws : WeakDraws
        Choices for these N images.
    pad : int
        Width of the reflected border in pixels, the one given to `draw_weak`; 0 <= pad < min(H, W).
    memory_format : torch.memory_format
        ``torch.contiguous_format`` or ``torch.channels_last``; `normalize` is fastest to the same format.

    Returns
    -------
    Tensor of shape (N, C, H, W), uint8
        On the device of `images`.

    Raises
    ------
    ValueError
        If `images` is no such batch, `pad` has no reflection, `memory_format` is none of the above, or a draw is on a
        device, of another shape or out of range.

    Examples
    --------
    >>> row = torch.tensor([[[[1, 2, 3], [4, 5, 6]]]], dtype=torch.uint8)
    >>> right_by_one = WeakDraws(torch.tensor([False]), dy=torch.tensor([1]), dx=torch.tensor([0]))
    >>> weak_view(row, right_by_one, pad=1).tolist()
    [[[[2, 1, 2], [5, 4, 5]]]]
    """
    n, c, h, w = _check_images(images)
    if not 0 <= pad < min(h, w):
        raise ValueError(f"pad must be in 0..{min(h, w) - 1} to be reflected in images of {h} x {w}, got {pad}")
    flip = _host("flip", draws.flip, (n,), 0, 1).astype(np.int64)
    dy = _host("dy", draws.dy, (n,), 0, 2 * pad)
    dx = _host("dx", draws.dx, (n,), 0, 2 * pad)
    _check_memory_format(memory_format)

    # Where each pixel comes from in the flat batch is the sum of what its row and what its column say, so that one
    # selection flips, crops and puts the channels into their places.
    narrow = np.int32 if images.numel() < 2**31 else np.int64  # half the memory
    rows = (_reflected(h, pad) * w).astype(narrow)[dy]
    cols = np.stack([_reflected(w, pad), w - 1 - _reflected(w, pad)]).astype(narrow)[flip, dx]
    planes = np.arange(0, images.numel(), h * w, dtype=narrow).reshape(n, c)
    if memory_format == torch.channels_last:
        rows, cols = (planes[:, :1] + rows)[:, :, None], (cols[:, :, None] + planes[:1]).reshape(n, 1, w * c)
    else:
        rows, cols = (planes[:, :, None] + rows[:, None]).reshape(n, c * h, 1), cols[:, None]
    rows, cols = _send(rows, images.device), _send(cols, images.device)
    view = images.reshape(-1).index_select(0, (rows + cols).view(-1))
    return view.view(n, h, w, c).movedim(3, 1) if memory_format == torch.channels_last else view.view(n, c, h, w)


def resized_crop(images, draws, height, width):
    """Cut a part out of each image, resize it and flip it.

    Parameters
    ----------
    images : Tensor of shape (N, C, H, W), uint8
        C is 1 or 3. Not changed.
    draws : CropDraws
        Choices for these N images.
    height, width : int
        Size of the result in pixels, >= 1.

    Returns
    -------
    Tensor of shape (N, C, height, width), uint8
        On the device of `images`; resized as by `resize`.

    Raises
    ------
    ValueError
        If `images` is no such batch, a size is below 1, or a draw is on a device, of another shape or out of range.

    Examples
    --------
    >>> row = torch.tensor([[[[0, 10, 20, 30]]]], dtype=torch.uint8)
    >>> one, zero = torch.tensor([1]), torch.tensor([0])
    >>> right_half = CropDraws(torch.tensor([False]), top=zero, left=2 * one, height=one, width=2 * one)
    >>> resized_crop(row, right_half, 1, 4).tolist()
    [[[[20, 23, 28, 30]]]]
    """
    n, _, h, w = _check_images(images)
    _check_size(height, width)
    flip = _host("flip", draws.flip, (n,), 0, 1).astype(bool)
    spans = []
    for start, length, side in (("left", "width", w), ("top", "height", h)):
        first, n_pixels = _host(start, getattr(draws, start), (n,), 0, side - 1), getattr(draws, length)
        n_pixels = _host(length, n_pixels, (n,), 1, side)
        if (first + n_pixels > side).any():
            raise ValueError(f"{start} + {length} must be at most {side}, got {(first + n_pixels).max()}")
        spans.append((first, n_pixels))
    cols, rows = (_taps(side, resolution, *span)
                  for side, resolution, span in zip((w, h), (width, height), spans, strict=True))
    cols = [np.where(flip[:, None, None], part[:, ::-1], part) for part in cols]
    return _weighted_rows(_weighted_rows(images.mT, *cols).mT, *rows)


def strong_view(images, draws, *, pad=PAD, cutout_size=16):
    """Weak view, then RandAugment, then Cutout.

    Parameters
    ----------
    images : Tensor of shape (N, C, H, W), uint8
        C is 1 or 3. Not changed.
    draws : StrongDraws
        Choices for these N images.
    pad : int
        As in `weak_view`.
    cutout_size : int
        Nominal side of the Cutout square in pixels, see `cutout`.

    Returns
    -------
    Tensor of shape (N, C, H, W), uint8
        On the device of `images`.

    Raises
    ------
    ValueError
        As `weak_view` and `cutout`, and if an operation or level is out of range.

    References
    ----------
    ytaek-oh/daso@3541a6c, ``dataset/transform/randaugment.py`` and ``transformation.py``.

    Examples
    --------
    >>> images = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8)
    >>> draws = draw_strong(2, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> view = strong_view(images, draws)
    >>> view.shape, (view == 127).all(dim=1).any().item()
    (torch.Size([2, 3, 32, 32]), True)
    """
    n, _, h, w = _check_images(images)
    hole = _hole(images, draws.centre, cutout_size)
    operation = _host("operation", draws.operation, (N_SLOTS, n), 0, len(OPERATIONS) - 1)
    apply = _host("apply", draws.apply, (N_SLOTS, n), 0, 1).astype(bool)
    level = _host("level", draws.level, (N_SLOTS, n), 1, MAX_LEVEL)
    negative = _host("negative", draws.negative, (N_SLOTS, n), 0, 1).astype(np.int64)

    view = weak_view(images, draws.weak, pad=pad)
    for slot in range(N_SLOTS):
        chosen = np.where(apply[slot], operation[slot], OPERATIONS.index("Identity"))
        view = _apply_operations(view, chosen, level[slot], negative[slot])
    return _paint(view, hole)


def randaugment_operation(images, name, level=5, negative=False):
    """Apply one named operation of RandAugment to every image.

    With ``f(max, bias) = level / 10 * max + bias`` and ``i(max, bias) = int(level / 10 * max) + bias``: Brightness,
    Color, Contrast and Sharpness blend with factor f(0.9, 0.05); Posterize keeps i(4, 4) bits; Solarize inverts from
    256 - i(256, 0) on; Rotate turns by i(30, 0) degrees; ShearX and ShearY shear by f(0.3, 0); TranslateX and
    TranslateY shift by int(f(0.3, 0) * side) pixels. Pixels from outside the image are black. Color leaves
    one-channel images as they are.

    Parameters
    ----------
    images : Tensor of shape (N, C, H, W), uint8
        C is 1 or 3. Not changed.
    name : str
        One of `OPERATIONS`.
    level : int or Tensor of shape (N,), int64
        1..9, on the host. AutoContrast, Equalize and Identity have no level and do not read it.
    negative : bool or Tensor of shape (N,), bool
        Negate the angle, shear or shift; on the host. Other operations do not read it.

    Returns
    -------
    Tensor of shape (N, C, H, W), uint8
        On the device of `images`.

    Raises
    ------
    ValueError
        If `images` is no such batch, `name` is unknown, or `level` or `negative` is on a device, of another shape or
        out of range.

    References
    ----------
    ytaek-oh/daso@3541a6c, ``dataset/transform/randaugment.py``; Pillow 13.0.0, ``ImageOps.py``, ``ImageEnhance.py``
    and ``libImaging/Geometry.c``.

    Examples
    --------
    >>> row = torch.tensor([[[[0, 100, 200]]]], dtype=torch.uint8)
    >>> randaugment_operation(row, "Solarize", level=5).tolist()
    [[[[0, 100, 55]]]]
    """
    n, *_ = _check_images(images)
    if name not in OPERATIONS:
        raise ValueError(f"unknown name {name!r}; choose from {', '.join(OPERATIONS)}")
    level = _host("level", torch.as_tensor(level).expand(n) if isinstance(level, int) else level, (n,), 1, MAX_LEVEL)
    negative = _host(
        "negative", torch.as_tensor(negative).expand(n) if isinstance(negative, bool) else negative, (n,), 0, 1
    )
    return _apply_operations(images, np.full(n, OPERATIONS.index(name)), level, negative.astype(np.int64))


def cutout(images, centre, *, size=16):
    """Paint one grey square over each image.

    The square starts `size` / 2 before the centre, or at the image's border if that lies outside, and reaches `size`
    pixels further, or to the border. Both corners are painted, so that an uncut square has size + 1 pixels a side,
    and near the left and top borders the square is moved inwards rather than cut.

    Parameters
    ----------
    images : Tensor of shape (N, C, H, W), uint8
        C is 1 or 3. Not changed.
    centre : Tensor of shape (N, 2), float
        (x, y) in pixels on the host, 0 <= x <= W and 0 <= y <= H.
    size : int
        Nominal side in pixels, >= 1.

    Returns
    -------
    Tensor of shape (N, C, H, W), uint8
        On the device of `images`; the square has the value 127 in every channel.

    Raises
    ------
    ValueError
        If `images` is no such batch, `size` < 1, or `centre` is on a device, of another shape or out of range.

    References
    ----------
    ytaek-oh/daso@3541a6c, ``dataset/transform/randaugment.py``.

    Examples
    --------
    >>> black = torch.zeros(1, 1, 1, 8, dtype=torch.uint8)
    >>> cutout(black, torch.tensor([[4.0, 0.0]]), size=2).tolist()
    [[[[0, 0, 0, 127, 127, 127, 0, 0]]]]
    """
    _check_images(images)
    return _paint(images, _hole(images, centre, size))


def _hole(images, centre, size):
    """Return what Cutout paints: uint8 (N, 1, H, W), 255 inside the squares and 0 outside."""
    n, _, h, w = images.shape
    if size < 1:
        raise ValueError(f"cutout size must be >= 1, got {size}")
    x, y = _host("centre", centre, (n, 2), 0, max(h, w)).T
    if n and not (x.max() <= w and y.max() <= h):
        raise ValueError(f"centre must lie in the image of width {w} and height {h}, got {x.max()} and {y.max()}")
    cols = _send(_sides(w, size)[np.maximum(0, x - size / 2).astype(np.int64)], images.device)
    rows = _send(_sides(h, size)[np.maximum(0, y - size / 2).astype(np.int64)], images.device)
    return rows.view(n, 1, h, 1) & cols.view(n, 1, 1, w)


def _paint(images, hole):
    """Set the pixels in the hole to grey; by bit operations, several times as fast on a CPU as filling under a mask."""
    return (images | hole).bitwise_xor_(hole & (255 - CUTOUT_GREY))


@lru_cache(maxsize=16)
def _sides(length, size):
    """Sides of all squares, (length + 1, length) uint8: row i is 255 at i..i + size, both included, and 0 elsewhere."""
    distance = np.arange(length) - np.arange(length + 1)[:, None]
    return np.where((distance >= 0) & (distance <= size), 255, 0).astype(np.uint8)


def resize(images, resolution):
    """Resize to a square, with a triangle filter that widens when shrinking (bilinear with antialiasing).

    Columns first, then rows, each rounded to uint8, with weights rounded to 22 bits: Pillow's numbers for images that
    are not taller than wide (for some taller ones Pillow takes the rows first, and values may differ by one). All
    products and sums are integers that float64 holds exactly, so every device gives the same result.

    Parameters
    ----------
    images : Tensor of shape (N, C, H, W), uint8
        C is 1 or 3. Not changed.
    resolution : int
        Height and width of the result in pixels, >= 1.

    Returns
    -------
    Tensor of shape (N, C, resolution, resolution), uint8
        `images` itself if it has that size.

    Raises
    ------
    ValueError
        If `images` is no such batch or `resolution` < 1.

    References
    ----------
    Pillow 13.0.0, ``libImaging/Resample.c``.

    Examples
    --------
    >>> resize(torch.tensor([[[[0, 0], [0, 100]]]], dtype=torch.uint8), 1).tolist()
    [[[[25]]]]
    """
    _, _, h, w = _check_images(images)
    if resolution < 1:
        raise ValueError(f"resolution must be >= 1, got {resolution}")
    if w != resolution:
        images = _round_weighted(images.double() @ _send(_resize_weights(w, resolution).T, images.device))
    if h != resolution:
        images = _round_weighted(_send(_resize_weights(h, resolution), images.device) @ images.double())
    return images


def normalize(images, mean, std, *, resolution=None, dtype=torch.float32, memory_format=torch.contiguous_format):
    """Scale to [0, 1], subtract the mean and divide by the standard deviation of each channel.

    Parameters
    ----------
    images : Tensor of shape (N, C, H, W), uint8
        C is 1 or 3. Not changed.
    mean, std : sequence of C floats
        Of pixel values in [0, 1]; std > 0.
    resolution : int or None
        Resize to this height and width first (`resize`, rounded to uint8); None keeps the size.
    dtype : torch.dtype
        Floating. Types narrower than float32 are rounded once, at the end.
    memory_format : torch.memory_format
        ``torch.contiguous_format`` or ``torch.channels_last``.

    Returns
    -------
    Tensor of shape (N, C, H, W)
        ``(images / 255 - mean) / std``, to rounding, on the device of `images`.

    Raises
    ------
    ValueError
        If `images` is no such batch, `mean` or `std` does not fit it, or `resolution`, `dtype` or `memory_format` is
        none of the above.

    Examples
    --------
    >>> normalize(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), [0.5], [0.25]).round(decimals=6).tolist()
    [[[[-2.0, 2.0]]]]
    """
    _, c, *_ = _check_images(images)
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, Sequence) or len(values) != c:
            raise ValueError(f"{name} must be a sequence of {c} numbers, one per channel, got {values!r}")
    if min(std) <= 0:
        raise ValueError(f"std must be > 0, got {std!r}")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating, got {dtype}")
    _check_memory_format(memory_format)
    if resolution is not None:
        images = resize(images, resolution)
    # In one pass over whole images, as they lie in memory: numbers that are spread over an image do not break it up.
    mean, std = np.array(mean), np.array(std)
    spread = torch.empty_like(images[:1], dtype=torch.promote_types(dtype, torch.float32))
    factor, offset = (torch.empty_like(spread).copy_(_send(values, images.device).view(1, c, 1, 1))
                      for values in (1 / (255 * std), -mean / std))
    x = images.to(spread.dtype)
    x = torch.addcmul(offset, x, factor, out=x)
    return x.to(dtype).contiguous(memory_format=memory_format)


# --- the operations of RandAugment -----------------------------------------------------------------------------------
# They come in three families: look-up tables, blends and maps. The function of a family takes the sub-batch of its
# images, uint8 (n, C, H, W), sorted by operation; `parts`, the names of the operations that occur with the slice of
# their images; and the host arrays `level` and `negative`, (n,) int64. It returns the changed sub-batch.


def _apply_operations(images, operation, level, negative):
    """Apply to each image its own operation; the result is a new, contiguous batch."""
    rank = _RANK[operation]
    order = np.argsort(rank, kind="stable")
    level, negative = level[order], negative[order]
    images = images.contiguous().index_select(0, _send(order, images.device))
    ends = dict(zip(_SORTED, np.bincount(rank, minlength=len(_SORTED)).cumsum().tolist(), strict=True))
    end = ends["Identity"]
    for change, names in _FAMILIES:
        first, parts = end, []
        for name in names:
            start, end = end, ends[name]
            if start < end:
                parts.append((name, slice(start - first, end - first)))
        if parts:
            rows = slice(first, end)
            images[rows] = change(images[rows], parts, level[rows], negative[rows])
    return images.index_select(0, _send(np.argsort(order), images.device))


# Tables: what becomes of each pixel value, (n, C or 1, 256) uint8.


def _by_table(pixels, parts, level, negative):
    """AutoContrast, Equalize, Posterize and Solarize."""
    n, c, h, w = pixels.shape
    tables = [_TABLES[name](pixels[part], level[part]).expand(-1, c, 256) for name, part in parts]
    return torch.cat(tables).gather(2, pixels.view(n, c, h * w).long()).view(n, c, h, w)


def _auto_contrast(pixels, level):
    """Stretch the values of each channel to 0..255."""
    low = pixels.amin(dim=(2, 3)).double()[..., None]
    high = pixels.amax(dim=(2, 3)).double()[..., None]
    value = torch.arange(256, device=pixels.device, dtype=torch.float64)
    # A true division: the reflected operator of a tensor multiplies by a rounded reciprocal instead.
    scale = torch.full_like(low, 255.0).div_(high - low)
    stretched = (value * scale).sub_(low * scale).clamp_(0, 255)  # .to() below drops the fraction, as int() does
    return torch.where(high > low, stretched, value).to(torch.uint8)


def _equalize(pixels, level):
    """Flatten the histogram of each channel."""
    n, c, h, w = pixels.shape
    flat = pixels.view(n, c, h * w).long()
    histogram = torch.zeros(n, c, 256, dtype=torch.int64, device=pixels.device)
    histogram.scatter_add_(2, flat, torch.ones_like(flat))
    last = histogram.gather(2, flat.amax(dim=2, keepdim=True))  # how many pixels have the largest value
    step = torch.div(h * w - last, 255, rounding_mode="floor")
    below = histogram.cumsum(dim=2).sub_(histogram)
    equal = below.add_(step >> 1).div_(step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    value = torch.arange(256, device=pixels.device)
    # Too few pixels for a step of 1 leaves the channel as it is.
    return torch.where(step > 0, equal, value).to(torch.uint8)


def _posterize(pixels, level):
    """Keep the upper bits."""
    return _send(_POSTERIZED[level], pixels.device)


def _solarize(pixels, level):
    """Invert the values from a threshold on."""
    return _send(_SOLARIZED[level], pixels.device)


_LEVEL, _VALUE = np.arange(MAX_LEVEL + 1)[:, None, None], np.arange(256)
_DROPPED_BITS = 4 - (_LEVEL / 10 * 4).astype(np.int64)
_POSTERIZED = (_VALUE >> _DROPPED_BITS << _DROPPED_BITS).astype(np.uint8)  # (10, 1, 256)
_THRESHOLD = 256 - (_LEVEL / 10 * 256).astype(np.int64)
_SOLARIZED = np.where(_VALUE < _THRESHOLD, _VALUE, 255 - _VALUE).astype(np.uint8)


# Blends: what an image is blended with. Pixels, luminance and the result are whole numbers in float32; the result has
# the shape of the pixels or one that extends to it.


def _by_blend(pixels, parts, level, negative):
    """Brightness, Color, Contrast and Sharpness: ``base + factor * (pixels - base)``, without its fraction."""
    x = pixels.float()
    luminance = _luminance(x)
    base = torch.cat([_BASES[name](x[part], luminance[part]).expand_as(x[part]) for name, part in parts])
    factor = _send((level / 10 * 0.9 + 0.05).astype(np.float32), pixels.device).view(-1, 1, 1, 1)
    return x.sub_(base).mul_(factor).add_(base).to(torch.uint8)


def _black(x, luminance):
    """For Brightness."""
    return x.new_zeros(1)


def _grey(x, luminance):
    """For Color; on one channel that is the image."""
    return luminance


def _mean_grey(x, luminance):
    """For Contrast: one value for the image, rounded to an integer."""
    n_pixels = luminance[0].numel()
    total = luminance.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64)
    return total.add_(n_pixels // 2).div_(n_pixels, rounding_mode="floor").float()


def _smooth(x, luminance):
    """For Sharpness: the image under a 3 x 3 kernel of ones around a five; border pixels stay."""
    inner = x[:, :, 1:-1, 1:-1]
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    nine = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = nine.add_(inner, alpha=4).div_(13).round_()  # thirteenths are never half-way
    return smooth


def _luminance(x):
    """Luminance (n, 1, H, W), whole numbers in float32, of a float32 batch; one channel is its own."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, dim=1)
    weighted = (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471)  # integers below 2**24: exact
    return weighted.add_(0x8000).mul_(2.0**-16).floor_()


# Maps: where the pixels come from.


def _by_map(pixels, parts, level, negative):
    """Rotate, shear and translate: each pixel comes from the nearest pixel under an affine map, or is black."""
    n, _, h, w = pixels.shape
    maps = np.concatenate([_fixed_point_maps(name, h, w)[level[part], negative[part]] for name, part in parts])
    maps = _send(maps, pixels.device)
    along_x, along_y, origin = maps.view(n, 3, 2, 1, 1).unbind(1)
    x = torch.arange(w, dtype=maps.dtype, device=pixels.device)
    y = torch.arange(h, dtype=maps.dtype, device=pixels.device).view(h, 1)
    source = ((along_x * x + origin) + along_y * y).bitwise_right_shift_(16)  # (n, 2, H, W): column and row
    source_x, source_y = source.unbind(1)
    nearest_x, nearest_y = source_x.clamp(0, w - 1), source_y.clamp(0, h - 1)
    inside = ((source_x == nearest_x) & (source_y == nearest_y)).view(n, 1, h, w)
    return _gather_pixels(pixels, nearest_x.add_(nearest_y, alpha=w).long()).mul_(inside)


@lru_cache(maxsize=80)
def _fixed_point_maps(name, height, width):
    """Map output to source coordinates, in 1/65536 pixels, at each level and sign: (10, 2, 6) int.

    Row (a, d, b, e, c, f): the pixel in column x and row y comes from column a x + b y + c and row d x + e y + f.
    The type holds sums of up to 2 (height + width) pixels, more than they come to; narrow is fast.
    """
    maps = np.zeros((MAX_LEVEL + 1, 2, 6), dtype=np.int32 if 2 * (height + width) < 2**15 else np.int64)
    for level in range(1, MAX_LEVEL + 1):
        for negative, sign in enumerate((1, -1)):
            strength = sign * (level / 10 * 0.3)
            a, b, c, d, e, f = {
                "Rotate": _rotation(sign * int(level / 10 * 30), height, width),
                "ShearX": (1.0, strength, 0.0, 0.0, 1.0, 0.0),
                "ShearY": (1.0, 0.0, 0.0, strength, 1.0, 0.0),
                "TranslateX": (1.0, 0.0, float(int(strength * width)), 0.0, 1.0, 0.0),
                "TranslateY": (1.0, 0.0, 0.0, 0.0, 1.0, float(int(strength * height))),
            }[name]
            # The constants are taken at the centre of pixel (0, 0), before anything is rounded.
            entries = (a, d, b, e, c + a * 0.5 + b * 0.5, f + d * 0.5 + e * 0.5)
            maps[level, negative] = [math.floor(v * 65536.0 + 0.5) for v in entries]
    return maps


def _rotation(degrees, height, width):
    """Affine map of a counter-clockwise turn about the image centre; matrix entries rounded to 15 digits."""
    angle = -math.radians(degrees)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y


_TABLES = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Posterize": _posterize,
    "Solarize": _solarize,
}
_BASES = {
    "Brightness": _black,
    "Color": _grey,
    "Contrast": _mean_grey,
    "Sharpness": _smooth,
}
_MAPS = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
_SORTED = ("Identity", *_TABLES, *_BASES, *_MAPS)
_RANK = np.array([_SORTED.index(name) for name in OPERATIONS])
_FAMILIES = ((_by_table, _TABLES), (_by_blend, _BASES), (_by_map, _MAPS))


# --- arithmetic shared by the operations -----------------------------------------------------------------------------


def _gather_pixels(images, source):
    """Pixel `source` (n, 1, H, W), a flat position in the image, of every channel."""
    n, c, h, w = images.shape
    return images.reshape(n, c, h * w).gather(2, source.view(n, 1, h * w).expand(n, c, h * w)).view(n, c, h, w)


@lru_cache(maxsize=16)
def _reflected(length, pad):
    """Tell where the pixels along one side of each crop come from: (2 * pad + 1, length)."""
    position = np.abs(np.arange(length) + np.arange(-pad, pad + 1)[:, None])
    return np.where(position < length, position, 2 * (length - 1) - position)


@lru_cache(maxsize=16)
def _resize_weights(length, resolution):
    """Weights (resolution, length) of a triangle filter in units of 2**-22; whole numbers in float64."""
    scale = length / resolution
    width = max(scale, 1.0)  # half the base of the triangle, in source pixels
    centre = (np.arange(resolution)[:, None] + 0.5) * scale
    position = np.arange(length)[None, :]
    first = np.maximum((centre - width + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + width + 0.5).astype(np.int64), length)
    weights = np.maximum(1.0 - np.abs((position - centre + 0.5) * (1.0 / width)), 0.0)
    weights = np.where((position >= first) & (position < end), weights, 0.0)
    weights = weights / weights.sum(axis=1, keepdims=True)
    return np.floor(weights * 2**22 + 0.5)


@lru_cache(maxsize=8)
def _all_taps(side, resolution):
    """For resizing ``length`` pixels, for each length up to `side`: which pixels count, and their weights.

    Two arrays (side + 1, resolution, taps), int64 and int32; a row of weights sums to about 2**22.
    """
    dense = [None] + [_resize_weights(length, resolution) for length in range(1, side + 1)]
    n_taps = max(int((weights != 0).sum(axis=1).max()) for weights in dense[1:])
    pixel = np.zeros((side + 1, resolution, n_taps), dtype=np.int64)
    weight = np.zeros((side + 1, resolution, n_taps), dtype=np.int32)
    for length in range(1, side + 1):
        first = (dense[length] != 0).argmax(axis=1)[:, None]
        pixel[length] = np.minimum(first + np.arange(n_taps), length - 1)
        inside = first + np.arange(n_taps) < length
        weight[length] = np.where(inside, np.take_along_axis(dense[length], pixel[length], axis=1), 0)
    return pixel, weight


def _taps(side, resolution, first, length):
    """Pixels and weights (N, resolution, taps) with which to resize pixels `first`.. of `length` (N,) out of `side`."""
    pixel, weight = _all_taps(side, resolution)
    return pixel[length] + first[:, None, None], weight[length]


def _weighted_rows(images, pixel, weight):
    """Each row of the result is a weighted sum of rows of `images` (N, C, H, W): (N, C, resolution, W) uint8."""
    n, c, _, w = images.shape
    pixel, weight = (_send(array, images.device)[:, None, :, None] for array in (pixel, weight))  # taps come last
    total = 2**21  # a half, since all is in units of 2**-22
    for k in range(pixel.shape[-1]):  # a few
        total = total + images.gather(2, pixel[..., k].expand(n, c, -1, w)) * weight[..., k]
    return (total >> 22).clamp_(0, 255).to(torch.uint8)


def _round_weighted(total):
    """Round sums in units of 2**-22 to the nearest uint8."""
    return total.add_(2**21).mul_(2.0**-22).floor_().clamp_(0, 255).to(torch.uint8)


# --- host and device -------------------------------------------------------------------------------------------------


def _send(array, device):
    """Put a host array on `device` without waiting for the work queued there."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)


def _host(name, values, shape, low, high):
    """Array behind a host tensor of draws, after checking its device, shape and range."""
    if not isinstance(values, Tensor) or values.device.type != "cpu" or tuple(values.shape) != shape:
        got = f"{tuple(values.shape)} on {values.device}" if isinstance(values, Tensor) else repr(values)
        raise ValueError(f"{name} must be a CPU tensor of shape {shape}, got {got}")
    # Unlike `Tensor.numpy`, this reads memory without an operator call, so it also works where operators are traced.
    array = np.from_dlpack(values)
    if array.size and not (array.min() >= low and array.max() <= high):
        raise ValueError(f"{name} must be in {low}..{high}, got {array.min()}..{array.max()}")
    return array


def _check_images(images):
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
        got = f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be uint8 of shape (N, C, H, W), got {got}")
    if images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(f"images must have 1 or 3 channels and at least one pixel, got shape {tuple(images.shape)}")
    return images.shape


def _check_memory_format(memory_format):
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format must be contiguous_format or channels_last, got {memory_format}")


def _check_size(height, width):
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be >= 1, got {height} and {width}")


def _check_draw_arguments(n, generator, *, pad):
    if n < 0 or pad < 0:
        raise ValueError(f"n and pad must be >= 0, got n {n} and pad {pad}")
    if generator.device.type != "cpu":
        raise ValueError(f"generator must be on the CPU, got one on {generator.device}")
