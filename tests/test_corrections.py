"""Learning from Corrections: the loss worked by hand, what an object teaches for itself alone, and what stays after it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from napari_apprentice.adaptation import POLICIES, Adaptation, _corrections, remember
from napari_apprentice.adaptation._corrections import SequenceAdaptation, click_cross_entropy, clicked_pixels, correction_loss, drift
from napari_apprentice.guidance import WindowClick
from napari_apprentice.knowledge import Knowledge, KnowledgeStore
from napari_apprentice.segmenter import HELD_LOGIT, NetworkSegmenter
from napari_apprentice.types import Click, ImageSlice, InputError, Lesson, Prediction, Prompt

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (70, 80)
SIZE = 32
ON, OFF = Click((35, 40)), Click((35, 10), False)
IMAGE_POLICIES = ("ia", "ia+sa", "ia+pi")


def small(name: str, **changes: object) -> Adaptation:
    """The policy of that name in small windows, without the guards that have tests of their own."""
    few = {"size": SIZE, "procedural": 0, "plausible": 0.0, "ia_rate": 2e-3, "ia_steps": 3, "sa_rate": 1e-3, "post_rounds": 1}
    return replace(POLICIES[name], **(few | changes))


def disk(row: float = 35, col: float = 40, radius: float = 14) -> np.ndarray:
    rows, cols = np.indices(SHAPE)
    return (rows - row) ** 2 + (cols - col) ** 2 <= radius**2


def picture(seed: int = 0) -> ImageSlice:
    noise = np.random.default_rng(seed).integers(0, 60, (1, *SHAPE))
    return ImageSlice((noise + 120 * disk()).astype(np.uint8))


def lesson(clicks: tuple[Click, ...] = (ON, OFF, Click((28, 44)))) -> Lesson:
    return Lesson(picture(), clicks, disk(), "case")


def work(policy: Adaptation, segmenter: NetworkSegmenter, clicks: tuple[Click, ...] = (ON, OFF)) -> Prediction:
    """Click an object; the last answer."""
    answer = None
    for count in range(1, len(clicks) + 1):
        answer = policy.on_click(segmenter, picture(), Prompt(clicks[:count], answer))
    return answer


def parameters(segmenter: NetworkSegmenter) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in segmenter.network.named_parameters()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], v) for k, v in second.items())


def same_knowledge(first: Knowledge, second: Knowledge) -> bool:
    """Bit for bit."""
    parts = all(equal(dict(getattr(first, part)), dict(getattr(second, part))) for part in ("weights", "first", "second"))
    memory = len(first.memory) == len(second.memory) and all(
        torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets) and a.clicks == b.clicks
        for a, b in zip(first.memory, second.memory, strict=True)
    )
    return parts and memory and (first.steps, first.extent_log) == (second.steps, second.extent_log)


def distance(segmenter: NetworkSegmenter) -> float:
    """How far the weights are from the shipped ones."""
    return sum(float((v - segmenter.base.weights[k]).abs().sum()) for k, v in segmenter.snapshot().weights.items())


# --- the loss ---------------------------------------------------------------------------------------------------------------------------


def test_the_click_term_by_hand():
    """p = 1/2 at a positive click: ln 2. p = 3/4 at a negative one: ln 4. Their mean is 1.5 ln 2; other pixels do not count."""
    logits = torch.tensor([[0.0, math.log(3)], [50.0, -50.0]], dtype=torch.float64)[None, None]
    clicks = [WindowClick(0, 0, True), WindowClick(0, 1, False)]
    assert float(click_cross_entropy(logits, clicks)) == pytest.approx(1.5 * math.log(2), rel=1e-14)
    assert float(click_cross_entropy(logits, clicks[1:])) == pytest.approx(2 * math.log(2), rel=1e-14)
    assert float(click_cross_entropy(logits, [])) == 0


def test_clicks_become_pixels():
    clicks = [WindowClick(0.4, 1.6, True), WindowClick(-0.2, 2.3, False), WindowClick(-0.6, 0, True), WindowClick(1, 3.6, True)]
    assert clicked_pixels(clicks, (2, 4)) == {(0, 2): False}
    assert clicked_pixels([*clicks, WindowClick(1.4, 0, True)], (2, 4)) == {(0, 2): False, (1, 0): True}


def test_drift_by_hand():
    weights = {"a": torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True), "b": torch.tensor(3.0, dtype=torch.float64)}
    start = {"a": torch.tensor([0.0, 4.0], dtype=torch.float64), "b": torch.tensor(3.5, dtype=torch.float64)}
    importance = {"a": torch.tensor([10.0, 0.5], dtype=torch.float64), "b": torch.tensor(2.0, dtype=torch.float64)}
    found = drift(weights, start, importance)
    assert float(found.detach()) == 10 * 1 + 0.5 * 4 + 2 * 0.25
    assert torch.autograd.grad(found, weights["a"])[0].tolist() == [2 * 10 * 1, 2 * 0.5 * -2]
    assert float(drift(weights, start, {}).detach()) == 1 + 4 + 0.25


@settings(max_examples=40)
@given(st.floats(0, 1), st.floats(0, 5), st.floats(0, 9), st.integers(0, 999))
def test_lambda_and_gamma_weigh_the_three_terms(lam, gamma, held, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 1, 6, 5, generator=generator, dtype=torch.float64)
    masks = (torch.rand(2, 1, 6, 5, generator=generator) > 0.5).double()
    clicks = [[WindowClick(1, 2, True)], [WindowClick(0, 0, False), WindowClick(5, 4, True)]]

    def loss(lam: float, gamma: float) -> float:
        return float(correction_loss(logits, masks, clicks, torch.tensor(held, dtype=torch.float64), lam, gamma))

    told = sum(float(click_cross_entropy(z[None], c)) for z, c in zip(logits, clicks, strict=True)) / 2
    p = 1 / (1 + torch.exp(-logits))
    at_first = float(-(masks * p.log() + (1 - masks) * (1 - p).log()).mean())
    assert loss(1, 0) == pytest.approx(told, rel=1e-12)
    assert loss(0, 0) == pytest.approx(at_first, rel=1e-12)
    assert loss(lam, gamma) == pytest.approx(lam * told + (1 - lam) * at_first + gamma * held, rel=1e-12, abs=1e-12)


def test_the_papers_numbers_are_the_defaults():
    policy = POLICIES["ia+sa"]
    assert (policy.ia_steps, policy.ia_lambda, policy.ia_gamma) == (10, 1.0, 1.0)
    assert (policy.sa_steps, policy.sa_lambda, policy.sa_gamma, policy.sa_guidance) == (1, 0.5, 2.0, "subset")


@pytest.mark.parametrize(
    "wrong", [{"sa_guidance": "some"}, {"sa_regularise_to": "truth"}, {"click_form": "l2"}, {"ia": True, "mid": True}], ids=str
)
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(InputError, match="expected one of"):
        Adaptation("mine", **wrong)


# --- one object -------------------------------------------------------------------------------------------------------------------------


def said(segmenter: NetworkSegmenter, click: Click, clicks: tuple[Click, ...]) -> float:
    """The network's own logit at a click, signed so that positive means obeyed."""
    view = segmenter.look(picture(), Prompt(clicks), segmenter.predict(picture(), Prompt(clicks)).view, SIZE)
    with torch.no_grad():
        logits, _ = segmenter.run(view.image, view.guidance, view.previous)
    at = view.clicks[clicks.index(click)]
    logit = float(logits[0, 0, round(at.row), round(at.col)])
    return logit if click.positive else -logit


