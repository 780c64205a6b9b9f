"""What keeps learning safe: nothing adds up unseen, what the model could do before is kept, and what cannot be true is not learnt from."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_apprentice.adaptation import POLICIES, Adaptation, _gate, _source, remember
from napari_apprentice.adaptation._memory import Batch
from napari_apprentice.adaptation._plausible import contrast
from napari_apprentice.adaptation._source import Source, source_of
from napari_apprentice.knowledge import Knowledge, Remembered
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.types import Click, ImageSlice, Lesson, outcome

TINY = {"widths": [8, 16, 16, 16, 16], "groups": 4}
SHAPE = (70, 80)
SIZE = 32
MIDDLE = (35, 40)
NOISE = 0.1 * np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def small(**changes: object) -> Adaptation:
    return replace(POLICIES["pi"], **{"size": SIZE, "procedural": 2, **changes})


def disk(row: float = MIDDLE[0], col: float = MIDDLE[1], radius: float = 14) -> np.ndarray:
    rows, cols = np.indices(SHAPE)
    return np.hypot(rows - row, cols - col) <= radius


def picture(mask: np.ndarray, seed: int = 0) -> ImageSlice:
    noise = np.random.default_rng(seed).integers(0, 60, (1, *SHAPE))
    return ImageSlice((noise + 120 * mask).astype(np.uint8))


def lesson(mask: np.ndarray | None = None, click: tuple[int, int] = MIDDLE, seen: np.ndarray | None = None, seed: int = 0) -> Lesson:
    """A mask, one click, and a picture in which ``seen`` (the mask if None) is bright."""
    mask = disk() if mask is None else mask
    return Lesson(picture(mask if seen is None else seen, seed), (Click(click),), mask, "case")


@pytest.fixture(scope="module")
def learnt(tiny_segmenter) -> Knowledge:
    """What a tiny network knows that gets one disk right, and remembers it eight times."""
    segmenter = tiny_segmenter()
    for _ in range(8):
        small(post_rate=4e-3, gate_margin=inf, rehearsed=0, procedural=0).on_accept(segmenter, lesson())
    return segmenter.snapshot()


@pytest.fixture
def taught(learnt, tiny_segmenter) -> NetworkSegmenter:
    segmenter = tiny_segmenter()
    segmenter.restore(learnt)
    return segmenter


def weights(segmenter: NetworkSegmenter) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in segmenter.network.named_parameters()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], v) for k, v in second.items())


# --- a ratchet --------------------------------------------------------------------------------------------------------------------------

steps = st.lists(st.tuples(*2 * [st.floats(-0.012, 0.01)]), max_size=60)


@given(steps, st.floats(0, 0.05), st.floats(0.001, 0.02))
def test_losses_that_are_each_too_small_to_be_refused_do_not_add_up(changes, best_margin, gate_margin):
    policy = small(best_margin=best_margin, gate_margin=gate_margin)
    now = best = (0.8, 0.7)
    for change in changes:
        then = (now[0] + change[0], now[1] + change[1])
        if not _gate._objection(policy, now, then, best, 8):
            now = then
            best = (max(best[0], now[0]), max(best[1], now[1]))
        assert all(reached >= top - best_margin - 1e-9 for reached, top in zip(now, best, strict=True))


@given(st.tuples(*4 * [st.floats(0, 1)]), st.floats(0, 0.2), st.floats(0, 0.2))
def test_what_makes_nothing_worse_is_never_refused(marks, first, every):
    """However far below its best the model has come, or below what the untaught one can do."""
    now, best = marks[:2], marks[2:]
    then = (now[0] + first, now[1] + every)
    assert _gate._objection(small(), now, then, best, 3) == ""
    assert _gate._forgotten(small(), best[1], now[1], then[1]) == ""
    assert _gate._objection(small(gate_margin=inf), now, (0.0, 0.0), best, 3) == ""
    assert _gate._forgotten(small(gate_margin=inf), best[1], now[1], 0.0) == ""


def test_the_best_that_was_reached_on_an_object_is_kept_with_it(tiny_segmenter):
    segmenter, policy = tiny_segmenter(), small(post_rate=2e-3, procedural=0, plausible=0.0, remembered=4)
    highest: list[tuple[float, float]] = []
    for number in range(6):
        report = policy.on_accept(segmenter, lesson(disk(30 + number), (30 + number, 40), seed=number))
        known = segmenter.snapshot()
        highest = [*highest, (0.0, 0.0)][-4:]
        if report.accepted:
            highest = [(max(a, c), max(b, d)) for (a, b), (c, d) in zip(highest, known.marks, strict=True)]
        else:
            highest[-1] = known.marks[-1]
        assert [one.best for one in known.memory] == highest
    assert highest[0] > (0.0, 0.0)


# --- procedural objects -----------------------------------------------------------------------------------------------------------------


def test_procedural_objects_are_the_same_for_everybody_and_made_once(tiny_segmenter):
    one, other = (outcome(source_of(tiny_segmenter(seed), 3, SIZE)) for seed in (0, 1))
    for mine, theirs in zip(one.objects, other.objects, strict=True):
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.targets, theirs.targets)
        assert mine.clicks[0][0] == theirs.clicks[0][0]
    assert not torch.equal(one.answers, other.answers)
    segmenter = tiny_segmenter()
    made = outcome(source_of(segmenter, 3, SIZE))
    assert list(source_of(segmenter, 3, SIZE)) == []
    assert outcome(source_of(segmenter, 3, SIZE)) is made
    assert len(outcome(source_of(segmenter, 2, SIZE)).objects) == 2
    assert outcome(source_of(segmenter, 2, 48)).objects[0].images.shape == (1, 3, 48, 48)


def test_clicks_on_procedural_objects_say_what_is_true(tiny_segmenter):
    for one in outcome(source_of(tiny_segmenter(), 6, SIZE)).objects:
        (clicks,) = one.clicks
        assert clicks[0].positive
        assert 0.02 < one.targets.float().mean() < 0.6
        assert all(click.positive == bool(one.targets[0, 0, int(click.row), int(click.col)]) for click in clicks)


def test_what_is_said_of_procedural_objects_is_the_untaught_models_word(tiny_segmenter, taught, learnt):
    before, fresh = weights(taught), outcome(source_of(tiny_segmenter(), 2, SIZE))
    steps = source_of(taught, 2, SIZE)
    for _ in steps:
        assert equal(weights(taught), before)
        assert taught.snapshot() is learnt
    found = outcome(source_of(taught, 2, SIZE))
    assert torch.equal(found.answers, fresh.answers)
    assert found.mark == fresh.mark
    assert equal(weights(taught), before)


def replayed_loss(segmenter: NetworkSegmenter, source: Source) -> torch.Tensor:
    """How far the answers on procedural objects are from the untaught model's: cross-entropy less its least value."""
    batch = Batch(source.objects, segmenter.device)
    said = (batch.logits(segmenter, batch.firsts), batch.logits(segmenter, batch.clicks, source.answers[:, :1]))
    wanted = source.answers.unbind(1)
    least = sum(F.binary_cross_entropy(p, p) for p in wanted)
    return sum(F.binary_cross_entropy_with_logits(z[:, 0], p) for z, p in zip(said, wanted, strict=True)) - least


