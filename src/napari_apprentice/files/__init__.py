"""Images and label maps on disk, with their geometry: NIfTI, TIFF and OME-TIFF, MetaImage, NRRD, OME-Zarr, PNG, JPEG.

What every format becomes (`read`), and what a label map becomes in every format (`write`):

===============  ==================================  ===========================================================================
extensions       axes on disk                        geometry
===============  ==================================  ===========================================================================
.nii .nii.gz     x, y[, z[, t]]; grey, RGB           full affine, any orientation; units converted to mm (see below for "unknown")
.mha .mhd .nrrd  x, y[, z[, t]]; grey, RGB           full affine (LPS converted to RAS); units converted to mm, the default
.tif .ome.tif    [T, Z,] Y, X; grey, RGB, palette    spacing of OME, ImageJ or resolution tags; no rotation, no origin
.ome.zarr .zarr  [t, c,] [z,] y, x; grey, RGB        scale and translation of OME-Zarr; the whole affine in what we wrote ourselves
.png             Y, X; grey, RGB, palette            spacing of the pHYs chunk, in whole pixels per metre
.jpg             Y, X; grey, RGB                     none (its density says how to print it)
===============  ==================================  ===========================================================================

- Voxels keep the order in which they are stored: nothing is resampled, flipped or rotated; `Image.affine` says where they lie.
- A label map written in the image's own format gets the image's own geometry, field for field; in another format the geometry is
  converted. TIFF keeps of it the spacing only, PNG the spacing of a 2D image.
- A NIfTI file with one z slice stays a volume of one slice; one that declares two axes is a 2D image. TIFF cannot tell a volume of one
  slice from a 2D image: it is read as 2D; labels in TIFF or PNG are taken for those of either. The world axes of a 2D image are those of
  the file, without anatomical names.
- Three channels of a TIFF count as RGB. Of a palette an image has the colours, and labels the numbers; a palette that ImageJ or OME wrote
  says what intensities are shown in: the image has the intensities.
- Alpha is dropped where a file says that it is alpha; other channels than grey or RGB are refused, never dropped. A fourth axis of length
  one is dropped; a longer one is a series, of which ``time=`` chooses one.
- A spacing of which a file states no usable length for one of its axes (none at all, 0, not a number) counts as not stated: `Image.units`
  is "pixel" then, never a guess; see `unstated_spacing`.
- A NIfTI file whose unit is "unknown" counts as mm, as it does everywhere, unless its voxels are 1 × 1 × 1: that is what programs write
  that were told of no size. It counts as not stated then, and the affine stays, since it may well say what is left and right.
- A density that is usual for screens and print (72, 96, 300 dots per inch and the like) is what programs write when nobody measured
  anything: it is copied to the label map, but not taken for a spacing.
- OME-Zarr, NIfTI that is not compressed, and TIFF stay on the disk where they are larger than `lazy.LARGE_BYTES`: `Image.data` then reads
  what it is asked for. Nobody may change such a file meanwhile.
- A zarr is a folder; what lies in one (a group of labels, an array) can be named, too: ``image.ome.zarr/labels/cells``.

Writing is atomic: the old file stays whole until the new one is complete on the disk. (A folder is moved away before the new one
takes its name, and only one that we wrote ourselves.)
"""

from __future__ import annotations

import errno
import importlib
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_apprentice.blocks import BlockArray, is_large
from napari_apprentice.files import _grid
from napari_apprentice.files._content import Content, RefusedError, SeriesError, Source, channels_first, coarser_channels_first
from napari_apprentice.lazy import LazyArray
from napari_apprentice.texts import is_utf8
from napari_apprentice.types import FileError, Image, ImageError, LabelsError, ReadError, WriteError

__all__ = [
    "READABLE",
    "WRITABLE",
    "check_image",
    "check_place",
    "labels_path",
    "object_paths",
    "read",
    "read_labels",
    "save_image",
    "stand_in",
    "stem",
    "time_points",
    "unstated_spacing",
    "unstated_spacings",
    "write",
    "write_objects",
]

