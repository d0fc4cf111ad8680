"""Weak and strong views of a whole uint8 batch, on the device where the batch lives.

A view takes two steps. `draw_weak` and `draw_strong` draw every random number on the host from a CPU generator;
`weak_view` and `strong_view` are then pure functions of images and draws, which read nothing back from the device, and
equal the views of the published implementation byte for byte. Images are (N, C, H, W) with C 1 or 3; height and width
are free.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dasolib.image_batch import check_draws, check_images, check_memory_format, check_size, host_array, send_array
from dasolib.randaugment import MAX_LEVEL, OPERATIONS, apply_operations
from dasolib.resample import resize

N_SLOTS = 2  # operations drawn per image
APPLY_PROBABILITY = 0.5  # of each drawn operation
PAD = 4  # pixels by which a crop may be shifted
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


class StrongDraws(NamedTuple):
    """Random choices behind the strong views of N images; all tensors are on the host.

    Attributes
    ----------
    weak : WeakDraws
        Flip and crop, which come first.
    operation : Tensor of shape (2, N), int64
        First and second operation of each image, as a position in `dasolib.randaugment.OPERATIONS`.
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
    check_draws(n, generator, pad=pad)
    mirrored = torch.rand(n, generator=generator) < 0.5
    dy, dx = torch.randint(0, 2 * pad + 1, (2, n), generator=generator)
    return WeakDraws(mirrored if flip else torch.zeros_like(mirrored), dy, dx)


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
    check_draws(n, generator, pad=pad)
    check_size(height, width)
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
    n, c, h, w = check_images(images)
    if not 0 <= pad < min(h, w):
        raise ValueError(f"pad must be in 0..{min(h, w) - 1} to be reflected in images of {h} x {w}, got {pad}")
    flip = host_array("flip", draws.flip, (n,), 0, 1).astype(np.int64)
    dy = host_array("dy", draws.dy, (n,), 0, 2 * pad)
    dx = host_array("dx", draws.dx, (n,), 0, 2 * pad)
    check_memory_format(memory_format)

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
    rows, cols = send_array(rows, images.device), send_array(cols, images.device)
    view = images.reshape(-1).index_select(0, (rows + cols).view(-1))
    return view.view(n, h, w, c).movedim(3, 1) if memory_format == torch.channels_last else view.view(n, c, h, w)


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
    n, _, h, w = check_images(images)
    hole = _hole(images, draws.centre, cutout_size)
    operation = host_array("operation", draws.operation, (N_SLOTS, n), 0, len(OPERATIONS) - 1)
    apply = host_array("apply", draws.apply, (N_SLOTS, n), 0, 1).astype(bool)
    level = host_array("level", draws.level, (N_SLOTS, n), 1, MAX_LEVEL)
    negative = host_array("negative", draws.negative, (N_SLOTS, n), 0, 1).astype(np.int64)

    view = weak_view(images, draws.weak, pad=pad)
    for slot in range(N_SLOTS):
        chosen = np.where(apply[slot], operation[slot], OPERATIONS.index("Identity"))
        view = apply_operations(view, chosen, level[slot], negative[slot])
    return _paint(view, hole)


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
    check_images(images)
    return _paint(images, _hole(images, centre, size))


def _hole(images, centre, size):
    """Return what Cutout paints: uint8 (N, 1, H, W), 255 inside the squares and 0 outside."""
    n, _, h, w = images.shape
    if size < 1:
        raise ValueError(f"cutout size must be >= 1, got {size}")
    x, y = host_array("centre", centre, (n, 2), 0, max(h, w)).T
    if n and not (x.max() <= w and y.max() <= h):
        raise ValueError(f"centre must lie in the image of width {w} and height {h}, got {x.max()} and {y.max()}")
    cols = send_array(_sides(w, size)[np.maximum(0, x - size / 2).astype(np.int64)], images.device)
    rows = send_array(_sides(h, size)[np.maximum(0, y - size / 2).astype(np.int64)], images.device)
    return rows.view(n, 1, h, 1) & cols.view(n, 1, 1, w)


def _paint(images, hole):
    """Set the pixels in the hole to grey; by bit operations, several times as fast on a CPU as filling under a mask."""
    return (images | hole).bitwise_xor_(hole & (255 - CUTOUT_GREY))


@lru_cache(maxsize=16)
def _sides(length, size):
    """Sides of all squares, (length + 1, length) uint8: row i is 255 at i..i + size, both included, and 0 elsewhere."""
    distance = np.arange(length) - np.arange(length + 1)[:, None]
    return np.where((distance >= 0) & (distance <= size), 255, 0).astype(np.uint8)


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
    _, c, *_ = check_images(images)
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, Sequence) or len(values) != c:
            raise ValueError(f"{name} must be a sequence of {c} numbers, one per channel, got {values!r}")
    if min(std) <= 0:
        raise ValueError(f"std must be > 0, got {std!r}")
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating, got {dtype}")
    check_memory_format(memory_format)
    if resolution is not None:
        images = resize(images, resolution)
    # In one pass over whole images, as they lie in memory: numbers that are spread over an image do not break it up.
    mean, std = np.array(mean), np.array(std)
    spread = torch.empty_like(images[:1], dtype=torch.promote_types(dtype, torch.float32))
    factor, offset = (torch.empty_like(spread).copy_(send_array(values, images.device).view(1, c, 1, 1))
                      for values in (1 / (255 * std), -mean / std))
    x = images.to(spread.dtype)
    x = torch.addcmul(offset, x, factor, out=x)
    return x.to(dtype).contiguous(memory_format=memory_format)


@lru_cache(maxsize=16)
def _reflected(length, pad):
    """Tell where the pixels along one side of each crop come from: (2 * pad + 1, length)."""
    position = np.abs(np.arange(length) + np.arange(-pad, pad + 1)[:, None])
    return np.where(position < length, position, 2 * (length - 1) - position)
