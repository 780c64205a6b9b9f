"""Training samples from scenes and from a small data folder laid out as real ones are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from napari_apprentice import lazy, samples
from napari_apprentice.datasets import open_set
from napari_apprentice.files import save_image, write
from napari_apprentice.samples import (
    LARGEST_SIDE_PX,
    MIN_OBJECT_PX,
    Drawn,
    Sample,
    SampleStream,
    _restyled,
    draw_sample,
    held_out_scenes,
    real_scenes,
    split_cases,
)
from napari_apprentice.synthetic import Scene, scene
from napari_apprentice.types import Image, RecipeError


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


# --- splitting --------------------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.just(0.0) | st.floats(1e-3, 0.9))
def test_the_split_is_disjoint_complete_and_in_order(count, held_out):
    cases = [f"case_{i:02}" for i in range(count)]
    train, kept = split_cases(cases, held_out)
    assert not set(train) & set(kept)
    assert sorted(train + kept) == cases
    assert train == sorted(train)
    assert bool(train) == bool(cases)


@pytest.mark.parametrize(
    ("count", "held_out", "kept"), [(20, 0.1, 2), (20, 0.5, 10), (20, 0.9, 10), (20, 0.0, 0), (1, 0.5, 0), (3, 0.01, 1)]
)
def test_about_the_wanted_share_is_held_out(count, held_out, kept):
    assert len(split_cases([str(i) for i in range(count)], held_out)[1]) == kept


# --- drawing ----------------------------------------------------------------------------------------------------------------------------


def disk_scene(size: int = 120, radius: float = 20.0) -> Scene:
    """One bright disk on dark noise."""
    rows, cols = np.indices((size, size))
    disk = (rows - 60) ** 2 + (cols - 50) ** 2 <= radius**2
    noise = np.random.default_rng(0).integers(0, 30, (3, size, size))
    return Scene((noise + 150 * disk).astype(np.uint8), (disk.astype(np.int32),), (1.0,))


def drawn(rng: np.random.Generator, chosen: Scene, size: int, vary: bool = True) -> Sample:
    while (sample := draw_sample(rng, chosen, size, vary)) is None:
        pass
    return sample


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([32, 64, 96]), st.booleans())
def test_a_sample_is_standardised_pixels_and_a_binary_target_of_enough_area(seed, size, vary):
    rng = np.random.default_rng(seed)
    sample = draw_sample(rng, scene(seed % 7, 96), size, vary)
    if sample is None:
        return
    assert sample.image.shape == (3, size, size)
    assert sample.image.dtype == sample.target.dtype == torch.float32
    assert sample.target.shape == (1, size, size)
    assert set(sample.target.unique().tolist()) <= {0.0, 1.0}
    assert float(sample.target.sum()) >= MIN_OBJECT_PX
    assert bool(torch.isfinite(sample.image).all())
    assert float(sample.image.mean()) == pytest.approx(0, abs=1e-2)
    assert float(sample.image.std()) == pytest.approx(1, abs=2e-2)
    assert sample.image.is_contiguous()
    assert sample.target.is_contiguous()


@pytest.mark.parametrize("vary", [False, True])
def test_image_and_target_stay_in_register(vary):
    """However the disk is turned, warped and recoloured, its pixels differ from the rest by more than noise."""
    rng, chosen = np.random.default_rng(0), disk_scene()
    separations = []
    for _ in range(40):
        sample = drawn(rng, chosen, 64, vary)
        inside, outside = (sample.image.mean(0)[sample.target[0] == value] for value in (1, 0))
        separations.append(float(inside.median() - outside.median()))
    assert np.mean(np.abs(separations) > 1.0) > 0.9
    assert vary == any(value < -0.5 for value in separations)  # only a varied sample is ever inverted


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.booleans())
def test_a_restyled_image_is_standardised_and_grey_stays_grey(seed, grey):
    image = torch.randn((3, 24, 20), generator=torch.Generator().manual_seed(seed))
    image = image[:1].expand(3, -1, -1) if grey else image
    shown = _restyled(np.random.default_rng(seed), image)
    assert shown.shape == image.shape
    assert bool(torch.isfinite(shown).all())
    assert float(shown.mean()) == pytest.approx(0, abs=1e-2)
    assert float(shown.std()) == pytest.approx(1, abs=2e-2)
    assert grey == bool((shown == shown[:1]).all())


def test_restyling_changes_what_things_look_like_and_not_where_they_are():
    """The disk still differs from the rest nearly always, in another way than before often; a constant image stays constant."""
    disk = disk_scene()
    image = torch.from_numpy(disk.image.astype(np.float32))
    image = (image - image.mean()) / image.std()
    inside = torch.from_numpy(disk.layers[0] > 0)
    looks = [_restyled(np.random.default_rng(seed), image) for seed in range(40)]
    apart = np.array([(float(x[:, inside].mean(1).sub(x[:, ~inside].mean(1)).abs().max())) for x in looks])
    assert np.mean(apart > 0.8) > 0.8
    assert np.mean([float(x[:, inside].mean()) < float(x[:, ~inside].mean()) for x in looks]) > 0.1
    flat = _restyled(np.random.default_rng(0), torch.zeros(3, 8, 8))
    assert float(flat.abs().max()) < 1e-3


def test_an_object_and_its_examples_are_restyled_alike(monkeypatch):
    seen = []
    monkeypatch.setattr(samples, "_restyled", lambda look, image: seen.append(look.random(4).tolist()) or image)
    scenes = {"disks": [disk_scene(), disk_scene(radius=14)]}
    next(iter(SampleStream(scenes, {"disks": 1.0}, 0.0, ((32, 1),), 5, examples=(0.0, 0.0, 1.0), restyled=1.0)))
    assert len(seen) >= 3
    assert seen[0] == seen[1] == seen[2]
    seen.clear()
    next(iter(SampleStream(scenes, {"disks": 1.0}, 0.0, ((32, 1),), 5, examples=(0.0, 0.0, 1.0))))
    assert seen == []


def test_borders_are_drawn_wider_and_tighter_by_another_hand():
    """Of a bright disk, some targets hold dark pixels and some leave bright ones out; none without the wish."""

    def off(borders: float) -> list[float]:
        stream = SampleStream({"disks": [disk_scene()]}, {"disks": 1.0}, 0.0, ((64, 60),), 5, views=((1.0, 0.3, 0.5),), borders=borders)
        batch = next(iter(stream))
        bright = batch.image.mean(1, keepdim=True)
        inverted = (bright * batch.target).sum((1, 2, 3)) < 0
        bright = torch.where(inverted[:, None, None, None], -bright, bright) > 0
        return [float(1 - (b & (t > 0.5)).sum() / (b | (t > 0.5)).sum()) for b, t in zip(bright, batch.target, strict=True)]

    assert np.median(off(1.0)) > 2 * np.median(off(0.0))


def _long(target: torch.Tensor) -> bool:
    """Whether an object (1, n, n) is more than three times as long as wide."""
    at = torch.nonzero(target[0] > 0.5).float()
    least, most = torch.linalg.eigvalsh(torch.cov(at.T))
    return float(most) > 9 * float(least)


def test_strangers_are_examples_that_all_show_another_kind():
    bar = np.zeros((64, 64), np.int32)
    bar[28:35, 5:60] = 1
    bars = [Scene(np.repeat((200 * bar).astype(np.uint8)[None], 3, 0), (bar,), (1.0,), ("bar",)) for _ in range(2)]
    disks = [replace(disk_scene(radius=radius), kinds=("disk",)) for radius in (12.0, 14.0)]

    def shown(strangers: float, **scenes: list[Scene]) -> list[tuple[bool, list[bool]]]:
        wanted = dict.fromkeys(scenes, 1.0)
        drawn = SampleStream(scenes, wanted, 0.0, ((64, 60),), 5, views=((1.0, 0.3, 0.5),), examples=(0.0, 0.0, 1.0), strangers=strangers)
        batch = next(iter(drawn))
        return [(_long(target), [_long(one) for one in those]) for target, those in zip(batch.target, batch.example_target, strict=True)]

    assert all(those == [not it, not it] for it, those in shown(1.0, bars=bars, disks=disks))
    assert all(those == [it, it] for it, those in shown(0.0, bars=bars, disks=disks))
    strange = [those == [not it, not it] for it, those in shown(0.4, bars=bars, disks=disks)]
    assert 12 <= sum(strange) <= 36
    assert all(those == [False, False] for it, those in shown(1.0, disks=disks)), "where there is no other kind, examples are as usual"


def test_examples_of_lines_that_drawn_tighter_are_gone_do_not_wait_for_ever():
    """A stranger's look may draw borders tighter, and of vessels, two pixels wide, nothing is left then."""
    vessels = np.zeros((64, 64), np.int32)
    vessels[10:12, 2:62] = vessels[30:32, 2:62] = vessels[50:52, 2:62] = 1
    pictures = np.random.default_rng(0).integers(0, 255, (3, 3, 64, 64), dtype=np.uint8)
    scenes = {"set": [Scene(picture, (vessels,), (1.0,), (f"vessels {n}",)) for n, picture in enumerate(pictures)]}
    stream = iter(SampleStream(scenes, {"set": 1.0}, 0.0, ((32, 8),), 5, examples=(0.0, 1.0), strangers=1.0))
    assert all((next(stream).example_target.sum((2, 3, 4)) >= MIN_OBJECT_PX).all() for _ in range(8))


