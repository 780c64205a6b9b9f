"""Losses that know of clicks, and losses of several candidate masks.

Shapes: ``logits`` (B, M, h, w) of M candidates, ``target`` (B, 1, h, w) in {0, 1}, ``clicks`` those of each of the B images in window
pixels; each returns a scalar, the mean over the images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from napari_apprentice.guidance import WindowClick, gaussian, windowed_gaussians
from napari_apprentice.losses._pixels import iou_distance, log_pt

__all__ = ["click_centred_gaussian", "click_constraint", "click_windows", "diversified_training", "hindsight", "ranked_diversity"]

Clicks = Sequence[Sequence[WindowClick]]

# --- clicks -----------------------------------------------------------------------------------------------------------------------------


def click_windows(
    clicks: Sequence[WindowClick],
    size: tuple[int, int],
    sigma_px: float = 3.0,
    half_width_px: float = 10.0,
    device: torch.device | None = None,
) -> Tensor:
    """(K, h, w): exp(−d²/2σ²) inside a square of ±``half_width_px`` around each click, else 0."""
    return windowed_gaussians([(c.row, c.col) for c in clicks], size, sigma_px, half_width_px, device)


def click_centred_gaussian(
    logits: Tensor,
    target: Tensor,
    clicks: Sequence[WindowClick],
    *,
    form: str = "ce",
    normalised: bool = True,
    sigma_px: float = 3.0,
    half_width_px: float = 10.0,
) -> Tensor:
    """The click-centred Gaussian (CCG) term of You Point, I Learn (2025), for one image: ``logits``, ``target`` (1, 1, h, w).

    Around each click, where the target's class is the click's class, the pixel loss weighted by a Gaussian.

    Parameters
    ----------
    form : "ce" (the paper: cross-entropy) or "linear" (the authors' code: 1 − p_t, whose gradient vanishes on confidently wrong pixels)
    normalised : divide by the summed window weight, so that the weight of a click does not depend on the image's size (ours); else by
        the number of clicks times h·w (the paper)
    """
    if not clicks:
        return logits.sum() * 0
    size = (int(logits.shape[-2]), int(logits.shape[-1]))
    windows = click_windows(clicks, size, sigma_px, half_width_px, logits.device)
    classes = torch.tensor([float(c.positive) for c in clicks], device=logits.device)[:, None, None]
    windows = windows * (target[0] == classes)
    log_p = log_pt(logits, target)[0]  # (1, h, w)
    pixel = -log_p if form == "ce" else 1 - log_p.exp()
    total = windows.sum().clamp_min(1e-6) if normalised else len(clicks) * size[0] * size[1]
    return (windows * pixel).sum() / total


def click_constraint(logits: Tensor, clicks: Clicks) -> Tensor:
    """Σ over positive clicks of 1 − p + Σ over negative clicks of p. Source: Latent Diversity (Li et al., 2018), equation 4.

    Clicks are pixels there: several of a sign on one pixel count once, those outside of the image do not count.
    """
    return _disobedience(logits, clicks).mean()


def _disobedience(logits: Tensor, clicks: Clicks) -> Tensor:
    """(B, M) `click_constraint` of every candidate."""
    height, width = logits.shape[-2:]
    sums = []
    for z, of_image in zip(logits, clicks, strict=True):
        pixels = sorted({(round(c.row), round(c.col), c.positive) for c in of_image})
        pixels = [(row, col, positive) for row, col, positive in pixels if 0 <= row < height and 0 <= col < width]
        rows, cols, signs = [p[0] for p in pixels], [p[1] for p in pixels], [1.0 if p[2] else -1.0 for p in pixels]
        sums.append(torch.sigmoid(-z[:, rows, cols] * z.new_tensor(signs)).sum(1))
    return torch.stack(sums)


# --- candidates -------------------------------------------------------------------------------------------------------------------------


def hindsight(logits: Tensor, target: Tensor, clicks: Clicks) -> Tensor:
    """The least soft Jaccard distance + `click_constraint` of M candidates. Source: Latent Diversity (Li et al., 2018), equation 5."""
    return (iou_distance(logits, target) + _disobedience(logits, clicks)).amin(1).mean()


def ranked_diversity(logits: Tensor, target: Tensor, clicks: Clicks, scale: float = 1e-2) -> Tensor:
    """`hindsight` + Σ_m λ_m·soft Jaccard distance of candidate m, λ_m = ``scale``·2^(M − m), m from 1: the first ones are to be best.

    Source: Latent Diversity (Li et al., 2018), equation 7.
    """
    ranks = torch.arange(logits.shape[1] - 1, -1, -1, dtype=logits.dtype, device=logits.device)
    return hindsight(logits, target, clicks) + (scale * 2**ranks * iou_distance(logits, target)).sum(1).mean()


def diversified_training(
    logits: Tensor, target: Tensor, clicks: Clicks, weights: tuple[float, float, float] = (0.5, 1.0, 1.0), sigma_px: float = 10.0
) -> Tensor:
    """a₀·BCE(main) + a₁·min over latent heads of BCE + a₂·Σ over latent heads of the mean of BCE times the Gaussians of the clicks (DT).

    ``logits`` (B, 1 + N, h, w): the main mask, then those of N latent heads. Source: CDNet (Chen et al., 2021), equations 9 to 11; the
    Gaussian of a click is that of its guidance.
    """
    size = (int(logits.shape[-2]), int(logits.shape[-1]))
    loss = -log_pt(logits, target.expand_as(logits))
    main, latent = loss[:, 0].mean((1, 2)), loss[:, 1:]
    total = weights[0] * main
    if latent.shape[1]:
        near = torch.stack([gaussian([(c.row, c.col) for c in of_image], size, sigma_px, logits.device) for of_image in clicks])
        total = total + weights[1] * latent.mean((2, 3)).amin(1) + weights[2] * (latent * near[:, None]).mean((2, 3)).sum(1)
    return total.mean()
