"""From data and configuration to the batch of each step."""

import functools
import warnings

import numpy as np
import pytest
import torch

from dasolib import augment, resample
from dasolib.batches import Batches, make_split
from dasolib.data import ImageData
from dasolib.seeds import host_generator
from tests.tiny import tiny_config

K, SIDE, N_TRAIN = 4, 12, 40
CPU = torch.device("cpu")
NORMALIZE_TO_BYTES = functools.partial(augment.normalize, mean=(0.0,), std=(1 / 255,))  # pixels are the bytes again


def encoded(y, serial):
    """Images (n, 1, SIDE, SIDE) whose every pixel is ``40 * class + serial``: flips and crops cannot hide which."""
    return (40 * y + serial).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, SIDE, SIDE).contiguous()


def toy_data(pile=False, names=None):
    """Images whose pixels tell their class; those of the pile are brighter than all others."""
    y = torch.arange(K).repeat_interleave(N_TRAIN)
    y_pile = torch.tensor([0, 1, 2, 3, -1]).repeat(10)
    more = {"x_unlabeled": encoded(torch.full_like(y_pile, 5), y_pile + 1), "y_unlabeled": y_pile,
            "unlabeled_names": names} if pile else {}
    return ImageData(name="toy", x_train=encoded(y, torch.arange(N_TRAIN).repeat(K)), y_train=y,
                     x_test=encoded(y, torch.zeros(1, dtype=torch.int64)), y_test=y, class_names=tuple("abcd"),
                     mean=(0.0,), std=(1 / 255,), **more)


def make_batches(data=None, resolution=None, **changes):
    """Batches whose normalised pixels are the bytes again."""
    data = data if data is not None else toy_data()
    config = tiny_config("toy", **changes)
    normalize = functools.partial(augment.normalize, mean=data.mean, std=data.std, resolution=resolution)
    return Batches(config, data, make_split(config, data), normalize, CPU)


NATURAL = {"n1": None, "m1": None, "gamma_l": None, "unlabeled": "unknown"}


def pixel(images):
    """The one value of each image (n, 1, H, W), as whole numbers."""
    assert (images.amax(dim=(1, 2, 3)) - images.amin(dim=(1, 2, 3)) < 1e-3).all()
    return images.mean(dim=(1, 2, 3)).round().long()


# ---- what is in a batch ----


def test_a_batch_has_the_shapes_of_its_settings():
    batch, target = make_batches(batch_size=3, mu=2).at(0)
    assert batch.x.shape == (3, 1, SIDE, SIDE) and batch.y.shape == (3,)
    assert {name: view.shape for name, view in batch.views.items()} == dict.fromkeys(("weak", "strong"),
                                                                                    (6, 1, SIDE, SIDE))
    assert target.shape == (6,) and batch.x.dtype == torch.float32


