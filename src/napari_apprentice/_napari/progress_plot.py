"""The progress plot: how many clicks objects took, and what the first click brought, taught and untaught. It knows no session."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QPainter, QPen, QPolygonF
from qtpy.QtWidgets import QGridLayout, QLabel, QSizePolicy, QToolTip, QWidget

from napari_apprentice.versions import Effort

__all__ = ["TAUGHT_COLOR", "UNTAUGHT_COLOR", "ProgressPlot"]

TAUGHT_COLOR, UNTAUGHT_COLOR = "#3b97d3", "#d98a00"
"""Blue and orange, told apart by colour-blind people, and seen on napari's dark and light backgrounds."""

_GROUND = "#60808080"
_HEIGHT_PX, _WIDEST_PX, _NARROWEST_PX = 26, 12, 3
_LATELY = 5


class ProgressPlot(QWidget):
    """Bars for the clicks of accepted objects, beside two lines for the answers to their first clicks; hidden while there are none.

    What the untaught model would have needed to the end is not known, since later clicks answer the taught one's mistakes; what both said
    to the same first click is (see `versions.Effort`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.clicks, self.shares = _Bars(), _Lines()
        self.clicks_words, self.shares_words = QLabel(), QLabel()
        self.shares_words.setTextFormat(Qt.TextFormat.RichText)
        self._guests: set[QWidget] = set()
        self._empty = True
        layout = QGridLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setHorizontalSpacing(12)
        layout.setVerticalSpacing(1)
        for column, (words, plot) in enumerate(((self.clicks_words, self.clicks), (self.shares_words, self.shares))):
            words.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
            layout.setColumnStretch(column, 1 + column)
            layout.addWidget(words, 0, column)
            layout.addWidget(plot, 1, column)
        self.clicks_words.setToolTip(f"Clicks that the last {_LATELY} accepted objects took, on average; below, those of every object.")
        self.shares_words.setToolTip(
            f"How right the answer to the first click was, the mean of the last {_LATELY} objects:\n"
            "of the model as you taught it, and of the untaught one to the same click."
        )
        self.show_efforts((), 0)

    def show_efforts(self, efforts: Sequence[Effort], clicks: int) -> None:
        """Show what accepted objects took, oldest first, and how many clicks the open one has so far."""
        self._empty = not efforts
        self._show_or_hide()
        self.clicks.show_values(tuple(effort.clicks for effort in efforts), clicks)
        self.shares.show_values(tuple((effort.taught_iou, effort.untaught_iou) for effort in efforts))
        if lately := efforts[-_LATELY:]:
            self.clicks_words.setText(f"{fmean(effort.clicks for effort in lately):.1f} clicks each")
            taught, untaught = (fmean(getattr(effort, side) for effort in lately) for side in ("taught_iou", "untaught_iou"))
            self.shares_words.setText(
                f'<span style="color: {TAUGHT_COLOR}">■</span> {100 * taught:.0f} %&nbsp; '
                f'<span style="color: {UNTAUGHT_COLOR}">■</span> {100 * untaught:.0f} % untaught'
            )

    def make_room(self, guest: QWidget, wanted: bool) -> None:
        """Be hidden as long as somebody wants the room, so that all fits on a small screen."""
        (self._guests.add if wanted else self._guests.discard)(guest)
        self._show_or_hide()

    def _show_or_hide(self) -> None:
        self.setVisible(not self._empty and not self._guests)


class _Columns(QWidget):
    """One column for every object, the newest at the right; what does not fit is left out at the left."""

    def __init__(self) -> None:
        super().__init__()
        self.setFixedHeight(_HEIGHT_PX)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.setMouseTracking(True)

    @property
    def count(self) -> int:
        """How many columns there are in all."""
        raise NotImplementedError

    def words_of(self, index: int) -> str:
        """What a column says."""
        raise NotImplementedError

    @property
    def column_px(self) -> float:
        """Width of a column."""
        return min(max(self.width() / max(self.count, 1), _NARROWEST_PX), _WIDEST_PX)

    @property
    def first(self) -> int:
        """The first column that is shown."""
        return max(self.count - int(self.width() / self.column_px + 1e-6), 0)

    def index_at(self, x: float) -> int | None:
        """The column at a pixel."""
        index = self.first + int(x // self.column_px)
        return index if x >= 0 and index < self.count else None

    def left_of(self, index: int) -> float:
        """The pixel at which a column begins."""
        return (index - self.first) * self.column_px

    def sizeHint(self) -> QSize:  # noqa: N802
        """As wide as there is room."""
        return QSize(80, _HEIGHT_PX)

    def mouseMoveEvent(self, event: Any) -> None:  # noqa: N802
        """Say what is there."""
        index = self.index_at(event.position().x())
        QToolTip.showText(self.mapToGlobal(event.position().toPoint()), "" if index is None else self.words_of(index), self)

    def paintEvent(self, _: Any) -> None:  # noqa: N802
        """Draw the base line and the columns."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.fillRect(QRectF(0, _HEIGHT_PX - 1, self.width(), 1), QColor(_GROUND))
        self.draw(painter)
        painter.end()

    def draw(self, painter: QPainter) -> None:
        """Draw the columns that are shown."""
        raise NotImplementedError