def test_windows_come_from_afar_and_from_near():
    rng, chosen = np.random.default_rng(0), disk_scene()
    shares = [float(drawn(rng, chosen, 64).target.mean()) for _ in range(80)]
    assert min(shares) < 0.08
    assert max(shares) > 0.4


def test_equal_generators_draw_equal_samples():
    first, second = (drawn(np.random.default_rng(3), scene(1, 96), 64) for _ in range(2))
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.target, second.target)


def test_a_scene_with_nothing_large_enough_gives_nothing():
    labels = np.zeros((50, 50), np.int32)
    labels[0, : MIN_OBJECT_PX - 1] = 1
    image = np.random.default_rng(0).integers(0, 255, (3, 50, 50), dtype=np.uint8)
    assert draw_sample(np.random.default_rng(0), Scene(image, (labels,), (1.0,)), 32) is None
    assert draw_sample(np.random.default_rng(0), Scene(image, (np.ones((50, 50), np.int32),), (1.0,)), 32) is None


# --- the stream -------------------------------------------------------------------------------------------------------------------------


def stream(seed: int = 1, start: int = 0, **shares: float) -> SampleStream:
    scenes = {"disks": [disk_scene()], "small": [disk_scene(radius=8.0)]}
    return SampleStream(scenes, shares, 0.0 if shares else 1.0, ((32, 3), (64, 2)), seed, start, pool=3)


