"""Losses: values worked by hand, identities of the formulas, and gradients against finite differences."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_apprentice.guidance import WindowClick, gaussian
from napari_apprentice.losses import (
    LOSSES,
    OF_CANDIDATES,
    adaptive_focal,
    balanced_cross_entropy,
    click_centred_gaussian,
    click_constraint,
    click_windows,
    cross_entropy,
    dice_focal,
    diversified_training,
    focal,
    hindsight,
    iou_distance,
    normalised_focal,
    poly,
    ranked_diversity,
    soft_dice,
    soft_iou,
    weighted_cross_entropy,
)

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


def random_clicks(seed: int, batch: int = 2, size: tuple[int, int] = (7, 9)) -> list[list[WindowClick]]:
    """Up to three clicks an image on whole pixels."""
    rng = np.random.default_rng(seed)
    return [
        [WindowClick(float(rng.integers(size[0])), float(rng.integers(size[1])), bool(rng.integers(2))) for _ in range(rng.integers(4))]
        for _ in range(batch)
    ]


def candidates_like(logits: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """(B, ``count``, h, w) random masks."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(len(logits), count, *logits.shape[2:], generator=generator, dtype=logits.dtype)


seeds = st.integers(0, 10_000)
PIXEL_LOSSES = {
    "bce": cross_entropy,
    "weighted_bce": weighted_cross_entropy,
    "balanced_ce": balanced_cross_entropy,
    "soft_iou": soft_iou,
    "dice": soft_dice,
    "focal": focal,
    "nfl": normalised_focal,
    "nfl_original": partial(normalised_focal, weights_learn=True),
    "poly": poly,
    "afl": adaptive_focal,
    "dice_focal": dice_focal,
}

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


def test_cross_entropies_by_hand():
    logits, target = pair((0.8, 1), (0.4, 0), (0.1, 0))
    a, b, c = -math.log(0.8), -math.log(0.6), -math.log(0.9)
    assert float(cross_entropy(logits, target)) == pytest.approx((a + b + c) / 3)
    assert float(weighted_cross_entropy(logits, target)) == pytest.approx((3 * a + b + c) / 3)
    assert float(balanced_cross_entropy(logits, target)) == pytest.approx((3 * a + (b + c) / 2) / 4)


def test_soft_iou_by_hand():
    logits, target = pair((0.5, 1), (0.25, 0), (0.75, 1))
    # min: 0.5, 0, 0.75; max: 1, 0.25, 1
    assert float(soft_iou(logits, target)) == pytest.approx(1 - 1.25 / 2.25)


def test_poly_by_hand():
    logits, target = pair((0.8, 1), (0.4, 0))
    expected = (-(0.2**2) * math.log(0.8) - 0.4**2 * math.log(0.6) + 0.2**3 + 0.4**3) / 2
    assert float(poly(logits, target)) == pytest.approx(expected)


def test_adaptive_focal_by_hand():
    logits, target = pair((0.8, 1), (0.4, 1), (0.3, 0))
    exponent = 2 + 1 - (0.8 + 0.4) / 2  # γ_d = 2.4
    by_miss = [0.2**exponent, 0.6**exponent, 0.3**exponent]
    weight = 3 / (sum(by_miss) * (1 + 0.4 * exponent))
    terms = zip(by_miss, (0.8, 0.4, 0.7), strict=True)
    expected = sum(-weight * m * math.log(p) + m * (1 - p) for m, p in terms) / 3
    assert float(adaptive_focal(logits, target)) == pytest.approx(expected)


def test_click_constraint_by_hand():
    logits, _ = pair((0.8, 1), (0.3, 1), (0.4, 0))
    clicks = [WindowClick(0, 0, True), WindowClick(0.2, 1.8, False), WindowClick(-0.3, 1.2, True)]
    assert float(click_constraint(logits, [clicks])) == pytest.approx(0.2 + 0.4 + 0.7)
    once_more = [*clicks, WindowClick(0, 0.1, True), WindowClick(0, 7, True), WindowClick(-1, 0, False)]
    assert float(click_constraint(logits, [once_more])) == pytest.approx(0.2 + 0.4 + 0.7)


