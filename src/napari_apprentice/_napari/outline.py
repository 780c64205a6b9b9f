"""A layer that outlines one mask over the session's own labels, while it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from napari.layers import Labels
from napari.utils.colormaps import DirectLabelColormap

from napari_apprentice._napari.placement import same_placement
from napari_apprentice.blocks import BlockArray, is_large
from napari_apprentice.types import Plane

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

__all__ = ["OUTLINE_KEY", "Outline", "added_aside", "is_adding_aside"]

OUTLINE_KEY = "napari-apprentice-outline"
"""In the metadata of the layer: it is none of the user's."""

_ADDING = "adding"
_COLOR = "#ffffff"
_PIXELS_PER_WIDTH = 250


def added_aside(viewer: ViewerModel, layer: Layer) -> None:
    """Add a layer that the user did not ask for as such: those that were selected, and the active one, stay so."""
    selection = viewer.layers.selection
    active, chosen = selection.active, set(selection)
    layer.metadata[OUTLINE_KEY] = _ADDING
    viewer.add_layer(layer)
    selection.clear()
    selection.update(chosen)
    selection.active = active
    layer.metadata[OUTLINE_KEY] = True


def is_adding_aside(viewer: ViewerModel) -> bool:
    """Whether it is `added_aside` that changes which layer is active, and not the user."""
    return any(layer.metadata.get(OUTLINE_KEY) == _ADDING for layer in viewer.layers)


class Outline:
    """Made when it is first shown; neither that nor showing it changes which layer is active.

    Parameters
    ----------
    viewer : the viewer
    image_layer : where the mask belongs
    shape : (S) of the image
    """

    def __init__(self, viewer: ViewerModel, image_layer: Layer, shape: tuple[int, ...]) -> None:
        self._viewer, self._image_layer, self._shape = viewer, image_layer, shape
        self._plane: Plane | None = None
        self.layer: Labels | None = None

    def show(self, plane: Plane, mask: npt.NDArray[np.bool_]) -> None:
        """Outline an (H, W) mask in a plane of the image."""
        layer = self.layer if self.layer is not None and self.layer in self._viewer.layers else self._made()
        if self._plane is not None:
            layer.data[self._index(self._plane)] = 0
        layer.data[self._index(plane)] = mask
        self._plane = plane
        layer.visible = True
        layer.refresh()

    def hide(self) -> None:
        """Show it no longer."""
        if self.layer is not None:
            self.layer.visible = False

    def close(self) -> None:
        """Take the layer away."""
        if self.layer is not None and self.layer in self._viewer.layers:
            self._viewer.layers.remove(self.layer)
        self.layer = None

    def _made(self) -> Labels:
        colors = DirectLabelColormap(color_dict={None: "transparent", 0: "transparent", 1: _COLOR})
        # Zeros take no memory until they are written, and only one plane ever is; but some systems refuse to promise that much.
        self.layer = Labels(
            BlockArray(self._shape) if is_large(self._shape) else np.zeros(self._shape, np.uint8),
            name="untaught model",
            colormap=colors,
            opacity=1.0,
            metadata={OUTLINE_KEY: True},
            **same_placement(self._image_layer),
        )
        self.layer.contour = max(1, round(min(sorted(self._shape)[-2:]) / _PIXELS_PER_WIDTH))
        self.layer.editable = False
        self._plane = None
        added_aside(self._viewer, self.layer)
        return self.layer

    def _index(self, plane: Plane) -> tuple[int | slice, ...]:
        index: list[int | slice] = [slice(None)] * len(self._shape)
        if len(self._shape) == 3:
            index[plane.axis] = int(plane.index)
        return tuple(index)
