"""Fixtures of the face's tests. They need a screen: a real one, or Xvfb (which pytest-xvfb starts)."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from napari.layers import Labels, Points
from qtpy.QtCore import QObject, QPoint, Qt, QTimer
from qtpy.QtWidgets import QApplication, QPushButton, QWidget

from napari import settings as napari_settings
from napari_apprentice._napari.answers import State
from napari_apprentice._napari.errands import Errands
from napari_apprentice._napari.key_choice import KeyChoice
from napari_apprentice._napari.sitting import Sitting
from napari_apprentice.cohorts import Cohort
from napari_apprentice.fakes import DiskSegmenter, FakePolicy, FakeStore
from napari_apprentice.journal import Journal
from napari_apprentice.session import Session, resume
from napari_apprentice.types import Image, Plane
from napari_apprentice.versions import Version

NONE = Qt.KeyboardModifier.NoModifier
LEFT = Qt.MouseButton.LeftButton
HAS_SCREEN = sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY")) or shutil.which("Xvfb") is not None


def pytest_runtest_setup(item):
    if not HAS_SCREEN:
        pytest.skip("needs a screen: there is neither a DISPLAY nor an Xvfb on the PATH")


class SlowSegmenter(DiskSegmenter):
    """Waits for the test before it answers, without holding the interpreter."""

    def __init__(self, gate: threading.Event | Turns) -> None:
        super().__init__()
        self.gate = gate

    def predict(self, image_slice, prompt):
        assert self.gate.wait(30), "nobody opened the gate"
        return super().predict(image_slice, prompt)


class Turns(QObject):
    """Counts the turns of the main thread. Another thread can `wait` for more of them, which do not come if the main thread waits for it.

    How long a turn takes by the clock on the wall says more of the machine than of the program; what the program does in the main thread
    is `longest_s`, in seconds of the processor.
    """

    WANTED = 20

    def __init__(self) -> None:
        super().__init__()
        self._had = threading.Condition()
        self.begin()
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._turn)
        self._timer.start(2)

    def begin(self) -> None:
        """Count from now on."""
        with self._had:
            self.count, self.longest_s, self._before = 0, 0.0, time.thread_time()

    def _turn(self) -> None:
        now = time.thread_time()
        with self._had:
            self.count, self.longest_s, self._before = self.count + 1, max(self.longest_s, now - self._before), now
            self._had.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """In another thread: until the main thread has had its turns; False if it has not."""
        with self._had:
            enough = self.count + self.WANTED
            return self._had.wait_for(lambda: self.count >= enough, timeout_s)

    def stop(self) -> None:
        self._timer.stop()


class DiskEngine:
    """Opens real sessions with the fake segmenter, and remembers them."""

    def __init__(self, segmenter=DiskSegmenter, policy=FakePolicy) -> None:
        self.segmenter, self.policy = segmenter, policy
        self.sessions: list[Session] = []
        self.wishes = []
        self.error: Exception | None = None
        self.model = ""

    def __call__(self, image, wish, folder):
        assert threading.current_thread() is not threading.main_thread()
        self.wishes.append(wish)
        if self.error is not None:
            raise self.error
        store = FakeStore()
        if wish.resume is not None:
            session = resume(wish.resume, image, self.segmenter(), self.policy(), store, model=self.model)
        else:
            cohort = Cohort(wish.cohort, "disks", store) if wish.cohort else None
            start = cohort.start() if cohort else None
            if wish.knowledge is not None:
                start = Version(1, origin=f"file {wish.knowledge.name}", snapshot=store.load(wish.knowledge))
            journal = Journal.create(folder, image, policy=wish.policy, cohort=wish.cohort or "", model=self.model)
            known = {"labels": wish.labels, "legend": wish.legend, "journal": journal, "store": store, "start": start, "cohort": cohort}
            session = Session(image, self.segmenter(), self.policy(), **known)
        self.sessions.append(session)
        return session

    @property
    def session(self) -> Session:
        return self.sessions[-1]


class Hands:
    """Mouse and keyboard of a napari window with the widget docked."""

    def __init__(self, qtbot, viewer, widget) -> None:
        self.qtbot, self.viewer, self.widget = qtbot, viewer, widget
        self.canvas = viewer.window._qt_viewer.canvas
        QApplication.processEvents()

    def wait(self) -> None:
        self.qtbot.waitUntil(lambda: self.widget.bridge.worker.waiting == 0, timeout=30_000)
        QApplication.processEvents()

    def drawn(self) -> None:
        """Wait until the canvas has been drawn anew."""
        seen = []
        self.canvas._scene_canvas.events.draw.connect(seen.append)
        self.canvas._scene_canvas.update()
        self.qtbot.waitUntil(lambda: bool(seen), timeout=30_000)
        self.canvas._scene_canvas.events.draw.disconnect(seen.append)

    def settled(self) -> None:
        """Wait until the window has found its size: that of many turns, with nothing left to say to the screen."""
        sizes = []

        def rests() -> bool:
            QApplication.sync()
            sizes.append(self.viewer.window._qt_window.size())
            return len(sizes) > 10 and all(size == sizes[-1] for size in sizes[-10:])

        self.qtbot.waitUntil(rests, timeout=30_000)

    def press(self, button: QPushButton) -> None:
        QApplication.processEvents()  # nobody presses what has not come up yet
        self.qtbot.mouseClick(button, LEFT)
        self.wait()

    def key(self, key, modifier=NONE) -> None:
        self.qtbot.keyClick(self.keyboard, key, modifier)
        self.wait()

    @property
    def keyboard(self) -> QWidget:
        """Whom a real keyboard talks to: whoever has the focus, else the window."""
        main = self.viewer.window._qt_window
        focus = main.focusWidget()
        return main if focus is None else focus  # an empty list to choose from is not true

    def pixel(self, *voxel) -> QPoint:
        """Where a voxel of the image is on the canvas."""
        QApplication.processEvents()
        world = self.viewer.layers[0].data_to_world(voxel)
        shown = [world[axis - self.viewer.dims.ndim] for axis in self.viewer.dims.displayed][::-1]
        x, y = (lambda mapped: mapped[:2] / mapped[3])((self.canvas.view.transform * self.canvas.view.scene.transform).map(shown))
        return QPoint(round(float(x)), round(float(y)))

    def click(self, *voxel, modifier=NONE, button=LEFT, wait=True) -> None:
        point = self.pixel(*voxel)
        self.qtbot.mouseMove(self.canvas.native, point)
        self.qtbot.mouseClick(self.canvas.native, button, modifier, point)
        if wait:
            self.wait()

    def drag(self, *path: QPoint, button=LEFT, modifier=NONE, each=lambda: None) -> None:
        """Press at the first point and go through the others; ``each`` is called on the way, before the button comes up."""
        native = self.canvas.native
        self.qtbot.mousePress(native, button, modifier, path[0])
        for start, stop in pairwise(path):
            for step in np.linspace(0, 1, 6):
                self.qtbot.mouseMove(native, start + (stop - start) * float(step))
                self.qtbot.wait(10)
        each()
        self.qtbot.mouseRelease(native, button, modifier, path[-1])
        self.wait()

    @property
    def plane(self) -> int:
        """Index of the image's plane that is shown."""
        hidden = self.viewer.dims.order[0]
        return int(np.rint(self.viewer.layers[0].world_to_data(self.viewer.dims.point)[hidden]))

    @property
    def labels(self) -> Labels:
        return [layer for layer in self.viewer.layers if isinstance(layer, Labels)][-1]

    @property
    def points(self) -> Points:
        return next(layer for layer in self.viewer.layers if isinstance(layer, Points))

    def activate(self, layer) -> None:
        self.viewer.layers.selection.active = layer
        QApplication.processEvents()


