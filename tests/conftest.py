"""Fixtures that several test modules share. The fakes themselves ship in `napari_apprentice.fakes`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from PIL import Image as Picture

settings.register_profile("napari-apprentice", deadline=None, print_blob=True)
settings.load_profile("napari-apprentice")

Cases = Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """A 2D array as PNG, a volume (z, y, x) as NIfTI, without this package's own writers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if array.ndim == 2:
        Picture.fromarray(array).save(path.with_name(path.name + ".png"))
    else:
        nibabel.save(nibabel.Nifti1Image(array.T, np.diag([1.0, 1.0, 3.0, 1.0])), path.with_name(path.name + ".nii.gz"))


@pytest.fixture
def make_set(tmp_path: Path) -> Callable[..., Path]:
    """Writes a labelled set: ``make_set(description, {case: (image, labels)}, name="set")`` gives its folder."""

    def make(description: str, cases: Cases, name: str = "set") -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "dataset.toml").write_text(description)
        for case, (image, labels) in cases.items():
            write_array(folder / "images" / case, image)
            write_array(folder / "labels" / case, labels)
        return folder

    return make


@pytest.fixture
def disks_set(make_set: Callable[..., Path]) -> Path:
    """Six pictures with one or two disks each, as ids 1 and 2: what a disk-painting segmenter can learn."""
    rng = np.random.default_rng(3)
    rows, cols = np.mgrid[:48, :64]
    cases = {}
    for number in range(6):
        labels = np.zeros((48, 64), np.uint8)
        for label, (row, col) in enumerate([(16, 16), (30, 46)][: 1 + number % 2], start=1):
            labels[(rows - row) ** 2 + (cols - col) ** 2 <= (7 + number % 3) ** 2] = label
        cases[f"case{number}"] = (rng.integers(0, 255, (48, 64), dtype=np.uint8), labels)
    return make_set('objects = "id"\nmin_area_px = 5\n[classes]\nids = "one disk each"\n', cases, "disks")


@pytest.fixture
def data_folder() -> Path:
    """Real labelled sets, where the environment variable APPRENTICE_DATA says that there are some."""
    folder = os.environ.get("APPRENTICE_DATA")
    if not folder:
        pytest.skip("needs labelled sets: APPRENTICE_DATA names no folder")
    return Path(folder)
