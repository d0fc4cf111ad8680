"""Weak and strong views: the published outputs, Pillow, cases worked by hand, and what a device must not be asked."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import RandomResizedCrop

from benchmarks.augment import pillow_cutout, pillow_operation
from dasolib.augment import StrongDraws, WeakDraws, cutout, draw_strong, draw_weak, normalize, strong_view, weak_view
from dasolib.randaugment import OPERATIONS, randaugment_operation
from dasolib.resample import CROP_AREA, CROP_RATIO, CropDraws, draw_resized_crop, resize, resized_crop

SHIPPED = Path(__file__).parent / "data" / "golden"


@pytest.fixture(params=["shipped", "larger"], scope="module")
def golden(request):
    """Reference images and outputs of every operation, as a dict of arrays."""
    folder = SHIPPED if request.param == "shipped" else os.environ.get("DASO_GOLDEN")
    if folder is None:
        pytest.skip("the larger reference set is not here: DASO_GOLDEN does not name its folder")
    with np.load(Path(folder) / "randaugment.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


def telling_images(channels, height, width):
    """Six images: noise, low contrast, one flat, a ramp, nearly all white, and dark with few bright pixels."""
    images = random_images(6, channels, height, width)
    images[1] = images[1] // 4 + 20
    images[2] = 7
    images[3] = torch.linspace(0, 255, width).to(torch.uint8)
    images[4] = torch.where(images[4] > 3, 255, 3)
    images[5] = torch.where(images[5] > 240, images[5], images[5] // 16)
    return images


def to_pillow(image):
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())


def from_pillow(image):
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


# --- against the published implementation and Pillow -----------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_level_and_sign_equals_the_published_output(golden, name):
    images = torch.from_numpy(golden["images"]).permute(0, 3, 1, 2)
    key = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    outputs = {k: v for k, v in golden.items() if k.split("/")[0] == key}
    assert outputs
    differing = {}
    for path, want in outputs.items():
        level = re.search(r"level(\d)", path)
        got = randaugment_operation(images, name, int(level[1]) if level else 5, path.endswith("negative"))
        differing[path] = int((got.permute(0, 2, 3, 1).numpy() != want).sum())
    assert not any(differing.values()), f"differing pixel values: {differing}"


def test_cutout_equals_the_published_output(golden):
    images = torch.from_numpy(golden["images"]).permute(0, 3, 1, 2)
    for j, centre in enumerate(golden["cutout/centres_xy"]):
        got = cutout(images, torch.from_numpy(centre).expand(len(images), 2)).permute(0, 2, 3, 1).numpy()
        differing = int((got != golden[f"cutout/centre{j}"]).sum())
        assert differing == 0, f"centre {centre}: {differing} differing pixel values"


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 17, 40), (3, 41, 18), (3, 2, 5), (1, 1, 1), (3, 96, 96)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_equal_pillow_on_one_and_three_channels_and_any_size(name, shape):
    images = telling_images(*shape)
    for level in range(1, 10):
        for negative in (False, True):
            want = torch.stack([from_pillow(pillow_operation(to_pillow(i), name, level, negative)) for i in images])
            got = randaugment_operation(images, name, level, negative)
            assert torch.equal(got, want), f"level {level}, negative {negative}: {(got != want).sum()} values differ"


@pytest.mark.parametrize(("name", "shape"), [("TranslateX", (1, 2, 40_000)), ("TranslateY", (1, 40_000, 2))])
def test_a_map_reaches_beyond_pixel_32768(name, shape):
    """There a coordinate with its 16 bits after the point needs more than 32."""
    (image,) = images = random_images(1, *shape)
    for negative in (False, True):
        want = from_pillow(pillow_operation(to_pillow(image), name, 9, negative))
        assert torch.equal(randaugment_operation(images, name, 9, negative)[0], want)


@pytest.mark.parametrize("shape", [(3, 96, 96), (1, 28, 28), (3, 30, 45)])
@pytest.mark.parametrize("resolution", [32, 7, 64])
def test_resize_equals_pillows_bilinear(shape, resolution):
    images = telling_images(*shape)
    size = (resolution, resolution)
    want = torch.stack([from_pillow(to_pillow(i).resize(size, Image.Resampling.BILINEAR)) for i in images])
    assert torch.equal(resize(images, resolution), want)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "resolution"), [(64, 48), (24, 24), (20, 40), (150, 20)])
def test_a_resized_crop_equals_pillows_crop_resize_and_mirror(channels, side, resolution):
    """For taller crops Pillow may take the rows first, so that its rounding differs by one; see `resize`."""
    images = random_images(60, channels, side, side)
    draws = draw_resized_crop(60, side, side, generator=generator(2))
    got = resized_crop(images, draws, resolution, resolution)
    for k, (flip, top, left, height, width) in enumerate(zip(*(part.tolist() for part in draws), strict=True)):
        pillow = to_pillow(images[k]).crop((left, top, left + width, top + height))
        pillow = pillow.resize((resolution, resolution), Image.Resampling.BILINEAR)
        want = from_pillow(ImageOps.mirror(pillow) if flip else pillow)
        torch.testing.assert_close(got[k], want, atol=int(height > width), rtol=0)


def test_the_crop_of_a_whole_image_is_the_resized_image():
    images = telling_images(3, 30, 45)
    zero, one = torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64)
    whole = CropDraws(zero.bool(), zero, zero, 30 * one, 45 * one)
    assert torch.equal(resized_crop(images, whole, 20, 20), resize(images, 20))
    assert torch.equal(resized_crop(images, whole, 30, 45), images)
    assert torch.equal(resized_crop(images, whole._replace(flip=one.bool()), 30, 45), images.flip(3))


def test_the_whole_strong_view_equals_pillow_image_by_image():
    images = random_images(40, 3, 24, 32)
    draws = draw_strong(40, 24, 32, generator=generator(3))
    got = strong_view(images, draws)
    for k, image in enumerate(weak_view(images, draws.weak)):
        pillow = to_pillow(image)
        for slot in range(2):
            if draws.apply[slot, k]:
                name = OPERATIONS[draws.operation[slot, k]]
                pillow = pillow_operation(pillow, name, draws.level[slot, k].item(), draws.negative[slot, k].item())
        pillow = pillow_cutout(pillow, *draws.centre[k].tolist())
        assert torch.equal(got[k], from_pillow(pillow)), f"image {k}"


# --- cases worked by hand --------------------------------------------------------------------------------------------


def one_weak(flip, dy, dx):
    return WeakDraws(torch.tensor([flip]), torch.tensor([dy]), torch.tensor([dx]))


def test_a_centred_crop_without_flip_changes_nothing_and_with_flip_mirrors():
    image = torch.tensor([[[[1, 2, 3], [4, 5, 6]]]], dtype=torch.uint8)
    assert torch.equal(weak_view(image, one_weak(False, 1, 1), pad=1), image)
    assert weak_view(image, one_weak(True, 1, 1), pad=1).tolist() == [[[[3, 2, 1], [6, 5, 4]]]]


def test_a_crop_beyond_the_border_sees_the_reflection_without_the_border_pixel_twice():
    """From the corner of a border of 2, rows and columns -2, -1, 0 are 2, 1, 0; from the far corner 2, 3, 4 too."""
    image = torch.tensor([[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]], dtype=torch.uint8)
    turned = [[[[9, 8, 7], [6, 5, 4], [3, 2, 1]]]]
    assert weak_view(image, one_weak(False, 0, 0), pad=2).tolist() == turned
    assert weak_view(image, one_weak(False, 4, 4), pad=2).tolist() == turned


def test_the_flip_comes_before_the_crop():
    """1 2 3 4 flipped is 4 3 2 1, and one pixel further left 3 4 3 2; the other order would give 3 2 1 2."""
    image = torch.tensor([[[[1, 2, 3, 4], [1, 2, 3, 4]]]], dtype=torch.uint8)
    assert weak_view(image, one_weak(True, 1, 0), pad=1)[0, 0, 0].tolist() == [3, 4, 3, 2]


@pytest.mark.parametrize("shape", [(50, 3, 32, 32), (50, 1, 9, 14), (0, 3, 8, 8)])
def test_weak_views_are_windows_of_the_reflected_image(shape):
    images = random_images(*shape)
    flip, dy, dx = draws = draw_weak(len(images), generator=generator())
    got = weak_view(images, draws)
    assert got.shape == images.shape and got.dtype == torch.uint8
    for k in range(len(images)):
        image = images[k].flip(-1) if flip[k] else images[k]
        padded = F.pad(image.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
        assert torch.equal(got[k], padded[:, dy[k] : dy[k] + shape[2], dx[k] : dx[k] + shape[3]])


def painted(centre, size=2, shape=(5, 5)):
    """Rows and columns of the square painted on a black image."""
    square = cutout(torch.zeros(1, 3, *shape, dtype=torch.uint8), torch.tensor([centre]), size=size)
    assert set(square.unique().tolist()) <= {0, 127}
    assert (square == square[:, :1]).all()
    hole = square[0, 0] == 127
    assert hole.sum() == hole.any(dim=1).sum() * hole.any(dim=0).sum()
    return hole.any(dim=1).nonzero().flatten().tolist(), hole.any(dim=0).nonzero().flatten().tolist()


def test_cutout_paints_both_ends_and_stops_at_the_borders():
    """Size 2 about (2.9, 2): columns from int(1.9) = 1 to 3, rows 1 to 3; about (5, 0): column 4 alone, rows 0 to 2."""
    assert painted((2.9, 2.0)) == ([1, 2, 3], [1, 2, 3])
    assert painted((5.0, 0.0)) == ([0, 1, 2], [4])
    assert painted((0.0, 5.0)) == ([4], [0, 1, 2])


def test_an_uncut_cutout_of_size_16_has_17_pixels_a_side():
    rows, cols = painted((20.0, 10.5), size=16, shape=(24, 40))
    assert rows == list(range(2, 19))
    assert cols == list(range(12, 29))


def test_color_leaves_one_channel_alone():
    images = random_images(4, 1, 8, 8)
    assert torch.equal(randaugment_operation(images, "Color", 1), images)


def test_normalize_scales_to_one_then_subtracts_the_mean_and_divides():
    images = torch.arange(256, dtype=torch.uint8).expand(3, 256).reshape(1, 3, 16, 16)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    got = normalize(images, mean, std)
    exact_mean, exact_std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (mean, std))
    exact = (images.double() / 255 - exact_mean) / exact_std
    assert got.dtype == torch.float32 and got.is_contiguous()
    one_unit = 2.0**-21  # from one float32 number to the next where pixel / std lies at its largest, 4.1
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=one_unit)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_layout_changes_neither_weak_views_nor_what_they_are_normalised_to(channels):
    images, draws = random_images(20, channels, 12, 9), draw_weak(20, generator=generator())
    view = weak_view(images, draws)
    last = weak_view(images, draws, memory_format=torch.channels_last)
    assert view.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, view)
    for layout in (torch.contiguous_format, torch.channels_last):
        x, y = (normalize(v, [0.5] * channels, [0.3] * channels, memory_format=layout) for v in (view, last))
        assert torch.equal(x, y) and x.is_contiguous(memory_format=layout) and y.is_contiguous(memory_format=layout)


def test_normalize_gives_the_type_layout_and_size_asked_for():
    images = random_images(2, 3, 12, 12)
    mean, std = [0.5] * 3, [0.25] * 3
    plain = normalize(images, mean, std)
    last = normalize(images, mean, std, memory_format=torch.channels_last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, plain)
    assert torch.equal(normalize(images, mean, std, dtype=torch.bfloat16), plain.bfloat16())
    torch.testing.assert_close(normalize(images, mean, std, dtype=torch.float64), images.double() / 63.75 - 2)
    assert torch.equal(normalize(images, mean, std, resolution=4), normalize(resize(images, 4), mean, std))


# --- a batch is its images -------------------------------------------------------------------------------------------


def select(draws, k):
    """Draws of image `k` alone."""
    slots = (getattr(draws, name)[:, k : k + 1] for name in ("operation", "apply", "level", "negative"))
    return StrongDraws(WeakDraws(*(part[k : k + 1] for part in draws.weak)), *slots, draws.centre[k : k + 1])


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_of_a_batch_gets_what_it_gets_alone(channels):
    images = random_images(60, channels, 20, 28)
    draws = draw_strong(60, 20, 28, generator=generator(1))
    together = strong_view(images, draws)
    alone = torch.cat([strong_view(images[k : k + 1], select(draws, k)) for k in range(60)])
    assert torch.equal(together, alone)


def test_levels_and_signs_may_differ_within_a_batch():
    images = random_images(18, 3, 16, 16)
    level, negative = torch.arange(18) % 9 + 1, torch.arange(18) >= 9
    for name in OPERATIONS:
        together = randaugment_operation(images, name, level, negative)
        for k in range(18):
            alone = randaugment_operation(images[k : k + 1], name, level[k].item(), negative[k].item())
            assert torch.equal(together[k : k + 1], alone), f"{name}, image {k}"


def test_views_read_any_memory_layout_and_leave_their_input_alone():
    images = random_images(30, 3, 16, 16)
    draws = draw_strong(30, 16, 16, generator=generator())
    kept, last = images.clone(), images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(strong_view(images, draws), strong_view(last, draws))
    for name in OPERATIONS:
        assert torch.equal(randaugment_operation(images, name, 9), randaugment_operation(last, name, 9))
    assert torch.equal(images, kept) and torch.equal(last, kept)


def test_an_operation_drawn_but_not_applied_changes_nothing():
    images = random_images(14, 3, 16, 16)
    draws = draw_strong(14, 16, 16, generator=generator())
    draws = draws._replace(operation=torch.arange(14).expand(2, 14), apply=torch.zeros(2, 14, dtype=torch.bool))
    assert torch.equal(strong_view(images, draws), cutout(weak_view(images, draws.weak), draws.centre))


# --- draws -----------------------------------------------------------------------------------------------------------


def flatten(draws):
    return [*draws.weak, *draws[1:]]


def test_the_same_generator_state_draws_the_same_views_and_another_does_not():
    first, again = (draw_strong(64, 32, 32, generator=generator(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(flatten(first), flatten(again), strict=True))
    other = draw_strong(64, 32, 32, generator=generator(6))
    assert not any(torch.equal(a, b) for a, b in zip(flatten(first), flatten(other), strict=True))


def test_draws_cover_their_ranges_evenly():
    """With 28,000 images every frequency lies within five standard deviations of its expectation."""
    n = 28_000
    draws = draw_strong(n, 24, 40, generator=generator(), pad=3)

    def is_even(values, n_values, first=0):
        counts = torch.bincount(values.flatten().long() - first, minlength=n_values)
        p = 1 / n_values
        deviation = 5 * (values.numel() * p * (1 - p)) ** 0.5
        return len(counts) == n_values and ((counts - values.numel() * p).abs() < deviation).all()

    assert is_even(draws.weak.flip, 2)
    assert is_even(draws.weak.dy, 7) and is_even(draws.weak.dx, 7)
    for slot in range(2):
        assert is_even(draws.operation[slot], 14)
        assert is_even(draws.apply[slot], 2)  # each operation is carried out half of the time
        assert is_even(draws.level[slot], 9, first=1)
        assert is_even(draws.negative[slot], 2)
    assert is_even(draws.operation[0] * 14 + draws.operation[1], 196)  # the second does not depend on the first
    assert is_even(draws.centre[:, 0].floor(), 40) and is_even(draws.centre[:, 1].floor(), 24)


def test_without_flip_nothing_is_mirrored_and_the_crops_stay_the_same():
    plain, unflipped = (draw_weak(100, generator=generator(), flip=flip) for flip in (True, False))
    assert plain.flip.any() and not unflipped.flip.any()
    assert torch.equal(plain.dy, unflipped.dy) and torch.equal(plain.dx, unflipped.dx)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 90), (5, 300)])
def test_resized_crops_are_drawn_like_those_of_torchvision(height, width):
    """Two-sample tests of area, aspect and place against 4,000 draws of torchvision's transform."""
    n = 4000
    draws = draw_resized_crop(n, height, width, generator=generator(1))
    torch.manual_seed(1)
    image = torch.empty(3, height, width)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, CROP_AREA, CROP_RATIO) for _ in range(n)])
    ours = torch.stack([draws.top, draws.left, draws.height, draws.width], dim=1)
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    assert stats.ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-3
    assert abs(float(draws.flip.float().mean()) - 0.5) < 5 * 0.5 / n**0.5


