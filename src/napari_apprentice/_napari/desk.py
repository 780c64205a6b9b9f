"""A session laid out in the viewer: its two layers, and the keys that work on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from napari_apprentice._napari import keys
from napari_apprentice._napari.answers import Opened
from napari_apprentice._napari.click_layer import ClickLayer
from napari_apprentice._napari.leftovers import Seal, leave, take_over
from napari_apprentice._napari.mask_layer import Box, MaskLayer
from napari_apprentice._napari.outline import Outline
from napari_apprentice._napari.placement import (
    PLACEMENT,
    full_resolution,
    in_its_world,
    put_on,
    runs_backwards,
    show_plane,
    shown_plane,
    voxel_lengths,
)
from napari_apprentice._napari.strokes import Stroke
from napari_apprentice.types import Click, Plane

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image as ImageLayer
    from napari.layers import Labels, Layer

__all__ = ["Desk", "Wishes"]


class Wishes(Protocol):
    """Whoever does what the user wants."""

    def click(self, click: Click) -> None:
        """The user clicked."""

    def paint(self, stroke: Stroke) -> None:
        """The user painted with napari's own tools."""

    def put_back(self) -> None:
        """Somebody replaced the whole array of the labels layer."""

    def image_moved(self) -> None:
        """The image layer was moved in the world."""

    def image_rescaled(self) -> None:
        """Its voxels have another size in the world than when the session began."""

    def image_replaced(self) -> None:
        """Somebody replaced the array of the image layer."""

    def undo(self) -> None:
        """The user wants the last action taken back."""

    def redo(self) -> None:
        """The user wants it done again."""

    def accept(self) -> None:
        """The open object is finished."""

    def discard(self) -> None:
        """The open object is to go."""

    def propagate(self) -> None:
        """The object is to be carried to other slices; if that is going on, it is to end."""

    def show_doubtful(self) -> None:
        """The user wants to see the slice to correct next."""

    def approve(self) -> None:
        """The slice that is shown is good as it is."""

    def open_here(self) -> None:
        """The object under the pointer is to be opened."""

    def select(self, label: int) -> None:
        """The user picked an object with napari's picker: it is to be opened."""

    def peek(self, on: bool) -> None:
        """The user wants to see what the untaught model would have said, or no longer."""

    def next_mask(self) -> None:
        """The user wants to see the next of the masks that the model proposed."""

    def switch_sign(self) -> None:
        """A plain click is to mean the opposite."""

    def tell(self, sentence: str) -> None:
        """The user is to read this."""