class PaperDesk:
    """What stands in for a `Desk` where there is no viewer: it writes down what it is told to show, and outlines count as shown masks."""

    def __init__(self, session: Session) -> None:
        self.session, self.folder, self.whole = session, Path("paper"), True
        self.plane, self.flipped = Plane(0, 4), False
        self.labels = np.array(session.labels, dtype=int)
        self.label, self.clicks, self.drawn = 0, (), 0
        self.outlined: list[tuple] = []
        self.answered: list[object] = []
        self.mask, self.outline = self, self.Outline(self)

    class Outline:
        def __init__(self, desk: PaperDesk) -> None:
            self.desk = desk

        def show(self, plane, mask) -> None:
            self.desk.outlined.append((plane, mask))

        def hide(self) -> None:
            self.desk.outlined.clear()

    def show(self, label, clicks, boxes=()) -> None:
        self.label, self.clicks, self.drawn = label, tuple(clicks), self.drawn + bool(boxes)
        for region, values in boxes:
            self.labels[region] = values

    def label_of(self, voxel) -> int:
        return int(self.labels[voxel])

    def show_plane(self, plane) -> None:
        self.plane = plane

    def show_classes(self, legend, highest) -> None:
        self.legend = legend

    def write_all(self, labels) -> None:
        self.labels = np.array(labels, dtype=int)

    begin_anew = write_all

    def stroke_answered(self, stroke) -> None:
        self.answered.append(stroke)


