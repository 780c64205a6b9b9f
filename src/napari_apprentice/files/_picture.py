"""PNG and JPEG through Pillow; PNG of 16 bits with colours or alpha, of which Pillow keeps 8, through imagecodecs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import PIL.Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from napari_apprentice.files._content import Content, RefusedError, Source, Watched, chosen_time, details_of
from napari_apprentice.files._lengths import is_print_density
from napari_apprentice.geometry import affine_from_spacing
from napari_apprentice.types import Image

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MM_PER_INCH = 25.4
_ORIENTATION = 0x0112
_STRIP_PIXELS = 2**22
_BLOCK_BYTES = 2**26  # above 32 MiB, glibc has the kernel hand out zeros instead of writing them


@dataclass(frozen=True)
class _Tags:
    """What a picture says of itself that viewers act on.

    Attributes
    ----------
    density : (x, y) dots per inch, if stated
    orientation : EXIF orientation, 1 to 8; viewers that honour it turn the picture, so they must turn its labels, too
    """

    density: tuple[float, float] | None = None
    orientation: int = 1


def begins(head: bytes, path: Path) -> bool:
    """Whether these are the first bytes of a PNG or JPEG; which of the two does not matter to anyone."""
    return head.startswith((_PNG_SIGNATURE, b"\xff\xd8\xff"))


def check(path: Path) -> None:
    """Look at the header, and of a PNG at the checksums."""
    with _opened(path) as picture:
        picture.verify()


def load(path: Path, time: int | None, *, exact: bool) -> Content:
    """Read a PNG or JPEG file."""
    chosen_time(1, time)
    with _large_blocks(), _opened(path) as picture:
        is_png = picture.format == "PNG"
        density = picture.info.get("dpi")
        tags = _Tags((float(density[0]), float(density[1])) if density else None, int(picture.getexif().get(_ORIENTATION, 1)))
        array = _indices(path, picture) if exact and is_png else _pixels(path, picture)
    affine, units = np.eye(3), "pixel"
    if is_png and tags.density and all(tags.density) and not all(map(is_print_density, tags.density)):
        affine, units = affine_from_spacing([_MM_PER_INCH / dots for dots in tags.density[::-1]]), "mm"
    axes, alpha = ("YX", False) if array.ndim == 2 else ("YXS", array.shape[-1] in (2, 4))
    return Content(array, axes, affine, units, Source(affine, tags), alpha=alpha)


def save(path: Path, array: npt.NDArray[Any], image: Image, *, labels: bool, go_on: Callable[[], None]) -> None:
    """Write (C, rows, cols) data as PNG."""
    if image.ndim != 2:
        raise RefusedError(f"cannot hold a volume of shape {image.shape}; expected a 2D image, or TIFF or NIfTI")
    if array.dtype not in ((np.uint8, np.uint16) if len(array) == 1 else (np.uint8,)):
        what = f"the label {int(array.max())}" if labels else f"{'grey' if len(array) == 1 else 'RGB'} values of type {array.dtype}"
        raise RefusedError(f"cannot hold {what}; expected at most 65535 (grey) or 255 (RGB), or TIFF")
    picture = PIL.Image.fromarray(np.ascontiguousarray(array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)))
    tags = details_of(image, _Tags)
    if tags is None:
        tags = _Tags((_MM_PER_INCH / image.spacing[1], _MM_PER_INCH / image.spacing[0]) if image.units == "mm" else None)
    exif = PIL.Image.Exif()
    if tags.orientation != 1:
        exif[_ORIENTATION] = tags.orientation
    with Watched(path, go_on) as file:
        picture.save(file, format="PNG", **({"dpi": tags.density} if tags.density else {}), **({"exif": exif} if len(exif) else {}))


def _opened(path: Path) -> PIL.Image.Image:
    """A picture of any size: Pillow's own way to open one refuses what a slide scanner makes, as a guard for servers."""
    with path.open("rb") as file:
        is_png = file.read(len(_PNG_SIGNATURE)) == _PNG_SIGNATURE
    return PngImageFile(path) if is_png else JpegImageFile(path)


def _pixels(path: Path, picture: PIL.Image.Image) -> npt.NDArray[Any]:
    """(rows, cols) or (rows, cols, samples): what the picture looks like."""
    bits, colour_type = _png_header(path)
    if bits == 16 and colour_type in (2, 4, 6):
        with _opened(path) as unread:
            unread.verify()  # the checksums, too
        deep: npt.NDArray[Any] = imagecodecs.png_decode(path.read_bytes())
        return deep
    if picture.mode in ("1", "I"):
        return _array(picture).astype(np.uint8 if picture.mode == "1" else np.uint16)
    return _array(picture, "" if picture.mode in ("L", "LA", "RGB", "RGBA", "I;16", "I;16B") else "RGB")


def _indices(path: Path, picture: PIL.Image.Image) -> npt.NDArray[Any]:
    """(rows, cols[, samples]): the numbers that are stored in a PNG, whatever colours they stand for."""
    if picture.mode == "P":
        return _array(picture)
    array = _pixels(path, picture)
    bits, colour_type = _png_header(path)
    # Pillow stretches grey values of 2 and 4 bits to the range of 8.
    return array // (255 // (2**bits - 1)) if colour_type == 0 and bits in (2, 4) else array


def _array(picture: PIL.Image.Image, mode: str = "") -> npt.NDArray[Any]:
    """(rows, cols) or (rows, cols, samples): a picture, converted if a mode is given.

    Some rows at a time: Pillow converts pixels, and gives back memory, without letting go of Python's lock, and the window waits.
    """
    width, height = picture.size
    rows, array = max(_STRIP_PIXELS // width, 1), None
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(top + rows, height)))
        part = np.asarray(strip.convert(mode) if mode else strip)
        if array is None:
            array = np.empty((height, *part.shape[1:]), part.dtype)
        array[top : top + rows] = part
    assert array is not None
    return array


@contextmanager
def _large_blocks() -> Iterator[None]:
    """Meanwhile Pillow takes memory in pieces so large that nobody has to fill them with zeros: it does so with Python's lock."""
    memory: Any = PIL.Image.core  # type: ignore[attr-defined] # documented, "Block allocator" in Pillow's reference
    usual = memory.get_block_size()
    memory.set_block_size(_BLOCK_BYTES)
    try:
        yield
    finally:
        memory.set_block_size(usual)


def _png_header(path: Path) -> tuple[int, int]:
    """Bits per sample and colour type of a PNG; (8, -1) of anything else."""
    with path.open("rb") as file:
        head = file.read(26)
    return (head[24], head[25]) if head.startswith(_PNG_SIGNATURE) else (8, -1)
