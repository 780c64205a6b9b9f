"""Text: files that are whole at every moment, and counts that agree with their nouns."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from contextlib import suppress
from pathlib import Path

from napari_apprentice.types import WriteError

__all__ = ["counted", "is_utf8", "write_text"]


def counted(number: int, what: str) -> str:
    """So many of something: "1 case", "2 cases"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def is_utf8(text: str) -> bool:
    """Whether a text can be UTF-8, which is not so of a file name in another encoding."""
    return text.encode(errors="ignore").decode() == text


def write_text(path: Path | str, text: str) -> None:
    r"""Write a text file, and the folders that it lies in: after a crash at any moment it is the old one or the new one, whole.

    A symbolic link stays one, and a file keeps its permissions. Pipes, devices and the output of this process get the text as it comes.
    What UTF-8 has no place for, as in names of files that are not in UTF-8, is written as an escape such as ``\udcff``.

    Raises
    ------
    WriteError : it cannot be written; the old one stays
    """
    path = Path(path)
    if own := {"/dev/stdout": sys.stdout, "/dev/stderr": sys.stderr}.get(str(path)):
        print(text, end="", file=own, flush=True)
        return
    target = Path(os.path.realpath(path))
    unfinished = target.with_name(f".{uuid.uuid4().hex}.unfinished")
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, "utf-8", "backslashreplace")
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, unfinished)
        os.replace(unfinished, target)
    except OSError as error:
        raise WriteError(f"{path} cannot be written ({error.strerror}); expected free space and permission") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
