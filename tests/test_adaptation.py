"""Learning from a user: what is taught is learnt, what is refused leaves no trace, and every state can be had back bit for bit."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from napari_apprentice.adaptation import (
    POLICIES,
    Adaptation,
    _gate,
    _point_and_learn,
    _step,
    _targets,
    lesson_windows,
    make_policy,
    remember,
)
from napari_apprentice.adaptation._doubt import doubted, replayed
from napari_apprentice.adaptation._memory import Batch
from napari_apprentice.guidance import WindowClick
from napari_apprentice.knowledge import Knowledge, Remembered, Tensors
from napari_apprentice.losses import dice_focal
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.types import AdaptationPolicy, Click, ImageSlice, InputError, LearningReport, Lesson, Prediction, Prompt, outcome
from napari_apprentice.windows import click_in_window

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = {"widths": [8, 16, 16, 16, 16], "groups": 4}
SHAPE = (70, 80)
SIZE = 32  # working size of learning


def small(name: str, **changes: object) -> Adaptation:
    """The policy of that name in small windows, without the guards that are asked for where they are tested."""
    return replace(POLICIES[name], **{"size": SIZE, "procedural": 0, "plausible": 0.0, **changes})


def disk(row: float = 35, col: float = 40, radius: float = 14) -> np.ndarray:
    rows, cols = np.indices(SHAPE)
    return (rows - row) ** 2 + (cols - col) ** 2 <= radius**2


def picture(mask: np.ndarray | None = None, seed: int = 0) -> ImageSlice:
    mask = disk() if mask is None else mask
    noise = np.random.default_rng(seed).integers(0, 60, (1, *SHAPE))
    return ImageSlice((noise + 120 * mask).astype(np.uint8))


def lesson(mask: np.ndarray | None = None, clicks: tuple[Click, ...] = (Click((35, 40)), Click((35, 10), False)), seed: int = 0) -> Lesson:
    mask = disk() if mask is None else mask
    return Lesson(picture(mask, seed), clicks, mask, "case")


def two_clicks(segmenter: NetworkSegmenter, pixels: ImageSlice) -> Prompt:
    first = segmenter.predict(pixels, Prompt((Click((35, 40)),)))
    return Prompt((Click((35, 40)), Click((28, 44))), first)


def tensors(knowledge: Knowledge) -> dict[str, Tensor]:
    """Copies of everything in it."""
    parts = {"weight": knowledge.weights, "first": knowledge.first, "second": knowledge.second}
    return {f"{part}/{k}": v.clone() for part, values in parts.items() for k, v in values.items()}


def parameters(segmenter: NetworkSegmenter) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in segmenter.network.named_parameters()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], v) for k, v in second.items())


def same(first: Prediction, second: Prediction) -> bool:
    return first.box == second.box and np.array_equal(first.logits, second.logits)


@pytest.fixture(scope="module")
def learnt(tiny_segmenter) -> Knowledge:
    """What a tiny network knows that gets one disk right."""
    segmenter, policy = tiny_segmenter(), small("pi", post_rate=4e-3, gate_margin=float("inf"), rehearsed=0, post_rounds=6)
    for _ in range(8):
        policy.on_accept(segmenter, lesson())
    return segmenter.snapshot()


# --- what learning is worth -------------------------------------------------------------------------------------------------------------


def new_object(segmenter: NetworkSegmenter, mask: np.ndarray) -> Remembered:
    return remember(segmenter, lesson(mask, (Click(tuple(int(v) for v in np.argwhere(mask).mean(0))),)), SIZE)


def let_go(policy: Adaptation, segmenter: NetworkSegmenter, new: Remembered) -> Generator[None, None, float]:
    return doubted(policy, segmenter, new, replayed(segmenter, new))


def test_an_untaught_model_has_nothing_to_let_go(segmenter):
    before = segmenter.snapshot()
    assert list(let_go(small("pi"), segmenter, new_object(segmenter, disk()))) == []
    assert segmenter.snapshot() is before


def test_what_helps_is_kept_bit_for_bit(tiny_segmenter, learnt):
    segmenter = tiny_segmenter()
    segmenter.restore(learnt)
    before = tensors(learnt)
    for _ in let_go(small("pi"), segmenter, new_object(segmenter, disk())):  # what it was taught
        assert equal(before, tensors(segmenter.snapshot()))  # between the steps it may be put to other use
    after = segmenter.snapshot()
    assert equal(before, tensors(after))
    assert after.worth[0] > learnt.worth[0]
    assert equal(dict(after.weights.items()), parameters(segmenter))


def test_what_harms_is_let_go_by_as_much(tiny_segmenter, learnt):
    """Taught that a disk is meant; what is meant now is what an untaught model says anyway."""
    fresh = tiny_segmenter()
    said = fresh.predict(picture(), Prompt((Click((35, 40)),))).mask
    assert 0.05 < said.mean() < 0.95
    accepted = Lesson(picture(), (Click((35, 40)),), said, "case")
    for full, share in ((1e-6, 1.0), (1e6, 0.0)):
        segmenter = tiny_segmenter()
        segmenter.restore(replace(learnt, worth=(0.0, 0.0)))
        assert outcome(let_go(small("pi", full_doubt=full), segmenter, remember(segmenter, accepted, SIZE))) == pytest.approx(
            share, abs=1e-4
        )
        after = segmenter.snapshot()
        assert after.worth[0] < 0
        assert after.worth[1] == 1.0
        expected = {k: torch.lerp(v, segmenter.base.weights[k], share) for k, v in learnt.weights.items()}
        for key, value in segmenter.network.named_parameters():
            torch.testing.assert_close(value.detach(), expected[key], atol=1e-5, rtol=0)
        assert after.memory == learnt.memory


def test_a_lesson_says_how_much_was_let_go(tiny_segmenter, learnt):
    segmenter = tiny_segmenter()
    said = segmenter.predict(picture(), Prompt((Click((35, 40)),))).mask
    segmenter.restore(replace(learnt, worth=(0.0, 0.0)))
    report = small("pi", full_doubt=1e-6).on_accept(segmenter, Lesson(picture(), (Click((35, 40)),), said, "case"))
    assert report.message.startswith("100 % of what was learnt before was let go, as the untaught model did better lately; then ")
    segmenter.restore(replace(learnt, worth=(0.0, 0.0)))
    assert "let go" not in small("pi").on_accept(segmenter, lesson()).message


def test_evidence_fades(tiny_segmenter, learnt):
    segmenter = tiny_segmenter()
    segmenter.restore(replace(learnt, worth=(10.0, 10.0)))
    for _ in let_go(small("pi"), segmenter, new_object(segmenter, disk())):
        pass
    assert segmenter.snapshot().worth[1] == pytest.approx(6.0)
    assert 5.0 < segmenter.snapshot().worth[0] < 6.0


# --- policies by name -------------------------------------------------------------------------------------------------------------------


def test_there_are_ten_policies_and_nothing_else():
    assert tuple(POLICIES) == ("none", "ia", "sa", "ia+sa", "mi", "pi", "mi+pi", "ia+pi", "recall", "practice")
    for name in POLICIES:
        policy = make_policy(name)
        assert isinstance(policy, AdaptationPolicy)
        assert policy.name == name
        assert (policy.ia, policy.sa, policy.mid, policy.post) == tuple(part in name.split("+") for part in ("ia", "sa", "mi", "pi"))
    with pytest.raises(InputError, match=r"'tsca'.*none, ia, sa, ia\+sa, mi, pi, mi\+pi, ia\+pi, recall, practice"):
        make_policy("tsca")


def test_a_policy_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        make_policy("mi").mid_rate = 1.0


@pytest.mark.parametrize("name", ["none", "sa", "pi"])
def test_without_mid_interaction_a_click_is_only_answered(segmenter, name):
    pixels, before = picture(), segmenter.snapshot()
    prompt = two_clicks(segmenter, pixels)
    assert same(small(name).on_click(segmenter, pixels, prompt), segmenter.predict(pixels, prompt))
    assert segmenter.snapshot() is before


@pytest.mark.parametrize("name", ["none", "ia", "mi"])
def test_without_post_interaction_a_mask_teaches_nothing(segmenter, name):
    before, weights = segmenter.snapshot(), parameters(segmenter)
    report = small(name).on_accept(segmenter, lesson())
    assert isinstance(report, LearningReport)
    assert not report.accepted
    assert segmenter.snapshot() is before
    assert equal(parameters(segmenter), weights)


# --- after a click ----------------------------------------------------------------------------------------------------------------------


def test_the_first_click_teaches_nothing(segmenter):
    before, pixels = segmenter.snapshot(), picture()
    answer = small("mi").on_click(segmenter, pixels, Prompt((Click((35, 40)),)))
    assert same(answer, segmenter.predict(pixels, Prompt((Click((35, 40)),))))
    assert segmenter.snapshot() is before


def taught_loss(policy: Adaptation, segmenter: NetworkSegmenter, pixels: ImageSlice, prompt: Prompt, said: Prediction) -> float:
    """The loss on ``said``, the answer with the newest click, of the model that has not seen that click."""
    known = segmenter.look(pixels, Prompt(prompt.clicks[:-1]), said.view, policy.size)
    clicks = [click_in_window(c, said.view, policy.size) for c in prompt.clicks]
    target = _targets.hardened(_targets.mask_in_window(said.mask, said.view, policy.size), clicks, policy.hard_radius_px)
    with torch.no_grad():
        logits, _ = segmenter.run(known.image, known.guidance, known.previous)
        return float(_point_and_learn.click_loss(policy, logits, target, [clicks[-1:]]))


@pytest.mark.parametrize("seed", range(4))
def test_a_later_click_brings_the_loss_on_what_it_taught_down(tiny_segmenter, seed):
    segmenter, pixels, policy = tiny_segmenter(seed), picture(), small("mi")
    prompt = two_clicks(segmenter, pixels)
    said = segmenter.predict(pixels, prompt)
    before = taught_loss(policy, segmenter, pixels, prompt, said)
    start = segmenter.snapshot()
    policy.on_click(segmenter, pixels, prompt)
    assert segmenter.snapshot() is not start
    assert segmenter.snapshot().steps == policy.mid_steps
    assert taught_loss(policy, segmenter, pixels, prompt, said) < before


@pytest.mark.parametrize("seed", range(3))
def test_a_corrected_click_is_needed_less_the_next_time(tiny_segmenter, seed):
    """Without the click, the model says more of what the click said than before."""
    segmenter, pixels, policy = tiny_segmenter(seed), picture(), small("mi", mid_rate=5e-4, mid_steps=4)
    prompt = two_clicks(segmenter, pixels)
    view = segmenter.predict(pixels, prompt).view
    known = segmenter.look(pixels, Prompt(prompt.clicks[:-1]), view, SIZE)
    at = click_in_window(prompt.clicks[-1], view, SIZE)

    def logit() -> float:
        with torch.no_grad():
            return float(segmenter.run(known.image, known.guidance, known.previous)[0][0, 0, round(at.row), round(at.col)])

    before = logit()
    policy.on_click(segmenter, pixels, prompt)
    assert logit() > before


def test_a_click_is_answered_at_once_and_the_next_one_by_what_was_learnt(segmenter):
    pixels = picture()
    prompt = two_clicks(segmenter, pixels)
    plain = segmenter.predict(pixels, prompt)
    assert same(small("mi", mid_rate=1e-3).on_click(segmenter, pixels, prompt), plain)
    assert not same(segmenter.predict(pixels, prompt), plain)


def test_in_the_paper_the_answer_is_that_of_the_model_after_learning(segmenter):
    pixels = picture()
    prompt = two_clicks(segmenter, pixels)
    plain = segmenter.predict(pixels, prompt)
    answer = small("mi", mid_rate=1e-3, mid_part="all", mid_again=True).on_click(segmenter, pixels, prompt)
    assert same(answer, segmenter.predict(pixels, prompt))
    assert not same(answer, plain)
    assert answer.mask[28, 44]


def test_a_click_teaches_what_comes_after_the_encoder(segmenter):
    before = parameters(segmenter)
    small("mi", mid_rate=1e-3, anchor=0.0).on_click(segmenter, picture(), two_clicks(segmenter, picture()))
    moved = {key.split(".")[0] for key, value in parameters(segmenter).items() if not torch.equal(value, before[key])}
    assert moved == {key.split(".")[0] for key in before} - {*segmenter.network.ENCODER, "to_iou"}  # which judges and is not judged
    assert all(parameter.requires_grad for parameter in segmenter.network.parameters())


def test_the_features_of_the_encoder_do_not_depend_on_what_a_click_teaches(segmenter):
    """What `ENCODER` promises: with its parameters the features are the same bit for bit."""
    known = segmenter.look(picture(), two_clicks(segmenter, picture()))
    shown = torch.cat([known.image, known.guidance, known.previous], 1)

    def features() -> list[torch.Tensor]:
        with torch.no_grad():
            return segmenter.network.levels(shown, segmenter.network._beside(known.image, known.guidance, ()))

    before = features()
    small("mi", mid_rate=1e-3).on_click(segmenter, picture(), two_clicks(segmenter, picture()))
    assert all(torch.equal(a, b) for a, b in zip(before, features(), strict=True))
    assert segmenter.snapshot().steps == 1


@pytest.mark.parametrize("lasts", [False, True])
def test_what_a_click_teaches_is_for_its_object_unless_it_is_to_last(segmenter, lasts):
    pixels, prompt, before = picture(), two_clicks(segmenter, picture()), parameters(segmenter)
    policy = small("mi", mid_rate=1e-3, mid_lasts=lasts)
    policy.on_click(segmenter, pixels, prompt)
    assert not equal(parameters(segmenter), before)
    policy.on_accept(segmenter, lesson())
    assert equal(parameters(segmenter), before) != lasts


def test_a_finished_mask_teaches_the_same_whether_its_clicks_taught_or_not(segmenter):
    pixels, prompt, start = picture(), two_clicks(segmenter, picture()), segmenter.snapshot()
    learnt = []
    for name in ("pi", "mi+pi"):
        segmenter.restore(start)
        policy = small(name, mid_rate=1e-3)
        policy.on_click(segmenter, pixels, prompt)
        policy.on_accept(segmenter, lesson())
        learnt.append(parameters(segmenter))
    assert equal(*learnt)


def test_the_next_object_begins_without_what_the_clicks_of_a_dropped_one_taught(segmenter):
    policy, pixels, before = small("mi+pi", mid_rate=1e-3), picture(), parameters(segmenter)
    policy.on_click(segmenter, pixels, two_clicks(segmenter, pixels))
    policy.on_click(segmenter, pixels, Prompt((Click((35, 40)),)))
    assert equal(parameters(segmenter), before)


def test_time_spent_learning_is_counted(segmenter):
    pixels = picture()
    small("mi").on_click(segmenter, pixels, two_clicks(segmenter, pixels))
    assert segmenter.clock["adapt"] > 0


# --- after a mask -----------------------------------------------------------------------------------------------------------------------


def test_the_loss_from_one_click_falls_over_several_rounds(segmenter):
    policy = small("pi", post_rate=2e-3, gate_margin=float("inf"))
    reports = [policy.on_accept(segmenter, lesson()) for _ in range(4)]
    assert all(report.accepted and report.elapsed_s > 0 for report in reports)
    assert reports[-1].loss_before < 0.8 * reports[0].loss_before
    assert "\n" not in reports[0].message


def test_an_accepted_object_is_found_better_from_one_click(segmenter, learnt):
    pixels, prompt = picture(), Prompt((Click((35, 40)),))
    before = segmenter.predict(pixels, prompt).mask
    segmenter.restore(learnt)
    after = segmenter.predict(pixels, prompt).mask
    iou = [(m & disk()).sum() / (m | disk()).sum() for m in (before, after)]
    assert iou[1] > max(iou[0], 0.6)


@pytest.mark.parametrize("mask", [np.zeros(SHAPE, bool), np.ones(SHAPE, bool)], ids=["empty", "full"])
def test_a_mask_of_everything_or_nothing_teaches_nothing(segmenter, mask):
    before, weights = segmenter.snapshot(), parameters(segmenter)
    report = small("mi+pi").on_accept(segmenter, Lesson(picture(), (Click((35, 40)),), mask))
    assert not report.accepted
    assert report.message == "nothing to learn"
    assert segmenter.snapshot() is before
    assert equal(parameters(segmenter), weights)


@pytest.mark.parametrize(
    "clicks", [(), (Click((5, 5), False),), (Click((5, 5)), Click((5, 5), False))], ids=["none", "negative", "outside"]
)
def test_painted_and_oddly_clicked_masks_teach_too(segmenter, clicks):
    report = small("pi").on_accept(segmenter, lesson(clicks=clicks))
    assert report.accepted
    assert np.isfinite([report.loss_before, report.loss_after]).all()


@pytest.mark.parametrize("mask", [disk(0, 0, 5), disk(35, 40, 0), disk(35, 40, 50)], ids=["corner", "pixel", "most"])
def test_objects_of_any_size_and_place_can_be_learnt(segmenter, mask):
    report = small("pi").on_accept(segmenter, lesson(mask, clicks=()))
    assert report.accepted
    assert all(bool(torch.isfinite(w).all()) for w in segmenter.snapshot().weights.values())


@pytest.mark.parametrize("error", [0.0, 0.2, 0.6, 0.9])
def test_the_rate_follows_from_how_wrong_the_first_answer_was(segmenter, monkeypatch, error):
    used = []
    monkeypatch.setattr(_point_and_learn, "advance", lambda of, loss, rate, anchor: not used.append(rate))
    monkeypatch.setattr(Batch, "ious", lambda batch, logits: [1 - error] * len(batch._views))
    small("pi", post_rate=1e-3, full_error=0.6).on_accept(segmenter, lesson())
    assert used == pytest.approx([1e-3 * min(error / 0.6, 1)] * len(used))
    used.clear()
    small("pi", post_rate=1e-3, full_error=0.0).on_accept(segmenter, lesson())
    assert used
    assert set(used) == {1e-3}


def test_memory_holds_the_newest_objects_and_no_more(segmenter):
    policy = small("pi", remembered=3, post_rounds=1)
    for count in range(5):
        policy.on_accept(segmenter, lesson(disk(30 + count), clicks=(Click((30 + count, 40)),), seed=count))
        assert len(segmenter.snapshot().memory) == min(count + 1, 3)
    rows = [item.clicks[0][0] for item in segmenter.snapshot().memory]
    newest = [remember(segmenter, lesson(disk(30 + i), clicks=(Click((30 + i, 40)),), seed=i), SIZE).clicks[0][0] for i in (2, 3, 4)]
    assert rows == newest
    size = sum(t.numel() * t.element_size() for m in segmenter.snapshot().memory for t in (m.images, m.targets))
    assert size == 3 * 2 * SIZE * SIZE * (3 * 2 + 1)  # two views, three channels in half precision and one of bool


def test_how_right_the_model_is_about_remembered_objects_is_found_out_once(segmenter, monkeypatch):
    policy, asked = small("pi", remembered=3, post_rounds=1), []
    found = _gate.marks_now
    monkeypatch.setattr(_gate, "marks_now", lambda of, objects: asked.append(len(objects)) or found(of, objects))
    for count in range(5):
        assert policy.on_accept(segmenter, lesson(disk(30 + count), clicks=(Click((30 + count, 40)),), seed=count)).accepted
        known = segmenter.snapshot()
        np.testing.assert_allclose(known.marks, found(segmenter, known.memory))
    assert asked == [1, 2, 3, 3, 1, 3, 1]  # all of them once, after each lesson, and never many at a time
    assert all(0 <= mark <= 1 for marks in known.marks for mark in marks)
    small("mi", mid_rate=1e-3).on_click(segmenter, picture(), two_clicks(segmenter, picture()))
    assert segmenter.snapshot().marks == ()  # other weights
    asked.clear()
    assert policy.on_accept(segmenter, lesson()).accepted
    assert asked == [3, 3, 1]


def test_a_refused_lesson_leaves_nothing_to_find_out_again(segmenter, learnt):
    segmenter.restore(replace(learnt, memory=learnt.memory[-3:], marks=learnt.marks[-3:]))
    wrong = lesson(~disk(), clicks=(Click((2, 2)),), seed=3)
    assert "would have lost" in small("pi", remembered=3, post_rate=2.0, post_rounds=2).on_accept(segmenter, wrong).message
    known = segmenter.snapshot()
    assert len(known.memory) == 3
    assert known.memory[-1].targets.float().mean() > 0.5  # the newest one is remembered, though not learnt from
    np.testing.assert_allclose(known.marks, _gate.marks_now(segmenter, known.memory), atol=1e-6)


def test_sizes_of_accepted_objects_are_remembered(segmenter):
    policy = small("pi", post_rounds=1)
    for _ in range(3):
        policy.on_accept(segmenter, lesson())
    total, squares, count = segmenter.snapshot().extent_log
    mean = np.log(np.sqrt(disk().sum()) / max(SHAPE))
    assert total / count == pytest.approx(mean)
    assert squares / count == pytest.approx(mean**2)
    assert 2 < count < 3


# --- the guards -------------------------------------------------------------------------------------------------------------------------


def test_what_makes_remembered_objects_worse_is_refused(segmenter, learnt):
    segmenter.restore(learnt)
    weights, moments = parameters(segmenter), tensors(learnt)
    wrong = lesson(~disk(), clicks=(Click((2, 2)),), seed=3)
    report = small("pi", post_rate=2.0, post_rounds=2).on_accept(segmenter, wrong)
    assert not report.accepted
    assert "remembered objects would have lost" in report.message
    assert "\n" not in report.message
    assert equal(parameters(segmenter), weights)
    assert equal(tensors(segmenter.snapshot()), moments)
    assert segmenter.snapshot().steps == learnt.steps


@pytest.mark.parametrize("name", ["pi", "sa"])
def test_what_is_too_much_is_learnt_by_a_quarter(segmenter, learnt, monkeypatch, name):
    """The gate goes back along the way that was gone; it takes no step again."""
    policy, other = small(name, gate_margin=0.01), lesson(disk(20, 30), clicks=(Click((20, 30)),), seed=5)
    segmenter.restore(learnt)
    whole = replace(policy, gate_margin=float("inf")).on_accept(segmenter, other)
    gone = segmenter.snapshot()
    segmenter.restore(learnt)
    marks = iter([((mark, mark),) * (len(learnt.memory) + 1) for mark in (0.0, 1.0)])

    def found_out(*_):
        yield
        return next(marks)

    monkeypatch.setattr(_gate, "found_out", found_out)
    report = policy.on_accept(segmenter, other)
    assert report.accepted
    assert (report.loss_before, report.loss_after) == (whole.loss_before, whole.loss_after)
    now = segmenter.snapshot()
    assert now.steps == gone.steps
    assert not equal(dict(gone.weights), dict(learnt.weights))
    for key, value in parameters(segmenter).items():
        assert torch.equal(value, now.weights[key])
        assert torch.equal(value, torch.lerp(learnt.weights[key], gone.weights[key], 0.25))
        if gone.weights[key] is learnt.weights[key]:
            assert now.weights[key] is learnt.weights[key]  # nothing that did not move is kept twice


def test_without_the_gate_the_same_would_be_learnt(segmenter, learnt):
    segmenter.restore(learnt)
    wrong = lesson(~disk(), clicks=(Click((2, 2)),), seed=3)
    report = small("pi", post_rate=2.0, post_rounds=2, gate_margin=float("inf")).on_accept(segmenter, wrong)
    assert report.accepted
    assert not equal(parameters(segmenter), dict(learnt.weights))


def poisoned(factor: float):
    """A dice-focal loss whose value or gradient is far out of range."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return dice_focal(logits, target) * factor

    return loss


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e38, 1e25], ids=str)
def test_a_loss_out_of_range_leaves_everything_as_it_was(segmenter, monkeypatch, factor):
    pixels = picture()
    prompt = two_clicks(segmenter, pixels)
    small("mi+pi").on_accept(segmenter, lesson())
    plain, before, weights = segmenter.predict(pixels, prompt), segmenter.snapshot(), tensors(segmenter.snapshot())
    monkeypatch.setattr(_point_and_learn, "dice_focal", poisoned(factor))
    answer = small("mi+pi").on_click(segmenter, pixels, prompt)
    assert same(answer, plain)
    assert segmenter.snapshot() is before
    report = small("mi+pi").on_accept(segmenter, lesson())
    assert not report.accepted
    assert "refused" in report.message
    assert equal(tensors(segmenter.snapshot()), weights)
    assert equal(parameters(segmenter), dict(before.weights))


