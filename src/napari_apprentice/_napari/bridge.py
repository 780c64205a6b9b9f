"""Between napari's layers and the session: the only place that lets one change the other.

The session lives in the worker thread: every call of it is a task, done in the order of the user's actions. The main
thread knows of it only by values, `State` and changed boxes, that come back with each answer. Answers of a session that
has been closed meanwhile are dropped by their generation number.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_error, show_info, show_warning
from qtpy.QtCore import QObject, QTimer, Signal

from napari_apprentice._napari import keys, storage
from napari_apprentice._napari.answers import (
    Acceptance,
    Answer,
    Opened,
    Propagation,
    Saving,
    SliceView,
    State,
    act,
    add,
    advice,
    continued,
    fingerprint,
    next_mask,
    paint,
)
from napari_apprentice._napari.desk import Desk
from napari_apprentice._napari.engine import Engine, Wish, default_engine
from napari_apprentice._napari.leftovers import left_by, same
from napari_apprentice._napari.mask_layer import Box, own_copy
from napari_apprentice._napari.placement import image_of, shown_straight
from napari_apprentice._napari.strokes import Stroke
from napari_apprentice._napari.worker import Task, Worker
from napari_apprentice.types import ApprenticeError, Click, Image, Plane

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from napari.components import ViewerModel
    from napari.layers import Image as ImageLayer
    from napari.layers import Labels

    from napari_apprentice.session import Change, Doubt, Session

__all__ = ["NOTHING_OPEN", "Bridge"]

_log = logging.getLogger(__name__)

NOTHING_OPEN = "choose an image and press Start"
FIRST_CLICK = "click inside an object"
NEXT_CLICK = "good? press {}; if not, click where it is wrong (Ctrl+click: outside)"
LOOK_NEXT = "{} shows where a correction helps most"
READ_ONLY = "Read only: {}."
MODEL_CHANGED = "working with another model; what the one before has learnt stays with its session"
LAYERS_REMOVED = "One of the session's layers was removed, so the session is closed; Resume brings it back."
LABELS_KEPT = "The labels belong to the session, so they were put back; duplicate the layer to edit all of it at once."
SPLIT_NOW = "“Split now”"
CLICK_PARTS = f"click once in every part of the object, then press {SPLIT_NOW}"
NO_SLICES = "Propagation goes from slice to slice of a volume; show one slice of a volume in 2D."
NOT_SAVED = "nothing was saved; an older file is as it was"
STRAIGHT = "This volume stands oblique to the world axes, so it is shown straight; saved labels keep its true place."


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
    propagating_changed = Signal(bool)
    """Whether an object is being carried through the volume."""
    saving_changed = Signal(bool)
    """Whether labels are being written."""
    progressed = Signal(int, int)
    """How many slices that has reached, and how many there are."""
    sign_changed = Signal(bool)
    """Whether a plain click is positive."""
    model_changed = Signal(bool)
    """Whether the other model that was asked for is there; else the one before goes on."""
    slices_found = Signal(object)
    """`SliceView` of the object at work, or None where no slice of a volume is shown."""
    splitting_changed = Signal(bool)
    """Whether clicks say where the parts of an object are."""
    keys_changed = Signal(object)
    """Wish → key, when the user has chosen another one."""
    earlier_found = Signal(object, object)
    """The image layer that was asked about, and the folder of its newest earlier session or None."""

    def __init__(self, viewer: ViewerModel, engine: Engine = default_engine) -> None:
        super().__init__()
        self._viewer, self._engine = viewer, engine
        self._generation = 0
        self._desk: Desk | None = None
        self._waiting_desk: Desk | None = None
        self._opening = self._closed = False
        self._state: State | None = None
        self._asked: deque[Click] = deque()
        self._late: list[Box] = []
        self._propagation: Propagation | None = None
        self._led: tuple[int, Plane] | None = None
        self._saving: Saving | None = None
        self._peeking = False
        self._peeked: tuple[State, Plane, npt.NDArray[np.bool_]] | None = None
        self._seeds: list[Click] | None = None
        self._slices_asked = False
        self._written: dict[Path, tuple[int, int]] = {}
        self._positive = True
        self._words = NOTHING_OPEN
        self.keys: Mapping[str, str] = keys.KEYS
        self._refused_keys: tuple[str, ...] = ()
        self._key_settings: Any = None
        self.worker = Worker()
        self.worker.activity_changed.connect(self._on_activity)
        self.worker.submit(Task(_saying(""), keys.settings, self._on_key_settings))  # napari takes a tenth of a second to read them
        self.progressed.connect(self._on_progress)
        viewer.layers.events.removed.connect(self._on_layer_removed)

    # ---------------------------------------------------------------------------------------------- the life of a session

    @property
    def state(self) -> State | None:
        """What is known of the open session; None when there is none."""
        return self._state

    @property
    def opening(self) -> bool:
        """Whether a session, or another model for it, has been asked for and is not there yet."""
        return self._opening or self._waiting_desk is not None

    @property
    def image(self) -> Image | None:
        """The image of the open session; None when there is none."""
        return self._desk.session.image if self._desk else None

    def start(self, layer: ImageLayer, wish: Wish) -> None:
        """Open a session on ``layer``; its layers appear as soon as the model is loaded."""
        self.stop()
        try:
            image = image_of(layer)
        except ApprenticeError as error:
            self.report(error)
            return

        left = left_by(wish.resume, layer, self._viewer.layers) if wish.resume is not None else []
        shown = [(each, each.data) for each in left]

        def work() -> tuple[Opened, Labels | None]:
            folder = wish.resume or storage.fresh_folder(image)
            opened = Opened.of(self._engine(image, wish, folder), folder)
            return opened, next((each for each, data in shown if same(data, opened.labels)), None)

        self._opening = True
        self._submit(
            "loading the model",
            work,
            then=lambda answer: self._on_opened(layer, *answer),
            otherwise=self._on_not_opened,
            dropped=lambda answer: self._close_session(answer[0].session),
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
        desk, self._desk, self._waiting_desk = self._desk or self._waiting_desk, None, None
        if desk is None:
            return
        self._state = None
        self._let_go()
        desk.close()
        self._close_session(desk.session)
        self.say("the session is closed")
        self.state_changed.emit(None)

    def change_model(self, wish: Wish) -> None:
        """Go on with the model of ``wish`` in a new session: the same labels, and the same clicks answered anew.

        What was asked for before is done first. Until the model is there nothing else can be asked for; where it does not come, the session
        goes on as it is.
        """
        desk, self._desk = self._desk, None
        if desk is None:
            return
        self._generation += 1
        self._waiting_desk = desk
        self._let_go()
        session, folder = desk.session, desk.folder

        def work() -> tuple[Opened, Exception | None]:
            try:
                fresh = storage.fresh_folder(session.image)
                again = replace(wish, resume=None, knowledge=None)
                chosen = continued(session, lambda labels: self._engine(session.image, replace(again, labels=labels), fresh))
            except Exception as error:
                return Opened.of(session, folder), error
            return Opened.of(chosen, fresh), None

        def dropped(answer: tuple[Opened, Exception | None]) -> None:
            self._drop_model(answer[0].session, session)

        self._submit("changing the model", work, self._on_model_changed, dropped=dropped)
        self.state_changed.emit(self._state)

    def _drop_model(self, chosen: Session, before: Session) -> None:
        """The session was closed while another model was on its way."""
        if chosen is not before:
            self._close_session(chosen)

    def _on_model_changed(self, answer: tuple[Opened, Exception | None]) -> None:
        opened, error = answer
        desk, self._waiting_desk = self._waiting_desk, None
        assert desk is not None
        before, desk.session, desk.folder = desk.session, opened.session, opened.folder
        if opened.session is not before:
            self._close_session(before)
        self._desk, self._state = desk, opened.state
        if not desk.whole:
            self.stop()
            return
        desk.outline.hide()
        desk.mask.write_all(opened.labels)
        self._show()
        self.say("the model stays as it was" if error is not None else MODEL_CHANGED)
        if error is not None:
            self.report(error)
        self.model_changed.emit(error is None)
        self.state_changed.emit(opened.state)

    def _let_go(self) -> None:
        """Wait for no answer any longer."""
        self._asked.clear()
        self._late.clear()
        self._end_splitting()
        self._slices_asked = False
        self._peeked = self._led = None
        if self._propagation is not None:
            self._propagation.cancel()
            self._on_propagated()
        self._end_saving()  # which is still done

    def close(self) -> None:
        """Stop, disconnect, and let the worker's thread end once its queue is done. Safe to call again."""
        if self._closed:
            return
        self._closed = True
        self.stop()
        self._viewer.layers.events.removed.disconnect(self._on_layer_removed)
        if self._key_settings is not None:
            self._key_settings.events.disconnect(self._on_keys_chosen)
        self.worker.close()

    # ------------------------------------------------------------------------------------------------------------- wishes

    @property
    def positive(self) -> bool:
        """Whether a plain click is positive."""
        return self._positive

    @positive.setter
    def positive(self, positive: bool) -> None:
        self._positive = positive
        if self._desk:
            self._desk.clicks.positive = positive
        self.sign_changed.emit(positive)

    def switch_sign(self) -> None:
        """Make a plain click negative if it is positive, and the other way round."""
        self.positive = not self.positive

    def click(self, click: Click) -> None:
        """Add a click to the open object. It is drawn at once; its mask follows."""
        if self._desk is None:
            return
        if self._seeds is not None:
            self._seeds.append(click)
            self._show()
            self.say(f"{len(self._seeds)} parts; click in the next one, or press {SPLIT_NOW}" if self._seeds[1:] else CLICK_PARTS)
            return
        self._asked.append(click)
        self._show()
        session, good, opens = self._desk.session, self._next_click, keys.readable(self.keys[keys.OPEN_HERE])
        self._submit("predicting", lambda: add(session, click, good, opens), self._take_click, between=True)

    def next_mask(self) -> None:
        """Show the next of the masks that the model proposed to the newest click."""
        if self._desk is not None:
            session = self._desk.session
            self._submit("choosing", lambda: next_mask(session), self._take, between=True)

    def undo(self) -> None:
        """Take the last action back: click, mask and model together."""
        if self._state and not self._state.can_undo and not self.worker.waiting:
            self.say("there is nothing to undo")
        else:
            self._act("undoing", lambda session: session.undo(), "undone", between=True)

    def redo(self) -> None:
        """Do again what was taken back last."""
        if self._state and not self._state.can_redo and not self.worker.waiting:
            self.say("there is nothing to redo")
        else:
            self._act("redoing", lambda session: session.redo(), "redone")

    def accept(self) -> None:
        """Finish the open object. It shows at once as accepted; learning from it is the next task, and clicks need not wait for its end.

        If it was propagated, and corrected since, it is propagated again from its corrected slices.
        """
        if self._desk is None:
            return
        acceptance = Acceptance(self._desk.session)
        self._submit("accepting", acceptance.accept, self._take)

        def then(answer: Answer) -> None:
            self._take(answer)
            for label, axis in acceptance.outdated:
                self._propagate(axis, label)

        self._submit(acceptance.words, lambda: acceptance.learn(lambda: self.worker.wanted), then)

    def discard(self) -> None:
        """Drop the open object's clicks and mask."""
        self._act("discarding", lambda session: session.discard(), "discarded")

    def select(self, label: int) -> None:
        """Open the object ``label``, an accepted one or a new one."""
        if self._state is None or self._state.label != label:
            self._act("selecting", lambda session: session.select(label), f"object {label} is open")

    def propagate(self) -> None:
        """Carry the open object, or the one accepted last, across the axis that the viewer shows; call it off if that goes on."""
        if self._desk is None:
            return
        if self._propagation is not None:
            self._propagation.cancel()
            return
        plane = self._desk.plane
        if plane is None or self._desk.session.image.ndim == 2:
            self.tell(NO_SLICES)
            return
        self._propagate(plane.axis)

    def show_doubtful(self) -> None:
        """Show the carried slice whose correction helps most; asked again there, the next one. Its object is opened, to be corrected."""
        if self._desk is None or self._state is None:
            return
        if not self._state.doubts:
            self.say("no slice is doubtful: propagate an object first")
            return
        session = self._desk.session
        self._submit("", lambda: advice(session), self._on_advised, between=True)

    def _on_advised(self, doubts: Sequence[Doubt]) -> None:
        """Go to the first of some slices; from the one that this led to last, to the one after that."""
        if self._desk is None or self._state is None or not doubts:
            return
        known = [(doubt.label, doubt.plane) for doubt in doubts]
        after = known.index(self._led) + 1 if self._led in known and self._led[1] == self._desk.plane else 0
        doubt = doubts[after % len(doubts)]
        self._led = (doubt.label, doubt.plane)
        self._desk.show_plane(doubt.plane)
        words = f"slice {doubt.plane.index} of object {doubt.label}: expected IoU {1 - doubt.error:.2f}"
        if self._state.label == doubt.label:
            self.say(f"{words}; click where it is wrong")
        elif self._state.clicks:
            self.say(f"{words}; accept object {self._state.label} before you correct it")
        else:
            self._act("selecting", lambda session: session.select(doubt.label), f"{words}; click where it is wrong")

    def approve(self) -> None:
        """The slice that is shown is good as it is: no propagation touches it again."""
        if self._desk is None:
            return
        plane = self._desk.plane
        if plane is None or self._desk.session.image.ndim == 2:
            self.tell(NO_SLICES)
            return
        self._act("approving", lambda session: session.approve(plane), f"slice {plane.index} stays as it is")

    def show_slice(self, index: int) -> None:
        """Show another slice across the same axis."""
        if self._desk is not None and (plane := self._desk.plane) is not None:
            self._desk.show_plane(plane._replace(index=index))

    def open_here(self) -> None:
        """Open the object under the pointer, to correct it or to do something to it as a whole."""
        if self._desk is None:
            return
        if label := self._desk.label_here:
            self.select(label)
        else:
            self.say("there is no object under the pointer")

    def delete(self) -> None:
        """Delete the open object."""
        self._act_on_object("deleting", lambda session, label: session.delete(label), "object {} is deleted")

    def merge(self, into: int) -> None:
        """Make the open object a part of another one."""
        self._act_on_object("merging", lambda session, label: session.merge(label, into), f"object {{}} is a part of object {into}")

    def relabel(self, to: int) -> None:
        """Give the open object another number."""
        self._act_on_object("renumbering", lambda session, label: session.relabel(label, to), f"object {{}} is object {to} now")

    def name(self, name: str, color: str | None = None) -> None:
        """Say what the open object is."""
        done = f"object {{}}: {name}" if name else "object {} has no class"
        self._act_on_object("naming", lambda session, label: session.name(label, name, color), done)

    def split(self) -> None:
        """Let clicks say where the parts of the open object are; the second time, split it."""
        if self._desk is None:
            return
        if self._seeds is None:
            self._seeds = []
            self.splitting_changed.emit(True)
            self.say(CLICK_PARTS)
            return
        seeds = [click.voxel for click in self._seeds]
        self._end_splitting()
        self._show()
        if seeds:
            self._act_on_object("splitting", lambda session, label: session.split(label, seeds), "object {} is split")
        else:
            self.say("nothing was split")

    def find_slices(self) -> None:
        """Find out what the slices of the object at work are, across the axis that is shown; `slices_found` tells."""
        desk = self._desk
        plane = desk.plane if desk is not None and desk.session.image.ndim == 3 else None
        if desk is None or plane is None:
            self.slices_found.emit(None)
            return
        if self._slices_asked:
            return  # the answer will be about whatever is done until then
        self._slices_asked = True
        session, axis, flipped = desk.session, plane.axis, desk.flipped

        def then(view: SliceView) -> None:
            self._slices_asked = False
            self.slices_found.emit(view)
            if self._desk is not None and (now := self._desk.plane) is not None and now.axis != axis:
                self.find_slices()

        def otherwise() -> None:
            self._slices_asked = False

        self._submit("", lambda: SliceView.of(session, axis, flipped), then, otherwise, between=True)

    @property
    def plane(self) -> Plane | None:
        """The plane of the session's image that the viewer shows, if it shows one."""
        return None if self._desk is None else self._desk.plane

    def forget(self) -> None:
        """Make the model what it was as shipped; clicks, labels and versions stay."""
        self._act("forgetting", lambda session: session.forget(), "the model is as it was shipped; Ctrl+Z brings back what it learnt")

    def go_back(self, number: int) -> None:
        """Work with another version of the model."""
        self._act("going back", lambda session: session.go_back(number), f"working with version {number}")

    def pin(self, number: int, pinned: bool) -> None:
        """Keep a version of the model for good, or no longer."""
        self._act(
            "pinning", lambda session: session.pin(number, pinned), f"version {number} {'stays' if pinned else 'is no longer pinned'}"
        )

    def export(self, number: int, path: Path) -> None:
        """Write a version of the model to a file."""
        if self._desk is not None:
            session = self._desk.session
            self._submit("exporting", lambda: session.export(number, path), lambda path: self.say(f"version {number} is in {path.name}"))

    def peek(self, on: bool) -> None:
        """Outline what the untaught model would have said to the same clicks, or no longer; nothing else changes."""
        self._peeking = on
        if self._desk is None or self._state is None:
            return
        desk, state = self._desk, self._state
        if not on:
            desk.outline.hide()
            return
        if not state.clicks:
            self.say("click on an object first, then see what the untaught model would have said")
            return
        planes = [click.plane for click in state.clicks]
        plane = desk.plane if desk.plane in planes else planes[-1]
        if self._peeked is not None and self._peeked[0] is state and self._peeked[1] == plane:
            self._on_peeked(self._peeked)
        else:
            self._submit("asking the untaught model", lambda: (state, plane, desk.session.peek(plane).mask), self._on_peeked, between=True)

    def paint(self, stroke: Stroke) -> None:
        """Let the session take over what was painted with napari's own tools."""
        if self._desk is None:
            return
        session, mask = self._desk.session, self._desk.mask

        def then(answer: Answer) -> None:
            mask.stroke_answered(stroke)
            self._take(answer)

        self._submit("taking the painting over", lambda: paint(session, stroke), then, between=True)

    def put_back(self) -> None:
        """Show the session's labels again after somebody replaced the whole array."""
        if self._desk is None:
            return
        session, mask = self._desk.session, self._desk.mask
        self.tell(LABELS_KEPT)
        self._submit("putting the labels back", lambda: own_copy(session.labels), mask.write_all)

    def may_write(self, path: Path) -> bool:
        """Whether ``path`` is free, or holds what this window wrote there itself, unchanged since."""
        return not path.exists() or self._written.get(path.resolve()) == fingerprint(path)

    def save(self, path: Path) -> None:
        """Write the labels, as they are when all earlier actions are done, with the image's geometry."""
        if self._desk is None or self._saving is not None:
            return

        def then(result: tuple[Path, tuple[int, int]] | None) -> None:
            self._end_saving()
            if result is None:
                self.say(NOT_SAVED)
                return
            written, mark = result
            self._written[written] = mark
            self.say(f"saved to {written.name}")
            show_info(f"The labels are saved in {written}.")

        self._saving = Saving(self._desk.session, path)
        self._submit("saving", self._saving, then, otherwise=self._end_saving)
        self.saving_changed.emit(True)

    @property
    def saving(self) -> bool:
        """Whether labels are being written, or are about to be."""
        return self._saving is not None

    def cancel_saving(self) -> None:
        """Call the writing of labels off; an older file stays as it was."""
        if self._saving is not None:
            self._saving.cancel()

    def _end_saving(self) -> None:
        if self._saving is not None:
            self._saving = None
            self.saving_changed.emit(False)

    # -------------------------------------------------------------------------------------------------- to the worker

    def _submit(
        self,
        words: str | Callable[[], str],
        work: Callable[[], Any],
        then: Callable[[Any], None],
        otherwise: Callable[[], None] = lambda: None,
        dropped: Callable[[Any], None] = lambda result: None,
        between: bool = False,
    ) -> None:
        """Queue ``work``; its answer counts only while this generation lasts, but its errors are always told.

        ``between`` lets it be done before learning that goes on has ended.
        """
        generation = self._generation

        def answered(result: Any) -> None:
            (then if generation == self._generation else dropped)(result)

        def failed(error: Exception) -> None:
            self.report(error)
            if generation == self._generation:
                otherwise()

        self.worker.submit(Task(_saying(words), work, answered, failed, between))
        self.busy_changed.emit(True)

    def _act(
        self,
        doing: str,
        action: Callable[[Session], Change],
        done: str,
        then: Callable[[Answer], None] | None = None,
        between: bool = False,
    ) -> None:
        """Queue one action of the session."""
        if self._desk is not None:
            session = self._desk.session
            self._submit(doing, lambda: act(session, action, done), then or self._take, between=between)

    def _propagate(self, axis: int, label: int | None = None) -> None:
        if self._desk is not None and self._propagation is None:
            hint = LOOK_NEXT.format(keys.readable(self.keys[keys.DOUBTFUL]))
            self._propagation = Propagation(self._desk.session, axis, self._tell_progress, label, hint)
            self._submit("propagating", self._propagation, self._on_propagated, otherwise=self._on_propagated)
            self.propagating_changed.emit(True)

    def _act_on_object(self, doing: str, action: Callable[[Session, int], Change], done: str) -> None:
        """Queue an action on the object that is shown as the open one."""
        if self._state is not None:
            label = self._state.label
            self._act(doing, lambda session: action(session, label), done.format(label))

    def _end_splitting(self) -> None:
        if self._seeds is not None:
            self._seeds = None
            self.splitting_changed.emit(False)

    def _close_session(self, session: Session) -> None:
        """Let go of its journal, as the last thing that is done with it."""
        self.worker.submit(Task(_saying("closing the session"), session.close))

    # ------------------------------------------------------------------------------------------------ from the worker

    def _take_click(self, answer: Answer) -> None:
        """Show the answer to a click; while newer clicks wait for theirs, the labels are drawn with the newest one only."""
        self._asked.popleft()
        self._take(answer, draw=not self._asked)

    def _take(self, answer: Answer, *, draw: bool = True) -> None:
        """Show an answer."""
        self._state = answer.state
        if self._peeking and self._desk is not None:
            self._desk.outline.hide()  # it was about fewer clicks
        self._late.extend(answer.boxes)
        self._show(draw=draw)
        if answer.words:
            self.say(answer.words)
        if answer.error is not None:
            self.report(answer.error)
        self.state_changed.emit(self._state)

    def _show(self, *, draw: bool = False) -> None:
        """Show the state and the clicks that wait for their answers; with ``draw`` also what changed in the labels."""
        assert self._desk is not None
        assert self._state is not None
        boxes: list[Box] = []
        if draw:
            boxes, self._late = self._late, []
        self._desk.mask.show_classes(self._state.legend, max(self._state.label, *self._state.finished, 0))
        self._desk.show(self._state.label, self._seeds or (*self._state.clicks, *self._asked), boxes)

    def _on_peeked(self, peeked: tuple[State, Plane, npt.NDArray[np.bool_]]) -> None:
        """Show the answer if somebody still wants to see it, and it is about the clicks that there are."""
        state, plane, mask = self._peeked = peeked
        if self._peeking and self._desk is not None and state is self._state:
            self._desk.outline.show(plane, mask)
            self.say("outlined: what the untaught model would have said" if mask.any() else "the untaught model would have found nothing")

    def _on_opened(self, image_layer: ImageLayer, opened: Opened, left: Labels | None) -> None:
        """Lay the session out, in the labels layer that it left here if that is still as it was."""
        self._opening = False
        if image_layer not in self._viewer.layers:
            self._close_session(opened.session)
            self._on_not_opened()
            return
        left = left if left in left_by(opened.folder, image_layer, self._viewer.layers) else None
        self._desk = Desk(self._viewer, image_layer, opened, self, self.keys, left)
        state = self._state = opened.state
        self._show()
        self._desk.clicks.take_clicks()
        self.positive = True
        if state.read_only:
            self._desk.only_look()
            self.tell(READ_ONLY.format(state.read_only))
            self.say(READ_ONLY.format(state.read_only))
        else:
            self.say(self._next_click if state.clicks else FIRST_CLICK)
        if shown_straight(opened.session.image):
            show_info(STRAIGHT)
        self.state_changed.emit(state)

    def _on_not_opened(self) -> None:
        self._opening = False
        self.say(NOTHING_OPEN)
        self.state_changed.emit(None)

    def _on_activity(self, words: str) -> None:
        self.said.emit(f"{words} …" if words else self._words)
        if not words:
            self.busy_changed.emit(False)

    def _tell_progress(self, done: int, total: int) -> None:
        """Called in the worker."""
        with suppress(RuntimeError):  # Qt deleted the object while the application was closing
            self.progressed.emit(done, total)

    def _on_progress(self, done: int, total: int) -> None:
        if self._propagation is not None:
            self.said.emit(f"propagating: {done} of {total} slices …")

    def _on_propagated(self, answer: Answer | None = None) -> None:
        self._propagation = self._led = None
        self.propagating_changed.emit(False)
        if answer is not None:
            self._take(answer)

    # -------------------------------------------------------------------------------------------------------------- keys

    @property
    def _next_click(self) -> str:
        return NEXT_CLICK.format(keys.readable(self.keys[keys.ACCEPT]))

    def _on_key_settings(self, settings: Any) -> None:
        self._key_settings = settings
        if settings is not None:
            settings.events.connect(self._on_keys_chosen)
            self._on_keys_chosen()

    def _on_keys_chosen(self) -> None:
        """The user has chosen keys in napari's preferences. What cannot be is told once, not again with every other change."""
        wanted, refused = keys.without_collisions(keys.chosen(self._key_settings))
        for sentence in refused:
            if sentence not in self._refused_keys:
                self.tell(f"{sentence}.")
        self._refused_keys = refused
        if wanted != self.keys:
            self.keys = wanted
            if (desk := self._desk or self._waiting_desk) is not None:
                desk.change_keys(wanted)
            self.keys_changed.emit(wanted)

    # ---------------------------------------------------------------------------------------------------- from the layers

    def _on_layer_removed(self, event: Any) -> None:
        if self._desk and event.value in self._desk:
            self.stop()
            # A window that closes removes all its layers; that is nothing to tell anybody.
            QTimer.singleShot(0, lambda: self.tell(LAYERS_REMOVED) if len(self._viewer.layers) else None)

    # -------------------------------------------------------------------------------------------------------- to the user

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


def _saying(words: str | Callable[[], str]) -> Callable[[], str]:
    return (lambda: words) if isinstance(words, str) else words
