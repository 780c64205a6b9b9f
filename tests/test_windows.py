"""Windows: what is cut and pasted back is what was there, and nothing shifts by half a pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from napari_apprentice.types import Box, Click
from napari_apprentice.windows import click_in_window, cut, inside, paste, paste_part, seen_through, square, standardise

many = settings(max_examples=60)

sides = st.integers(8, 120)
starts = st.integers(-60, 60)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def ramp(shape: tuple[int, int], axis: int) -> np.ndarray:
    """(1, H, W): every pixel holds its own row or column."""
    return np.indices(shape)[axis][None].astype(np.float32)


def window_at(top: int, left: int, side: int) -> Box:
    return Box(top, left, top + side, left + side)


# --- where a window lies ----------------------------------------------------------------------------------------------------------------


@many
@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(0.1, 200))
def test_square_is_a_square_about_its_centre(row, col, side):
    window = square((row, col), side)
    height, width = window.shape
    assert height == width == max(round(side), 1)
    assert abs((window.top + window.bottom - 1) / 2 - row) <= 0.5 + 1e-9
    assert abs((window.left + window.right - 1) / 2 - col) <= 0.5 + 1e-9


@many
@given(starts, starts, sides, st.integers(4, 40), st.data())
def test_a_part_that_is_pasted_is_that_part_of_the_whole(top, left, side, size, data):
    window, shape = window_at(top, left, side), (60, 70)
    whole = inside(window, shape)
    assume(whole.top < whole.bottom and whole.left < whole.right)
    rows = sorted(data.draw(st.tuples(*2 * [st.integers(whole.top, whole.bottom - 1)])))
    cols = sorted(data.draw(st.tuples(*2 * [st.integers(whole.left, whole.right - 1)])))
    part = Box(rows[0], cols[0], rows[1] + 1, cols[1] + 1)
    values = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    pasted, box = paste(values, window, shape)
    here = pasted[part.top - box.top : part.bottom - box.top, part.left - box.left : part.right - box.left]
    np.testing.assert_allclose(paste_part(values, window, part), here, atol=1e-3)


@many
@given(starts, starts, sides, st.tuples(st.integers(1, 80), st.integers(1, 80)))
def test_inside_keeps_exactly_the_pixels_of_the_slice(top, left, side, shape):
    window = window_at(top, left, side)
    assume(window.bottom > 0 and window.right > 0 and top < shape[0] and left < shape[1])
    part = inside(window, shape)
    for row in (-1, 0, part.top - 1, part.top, part.bottom - 1, part.bottom, shape[0]):
        assert (part.top <= row < part.bottom) == (0 <= row < shape[0] and window.top <= row < window.bottom)


# --- cut and paste ----------------------------------------------------------------------------------------------------------------------


@many
@given(starts, starts, sides, st.integers(0, 2**32 - 1), st.sampled_from([np.uint8, np.uint16, np.int16, np.float32, np.float64, bool]))
def test_at_equal_scale_paste_of_cut_is_the_identity(top, left, side, seed, dtype):
    window = window_at(top, left, side)
    shape = (70, 50)
    assume(window.bottom > 0 and window.right > 0 and top < shape[0] and left < shape[1])
    data = (np.random.default_rng(seed).random((2, *shape)) * 200).astype(dtype)
    pixels = cut(data, window, side, fill=0.0)
    assert pixels.shape == (2, side, side)
    assert pixels.dtype == torch.float32
    for channel, values in enumerate(pixels):
        back, box = paste(values, window, shape)
        assert box == inside(window, shape)
        np.testing.assert_array_equal(back, data[channel][box.slices].astype(np.float32))


@pytest.mark.parametrize("size", [48, 64, 96, 192])
def test_a_smooth_image_comes_back_at_any_size(size):
    rows, cols = np.indices((90, 110))
    data = (np.sin(rows / 14) + np.cos(cols / 11))[None]
    window = window_at(10, 5, 72)
    back, box = paste(cut(data, window, size)[0], window, (90, 110))
    inner = (slice(4, -4), slice(4, -4))
    assert np.abs(back - data[0][box.slices])[inner].max() < 0.03


@many
@given(st.integers(0, 30), st.integers(0, 30), st.integers(16, 120), st.sampled_from([16, 32, 64, 128]), st.integers(0, 1))
def test_a_ramp_stays_the_ramp(top, left, side, size, axis):
    """Pixel i of a window shows slice coordinate (i + 0.5)·side/size − 0.5 + start: the inverse of where a click is mapped to."""
    pixels = cut(ramp((151, 151), axis), window_at(top, left, side), size)[0].numpy()
    at = (np.arange(size) + 0.5) * side / size - 0.5 + (top, left)[axis]
    expected = np.broadcast_to(at[:, None] if axis == 0 else at[None], (size, size))
    edge = max(int(np.ceil(2 * size / side)), 2)  # the outermost pixels repeat the border
    inner = (slice(edge, -edge), slice(edge, -edge))
    smoothing = 1e-2 if size >= side else 0.1 * side / size  # the filter's taps are not quite symmetric at odd ratios
    np.testing.assert_allclose(pixels[inner], expected[inner], atol=smoothing)
    assert abs((pixels[inner] - expected[inner]).mean()) < 1e-2


@many
@given(st.integers(0, 30), st.integers(0, 30), st.integers(16, 120), st.sampled_from([16, 32, 64, 128]), st.integers(0, 1))
def test_a_pasted_ramp_stays_the_ramp(top, left, side, size, axis):
    at = (torch.arange(size) + 0.5) * side / size - 0.5 + (top, left)[axis]
    values = at[:, None].expand(size, size) if axis == 0 else at[None].expand(size, size)
    back, box = paste(values.contiguous(), window_at(top, left, side), (151, 151))
    edge = max(int(np.ceil(side / size)), 1)
    inner = (slice(edge, -edge), slice(edge, -edge))
    np.testing.assert_allclose(back[inner], ramp((151, 151), axis)[0][box.slices][inner], atol=1e-2)


@many
@given(starts, starts, st.integers(20, 120), st.sampled_from([32, 64, 128, 192]), st.integers(0, 69), st.integers(0, 49))
def test_a_click_falls_on_the_pixel_that_was_clicked(top, left, side, size, row, col):
    window = window_at(top, left, side)
    assume(window.top <= row < window.bottom and window.left <= col < window.right)
    data = np.zeros((1, 70, 50), np.float32)
    data[0, row, col] = 1
    pixels = cut(data, window, size, fill=0.0)[0].numpy()
    at = click_in_window(Click((row, col)), window, size)
    centre = np.array(np.nonzero(pixels >= 0.999 * pixels.max())).mean(axis=1)
    inside_by = min(row - top, window.bottom - 1 - row, col - left, window.right - 1 - col)
    allowed = 0.51 if inside_by else max(0.51, 0.51 * size / side)  # at the window's border the neighbour beyond is not seen
    assert np.abs(centre - (at.row, at.col)).max() <= allowed


@many
@given(starts, starts, st.integers(1, 200), st.sampled_from([64, 128, 192]), st.integers(-5, 80), st.integers(-5, 80), st.booleans())
def test_clicks_keep_their_place_relative_to_the_window(top, left, side, size, row, col, positive):
    window = window_at(top, left, side)
    at = click_in_window(Click((row, col), positive), window, size)
    assert at.positive is positive
    assert ((at.row + 0.5) / size) == pytest.approx((row + 0.5 - top) / side)
    assert ((at.col + 0.5) / size) == pytest.approx((col + 0.5 - left) / side)


@pytest.mark.parametrize(("shape", "window"), [((1500, 1400), Box(0, 0, 1500, 1500)), ((1100, 1900), Box(-37, 55, 1563, 1655))])
def test_thinning_a_large_window_keeps_positions_within_a_window_pixel(shape, window):
    size, rng = 64, np.random.default_rng(0)
    scale = (window.bottom - window.top) / size
    for axis in (0, 1):
        pixels = cut(ramp(shape, axis), window, size)[0].numpy()
        at = (np.arange(size) + 0.5) * scale - 0.5 + (window.top, window.left)[axis]
        part = inside(window, shape)
        seen = (at > (part.top, part.left)[axis] + 2 * scale) & (at < (part.bottom, part.right)[axis] - 2 * scale)
        line = pixels[:, size // 2] if axis == 0 else pixels[size // 2]
        assert np.abs(line - at)[seen].max() < 1.0 * scale
    for _ in range(10):
        row, col = (int(rng.integers(max(lo, 0) + 60, min(hi, n) - 60)) for lo, hi, n in zip(window[:2], window[2:], shape, strict=True))
        data = np.zeros((1, *shape), np.float32)
        data[0, row - 20 : row + 21, col - 20 : col + 21] = 1
        pixels = cut(data, window, size, fill=0.0)[0].numpy()
        centre = (np.indices(pixels.shape) * pixels).sum(axis=(1, 2)) / pixels.sum()
        at = click_in_window(Click((row, col)), window, size)
        assert np.abs(centre - (at.row, at.col)).max() < 1.0


def test_what_lies_beyond_the_slice_is_the_mean_or_the_given_value():
    data = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    window = Box(-4, -4, 8, 8)
    by_mean = cut(data, window, 12)[0].numpy()
    assert (by_mean[:4] == 7.5).all()
    assert (by_mean[:, 8:] == 7.5).all()
    np.testing.assert_array_equal(by_mean[4:8, 4:8], data[0])
    assert (cut(data, window, 12, fill=-20.0)[0].numpy()[:, :4] == -20).all()


def test_shrinking_averages_instead_of_picking():
    checks = (np.indices((64, 64)).sum(0) % 2)[None].astype(np.uint8)
    np.testing.assert_allclose(cut(checks, Box(0, 0, 64, 64), 16)[0].numpy(), 0.5, atol=0.02)


@many
@given(st.integers(20, 90), st.integers(20, 90), st.sampled_from([8, 16, 33]), st.floats(0.3, 1.0), st.data())
def test_a_ramp_seen_through_a_wider_window_is_the_ramp_of_the_narrow_one(top, left, size, share, data):
    """Exactly, but for the outermost half pixels, beyond whose centres the wide window knows nothing."""
    side = 64
    within = max(round(share * side), 8)
    down, right = (data.draw(st.integers(0, side - within)) for _ in range(2))
    wide, narrow = window_at(top, left, side), window_at(top + down, left + right, within)

    def rows(window: Box) -> torch.Tensor:
        centres = window.top + (torch.arange(size) + 0.5) * (window.bottom - window.top) / size - 0.5
        return centres[:, None].expand(size, size)

    expected = rows(narrow).clamp(float(rows(wide)[0, 0]), float(rows(wide)[-1, 0]))
    torch.testing.assert_close(seen_through(rows(wide), wide, narrow), expected, atol=1e-3, rtol=0)
    assert seen_through(expected, wide, wide) is expected


# --- standardise ------------------------------------------------------------------------------------------------------------------------


@many
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]), st.floats(-1e4, 1e4), st.floats(0.01, 1e4))
def test_standardised_pixels_have_mean_zero_and_variance_one(seed, channels, offset, scale):
    pixels = torch.from_numpy(np.random.default_rng(seed).normal(offset, scale, (channels, 40, 40)).astype(np.float32))
    found = standardise(pixels)
    assert found.shape == (3, 40, 40)
    assert float(found.mean()) == pytest.approx(0, abs=1e-2)
    assert float(found.std()) == pytest.approx(1, abs=1e-2)


def test_grey_is_repeated_and_colour_keeps_its_channels_apart():
    grey = standardise(torch.rand(1, 20, 20))
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])
    colour = torch.rand(3, 20, 20) + torch.tensor([0.0, 5.0, 10.0])[:, None, None]
    means = standardise(colour).mean((1, 2))
    assert means[0] < -0.5 < 0.5 < means[2]


def test_outliers_are_clipped():
    pixels = torch.rand(1, 60, 60)
    tame = standardise(pixels)
    pixels[0, 30, 30] = 1e5
    wild = standardise(pixels)
    assert float(wild.abs().max()) < 3
    assert float((wild - tame).abs().median()) < 0.02


def test_a_constant_window_is_zero_and_a_nearly_constant_one_stays_finite():
    assert not bool(standardise(torch.full((1, 16, 16), 7.0)).any())
    pixels = torch.zeros(1, 16, 16)
    pixels[0, 0, 1] = 1e-9
    assert bool(torch.isfinite(standardise(pixels)).all())


@pytest.mark.parametrize(("gain", "offset"), [(1.0, 1e12), (1e-60, 0.0), (1e-310, 0.0), (1e36, 0.0), (1e300, 0.0), (-1e305, 1e306)])
@pytest.mark.parametrize("window", [Box(0, 0, 40, 40), Box(-10, 5, 50, 65), Box(8, 8, 20, 20)])
def test_numbers_beyond_float32_look_as_any_others(gain, offset, window):
    pixels = np.random.default_rng(0).random((1, 40, 44))
    seen = standardise(cut(np.sign(gain) * pixels, window, 32))
    torch.testing.assert_close(standardise(cut(pixels * gain + offset, window, 32)), seen, atol=5e-3, rtol=1e-2)


@pytest.mark.parametrize("value", [0.0, 1e300, -1e-300, 7.0])
def test_a_part_without_contrast_has_none(value):
    assert (standardise(cut(np.full((1, 40, 44), value), Box(0, 0, 40, 40), 32)) == 0).all()


@many
@given(st.integers(0, 2**32 - 1), st.sampled_from([2.0, 257.0, 1 / 64, 1e-9, 1e25]), st.sampled_from([0.0, -1024.0, 4096.0]))
def test_brightness_and_contrast_do_not_matter(seed, gain, offset):
    """From diffusion in m²/s to counts: the unit that an intensity is given in is not seen."""
    pixels = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, 32, 32)).astype(np.float32))
    offset = offset if 1e-3 < gain < 1e3 else 0.0  # float32 holds no more than 7 digits
    torch.testing.assert_close(standardise(pixels * gain + offset), standardise(pixels), atol=2e-3, rtol=1e-3)
