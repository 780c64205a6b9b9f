"""Charts are well-formed, and put every value where it belongs."""

from __future__ import annotations

import doctest
from itertools import pairwise
from statistics import fmean
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_apprentice import charts
from napari_apprentice.charts import Bar, Series, bars, histogram, running_mean, scatter, ticks

numbers = st.floats(0, 1e6, allow_nan=False)


def test_doctests():
    result = doctest.testmod(charts)
    assert result.attempted >= 2
    assert result.failed == 0


@given(numbers, st.floats(1e-3, 1e6), st.integers(1, 12))
def test_ticks_reach_from_end_to_end_in_equal_round_steps(low, length, most):
    found = ticks(low, low + length, most)
    steps = {round(b - a, 9) for a, b in pairwise(found)}
    assert len(steps) <= 1 or max(steps) - min(steps) < 1e-6 * max(steps)
    assert found[0] >= low - 1e-6 * length
    assert found[-1] >= low + length - 1e-6 * length
    assert len(found) <= most + 2


@given(st.lists(numbers, min_size=1, max_size=30), st.sampled_from([1, 3, 5, 9]))
def test_a_running_mean_is_the_mean_of_the_neighbours(values, width):
    half = width // 2
    expected = [fmean(values[max(i - half, 0) : i + half + 1]) for i in range(len(values))]
    assert running_mean(values, width) == pytest.approx(expected, abs=1e-6)


def test_dots_stand_in_the_order_and_height_of_their_values_and_tell_what_they_are():
    points = [(1, 4, "a & b"), (2, 8, "<c>"), (3, 0, "d")]
    tree = ElementTree.fromstring(scatter([Series("clicks", points, mean=3)], x="objects", y="clicks", breaks=[2.5]))
    dots = tree.findall(".//circle")
    assert [dot.find("title").text for dot in dots] == ["a & b", "<c>", "d"]
    across, down = ([float(dot.get(name)) for dot in dots] for name in ("cx", "cy"))
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)
    assert down[2] - down[0] == pytest.approx(down[0] - down[1], abs=0.2)
    (line,) = tree.findall(".//polyline")
    assert len(line.get("points").split()) == 3
    (gap,) = [one for one in tree.findall(".//line") if one.get("class") == "break"]
    assert across[1] < float(gap.get("x1")) < across[2]


def test_shares_reach_up_to_a_hundred_per_cent():
    drawn = scatter([Series("taught", [(1, 0.5, "half")])], x="objects", y="IoU", highest=1.0, percent=True)
    words = [text.text for text in ElementTree.fromstring(drawn).findall(".//text")]
    assert {"0 %", "100 %"} <= set(words)
    assert "120 %" not in words


def test_bars_are_as_long_as_their_values_and_long_names_are_cut_short():
    tree = ElementTree.fromstring(
        bars([Bar("case & more", 30.0, "30 s"), Bar("x" * 60, 15.0, "15 s"), Bar("none", 0.0, "0 s")], label="time")
    )
    long, half, none = (float(rect.get("width")) for rect in tree.findall(".//rect"))
    assert long == pytest.approx(2 * half, abs=0.2)
    assert 0 < none <= 1
    names = [text.text for text in tree.findall(".//text") if text.get("class") == "name"]
    assert names[0] == "case & more"
    assert names[1].endswith("…")
    assert len(names[1]) == 30


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=50))
def test_every_value_is_in_one_bin_of_the_histogram(values):
    tree = ElementTree.fromstring(histogram(values, x="seconds", y="clicks", marks=[(values[0], "first")]))
    assert sum(int(title.text.rpartition(" ")[2]) for title in tree.findall(".//title")) == len(values)
    (mark,) = [one for one in tree.findall(".//line") if one.get("class") == "mark"]
    assert 0 <= float(mark.get("x1")) <= 760
