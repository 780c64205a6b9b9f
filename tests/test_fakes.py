"""The fakes keep the promises of the protocols that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_apprentice.fakes import DiskSegmenter, DiskWeights, FakePolicy, FakeStore
from napari_apprentice.types import AdaptationPolicy, Click, ImageSlice, Lesson, Prediction, Prompt, ReadError, Segmenter

SLICE = ImageSlice(np.random.default_rng(0).random((1, 30, 40)))
voxels = st.tuples(st.integers(0, 29), st.integers(0, 39))


@given(st.lists(st.builds(Click, voxels, st.booleans()), max_size=6), st.floats(1, 12))
def test_disks_are_painted_and_erased_in_the_order_of_the_clicks(clicks, radius):
    expected = np.zeros((30, 40), bool)
    for click in clicks:
        for row in range(30):
            for col in range(40):
                if (row - click.voxel[0]) ** 2 + (col - click.voxel[1]) ** 2 <= radius**2:
                    expected[row, col] = click.positive
    answer = DiskSegmenter(radius).predict(SLICE, Prompt(tuple(clicks)))
    assert (answer.mask == expected).all()
    assert answer.logits.dtype == np.float32
    assert set(np.unique(answer.logits)) <= {np.float32(radius), -np.float32(radius)}


def test_the_previous_mask_is_where_it_starts_from():
    previous = np.zeros((30, 40), bool)
    previous[20:, 20:] = True
    answer = DiskSegmenter(1).predict(SLICE, Prompt((Click((5, 5)), Click((25, 25), False)), Prediction.from_mask(previous)))
    assert answer.mask[5, 5]
    assert answer.mask[20, 20]
    assert not answer.mask[25, 25]
    assert answer.mask.sum() == previous.sum()


def test_an_answer_depends_on_nothing_but_weights_and_arguments():
    segmenter, prompt = DiskSegmenter(3), Prompt((Click((5, 5)),))
    first = segmenter.predict(SLICE, prompt)
    segmenter.teach(1)
    segmenter.predict(SLICE, prompt)
    segmenter.restore(DiskWeights(3.0))
    assert (segmenter.predict(SLICE, prompt).logits == first.logits).all()


def test_snapshots_are_shared_until_something_is_learnt():
    segmenter = DiskSegmenter(3)
    before = segmenter.snapshot()
    segmenter.teach(0)
    assert segmenter.snapshot() is before
    segmenter.teach(0.5)
    assert segmenter.snapshot() == DiskWeights(3.5, lessons=1)
    assert before == DiskWeights(3.0)
    segmenter.restore(before)
    assert segmenter.snapshot() is before


def test_the_policy_learns_from_clicks_and_from_accepted_masks():
    segmenter, policy = DiskSegmenter(3), FakePolicy(per_click=0.5, per_accept=2)
    answer = policy.on_click(segmenter, SLICE, Prompt((Click((15, 15)),)))
    assert segmenter.radius == 3.5
    assert answer.logits.max() == 3.5
    report = policy.on_accept(segmenter, Lesson(SLICE, (), np.ones((2, 3), bool)))
    assert segmenter.radius == 5.5
    assert report.accepted
    assert report.message == "learnt from 6 pixels"
    assert not FakePolicy(0, 0).on_accept(segmenter, Lesson(SLICE, (), np.ones((2, 3), bool))).accepted


def test_a_policy_that_was_told_to_fail_leaves_the_segmenter_changed():
    segmenter, policy = DiskSegmenter(3), FakePolicy(failing="click", error=KeyError("gone"))
    with pytest.raises(KeyError, match="gone"):
        policy.on_click(segmenter, SLICE, Prompt((Click((5, 5)),)))
    assert segmenter.radius == 3.25
    policy.failing = "accept"
    with pytest.raises(KeyError, match="gone"):
        policy.on_accept(segmenter, Lesson(SLICE, (), np.ones((2, 3), bool)))
    assert segmenter.radius == 4.25


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 99))
def test_stored_snapshots_come_back_exactly(tmp_path_factory, radius, lessons):
    path = tmp_path_factory.mktemp("store") / "snapshot"
    FakeStore().save(DiskWeights(radius, lessons), path)
    assert FakeStore().load(path) == DiskWeights(radius, lessons)


@pytest.mark.parametrize("content", [None, "", "{", "[1, 2, 3]", '{"diameter": 3}'])
def test_a_damaged_snapshot_is_a_read_error(tmp_path, content):
    if content is not None:
        (tmp_path / "snapshot").write_text(content)
    with pytest.raises(ReadError, match="expected one that FakeStore saved"):
        FakeStore().load(tmp_path / "snapshot")


def test_the_fakes_are_what_they_stand_for():
    assert isinstance(DiskSegmenter(), Segmenter)
    assert isinstance(FakePolicy(), AdaptationPolicy)
