"""Reliability against a slow plain oracle, and what a temperature may and may not do."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from napari_apprentice.calibration import fit_temperature, negative_log_likelihood, probability, reliability, temperature
from napari_apprentice.datasets import open_set
from napari_apprentice.types import Box, InputError, Prediction

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "calibration.py"

forecasts = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


def plain_error(pairs, bins):
    """Guo et al. (2017), equations 2 and 3 in words: bin m holds what lies above (m - 1) / M and up to m / M."""
    total = 0.0
    for m in range(1, bins + 1):
        inside = [(p, y) for p, y in pairs if (m - 1) < p * bins <= m or (m == 1 and p == 0)]
        if inside:
            confidence = sum(p for p, _ in inside) / len(inside)
            accuracy = sum(y for _, y in inside) / len(inside)
            total += len(inside) / len(pairs) * abs(accuracy - confidence)
    return total


def arrays(pairs):
    return np.array([p for p, _ in pairs]), np.array([y for _, y in pairs])


def drawn(seed, temperature=1.0, size=20_000):
    """Logits, and outcomes that are foreground as often as ``sigmoid(logits / temperature)`` says."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, size)
    return logits, rng.random(size) < expit(logits / temperature)


# --- reliability ---


@given(forecasts, st.integers(1, 20))
def test_the_error_is_the_plain_one(pairs, bins):
    assert reliability(*arrays(pairs), bins=bins).expected_error == pytest.approx(plain_error(pairs, bins), abs=1e-12)


@given(st.integers(1, 14), st.integers(1, 20))
def test_what_comes_true_as_often_as_it_was_said_has_no_error(hits, repeats):
    chances, outcomes = np.full(15 * repeats, hits / 15), np.tile(np.arange(15) < hits, repeats)
    assert reliability(chances, outcomes).expected_error == pytest.approx(0.0, abs=1e-12)
    assert reliability(chances, ~outcomes).expected_error == pytest.approx(abs(15 - 2 * hits) / 15)


@given(st.lists(st.booleans(), min_size=1))
def test_certainty_that_is_right_has_no_error_and_certainty_that_is_wrong_has_all(truth):
    truth = np.array(truth)
    assert reliability(truth.astype(float), truth).expected_error == 0.0
    assert reliability(truth.astype(float), ~truth).expected_error == 1.0


@given(forecasts, forecasts)
def test_parts_add_up_to_the_whole(first, second):
    together = reliability(*arrays(first)) + reliability(*arrays(second))
    assert together.expected_error == pytest.approx(reliability(*arrays(first + second)).expected_error, abs=1e-12)


@given(forecasts, st.integers(1, 5))
def test_a_weight_makes_images_of_unlike_size_count_the_same(pairs, repeats):
    other = [(0.3, True), (0.8, False)]

    def balanced(some):
        return reliability(*arrays(some), weight=1 / len(some))

    once, often = (balanced(pairs * n) + balanced(other) for n in (1, repeats))
    assert often.expected_error == pytest.approx(once.expected_error, abs=1e-12)
    assert once.mass.sum() == pytest.approx(2.0)


def test_shares_are_outcomes_too():
    assert reliability(np.array([0.7, 0.7]), np.array([0.4, 0.6])).expected_error == pytest.approx(0.2)


def test_nothing_was_forecast():
    assert math.isnan(reliability(np.empty(0), np.empty(0, bool)).expected_error)


@pytest.mark.parametrize("chance", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(chance):
    with pytest.raises(InputError, match="expected 0 to 1"):
        reliability(np.array([0.5, chance]), np.array([True, False]))


def test_unequal_shapes_are_refused():
    with pytest.raises(InputError, match=r"\(3,\) and outcomes of shape \(2,\)"):
        reliability(np.zeros(3), np.zeros(2))


# --- temperature ---


@settings(max_examples=10)
@given(st.integers(0, 1000), st.sampled_from([0.5, 1.0, 3.0]))
def test_the_temperature_that_was_drawn_with_is_found(seed, temperature):
    assert fit_temperature(*drawn(seed, temperature)) == pytest.approx(temperature, rel=0.1)


@settings(max_examples=10)
@given(st.integers(0, 1000), st.floats(0.3, 5))
def test_no_other_temperature_is_more_likely(seed, other):
    logits, outcome = drawn(seed, 2.0, 500)
    best = negative_log_likelihood(logits, outcome, fit_temperature(logits, outcome))
    assert best <= negative_log_likelihood(logits, outcome, other) + 1e-9


def test_it_mends_what_was_too_sure():
    logits, outcome = drawn(0, 3.0)
    before, after = (reliability(expit(logits / t), outcome).expected_error for t in (1.0, fit_temperature(logits, outcome)))
    assert after < 0.02 < 0.1 < before


@given(st.lists(st.tuples(st.floats(-30, 30), st.booleans()), min_size=1, max_size=30), st.floats(0.2, 5))
def test_the_likelihood_is_the_plain_one(pairs, temperature):
    logits, outcome = arrays(pairs)
    plain = np.mean([math.log1p(math.exp(-(z if y else -z) / temperature)) for z, y in pairs])
    assert negative_log_likelihood(logits, outcome, temperature) == pytest.approx(plain, abs=1e-9)


def test_logits_of_any_size_have_a_finite_likelihood():
    assert negative_log_likelihood(np.array([-1e4, 1e4], np.float32), np.array([True, False])) == pytest.approx(1e4)


def answer(logits):
    logits = np.asarray(logits, np.float32)
    return Prediction(logits, Box(1, 2, 1 + logits.shape[0], 2 + logits.shape[1]), (40, 40))


@given(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12), st.integers(0, 40))
def test_what_is_shown_is_likelier_than_not_where_the_mask_is_and_in_the_order_of_the_logits(logits, clicks):
    said = answer([logits])
    shown = probability(said, clicks)
    assert shown.dtype == np.float32
    clear = np.abs(said.logits) > 1e-6
    np.testing.assert_array_equal((shown > 0.5)[clear], said.mask_in_box[clear])
    order = np.argsort(said.logits[0])
    assert (np.diff(shown[0][order]) >= 0).all()
    np.testing.assert_allclose(shown, expit(said.logits / temperature(clicks)), atol=1e-6)