LabelArray = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class _Format:
    """One row of the table above."""

    name: str
    module: str
    is_folder: bool = False

    @property
    def kind(self) -> str:
        """What people call it."""
        return "folder" if self.is_folder else "file"

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
_ZARR = _Format("zarr", "_zarr", is_folder=True)
_PLACED = (_NIFTI, _META, _NRRD)  # tell where voxels lie in the world, not only how far apart
_FLAT = (_TIFF, _PNG)  # cannot tell a volume of one slice from a 2D image

# The longest extension that fits decides, so ".nii.gz", ".ome.tif" and ".ome.zarr" stand before their own endings.
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
    ".ome.zarr": _ZARR,
    ".zarr": _ZARR,
    ".png": _PNG,
    ".jpeg": _JPEG,
    ".jpg": _JPEG,
}
_FOLDERS = tuple(extension for extension, form in _FORMATS.items() if form.is_folder)
_OF_ITK = tuple(extension for extension, form in _FORMATS.items() if form.module == "_itk")
# Label maps of these are written in the nearest format that holds them: one lossless file.
_STAND_INS = {".mhd": ".mha", ".jpeg": ".png", ".jpg": ".png"}

_UNSTATED = "not say how large a voxel is; lengths count voxels, and slices are taken to be as far apart as pixels"
_NAMED = 3  # so many of the images that a sentence is about, by name

READABLE: tuple[str, ...] = tuple(_FORMATS)
"""Extensions that `read` takes, lower case."""

WRITABLE: tuple[str, ...] = tuple(extension for extension in _FORMATS if extension not in _STAND_INS)
"""Extensions that `write` and `save_image` take, lower case."""


def read(path: Path | str, *, time: int | None = None, level: int = 0) -> Image:
    """Read an image with its geometry.

    Parameters
    ----------
    path : a file with one of the `READABLE` extensions
    time : which time point of a series, counted from 0
    level : which resolution of an OME-Zarr image, 0 for the finest

    Returns
    -------
    Image with data (C, *S) in the file's own type (scaled to float32 where a NIfTI header states a slope and intercept), in memory unless
    it is large (see above)

    Raises
    ------
    ReadError : not there, damaged, not what its extension says, or not a grey or RGB image of 2 or 3 axes
    """
    path = Path(path)
    content = _load(path, time, exact=False, level=level)
    name = path.name[: len(path.name) - len(_extension(path) or "")]
    try:
        data, coarser = channels_first(content), coarser_channels_first(content)
        return Image(data, content.affine, content.units, name, path, content.source, coarser)
    except (RefusedError, ImageError) as error:
        raise ReadError(f"{path.name!r} {error if isinstance(error, RefusedError) else f'cannot be used: {error}'}") from error


def check_image(path: Path | str) -> None:
    """Refuse what `read` would refuse, as far as that can be known without reading the voxels: what is damaged or cut, or is a series.

    Compressed MetaImage, NRRD and JPEG do not say whether their voxels are whole.

    Raises
    ------
    ReadError : as for `read`
    """
    path = Path(path)
    with _in_one_sentence(path, _format(path, READABLE, ReadError)) as codec:
        try:
            codec.check(path)
        except SeriesError as error:
            raise RefusedError(f"has {error.count} time points; expected one volume, in a file of its own") from error
        except RefusedError:
            raise
        except Exception:  # what is suspicious has to be read to know
            codec.load(path, None, exact=False)


def time_points(path: Path | str) -> int:
    """How many time points a file holds, which `read` can choose from; 1 for a single image.

    Raises
    ------
    ReadError : as for `read`
    """
    try:
        _load(Path(path), None, exact=False)
    except ReadError as error:
        if isinstance(error.__cause__, SeriesError):
            return error.__cause__.count
        raise
    return 1


def unstated_spacing(image: Image) -> str:
    """One sentence where nothing says how large the voxels of a volume are, for whoever cannot ask; "" else."""
    if image.ndim != 3 or image.units != "pixel" or len(set(image.spacing)) > 1:
        return ""
    return unstated_spacings([image.name], 1)


