"""The keys that the annotator has: the usual ones, until those are known that were chosen in napari's preferences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtpy.QtCore import QObject, Signal

from napari_apprentice._napari import keys
from napari_apprentice._napari.errands import Errands
from napari_apprentice._napari.worker import Task

__all__ = ["KeyChoice"]


class KeyChoice(QObject):
    """Follows the preferences until it is closed. What cannot be is told once, not again with every other change.

    Parameters
    ----------
    errands : how it gets to the worker, which reads the preferences, and to the user
    """

    changed = Signal(object)
    """Wish → key, when the user has chosen another one."""

    def __init__(self, errands: Errands) -> None:
        super().__init__()
        self.bound: Mapping[str, str] = keys.KEYS
        """Wish → key."""
        self._errands = errands
        self._refused: tuple[str, ...] = ()
        self._settings: Any = None
        errands.worker.submit(Task(lambda: "", keys.settings, self._on_settings))  # napari takes a tenth of a second to read them

    def readable(self, wish: str) -> str:
        """The key of a wish as people write it."""
        return keys.readable(self.bound[wish])

    def close(self) -> None:
        """Follow the preferences no longer."""
        if self._settings is not None:
            self._settings.events.disconnect(self._on_chosen)

    def _on_settings(self, settings: Any) -> None:
        self._settings = settings
        if settings is not None:
            settings.events.connect(self._on_chosen)
            self._on_chosen()

    def _on_chosen(self) -> None:
        wanted, refused = keys.without_collisions(keys.chosen(self._settings))
        for sentence in refused:
            if sentence not in self._refused:
                self._errands.tell(f"{sentence}.")
        self._refused = refused
        if wanted != self.bound:
            self.bound = wanted
            self.changed.emit(wanted)
