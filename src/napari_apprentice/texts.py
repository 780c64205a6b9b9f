"""Text: files that are whole at every moment, and counts that agree with their nouns."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

from napari_apprentice.types import WriteError

__all__ = ["counted", "write_text"]


def counted(number: int, what: str) -> str:
    """So many of something: "1 case", "2 cases"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def write_text(path: Path | str, text: str) -> None:
    """Write a text file, and the folders that it lies in: after a crash at any moment it is the old one or the new one, whole.

    Raises
    ------
    WriteError : it cannot be written; the old one stays
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        raise WriteError(f"{path} cannot be written ({error.strerror}); expected free space and permission") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