@pytest.mark.parametrize("name", IMAGE_POLICIES)
@pytest.mark.parametrize("click", [ON, Click((20, 20), False)], ids=["positive", "negative"])
def test_an_object_that_is_clicked_makes_the_click_obeyed_more(segmenter, name, click):
    before = said(segmenter, click, (click,))
    work(small(name), segmenter, (click,))
    assert said(segmenter, click, (click,)) > before + 0.05


@pytest.mark.parametrize("name", IMAGE_POLICIES)
def test_every_click_goes_on_from_the_one_before(segmenter, name):
    start = segmenter.snapshot()
    policy = small(name)
    for count, steps in ((1, 3), (2, 6), (3, 9)):
        work(policy, segmenter, (ON, OFF, Click((28, 44)))[:count])
        assert segmenter.snapshot().steps == steps
        assert segmenter.snapshot().before_object is start


def test_after_the_object_the_weights_are_given_back_bit_for_bit(segmenter):
    policy, start, weights = small("ia"), segmenter.snapshot(), parameters(segmenter)
    work(policy, segmenter)
    assert not equal(parameters(segmenter), weights)
    report = policy.on_accept(segmenter, lesson())
    assert not report.accepted
    assert segmenter.snapshot() is start
    assert equal(parameters(segmenter), weights)


