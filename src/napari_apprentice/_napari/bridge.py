"""Between napari's layers and the session: the only place that lets one change the other.

The session lives in the worker thread: every call of it is a task, done in the order of the user's actions. The main
thread knows of it only by values, `State` and changed boxes, that come back with each answer.

The bridge knows which session is open, and passes wishes on. What is under way belongs to whoever sees it through: `Errands` know
which answers still count, a `Sitting` is the open session at work, an `Opener` fetches it, a `Carrier` propagates, a `Saver` writes the
labels, a `Peeker` shows the untaught answer, `Sureness` how sure the model is, a `Surveyor` the slices, and a `KeyChoice` has the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image as ImageLayer
from napari.layers import Labels
from napari.utils.notifications import show_info
from qtpy.QtCore import QObject, QTimer, Signal

from napari_apprentice._napari.answers import Opened, State, forget, next_mask, paint
from napari_apprentice._napari.carrier import Carrier
from napari_apprentice._napari.desk import Desk
from napari_apprentice._napari.engine import Engine, Wish, default_engine
from napari_apprentice._napari.errands import Errands
from napari_apprentice._napari.key_choice import KeyChoice
from napari_apprentice._napari.leftovers import hide_others
from napari_apprentice._napari.opener import Opener
from napari_apprentice._napari.outline import is_adding_aside
from napari_apprentice._napari.peeker import Peeker
from napari_apprentice._napari.placement import show_plane, shown_plane, shown_straight, straighten
from napari_apprentice._napari.saver import Saver
from napari_apprentice._napari.sitting import Sitting
from napari_apprentice._napari.strokes import Stroke
from napari_apprentice._napari.sureness import Sureness
from napari_apprentice._napari.surveyor import Surveyor
from napari_apprentice._napari.worker import Task
from napari_apprentice.types import Click, Image, ImageError, Plane

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_apprentice.session import Change, Session

__all__ = ["NOTHING_OPEN", "Bridge"]

NOTHING_OPEN = "choose an image and press Start"
FIRST_CLICK = "click inside an object, or draw a box around it with Shift"
ELSEWHERE = "the mouse is with the layer {!r} now; press “inside” or “outside” to click again"
PAINTING = "napari's brush changes the labels as well; press “inside” or “outside” to click again"
LABELS_HIDDEN = "; the labels of the sessions before are hidden"
READ_ONLY = "Read only: {}."
MADE_WITH = (
    "This session was made with another network, {}, which is not here. Labels, objects and clicks are as they were; what they taught was "
    "learnt again by the network that is here."
)
MODEL_CHANGED = "working with another model; what the one before has learnt stays with its session"
LAYERS_REMOVED = "One of the session's layers was removed, so the session is closed; Resume brings it back."
IMAGE_REPLACED = (
    "The session goes on with the pixels that the image had when it began; close it and press Start to work on what is shown now."
)
IMAGE_RESCALED = "The session goes on measuring with the size of voxels that it began with, whatever the layer's scale is now."
_REST_MS = 100
BEYOND = "What is shown here lies beyond the image, so there is no slice of it to keep."
NO_SLICES = "Propagation goes from slice to slice of a volume; show one slice of a volume in 2D."
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
        self._viewer = viewer
        self._sitting: Sitting | None = None
        self._positive, self._closed = True, False
        self._keeps_class = True
        self._errands = Errands(NOTHING_OPEN)
        self._errands.said.connect(self.said)
        self._errands.busy_changed.connect(self.busy_changed)
        self.worker = self._errands.worker
        self._opener = Opener(viewer, engine, self._errands)
        self._key_choice = KeyChoice(self._errands)
        self._key_choice.changed.connect(self._on_keys_changed)
        self._peeker = Peeker(self._errands)
        self._sureness = Sureness(viewer, self._errands)
        self._saver = Saver(self._errands)
        self._saver.going_changed.connect(self.saving_changed)
        self._carrier = Carrier(self._errands, self._key_choice)
        self._carrier.going_changed.connect(self.propagating_changed)
        self._carrier.progressed.connect(self.progressed)
        self._surveyor = Surveyor(self._errands)
        self._surveyor.found.connect(self.slices_found)
        self._painted_meanwhile: list[Stroke] = []
        self._told: set[str] = set()
        self._rested = QTimer(self)
        self._rested.setSingleShot(True)
        self._rested.setInterval(_REST_MS)
        self._rested.timeout.connect(lambda: self._sureness.follow(self._open))
        viewer.layers.events.removed.connect(self._on_layer_removed)
        viewer.layers.selection.events.active.connect(self._on_active)

    # ---------------------------------------------------------------------------------------------- the life of a session

    @property
    def state(self) -> State | None:
        """What is known of the open session; None when there is none."""
        return self._sitting.state if self._sitting else None

    @property
    def opening(self) -> bool:
        """Whether a session, or another model for it, has been asked for and is not there yet."""
        return self._opener.opening or self._opener.changing

    @property
    def image(self) -> Image | None:
        """The image of the open session; None when there is none."""
        return self._desk.session.image if self._desk else None

    @property
    def keys(self) -> Mapping[str, str]:
        """Wish → key."""
        return self._key_choice.bound

    def start(self, layer: ImageLayer, wish: Wish) -> None:
        """Open a session on ``layer``; its layers appear as soon as the model is loaded.

        A volume that stands oblique is shown straight from now on.
        """
        self.stop()
        straightened = self._straighten(layer)

        def then(opened: Opened, left: Labels | None) -> None:
            self._on_opened(layer, opened, left)
            if shown_straight(opened.session.image) and not straightened:
                show_info(STRAIGHT)

        if self._opener.open(layer, wish, then, self._on_not_opened):
            self.state_changed.emit(None)

    def look_for_earlier(self, layer: ImageLayer) -> None:
        """Find out whether there is a session of this image to resume; `earlier_found` tells."""
        self._opener.look_for_earlier(layer, lambda folder: self.earlier_found.emit(layer, folder))

    def stop(self) -> None:
        """Close the session: what is queued is still done (and journaled), but its answers are dropped."""
        sitting = self._sitting
        self._stop()
        if sitting is not None:
            self._sureness.close()
            sitting.desk.clear()

    def _stop(self) -> None:
        """Close the session, and leave all of its layers."""
        lacking = self.worker.waiting > 0
        self._errands.drop_answers()
        opening = self._opener.opening
        self._opener.let_go()
        sitting, self._sitting = self._sitting, None
        if sitting is None:
            if opening:
                self._on_not_opened()
            return
        self._let_go(sitting)
        seal = sitting.desk.close()
        for stroke in self._painted_meanwhile:
            self.worker.submit(Task(lambda: "taking the painting over", partial(paint, sitting.session, stroke)))
        self._painted_meanwhile = []
        if lacking and not self._closed:  # when it is resumed, its labels will be others than those that it leaves
            self.worker.submit(Task(lambda: "closing the session", seal.put))
        self._opener.close(sitting.session)
        if self._closed:
            return  # there may be no window any longer
        self.say("the session is closed")
        self.state_changed.emit(None)

    def change_model(self, wish: Wish) -> None:
        """Go on with the model of ``wish`` in a new session: the same labels, and the same clicks answered anew.

        What was asked for before is done first. Until the model is there nothing else can be asked for; where it does not come, the session
        goes on as it is.
        """
        sitting = self._open
        if sitting is None:
            return
        self._errands.drop_answers()
        self._let_go(sitting)
        self._painted_meanwhile = []
        self._opener.change_model(sitting.session, sitting.desk.folder, wish, self._on_model_changed)
        self.state_changed.emit(sitting.state)

    def close(self, *, with_viewer: bool = False) -> None:
        """Stop, disconnect, and let the worker's thread end once its queue is done. Safe to call again.

        Parameters
        ----------
        with_viewer : the viewer's window is gone, too, so that layers can neither be drawn nor taken away
        """
        if self._closed:
            return
        self._closed = True
        (self._stop if with_viewer else self.stop)()
        self._viewer.layers.events.removed.disconnect(self._on_layer_removed)
        self._viewer.layers.selection.events.active.disconnect(self._on_active)
        self._key_choice.close()
        self.worker.close()

    def _on_opened(self, layer: ImageLayer, opened: Opened, left: Labels | None) -> None:
        """Lay the session out, in the labels layer that it left here if that is still as it was."""
        desk, state = Desk(self._viewer, layer, opened, self, self.keys, left), opened.state
        sitting = self._sitting = Sitting(
            desk,
            state,
            self._errands,
            self._key_choice,
            overtaken=lambda: self._peeker.overtake(desk),
            changed=self._on_answer,
            splitting=self.splitting_changed.emit,
        )
        self._told.clear()
        sitting.show()
        sitting.practise()
        hidden = LABELS_HIDDEN * bool(hide_others(desk.folder, self._viewer.layers))  # they would lie over this image
        desk.clicks.take_clicks()
        self.positive = True
        if state.read_only:
            desk.only_look()
            self.tell(READ_ONLY.format(state.read_only))
            self.say(READ_ONLY.format(state.read_only))
        else:
            if state.made_with:
                self.tell(MADE_WITH.format(state.made_with))
            self.say((sitting.next_click if state.clicks else FIRST_CLICK) + hidden)
        self._on_answer()

    def _straighten(self, layer: ImageLayer) -> bool:
        """Show a volume straight that stood oblique, in the slice that was shown; whether it did."""
        viewer = self._viewer
        plane = shown_plane(viewer.dims, layer)
        try:
            if not straighten(layer, [each for each in viewer.layers if isinstance(each, ImageLayer | Labels)]):
                return False
        except ImageError:
            return False  # whoever opens it says why
        viewer.reset_view()
        if plane is not None:
            show_plane(viewer.dims, layer, plane)
        show_info(STRAIGHT)
        return True

    def _on_answer(self) -> None:
        """There is another state of the session."""
        self._sureness.follow(self._sitting)
        self.state_changed.emit(self.state)

    def _on_not_opened(self) -> None:
        self.say(NOTHING_OPEN)
        self.state_changed.emit(None)

    def _on_model_changed(self, opened: Opened, error: Exception | None) -> None:
        assert self._sitting is not None
        if not self._sitting.go_on_with(opened):
            self.stop()
            return
        painted, self._painted_meanwhile = self._painted_meanwhile, []
        for stroke in painted:
            self._sitting.paint(stroke)
        self.say("the model stays as it was" if error is not None else MODEL_CHANGED)
        if error is not None:
            self.report(error)
        self.model_changed.emit(error is None)
        self._on_answer()

    def _let_go(self, sitting: Sitting) -> None:
        """Wait for no answer any longer. Labels that are being written still are; what is being carried is called off."""
        sitting.let_go()
        self._surveyor.let_go()
        self._peeker.let_go()
        self._carrier.let_go()
        self._saver.let_go()

    def _on_layer_removed(self, event: Any) -> None:
        desk = self._desk
        if desk is None or event.value not in desk:
            return
        self._stop()

        def later() -> None:
            self._sureness.close()
            desk.clear()
            if len(self._viewer.layers):  # a window that closes removes all its layers; that is nothing to tell anybody
                self.tell(LAYERS_REMOVED)

        QTimer.singleShot(0, later)  # whoever removes several layers at once expects the others to be there

    def _on_active(self) -> None:
        """Say whom the mouse talks to, when the user has chosen another layer."""
        sitting, layer = self._open, self._viewer.layers.selection.active
        if is_adding_aside(self._viewer):
            return
        if self._sitting is not None and layer != self._sitting.desk.mask.layer:
            self._sitting.desk.mask.break_stroke()  # the release of its button goes to the other layer
        if sitting is None or layer is None or sitting.state.read_only:
            return
        if layer == sitting.desk.clicks.layer:  # napari hands plugins a proxy
            self.say(sitting.next_click if sitting.state.clicks else FIRST_CLICK)
        else:
            self.say(PAINTING if layer == sitting.desk.mask.layer else ELSEWHERE.format(layer.name))

    # ------------------------------------------------------------------------------------------------- the open object

    @property
    def positive(self) -> bool:
        """Whether a plain click is positive."""
        return self._positive

    @positive.setter
    def positive(self, positive: bool) -> None:
        self._positive = positive
        if self._sitting is not None:  # also while another model is awaited: what is chosen is for the clicks that come then
            self._sitting.desk.clicks.positive = positive
        self.sign_changed.emit(positive)

    def take_clicks(self) -> None:
        """Let the mouse click again, whatever it was used for."""
        if self._open is not None:
            self._open.desk.clicks.take_clicks()

    def switch_sign(self) -> None:
        """Make a plain click negative if it is positive, and the other way round."""
        self.positive = not self.positive

    def click(self, click: Click) -> None:
        """Add a click to the open object. It is drawn at once; its mask follows."""
        if self._open is not None:
            self._open.click(click)

    def show_sureness(self, on: bool) -> None:
        """Colour what the model is not sure of, or no longer, of this session and the next ones."""
        self._sureness.want(on, self._open)

    def look(self) -> None:
        """The viewer shows another slice."""
        self._sureness.look(self._open)

    def next_mask(self) -> None:
        """Show the next of the masks that the model proposed to the newest click."""
        if self._open is not None:
            self._open.ask("choosing", next_mask, between=True)

    def undo(self) -> None:
        """Take the last action back: click, mask and model together."""
        if self._open is not None:
            self._open.undo()

    def redo(self) -> None:
        """Do again what was taken back last."""
        if self._open is not None:
            self._open.redo()

    def accept(self) -> None:
        """Finish the open object. It shows at once as accepted; learning from it is the next task, and clicks need not wait for its end.

        If it was propagated, and corrected since, it is propagated again from its corrected slices.
        """
        if self._open is not None:
            self._open.accept(self._carry, keep_class=self._keeps_class)

    def discard(self) -> None:
        """Drop the open object's clicks and mask."""
        self._act("discarding", lambda session: session.discard(), "discarded")

    def select(self, label: int) -> None:
        """Open the object ``label``, an accepted one or a new one."""
        if self.state is None or self.state.label != label:
            self._act("selecting", lambda session: session.select(label), f"object {label} is open")

    def open_here(self) -> None:
        """Open the object under the pointer, to correct it or to do something to it as a whole."""
        if self._desk is None:
            return
        if label := self._desk.label_here:
            self.select(label)
        else:
            self.say("there is no object under the pointer")

    def peek(self, on: bool) -> None:
        """Outline what the untaught model would have said to the same clicks, or no longer; nothing else changes."""
        self._peeker.peek(on, self._open)

    def paint(self, stroke: Stroke) -> None:
        """Let the session take over what was painted with napari's own tools; the next one, where another model is awaited."""
        if self._open is not None:
            self._open.paint(stroke)
        elif self._sitting is not None:
            self._painted_meanwhile.append(stroke)

    def image_moved(self) -> None:
        """The image was moved in the viewer."""
        self._sureness.close()
        self._rested.start()

    def image_rescaled(self) -> None:
        """Its voxels were said to be larger or smaller."""
        self._tell_once(IMAGE_RESCALED)

    def image_replaced(self) -> None:
        """Somebody put other pixels into the layer of the image."""
        self._tell_once(IMAGE_REPLACED)

    def put_back(self) -> None:
        """Show the session's labels again after somebody replaced the whole array."""
        if self._open is not None:
            self._open.put_back()

    # --------------------------------------------------------------------------------------------------- whole objects

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

    def keep_class(self, keep: bool) -> None:
        """Whether the object after an accepted one is one of the same class."""
        self._keeps_class = keep

    def split(self) -> None:
        """Let clicks say where the parts of the open object are; the second time, split it."""
        if self._open is not None:
            self._open.split()

    # ------------------------------------------------------------------------------------------------------ its slices

    @property
    def plane(self) -> Plane | None:
        """The plane of the session's image that the viewer shows, if it shows one."""
        return None if self._desk is None else self._desk.plane

    def propagate(self) -> None:
        """Carry the open object, or the one accepted last, across the axis that the viewer shows; call it off if that goes on."""
        if self._carrier.going:
            self._carrier.cancel()
        elif (plane := self._slice()) is not None:
            self._carry(plane.axis)

    def show_doubtful(self) -> None:
        """Show the carried slice whose correction helps most; asked again there, the next one. Its object is opened, to be corrected."""
        if self._open is not None:
            self._carrier.lead(self._open)

    def approve(self) -> None:
        """The slice that is shown is good as it is: no propagation touches it again."""
        if self._desk is None or (plane := self._slice()) is None:
            return
        if not 0 <= plane.index < self._desk.session.image.shape[plane.axis]:
            self.tell(BEYOND)
        else:
            self._act("approving", lambda session: session.approve(plane), f"slice {plane.index} stays as it is")

    def show_slice(self, index: int) -> None:
        """Show another slice across the same axis."""
        if self._desk is not None and (plane := self._desk.plane) is not None:
            self._desk.show_plane(plane._replace(index=index))

    def find_slices(self) -> None:
        """Find out what the slices of the object at work are, across the axis that is shown; `slices_found` tells."""
        self._surveyor.survey(self._desk)

    def _slice(self) -> Plane | None:
        """The slice of a volume that is shown. None if a session is open, but shows none, is told."""
        if self._desk is None:
            return None
        plane = self._desk.plane
        if plane is None or self._desk.session.image.ndim == 2:
            self.tell(NO_SLICES)
            return None
        return plane

    def _carry(self, axis: int, label: int | None = None) -> None:
        if self._open is not None:
            self._carrier.carry(self._open, axis, label)

    # ------------------------------------------------------------------------------------------ the model, and the file

    def forget(self) -> None:
        """Make the model what it was as shipped; clicks, labels and versions stay."""
        if self._open is not None:
            self._open.ask("forgetting", forget)

    def go_back(self, number: int) -> None:
        """Work with another version of the model."""
        self._act("going back", lambda session: session.go_back(number), f"working with version {number}")

    def pin(self, number: int, pinned: bool) -> None:
        """Keep a version of the model for good, or no longer."""
        done = f"version {number} {'stays' if pinned else 'is no longer pinned'}"
        self._act("pinning", lambda session: session.pin(number, pinned), done)

    def export(self, number: int, path: Path, pictures: bool = False) -> None:
        """Write a version of the model to a file; with ``pictures`` the small views of accepted objects, too."""
        if self._open is not None:
            session = self._open.session

            def then(written: Path) -> None:
                self.say(f"version {number} is in {written.name}")

            self._errands.send("exporting", lambda: session.export(number, path, pictures=pictures), then, lasting=True)

    def may_write(self, path: Path) -> bool:
        """Whether ``path`` is free, or holds what the open session wrote there from this window, unchanged since."""
        return self._open is not None and self._saver.may_write(path, self._open.desk.folder)

    def save(self, path: Path) -> None:
        """Write the labels, as they are when all earlier actions are done, with the image's geometry."""
        if self._open is not None:
            self._saver.save(self._open.session, self._open.desk.folder, path)

    @property
    def saving(self) -> bool:
        """Whether labels are being written, or are about to be."""
        return self._saver.going

    def cancel_saving(self) -> None:
        """Call the writing of labels off; an older file stays as it was."""
        self._saver.cancel()

    # ------------------------------------------------------------------------------------------ to the session and back

    @property
    def _open(self) -> Sitting | None:
        """The session that can be worked on: none while another model for it is awaited."""
        return None if self._opener.changing else self._sitting

    @property
    def _desk(self) -> Desk | None:
        return self._open.desk if self._open else None

    def _act(self, doing: str, action: Callable[[Session], Change], done: str) -> None:
        """Queue one action of the session."""
        if self._open is not None:
            self._open.act(doing, action, done)

    def _act_on_object(self, doing: str, action: Callable[[Session, int], Change], done: str) -> None:
        """Queue an action on the object that is shown as the open one."""
        if self._open is not None:
            self._open.act_on_object(doing, action, done)

    # -------------------------------------------------------------------------------------------------------- to the user

    def _on_keys_changed(self, bound: Mapping[str, str]) -> None:
        if self._sitting is not None:
            self._sitting.desk.change_keys(bound)
        self.keys_changed.emit(bound)

    def say(self, words: str) -> None:
        """Show words in the status line, once nothing is going on any more."""
        self._errands.say(words)

    def tell(self, sentence: str) -> None:
        """Show one sentence as a notification."""
        self._errands.tell(sentence)

    def _tell_once(self, sentence: str) -> None:
        """Of this session."""
        if sentence not in self._told:
            self._told.add(sentence)
            self.tell(sentence)

    def report(self, error: Exception) -> None:
        """Tell the user of an error in one sentence."""
        self._errands.report(error)
