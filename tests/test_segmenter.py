"""From clicks to a mask. A painter whose disks are known checks where the segmenter looks; a random network checks that nothing leaks."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor, nn

from napari_apprentice import segmenter as segmenter_module
from napari_apprentice.files import read, read_labels
from napari_apprentice.knowledge import Tensors
from napari_apprentice.networks import Output, build
from napari_apprentice.segmenter import NetworkSegmenter, ZoomConfig, pick_device
from napari_apprentice.types import (
    Box,
    Click,
    DeviceError,
    Image,
    ImageSlice,
    InputError,
    Plane,
    Prediction,
    Prompt,
    Segmenter,
    WeightsError,
)
from napari_apprentice.weights import DEFAULT_WEIGHTS, LoadedWeights, save_weights
from napari_apprentice.windows import click_in_window

TINY = {"widths": [8, 16, 16, 16, 16], "groups": 4}
SMALL_ZOOM = ZoomConfig(size=64, first_size=64)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class Painter(nn.Module):
    """Knows nothing of images: squares about positive clicks, none about negative ones, over what was there before."""

    REACH = 8

    def __init__(self, prefers: str = "small") -> None:
        super().__init__()
        self.config = SimpleNamespace(guidance="disk", disk_radius_px=1.0, stride=1)
        self.bias = nn.Parameter(torch.zeros(1))
        self.prefers = prefers

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, features: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        near = F.max_pool2d(guidance, 2 * self.REACH + 1, 1, self.REACH)
        logits = torch.where(previous > 0.5, 4.0, -4.0)
        logits = torch.where(near[:, :1] > 0, 5.0, logits)
        logits = torch.where(near[:, 1:] > 0, -5.0, logits)
        order = torch.arange(len(logits), dtype=torch.float32)  # first windows come from large to small
        return Output(logits + self.bias, 3 * (order if self.prefers == "small" else -order) - 6)


def painter(prefers: str = "small", zoom: ZoomConfig | None = None) -> NetworkSegmenter:
    return NetworkSegmenter(LoadedWeights(Painter(prefers), "painter", {}, "0"), "cpu", zoom)


def random_segmenter(seed: int = 0, zoom: ZoomConfig = SMALL_ZOOM) -> NetworkSegmenter:
    """A small network whose every weight matters."""
    torch.manual_seed(seed)
    network = build("unet", TINY)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return NetworkSegmenter(LoadedWeights(network.eval(), "unet", {"steps": 3}, "0123"), "cpu", zoom)


@pytest.fixture(scope="module")
def tiny() -> NetworkSegmenter:
    return random_segmenter()


def picture(shape: tuple[int, int] = (90, 120), channels: int = 1, seed: int = 0, key: object = None) -> ImageSlice:
    """A disk on a ramp under noise, 8 bit."""
    rows, cols = np.indices(shape)
    disk = (rows - shape[0] / 2) ** 2 + (cols - shape[1] / 2) ** 2 <= (min(shape) / 4) ** 2
    data = 90 * disk + 50 * cols / shape[1] + np.random.default_rng(seed).integers(0, 60, (channels, *shape))
    return ImageSlice(data.astype(np.uint8), key=key)


def same(first: Prediction, second: Prediction) -> bool:
    """Bit for bit."""
    facts = [(p.box, p.shape, p.view, p.score) for p in (first, second)]
    return facts[0] == facts[1] and np.array_equal(first.logits, second.logits)


def clicked(segmenter: NetworkSegmenter, pixels: ImageSlice, clicks: list[Click]) -> Prediction:
    """The answer after all clicks, one by one."""
    answer = None
    for count in range(1, len(clicks) + 1):
        answer = segmenter.predict(pixels, Prompt(tuple(clicks[:count]), answer))
    return answer


# --- a pure function --------------------------------------------------------------------------------------------------------------------


def test_it_is_a_segmenter(tiny):
    assert isinstance(tiny, Segmenter)


def test_the_same_question_has_the_same_answer_caches_cold_or_warm():
    pixels, other = picture(key="a"), picture(seed=1, key="b")
    clicks = [Click((45, 60)), Click((20, 20)), Click((50, 50), False)]
    segmenter = random_segmenter()
    cold = [clicked(segmenter, pixels, clicks[:n]) for n in (1, 2, 3)]
    clicked(segmenter, other, clicks)
    warm = [clicked(segmenter, pixels, clicks[:n]) for n in (1, 2, 3)]
    fresh = [clicked(random_segmenter(), ImageSlice(pixels.data), clicks[:n]) for n in (1, 2, 3)]
    for a, b, c in zip(cold, warm, fresh, strict=True):
        assert same(a, b)
        assert same(a, c)
    assert not same(cold[0], cold[1])


def test_answering_changes_neither_the_question_nor_the_model(tiny):
    pixels = picture()
    before = tiny.snapshot()
    weights = {k: v.detach().clone() for k, v in tiny.network.named_parameters()}
    previous = clicked(tiny, pixels, [Click((45, 60)), Click((5, 5))])
    logits, data = previous.logits.copy(), pixels.data.copy()
    tiny.predict(pixels, Prompt((Click((45, 60)), Click((5, 5)), Click((46, 60), False)), previous))
    assert np.array_equal(previous.logits, logits)
    assert np.array_equal(pixels.data, data)
    assert tiny.snapshot() is before
    assert all(torch.equal(weights[k], v) for k, v in tiny.network.named_parameters())


def test_one_image_after_another_is_not_taken_for_the_first(tiny):
    answers = []
    for seed in range(4):
        image = Image(picture(seed=seed).data)
        answers.append(tiny.predict(image.slice(Plane(0, 0)), Prompt((Click((45, 60)),))))
        del image
    expected = [tiny.predict(picture(seed=seed), Prompt((Click((45, 60)),))) for seed in range(4)]
    assert all(same(a, b) for a, b in zip(answers, expected, strict=True))


def test_one_slice_after_another_is_not_taken_for_the_first(tiny):
    first, second = picture(seed=1, key="first"), picture(seed=2, key="second")
    prompt = Prompt((Click((45, 60)),))
    answers = [tiny.predict(pixels, prompt) for pixels in (first, second, first)]
    assert same(answers[1], tiny.predict(picture(seed=2), prompt))
    assert same(answers[2], answers[0])
    assert not same(answers[1], answers[0])


def test_cached_views_are_bounded(tiny):
    for seed in range(4):
        clicked(tiny, picture((400, 500), seed=seed, key=seed), [Click((200, 250)), Click((30, 40))])
    assert len(tiny._pixels) <= tiny.CACHED_VIEWS


def test_a_prompt_without_clicks_is_refused(tiny):
    with pytest.raises(InputError, match="at least one click"):
        tiny.predict(picture(), Prompt(()))


# --- any slice, any click ---------------------------------------------------------------------------------------------------------------


def obeys(prediction: Prediction, clicks: list[Click]) -> bool:
    """Every clicked pixel says what the newest click on it said."""
    wanted = {click.voxel: click.positive for click in clicks}
    return all(bool(prediction.mask[voxel]) == positive for voxel, positive in wanted.items())


SHAPES = [(1, 37), (37, 501), (16, 16), (2000, 30), (2, 2), (3, 1), (96, 96)]


@settings(max_examples=25)
@given(st.sampled_from(SHAPES), st.lists(st.tuples(st.floats(0, 0.999), st.floats(0, 0.999), st.booleans()), min_size=1, max_size=5))
def test_every_click_is_obeyed_at_its_own_pixel(tiny, shape, places):
    clicks = [Click((int(r * shape[0]), int(c * shape[1])), positive) for r, c, positive in places]
    pixels, answer = picture(shape), None
    for count in range(1, len(clicks) + 1):
        answer = tiny.predict(pixels, Prompt(tuple(clicks[:count]), answer))
        assert answer.shape == shape
        assert answer.mask.shape == shape
        assert answer.box.top >= 0
        assert answer.box.left >= 0
        assert answer.box.bottom <= shape[0]
        assert answer.box.right <= shape[1]
        assert answer.logits.dtype == np.float32
        assert np.isfinite(answer.logits).all()
        assert 0 <= answer.score <= 1
        assert obeys(answer, clicks[:count])


@settings(max_examples=10)
@given(st.lists(st.tuples(st.integers(0, 89), st.integers(0, 119), st.booleans()), min_size=7, max_size=8))
def test_late_clicks_on_nothing_are_all_obeyed(tiny, places):
    clicks = [Click((row, col), positive) for row, col, positive in places]
    nothing = replace(Prediction.from_mask(np.zeros((90, 120), bool)), view=Box(0, 0, 90, 90))
    assert obeys(tiny.predict(picture(), Prompt(tuple(clicks), nothing)), clicks)


def test_a_lonely_negative_click_paints_nothing_there(tiny):
    answer = tiny.predict(picture(), Prompt((Click((45, 60), False),)))
    assert not answer.mask[45, 60]


def test_the_newest_word_on_a_pixel_counts(tiny):
    at = (45, 60)
    for last in (True, False):
        assert clicked(tiny, picture(), [Click(at), Click(at, False), Click(at, last)]).mask[at] == last


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint64, np.float16, np.float32, np.float64])
def test_any_kind_of_number_is_an_intensity(tiny, dtype):
    data = (picture().data > 100) if dtype is bool else (picture().data // 2).astype(dtype)
    answer = tiny.predict(ImageSlice(data), Prompt((Click((45, 60)),)))
    reference = tiny.predict(ImageSlice(data.astype(np.float64)), Prompt((Click((45, 60)),)))
    np.testing.assert_allclose(answer.logits, reference.logits, atol=1e-4)


@pytest.mark.parametrize(("gain", "offset"), [(257.0, 0.0), (1.0, -1024.0), (0.37, 1000.0), (1e-9, 0.0), (1e6, 1e6)])
def test_brightness_and_contrast_do_not_matter(tiny, gain, offset):
    pixels = picture()
    reference = tiny.predict(pixels, Prompt((Click((45, 60)),)))
    changed = tiny.predict(ImageSlice(pixels.data * gain + offset), Prompt((Click((45, 60)),)))
    assert changed.box == reference.box
    np.testing.assert_allclose(changed.logits, reference.logits, atol=2e-2)


def test_grey_is_colour_with_three_equal_channels(tiny):
    grey = picture()
    colour = ImageSlice(np.repeat(grey.data, 3, axis=0))
    one, three = (tiny.predict(p, Prompt((Click((45, 60)),))) for p in (grey, colour))
    assert one.box == three.box
    assert np.abs(one.logits - three.logits).mean() < 1e-2
    other = tiny.predict(picture(channels=3), Prompt((Click((45, 60)),)))
    assert np.abs(other.logits - one.logits).max() > 0.2


# --- where it looks ---------------------------------------------------------------------------------------------------------------------


def test_a_painted_mask_lies_about_its_click_at_every_scale():
    for shape, at in (((300, 400), (140, 210)), ((64, 64), (3, 60)), ((1500, 1200), (1490, 5))):
        for prefers in ("small", "large"):
            answer = painter(prefers).predict(picture(shape), Prompt((Click(at),)))
            rows, cols = np.nonzero(answer.mask)
            scale = (answer.view.bottom - answer.view.top) / 192
            for low, high, click, size in ((rows.min(), rows.max(), at[0], shape[0]), (cols.min(), cols.max(), at[1], shape[1])):
                if low > 0 and high < size - 1:
                    assert abs((low + high) / 2 - click) <= 2 + scale


def test_what_the_other_scales_said_are_the_candidates_of_a_first_answer():
    at, shape = (140, 210), (300, 400)
    segmenter = painter("small")
    first = segmenter.predict(picture(shape), Prompt((Click(at),)))
    areas = [int(other.mask.sum()) for other in first.candidates]
    assert 1 < len(areas) <= segmenter.zoom.first_others
    assert int(first.mask.sum()) < min(areas)
    assert areas == sorted(areas)  # the painter says the smaller the better
    for other in first.candidates:
        rows, cols = np.nonzero(other.mask)
        side = rows.max() - rows.min() + 1
        assert abs((rows.min() + rows.max()) / 2 - at[0]) <= side / 8
        assert side == pytest.approx(cols.max() - cols.min() + 1, rel=0.2)
        assert other.mask[at]
        after = segmenter.predict(picture(shape), Prompt((Click(at), Click((at[0] + 5, at[1]))), other))
        assert int(after.mask.sum()) > int(first.mask.sum())  # it goes on from the chosen one
        assert after.candidates == ()
    assert painter("small", ZoomConfig(first_others=0)).predict(picture(shape), Prompt((Click(at),))).candidates == ()


def test_the_window_stays_while_the_click_is_inside_and_moves_when_it_is_not():
    segmenter, pixels = painter(), picture((400, 400))
    first = segmenter.predict(pixels, Prompt((Click((200, 200)),)))
    assert first.view.top <= 200 < first.view.bottom
    near = Click((first.view.top + 3, 200))
    second = segmenter.predict(pixels, Prompt((Click((200, 200)), near), first))
    assert second.view == first.view
    far = Click((first.view.bottom + 60, 200))
    third = segmenter.predict(pixels, Prompt((Click((200, 200)), near, far), second))
    assert third.view != first.view
    for click in (Click((200, 200)), near, far):
        assert third.view.top <= click.voxel[0] < third.view.bottom


def test_outside_the_window_the_previous_answer_stays():
    shape, view = (200, 240), Box(46, 46, 144, 144)
    mask = np.zeros(shape, bool)
    mask[66:127, 40:101] = True
    mask[70, 41] = False
    previous = Prediction(np.where(mask, 4, -4).astype(np.float32), Box(0, 0, *shape), shape, view)
    for segmenter in (painter(), random_segmenter()):
        answer = segmenter.predict(picture(shape), Prompt((Click((90, 70)), Click((80, 90), False)), previous))
        assert answer.view == view
        outside = np.ones(shape, bool)
        outside[view.slices] = False
        assert np.array_equal(answer.mask & outside, mask & outside)
        assert (answer.mask & outside).any()


def test_late_clicks_are_local_and_early_ones_are_not(monkeypatch):
    asked = []
    merge = segmenter_module.changed_near
    monkeypatch.setattr(
        segmenter_module, "changed_near", lambda new, old, click, reach: asked.append(click) or merge(new, old, click, reach)
    )
    clicks = [Click((40 + 3 * i, 50 + 4 * i)) for i in range(5)]
    for count, expected in ((3, 3), (6, 0), (0, 0)):
        asked.clear()
        clicked(random_segmenter(zoom=replace(SMALL_ZOOM, local_clicks=count)), picture(), clicks)
        assert list(dict.fromkeys(asked)) == clicks[len(clicks) - expected :]


class Restless(Painter):
    """Changes its mind here and there all over what it sees, whatever was clicked."""

    def decode(self, features: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        plain = super().decode(features, guidance, previous)
        size = plain.logits.shape[-1]
        rows, cols = torch.arange(size)[:, None] // 6, torch.arange(size) // 6
        moods = torch.where((rows % 4 == 0) & (cols % 4 == 0), -3.0, 3.0)
        return Output(plain.logits * moods, plain.iou_logits)


@settings(max_examples=25)
@given(st.integers(0, 199), st.integers(0, 199), st.booleans(), st.floats(0.01, 0.2), st.booleans())
def test_a_late_click_and_a_correction_change_the_mask_only_near_themselves_however_close_they_look(row, col, positive, reach, correction):
    assume(positive or not correction or not (60 <= row < 140 and 70 <= col < 130))  # that says that most of the mask is wrong
    zoom = ZoomConfig(local_clicks=9 if correction else 2, local_reach=reach, first_clicks=3 if correction else 0)
    segmenter = NetworkSegmenter(LoadedWeights(Restless(), "restless", {}, "0"), "cpu", zoom)
    mask = np.zeros((200, 200), bool)
    mask[40:160, 50:150] = True
    before = replace(Prediction.from_mask(mask), view=Box(30, 30, 170, 170), given=correction)
    clicks = (Click((100, 100)), Click((row, col), positive))
    answer = segmenter.predict(picture(mask.shape), Prompt(clicks, before))
    assert answer.given == correction
    assert answer.mask[row, col] == positive
    pieces, count = ndimage.label(answer.mask != mask, np.ones((3, 3)))
    away = np.hypot(*(np.indices(mask.shape) - np.reshape((row, col), (2, 1, 1))))
    nearest = ndimage.minimum(away, pieces, range(1, count + 1))
    assert all(np.asarray(nearest) <= reach * mask.sum() ** 0.5)


@pytest.mark.parametrize("larger", [0.0, 1e9])
def test_after_a_click_outside_of_what_was_seen_the_more_credible_answer_is_shown_and_the_other_offered(larger):
    shape = (200, 200)
    mask = np.zeros(shape, bool)
    mask[98:104, 98:104] = True
    before = replace(Prediction.from_mask(mask), view=Box(80, 80, 120, 120))
    prompt = Prompt((Click((100, 100)), Click((100, 150))), before)
    segmenter = painter("large", ZoomConfig(larger=larger))
    answer = segmenter.predict(picture(shape), prompt)
    searched = segmenter.predict(picture(shape), replace(prompt, previous=None))
    carried_on = painter("large", ZoomConfig(first_clicks=0)).predict(picture(shape), prompt)
    assert not np.array_equal(searched.mask, carried_on.mask)
    shown, offered = (searched, carried_on) if larger == 0 else (carried_on, searched)
    assert same(answer, shown)
    assert len(answer.candidates) == 1
    assert same(answer.candidates[0], offered)
    assert not answer.candidates[0].candidates


@pytest.mark.parametrize("given", [False, True])
def test_what_the_network_says_leans_to_what_the_corrections_say_but_where_a_mask_was_given(given):
    shape, clicks = (90, 120), (Click((45, 60)), Click((40, 68), False))
    mask = np.zeros(shape, bool)
    mask[40:50, 50:70] = True
    before = replace(Prediction.from_mask(mask), view=Box(20, 35, 70, 85), given=given)
    plain, tight = (
        random_segmenter(zoom=replace(SMALL_ZOOM, leaning=by, closer=0.0)).predict(picture(shape), Prompt(clicks, before))
        for by in (0.0, 2.25)
    )
    if given:
        assert same(plain, tight)
    else:
        assert plain.box == tight.box
        assert np.isclose(plain.logits - tight.logits, 0.75, atol=1e-4).mean() > 0.95


def test_a_closer_look_is_about_the_change_and_only_where_it_is_small(monkeypatch):
    shape = (300, 300)
    mask = np.zeros(shape, bool)
    mask[60:240, 60:240] = True
    before = replace(Prediction.from_mask(mask), view=Box(0, 0, 300, 300))
    looks, words = [], NetworkSegmenter._word

    def word(self, image_slice, prompt, windows, size, diffusion, lean):
        looks.append(windows)
        return words(self, image_slice, prompt, windows, size, diffusion, lean)

    monkeypatch.setattr(NetworkSegmenter, "_word", word)
    prompt = Prompt((Click((150, 150)), Click((60, 250))), before)
    without = painter(zoom=ZoomConfig(closer=0.0)).predict(picture(shape), prompt)
    assert len(looks) == 1
    looks.clear()
    answer = painter().predict(picture(shape), prompt)
    (_, (near,)) = looks  # the painter adds a square about the click
    assert near.top < 60 < near.bottom
    assert near.left < 250 < near.right
    assert near.shape[0] < 150
    outside = np.ones(shape, bool)
    outside[max(near.top, 0) : near.bottom, near.left : near.right] = False
    assert np.array_equal(answer.mask & outside, without.mask & outside)
    assert not np.array_equal(answer.mask, without.mask)
    assert answer.view == without.view
    assert all(answer.mask[c.voxel] for c in prompt.clicks)
    looks.clear()
    painter(zoom=ZoomConfig(closer=30.0)).predict(picture(shape), prompt)  # as wide as what was seen already
    assert len(looks) == 1


def test_the_previous_mask_is_shown_where_it_is():
    shape = (300, 300)
    mask = np.zeros(shape, bool)
    mask[100:180, 120:200] = True
    answer = painter().predict(picture(shape), Prompt((Click((140, 160)),), Prediction.from_mask(mask)))
    wrong = answer.mask != mask
    assert wrong.sum() < 0.02 * mask.sum()


def test_a_negative_click_in_the_middle_of_a_given_mask_says_that_it_is_not_there():
    rows, cols = np.indices((120, 160))
    disk, bar = (rows - 40) ** 2 + (cols - 40) ** 2 <= 20**2, (abs(rows - 90) <= 1) & (cols > 10)
    given = replace(Prediction.from_mask(disk | bar), given=True)
    segmenter, pixels = random_segmenter(), picture(disk.shape)

    def after(click: Click, previous: Prediction = given) -> Prediction:
        return segmenter.predict(pixels, Prompt((click,), previous))

    gone = after(Click((43, 38), False))
    assert np.array_equal(gone.mask, bar)
    assert gone.given
    both = segmenter.predict(pixels, Prompt((Click((30, 40)), Click((43, 38), False)), given))
    assert both.mask[30, 40]  # something of it is there, then
    own = after(Click((43, 38), False), replace(given, given=False))
    assert not np.array_equal(own.mask, bar)  # its own answer it looks at again
    for click in (Click((43, 38)), Click((24, 40), False), Click((90, 80), False)):  # positive, at the border, and in what is thin
        assert after(click).mask[disk].any()
    assert after(Click((90, 80), False)).mask[bar].any()
    beside = after(Click((5, 150), False))
    assert beside.mask[disk].any()


def test_only_a_mask_that_was_given_is_diffused():
    pixels, clicks = picture(), (Click((45, 60)), Click((44, 66)))
    with_it, without = (random_segmenter(zoom=replace(SMALL_ZOOM, given_diffusion=weight)) for weight in (5.0, 0.0))
    answers = [clicked(segmenter, pixels, list(clicks)) for segmenter in (with_it, without)]
    assert same(*answers)  # its own answers are not
    given = Prediction.from_mask(picture().data[0] > 100)
    first, second = (segmenter.predict(pixels, Prompt(clicks[:1], given)) for segmenter in (with_it, without))
    assert not np.array_equal(first.logits, second.logits)
    assert obeys(first, list(clicks[:1]))


def test_an_empty_previous_answer_counts_as_none(tiny):
    empty = Prediction.from_mask(np.zeros((90, 120), bool))
    prompt = Prompt((Click((45, 60)),))
    assert same(tiny.predict(picture(), Prompt(prompt.clicks, empty)), tiny.predict(picture(), prompt))


def test_clicks_are_shown_where_they_were_made(tiny):
    clicks = (Click((45, 60)), Click((10, 100), False))
    view = tiny.look(picture(), Prompt(clicks), Box(-5, 20, 105, 130), 64)
    assert view.image.shape == (1, 3, 64, 64)
    for channel, click in enumerate(clicks):
        at = click_in_window(click, view.window, 64)
        rows, cols = np.nonzero(view.guidance[0, channel].numpy())
        assert abs(rows.mean() - at.row) <= 0.5
        assert abs(cols.mean() - at.col) <= 0.5
    assert not bool(view.previous.any())


def test_a_small_object_in_a_large_slice_takes_little_memory():
    segmenter = painter("small")
    pixels = ImageSlice(np.random.default_rng(0).integers(0, 255, (1, 4096, 4096), dtype=np.uint8))
    tracemalloc.start()
    answer = segmenter.predict(pixels, Prompt((Click((2000, 3000)),)))
    answer = segmenter.predict(pixels, Prompt((Click((2000, 3000)), Click((2010, 3000))), answer))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert answer.logits.size < 200**2
    assert answer.shape == (4096, 4096)
    assert peak < 20e6


def test_usual_sizes_choose_among_equally_credible_looks():
    """After objects that fill much of the slice, a first click means a large one."""

    class Undecided(Painter):
        def decode(self, features: Tensor, guidance: Tensor, previous: Tensor) -> Output:
            plain = super().decode(features, guidance, previous)
            return Output(plain.logits, torch.zeros(len(plain.logits)))

    segmenter = NetworkSegmenter(LoadedWeights(Undecided(), "painter", {}, "0"), "cpu")
    pixels, prompt, areas = picture((800, 800)), Prompt((Click((400, 400)),)), []
    start = segmenter.snapshot()
    for extent in (-1.5, -4.0):
        segmenter.restore(replace(start, extent_log=(5 * extent, 5 * extent**2, 5.0)))
        areas.append(segmenter.predict(pixels, prompt).mask.sum())
    assert areas[0] > 2 * areas[1]


# --- what is learnt ---------------------------------------------------------------------------------------------------------------------


def test_restore_brings_back_weights_and_answers_bit_for_bit():
    segmenter, pixels, prompt = random_segmenter(), picture(), Prompt((Click((45, 60)),))
    first = segmenter.snapshot()
    weights = {k: v.detach().clone() for k, v in segmenter.network.named_parameters()}
    answer = segmenter.predict(pixels, prompt)
    torch.manual_seed(9)
    other = replace(first, weights=Tensors({k: v + 0.1 * torch.randn_like(v) for k, v in first.weights.items()}), steps=1)
    segmenter.restore(other)
    changed = segmenter.predict(pixels, prompt)
    assert not same(changed, answer)
    assert segmenter.snapshot() is other
    segmenter.restore(first)
    assert all(torch.equal(weights[k], v) for k, v in segmenter.network.named_parameters())
    assert all(torch.equal(weights[k], v) for k, v in first.weights.items())
    assert same(segmenter.predict(pixels, prompt), answer)
    segmenter.restore(other)
    assert same(segmenter.predict(pixels, prompt), changed)


def test_knowledge_survives_a_budget_of_nothing():
    torch.manual_seed(3)
    segmenter = random_segmenter()
    segmenter._shelf.budget_bytes = 0
    first, kept = segmenter.snapshot(), {k: v.clone() for k, v in segmenter.snapshot().weights.items()}
    for step in range(3):
        now = segmenter.snapshot()
        segmenter.restore(replace(now, weights=Tensors({k: v + 1 for k, v in now.weights.items()}), steps=step))
    segmenter.restore(first)
    assert all(torch.equal(kept[k], v) for k, v in segmenter.network.named_parameters())


# --- facts and devices ------------------------------------------------------------------------------------------------------------------


def test_describe_says_what_people_ask(tiny):
    facts = tiny.describe()
    assert facts["network"] == "unet"
    assert facts["digest"] == "0123"
    assert facts["device"] == "cpu"
    assert facts["steps"] == 3
    assert facts["parameters"] == sum(p.numel() for p in tiny.network.parameters())
    assert "\n" not in "".join(f"{k}{v}" for k, v in facts.items())


def test_the_clock_counts_every_second_once():
    shares = []
    for _ in range(5):
        segmenter = random_segmenter(zoom=ZoomConfig())
        began = time.perf_counter()
        clicked(segmenter, picture(), [Click((45, 60)), Click((40, 60))])
        shares.append(sum(segmenter.clock.values()) / (time.perf_counter() - began))
        assert segmenter.clock["decode"] > 0
        assert segmenter.clock["encode"] > 0
        assert segmenter.clock["adapt"] == 0
    assert max(shares) <= 1
    assert max(shares) > 0.7  # other processes may come in between, though not every time


def test_a_device_that_is_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    for name in ("cuda", "mps"):
        with pytest.raises(DeviceError, match=rf"{name}.*expected one of cpu"):
            pick_device(name)
    with pytest.raises(DeviceError, match="'gpu'"):
        pick_device("gpu")
    path = save_weights(build("unet", TINY), tmp_path / "w.safetensors")
    with pytest.raises(DeviceError):
        NetworkSegmenter(path, "cuda")
    with pytest.raises(WeightsError):
        NetworkSegmenter(tmp_path / "none.safetensors", "cpu")


# --- what is shipped --------------------------------------------------------------------------------------------------------------------

SAMPLES = Path(__file__).parents[1] / "src" / "napari_apprentice" / "sample_data"


@pytest.mark.skipif(not DEFAULT_WEIGHTS.exists(), reason="the shipped weights are not there (not trained yet)")
@pytest.mark.parametrize("name", ["fundus.png", "head.nii.gz", "em_stack.ome.tif"])
def test_a_click_with_the_shipped_weights_finds_an_object_in_sample_data(name):
    image = read(SAMPLES / name)
    stem, ending = name.split(".", 1)
    labels = read_labels(SAMPLES / f"{stem}_labels.{ending}")
    plane = Plane(0, 0 if image.ndim == 2 else int((labels > 0).sum(axis=(1, 2)).argmax()))
    truth = (labels if image.ndim == 2 else labels[plane.index]) == 1
    rows, cols = np.nonzero(truth)
    middle = int(np.argmin((rows - rows.mean()) ** 2 + (cols - cols.mean()) ** 2))
    at = int(rows[middle]), int(cols[middle])
    answer = NetworkSegmenter(device="cpu").predict(image.slice(plane), Prompt((Click(at),)))
    assert answer.mask[at]
    assert 1 < answer.mask.sum() < 0.9 * answer.mask.size
