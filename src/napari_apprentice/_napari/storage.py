"""Where sessions are kept: a folder for every start, so that starting anew never touches an older journal."""

from __future__ import annotations

import re
from itertools import count, islice
from pathlib import Path

from napari_apprentice.cohorts import home
from napari_apprentice.journal import JOURNAL_NAME, fingerprint
from napari_apprentice.types import Image

__all__ = ["fresh_folder", "home", "newest_folder"]

_DIGITS = 12
"""Of the fingerprint, in the name of a folder."""


def newest_folder(image: Image) -> Path | None:
    """The folder of the newest session of this image in which something was done; None if there is none.

    One of an image of this name goes before those of the same voxels under another name, as the layer had before it was renamed.

    Reads some blocks of the image, so it is for the worker.
    """
    stem = _stem(image)
    ends = re.compile(rf".*{re.escape(stem.name[-_DIGITS - 1 :])}(-\d+)?")
    folders = [folder for folder in stem.parent.glob("*") if ends.fullmatch(folder.name)]
    used = [folder for folder in folders if _has_actions(folder / JOURNAL_NAME)]
    return max(used, key=lambda folder: (folder.name.startswith(stem.name), (folder / JOURNAL_NAME).stat().st_mtime), default=None)


def fresh_folder(image: Image) -> Path:
    """A folder for a new session of this image; it does not exist yet. For the worker, as `newest_folder`."""
    stem = _stem(image)
    candidates = (stem if number == 1 else stem.with_name(f"{stem.name}-{number}") for number in count(1))
    return next(folder for folder in candidates if not folder.exists())


def _stem(image: Image) -> Path:
    plain = re.sub(r"[^\w.-]+", "_", image.name)[:60] or "image"
    return home() / "sessions" / f"{plain}-{fingerprint(image)[:_DIGITS]}"


def _has_actions(journal: Path) -> bool:
    """Whether a journal has more than its first line, which only says what it is about."""
    try:
        with journal.open("rb") as file:
            return len(list(islice(file, 2))) == 2
    except OSError:
        return False
