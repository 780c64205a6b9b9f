"""The parts that the widget is put together from. They hold no knowledge of sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qtpy.QtCore import QEvent, QObject, QSize, Qt, QTimer, Signal
from qtpy.QtGui import QFocusEvent, QHelpEvent, QMouseEvent, QPainter, QPaintEvent, QWheelEvent
from qtpy.QtWidgets import (
    QApplication,
    QButtonGroup,
    QCheckBox,
    QComboBox,
    QDockWidget,
    QDoubleSpinBox,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QMainWindow,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QStyle,
    QStyleOptionComboBox,
    QStyleOptionSpinBox,
    QStylePainter,
    QToolButton,
    QToolTip,
    QVBoxLayout,
    QWidget,
)

from napari_apprentice._napari.click_layer import NEGATIVE_COLOR, POSITIVE_COLOR
from napari_apprentice._napari.keys import KEYS, SWITCH_SIGN, cheat_sheet, readable
from napari_apprentice._napari.machine import memory_in_use
from napari_apprentice.labelmap import LARGEST_ID

__all__ = [
    "Choice",
    "Chooser",
    "Dockable",
    "Fold",
    "FoldArea",
    "KeySheet",
    "More",
    "NumberBox",
    "SignSwitch",
    "Status",
    "box",
    "button",
    "id_box",
    "line",
    "row",
]

_MEMORY_EVERY_MS = 2000
_ID_WIDTH_PX = 96


class _Button(QPushButton):
    """A push button that is at least so high, and higher where its font asks for it."""

    def __init__(self, text: str, least_px: int) -> None:
        super().__init__(text)
        self._least = QSize(0, least_px)

    def sizeHint(self) -> QSize:  # noqa: N802
        """As high as it is to be."""
        return super().sizeHint().expandedTo(self._least)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """As high as it is to be."""
        return super().minimumSizeHint().expandedTo(self._least)


def button(text: str, tooltip: str, *, checkable: bool = False, least_px: int = 0) -> QPushButton:
    """A push button that leaves the keyboard to the canvas, and that what is being typed counts before.

    ``least_px`` : how high it is at least
    """
    made = _Button(text, least_px)
    made.pressed.connect(_end_typing)
    made.setToolTip(tooltip)
    made.setCheckable(checkable)
    made.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    return made


def _end_typing() -> None:
    """Let what is being typed into a field count, as when somebody leaves it, which a button alone does not make them do."""
    field = QApplication.focusWidget()
    if isinstance(field, QLineEdit) or (isinstance(field, QComboBox) and field.isEditable()):
        field.clearFocus()


def box(text: str) -> QCheckBox:
    """A box to tick that leaves the keyboard to the canvas."""
    made = QCheckBox(text)
    made.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    return made


class NumberBox(QDoubleSpinBox):
    """A number that a click into it selects whole, so that what is typed takes its place. Return gives the keyboard back to the canvas, and
    so do the buttons beside the number: whoever steps does not type.

    Only after that click it takes the wheel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self.lineEdit().returnPressed.connect(self.clearFocus)
        self._steps = False

    def focusInEvent(self, event: QFocusEvent) -> None:  # noqa: N802 (Qt's name)
        """Select all, once the press has placed its cursor."""
        super().focusInEvent(event)
        QTimer.singleShot(0, self.selectAll)

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802 (Qt's name)
        """Step, if it is on one of the buttons."""
        option = QStyleOptionSpinBox()
        self.initStyleOption(option)
        control = QStyle.ComplexControl.CC_SpinBox
        pressed = self.style().hitTestComplexControl(control, option, event.position().toPoint(), self)
        self._steps = pressed in (QStyle.SubControl.SC_SpinBoxUp, QStyle.SubControl.SC_SpinBoxDown)
        super().mousePressEvent(event)

    def mouseReleaseEvent(self, event: QMouseEvent) -> None:  # noqa: N802 (Qt's name)
        """The stepping is over."""
        super().mouseReleaseEvent(event)
        if self._steps:
            self._steps = False
            self.clearFocus()

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802 (Qt's name)
        """Turn the number, or let the panel scroll."""
        if self.hasFocus():
            super().wheelEvent(event)
        else:
            event.ignore()


class NameField(QLineEdit):
    """A name that a press selects whole: what is typed takes its place. Another press, or one while it is typed, places the cursor.

    Of a name that is too long for it, nobody being about to type, the beginning is shown.
    """

    def __init__(self) -> None:
        super().__init__()
        self.returnPressed.connect(lambda: self.setModified(False))
        self.editingFinished.connect(lambda: self.home(False))

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802
        """Select all that is not being typed."""
        whole = not self.isModified() and not self.hasSelectedText()
        super().mousePressEvent(event)
        if whole:
            self.selectAll()


class Chooser(QComboBox):
    """A list to choose from, that leaves the wheel to the panel, which scrolls, and the keyboard to the canvas.

    A text that is too long for it ends in an ellipsis; the tooltip and the open list have all of it.

    Parameters
    ----------
    nothing : where a name may be typed, too: what stands there without one. A choice, or Return, gives the keyboard back
    """

    def __init__(self, nothing: str = "") -> None:
        super().__init__()
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        if nothing:
            field = NameField()
            field.returnPressed.connect(self.clearFocus)
            self.setEditable(True)
            self.setLineEdit(field)
            self.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
            self.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
            self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
            self.setMinimumContentsLength(6)
            self.lineEdit().setPlaceholderText(nothing)
            self.textActivated.connect(self.clearFocus)

    def setCurrentText(self, text: str) -> None:  # noqa: N802
        """Where a name may be typed, show the beginning of this one."""
        super().setCurrentText(text)
        if self.isEditable():
            self.lineEdit().home(False)

    def event(self, event: QEvent) -> bool:
        """Begin the tooltip with what is chosen."""
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            QToolTip.showText(event.globalPos(), "\n".join(words for words in (self.currentText(), self.toolTip()) if words), self)
            return True
        return bool(super().event(event))

    def showPopup(self) -> None:  # noqa: N802
        """As wide as its texts."""
        self.view().setMinimumWidth(self.view().sizeHintForColumn(0) + self.view().verticalScrollBar().sizeHint().width())
        super().showPopup()

    def paintEvent(self, _: QPaintEvent) -> None:  # noqa: N802
        """Draw it as the style does, which cuts a long text anywhere."""
        painter, option = QStylePainter(self), QStyleOptionComboBox()
        self.initStyleOption(option)
        painter.drawComplexControl(QStyle.ComplexControl.CC_ComboBox, option)
        room = self.style().subControlRect(QStyle.ComplexControl.CC_ComboBox, option, QStyle.SubControl.SC_ComboBoxEditField, self)
        option.currentText = self.fontMetrics().elidedText(option.currentText, Qt.TextElideMode.ElideRight, room.width())
        painter.drawControl(QStyle.ControlElement.CE_ComboBoxLabel, option)

    def wheelEvent(self, event: QWheelEvent) -> None:  # noqa: N802
        """Let the panel scroll."""
        event.ignore()


def id_box(tooltip: str) -> QDoubleSpinBox:
    """A field for the number of an object, which may be larger than Qt's own whole numbers are."""
    made = NumberBox()
    made.setDecimals(0)
    made.setRange(1, LARGEST_ID)
    made.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
    made.setMinimumWidth(_ID_WIDTH_PX)
    made.setToolTip(tooltip)
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


class Dockable(QWidget):
    """A widget that shares a place with its like, notices when napari lets go of it, and then leaves the viewer alone: see `leave`.

    A dock that comes where another of ours is becomes a tab there: one below the other, they are higher than a small screen. Where the user
    puts it later, it stays.

    A window of its own is closed; a dock that the user closes takes its widget out, without closing or deleting it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._docked = self._left = False

    def leave(self) -> None:
        """Disconnect from the viewer, and let the worker end once its queue is done. Safe to call again."""
        if not self._left:
            self._left = True
            self._disconnect()

    def _disconnect(self) -> None:
        """Of each widget's own; called once."""
        raise NotImplementedError

    def closeEvent(self, event: Any) -> None:  # noqa: N802
        """Closed as a window of its own."""
        self.leave()
        super().closeEvent(event)

    def changeEvent(self, event: Any) -> None:  # noqa: N802
        """Put into a dock, or taken out of it."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange:
            docked, self._docked = self._docked, self.parent() is not None
            if docked and not self._docked:
                self.leave()
            elif isinstance(dock := self.parent(), QDockWidget):
                dock.dockLocationChanged.connect(self._on_placed)

    def _on_placed(self, area: Qt.DockWidgetArea) -> None:
        """Its dock has got its first place. Once it is shown it is too late: the window has grown to hold both."""
        dock = self.parent()
        assert isinstance(dock, QDockWidget)
        dock.dockLocationChanged.disconnect(self._on_placed)
        window = dock.parent()
        if not isinstance(window, QMainWindow):
            return
        for other in window.findChildren(QDockWidget):
            beside = other is not dock and isinstance(other.widget(), Dockable) and not other.isHidden() and not other.isFloating()
            if beside and window.dockWidgetArea(other) == area:
                window.tabifyDockWidget(other, dock)
                dock.show()
                dock.raise_()
                return


class SignSwitch(QWidget):
    """Two buttons of which one is down: what a plain click means."""

    changed = Signal(bool)

    def __init__(self) -> None:
        super().__init__()
        self._positive = button("+   inside", "", checkable=True, least_px=28)
        self._negative = button("−   outside", "", checkable=True, least_px=28)
        self.show_key(KEYS[SWITCH_SIGN])
        for each, color in ((self._positive, POSITIVE_COLOR), (self._negative, NEGATIVE_COLOR)):
            each.setStyleSheet(f"QPushButton:checked:enabled {{ background-color: {color}; color: white; font-weight: bold; }}")
        group = QButtonGroup(self)
        group.addButton(self._positive)
        group.addButton(self._negative)
        self.setLayout(row(self._positive, self._negative))
        self._positive.setChecked(True)
        group.buttonClicked.connect(lambda _: self.changed.emit(self._positive.isChecked()))

    def show_key(self, key: str) -> None:
        """Name the key that switches."""
        switches = f"Key {readable(key)} switches"
        self._positive.setToolTip(f"A click says: this belongs to the object.\n{switches}.")
        self._negative.setToolTip(
            f"A click says: this does not belong to the object.\n{switches}; Ctrl+click (⌘ on a Mac) is always outside."
        )

    def show_sign(self, positive: bool) -> None:
        """Press the button of that sign without saying so."""
        (self._positive if positive else self._negative).setChecked(True)


class Fold(QWidget):
    """Some content that is hidden until its ``title`` is pressed. Whoever arranges both puts the title where it is to be."""

    unfolded = Signal(bool)

    def __init__(self, words: str) -> None:
        super().__init__()
        self.title = QToolButton()
        self.title.setText(words)
        self.title.setToolTip("Show or hide this.")
        self.title.setCheckable(True)
        self.title.setAutoRaise(True)
        self.title.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.title.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.title.setArrowType(Qt.ArrowType.RightArrow)
        self.title.clicked.connect(self.unfold)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self.hide()

    def fill(self, content: QWidget) -> None:
        """Put the content in."""
        self.layout().addWidget(content)

    def unfold(self, unfolded: bool) -> None:
        """Show or hide the content. Others hear of it first, so that they can make room."""
        if unfolded != self.isHidden():
            return
        self.title.setChecked(unfolded)
        self.title.setArrowType(Qt.ArrowType.DownArrow if unfolded else Qt.ArrowType.RightArrow)
        self.unfolded.emit(unfolded)
        self.setVisible(unfolded)


class FoldArea(QScrollArea):
    """Where folds lie, one below the other: as high as what is unfolded, and where the window has less room, it scrolls."""

    _LEAST_PX = 96

    def __init__(self, folds: Sequence[Fold]) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Maximum)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # the keyboard stays with the canvas
        content = QWidget()
        layout = QVBoxLayout(content)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        for fold in folds:
            layout.addWidget(fold)
        layout.addStretch(1)
        self.setWidget(content)

    def sizeHint(self) -> QSize:  # noqa: N802
        """Room for everything."""
        return QSize(self.minimumSizeHint().width(), self._height())

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        """All of the width, beside a scroll bar, and some lines of the height."""
        beside = self.verticalScrollBar().sizeHint().width()
        return QSize(self.widget().minimumSizeHint().width() + beside, min(self._height(), self._LEAST_PX))

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802
        """Follow what becomes higher or lower."""
        if event.type() == QEvent.Type.LayoutRequest:
            self.updateGeometry()
        return bool(super().eventFilter(watched, event))

    def resizeEvent(self, event: Any) -> None:  # noqa: N802
        """Lines that wrap are more or fewer in another width."""
        super().resizeEvent(event)
        self.updateGeometry()

    def _height(self) -> int:
        layout, room = self.widget().layout(), self.viewport()
        frame = self.height() - room.height()  # that of the theme
        return frame + (layout.heightForWidth(room.width()) if layout.hasHeightForWidth() else layout.sizeHint().height())


class KeySheet(Fold):
    """What mouse and keys do."""

    def __init__(self) -> None:
        super().__init__("Keys")
        content = QWidget()
        self._rows = QFormLayout(content)
        self._rows.setContentsMargins(8, 0, 0, 0)
        self._rows.setVerticalSpacing(1)
        self._rows.setHorizontalSpacing(10)
        self._rows.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.fill(content)
        self.setToolTip("Other keys can be chosen in File > Preferences, in napari 0.9 and later.")

    def show_keys(self, keys: Mapping[str, str]) -> None:
        """Show the sheet of these keys (wish -> key)."""
        while self._rows.rowCount():
            self._rows.removeRow(0)
        for key, meaning in cheat_sheet(keys):
            words = QLabel(meaning)
            words.setWordWrap(True)
            self._rows.addRow(QLabel(f"<b>{key}</b>"), words)

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Key and meaning of every line."""
        cells = [
            [self._rows.itemAt(index, role).widget().text() for role in (QFormLayout.ItemRole.LabelRole, QFormLayout.ItemRole.FieldRole)]
            for index in range(self._rows.rowCount())
        ]
        return [(key.removeprefix("<b>").removesuffix("</b>"), meaning) for key, meaning in cells]


class Choice(Chooser):
    """What the next session is to have; while one is open, it shows what that one has."""

    def __init__(self, nothing: str = "") -> None:
        super().__init__(nothing)
        self._next: str | None = None

    def show_open(self, text: str | None) -> None:
        """Show what the open session has; None where there is none: then what the user has chosen stands there again."""
        if text is not None and self._next is None:
            self._next = self.currentText()
        shown, self._next = self._next if text is None else text, None if text is None else self._next
        self.setEnabled(text is None)
        if shown is not None and shown != self.currentText():
            self.setCurrentText(shown)


class More(Fold):
    """What most people never need, folded away."""

    upright_changed = Signal(bool)
    sureness_changed = Signal(bool)

    def __init__(self, policies: Mapping[str, str], devices: tuple[str, ...]) -> None:
        super().__init__("More")
        self._policies = policies
        self.policy = Choice()
        for name, meaning in policies.items():
            self.policy.addItem(meaning, name)
        self.device = Chooser()
        self.device.addItems(devices)
        self.labels = Chooser()
        self.upright = box("anterior and superior up")
        self.upright.setToolTip("Draw the second world axis upwards, as people look at heads.\nIt changes the view only.")
        self.upright.toggled.connect(self.upright_changed)
        self.sureness = box("how sure")
        self.sureness.setToolTip(
            "Colour what the model is not sure of: blue what may belong to the open object, orange what may not.\n"
            "The layer holds the probability of every pixel."
        )
        self.sureness.toggled.connect(self.sureness_changed)
        self.fill(self._arranged())

    def show_policy(self, name: str | None) -> None:
        """Show the policy of the open session; None for no session."""
        self.policy.show_open(None if name is None else self._policies.get(name, name))

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
        form.addRow("", self.sureness)
        return content


class Status(QWidget):
    """One sentence about what is going on, over a thin bar that moves while the worker works, and what all of it takes of the machine."""

    def __init__(self) -> None:
        super().__init__()
        self._words = QLabel()
        self._words.setWordWrap(True)
        self._words.setTextFormat(Qt.TextFormat.PlainText)
        self._words.setMinimumHeight(3 * self._words.fontMetrics().lineSpacing() + 4)
        self._words.setAlignment(Qt.AlignmentFlag.AlignBottom | Qt.AlignmentFlag.AlignLeft)
        self._words.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self._bar = _Bar()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addWidget(self._words)
        layout.addWidget(self._bar)
        self._machine = QLabel()
        self._machine.setAlignment(Qt.AlignmentFlag.AlignRight)
        self._machine.setEnabled(False)  # in the grey of what is not important
        self._machine.setToolTip("Where the model computes, and the memory that napari takes with all that is open.")
        layout.addWidget(self._machine)
        self._device = ""
        self._clock = QTimer(self)
        self._clock.timeout.connect(self._show_memory)
        self._clock.start(_MEMORY_EVERY_MS)
        self._show_memory()
        self.show_busy(False)

    @property
    def words(self) -> str:
        """What it says."""
        return self._words.text()

    def say(self, words: str) -> None:
        """Show these words."""
        self._words.setText(words)
        self._words.setToolTip(words)

    @property
    def machine(self) -> str:
        """What it says of the machine."""
        return self._machine.text()

    def show_device(self, device: str) -> None:
        """Say where the model computes; "" for nowhere."""
        if device != self._device:
            self._device = device
            self._show_memory()

    def _show_memory(self) -> None:
        self._machine.setText("  ·  ".join(part for part in (self._device, memory_in_use()) if part))

    def show_busy(self, busy: bool) -> None:
        """Show the moving bar, or leave its place empty."""
        self._bar.show_busy(busy)

    def show_progress(self, done: int, total: int) -> None:
        """Let the bar say how far it is."""
        self._bar.show_share(done / max(total, 1))

    @property
    def share(self) -> float | None:
        """How far the bar says it is; None where it only moves, or is not there."""
        return self._bar.share


class _Bar(QWidget):
    """A thin bar that fills, or on which a piece moves while nobody knows how long it takes.

    Qt's own one draws itself at once when its value changes, and with it the whole window, napari's canvas included: tens of
    milliseconds for every slice that is reached. This one waits for the next picture.
    """

    _PIECE, _STEP, _EVERY_MS = 0.2, 0.04, 150

    def __init__(self) -> None:
        super().__init__()
        self.setFixedHeight(4)
        self.share: float | None = None
        self._busy, self._place = False, 0.0
        self._clock = QTimer(self)
        self._clock.timeout.connect(self._move)

    def show_busy(self, busy: bool) -> None:
        """Let a piece move, or show nothing; neither is news while it goes on."""
        if not busy:
            self.share = None
        if busy != self._busy:
            self._busy = busy
            (self._clock.start if busy else self._clock.stop)(*((self._EVERY_MS,) if busy else ()))
            self.update()

    def show_share(self, share: float) -> None:
        """Fill from the left."""
        if share != self.share:
            self.share = share
            self.update()

    def _move(self) -> None:
        self._place = (self._place + self._STEP) % 1.0
        if self.share is None:
            self.update()

    def paintEvent(self, _: Any) -> None:  # noqa: N802
        """In the colour that the theme has for what is chosen."""
        if not self._busy:
            return
        painter = QPainter(self)
        painter.setOpacity(0.25)
        painter.fillRect(self.rect(), self.palette().highlight())
        painter.setOpacity(1.0)
        start, width = (0.0, self.share) if self.share is not None else (self._place * (1 + self._PIECE) - self._PIECE, self._PIECE)
        painter.fillRect(round(start * self.width()), 0, round(width * self.width()), self.height(), self.palette().highlight())
        painter.end()
