"""Where voxels lie: affines between voxel and world coordinates, and rectangles of pixels.

Words used here (and everywhere in this package):

- an *affine* is an (n+1, n+1) matrix that takes homogeneous voxel coordinates to homogeneous world coordinates; n is 2 or 3;
- both coordinates are ordered *slowest axis first*: voxels ``(z, y, x)``, world ``(S, A, R)``: superior, anterior, right;
- file formats order them *fastest first*: NIfTI's world is ``(R, A, S)`` ("RAS+"), that of ITK (NRRD, MetaImage) ``(L, P, S)``;
- a `Box` is half open: rows ``[top, bottom)``, columns ``[left, right)``.

Everything is a pure function; affines that come out are new float64 arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from operator import index

import numpy as np
import numpy.typing as npt

from napari_apprentice.types import Box

__all__ = [
    "PLACE_TOLERANCE_VOXELS",
    "affine_from_spacing",
    "clip",
    "grow",
    "intersection",
    "relative_to",
    "reverse_axes",
    "spaced",
    "spacing_of",
    "swap_lps_ras",
    "union",
    "voxel_to_world",
    "voxels_apart",
    "world_to_voxel",
]

PLACE_TOLERANCE_VOXELS = 0.05
"""Headers keep single-precision numbers; what is shifted by half a voxel on purpose is another grid."""

Affine = npt.NDArray[np.float64]


def voxel_to_world(points_voxel: npt.ArrayLike, affine: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """World coordinates of voxel coordinates.

    Parameters
    ----------
    points_voxel : (..., n) array-like, slowest axis first
    affine : (n+1, n+1) array-like, voxel -> world

    Returns
    -------
    (..., n) float64, slowest axis first, in the affine's unit

    Raises
    ------
    ValueError : the last axis of the points is not n

    Examples
    --------
    >>> affine = affine_from_spacing((5.0, 2.0), origin=(100.0, 0.0))
    >>> voxel_to_world([[0, 0], [1, 3]], affine).tolist()
    [[100.0, 0.0], [105.0, 6.0]]
    """
    matrix = np.asarray(affine, dtype=np.float64)
    points = np.asarray(points_voxel, dtype=np.float64)
    n = len(matrix) - 1
    if points.shape[-1:] != (n,):
        raise ValueError(f"points of shape {points.shape} arrived for an affine of {n} axes; expected (..., {n})")
    world: npt.NDArray[np.float64] = points @ matrix[:n, :n].T + matrix[:n, n]
    return world


def world_to_voxel(points_world: npt.ArrayLike, affine: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Voxel coordinates (not rounded) of world coordinates: the inverse of `voxel_to_world`.

    Parameters
    ----------
    points_world : (..., n) array-like, slowest axis first, in the affine's unit
    affine : (n+1, n+1) array-like, voxel -> world; invertible

    Returns
    -------
    (..., n) float64; whole numbers are voxel centres

    Examples
    --------
    >>> world_to_voxel([105.0, 7.0], affine_from_spacing((5.0, 2.0), origin=(100.0, 0.0))).tolist()
    [1.0, 3.5]
    """
    return voxel_to_world(points_world, np.linalg.inv(np.asarray(affine, dtype=np.float64)))