class _Bars(_Columns):
    """A bar for the clicks of every object; that of the open one is hollow."""

    def __init__(self) -> None:
        super().__init__()
        self.values: tuple[int, ...] = ()
        self.open = 0

    def show_values(self, values: tuple[int, ...], open_clicks: int) -> None:
        if (values, open_clicks) != (self.values, self.open):
            self.values, self.open = values, open_clicks
            self.update()

    @property
    def count(self) -> int:
        return len(self.values) + 1

    def words_of(self, index: int) -> str:
        accepted = index < len(self.values)
        clicks = self.values[index] if accepted else self.open
        return f"{f'accepted object {index + 1}' if accepted else 'open object'}: {clicks} {'click' if clicks == 1 else 'clicks'}"

    def draw(self, painter: QPainter) -> None:
        shown = (*self.values, self.open)[self.first :]
        highest = max(*shown, 4)
        for index, value in enumerate(shown, start=self.first):
            height = (_HEIGHT_PX - 3) * value / highest
            gap = 2 if self.column_px > 2 * _NARROWEST_PX else 1
            box = QRectF(self.left_of(index), _HEIGHT_PX - 1 - height, self.column_px - gap, height)
            if index < len(self.values):
                painter.fillRect(box, QColor(TAUGHT_COLOR))
            elif value:
                painter.setPen(QPen(QColor(TAUGHT_COLOR), 1.2))
                painter.drawRect(box.adjusted(0.6, 0.6, -0.6, 0))


class _Lines(_Columns):
    """How right the answers to first clicks were, taught over untaught, from 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.values: tuple[tuple[float, float], ...] = ()

    def show_values(self, values: tuple[tuple[float, float], ...]) -> None:
        if values != self.values:
            self.values = values
            self.update()

    @property
    def count(self) -> int:
        return len(self.values)

    def words_of(self, index: int) -> str:
        taught, untaught = (100 * share for share in self.values[index])
        return f"accepted object {index + 1}: {taught:.0f} % right at the first click, untaught {untaught:.0f} %"

    def height_of(self, share: float) -> float:
        """The pixel at which a share is drawn."""
        return 2.5 + (_HEIGHT_PX - 5) * (1 - share)

    def draw(self, painter: QPainter) -> None:
        shown = self.values[self.first :]
        for side, color in ((1, UNTAUGHT_COLOR), (0, TAUGHT_COLOR)):
            points = [
                QPointF(self.left_of(index) + self.column_px / 2, self.height_of(value[side]))
                for index, value in enumerate(shown, start=self.first)
            ]
            painter.setPen(QPen(QColor(color), 1.6))
            painter.drawPolyline(QPolygonF(points))
            if len(points) <= 12:
                painter.setBrush(QColor(color))
                for point in points:
                    painter.drawEllipse(point, 1.6, 1.6)
                painter.setBrush(Qt.BrushStyle.NoBrush)
