"""Take the pictures of the guide: a real napari window, real mouse clicks, real images, the shipped model.

::

    python docs/screenshots.py            # writes docs/images/*.png; needs a screen, or: xvfb-run -s "-screen 0 1400x1000x24" python …

Nothing is drawn by hand: whoever changes the window or the model runs this again.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QDialog

from napari_apprentice._napari.contributions import LayerTuple, fundus_sample, mri_sample
from napari_apprentice._napari.keys import ACCEPT, KEYS
from napari_apprentice._napari.launch import open_window
from napari_apprentice._napari.placement import METADATA_KEY

WINDOW_PX = (1280, 800)
PATIENCE_S = 300.0

Voxel = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """Something that the user does, and the picture taken afterwards.

    Attributes
    ----------
    plane : slice to go to first, in volumes
    positive, negative : voxels that are clicked, the negative ones with the Control key
    accept : whether to press the key that accepts, at the end
    picture : name of the picture; none is taken without one
    unfold : whether to unfold what is under "More"
    """

    plane: int | None = None
    positive: tuple[Voxel, ...] = ()
    negative: tuple[Voxel, ...] = ()
    accept: bool = False
    picture: str = ""
    unfold: bool = False


@dataclass(frozen=True)
class Scene:
    """An image, how the window looks, and the steps."""

    sample: Callable[[], list[LayerTuple]]
    theme: str
    upright: bool
    steps: tuple[Step, ...]


SCENES = (
    Scene(
        mri_sample,
        "dark",
        True,
        (
            Step(plane=11, picture="mri_start"),
            Step(positive=((11, 57, 61),), picture="mri_first_click"),
            Step(positive=((11, 62, 57),), negative=((11, 69, 60),), picture="mri_corrected"),
            Step(accept=True, picture="mri_accepted"),
            Step(positive=((11, 62, 69),), accept=True),
            Step(plane=12, positive=((12, 57, 61),), negative=((12, 40, 40),), picture="mri_next_slice"),
        ),
    ),
    Scene(
        fundus_sample,
        "light",
        False,
        (
            Step(positive=((650, 210),), picture="fundus_first_click"),
            Step(positive=((720, 170),), negative=((560, 330),), unfold=True, picture="fundus_corrected"),
        ),
    ),
)


class Hand:
    """Moves the mouse and presses keys in one window."""

    def __init__(self, scene: Scene) -> None:
        image = scene.sample()[0][1]["metadata"][METADATA_KEY]
        self.viewer, self.widget = open_window(image, upright=scene.upright)
        self.viewer.theme = scene.theme
        self.viewer.window.resize(*WINDOW_PX)
        # There is no public way to the canvas, and public clicks would not be real ones.
        self.canvas = self.viewer.window._qt_viewer.canvas
        self.image_layer = self.viewer.layers[0]
        self.settle()
        QTest.mouseClick(self.widget.start, Qt.MouseButton.LeftButton)
        self.settle()
        for notification in self.viewer.window._qt_window.findChildren(QDialog):
            notification.close()

    def settle(self) -> None:
        """Wait until the model has answered and the window is drawn."""
        end = time.monotonic() + PATIENCE_S
        while self.widget.bridge.worker.waiting and time.monotonic() < end:
            QTest.qWait(10)
        QTest.qWait(300)

    def click(self, voxel: Voxel, *, negative: bool = False) -> None:
        """Click on a voxel."""
        world = self.image_layer.data_to_world(voxel)
        shown = [world[axis] for axis in self.viewer.dims.displayed][::-1]
        mapped = (self.canvas.view.transform * self.canvas.view.scene.transform).map(shown)
        point = QPoint(round(float(mapped[0] / mapped[3])), round(float(mapped[1] / mapped[3])))
        modifier = Qt.KeyboardModifier.ControlModifier if negative else Qt.KeyboardModifier.NoModifier
        QTest.mouseMove(self.canvas.native, point)
        QTest.mouseClick(self.canvas.native, Qt.MouseButton.LeftButton, modifier, point)
        self.settle()

    def do(self, step: Step, out: Path) -> None:
        """Do one step."""
        if step.plane is not None:
            centre = [(size - 1) / 2 for size in self.image_layer.data.shape]
            self.viewer.dims.set_point(0, self.image_layer.data_to_world([step.plane, *centre[1:]])[0])
        for voxel in step.positive:
            self.click(voxel)
        for voxel in step.negative:
            self.click(voxel, negative=True)
        if step.accept:
            QTest.keyClick(self.canvas.native, Qt.Key(ord(KEYS[ACCEPT])))
        self.widget.more.unfold(step.unfold)
        self.settle()
        if step.picture:
            self.viewer.window.screenshot(str(out / f"{step.picture}.png"), canvas_only=False, flash=False)
            print(f"{step.picture}.png: {self.widget.status.words}")

    def leave(self) -> None:
        """Close the window."""
        self.widget.leave()
        self.viewer.close()
        QApplication.processEvents()


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images", help="folder for the pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        os.environ["APPRENTICE_HOME"] = home
        for scene in SCENES:
            hand = Hand(scene)
            for step in scene.steps:
                hand.do(step, out)
            hand.leave()


if __name__ == "__main__":
    main()
