"""Where to click in a case, from one that somebody has accepted: its objects are looked for where they were, and by how they looked.

1. *Place*: both images are laid with their centres on each other, in the world (an RAS image fits an LPS one), and the example is
   brought into line by an affine transform that maximises the correlation of the grey values. That finds what lies in the same place
   in every case, such as an organ in scans of one protocol.
2. *Appearance*: what the example shows about each object is searched for by normalised cross-correlation (Lewis 1995), the nearer the
   better. That finds what stands out wherever it lies, such as an optic disc.

What comes of it is not taken for the object: it only says where to click, in the middle of it. Things that are many and alike (cells,
mitochondria) cannot be told from each other that way. Both images are looked at in a coarse copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from skimage.feature import match_template

from napari_apprentice.blocks import is_large
from napari_apprentice.shapes import deepest
from napari_apprentice.types import Click, Image, SessionError, finite

__all__ = ["Example", "Found", "find"]

Grey = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_SIDE = {2: 160, 3: 48}  # voxels of the coarse copy along its longest axis
_ALIKE = 2.0  # extents of comparable images differ by at most this factor
_AWAY = 0.5  # of the correlation, as far away as the image is wide
_MARGIN = 0.5  # of the object's extent, to every side, belongs to how it looks
_FEWEST = 3  # voxels of the coarse copy
_UNLIKE = 0.4  # correlation below which an object is doubted to be the right one
_SHARES = (0.25, 0.5, 0.75)  # of the slices of an object, which are clicked in


@dataclass(frozen=True, eq=False)
class Example:
    """A case that somebody accepted.

    Attributes
    ----------
    name : of the case
    image, labels : the image, and its (S) objects
    """

    name: str
    image: Image
    labels: Any


@dataclass(frozen=True)
class Found:
    """Where the objects of an example may lie in another image.

    Attributes
    ----------
    clicks : object and positive click, objects in ascending order
    example : name of the case that they are from
    likeness : correlation with the example about each object, -1 to 1
    warnings : one sentence each
    """

    clicks: tuple[tuple[int, Click], ...]
    example: str
    likeness: dict[int, float]
    warnings: tuple[str, ...] = ()


def find(image: Image, examples: Sequence[Example], axis: int = 0, *, in_all: bool = False) -> Found:
    """Look for the objects of accepted cases in an image, and take the example whose objects are found best.

    Parameters
    ----------
    examples : at least one
    axis : of volumes, the one that the slices to click in lie across
    in_all : click in all slices of an object, as far as the coarse copy has them, and not in three

    Raises
    ------
    SessionError : no example is comparable: another number of axes or unit, an extent that differs by more than a factor of 2, nothing
        labelled, or a volume that does not fit into memory
    """
    found, refused = [], []
    for example in examples:
        if reason := _incomparable(image, example):
            refused.append(f"{example.name}: {reason}")
        else:
            found.append(_find(image, example, axis if image.ndim == 3 else 0, in_all))
    if not found:
        raise SessionError(f"no accepted case says where to click in {image.name!r} ({'; '.join(refused)}); expected a click file for it")
    return max(found, key=lambda one: float(np.mean([*one.likeness.values()] or [-1.0])))


def _incomparable(image: Image, example: Example) -> str:
    """Why an example cannot be laid over an image; "" if it can."""
    other = example.image
    if other.ndim != image.ndim or other.units != image.units:
        return f"{other.ndim} axes in {other.units}, here {image.ndim} in {image.units}"
    if is_large(image.shape) or is_large(other.shape):
        return "too large to be laid over each other"
    ratios = _extent(image) / _extent(other)
    if ratios.max() > _ALIKE or ratios.min() < 1 / _ALIKE:
        return f"extents differ by a factor of {max(ratios.max(), 1 / ratios.min()):.1f}"
    return "" if np.any(example.labels) else "nothing is labelled"


def _extent(image: Image) -> npt.NDArray[np.float64]:
    """(n) how long the image is along the voxel axes, each in the place of the world axis that it lies nearest to."""
    spacing = np.array(image.spacing)
    _, nearest = linear_sum_assignment(np.abs(image.affine[:-1, :-1]) / spacing, maximize=True)
    lengths: npt.NDArray[np.float64] = (spacing * image.shape)[nearest]
    return lengths


def _find(image: Image, example: Example, axis: int, in_all: bool) -> Found:
    picture, step = _coarse(image)
    other, labels = _laid_over(image, step, picture.shape, example)
    spacing = [spacing * s for spacing, s in zip(image.spacing, step, strict=True)]
    other, labels = _aligned(picture, other, labels, spacing)
    clicks: list[tuple[int, Click]] = []
    likeness, warnings = {}, []
    for label in (int(i) for i in np.unique(example.labels) if i):
        mask = labels == label
        if mask.sum() < _FEWEST:
            warnings.append(f"object {label} of {example.name} is too small, or lies outside: nothing was clicked for it")
            continue
        mask, likeness[label] = _searched(picture, other, mask)
        if likeness[label] < _UNLIKE:
            warnings.append(f"object {label} was found with a likeness of {likeness[label]:.2f} to {example.name} only")
        clicks += [(label, click) for click in _clicks(mask, step, image.shape, axis, in_all)]
    return Found(tuple(clicks), example.name, likeness, tuple(warnings))


def _coarse(image: Image) -> tuple[Grey, tuple[int, ...]]:
    """A grey copy, means over blocks, and how many voxels a block has along every axis."""
    grey = _grey(image)
    step = tuple(max(1, math.ceil(size / _SIDE[image.ndim])) for size in image.shape)
    smooth = ndimage.uniform_filter(grey, step) if max(step) > 1 else grey
    return smooth[_middles(image.shape, step)], step


def _grey(image: Image) -> Grey:
    """(S) the mean of the channels, about 0: correlations by sums of squares in float32 are wrong far from there."""
    grey: npt.NDArray[np.float64] = finite(np.asarray(image.data)).mean(axis=0, dtype=np.float64)
    grey -= grey.mean()
    grey /= max(grey.max(), -grey.min()) or 1.0
    return grey.astype(np.float32)


def _middles(shape: Sequence[int], step: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(min(s // 2, size - 1), None, s) for size, s in zip(shape, step, strict=True))


def _laid_over(image: Image, step: tuple[int, ...], shape: tuple[int, ...], example: Example) -> tuple[Grey, npt.NDArray[Any]]:
    """Grey values and labels of the example on the coarse grid of the image, the centres of both on each other in the world."""
    n, other = image.ndim, example.image
    grey = _grey(other)
    matrix = np.linalg.solve(other.affine[:n, :n], image.affine[:n, :n])
    centre, own = (np.array(other.shape) - 1) / 2, (np.array(image.shape) - 1) / 2
    starts = np.array([side.start for side in _middles(image.shape, step)])
    onto, offset = matrix * np.array(step), centre + matrix @ (starts - own)
    width = np.abs(onto).sum(axis=1)
    smooth = ndimage.uniform_filter(grey, np.maximum(np.round(width), 1).astype(int).tolist())
    values = ndimage.affine_transform(smooth, onto, offset, shape, order=1, mode="nearest")
    labels = ndimage.affine_transform(np.asarray(example.labels), onto, offset, shape, order=0)
    return np.asarray(values, np.float32), labels


def _aligned(fixed: Grey, moving: Grey, labels: npt.NDArray[Any], spacing: Sequence[float]) -> tuple[Grey, npt.NDArray[Any]]:
    """The example after an affine transform onto the image; as it is where that does not make it more like the image."""
    pair = [_itk(array, spacing) for array in (fixed, moving)]
    start = SimpleITK.CenteredTransformInitializer(
        *pair, SimpleITK.AffineTransform(fixed.ndim), SimpleITK.CenteredTransformInitializerFilter.GEOMETRY
    )
    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsCorrelation()
    method.SetInterpolator(SimpleITK.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(min(spacing), 1e-3 * min(spacing), 60)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1, 0])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(False)
    method.SetNumberOfThreads(1)
    method.SetInitialTransform(start, inPlace=False)
    try:
        transform = method.Execute(*pair)
    except RuntimeError:  # nothing to go by: one of them is constant, or they came apart
        return moving, labels
    moved = np.asarray(
        SimpleITK.GetArrayFromImage(SimpleITK.Resample(pair[1], pair[0], transform, SimpleITK.sitkLinear, float(moving.mean())))
    )
    if _correlation(fixed, moved) <= _correlation(fixed, moving):
        return moving, labels
    ids, codes = np.unique(labels, return_inverse=True)
    coded = _itk(codes.reshape(labels.shape).astype(np.float32), spacing)
    carried = SimpleITK.GetArrayFromImage(SimpleITK.Resample(coded, pair[0], transform, SimpleITK.sitkNearestNeighbor, 0.0))
    return moved, ids[np.asarray(carried).astype(int)]


def _itk(array: npt.NDArray[Any], spacing: Sequence[float]) -> Any:
    image = SimpleITK.GetImageFromArray(np.asarray(array, np.float32))
    image.SetSpacing([float(s) for s in reversed(spacing)])
    return image


def _correlation(first: Grey, second: Grey) -> float:
    if first.std() == 0 or second.std() == 0:
        return -1.0
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def _searched(picture: Grey, other: Grey, mask: Mask) -> tuple[Mask, float]:
    """``mask`` moved to where the picture looks most as the other one does about it, and the correlation there."""
    inside = np.argwhere(mask)
    first, last = inside.min(axis=0), inside.max(axis=0) + 1
    extent = last - first
    margin = np.ceil(_MARGIN * extent).astype(int)
    low, high = np.maximum(first - margin, 0), np.minimum(last + margin, mask.shape)
    pattern = other[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    if pattern.std() == 0:
        return mask, 0.0
    alike = match_template(np.pad(picture, [(int(e), int(e)) for e in extent], mode="edge"), pattern)
    shifts = [np.arange(size) - low[a] - extent[a] for a, size in enumerate(alike.shape)]
    far = sum((s / size) ** 2 for s, size in zip(np.meshgrid(*shifts, indexing="ij", sparse=True), mask.shape, strict=True))
    best = np.unravel_index(int(np.argmax(alike - _AWAY * np.sqrt(far))), alike.shape)
    moved = inside + [shifts[a][i] for a, i in enumerate(best)]
    moved = moved[((moved >= 0) & (moved < mask.shape)).all(axis=1)]
    result = np.zeros_like(mask)
    result[tuple(moved.T)] = True
    return (result if len(moved) else mask), float(alike[best])


def _clicks(mask: Mask, step: tuple[int, ...], shape: tuple[int, ...], axis: int, in_all: bool) -> list[Click]:
    """A click in the middle of the mask: of a volume in three of its slices across ``axis``, in one if it is thin, or in all."""
    if mask.ndim == 2:
        return [Click(_voxel(deepest(mask), step, shape))]
    there = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
    shares = _SHARES if len(there) >= 5 else (0.5,)
    clicks = []
    chosen = there if in_all else there[[int(share * (len(there) - 1) + 0.5) for share in shares]]
    for index in dict.fromkeys(chosen.tolist()):
        row, col = deepest(np.take(mask, index, axis=axis))
        place = [row, col]
        place.insert(axis, index)
        clicks.append(Click(_voxel(tuple(place), step, shape), axis=axis))
    return clicks


def _voxel(place: tuple[int, ...], step: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The voxel in the middle of a block of the coarse copy."""
    return tuple(min(p * s + s // 2, size - 1) for p, s, size in zip(place, step, shape, strict=True))