def test_losses_of_candidates_by_hand():
    first, target = pair((0.5, 1), (0.25, 0))
    second, _ = pair((0.9, 1), (0.6, 0))
    logits = torch.cat([first, second], dim=1)
    clicks = [[WindowClick(0, 0, True), WindowClick(0, 1, False)]]
    distances = 1 - 0.5 / 1.25, 1 - 0.9 / 1.6
    costs = distances[0] + 0.5 + 0.25, distances[1] + 0.1 + 0.6
    assert float(hindsight(logits, target, clicks)) == pytest.approx(min(costs))
    ranked = min(costs) + 0.02 * distances[0] + 0.01 * distances[1]
    assert float(ranked_diversity(logits, target, clicks)) == pytest.approx(ranked)


def test_diversified_training_by_hand():
    main, target = pair((0.5, 1), (0.25, 0))
    one, two = pair((0.9, 1), (0.6, 0))[0], pair((0.7, 1), (0.2, 0))[0]
    near = math.exp(-1 / 200)  # one pixel away at σ = 10
    a, b = (-math.log(0.9), -math.log(0.4)), (-math.log(0.7), -math.log(0.8))
    expected = 0.5 * (-math.log(0.5) - math.log(0.75)) / 2 + min(sum(a), sum(b)) / 2 + (a[0] + near * a[1]) / 2 + (b[0] + near * b[1]) / 2
    found = diversified_training(torch.cat([main, one, two], dim=1), target, [[WindowClick(0, 0, False)]])
    assert float(found) == pytest.approx(expected, rel=1e-6)


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


def test_the_papers_click_term_is_the_mean_over_clicks_and_pixels():
    """Each click in its own term; one that the target contradicts still counts among the clicks."""
    logits, target = pair((0.8, 1), (0.3, 1), (0.4, 0))
    here, there, contradicted = WindowClick(0, 0, True), WindowClick(0, 2, False), WindowClick(0, 50, False)
    apart = [float(click_centred_gaussian(logits, target, [c], normalised=False)) for c in (here, there)]
    together = click_centred_gaussian(logits, target, [here, there], normalised=False)
    assert float(together) == pytest.approx(sum(apart) / 2, rel=1e-6)
    assert float(click_centred_gaussian(logits, target, [here, contradicted], normalised=False)) == pytest.approx(apart[0] / 2, rel=1e-6)


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
def test_the_original_normalised_focal_loss_has_the_gradient_of_focal_in_every_image(seed):
    """The same value; N/Σb, with b the focal weights, is its only constant."""
    logits, target = random_pair(seed)
    logits.requires_grad_()
    torch.testing.assert_close(normalised_focal(logits, target, weights_learn=True), normalised_focal(logits, target))
    found = torch.autograd.grad(normalised_focal(logits, target, weights_learn=True), logits)[0]
    plain = torch.autograd.grad(focal(logits, target), logits)[0]
    missed = (target - torch.sigmoid(logits.detach())).abs().square().flatten(1)
    scale = 0.5 * missed.shape[1] / missed.sum(1)
    torch.testing.assert_close(found, scale[:, None, None, None] * plain)
    torch.testing.assert_close(LOSSES["nfl_original"](logits, target, [[], []]), normalised_focal(logits, target, weights_learn=True))
    assert not torch.allclose(found, torch.autograd.grad(LOSSES["nfl"](logits, target, [[], []]), logits)[0])


@many
@given(seeds)
def test_every_loss_is_the_mean_over_the_images(seed):
    logits, target = random_pair(seed, batch=3)
    clicks = random_clicks(seed, batch=3)
    for name, loss in LOSSES.items():
        masks = candidates_like(logits, 3, seed) if name in OF_CANDIDATES else logits
        apart = [loss(z[None], t[None], [c]) for z, t, c in zip(masks, target, clicks, strict=True)]
        torch.testing.assert_close(loss(masks, target, clicks), torch.stack(apart).mean())


@many
@given(seeds)
def test_the_limits_of_the_focal_family(seed):
    logits, target = random_pair(seed)
    bce, plain = cross_entropy(logits, target), {"adapts_difficulty": False, "adapts_gradient": False}
    torch.testing.assert_close(poly(logits, target, alpha=0.0), focal(logits, target))
    torch.testing.assert_close(poly(logits, target, gamma=0.0, alpha=0.0), bce)
    torch.testing.assert_close(adaptive_focal(logits, target, **plain), poly(logits, target))
    torch.testing.assert_close(adaptive_focal(logits, target, alpha=0.0, **plain), focal(logits, target))
    torch.testing.assert_close(adaptive_focal(logits, target, gamma=0.0, alpha=0.0, **plain), bce)
    # with the gradient's correction alone, and of no order, it is the normalised focal loss
    normalised = normalised_focal(logits, target, alpha=1.0)
    torch.testing.assert_close(adaptive_focal(logits, target, delta=0.0, alpha=0.0, adapts_difficulty=False), normalised)