def unstated_spacings(names: Sequence[str], images: int) -> str:
    """The same, of all volumes of these names among so many images."""
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    listed = ", ".join(map(repr, names[:_NAMED])) + more
    who = f"{len(names)} of {images} images ({listed})" if images > 1 else listed
    return f"{who} {'does' if len(names) == 1 else 'do'} {_UNSTATED}"


def stand_in(name: str, path: Path | None, shape: tuple[int, ...], affine: npt.ArrayLike, units: str) -> Image:
    """An image without its voxels, for `read_labels`, of which all else was written down when it was read.

    Whether a NIfTI file says where voxels lie in a unit that it does not name is asked of the file; of one that is gone it is assumed.
    """
    nothing = np.broadcast_to(np.zeros((), np.uint8), (1, *shape))
    image = Image(nothing, np.array(affine, dtype=np.float64), units, name, path)
    if units != "pixel" or path is None or _FORMATS.get(_extension(path) or "") is not _NIFTI:
        return image
    source = Source(image.affine, None, unnamed=True)
    with suppress(ReadError):
        known = read(path, time=0)
        source = known.source if np.array_equal(known.affine, image.affine) else source
    return replace(image, source=source)


def read_labels(path: Path | str, *, like: Image | None = None) -> LabelArray:
    """Read a label map: the exact integers of the file.

    A file that states a slope and intercept counts as what other programs show, and must come out whole.

    Parameters
    ----------
    path : a file with one of the `READABLE` extensions, JPEG excepted
    like : the image that they have to be labels of

    Returns
    -------
    (S) array of the smallest unsigned type that holds the labels; large ones stay on the disk, as they are and unchecked: a
    `LazyArray`

    Raises
    ------
    ReadError : as `read`; or the file is lossy (JPEG), has colours, has values that are negative or not whole, or lies on another grid
        than the image
    """
    path = Path(path)
    if _format(path, READABLE, ReadError) is _JPEG:
        raise ReadError(f"{path.name!r} is a JPEG, which changes labels; expected a label map in one of {', '.join(WRITABLE)}")
    try:
        content = _load(path, None, exact=True)
    except ReadError as error:
        if isinstance(series := error.__cause__, SeriesError):
            said = f"has {series.count} time points; expected a label map of one time point, in a file of its own"
            raise ReadError(f"{path.name!r} {said}") from series
        raise
    is_flat = _format(path, READABLE, ReadError) in _FLAT and "Z" not in content.axes
    if is_flat and like is not None and like.ndim == 3 and like.shape[0] == 1:
        content = _as_slice(content, like)
    try:
        data = channels_first(content)
        if len(data) != 1:
            raise RefusedError(f"has {len(data)} channels; expected a label map, which has one")
        if like is not None:
            _grid.check(content, data.shape[1:], like, placed=_places(path) and (like.path is None or _places(like.path)))
        if isinstance(data, LazyArray):
            return _lazy_labels(data)
        return _smallest_unsigned(data[0])
    except (RefusedError, LabelsError) as error:
        raise ReadError(f"{path.name!r} {error if isinstance(error, RefusedError) else f'is no label map: {error}'}") from error


def write(path: Path | str, labels: npt.ArrayLike | BlockArray, *, like: Image, go_on: Callable[[], None] = lambda: None) -> Path:
    """Write a label map so that it overlays exactly on the image it belongs to.

    Parameters
    ----------
    path : where to; its extension, one of `WRITABLE`, chooses the format
    labels : (S) integers (or whole floats) from 0, of the image's shape; stored as the smallest unsigned type that holds them. What a
        session keeps on the disk goes from there to the file block by block, which only OME-Zarr can take
    like : the image, whose geometry the file gets
    go_on : called again and again meanwhile; what it raises calls the writing off, and comes out. ITK, which writes MetaImage and NRRD,
        cannot be interrupted: there it is called before and after

    Returns
    -------
    The path.

    Raises
    ------
    LabelsError : another shape than the image's, or values that are negative or not whole
    ImageError : ``like`` is no image
    WriteError : the format cannot hold them, or the disk does not take them; an older file of that name stays as it was
    """
    with _written(Path(path), labels, like, go_on) as put:
        return put()


