"""MixUp: what is drawn, how images and targets are mixed, and the order in which the mixed batch passes."""

import math

import pytest
import torch
from torch import nn

from dasolib.methods.step import Batch
from dasolib.mixup import draw_mixup, forward_mixed, interleave, mixup

N_DRAWS = 4000


def draws(alpha, n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [draw_mixup(n, alpha, generator=generator) for _ in range(N_DRAWS)]


# --- draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.5, 0.75, 1.0, 4.0])
def test_shares_follow_beta_alpha_alpha(alpha):
    """Mean 1/2, variance 1 / (4 (2 a + 1)), fourth central moment 3 / (16 (2 a + 1) (2 a + 3)); within 4 errors."""
    beta = torch.stack([each["beta"] for each in draws(alpha)]).double()
    assert ((beta >= 0) & (beta <= 1)).all()
    variance, fourth = 1 / (4 * (2 * alpha + 1)), 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert abs(beta.mean() - 0.5) < 4 * math.sqrt(variance / N_DRAWS)
    assert abs(((beta - 0.5) ** 2).mean() - variance) < 4 * math.sqrt((fourth - variance**2) / N_DRAWS)
    assert abs((beta < 0.5).double().mean() - 0.5) < 4 * math.sqrt(0.25 / N_DRAWS)


def test_with_alpha_one_half_shares_follow_the_arcsine_law():
    """Its distribution function is 2 / pi * arcsin(sqrt(x)): 1/3 at 1/4 and 2/3 at 3/4."""
    beta = torch.stack([each["beta"] for each in draws(0.5)])
    for share, probability in ((0.25, 1 / 3), (0.75, 2 / 3)):
        error = math.sqrt(probability * (1 - probability) / N_DRAWS)
        assert abs((beta < share).double().mean() - probability) < 4 * error


def test_partners_are_a_permutation_and_each_is_equally_likely():
    partners = torch.stack([each["permutation"] for each in draws(0.5)])
    assert torch.equal(partners.sort(dim=1).values, torch.arange(4).expand(N_DRAWS, 4))
    shares = torch.stack([(partners == j).double().mean(dim=0) for j in range(4)])
    assert (shares - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / N_DRAWS)


def test_the_generator_alone_says_what_is_drawn():
    first, again, other = (draw_mixup(50, 0.75, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first["beta"], again["beta"]) and torch.equal(first["permutation"], again["permutation"])
    assert first["beta"] != other["beta"] and not torch.equal(first["permutation"], other["permutation"])
    assert first["beta"].shape == () and first["beta"].dtype == torch.get_default_dtype()


# --- mixing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.2, 0.8])
def test_the_larger_share_is_the_images_own(beta):
    """With .2 or .8: .8 of itself and .2 of the partner."""
    x, target = torch.tensor([1.0, 10.0, 100.0])[:, None, None, None], torch.eye(3)
    got_x, got_target = mixup(x, target, torch.tensor(beta), torch.tensor([1, 2, 0]))
    torch.testing.assert_close(got_x.flatten(), torch.tensor([2.8, 28.0, 80.2]))
    torch.testing.assert_close(got_target, torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.8, 0.2], [0.2, 0.0, 0.8]]))


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_a_share_of_one_or_zero_mixes_nothing(beta):
    x, target = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)), torch.eye(4)
    got = mixup(x, target, torch.tensor(beta), torch.tensor([3, 2, 1, 0]))
    assert torch.equal(got[0], x) and torch.equal(got[1], target)


@pytest.mark.parametrize("alpha", [0.5, 0.75])
def test_mixed_targets_stay_probabilities_that_favour_the_own_one(alpha):
    target = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    for seed in range(20):
        drawn = draw_mixup(20, alpha, generator=torch.Generator().manual_seed(seed))
        x, mixed = mixup(target[:, :, None, None], target, **drawn)
        torch.testing.assert_close(mixed.sum(dim=-1), torch.ones(20))
        torch.testing.assert_close(x.flatten(1), mixed)  # images and targets mix alike
        partner = target[drawn["permutation"]]
        assert ((mixed - target).norm(dim=1) <= (mixed - partner).norm(dim=1) + 1e-6).all()


# --- interleaving ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_chunks", "size", "widths"),
    [(2, 2, [1, 1]), (3, 3, [1, 1, 1]), (3, 4, [1, 1, 2]), (3, 5, [1, 2, 2]), (4, 10, [2, 2, 3, 3]),
     (5, 4, [0, 1, 1, 1, 1]), (3, 1, [0, 0, 1]), (1, 4, [4])],
)
def test_slot_i_of_the_first_chunk_and_of_chunk_i_change_places(n_chunks, size, widths):
    """What does not divide makes the last slots wider, so that slot 0 may be empty."""
    assert sum(widths) == size
    rows = [[100 * chunk + i for i in range(size)] for chunk in range(n_chunks)]
    want, start = [list(chunk) for chunk in rows], 0
    for i, width in enumerate(widths):
        slot = slice(start, start + width)
        want[0][slot], want[i][slot] = rows[i][slot], rows[0][slot]
        start += width
    got = interleave(torch.tensor(rows).flatten(), size)
    assert got.view(n_chunks, size).tolist() == want


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 64])
@pytest.mark.parametrize("n_chunks", [1, 2, 3, 4, 5, 7])
def test_interleaving_twice_gives_back_what_was(n_chunks, size):
    rows = torch.arange(n_chunks * size)[:, None] * torch.tensor([1, 1000])
    once = interleave(rows, size)
    assert torch.equal(once.sort(dim=0).values, rows)
    assert torch.equal(interleave(once, size), rows)


