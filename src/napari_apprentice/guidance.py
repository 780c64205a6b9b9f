"""Click maps: how clicks enter a network. Each network's configuration names the encoding it was made for.

Clicks come in window pixels as real numbers ``(row, col)``, pixel centres at whole numbers; a map is float32 ``(h, w)`` in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["GUIDANCE", "WindowClick", "click_maps", "disk", "squared_distance"]


class WindowClick(NamedTuple):
    """A click in the pixels of a network's window."""

    row: float
    col: float
    positive: bool


def squared_distance(points: Sequence[tuple[float, float]], size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """(K, h, w) squared Euclidean distance in pixels from each of K points to every pixel centre."""
    height, width = size
    at = torch.tensor(points, dtype=torch.float32, device=device).reshape(-1, 2)
    rows = torch.arange(height, dtype=torch.float32, device=device)
    cols = torch.arange(width, dtype=torch.float32, device=device)
    return (rows[None, :] - at[:, :1]).square()[:, :, None] + (cols[None, :] - at[:, 1:]).square()[:, None, :]


def disk(points: Sequence[tuple[float, float]], size: tuple[int, int], radius_px: float, device: torch.device | None = None) -> Tensor:
    """(h, w): 1 within ``radius_px`` of any point (d² ≤ r²), else 0. Source: RITM (Sofiiuk et al., 2022)."""
    if not points:
        return torch.zeros(size, device=device)
    return (squared_distance(points, size, device) <= radius_px**2).any(0).float()


GUIDANCE: dict[str, Callable[..., Tensor]] = {"disk": disk}
"""name -> function(points, size, radius_px, device)."""


def click_maps(
    clicks: Sequence[WindowClick], size: tuple[int, int], kind: str = "disk", radius_px: float = 3.0, device: torch.device | None = None
) -> Tensor:
    """(2, h, w): the map of the positive clicks, then that of the negative ones."""
    encode = GUIDANCE[kind]
    by_sign = ([(c.row, c.col) for c in clicks if c.positive is sign] for sign in (True, False))
    return torch.stack([encode(points, size, radius_px, device) for points in by_sign])