def check_place(path: Path | str, *, like: Image, highest: int = 0, each: bool = False) -> None:
    """Refuse beforehand what `write` would refuse at the end of long work, as far as that can be known; and to replace the image itself.

    Parameters
    ----------
    path : where a label map is to go
    like : the image that it will belong to
    highest : the highest number of an object that is known so far
    each : every object will go to a file of its own, as `write_objects` does

    Raises
    ------
    WriteError : no format of label maps, none for such an image or number, no folder, no permission, no possible name, or the file of
        the image, or a folder that holds it
    """
    path = Path(path)
    chosen = _format(path, WRITABLE, WriteError)
    if chosen is _PNG and like.ndim != 2:
        raise WriteError(
            f"{path.name!r} was asked for, which cannot hold a volume; expected a format such as {_NIFTI.name} or {_TIFF.name}"
        )
    if chosen is _PNG and highest > np.iinfo(np.uint16).max and not each:
        raise WriteError(f"{path.name!r} was asked for, which cannot hold the label {highest}; expected at most 65535, or TIFF")
    if is_large(like.shape):
        _check_holds_large(path, math.prod(like.shape), each=each)
    if each and like.path is not None and (number := _number_in(like.path, path)) is not None:
        raise WriteError(f"{path.name!r} was asked for, of which object {number} would replace the image itself; expected another name")
    target = _target(object_paths(path, [max(highest, 1)])[0] if each else path)
    _check_spares(path, like)
    try:
        _check_replaceable(target)
        temporary, _ = _temporaries(target, path)
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise WriteError(_why_not_written(path, target.parent, error)) from error


def _check_holds_large(path: Path, nbytes: int, *, each: bool = False) -> None:
    """Refuse what does not take labels that are kept on the disk, which can only go to a folder block by block."""
    chosen, size = _format(path, WRITABLE, WriteError), f"{nbytes / 2**30:.1f} GiB"
    if each:
        raise WriteError(f"{path.name!r} was asked for each object of {size} of labels; expected one .ome.zarr")
    if chosen is not _ZARR:
        raise WriteError(f"{path.name!r} was asked for, but {size} of labels cannot be written to {chosen.name}; expected .ome.zarr")


def _check_spares(path: Path, image: Image) -> None:
    """Refuse to replace an image by labels of it: its file, or a folder that holds it, such as the zarr of which one level was read."""
    if image.path is not None:
        target, own = Path(os.path.realpath(path)), Path(os.path.realpath(image.path))
        if target == own or target in own.parents:
            raise WriteError(f"{path.name!r} {'is' if target == own else 'holds'} the image itself; expected another file for its labels")


def _written(
    path: Path, labels: npt.ArrayLike | BlockArray, like: Image, go_on: Callable[[], None]
) -> AbstractContextManager[Callable[[], Path]]:
    """A label map on the disk, beside ``path``, and what puts it in its place; see `write` and `_beside`."""
    chosen = _format(path, WRITABLE, WriteError)
    if not isinstance(like, Image):
        raise ImageError(f"{like!r:.80} arrived as the image of the labels; expected one, as `read` makes it of a file")
    given = labels if isinstance(labels, BlockArray) else np.asarray(labels)
    if given.shape != like.shape:
        raise LabelsError(f"labels of shape {given.shape} arrived for {like.name!r}; expected its shape, {like.shape}")
    if isinstance(given, BlockArray):
        _check_holds_large(path, given.nbytes)
    array = given if isinstance(given, BlockArray) else _smallest_unsigned(given)[None]
    return _beside(path, lambda temporary, go_on: chosen.codec.save(temporary, array, like, labels=True, go_on=go_on), go_on)