def test_of_several_steps_all_count_or_none(segmenter, monkeypatch):
    pixels = picture()
    prompt = two_clicks(segmenter, pixels)
    plain, before = segmenter.predict(pixels, prompt), segmenter.snapshot()
    losses = iter([1.0, float("nan")])
    monkeypatch.setattr(_point_and_learn, "dice_focal", lambda logits, target: dice_focal(logits, target) * next(losses))
    assert same(small("mi", mid_steps=2).on_click(segmenter, pixels, prompt), plain)
    assert segmenter.snapshot() is before
    assert equal(parameters(segmenter), dict(before.weights))


def test_the_anchor_pulls_towards_the_shipped_weights(segmenter):
    pixels = picture()
    free, held = small("mi", mid_rate=1e-3, anchor=0.0), small("mi", mid_rate=1e-3, anchor=0.5)
    distances = []
    for policy in (free, held):
        segmenter.restore(segmenter.base)
        policy.on_click(segmenter, pixels, two_clicks(segmenter, pixels))
        distances.append(sum(float((v - segmenter.base.weights[k]).abs().sum()) for k, v in segmenter.snapshot().weights.items()))
    assert distances[1] == pytest.approx(0.5 * distances[0], rel=1e-3)


def test_a_step_is_adams(tiny_segmenter, segmenter):
    """Against torch's own optimiser, over three steps with carried moments."""
    torch.manual_seed(4)
    inputs = [torch.randn(1, c, 32, 32) for c in (3, 2, 1)]
    reference = tiny_segmenter().network
    optimiser = torch.optim.Adam(reference.parameters(), lr=1e-3, fused=True)
    for _ in range(3):
        optimiser.zero_grad()
        reference(*inputs).logits.square().mean().backward()
        optimiser.step()
        assert _step.advance(segmenter, segmenter.run(*inputs)[0].square().mean(), 1e-3, 0.0)
    for (name, mine), theirs in zip(segmenter.network.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_a_step_does_not_ask_how_tensors_lie_in_memory(segmenter):
    """What comes back from a file lies otherwise than what was learnt."""
    torch.manual_seed(4)
    inputs = [torch.randn(1, c, 32, 32) for c in (3, 2, 1)]
    start, learnt, strides = segmenter.snapshot(), [], []
    for layout in (torch.contiguous_format, torch.channels_last):
        segmenter.restore(start)
        for _ in range(3):
            assert _step.advance(segmenter, segmenter.run(*inputs)[0].square().mean(), 1e-3, 0.0)
            known = segmenter.snapshot()
            lying = {
                part: Tensors({k: v.contiguous(memory_format=layout) if v.ndim == 4 else v for k, v in getattr(known, part).items()})
                for part in ("weights", "first", "second")
            }
            segmenter.restore(replace(known, **lying))
        learnt.append(parameters(segmenter))
        strides.append([v.stride() for v in segmenter.snapshot().first.values()])
    assert strides[0] != strides[1]
    for name, values in learnt[0].items():
        torch.testing.assert_close(values, learnt[1][name], rtol=0, atol=0, msg=name)


# --- bit for bit ------------------------------------------------------------------------------------------------------------------------

actions = st.lists(
    st.one_of(st.tuples(st.integers(0, SHAPE[0] - 1), st.integers(0, SHAPE[1] - 1), st.booleans()), st.just("accept")),
    min_size=1,
    max_size=6,
)


def act(segmenter: NetworkSegmenter, policy: Adaptation, sequence: list) -> list[tuple[Knowledge, dict[str, Tensor]]]:
    """Do as a session does; the knowledge after every action, and a copy of its tensors."""
    pixels, clicks, answer, trail = picture(), (), None, []
    for action in sequence:
        if action == "accept":
            policy.on_accept(segmenter, Lesson(pixels, clicks, disk() if answer is None else answer.mask))
            clicks, answer = (), None
        else:
            clicks = (*clicks, Click(action[:2], action[2]))
            answer = policy.on_click(segmenter, pixels, Prompt(clicks, answer))
        trail.append((segmenter.snapshot(), tensors(segmenter.snapshot())))
    return trail


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "none"])
@settings(max_examples=5)
@given(actions, st.permutations(range(6)), st.sampled_from([0, 1 << 30]))
def test_every_state_can_be_had_back_bit_for_bit(tiny_segmenter, name, sequence, order, budget):
    segmenter = tiny_segmenter()
    segmenter._shelf.budget_bytes = budget
    start, weights = segmenter.snapshot(), parameters(segmenter)
    trail = act(segmenter, small(name, mid_rate=1e-3, ia_rate=1e-3, sa_rate=1e-3, ia_steps=2, post_rounds=1), sequence)
    for i in order:
        knowledge, expected = trail[i % len(trail)]
        segmenter.restore(knowledge)
        assert equal(tensors(segmenter.snapshot()), expected)
        assert equal(
            {f"weight/{k}": v for k, v in parameters(segmenter).items()}, {k: v for k, v in expected.items() if "weight/" in k[:7]}
        )
    segmenter.restore(start)
    assert equal(parameters(segmenter), weights)
    assert equal(dict(start.weights), weights)


