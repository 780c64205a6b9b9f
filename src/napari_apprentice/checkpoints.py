"""What a model has learnt, on disk beside the journal: the newest few versions, each whole or absent."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from napari_apprentice.types import ApprenticeError, WriteError

__all__ = ["KEPT", "Checkpoints", "SnapshotStore"]

KEPT = 3
"""So many of the newest checkpoints stay."""


class SnapshotStore(Protocol):
    """Turns what a segmenter has learnt into a file and back."""

    def save(self, snapshot: Any, path: Path, facts: Mapping[str, str] | None = None, *, pictures: bool = True) -> None:
        """Write a snapshot to a file. Whoever calls moves the file to its name when it is whole.

        ``facts`` are for people who read the file; without ``pictures`` nothing of the images that were learnt from is in it.
        """

    def load(self, path: Path) -> Any:
        """The snapshot, bit for bit; an `ApprenticeError` or OSError where the file is missing or damaged, or hangs on other weights."""

    def carry(self, path: Path) -> Any:
        """What of a snapshot that was made on top of other weights holds on top of these, too; an `ApprenticeError` where nothing does."""

    def distance(self, first: Any, second: Any) -> float:
        """Norm of the difference of the weights over the norm of the first ones."""


class Checkpoints:
    """The checkpoints in one folder.

    Parameters
    ----------
    store : how a snapshot becomes a file
    folder : where the files lie
    """

    def __init__(self, store: SnapshotStore, folder: Path) -> None:
        self._store = store
        self._folder = folder

    def save(self, snapshot: Any, name: str) -> None:
        """Write a checkpoint: after a crash at any moment it is there and whole, or it is not there.

        Raises
        ------
        WriteError : it cannot be written
        """
        path, unfinished = self._folder / name, self._folder / f"unfinished-{name}"
        try:
            self._store.save(snapshot, unfinished)
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            if isinstance(error, WriteError):
                raise
            raise WriteError(f"the model cannot be written to {path} ({error.strerror}); expected free space and permission") from error

    def load(self, name: str) -> Any | None:
        """A snapshot; None if it is missing or damaged, for whatever it holds can also be learnt again."""
        try:
            return self._store.load(self._folder / name)
        except (ApprenticeError, OSError):
            return None

    def ensure(self, snapshot: Any, name: str) -> None:
        """Write a checkpoint that was cleared away, if that is possible: without it only time is lost."""
        if not (self._folder / name).exists():
            with suppress(WriteError):
                self.save(snapshot, name)

    def keep_newest(self, names: Sequence[str], also: Iterable[str] = ()) -> None:
        """Delete all checkpoints but the last few of ``names``, and ``also`` those."""
        kept = {*names[-KEPT:], *also}
        for path in self._folder.glob("*model-*.checkpoint"):
            if path.name not in kept:
                with suppress(OSError):
                    path.unlink()