def write_objects(
    path: Path | str, labels: npt.ArrayLike | BlockArray, *, like: Image, go_on: Callable[[], None] = lambda: None
) -> tuple[Path, ...]:
    """Write every object of a label map to a file of its own, as a mask of 0 and 1, each as `write` does.

    ``scan_labels.nii.gz`` -> ``scan_labels_1.nii.gz``, ``scan_labels_2.nii.gz`` and so on, see `object_paths`; numbers are the objects'
    ids, with as many digits as the largest one. Other files stay as they are.

    No file gets its name before all of them are complete on the disk, which needs room for all of them beside the older ones.

    Parameters
    ----------
    go_on : as of `write`; what it raises calls all of them off

    Returns
    -------
    The paths, by ascending id.

    Raises
    ------
    LabelsError, WriteError : as `write`; or one of the files is that of the image. All older files stay as they were
    """
    if isinstance(labels, BlockArray):
        _check_holds_large(Path(path), labels.nbytes, each=True)
    array = _smallest_unsigned(np.asarray(labels))
    ids = [int(label) for label in np.unique(array) if label]
    paths = object_paths(path, ids)
    for each in paths:
        _check_spares(each, like)
    with ExitStack() as complete:
        puts = []
        for label, each in zip(ids, paths, strict=True):
            go_on()
            puts.append(complete.enter_context(_written(each, array == label, like, go_on)))
        return tuple(put() for put in puts)


def object_paths(path: Path | str, ids: Sequence[int]) -> tuple[Path, ...]:
    """The files that `write_objects` writes objects of these ids to.

    >>> [each.name for each in object_paths("scan_labels.nii.gz", [2, 11])]
    ['scan_labels_02.nii.gz', 'scan_labels_11.nii.gz']
    """
    path = Path(path)
    length, width = len(path.name) - len(_extension(path) or ""), len(str(max(ids, default=0)))
    return tuple(path.with_name(f"{path.name[:length]}_{label:0{width}}{path.name[length:]}") for label in ids)


def _number_in(name: Path, path: Path) -> int | None:
    """The object for which `object_paths` of ``path`` gives ``name``; None if it does for none."""
    length, own = len(path.name) - len(_extension(path) or ""), Path(os.path.realpath(name))
    found = re.fullmatch(re.escape(path.name[:length]) + r"_(\d+)" + re.escape(path.name[length:]), own.name)
    return int(found[1]) if found and Path(os.path.realpath(path)).parent == own.parent else None


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
    with _beside(path, lambda temporary, go_on: chosen.codec.save(temporary, array, image, labels=False, go_on=go_on)) as put:
        return put()


def labels_path(image: Image, *, time: int | None = None) -> Path:
    """Where the labels of an image go unless the user says otherwise: beside it, in its own format.

    ``scan.nii.gz`` -> ``scan_labels.nii.gz``; ``photo.jpg`` -> ``photo_labels.png`` (JPEG changes labels), ``scan.mhd`` ->
    ``scan_labels.mha`` (one file instead of two); an image that is from no file -> ``<name>_labels.tif`` in the working directory; labels
    that a session keeps on the disk -> ``.ome.zarr``, whatever the image is. Every ``time`` point of a series has a file of its own:
    ``scan.nii.gz`` -> ``scan_t3_labels.nii.gz``.
    """
    kind = "_labels" if time is None else f"_t{time}_labels"
    extension = _extension(image.path) if image.path is not None else None
    large = is_large(image.shape)
    if image.path is None or extension is None:
        name = re.sub(r"[^\w.-]+", "_", image.name).strip("._") or "image"
        return Path.cwd() / f"{name}{kind}{'.ome.zarr' if large else '.tif'}"
    ending = image.path.name[len(image.path.name) - len(extension) :]
    return image.path.with_name(f"{stem(image.path)}{kind}{'.ome.zarr' if large else _STAND_INS.get(extension, ending)}")


def stem(path: Path) -> str:
    """The name of a file without its extension: ``scan`` of ``scan.nii.gz``."""
    extension = _extension(path) or path.suffix
    return path.name[: len(path.name) - len(extension)]


def _extension(path: Path) -> str | None:
    """The known extension that a name ends with, lower case."""
    name = path.name.lower()
    return next((extension for extension in _FORMATS if name.endswith(extension)), None)


