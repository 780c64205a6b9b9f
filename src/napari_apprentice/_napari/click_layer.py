"""The points layer that takes clicks and shows those of the open object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from napari.layers import Points

from napari_apprentice._napari.keys import ACCEPT, SWITCH_SIGN, readable
from napari_apprentice._napari.placement import hidden_axis, in_its_world, same_placement
from napari_apprentice.types import Box, Click, Plane

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from napari.components import ViewerModel
    from napari.layers import Layer

__all__ = ["NEGATIVE_COLOR", "POSITIVE_COLOR", "ClickLayer"]

POSITIVE_COLOR = "#009e73"
NEGATIVE_COLOR = "#d55e00"
"""Okabe and Ito's bluish green and vermilion, told apart by colour-blind people; the symbols differ as well."""

# The largest size on the screen; the smallest one has to be small, for the border is drawn at least half as thick as that.
_CANVAS_SIZES_PX = (2.0, 15.0)
_SIZES_PER_IMAGE = 16
_DRAG_PX = 5.0

IN_3D = "A click in the 3D rendering has no depth; press the 2D/3D button to click in a slice."
OUTSIDE = "That was outside the image, so nothing changed."
OTHER_PLANE = "The view does not show one plane of the image, so the click was ignored."
NOT_MOVED = "Clicks stay where they were made; undo (Ctrl+Z) and click again."
NOT_REMOVED = "The mask follows from its clicks, so only the newest one can go; use undo (Ctrl+Z)."