def take(batches: SampleStream, count: int) -> list[Drawn]:
    source = iter(batches)
    return [next(source) for _ in range(count)]


def test_batches_have_one_of_the_wanted_sizes():
    shapes = set()
    for image, target, *_ in take(stream(disks=1.0), 12):
        assert image.shape == (len(target), 3, *target.shape[2:])
        shapes.add(tuple(target.shape))
    assert shapes == {(3, 1, 32, 32), (2, 1, 64, 64)}


@pytest.mark.parametrize("shares", [{}, {"disks": 1.0}], ids=["synthetic", "real"])
def test_seed_and_start_fix_the_stream(shares):
    once, again = (take(stream(**shares), 4) for _ in range(2))
    for first, second in zip(once, again, strict=True):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
    for other in (take(stream(seed=2, **shares), 4), take(stream(start=4, **shares), 4)):
        assert any(a[0].shape != b[0].shape or not torch.equal(a[0], b[0]) for a, b in zip(once, other, strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("shares", [{}, {"disks": 1.0}], ids=["synthetic", "real"])
def test_a_batch_is_the_same_wherever_the_stream_starts(shares, workers):
    def batches(start, number):
        loader = iter(DataLoader(stream(start=start, **shares), batch_size=None, num_workers=workers))
        return [next(loader) for _ in range(number)]

    through, later = batches(0, 8), batches(3, 5)
    for first, second in zip(through[3:], later, strict=True):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])


