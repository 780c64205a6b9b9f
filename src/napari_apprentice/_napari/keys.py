"""The keys of the annotator, bound on layer instances.

A key bound on the viewer is shadowed by the class bindings of the active layer (napari's points layer takes S, for one),
so every key is bound on each of the session's layers. The letters are those that no built-in layer uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari.layers import Layer

__all__ = [
    "ACCEPT",
    "APPROVE",
    "DISCARD",
    "DOUBTFUL",
    "KEYS",
    "NEXT_MASK",
    "OPEN_HERE",
    "PEEK",
    "PROPAGATE",
    "REDO",
    "SWITCH_SIGN",
    "UNDO",
    "LayerKeys",
]

UNDO = "undo"
REDO = "redo"
SWITCH_SIGN = "switch_sign"
ACCEPT = "accept"
DISCARD = "discard"
PROPAGATE = "propagate"
DOUBTFUL = "doubtful"
PEEK = "peek"
NEXT_MASK = "next_mask"
APPROVE = "approve"
OPEN_HERE = "open_here"

KEYS: Mapping[str, str] = {
    UNDO: "Control-Z",
    REDO: "Control-Shift-Z",
    SWITCH_SIGN: "Q",
    ACCEPT: "G",
    DISCARD: "J",
    PROPAGATE: "W",
    DOUBTFUL: "U",
    PEEK: "H",
    NEXT_MASK: "N",
    APPROVE: "K",
    OPEN_HERE: "Shift-O",
}
"""Wish → key. napari reads "Control" as the Command key on a Mac. Q is for *query the other sign*, G for *good*, J for *junk*, W for
*walk through the slices*, U for *unsure*, N for *next mask*, K for *keep this slice*, Shift-O for *open*; H is *held* down."""


class LayerKeys:
    """Keys bound on some layers, and given back as they were.

    Parameters
    ----------
    wishes : wish -> what to do when its key is pressed
    held : wish -> what to do when its key goes down (called with True) and when it comes up (False)
    """

    def __init__(self, wishes: Mapping[str, Callable[[], None]], held: Mapping[str, Callable[[bool], None]] | None = None) -> None:
        self._actions = {wish: _calling(act) for wish, act in wishes.items()} | {wish: _holding(act) for wish, act in (held or {}).items()}
        self._before: list[tuple[Layer, str, Any]] = []

    def bind(self, layer: Layer) -> None:
        """Bind every wish on ``layer``."""
        for wish, act in self._actions.items():
            key = KEYS[wish]
            self._before.append((layer, key, layer.bind_key(key, act, overwrite=True)))

    def release(self) -> None:
        """Unbind everything, and bind again what was there before."""
        for layer, key, before in self._before:
            layer.bind_key(key, before, overwrite=True)  # None unbinds
        self._before.clear()


def _holding(act: Callable[[bool], None]) -> Callable[[Any], Iterator[None]]:
    def held(_: Any) -> Iterator[None]:
        act(True)
        yield
        act(False)

    return held


def _calling(act: Callable[[], None]) -> Callable[[Any], None]:
    def pressed(_: Any) -> None:
        act()

    return pressed