def _lies_in_zarr(path: Path) -> bool:
    return any(parent.name.lower().endswith(".zarr") for parent in path.parents)


def _as_slice(content: Content, like: Image) -> Content:
    """A picture as the volume of one slice that it may be, as thick as those of the image."""
    affine = np.eye(4)
    affine[0, 0], affine[1:, 1:] = like.spacing[0], content.affine
    array = content.array.with_axis() if isinstance(content.array, LazyArray) else content.array[None]
    return replace(content, array=array, axes="Z" + content.axes, affine=affine)


def _places(path: Path) -> bool:
    return _FORMATS.get(_extension(path) or "") in _PLACED


def _format(path: Path, allowed: tuple[str, ...], error: type[FileError]) -> _Format:
    """The format that a path's extension names, if it is one of ``allowed``."""
    extension = _extension(path)
    if extension in _STAND_INS and extension not in allowed:
        raise error(f"{path.name!r} was asked for, which cannot hold labels in one lossless file; expected e.g. {_STAND_INS[extension]}")
    if extension is None and allowed is READABLE and _lies_in_zarr(path):
        return _ZARR
    if extension is None:
        said = "arrived, whose extension is not known; expected"
        if allowed is READABLE and not path.is_file():  # the folder of an image, or a path that was mistyped
            said = f"{'is a folder' if path.is_dir() else 'does not exist'}; expected an image in"
        raise error(f"{path.name!r} {said} one of {', '.join(allowed)}")
    if extension in _OF_ITK and not is_utf8(f"{path}{os.path.realpath(path)}"):
        raise error(f"{path.name!r} or a folder above is named in another encoding than UTF-8, which ITK needs; expected other names")
    return _FORMATS[extension]


def _load(path: Path, time: int | None, *, exact: bool, level: int = 0) -> Content:
    """What a file holds."""
    chosen = _format(path, READABLE, ReadError)
    with _in_one_sentence(path, chosen) as codec:
        if level and not chosen.is_folder:
            raise RefusedError(f"has one resolution, but level={level} was asked for; expected level=0, or an OME-Zarr image")
        options = {"level": level} if chosen.is_folder else {}
        content: Content = codec.load(path, time, exact=exact, **options)
    return content


@contextmanager
def _in_one_sentence(path: Path, chosen: _Format) -> Iterator[ModuleType]:
    """What reads a file that begins as its extension says, with every way in which it can be unusable turned into one sentence."""
    try:
        head = _head(path, chosen)
        if not chosen.codec.begins(head, path):
            wrong = "holds no zarr group or array" if chosen.is_folder else f"does not begin as a {chosen.name} file does"
            raise RefusedError(f"{wrong}; expected what its extension says")
        yield chosen.codec
    except RefusedError as error:
        raise ReadError(f"{path.name!r} {error}") from error
    except FileNotFoundError as error:
        raise ReadError(f"{str(path)!r} does not exist; expected a {chosen.name} {chosen.kind}") from error
    except PermissionError as error:
        raise ReadError(f"{str(path)!r} may not be read by this user; expected a readable {chosen.name} {chosen.kind}") from error
    except Exception as error:  # what the format libraries raise on damaged files has no common class
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise ReadError(f"{str(path)!r} is longer than names of files can be; expected a shorter one") from error
        raise ReadError(
            f"{path.name!r} is damaged or truncated ({_in_short(error)}); expected a complete {chosen.name} {chosen.kind}"
        ) from error


def _head(path: Path, chosen: _Format) -> bytes:
    """The first bytes of a file, of which there have to be some; none of a folder."""
    if path.is_dir() and chosen.is_folder:
        return b""
    if path.is_dir() or (chosen.is_folder and path.exists()):
        raise RefusedError(f"is a {'folder' if path.is_dir() else 'file'}; expected a {chosen.name} {chosen.kind}")
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise RefusedError(f"is empty (0 bytes); expected a {chosen.name} file")
    return head


def _lazy_labels(data: Any) -> LabelArray:
    """The labels of a grey image that stays on the disk; whoever indexes them has numpy arrays."""
    if data.dtype.kind not in "bui":
        raise RefusedError(f"holds {data.dtype} values; expected a label map, which has integers")
    labels: LabelArray = data.at(0, 0)
    return labels


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