@pytest.mark.parametrize("name", ["mi+pi", "ia+sa"])
@settings(max_examples=5)
@given(actions)
def test_the_same_work_teaches_the_same(tiny_segmenter, name, sequence):
    trails = [act(tiny_segmenter(), small(name, ia_steps=2, post_rounds=1), sequence) for _ in range(2)]
    for (_, first), (_, second) in zip(*trails, strict=True):
        assert equal(first, second)


@pytest.mark.parametrize("name", ["mi+pi", "ia+sa", "ia+pi"])
def test_work_done_again_after_an_undo_teaches_the_same(segmenter, name):
    policy, work = (
        small(name, ia_steps=2, post_rounds=1),
        [(35, 40, True), (20, 20, False), "accept", (30, 40, True), (35, 48, True), "accept"],
    )
    trail = act(segmenter, policy, work[:3])
    once = act(segmenter, policy, work[3:])[-1][1]
    segmenter.restore(trail[-1][0])
    assert equal(act(segmenter, policy, work[3:])[-1][1], once)


# --- what is taught, in detail ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.lists(
        st.builds(WindowClick, st.integers(-8, 60).map(lambda v: v / 4), st.integers(-8, 60).map(lambda v: v / 4), st.booleans()),
        max_size=4,
    ),
    st.sampled_from([0.0, 1.5, 3.0]),
    st.integers(0, 100),
)
def test_around_a_click_the_target_says_what_the_nearest_click_said(clicks, radius, seed):
    target = (torch.rand(1, 1, 12, 14, generator=torch.Generator().manual_seed(seed)) > 0.5).float()
    found = _targets.hardened(target, clicks, radius)
    for row in range(12):
        for col in range(14):
            near = sorted(((row - c.row) ** 2 + (col - c.col) ** 2, i) for i, c in enumerate(clicks))
            expected = float(clicks[near[0][1]].positive) if near and near[0][0] <= radius**2 else float(target[0, 0, row, col])
            assert float(found[0, 0, row, col]) == expected


