"""Clicks as simulated users make them in training, in windows of the working size.

After RITM (Sofiiuk et al., 2022): first clicks at random, then corrections deep inside the larger error. Users who click carelessly,
anywhere in the largest error, are those of You Point, I Learn (2025), the robot `random` of `simulation`. Boxes are drawn as by the
robot `box`, only more carelessly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from napari_apprentice.boxes import beside, inscribed
from napari_apprentice.guidance import WindowClick
from napari_apprentice.shapes import bounding_box
from napari_apprentice.types import Box

__all__ = ["a_pixel", "bent", "careless_click", "clicks_on", "drawn_box", "first_clicks", "next_click"]

_BOX_ERROR = 0.1  # of the extent: the most by which a side of a box is off


def _depth(region: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Distance to the outside at half resolution (a quarter of the work; a draw among deep pixels needs no more); borders are outside."""
    rows, cols = region.shape[0] // 2, region.shape[1] // 2
    half = np.asarray(region[: 2 * rows, : 2 * cols].reshape(rows, 2, cols, 2).all(axis=(1, 3)))
    return np.asarray(ndimage.distance_transform_edt(np.pad(half, 1))[1:-1, 1:-1])


def a_pixel(rng: np.random.Generator, region: npt.NDArray[np.bool_], deep: float) -> tuple[float, float] | None:
    """A random pixel of the region whose depth exceeds ``deep`` times the largest; any pixel of a region too thin to have depth."""
    depth = _depth(region)
    if depth.max() > 0:
        rows, cols = np.nonzero(depth > deep * depth.max())
        i = int(rng.integers(len(rows)))
        return 2.0 * rows[i] + float(rng.integers(2)), 2.0 * cols[i] + float(rng.integers(2))
    rows, cols = np.nonzero(region)
    if len(rows) == 0:
        return None
    i = int(rng.integers(len(rows)))
    return float(rows[i]), float(cols[i])


def _count(rng: np.random.Generator, decay: float = 0.7, most: int = 12) -> int:
    """k with P(k) ∝ decay^k."""
    return int(min(rng.geometric(1 - decay) - 1, most))


def first_clicks(rng: np.random.Generator, target: npt.NDArray[np.bool_]) -> list[WindowClick]:
    """One positive click most of the time, else several of both signs (after RITM's initial clicks)."""
    clicks: list[WindowClick] = []
    at = a_pixel(rng, target, 0.7 if rng.random() < 0.6 else 0.15)
    if at is not None:
        clicks.append(WindowClick(*at, True))
    if rng.random() < 0.35:
        for _ in range(_count(rng)):
            if (at := a_pixel(rng, target, 0.1)) is not None:
                clicks.append(WindowClick(*at, True))
        near = ndimage.binary_dilation(target, iterations=8) & ~ndimage.binary_dilation(target, iterations=1)
        for _ in range(_count(rng)):
            if (at := a_pixel(rng, near if rng.random() < 0.5 else ~target, 0.0)) is not None:
                clicks.append(WindowClick(*at, False))
    return clicks


def drawn_box(rng: np.random.Generator, target: npt.NDArray[np.bool_]) -> tuple[list[WindowClick], npt.NDArray[np.float32]] | None:
    """What a network is told of a box around ``target`` (h, w): clicks beside it, and the probability (h, w) to correct.

    None where the target is nowhere, or reaches the border of the window: nobody sees where to draw the box.
    """
    if not target.any():
        return None
    tight, shape = bounding_box(target), target.shape
    if tight.top == 0 or tight.left == 0 or tight.bottom == shape[0] or tight.right == shape[1]:
        return None
    off = np.rint(rng.uniform(-_BOX_ERROR, _BOX_ERROR, 4) * (tight.shape * 2)).astype(int)
    top, left = max(tight.top + int(off[0]), 0), max(tight.left + int(off[1]), 0)
    box = Box(top, left, min(max(tight.bottom + int(off[2]), top + 1), shape[0]), min(max(tight.right + int(off[3]), left + 1), shape[1]))
    outline = inscribed(box, (shape[0], shape[1]))
    probability = np.zeros(shape, np.float32)
    probability[outline.box.slices] = 1 / (1 + np.exp(-outline.logits))
    clicks = [WindowClick(float(c.voxel[0]), float(c.voxel[1]), c.positive) for c in beside(box, (shape[0], shape[1]))]
    return clicks, probability


def next_click(
    rng: np.random.Generator, target: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_], deep: float = 0.5
) -> WindowClick | None:
    """A click deep inside the larger error (by inscribed circle); None if all is right."""
    missed, extra = target & ~mask, ~target & mask
    depth = _depth(missed).max(), _depth(extra).max()
    positive = bool(depth[0] > depth[1]) if max(depth) > 0 else bool(missed.sum() >= extra.sum())
    at = a_pixel(rng, missed if positive else extra, deep)
    return None if at is None else WindowClick(*at, positive)


def careless_click(rng: np.random.Generator, target: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_]) -> WindowClick | None:
    """A click anywhere in the largest 8-connected error, by area; None if all is right."""
    largest: tuple[int, npt.NDArray[np.bool_], bool] | None = None
    for error, positive in ((target & ~mask, True), (~target & mask, False)):
        parts, count = ndimage.label(error, np.ones((3, 3)))
        if count:
            areas = np.bincount(parts.ravel())[1:]
            if largest is None or areas.max() > largest[0]:
                largest = int(areas.max()), parts == areas.argmax() + 1, positive
    if largest is None:
        return None
    rows, cols = np.nonzero(largest[1])
    i = int(rng.integers(len(rows)))
    return WindowClick(float(rows[i]), float(cols[i]), largest[2])


def bent(rng: np.random.Generator, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """A mask (h, w) as it may come from the slice before or from elsewhere: shifted, grown or shrunk, and smoothly bent.

    The shifts are up to a fifth or so of its extent; a mask of which hardly anything would be left is returned as it is.
    """
    extent = float(np.sqrt(mask.sum()))
    amount = extent * float(np.exp(rng.uniform(np.log(0.06), np.log(0.35))))
    shape = mask.shape
    field = [ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), rng.uniform(0.06, 0.2) * shape[0]) for _ in range(3)]
    waves = [wave / (np.abs(wave).max() + 1e-9) for wave in field]
    rows, cols = np.indices(shape, dtype=np.float32)
    at = [axis + amount * (wave + rng.uniform(-0.6, 0.6)) for axis, wave in zip((rows, cols), waves, strict=False)]
    inside = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    moved = ndimage.map_coordinates(inside.astype(np.float32), at, order=1, mode="nearest")
    out = np.asarray(moved > amount * (0.7 * waves[2] + rng.uniform(-0.5, 0.5)))
    return out if (out & mask).sum() > 0.2 * mask.sum() else mask


def clicks_on(rng: np.random.Generator, truth: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_]) -> list[WindowClick]:
    """Clicks on a mask that was given: one in its middle most of the time, as if it were derived, and at times a correction."""
    clicks = []
    if (at := a_pixel(rng, mask, 0.9)) is not None and rng.random() < 0.8:
        clicks.append(WindowClick(*at, True))
    if (not clicks or rng.random() < 0.7) and (correction := next_click(rng, truth, mask)) is not None:
        clicks.append(correction)
    return clicks
