"""The labels layer that shows the session's labels and takes hand painting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from napari.layers import Labels
from napari.utils.colormaps import CyclicLabelColormap
from napari.utils.colormaps.standardize_color import transform_color

from napari_apprentice._napari.placement import LEGEND_KEY, METADATA_KEY, same_placement
from napari_apprentice._napari.strokes import Stroke
from napari_apprentice.blocks import BlockArray
from napari_apprentice.legend import Legend
from napari_apprentice.types import Image

if TYPE_CHECKING:
    from collections.abc import Generator

    from napari.layers import Layer

__all__ = ["Box", "MaskLayer", "copied", "own_copy"]

# Vivid, and far from the reds and greys of most images; neighbouring ids are far from each other.
_COLORS = (
    "#00b4ff",
    "#ffe100",
    "#ff4fd8",
    "#5dff3b",
    "#ff8a00",
    "#9d6bff",
    "#00ffc3",
    "#ff5a5a",
    "#c6ff00",
    "#4d7dff",
    "#ffb3f0",
    "#b8860b",
)

_LONGEST_CYCLE = 2**16 // len(_COLORS) * len(_COLORS)
"""napari takes at most 2^16 colours. Objects with larger ids are drawn in the usual colours, whatever their class."""

Box = tuple[tuple[slice, ...], npt.NDArray[Any]]
"""Where something changed (n slices), and the labels there now."""


def own_copy(labels: Any) -> Any:
    """A copy of the session's labels for the layer, on the disk if they are (call it in the worker: it goes through the whole volume)."""
    if isinstance(labels, BlockArray):
        return labels.duplicate(np.uint32)
    return copied(labels, _roomy(int(labels.max(initial=0))))


