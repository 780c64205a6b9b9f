"""An object that is being carried through the volume, and the way through the slices where it should be corrected."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject, Signal

from napari_apprentice._napari import keys
from napari_apprentice._napari.answers import Answer, Propagation, advice
from napari_apprentice._napari.errands import Errands
from napari_apprentice._napari.key_choice import KeyChoice
from napari_apprentice._napari.sitting import Sitting
from napari_apprentice.types import Plane

if TYPE_CHECKING:
    from napari_apprentice.session import Doubt

__all__ = ["Carrier"]

LOOK_NEXT = "{} shows where a correction helps most"


class Carrier(QObject):
    """Carries one object at a time, and remembers which doubtful slice it led to last.

    Parameters
    ----------
    errands : how it gets to the worker and to the user
    key_choice : what the user is told to press
    """

    going_changed = Signal(bool)
    """Whether an object is being carried through the volume."""
    progressed = Signal(int, int)
    """How many slices that has reached, and how many there are; emitted in the worker."""

    def __init__(self, errands: Errands, key_choice: KeyChoice) -> None:
        super().__init__()
        self._errands, self._key_choice = errands, key_choice
        self._propagation: Propagation | None = None
        self._led: tuple[int, Plane] | None = None
        self._queued: list[tuple[Sitting, int, int]] = []
        self.progressed.connect(self._on_progress)

    @property
    def going(self) -> bool:
        """Whether an object is being carried, or is about to be."""
        return self._propagation is not None

    def carry(self, sitting: Sitting, axis: int, label: int | None = None) -> None:
        """Carry an object across ``axis``, by default the one at work (see `Session.candidate`).

        While one is being carried, one that is named is carried after it.
        """
        if self._propagation is not None:
            if label is not None:
                self._queued.append((sitting, axis, label))
            return

        def then(answer: Answer) -> None:
            self._end()
            sitting.take(answer)
            if self._queued:
                self.carry(*self._queued.pop(0))

        def otherwise(*_: object) -> None:
            self._queued.clear()
            self._end()

        hint = LOOK_NEXT.format(self._key_choice.readable(keys.DOUBTFUL))
        self._propagation = Propagation(sitting.session, axis, self._tell_progress, label, hint)
        self._errands.send("propagating", self._propagation, then, otherwise=otherwise)
        self.going_changed.emit(True)

    def cancel(self) -> None:
        """Call it off, and what is to be carried after it: everything stays as it was."""
        self._queued.clear()
        if self._propagation is not None:
            self._propagation.cancel()

    def let_go(self) -> None:
        """Call it off without waiting for it, and forget which slice was led to."""
        self._led = None
        self._queued.clear()
        if self._propagation is not None:
            self.cancel()
            self._end()

    def lead(self, sitting: Sitting) -> None:
        """Show the carried slice whose correction helps most; asked again there, the next one. Its object is opened, to be corrected."""
        if not sitting.state.doubts:
            self._errands.say("no slice is doubtful: propagate an object first")
            return
        session = sitting.session
        self._errands.send("", lambda: advice(session), lambda doubts: self._lead_to(sitting, doubts), between=True)

    def _lead_to(self, sitting: Sitting, doubts: Sequence[Doubt]) -> None:
        """Go to the first of some slices; from the one that this led to last, to the one after that."""
        if not doubts:
            return
        desk, state = sitting.desk, sitting.state
        known = [(doubt.label, doubt.plane) for doubt in doubts]
        after = known.index(self._led) + 1 if self._led in known and self._led[1] == desk.plane else 0
        doubt = doubts[after % len(doubts)]
        self._led = (doubt.label, doubt.plane)
        desk.show_plane(doubt.plane)
        words = f"slice {doubt.plane.index} of object {doubt.label}: expected IoU {1 - doubt.error:.2f}"
        if state.label == doubt.label:
            self._errands.say(f"{words}; click where it is wrong")
        elif state.clicks:
            self._errands.say(f"{words}; accept object {state.label} before you correct it")
        else:
            sitting.act("selecting", lambda session: session.select(doubt.label), f"{words}; click where it is wrong")

    def _end(self) -> None:
        self._propagation = self._led = None
        with suppress(RuntimeError):  # Qt deleted the object while the application was closing
            self.going_changed.emit(False)

    def _tell_progress(self, done: int, total: int) -> None:
        """Called in the worker."""
        with suppress(RuntimeError):  # Qt deleted the object while the application was closing
            self.progressed.emit(done, total)

    def _on_progress(self, done: int, total: int) -> None:
        if self._propagation is not None:
            self._errands.said.emit(f"propagating: {done} of {total} slices …")