def test_labels_belong_to_their_images_whatever_the_augmentation():
    batches = make_batches(flip=True)
    for t in range(20):
        batch, target = batches.at(t)
        assert torch.equal(pixel(batch.x) // 40, batch.y)
        assert torch.equal(pixel(batch.views["weak"]) // 40, target)


def test_all_views_show_the_same_images_in_the_same_order():
    batches = make_batches()
    batches.kinds = {"weak": "weak", "another": "weak"}
    batch, _ = batches.at(3)
    assert torch.equal(pixel(batch.views["weak"]), pixel(batch.views["another"]))


def test_an_epoch_shows_every_image_once():
    batches = make_batches(batch_size=3, mu=4, total_steps=9)
    n_x, n_u = len(batches.x), len(batches.u)
    seen_x = torch.cat([pixel(batches.at(t)[0].x) for t in range(-(-n_x // 3))])
    seen_u = torch.cat([pixel(batches.at(t)[0].views["weak"]) for t in range(-(-n_u // 12))])
    assert len(seen_x[:n_x].unique()) == n_x and len(seen_u[:n_u].unique()) == n_u


def test_labeled_and_unlabeled_images_are_disjoint():
    batches = make_batches()
    labeled, unlabeled = (set(pixel(x.float()).tolist()) for x in (batches.x, batches.u))
    assert len(labeled) == len(batches.x) and len(unlabeled) == len(batches.u)
    assert not labeled & unlabeled


@pytest.mark.parametrize(("unlabeled", "counts"), [("equal", [24, 15, 9, 6]), ("reversed", [6, 9, 15, 24]),
                                                   ("uniform", [24, 24, 24, 24])])
def test_class_counts_are_those_of_the_configuration(unlabeled, counts):
    batches = make_batches(unlabeled=unlabeled)
    assert batches.labeled_counts.tolist() == [12, 7, 4, 3]
    torch.testing.assert_close(batches.prior, torch.tensor([12, 7, 4, 3]) / 26)
    assert torch.bincount(batches.u_target).tolist() == counts


def test_the_index_of_an_unlabeled_image_is_its_position_in_the_training_images():
    data = toy_data()
    batches = make_batches(data)
    assert torch.equal(data.x_train[batches.unlabeled_index], batches.u)
    assert torch.equal(data.y_train[batches.unlabeled_index], batches.u_target)


def test_a_supervised_batch_has_no_unlabeled_images():
    batches = make_batches(method="supervised", rebalance="")
    batch, target = batches.at(0)
    assert batch.views == {} and target is None
    assert batches.images_per_step == 4 and make_batches().images_per_step == 12


# ---- what it depends on ----


def textured_data():
    """Images without a symmetry, so that every crop and flip of one looks different."""
    generator = torch.Generator().manual_seed(0)
    data = toy_data()
    x_train = torch.randint(0, 256, data.x_train.shape, generator=generator, dtype=torch.uint8)
    return ImageData(**vars(data) | {"x_train": x_train})


def tensors(batch, target):
    return [batch.x, batch.y, *batch.views.values(), target]


def test_a_batch_depends_on_nothing_but_seed_and_step():
    first, second = make_batches(textured_data()), make_batches(textured_data())
    forth = [tensors(*first.at(t)) for t in (0, 1, 7)]
    torch.rand(5)  # the state of torch's own generator takes no part
    back = [tensors(*second.at(t)) for t in (7, 1, 0)][::-1]
    for one, other in zip(forth, back, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_labeled_view_is_the_same_in_every_method():
    """Also with other unlabeled images and another share of them: the labeled batch is drawn for itself."""
    reference = make_batches(textured_data(), method="supervised", rebalance="")
    for changes in ({}, {"mu": 3}, {"unlabeled": "equal", "m1": 20}, {"rebalance": "la"}):
        other = make_batches(textured_data(), **changes)
        for t in (0, 4):
            assert torch.equal(reference.at(t)[0].x, other.at(t)[0].x)
            assert torch.equal(reference.at(t)[0].y, other.at(t)[0].y)


def test_other_steps_and_other_seeds_give_other_batches():
    batches, other = make_batches(textured_data()), make_batches(textured_data(), seed=1)
    for one, two in ((batches.at(0), batches.at(1)), (batches.at(0), other.at(0))):
        assert not torch.equal(one[0].x, two[0].x)
        assert not torch.equal(one[0].views["weak"], two[0].views["weak"])


def test_views_of_different_names_are_augmented_independently():
    batches = make_batches(textured_data(), flip=True)
    images = batches.u[:8]
    weak = batches.view(images, "weak", "weak", 0)
    assert torch.equal(weak, batches.view(images, "weak", "weak", 0))
    assert not torch.equal(weak, batches.view(images, "weak", "another", 0))
    assert not torch.equal(weak, batches.view(images, "weak", "weak", 1))
    assert not torch.equal(weak, batches.view(images, "strong", "weak", 0))


def test_without_flips_no_image_is_mirrored():
    """Left half dark, right half bright: only a flip could turn that round, and a crop shows 4 columns of each."""
    image = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8)
    image[..., SIDE // 2:] = 200
    images = image.expand(200, -1, -1, -1)
    for flip in (False, True):
        view = make_batches(flip=flip).view(images, "weak", "weak", 0)
        n_mirrored = int((view[:, 0, :, SIDE // 2 - 1 - 4:SIDE // 2 - 4].mean(dim=(1, 2))
                          > view[:, 0, :, SIDE // 2 + 4:SIDE // 2 + 5].mean(dim=(1, 2))).sum())
        assert 60 < n_mirrored < 140 if flip else n_mirrored == 0


def test_strong_views_are_cut_out_and_weak_ones_are_not():
    batches, black = make_batches(), torch.zeros(8, 1, SIDE, SIDE, dtype=torch.uint8)
    strong, weak = (batches.view(black, kind, "view", 0) for kind in ("strong", "weak"))
    grey = (strong - 127).abs() < 1e-3
    assert (grey.flatten(1).sum(dim=1) >= 64).all()  # an 8 x 8 corner of the square at least lies in the image
    assert (weak == 0).all()


def test_the_plain_view_is_the_image_itself():
    """Neither flipped nor cropped; the other two views of USADTM are."""
    batches = make_batches(textured_data(), method="usadtm", rebalance="", flip=True)
    batch, _ = batches.at(2)
    assert list(batch.views) == ["identity", "weak", "strong"]
    torch.testing.assert_close(batch.views["identity"], batches.u[batch.index].float())
    assert not torch.allclose(batch.views["weak"], batch.views["identity"])


# ---- the index, and further draws ----


@pytest.mark.parametrize("method", ["fixmatch", "usadtm", "remixmatch"])
def test_the_index_of_a_batch_names_its_unlabeled_images(method):
    batches = make_batches(method=method, rebalance="", batch_size=3)
    for t in range(5):
        batch, target = batches.at(t)
        assert batch.index.shape == target.shape and len(batch.index.unique()) == len(batch.index)
        assert torch.equal(pixel(batch.views["weak"]), pixel(batches.u[batch.index].float()))
        assert torch.equal(target, batches.u_target[batch.index])


def test_a_supervised_batch_has_neither_index_nor_draws():
    batch, _ = make_batches(method="supervised", rebalance="").at(0)
    assert batch.index is None and batch.draws is None


WITH_DRAWS = {
    ("fixmatch", ""): {},
    ("mixmatch", ""): {"beta": (), "permutation": (12,)},  # 4 labeled images, and two views of 4
    ("remixmatch", ""): {"beta": (), "permutation": (16,), "quarter_turns": (4,)},
    ("fixmatch", "abc"): {"keep_labeled": (4,), "keep_unlabeled": (8,)},
}


@pytest.mark.parametrize(("combination", "shapes"), WITH_DRAWS.items(), ids=str)
def test_the_draws_of_a_step_depend_on_nothing_but_seed_and_step(combination, shapes):
    changes = dict(zip(("method", "rebalance"), combination, strict=True))
    first, second, other = (make_batches(**changes, seed=seed) for seed in (0, 0, 1))
    forth = [first.at(t)[0].draws for t in range(4)]
    torch.rand(5)  # the state of torch's own generator takes no part
    back = [second.at(t)[0].draws for t in (3, 2, 1, 0)][::-1]
    assert {name: tuple(value.shape) for name, value in forth[0].items()} == shapes
    for name in shapes:
        assert all(torch.equal(one[name], two[name]) for one, two in zip(forth, back, strict=True))
        assert any(not torch.equal(forth[0][name], draws[name]) for draws in forth[1:])
        assert any(not torch.equal(one[name], other.at(t)[0].draws[name]) for t, one in enumerate(forth))


def test_what_a_part_draws_is_the_same_beside_other_parts():
    alone, beside = (make_batches(rebalance=rebalance).at(1)[0].draws for rebalance in ("abc", "daso,abc"))
    assert all(torch.equal(alone[name], beside[name]) for name in ("keep_labeled", "keep_unlabeled"))
    assert not torch.equal(alone["keep_labeled"], alone["keep_unlabeled"][:4])


# ---- generations ----

CREST = {"rebalance": "crest", "total_steps": 30, "n_generations": 3, "batch_size": 4}  # ten steps in a generation


def test_selected_images_join_the_labeled_ones_and_replace_those_selected_before():
    batches = make_batches(**CREST)
    n, rows = len(batches.x), torch.tensor([5, 0, 50])
    batches.select({"rows": rows, "classes": torch.tensor([3, 3, 1])})
    assert torch.equal(batches.x[n:], batches.u[rows]) and batches.y[n:].tolist() == [3, 3, 1]
    assert torch.equal(batches.x[:n], batches.original_x) and torch.equal(batches.y[:n], batches.original_y)
    batches.select({"rows": torch.tensor([7]), "classes": torch.tensor([0])})
    assert torch.equal(batches.x[n:], batches.u[7:8]) and batches.y[n:].tolist() == [0]
    assert len(batches.u) == 54  # they stay among the unlabeled ones
    assert batches.labeled_counts.tolist() == [12, 7, 4, 3]  # and out of the prior of test-time adjustment
    batches.select(None)
    assert torch.equal(batches.x, batches.original_x) and torch.equal(batches.y, batches.original_y)


def test_the_population_counts_what_was_selected_apart():
    batches = make_batches(**CREST)
    hidden = torch.tensor([6.0, 9.0, 15.0, 24.0])
    before = batches.population(hidden, 0)
    assert torch.equal(before.current, before.labeled) and before.generation == 0
    batches.select({"rows": torch.tensor([5, 0, 50]), "classes": torch.tensor([3, 3, 1])})
    after = batches.population(hidden, 1)
    assert after.labeled.tolist() == [12, 7, 4, 3] and after.current.tolist() == [12, 8, 4, 5]
    assert (after.n_unlabeled, after.generation) == (54, 1) and after.unlabeled is hidden
    batches.select(None)
    assert batches.population(None, 1).current.tolist() == [12, 7, 4, 3]


def test_each_generation_begins_an_epoch_of_the_labeled_set_as_it_is_then():
    batches = make_batches(**CREST)
    for generation, selected in enumerate((0, 10, 3)):
        if selected:
            rows = torch.arange(selected)
            batches.select({"rows": rows, "classes": rows % K})
        n = 26 + selected
        first = 10 * generation
        shown = torch.cat([batches.labeled_rows(t) for t in range(first, first + -(-n // 4))])[:n]
        assert len(shown.unique()) == n and shown.max() == n - 1
        batch = batches.at(first)[0]
        assert torch.equal(batch.y, batches.y[shown[:4]]) and len(batch.x) == 4


def test_the_first_generation_draws_as_a_run_without_generations_and_the_next_ones_otherwise():
    crest, plain = make_batches(**CREST), make_batches(rebalance="", total_steps=30)
    assert all(torch.equal(crest.labeled_rows(t), plain.labeled_rows(t)) for t in range(10))
    assert not all(torch.equal(crest.labeled_rows(t), crest.labeled_rows(t + 10)) for t in range(10))
    assert not all(torch.equal(crest.labeled_rows(t + 10), crest.labeled_rows(t + 20)) for t in range(10))
    assert all(torch.equal(crest.at(t)[0].index, plain.at(t)[0].index) for t in (0, 9, 10, 29))  # U is the same


# ---- separate piles and sizes ----


def test_unknown_unlabeled_images_come_from_the_pile():
    names = tuple(f"{i}.png" for i in range(50))
    batches = make_batches(toy_data(pile=True, names=names), unlabeled="unknown", m1=None, rebalance="")
    batch, target = batches.at(0)
    assert (pixel(batch.views["weak"]) >= 200).all() and (pixel(batch.x) < 200).all()
    assert torch.equal(pixel(batch.views["weak"]) - 201, target) and (batches.u_target == -1).sum() == 10
    np.testing.assert_array_equal(batches.unlabeled_index, np.arange(50))
    assert batches.unlabeled_names == names


def test_a_made_unlabeled_set_leaves_the_pile_and_its_names_alone():
    batches = make_batches(toy_data(pile=True, names=("x",) * 50))
    assert batches.unlabeled_names is None and (pixel(batches.u.float()) < 200).all()


def test_data_of_natural_imbalance_are_labeled_throughout_and_the_pile_is_not():
    batches = make_batches(toy_data(pile=True), **NATURAL)
    assert batches.labeled_counts.tolist() == [N_TRAIN] * K and len(batches.u) == 50


def test_training_images_outside_the_labeled_list_are_unlabeled():
    chosen = tuple(range(0, K * N_TRAIN, 10))
    batches = make_batches(toy_data(), labeled_indices=chosen, **NATURAL)
    assert pixel(batches.x.float()).tolist() == pixel(toy_data().x_train[list(chosen)].float()).tolist()
    assert len(batches.u) == K * N_TRAIN - len(chosen) and not set(batches.unlabeled_index) & set(chosen)


@pytest.mark.parametrize("resolution", [8, 16])
def test_batches_are_resized_after_augmentation(resolution):
    batch, _ = make_batches(resolution=resolution).at(0)
    for view in (batch.x, *batch.views.values()):
        assert view.shape[2:] == (resolution, resolution)


@pytest.mark.parametrize("kind", ["weak", "strong"])
@pytest.mark.parametrize("method", ["remixmatch", "fixmatch", "mixmatch"])
def test_images_are_flipped_and_cropped_before_they_are_resized_and_strong_ones_of_remixmatch_distorted_after(method,
                                                                                                            kind):
    """A crop by up to 4 pixels, and a square of 17, are another share of 24 pixels than of 48."""
    batches = make_batches(resolution=24, method=method, rebalance="", flip=True, train_resolution=24)
    images, generator = textured_data().x_train.view(-1, 1, 48, 48), host_generator(0, "view name", 3)
    n = len(images)
    if kind == "strong" and method != "remixmatch":
        draws = augment.draw_strong(n, 48, 48, generator=generator)
        want = resample.resize(augment.strong_view(images, draws), 24)
    else:
        want = resample.resize(augment.weak_view(images, augment.draw_weak(n, generator=generator)), 24)
    if kind == "strong" and method == "remixmatch":
        want = augment.strong_view(want, augment.draw_strong(n, 24, 24, generator=generator, flip=False, pad=0), pad=0)
    torch.testing.assert_close(batches.view(images, kind, "name", 3), want.float())


@pytest.mark.parametrize("method", ["remixmatch", "fixmatch"])
@pytest.mark.parametrize("axis", [2, 3])
def test_crops_of_stl10_move_by_four_of_its_96_pixels(method, axis):
    """On a ramp the two middle rows or columns of a view show where its center was: 43.5 to 51.5, mirrored or not."""
    ramp = torch.arange(96, dtype=torch.uint8).view(1, 1, *([96, 1] if axis == 2 else [1, 96])).expand(160, 1, 96, 96)
    data = ImageData(**vars(toy_data()) | {"x_train": ramp.contiguous()})
    batches = make_batches(data, resolution=32, method=method, rebalance="", flip=True, train_resolution=32)
    names = ["labeled", *(name for name, kind in batches.kinds.items() if kind == "weak")]
    for name in names:
        centers = torch.cat([batches.view(batches.u, "weak", name, t).narrow(axis, 15, 2).mean(dim=(1, 2, 3))
                             for t in range(10)])
        assert centers.round(decimals=2).unique().tolist() == [43.5 + shift for shift in range(9)]


def test_without_a_training_resolution_remixmatch_leaves_the_size_as_it_is():
    batch, _ = make_batches(method="remixmatch", rebalance="").at(0)
    assert batch.x.shape[2:] == (SIDE, SIDE)


@pytest.mark.parametrize("method", ["fixmatch", "remixmatch"])
@pytest.mark.parametrize("kind", ["weak", "strong"])
@pytest.mark.parametrize("resolution", [24, None])
def test_resized_crops_stand_in_for_flip_and_padded_crop_and_come_first(kind, method, resolution):
    """RandAugment and Cutout act on the resized part of the image, for ReMixMatch as for all others."""
    batches = make_batches(textured_data(), method=method, rebalance="", crop="resized", flip=True,
                           train_resolution=resolution)
    generator, side = host_generator(0, "view name", 3), resolution or SIDE
    draws = resample.draw_resized_crop(6, SIDE, SIDE, generator=generator)
    images = resample.resized_crop(batches.u[:6], draws, side, side)
    if kind == "strong":
        draws = augment.draw_strong(6, side, side, generator=generator, flip=False, pad=0)
        images = augment.strong_view(images, draws, pad=0)
    torch.testing.assert_close(batches.view(batches.u[:6], kind, "name", 3), images.float())


def test_a_view_that_is_not_augmented_is_not_cropped_either():
    batches = make_batches(textured_data(), method="usadtm", rebalance="", crop="resized")
    assert torch.equal(batches.view(batches.u[:6], "plain", "name", 3), batches.normalize(batches.u[:6]))


# ---- refusals ----


def test_a_method_that_turns_images_needs_them_square():
    data = toy_data()
    data = ImageData(**vars(data) | {"x_train": data.x_train[..., :10], "x_test": data.x_test[..., :10]})
    with pytest.raises(ValueError, match="method='remixmatch' turns images, and those of dataset='toy' are 12 x 10; "
                                         "give train_resolution=10"):
        make_batches(data, method="remixmatch", rebalance="")
    batch, _ = make_batches(data, resolution=10, method="remixmatch", rebalance="", train_resolution=10).at(0)
    assert batch.x.shape[2:] == (10, 10)
    assert make_batches(data).at(0)[0].x.shape[2:] == (12, 10)  # the others take them as they are


@pytest.mark.parametrize(("changes", "message"), [
    ({"batch_size": 27}, "batch_size=27 is larger than the labeled set of 26 images; choose a smaller one"),
    ({"mu": 14}, r"mu \* batch_size = 14 \* 4 is larger than the unlabeled set of 54 images; choose a smaller"),
    (NATURAL, "method='fixmatch' needs unlabeled images, dataset='toy' has none: choose method=supervised"),
    (NATURAL | {"method": "distribution_estimate", "rebalance": "", "n_val": 8},
     "method='distribution_estimate' needs unlabeled images, dataset='toy' has none"),
    ({"network": "resnet34"}, "network='resnet34' takes images of three channels, those of dataset='toy' have 1"),
    ({"unlabeled": "unknown", "m1": None}, "unlabeled='unknown': dataset='toy' has no separate unlabeled images; "
                                           "choose equal, uniform or reversed"),
])
def test_what_the_data_cannot_give_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_batches(**changes)


@pytest.mark.parametrize(("dataset", "changes", "message"), [
    ("mine/cifar10", {"n_val": 5000}, r"called like a known data set and gets its settings, n_val=5000, which do not "
                                      r"fit \(n_val=5000 takes 1250 .*\); rename it"),
    ("mine/cifar100.npz", {"n1": 150}, r"gets its settings, n1=150, which do not fit \(n1 \+ m1 = 150 .*\); rename it"),
    ("mine/digits", {"n1": 150}, r"^n1 \+ m1 = 150 \+ 24"),
])
def test_where_a_split_that_does_not_fit_comes_from_is_said_of_own_data_with_a_known_name(dataset, changes, message):
    with pytest.raises(ValueError, match=message):
        make_split(tiny_config(dataset, **{"n_val": 0} | changes), toy_data())


def test_supervised_training_needs_no_unlabeled_images():
    batches = make_batches(method="supervised", rebalance="", **NATURAL)
    assert len(batches.u) == 0 and batches.at(0)[0].x.shape[0] == 4


# ---- images that a split leaves out ----


def test_separate_images_that_a_split_does_not_take_are_named():
    data = toy_data(pile=True)
    with pytest.warns(UserWarning, match="unlabeled='equal' takes .*: the 50 separate ones of dataset='toy' are not"):
        make_split(tiny_config("toy", unlabeled="equal"), data)
    natural = {"n1": None, "m1": None, "gamma_l": None, "unlabeled": "unknown"}
    with pytest.warns(UserWarning, match="labeled_indices names 4 of 160 training images, .*: the others are not used"):
        make_split(tiny_config("toy", **natural, labeled_indices=(0, 40, 80, 120)), data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_split(tiny_config("toy", **natural), data)
        make_split(tiny_config("toy", unlabeled="equal"), toy_data())
