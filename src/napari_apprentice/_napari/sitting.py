"""An open session at work: the user's wishes become its tasks, and the viewer shows every answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from napari_apprentice._napari import keys
from napari_apprentice._napari.answers import Acceptance, Answer, Opened, State, act, add, paint
from napari_apprentice._napari.desk import Desk
from napari_apprentice._napari.errands import Errands
from napari_apprentice._napari.key_choice import KeyChoice
from napari_apprentice._napari.mask_layer import Box, own_copy
from napari_apprentice._napari.strokes import Stroke
from napari_apprentice.types import Click, Plane

if TYPE_CHECKING:
    from napari_apprentice.session import Change, Session

__all__ = ["LABELS_KEPT", "Sitting"]

NEXT_CLICK = "good? press {}; if not, click where it is wrong (Ctrl+click: outside)"
OTHER_MASKS = "good? press {}; {} shows another mask; or click where this one is wrong (Ctrl+click: outside)"
LABELS_KEPT = "The labels belong to the session, so they were put back; duplicate the layer to edit all of it at once."
SPLIT_NOW = "“Split now”"
CLICK_PARTS = f"click once in every part of the object, then press {SPLIT_NOW}"
NOT_SPLIT = "nothing was split"
NOTHING_TO_SPLIT = "object {} has no mask yet, so there is nothing to split; {} opens the object under the pointer"
NOTHING_TO_UNDO, NOTHING_TO_REDO = "there is nothing to undo", "there is nothing to redo"


class Sitting:
    """Clicks are drawn at once, their masks when the answers come: of clicks in a row, with the answer to the newest one only.

    Parameters
    ----------
    desk : where the session is laid out
    state : of the session
    errands : how it gets to the worker and to the user
    key_choice : what the user is told to press
    overtaken : called when an answer has come, before it is shown
    changed : called when it has been shown
    splitting : called with whether clicks say where the parts of an object are, when that changes

    Attributes
    ----------
    desk : as given
    state : after the newest answer
    """

    def __init__(
        self,
        desk: Desk,
        state: State,
        errands: Errands,
        key_choice: KeyChoice,
        *,
        overtaken: Callable[[], None],
        changed: Callable[[], None],
        splitting: Callable[[bool], None],
    ) -> None:
        self.desk, self.state = desk, state
        self._errands, self._key_choice = errands, key_choice
        self._overtaken, self._changed, self._splitting = overtaken, changed, splitting
        self._asked: deque[Click] = deque()
        self._late: list[Box] = []
        self._seeds: list[Click] | None = None

    @property
    def session(self) -> Session:
        """It belongs to the worker."""
        return self.desk.session

    @property
    def clicked_plane(self) -> Plane | None:
        """The plane that is shown if it was clicked in for the open object, else that of the newest click; None without one."""
        planes, shown = [click.plane for click in self.state.clicks], self.desk.plane
        return shown if shown in planes else planes[-1] if planes else None

    @property
    def next_click(self) -> str:
        """What there is to do after a click."""
        return NEXT_CLICK.format(self._key_choice.readable(keys.ACCEPT))

    # --- wishes ---

    def ask(self, doing: str, work: Callable[[Session], Answer], *, between: bool = False) -> None:
        """Queue something that the session answers; ``between`` as in `Errands.send`."""
        session = self.session
        self._errands.send(doing, lambda: work(session), self.take, between=between)

    def act(self, doing: str, action: Callable[[Session], Change], done: str, *, between: bool = False) -> None:
        """Queue one action of the session; ``done`` is what to say when it succeeded."""
        self.ask(doing, lambda session: act(session, action, done), between=between)

    def act_on_object(self, doing: str, action: Callable[[Session, int], Change], done: str) -> None:
        """Queue an action on the object that is shown as the open one, whose id fills the gap in ``done``."""
        label = self.state.label
        self.act(doing, lambda session: action(session, label), done.replace("{}", str(label), 1))  # a name may hold braces

    def click(self, click: Click) -> None:
        """Add a click to the open object, or to the parts that it is split into. It is drawn at once; its mask follows."""
        if self._seeds is not None:
            if click.box is not None:
                self._errands.say(CLICK_PARTS)
            elif self._asked or self.desk.label_of(click.voxel) == self.state.label:  # what is shown may be about to change
                self._show_seeds([*self._seeds, click])
            else:
                self._errands.say(f"this place is not in object {self.state.label}; {CLICK_PARTS}")
            return
        self._asked.append(click)
        self.show()
        session, good, key = self.session, self.next_click, self._key_choice.readable
        others, opens = OTHER_MASKS.format(key(keys.ACCEPT), key(keys.NEXT_MASK)), key(keys.OPEN_HERE)
        self._errands.send("predicting", lambda: add(session, click, good, others, opens), self._take_click, between=True)

    def undo(self) -> None:
        """Take the last action back: click, mask and model together; or, of an object that is being split, the last part that was named."""
        if self._seeds:
            self._show_seeds(self._seeds[:-1])
        elif self._seeds is not None:
            self._end_splitting()
            self._errands.say(NOT_SPLIT)
        elif self.state.can_undo or self._errands.worker.waiting:
            self.ask("undoing", _undo, between=True)
        else:
            self._errands.say(NOTHING_TO_UNDO)

    def redo(self) -> None:
        """Do again what was taken back last."""
        if self.state.can_redo or self._errands.worker.waiting:
            self.ask("redoing", _redo)
        else:
            self._errands.say(NOTHING_TO_REDO)

    def accept(self, outdated: Callable[[int, int], None], *, keep_class: bool = False) -> None:
        """Finish the open object: one task to accept it, which shows at once, and one to learn from it, between whose steps clicks come.

        Parameters
        ----------
        outdated : called after that with an axis and the object, for every axis across which it should be propagated again
        keep_class : the next object is one of the same class
        """
        acceptance = Acceptance(self.session, keep_class=keep_class)
        self._errands.send("accepting", acceptance.accept, self.take)

        def then(answer: Answer) -> None:
            self.take(answer)
            for label, axis in acceptance.outdated:
                outdated(axis, label)

        self._errands.send(acceptance.words, lambda: acceptance.learn(lambda: self._errands.worker.wanted), then)

    def split(self) -> None:
        """Let clicks say where the parts of the open object are; the second time, split it."""
        if self._seeds is None and self.state.empty and not self._errands.worker.waiting:
            self._splitting(False)  # the button that was pressed came down
            self._errands.say(NOTHING_TO_SPLIT.format(self.state.label, self._key_choice.readable(keys.OPEN_HERE)))
            return
        if self._seeds is None:
            self._seeds = []
            self._splitting(True)
            self._errands.say(CLICK_PARTS)
            return
        if len(self._seeds) == 1:
            self._splitting(True)  # the button that was pressed came up
            self._errands.say(f"one part is the whole object; {CLICK_PARTS}")
            return
        seeds = [click.voxel for click in self._seeds]
        self._end_splitting()
        self.show()
        if seeds:
            self.act_on_object("splitting", lambda session, label: session.split(label, seeds), "object {} is split")
        else:
            self._errands.say(NOT_SPLIT)

    def paint(self, stroke: Stroke) -> None:
        """Let the session take over what was painted with napari's own tools."""
        session, mask = self.session, self.desk.mask

        def then(answer: Answer) -> None:
            mask.stroke_answered(stroke)
            self.take(answer)

        self._errands.send("taking the painting over", lambda: paint(session, stroke), then, between=True)

    def put_back(self) -> None:
        """Show the session's labels again after somebody replaced the whole array."""
        session = self.session
        self._errands.tell(LABELS_KEPT)
        self._errands.send("putting the labels back", lambda: own_copy(session.labels), self.desk.mask.write_all)

    # --- answers ---

    def take(self, answer: Answer, *, draw: bool = True) -> None:
        """Show an answer; without ``draw`` the labels follow with the next one. Another open object is not the one that is being split."""
        if answer.state.label != self.state.label:
            self._end_splitting()
        self.state = answer.state
        self._overtaken()
        self._late.extend(answer.boxes)
        self.show(draw=draw)
        if answer.words:
            self._errands.say(answer.words)
        if answer.error is not None:
            self._errands.report(answer.error)
        self.practise()
        self._changed()

    def show(self, *, draw: bool = False) -> None:
        """Show the state, and the seeds or the clicks that wait for their answers; with ``draw`` also what changed in the labels."""
        boxes: list[Box] = []
        if draw:
            boxes, self._late = self._late, []
        self.desk.mask.show_classes(self.state.legend, max(self.state.label, *self.state.finished, 0))
        self.desk.show(self.state.label, self._seeds or (*self.state.clicks, *self._asked), boxes)

    def practise(self) -> None:
        """Let the model practise while the worker has nothing else to do, unless it does so already."""
        worker = self._errands.worker
        if not worker.occupied:
            worker.meanwhile(self.session.practising())

    def let_go(self) -> None:
        """Wait for no answer any longer."""
        self._errands.worker.meanwhile(None)
        self._asked.clear()
        self._late.clear()
        self._end_splitting()

    def go_on_with(self, opened: Opened) -> bool:
        """Put another session of the same image, or the same one, in the place of this one, and show it if the viewer has all the layers.

        Returns
        -------
        whether it has
        """
        self.desk.session, self.desk.folder, self.state = opened.session, opened.folder, opened.state
        if not self.desk.whole:
            return False
        self.desk.outline.hide()
        self.desk.mask.begin_anew(opened.labels)
        self.show()
        self.practise()
        return True

    def _take_click(self, answer: Answer) -> None:
        self._asked.popleft()
        self.take(answer, draw=not self._asked)

    def _show_seeds(self, seeds: list[Click]) -> None:
        """These clicks say so far where the parts are."""
        self._seeds = seeds
        self.show()
        words = f"{len(seeds)} parts; click in the next one, or press {SPLIT_NOW}"
        self._errands.say(words if len(seeds) > 1 else CLICK_PARTS)

    def _end_splitting(self) -> None:
        if self._seeds is not None:
            self._seeds = None
            self._splitting(False)


def _undo(session: Session) -> Answer:
    """Of a key that is held down, more presses may wait than there are actions."""
    return act(session, lambda session: session.undo(), "undone") if session.can_undo else Answer(State.of(session), words=NOTHING_TO_UNDO)


def _redo(session: Session) -> Answer:
    """As `_undo`."""
    return act(session, lambda session: session.redo(), "redone") if session.can_redo else Answer(State.of(session), words=NOTHING_TO_REDO)