@pytest.fixture(autouse=True)
def apprentice_home(tmp_path, monkeypatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("APPRENTICE_HOME", str(home))
    return home


@pytest.fixture(autouse=True)
def settings_of_plugins(tmp_path, monkeypatch) -> None:
    """Those of this test alone, where napari has any (0.9 and later)."""
    if hasattr(napari_settings, "_PLUGIN_SETTINGS"):
        monkeypatch.setattr(napari_settings, "_PLUGIN_SETTINGS", {})
        monkeypatch.setattr(napari_settings, "_CFG_PATH", tmp_path / "settings.yaml")


@pytest.fixture
def engine() -> DiskEngine:
    return DiskEngine()


@pytest.fixture
def hands(qtbot):
    """Hands for a viewer and its widget."""
    return lambda viewer, widget: Hands(qtbot, viewer, widget)


@pytest.fixture
def make_engine():
    """Engines with a segmenter or policy of the test's choice."""
    return DiskEngine


@pytest.fixture
def slow_engine():
    """Engines whose predictions wait for a ``gate``."""
    return lambda gate: DiskEngine(lambda: SlowSegmenter(gate))


@pytest.fixture
def turns(qtbot):
    """The turns of the main thread from now on; as a ``gate``, it lets through whoever has seen some more of them."""
    made = Turns()
    yield made
    made.stop()


@pytest.fixture
def errands(qtbot):
    """Errands with a worker of their own, what they said, and `wait` until everything is answered."""
    made, heard = Errands("nothing goes on"), []
    made.said.connect(heard.append)
    made.heard = heard
    made.wait = lambda: qtbot.waitUntil(lambda: made.worker.waiting == 0, timeout=30_000)
    yield made
    made.worker.close()
    assert made.worker.join(60)


@pytest.fixture
def gate(errands):
    """Keeps the worker busy until it is set."""
    made = threading.Event()
    errands.send("waiting", lambda: made.wait(30), lambda _: None)
    yield made
    made.set()


@pytest.fixture
def sitting(errands, tube):
    """A session of the tube at work on a desk of paper; ``told`` are all its calls back, None for an answer that has come."""
    told: list[object] = []
    session = Session(tube, DiskSegmenter(), FakePolicy())
    made = Sitting(
        PaperDesk(session),
        State.of(session),
        errands,
        KeyChoice(errands),
        overtaken=lambda: told.append(None),
        changed=lambda: told.append(made.state),
        splitting=told.append,
    )
    made.told = told
    errands.wait()
    errands.heard.clear()
    return made


@pytest.fixture
def told():
    """Sentences that were shown to the user."""
    from napari.utils.notifications import notification_manager

    before = len(notification_manager.records)
    return lambda: [record.message for record in notification_manager.records[before:]]


@pytest.fixture
def volume() -> Image:
    """An anisotropic volume whose first axis runs against the world."""
    values = np.random.default_rng(0).normal(100, 10, (1, 8, 40, 50)).astype(np.float32)
    affine = np.array([[-3.0, 0, 0, 40], [0, 0.5, 0, -10], [0, 0, 0.5, 7], [0, 0, 0, 1]])
    return Image(values, affine, "mm", name="scan")


@pytest.fixture
def photograph() -> Image:
    values = np.random.default_rng(1).integers(0, 255, (3, 60, 80)).astype(np.uint8)
    return Image(values, name="photo")


@pytest.fixture
def tube() -> Image:
    """A bright tube along the first, reversed axis of an anisotropic volume."""
    rows, cols = np.mgrid[:40, :50]
    values = np.random.default_rng(0).normal(100, 5, (1, 8, 40, 50)).astype(np.float32)
    for index in range(8):
        values[0, index][(rows - 20) ** 2 + (cols - 20 - index) ** 2 <= 25] += 60
    return Image(values, np.array([[-1.0, 0, 0, 40], [0, 0.5, 0, -10], [0, 0, 0.5, 7], [0, 0, 0, 1]]), "mm", name="scan")
