"""Fixtures that several test modules share. The fakes themselves ship in `napari_apprentice.fakes`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image as Picture

from napari_apprentice.session import Session
from napari_apprentice.types import Box, Click, Plane, SessionError

# The examples are the same everywhere and every time, so that what fails is what was changed; `--hypothesis-profile=search` draws others.
# How long an example takes says something of the machine only: there is no deadline, and nothing is too slow to be drawn.
# Threads of PyTorch that wait for each other sleep: on a busy machine those that spin, as is usual, take fifteen times as long for a click.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when PyTorch is imported

settings.register_profile("search", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("napari-apprentice", settings.get_profile("search"), derandomize=True)
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


@pytest.fixture(scope="session")
def tiny_segmenter() -> Callable[..., Any]:
    """``tiny_segmenter(seed=0, importance=None)``: a small random U-Net that answers clicks; every weight matters ``importance`` much."""
    import torch

    from napari_apprentice.networks import build
    from napari_apprentice.segmenter import NetworkSegmenter, ZoomConfig
    from napari_apprentice.weights import LoadedWeights

    def make(seed: int = 0, importance: float | None = None) -> NetworkSegmenter:
        torch.manual_seed(seed)
        network = build("unet", {"widths": [8, 16, 16, 16, 16], "groups": 4})
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.03 * torch.randn_like(parameter))
        known = {} if importance is None else {k: torch.full_like(v, importance) for k, v in network.named_parameters()}
        return NetworkSegmenter(LoadedWeights(network.eval(), "unet", {}, "0", known), "cpu", ZoomConfig(size=32, first_size=32))

    return make


@pytest.fixture
def segmenter(tiny_segmenter) -> Any:
    """One of them."""
    return tiny_segmenter()


@pytest.fixture(scope="module")
def one_thread() -> None:
    """PyTorch computes in one thread: small networks are no faster in several."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def data_folder() -> Path:
    """Real labelled sets, where the environment variable APPRENTICE_DATA says that there are some."""
    folder = os.environ.get("APPRENTICE_DATA")
    if not folder:
        pytest.skip("needs labelled sets: APPRENTICE_DATA names no folder")
    return Path(folder)


@pytest.fixture
def wander() -> Callable[..., None]:
    """Does random actions of every kind in a session of a volume: ``wander(session, seed, steps, before=lambda: None)``."""

    def do(session: Session, seed: int, steps: int, before: Callable[[], None] = lambda: None) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(steps):
            before()
            with contextlib.suppress(SessionError):  # what the state does not allow
                _act(session, draw)

    return do


def _box(session: Session, draw: np.random.Generator) -> tuple[Box, Plane]:
    axis = int(draw.integers(3))
    sides = [sorted(draw.choice(size + 1, 2, replace=False).tolist()) for a, size in enumerate(session.image.shape) if a != axis]
    (top, bottom), (left, right) = sides
    return Box(top, left, bottom, right), Plane(axis, int(draw.integers(session.image.shape[axis])))


def _act(session: Session, draw: np.random.Generator) -> None:
    def voxel() -> tuple[int, ...]:
        return tuple(int(draw.integers(side)) for side in session.image.shape)

    present = [int(i) for i in np.unique(session.labels) if i] or [1]
    label, other = int(draw.choice(present)), int(draw.choice(present))
    versions = [version.number for version in session.versions.versions]
    where = tuple(slice(int(start), int(start) + 2) for start in draw.integers(0, np.array(session.image.shape) - 1))
    inside = np.argwhere(session.labels == label)
    actions: list[tuple[float, Callable[[], object]]] = [
        (8.0, lambda: session.add(Click(voxel(), bool(draw.random() < 0.8), int(draw.integers(3))))),
        (1.0, lambda: session.add(Click.around(*_box(session, draw)))),
        (3.0, lambda: session.accept(learn=bool(draw.random() < 0.7))),
        (3.0, session.undo),
        (2.0, session.redo),
        (1.0, session.learn),
        (1.0, lambda: session.choose(int(draw.integers(2)))),
        (1.0, lambda: session.select(int(draw.integers(1, 9)))),
        (1.0, lambda: session.paint(where, draw.integers(0, 6, [2] * len(where)))),
        (1.0, lambda: session.propagate(label, 0)),
        (0.5, lambda: session.approve(Plane(0, int(draw.integers(session.image.shape[0]))), label=label)),
        (0.5, session.discard),
        (0.5, lambda: session.delete(label)),
        (0.7, lambda: session.relabel(label, int(draw.integers(1, 300)))),
        (0.7, lambda: session.merge(label, other)),
        (0.7, lambda: session.split(label, [tuple(inside[0]), tuple(inside[-1])] if len(inside) else [])),
        (1.0, lambda: session.name(label, str(draw.choice(["", "cell", "nucleus"])))),
        (0.5, lambda: session.go_back(int(draw.choice(versions)))),
        (0.3, session.forget),
        (0.3, lambda: session.pin(int(draw.choice(versions)), bool(draw.random() < 0.7))),
    ]
    weights = np.array([weight for weight, _ in actions])
    actions[int(draw.choice(len(actions), p=weights / weights.sum()))][1]()
