"""Sessions on their way: opened anew or resumed, or continued with another model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_apprentice._napari import storage
from napari_apprentice._napari.answers import Opened, continued
from napari_apprentice._napari.engine import Engine, Wish
from napari_apprentice._napari.errands import Errands
from napari_apprentice._napari.leftovers import left_by, same, seal_of
from napari_apprentice._napari.placement import image_of
from napari_apprentice._napari.worker import Task
from napari_apprentice.origins import Origin
from napari_apprentice.types import ApprenticeError

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image as ImageLayer
    from napari.layers import Labels

    from napari_apprentice.session import Session

__all__ = ["Opener"]


class Opener:
    """Opens one session at a time in the worker, and closes every session that nobody waits for any longer.

    Parameters
    ----------
    viewer : where the layers are
    engine : opens sessions
    errands : how it gets to the worker and to the user

    Attributes
    ----------
    opening : whether a session has been asked for and is not there yet
    changing : whether another model for a session has been asked for and is not there yet
    """

    def __init__(self, viewer: ViewerModel, engine: Engine, errands: Errands) -> None:
        self._viewer, self._engine, self._errands = viewer, engine, errands
        self.opening = self.changing = False

    def look_for_earlier(self, layer: ImageLayer, then: Callable[[Path | None], None]) -> None:
        """Find the folder of the newest earlier session of the image in a layer; None if there is none."""
        try:
            image = image_of(layer)
        except ApprenticeError:
            then(None)
            return
        self._errands.send("looking for earlier sessions", lambda: storage.newest_folder(image), then)

    def open(self, layer: ImageLayer, wish: Wish, then: Callable[[Opened, Labels | None], None], otherwise: Callable[[], None]) -> bool:
        """Open a session on ``layer``.

        Parameters
        ----------
        then : gets the session, and the labels layer that this very session left here if that is still as it was
        otherwise : called where no session came, or its image is gone

        Returns
        -------
        whether it is on its way; if not, the user was told why
        """
        try:
            image = image_of(layer)
        except ApprenticeError as error:
            self._errands.report(error)
            return False
        left = left_by(wish.resume, layer, self._viewer.layers) if wish.resume is not None else []
        shown = [(each, each.data, seal_of(each)) for each in left]

        def work() -> tuple[Opened, Labels | None]:
            folder = wish.resume or storage.fresh_folder(image)
            opened = Opened.of(self._engine(image, wish, folder), folder)
            return opened, next((each for each, data, seal in shown if same(data, opened.labels) or seal.holds(data)), None)

        def here(answer: tuple[Opened, Labels | None]) -> None:
            opened, left = answer
            self.opening = False
            if layer in self._viewer.layers:
                then(opened, left if left in left_by(opened.folder, layer, self._viewer.layers) else None)
            else:
                self.close(opened.session)
                otherwise()

        def failed() -> None:
            self.opening = False
            otherwise()

        self.opening = True
        self._errands.send("loading the model", work, here, failed, dropped=lambda answer: self.close(answer[0].session))
        return True

    def change_model(self, session: Session, folder: Path, wish: Wish, then: Callable[[Opened, Exception | None], None]) -> None:
        """Go on with the model of ``wish`` in a new session: the same labels, and the same clicks answered anew.

        Parameters
        ----------
        session, folder : what goes on; the session is closed as soon as the other one is there
        then : gets the other session; where it did not come, the same one and why
        """

        def work() -> tuple[Opened, Exception | None]:
            try:
                fresh = storage.fresh_folder(session.image)
                again = replace(wish, resume=None, knowledge=None)

                def anew(labels: Any, origins: Mapping[int, Origin]) -> Session:
                    return self._engine(session.image, replace(again, labels=labels, origins=origins), fresh)

                chosen = continued(session, anew)
            except Exception as error:
                return Opened.of(session, folder), error
            return Opened.of(chosen, fresh), None

        def here(answer: tuple[Opened, Exception | None]) -> None:
            opened, error = answer
            self.changing = False
            if opened.session is not session:
                self.close(session)
            then(opened, error)

        def dropped(answer: tuple[Opened, Exception | None]) -> None:
            if answer[0].session is not session:  # who dropped it has closed that one
                self.close(answer[0].session)

        def failed() -> None:
            self.changing = False

        self.changing = True
        self._errands.send("changing the model", work, here, failed, dropped=dropped)

    def let_go(self) -> None:
        """Wait for no session any longer; what was asked for is closed when it comes."""
        self.opening = self.changing = False

    def close(self, session: Session) -> None:
        """Let go of its journal, as the last thing that is done with it."""
        self._errands.worker.submit(Task(lambda: "closing the session", session.close))
