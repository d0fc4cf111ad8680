"""The 14 operations of RandAugment on a whole uint8 batch, each image its own, on the device where the batch lives.

The arithmetic is Pillow's (16-bit luminance weights, float32 blends, 16.16 fixed-point coordinates), so that the
images equal those of the published implementation byte for byte. As the host knows which image gets which operation, it
also knows the size of every sub-batch, so nothing has to be read back from the device.
"""

import math
from functools import lru_cache

import numpy as np
import torch

from dasolib.image_batch import check_images, host_array, send_array

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

MAX_LEVEL = 9  # levels are 1..9; a strength is level / 10 of its maximum, so the maximum itself never occurs


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
    n, *_ = check_images(images)
    if name not in OPERATIONS:
        raise ValueError(f"unknown name {name!r}; choose from {', '.join(OPERATIONS)}")
    level = torch.as_tensor(level).expand(n) if isinstance(level, int) else level
    negative = torch.as_tensor(negative).expand(n) if isinstance(negative, bool) else negative
    level = host_array("level", level, (n,), 1, MAX_LEVEL)
    negative = host_array("negative", negative, (n,), 0, 1)
    return apply_operations(images, np.full(n, OPERATIONS.index(name)), level, negative.astype(np.int64))


# --- each image its own ----------------------------------------------------------------------------------------------
# The operations come in three families: look-up tables, blends and maps. The function of a family takes the sub-batch
# of its images, uint8 (n, C, H, W), sorted by operation; `parts`, the names of the operations that occur with the slice
# of their images; and the host arrays `level` and `negative`, (n,) int64. It returns the changed sub-batch.


def apply_operations(images, operation, level, negative):
    """Apply to each image its own operation; the result is a new, contiguous batch.

    `images` are uint8 (N, C, H, W); `operation`, a position in `OPERATIONS`, `level`, 1..9, and `negative`, 0 or 1, are
    host arrays (N,) of int64.
    """
    rank = _RANK[operation]
    order = np.argsort(rank, kind="stable")
    level, negative = level[order], negative[order]
    images = images.contiguous().index_select(0, send_array(order, images.device))
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
    return images.index_select(0, send_array(np.argsort(order), images.device))


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
    return send_array(_POSTERIZED[level], pixels.device)


def _solarize(pixels, level):
    """Invert the values from a threshold on."""
    return send_array(_SOLARIZED[level], pixels.device)


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
    factor = send_array((level / 10 * 0.9 + 0.05).astype(np.float32), pixels.device).view(-1, 1, 1, 1)
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
    maps = send_array(maps, pixels.device)
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


def _gather_pixels(images, source):
    """Pixel `source` (n, 1, H, W), a flat position in the image, of every channel."""
    n, c, h, w = images.shape
    return images.reshape(n, c, h * w).gather(2, source.view(n, 1, h * w).expand(n, c, h * w)).view(n, c, h, w)
