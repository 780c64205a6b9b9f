"""MetaImage (.mha, .mhd) and NRRD through SimpleITK, which orders axes fastest first and points world axes to L, P, S."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813

from napari_apprentice.files._content import Content, RefusedError, Source, chosen_time, details_of
from napari_apprentice.geometry import reverse_axes, spacing_of, swap_lps_ras
from napari_apprentice.types import Image


@dataclass(frozen=True)
class _Frame:
    """ITK's own words for where an image lies, fastest axis first."""

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]


def begins(head: bytes, path: Path) -> bool:
    """Whether these are the first bytes of a NRRD or MetaImage file."""
    return head.startswith(b"NRRD") if path.name.lower().endswith(".nrrd") else b"NDims" in head


def load(path: Path, time: int | None, *, exact: bool) -> Content:
    """Read a MetaImage or NRRD file."""
    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image)
    n_axes = image.GetDimension()
    if n_axes > 4:
        raise RefusedError(f"has {n_axes} axes, of shape {image.GetSize()}; expected (x, y), (x, y, z) or (x, y, z, time)")
    chosen = chosen_time(image.GetSize()[3] if n_axes == 4 else 1, time)
    if n_axes == 4:
        array = array[chosen]
    n = min(n_axes, 3)
    direction = np.reshape(image.GetDirection(), (n_axes, n_axes))[:n, :n]
    frame = _Frame(image.GetSpacing()[:n], image.GetOrigin()[:n], tuple(direction.ravel().tolist()))
    affine = _affine(frame)
    axes = "ZYX"[-n:] + ("S" if image.GetNumberOfComponentsPerPixel() > 1 else "")
    return Content(array, axes, affine, "mm", Source(affine, frame))


def save(path: Path, array: npt.NDArray[Any], image: Image, *, labels: bool) -> None:
    """Write (C, *S) data as MetaImage or NRRD."""
    if array.dtype == np.float16:
        raise RefusedError("cannot hold values of type float16; expected float32 or integers, or another format")
    grey = len(array) == 1
    written = sitk.GetImageFromArray(array[0] if grey else np.moveaxis(array, 0, -1), isVector=not grey)
    frame = details_of(image, _Frame) or _frame(image.affine)
    written.SetSpacing(frame.spacing)
    written.SetOrigin(frame.origin)
    written.SetDirection(frame.direction)
    sitk.WriteImage(written, str(path), useCompression=True)
    _check(path, array, _affine(frame))


def _check(path: Path, array: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> None:
    """Read back what was written, because ITK does not report a disk that fills up with the last bytes."""
    back = load(path, None, exact=True)
    values = back.array[None] if len(array) == 1 else np.moveaxis(back.array, -1, 0)
    same_values = np.array_equal(values, array, equal_nan=array.dtype.kind == "f")
    if not (same_values and np.allclose(back.affine, affine, rtol=1e-6, atol=1e-6 * max(spacing_of(affine)))):
        raise OSError("what was read back differs from what was written")


def _affine(frame: _Frame) -> npt.NDArray[np.float64]:
    """Voxel -> world, slowest axis first; (S, A, R) in 3D."""
    n = len(frame.spacing)
    affine = np.eye(n + 1)
    affine[:n, :n] = np.reshape(frame.direction, (n, n)) * frame.spacing
    affine[:n, n] = frame.origin
    return swap_lps_ras(reverse_axes(affine)) if n == 3 else reverse_axes(affine)


def _frame(affine: npt.NDArray[np.float64]) -> _Frame:
    """ITK's words for an affine: the inverse of `_affine`."""
    n = len(affine) - 1
    itk = reverse_axes(swap_lps_ras(affine) if n == 3 else affine)
    spacing = spacing_of(itk)
    direction = itk[:n, :n] / spacing
    return _Frame(spacing, tuple(itk[:n, n].tolist()), tuple(direction.ravel().tolist()))
