"""Labels layers that closed sessions left in the viewer, so that a session that is resumed there goes on in its own one.

A mark in the layer's metadata says which session left it. The first change by anybody takes the mark away: the layer is the user's then.
A script that writes into the array says nothing. So a layer is gone on with only if it holds the labels of the session; or, where answers
were still on their way when it was left, if it is as it was then, see `Seal`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Labels, Layer

from napari_apprentice._napari.placement import apart
from napari_apprentice.blocks import BlockArray

__all__ = ["Seal", "hide_left", "hide_others", "leave", "left_by", "same", "seal_of", "take_over"]

_LEFT_KEY = "napari-apprentice-left"
"""The metadata of a layer that was left hold folder of the session, id of the layer (a duplicate of it has another one) and its `Seal`."""


class Seal:
    """Tells whether a label map is as it was. Going through all of it is for the worker.

    Parameters
    ----------
    labels : label map, in memory or on the disk
    """

    def __init__(self, labels: Any) -> None:
        self._labels = labels
        self._print: int | None = None

    def put(self) -> None:
        """As it is now."""
        self._print = _print_of(self._labels)

    def holds(self, labels: Any) -> bool:
        """Whether this is that very map, and as it was."""
        return self._print is not None and labels is self._labels and _print_of(labels) == self._print


def leave(layer: Labels, folder: Path) -> Seal:
    """Mark a layer as left by the session in ``folder``, until somebody changes it. The seal is to be put on it if it lacks answers."""
    seal = Seal(layer.data)
    layer.metadata[_LEFT_KEY] = (folder, layer.unique_id, seal)
    for changed in (layer.events.paint, layer.events.data):
        changed.connect(_on_change)
    return seal


def left_by(folder: Path, image_layer: Layer, layers: Iterable[Layer]) -> list[Labels]:
    """Those of ``layers`` that the session in ``folder`` left where its image is, and that nobody has changed since; the newest first."""
    return [layer for layer in _left(image_layer, layers) if layer.metadata[_LEFT_KEY][0] == folder]


def hide_left(image_layer: Layer, layers: Iterable[Layer]) -> int:
    """Hide what sessions left where an image is, as it shows something else now; how many of ``layers`` that were."""
    shown = [layer for layer in _left(image_layer, layers) if layer.visible]
    for layer in shown:
        layer.visible = False
    return len(shown)


def hide_others(folder: Path, layers: Iterable[Layer]) -> int:
    """Hide what other sessions than the one in ``folder`` left, wherever that is; how many of ``layers`` that were."""
    shown = [layer for layer in layers if _is_left(layer) and layer.visible and layer.metadata[_LEFT_KEY][0] != folder]
    for layer in shown:
        layer.visible = False
    return len(shown)


def take_over(layer: Labels) -> None:
    """Take the mark away again."""
    layer.metadata.pop(_LEFT_KEY, None)
    for changed in (layer.events.paint, layer.events.data):
        changed.disconnect(_on_change)


def same(first: Any, second: Any) -> bool:
    """Whether two label maps, in memory or on the disk, hold the same ids. Goes through all of them, so it is for the worker."""
    known = all(isinstance(each, np.ndarray | BlockArray) for each in (first, second)) and first.shape == second.shape
    return known and all(np.array_equal(first[index], second[index]) for index in range(first.shape[0]))


def seal_of(layer: Labels) -> Seal:
    """The seal of a layer that was left."""
    seal: Seal = layer.metadata[_LEFT_KEY][2]
    return seal


def _print_of(labels: Any) -> int:
    """A number that, as good as always, is another one once an id has changed."""
    value = 0
    for index in range(labels.shape[0]):
        value = zlib.crc32(np.ascontiguousarray(labels[index]).data, value)
    return value


def _left(image_layer: Layer, layers: Iterable[Layer]) -> list[Labels]:
    """What any session left where an image is, the newest first."""
    left = [layer for layer in layers if _is_left(layer)]
    return [layer for layer in reversed(left) if apart(layer, image_layer) is None]


def _is_left(layer: Layer) -> bool:
    """Whether a session left this very layer, and nobody has changed it since."""
    return isinstance(layer, Labels) and layer.metadata.get(_LEFT_KEY, ())[1:2] == (layer.unique_id,)


def _on_change(event: Any) -> None:
    take_over(event.source)