def test_replay_asks_nothing_of_an_untaught_model_and_something_of_a_taught_one(taught, learnt):
    source = outcome(source_of(taught, 2, SIZE))
    sizes = []
    for known in (taught.base, learnt):
        taught.restore(known)
        loss = replayed_loss(taught, source)
        grads = torch.autograd.grad(loss, list(taught.network.parameters()), allow_unused=True)
        sizes.append((float(loss.detach()), sum(float(g.abs().sum()) for g in grads if g is not None)))
    assert sizes[0][0] == pytest.approx(0, abs=1e-6)
    assert sizes[0][1] < 1e-3 * sizes[1][1]
    assert sizes[1][0] > 1e-3


def test_with_replay_less_is_forgotten(tiny_segmenter):
    left = []
    for number in (0, 2):
        segmenter = tiny_segmenter()
        for count in range(2):
            policy = small(post_rate=2e-3, procedural=number, gate_margin=inf, post_rounds=8, full_doubt=0.0)
            policy.on_accept(segmenter, lesson(seed=count))
        with torch.no_grad():
            left.append(float(replayed_loss(segmenter, outcome(source_of(segmenter, 2, SIZE)))))
    assert left[1] < 0.7 * left[0]


def test_what_costs_the_model_what_it_could_do_before_is_refused(taught, learnt):
    """Nothing is remembered that could object, but what stands for everything else was right before."""
    right = remember(taught, lesson(seed=5), SIZE).view(1)
    source = Source((right,), torch.full((1, 2, SIZE, SIZE), 0.5), 1.0)
    mark = _source.mark_now(taught, source)
    assert mark > 0.5
    taught.restore(replace(learnt, memory=(), marks=()))
    _source._KNOWN[taught] = replace(source, mark=mark)
    before, wrong = weights(taught), lesson(~disk(), (2, 2), seed=3)
    report = small(procedural=1, post_rate=2.0, post_rounds=2).on_accept(taught, wrong)
    assert report.refused
    assert "below the untaught model" in report.message
    assert "\n" not in report.message
    assert equal(weights(taught), before)
    assert taught.snapshot().source_mark == mark
    assert len(taught.snapshot().memory) == 1