def test_an_object_that_was_never_accepted_leaves_nothing_to_the_next(tiny_segmenter, segmenter):
    policy, clean = small("ia"), tiny_segmenter()
    work(policy, segmenter, (Click((10, 70)), OFF))
    mine, theirs = work(policy, segmenter), work(policy, clean)
    assert np.array_equal(mine.logits, theirs.logits)
    assert same_knowledge(segmenter.snapshot(), clean.snapshot())


@pytest.mark.parametrize(("with_image", "without"), [("ia+sa", "sa"), ("ia+pi", "pi")])
def test_what_stays_is_what_would_stay_without_image_adaptation(tiny_segmenter, segmenter, with_image, without):
    other = tiny_segmenter()
    for _ in range(2):
        work(small(with_image), segmenter)
        assert small(with_image).on_accept(segmenter, lesson()).accepted
        assert small(without).on_accept(other, lesson()).accepted
    assert same_knowledge(segmenter.snapshot(), other.snapshot())
    assert not equal(parameters(segmenter), dict(segmenter.base.weights))


def test_without_the_click_term_the_click_is_obeyed_less(segmenter):
    """λ = 0 asks for the mask that there was, and for nothing else."""
    click = Click((20, 20), False)
    gains = []
    for lam in (1.0, 0.0):
        segmenter.restore(segmenter.base)
        before = said(segmenter, click, (ON, click))
        work(small("ia", ia_lambda=lam), segmenter, (ON, click))
        gains.append(said(segmenter, click, (ON, click)) - before)
    assert gains[0] > gains[1]


def test_the_stiffer_the_weights_the_closer_they_stay(tiny_segmenter):
    distances = []
    for gamma in (0.0, 1.0, 100.0):
        segmenter = tiny_segmenter()
        work(small("ia", ia_gamma=gamma), segmenter)
        distances.append(distance(segmenter))
    assert distances[0] > distances[1] > distances[2] > 0


def test_importance_stiffens_and_its_absence_holds_all_alike(tiny_segmenter):
    distances = {}
    for importance in (None, 1.0, 100.0):
        segmenter = tiny_segmenter(importance=importance)
        work(small("ia"), segmenter)
        distances[importance] = distance(segmenter)
    assert distances[None] == pytest.approx(distances[1.0], rel=1e-5)
    assert distances[100.0] < distances[1.0]
    assert "not known" in tiny_segmenter().describe()["importance of weights"]
    assert tiny_segmenter(importance=1.0).describe()["importance of weights"] == "known"


def test_a_negative_click_on_a_given_mask_begins_an_object_too(tiny_segmenter, segmenter):
    given = Prompt((Click((30, 40)), OFF), replace(Prediction.from_mask(disk(30)), given=True))  # what is implied comes first
    work(small("ia"), segmenter, (ON,))  # an object that was left before it was finished
    answers = [small("ia").on_click(one, picture(), given) for one in (segmenter, tiny_segmenter())]
    assert segmenter.snapshot().before_object is not None
    assert np.array_equal(answers[0].logits, answers[1].logits)