@settings(max_examples=60)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_corrections_are_one_true_word_on_each_of_the_largest_errors(seed, most):
    rng = np.random.default_rng(seed)
    mask, target = (ndimage.gaussian_filter(rng.standard_normal((40, 40)), 2) > 0 for _ in range(2))
    found = _point_and_learn.corrections(mask, target, rng, most)
    parts, _ = ndimage.label(mask != target, structure=np.ones((3, 3)))
    areas = np.bincount(parts.ravel())[1:]
    hit = [int(parts[int(c.row), int(c.col)]) for c in found]
    assert 0 not in hit
    assert len(set(hit)) == len(hit) == min(most, int((areas >= 4).sum()))
    assert sorted((areas[p - 1] for p in hit), reverse=True) == sorted(areas, reverse=True)[: len(hit)]
    assert all(c.positive == bool(target[int(c.row), int(c.col)]) for c in found)


@settings(max_examples=40)
@given(st.integers(0, 69), st.integers(0, 79), st.integers(0, 30))
def test_remembered_views_show_the_object_and_its_clicks(tiny_segmenter, row, col, radius):
    segmenter, mask = tiny_segmenter(), disk(row, col, radius)
    click = Click((row, col))
    far, near = lesson_windows(segmenter, mask, (click,))
    rows, cols = np.nonzero(mask)
    assert near.top <= rows.min()
    assert rows.max() < near.bottom
    assert near.left <= cols.min()
    assert cols.max() < near.right
    for window in (far, near):
        assert window.top <= row < window.bottom
        assert window.left <= col < window.right
    kept = remember(segmenter, Lesson(picture(mask), (click,), mask), 32)
    assert kept.images.shape == (2, 3, 32, 32)
    assert kept.images.dtype == torch.float16
    assert kept.targets.shape == (2, 1, 32, 32)
    assert kept.targets.dtype == torch.bool
    assert [len(clicks) for clicks in kept.clicks] == [1, 1]