def voxels_apart(shape: Sequence[int], affine: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """How far a grid of voxels lies from another one of the same shape: the largest difference along an axis, in voxels of the other.

    Examples
    --------
    >>> voxels_apart((3, 3), affine_from_spacing((2.0, 1.0), origin=(4.0, 0.0)), affine_from_spacing((2.0, 1.0)))
    2.0
    """
    corners = list(product(*((0, size - 1) for size in shape)))
    return float(np.abs(world_to_voxel(voxel_to_world(corners, affine), other) - corners).max())


def affine_from_spacing(spacing: Sequence[float], origin: Sequence[float] | None = None) -> Affine:
    """The affine of an image without rotation.

    Parameters
    ----------
    spacing : n distances between neighbouring voxel centres, slowest axis first
    origin : n world coordinates of voxel 0; zeros if not given

    Returns
    -------
    (n+1, n+1) float64

    Examples
    --------
    >>> affine_from_spacing((5.0, 2.0), origin=(0.0, -1.0)).tolist()
    [[5.0, 0.0, 0.0], [0.0, 2.0, -1.0], [0.0, 0.0, 1.0]]
    """
    affine = np.diag([*map(float, spacing), 1.0])
    if origin is not None:
        affine[:-1, -1] = origin
    return affine


def spacing_of(affine: npt.ArrayLike) -> tuple[float, ...]:
    """Distance between neighbouring voxel centres along every voxel axis: the column lengths of the affine.

    Examples
    --------
    A quarter turn exchanges the axes, not the spacing that belongs to each voxel axis:

    >>> spacing_of([[0, -2, 0], [5, 0, 0], [0, 0, 1]])
    (5.0, 2.0)
    """
    matrix = np.asarray(affine, dtype=np.float64)
    return tuple(float(length) for length in np.linalg.norm(matrix[:-1, :-1], axis=0))


def spaced(spacing: Sequence[float]) -> str:
    """A spacing in words: "3 × 0.5 × 0.5"."""
    return " × ".join(f"{value:.4g}" for value in spacing)


def reverse_axes(affine: npt.ArrayLike) -> Affine:
    """The same affine with the order of voxel axes and of world axes reversed: fastest first <-> slowest first.

    Its own inverse.

    Examples
    --------
    NIfTI's (x, y, z) -> (R, A, S) becomes (z, y, x) -> (S, A, R):

    >>> ras = [[2, 0, 0, -7], [0, 3, 0, -8], [0, 0, 5, -9], [0, 0, 0, 1]]
    >>> reverse_axes(ras).tolist()
    [[5.0, 0.0, 0.0, -9.0], [0.0, 3.0, 0.0, -8.0], [0.0, 0.0, 2.0, -7.0], [0.0, 0.0, 0.0, 1.0]]
    """
    matrix = np.asarray(affine, dtype=np.float64)
    order = [*range(len(matrix) - 2, -1, -1), len(matrix) - 1]
    return matrix[np.ix_(order, order)]


def swap_lps_ras(affine: npt.ArrayLike) -> Affine:
    """World axes (S, P, L) <-> (S, A, R): what is between ITK and NIfTI, slowest axis first. Its own inverse.

    Parameters
    ----------
    affine : (4, 4) array-like, (z, y, x) -> (S, P, L) or (S, A, R)

    Examples
    --------
    >>> swap_lps_ras([[5, 0, 0, 1], [0, 3, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]]).tolist()
    [[5.0, 0.0, 0.0, 1.0], [0.0, -3.0, 0.0, -2.0], [0.0, 0.0, -2.0, -3.0], [0.0, 0.0, 0.0, 1.0]]
    """
    # Adding 0.0 turns -0.0 into 0.0, which would otherwise show up in headers and doctests.
    return np.diag([1.0, -1.0, -1.0, 1.0]) @ np.asarray(affine, dtype=np.float64) + 0.0


def union(first: Box, second: Box) -> Box:
    """The smallest box that holds both.

    Examples
    --------
    >>> union(Box(2, 2, 4, 5), Box(0, 3, 3, 9))
    Box(top=0, left=2, bottom=4, right=9)
    """
    return Box(
        min(first.top, second.top),
        min(first.left, second.left),
        max(first.bottom, second.bottom),
        max(first.right, second.right),
    )


def intersection(first: Box, second: Box) -> Box:
    """The part that both boxes hold; empty (but never inside out) if there is none.

    Examples
    --------
    >>> intersection(Box(2, 2, 4, 5), Box(0, 3, 3, 9))
    Box(top=2, left=3, bottom=3, right=5)
    >>> intersection(Box(0, 0, 2, 2), Box(5, 1, 7, 3)).shape
    (0, 1)
    """
    top, left = max(first.top, second.top), max(first.left, second.left)
    return Box(top, left, max(min(first.bottom, second.bottom), top), max(min(first.right, second.right), left))


def relative_to(box: Box, frame: Box) -> Box:
    """The same box in coordinates that start at the corner of another one: where it lies in an array that covers ``frame``.

    Examples
    --------
    >>> relative_to(Box(12, 7, 14, 9), Box(10, 5, 20, 15))
    Box(top=2, left=2, bottom=4, right=4)
    """
    return Box(box.top - frame.top, box.left - frame.left, box.bottom - frame.top, box.right - frame.left)


def clip(box: Box, shape: tuple[int, int]) -> Box:
    """The part of a box that lies inside a slice of shape ``(H, W)``; empty (but never inside out) if there is none.

    Examples
    --------
    >>> clip(Box(-3, 2, 4, 50), (10, 20))
    Box(top=0, left=2, bottom=4, right=20)
    >>> clip(Box(30, 2, 40, 5), (10, 20)).shape
    (0, 3)
    """
    height, width = shape
    top, bottom = (min(max(row, 0), height) for row in (box.top, box.bottom))
    left, right = (min(max(col, 0), width) for col in (box.left, box.right))
    return Box(top, left, bottom, right)


def grow(box: Box, margin: int | tuple[int, int]) -> Box:
    """The box with ``margin`` pixels (or ``(rows, cols)``) more on every side; it may reach beyond the slice (see `clip`).

    Examples
    --------
    >>> grow(Box(2, 2, 4, 5), (1, 3))
    Box(top=1, left=-1, bottom=5, right=8)
    """
    rows, cols = margin if isinstance(margin, tuple) else (index(margin), index(margin))
    return Box(box.top - rows, box.left - cols, box.bottom + rows, box.right + cols)