def test_a_click_that_the_window_does_not_show_teaches_nothing(segmenter, monkeypatch):
    monkeypatch.setattr(_corrections, "clicked_pixels", lambda *_: {})
    start = segmenter.snapshot()
    answer = work(small("ia"), segmenter, (ON,))
    assert segmenter.snapshot() is start
    assert np.array_equal(answer.logits, segmenter.predict(picture(), Prompt((ON,))).logits)


# --- a sequence of objects --------------------------------------------------------------------------------------------------------------


def test_one_finished_object_is_one_step_that_stays(segmenter):
    report = small("sa").on_accept(segmenter, lesson())
    assert report.accepted
    assert segmenter.snapshot().steps == 1
    assert segmenter.snapshot().before_object is None
    assert distance(segmenter) > 0
    assert len(segmenter.snapshot().memory) == 1


def test_an_object_of_one_click_can_be_learnt_from_and_one_without_cannot(segmenter):
    assert small("sa").on_accept(segmenter, lesson((ON,))).accepted
    known = segmenter.snapshot()
    assert not small("sa").on_accept(segmenter, lesson(())).accepted
    assert segmenter.snapshot() is known


def test_a_sequence_of_objects_brings_the_loss_down(segmenter):
    policy = small("sa", sa_rate=2e-3, sa_gamma=0.01, gate_margin=math.inf, sa_guidance="all", sa_regularise_to="accepted")
    reports = [policy.on_accept(segmenter, lesson()) for _ in range(12)]
    assert all(report.accepted for report in reports)
    assert reports[-1].loss_before < 0.8 * reports[0].loss_before


@pytest.mark.parametrize("target", ["initial", "accepted"])
def test_the_loss_of_a_lesson_is_the_papers(segmenter, target):
    policy, one = small("sa", sa_guidance="all", sa_regularise_to=target), lesson()
    new = remember(segmenter, one, SIZE)
    mask = disk() if target == "accepted" else segmenter.predict(one.image_slice, Prompt(one.clicks[:1])).mask
    masks = remember(segmenter, replace(one, mask=mask), SIZE).targets.float() if target == "accepted" else None
    learner = SequenceAdaptation(policy, segmenter, segmenter.snapshot(), new, one)
    if masks is not None:
        assert torch.equal(learner.masks, masks)
    with torch.no_grad():
        logits = learner.batch.logits(segmenter, new.clicks)
    told = sum(float(click_cross_entropy(z[None], c)) for z, c in zip(logits, new.clicks, strict=True)) / 2
    dense = float(torch.nn.functional.binary_cross_entropy_with_logits(logits, learner.masks))
    assert policy.on_accept(segmenter, one).loss_before == pytest.approx(0.5 * told + 0.5 * dense, rel=1e-4)


@settings(max_examples=25)
@given(st.lists(st.booleans(), min_size=1, max_size=7), st.integers(0, 50))
def test_the_network_is_shown_some_of_the_clicks_and_a_positive_one(tiny_segmenter, signs, steps):
    clicks = tuple(Click((30 + i, 40), sign) for i, sign in enumerate(signs))
    one, known = lesson(clicks), replace(tiny_segmenter().snapshot(), steps=steps)
    new = remember(tiny_segmenter(), one, SIZE)
    learner = SequenceAdaptation(small("sa", sa_regularise_to="accepted"), tiny_segmenter(), known, new, one)
    counts = set()
    for _ in range(30):
        far, near = learner._shown()
        assert len(far) == len(near)
        assert len(far) >= 1
        assert any(c.positive for c in far)
        assert set(far) <= set(new.clicks[0])
        assert [new.clicks[0].index(c) for c in far] == [new.clicks[1].index(c) for c in near]
        counts.add(len(far))
    assert len(counts) > 1 or len(signs) < 3
    whole = SequenceAdaptation(small("sa", sa_regularise_to="accepted", sa_guidance="all"), tiny_segmenter(), known, new, one)
    assert [tuple(view) for view in whole._shown()] == list(new.clicks)


