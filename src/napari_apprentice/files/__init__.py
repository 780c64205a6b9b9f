"""Images and label maps on disk, with their geometry: NIfTI, TIFF and OME-TIFF, MetaImage, NRRD, PNG, JPEG.

What every format becomes (`read`), and what a label map becomes in every format (`write`):

===============  ==================================  ===========================================================================
extensions       axes on disk                        geometry
===============  ==================================  ===========================================================================
.nii .nii.gz     x, y[, z[, t]]; grey, RGB           full affine, any orientation; units converted to mm ("unknown" counts as mm)
.mha .mhd .nrrd  x, y[, z[, t]]; grey, RGB           full affine (LPS converted to RAS); mm
.tif .ome.tif    [T, Z,] Y, X; grey, RGB, 3 channels  spacing of OME, ImageJ or resolution tags; no rotation, no origin
.png             Y, X; grey, RGB, palette            spacing of the pHYs chunk, in whole pixels per metre
.jpg             Y, X; grey, RGB                     none (its density says how to print it)
===============  ==================================  ===========================================================================

- Voxels keep the order in which they are stored: nothing is resampled, flipped or rotated; `Image.affine` says where they lie.
- A label map written in the image's own format gets the image's own geometry, field for field; in another format the geometry is
  converted. TIFF keeps of it the spacing only, PNG the spacing of a 2D image.
- A NIfTI file with one z slice stays a volume of one slice; one that declares two axes is a 2D image. TIFF cannot tell a volume of one
  slice from a 2D image: it is read as 2D. The world axes of a 2D image are those of the file, without anatomical names.
- Alpha is dropped. A fourth axis of length one is dropped; a longer one is a series, of which ``time=`` chooses one.
- A density that is usual for screens and print (72, 96, 300 dots per inch and the like) is what programs write when nobody measured
  anything: it is copied to the label map, but not taken for a spacing.

Writing is atomic: the old file stays whole until the new one is complete on the disk.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_apprentice.files._content import Content, RefusedError, channels_first
from napari_apprentice.types import FileError, Image, ImageError, LabelsError, ReadError, WriteError

__all__ = ["READABLE", "WRITABLE", "labels_path", "read", "read_labels", "save_image", "write"]

LabelArray = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class _Format:
    """One row of the table above."""

    name: str
    module: str

    @property
    def codec(self) -> ModuleType:
        """The module that reads and writes it, imported when the first such file is met (some libraries are slow to import)."""
        return importlib.import_module(f"{__name__}.{self.module}")


_NIFTI = _Format("NIfTI", "_nifti")
_TIFF = _Format("TIFF", "_tiff")
_META = _Format("MetaImage", "_itk")
_NRRD = _Format("NRRD", "_itk")
_PNG = _Format("PNG", "_picture")
_JPEG = _Format("JPEG", "_picture")

# The longest extension that fits decides, so ".nii.gz" and ".ome.tif" stand before their own endings.
_FORMATS = {
    ".nii.gz": _NIFTI,
    ".nii": _NIFTI,
    ".ome.tiff": _TIFF,
    ".ome.tif": _TIFF,
    ".tiff": _TIFF,
    ".tif": _TIFF,
    ".mha": _META,
    ".mhd": _META,
    ".nrrd": _NRRD,
    ".png": _PNG,
    ".jpeg": _JPEG,
    ".jpg": _JPEG,
}
# Label maps of these are written in the nearest format that holds them: one lossless file.
_STAND_INS = {".mhd": ".mha", ".jpeg": ".png", ".jpg": ".png"}

READABLE: tuple[str, ...] = tuple(_FORMATS)
"""Extensions that `read` takes, lower case."""

WRITABLE: tuple[str, ...] = tuple(extension for extension in _FORMATS if extension not in _STAND_INS)
"""Extensions that `write` and `save_image` take, lower case."""


def read(path: Path | str, *, time: int | None = None) -> Image:
    """Read an image with its geometry.

    Parameters
    ----------
    path : a file with one of the `READABLE` extensions
    time : which time point of a series, counted from 0

    Returns
    -------
    Image with data (C, *S) in the file's own type (scaled to float32 where a NIfTI header states a slope and intercept) and in memory

    Raises
    ------
    ReadError : not there, damaged, not what its extension says, or not a grey or RGB image of 2 or 3 axes
    """
    path = Path(path)
    content = _load(path, time, exact=False)
    name = path.name[: len(path.name) - len(_extension(path) or "")]
    try:
        return Image(channels_first(content), content.affine, content.units, name, path, content.source)
    except (RefusedError, ImageError) as error:
        raise ReadError(f"{path.name!r} {error if isinstance(error, RefusedError) else f'cannot be used: {error}'}") from error


def read_labels(path: Path | str) -> LabelArray:
    """Read a label map: the exact integers of the file.

    A file that states a slope and intercept counts as what other programs show, and must come out whole.

    Returns
    -------
    (S) array of the smallest unsigned type that holds the labels

    Raises
    ------
    ReadError : as `read`; or the file is lossy (JPEG), has colours, or has values that are negative or not whole
    """
    path = Path(path)
    if _format(path, READABLE, ReadError) is _JPEG:
        raise ReadError(f"{path.name!r} is a JPEG, which changes labels; expected a label map in one of {', '.join(WRITABLE)}")
    content = _load(path, None, exact=True)
    try:
        data = channels_first(content)
        if len(data) != 1:
            raise RefusedError(f"has {len(data)} channels; expected a label map, which has one")
        return _smallest_unsigned(data[0])
    except (RefusedError, LabelsError) as error:
        raise ReadError(f"{path.name!r} {error if isinstance(error, RefusedError) else f'is no label map: {error}'}") from error


def write(path: Path | str, labels: npt.ArrayLike, *, like: Image) -> Path:
    """Write a label map so that it overlays exactly on the image it belongs to.

    Parameters
    ----------
    path : where to; its extension, one of `WRITABLE`, chooses the format
    labels : (S) integers (or whole floats) from 0, of the image's shape; stored as the smallest unsigned type that holds them
    like : the image, whose geometry the file gets

    Returns
    -------
    The path.

    Raises
    ------
    LabelsError : another shape than the image's, or values that are negative or not whole
    WriteError : the format cannot hold them, or the disk does not take them; an older file of that name stays as it was
    """
    path = Path(path)
    chosen = _format(path, WRITABLE, WriteError)
    given = np.asarray(labels)
    if given.shape != like.shape:
        raise LabelsError(f"labels of shape {given.shape} arrived for {like.name!r}; expected its shape, {like.shape}")
    array = _smallest_unsigned(given)[None]
    return _replace(path, lambda temporary: chosen.codec.save(temporary, array, like, labels=True))


def save_image(path: Path | str, image: Image) -> Path:
    """Write an image with its geometry, as `write` does for labels.

    Raises
    ------
    WriteError : the format cannot hold the image, or the disk does not take it; an older file of that name stays as it was
    """
    path = Path(path)
    chosen = _format(path, WRITABLE, WriteError)
    data = np.asarray(image.data)
    array = data.astype(np.uint8) if data.dtype == bool else data
    return _replace(path, lambda temporary: chosen.codec.save(temporary, array, image, labels=False))


def labels_path(image: Image) -> Path:
    """Where the labels of an image go unless the user says otherwise: beside it, in its own format.

    ``scan.nii.gz`` -> ``scan_labels.nii.gz``; ``photo.jpg`` -> ``photo_labels.png`` (JPEG changes labels), ``scan.mhd`` ->
    ``scan_labels.mha`` (one file instead of two); an image that is from no file -> ``<name>_labels.tif`` in the working directory.
    """
    extension = _extension(image.path) if image.path is not None else None
    if image.path is None or extension is None:
        name = re.sub(r"[^\w.-]+", "_", image.name).strip("._") or "image"
        return Path.cwd() / f"{name}_labels.tif"
    ending = image.path.name[len(image.path.name) - len(extension) :]
    stem = image.path.name[: -len(extension)]
    return image.path.with_name(f"{stem}_labels{_STAND_INS.get(extension, ending)}")


def _extension(path: Path) -> str | None:
    """The known extension that a name ends with, lower case."""
    name = path.name.lower()
    return next((extension for extension in _FORMATS if name.endswith(extension)), None)


def _format(path: Path, allowed: tuple[str, ...], error: type[FileError]) -> _Format:
    """The format that a path's extension names, if it is one of ``allowed``."""
    extension = _extension(path)
    if extension in _STAND_INS and extension not in allowed:
        raise error(f"{path.name!r} was asked for, which cannot hold labels in one lossless file; expected e.g. {_STAND_INS[extension]}")
    if extension is None:
        raise error(f"{path.name!r} arrived, whose extension is not known; expected one of {', '.join(allowed)}")
    return _FORMATS[extension]


