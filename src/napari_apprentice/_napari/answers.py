"""What is done in the worker thread: a session is asked, and values come back that the window can show.

A session refuses by raising and is then as it was before. That is caught here, so an action always ends in an `Answer`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_apprentice import files
from napari_apprentice._napari.mask_layer import Box, own_copy
from napari_apprentice._napari.strokes import Stroke
from napari_apprentice.ground import Slice
from napari_apprentice.journal import Header
from napari_apprentice.legend import Legend, write_beside
from napari_apprentice.origins import Origin
from napari_apprentice.types import Click, Prediction
from napari_apprentice.versions import Catalogue

if TYPE_CHECKING:
    from napari_apprentice.session import Change, Doubt, Session

__all__ = [
    "Acceptance",
    "Answer",
    "CalledOffError",
    "Cancellable",
    "Fingerprint",
    "Opened",
    "Propagation",
    "Saving",
    "SliceView",
    "State",
    "act",
    "add",
    "advice",
    "continued",
    "fingerprint",
    "forget",
    "next_mask",
    "paint",
]

Fingerprint = tuple[int, int]


@dataclass(frozen=True)
class State:
    """What the window shows of a session.

    Attributes
    ----------
    label : id of the open object
    clicks : its clicks, oldest first
    finished : ids of the accepted objects
    can_undo, can_redo : what the session could do next
    doubts : slices that were filled by propagation, worst first
    versions : of the model
    legend : names of objects and colours of classes
    masks : how many the model proposed to the newest click
    device : where the model computes; "" where it does not say
    read_only : why nothing may be changed, see `Session.read_only`; "" where it may
    empty : whether the open object has no voxel
    kind : what the class of the open object is called, or will be; "" for none
    header : what its journal says of it as a whole; None where none is kept
    made_with : other weights that it was made with, see `Session.made_with`; "" for the same
    weights : the file of the network's weights; None where it does not say
    """

    label: int
    clicks: tuple[Click, ...] = ()
    finished: tuple[int, ...] = ()
    can_undo: bool = False
    can_redo: bool = False
    doubts: tuple[Doubt, ...] = ()
    versions: Catalogue = field(default_factory=Catalogue)
    legend: Legend = field(default_factory=Legend)
    masks: int = 1
    device: str = ""
    read_only: str = ""
    empty: bool = False
    kind: str = ""
    header: Header | None = None
    made_with: str = ""
    weights: Path | None = None

    @classmethod
    def of(cls, session: Session) -> State:
        """The state of ``session``."""
        newest = _newest_answer(session)
        return cls(
            session.label,
            tuple(session.clicks),
            tuple(session.finished),
            session.can_undo,
            session.can_redo,
            tuple(session.doubtful()),
            session.versions,
            session.legend,
            len(newest.proposed) if newest is not None else 1,
            session.device,
            session.read_only,
            session.empty,
            session.kind,
            session.header,
            session.made_with,
            session.weights,
        )


def advice(session: Session) -> tuple[Doubt, ...]:
    """The carried slices in the order to look at them: the object with the worst one first, and in it where a correction helps most."""
    ways = dict.fromkeys((doubt.label, doubt.plane.axis) for doubt in session.doubtful())
    return tuple(doubt for label, axis in ways for doubt in session.advised(label, axis))


@dataclass(frozen=True, eq=False)
class SliceView:
    """What the slices of an object are.

    Attributes
    ----------
    label : the object at work, see `Session.candidate`
    axis : across which
    slices : in order
    flipped : whether the viewer's slider runs from the last one to the first
    """

    label: int
    axis: int
    slices: tuple[Slice, ...]
    flipped: bool

    @classmethod
    def of(cls, session: Session, axis: int, flipped: bool) -> SliceView:
        """Those of the object at work in ``session``."""
        label = session.candidate
        return cls(label, axis, session.slices(label, axis), flipped)


@dataclass(frozen=True, eq=False)
class Opened:
    """A session that was opened, or put in the place of another one.

    Attributes
    ----------
    session : it belongs to the worker
    folder : where its journal is
    labels : (S) its labels, as an array of the layer's own
    state : of it
    """

    session: Session
    folder: Path
    labels: Any
    state: State

    @classmethod
    def of(cls, session: Session, folder: Path) -> Opened:
        """What there is to show of ``session``."""
        return cls(session, folder, own_copy(session.labels), State.of(session))


@dataclass(frozen=True, eq=False)
class Answer:
    """How one action of a session ended.

    Attributes
    ----------
    state : the state after it
    boxes : where the labels changed
    words : what there is to say of it, if anything
    error : why it was refused, if it was
    """

    state: State
    boxes: tuple[Box, ...] = ()
    words: str = ""
    error: Exception | None = None


def act(session: Session, action: Callable[[Session], Change], words: str = "") -> Answer:
    """Do an action that changes the labels; ``words`` are what to say when it succeeded."""
    try:
        change = action(session)
    except Exception as error:
        return Answer(State.of(session), error=error)
    return Answer(State.of(session), _boxes(change), words)


_UNFAMILIAR = "nothing accepted looks like this, so it is answered without examples"


def add(session: Session, click: Click, good: str, others: str, opens: str) -> Answer:
    """Answer a click; ``good`` is what to say when it succeeded, and ``others`` when the model proposes several masks.

    Where the answer leaves out what was accepted (`Prediction.familiar`), that comes first.
    Within another object a click changes nothing, since objects do not overlap. It counts all the same, but what there is to say is whose
    the place is, and that the key ``opens`` opens it. Of a box that is said only where nothing was found in it.
    """
    answer = act(session, lambda session: session.add(click), good)
    label = int(session.labels[click.voxel]) if answer.error is None else 0
    if label in (0, session.label) or (click.box is not None and answer.boxes):
        several = answer.error is None and answer.state.masks > 1
        newest = _newest_answer(session)
        strange = answer.error is None and newest is not None and not newest.familiar
        words = others if several else answer.words
        return replace(answer, words=f"{_UNFAMILIAR}; {words}" if strange else words)
    name = session.legend.names.get(label)
    known = f"object {label} ({name})" if name else f"object {label}"
    why = "protected since it was accepted" if label in session.finished else "which is not the open one"
    return replace(answer, words=f"this place belongs to {known}, {why}; {opens} over it opens it")


def _boxes(change: Change) -> tuple[Box, ...]:
    return tuple((region, np.array(values)) for region, values in change.pieces)


def paint(session: Session, stroke: Stroke) -> Answer:
    """Take a stroke over as a difference, since answers may have come that the user did not see while painting.

    The whole box comes back even if the session refused: the layer shows the stroke already.
    """
    answer = act(session, lambda s: s.paint(stroke.region, stroke.over(s.labels, protected=s.finished)), "painted")
    return replace(answer, boxes=((stroke.region, np.array(session.labels[stroke.region])),))


def next_mask(session: Session) -> Answer:
    """Take the next of the masks that the model proposed to the newest click; after the last one the first again."""
    newest = _newest_answer(session)
    if newest is None:
        return Answer(State.of(session), words="click on an object first, then step through the masks that the model proposes")
    count = len(newest.proposed)
    if count == 1:
        return Answer(State.of(session), words="the model proposes only this one mask")
    rank = (newest.rank + 1) % count
    score = newest.proposed[rank].score
    words = f"mask {rank + 1} of {count}" + ("" if math.isnan(score) else f", expected IoU {score:.2f}")
    return act(session, lambda session: session.choose(rank), words)


def forget(session: Session) -> Answer:
    """Make the model what it was as shipped, if it is another one."""
    if not session.taught:
        return Answer(State.of(session), words="there is nothing to forget: the model is as it was shipped")
    return act(session, lambda session: session.forget(), "the model is as it was shipped; Ctrl+Z brings back what it learnt")


def continued(session: Session, opened: Callable[[Any, Mapping[int, Origin]], Session]) -> Session:
    """A session of another model that goes on where ``session`` stands: the same objects, and the same clicks answered anew.

    Of the open object stays what the earlier model did not say: what was painted or propagated.

    Parameters
    ----------
    opened : opens it with the labels (S) that it is given, and with where their slices come from
    """
    labels = own_copy(session.labels)
    for plane, answer in session.predictions.items():
        where = (*(slice(None),) * plane.axis, plane.index) if labels.ndim == 3 else ...
        here = np.array(labels[where])
        here[answer.mask & (here == session.label)] = 0
        labels[where] = here
    clicked = {click.plane for click in session.clicks} - set(session.strokes)  # they are clicked in again, and may be undone
    origins = dict(session.origins)
    if (origin := origins.get(session.label)) is not None:
        origins[session.label] = replace(origin, own=origin.own - clicked)
    new = opened(labels, origins)
    try:
        for label, name in session.legend.names.items():
            new.name(label, name, session.legend.color(label))
        new.select(session.label)
        new.name(session.label, session.kind)
        for click in session.clicks:
            new.add(click)
    except BaseException:
        new.close()
        raise
    return new


def _newest_answer(session: Session) -> Prediction | None:
    return session.predictions.get(session.clicks[-1].plane) if session.clicks else None


class CalledOffError(Exception):
    """The user called something off."""


class Cancellable:
    """What the main thread may call off while the worker does it."""

    def __init__(self) -> None:
        self._called_off = threading.Event()

    def cancel(self) -> None:
        """Call it off, from any thread: nothing comes of it, unless it was nearly done."""
        self._called_off.set()

    def go_on(self) -> None:
        """Raises where it was called off."""
        if self._called_off.is_set():
            raise CalledOffError


class Propagation(Cancellable):
    """Carrying an object through a volume: done in the worker, while the main thread may call it off.

    Parameters
    ----------
    session : it belongs to the worker
    axis : across which to go
    label : of the object; by default the one at work, see `Session.candidate`
    tell : called in the worker with the numbers of slices that are done and that there are
    hint : what to say of the way on, where there are slices to look at
    """

    def __init__(self, session: Session, axis: int, tell: Callable[[int, int], None], label: int | None = None, hint: str = "") -> None:
        super().__init__()
        self._session, self._axis, self._tell, self._label, self._hint = session, axis, tell, label, hint

    def __call__(self) -> Answer:
        """Do it."""
        try:
            change, outcome = self._session.propagate(self._label, self._axis, on_slice=self._on_slice)
        except CalledOffError:
            return Answer(State.of(self._session), words="cancelled; everything is as it was")
        except Exception as error:
            return Answer(State.of(self._session), error=error)
        words = f"{outcome.sentence}; {self._hint}" if self._hint and outcome.carried else outcome.sentence
        return Answer(State.of(self._session), _boxes(change), words)

    def _on_slice(self, done: int, total: int) -> None:
        self.go_on()
        self._tell(done, total)


class Acceptance:
    """Accepting an object, and learning from it: two tasks, so that the first shows while the second runs.

    ``keep_class`` : the next object is one of the same class, see `Session.accept`
    """

    def __init__(self, session: Session, *, keep_class: bool) -> None:
        self._session, self._keep_class = session, keep_class
        self._label: int | None = None
        self.outdated: tuple[tuple[int, int], ...] = ()
        """The object and every axis across which it should be propagated again."""

    def accept(self) -> Answer:
        """Finish the open object. One that was carried or loaded as it is teaches nothing."""
        label = self._session.label
        why = "" if self._session.worked_in else "; it was neither clicked nor painted in, so it teaches nothing"
        self.outdated = tuple((label, axis) for axis in self._session.outdated(label))
        kept = self._session.kind if self._keep_class else ""
        words = f"accepted: object {label}{why}" + (f"; the next one is {kept!r}, too" if kept else "")
        answer = act(self._session, lambda session: session.accept(learn=False, keep_class=self._keep_class), words)
        self._label = label if answer.error is None else None
        return answer

    def learn(self, wanted: Callable[[], bool]) -> Generator[None, None, Answer]:
        """Learn from it, if it was accepted; yields where the session is ``wanted``."""
        if self._label is None:
            return Answer(State.of(self._session))
        try:
            known = len(self._session.versions.efforts)
            report = yield from self._session.learning(wanted)
        except Exception as error:
            return Answer(State.of(self._session), error=error)
        efforts = self._session.versions.efforts[known:]
        words = [report.message if report else "", *(effort.sentence for effort in efforts)]
        return Answer(State.of(self._session), words="; ".join(part for part in words if part))

    def words(self) -> str:
        """What `learn` is about to do."""
        return "" if self._label is None else f"learning from object {self._label}"


class Saving(Cancellable):
    """Writing the labels with the image's geometry, and the names of the objects beside them if there are any: done in the worker, while
    the main thread may call it off.

    Parameters
    ----------
    session : it belongs to the worker
    path : where to, see `files.write`
    """

    def __init__(self, session: Session, path: Path) -> None:
        super().__init__()
        self._session, self._path = session, path

    def __call__(self) -> tuple[Path, Fingerprint] | None:
        """Do it: the absolute path, and the fingerprint of the file; None if it was called off."""
        try:
            self.go_on()
            written = files.write(self._path, self._session.labels, like=self._session.image, go_on=self.go_on).resolve()
        except CalledOffError:
            return None
        write_beside(written, self._session.legend)
        return written, fingerprint(written)


def fingerprint(path: Path) -> Fingerprint:
    """Tells whether a file is still the one that was written: size in bytes, and time of the last change in ns."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
