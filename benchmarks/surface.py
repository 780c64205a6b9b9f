"""How far surfaces are from the truth: `napari_apprentice.measure`, ITK, and marching cubes. Prints the table of docs/measuring.md.

    python benchmarks/surface.py

Ellipsoids and boxes of known surface, in random position, on grids whose slices lie 1 to 10 pixels apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813
from scipy.spatial.transform import Rotation
from skimage.measure import marching_cubes, mesh_surface_area

from napari_apprentice.geometry import affine_from_spacing
from napari_apprentice.measure import measure
from napari_apprentice.report import table
from napari_apprentice.types import Image

SHAPES = 50
"""Ellipsoids, and as many boxes, for every distance of slices."""

Mask = npt.NDArray[np.bool_]
Spacing = tuple[float, float, float]


def main() -> None:
    """Measure and print."""
    rng = np.random.default_rng(0)
    lines = []
    for distance in (1, 2, 3, 5, 10):
        spacing = (float(distance), 1.0, 1.0)
        errors = np.array([[how(mask, spacing) / truth - 1 for how in (here, itk, mesh)] for mask, truth in shapes(rng, spacing)])
        rms, largest = np.sqrt((errors**2).mean(axis=0)), np.abs(errors).max(axis=0)
        cells = [f"{100 * r:.1f} % ({100 * most:.1f})" for r, most in zip(rms, largest, strict=True)]
        lines.append({"distance of slices : pixels": str(distance), **dict(zip(("here", "ITK", "marching cubes"), cells, strict=True))})
    print(table(lines))


def shapes(rng: np.random.Generator, spacing: Spacing) -> Iterator[tuple[Mask, float]]:
    """Masks on a grid, and the true surfaces."""
    half = [math.ceil(55 / length) for length in spacing]
    for number in range(2 * SHAPES):
        ranges = [np.arange(-size, size + 1) + shift for size, shift in zip(half, rng.uniform(-0.5, 0.5, 3), strict=True)]
        grid = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1) * spacing
        points = grid @ Rotation.from_quat(rng.normal(size=4)).as_matrix()  # any direction as likely as any other
        axes = np.array([30.0, 15.0, 20.0]) * rng.uniform(0.7, 1.3, 3)
        if number < SHAPES:
            yield ((points / axes) ** 2).sum(axis=-1) <= 1, ellipsoid_surface(axes)
        else:
            a, b, c = axes = axes * 0.8
            yield (np.abs(points) <= axes).all(axis=-1), 8 * (a * b + b * c + a * c)


def ellipsoid_surface(axes: npt.NDArray[np.float64], steps: int = 1000) -> float:
    """By summing over polar angles, to six digits."""
    a, b, c = axes
    u, v = np.meshgrid((np.arange(steps) + 0.5) / steps * math.pi, (np.arange(steps) + 0.5) / steps * 2 * math.pi, indexing="ij")
    normal = [b * c * np.sin(u) ** 2 * np.cos(v), a * c * np.sin(u) ** 2 * np.sin(v), a * b * np.sin(u) * np.cos(u)]
    return float(np.linalg.norm(normal, axis=0).sum() * (math.pi / steps) * (2 * math.pi / steps))


def here(mask: Mask, spacing: Spacing) -> float:
    """What this package says."""
    return measure(mask, Image(np.broadcast_to(np.uint8(0), (1, *mask.shape)), affine_from_spacing(spacing)))[0].border


def itk(mask: Mask, spacing: Spacing) -> float:
    """What ITK says."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing[::-1])
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(image)
    return float(shapes.GetPerimeter(1))


def mesh(mask: Mask, spacing: Spacing) -> float:
    """What the triangles of marching cubes add up to."""
    vertices, faces, *_ = marching_cubes(np.pad(mask, 1).astype(float), 0.5, spacing=spacing)
    return float(mesh_surface_area(vertices, faces))


if __name__ == "__main__":
    main()