@contextmanager
def _beside(
    path: Path, save: Callable[[Path, Callable[[], None]], None], go_on: Callable[[], None] = lambda: None
) -> Iterator[Callable[[], Path]]:
    """Let ``save`` write a temporary file beside ``path``, and hand over what puts it in its place in one step; else nothing is left."""
    called_off: list[Exception] = []

    def checked() -> None:
        try:
            go_on()
        except Exception as error:
            called_off.append(error)
            raise

    @contextmanager
    def in_one_sentence() -> Iterator[None]:
        try:
            yield
        except RefusedError as error:
            raise WriteError(f"{path.name!r} {error}") from error
        except Exception as error:  # what the format libraries raise when the disk refuses has no common class
            if called_off:
                raise called_off[0] from None
            raise WriteError(_why_not_written(path, target.parent, error)) from error

    @in_one_sentence()
    def put() -> Path:
        if target.exists():
            shutil.copymode(target, temporary)
        if target.is_dir():
            os.replace(target, aside)
        os.replace(temporary, target)
        _flush_to_disk(target.parent)
        return path

    target = _target(path)
    temporary, aside = _temporaries(target, path)
    try:
        with in_one_sentence():
            _check_replaceable(target)
            save(temporary, checked)
            del save  # and with it the array: others may be written before this one is put in its place
            for written in (temporary, *temporary.rglob("*")):
                _flush_to_disk(written)
            checked()
        yield put
    finally:
        if os.path.exists(aside) and not os.path.exists(target):
            os.replace(aside, target)
        for left in (temporary, aside):
            if os.path.isdir(left):
                shutil.rmtree(left, ignore_errors=True)
            else:
                with suppress(OSError):
                    left.unlink(missing_ok=True)


def _temporaries(target: Path, path: Path) -> tuple[Path, Path]:
    """Where it is written before it takes the place of ``target``, and where what was there waits meanwhile; the names are short."""
    extension = _extension(target) or _extension(path) or ""
    name = f".{target.name[: len(target.name) - len(extension)][:_RECOGNISED]}.{secrets.token_hex(4)}"
    return target.with_name(f"{name}{extension}"), target.with_name(f"{name}.old")


_RECOGNISED = 40  # characters of a name by which people know what was left by a program that was killed


def _check_replaceable(target: Path) -> None:
    """OSError if nothing can have this name, or what has it is write-protected."""
    try:
        target.lstat()
    except FileNotFoundError:
        return
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "is write-protected")


def _target(path: Path) -> Path:
    """What a path means, if that may be replaced."""
    target = Path(os.path.realpath(path))
    if os.path.isdir(target) and _extension(path) not in _FOLDERS:
        raise WriteError(f"{path.name!r} is a folder; expected the name of a file")
    if os.path.exists(target) and _extension(path) in _FOLDERS and not _ZARR.codec.is_own(target):
        raise WriteError(f"{path.name!r} is there and was not written by this program; expected a name that is free")
    return target


def _why_not_written(path: Path, folder: Path, error: Exception) -> str:
    """One sentence. Asked before the temporary file is removed, as some libraries hide that the disk was full."""
    code, words = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
    if not folder.is_dir():
        return f"{str(path)!r} could not be written: its folder does not exist; expected an existing one"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS) or not os.access(folder, os.W_OK):
        return f"{str(path)!r} could not be written: no permission; expected a file and folder that this user may write to"
    if code in (errno.ENOSPC, errno.EDQUOT) or (code is None and _is_full(folder)):
        return f"{str(path)!r} could not be written: the disk is full; expected some free space (any older file is untouched)"
    return f"{str(path)!r} could not be written: {words or _in_short(error)} (any older file is untouched)"


def _is_full(folder: Path) -> bool:
    """Whether the disk has no room; one without a size, such as /proc, never had any."""
    disk = shutil.disk_usage(folder)
    return disk.total > 0 and disk.free < 65536


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