def copied(array: npt.NDArray[Any], dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """A copy, layer by layer, so that the main thread gets its turn in between."""
    copy = np.empty(array.shape, array.dtype if dtype is None else dtype)
    for layer, values in zip(copy, array, strict=True):
        layer[...] = values
    return copy


class MaskLayer:
    """An array of its own, changed box by box as the session answers; shares nothing mutable with the session.

    Boxes are written directly, not through napari's edit history, for two reasons: a history step costs 26 bytes per
    voxel, and there must be one order of undo, the session's. What makes that safe is that napari's history is never
    played back: ``undo`` and ``redo`` of this very layer lead to the session (and so do the keys, which napari's
    labels class binds to those methods).

    Parameters
    ----------
    image : what the labels belong to; it goes into the layer's metadata, for whoever saves the layer
    image_layer : where it stands; the labels stand there too
    labels : (S) integer array that nobody else writes to, see `own_copy`
    painted : called with every stroke that the user finished with napari's own tools
    replaced : called when somebody assigned a whole new array to the layer
    undo, redo : called in place of napari's own
    picked : called with the id that the user chose with napari's picker
    layer : one that a session left, to go on in; by default a new one
    """

    def __init__(
        self,
        image: Image,
        image_layer: Layer,
        labels: npt.NDArray[Any],
        *,
        painted: Callable[[Stroke], None],
        replaced: Callable[[], None],
        undo: Callable[[], None],
        redo: Callable[[], None],
        picked: Callable[[int], None],
        layer: Labels | None = None,
    ) -> None:
        self._painted, self._replaced, self._picked = painted, replaced, picked
        self._strokes: list[Stroke] = []
        self._held: list[Box] | None = None
        self._writing = self._strange = False
        self._chosen: int | None = None
        self._colors: dict[int, str] = {}
        self._cycle = len(_COLORS)
        colormap = CyclicLabelColormap(colors=_colors_of({}, len(_COLORS)))
        if layer is None:
            layer = Labels(labels, name=f"{image_layer.name} labels", opacity=0.5, colormap=colormap, **same_placement(image_layer))
        else:
            layer.data, layer.colormap = labels, colormap
            layer.visible = layer.editable = True
        self.layer = layer
        self.layer.metadata[METADATA_KEY] = image
        self.layer.preserve_labels = True
        self.layer.undo, self.layer.redo = undo, redo
        self.layer.events.paint.connect(self._on_paint)
        self.layer.events.data.connect(self._on_data)
        self.layer.events.selected_label.connect(self._on_label)
        self.layer.mouse_drag_callbacks.append(self._on_press)

    def write(self, boxes: Sequence[Box]) -> None:
        """Put boxes in, oldest first, and draw once; while the user paints, only when the stroke is finished.

        Not into an array that somebody else put there: all labels follow (see `write_all`).
        """
        if self._strange:
            return
        if self._held is not None:
            self._held.extend(boxes)
            return
        for region, values in boxes:
            top = int(values.max(initial=0))
            if top > np.iinfo(self.layer.data.dtype).max:
                self.write_all(self.layer.data.astype(_roomy(top)))
            self.layer.data[region] = values
        for stroke in self._strokes:  # newer than what was just written
            self.layer.data[stroke.region] = stroke.over(self.layer.data)
        if boxes:
            self.layer.refresh()

    def write_all(self, labels: npt.NDArray[Any]) -> None:
        """Put a whole label map in (see `own_copy`); somebody may have replaced the array by one of another shape."""
        self._writing = True
        try:
            self.layer.data = labels
            self._strange = False
        finally:
            self._writing = False

    def begin_anew(self, labels: npt.NDArray[Any]) -> None:
        """Put in the labels of another session: the answers to the strokes so far will not come."""
        self._strokes.clear()
        self._held = None
        self.write_all(labels)

    def stroke_answered(self, stroke: Stroke) -> None:
        """The session has taken (or refused) this stroke: from now on its own answer is what counts."""
        if stroke in self._strokes:
            self._strokes.remove(stroke)

    def choose(self, label: int) -> None:
        """The label that the brush paints with, as long as the user chooses no other one."""
        if label != self._chosen and not self._strange:
            if label > np.iinfo(self.layer.data.dtype).max:
                self.write_all(self.layer.data.astype(_roomy(label)))
            self._chosen = self.layer.selected_label = label

    def show_classes(self, legend: Legend, highest: int) -> None:
        """Draw objects that have a class in its colour, and let napari's status bar say what the object under the pointer is.

        A cycle of colours that is longer than the ``highest`` id gives every object a colour of its own at the cost of the usual twelve;
        a direct colour map would go through all voxels of the slice with a dictionary at every change.
        """
        if legend != self.layer.metadata.get(LEGEND_KEY, Legend()):
            self.layer.metadata[LEGEND_KEY] = legend
            self.layer.features = {"index": list(legend.names), "class": list(legend.names.values())}
        colors = {label: legend.colors[name] for label, name in legend.names.items()}
        if colors != self._colors or (colors and highest > self._cycle < _LONGEST_CYCLE):
            self._colors, self._cycle = colors, _cycle_beyond(max(highest, *colors)) if colors else len(_COLORS)
            shown = {"use_selection": self.layer.show_selected_label, "selection": self.layer.selected_label}
            self.layer.colormap = CyclicLabelColormap(colors=_colors_of(colors, self._cycle), **shown)

    def label_at(self, position: npt.ArrayLike) -> int:
        """The label at a place in the layer's world; 0 for none."""
        return self.label_of(tuple(int(v) for v in np.rint(np.asarray(self.layer.world_to_data(position)))))

    def label_of(self, voxel: tuple[int, ...]) -> int:
        """The label of a voxel; 0 for none, also where somebody replaced the array by one of another shape."""
        data = self.layer.data
        inside = len(voxel) == data.ndim and all(0 <= v < size for v, size in zip(voxel, data.shape, strict=True))
        return int(data[voxel]) if inside else 0

    def close(self) -> None:
        """Stop listening and give napari its own undo back, with an empty history. The layer itself is left alone."""
        self.layer.events.paint.disconnect(self._on_paint)
        self.layer.events.data.disconnect(self._on_data)
        self.layer.events.selected_label.disconnect(self._on_label)
        self.layer.mouse_drag_callbacks.remove(self._on_press)
        del self.layer.undo, self.layer.redo
        if self.layer.editable:  # napari drops the history of a layer that may not be edited
            self.layer.editable = False
            self.layer.editable = True

    def _on_press(self, _: Labels, event: Any) -> Generator[None, None, None]:
        """Hold answers back while a button is down: napari puts the old values back if the stroke is given up."""
        self._held = []
        yield
        while event.type == "mouse_move":
            yield
        self._end_stroke()

    def break_stroke(self) -> None:
        """Nobody will tell when the button is up: what is painted so far counts."""
        with self.layer.block_history():  # at whose end napari tells of it
            pass
        drawing = getattr(self.layer, "_mouse_drag_gen", {})  # else the brush goes on where the mouse comes back without a button
        generators = list(drawing.values())
        drawing.clear()
        for generator in generators:
            if not generator.gi_running:
                generator.close()
        self._end_stroke()

    def _end_stroke(self) -> None:
        """Put in what was held back."""
        held, self._held = self._held, None
        if held is not None:
            self.write(held)

    def _on_paint(self, event: Any) -> None:
        stroke = Stroke.from_history(event.value)
        self._strokes.append(stroke)
        self._painted(stroke)

    def _on_label(self) -> None:
        if self.layer.mode == "pick" and self.layer.selected_label not in (0, self._chosen):
            self._chosen = None  # what is picked is not open yet, and may not be opened
            self._picked(self.layer.selected_label)

    def _on_data(self) -> None:
        if not self._writing:
            self._strange = True
            self._replaced()


def _cycle_beyond(label: int) -> int:
    """A length of the cycle with room for ids that are still to come, so that the colours are hardly ever made anew."""
    length = len(_COLORS)
    while length <= label and length < _LONGEST_CYCLE:
        length = min(2 * length, _LONGEST_CYCLE)
    return length


def _colors_of(colors: Mapping[int, str], length: int) -> npt.NDArray[np.float32]:
    """(length + 1, 4) colours: none for 0, the usual ones in turn, and those of the objects that have one of their own."""
    cycle = np.concatenate([np.zeros((1, 4), np.float32), np.resize(transform_color(list(_COLORS)), (length, 4))])
    own = {label: color for label, color in colors.items() if label <= length}
    if own:
        cycle[list(own)] = transform_color(list(own.values()))
    return cycle


def _roomy(top: int) -> type[np.unsignedinteger[Any]]:
    """An integer type with room for labels that are still to come, so that the array is hardly ever replaced."""
    return np.uint16 if top < 2**15 else np.uint32
