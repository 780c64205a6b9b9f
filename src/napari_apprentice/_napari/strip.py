"""The strip: what every slice of an object is, as a thin bar beside the slice slider. It holds no knowledge of sessions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from qtpy.QtCore import QPoint, QRect, QSize, Qt, Signal
from qtpy.QtGui import QColor, QPainter
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from napari_apprentice.ground import Slice

__all__ = ["SLICE_COLORS", "SliceStrip"]

SLICE_COLORS = {Slice.EMPTY: "#60808080", Slice.ACCEPTED: "#009e73", Slice.CARRIED: "#56b4e9", Slice.DOUBTFUL: "#e69f00"}
"""Okabe and Ito's, told apart by colour-blind people; "#aarrggbb" or "#rrggbb"."""

_WORDS = {
    Slice.EMPTY: "empty",
    Slice.ACCEPTED: "accepted",
    Slice.CARRIED: "carried here by propagation",
    Slice.DOUBTFUL: "doubtful: have a look",
}
_HEIGHT_PX, _MARGIN_PX = 16, 4
# Where several slices share a pixel: which one shows.
_FIRST_COME = (Slice.EMPTY, Slice.CARRIED, Slice.ACCEPTED, Slice.DOUBTFUL)
_RANKS = np.argsort([int(kind) for kind in _FIRST_COME])


class SliceStrip(QWidget):
    """Shows the slices of an object in the order of napari's slider, and where the viewer is; says which slice was clicked."""

    clicked = Signal(int)
    """Index of a slice."""

    def __init__(self) -> None:
        super().__init__()
        self._slices: tuple[Slice, ...] = ()
        self._ranks = _RANKS[:0]
        self._flipped = False
        self._index: int | None = None
        self.setFixedHeight(_HEIGHT_PX)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setMouseTracking(True)
        self.setCursor(Qt.CursorShape.PointingHandCursor)

    def show_slices(self, slices: Sequence[Slice], *, flipped: bool = False) -> None:
        """Show these slices; ``flipped`` says that the slider runs from the last one to the first."""
        if (tuple(slices), flipped) != (self._slices, self._flipped):
            self._slices, self._flipped = tuple(slices), flipped
            self._ranks = _RANKS[np.array(self._slices[:: -1 if flipped else 1], dtype=int)]
            self.update()

    def show_index(self, index: int | None) -> None:
        """Mark the slice that the viewer shows; None for none."""
        if index != self._index:
            self._index = index
            self.update()

    @property
    def slices(self) -> tuple[Slice, ...]:
        """What it shows."""
        return self._slices

    @property
    def index(self) -> int | None:
        """The slice that is marked."""
        return self._index

    def index_at(self, x: float) -> int:
        """The slice that is drawn at a pixel."""
        position = int(np.clip(x * len(self._slices) // max(self.width(), 1), 0, len(self._slices) - 1))
        return self._turned(position)

    def middle_of(self, index: int) -> int:
        """The pixel in the middle of a slice."""
        return int((self._turned(index) + 0.5) * self.width() / len(self._slices))

    def sizeHint(self) -> QSize:  # noqa: N802
        """As wide as there is room."""
        return QSize(160, _HEIGHT_PX)

    def paintEvent(self, _: Any) -> None:  # noqa: N802
        """Draw runs of pixels of one kind, and the mark."""
        painter = QPainter(self)
        if self._slices:
            kinds = self._columns()
            borders = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
            for start, stop in pairwise(borders):
                where = QRect(start, _MARGIN_PX, stop - start, _HEIGHT_PX - 2 * _MARGIN_PX)
                painter.fillRect(where, QColor(SLICE_COLORS[Slice(kinds[start])]))
            if self._index is not None and 0 <= self._index < len(self._slices):
                middle = self.middle_of(self._index)
                painter.fillRect(QRect(middle - 2, 0, 5, _HEIGHT_PX), QColor("black"))
                painter.fillRect(QRect(middle - 1, 1, 3, _HEIGHT_PX - 2), QColor("white"))
        painter.end()

    def mousePressEvent(self, event: Any) -> None:  # noqa: N802
        """Go to a slice."""
        if self._slices and event.button() == Qt.MouseButton.LeftButton:
            self.clicked.emit(self.index_at(event.position().x()))

    def mouseMoveEvent(self, event: Any) -> None:  # noqa: N802
        """Say what is there, or follow a drag."""
        if not self._slices:
            return
        index = self.index_at(event.position().x())
        if event.buttons() & Qt.MouseButton.LeftButton:
            if index != self._index:
                self.clicked.emit(index)
            return
        where = event.position().toPoint() + QPoint(0, _HEIGHT_PX)
        QToolTip.showText(self.mapToGlobal(where), f"slice {index}: {_WORDS[self._slices[index]]}", self)

    def _turned(self, position: int) -> int:
        return len(self._slices) - 1 - position if self._flipped else position

    def _columns(self) -> Any:
        """(W,) the kind that every column of pixels shows."""
        count, width = len(self._ranks), max(self.width(), 1)
        starts = np.arange(width) * count // width
        return np.array(_FIRST_COME)[self._ranks[starts] if count <= width else np.maximum.reduceat(self._ranks, starts)]