@many
@given(seeds)
def test_the_focus_adapts_to_how_unsure_the_foreground_is(seed):
    logits, target = random_pair(seed, batch=1)
    target[0, 0, 0, 0] = 1
    unsure = float((1 - torch.sigmoid(logits))[target > 0].mean())
    fixed = adaptive_focal(logits, target, gamma=2 + unsure, adapts_difficulty=False)
    torch.testing.assert_close(adaptive_focal(logits, target), fixed)


@many
@given(seeds)
def test_the_gradients_weights_of_adaptive_focal_sum_to_the_pixels(seed):
    """μ·Σ (1 − p_t)^γ_d (1 + δγ_d) = N in every image: what its definition is for."""
    logits, target = random_pair(seed)
    log_losses = -F.logsigmoid(logits * (2 * target - 1))
    miss = 1 - (-log_losses).exp()
    for image in range(len(logits)):
        z, t, m = logits[image : image + 1], target[image : image + 1], miss[image]
        focused = float((m**2 * log_losses[image]).mean())
        weight = float(adaptive_focal(z, t, alpha=0.0, adapts_difficulty=False)) / focused
        assert weight * float((m**2 * (1 + 0.4 * 2)).sum()) == pytest.approx(m.numel())


@many
@given(seeds)
def test_equal_weights_and_classes_of_equal_size_make_all_cross_entropies_one(seed):
    logits, target = random_pair(seed, size=(4, 6))
    target[:, :, :2], target[:, :, 2:] = 1, 0
    bce = cross_entropy(logits, target)
    torch.testing.assert_close(weighted_cross_entropy(logits, target, positive=1.0), bce)
    torch.testing.assert_close(balanced_cross_entropy(logits, target, 1.0, 1.0), bce)


@many
@given(seeds)
def test_more_background_of_the_same_kind_changes_no_balanced_loss(seed):
    logits, target = random_pair(seed, batch=1, size=(1, 8))
    target[..., :3], target[..., 3:] = 1, 0
    more = [torch.cat([x, x[..., 3:], x[..., 3:]], dim=3) for x in (logits, target)]
    torch.testing.assert_close(balanced_cross_entropy(*more), balanced_cross_entropy(logits, target))
    assert float(weighted_cross_entropy(*more)) != pytest.approx(float(weighted_cross_entropy(logits, target)))


@many
@given(seeds)
def test_the_soft_iou_is_the_sum_of_minima_over_the_sum_of_maxima(seed):
    logits, target = random_pair(seed)
    masks = candidates_like(logits, 3, seed)
    p, y = torch.sigmoid(masks).numpy(), np.broadcast_to(target.numpy(), masks.shape)
    expected = 1 - np.minimum(p, y).sum((2, 3)) / np.maximum(p, y).sum((2, 3))
    np.testing.assert_allclose(iou_distance(masks, target).numpy(), expected)
    sharp = 60 * masks.sign()
    hard = (sharp > 0).numpy()
    overlap = (hard & (y > 0)).sum((2, 3)) / (hard | (y > 0)).sum((2, 3))
    np.testing.assert_allclose(1 - iou_distance(sharp, target).numpy(), overlap, atol=1e-9)


@many
@given(seeds)
def test_inverting_mask_and_truth_changes_no_pixel_loss(seed):
    logits, target = random_pair(seed)
    for loss in (cross_entropy, focal, normalised_focal, poly):
        torch.testing.assert_close(loss(-logits, 1 - target), loss(logits, target))


@pytest.mark.parametrize("loss", PIXEL_LOSSES.values(), ids=PIXEL_LOSSES)
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


def several(logits: torch.Tensor) -> torch.Tensor:
    """Three candidates that depend on one mask."""
    return torch.cat([logits, logits.flip(2) - 0.5, 0.3 * logits + 0.2], dim=1)


