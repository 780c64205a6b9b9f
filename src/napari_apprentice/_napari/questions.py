"""What an image does not say and the work needs: how large a voxel is, and which time point of a series is meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QLocale, QSignalBlocker, Signal
from qtpy.QtWidgets import QDoubleSpinBox, QLabel, QVBoxLayout, QWidget

from napari_apprentice._napari.panels import Chooser, NumberBox, button, row
from napari_apprentice._napari.placement import lacks_spacing, time_points_of

if TYPE_CHECKING:
    from napari.layers import Image as ImageLayer

__all__ = ["HOW_LARGE", "WHICH_TIME", "Questions"]

HOW_LARGE = "say first how large a voxel is (above), or that nobody knows"
WHICH_TIME = "take one time point first (above)"
_MM_PER = {"mm": 1.0, "µm": 1e-3, "nm": 1e-6}
_UNSAID = "?"


class Length(NumberBox):
    """A length whose decimals begin with a point or a comma, whatever the language of the computer; nothing groups thousands."""

    def __init__(self) -> None:
        super().__init__()
        self.setLocale(QLocale.c())

    def validate(self, text: str, position: int) -> Any:
        """Of a text: whether it is one, or can become one."""
        return super().validate(text.replace(",", "."), position)

    def valueFromText(self, text: str) -> float:  # noqa: N802 (Qt's name)
        """What a text means."""
        return float(super().valueFromText(text.replace(",", ".")))


class Questions(QWidget):
    """Shown as long as something is to be asked of the image that was chosen. It holds no knowledge of sessions."""

    spacing_stated = Signal(object)
    """The (z, y, x) spacing in mm, or None where nobody knows it."""
    time_wished = Signal(int)
    """Index of a time point."""

    def __init__(self) -> None:
        super().__init__()
        self.spacing = tuple(self._side(axis) for axis in "zyx")
        self.unit = Chooser()
        self.unit.addItems(list(_MM_PER))
        self.unit.setToolTip("The unit of these three numbers.")
        self.state = button("Set", "The voxels are so large. It decides how far a slice is trusted to say what the next one holds.")
        self.unknown = button("Unknown", "Nobody knows: count everything in voxels, and take the slices to be as far apart as the pixels.")
        self.state.clicked.connect(self._on_state)
        self.unknown.clicked.connect(lambda: self.spacing_stated.emit(None))
        self.time = NumberBox()
        self.time.setDecimals(0)
        self.time.setToolTip("Which time point of the series to work on, counted from 0.")
        self.show_time = button("Take", "Work on this time point.")
        self.show_time.clicked.connect(lambda: self.time_wished.emit(int(self.time.value())))
        self._about_spacing, self._about_time = QWidget(), QWidget()
        self._times = QLabel()
        asked = QVBoxLayout(self._about_spacing)
        asked.setContentsMargins(0, 0, 0, 0)
        asked.addWidget(QLabel("How large is a voxel (z, y, x)? The file does not say."))
        asked.addLayout(row(*self.spacing, self.unit))
        asked.addLayout(row(self.state, self.unknown))
        self._about_time.setLayout(row(QLabel("time point"), self.time, self._times, self.show_time))
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._about_time)
        layout.addWidget(self._about_spacing)
        self._show_whether_complete()
        self.ask(None)

    def ask(self, layer: ImageLayer | None) -> None:
        """Ask what is to be known of an image; nothing of None."""
        count, shown = (1, 0) if layer is None else time_points_of(layer)
        self.unanswered = layer is not None and layer.ndim == 3 and lacks_spacing(layer)
        self._about_time.setVisible(count > 1)
        if count > 1:
            with QSignalBlocker(self.time):
                self.time.setRange(0, count - 1)
                self.time.setValue(shown)
            self._times.setText(f"of {count}")
        if not self.unanswered:
            for side in self.spacing:
                side.setValue(0)
        self._about_spacing.setVisible(self.unanswered)
        self.setVisible(count > 1 or self.unanswered)

    def _side(self, axis: str) -> QDoubleSpinBox:
        side = Length()
        side.setDecimals(4)
        side.setRange(0, 1e6)
        side.setSpecialValueText(_UNSAID)
        side.setButtonSymbols(QDoubleSpinBox.ButtonSymbols.NoButtons)
        side.setToolTip(f"From one voxel to the next along {axis}.")
        side.valueChanged.connect(self._show_whether_complete)
        return side

    def _show_whether_complete(self, _: Any = None) -> None:
        self.state.setEnabled(all(side.value() > 0 for side in self.spacing))

    def _on_state(self) -> None:
        length = _MM_PER[self.unit.currentText()]
        self.spacing_stated.emit(tuple(side.value() * length for side in self.spacing))