def test_the_gate_judges_sequence_adaptation_too(segmenter):
    good = small("pi", post_rate=4e-3, gate_margin=float("inf"), rehearsed=0, post_rounds=2)
    for _ in range(8):
        good.on_accept(segmenter, lesson())
    known = segmenter.snapshot()
    wrong = Lesson(picture(3), (Click((2, 2)), Click((35, 40), False)), ~disk())
    report = small("sa", sa_rate=2.0).on_accept(segmenter, wrong)
    assert not report.accepted
    assert "would have lost" in report.message
    assert equal(parameters(segmenter), dict(known.weights))
    assert small("sa", sa_rate=2.0, gate_margin=math.inf).on_accept(segmenter, wrong).accepted


def test_how_large_objects_are_need_not_be_learnt(segmenter):
    small("sa", extents=False).on_accept(segmenter, lesson())
    assert segmenter.snapshot().extent_log == (0.0, 0.0, 0.0)
    small("sa").on_accept(segmenter, lesson())
    assert segmenter.snapshot().extent_log[2] == 1


# --- the laws ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38], ids=str)
@pytest.mark.parametrize("name", ["ia", "sa", "ia+sa"])
def test_a_step_out_of_range_leaves_everything_as_it_was(segmenter, monkeypatch, name, value):
    policy = small(name)
    answer = work(policy, segmenter, (ON,))
    before, weights = segmenter.snapshot(), parameters(segmenter)
    plain = segmenter.predict(picture(), Prompt((ON, OFF), answer))
    monkeypatch.setattr(_corrections, "correction_loss", lambda *args: correction_loss(*args) * value)
    assert np.array_equal(policy.on_click(segmenter, picture(), Prompt((ON, OFF), answer)).logits, plain.logits)
    assert segmenter.snapshot() is before
    assert equal(parameters(segmenter), weights)
    report = policy.on_accept(segmenter, lesson())
    assert not report.accepted
    assert equal(parameters(segmenter), dict(segmenter.base.weights))
    assert segmenter.snapshot().before_object is None


@pytest.mark.parametrize("name", ["mi", "ia"])
def test_a_lesson_after_which_the_click_is_disobeyed_is_taken_back(segmenter, name):
    """Upside down: a rate below zero unlearns the click that it should teach."""
    good = small("pi", post_rate=4e-3, gate_margin=float("inf"), rehearsed=0, post_rounds=2)
    for _ in range(8):
        good.on_accept(segmenter, lesson())
    known, clicks = segmenter.snapshot(), (ON, Click((33, 42)))
    plain = work(POLICIES["none"], segmenter, clicks)
    assert plain.logits[33 - plain.box.top, 42 - plain.box.left] > np.float32(HELD_LOGIT)
    first = work(POLICIES["none"], segmenter, clicks[:1])
    backwards = small(name, mid_rate=-0.1, mid_steps=4, mid_part="all", mid_again=True, ia_rate=-0.01, anchor=0.0)
    answer = backwards.on_click(segmenter, picture(), Prompt(clicks, first))
    assert np.array_equal(answer.logits, plain.logits)
    assert segmenter.snapshot() is known
    assert equal(parameters(segmenter), dict(known.weights))


def test_what_is_known_within_an_object_can_be_saved_and_loaded(segmenter, tmp_path):
    policy = small("ia+sa")
    policy.on_accept(segmenter, lesson())
    work(policy, segmenter)
    known, store = segmenter.snapshot(), KnowledgeStore(segmenter.base, "0")
    store.save(known, tmp_path / "within.safetensors")
    loaded = store.load(tmp_path / "within.safetensors")
    assert same_knowledge(loaded, known)
    assert same_knowledge(loaded.before_object, known.before_object)
    reports = []
    for knowledge in (known, loaded):
        segmenter.restore(knowledge)
        policy.on_accept(segmenter, lesson())
        reports.append(segmenter.snapshot())
    assert same_knowledge(*reports)