def _load(path: Path, time: int | None, *, exact: bool) -> Content:
    """What a file holds, with every way in which it can be unusable turned into one sentence."""
    chosen = _format(path, READABLE, ReadError)
    try:
        if path.is_dir():
            raise RefusedError(f"is a folder; expected a {chosen.name} file")
        with path.open("rb") as file:
            head = file.read(4096)
        if not head:
            raise RefusedError(f"is empty (0 bytes); expected a {chosen.name} file")
        if not chosen.codec.begins(head, path):
            raise RefusedError(f"does not begin as a {chosen.name} file does; expected what its extension says")
        content: Content = chosen.codec.load(path, time, exact=exact)
    except RefusedError as error:
        raise ReadError(f"{path.name!r} {error}") from error
    except FileNotFoundError as error:
        raise ReadError(f"{str(path)!r} does not exist; expected a {chosen.name} file") from error
    except PermissionError as error:
        raise ReadError(f"{str(path)!r} may not be read by this user; expected a readable {chosen.name} file") from error
    except Exception as error:  # what the format libraries raise on damaged files has no common class
        raise ReadError(f"{path.name!r} is damaged or truncated ({_in_short(error)}); expected a complete {chosen.name} file") from error
    return content


def _smallest_unsigned(labels: npt.NDArray[Any]) -> LabelArray:
    """The labels as the smallest unsigned type that holds them."""
    if labels.dtype.kind not in "biuf":
        raise LabelsError(f"labels of type {labels.dtype} arrived; expected whole numbers from 0")
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels == np.round(labels)).all()):
        raise LabelsError(f"labels of type {labels.dtype} with values that are not whole numbers arrived; expected whole numbers from 0")
    if labels.size and labels.min() < 0:
        raise LabelsError(f"the negative label {int(labels.min())} arrived; expected whole numbers from 0")
    largest = int(labels.max(initial=0))
    if largest > np.iinfo(np.uint64).max:
        raise LabelsError(f"the label {largest} arrived; expected at most {np.iinfo(np.uint64).max}")
    return labels.astype(np.min_scalar_type(largest))


