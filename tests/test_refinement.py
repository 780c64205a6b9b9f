"""Pixel diffusion against a slow plain oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_apprentice.guidance import WindowClick
from napari_apprentice.refinement import pixel_diffusion

clicks = st.lists(st.builds(WindowClick, st.floats(0, 8), st.floats(0, 8), st.booleans()), max_size=3)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def drawn(seed: int, size: int = 9, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(size, size, generator=generator), torch.randn(channels, size, size, generator=generator)


def plain_diffusion(logits: np.ndarray, image: np.ndarray, clicks: list[WindowClick], iterations: int) -> np.ndarray:
    """The rule in words, pixel by pixel."""
    n = len(logits)
    answer = 2 / (1 + np.exp(-logits.astype(np.float64))) - 1
    for row in range(n):
        for col in range(n):
            for positive in (True, False):
                near = [math.exp(-((row - c.row) ** 2 + (col - c.col) ** 2) / 200) for c in clicks if c.positive is positive]
                answer[row, col] += (1 if positive else -1) * max(near, default=0.0)
    for _ in range(iterations):
        before = answer.copy()
        for row in range(n):
            for col in range(n):
                around = [
                    (min(max(row + a * d, 0), n - 1), min(max(col + b * d, 0), n - 1))
                    for d in (1, 2, 4, 8)
                    for a in (-1, 0, 1)
                    for b in (-1, 0, 1)
                    if (a, b) != (0, 0)
                ]
                unlike = np.array([np.abs(image[:, r, c] - image[:, row, col]).mean() for r, c in around])
                weights = np.exp(-unlike / max(unlike.var(ddof=1), 1e-3))
                answer[row, col] = (weights * [before[at] for at in around]).sum() / weights.sum()
    return answer


@settings(max_examples=10)
@given(st.integers(0, 1000), clicks, st.integers(0, 2), st.sampled_from([1, 3]))
def test_it_is_the_plain_rule(seed, clicks, iterations, channels):
    logits, image = drawn(seed, channels=channels)
    found = pixel_diffusion(logits, image, clicks, iterations=iterations)
    np.testing.assert_allclose(found.numpy(), plain_diffusion(logits.numpy(), image.numpy(), clicks, iterations), atol=1e-4)


@settings(max_examples=20)
@given(st.integers(0, 1000), clicks)
def test_foreground_and_background_are_treated_alike(seed, clicks):
    logits, image = drawn(seed)
    opposite = [c._replace(positive=not c.positive) for c in clicks]
    torch.testing.assert_close(pixel_diffusion(-logits, image, opposite), -pixel_diffusion(logits, image, clicks), atol=1e-5, rtol=1e-5)


@settings(max_examples=20)
@given(st.integers(0, 1000), clicks)
def test_the_answer_stays_within_its_bounds(seed, clicks):
    logits, image = drawn(seed)
    found = pixel_diffusion(20 * logits, image, clicks)
    highest, lowest = 1.0 + any(c.positive for c in clicks), -1.0 - any(not c.positive for c in clicks)
    assert lowest - 1e-4 <= float(found.min()) <= float(found.max()) <= highest + 1e-4


def test_what_is_equal_everywhere_stays_as_it_is():
    _, image = drawn(0)
    found = pixel_diffusion(torch.full((9, 9), 0.7), image, [])
    torch.testing.assert_close(found, torch.full((9, 9), 2 / (1 + math.exp(-0.7)) - 1))


def test_an_answer_stays_sharp_where_the_look_changes_and_blurs_where_it_does_not():
    even = torch.ones(3, 64, 64)
    halves = even.clone()
    halves[:, :, 32:] = -1
    logits = torch.where(halves[0] > 0, 4.0, -4.0)
    without, across = (pixel_diffusion(logits, image, [])[32] for image in (even, halves))
    assert float(across[31] - across[32]) > 3 * float(without[31] - without[32])


def test_a_click_speaks_about_its_surroundings():
    image = torch.ones(3, 64, 64)
    for positive in (True, False):
        found = pixel_diffusion(torch.zeros(64, 64), image, [WindowClick(32.0, 20.0, positive)])
        distances = (1 if positive else -1) * found[32, 20::6]
        assert float(distances[0]) > 0.3
        assert bool((distances.diff() < 0).all())


def test_the_arguments_are_left_alone():
    logits, image = drawn(1)
    before = logits.clone(), image.clone()
    pixel_diffusion(logits, image, [WindowClick(3, 3, True)])
    assert torch.equal(logits, before[0])
    assert torch.equal(image, before[1])
