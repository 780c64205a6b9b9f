"""The geometry of masks: distances, shapes in between, pieces, overlaps. Pure functions of (H, W) arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from napari_apprentice.types import Box

__all__ = ["between", "bounding_box", "deepest", "large_pieces", "overlap", "signed_distance", "standing_out"]

Mask = npt.NDArray[np.bool_]


def signed_distance(mask: Mask, spacing: tuple[float, float] = (1.0, 1.0)) -> npt.NDArray[np.float32]:
    """(H, W) distance to the contour, which lies midway between pixels: positive inside. ``mask`` holds at least one pixel."""
    inside = _to_edge(np.pad(mask, 1), spacing)[1:-1, 1:-1]
    return np.asarray(np.where(mask, inside, -_to_edge(~mask, spacing)), np.float32)


def _to_edge(away: Mask, spacing: tuple[float, float]) -> npt.NDArray[np.float64]:
    """(H, W) distance to the edge of the nearest pixel that is not ``away``, as if it were an ellipse (a disk, where it is square)."""
    if spacing[0] == spacing[1]:
        return np.asarray(ndimage.distance_transform_edt(away, sampling=spacing) - spacing[0] / 2)
    distance, nearest = ndimage.distance_transform_edt(away, sampling=spacing, return_indices=True)
    pixels = np.hypot(*(nearest - np.indices(away.shape)))
    return np.asarray(distance * (1 - 0.5 / np.maximum(pixels, 1)))


def between(first: Mask, last: Mask, share: float, spacing: tuple[float, float] = (1.0, 1.0)) -> npt.NDArray[np.float32]:
    """(H, W) distance to the contour ``share`` of the way from ``first`` to ``last``, positive inside (Raya & Udupa 1990)."""
    return (1 - share) * signed_distance(first, spacing) + share * signed_distance(last, spacing)


def bounding_box(mask: Mask) -> Box:
    """The smallest box that holds ``mask`` (H, W), which is not empty."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return Box(int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1)


def deepest(mask: Mask) -> tuple[int, int]:
    """The first (row, col) in raster order that lies deepest inside ``mask``, the border of the array being an edge."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, col = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(row), int(col)


def large_pieces(mask: Mask, share: float) -> tuple[Mask, int]:
    """The pieces of at least a share of the largest one's size, and how many they are; pixels that touch at a corner hang together."""
    pieces, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    large = sizes >= max(share * sizes.max(), 1)
    return large[pieces], int(large.sum())


def overlap(first: Mask, second: Mask) -> float:
    """IoU; 1 where both are empty."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def standing_out(picture: npt.NDArray[np.floating[Any]], mask: Mask) -> float:
    """How far the (H, W) values inside ``mask`` lie above those around it, in their standard deviations; negative if below.

    The two pixels next to the contour do not count as outside; 0 where there is no outside.
    """
    outside = ~ndimage.binary_dilation(mask, iterations=2)
    if not mask.any() or not outside.any():
        return 0.0
    within, without = picture[mask], picture[outside]
    return float((within.mean() - without.mean()) / (within.std() + without.std() + 1e-6))
