"""Procedural scenes: fixed by their seed, whole, and such that what is labelled can be seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from napari_apprentice.synthetic import Scene, scene, smooth_noise

SIZE = 96


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene(seed, SIZE) for seed in range(50)]


def equal(first: Scene, second: Scene) -> bool:
    return (
        np.array_equal(first.image, second.image)
        and first.weights == second.weights
        and len(first.layers) == len(second.layers)
        and all(np.array_equal(a, b) for a, b in zip(first.layers, second.layers, strict=True))
    )


def contrasts(drawn: Scene) -> list[float]:
    """For every object of some size: by how many grey values its mean differs from its surroundings, in the channel that shows it best."""
    found = []
    image = drawn.image.astype(np.float64)
    for labels in drawn.layers:
        for number, box in enumerate(ndimage.find_objects(labels), start=1):
            if box is None:
                continue
            near = tuple(slice(max(side.start - 5, 0), side.stop + 5) for side in box)
            mask = labels[near] == number
            ring = ndimage.binary_dilation(mask, iterations=4) & ~mask
            if mask.sum() >= 20 and ring.sum() >= 20:
                pixels = image[(slice(None), *near)]
                found.append(float(np.abs(pixels[:, mask].mean(1) - pixels[:, ring].mean(1)).max()))
    return found


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_equal_seeds_give_equal_scenes(seed):
    assert equal(scene(seed, 64), scene(seed, 64))
    assert equal(scene(seed, 64), scene(np.random.default_rng(seed), 64))


def test_every_seed_gives_another_scene(scenes):
    assert len({drawn.image.tobytes() for drawn in scenes}) == len(scenes)


def test_nothing_outside_the_seed_is_drawn_or_disturbed():
    np.random.seed(0)  # noqa: NPY002 (the state that must not matter)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = scene(5, 64)
    assert torch.equal(torch.get_rng_state(), state)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert equal(scene(5, 64), first)


def test_scenes_are_whole(scenes):
    for drawn in scenes:
        assert drawn.image.shape == (3, SIZE, SIZE)
        assert drawn.image.dtype == np.uint8
        assert drawn.image.std() > 2
        assert len(drawn.layers) == len(drawn.weights) >= 1
        assert all(weight > 0 for weight in drawn.weights)
        for labels in drawn.layers:
            assert labels.shape == (SIZE, SIZE)
            assert labels.dtype == np.int32
            assert labels.min() >= 0 < labels.max()


@pytest.mark.parametrize("size", [33, 64, 129])
def test_any_size_will_do(size):
    for seed in range(8):
        drawn = scene(seed, size)
        assert drawn.image.shape == (3, size, size)
        assert all(labels.shape == (size, size) for labels in drawn.layers)


def test_most_objects_can_be_seen(scenes):
    every = [contrasts(drawn) for drawn in scenes]
    together = np.concatenate(every)
    assert len(together) > 500
    assert np.mean(together > 8) > 0.65
    assert np.mean([np.median(of_scene) > 8 for of_scene in every if of_scene]) > 0.8


def test_shuffled_labels_could_not_be_seen(scenes):
    """The oracle above tells visible objects from arbitrary ones."""
    turned = [Scene(drawn.image, tuple(np.rot90(labels) for labels in drawn.layers), drawn.weights) for drawn in scenes]
    assert np.mean(np.concatenate([contrasts(d) for d in turned]) > 8) < np.mean(np.concatenate([contrasts(d) for d in scenes]) > 8) - 0.1


def test_grey_and_colour_few_and_many_objects_occur(scenes):
    grey = [bool((d.image[0] == d.image[1]).all() and (d.image[0] == d.image[2]).all()) for d in scenes]
    assert 0.2 < np.mean(grey) < 0.9
    counts = [max(len(np.unique(labels)) - 1 for labels in d.layers) for d in scenes]
    assert min(counts) <= 3
    assert max(counts) >= 30
    assert {len(d.layers) for d in scenes} >= {1, 2}


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 80), st.floats(0.5, 300), st.integers(1, 4))
def test_smooth_noise_has_unit_variance(seed, size, scale, channels):
    field = smooth_noise(np.random.default_rng(seed), size, scale, channels)
    assert field.shape == (channels, size, size)
    assert field.dtype == np.float32
    assert field.std() == pytest.approx(1, abs=1e-2)


def test_smooth_noise_is_smoother_at_larger_scales():
    roughness = [np.abs(np.diff(smooth_noise(np.random.default_rng(0), 96, scale)[0])).mean() for scale in (1, 4, 16, 64)]
    assert roughness == sorted(roughness, reverse=True)
