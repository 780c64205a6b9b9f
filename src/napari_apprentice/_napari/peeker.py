"""The untaught model's answer, outlined while somebody wants to see it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from napari_apprentice._napari.answers import State
from napari_apprentice._napari.desk import Desk
from napari_apprentice._napari.errands import Errands
from napari_apprentice._napari.sitting import Sitting
from napari_apprentice.types import Plane

__all__ = ["Peeker"]


class _Peeked(NamedTuple):
    """What the untaught model said, and to what: an (H, W) mask in a plane, and the state whose clicks it is about."""

    state: State
    plane: Plane
    mask: npt.NDArray[np.bool_]


class Peeker:
    """Asks the untaught model, and keeps its newest answer for as long as it is about the clicks that there are.

    Parameters
    ----------
    errands : how it gets to the worker and to the user
    """

    def __init__(self, errands: Errands) -> None:
        self._errands = errands
        self._wanted = self._said = False
        self._newest: _Peeked | None = None

    def peek(self, on: bool, sitting: Sitting | None) -> None:
        """Outline what the untaught model would have said to the clicks of the open object, or no longer; nothing else changes."""
        self._wanted = on
        if sitting is None:
            return
        session, state = sitting.session, sitting.state
        if not on:
            sitting.desk.outline.hide()
            if self._said:
                self._said = False
                self._errands.say(sitting.next_click)
            return
        plane = sitting.clicked_plane
        if plane is None:
            self._errands.say("click on an object first, then see what the untaught model would have said")
            return

        def then(peeked: _Peeked) -> None:
            self._newest = peeked
            self._show(peeked, sitting)

        if self._newest is not None and self._newest.state is state and self._newest.plane == plane:
            self._show(self._newest, sitting)
        else:
            self._errands.send("asking the untaught model", lambda: _Peeked(state, plane, session.peek(plane).mask), then, between=True)

    def overtake(self, desk: Desk) -> None:
        """There is another state of the session: what is outlined was about fewer clicks."""
        if self._wanted:
            desk.outline.hide()

    def let_go(self) -> None:
        """Forget the answer."""
        self._newest = None

    def _show(self, peeked: _Peeked, sitting: Sitting) -> None:
        """Outline the answer if somebody still wants to see it, and it is about the clicks that there are."""
        if self._wanted and peeked.state is sitting.state:
            sitting.desk.outline.show(peeked.plane, peeked.mask)
            found, self._said = peeked.mask.any(), True
            self._errands.say(
                "outlined: what the untaught model would have said" if found else "the untaught model would have found nothing"
            )
