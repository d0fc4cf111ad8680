"""A whole uint8 batch in another size, with Pillow's numbers, and resized crops of it, on the device where it lives."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dasolib.image_batch import check_draws, check_images, check_size, host_array, send_array

CROP_AREA = (0.08, 1.0)  # share of the image that a resized crop shows
CROP_RATIO = (3 / 4, 4 / 3)  # its width over its height
CROP_TRIES = 10  # until it lies in the image


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
        As in `dasolib.augment.draw_weak`.

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
    check_draws(n, generator)
    check_size(height, width)
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
    n, _, h, w = check_images(images)
    check_size(height, width)
    flip = host_array("flip", draws.flip, (n,), 0, 1).astype(bool)
    spans = []
    for start, length, side in (("left", "width", w), ("top", "height", h)):
        first, n_pixels = host_array(start, getattr(draws, start), (n,), 0, side - 1), getattr(draws, length)
        n_pixels = host_array(length, n_pixels, (n,), 1, side)
        if (first + n_pixels > side).any():
            raise ValueError(f"{start} + {length} must be at most {side}, got {(first + n_pixels).max()}")
        spans.append((first, n_pixels))
    cols, rows = (_taps(side, resolution, *span)
                  for side, resolution, span in zip((w, h), (width, height), spans, strict=True))
    cols = [np.where(flip[:, None, None], part[:, ::-1], part) for part in cols]
    return _weighted_rows(_weighted_rows(images.mT, *cols).mT, *rows)


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
    _, _, h, w = check_images(images)
    if resolution < 1:
        raise ValueError(f"resolution must be >= 1, got {resolution}")
    if w != resolution:
        images = _round_weighted(images.double() @ send_array(_resize_weights(w, resolution).T, images.device))
    if h != resolution:
        images = _round_weighted(send_array(_resize_weights(h, resolution), images.device) @ images.double())
    return images


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
    pixel, weight = (send_array(array, images.device)[:, None, :, None] for array in (pixel, weight))  # taps come last
    total = 2**21  # a half, since all is in units of 2**-22
    for k in range(pixel.shape[-1]):  # a few
        total = total + images.gather(2, pixel[..., k].expand(n, c, -1, w)) * weight[..., k]
    return (total >> 22).clamp_(0, 255).to(torch.uint8)


def _round_weighted(total):
    """Round sums in units of 2**-22 to the nearest uint8."""
    return total.add_(2**21).mul_(2.0**-22).floor_().clamp_(0, 255).to(torch.uint8)
