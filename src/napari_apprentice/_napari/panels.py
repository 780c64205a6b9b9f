"""The parts that the widget is put together from. They hold no knowledge of sessions."""

from __future__ import annotations

from collections.abc import Mapping

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QButtonGroup,
    QCheckBox,
    QComboBox,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_apprentice._napari.click_layer import NEGATIVE_COLOR, POSITIVE_COLOR

__all__ = ["Fold", "More", "SignSwitch", "Status", "button", "line", "row"]


def button(text: str, tooltip: str, *, checkable: bool = False) -> QPushButton:
    """A push button that leaves the keyboard to the canvas."""
    made = QPushButton(text)
    made.setToolTip(tooltip)
    made.setCheckable(checkable)
    made.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    return made


def row(*widgets: QWidget) -> QHBoxLayout:
    """Widgets beside each other, equally wide unless their own policy says otherwise."""
    layout = QHBoxLayout()
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(6)
    for widget in widgets:
        layout.addWidget(widget, 1)
    return layout


def line() -> QFrame:
    """A thin horizontal rule in the text colour of the theme."""
    frame = QFrame()
    frame.setFixedHeight(1)
    frame.setStyleSheet("background-color: rgba(128, 128, 128, 90);")
    return frame


class SignSwitch(QWidget):
    """Two buttons of which one is down: what a plain click means."""

    changed = Signal(bool)

    def __init__(self, key: str) -> None:
        super().__init__()
        self._positive = button("+   inside", f"A click says: this belongs to the object.\nKey {key} switches.", checkable=True)
        self._negative = button(
            "−   outside",
            f"A click says: this does not belong to the object.\nKey {key} switches; Ctrl+click (⌘ on a Mac) is always outside.",
            checkable=True,
        )
        for each, color in ((self._positive, POSITIVE_COLOR), (self._negative, NEGATIVE_COLOR)):
            each.setStyleSheet(f"QPushButton:checked:enabled {{ background-color: {color}; color: white; font-weight: bold; }}")
            each.setMinimumHeight(28)
        group = QButtonGroup(self)
        group.addButton(self._positive)
        group.addButton(self._negative)
        self.setLayout(row(self._positive, self._negative))
        self._positive.setChecked(True)
        group.buttonClicked.connect(lambda _: self.changed.emit(self._positive.isChecked()))

    def show_sign(self, positive: bool) -> None:
        """Press the button of that sign without saying so."""
        (self._positive if positive else self._negative).setChecked(True)


class Fold(QWidget):
    """A title over some content that is folded away until the title is pressed."""

    unfolded = Signal(bool)

    def __init__(self, title: str) -> None:
        super().__init__()
        self._content = QWidget()
        self._toggle = QToolButton()
        self._toggle.setText(title)
        self._toggle.setCheckable(True)
        self._toggle.setAutoRaise(True)
        self._toggle.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self._toggle.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self._toggle.setArrowType(Qt.ArrowType.RightArrow)
        self._toggle.toggled.connect(self.unfold)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._toggle)

    def fill(self, content: QWidget) -> None:
        """Put the content in, folded away."""
        self._content = content
        self.layout().addWidget(content)
        self.unfold(False)

    def unfold(self, unfolded: bool) -> None:
        """Show or hide the content."""
        self._toggle.setChecked(unfolded)
        self._toggle.setArrowType(Qt.ArrowType.DownArrow if unfolded else Qt.ArrowType.RightArrow)
        self._content.setVisible(unfolded)
        self.unfolded.emit(unfolded)


class More(Fold):
    """What most people never need, folded away."""

    upright_changed = Signal(bool)

    def __init__(self, policies: Mapping[str, str], devices: tuple[str, ...]) -> None:
        super().__init__("More")
        self.policy = QComboBox()
        for name, meaning in policies.items():
            self.policy.addItem(meaning, name)
        self.device = QComboBox()
        self.device.addItems(devices)
        self.labels = QComboBox()
        self.upright = QCheckBox("anterior and superior up")
        self.upright.setToolTip("Draw the second world axis upwards, as people look at heads.\nIt changes the view only.")
        self.upright.toggled.connect(self.upright_changed)
        self.fill(self._arranged())

    def _arranged(self) -> QWidget:
        self.policy.setToolTip("What the model learns from while you work. Takes effect at the next start.")
        self.device.setToolTip("Where the model computes. Takes effect at the next start.")
        self.labels.setToolTip("A labels layer with objects that are there already. Takes effect at the next start.")
        content = QWidget()
        form = QFormLayout(content)
        form.setContentsMargins(8, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        for words, combo in (("learns from", self.policy), ("device", self.device), ("start from", self.labels)):
            combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            combo.setMinimumContentsLength(6)
            combo.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
            form.addRow(words, combo)
        form.addRow("view", self.upright)
        return content


class Status(QWidget):
    """One sentence about what is going on, over a thin bar that moves while the worker works."""

    def __init__(self) -> None:
        super().__init__()
        self._words = QLabel()
        self._words.setWordWrap(True)
        self._words.setMinimumHeight(3 * self._words.fontMetrics().lineSpacing() + 4)
        self._words.setAlignment(Qt.AlignmentFlag.AlignBottom | Qt.AlignmentFlag.AlignLeft)
        self._words.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self._bar = QProgressBar()
        self._bar.setTextVisible(False)
        self._bar.setFixedHeight(4)
        self._bar.setRange(0, 0)
        policy = self._bar.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        self._bar.setSizePolicy(policy)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addWidget(self._words)
        layout.addWidget(self._bar)
        self.show_busy(False)

    @property
    def words(self) -> str:
        """What it says."""
        return self._words.text()

    def say(self, words: str) -> None:
        """Show these words."""
        self._words.setText(words)
        self._words.setToolTip(words)

    def show_busy(self, busy: bool) -> None:
        """Show the moving bar, or leave its place empty."""
        self._bar.setRange(0, 0)
        self._bar.setVisible(busy)

    def show_progress(self, done: int, total: int) -> None:
        """Let the bar say how far it is."""
        self._bar.setRange(0, total)
        self._bar.setValue(done)