@pytest.mark.parametrize(("height", "width", "crop"), [(1, 100, (0, 49, 1, 1)), (100, 1, (49, 0, 1, 1)),
                                                       (2, 100, (0, 48, 2, 3)), (100, 3, (48, 0, 4, 3))])
def test_where_no_crop_fits_it_is_central_with_the_nearest_ratio(height, width, crop):
    """4/3 of one pixel is one, of two are three; 3/4 of four are three; the place is rounded down."""
    draws = draw_resized_crop(200, height, width, generator=generator())
    found = torch.stack([draws.top, draws.left, draws.height, draws.width], dim=1).tolist()
    assert list(crop) in found


def test_resized_crops_without_flip_are_the_same_but_not_mirrored():
    plain, unflipped = (draw_resized_crop(100, 32, 32, generator=generator(), flip=flip) for flip in (True, False))
    assert plain.flip.any() and not unflipped.flip.any()
    assert all(torch.equal(a, b) for a, b in zip(plain[1:], unflipped[1:], strict=True))


# --- the device ------------------------------------------------------------------------------------------------------


class RefuseWaits(TorchDispatchMode):
    """Fails on copies that make the host wait for a device, which fake tensors alone let through."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            asynchronous = (kwargs or {}).get("non_blocking", False)
            if {source.device.type, out.device.type} == {"cpu", "cuda"}:
                assert out.device.type == "cuda" and asynchronous, f"{func} from {source.device} to {out.device} waits"
        return out


@pytest.mark.parametrize("channels", [1, 3])
def test_a_cuda_batch_is_augmented_without_waiting_for_the_device(channels, monkeypatch):
    """Fake tensors refuse whatever reads a value back: item, nonzero and boolean masks raise."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # there is nothing to pin for without a GPU
    draws, crops = (draw(200, 24, 24, generator=generator()) for draw in (draw_strong, draw_resized_crop))
    assert set(draws.operation[draws.apply].tolist()) == set(range(14))
    with FakeTensorMode(allow_non_fake_inputs=True), RefuseWaits():
        images = torch.empty(200, channels, 24, 24, dtype=torch.uint8, device="cuda")
        assert resized_crop(images, crops, 16, 20).shape == (200, channels, 16, 20)
        assert weak_view(images, draws.weak, memory_format=torch.channels_last).shape == images.shape
        view = strong_view(images, draws)
        x = normalize(view, [0.5] * channels, [0.25] * channels, resolution=16, memory_format=torch.channels_last)
        assert view.device.type == x.device.type == "cuda"
        assert view.shape == images.shape and x.shape == (200, channels, 16, 16)


