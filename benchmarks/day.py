"""A day's work in a real napari window, with real mouse and keys: for whoever measures it, kills it, or takes pictures of it.

Needs a screen; without one: ``xvfb-run -a -s "-screen 0 1400x1000x24" python …``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QPoint, Qt, QTimer
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QDialog, QFileDialog, QPushButton, QWidget

__all__ = ["Day", "Hand", "Tubes"]

WINDOW_PX = (1280, 800)
PATIENCE_S = 600.0
PLUGIN, WIDGET, TABLE = "napari-apprentice", "Apprentice", "Measure objects"

_LEFT = Qt.MouseButton.LeftButton
_HELD = {"Control": Qt.KeyboardModifier.ControlModifier, "Shift": Qt.KeyboardModifier.ShiftModifier}
_NOTHING = Qt.KeyboardModifier.NoModifier


class Hand:
    """Mouse and keys of one napari window.

    Parameters
    ----------
    rest_ms : how long to let the window draw after all work is done

    Attributes
    ----------
    widget, table : the docked widgets, None before `dock` and `dock_table`
    """

    def __init__(self, rest_ms: int = 400) -> None:
        import napari

        self.rest_ms = rest_ms
        self.viewer = napari.Viewer(title="napari-apprentice")
        self.viewer.window.resize(*WINDOW_PX)
        QApplication.setAttribute(Qt.ApplicationAttribute.AA_DontUseNativeDialogs)  # others cannot be answered from here
        # There is no public way to the canvas, and public clicks would not be real ones.
        self.canvas = self.viewer.window._qt_viewer.canvas
        self.widget: Any = None
        self.table: Any = None
        self._answer = ""
        self.settle()

    def open(self, path: Path) -> None:
        self.viewer.open(path, plugin=PLUGIN)

    def dock(self) -> None:
        _, self.widget = self.viewer.window.add_plugin_dock_widget(PLUGIN, WIDGET)

    def dock_table(self, *, tabify: bool = False) -> None:
        _, self.table = self.viewer.window.add_plugin_dock_widget(PLUGIN, TABLE, tabify=tabify)

    def settle(self) -> None:
        """Wait until all work is done and the window is drawn."""
        end = time.monotonic() + PATIENCE_S
        while any(worker.waiting for worker in self._workers()):
            if time.monotonic() > end:
                raise TimeoutError(f"the window still works after {PATIENCE_S:.0f} s: {self.widget.status.words}")
            QTest.qWait(10)
        QTest.qWait(self.rest_ms)

    def _workers(self) -> list[Any]:
        return [each.worker for each in (self.widget and self.widget.bridge, self.table) if each is not None]

    def press(self, button: QWidget, answer: str = "") -> None:
        """Press a button; ``answer`` is the button to press, or the file to choose, in the dialog that it opens, if it opens one."""
        assert button.isEnabled(), button
        self._answer = answer
        self._answer_dialogs()
        QTest.mouseClick(button, _LEFT)
        self._answer = ""

    def _answer_dialogs(self) -> None:
        """Again and again, while there is an answer; each time with a clock of its own, since a dialog may open another one."""
        if self._answer:
            QTimer.singleShot(20, self._answer_dialogs)
            _answer(self._answer)

    def key(self, key: str) -> None:
        """Press a key: "G", "Control-Shift-Z". It goes where that of a real keyboard does."""
        *held, letter = key.split("-")
        QTest.keyClick(self._keyboard, Qt.Key(ord(letter)), _held(held))

    def hold(self, key: str, down: bool) -> None:
        """Press a key and keep it down, or let it go."""
        (QTest.keyPress if down else QTest.keyRelease)(self._keyboard, Qt.Key(ord(key)))

    @property
    def _keyboard(self) -> QWidget:
        """Whoever has the focus, else the window."""
        main: QWidget = self.viewer.window._qt_window
        focus: QWidget | None = main.focusWidget()
        return main if focus is None else focus  # an empty list to choose from is not true

    def write(self, field: QWidget, words: str) -> None:
        """Type words into a field, which may just have come, and Return."""
        self.settle()
        QTest.mouseClick(field, _LEFT)
        assert self._keyboard in (field, field.focusProxy()), f"{field} is not where a click fell; expected it to be laid out"
        QTest.keyClicks(self._keyboard, words)
        QTest.keyClick(self._keyboard, Qt.Key.Key_Return)

    def point(self, *voxel: float) -> None:
        """Move the mouse over a voxel of the image."""
        QTest.mouseMove(self.canvas.native, self._pixel(voxel))

    def click(self, *voxel: float, negative: bool = False) -> None:
        """Click on a voxel of the image, with the Control key if it is negative."""
        self.point(*voxel)
        QTest.mouseClick(self.canvas.native, _LEFT, _held(["Control"] if negative else []), self._pixel(voxel))

    def draw_box(self, first: tuple[float, ...], last: tuple[float, ...]) -> None:
        """Drag from voxel to voxel with the Shift key."""
        native, shift = self.canvas.native, _held(["Shift"])
        start, stop = self._pixel(first), self._pixel(last)
        QTest.mouseMove(native, start)
        QTest.mousePress(native, _LEFT, shift, start)
        for step in range(1, 6):
            QTest.mouseMove(native, start + (stop - start) * (step / 5))
            QTest.qWait(10)
        QTest.mouseRelease(native, _LEFT, shift, stop)

    def _pixel(self, voxel: tuple[float, ...]) -> QPoint:
        world = self.viewer.layers[0].data_to_world(voxel)
        shown = [world[axis - self.viewer.dims.ndim] for axis in self.viewer.dims.displayed][::-1]
        mapped = (self.canvas.view.transform * self.canvas.view.scene.transform).map(shown)
        return QPoint(round(float(mapped[0] / mapped[3])), round(float(mapped[1] / mapped[3])))

    def go_to(self, index: int) -> None:
        """Show a slice of the volume."""
        layer = self.viewer.layers[0]
        centre = [(size - 1) / 2 for size in layer.data.shape]
        self.viewer.dims.set_point(0, layer.data_to_world([index, *centre[1:]])[0])

    @property
    def plane(self) -> int:
        """The slice that is shown."""
        return round(self.viewer.layers[0].world_to_data(self.viewer.dims.point)[0])

    def leave(self) -> None:
        """Close the window, as a user does: without asking anybody, whatever is open."""
        self.viewer.close()
        QApplication.processEvents()


def _held(names: list[str]) -> Qt.KeyboardModifier:
    held = _NOTHING
    for name in names:
        held |= _HELD[name]
    return held


def _answer(answer: str) -> None:
    """Answer the dialog that is open: choose a file, and agree to overwrite it if need be, or press a button."""
    dialog = QApplication.activeModalWidget()
    wanted = [answer, "Yes"]
    if isinstance(dialog, QFileDialog):
        dialog.selectFile(answer)
        wanted = ["Save", "Open"]
    if isinstance(dialog, QDialog):
        for button in dialog.findChildren(QPushButton):
            if button.text().replace("&", "") in wanted and button.isEnabled():
                QTest.mouseClick(button, _LEFT)
                return


# --- a day's work ---


@dataclass(frozen=True)
class Tubes:
    """A volume of bright, slanted tubes in noise, thinner towards the ends.

    Attributes
    ----------
    shape : of the volume
    radius : of a tube in the middle slice, in voxels
    centres : row and column of every tube in the first slice
    """

    shape: tuple[int, int, int]
    radius: float
    centres: tuple[tuple[int, int], ...]

    SLANT = 0.5

    def values(self, seed: int = 0) -> npt.NDArray[np.uint8]:
        z, y, x = np.ogrid[tuple(slice(size) for size in self.shape)]
        values = np.random.default_rng(seed).normal(70, 12, self.shape).astype(np.float32)
        radius = self.radius * np.sqrt(np.clip(1 - ((z - self.shape[0] / 2) / (0.4 * self.shape[0])) ** 2, 0, 1))
        for row, col in self.centres:
            values[(y - row - self.SLANT * z) ** 2 + (x - col) ** 2 < radius**2] += 70
        return np.clip(values, 0, 255).astype(np.uint8)

    def write(self, path: Path, seed: int = 0) -> Path:
        from napari_apprentice import files
        from napari_apprentice.types import Image

        return files.save_image(path, Image(self.values(seed)[None], np.diag([2.0, 0.5, 0.5, 1.0]), "mm", name=path.name.partition(".")[0]))

    def at(self, tube: int, plane: int, down: float, right: float) -> tuple[float, float, float]:
        """A voxel in a slice, so many radii away from the middle of a tube."""
        row, col = self.centres[tube]
        return plane, row + self.SLANT * plane + down * self.radius, col + right * self.radius


LARGE = Tubes((60, 512, 512), 45, ((150, 150), (330, 200), (200, 380)))


class Day:
    """Everything that one does in a day, step by step; what a step's method says of itself is what it does.

    Parameters
    ----------
    hand : of a window without an image
    path : the volume on the disk
    tubes : what is in it
    tube : which of them is worked on
    """

    def __init__(self, hand: Hand, path: Path, tubes: Tubes = LARGE, tube: int = 0) -> None:
        self.hand, self.path, self.tubes, self.tube = hand, path, tubes, tube

    def _click(self, plane: int, down: float, right: float, *, negative: bool = False) -> None:
        self.hand.click(*self.tubes.at(self.tube, plane, down, right), negative=negative)
        self.hand.settle()

    def open_image(self) -> None:
        """read the file, show it"""
        self.hand.open(self.path)

    def open_widget(self) -> None:
        """*Plugins > Apprentice*"""
        self.hand.dock()

    def start(self) -> None:
        """*Start*: load the model, begin the journal"""
        self.hand.press(self.hand.widget.start)

    def clicks(self) -> None:
        """three on the object, one beside it, each with its mask"""
        middle = self.tubes.shape[0] // 2
        self.hand.go_to(middle)
        for down, right, negative in ((0, 0, False), (0.55, 0.33, False), (0, 1.78, True), (-0.33, -0.44, False)):
            self._click(middle, down, right, negative=negative)

    def undo(self) -> None:
        """Ctrl+Z, three times"""
        for _ in range(3):
            self.hand.key("Control-Z")
            self.hand.settle()

    def redo(self) -> None:
        """Ctrl+Shift+Z, three times"""
        for _ in range(3):
            self.hand.key("Control-Shift-Z")
            self.hand.settle()

    def name(self) -> None:
        """*Objects*: type the name of a class"""
        self.hand.widget.objects.unfold(True)
        self.hand.write(self.hand.widget.objects.name.lineEdit(), "tube")

    def accept(self) -> None:
        """G, until the model has learnt"""
        self.hand.key("G")

    def propagate(self) -> None:
        """W, through all slices"""
        self.hand.key("W")

    def scroll(self) -> None:
        """two fifths of the slices"""
        count = self.tubes.shape[0]
        for index in range(count // 3, count // 3 + 2 * count // 5):
            self.hand.go_to(index)
            QTest.qWait(30)

    def correct(self) -> None:
        """U, two clicks there, G, and what hangs on it is carried anew"""
        self.hand.key("U")
        self.hand.settle()
        plane = self.hand.plane
        self._click(plane, 0, 0)
        self._click(plane, 1.56, 0, negative=True)
        self.hand.key("G")

    def keep(self) -> None:
        """U, K: the next slice is good as it is"""
        self.hand.key("U")
        self.hand.settle()
        self.hand.key("K")

    def measure(self) -> None:
        """*Measure objects*: volumes, surfaces, intensities"""
        if self.hand.table is None:
            self.hand.dock_table()
            self.hand.settle()
        self.hand.press(self.hand.table.start)

    def save(self) -> None:
        """*Save labels*, beside the image"""
        self.hand.press(self.hand.widget.save, "Overwrite")

    def close_session(self) -> None:
        """*Close session*"""
        self.hand.press(self.hand.widget.start)

    def resume(self) -> None:
        """*Resume*: read the journal and the model, show them"""
        self.hand.press(self.hand.widget.resume)

    @property
    def steps(self) -> dict[str, Callable[[], None]]:
        """Name -> what is done, in order."""
        return {
            "open the image": self.open_image,
            "open the widget": self.open_widget,
            "start": self.start,
            "click": self.clicks,
            "undo": self.undo,
            "redo": self.redo,
            "name a class": self.name,
            "accept and learn": self.accept,
            "propagate": self.propagate,
            "scroll": self.scroll,
            "correct": self.correct,
            "keep a slice": self.keep,
            "measure": self.measure,
            "save": self.save,
            "close the session": self.close_session,
            "resume": self.resume,
        }
