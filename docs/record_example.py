"""Make the report that `record.md` shows: a simulated user works on the samples that come with the program, with the shipped network.

::

    python docs/record_example.py --work DIR     # sessions, truths and report.html in DIR; docs/images/report.png where there is a Chromium

The user clicks into the worst error of every object in its largest slice, until that is right or eight clicks are made, accepts it, and
carries it through the volume. It needs no time to think: the times are those of the program.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from napari_apprentice import cli, files
from napari_apprentice.assembly import open_session
from napari_apprentice.demo import samples
from napari_apprentice.simulation import make_robot
from napari_apprentice.types import Click, Plane

GOOD_IOU, MOST_CLICKS = 0.9, 8
PICTURE_PX = (1000, 1320)


def work_on(path: Path, truth_path: Path, folder: Path) -> None:
    """Segment every object of one sample."""
    image, truth = files.read(path), np.asarray(files.read_labels(truth_path))
    session = open_session(image, folder=folder, device="cpu")
    robot = make_robot("centre")
    for label in [int(i) for i in np.unique(truth) if i]:
        plane = Plane(0, int((truth == label).sum((1, 2)).argmax()) if image.ndim == 3 else 0)
        wanted = (truth[plane.index] if image.ndim == 3 else truth) == label
        for _ in range(MOST_CLICKS):
            ids = session.labels[plane.index] if image.ndim == 3 else session.labels
            mask = np.asarray(ids == session.label)
            if (mask & wanted).sum() >= GOOD_IOU * (mask | wanted).sum():
                break
            said = robot.click(wanted, mask, tuple(click.in_plane for click in session.clicks))
            if said is None:
                break
            session.add(Click((plane.index, *said.voxel) if image.ndim == 3 else said.voxel, said.positive, 0))
        here = session.label
        session.accept()
        if image.ndim == 3:
            session.propagate(here)
    session.close()
    shutil.copy(truth_path, folder.parents[1] / "truths")


def photograph(page: Path, picture: Path) -> None:
    """The upper part of a page as a browser shows it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("There is no Chromium to take a picture with.")
        return
    size = ",".join(map(str, PICTURE_PX))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={size}", f"--screenshot={picture}"]
    subprocess.run([browser, *options, str(page)], check=True, timeout=60, capture_output=True)
    with Picture.open(picture) as taken:
        few_colours = taken.convert("RGB").quantize(96)
    few_colours.save(picture, optimize=True)
    print(f"Picture: {picture}")


def main() -> None:
    """Do the work, and write the report and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("record-example"), help="folder for all that is made")
    parser.add_argument("--images", type=Path, default=Path(__file__).parent / "images", help="folder for the picture")
    arguments = parser.parse_args()
    (arguments.work / "truths").mkdir(parents=True)
    for path, truth in samples():
        name = path.name.partition(".")[0]
        work_on(path, truth, arguments.work / "sessions" / name)
    page = arguments.work / "report.html"
    options = ["--out", str(page), "--csv", str(arguments.work / "clicks.csv"), "--objects", str(arguments.work / "objects.csv")]
    if not cli.main(["report", str(arguments.work / "sessions"), *options, "--truth", str(arguments.work / "truths")]):
        photograph(page, arguments.images / "report.png")


if __name__ == "__main__":
    main()