def test_procedural_scenes_are_replaced_by_and_by():
    pool = samples._Pool((1, 0), 5)
    before = list(pool)
    assert [one is other for one, other in zip(pool, before, strict=True)] == [True] * 5
    pool.go_on_to(2)
    assert all(one is other for one, other in zip(pool, before[2:], strict=False))
    assert len(pool) == len(list(pool)) == 5
    again = samples._Pool((1, 0), 5)
    again.go_on_to(2)
    assert all(np.array_equal(one.image, other.image) for one, other in zip(pool, again, strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_every_worker_draws_its_own_samples():
    batches = DataLoader(stream(disks=1.0), batch_size=None, num_workers=2)
    source = iter(batches)
    first, second = next(source)[0], next(source)[0]
    assert first.shape != second.shape or not torch.equal(first, second)


def test_sets_without_scenes_are_passed_over():
    assert take(stream(disks=1.0, missing=5.0), 1)


# --- real folders -----------------------------------------------------------------------------------------------------------------------


def describe(folder: Path, objects: str, text: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.toml").write_text(f'modality = "test"\nobjects = "{objects}"\nmin_area_px = 5\n{text}', "utf-8")


def add_case(folder: Path, name: str, pixels: np.ndarray, labels: np.ndarray, ending: str) -> None:
    """``pixels`` (C, *S) and ``labels`` (S) under one name."""
    image = Image(pixels, name=name)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    save_image(folder / "images" / f"{name}{ending}", image)
    write(folder / "labels" / f"{name}{ending}", labels, like=image)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three sets: colour pictures of cells by id, a volume by class with a union, and grey pictures by components."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    describe(folder / "cells", "id")
    for i in range(6):
        labels = np.zeros((80, 90), np.int32)
        labels[10:30, 10:40], labels[40:70, 50:80] = 3, 7
        pixels = (rng.integers(0, 40, (3, 80, 90)) + 20 * labels + i).astype(np.uint8)
        add_case(folder / "cells", f"cell_{i}", pixels, labels, ".png")
    describe(folder / "brain", "class", 'slice_axes = "z, y"\n[classes]\n1 = "anterior"\n2 = "posterior"\n[targets]\nwhole = [1, 2]\n')
    for i in range(2):
        labels = np.zeros((9, 40, 30), np.int32)
        labels[2:7, 10:20, 8:22], labels[2:7, 20:30, 8:22] = 1, 2
        pixels = (rng.integers(0, 40, (1, 9, 40, 30)) + 60 * labels).astype(np.uint8)
        add_case(folder / "brain", f"brain_{i}", pixels, labels, ".nii")
    describe(folder / "spots", "components", '[classes]\n1 = "spot"\n')
    labels = np.zeros((700, 60), np.int32)
    labels[5:15, 5:15] = labels[40:60, 30:50] = 1
    add_case(folder / "spots", "spot", (rng.integers(0, 90, (1, 700, 60)) + 100 * labels).astype(np.uint8), labels, ".png")
    return folder


def test_real_scenes_hold_the_truths_of_the_training_cases(data):
    found = real_scenes(data, ["cells", "brain", "spots"], 0.5, seed=1)
    assert {name: len(of_set) for name, of_set in found.items()} == {"cells": 3, "brain": 12, "spots": 1}
    for of_set in found.values():
        for one in of_set:
            assert one.image.shape == (3, *one.layers[0].shape)
            assert one.image.dtype == np.uint8
            assert len(one.layers) == len(one.weights)
            assert all(labels.shape == one.layers[0].shape and labels.max() > 0 for labels in one.layers)
    assert set(np.unique(found["cells"][0].layers[0])) == {0, 3, 7}


def test_colour_keeps_its_channels_and_grey_is_repeated(data):
    found = real_scenes(data, ["cells", "brain"], 0.0, seed=1)
    assert not np.array_equal(found["cells"][0].image[0], found["cells"][0].image[1])
    assert np.array_equal(found["brain"][0].image[0], found["brain"][0].image[1])


def test_unions_and_components_become_objects_of_their_own(data):
    union = real_scenes(data, ["brain"], 0.0, seed=1)["brain"][0].layers[1]
    parts = real_scenes(data, ["brain"], 0.0, seed=1)["brain"][0].layers[0]
    assert np.array_equal(union > 0, parts > 0)
    assert set(np.unique(union)) == {0, 1}
    spots = real_scenes(data, ["spots"], 0.0, seed=1)["spots"][0].layers[0]
    assert set(np.unique(spots)) == {0, 1, 2}


def test_large_slices_shrink_with_their_labels(data):
    spots = real_scenes(data, ["spots"], 0.0, seed=1)["spots"][0]
    assert max(spots.image.shape) == LARGEST_SIDE_PX
    inside = spots.layers[0] > 0
    assert np.median(spots.image[0][inside]) > np.median(spots.image[0][~inside]) + 50


def test_superpixels_are_a_further_layer_in_training_only(data):
    trained = real_scenes(data, ["cells"], 0.5, seed=1)["cells"][0]
    scored = held_out_scenes(data, ["cells"], 0.5, seed=1)["cells"][0]
    assert len(trained.layers) == len(scored.layers) + 1
    assert trained.layers[-1].min() > 0


def test_held_out_scenes_are_of_cases_that_training_never_sees(data):
    seen = {s.image.tobytes() for s in real_scenes(data, ["cells", "brain"], 0.5, seed=1)["cells"]}
    kept = held_out_scenes(data, ["cells", "brain"], 0.5, seed=1)
    assert {name: len(of_set) for name, of_set in kept.items()} == {"cells": 3, "brain": 2}
    assert not seen & {s.image.tobytes() for s in kept["cells"]}


def test_samples_can_be_drawn_from_every_real_scene(data):
    rng = np.random.default_rng(0)
    for of_set in real_scenes(data, ["cells", "brain", "spots"], 0.0, seed=1).values():
        for one in of_set:
            assert any(draw_sample(rng, one, 32) is not None for _ in range(60))


def test_files_that_stay_on_the_disk_give_the_same_scenes(data, monkeypatch):
    known = real_scenes(data, ["cells", "brain"], 0.5, seed=1)
    monkeypatch.setattr(lazy, "LARGE_BYTES", 0)
    assert isinstance(open_set(data / "brain").labels("brain_0"), lazy.LazyArray)
    for name, of_set in real_scenes(data, ["cells", "brain"], 0.5, seed=1).items():
        for one, other in zip(of_set, known[name], strict=True):
            assert np.array_equal(one.image, other.image)
            assert all(np.array_equal(*pair) for pair in zip(one.layers, other.layers, strict=True))


def test_pixels_without_a_number_are_as_dark_as_the_darkest(tmp_path):
    describe(tmp_path / "scans", "id")
    labels = np.zeros((60, 60), np.int32)
    labels[20:40, 20:40] = 1
    pixels = np.where(labels, 3.0, 1.0).astype(np.float32)
    whole = pixels.copy()
    pixels[:5] = np.nan
    for name, values in (("holes", pixels), ("whole", whole)):
        add_case(tmp_path / "scans", name, values[None], labels, ".tif")
    holes, known = real_scenes(tmp_path, ["scans"], 0.0, seed=1)["scans"]
    assert np.array_equal(holes.image, known.image)


def test_a_set_that_is_not_there_is_one_sentence(data):
    with pytest.raises(RecipeError, match="nothing here"):
        real_scenes(data, ["nothing here"], 0.1, seed=1)
