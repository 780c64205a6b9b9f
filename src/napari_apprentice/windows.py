"""Square windows of a slice at a network's working size: cut out, standardise, map clicks, paste back.

A window is a `Box` in slice pixels that may reach beyond the slice. Pixel centres lie at whole numbers in both frames, so the slice
coordinate ``x`` of a window that starts at ``left``, is ``side`` wide and is shown at ``size`` pixels, maps to
``(x + 0.5 - left) · size / side - 0.5`` (the convention of ``align_corners=False``; nothing shifts by half a pixel).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_apprentice.guidance import WindowClick
from napari_apprentice.types import Box, Click

__all__ = ["click_in_window", "cut", "inside", "paste", "paste_part", "seen_through", "square", "standardise"]


def square(centre: tuple[float, float], side: float) -> Box:
    """The square window of about ``side`` pixels about ``centre`` (row, col)."""
    whole = max(round(side), 1)
    top, left = round(centre[0] + 0.5 - whole / 2), round(centre[1] + 0.5 - whole / 2)
    return Box(top, left, top + whole, left + whole)


def inside(window: Box, shape: tuple[int, int]) -> Box:
    """The part of the window that lies in a slice of this shape."""
    return Box(max(window.top, 0), max(window.left, 0), min(window.bottom, shape[0]), min(window.right, shape[1]))


def cut(data: npt.NDArray[Any], window: Box, size: int, fill: float | None = None) -> Tensor:
    """(C, size, size) float32: the window of ``data`` (C, H, W), smoothed where it shrinks.

    Beyond the slice stands ``fill``, or the mean of the window's inner part; without ``fill``, values that float32 cannot tell apart are
    brought to 0..1. Work and memory follow ``size``, not the window: a window more than four times as large is thinned out before it is
    smoothed.
    """
    part = inside(window, (data.shape[1], data.shape[2]))
    side = window.bottom - window.top
    step = max(side // (4 * size), 1)
    values = np.ascontiguousarray(data[:, part.top : part.bottom : step, part.left : part.right : step])
    pixels = torch.from_numpy(values.astype(np.float32) if fill is not None or _fits(values) else _unit(values))
    pad = (part.left - window.left, window.right - part.right, part.top - window.top, window.bottom - part.bottom)
    if any(pad):
        pad = tuple(round(p / step) for p in pad)  # type: ignore[assignment]
        pixels = F.pad(pixels, pad, value=float(pixels.mean()) if fill is None else fill)
    shrinks = pixels.shape[-1] > size
    return F.interpolate(pixels[None], size=(size, size), mode="bilinear", align_corners=False, antialias=shrinks)[0]


def _fits(values: npt.NDArray[Any]) -> bool:
    """Whether float32 tells the values apart, and can add them up."""
    if values.dtype.itemsize <= 2:
        return True
    low, high = float(values.min()), float(values.max())
    largest = max(abs(low), abs(high))
    return largest < _LARGE and (high == low or high - low > max(_FINE * largest, 1 / _LARGE))


_LARGE, _FINE = 1e30, 1e-3
_ROUNDED = 1e-6  # of a value, by which resampling may miss it


def _unit(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The values brought to 0..1."""
    exact = values / (np.abs(values).max() or 1)
    low, high = exact.min(), exact.max()
    unit: npt.NDArray[np.float32] = ((exact - low) / (high - low or 1)).astype(np.float32)
    return unit


def standardise(pixels: Tensor) -> Tensor:
    """(3, h, w): clipped to the middle 99 %, zero mean and unit variance over all channels together; grey is repeated to three channels.

    Zeros where there is no contrast.
    """
    sample = pixels[:, ::3, ::3].flatten()
    low, high = torch.quantile(sample, torch.tensor([0.005, 0.995])).tolist()
    if high <= low:
        low, high = float(pixels.min()), float(pixels.max())
    if high - low <= _ROUNDED * max(abs(low), abs(high)):
        return torch.zeros_like(pixels).expand(3, -1, -1)
    # Brought to 0..1 first: neither the unit (diffusion in m²/s is about 1e-9) nor a large offset may cost precision.
    pixels = (pixels.clamp(low, high) - low) / ((high - low) or 1.0)
    pixels = (pixels - pixels.mean()) / pixels.std().clamp_min(1e-6)
    return pixels.expand(3, -1, -1) if pixels.shape[0] == 1 else pixels


def click_in_window(click: Click, window: Box, size: int) -> WindowClick:
    """A 2D click of the slice in the (real-valued) pixels of the window."""
    scale = size / (window.bottom - window.top)
    row, col = click.voxel
    return WindowClick((row + 0.5 - window.top) * scale - 0.5, (col + 0.5 - window.left) * scale - 0.5, click.positive)


def paste(values: Tensor, window: Box, shape: tuple[int, int]) -> tuple[npt.NDArray[np.float32], Box]:
    """``values`` (size, size) of a window brought back to slice pixels, and the box of the slice (shape (H, W)) that they cover."""
    part = inside(window, shape)
    full = F.interpolate(values[None, None], size=window.shape, mode="bilinear", align_corners=False)[0, 0]
    covered = full[part.top - window.top : part.bottom - window.top, part.left - window.left : part.right - window.left]
    return np.ascontiguousarray(covered.cpu().numpy(), dtype=np.float32), part


def paste_part(values: Tensor, window: Box, part: Box) -> npt.NDArray[np.float32]:
    """What `paste` says of ``part``, a box within the slice and the window, without the work for the rest."""
    (height, width), size = part.shape, values.shape[-1]
    side = window.bottom - window.top
    rows = (torch.arange(part.top, part.bottom, device=values.device) + 0.5 - window.top) * (2 / side) - 1
    cols = (torch.arange(part.left, part.right, device=values.device) + 0.5 - window.left) * (2 / side) - 1
    grid = torch.stack([cols.expand(height, width), rows[:, None].expand(height, width)], dim=-1)[None].to(values)
    found = F.grid_sample(values.reshape(1, 1, size, size), grid, padding_mode="border", align_corners=False)[0, 0]
    return np.ascontiguousarray(found.cpu().numpy(), dtype=np.float32)


def seen_through(values: Tensor, wide: Box, narrow: Box) -> Tensor:
    """The part of ``values`` (n, n), seen in the window ``wide``, that lies in ``narrow``, again (n, n)."""
    if wide == narrow:
        return values
    side = wide.bottom - wide.top
    zoom = (narrow.bottom - narrow.top) / side
    down, right = (narrow.top + narrow.bottom - wide.top - wide.bottom) / side, (narrow.left + narrow.right - wide.left - wide.right) / side
    grid = F.affine_grid(values.new_tensor([[[zoom, 0.0, right], [0.0, zoom, down]]]), [1, 1, *values.shape], align_corners=False)
    return F.grid_sample(values[None, None], grid, padding_mode="border", align_corners=False)[0, 0]