@pytest.mark.parametrize(
    "loss",
    [
        soft_dice,
        focal,
        lambda z, t: focal(z, t, gamma=3.5),
        dice_focal,
        cross_entropy,
        weighted_cross_entropy,
        balanced_cross_entropy,
        soft_iou,
        poly,
        lambda z, t: adaptive_focal(z, t, adapts_difficulty=False, adapts_gradient=False),
        lambda z, t: click_constraint(z, [clicks_for_gradients(), []]),
        lambda z, t: hindsight(several(z), t, [clicks_for_gradients(), []]),
        lambda z, t: ranked_diversity(several(z), t, [clicks_for_gradients(), []]),
        lambda z, t: diversified_training(several(z), t, [clicks_for_gradients(), []]),
        lambda z, t: click_centred_gaussian(z[:1], t[:1], clicks_for_gradients()),
        lambda z, t: click_centred_gaussian(z[:1], t[:1], clicks_for_gradients(), form="linear", normalised=False),
    ],
    ids=[
        *["soft_dice", "focal", "focal-3.5", "dice_focal", "bce", "weighted", "balanced", "soft_iou", "poly", "afl"],
        *["constraint", "hindsight", "ranked", "diversified", "click-ce", "click-linear"],
    ],
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


def test_the_gradient_of_adaptive_focal_takes_both_adaptations_as_constant():
    logits, target = random_pair(6, batch=1, size=(3, 4))
    target[0, 0, 0, 0] = 1
    logits.requires_grad_()
    miss = (1 - torch.where(target > 0, torch.sigmoid(logits), 1 - torch.sigmoid(logits))).detach()
    exponent = 2 + float(miss[target > 0].mean())
    weight = miss.numel() / float((miss**exponent * (1 + 0.4 * exponent)).sum())

    def with_these(z: torch.Tensor) -> torch.Tensor:
        p_t = torch.where(target > 0, torch.sigmoid(z), 1 - torch.sigmoid(z))
        return (-weight * (1 - p_t) ** exponent * p_t.log() + (1 - p_t) ** (exponent + 1)).mean()

    assert torch.autograd.gradcheck(with_these, (logits,))
    got = torch.autograd.grad(adaptive_focal(logits, target), logits)[0]
    torch.testing.assert_close(got, torch.autograd.grad(with_these(logits), logits)[0])


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_an_object_that_is_missing_or_fills_the_image_is_harmless(name):
    for value in (0.0, 1.0):
        logits = torch.randn(2, 3 if name in OF_CANDIDATES else 1, 6, 6, requires_grad=True)
        clicks = [[WindowClick(1, 1, bool(value)), WindowClick(3, 3, not value)], []]
        loss = LOSSES[name](logits, torch.full((2, 1, 6, 6), value), clicks)
        assert loss.ndim == 0
        assert bool(torch.isfinite(torch.autograd.grad(loss, logits)[0]).all())


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"click_constraint", "ccg"}))
def test_following_the_gradient_finds_the_object(name):
    """The same for every name of the table: a mask that is free to become anything becomes the truth."""
    torch.manual_seed(0)
    target = torch.zeros(1, 1, 8, 8)
    target[..., 2:6, 3:7] = 1
    logits = (0.1 * torch.randn(1, 3 if name in OF_CANDIDATES else 1, 8, 8)).requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        optimiser.zero_grad()
        LOSSES[name](logits, target, [[WindowClick(4, 4, True), WindowClick(0, 0, False)]]).backward()
        optimiser.step()
    assert bool(((logits > 0).float() == target).flatten(2).all(2).any())


# --- the table --------------------------------------------------------------------------------------------------------------------------


@many
@given(seeds)
def test_names_lead_to_their_losses(seed):
    logits, target = random_pair(seed)
    clicks, masks = random_clicks(seed), candidates_like(logits, 4, seed)
    for name, loss in PIXEL_LOSSES.items():
        assert torch.equal(LOSSES[name](logits, target, clicks), loss(logits, target))
    near = [click_centred_gaussian(z[None], t[None], c) for z, t, c in zip(logits, target, clicks, strict=True)]
    torch.testing.assert_close(LOSSES["ccg"](logits, target, clicks), sum(near) / len(near))
    assert torch.equal(LOSSES["click_constraint"](logits, target, clicks), click_constraint(logits, clicks))
    for name, loss in (("hindsight", hindsight), ("ranked_diversity", ranked_diversity), ("diversified_training", diversified_training)):
        assert torch.equal(LOSSES[name](masks, target, clicks), loss(masks, target, clicks))
    assert set(LOSSES) == {*PIXEL_LOSSES, "ccg", "click_constraint", *OF_CANDIDATES}


# --- candidates -------------------------------------------------------------------------------------------------------------------------


