"""The border of objects on a grid of voxels: surface in 3D, perimeter in 2D, by the formula of Cauchy and Crofton.

Lines along all 13 directions from a voxel to its neighbours (in 2D: 4) are laid through an object; how often they cross its border, times
the area that belongs to a line, tells the border's area. A direction counts as much as the share of all directions that are closer to it
than to any other one. On isotropic grids these are the figures of ITK; the shares here hold for other spacings and for shears, too.

Lehmann, Legland: Efficient N-dimensional surface estimation using Crofton formula and run-length encoding. Insight Journal, 2012.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import SphericalVoronoi

__all__ = ["border_per_crossing", "crossings", "half_of_the_neighbours"]

_MOST_STRETCHED = 1e6


def half_of_the_neighbours(n: int) -> npt.NDArray[np.int64]:
    """(D, n) steps to the neighbours of a voxel, one of every opposite pair; no step goes back along the first axis."""
    return np.array([step for step in product((-1, 0, 1), repeat=n) if step > (0,) * n])


def crossings(numbers: npt.NDArray[Any], k: int, directions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(K, D) how often one of two neighbours along a direction is in an object and the other is not.

    Parameters
    ----------
    numbers : (S) objects from 1 to ``k``, with a margin of zeros along all axes but the first: layers of a larger map, beginning with the
        last one of those before. Pairs between the first two layers count, those within the first were counted before
    directions : of `half_of_the_neighbours`
    """
    counts = np.zeros((k + 1, len(directions)), np.int64)
    for d, direction in enumerate(directions):
        block = numbers if direction[0] else numbers[1:]
        one, other = (
            block[tuple(slice(max(sign * step, 0), size + min(sign * step, 0)) for step, size in zip(direction, block.shape, strict=True))]
            for sign in (-1, 1)
        )
        differs = np.flatnonzero(one != other)
        for side in (one, other):
            counts[:, d] += np.bincount(side.ravel()[differs], minlength=k + 1)
    return counts[1:]


def border_per_crossing(directions: npt.NDArray[np.int64], linear: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(D) how much border one crossing along every direction stands for, on a grid with the (n, n) voxel -> world matrix ``linear``.

    Lines along a direction are so dense that volume of a voxel / length of a step belongs to each. Half their crossings times this is the
    area of the object's projection (for convex ones), and the border is 4 times (in 2D: pi times) the mean of that over all directions.
    """
    lengths = np.linalg.norm(directions @ linear.T, axis=1)
    steps = directions @ _blunted(linear).T
    shares = _shares(steps / np.linalg.norm(steps, axis=1, keepdims=True))
    factor = 4.0 if linear.shape[0] == 3 else math.pi
    borders: npt.NDArray[np.float64] = factor * shares * abs(np.linalg.det(linear)) / lengths / 2
    return borders


def _blunted(linear: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The same, or where it stretches one way a million times as much as another, one that does so no more than that.

    Directions would be too close to each other to be told apart; their shares are the same to six digits.
    """
    left, stretches, right = np.linalg.svd(linear)
    least = stretches[0] / _MOST_STRETCHED
    blunted: npt.NDArray[np.float64] = linear if stretches[-1] >= least else (left * np.maximum(stretches, least)) @ right
    return blunted


def _shares(units: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(D) share of all directions that are closer to each of (D, n) unit vectors, or to its opposite, than to any other. Their sum is 1."""
    both = np.concatenate([units, -units])
    if units.shape[1] == 3:
        shares = SphericalVoronoi(both, threshold=1e-9).calculate_areas() / (4 * math.pi)
    else:
        angles = np.arctan2(both[:, 0], both[:, 1])
        order = np.argsort(angles)
        gaps = np.diff(angles[order], append=angles[order[0]] + 2 * math.pi)
        shares = np.empty(len(both))
        shares[order] = (gaps + np.roll(gaps, 1)) / (4 * math.pi)
    merged: npt.NDArray[np.float64] = shares[: len(units)] + shares[len(units) :]
    return merged