def test_a_mask_that_no_click_led_to_is_as_sure_as_it_says():
    assert temperature(0) == 1.0


@given(st.integers(1, 60))
def test_the_temperature_lies_between_those_that_were_fitted(clicks):
    fitted = [temperature(count) for count in (1, 3, 5, 10)]
    assert min(fitted) - 1e-9 <= temperature(clicks) <= max(fitted) + 1e-9
    assert temperature(1) >= temperature(clicks)
    assert temperature(max(clicks, 10)) == temperature(10)


def test_the_temperatures_are_those_of_the_page():
    page = SCRIPT.parents[1] / "docs" / "calibration.md"
    if not page.exists():
        pytest.skip("the pages are not part of this distribution")
    lines = page.read_text("utf-8").partition("## What a correction would do")[2].partition("## Prob")[0].splitlines()
    fitted = [line.split("|")[1:3] for line in lines if line.startswith("| ") and line.split("|")[1].strip().isdecimal()]
    assert {int(clicks): float(value) for clicks, value in fitted} == {clicks: round(temperature(clicks), 2) for clicks in (1, 3, 5, 10)}


def test_one_click_is_believed_less_than_its_logits_say_and_five_more():
    once, five = (probability(answer([[2.0, -2.0]]), clicks)[0] for clicks in (1, 5))
    plain = expit(np.array([2.0, -2.0]))
    assert once[0] < plain[0] < five[0]
    assert once[1] > plain[1] > five[1]


# --- the report ---


@pytest.fixture(scope="module")
def script():
    if not SCRIPT.exists():
        pytest.skip("the benchmarks are not part of this distribution")
    spec = importlib.util.spec_from_file_location("calibration_report", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def test_what_lies_outside_of_the_box_counts_as_background_for_certain(script):
    truth = np.zeros((10, 10), bool)
    truth[2:6, 2:6] = True
    inside = Prediction(np.where(truth[2:4, 2:8], 50.0, -50.0).astype(np.float32), Box(2, 2, 4, 8), truth.shape, score=0.6)
    seen = script.observe("set", 3, inside, truth, np.random.default_rng(0))
    assert (seen.set, seen.clicks, seen.score) == ("set", 3, 0.6)
    assert seen.iou == pytest.approx(0.5)
    assert seen.outside == pytest.approx(0.5)
    assert seen.in_slice.expected_error == pytest.approx(8 / 100)
    np.testing.assert_array_equal(seen.logits > 0, seen.truth)
    assert set(seen.logits) == {-50.0, 50.0}


def test_objects_are_fitted_to_cases_that_training_leaves_out_only(script, disks_set):
    labelled = open_set(disks_set)
    assert {ref.case for ref in script.objects_in(labelled, None, held_out=True)} == {"case0"}
    assert len(script.objects_in(labelled, 4, held_out=False)) == 4


def test_the_likelier_class_counts_and_not_the_foreground(script):
    truth = np.array([True, False, False, True])
    assert script.likelier(np.array([0.8, 0.2, 0.2, 0.2]), truth).expected_error == pytest.approx(abs(0.8 - 0.75))


def test_the_line_and_the_temperature_are_those_of_the_objects(script):
    logits, truth = (part[: 2 * script.SAMPLED_PX].reshape(2, -1) for part in drawn(0, 2.0))
    nothing = reliability(np.empty(0), np.empty(0))
    seen = [
        script.Observation("set", 1, z, y, nothing, 0.0, score, 0.5 * score + 0.1)
        for z, y, score in zip(logits, truth, (0.4, 0.8), strict=True)
    ]
    fit = script.fit_to(seen)
    assert fit.temperature == pytest.approx(2.0, rel=0.1)
    assert (fit.slope, fit.offset) == (pytest.approx(0.5), pytest.approx(0.1))
    np.testing.assert_allclose(fit.iou(np.array([0.4, 5.0, -5.0])), [0.3, 1.0, 0.0])


@pytest.mark.slow
def test_the_command_writes_the_page(script, disks_set, tmp_path, capsys):
    page = tmp_path / "docs" / "calibration.md"
    assert script.main([str(disks_set), "--fit", str(disks_set), "--limit", "2", "--threads", "1", "--markdown", str(page)]) == 0
    text = page.read_text()
    assert capsys.readouterr().out == text
    for clicks in (1, 3, 5, 10):
        assert text.count(f"| disks | {clicks} | 2 |") == 2
    assert "Fitted to 1 objects of the held-out cases of disks" in text
