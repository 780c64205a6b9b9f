"""What the slices of the object at work are, found out without asking twice."""

from __future__ import annotations

from qtpy.QtCore import QObject, Signal

from napari_apprentice._napari.answers import SliceView
from napari_apprentice._napari.desk import Desk
from napari_apprentice._napari.errands import Errands

__all__ = ["Surveyor"]


class Surveyor(QObject):
    """Asks a session for its slices, once at a time: the answer is about whatever is done until then.

    Parameters
    ----------
    errands : how it gets to the worker
    """

    found = Signal(object)
    """`SliceView` of the object at work, or None where no slice of a volume is shown."""

    def __init__(self, errands: Errands) -> None:
        super().__init__()
        self._errands = errands
        self._asked = False

    def survey(self, desk: Desk | None) -> None:
        """Find out what the slices of the object at work are, across the axis that is shown; `found` tells."""
        plane = desk.plane if desk is not None and desk.session.image.ndim == 3 else None
        if desk is None or plane is None:
            self.found.emit(None)
            return
        if self._asked:
            return
        self._asked = True
        session, axis, flipped = desk.session, plane.axis, desk.flipped

        def then(view: SliceView) -> None:
            self._asked = False
            self.found.emit(view)
            if (now := desk.plane) is not None and now.axis != axis:
                self.survey(desk)

        self._errands.send("", lambda: SliceView.of(session, axis, flipped), then, self.let_go, between=True)

    def let_go(self) -> None:
        """Wait for the answer no longer."""
        self._asked = False
