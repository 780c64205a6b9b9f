"""What is done in the worker thread: a session is asked, and values come back that the window can show.

A session refuses by raising and is then as it was before. That is caught here, so an action always ends in an `Answer`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_apprentice import files
from napari_apprentice._napari.mask_layer import Box
from napari_apprentice._napari.strokes import Stroke
from napari_apprentice.types import Click
from napari_apprentice.versions import Catalogue

if TYPE_CHECKING:
    from napari_apprentice.session import Change, Doubt, Session

__all__ = ["Acceptance", "Answer", "Propagation", "State", "act", "fingerprint", "paint", "save"]

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
    """

    label: int
    clicks: tuple[Click, ...] = ()
    finished: tuple[int, ...] = ()
    can_undo: bool = False
    can_redo: bool = False
    doubts: tuple[Doubt, ...] = ()
    versions: Catalogue = field(default_factory=Catalogue)

    @classmethod
    def of(cls, session: Session) -> State:
        """The state of ``session``."""
        doubts = tuple(session.doubtful())
        could = session.can_undo, session.can_redo
        return cls(session.label, tuple(session.clicks), tuple(session.finished), *could, doubts, session.versions)


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


def _boxes(change: Change) -> tuple[Box, ...]:
    return () if change.region is None else ((change.region, np.array(change.values)),)


def paint(session: Session, stroke: Stroke) -> Answer:
    """Take a stroke over as a difference, since answers may have come that the user did not see while painting.

    The whole box comes back even if the session refused: the layer shows the stroke already.
    """
    answer = act(session, lambda s: s.paint(stroke.region, stroke.over(s.labels, protected=s.finished)), "painted")
    return replace(answer, boxes=((stroke.region, np.array(session.labels[stroke.region])),))


class Propagation:
    """Carrying an object through a volume: done in the worker, while the main thread may call it off.

    Parameters
    ----------
    session : it belongs to the worker
    axis : across which to go
    tell : called in the worker with the numbers of slices that are done and that there are
    """

    def __init__(self, session: Session, axis: int, tell: Callable[[int, int], None]) -> None:
        self._session, self._axis, self._tell = session, axis, tell
        self._called_off = threading.Event()

    def cancel(self) -> None:
        """Call it off, from any thread: after the slice at hand nothing will have happened."""
        self._called_off.set()

    def __call__(self) -> Answer:
        """Do it."""
        try:
            change, outcome = self._session.propagate(axis=self._axis, on_slice=self._on_slice)
        except _CalledOffError:
            return Answer(State.of(self._session), words="cancelled; everything is as it was")
        except Exception as error:
            return Answer(State.of(self._session), error=error)
        return Answer(State.of(self._session), _boxes(change), outcome.sentence)

    def _on_slice(self, done: int, total: int) -> None:
        if self._called_off.is_set():
            raise _CalledOffError
        self._tell(done, total)


class _CalledOffError(Exception):
    """The user called a propagation off."""


class Acceptance:
    """Accepting an object, and learning from it: two tasks, so that the first shows while the second runs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._label: int | None = None

    def accept(self) -> Answer:
        """Finish the open object."""
        label = self._session.label
        answer = act(self._session, lambda session: session.accept(learn=False), f"accepted: object {label}")
        self._label = label if answer.error is None else None
        return answer

    def learn(self) -> Answer:
        """Learn from it, if it was accepted."""
        if self._label is None:
            return Answer(State.of(self._session))
        try:
            known = len(self._session.versions.efforts)
            report = self._session.learn()
        except Exception as error:
            return Answer(State.of(self._session), error=error)
        efforts = self._session.versions.efforts[known:]
        words = [report.message if report else "", *(effort.sentence for effort in efforts)]
        return Answer(State.of(self._session), words="; ".join(part for part in words if part))

    def words(self) -> str:
        """What `learn` is about to do."""
        return "" if self._label is None else f"learning from object {self._label}"


def save(session: Session, path: Path) -> tuple[Path, Fingerprint]:
    """Write the labels with the image's geometry.

    Returns
    -------
    the absolute path, and the fingerprint of the file
    """
    written = files.write(path, session.labels, like=session.image).resolve()
    return written, fingerprint(written)


def fingerprint(path: Path) -> Fingerprint:
    """Tells whether a file is still the one that was written: size in bytes, and time of the last change in ns."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
