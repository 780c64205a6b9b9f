"""Between napari's layers and the session: the only place that lets one change the other.

The session lives in the worker thread: every call of it is a task, done in the order of the user's actions. The main
thread knows of it only by values, `State` and changed boxes, that come back with each answer. Answers of a session that
has been closed meanwhile are dropped by their generation number.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.notifications import show_error, show_info, show_warning
from qtpy.QtCore import QObject, QTimer, Signal

from napari_apprentice import files
from napari_apprentice._napari import keys, storage
from napari_apprentice._napari.click_layer import ClickLayer
from napari_apprentice._napari.engine import Engine, Wish, default_engine
from napari_apprentice._napari.mask_layer import Box, MaskLayer, own_copy
from napari_apprentice._napari.placement import image_of, shown_straight
from napari_apprentice._napari.state import Answer, State, boxes_of
from napari_apprentice._napari.strokes import Stroke
from napari_apprentice._napari.worker import Task, Worker
from napari_apprentice.types import ApprenticeError, Click, Image

if TYPE_CHECKING:
    import numpy.typing as npt
    from napari.components import ViewerModel
    from napari.layers import Image as ImageLayer

    from napari_apprentice.session import Change, Session

__all__ = ["NOTHING_OPEN", "Bridge"]

_log = logging.getLogger(__name__)

NOTHING_OPEN = "choose an image and press Start"
FIRST_CLICK = "click inside an object"
NEXT_CLICK = f"good? press {keys.KEYS[keys.ACCEPT]}; if not, click where it is wrong (Ctrl+click: outside)"
LAYERS_REMOVED = "One of the session's layers was removed, so the session is closed; Resume brings it back."
LABELS_KEPT = "The labels belong to the session, so they were put back; duplicate the layer to edit all of it at once."
STRAIGHT = "This volume stands oblique to the world axes, so it is shown straight; saved labels keep its true place."


@dataclass(frozen=True, eq=False)
class _Open:
    """A session with its layers."""

    session: Session
    image: Image
    image_layer: ImageLayer
    clicks: ClickLayer
    mask: MaskLayer
    keys: keys.LayerKeys


class Bridge(QObject):
    """One viewer, at most one session, one worker. All methods are for the main thread, and none of them waits.

    Parameters
    ----------
    viewer : the viewer
    engine : opens sessions
    """

    state_changed = Signal(object)
    """`State` of the open session; None when there is none."""
    said = Signal(str)
    """What is going on, in words for a status line."""
    busy_changed = Signal(bool)
    """Whether the worker has something to do."""
    sign_changed = Signal(bool)
    """Whether a plain click is positive."""
    earlier_found = Signal(object, object)
    """The image layer that was asked about, and the folder of its newest earlier session or None."""

    def __init__(self, viewer: ViewerModel, engine: Engine = default_engine) -> None:
        super().__init__()
        self._viewer, self._engine = viewer, engine
        self._generation = 0
        self._open: _Open | None = None
        self._opening = False
        self._state: State | None = None
        self._asked: deque[Click] = deque()
        self._late: list[Box] = []
        self._written: dict[Path, tuple[int, int]] = {}
        self._positive = True
        self._words = NOTHING_OPEN
        self.worker = Worker()
        self.worker.activity_changed.connect(self._on_activity)
        viewer.layers.events.removed.connect(self._on_layer_removed)

    # ---------------------------------------------------------------------------------------------- the life of a session

    @property
    def state(self) -> State | None:
        """What is known of the open session; None when there is none."""
        return self._state

    @property
    def opening(self) -> bool:
        """Whether a session has been asked for and is not there yet."""
        return self._opening

    @property
    def image(self) -> Image | None:
        """The image of the open session; None when there is none."""
        return self._open.image if self._open else None

    def start(self, layer: ImageLayer, wish: Wish) -> None:
        """Open a session on ``layer``; its layers appear as soon as the model is loaded."""
        self.stop()
        try:
            image = image_of(layer)
        except ApprenticeError as error:
            self._report(error)
            return

        def work() -> tuple[Session, npt.NDArray[Any], State]:
            session = self._engine(image, wish, wish.resume or storage.fresh_folder(image))
            return session, own_copy(session.labels), State.of(session)

        self._opening = True
        self._submit(
            "loading the model",
            work,
            then=lambda opened: self._on_opened(layer, image, *opened),
            otherwise=self._on_not_opened,
            dropped=lambda opened: self._close_session(opened[0]),
        )
        self.state_changed.emit(None)

    def look_for_earlier(self, layer: ImageLayer) -> None:
        """Find out whether there is a session of this image to resume; `earlier_found` tells."""
        try:
            image = image_of(layer)
        except ApprenticeError:
            self.earlier_found.emit(layer, None)
            return
        self._submit(
            "looking for earlier sessions",
            lambda: storage.newest_folder(image),
            lambda folder: self.earlier_found.emit(layer, folder),
        )

    def stop(self) -> None:
        """Close the session: what is queued is still done (and journaled), but its answers are dropped."""
        self._generation += 1
        self._opening = False
        closing, self._open = self._open, None
        if closing is None:
            return
        self._state = None
        self._asked.clear()
        self._late.clear()
        closing.keys.release()
        closing.clicks.close()
        closing.mask.close()
        if closing.clicks.layer in self._viewer.layers:
            self._viewer.layers.remove(closing.clicks.layer)
        self._close_session(closing.session)
        self._say("the session is closed")
        self.state_changed.emit(None)

    def close(self) -> None:
        """Stop, disconnect, and let the worker's thread end once its queue is done."""
        self.stop()
        self._viewer.layers.events.removed.disconnect(self._on_layer_removed)
        self.worker.close()

    # ------------------------------------------------------------------------------------------------------------- wishes

    @property
    def positive(self) -> bool:
        """Whether a plain click is positive."""
        return self._positive

    @positive.setter
    def positive(self, positive: bool) -> None:
        self._positive = positive
        if self._open:
            self._open.clicks.positive = positive
        self.sign_changed.emit(positive)

    def switch_sign(self) -> None:
        """Make a plain click negative if it is positive, and the other way round."""
        self.positive = not self.positive

    def click(self, click: Click) -> None:
        """Add a click to the open object. It is drawn at once; its mask follows."""
        if self._open is None:
            return
        self._asked.append(click)
        self._draw_clicks()
        self._ask("predicting", lambda session: session.add(click), NEXT_CLICK, is_click=True)

    def undo(self) -> None:
        """Take the last action back: click, mask and model together."""
        if self._state and not self._state.can_undo and not self.worker.waiting:
            self._say("there is nothing to undo")
        else:
            self._ask("undoing", lambda session: session.undo(), "undone")

    def redo(self) -> None:
        """Do again what was taken back last."""
        if self._state and not self._state.can_redo and not self.worker.waiting:
            self._say("there is nothing to redo")
        else:
            self._ask("redoing", lambda session: session.redo(), "redone")

    def accept(self) -> None:
        """Finish the open object. It shows at once as accepted; learning from it is the next task, ahead of later clicks."""
        if self._open is None:
            return
        accepted: list[int] = []

        def finish(session: Session) -> Change:
            label = session.label
            change = session.accept(learn=False)
            accepted.append(label)
            return change

        def learn(session: Session) -> str:
            report = session.learn() if accepted else None
            return report.message if report else ""

        self._ask("accepting", finish, lambda: f"accepted: object {accepted[0]}")
        self._ask(lambda: f"learning from object {accepted[0]}" if accepted else "", learn)

    def discard(self) -> None:
        """Drop the open object's clicks and mask."""
        self._ask("discarding", lambda session: session.discard(), "discarded")

    def select(self, label: int) -> None:
        """Open the object ``label``, an accepted one or a new one."""
        if self._state is None or self._state.label != label:
            self._ask("selecting", lambda session: session.select(label), f"object {label} is open")

    def forget(self) -> None:
        """Make the model what it was when the session began; clicks and labels stay."""
        self._ask("forgetting", lambda session: session.forget(), "the model has forgotten what it learnt here")

    def may_write(self, path: Path) -> bool:
        """Whether ``path`` is free, or holds what this window wrote there itself, unchanged since."""
        try:
            stat = path.stat()
        except FileNotFoundError:
            return True
        return self._written.get(path.resolve()) == (stat.st_size, stat.st_mtime_ns)

    def save(self, path: Path) -> None:
        """Write the labels, as they are when all earlier actions are done, with the image's geometry."""
        if self._open is None:
            return
        session, image = self._open.session, self._open.image

        def work() -> tuple[Path, tuple[int, int]]:
            written = files.write(path, session.labels, like=image)
            stat = written.stat()
            return written.resolve(), (stat.st_size, stat.st_mtime_ns)

        def then(result: tuple[Path, tuple[int, int]]) -> None:
            written, fingerprint = result
            self._written[written] = fingerprint
            self._say(f"saved to {written.name}")
            show_info(f"The labels are saved in {written}.")

        self._submit("saving", work, then)

    # -------------------------------------------------------------------------------------------------- to the worker

    def _submit(
        self,
        words: str | Callable[[], str],
        work: Callable[[], Any],
        then: Callable[[Any], None],
        otherwise: Callable[[], None] = lambda: None,
        dropped: Callable[[Any], None] = lambda result: None,
    ) -> None:
        """Queue ``work``; its answer counts only while this generation lasts, but its errors are always told."""
        generation = self._generation

        def answered(result: Any) -> None:
            (then if generation == self._generation else dropped)(result)

        def failed(error: Exception) -> None:
            self._report(error)
            if generation == self._generation:
                otherwise()

        self.worker.submit(Task(_saying(words), work, answered, failed))
        self.busy_changed.emit(True)

    def _ask(
        self,
        doing: str | Callable[[], str],
        action: Callable[[Session], Change | str],
        done: str | Callable[[], str] = "",
        *,
        is_click: bool = False,
    ) -> None:
        """Queue one action of the session, which answers with a change or with words.

        A session refuses by raising and is then as it was, so its state always comes back.
        """
        if self._open is None:
            return
        session = self._open.session

        def work() -> Answer:
            try:
                result = action(session)
            except Exception as error:
                return Answer(State.of(session), error=error)
            if isinstance(result, str):
                return Answer(State.of(session), words=result)
            return Answer(State.of(session), boxes_of(result), _saying(done)())

        def then(answer: Answer) -> None:
            if is_click:
                self._asked.popleft()
            self._take(answer, may_wait=is_click)

        self._submit(doing, work, then)

    def _close_session(self, session: Session) -> None:
        """Let go of its journal, as the last thing that is done with it."""
        self.worker.submit(Task(_saying("closing the session"), session.close))

    # ------------------------------------------------------------------------------------------------ from the worker

    def _take(self, answer: Answer, *, may_wait: bool = False) -> None:
        """Show an answer; while newer clicks wait for theirs, the labels are drawn with the newest one only."""
        assert self._open is not None
        self._state = answer.state
        self._late.extend(answer.boxes)
        if not (may_wait and self._asked):
            boxes, self._late = self._late, []
            self._open.mask.write(boxes)
        self._draw_clicks()
        self._open.mask.choose(answer.state.label)
        if answer.words:
            self._say(answer.words)
        if answer.error is not None:
            self._report(answer.error)
        self.state_changed.emit(self._state)

    def _on_opened(self, image_layer: ImageLayer, image: Image, session: Session, labels: npt.NDArray[Any], state: State) -> None:
        self._opening = False
        if image_layer not in self._viewer.layers:
            self._close_session(session)
            self._say(NOTHING_OPEN)
            self.state_changed.emit(None)
            return
        clicks = ClickLayer(self._viewer, image_layer, image.shape, clicked=self.click, undo=self.undo, tell=self._tell)
        mask = MaskLayer(image, image_layer, labels, painted=self._on_painted, replaced=self._on_replaced, undo=self.undo, redo=self.redo)
        bound = keys.LayerKeys(
            {
                keys.UNDO: self.undo,
                keys.REDO: self.redo,
                keys.SWITCH_SIGN: self.switch_sign,
                keys.ACCEPT: self.accept,
                keys.DISCARD: self.discard,
            }
        )
        self._open = _Open(session, image, image_layer, clicks, mask, bound)
        self._state = state
        for layer in (mask.layer, clicks.layer):
            self._viewer.add_layer(layer)
            bound.bind(layer)
        bound.bind(image_layer)
        self.positive = True
        self._draw_clicks()
        mask.choose(state.label)
        clicks.take_clicks()
        self._say(NEXT_CLICK if state.clicks else FIRST_CLICK)
        if shown_straight(image):
            show_info(STRAIGHT)
        self.state_changed.emit(state)

    def _on_not_opened(self) -> None:
        self._opening = False
        self._say(NOTHING_OPEN)
        self.state_changed.emit(None)

    def _on_activity(self, words: str) -> None:
        self.said.emit(f"{words} …" if words else self._words)
        if not words:
            self.busy_changed.emit(False)

    # ---------------------------------------------------------------------------------------------------- from the layers

    def _on_painted(self, stroke: Stroke) -> None:
        """Pass a stroke on as a difference: answers that are still to come must not be painted over."""
        assert self._open is not None
        session, mask = self._open.session, self._open.mask

        def work() -> Answer:
            error = None
            try:
                session.paint(stroke.region, stroke.over(session.labels, protected=session.finished))
            except Exception as caught:
                error = caught
            box = stroke.region, np.array(session.labels[stroke.region])
            return Answer(State.of(session), (box,), "painted", error)

        def then(answer: Answer) -> None:
            mask.stroke_answered(stroke)
            self._take(answer)

        self._submit("taking the painting over", work, then)

    def _on_replaced(self) -> None:
        assert self._open is not None
        session, mask = self._open.session, self._open.mask
        self._tell(LABELS_KEPT)
        self._submit("putting the labels back", lambda: own_copy(session.labels), mask.write_all)

    def _on_layer_removed(self, event: Any) -> None:
        if self._open and event.value in (self._open.image_layer, self._open.clicks.layer, self._open.mask.layer):
            self.stop()
            # A window that closes removes all its layers; that is nothing to tell anybody.
            QTimer.singleShot(0, lambda: self._tell(LAYERS_REMOVED) if len(self._viewer.layers) else None)

    def _draw_clicks(self) -> None:
        if self._open and self._state:
            self._open.clicks.draw((*self._state.clicks, *self._asked))

    # -------------------------------------------------------------------------------------------------------- to the user

    def _say(self, words: str) -> None:
        self._words = words
        if not self.worker.waiting:
            self.said.emit(words)

    def _tell(self, sentence: str) -> None:
        show_warning(sentence)

    def _report(self, error: Exception) -> None:
        if isinstance(error, ApprenticeError):
            self._tell(str(error))
            return
        _log.error("unexpected error in a session", exc_info=error)
        show_error(f"Something unexpected went wrong ({type(error).__name__}: {error}); the session is as it was before.")


def _saying(words: str | Callable[[], str]) -> Callable[[], str]:
    return (lambda: words) if isinstance(words, str) else words
