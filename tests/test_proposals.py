"""Other masks for the same clicks: distinct, likeliest first, and where they were seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_apprentice.proposals import Proposal, distinct, of_scale, outdoes
from napari_apprentice.shapes import overlap
from napari_apprentice.types import Box, Click, Prediction
from napari_apprentice.windows import paste

masks = hnp.arrays(bool, (5, 6), fill=st.nothing())


@given(masks, st.lists(st.tuples(masks, st.floats(0, 1)), max_size=6), st.integers(0, 4), st.sampled_from([0.5, 0.8, 0.95]))
def test_candidates_are_few_full_unlike_and_the_likeliest_first(answered, others, most, same):
    answer = Prediction.from_mask(answered)
    proposals = [Proposal(chance, Prediction.from_mask(mask), bool(mask.any())) for mask, chance in others]
    kept = distinct(answer, proposals, most, same)
    chances = [next(p.chance for p in proposals if p.prediction is one) for one in kept]
    assert len(kept) <= most
    assert chances == sorted(chances, reverse=True)
    shown = [answer, *kept]
    for number, one in enumerate(kept, start=1):
        assert one.mask.any()
        assert all(overlap(one.mask, other.mask) < same for other in shown[:number])
    if len(kept) < most:  # whatever was left out is empty or much like something that is shown
        for proposal in proposals:
            if proposal.full:
                assert any(overlap(proposal.prediction.mask, other.mask) >= same for other in shown)


@given(st.integers(-7, 30), st.integers(-7, 30), st.integers(8, 60), st.integers(0, 12), st.integers(0, 12), st.integers(1, 4))
def test_what_was_said_at_another_scale_has_the_mask_that_pasting_the_whole_window_gives(top, left, side, row, col, extent):
    word = torch.full((16, 16), -4.0)
    word[row : row + extent, col : col + extent] = 4.0
    window, shape = Box(top, left, top + side, left + side), (40, 50)
    whole, box = paste(word, window, shape)
    expected = np.zeros(shape, bool)
    expected[box.slices] = whole > 0
    proposal = of_scale(0.5, word, window, 0.7, shape, [])
    found = np.zeros(shape, bool) if proposal is None else proposal.prediction.mask
    assert (found != expected).sum() <= np.isclose(whole, 0, atol=1e-3).sum()
    if proposal is not None:
        assert proposal.prediction.view == window
        assert proposal.prediction.logits.size <= ((extent + 4) * max(side / 16, 1)) ** 2


def test_a_mask_that_lies_beyond_the_slice_or_would_take_too_long_to_paste_is_no_proposal():
    word = torch.full((16, 16), -4.0)
    assert of_scale(0.5, word, Box(0, 0, 16, 16), 0.7, (16, 16), []) is None
    word[:3] = 4.0
    assert of_scale(0.5, word, Box(-8, 0, 8, 16), 0.7, (16, 16), []) is None
    assert of_scale(0.5, word, Box(0, 0, 16, 16), 0.7, (16, 16), []) is not None
    assert of_scale(0.5, torch.full((16, 16), 4.0), Box(0, 0, 4000, 4000), 0.7, (4000, 4000), []) is None


def test_a_proposal_of_another_scale_obeys_the_clicks():
    word = torch.full((16, 16), 4.0)
    proposal = of_scale(0.5, word, Box(0, 0, 32, 32), 0.7, (32, 32), [Click((10, 10)), Click((20, 20), False)])
    assert proposal.prediction.mask[10, 10]
    assert not proposal.prediction.mask[20, 20]


# --- a larger object ---

CLICKS = Click((4, 4)), Click((25, 25))


def said(size: int, score: float, edge: float = 0.0) -> Prediction:
    """A square from the corner, said with a logit of 3; ``edge`` is the share of its rows that are said with 0.5 only."""
    logits = np.full((30, 30), -3.0, np.float32)
    logits[:size, :size] = 3.0
    logits[round(size * (1 - edge)) : size, :size] = 0.5
    return Prediction(logits, Box(0, 0, 30, 30), (30, 30), score=score)


@pytest.mark.parametrize(
    ("new", "old", "believed"),
    [
        (said(28, 0.8), said(27, 0.4), True),
        (said(28, 0.8), said(27, 0.41), False),
        (said(28, 0.4, edge=0.5), said(27, 0.2), False),  # its outline is not sharp
        (said(28, 0.4), said(27, 0.4, edge=0.5), True),
        (said(20, 0.9), said(27, 0.1), False),  # it leaves a click out
        (
            replace(said(28, 0.9), logits=np.where(said(28, 0.9).logits > 0, np.float32(0.1), -3.0)),
            said(27, 0.1),
            False,
        ),  # only held to them
    ],
)
def test_what_was_looked_for_anew_outdoes_what_carries_on_if_it_is_far_more_credible(new, old, believed):
    assert outdoes(new, old, said(10, 0.5), CLICKS, 2.0) == believed


def test_a_larger_object_holds_what_was_found_of_it_before():
    new, old = said(28, 0.9), said(27, 0.1)
    before = np.zeros((30, 30), bool)
    before[:10, 20:] = True  # a fifth of it lies beyond
    assert outdoes(new, old, Prediction.from_mask(before), CLICKS, 2.0)
    before[:10, 19:20] = False
    before[10:20, 28:] = True
    assert not outdoes(new, old, Prediction.from_mask(before), CLICKS, 2.0)