# --- the passes ------------------------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """Features are the pixels, logits ten times these; keeps what passes, and may add the number of the pass."""

    def __init__(self, count=False):
        super().__init__()
        self.passes, self.count = [], count

    def features(self, x):
        self.passes.append(x.flatten(1))
        return x.flatten(1) + self.count * len(self.passes)

    def head(self, feats):
        return 10 * feats


def recorded(n_labeled, n_unlabeled, *views, beta=0.3, count=False):
    """Mix images whose pixel is their own number; return network, batch, guess and result."""
    n = n_labeled + n_unlabeled * len(views)
    x = torch.arange(float(n))[:, None, None, None] * torch.ones(1, 2, 1, 1)
    labeled, *rest = x.split([n_labeled] + [n_unlabeled] * len(views))
    permutation = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    batch = Batch(labeled, torch.arange(n_labeled) % 2, dict(zip(views, rest, strict=True)), None,
                  {"beta": torch.tensor(beta), "permutation": permutation})
    guess = torch.rand(n_unlabeled, 1, generator=torch.Generator().manual_seed(2))
    guess = torch.cat([guess, 1 - guess], dim=1)
    net = Recorder(count)
    return net, batch, guess, forward_mixed(net, batch, guess)


@pytest.mark.parametrize(("n_labeled", "n_unlabeled", "views"), [
    (4, 4, ("weak1", "weak2")), (4, 4, ("weak", "strong1", "strong2")), (3, 6, ("weak1", "weak2")),
    (5, 5, ("weak", "strong1", "strong2")),
])
def test_mixed_images_and_targets_come_back_in_the_order_of_the_views(n_labeled, n_unlabeled, views):
    """Every view of an image has the same guess; the labeled rows have their class."""
    net, batch, guess, ((labeled, y), (unlabeled, target)) = recorded(n_labeled, n_unlabeled, *views)
    n, partner = n_labeled + n_unlabeled * len(views), batch.draws["permutation"]
    pixels = 0.7 * torch.arange(float(n)) + 0.3 * partner
    torch.testing.assert_close(torch.cat([labeled, unlabeled]), 10 * pixels[:, None].expand(n, 2))
    assert len(labeled) == len(y) == n_labeled and len(unlabeled) == len(target) == n_unlabeled * len(views)
    before = torch.cat([torch.eye(2)[batch.y], *[guess] * len(views)])
    torch.testing.assert_close(torch.cat([y, target]), 0.7 * before + 0.3 * before[partner])


@pytest.mark.parametrize(("n_labeled", "n_unlabeled", "n_passes"), [(4, 4, 3), (3, 6, 5), (5, 5, 3)])
def test_every_pass_has_the_size_of_the_labeled_batch_and_some_labeled_rows(n_labeled, n_unlabeled, n_passes):
    """Nothing is mixed here, so that the pixel tells which image it was."""
    net, batch, _, _ = recorded(n_labeled, n_unlabeled, "weak1", "weak2", beta=1.0)
    assert [len(part) for part in net.passes] == [n_labeled] * n_passes
    rows = torch.cat(net.passes)[:, 0]
    assert torch.equal(rows, interleave(torch.arange(float(len(rows))), n_labeled))
    if n_passes <= n_labeled:
        assert all((part[:, 0] < n_labeled).any() for part in net.passes)


def test_logits_are_those_of_the_pass_their_image_was_in():
    """Chunks of four in three slots of 1, 1 and 2 rows: labeled row 0 passes first, 1 second, 2 and 3 third."""
    _, batch, _, ((labeled, _), (unlabeled, _)) = recorded(4, 4, "weak1", "weak2", beta=1.0, count=True)
    passes = (torch.cat([labeled, unlabeled])[:, 0] / 10 - torch.arange(12.0)).round().tolist()
    assert passes == [1, 2, 3, 3] + [2, 1, 2, 2] + [3, 3, 1, 1]


def test_the_gradient_flows_to_the_images_but_not_to_the_guess():
    guess = torch.full((2, 2), 0.5)
    x = torch.randn(2, 2, 1, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    batch = Batch(x, torch.tensor([0, 1]), {"weak": x.detach() + 1}, None,
                  {"beta": torch.tensor(0.3), "permutation": torch.tensor([2, 3, 0, 1])})
    (labeled, y), (unlabeled, target) = forward_mixed(Recorder(), batch, guess)
    assert not y.requires_grad and not target.requires_grad
    unlabeled.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 3.0))  # the share of the partner, times ten