@pytest.mark.parametrize("wait", [lambda x: x.max().item(), torch.nonzero, lambda x: x[x > 3], torch.Tensor.cpu])
def test_the_check_for_waits_notices_one(wait):
    with pytest.raises((RuntimeError, AssertionError)):
        with FakeTensorMode(allow_non_fake_inputs=True), RefuseWaits():
            images = torch.empty(2, 1, 4, 4, dtype=torch.uint8, device="cuda")
            wait(images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_on_a_cuda_device_equal_those_on_the_host_and_do_not_wait():
    images = random_images(500, 3, 32, 32)
    draws, crops = (draw(500, 32, 32, generator=generator()) for draw in (draw_strong, draw_resized_crop))
    want = strong_view(images, draws)
    on_device = images.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got, parts = strong_view(on_device, draws), resized_crop(on_device, crops, 16, 20)
        x = normalize(got, [0.5] * 3, [0.25] * 3, resolution=16)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got.cpu(), want)
    assert torch.equal(parts.cpu(), resized_crop(images, crops, 16, 20))
    torch.testing.assert_close(x.cpu(), normalize(want, [0.5] * 3, [0.25] * 3, resolution=16))


# --- bad input -------------------------------------------------------------------------------------------------------

IMAGES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 8, 8), "images must be uint8 .* got torch.float32"),
        (IMAGES[0], r"images must be uint8 of shape \(N, C, H, W\), got .*\(3, 8, 8\)"),
        (IMAGES[:, :2], r"1 or 3 channels .*\(2, 2, 8, 8\)"),
        (IMAGES[:, :, :0], r"at least one pixel, got shape \(2, 3, 0, 8\)"),
        (IMAGES.numpy(), "images must be uint8 .* got ndarray"),
    ],
)
def test_every_function_refuses_what_is_no_uint8_batch(images, message):
    strong = draw_strong(2, 8, 8, generator=generator())
    for call in (
        lambda: weak_view(images, strong.weak),
        lambda: strong_view(images, strong),
        lambda: randaugment_operation(images, "Identity"),
        lambda: cutout(images, strong.centre),
        lambda: resize(images, 4),
        lambda: resized_crop(images, draw_resized_crop(2, 8, 8, generator=generator()), 4, 4),
        lambda: normalize(images, [0.5] * 3, [0.5] * 3),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def one_crop(*numbers):
    """The same crop, (top, left, height, width), of two images."""
    return CropDraws(torch.zeros(2, dtype=torch.bool), *(torch.tensor([number] * 2) for number in numbers))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: weak_view(IMAGES, d.weak, pad=8), r"pad must be in 0\.\.7 .* 8 x 8, got 8"),
        (lambda d: weak_view(IMAGES, d.weak, pad=-1), r"pad must be in 0\.\.7 .* got -1"),
        (lambda d: weak_view(IMAGES, one_weak(True, 0, 0)), r"flip must be a CPU tensor of shape \(2,\), got \(1,\)"),
        (lambda d: weak_view(IMAGES, d.weak._replace(dy=torch.tensor([9, 0]))), r"dy must be in 0\.\.8, got 0\.\.9"),
        (lambda d: weak_view(IMAGES, d.weak._replace(dx=torch.tensor([-1, 0]))), r"dx must be in 0\.\.8, got -1\.\.0"),
        (lambda d: weak_view(IMAGES, d.weak._replace(dx=torch.empty(2, device="meta"))), r"dx .* got \(2,\) on meta"),
        (lambda d: randaugment_operation(IMAGES, "Invert"), "unknown name 'Invert'; choose from AutoContrast, Bright"),
        (lambda d: randaugment_operation(IMAGES, "Rotate", 0), r"level must be in 1\.\.9, got 0"),
        (lambda d: randaugment_operation(IMAGES, "Rotate", 10), r"level must be in 1\.\.9, got 10"),
        (lambda d: randaugment_operation(IMAGES, "Rotate", torch.tensor([1])), r"level .* shape \(2,\), got \(1,\)"),
        (lambda d: randaugment_operation(IMAGES, "Rotate", 2.5), r"level must be a CPU tensor .* got 2\.5"),
        (lambda d: randaugment_operation(IMAGES, "Rotate", 2, "no"), "negative must be a CPU tensor .* got 'no'"),
        (lambda d: strong_view(IMAGES, d._replace(level=d.level + 9)), r"level must be in 1\.\.9"),
        (lambda d: strong_view(IMAGES, d._replace(operation=d.operation + 14)), r"operation must be in 0\.\.13"),
        (lambda d: strong_view(IMAGES, d._replace(apply=d.apply[0])), r"apply .* shape \(2, 2\), got \(2,\)"),
        (lambda d: strong_view(IMAGES, d, cutout_size=0), "size must be >= 1, got 0"),
        (lambda d: cutout(IMAGES, d.centre, size=-1), "size must be >= 1, got -1"),
        (lambda d: cutout(IMAGES, d.centre + 8), r"centre must be in 0\.\.8"),
        (lambda d: cutout(IMAGES, d.centre * float("nan")), r"centre must be in 0\.\.8, got nan"),
        (lambda d: cutout(IMAGES[:, :, :4], d.centre * 0 + 5), "centre must lie in .* width 8 and height 4"),
        (lambda d: resize(IMAGES, 0), "resolution must be >= 1, got 0"),
        (lambda d: resized_crop(IMAGES, one_crop(0, 0, 8, 8), 4, 0), "height and width must be >= 1, got 4 and 0"),
        (lambda d: resized_crop(IMAGES, one_crop(0, 0, 9, 8), 4, 4), r"height must be in 1\.\.8, got 9\.\.9"),
        (lambda d: resized_crop(IMAGES, one_crop(0, -1, 8, 8), 4, 4), r"left must be in 0\.\.7, got -1"),
        (lambda d: resized_crop(IMAGES, one_crop(3, 0, 6, 8), 4, 4), r"top \+ height must be at most 8, got 9"),
        (lambda d: resized_crop(IMAGES[:1], one_crop(0, 0, 8, 8), 4, 4), r"flip must be .* shape \(1,\), got \(2,\)"),
        (lambda d: draw_resized_crop(-1, 8, 8, generator=generator()), "n and pad must be >= 0, got n -1"),
        (lambda d: draw_resized_crop(1, 8, 0, generator=generator()), "height and width must be >= 1, got 8 and 0"),
        (lambda d: normalize(IMAGES, [0.5], [0.5] * 3), r"mean must be a sequence of 3 numbers.* got \[0\.5\]"),
        (lambda d: normalize(IMAGES, [0.5] * 3, 0.5), r"std must be a sequence of 3 numbers.* got 0\.5"),
        (lambda d: normalize(IMAGES, [0.5] * 3, [0.5, 0.0, 0.5]), r"std must be > 0, got \[0\.5, 0\.0, 0\.5\]"),
        (lambda d: normalize(IMAGES, [0.5] * 3, [0.5] * 3, dtype=torch.int8), "dtype must be floating, got torch.int8"),
        (
            lambda d: normalize(IMAGES, [0.5] * 3, [0.5] * 3, memory_format=torch.preserve_format),
            "memory_format must be .* got torch.preserve_format",
        ),
        (
            lambda d: weak_view(IMAGES, d.weak, memory_format=torch.preserve_format),
            "memory_format must be .* got torch.preserve_format",
        ),
        (lambda d: draw_weak(-1, generator=generator()), "n and pad must be >= 0, got n -1 and pad 4"),
        (lambda d: draw_weak(2, generator=generator(), pad=-1), "n and pad must be >= 0, got n 2 and pad -1"),
        (lambda d: draw_strong(2, 0, 8, generator=generator()), "height and width must be >= 1, got 0 and 8"),
    ],
)
def test_bad_arguments_are_refused_by_name_and_value(call, message):
    with pytest.raises(ValueError, match=message):
        call(draw_strong(2, 8, 8, generator=generator()))