def test_how_right_the_model_is_about_procedural_objects_is_known_after_a_lesson(taught):
    source = outcome(source_of(taught, 2, SIZE))
    assert taught.snapshot().source_mark is None
    small(plausible=0.0).on_accept(taught, lesson(seed=4))
    assert taught.snapshot().source_mark == pytest.approx(_source.mark_now(taught, source))
    taught.restore(taught.base)
    assert source.mark == pytest.approx(_source.mark_now(taught, source))


def test_a_lesson_with_procedural_objects_takes_no_more_steps_than_one_without(taught):
    start, counts = taught.snapshot(), []
    for number in (0, 2):
        taught.restore(start)
        small(procedural=number, plausible=0.0, gate_margin=inf).on_accept(taught, lesson(seed=9))
        counts.append(taught.snapshot().steps)
    assert counts[0] == counts[1] > start.steps


# --- what cannot be true ----------------------------------------------------------------------------------------------------------------


def seen(image: np.ndarray, mask: np.ndarray) -> Remembered:
    """One view (3, n, n) of an object."""
    return Remembered(torch.from_numpy(image)[None], torch.from_numpy(mask)[None, None], ((),))


@settings(max_examples=30)
@given(st.integers(0, 100), st.floats(0.5, 4), st.booleans(), st.floats(-3, 3))
def test_contrast_does_not_ask_how_bright_an_image_is_nor_which_side_is_brighter(seed, factor, negative, shift):
    image = np.random.default_rng(seed).standard_normal((3, *SHAPE)).astype(np.float32) + disk()
    plain, changed = (contrast(seen(np.float32(i), disk())) for i in (image, (-factor if negative else factor) * image + shift))
    assert changed == pytest.approx(plain, rel=1e-3)
    assert plain > 0.1


@given(st.integers(0, 69), st.integers(0, 79))
def test_no_other_place_stands_out_as_an_object_does(row, col):
    image = NOISE + 0.3 * disk().astype(np.float32)
    if abs(row - MIDDLE[0]) + abs(col - MIDDLE[1]) > 3:
        assert contrast(seen(image, disk(row, col))) < contrast(seen(image, disk()))


@pytest.mark.parametrize("radius", [-1, 0, 1, 60, 200])
def test_masks_of_any_size_have_a_contrast(radius):
    value = contrast(seen(NOISE, disk(radius=radius)))
    assert np.isfinite(value)
    assert value >= 0


@given(st.floats(0, 1), st.integers(0, 6), st.booleans())
def test_a_mask_is_doubted_only_if_both_the_model_and_the_image_speak_against_it(every, remembered, stands_out):
    clear = seen(np.float32(np.broadcast_to(disk(), (3, *SHAPE))) + NOISE, disk())
    new = clear if stands_out else replace(clear, targets=torch.from_numpy(disk(20, 15))[None, None])
    words = _gate.implausible(small(plausible=0.6), remembered * (clear,), new, every)
    assert bool(words) == (every < 0.6 and remembered >= 3 and not stands_out)
    assert _gate.implausible(small(gate_margin=inf), remembered * (clear,), new, every) == ""


def test_a_mask_in_a_wrong_place_leaves_everything_as_it_was(taught, learnt):
    before = weights(taught)
    wrong = lesson(disk(15, 15, 8), (15, 15), seen=disk(), seed=3)
    report = small().on_accept(taught, wrong)
    assert report.refused
    assert not report.accepted
    assert report.message.startswith("learning was refused: ")
    assert "nothing is remembered of it" in report.message
    assert "\n" not in report.message
    assert taught.snapshot() is learnt
    assert equal(weights(taught), before)


def test_the_same_mask_is_learnt_from_where_something_is_to_be_seen(taught, learnt):
    report = small().on_accept(taught, lesson(disk(15, 15, 8), (15, 15), seed=3))
    assert "nothing is remembered" not in report.message
    assert taught.snapshot().memory[:-1] != learnt.memory
    assert taught.snapshot() is not learnt


def test_fifty_wrong_masks_leave_the_model_as_one_does(taught, learnt):
    """What is refused is not remembered, so that wrong masks cannot outvote the right ones."""
    for number in range(50):
        row, col = 8 + number % 5, 8 + number // 5
        small().on_accept(taught, lesson(disk(row, col, 6), (row, col), seen=disk(), seed=number))
    assert taught.snapshot() is learnt