class ClickLayer:
    """Turns mouse clicks into wishes, and draws the clicks it is told to draw. It decides nothing.

    Parameters
    ----------
    viewer : the viewer that shows the image
    image_layer : where the image stands; the points stand there too
    shape : (S) spatial shape of the image
    clicked : called with each wished click
    undo : called when the user deleted the newest point
    tell : called with one sentence when something is not possible
    """

    def __init__(
        self,
        viewer: ViewerModel,
        image_layer: Layer,
        shape: tuple[int, ...],
        *,
        clicked: Callable[[Click], None],
        undo: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self.positive = True
        self._viewer, self._shape = viewer, shape
        self._clicked, self._undo, self._tell = clicked, undo, tell
        self._drawn: tuple[Click, ...] = ()
        self._drawing = False
        self.layer = Points(
            np.empty((0, len(shape))),
            ndim=len(shape),
            name=f"{image_layer.name} clicks",
            size=max(shape) / _SIZES_PER_IMAGE,  # in voxels, so large that the limit on the screen decides
            canvas_size_limits=_CANVAS_SIZES_PX,
            border_color="white",
            border_width=0.12,
            face_color=POSITIVE_COLOR,
            features={"positive": np.empty(0, dtype=bool)},
            **same_placement(image_layer),
        )
        self.layer.mouse_drag_callbacks.append(self._on_press)
        self.layer.events.mode.connect(self._on_mode)
        self.layer.events.data.connect(self._on_data)
        viewer.dims.events.order.connect(self._show_those_of_this_axis)
        viewer.dims.events.ndisplay.connect(self._show_those_of_this_axis)

    def show_help(self, bound: Mapping[str, str]) -> None:
        """Let napari's status bar say the most important keys (wish -> key)."""
        sign, accept = (readable(bound[wish]) for wish in (SWITCH_SIGN, ACCEPT))
        self.layer.help = f"click: inside the object, Ctrl+click: outside, Shift+drag: box around it, {sign} switches, {accept} accepts"

    def take_clicks(self) -> None:
        """Make this the layer that the mouse talks to. napari gives none to a hidden one."""
        self.layer.visible = True
        self._viewer.layers.selection.active = self.layer
        self.layer.mode = "add"

    def draw(self, clicks: Sequence[Click]) -> None:
        """Show exactly these clicks."""
        if tuple(clicks) != self._drawn:  # every change of the layer costs milliseconds of the main thread
            self._drawn = tuple(clicks)
            self._redraw()

    def _redraw(self) -> None:
        positive = np.array([click.positive for click in self._drawn], dtype=bool)
        with self._own_edit():
            self.layer.selected_data = set()
            self.layer.data = np.array([click.voxel for click in self._drawn], dtype=float).reshape(-1, len(self._shape))
            self.layer.set_view_slice()  # napari does not slice a hidden layer anew, and would look for points that are gone
            self.layer.features = {"positive": positive}
            if self._drawn:
                self.layer.face_color = np.where(positive, POSITIVE_COLOR, NEGATIVE_COLOR)
                boxes = np.array([click.box is not None for click in self._drawn], dtype=bool)
                self.layer.symbol = np.where(boxes, "square", np.where(positive, "disc", "x"))
        self._show_those_of_this_axis()

    def close(self) -> None:
        """Stop listening. The layer itself is left alone."""
        self.layer.mouse_drag_callbacks.remove(self._on_press)
        self.layer.events.mode.disconnect(self._on_mode)
        self.layer.events.data.disconnect(self._on_data)
        self._viewer.dims.events.order.disconnect(self._show_those_of_this_axis)
        self._viewer.dims.events.ndisplay.disconnect(self._show_those_of_this_axis)

    @contextmanager
    def _own_edit(self) -> Iterator[None]:
        self._drawing = True
        try:
            yield
        finally:
            self._drawing = False

    def _on_mode(self) -> None:
        # napari's own add tool takes every mouse button and knows no signs; ours replaces it and lets drags pan.
        if self.layer.mode == "add":
            self.layer.mouse_drag_callbacks[:] = [self._on_press]

    def _on_press(self, layer: Points, event: Any) -> Generator[None, None, None]:
        if layer.mode != "add" or event.button != 1:
            return
        negative, drawing = "Control" in event.modifiers, "Shift" in event.modifiers and self._viewer.dims.ndisplay == 2
        pressed_at, corner, dragged, pans = np.asarray(event.pos), self._place(event), False, layer.mouse_pan
        axis = hidden_axis(self._viewer.dims, len(self._shape))
        try:
            if drawing:
                layer.mouse_pan = False  # of fast moves napari hears when the view has been panned already
            yield
            while event.type == "mouse_move":
                dragged = dragged or self._is_far(pressed_at, event)
                if drawing or not dragged:
                    event.handled = True  # a trembling hand does not pan
                if drawing and dragged:
                    self._show_band(corner, self._place(event))
                yield
        finally:
            self._hide_band()
            if drawing and layer.mode == "add":  # another mode has its own
                layer.mouse_pan = pans
        if drawing and self._is_far(pressed_at, event):
            self._wish_box(axis, corner, self._place(event))
        elif not dragged and not self._is_far(pressed_at, event):  # a drag that comes back is none either
            self._wish(self._place(event), positive=self.positive and not negative)

    @staticmethod
    def _is_far(pressed_at: npt.NDArray[Any], event: Any) -> bool:
        return bool(np.linalg.norm(pressed_at - event.pos) >= _DRAG_PX)

    def _place(self, event: Any) -> npt.NDArray[np.float64]:
        """(n,) where the mouse is, in voxels."""
        return np.asarray(self.layer.world_to_data(in_its_world(self.layer, event.position, self._viewer.dims)))

    def _wish_box(self, axis: int | None, corner: npt.NDArray[np.float64], opposite: npt.NDArray[np.float64]) -> None:
        """All pixels that a rectangle touches, as far as they are in the image; ``axis`` : the one that it was begun across."""
        if axis is None or axis != hidden_axis(self._viewer.dims, len(self._shape)):
            self._tell(OTHER_PLANE)
            return
        across = None if len(self._shape) == 2 else axis
        sides = [
            (max(round(min(pair)), 0), min(round(max(pair)) + 1, size))
            for at, (pair, size) in enumerate(zip(zip(corner, opposite, strict=True), self._shape, strict=True))
            if at != across
        ]
        plane = None if across is None else Plane(across, round(corner[across]))
        if any(low >= high for low, high in sides) or (plane is not None and not 0 <= plane.index < self._shape[plane.axis]):
            self._tell(OUTSIDE)
            return
        (top, bottom), (left, right) = sides
        self._clicked(Click.around(Box(top, left, bottom, right), plane))

    def _band(self) -> Any:
        """napari's own rectangle upon the layer, as its selection tools draw it; None where this napari has none."""
        return getattr(self.layer, "_overlays", {}).get("selection_box")

    def _show_band(self, corner: npt.NDArray[np.float64], opposite: npt.NDArray[np.float64]) -> None:
        if (band := self._band()) is not None and hidden_axis(self._viewer.dims, len(self._shape)) is not None:
            first = self._viewer.dims.ndim - len(self._shape)
            shown = [axis - first for axis in self._viewer.dims.displayed if axis >= first]
            low, high = np.minimum(corner, opposite), np.maximum(corner, opposite)
            band.bounds = tuple(tuple(float(place[axis]) for axis in shown) for place in (low, high))
            band.visible = True

    def _hide_band(self) -> None:
        if (band := self._band()) is not None and band.visible:
            band.visible = False

    def _wish(self, point: Any, *, positive: bool) -> None:
        voxel = tuple(int(v) for v in np.rint(np.asarray(point)))
        axis = hidden_axis(self._viewer.dims, len(self._shape))
        if axis is None:
            self._tell(IN_3D if self._viewer.dims.ndisplay == 3 else OTHER_PLANE)
        elif not all(0 <= v < size for v, size in zip(voxel, self._shape, strict=True)):
            self._tell(OUTSIDE)
        else:
            self._clicked(Click(voxel, positive, axis))

    def _on_data(self, event: Any) -> None:
        """Somebody else edited the points: napari's select tool, paste, or a script."""
        action = str(event.action)
        if self._drawing or action not in ("added", "removed", "changed"):
            return
        before, after = self._drawn, np.array(self.layer.data)
        self._redraw()
        if action == "added":
            for point in after[len(before) :]:
                self._wish(point, positive=self.positive)
        elif action == "removed" and _is_newest_gone(before, after):
            self._undo()
        else:
            self._tell(NOT_REMOVED if action == "removed" else NOT_MOVED)

    def _show_those_of_this_axis(self) -> None:
        """A click speaks of the plane it was made in, so across another axis it is not shown."""
        if not self._drawn:
            return
        axis = hidden_axis(self._viewer.dims, len(self._shape))
        shown = [axis is None or click.axis == axis or len(self._shape) == 2 for click in self._drawn]
        if not np.array_equal(shown, self.layer.shown):
            self.layer.shown = np.array(shown, dtype=bool)


def _is_newest_gone(before: Sequence[Click], after: Any) -> bool:
    return len(after) == len(before) - 1 and all(tuple(point) == click.voxel for point, click in zip(after, before[:-1], strict=True))
