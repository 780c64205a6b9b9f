"""Several masks for the same clicks: from the network's proposals to the one that the user chooses."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from napari_apprentice.fakes import DiskSegmenter, FakePolicy, FakeStore
from napari_apprentice.journal import Journal, effective, read_journal, replay_labels
from napari_apprentice.networks import Output
from napari_apprentice.replay import read_recording, replay
from napari_apprentice.segmenter import NetworkSegmenter, ZoomConfig
from napari_apprentice.session import Session, resume
from napari_apprentice.types import Box, Click, Image, ImageSlice, InputError, Prediction, Prompt, SessionError
from napari_apprentice.weights import LoadedWeights

IMAGE = Image(np.random.default_rng(0).random((1, 40, 50)), name="picture")
FIRST = Click((20, 20))


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def disk(click: Click, radius: float, shape: tuple[int, int] = (40, 50)) -> np.ndarray:
    rows, cols = np.indices(shape)
    return (rows - click.voxel[0]) ** 2 + (cols - click.voxel[1]) ** 2 <= radius**2


def session(masks: int = 3, journal: Journal | None = None) -> Session:
    """One whose model proposes disks of the radii 4, 6, 8, ..."""
    return Session(IMAGE, DiskSegmenter(4.0, masks), FakePolicy(0.0, 1.0), journal=journal, store=FakeStore())


# --- the value --------------------------------------------------------------------------------------------------------------------------


def proposed(count: int) -> Prediction:
    best, *others = (Prediction(np.full((1, 1), float(i), np.float32), Box(0, 0, 1, 1), (1, 1), score=1 - i / 10) for i in range(count))
    return Prediction(best.logits, best.box, best.shape, score=best.score, candidates=tuple(others))


@given(st.lists(st.integers(0, 4), max_size=5))
def test_choosing_never_loses_or_reorders_what_was_proposed(ranks):
    answer = proposed(5)
    for rank in ranks:
        answer = answer.choosing(rank)
        assert answer.rank == rank
        assert float(answer.logits[0, 0]) == rank
        assert [float(p.logits[0, 0]) for p in answer.proposed] == [0, 1, 2, 3, 4]
        assert [p.score for p in answer.proposed] == pytest.approx([1, 0.9, 0.8, 0.7, 0.6])
        assert all(not candidate.candidates for candidate in answer.candidates)
        assert answer.nbytes == 5 * 4


def test_a_rank_that_was_not_proposed_is_refused():
    assert proposed(1).choosing(0).proposed[0].rank == 0
    with pytest.raises(InputError, match="mask 3 was asked for; expected one of the 2 that the model proposed"):
        proposed(2).choosing(2)
    with pytest.raises(InputError, match="mask 0 was asked for"):
        proposed(2).choosing(-1)


# --- the session ------------------------------------------------------------------------------------------------------------------------


def test_the_chosen_mask_is_the_one_in_the_labels():
    work = session()
    work.add(FIRST)
    for rank in (2, 0, 1):
        work.choose(rank)
        np.testing.assert_array_equal(work.labels == 1, disk(FIRST, 4 + 2 * rank))
        assert work.predictions[FIRST.plane].rank == rank


def test_choosing_what_is_chosen_is_no_action():
    work = session()
    work.add(FIRST)
    assert work.choose(0).region is None
    work.undo()
    assert not work.can_undo


def test_a_chosen_mask_leaves_other_objects_alone():
    work = session()
    work.add(Click((20, 30)))
    work.accept()
    other = work.labels == 1
    work.add(FIRST)
    work.choose(2)
    np.testing.assert_array_equal(work.labels == 1, other)
    np.testing.assert_array_equal(work.labels == 2, disk(FIRST, 5 * 2) & ~other)  # taught: a radius of 5, the third mask twice as large


def test_undo_and_redo_go_from_choice_to_choice():
    work = session()
    work.add(FIRST)
    seen = [work.labels.copy()]
    for rank in (1, 2, 0):
        work.choose(rank)
        seen.append(work.labels.copy())
    for labels in reversed(seen[:-1]):
        work.undo()
        np.testing.assert_array_equal(work.labels, labels)
    for labels in seen[1:]:
        work.redo()
        np.testing.assert_array_equal(work.labels, labels)
    assert work.predictions[FIRST.plane].rank == 0


def test_the_next_click_goes_on_from_the_chosen_mask():
    work = session()
    work.add(FIRST)
    work.choose(2)
    work.add(Click((20, 40)))
    np.testing.assert_array_equal(work.labels == 1, disk(FIRST, 8) | disk(Click((20, 40)), 4))
    assert work.predictions[FIRST.plane].rank == 0


def test_the_chosen_mask_is_what_is_taught():
    work = session()
    work.add(FIRST)
    work.choose(1)
    work.accept(learn=False)
    np.testing.assert_array_equal(work.pending[0].mask, disk(FIRST, 6))


def test_only_what_was_proposed_can_be_chosen():
    work = session(masks=2)
    with pytest.raises(SessionError, match="no click was made; expected at least one click"):
        work.choose(1)
    work.add(FIRST)
    before = work.labels.copy()
    with pytest.raises(SessionError, match="mask 3 was asked for; expected one of the 2 that the model proposed"):
        work.choose(2)
    np.testing.assert_array_equal(work.labels, before)
    alone = session(masks=1)
    alone.add(FIRST)
    with pytest.raises(SessionError, match="mask 2 was asked for; expected one of the 1 "):
        alone.choose(1)


def test_choices_are_journaled_and_lived_through_again(tmp_path):
    work = session(journal=Journal.create(tmp_path, IMAGE))
    work.add(FIRST)
    work.choose(2)
    work.undo()
    work.choose(1)
    labels = work.labels.copy()
    work.close()
    entries, done = effective(read_journal(tmp_path)[1])
    assert [(e.action.kind, e.action.number) for e in entries[:done]] == [("add", None), ("choose", 1)]
    np.testing.assert_array_equal(replay_labels(tmp_path), labels)
    again = resume(tmp_path, IMAGE, DiskSegmenter(4.0, 3), FakePolicy(0.0, 1.0), FakeStore())
    np.testing.assert_array_equal(again.labels, labels)
    assert again.predictions[FIRST.plane].rank == 1
    again.choose(2)
    np.testing.assert_array_equal(again.labels == 1, disk(FIRST, 8))
    again.close()


def test_a_recorded_choice_is_made_again_where_the_model_proposes_as_many(tmp_path):
    work = session(journal=Journal.create(tmp_path, IMAGE))
    work.add(FIRST)
    work.choose(2)
    work.add(Click((5, 5)))
    work.close()
    same, other = session(masks=3), session(masks=2)
    for each in (same, other):
        replay(each, read_recording(tmp_path))
    np.testing.assert_array_equal(same.labels, work.labels)
    np.testing.assert_array_equal(other.labels == 1, disk(FIRST, 4) | disk(Click((5, 5)), 4))


# --- the segmenter ----------------------------------------------------------------------------------------------------------------------


class Proposer(nn.Module):
    """Proposes squares about the positive clicks; the one of the given half side is its answer. Half sides of 0 propose nothing at all."""

    def __init__(self, halves: tuple[int, ...], scores: tuple[float, ...], best: int, judges: bool) -> None:
        super().__init__()
        self.config = SimpleNamespace(guidance="disk", disk_radius_px=0.8, stride=1)
        self.halves, self.scores, self.best, self.judges = halves, scores, best, judges
        self.bias = nn.Parameter(torch.zeros(1))

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, features: Tensor, guidance: Tensor, previous: Tensor) -> Output:
        squares = [
            nn.functional.max_pool2d(guidance[:, :1], 2 * half + 1, 1, half) if half else torch.zeros_like(previous) for half in self.halves
        ]
        candidates = 8 * torch.cat(squares, 1) - 4 + self.bias
        scores = torch.tensor(self.scores).expand(len(candidates), -1)
        ious = 2 * scores if self.judges else None
        return Output(candidates[:, self.best, None], torch.full((len(candidates),), 3.0), candidates, scores, None, ious)


def answer(halves, scores, best=0, *, judges=True, previous: Prediction | None = None) -> Prediction:
    """To a click in the middle of a picture that is seen as it is, without wider windows, mirrors and refinement."""
    zoom = ZoomConfig(size=64, first_size=64, smallest_side_px=40, wider=(), mirror=False, diffusion=0.0)
    segmenter = NetworkSegmenter(LoadedWeights(Proposer(halves, scores, best, judges), "proposer", {}, "0"), "cpu", zoom)
    pixels = ImageSlice(np.random.default_rng(0).integers(0, 255, (1, 64, 64)).astype(np.uint8))
    return segmenter.predict(pixels, Prompt((Click((32, 32)),), previous))


def areas(prediction: Prediction) -> list[int]:
    return [int(each.mask.sum()) for each in prediction.proposed]


SEEN_BEFORE = Prediction(np.full((36, 36), 3.0, np.float32), Box(14, 14, 50, 50), (64, 64), Box(0, 0, 64, 64))


def test_proposals_come_as_candidates_the_likeliest_first():
    found = answer((4, 8, 12, 16), (0.1, 0.5, 0.9, 0.3), previous=SEEN_BEFORE)
    assert areas(found) == [9**2, 25**2, 17**2, 33**2]
    assert [c.score for c in found.candidates] == pytest.approx([1 / (1 + math.exp(-2 * s)) for s in (0.9, 0.5, 0.3)])
    assert all(candidate.mask[32, 32] for candidate in found.candidates)


def test_the_same_mask_and_an_empty_one_are_not_proposed_again():
    found = answer((4, 4, 0, 12, 12), (0.9, 0.8, 0.7, 0.1, 0.2), previous=SEEN_BEFORE)
    assert areas(found) == [9**2, 25**2]
    assert found.candidates[0].score == pytest.approx(1 / (1 + math.exp(-0.4)))


def test_without_a_judgement_of_its_own_no_score_is_made_up():
    found = answer((4, 12), (0.9, 0.1), judges=False, previous=SEEN_BEFORE)
    assert [math.isnan(candidate.score) for candidate in found.candidates] == [True]


def test_the_first_click_has_candidates_too():
    found = answer((4, 8, 12), (0.5, 0.9, 0.1))
    assert len(found.proposed) > 1
    assert len(set(areas(found))) == len(found.proposed)


def test_a_network_of_one_mask_proposes_no_other():
    assert answer((6,), (0.5,)).candidates == ()
