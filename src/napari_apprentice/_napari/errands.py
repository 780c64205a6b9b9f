"""What the main thread sends to the worker, which answers still count, and what the user reads meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from napari.utils.notifications import show_error, show_warning
from qtpy.QtCore import QObject, Signal

from napari_apprentice._napari.worker import Task, Worker
from napari_apprentice.types import ApprenticeError

__all__ = ["Errands"]

_log = logging.getLogger(__name__)


class Errands(QObject):
    """One worker, and a generation number: an answer counts as long as that is what it was when the errand was sent.

    Parameters
    ----------
    words : for the status line, as long as nothing else is said
    """

    said = Signal(str)
    """What is going on, in words for a status line."""
    busy_changed = Signal(bool)
    """Whether the worker has something to do."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words
        self._generation = 0
        self.worker = Worker()
        self.worker.activity_changed.connect(self._on_activity)

    def send(
        self,
        words: str | Callable[[], str],
        work: Callable[[], Any],
        then: Callable[[Any], None],
        otherwise: Callable[[], None] = lambda: None,
        dropped: Callable[[Any], None] = lambda result: None,
        between: bool = False,
        lasting: bool = False,
    ) -> None:
        """Queue ``work``, see `Task`.

        Parameters
        ----------
        then, otherwise : get the answer, or are called after an error was told; only if the answer still counts
        dropped : gets the answer if it counts no longer
        between : whether it may be done before learning that goes on has ended
        lasting : whether the program may not end before
        """
        generation = self._generation

        def answered(result: Any) -> None:
            (then if generation == self._generation else dropped)(result)

        def failed(error: Exception) -> None:
            self.report(error)
            if generation == self._generation:
                otherwise()

        self.worker.submit(Task(_saying(words), work, answered, failed, between, lasting))
        self.busy_changed.emit(True)

    def drop_answers(self) -> None:
        """What was sent is still done, and its errors are told, but no answer to it counts any longer."""
        self._generation += 1

    def say(self, words: str) -> None:
        """Show words in the status line, once nothing is going on any more."""
        self._words = words
        if not self.worker.waiting:
            self.said.emit(words)

    def tell(self, sentence: str) -> None:
        """Show one sentence as a notification."""
        show_warning(sentence)

    def report(self, error: Exception) -> None:
        """Tell the user of an error in one sentence."""
        if isinstance(error, ApprenticeError):
            self.tell(str(error))
            return
        _log.error("unexpected error in a session", exc_info=error)
        show_error(f"Something unexpected went wrong ({type(error).__name__}: {error}); the session is as it was before.")

    def _on_activity(self, words: str) -> None:
        self.said.emit(f"{words} …" if words else self._words)
        if not words:
            self.busy_changed.emit(False)


def _saying(words: str | Callable[[], str]) -> Callable[[], str]:
    return (lambda: words) if isinstance(words, str) else words
