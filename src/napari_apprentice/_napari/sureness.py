"""How sure the model is of every pixel of the open object, coloured while somebody wants to see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from napari.layers import Image as ImageLayer
from napari.utils.colormaps import Colormap

from napari_apprentice._napari.errands import Errands
from napari_apprentice._napari.outline import OUTLINE_KEY, added_aside
from napari_apprentice._napari.placement import same_placement
from napari_apprentice.calibration import probability
from napari_apprentice.types import Box, Click, Plane, Prediction

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_apprentice._napari.desk import Desk
    from napari_apprentice._napari.sitting import Sitting
    from napari_apprentice.session import Session

__all__ = ["MAY_BELONG_COLOR", "MAY_NOT_COLOR", "Sureness"]

MAY_BELONG_COLOR, MAY_NOT_COLOR = "#56b4e9", "#e69f00"
_OPAQUE = 0.85


class _Chances(NamedTuple):
    """What the model makes of the pixels of a box in a plane: (h, w) calibrated probabilities."""

    plane: Plane
    box: Box
    values: npt.NDArray[np.float32]


class Sureness:
    """A layer of probabilities over the slice that was clicked in last, or the one that is shown if it was clicked in.

    Colours are strongest where the model cannot tell, and fade to nothing where it is certain. Hidden by the user, it stays hidden.

    Parameters
    ----------
    viewer : the viewer
    errands : how it gets to the worker
    """

    def __init__(self, viewer: ViewerModel, errands: Errands) -> None:
        self._viewer, self._errands = viewer, errands
        self._wanted = self._hidden = False
        self._asked: Plane | None = None
        self.layer: ImageLayer | None = None

    def want(self, on: bool, sitting: Sitting | None) -> None:
        """From now on show it, or show it no longer."""
        self._wanted = on
        if on:
            self.follow(sitting)
        else:
            self.close()

    def follow(self, sitting: Sitting | None) -> None:
        """There may be another answer to show, or none any longer."""
        plane = self._asked = sitting.clicked_plane if sitting is not None and self._wanted else None
        if sitting is None or plane is None:
            self._hide()
            return
        session, state = sitting.session, sitting.state

        def then(chances: _Chances | None) -> None:
            if self._wanted and sitting.state is state and plane == self._asked:
                self._show(chances, sitting.desk)

        self._errands.send("", lambda: _chances(session, plane, state.clicks), then, between=True)

    def look(self, sitting: Sitting | None) -> None:
        """The viewer shows another slice, which may have been clicked in."""
        if self._wanted and sitting is not None and sitting.desk.plane == sitting.clicked_plane != self._asked:
            self.follow(sitting)

    def close(self) -> None:
        """Take the layer away."""
        if self.layer is not None and self.layer in self._viewer.layers:
            self._viewer.layers.remove(self.layer)
        self.layer = None

    def _show(self, chances: _Chances | None, desk: Desk) -> None:
        if chances is None:
            self._hide()
            return
        image_layer, layers = desk.image_layer, self._viewer.layers
        where: tuple[int, ...] = (chances.box.top, chances.box.left)
        values = chances.values
        if image_layer.ndim == 3:
            axis, index = chances.plane
            where = (*where[:axis], index, *where[axis:])
            values = np.expand_dims(values, axis)
        placed = same_placement(image_layer, where)
        if self.layer is None or self.layer not in layers:
            self.layer = ImageLayer(
                values,
                name="how sure",
                colormap=_colors(),
                contrast_limits=(0, 1),
                interpolation2d="nearest",
                metadata={OUTLINE_KEY: True},
                **placed,
            )
            self._hidden = False
            added_aside(self._viewer, self.layer)
            layers.move(layers.index(self.layer), layers.index(desk.clicks.layer))  # clicks lie over it
        else:
            layers.unlink_layers([self.layer])  # what is done to it is not meant for the user's
            self.layer.data, self.layer.translate = values, placed["translate"]
            if self._hidden:
                self._hidden, self.layer.visible = False, True

    def _hide(self) -> None:
        """Nothing is to be shown now; the next answer may be."""
        if self.layer is not None and self.layer.visible:
            self._viewer.layers.unlink_layers([self.layer])
            self._hidden, self.layer.visible = True, False


def _chances(session: Session, plane: Plane, clicks: tuple[Click, ...]) -> _Chances | None:
    """None where the open object has no answer, as where another action took it back, or one without a pixel."""
    found: Prediction | None = session.predictions.get(plane)
    if found is None or 0 in found.box.shape:
        return None
    return _Chances(plane, found.box, probability(found, sum(click.plane == plane for click in clicks)))


def _colors() -> Colormap:
    below, above = (np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for color in (MAY_BELONG_COLOR, MAY_NOT_COLOR))
    stops = [(*below, 0.0), (*below, _OPAQUE), (*above, _OPAQUE), (*above, 0.0)]
    return Colormap(stops, name="may belong, may not", controls=[0.0, 0.5, 0.5, 1.0])
