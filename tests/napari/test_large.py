"""Volumes and labels that stay on the disk, in the viewer: with the limits lowered, everything does."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from napari.components import ViewerModel
from napari.layers import Labels

from napari_apprentice import blocks, files, lazy
from napari_apprentice._napari.bridge import Bridge
from napari_apprentice._napari.contributions import get_reader, image_layer, write_labels
from napari_apprentice._napari.engine import Wish
from napari_apprentice._napari.placement import image_of
from napari_apprentice.blocks import BlockArray
from napari_apprentice.lazy import LazyArray
from napari_apprentice.types import Click


@pytest.fixture
def on_disk(monkeypatch):
    monkeypatch.setattr(blocks, "LARGE_VOXELS", 0)
    monkeypatch.setattr(blocks, "BLOCK", (2, 16, 16))
    monkeypatch.setattr(lazy, "LARGE_BYTES", 0)


@pytest.fixture
def started(qtbot, volume, engine):
    """A viewer, a bridge with a session of the given layer, and how to wait for it."""
    made = []

    def start(layer_of, using=engine):
        viewer = ViewerModel()
        layer = layer_of(viewer)
        bridge = Bridge(viewer, using)
        made.append(bridge)
        bridge.start(layer, Wish())

        def wait():
            qtbot.waitUntil(lambda: bridge.worker.waiting == 0, timeout=30_000)

        wait()
        return viewer, bridge, wait

    yield start
    for bridge in made:
        bridge.close()
        assert bridge.worker.join(60)


def shown_labels(viewer) -> Labels:
    return next(layer for layer in viewer.layers if isinstance(layer, Labels))


def paint(layer, voxel, label):
    """One dab of napari's brush of one voxel."""
    layer.selected_label = label
    layer.brush_size = 1
    with layer.block_history():
        layer.paint(voxel, label)


def test_what_is_read_is_lazy_and_shown_at_the_resolution_that_the_view_needs(tmp_path, volume, on_disk):
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="w")
    steps = [[1.0, 1.0, 1.0], [1.0, 2.0, 2.0]]
    for name, values in (("0", volume.data[0]), ("1", volume.data[0, :, ::2, ::2])):
        group.create_array(name, data=values)
    datasets = [{"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": s}]} for i, s in enumerate(steps)]
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    path = str(tmp_path / "a.ome.zarr")
    ((data, arguments, kind),) = get_reader(path)(path)
    layer = ViewerModel().add_image(data, **arguments)
    assert kind == "image"
    assert layer.multiscale
    np.testing.assert_array_equal(layer.downsample_factors, steps)
    image = image_of(layer)
    assert isinstance(image.data, LazyArray)
    np.testing.assert_array_equal(image.data[0, 3], volume.data[0, 3])


def test_what_takes_the_place_of_an_array_on_the_disk_counts(volume):
    there = replace(volume, data=LazyArray(volume.data))
    data, arguments, _ = image_layer(there)
    layer = ViewerModel().add_image(data, **arguments)
    assert image_of(layer) is there
    layer.data = np.asarray(layer.data) // 2
    np.testing.assert_array_equal(image_of(layer).data, volume.data // 2)


@pytest.mark.parametrize("rgb", [False, True])
def test_a_zarr_layer_of_somebody_else_stays_lazy(tmp_path, rgb):
    values = np.random.default_rng(0).integers(0, 255, (5, 20, 30, 3) if rgb else (5, 20, 30)).astype(np.uint8)
    stored = zarr.create_array(tmp_path / "a.zarr", data=values)
    layer = ViewerModel().add_image(stored, rgb=rgb, contrast_limits=None if rgb else (0, 255))
    image = image_of(layer)
    assert isinstance(image.data, LazyArray)
    np.testing.assert_array_equal(np.asarray(image.data), np.moveaxis(values, -1, 0) if rgb else values[None])


def test_a_day_on_the_disk_is_a_day_in_memory(tmp_path, volume, started, make_engine, monkeypatch):
    """Clicks, painting, the untaught model's outline, acceptance and undo; shown is what the session has, and what memory would have."""

    def day():
        viewer, bridge, wait = started(lambda v: v.add_image(image_layer(volume)[0], **image_layer(volume)[1]), engine := make_engine())
        seen = []
        for act in (
            lambda: bridge.click(Click((2, 20, 20))),
            lambda: paint(shown_labels(viewer), (2, 30, 30), 1),
            lambda: (bridge.peek(True), wait(), bridge.peek(False)),
            bridge.accept,
            lambda: bridge.click(Click((3, 10, 40))),
            bridge.undo,
            bridge.redo,
            lambda: setattr(shown_labels(viewer), "data", np.zeros(volume.shape, np.uint8)),  # put back
        ):
            act()
            wait()
            layer = shown_labels(viewer)
            np.testing.assert_array_equal(np.asarray(layer.data), np.asarray(engine.session.labels))
            seen.append(np.array(layer.data))
        return layer, engine.session, seen

    _, _, in_memory = day()
    monkeypatch.setattr(blocks, "LARGE_VOXELS", 0)
    monkeypatch.setattr(blocks, "BLOCK", (2, 16, 16))
    layer, session, seen = day()
    assert isinstance(layer.data, BlockArray)
    assert layer.data is not session.labels
    for one, other in zip(in_memory, seen, strict=True):
        np.testing.assert_array_equal(one, other)
    (written,) = write_labels(str(tmp_path / "a.ome.zarr"), layer.data, {"metadata": layer.metadata})
    np.testing.assert_array_equal(files.read_labels(written), seen[-1])
    np.testing.assert_array_equal(files.read(Path(written)).affine, volume.affine)


def test_a_resumed_session_goes_on_in_the_layer_that_it_left_on_the_disk(volume, on_disk, started, engine, monkeypatch):
    monkeypatch.setattr(blocks, "_CACHE_BYTES", 0)  # nothing is kept in memory
    viewer, bridge, wait = started(lambda v: v.add_image(image_layer(volume)[0], **image_layer(volume)[1]))
    for index in range(4):
        bridge.click(Click((2 * index, 20, 20)))
    wait()
    layer, folder = shown_labels(viewer), engine.session._journal.path.parent
    shown = np.array(layer.data)
    assert shown.any(axis=(1, 2)).sum() == 4
    for left in (["scan", "scan labels", "scan clicks"], ["scan", "scan labels", "scan labels [1]", "scan clicks"]):
        bridge.stop()
        if len(left) == 4:
            paint(layer, (7, 30, 30), 5)
            shown[7, 30, 30] = 5
        bridge.start(viewer.layers[0], Wish(resume=folder))
        wait()
        assert [each.name for each in viewer.layers] == left
        np.testing.assert_array_equal(np.asarray(layer.data), shown)


def test_scrolling_does_not_wait_for_the_model(tmp_path, volume, on_disk, started, slow_engine):
    """While an answer is on its way (the model waits for this test), every slice of image and labels can be shown."""
    gate = threading.Event()
    stored = zarr.create_array(tmp_path / "a.zarr", data=volume.data[0])
    viewer, bridge, wait = started(lambda v: v.add_image(stored, contrast_limits=(0, 200)), slow_engine(gate=gate))
    bridge.click(Click((2, 20, 20)))
    for z in range(volume.shape[0]):
        viewer.dims.set_point(0, z)
        assert bridge.worker.waiting == 1
        layer = viewer.layers[0]
        np.testing.assert_array_equal(layer._slice.image.raw, volume.data[0, z])
    gate.set()
    wait()
    assert np.asarray(shown_labels(viewer).data).any()
