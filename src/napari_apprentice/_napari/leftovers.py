"""Labels layers that closed sessions left in the viewer, so that a session that is resumed there goes on in its own one.

A mark in the layer's metadata says which session left it. The first change by anybody takes the mark away: the layer is the user's then.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Labels, Layer

from napari_apprentice._napari.placement import apart
from napari_apprentice.blocks import BlockArray

__all__ = ["hide_left", "hide_others", "leave", "left_by", "same", "take_over"]

_LEFT_KEY = "napari-apprentice-left"
"""The metadata of a layer that was left hold folder of the session and id of the layer (which a duplicate of it does not have)."""


def leave(layer: Labels, folder: Path) -> None:
    """Mark a layer as left by the session in ``folder``, until somebody changes it."""
    layer.metadata[_LEFT_KEY] = (folder, layer.unique_id)
    for changed in (layer.events.paint, layer.events.data):
        changed.connect(_on_change)


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


def _left(image_layer: Layer, layers: Iterable[Layer]) -> list[Labels]:
    """What any session left where an image is, the newest first."""
    left = [layer for layer in layers if _is_left(layer)]
    return [layer for layer in reversed(left) if apart(layer, image_layer) is None]


def _is_left(layer: Layer) -> bool:
    """Whether a session left this very layer, and nobody has changed it since."""
    return isinstance(layer, Labels) and layer.metadata.get(_LEFT_KEY, ())[1:] == (layer.unique_id,)


def _on_change(event: Any) -> None:
    take_over(event.source)
