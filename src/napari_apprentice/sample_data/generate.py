"""Generate the sample data of this folder, always the same: ``python generate.py [FOLDER]``.

Three images with known truths: a stack that looks like serial-section electron microscopy, one that looks like a fundus photograph, and
a volume that looks like an MRI of a head in thick oblique slices. Nothing in them comes from a real image.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from napari_apprentice.files import labels_path, save_image, write
from napari_apprentice.geometry import affine_from_spacing
from napari_apprentice.types import Image

Field = npt.NDArray[np.float64]
Labels = npt.NDArray[np.uint8]


def main(folder: Path) -> None:
    """Write every image and its labels into ``folder``."""
    stack, organelles = em_stack(np.random.default_rng(7))
    _save(folder / "em_stack.ome.tif", stack[None], affine_from_spacing((40e-6, 8e-6, 8e-6)), "mm", organelles)
    photograph, disc = fundus(np.random.default_rng(3))
    _save(folder / "fundus.png", photograph, np.eye(3), "pixel", disc)
    volume, lesions = head(np.random.default_rng(5))
    _save(folder / "head.nii.gz", volume[None], _oblique((5.0, 1.0, 1.0), (-14.0, 9.0, 6.0), volume.shape), "mm", lesions)


def _save(path: Path, data: npt.NDArray[Any], affine: Field, units: str, labels: Labels) -> None:
    image = Image(data, affine, units, path=path)
    save_image(path, image)
    write(labels_path(image), labels, like=image)


def _oblique(spacing: Sequence[float], degrees: Sequence[float], shape: Sequence[int]) -> Field:
    """An affine turned about the three world axes, with the middle of the volume at the origin."""
    turn = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = (k for k in range(3) if k != axis)
        step = np.eye(3)
        step[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turn = turn @ step
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def _noise(rng: np.random.Generator, shape: Sequence[int], sigma: float | Sequence[float]) -> Field:
    """Smooth noise of mean 0 and variance 1."""
    noise = ndimage.gaussian_filter(rng.standard_normal(tuple(shape)), sigma, mode="wrap")
    smooth: Field = (noise - noise.mean()) / noise.std()
    return smooth


def _ramp(distance: Field, width: float) -> Field:
    """1 inside (negative distance), 0 outside, with a soft edge of ``width``."""
    return np.clip(0.5 - distance / width, 0.0, 1.0)


# ------------------------------------------------------------------------------------------------------------- electron microscopy


def em_stack(rng: np.random.Generator, shape: tuple[int, int, int] = (12, 192, 192)) -> tuple[Labels, Labels]:
    """Neurites with mitochondria and vesicles, 40 x 8 x 8 nm: (Z, Y, X) intensities and instances."""
    z, y, x = np.meshgrid(*(np.arange(n, dtype=float) for n in shape), indexing="ij")
    warp = [_noise(rng, shape, (2.5, 14, 14)) * 7 + _noise(rng, shape, (1.5, 5, 5)) * 1.5 for _ in range(2)]
    where = np.stack([z * 5, y + warp[0], x + warp[1]])  # in pixels of 8 nm
    cell, gap = _cells(rng, where, shape)
    tone = rng.uniform(-14, 12, cell.max() + 1)
    grey = (
        172 + ndimage.gaussian_filter(tone[cell], (0, 1, 1)) + 7 * _noise(rng, shape, (0.4, 2.2, 2.2)) + 5 * _noise(rng, shape, (0.4, 1, 1))
    )
    organelles = np.zeros(shape, np.uint8)
    for number, (centre, axes, angle) in enumerate(_MITOCHONDRIA, start=1):
        grey = _mitochondrion(rng, where, grey, organelles, number, centre, axes, angle)
    for number, (centre, radius) in enumerate(_ENDOSOMES, start=len(_MITOCHONDRIA) + 1):
        roundish = (z * 5, y + 0.25 * warp[0], x + 0.25 * warp[1])
        grey = _vesicle(roundish, grey, organelles, number, centre, radius)
    _synaptic_vesicles(rng, grey, organelles, cell, gap)
    membrane = np.exp(-((np.abs(gap) - 2.6) ** 2) / 2.2)
    grey = np.where(organelles > 0, grey, grey * (1 - 0.62 * membrane) - 8 * (gap < 1.2))
    return _micrograph(rng, grey), organelles


# (z, y, x) centre in pixels of 8 nm, half axes (z, long, short) in the same, angle in the slice in degrees.
_MITOCHONDRIA = (
    ((22.0, 58.0, 52.0), (30.0, 40.0, 21.0), 35.0),
    ((38.0, 132.0, 92.0), (24.0, 33.0, 22.0), -25.0),
    ((14.0, 60.0, 146.0), (26.0, 25.0, 20.0), 80.0),
    ((36.0, 150.0, 162.0), (22.0, 24.0, 15.0), 10.0),
)
_ENDOSOMES = (((32.0, 68.0, 102.0), 11.0), ((16.0, 160.0, 36.0), 12.0), ((44.0, 32.0, 164.0), 13.0))


def _cells(rng: np.random.Generator, where: Field, shape: tuple[int, int, int]) -> tuple[npt.NDArray[np.intp], Field]:
    """Voronoi cells around lines that run through the stack, and the distance of every voxel from the next cell."""
    starts = np.stack([rng.uniform(-20, n + 20, 26) for n in shape[1:]], axis=1)
    drift = rng.normal(0, 0.35, starts.shape)
    distances = np.stack(
        [np.hypot(where[1] - y - dy * where[0], where[2] - x - dx * where[0]) for (y, x), (dy, dx) in zip(starts, drift, strict=True)]
    )
    nearest = np.argsort(distances, axis=0)[:2]
    first, second = np.take_along_axis(distances, nearest, axis=0)
    return nearest[0], (second - first) / 2


def _mitochondrion(
    rng: np.random.Generator, where: Field, grey: Field, organelles: Labels, number: int,
    centre: Sequence[float], axes: Sequence[float], angle: float,
) -> Field:  # fmt: skip
    """Paint a body with a double membrane and cristae."""
    z, y, x = (w - c for w, c in zip(where, centre, strict=True))
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    along, across = cos * x + sin * y, cos * y - sin * x
    across = across + along**2 / 260
    radius = np.sqrt((z / axes[0]) ** 2 + (along / axes[1]) ** 2 + (across / axes[2]) ** 2)
    inward = (1 - radius) * min(axes[1:])  # about the distance from the outer membrane, in pixels
    body = inward > 0
    folds = np.sin(along * 0.62 + 1.3 * _noise(rng, body.shape, (1.2, 9, 9)) * 1.6)
    reach = _noise(rng, body.shape, (1.2, 6, 6)) > -0.65
    cristae = np.clip((folds - 0.25) * 1.6, 0, 1) * reach * (inward > 4)
    matrix = 128 + 6 * _noise(rng, body.shape, (0.5, 1.5, 1.5)) - 48 * cristae
    membranes = np.exp(-((inward - 1.2) ** 2) / 1.3) + 0.75 * np.exp(-((inward - 4.6) ** 2) / 1.1)
    organelles[body] = number
    painted: Field = np.where(body, matrix - 75 * np.clip(membranes, 0, 1), grey)
    return painted


def _vesicle(where: Sequence[Field], grey: Field, organelles: Labels, number: int, centre: Sequence[float], radius: float) -> Field:
    """Paint a pale ball with one dark membrane."""
    inward = radius - np.sqrt(sum((w - c) ** 2 for w, c in zip(where, centre, strict=True)))
    body = (inward > 0) & (organelles == 0)
    organelles[body] = number
    painted: Field = np.where(body, 188 - 115 * np.exp(-((inward - 1.3) ** 2) / 1.6), grey)
    return painted


def _synaptic_vesicles(rng: np.random.Generator, grey: Field, organelles: Labels, cell: npt.NDArray[np.intp], gap: Field) -> None:
    """Paint clusters of small rings, 40 nm across: texture, not objects."""
    depth, height, width = grey.shape
    rows, cols = np.mgrid[-5:6, -5:6]
    for index in range(depth):
        free = ndimage.binary_erosion((organelles[index] == 0) & (gap[index] > 6), iterations=3)
        hosts = np.isin(cell[index], _HOST_CELLS)
        spots = np.argwhere(free & hosts)
        for row, col in rng.permutation(spots)[: len(spots) // 42]:
            if not (5 <= row < height - 5 and 5 <= col < width - 5):
                continue
            distance = np.hypot(rows + rng.uniform(-0.5, 0.5), cols + rng.uniform(-0.5, 0.5))
            window = grey[index, row - 5 : row + 6, col - 5 : col + 6]
            window -= rng.uniform(40, 70) * np.exp(-((distance - 2.5) ** 2) / 0.8)


_HOST_CELLS = (2, 5, 9, 13, 17, 21)


def _micrograph(rng: np.random.Generator, grey: Field) -> Labels:
    """What the microscope makes of it: blur, shot noise, sections of unequal brightness."""
    grey = ndimage.gaussian_filter(grey, (0.25, 0.75, 0.75))
    grey = grey * (1 + 0.04 * rng.standard_normal((len(grey), 1, 1))) + 6 * _noise(rng, grey.shape, (0.5, 50, 50))
    grey = grey + 5 * rng.standard_normal(grey.shape)
    return np.clip(np.round(grey), 0, 255).astype(np.uint8)


# --------------------------------------------------------------------------------------------------------------------------- fundus


def fundus(rng: np.random.Generator, size: int = 256) -> tuple[Labels, Labels]:
    """A retina with optic disc and cup: (3, H, W) colours, and 1 = rim of the disc, 2 = cup."""
    y, x = np.mgrid[:size, :size] * (256 / size)
    disc_y, disc_x, macula_y, macula_x = 124.0, 176.0, 132.0, 92.0
    wobble = _noise(rng, (size, size), 14) * 0.035
    disc = np.hypot((x - disc_x) / 25, (y - disc_y) / 29) + wobble
    cup = np.hypot((x - disc_x + 3) / 12.5, (y - disc_y - 1) / 14.5) + 2 * wobble
    labels = (disc < 1).astype(np.uint8) + ((cup < 1) & (disc < 1))
    light = 0.92 - 0.36 * (np.hypot(x - 138, y - 122) / 125) ** 2 + 0.03 * _noise(rng, (size, size), 28)
    macula = np.exp(-(((x - macula_x) ** 2 + (y - macula_y) ** 2) / (2 * 15**2)))
    choroid = 0.035 * _noise(rng, (size, size), 3.5) + 0.045 * _noise(rng, (size, size), (9, 5))
    retina = np.stack([205 * light, 98 * light, 47 * light]) * (1 + choroid * np.array([0.4, 1.0, 0.8])[:, None, None])
    retina *= 1 - macula * np.array([0.22, 0.42, 0.4])[:, None, None]
    on_disc, on_cup = _ramp(disc - 1, 0.24), _ramp(cup - 1, 0.55)
    halo = np.exp(-np.clip(disc - 1, 0, None) * 4) * 0.16
    retina += halo * np.array([60, 60, 25])[:, None, None]
    for cover, colour in ((on_disc, (228, 160, 92)), (on_cup, (246, 214, 158))):
        retina = retina * (1 - 0.93 * cover) + 0.93 * cover * np.array(colour)[:, None, None]
    retina *= 1 - _vessels(rng, size, (disc_y, disc_x))[None] * np.array([0.34, 0.6, 0.5])[:, None, None]
    retina = ndimage.gaussian_filter(retina, (0, 0.6, 0.6)) + rng.normal(0, 2, retina.shape)
    aperture = _ramp(np.hypot(x - 128, y - 128) - 121, 3)
    return np.clip(np.round(retina * aperture + 3), 0, 255).astype(np.uint8), labels


def _vessels(rng: np.random.Generator, size: int, disc: tuple[float, float]) -> Field:
    """(H, W) darkness of arcades that leave the disc above and below the macula, and of their branches."""
    darkness = np.zeros((size, size))
    for up in (-1, 1):
        for start, bend, width, depth in ((0.0, 0.0125, 3.9, 0.85), (5.0, 0.0095, 2.9, 0.6)):
            _grow(rng, darkness, (disc[0], disc[1] - 5 + start), up * 100, up * bend, width, depth)
        _grow(rng, darkness, (disc[0], disc[1] + 3), up * 48, up * 0.003, 2.8, 0.7)
        _grow(rng, darkness, (disc[0], disc[1] + 1), up * 22, up * 0.001, 1.8, 0.5)
        _grow(rng, darkness, (disc[0] + up * 8, disc[1] - 8), up * 165, up * 0.002, 1.5, 0.5)
    smooth: Field = ndimage.gaussian_filter(np.clip(darkness, 0, 1), 0.5)
    return smooth


def _grow(
    rng: np.random.Generator, darkness: Field, start: tuple[float, float], degrees: float, bend: float, width: float, depth: float,
    generation: int = 0,
) -> None:  # fmt: skip
    """Draw one vessel as a walk that bends; branches leave at both sides."""
    (y, x), heading = start, np.deg2rad(degrees)
    size = len(darkness)
    rows, cols = np.mgrid[:size, :size] * (256 / size)
    for step in range(220):
        heading += bend * (1 if step > 18 else 0.2) + rng.normal(0, 0.045)
        y, x = y + np.sin(heading) * 1.2, x + np.cos(heading) * 1.2
        width = width * 0.9955
        if width < 0.55 or not (0 <= y < 256 and 0 <= x < 256):
            return
        r0, c0 = max(int(y) - 6, 0), max(int(x) - 6, 0)
        window = np.s_[r0 : r0 + 13, c0 : c0 + 13]
        profile = depth * np.exp(-((np.hypot(rows[window] - y, cols[window] - x) / (0.55 * width)) ** 2))
        np.maximum(darkness[window], profile, out=darkness[window])
        if step > 20 and generation < 3 and rng.random() < 0.05:
            side = rng.choice((-1, 1))
            turned = np.rad2deg(heading) + side * rng.uniform(28, 55)
            _grow(rng, darkness, (y, x), turned, -side * rng.uniform(0, 0.006), width * 0.68, depth * 0.85, generation + 1)


# ----------------------------------------------------------------------------------------------------------------------------- head


def head(rng: np.random.Generator, shape: tuple[int, int, int] = (14, 96, 96)) -> tuple[npt.NDArray[np.int16], Labels]:
    """FLAIR-like slices of 5 mm: (Z, Y, X) intensities, and 1 = ventricles, 2 and above = one lesion each."""
    z, y, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    z = z * 5 + 6  # millimetres, the widest part of the head below the middle of the volume
    skin = (np.sqrt((x / 40) ** 2 + (y / 46) ** 2 + (z / 62) ** 2) - 1) * 40 + _noise(rng, shape, (2, 12, 12)) * 0.5
    brain = skin + 8
    ventricles = _ventricles(rng, x, y, z)
    sulcus = _sulci(rng, x, -brain)
    cortex = np.minimum(-brain, sulcus - 0.6)  # about the distance from the fluid around the brain, in mm
    flair = 20 + 235 * _ramp(skin, 1.6) * _ramp(-skin - 3.0, 1.2)
    flair += 60 * _ramp(skin + 4.2, 1) - 40 * _ramp(skin + 6.4, 1)
    tissue = 330 + 85 * _ramp(cortex - 3.1, 2.0) + 9 * _noise(rng, shape, (0.7, 1.5, 1.5))
    deep = _ramp(np.hypot((np.abs(x) - 13) / 4.5, (y - 1) / 9) * 5 - 5, 2) * _ramp(np.abs(z - 2) - 11, 4)
    tissue += 60 * deep
    tissue += (95 - tissue) * _ramp(sulcus - 0.6, 1.1) * 0.85
    tissue += 40 * np.exp(-(np.clip(ventricles, 0, None) ** 2) / 4)
    tissue += (70 - tissue) * _ramp(ventricles, 1.2)
    labels = (ventricles < 0).astype(np.uint8)
    for number, (centre, radius) in enumerate(_LESIONS, start=2):
        ragged = (
            np.sqrt(sum((a - c) ** 2 for a, c in zip((z * 0.8, y, x), centre, strict=True)))
            + 1.1 * _noise(rng, shape, (0.8, 2, 2))
            - radius
        )
        tissue += np.where(ventricles > 0, 175 * _ramp(ragged, 1.8), 0)
        labels[(ragged < 0) & (labels == 0)] = number
    inside = _ramp(brain, 1.2)
    flair = flair * (1 - inside) + tissue * inside
    return _receive(rng, flair, skin), labels


# (z, y, x) centre in millimetres, z times 0.8, and radius in millimetres.
_LESIONS = (((8.0, -15.0, 15.0), 5.0), ((2.0, 19.0, -16.0), 6.0), ((16.0, 4.0, 20.0), 3.6), ((-8.0, 16.0, 18.0), 4.2))


def _ventricles(rng: np.random.Generator, x: Field, y: Field, z: Field) -> Field:
    """About the signed distance from the surface of the lateral ventricles, in mm; negative inside."""
    side = np.abs(x + 0.4 * _noise(rng, x.shape, (3, 8, 8)))
    along = (y - 1) / 21
    bow = 4.6 + 2.2 * along**2 + np.where(along > 0, 4.5, 1.5) * along**2
    half = 2.5 + 1.3 * along**2
    distance: Field = (np.sqrt(along**6 + ((side - bow) / half) ** 2 + ((z - 6) / 15) ** 2) - 1) * half
    return distance + 0.25 * _noise(rng, x.shape, (1, 3, 3))


def _sulci(rng: np.random.Generator, x: Field, depth: Field) -> Field:
    """About the distance in mm from the nearest fold: winding lines where smooth noise is zero, only as deep as folds go, and the falx."""
    noise = _noise(rng, x.shape, (1.5, 4.2, 4.2)) + 0.25 * _noise(rng, x.shape, (0.8, 2.0, 2.0))
    slope = np.hypot(*np.gradient(noise, axis=(1, 2)))
    reach = 9 + 3.5 * _noise(rng, x.shape, (2, 7, 7))
    folds = np.abs(noise) / (slope + 0.04) + 1.5 * np.clip(depth - reach, 0, None)
    falx = np.abs(x + 0.6 * _noise(rng, x.shape, (3, 9, 9))) + np.clip(depth - 15, 0, None)
    nearest: Field = np.minimum(folds, falx)
    return nearest


def _receive(rng: np.random.Generator, signal: Field, skin: Field) -> npt.NDArray[np.int16]:
    """What the scanner makes of it: thick slices, coil shading, Rician noise."""
    signal = ndimage.gaussian_filter(signal, (0.35, 0.55, 0.55)) * (1 + 0.08 * _noise(rng, signal.shape, (6, 40, 40)))
    signal = np.where(skin > 2, 8.0, signal)
    noisy = np.hypot(signal + rng.normal(0, 9, signal.shape), rng.normal(0, 9, signal.shape))
    return np.round(noisy / 8).astype(np.int16) * 8


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
