"""Losses as pure functions of logits. Shapes: ``logits`` and ``target`` (B, 1, h, w), target in {0, 1}; each returns
a scalar (mean over B).

``p_t`` is the probability given to the right class: p where the target is 1, 1 − p where it is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_apprentice.guidance import WindowClick, squared_distance

__all__ = ["click_centred_gaussian", "click_windows", "dice_focal", "focal", "normalised_focal", "soft_dice"]


def _log_pt(logits: Tensor, target: Tensor) -> Tensor:
    """log p_t, stable for large logits."""
    return -F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def soft_dice(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 − (2 Σ p·y + s) / (Σ p + Σ y + s), the foreground alone. Source: V-Net (Milletari et al., 2016)."""
    p = torch.sigmoid(logits).flatten(1)
    y = target.flatten(1)
    return (1 - (2 * (p * y).sum(1) + smooth) / (p.sum(1) + y.sum(1) + smooth)).mean()


def focal(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """mean of −(1 − p_t)^γ log p_t. Source: Lin et al., 2017."""
    log_pt = _log_pt(logits, target)
    return (-((1 - log_pt.exp()) ** gamma) * log_pt).mean()


def normalised_focal(logits: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 2.0) -> Tensor:
    """Focal loss whose weights sum to the number of pixels of each image (weights detached). Source: Sofiiuk et al., 2019 (AdaptIS)."""
    log_pt = _log_pt(logits, target).flatten(1)
    weight = ((1 - log_pt.exp()) ** gamma).detach()
    weight = weight * (weight.shape[1] / weight.sum(1, keepdim=True).clamp_min(1e-6))
    return (-alpha * weight * log_pt).mean()


def dice_focal(logits: Tensor, target: Tensor) -> Tensor:
    """0.7·focal(γ = 2) + 0.3·soft Dice. Source: You Point, I Learn (2025)."""
    return 0.7 * focal(logits, target) + 0.3 * soft_dice(logits, target)


def click_windows(
    clicks: Sequence[WindowClick],
    size: tuple[int, int],
    sigma_px: float = 3.0,
    half_width_px: float = 10.0,
    device: torch.device | None = None,
) -> Tensor:
    """(K, h, w): exp(−d²/2σ²) inside a square of ±``half_width_px`` around each click, else 0."""
    points = [(c.row, c.col) for c in clicks]
    gaussian = torch.exp(-squared_distance(points, size, device) / (2 * sigma_px**2))
    rows = torch.arange(size[0], device=device)[None, :]
    cols = torch.arange(size[1], device=device)[None, :]
    at = torch.tensor(points, dtype=torch.float32, device=device).reshape(-1, 2)
    near = ((rows - at[:, :1]).abs() <= half_width_px)[:, :, None] & ((cols - at[:, 1:]).abs() <= half_width_px)[:, None, :]
    return gaussian * near


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
    log_pt = _log_pt(logits, target)[0]  # (1, h, w)
    pixel = -log_pt if form == "ce" else 1 - log_pt.exp()
    total = windows.sum().clamp_min(1e-6) if normalised else len(clicks) * size[0] * size[1]
    return (windows * pixel).sum() / total
