"""Practice between two lessons: exact however it is interrupted, of no account before it was judged, in force while it leads."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_apprentice.adaptation import POLICIES, Adaptation, _practice
from napari_apprentice.adaptation._practice import practised
from napari_apprentice.knowledge import Knowledge, KnowledgeStore
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.types import Click, ImageSlice, Lesson, Prompt, outcome

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (70, 80)


def small(**changes: object) -> Adaptation:
    """The policy in small windows and small batches."""
    return replace(POLICIES["practice"], **{"size": 32, "plausible": 0.0, "practice": 3, "practice_batch": 4, **changes})


def lesson(number: int = 0) -> Lesson:
    """A disk in noise, in another place for every number."""
    centre = (25 + 5 * (number % 5), 30 + 4 * (number % 6))
    rows, cols = np.indices(SHAPE)
    mask = (rows - centre[0]) ** 2 + (cols - centre[1]) ** 2 <= 14**2
    noise = np.random.default_rng(number).integers(0, 60, (1, *SHAPE))
    return Lesson(ImageSlice((noise + 120 * mask).astype(np.uint8)), (Click(centre), Click((2, 2), False)), mask, "case", number + 1)


def parameters(segmenter: NetworkSegmenter) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in segmenter.network.named_parameters()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], v) for k, v in second.items())


def ahead(segmenter: NetworkSegmenter) -> dict[str, Tensor]:
    return dict(practised(segmenter).reached.weights)


def judged(monkeypatch: pytest.MonkeyPatch, *gains: float) -> None:
    """Practised weights are found to be so much better, one lesson after the other, than the shipped ones are."""
    found = iter([value for gain in gains for value in (0.5, 0.5 + gain)])

    def tried(*_: object) -> Generator[None, None, float]:
        yield
        return next(found)

    monkeypatch.setattr(_practice, "tried", tried)


def test_only_who_practises_keeps_what_lies_around_an_object(segmenter):
    for name in ("recall", "pi", "practice"):
        replace(POLICIES[name], size=32).on_accept(segmenter, lesson())
    assert [one.ground is None for one in segmenter.snapshot().memory] == [True, True, False]


def test_what_another_policy_taught_is_practised_on_and_not_lost(segmenter, monkeypatch):
    judged(monkeypatch, 0.1)
    replace(POLICIES["pi"], size=32, plausible=0.0, gate_margin=float("inf")).on_accept(segmenter, lesson())
    taught = segmenter.snapshot()
    assert not equal(dict(taught.weights), dict(segmenter.base.weights))
    small(full_doubt=0.0).on_accept(segmenter, lesson(1))
    for key, value in taught.weights.items():
        torch.testing.assert_close(segmenter.snapshot().weights[key], value, rtol=1e-3, atol=1e-5)


# --- while it goes on -------------------------------------------------------------------------------------------------------------------


def test_without_a_memory_there_is_nothing_to_practise(segmenter):
    assert outcome(small().practising(segmenter)) == 0


def test_policies_that_do_not_practise_take_no_step(segmenter):
    POLICIES["recall"].on_accept(segmenter, lesson())
    for name in POLICIES.keys() - {"practice"}:
        assert list(POLICIES[name].practising(segmenter)) == [], name


def test_what_is_remembered_without_its_surroundings_is_not_practised(segmenter):
    small().on_accept(segmenter, lesson())
    known = segmenter.snapshot()
    segmenter.restore(replace(known, memory=tuple(replace(one, ground=None) for one in known.memory)))
    assert outcome(small().practising(segmenter)) == 0


def test_what_is_kept_of_an_object_shows_it_and_its_surroundings(segmenter):
    small().on_accept(segmenter, lesson())
    (one,) = segmenter.snapshot().memory
    assert one.ground.dtype == torch.uint8
    assert one.ground.shape[0] == 4
    inside = one.ground[3].bool()
    assert set(one.ground[3].unique().tolist()) == {0, 1}
    pixels = one.ground[0].float()
    assert pixels[inside].mean() > pixels[~inside].mean() + 50  # it is brighter than what is around it
    assert inside.float().mean() == pytest.approx(np.pi * 14**2 / one.ground.shape[1] ** 2, rel=0.25)


def test_nothing_of_it_counts_before_the_next_lesson(segmenter):
    policy = small()
    policy.on_accept(segmenter, lesson())
    known, weights, prompt = segmenter.snapshot(), parameters(segmenter), Prompt((Click((30, 40)),))
    answer = segmenter.predict(lesson().image_slice, prompt).logits
    for _ in policy.practising(segmenter):
        assert segmenter.snapshot() is known
        assert equal(parameters(segmenter), weights)
    assert segmenter.snapshot() is known
    assert equal(parameters(segmenter), weights)
    assert np.array_equal(segmenter.predict(lesson().image_slice, prompt).logits, answer)
    assert practised(segmenter).steps == 3
    assert not equal(ahead(segmenter), weights)


def test_however_it_is_interrupted_the_same_steps_lead_to_the_same(tiny_segmenter):
    found = []
    for interrupted in (False, True):
        segmenter, policy = tiny_segmenter(), small()
        policy.on_accept(segmenter, lesson())
        if interrupted:
            for _ in policy.practising(segmenter, 1):
                segmenter.predict(lesson(3).image_slice, Prompt((Click((30, 40)),)))
            steps = policy.practising(segmenter)  # left in the middle of a step
            next(steps), next(steps)
            steps.close()
            torch.manual_seed(5)
        assert outcome(policy.practising(segmenter)) == 3
        found.append(ahead(segmenter))
    assert equal(*found)


def test_it_ends_where_something_else_comes_into_force(segmenter):
    policy = small(practice=50)
    policy.on_accept(segmenter, lesson())
    steps = policy.practising(segmenter)
    next(steps)
    policy.on_accept(segmenter, lesson(1))
    known = segmenter.snapshot()
    assert list(steps) == []
    assert segmenter.snapshot() is known
    assert practised(segmenter).steps == 0


def test_a_step_that_is_not_finite_ends_it(segmenter, monkeypatch):
    policy = small()
    policy.on_accept(segmenter, lesson())
    known = segmenter.snapshot()
    plain = _practice._gradients
    poisoned = lambda *of: {key: grad * float("nan") for key, grad in plain(*of).items()}  # noqa: E731
    monkeypatch.setattr(_practice, "_gradients", poisoned)
    assert outcome(policy.practising(segmenter)) == 0
    assert segmenter.snapshot() is known


def test_an_error_leaves_the_model_as_it_was(segmenter, monkeypatch):
    policy = small()
    policy.on_accept(segmenter, lesson())
    known, weights = segmenter.snapshot(), parameters(segmenter)
    monkeypatch.setattr(_practice.exercises, "loss_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        outcome(policy.practising(segmenter))
    assert segmenter.snapshot() is known
    assert equal(parameters(segmenter), weights)


@pytest.mark.slow
def test_an_object_is_found_better_after_practice(segmenter):
    policy = small(practice=60, practice_rate=4e-3)
    policy.on_accept(segmenter, lesson())
    outcome(policy.practising(segmenter))
    others = [lesson(number) for number in range(1, 7)]

    def right() -> float:
        masks = [segmenter.predict(other.image_slice, Prompt(other.clicks[:1])).mask for other in others]
        return float(np.mean([(m & o.mask).sum() / (m | o.mask).sum() for m, o in zip(masks, others, strict=True)]))

    before = right()
    segmenter.restore(replace(segmenter.snapshot(), weights=practised(segmenter).reached.weights))
    assert right() > before + 0.2


def test_all_weights_that_take_part_are_practised(segmenter):
    policy = small()
    policy.on_accept(segmenter, lesson())
    outcome(policy.practising(segmenter))
    kept = {key for key, value in ahead(segmenter).items() if torch.equal(value, segmenter.base.weights[key])}
    assert not {key for key in kept if not key.startswith(("recall", "similar"))}
    assert practised(segmenter).reached.first.keys() == practised(segmenter).reached.second.keys()


def test_what_comes_into_force_is_the_fading_mean_of_where_the_steps_led(segmenter):
    policy = small()
    policy.on_accept(segmenter, lesson())
    expected = dict(segmenter.base.weights)
    for number in range(1, 4):
        outcome(policy.practising(segmenter, number))
        expected = {key: 0.95 * expected[key] + 0.05 * value for key, value in ahead(segmenter).items()}
    for key, value in practised(segmenter).reached.practised.items():
        torch.testing.assert_close(value, expected[key])


# --- when it counts ---------------------------------------------------------------------------------------------------------------------


def learn(policy: Adaptation, segmenter: NetworkSegmenter, number: int) -> Knowledge:
    outcome(policy.practising(segmenter))
    assert policy.on_accept(segmenter, lesson(number)).accepted
    return segmenter.snapshot()


def test_what_leads_comes_into_force(segmenter, monkeypatch):
    judged(monkeypatch, 0.1)
    policy = small()
    policy.on_accept(segmenter, lesson())
    outcome(policy.practising(segmenter))
    reached, mean = ahead(segmenter), practised(segmenter).reached.practised
    report = policy.on_accept(segmenter, lesson(1))
    known = segmenter.snapshot()
    assert report.practised == 3
    assert "what was practised on the 1 before it counts" in report.message
    assert known.weights is known.practised
    assert known.steps == 3
    assert equal(parameters(segmenter), dict(known.weights))
    for found, expected in ((known.practised, mean), (known.ahead, reached)):
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5)  # as precise as half precision


def test_what_does_not_lead_stays_out_of_force_and_is_practised_on(segmenter, monkeypatch):
    judged(monkeypatch, -0.1, 0.3)
    policy = small()
    policy.on_accept(segmenter, lesson())
    known = learn(policy, segmenter, 1)
    assert equal(parameters(segmenter), dict(segmenter.base.weights))
    assert not equal(dict(known.practised), dict(segmenter.base.weights))
    assert equal(ahead(segmenter), dict(known.ahead))  # that is where it goes on
    known = learn(policy, segmenter, 2)  # 0.9 · -0.1 + 0.3
    assert known.lead == pytest.approx((0.21, 1.9))
    assert known.weights is known.practised
    assert known.steps == 6


def test_a_lead_that_is_lost_takes_it_out_of_force(segmenter, monkeypatch):
    judged(monkeypatch, 0.1, -0.2)
    policy = small()
    policy.on_accept(segmenter, lesson())
    learn(policy, segmenter, 1)
    report_of = policy.on_accept
    outcome(policy.practising(segmenter))
    report = report_of(segmenter, lesson(2))
    assert "does not help yet" in report.message
    assert equal(parameters(segmenter), dict(segmenter.base.weights))


def test_a_lesson_without_practice_before_it_keeps_what_is_in_force(segmenter, monkeypatch):
    judged(monkeypatch, 0.1, 0.1)
    policy = small()
    policy.on_accept(segmenter, lesson())
    before = learn(policy, segmenter, 1)
    report = policy.on_accept(segmenter, lesson(2))
    assert report.practised == 0
    assert "practised" not in report.message
    assert equal(parameters(segmenter), dict(before.weights))


def test_a_mask_that_is_doubted_leaves_what_is_in_force(segmenter, monkeypatch):
    judged(monkeypatch, 0.1)
    policy = small()
    for number in range(4):
        policy.on_accept(segmenter, lesson(number))
    known = learn(policy, segmenter, 4)
    doubting = replace(policy, plausible=1.1, standing_out=1e9)
    outcome(doubting.practising(segmenter))
    report = doubting.on_accept(segmenter, lesson(5))
    assert report.refused
    assert segmenter.snapshot() is known
    assert equal(parameters(segmenter), dict(known.weights))


@pytest.mark.parametrize("gain", [0.1, -0.1], ids=["in force", "not in force"])
def test_it_is_on_the_disk_bit_for_bit(segmenter, monkeypatch, tmp_path, gain):
    judged(monkeypatch, gain)
    policy, store = small(), KnowledgeStore(segmenter.base, "0")
    policy.on_accept(segmenter, lesson())
    known = learn(policy, segmenter, 1)
    store.save(known, tmp_path / "known.safetensors")
    loaded = store.load(tmp_path / "known.safetensors")
    assert equal(dict(loaded.weights), dict(known.weights))
    assert equal(dict(loaded.practised), dict(known.practised))
    assert equal(dict(loaded.ahead), dict(known.ahead))
    assert (loaded.weights is loaded.practised) == (known.weights is known.practised)
    assert (loaded.lead, loaded.steps) == (known.lead, known.steps)
    assert all(torch.equal(a.ground, b.ground) for a, b in zip(loaded.memory, known.memory, strict=True))
    outcome(policy.practising(segmenter))
    reached = ahead(segmenter)
    segmenter.restore(loaded)
    outcome(policy.practising(segmenter))
    assert equal(ahead(segmenter), reached)


def test_a_network_that_reads_no_examples_practises_all_the_same(segmenter, monkeypatch):
    judged(monkeypatch, 0.1)
    assert not segmenter.reads_examples
    policy = small()
    policy.on_accept(segmenter, lesson())
    outcome(policy.practising(segmenter))
    assert policy.on_accept(segmenter, lesson(1)).message == "remembered; what was practised on the 1 before it counts"
    known = segmenter.snapshot()
    assert known.examples == 0
    assert known.weights is known.practised


def test_what_was_not_practised_is_not_weighed_after_a_resume(segmenter, tmp_path):
    policy, store = small(), KnowledgeStore(segmenter.base, "0")
    policy.on_accept(segmenter, lesson())
    store.save(segmenter.snapshot(), tmp_path / "known.safetensors")
    segmenter.restore(store.load(tmp_path / "known.safetensors"))
    assert "practised" not in policy.on_accept(segmenter, lesson(1)).message
    assert segmenter.snapshot().lead == (0.0, 0.0)
    assert segmenter.snapshot().practised is None