def test_slices_of_one_object_are_known_whatever_their_image_is_called(tiny_segmenter):
    segmenter, mask = tiny_segmenter(), disk(30, 40)
    of = [
        remember(segmenter, Lesson(picture(mask), (Click((30, 40)),), mask, case, label), 32).of
        for case, label in (("scan \udcff", 1), ("scan \udcff", 1), ("scan \udcfe", 1), ("scan \udcff", 2), ("scan", 0))
    ]
    assert of[0] == of[1]
    assert len(set(of)) == 4
    assert of[4] == ""


@pytest.mark.parametrize(
    ("clicks", "signs"),
    [
        ((), [True]),
        ((Click((35, 10), False), Click((60, 40), False)), [True, False, False]),
        ((Click((35, 10)), Click((35, 10), False)), [True, False]),  # taken back
        ((Click((35, 40), False),), [True]),  # painted over
        ((Click((35, 10), False), Click((30, 40))), [False, True]),
    ],
)
def test_an_object_is_remembered_with_a_click_that_says_where_it_is(tiny_segmenter, clicks, signs):
    kept = remember(tiny_segmenter(), lesson(clicks=clicks), 32)
    assert [[c.positive for c in view] for view in kept.clicks] == [signs, signs]
    for (first,), target in zip(Batch([kept], torch.device("cpu")).firsts, kept.targets, strict=True):
        assert first.positive
        assert target[0, round(first.row), round(first.col)]


# --- step by step ---


@pytest.mark.parametrize("name", ["pi", "mi+pi", "ia+sa"])
def test_a_segmenter_that_is_used_between_the_steps_learns_the_same(tiny_segmenter, name):
    ends = []
    for used in (False, True):
        segmenter = tiny_segmenter()
        policy, begun = small(name), segmenter.snapshot()
        steps, count = policy.learning(segmenter, lesson()), 0
        while True:
            try:
                next(steps)
            except StopIteration as end:
                ends.append((end.value, tensors(segmenter.snapshot())))
                break
            count += 1
            if used:
                reached = segmenter.snapshot()
                segmenter.restore(begun)
                policy.on_click(segmenter, picture(), Prompt((Click((20, 20)),)))
                segmenter.restore(reached)
        assert count > 2 or name == "ia+sa"
    assert equal(ends[0][1], ends[1][1])
    assert replace(ends[0][0], elapsed_s=0) == replace(ends[1][0], elapsed_s=0)


def test_the_steps_are_as_many_as_the_optimiser_takes(segmenter):
    policy = small("pi", post_rounds=3)
    assert sum(1 for _ in policy.learning(segmenter, lesson())) == 2 * 3 + 3
    assert segmenter.snapshot().steps == 2 * 3