def _replace(path: Path, save: Callable[[Path], None]) -> Path:
    """Let ``save`` write a temporary file beside ``path``, then put it in its place in one step."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise WriteError(f"{path.name!r} is a folder; expected the name of a file")
    extension = _extension(target) or _extension(path) or ""
    temporary = target.with_name(f".{target.name[: len(target.name) - len(extension)]}.{secrets.token_hex(4)}{extension}")
    try:
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, "is write-protected")
        save(temporary)
        _flush_to_disk(temporary)
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
        _flush_to_disk(target.parent)
    except RefusedError as error:
        raise WriteError(f"{path.name!r} {error}") from error
    except Exception as error:  # what the format libraries raise when the disk refuses has no common class
        raise WriteError(_why_not_written(path, target.parent, error)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _why_not_written(path: Path, folder: Path, error: Exception) -> str:
    """One sentence. Asked before the temporary file is removed, as some libraries hide that the disk was full."""
    code = error.errno if isinstance(error, OSError) else None
    if not folder.is_dir():
        return f"{str(path)!r} could not be written: its folder does not exist; expected an existing one"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS) or not os.access(folder, os.W_OK):
        return f"{str(path)!r} could not be written: no permission; expected a file and folder that this user may write to"
    if code in (errno.ENOSPC, errno.EDQUOT) or shutil.disk_usage(folder).free < 65536:
        return f"{str(path)!r} could not be written: the disk is full; expected some free space (any older file is untouched)"
    return f"{str(path)!r} could not be written: {_in_short(error)} (any older file is untouched)"


def _flush_to_disk(path: Path) -> None:
    """Return when what was written to a file, or the names in a folder, will survive a power cut."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _in_short(error: Exception) -> str:
    """The last line of a library's message, which says what went wrong, fit for the middle of a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:160].rstrip(".;: ")
