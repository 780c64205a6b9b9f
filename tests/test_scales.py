"""Which of the first looks is believed: each thing that tells against a look lowers it, all else being equal."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from napari_apprentice.scales import credibilities
from napari_apprentice.types import Box

SHAPE = (256, 256)
WIDE, NARROW = Box(0, 0, 256, 256), Box(64, 64, 192, 192)


def square(side: int, value: float = 5.0, n: int = 64, at: tuple[int, int] | None = None) -> Tensor:
    """(n, n) logits of a square, in the middle by default."""
    top, left = at or ((n - side) // 2, (n - side) // 2)
    logits = torch.full((n, n), -value)
    logits[top : top + side, left : left + side] = value
    return logits


def alone(logits: Tensor, window: Box = NARROW, iou: float = 0.8, **known: object) -> float:
    (found,) = credibilities(logits[None], torch.tensor([iou]), [window], SHAPE, **known)
    return found


def test_a_look_that_nothing_tells_against_is_as_credible_as_its_estimated_iou():
    assert alone(square(24), iou=0.75) == pytest.approx(0.75)


def test_blurred_outlines_tell_against_a_look_as_much_as_they_are_made_to():
    blurred = torch.maximum(square(24), torch.where(square(30) > 0, 0.5, -5.0))  # only the inner square lies above 1
    share = 24**2 / 30**2
    for power in (0.0, 1.0, 2.0):
        assert alone(blurred, stability_power=power) == pytest.approx(0.8 * share**power)


def test_empty_tiny_and_cut_off_masks_tell_against_a_look_unless_the_slice_ends_there():
    good = alone(square(24))
    assert alone(torch.full((64, 64), -5.0), stability_power=0.0) == pytest.approx(0.01 * 0.8)
    assert alone(square(2)) < 0.6 * good
    corner = square(24, at=(0, 20))
    assert alone(corner) < 0.5 * good
    assert alone(corner, Box(0, 64, 128, 192)) == pytest.approx(good)


def test_unusual_sizes_tell_against_a_look_once_objects_were_accepted():
    extent = math.log(24 * 2 / 256)  # of the square in the narrow window, over the slice's longer side
    usual, unusual = ((5 * e, 5 * e**2, 5.0) for e in (extent, extent - 2))
    assert alone(square(24), extent_log=usual) == pytest.approx(alone(square(24)))
    assert alone(square(24), extent_log=unusual) < 0.1 * alone(square(24))


def test_what_the_next_scale_finds_too_is_believed_and_what_follows_the_window_is_not():
    same = torch.stack([square(16), square(32)])  # one square in the slice, seen from afar and from near
    follows = torch.stack([square(32), square(32)])
    iou = torch.tensor([0.8, 0.8])
    agreeing, guessing = (credibilities(looks, iou, [WIDE, NARROW], SHAPE) for looks in (same, follows))
    assert agreeing == pytest.approx([0.8, 0.8], rel=0.05)
    assert guessing[1] < 0.6 * agreeing[1]
