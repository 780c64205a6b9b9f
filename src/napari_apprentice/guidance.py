"""Click maps: how clicks enter a network. Each network's configuration names the encoding it was made for.

Clicks come in window pixels as real numbers ``(row, col)``, pixel centres at whole numbers; a map is float32 ``(h, w)`` in 0..1. Every
encoding has one length in pixels, with the value of its paper as the default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "GUIDANCE",
    "WindowClick",
    "click_maps",
    "disk",
    "distance",
    "gaussian",
    "gaussian_sum",
    "squared_distance",
    "windowed_gaussians",
]

Points = Sequence[tuple[float, float]]


class WindowClick(NamedTuple):
    """A click in the pixels of a network's window."""

    row: float
    col: float
    positive: bool


def _offsets(points: Points, size: tuple[int, int], device: torch.device | None) -> tuple[Tensor, Tensor]:
    """Rows (K, h) and columns (K, w) of the pixel centres as seen from each of K points."""
    at = torch.tensor(points, dtype=torch.float32, device=device).reshape(-1, 2)
    rows = torch.arange(size[0], dtype=torch.float32, device=device)
    cols = torch.arange(size[1], dtype=torch.float32, device=device)
    return rows[None, :] - at[:, :1], cols[None, :] - at[:, 1:]


def squared_distance(points: Points, size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """(K, h, w) squared Euclidean distance in pixels from each of K points to every pixel centre."""
    rows, cols = _offsets(points, size, device)
    return rows.square()[:, :, None] + cols.square()[:, None, :]


def windowed_gaussians(
    points: Points, size: tuple[int, int], sigma_px: float, half_width_px: float, device: torch.device | None = None
) -> Tensor:
    """(K, h, w): exp(−d²/2σ²) inside a square of ±``half_width_px`` around each of K points, else 0."""
    rows, cols = _offsets(points, size, device)
    near = (rows.abs() <= half_width_px)[:, :, None] & (cols.abs() <= half_width_px)[:, None, :]
    return torch.exp(-squared_distance(points, size, device) / (2 * sigma_px**2)) * near


def disk(points: Points, size: tuple[int, int], radius_px: float = 3.0, device: torch.device | None = None) -> Tensor:
    """(h, w): 1 within ``radius_px`` of any point (d² ≤ r²), else 0.

    Source: Learning from Corrections (Kontogianni et al., 2020) with radius 3; RITM (Sofiiuk et al., 2022) with 5.
    """
    if not points:
        return torch.zeros(size, device=device)
    return (squared_distance(points, size, device) <= radius_px**2).any(0).float()


def distance(points: Points, size: tuple[int, int], truncation_px: float = 255.0, device: torch.device | None = None) -> Tensor:
    """(h, w): Euclidean distance to the nearest point, truncated and in units of ``truncation_px``; 1 everywhere without points.

    Source: Xu et al., 2016, and Latent Diversity (Li et al., 2018), whose maps go from 0 to 255.
    """
    if not points:
        return torch.ones(size, device=device)
    return (squared_distance(points, size, device).amin(0).sqrt() / truncation_px).clamp(max=1.0)


def gaussian(points: Points, size: tuple[int, int], sigma_px: float = 10.0, device: torch.device | None = None) -> Tensor:
    """(h, w): the largest exp(−d²/2σ²) over the points, 0 without any. Source: CDNet (Chen et al., 2021)."""
    if not points:
        return torch.zeros(size, device=device)
    return torch.exp(-squared_distance(points, size, device).amin(0) / (2 * sigma_px**2))


def gaussian_sum(points: Points, size: tuple[int, int], sigma_px: float = 5.0, device: torch.device | None = None) -> Tensor:
    """(h, w): the sum over the points of exp(−d²/2σ²) within ±3σ, stretched to 0..1; 0 without points (or none in reach).

    Clustered points dim a lonely one. Source: You Point, I Learn (2025): impulses convolved with 31×31 pixels at σ = 5, then min-max.
    """
    total = windowed_gaussians(points, size, sigma_px, 3 * sigma_px, device).sum(0)
    least, most = total.aminmax()
    return (total - least) / (most - least).clamp_min(torch.finfo(total.dtype).tiny)


GUIDANCE: dict[str, Callable[..., Tensor]] = {"disk": disk, "distance": distance, "gaussian": gaussian, "gaussian_sum": gaussian_sum}
"""name -> function(points, size, length in pixels, device)."""


def click_maps(
    clicks: Sequence[WindowClick], size: tuple[int, int], kind: str = "disk", radius_px: float = 3.0, device: torch.device | None = None
) -> Tensor:
    """(2, h, w): the map of the positive clicks, then that of the negative ones.

    ``radius_px`` is the length of the encoding ``kind`` in `GUIDANCE`: the radius, the truncation or σ.
    """
    encode = GUIDANCE[kind]
    by_sign = ([(c.row, c.col) for c in clicks if c.positive is sign] for sign in (True, False))
    return torch.stack([encode(points, size, radius_px, device) for points in by_sign])
