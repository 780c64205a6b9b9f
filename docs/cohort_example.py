"""What docs/cohorts.md works on: eight generated heads with two lesions each, and the clicks of a simulated person on two of them.

``python cohort_example.py`` writes ``heads/``, ``truth/``, ``head_0.json`` and ``head_1.json`` into the working folder;
``python cohort_example.py study`` then compares the labels of the project ``study`` with the truth.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_apprentice import Click, Image, open_project, open_session, read_labels, save_image, write
from napari_apprentice.geometry import affine_from_spacing
from napari_apprentice.sample_data.generate import head
from napari_apprentice.shapes import overlap
from napari_apprentice.simulation import CentreRobot

HEADS, BY_HAND = 8, 2
SMALLEST_PX, GOOD_IOU, MOST_CLICKS = 20, 0.85, 6


def make() -> None:
    """Write images, truths and clicks."""
    for folder in ("heads", "truth"):
        Path(folder).mkdir(exist_ok=True)
    for number in range(HEADS):
        rng = np.random.default_rng(number)
        volume, tissues = head(rng)
        shift = tuple(rng.integers(-6, 7, 2))  # nobody lies in the scanner like anybody else
        volume, lesions = (np.roll(array, shift, (1, 2)) for array in (volume, np.where(tissues == 3, 1, 2 * (tissues == 2))))
        image = Image(volume[None], affine_from_spacing((5.0, 1.0, 1.0)), "mm")
        save_image(f"heads/head_{number}.nii.gz", image)
        write(f"truth/head_{number}.nii.gz", lesions, like=image)
        if number < BY_HAND:
            Path(f"head_{number}.json").write_text(json.dumps({"clicks": clicked(image, lesions)}))


def clicked(image: Image, lesions: npt.NDArray[Any]) -> list[dict[str, Any]]:
    """The clicks of somebody who corrects every lesion, slice by slice, until it is good."""
    session, clicks = open_session(image, policy="none"), []
    for label in (1, 2):
        session.select(label)
        for z in np.flatnonzero((lesions == label).sum((1, 2)) >= SMALLEST_PX).tolist():
            truth = lesions[z] == label
            for _ in range(MOST_CLICKS):
                mask = session.labels[z] == label
                if overlap(mask, truth) >= GOOD_IOU or (click := CentreRobot().click(truth, mask)) is None:
                    break
                session.add(Click((z, *click.voxel), click.positive))
                clicks.append({"voxel": [z, *click.voxel], "positive": click.positive, "object": label})
    return clicks


def compare(folder: str) -> None:
    """Say the Dice coefficient of both lesions of every case that is done."""
    project = open_project(folder)
    for case in project.cases:
        status = project.status(case.name)
        if status.state == "done":
            labels, truth = read_labels(project.folder / status.labels), read_labels(f"truth/{case.image.name}")
            dice = [2 * ((labels == k) & (truth == k)).sum() / ((labels == k).sum() + (truth == k).sum()) for k in (1, 2)]
            trust = "" if np.isnan(status.expected_error) else f"  expected error {status.expected_error:.2f}"
            print(f"{case.name}  {status.by:<4}  {dice[0]:.2f}  {dice[1]:.2f}{trust}")


if __name__ == "__main__":
    compare(sys.argv[1]) if len(sys.argv) > 1 else make()