class Desk:
    """Adds the layers of a session to the viewer; `close` ends their work, and `clear` takes the clicks away and leaves the labels.

    Parameters
    ----------
    viewer : the viewer
    image_layer : the layer of the session's image
    opened : the session; it and its folder are kept for whoever asks, who may put another of the same image in its place
    wishes : whoever the user's actions go to
    bound : wish -> key
    left : the labels layer that this very session left in the viewer, to go on in; by default a new one
    """

    def __init__(
        self,
        viewer: ViewerModel,
        image_layer: ImageLayer,
        opened: Opened,
        wishes: Wishes,
        bound: Mapping[str, str] = keys.KEYS,
        left: Labels | None = None,
    ) -> None:
        self.session, self.folder = opened.session, opened.folder
        self._viewer, self.image_layer = viewer, image_layer
        image = self.session.image
        if left is not None:
            take_over(left)
        self.clicks = ClickLayer(viewer, image_layer, image.shape, clicked=wishes.click, undo=wishes.undo, tell=wishes.tell)
        self.mask = MaskLayer(
            image,
            image_layer,
            opened.labels,
            painted=wishes.paint,
            replaced=wishes.put_back,
            undo=wishes.undo,
            redo=wishes.redo,
            picked=wishes.select,
            layer=left,
        )
        self._layers: tuple[Layer, ...] = (image_layer, self.mask.layer, self.clicks.layer)
        self._keys = keys.LayerKeys(
            bound,
            {
                keys.UNDO: wishes.undo,
                keys.REDO: wishes.redo,
                keys.SWITCH_SIGN: wishes.switch_sign,
                keys.ACCEPT: wishes.accept,
                keys.DISCARD: wishes.discard,
                keys.PROPAGATE: wishes.propagate,
                keys.DOUBTFUL: wishes.show_doubtful,
                keys.NEXT_MASK: wishes.next_mask,
                keys.APPROVE: wishes.approve,
                keys.OPEN_HERE: wishes.open_here,
            },
            {keys.PEEK: wishes.peek},
        )
        self._wishes, self._looking, self._placing = wishes, False, False
        self._pixels, self._lengths = full_resolution(image_layer), voxel_lengths(image_layer)
        self._moved = [getattr(layer.events, name) for layer in self._layers for name in (*PLACEMENT, "units")]
        self.outline = Outline(viewer, image_layer, image.shape)
        _raise_above_images(viewer, image_layer)
        if left is None:
            viewer.add_layer(self.mask.layer)
        else:
            _raise_above_images(viewer, left)
        viewer.add_layer(self.clicks.layer)
        for layer in self._layers:
            self._keys.bind(layer)
        self.clicks.show_help(bound)
        for event in self._moved:
            event.connect(self._on_moved)
        image_layer.events.data.connect(self._on_replaced)

    def change_keys(self, bound: Mapping[str, str]) -> None:
        """Listen to other keys."""
        self._keys.change(bound)
        self.clicks.show_help(bound)

    def only_look(self) -> None:
        """Let the mouse neither click nor paint: what it did would be refused."""
        self._looking = True
        self.mask.layer.editable = False
        self.clicks.layer.mode = "pan_zoom"

    def __contains__(self, layer: Layer) -> bool:
        return layer in self._layers

    @property
    def whole(self) -> bool:
        """Whether all of its layers are in the viewer."""
        return all(layer in self._viewer.layers for layer in self._layers)

    def show(self, label: int, clicks: Sequence[Click], boxes: Sequence[Box] = ()) -> None:
        """Show the open object's id and clicks, and where labels changed."""
        self.mask.write(boxes)
        self.mask.choose(label)
        self.clicks.draw(clicks)

    @property
    def label_here(self) -> int:
        """Id of the object under the pointer; 0 where there is none."""
        viewer, layer = self._viewer, self.mask.layer
        return self.mask.label_at(in_its_world(layer, viewer.cursor.position, viewer.dims))

    def label_of(self, voxel: tuple[int, ...]) -> int:
        """Id of the object that is shown at a voxel of the image; 0 where there is none."""
        return self.mask.label_of(voxel)

    @property
    def plane(self) -> Plane | None:
        """The plane of the image that the viewer shows, if it shows one."""
        return shown_plane(self._viewer.dims, self.image_layer)

    @property
    def flipped(self) -> bool:
        """Whether the viewer's slider runs from the last slice to the first."""
        plane = self.plane
        return plane is not None and runs_backwards(self.image_layer, plane.axis)

    def show_plane(self, plane: Plane) -> None:
        """Let the viewer show a plane of the image."""
        show_plane(self._viewer.dims, self.image_layer, plane)

    def close(self) -> Seal:
        """Give keys, mouse and undo back to napari, and leave the labels; see `leave`."""
        for event in self._moved:
            event.disconnect(self._on_moved)
        self.image_layer.events.data.disconnect(self._on_replaced)
        self._keys.release()
        self.clicks.close()
        if self._looking:
            self.mask.layer.editable = True
        self.mask.close()
        return leave(self.mask.layer, self.folder)

    def _on_moved(self, event: Any) -> None:
        """Labels and clicks lie on the image, whichever of the three somebody moved."""
        if self._placing:
            return
        self._placing = True
        try:
            for layer in (self.mask.layer, self.clicks.layer):
                put_on(layer, self.image_layer)
        finally:
            self._placing = False
        self.outline.close()  # made anew, and there, when it is asked for
        if event.source == self.image_layer:
            self._wishes.image_moved()
            if not np.allclose(voxel_lengths(self.image_layer), self._lengths):
                self._lengths = voxel_lengths(self.image_layer)
                self._wishes.image_rescaled()

    def _on_replaced(self) -> None:
        if full_resolution(self.image_layer) is not self._pixels:
            self._pixels = full_resolution(self.image_layer)
            self._wishes.image_replaced()

    def clear(self) -> None:
        """Take the layers away that nobody needs any longer."""
        self.outline.close()
        if self.clicks.layer in self._viewer.layers:
            self._viewer.layers.remove(self.clicks.layer)


def _raise_above_images(viewer: ViewerModel, layer: Layer) -> None:
    """Show a layer, in front of the images that would cover it."""
    layer.visible = True
    layers = viewer.layers
    covering = [i for i, other in enumerate(layers) if i > layers.index(layer) and other.visible and hasattr(other, "contrast_limits")]
    if covering:
        layers.move(layers.index(layer), covering[-1] + 1)
