"""The keys of the annotator: which they are, who may choose others, and how they are bound on layer instances.

A key bound on the viewer is shadowed by the class bindings of the active layer (napari's points layer takes S, for one),
so every key is bound on each of the session's layers. All keys that may be chosen are ones that napari leaves free.

From napari 0.9 on the user chooses them in *File > Preferences > Apprentice*: the manifest says so under ``configurations``, with
the titles, keys and choices that stand here. Older versions of napari know no settings of plugins; there the keys are `KEYS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from napari.layers import Layer

__all__ = [
    "ACCEPT",
    "APPROVE",
    "CHOICES",
    "DISCARD",
    "DOUBTFUL",
    "FIXED",
    "KEYS",
    "MEANINGS",
    "NEXT_MASK",
    "OPEN_HERE",
    "PEEK",
    "PROPAGATE",
    "REDO",
    "SWITCH_SIGN",
    "UNDO",
    "LayerKeys",
    "cheat_sheet",
    "chosen",
    "readable",
    "settings",
    "without_collisions",
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
    SWITCH_SIGN: "Q",
    UNDO: "Control-Z",
    REDO: "Control-Shift-Z",
    ACCEPT: "G",
    DISCARD: "J",
    PROPAGATE: "W",
    DOUBTFUL: "U",
    APPROVE: "K",
    OPEN_HERE: "Shift-O",
    NEXT_MASK: "N",
    PEEK: "H",
}
"""Wish → key. napari reads "Control" as the Command key on a Mac. Q is for *query the other sign*, G for *good*, J for *junk*, W for
*walk through the slices*, U for *unsure*, N for *next mask*, K for *keep this slice*, Shift-O for *open*; H is *held* down."""

MEANINGS: Mapping[str, str] = {
    SWITCH_SIGN: "Switch what a click means",
    UNDO: "Undo",
    REDO: "Redo",
    ACCEPT: "Accept the object",
    DISCARD: "Drop the open object",
    PROPAGATE: "Propagate; again: cancel",
    DOUBTFUL: "Show the slice where a correction helps most",
    APPROVE: "Keep the slice as it is",
    OPEN_HERE: "Open the object pointed at",
    NEXT_MASK: "Next proposed mask",
    PEEK: "Held: the untaught answer",
}
"""Wish → what its key does."""

FIXED = (UNDO, REDO)
"""These are what they are everywhere."""

CHOICES = (*"GHJKNQUW", *(f"Shift-{letter}" for letter in "BCDEFGHIJKMNOQRSTUWXYZ"))
"""Keys that napari uses on no layer and in no viewer."""

_MOUSE = {
    "click": "This is the object",
    "Ctrl+click": "This is not",
    "Shift+drag": "A box around it",
}
_BOUND: WeakKeyDictionary[Layer, dict[str, list[Any]]] = WeakKeyDictionary()
"""Layer -> key -> what it did before, and what it does for every session that has bound it, the newest last: any of them may end first."""

_PLUGIN, _SECTION = "napari-apprentice", "keys"


def settings() -> Any:
    """The user's choice: an evented model with an attribute for every wish that is not `FIXED`. None in napari before 0.9."""
    with suppress(ImportError, KeyError, AttributeError):
        from napari.settings import get_plugin_settings

        return getattr(get_plugin_settings(_PLUGIN), _SECTION)
    return None


def chosen(known: Any) -> dict[str, str]:
    """Wish → the key that the user chose for it, collisions included; ``known`` is of `settings`."""
    return {wish: key if wish in FIXED or known is None else getattr(known, wish) for wish, key in KEYS.items()}


def without_collisions(wanted: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """A key for every wish, and no two the same.

    Of two wishes that want the same key, the one that always had it keeps it, else the first one. The other one gets its own old key or,
    if that is taken as well, the first that is free.

    Returns
    -------
    wish → key, and a sentence for every key that was refused
    """
    given: dict[str, str] = {}
    refused = []
    for wish in sorted(KEYS, key=lambda wish: wanted[wish] != KEYS[wish]):  # a stable order: old keys first
        if wanted[wish] not in given.values() and (wish in FIXED or wanted[wish] in CHOICES):
            given[wish] = wanted[wish]
        else:
            refused.append(wish)
    sentences = []
    for wish in refused:
        given[wish] = next(key for key in (KEYS[wish], *CHOICES) if key not in (*given.values(), *wanted.values()))
        holder = next((other for other, key in given.items() if key == wanted[wish]), None)
        why = f"is the key of “{MEANINGS[holder]}”" if holder else "is a key that napari itself may use"
        asked, got = readable(wanted[wish]), readable(given[wish])
        sentences.append(f"{asked} was chosen for “{MEANINGS[wish]}”, but {why}; expected a free key, so it is {got} now")
    return {wish: given[wish] for wish in KEYS}, tuple(sentences)


def readable(key: str) -> str:
    """A key as people write it: "Ctrl+Shift+Z"."""
    return key.replace("Control", "Ctrl").replace("-", "+")


def cheat_sheet(keys: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What mouse and keys do, in the order in which one meets them."""
    return (*_MOUSE.items(), *((readable(keys[wish]), meaning) for wish, meaning in MEANINGS.items()))


class LayerKeys:
    """Keys bound on some layers, and given back as they were.

    Parameters
    ----------
    keys : wish -> key
    wishes : wish -> what to do when its key is pressed
    held : wish -> what to do when its key goes down (called with True) and when it comes up (False)
    """

    def __init__(
        self,
        keys: Mapping[str, str],
        wishes: Mapping[str, Callable[[], None]],
        held: Mapping[str, Callable[[bool], None]] | None = None,
    ) -> None:
        self._keys = keys
        self._actions = {wish: _calling(act) for wish, act in wishes.items()} | {wish: _holding(act) for wish, act in (held or {}).items()}
        self._bound: list[tuple[Layer, str, Any]] = []

    def bind(self, layer: Layer) -> None:
        """Bind every wish on ``layer``."""
        for wish, act in self._actions.items():
            key = self._keys[wish]
            before = layer.bind_key(key, act, overwrite=True)
            stack = _BOUND.setdefault(layer, {}).setdefault(key, [before])
            stack.append(act)
            self._bound.append((layer, key, act))

    def release(self) -> None:
        """Unbind everything, and bind again what was there before; keys that somebody else has bound since stay theirs."""
        for layer, key, act in reversed(self._bound):
            stack = _BOUND[layer][key]
            now = layer.bind_key(key, None, overwrite=True)  # None unbinds
            ours = now in stack
            stack.remove(act)
            layer.bind_key(key, stack[-1] if ours else now, overwrite=True)
            if len(stack) == 1:
                del _BOUND[layer][key]
        self._bound.clear()

    def change(self, keys: Mapping[str, str]) -> None:
        """Use other keys from now on."""
        layers = list(dict.fromkeys(layer for layer, *_ in self._bound))
        self.release()
        self._keys = keys
        for layer in layers:
            self.bind(layer)


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