@many
@given(seeds)
def test_candidate_losses_by_loops(seed):
    """Slow and plain: image by image, candidate by candidate, pixel by pixel."""
    logits, target = random_pair(seed, size=(4, 5))
    masks, clicks = candidates_like(logits, 4, seed), random_clicks(seed, size=(4, 5))
    p, y = torch.sigmoid(masks).numpy(), target.numpy()
    least, ranked, diverse = [], [], []
    for image in range(len(masks)):
        costs, spread, plain, near = [], 0.0, [], []
        for m in range(4):
            pixels = [(p[image, m, r, c], y[image, 0, r, c], r, c) for r in range(4) for c in range(5)]
            distance = 1 - sum(min(a, b) for a, b, *_ in pixels) / sum(max(a, b) for a, b, *_ in pixels)
            said = {(int(c.row), int(c.col), c.positive) for c in clicks[image]}
            costs.append(distance + sum(1 - p[image, m, r, c] if positive else p[image, m, r, c] for r, c, positive in said))
            spread += 0.01 * 2 ** (4 - (m + 1)) * distance
            errors = [-math.log(a if b else 1 - a) for a, b, *_ in pixels]
            weights = [max([0.0, *(math.exp(-((r - k.row) ** 2 + (c - k.col) ** 2) / 200) for k in clicks[image])]) for *_, r, c in pixels]
            plain.append(sum(errors) / 20)
            near.append(sum(e * w for e, w in zip(errors, weights, strict=True)) / 20)
        least.append(min(costs))
        ranked.append(min(costs) + spread)
        diverse.append(0.5 * plain[0] + min(plain[1:]) + sum(near[1:]))
    assert float(hindsight(masks, target, clicks)) == pytest.approx(np.mean(least))
    assert float(ranked_diversity(masks, target, clicks)) == pytest.approx(np.mean(ranked))
    assert float(diversified_training(masks, target, clicks)) == pytest.approx(np.mean(diverse), rel=1e-5)


@many
@given(seeds)
def test_hindsight_does_not_care_for_the_order_and_the_ranked_loss_wants_the_best_first(seed):
    logits, target = random_pair(seed, batch=1)
    masks, clicks = candidates_like(logits, 4, seed), random_clicks(seed, batch=1)
    best_first = masks[:, iou_distance(masks, target)[0].argsort()]
    torch.testing.assert_close(hindsight(best_first, target, clicks), hindsight(masks, target, clicks))
    assert float(ranked_diversity(best_first, target, clicks)) <= float(ranked_diversity(masks, target, clicks)) + 1e-12
    torch.testing.assert_close(ranked_diversity(masks, target, clicks, scale=0.0), hindsight(masks, target, clicks))


@many
@given(seeds)
def test_only_the_best_candidate_learns_by_hindsight(seed):
    logits, target = random_pair(seed, batch=1)
    masks, clicks = candidates_like(logits, 4, seed).requires_grad_(), random_clicks(seed, batch=1)
    costs = [float(hindsight(masks[:, m : m + 1].detach(), target, clicks)) for m in range(4)]
    gradient = torch.autograd.grad(hindsight(masks, target, clicks), masks)[0]
    assert gradient.flatten(2).abs().sum(2)[0].nonzero().flatten().tolist() == [int(np.argmin(costs))]


@many
@given(seeds)
def test_one_candidate_is_a_mask_that_obeys_its_clicks(seed):
    logits, target = random_pair(seed)
    clicks = random_clicks(seed)
    torch.testing.assert_close(hindsight(logits, target, clicks), soft_iou(logits, target) + click_constraint(logits, clicks))
    torch.testing.assert_close(diversified_training(logits, target, clicks), 0.5 * cross_entropy(logits, target))


def test_heads_that_are_not_the_best_still_learn_near_clicks_alone():
    logits, target = random_pair(8, batch=1, size=(60, 60))
    heads = torch.cat([logits, 10 * (2 * target - 1), logits, -logits], dim=1).requires_grad_()
    click = WindowClick(5, 5, True)
    gradient = torch.autograd.grad(diversified_training(heads, target, [[click]]), heads)[0]
    near = gaussian([(5, 5)], (60, 60), 10.0)
    expected = near * (torch.sigmoid(heads[0, 3]) - target[0, 0]) / 3600
    torch.testing.assert_close(gradient[0, 3], expected.double(), rtol=1e-5, atol=1e-12)


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
