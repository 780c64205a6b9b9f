"""What comes back from the worker: values, never the session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from napari_apprentice._napari.mask_layer import Box
from napari_apprentice.types import Click

if TYPE_CHECKING:
    from napari_apprentice.session import Change, Session

__all__ = ["Answer", "State", "boxes_of"]


@dataclass(frozen=True)
class State:
    """What the window shows of a session.

    Attributes
    ----------
    label : id of the open object
    clicks : its clicks, oldest first
    finished : ids of the accepted objects
    can_undo, can_redo : what the session could do next
    """

    label: int
    clicks: tuple[Click, ...] = ()
    finished: tuple[int, ...] = ()
    can_undo: bool = False
    can_redo: bool = False

    @classmethod
    def of(cls, session: Session) -> State:
        """The state of ``session``; called in the worker."""
        return cls(
            label=session.label,
            clicks=tuple(session.clicks),
            finished=tuple(session.finished),
            can_undo=session.can_undo,
            can_redo=session.can_redo,
        )


@dataclass(frozen=True, eq=False)
class Answer:
    """How one action of a session ended.

    Attributes
    ----------
    state : the state after it
    boxes : where the labels changed
    words : what the session said of it, if anything
    error : why it was refused, if it was
    """

    state: State
    boxes: tuple[Box, ...] = ()
    words: str = ""
    error: Exception | None = None


def boxes_of(change: Change) -> tuple[Box, ...]:
    """The changed box as an array of its own; none when nothing changed."""
    if change.region is None:
        return ()
    return ((change.region, np.array(change.values)),)
