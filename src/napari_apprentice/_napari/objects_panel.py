"""The folded panel about the open object as a whole: its class, and what can be done to it. It holds no knowledge of sessions."""

from __future__ import annotations

from collections.abc import Mapping

from qtpy.QtCore import QSignalBlocker, Qt, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QColorDialog, QLabel, QVBoxLayout, QWidget

from napari_apprentice._napari.keys import OPEN_HERE, readable
from napari_apprentice._napari.panels import Chooser, Fold, box, button, id_box, row
from napari_apprentice.legend import Legend

__all__ = ["ObjectsPanel"]

_SPLIT, _SPLIT_NOW = "Split…", "Split now"


class ObjectsPanel(Fold):
    """Shows the class of the open object; says what is to be done to that object."""

    named = Signal(str, object)
    """Name of its class, and "#rrggbb" or None for the colour that it has."""
    class_kept = Signal(bool)
    """Whether the next object is to be of the same class."""
    delete_clicked = Signal()
    merge_clicked = Signal(object)
    """The object that it is to be a part of."""
    relabel_clicked = Signal(object)
    """The id that it is to have."""
    split_clicked = Signal()

    def __init__(self) -> None:
        super().__init__("Objects")
        self._label, self._legend, self._kind = 0, Legend(), ""
        self._wished: str | None = None
        self.name = Chooser("no class")
        self.name.setToolTip(
            "What the open object is, such as “nucleus”. If it is named before the click, the model is shown examples of that class "
            "only, once there are three. Saved beside the labels as a table."
        )
        self.name.lineEdit().editingFinished.connect(self._on_name)
        self.name.textActivated.connect(self._on_name)
        self.color = button("", "Colour of the class.")
        self.color.setFixedWidth(28)
        self.color.clicked.connect(self._on_color)
        self.keep = box("The next object, too")
        self.keep.setToolTip("The object after the one that you accept is of the same class, until you name another.")
        self.keep.setChecked(True)
        self.keep.toggled.connect(self.class_kept)
        self.counts = QLabel()
        self.counts.setWordWrap(True)
        self.counts.setTextFormat(Qt.TextFormat.PlainText)
        self.other = id_box("The other object, or the new number.")
        self.merge = button("Merge into", "Make the open object a part of that one (can be undone).")
        self.relabel = button("Renumber to", "Give the open object that number, if it is free (can be undone).")
        self.split = button(_SPLIT, "Press, click once in every part of the open object, and press again (can be undone).", checkable=True)
        self.delete = button("Delete", "Delete the open object (can be undone).")
        self.merge.clicked.connect(lambda: self.merge_clicked.emit(int(self.other.value())))
        self.relabel.clicked.connect(lambda: self.relabel_clicked.emit(int(self.other.value())))
        self.split.clicked.connect(self.split_clicked)
        self.delete.clicked.connect(self.delete_clicked)
        self.hint = QLabel()
        self.hint.setWordWrap(True)
        self.fill(self._arranged())

    def show_keys(self, keys: Mapping[str, str]) -> None:
        """Name the key (wish -> key) that opens another object."""
        self.hint.setText(f"{readable(keys[OPEN_HERE])} opens the object under the pointer.")

    def show_object(self, label: int, legend: Legend, kind: str) -> None:
        """Show the class (``kind``) of the open object, unless the user is typing one for it, and how many there are of every class."""
        typing = self.name.lineEdit().hasFocus() and label == self._label
        self._wished = None
        if (label, legend, kind) == (self._label, self._legend, self._kind):
            return
        self._label, self._legend, self._kind = label, legend, kind
        if not typing:
            with QSignalBlocker(self.name):
                self.name.clear()
                self.name.addItems(list(legend.colors))
                self.name.setCurrentText(kind)
        color = legend.colors.get(kind)
        self.color.setEnabled(color is not None)
        self.color.setStyleSheet(f"QPushButton {{ background-color: {color}; }}" if color else "")
        counts = [f"{len(labels)} × {name}" for name, labels in legend.classes.items() if labels]
        self.counts.setText(", ".join(counts) or "no object has a class yet")

    def show_splitting(self, splitting: bool) -> None:
        """Say what the button does now."""
        self.split.setChecked(splitting)
        self.split.setText(_SPLIT_NOW if splitting else _SPLIT)

    def _arranged(self) -> QWidget:
        content = QWidget()
        layout = QVBoxLayout(content)
        layout.setContentsMargins(8, 0, 0, 0)
        layout.setSpacing(6)
        layout.addWidget(self.hint)
        layout.addLayout(row(self.name, self.color))
        layout.addWidget(self.keep)
        layout.addWidget(self.counts)
        layout.addLayout(row(self.merge, self.relabel, self.other))
        layout.addLayout(row(self.split, self.delete))
        return content

    def _on_name(self) -> None:
        name = self.name.currentText().strip()
        if name not in (self._kind, self._wished):  # Return, and leaving the field after it, are one wish
            self._wished = name
            self.named.emit(name, None)

    def _on_color(self) -> None:
        chosen = QColorDialog.getColor(QColor(self._legend.colors[self._kind]), self, "Colour of the class")
        if chosen.isValid():
            self.named.emit(self._kind, chosen.name())
