"""Labels that are being written to a file, and the files that were written from this window."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from napari.utils.notifications import show_info
from qtpy.QtCore import QObject, Signal

from napari_apprentice._napari.answers import Fingerprint, Saving, fingerprint
from napari_apprentice._napari.errands import Errands

if TYPE_CHECKING:
    from napari_apprentice.session import Session

__all__ = ["NOT_SAVED", "Saver"]

NOT_SAVED = "nothing was saved; an older file is as it was"


class Saver(QObject):
    """Writes the labels of a session, once at a time, and knows the files of every session again.

    Parameters
    ----------
    errands : how it gets to the worker and to the user
    """

    going_changed = Signal(bool)
    """Whether labels are being written."""

    def __init__(self, errands: Errands) -> None:
        super().__init__()
        self._errands = errands
        self._saving: Saving | None = None
        self._written: dict[Path, tuple[Path, Fingerprint]] = {}

    @property
    def going(self) -> bool:
        """Whether labels are being written, or are about to be."""
        return self._saving is not None

    def may_write(self, path: Path, folder: Path) -> bool:
        """Whether ``path`` is free, or holds what the session in ``folder`` wrote there through this very object, unchanged since."""
        return not path.exists() or self._written.get(path.resolve()) == (folder, fingerprint(path))

    def save(self, session: Session, folder: Path, path: Path) -> None:
        """Write the labels of the session in ``folder``, as they are when all that was sent before is done; one file at a time."""
        if self._saving is not None:
            return
        self._saving = Saving(session, path)
        self._errands.send("saving", self._saving, lambda result: self._on_saved(folder, result), otherwise=self.let_go, lasting=True)
        self.going_changed.emit(True)

    def cancel(self) -> None:
        """Call it off; an older file stays as it was."""
        if self._saving is not None:
            self._saving.cancel()

    def let_go(self) -> None:
        """Wait for the answer no longer; the file is still written."""
        if self._saving is not None:
            self._saving = None
            with suppress(RuntimeError):  # Qt deleted the object while the application was closing
                self.going_changed.emit(False)

    def _on_saved(self, folder: Path, result: tuple[Path, Fingerprint] | None) -> None:
        self.let_go()
        if result is None:
            self._errands.say(NOT_SAVED)
            return
        written, mark = result
        self._written[written] = (folder, mark)
        self._errands.say(f"saved to {written.name}")
        show_info(f"The labels are saved in {written}.")
