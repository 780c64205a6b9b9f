"""Losses: values worked by hand, identities of the formulas, and gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_apprentice.guidance import WindowClick
from napari_apprentice.losses import click_centred_gaussian, click_windows, dice_focal, focal, normalised_focal, soft_dice

many = settings(max_examples=40)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def pair(*pixels: tuple[float, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """``logits`` and ``target`` (1, 1, 1, n) of (probability, truth) pixels, in double precision."""
    logits = torch.tensor([logit(p) for p, _ in pixels], dtype=torch.float64).reshape(1, 1, 1, -1)
    return logits, torch.tensor([float(y) for _, y in pixels], dtype=torch.float64).reshape(1, 1, 1, -1)


def random_pair(seed: int, batch: int = 2, size: tuple[int, int] = (7, 9)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, 1, *size, generator=generator, dtype=torch.float64)
    return logits, (torch.rand(batch, 1, *size, generator=generator) > 0.5).double()


seeds = st.integers(0, 10_000)

# --- by hand ----------------------------------------------------------------------------------------------------------------------------


def test_soft_dice_by_hand():
    logits, target = pair((0.5, 1), (0.25, 0))
    # 1 − (2·0.5 + 1) / (0.75 + 1 + 1)
    assert float(soft_dice(logits, target)) == pytest.approx(1 - 2 / 2.75)


def test_focal_by_hand():
    logits, target = pair((0.8, 1), (0.4, 0))
    # p_t: 0.8 and 0.6
    assert float(focal(logits, target)) == pytest.approx((-(0.2**2) * math.log(0.8) - 0.4**2 * math.log(0.6)) / 2)


def test_normalised_focal_by_hand():
    logits, target = pair((0.8, 1), (0.4, 0))
    scale = 2 / (0.2**2 + 0.4**2)
    expected = -0.5 / 2 * scale * (0.2**2 * math.log(0.8) + 0.4**2 * math.log(0.6))
    assert float(normalised_focal(logits, target)) == pytest.approx(expected)


def test_dice_focal_by_hand():
    logits, target = pair((0.8, 1), (0.4, 0))
    expected = 0.7 * (-(0.2**2) * math.log(0.8) - 0.4**2 * math.log(0.6)) / 2 + 0.3 * (1 - 2.6 / 3.2)
    assert float(dice_focal(logits, target)) == pytest.approx(expected)


def test_click_term_by_hand():
    logits, target = pair((0.8, 1), (0.3, 1), (0.4, 0))
    near = math.exp(-1 / 18)  # one pixel away at σ = 3
    log_losses = -math.log(0.8), -math.log(0.3)
    click = [WindowClick(0, 0, True)]
    paper = click_centred_gaussian(logits, target, click, normalised=False)
    assert float(paper) == pytest.approx((log_losses[0] + near * log_losses[1]) / 3, rel=1e-6)
    ours = click_centred_gaussian(logits, target, click)
    assert float(ours) == pytest.approx((log_losses[0] + near * log_losses[1]) / (1 + near), rel=1e-6)
    code = click_centred_gaussian(logits, target, click, form="linear")
    assert float(code) == pytest.approx((0.2 + near * 0.7) / (1 + near), rel=1e-6)


# --- identities -------------------------------------------------------------------------------------------------------------------------


@many
@given(seeds)
def test_focal_without_focus_is_cross_entropy(seed):
    logits, target = random_pair(seed)
    assert float(focal(logits, target, gamma=0.0)) == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, target)))


@many
@given(seeds)
def test_normalised_focal_without_focus_is_cross_entropy_by_alpha(seed):
    logits, target = random_pair(seed)
    expected = 0.3 * float(F.binary_cross_entropy_with_logits(logits, target))
    assert float(normalised_focal(logits, target, alpha=0.3, gamma=0.0)) == pytest.approx(expected)


@many
@given(seeds)
def test_normalised_weights_sum_to_the_pixels_of_every_image(seed):
    logits, target = random_pair(seed)
    logits.requires_grad_()
    gradient = torch.autograd.grad(normalised_focal(logits, target, alpha=1.0), logits)[0]
    # weights are detached, so gradient = −w (y − p) / (B·N) pixel by pixel
    size = logits[0].numel()
    weights = -gradient * len(logits) * size / (target - torch.sigmoid(logits))
    torch.testing.assert_close(weights.flatten(1).sum(1), torch.full((len(logits),), float(size), dtype=torch.float64))


@many
@given(seeds)
def test_every_loss_is_the_mean_over_the_images(seed):
    logits, target = random_pair(seed, batch=3)
    for loss in (soft_dice, focal, normalised_focal, dice_focal):
        apart = torch.stack([loss(z[None], t[None]) for z, t in zip(logits, target, strict=True)]).mean()
        torch.testing.assert_close(loss(logits, target), apart)


@many
@given(seeds)
def test_inverting_mask_and_truth_changes_no_pixel_loss(seed):
    logits, target = random_pair(seed)
    for loss in (focal, normalised_focal):
        torch.testing.assert_close(loss(-logits, 1 - target), loss(logits, target))


@pytest.mark.parametrize("loss", [soft_dice, focal, normalised_focal, dice_focal])
def test_right_is_cheaper_than_wrong_and_extreme_logits_stay_finite(loss):
    target = (torch.arange(64).reshape(1, 1, 8, 8) % 3 == 0).float()
    right = (200 * (2 * target - 1)).requires_grad_()
    wrong = (-200 * (2 * target - 1)).requires_grad_()
    losses = loss(right, target), loss(wrong, target)
    assert losses[0].item() < 1e-3 < losses[1].item()
    for value, logits in zip(losses, (right, wrong), strict=True):
        assert bool(torch.isfinite(torch.autograd.grad(value, logits)[0]).all())


# --- gradients --------------------------------------------------------------------------------------------------------------------------


def clicks_for_gradients() -> list[WindowClick]:
    return [WindowClick(1.25, 2, True), WindowClick(3, 1.5, False), WindowClick(-2, 3, True)]


@pytest.mark.parametrize(
    "loss",
    [
        soft_dice,
        focal,
        lambda z, t: focal(z, t, gamma=3.5),
        dice_focal,
        lambda z, t: click_centred_gaussian(z[:1], t[:1], clicks_for_gradients()),
        lambda z, t: click_centred_gaussian(z[:1], t[:1], clicks_for_gradients(), form="linear", normalised=False),
    ],
    ids=["soft_dice", "focal", "focal-3.5", "dice_focal", "click-ce", "click-linear"],
)
def test_gradients_are_those_of_finite_differences(loss):
    logits, target = random_pair(3, size=(4, 5))
    assert torch.autograd.gradcheck(lambda z: loss(z, target), (logits.requires_grad_(),))


def test_the_gradient_of_normalised_focal_takes_the_weights_as_constant():
    logits, target = random_pair(4, batch=1, size=(3, 4))
    logits.requires_grad_()
    p_t = torch.where(target > 0, torch.sigmoid(logits), 1 - torch.sigmoid(logits)).detach()
    weight = (1 - p_t) ** 2
    weight = weight / weight.mean()

    def with_these_weights(z: torch.Tensor) -> torch.Tensor:
        return (0.5 * weight * F.binary_cross_entropy_with_logits(z, target, reduction="none")).mean()

    assert torch.autograd.gradcheck(with_these_weights, (logits,))
    got = torch.autograd.grad(normalised_focal(logits, target), logits)[0]
    torch.testing.assert_close(got, torch.autograd.grad(with_these_weights(logits), logits)[0])


# --- windows about clicks ---------------------------------------------------------------------------------------------------------------


def plain_windows(clicks: list[WindowClick], size: tuple[int, int], sigma: float, half: float) -> list[list[list[float]]]:
    """The definition, pixel by pixel."""
    return [
        [
            [
                math.exp(-((row - c.row) ** 2 + (col - c.col) ** 2) / (2 * sigma**2))
                if abs(row - c.row) <= half and abs(col - c.col) <= half
                else 0.0
                for col in range(size[1])
            ]
            for row in range(size[0])
        ]
        for c in clicks
    ]


places = st.integers(-20, 80).map(lambda v: v / 4)


@many
@given(
    st.lists(st.builds(WindowClick, places, places, st.booleans()), min_size=1, max_size=3),
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    st.sampled_from([1.0, 3.0]),
    st.sampled_from([0.0, 2.5, 10.0]),
)
def test_click_windows_are_the_plain_definition(clicks, size, sigma, half):
    expected = torch.tensor(plain_windows(clicks, size, sigma, half))
    torch.testing.assert_close(click_windows(clicks, size, sigma, half), expected, rtol=1e-5, atol=1e-7)


# --- the click term ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["ce", "linear"])
@pytest.mark.parametrize("normalised", [True, False])
def test_without_clicks_the_term_is_zero_and_teaches_nothing(form, normalised):
    logits, target = random_pair(5, batch=1)
    logits.requires_grad_()
    term = click_centred_gaussian(logits, target, [], form=form, normalised=normalised)
    assert term.item() == 0
    assert not bool(torch.autograd.grad(term, logits)[0].any())


@many
@given(seeds, st.booleans())
def test_only_pixels_of_the_clicks_class_near_the_click_count(seed, positive):
    logits, target = random_pair(seed, batch=1, size=(30, 30))
    logits.requires_grad_()
    click = WindowClick(8, 9, positive)
    gradient = torch.autograd.grad(click_centred_gaussian(logits, target, [click]), logits)[0][0, 0]
    counts = (target[0, 0] == float(positive)) & (click_windows([click], (30, 30))[0] > 0)
    assert torch.equal(gradient != 0, counts)


def test_a_click_without_a_pixel_of_its_class_is_harmless():
    logits = torch.randn(1, 1, 8, 8, requires_grad=True)
    term = click_centred_gaussian(logits, torch.zeros(1, 1, 8, 8), [WindowClick(4, 4, True)])
    assert term.item() == 0
    assert bool(torch.isfinite(torch.autograd.grad(term, logits)[0]).all())


@many
@given(seeds, st.sampled_from(["ce", "linear"]))
def test_our_form_does_not_depend_on_the_size_of_the_image_and_the_papers_does(seed, form):
    logits, target = random_pair(seed, batch=1, size=(24, 24))
    target[0, 0, 12, 12] = 1
    click = [WindowClick(12, 12, True)]
    larger_logits, larger_target = F.pad(logits, (0, 24, 0, 24)), F.pad(target, (0, 24, 0, 24))
    ours = [click_centred_gaussian(z, t, click, form=form) for z, t in ((logits, target), (larger_logits, larger_target))]
    torch.testing.assert_close(ours[0], ours[1])
    paper = [
        click_centred_gaussian(z, t, click, form=form, normalised=False) for z, t in ((logits, target), (larger_logits, larger_target))
    ]
    torch.testing.assert_close(paper[0], 4 * paper[1])


@many
@given(seeds)
def test_in_our_form_two_equal_clicks_weigh_as_one(seed):
    logits, target = random_pair(seed, batch=1, size=(12, 12))
    click = WindowClick(5, 6, True)
    torch.testing.assert_close(click_centred_gaussian(logits, target, [click, click]), click_centred_gaussian(logits, target, [click]))


def test_the_linear_form_gives_up_on_confidently_wrong_pixels_and_cross_entropy_does_not():
    logits = torch.full((1, 1, 9, 9), -25.0, requires_grad=True)
    target, click = torch.ones(1, 1, 9, 9), [WindowClick(4, 4, True)]
    steepest = {
        form: float(torch.autograd.grad(click_centred_gaussian(logits, target, click, form=form), logits)[0].abs().max())
        for form in ("ce", "linear")
    }
    assert steepest["linear"] < 1e-8
    assert steepest["ce"] > 1e-3
