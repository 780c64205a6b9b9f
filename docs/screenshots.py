"""Take the pictures of the guide: a real napari window, real mouse and keys, the sample images, the shipped model.

::

    python docs/screenshots.py [fundus mri …]     # writes docs/images/*.png; needs a screen, see benchmarks/day.py

What the guide says of the window is walked through as it is written there. Nothing is drawn by hand: whoever changes the window or the
model runs this again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image as Picture
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QDialog, QWidget

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from day import PLUGIN, Hand

IMAGES = Path(__file__).parent / "images"
LARGEST_BYTES = 150 * 1024
MARGIN = 6

Voxel = tuple[float, ...]


@dataclass
class Camera:
    """Takes pictures of a window into a folder."""

    hand: Hand
    out: Path

    def take(self, name: str, part: QWidget | None = None) -> None:
        """A picture of the whole window, or of a part of it; in few colours, if it would be large otherwise."""
        self.hand.settle()
        window = self.hand.viewer.window
        for dialog in window._qt_window.findChildren(QDialog):
            dialog.close()  # notifications
        shown = Picture.fromarray(window.screenshot(canvas_only=False, flash=False)).convert("RGB")
        if part is not None:
            where = part.rect().adjusted(-MARGIN, -MARGIN, MARGIN, MARGIN).translated(part.mapTo(window._qt_window, QPoint()))
            shown = shown.crop((where.left(), where.top(), where.right(), where.bottom()))
        content = png(shown)
        if len(content) > LARGEST_BYTES:
            content = png(shown.quantize(256, Picture.Quantize.MAXCOVERAGE, dither=Picture.Dither.NONE))
        (self.out / f"{name}.png").write_bytes(content)
        print(f"{name}.png, {len(content) // 1024} KiB: {self.hand.widget.status.words}", flush=True)


def png(picture: Picture.Image) -> bytes:
    """A picture as the bytes of a file."""
    buffer = BytesIO()
    picture.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def begin(hand: Hand, sample: str, theme: str, *, study: str = "", again: bool = False) -> None:
    """Open a sample and the widget, name the study, press *Start*; or *Resume*."""
    hand.viewer.theme = theme
    hand.viewer.open_sample(PLUGIN, sample)
    hand.dock()
    hand.settle()
    if study:
        hand.press(hand.widget.model.title)
        hand.write(hand.widget.model.study.lineEdit(), study)
        hand.press(hand.widget.model.title)
    hand.press(hand.widget.resume if again else hand.widget.start)
    hand.settle()


def click(hand: Hand, *positive: Voxel, negative: tuple[Voxel, ...] = ()) -> None:
    """Click on voxels, each after the answer to the one before."""
    for voxel in (*positive, *negative):
        hand.click(*voxel, negative=voxel in negative)
        hand.settle()


def accept(hand: Hand) -> None:
    """Press G and wait until the model has learnt."""
    hand.key("G")
    hand.settle()


def fundus(hand: Hand, camera: Camera) -> None:
    """A fundus study: a box around the disc, three clicks on it, how sure the model is; the cup, then the rim around it, in a study."""
    begin(hand, "fundus", "light", study="glaucoma")
    seen = hand.viewer.scene.camera
    seen.center, seen.zoom = (0.0, 650.0, 340.0), 0.95  # as after a turn of the wheel over the disc
    hand.draw_box((555, 105), (750, 305))
    hand.settle()
    camera.take("fundus_box")
    hand.key("J")
    hand.settle()
    click(hand, (650, 240), (640, 130), (720, 170))
    camera.take("fundus_corrected")
    hand.press(hand.widget.more.title)
    hand.press(hand.widget.more.sureness)
    camera.take("how_sure")
    hand.press(hand.widget.more.sureness)
    hand.press(hand.widget.more.title)
    hand.key("J")
    hand.settle()
    click(hand, (648, 250), negative=((650, 180), (700, 240)))
    accept(hand)
    click(hand, (600, 215), (720, 170), negative=((560, 330),))
    hand.press(hand.widget.model.title)
    camera.take("fundus_study")
    hand.leave()


def upright(hand: Hand) -> None:
    """The box under *More*."""
    hand.press(hand.widget.more.title)
    hand.press(hand.widget.more.upright)
    hand.press(hand.widget.more.title)


def mri(hand: Hand, camera: Camera) -> None:
    """An MRI volume: click, accept, carry, see the slice that helps most, correct it; quit, resume in a new window."""
    begin(hand, "mri", "dark")
    upright(hand)
    hand.go_to(11)
    click(hand, (11, 57, 61), (11, 62, 57), negative=((11, 69, 60),))
    camera.take("mri_corrected")
    accept(hand)
    hand.key("W")
    hand.settle()
    hand.go_to(13)
    camera.take("mri_carried")
    hand.go_to(11)
    hand.key("U")
    camera.take("mri_doubtful")
    click(hand, (hand.plane, 43, 60), (hand.plane, 34, 56))
    accept(hand)
    hand.leave()
    camera.hand = hand = Hand()
    begin(hand, "mri", "dark", again=True)
    upright(hand)
    hand.press(hand.widget.model.title)
    camera.take("resumed")
    hand.press(hand.widget.sheet.title)
    camera.take("keys", hand.widget.sheet)
    hand.leave()


# Clicks on what is seen in the generated stack.
MITOCHONDRIA: tuple[tuple[Voxel, ...], ...] = (((6, 67, 67), (6, 43, 38)), ((6, 131, 87),), ((6, 140, 165),))
VESICLES: tuple[tuple[Voxel, ...], ...] = (((6, 66, 103),), ((4, 158, 37),))


def em(hand: Hand, camera: Camera) -> None:
    """A stack from the microscope: several objects, each with a class; measure them; what the model has learnt of them."""
    begin(hand, "em", "dark")
    hand.press(hand.widget.objects.title)
    for kind, objects in (("mitochondrion", MITOCHONDRIA), ("vesicle", VESICLES)):
        for voxels in objects:
            hand.go_to(int(voxels[0][0]))
            click(hand, *voxels)
            hand.write(hand.widget.objects.name.lineEdit(), kind)
            hand.settle()
            accept(hand)
    hand.go_to(6)
    camera.take("em_objects")
    hand.press(hand.widget.objects.title)
    camera.take("progress", hand.widget.progress)
    hand.press(hand.widget.model.title)
    hand.go_to(2)
    click(hand, (2, 60, 140))
    hand.hold("H", True)
    camera.take("model_versions")
    hand.hold("H", False)
    hand.settle()
    hand.key("J")
    hand.dock_table(tabify=True)
    hand.viewer.window._qt_window.resizeDocks([hand.table.parent()], [560], Qt.Orientation.Horizontal)
    hand.settle()
    hand.press(hand.table.start)
    hand.settle()
    rows = hand.table.view
    QTest.mouseClick(rows.viewport(), Qt.MouseButton.LeftButton, pos=QPoint(20, rows.rowViewportPosition(0) + rows.rowHeight(0) // 2))
    camera.take("measuring")
    hand.leave()


SCENES: dict[str, Callable[[Hand, Camera], None]] = {"fundus": fundus, "mri": mri, "em": em}


def main() -> None:
    """Take the pictures of the scenes that are named, by default of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", choices=[[], *SCENES], help="by default all")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder for the pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["NAPARI_CONFIG"] = ""
    for name in options.scenes or SCENES:
        with tempfile.TemporaryDirectory() as home:
            os.environ["APPRENTICE_HOME"] = home
            hand = Hand()
            SCENES[name](hand, Camera(hand, options.out))


if __name__ == "__main__":
    main()
