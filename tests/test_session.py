"""Laws of a session: whatever is done can be undone exactly, whatever fails changes nothing, whatever was journaled comes back."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from napari_apprentice import journal as journal_module
from napari_apprentice import labelmap as labelmap_module
from napari_apprentice.fakes import DiskSegmenter, DiskWeights, FakePolicy, FakeStore
from napari_apprentice.ground import Slice
from napari_apprentice.journal import Journal, read_journal, replay_labels
from napari_apprentice.legend import Legend
from napari_apprentice.replay import read_recording, replay
from napari_apprentice.session import Session, resume
from napari_apprentice.types import (
    ApprenticeError,
    Box,
    Click,
    ClickError,
    Image,
    ImageError,
    LabelsError,
    LearningReport,
    Plane,
    SessionError,
    WriteError,
)
from napari_apprentice.versions import Version

SHAPE = (5, 12, 10)
VOLUME = Image(np.random.default_rng(0).random((1, *SHAPE)), name="volume")
PICTURE = Image(np.random.default_rng(1).random((3, 40, 50)), name="picture")


def observed(session: Session) -> tuple[object, ...]:
    """All that a user can tell of a session and its model."""
    answers = sorted((plane, p.logits.tobytes(), p.box, p.shape, p.view) for plane, p in session.predictions.items())
    lessons = [(lesson.image_slice.plane, lesson.clicks, lesson.mask.tobytes()) for lesson in session.pending]
    labels = session.labels.astype(np.uint32).tobytes()
    model = session._segmenter.snapshot(), session.versions
    model = *model, dict(session._state.origins), session.legend, session.kind
    return labels, session.label, session.clicks, session.finished, answers, lessons, *model


def make(image: Image = VOLUME, radius: float = 2.0, policy: FakePolicy | None = None, **options: object) -> Session:
    return Session(image, DiskSegmenter(radius), policy or FakePolicy(), **options)


def left_behind(folder: Path) -> Path:
    """A copy of the folder of a session that still goes on: as it would be found if the process died now."""
    return Path(shutil.copytree(folder, folder.with_name(f"{folder.name} left behind")))


def disk(centre: tuple[int, int], radius: float, shape: tuple[int, int]) -> np.ndarray:
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (cols - centre[1]) ** 2 <= radius**2


# --- any sequence of actions ---


class AnySequence(RuleBasedStateMachine):
    """``past`` and ``future`` hold what was observed at every depth of the undo stack, the present being the last of ``past``."""

    def __init__(self) -> None:
        super().__init__()
        self.patched = pytest.MonkeyPatch()
        self.patched.setattr(journal_module.os, "fsync", lambda descriptor: None)
        self.folder = Path(tempfile.mkdtemp())

    @initialize(
        with_labels=st.booleans(),
        per_click=st.sampled_from([0.0, 0.25]),
        per_accept=st.sampled_from([0.0, 0.5]),
        stored=st.booleans(),
        per_step=st.sampled_from([0.0, 0.125]),
        at_once=st.sampled_from([5, 2**24]),
    )
    def begin(self, with_labels: bool, per_click: float, per_accept: float, stored: bool, per_step: float, at_once: int) -> None:
        self.patched.setattr(labelmap_module, "_TILE_VOXELS", at_once)
        labels = np.zeros(SHAPE, int)
        labels[1:3, 2:5, 3:9] = 4
        self.policy = FakePolicy(per_click, per_accept, per_step)
        self.store = FakeStore() if stored else None
        journal = Journal.create(self.folder, VOLUME)
        self.session = make(policy=self.policy, labels=labels if with_labels else None, journal=journal, store=self.store)
        self.past, self.future = [observed(self.session)], []

    def happened(self, *, step: bool = True) -> None:
        if step:
            self.past.append(observed(self.session))
            self.future = []
        assert observed(self.session) == self.past[-1]

    @rule(most=st.integers(0, 4))
    def practise(self, most):
        """Nothing that can be seen happens; the next lesson is another one."""
        self.session.practise(most)
        self.happened(step=False)

    @rule(voxel=st.tuples(*(st.integers(0, s - 1) for s in SHAPE)), positive=st.booleans(), axis=st.integers(0, 2))
    def add(self, voxel, positive, axis):
        before = self.session.labels.astype(np.int64)
        change = self.session.add(Click(voxel, positive, axis))
        after = self.session.labels.astype(np.int64)
        differs = np.zeros(SHAPE, bool)
        if change.region is not None:
            differs[change.region] = True
            held = before.copy()
            for region, values in change.pieces:
                held[region] = values
            assert (after == held).all()
        assert ((before == after) | differs).all()
        others = (before != 0) & (before != self.session.label)
        assert (after[others] == before[others]).all(), "another object was painted over"
        plane = np.zeros(SHAPE, bool)
        plane[(slice(None),) * axis + (voxel[axis],)] = True
        assert (after == before)[~plane].all(), "another plane was painted"
        assert after[voxel] == before[voxel] if others[voxel] else (after[voxel] == self.session.label) == positive
        self.happened()

    @rule(axis=st.integers(0, 2), data=st.data())
    def draw_a_box(self, axis, data):
        plane = Plane(axis, data.draw(st.integers(0, SHAPE[axis] - 1)))
        sides = [data.draw(st.lists(st.integers(0, s), min_size=2, max_size=2, unique=True)) for a, s in enumerate(SHAPE) if a != axis]
        (top, bottom), (left, right) = (sorted(side) for side in sides)
        box = Box(top, left, bottom, right)
        before = self.session.labels.astype(np.int64)
        self.session.add(Click.around(box, plane))
        after = self.session.labels.astype(np.int64)
        index = (slice(None),) * axis + (plane.index,)
        others = (before != 0) & (before != self.session.label)
        assert (after[others] == before[others]).all(), "another object was painted over"
        assert (np.delete(after, plane.index, axis) == np.delete(before, plane.index, axis)).all(), "another plane was painted"
        assert (after[index][box.slices][~others[index][box.slices]] == self.session.label).all()
        assert self.session.clicks[-1].box == box
        self.happened()

    @rule(learn=st.booleans(), keep_class=st.booleans())
    def accept(self, learn, keep_class):
        label, nothing = self.session.label, not self.session.clicks and not (self.session.labels == self.session.label).any()
        if nothing:
            with pytest.raises(SessionError, match="neither clicks nor voxels"):
                self.session.accept(learn=learn)
            self.happened(step=False)
            return
        kind, legend = self.session.kind, self.session.legend
        self.session.accept(learn=learn, keep_class=keep_class)
        assert self.session.finished[-1] == label
        named = self.session.legend.names.get(self.session.label)
        assert self.session.kind == (named or (kind if keep_class else ""))
        assert self.session.legend == legend, "what is not there has no name"
        assert not (self.session.labels == self.session.label).any()
        assert self.session.label not in self.session.finished
        assert not (learn and self.session.pending)
        self.happened()

    @rule()
    def learn(self):
        pending = self.session.pending
        assert (self.session.learn() is None) == (not pending)
        if pending:
            self.past[-1] = observed(self.session)
            self.future = []
        self.happened(step=False)

    @rule(label=st.sampled_from([1, 2, 4, 5, 300]))
    def select(self, label):
        same = label == self.session.label
        self.session.select(label)
        assert self.session.label == label
        self.happened(step=not same)

    @rule(
        start=st.tuples(*(st.integers(0, s - 1) for s in SHAPE)),
        extent=st.tuples(*[st.integers(1, 4)] * 3),
        label=st.sampled_from([0, 1, 2, 70000]),
    )
    def paint(self, start, extent, label):
        region = tuple(slice(a, min(a + b, s)) for a, b, s in zip(start, extent, SHAPE, strict=True))
        same = (self.session.labels[region] == label).all()
        self.session.paint(region, np.full([side.stop - side.start for side in region], label))
        assert (self.session.labels[region] == label).all()
        self.happened(step=not same)

    @rule(axis=st.integers(0, 2), data=st.data(), label=st.integers(1, 5))
    def approve(self, axis, data, label):
        planes = {Plane(axis, i) for i in data.draw(st.sets(st.integers(0, SHAPE[axis] - 1), min_size=1, max_size=2))}
        same = planes <= self.session._state.origin(label).own
        labels = self.session.labels.copy()
        assert self.session.approve(*planes, label=label).region is None
        assert (self.session.labels == labels).all()
        assert planes <= self.session._state.origin(label).own
        assert not planes & {doubt.plane for doubt in self.session.doubtful() if doubt.label == label}
        self.happened(step=not same)

    def some_object(self, data):
        """An id that has voxels, or one that seldom has any."""
        return data.draw(st.sampled_from([*(int(i) for i in np.unique(self.session.labels) if i), 3]))

    @rule(data=st.data())
    def delete(self, data):
        label = self.some_object(data)
        there, before = (self.session.labels == label), self.session.labels.copy()
        if not there.any() and not (label == self.session.label and self.session.clicks):
            with pytest.raises(SessionError, match=f"object {label} was asked for"):
                self.session.delete(label)
            self.happened(step=False)
            return
        self.session.delete(label)
        assert (self.session.labels == np.where(there, 0, before)).all()
        assert label not in (*self.session.finished, *self.session.legend.names, *self.session._state.origins)
        self.happened()

    @rule(data=st.data(), to=st.sampled_from([1, 2, 3, 4, 5, 300]))
    def relabel(self, data, to):
        label = self.some_object(data)
        there, before = (self.session.labels == label), self.session.labels.astype(int)
        taken = (before == to).any() or (to == self.session.label and bool(self.session.clicks))
        if label == to or not there.any() or taken:
            if label != to:
                with pytest.raises(SessionError, match="was asked for"):
                    self.session.relabel(label, to)
            self.happened(step=False)
            return
        finished, name, clicks = label in self.session.finished, self.session.legend.names.get(label), self.session.clicks
        was_open = label == self.session.label
        self.session.relabel(label, to)
        assert (self.session.labels == np.where(there, to, before)).all()
        assert (to in self.session.finished) == finished
        assert self.session.legend.names.get(to, name) == name
        if was_open:
            assert (self.session.label, self.session.clicks) == (to, clicks)
        assert self.session.label not in self.session.finished
        self.happened()

    @rule(data=st.data())
    def merge(self, data):
        label, into = self.some_object(data), self.some_object(data)
        there, before = (self.session.labels == label), self.session.labels.astype(int)
        if label == into or not there.any() or not (before == into).any():
            with pytest.raises(SessionError, match="expected"):
                self.session.merge(label, into)
            self.happened(step=False)
            return
        one, other = self.session._state.origin(label), self.session._state.origin(into)
        finished = into in self.session.finished
        self.session.merge(label, into)
        assert (self.session.labels == np.where(there, into, before)).all()
        assert self.session.label not in (label, *self.session.finished)
        assert (into in self.session.finished) == finished
        own = self.session._state.origin(into).own
        assert one.own | other.own <= own <= {*one.own, *other.own, *one.carried, *other.carried}
        self.happened()

    @rule(data=st.data())
    def split(self, data):
        label = self.some_object(data)
        voxels = [tuple(map(int, v)) for v in np.argwhere(self.session.labels == label)]
        if len(voxels) < 2:
            with pytest.raises(SessionError, match="a split of object"):
                self.session.split(label, [(0, 0, 0), (1, 1, 1)])
            self.happened(step=False)
            return
        seeds = data.draw(st.lists(st.sampled_from(voxels), min_size=2, max_size=3, unique=True))
        before, finished = self.session.labels.astype(int), self.session.finished
        self.session.split(label, seeds)
        after = self.session.labels.astype(int)
        assert (after == before)[before != label].all()
        assert (after[before == label] > 0).all()
        owners = [after[seed] for seed in seeds]
        assert owners[0] == label
        assert len(set(owners)) == len(seeds)
        assert set(np.unique(after)) - set(np.unique(before)) == set(owners[1:])
        assert self.session.finished == (*finished, *sorted(owners[1:]))
        assert self.session.label not in self.session.finished
        self.happened()

    @rule(label=st.integers(1, 5), name=st.sampled_from(["", "disc", "cup"]), color=st.sampled_from([None, "#123456"]))
    def name(self, label, name, color):
        before = self.session.legend, self.session.kind
        self.session.name(label, name, color)
        assert self.session.legend.names.get(label, "") == name
        assert all(label in labels for kind, labels in self.session.legend.classes.items() if kind == name)
        self.happened(step=(self.session.legend, self.session.kind) != before)

    @rule()
    def discard(self):
        nothing = not self.session.clicks and not (self.session.labels == self.session.label).any()
        if nothing:
            with pytest.raises(SessionError, match="neither clicks nor voxels"):
                self.session.discard()
        else:
            self.session.discard()
            assert not self.session.clicks
            assert not (self.session.labels == self.session.label).any()
        self.happened(step=not nothing)

    @rule()
    def forget(self):
        taught = self.session._segmenter.snapshot() != DiskWeights(2.0)
        if taught or self.session.versions.number:
            self.session.forget()
        else:
            with pytest.raises(SessionError, match="nothing to forget"):
                self.session.forget()
        assert self.session._segmenter.snapshot() == DiskWeights(2.0)
        assert self.session.versions.number == 0
        assert not self.session.taught
        self.happened(step=taught)

    @rule(data=st.data())
    def go_back(self, data):
        known = [version for version in self.session.versions.versions if version.snapshot is not None]
        version = data.draw(st.sampled_from(known))
        self.session.go_back(version.number)
        assert self.session._segmenter.snapshot() == version.snapshot
        assert self.session.versions.current == version
        self.happened()

    @rule(data=st.data())
    def pin(self, data):
        version = data.draw(st.sampled_from([v for v in self.session.versions.versions if v.snapshot is not None]))
        self.session.pin(version.number, not version.pinned)
        assert self.session.versions[version.number].pinned != version.pinned
        self.happened()

    @rule()
    def peek(self):
        size = self.session._journal.path.stat().st_size
        if self.session.clicks:
            self.session.peek()
        else:
            with pytest.raises(SessionError, match="expected at least one click"):
                self.session.peek()
        assert self.session._journal.path.stat().st_size == size
        self.happened(step=False)

    @precondition(lambda self: len(self.past) > 1)
    @rule(times=st.integers(1, 4))
    def undo(self, times):
        for _ in range(min(times, len(self.past) - 1)):
            self.session.undo()
            self.future.append(self.past.pop())
            self.happened(step=False)

    @precondition(lambda self: self.future)
    @rule(times=st.integers(1, 4))
    def redo(self, times):
        for _ in range(min(times, len(self.future))):
            self.session.redo()
            self.past.append(self.future.pop())
            self.happened(step=False)

    @rule(failing=st.sampled_from(["click", "accept"]))
    def fail(self, failing):
        self.policy.failing = failing
        try:
            if failing == "click":
                with pytest.raises(RuntimeError, match="told to fail"):
                    self.session.add(Click((0, 0, 0)))
            elif self.session.pending:
                with pytest.raises(RuntimeError, match="told to fail"):
                    self.session.learn()
        finally:
            self.policy.failing = None
        self.happened(step=False)

    @rule()
    def die_and_resume(self):
        self.session.close()
        self.session = resume(self.folder, VOLUME, DiskSegmenter(2.0), self.policy, self.store)
        self.happened(step=False)
        assert self.session.can_redo == bool(self.future)
        while self.session.can_redo:
            self.redo(1)
        undone = 0
        while self.session.can_undo:
            self.undo(1)
            undone += 1
        self.past = self.past[-1:]
        for _ in range(undone):
            self.redo(1)

    def teardown(self):
        if hasattr(self, "session"):
            assert (replay_labels(self.folder) == self.session.labels).all()
            assert self.session.can_undo == (len(self.past) > 1)
            while self.past[1:]:
                self.undo(1)
            while self.future:
                self.redo(1)
            assert not self.session.can_redo
            self.session.close()
        self.patched.undo()
        shutil.rmtree(self.folder)


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)


# --- clicks ---


def test_a_click_paints_the_mask_of_its_plane():
    session = make(PICTURE, 5.0, FakePolicy(0, 0))
    change = session.add(Click((20, 30)))
    assert (session.labels == disk((20, 30), 5, (40, 50))).all()
    assert session.labels.dtype == np.uint8
    assert change.region == (slice(15, 26), slice(25, 36))
    assert change.label == session.label == 1
    assert set(session.predictions) == {Plane(0, 0)}


def test_labels_are_read_only_and_show_later_actions():
    session = make(PICTURE)
    labels = session.labels
    session.add(Click((20, 30)))
    assert labels.any()
    with pytest.raises(ValueError, match="read-only"):
        labels[0, 0] = 1


def test_the_model_is_told_all_clicks_of_the_plane_and_the_previous_answer():
    asked = []

    class Listening(FakePolicy):
        def on_click(self, segmenter, image_slice, prompt):
            asked.append((image_slice.plane, prompt))
            return super().on_click(segmenter, image_slice, prompt)

    session = make(policy=Listening())
    for click in (Click((2, 3, 4)), Click((1, 3, 4)), Click((2, 6, 7), False), Click((2, 6, 7), axis=1), Click((2, 6, 7))):
        session.add(click)
    first, other, second, crossing, third = asked
    assert first[1].previous is None
    assert other[1].previous is None
    assert second[0] == Plane(0, 2)
    assert [c.voxel for c in second[1].clicks] == [(3, 4), (6, 7)]
    assert second[1].previous is not None
    assert crossing[0] == Plane(1, 6)
    assert [(c.voxel, c.positive) for c in third[1].clicks] == [((3, 4), True), ((6, 7), False), ((6, 7), True)]
    assert third[1].previous is not second[1].previous


@pytest.mark.parametrize("again", [False, True])
def test_a_plane_in_which_only_lines_of_others_lie_is_looked_at_anew(again):
    """Each of them is a mask of a few voxels, which would hold the answer down to what is near the click."""
    asked = []

    class Listening(FakePolicy):
        def on_click(self, segmenter, image_slice, prompt):
            asked.append(prompt.previous)
            return super().on_click(segmenter, image_slice, prompt)

    session = make(policy=Listening())
    session.add(Click((2, 6, 7)))
    if again:
        session.accept()
        session.select(1)
    line = session.labels[2, 6].copy()
    assert line.any()
    session.add(Click((2, 6, 2), axis=1))
    assert asked[-1] is None
    assert (session.labels[2, 6][line == 1] == 1).all(), "the line stays"
    session.undo()
    session.add(Click((2, 6, 7), positive=False, axis=1))
    assert asked[-1] is not None, "a negative click is about the line"
    session.undo()
    session.paint((slice(1, 4), slice(6, 7), slice(1, 3)), np.ones((3, 1, 2), int))
    session.add(Click((2, 6, 2), axis=1))
    assert asked[-1] is not None, "what was painted there is gone on with"


def test_a_first_negative_click_is_answered():
    session = make(PICTURE)
    assert session.add(Click((5, 5), positive=False)).region is None
    assert session.clicks == (Click((5, 5), positive=False),)


def test_the_newest_of_contradicting_clicks_wins():
    session = make(PICTURE, policy=FakePolicy(0, 0))
    for positive in (True, True, False, True):
        session.add(Click((5, 5), positive))
        assert (session.labels[5, 5] == 1) == positive
    assert len(session.clicks) == 4


@pytest.mark.parametrize(
    ("click", "message"),
    [(Click((5, 0, 0)), "inside the image"), (Click((0, 0)), "this image is 3D"), (Click((0, 0, 0), axis=3), "expected 0, 1 or 2")],
)
def test_a_click_outside_is_refused_and_nothing_changes(click, message):
    session = make()
    before = observed(session)
    with pytest.raises(ClickError, match=message):
        session.add(click)
    assert observed(session) == before
    assert not session.can_undo


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda session: session.add((2, 5, 5)), r"\(2, 5, 5\) arrived; expected a click, such as Click"),
        (lambda session: session.select("a"), "label a arrived; expected a whole number from 1"),
        (lambda session: session.select(np.nan), "label nan arrived"),
        (lambda session: session.select(np.inf), "label inf arrived"),
        (lambda session: session.select(None), "label None arrived"),
        (lambda session: session.select(True), "label True arrived"),
        (lambda session: session.name(1, None), "class name None arrived; expected one line"),
        (lambda session: session.name(1, "cup", 3), "colour 3 arrived; expected one like"),
        (lambda session: session.approve("ab"), r"\('ab',\) arrived to approve; expected planes, such as Plane\(0, 14\)"),
        (lambda session: session.approve(2), "expected planes"),
        (lambda session: session.approve([Plane(0, 1), Plane(0, 2)]), "expected planes"),
        (lambda session: session.paint(None, 1), "region None arrived; expected one slice for each of 3 axes"),
        (lambda session: session.split(1, [(2, 5, "a"), (2, 5, 5)]), "seeds .* arrived; expected voxels of the object"),
        (lambda session: session.split(1, None), "seeds None arrived; expected voxels of the object"),
    ],
)
def test_what_is_of_another_type_is_refused_and_nothing_changes(action, message):
    session = make()
    session.add(Click((2, 5, 5)))
    before = observed(session)
    with pytest.raises(ValueError, match=message) as refused:
        action(session)
    assert isinstance(refused.value, ApprenticeError)
    assert observed(session) == before


def test_planes_to_approve_may_be_plain_pairs():
    session, other = make(policy=FakePolicy(0, 0)), make(policy=FakePolicy(0, 0))
    for each, plane in ((session, (0, 2)), (other, Plane(np.int64(0), np.int64(2)))):
        each.add(Click((2, 5, 5)))
        each.accept()
        each.propagate()
        each.approve(plane, (0, 3))
        assert Plane(0, 3) not in {doubt.plane for doubt in each.doubtful()}
        assert each.slices(1)[3] is Slice.ACCEPTED
    assert observed(session) == observed(other)


def test_a_session_that_begins_with_the_objects_of_another_one_knows_where_their_slices_come_from(tmp_path):
    first = make(policy=FakePolicy(0, 0))
    first.add(Click((2, 5, 5)))
    first.accept()
    first.propagate()
    first.approve(Plane(0, 3))
    assert first.doubtful()
    folders = {name: tmp_path / name for name in ("a", "b")}
    session = make(labels=first.labels, origins=first.origins, policy=FakePolicy(0, 0), journal=Journal.create(folders["a"], VOLUME))
    assert not session.can_undo
    session.close()
    again = resume(folders["a"], VOLUME, DiskSegmenter(2.0), FakePolicy(0, 0))
    for each in (session, again):
        assert each.doubtful() == first.doubtful()
        assert each.slices(1) == first.slices(1)
    _, outcome = again.propagate(1)
    assert outcome.carried
    assert {again.slices(1)[i] for i in (2, 3)} == {Slice.ACCEPTED}, "what the user has seen to is not filled anew"
    again.close()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_slice_that_cannot_be_used_is_refused_and_the_others_work(value):
    data = VOLUME.data.copy()
    data[0, 1] = value
    session = make(Image(data))
    with pytest.raises(ImageError, match="NaN or infinite"):
        session.add(Click((1, 3, 3)))
    assert not session.clicks
    assert not session.can_undo
    assert session.add(Click((2, 3, 3))).region is not None


def test_a_failing_journal_rolls_every_action_back(tmp_path):
    journal = Journal.create(tmp_path, VOLUME)
    session = make(journal=journal, store=FakeStore())
    session.add(Click((2, 5, 5)))
    session.accept(learn=False)
    session.add(Click((3, 5, 5)))
    session.undo()
    before = observed(session)
    journal.close()
    actions = [
        lambda: session.add(Click((1, 5, 5))),
        session.undo,
        session.redo,
        session.learn,
        session.forget,
        lambda: session.select(1),
        lambda: session.paint((slice(0, 1),) * 3, np.full((1, 1, 1), 300)),
    ]
    for action in actions:
        with pytest.raises(WriteError, match="cannot be written"):
            action()
        assert observed(session) == before
        assert session.can_undo
        assert session.can_redo


# --- accepting and learning ---


def test_accept_makes_a_lesson_of_every_clicked_plane_that_holds_the_object():
    session = make(policy=FakePolicy(0, 0.5))
    session.paint((slice(2, 3), slice(0, 12), slice(0, 4)), np.full((1, 12, 4), 1))
    session.select(2)
    for click in (Click((2, 5, 4)), Click((3, 5, 4)), Click((2, 6, 4)), Click((0, 0, 9), False)):
        session.add(click)
    session.accept(learn=False)
    first, second = session.pending
    assert first.image_slice.plane == Plane(0, 2)
    assert second.image_slice.plane == Plane(0, 3)
    assert (first.mask == (session.labels[2] == 2)).all(), "a lesson is what the labels say, not what the model said"
    assert not first.mask[:, :4].any()
    assert [click.voxel for click in first.clicks] == [(5, 4), (6, 4)]
    assert (first.image_slice.data == VOLUME.data[:, 2]).all()
    assert first.case == second.case


def test_lessons_of_images_that_are_called_the_same_are_told_apart():
    cases = []
    for image in (VOLUME, Image(VOLUME.data[:, ::-1], name=VOLUME.name), Image(VOLUME.data.copy(), name="elsewhere")):
        session = Session(image, DiskSegmenter(4.0), FakePolicy(0, 0.5))
        session.add(Click((2, 5, 4)))
        session.accept(learn=False)
        cases.append(session.pending[0].case)
    assert cases[0] != cases[1]
    assert cases[0] == cases[2], "it is the same image, whatever it is called"


def test_lessons_of_files_that_are_called_the_same_are_told_apart_and_nothing_is_read(tmp_path):
    class Unread:
        shape, dtype = VOLUME.data.shape, VOLUME.data.dtype

        def __getitem__(self, index):
            assert isinstance(index[1], int), "more than a slice was read"
            return VOLUME.data[index]

    cases = []
    for patient in ("one", "two", "one"):
        session = Session(Image(Unread(), name="scan", path=tmp_path / patient / "scan.nii"), DiskSegmenter(4.0), FakePolicy(0, 0.5))
        session.add(Click((2, 5, 4)))
        session.accept(learn=False)
        cases.append(session.pending[0].case)
    assert cases[0] == cases[2] != cases[1]


@pytest.mark.parametrize("learn", [True, False])
def test_a_painted_slice_that_shows_nothing_is_accepted_and_is_no_lesson(learn):
    data = VOLUME.data.copy()
    data[0, 0] = 0
    session = make(Image(data))
    session.add(Click((2, 5, 5)))
    session.paint((slice(0, 1), slice(4, 6), slice(4, 6)), np.ones((1, 2, 2), int))
    session.accept(learn=learn)
    assert session.finished == (1,)
    assert [lesson.image_slice.plane for lesson in session.pending] == ([] if learn else [Plane(0, 2)])
    picture = make(Image(np.zeros((1, 12, 10))))
    picture.paint((slice(4, 6), slice(4, 6)), np.ones((2, 2), int))
    picture.accept(learn=learn)
    assert (picture.finished, picture.pending) == ((1,), ())


def test_accept_without_learning_leaves_the_model_alone_until_learn():
    session = make(policy=FakePolicy(0, 0.5))
    session.add(Click((2, 5, 4)))
    session.add(Click((3, 5, 4)))
    session.accept(learn=False)
    assert session._segmenter.radius == 2.0
    report = session.learn()
    assert session._segmenter.radius == 3.0
    assert isinstance(report, LearningReport)
    assert report.accepted
    assert report.message == "learnt from 13 pixels"
    assert session.learn() is None
    session.undo()
    assert session._segmenter.radius == 2.0
    assert session.label == 1
    assert len(session.clicks) == 2
    session.redo()
    assert session._segmenter.radius == 3.0
    assert not session.pending


def test_learning_while_the_next_object_is_open_belongs_to_the_newest_action():
    session = make(policy=FakePolicy(0, 0.5))
    session.add(Click((2, 5, 4)))
    session.accept(learn=False)
    session.add(Click((3, 5, 4)))
    session.learn()
    assert session._segmenter.radius == 2.5
    assert not session.pending
    session.undo()
    assert session._segmenter.radius == 2.0
    assert len(session.pending) == 1
    session.learn()
    assert session._segmenter.radius == 2.5
    assert not session.can_redo
    session.undo()
    assert session.label == 1
    assert session.clicks == (Click((2, 5, 4)),)
    assert session._segmenter.radius == 2.0


def test_a_report_of_several_lessons_says_the_newest_and_averages():
    session = make(policy=FakePolicy(0.25, 0.5), radius=1.9)
    session.add(Click((2, 5, 4)))
    session.add(Click((3, 5, 4)))
    session.accept(learn=False)
    report = session.learn()
    assert report == LearningReport(True, "learnt from 21 pixels", 1.0, 0.5, 0.0)


@pytest.mark.parametrize(
    ("refused", "message"), [((1,), "learnt (2 of 3 slices)"), ((0, 1), "learnt (1 of 3 slices)"), ((0, 1, 2), "refused: lesson 2")]
)
def test_an_object_clicked_across_three_axes_is_reported_in_one_sentence(refused, message):
    class Choosy(FakePolicy):
        seen = 0

        def on_accept(self, segmenter, lesson):
            self.seen += 1
            number = self.seen - 1
            if number in refused:
                return LearningReport(False, f"refused: lesson {number}", refused=True)
            super().on_accept(segmenter, lesson)
            return LearningReport(True, "learnt")

    session = make(policy=Choosy())
    for axis in range(3):
        session.add(Click((2, 5, 4), axis=axis))
    session.accept(learn=False)
    report = session.learn()
    assert (report.message, report.accepted, report.refused) == (message, len(refused) < 3, len(refused) == 3)


def test_accept_that_fails_to_learn_changes_nothing():
    policy = FakePolicy(failing="accept")
    session = make(policy=policy)
    session.add(Click((2, 5, 4)))
    before = observed(session)
    with pytest.raises(RuntimeError, match="told to fail"):
        session.accept()
    assert observed(session) == before
    session.accept(learn=False)
    assert session.finished == (1,)


def test_accepted_objects_without_voxels_teach_nothing():
    session = make(PICTURE)
    session.add(Click((5, 5), positive=False))
    session.accept(learn=False)
    assert session.pending == ()
    assert session.finished == (1,)


def test_forget_goes_back_to_the_untaught_model_and_can_be_undone():
    session = make(PICTURE, 5.0)
    session.add(Click((20, 30)))
    session.accept()
    taught = session._segmenter.snapshot()
    session.forget()
    assert session._segmenter.snapshot() == DiskWeights(5.0)
    assert session.finished == (1,)
    session.undo()
    assert session._segmenter.snapshot() is taught


# --- ids ---


def test_ids_given_at_the_start_are_finished_and_protected():
    labels = np.zeros((40, 50), np.int32)
    labels[18:, :] = 7
    labels[0, 0] = 3
    session = make(PICTURE, 5.0, labels=labels)
    labels[:] = 9
    assert session.finished == (3, 7)
    assert session.label == 8
    session.add(Click((17, 20)))
    assert (session.labels[18:] == 7).all()
    assert (session.labels[:18] == 8).any()


def test_ids_grow_beyond_one_and_two_bytes():
    session = make(PICTURE, 1.0, FakePolicy(0, 0))
    for row, (label, dtype) in enumerate([(255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.uint32)], start=1):
        session.select(label)
        session.add(Click((8 * row, 25)))
        session.accept()
        assert session.labels.dtype == dtype
        assert (session.labels == label).sum() == 5
    assert session.label == 65537
    while session.can_undo:
        session.undo()
    assert not session.labels.any()
    while session.can_redo:
        session.redo()
    assert set(np.unique(session.labels)) == {0, 255, 256, 65535, 65536}


def test_the_next_id_is_one_more_than_the_highest_in_use():
    session = make(PICTURE, 2.0)
    session.paint((slice(30, 31), slice(0, 2)), np.array([[12, 0]]))
    session.add(Click((5, 5)))
    session.accept()
    assert session.label == 13
    session.select(1)
    assert session.finished == ()
    session.accept()
    assert session.label == 13
    assert session.finished == (1,)


ON_OBJECTS = {
    "select": lambda session, label: session.select(label),
    "propagate": lambda session, label: session.propagate(label),
    "approve": lambda session, label: session.approve(Plane(0, 2), label=label),
    "delete": lambda session, label: session.delete(label),
    "relabel": lambda session, label: session.relabel(label, 9),
    "relabel to": lambda session, label: session.relabel(2, label),
    "merge": lambda session, label: session.merge(label, 2),
    "merge into": lambda session, label: session.merge(2, label),
    "split": lambda session, label: session.split(label, [(2, 3, 3), (2, 3, 4)]),
    "name": lambda session, label: session.name(label, "cell"),
}


def two_objects(**options) -> Session:
    """Object 1 in slice 2, object 2 in slice 3, object 3 open."""
    session = make(policy=FakePolicy(0, 0), **options)
    for voxel in ((2, 3, 3), (3, 8, 7)):
        session.add(Click(voxel))
        session.accept(learn=False)
    return session


@pytest.mark.parametrize("action", ON_OBJECTS)
@pytest.mark.parametrize("label", [0, -1, 1.5, 2**32])
def test_what_is_not_an_id_is_no_object(action, label):
    session = two_objects()
    before = observed(session)
    with pytest.raises(LabelsError, match=f"label {label} arrived; expected a whole number from 1"):
        ON_OBJECTS[action](session, label)
    assert observed(session) == before


@pytest.mark.parametrize("action", ON_OBJECTS)
def test_numbers_of_numpy_are_as_good_as_any(action, tmp_path):
    label = 255 if action == "relabel to" else 1
    plain, session = two_objects(), two_objects(journal=Journal.create(tmp_path, VOLUME))
    for one, of_type in ((plain, int), (session, np.uint8)):
        ON_OBJECTS[action](one, of_type(label))
        one.approve(Plane(of_type(0), of_type(1)), label=9)
        one.select(of_type(255))
        one.paint((slice(0, 1),) * 3, np.full((1, 1, 1), 255))
        one.accept(learn=False)
    assert observed(session) == observed(plain)
    assert session.label == 256
    session.close()
    assert observed(resume(tmp_path, VOLUME, DiskSegmenter(2.0), FakePolicy(0, 0))) == observed(plain)


def test_after_the_largest_id_the_lowest_free_ones_are_opened(tmp_path):
    labels = np.zeros(SHAPE, np.uint32)
    labels[0, 0, :2] = 2**32 - 1, 2
    session = make(policy=FakePolicy(0, 0), labels=labels, journal=Journal.create(tmp_path, VOLUME))
    assert session.label == 1
    session.add(Click((2, 3, 3)))
    session.accept()
    assert session.label == 3
    session.split(1, [(2, 3, 3), (2, 3, 4), (2, 4, 3)])
    assert session.finished == (2, 2**32 - 1, 1, 4, 5)
    session.relabel(2, 3)
    assert session.label == 6
    session.relabel(2**32 - 1, 2)
    session.add(Click((4, 8, 7)))
    session.relabel(6, 2**32 - 1)
    session.accept()
    assert session.label == 6
    assert session.finished == (3, 2, 1, 4, 5, 2**32 - 1)
    assert session.labels.dtype == np.uint32
    session.close()
    assert observed(resume(tmp_path, VOLUME, DiskSegmenter(2.0), FakePolicy(0, 0))) == observed(session)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((40, 49), int), r"shape \(40, 49\) arrived; expected \(40, 50\)"),
        (np.zeros((40, 50)), "float64 arrived; expected integers"),
        (np.full((40, 50), -1), "from -1 to -1"),
        (np.full((40, 50), 2**32), "expected ids from 0"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(labels, message):
    with pytest.raises(LabelsError, match=message):
        make(PICTURE, labels=labels)
    session = make(PICTURE)
    with pytest.raises(LabelsError, match=message):
        session.paint((slice(0, 40), slice(0, 50)), labels)
    assert not session.can_undo


@pytest.mark.parametrize("region", [(slice(0, 4), slice(0, 4, 2)), (3, slice(0, 4)), (slice(4, 4), slice(0, 4)), (slice(0, 4),) * 3])
def test_regions_that_cannot_be_painted_are_refused(region):
    with pytest.raises(LabelsError, match="the region"):
        make(PICTURE).paint(region, np.ones((4, 2), int))


# --- correcting and undoing ---


def test_a_selected_object_is_corrected_from_its_own_mask():
    labels = np.zeros((40, 50), np.uint8)
    labels[10:30, 10:30] = 1
    session = make(PICTURE, 3.0, FakePolicy(0, 0), labels=labels)
    session.select(1)
    session.add(Click((29, 29), positive=False))
    assert (session.labels == ((labels == 1) & ~disk((29, 29), 3, (40, 50)))).all()
    session.add(Click((5, 5)))
    assert session.labels[5, 5] == 1
    assert session.labels[29, 29] == 0
    assert session.labels[10, 10] == 1


def test_what_was_painted_by_hand_is_told_to_the_model_and_stays():
    session = make(PICTURE, 3.0, FakePolicy(0, 0))
    session.add(Click((10, 10)))
    session.paint((slice(30, 32), slice(30, 32)), np.ones((2, 2), int))
    session.paint((slice(10, 11), slice(10, 11)), np.zeros((1, 1), int))
    session.add(Click((20, 20)))
    assert (session.labels[30:32, 30:32] == 1).all()
    session.accept(learn=False)
    assert session.pending[0].mask[30:32, 30:32].all()


def test_an_object_that_was_only_painted_teaches_and_undo_takes_that_back():
    session = make(PICTURE, 3.0, FakePolicy(0, 0))
    session.paint((slice(10, 16), slice(10, 16)), np.ones((6, 6), int))
    assert session.worked_in == (Plane(0, 0),)
    session.accept(learn=False)
    (lesson,) = session.pending
    assert lesson.clicks == ()
    assert lesson.mask.sum() == 36
    session.undo()
    assert session.pending == ()
    session.undo()
    assert session.worked_in == ()


def test_strokes_of_one_slice_teach_and_balls_do_not():
    session = make(VOLUME, 2.0, FakePolicy(0, 0))
    session.paint((slice(2, 5), slice(3, 8), slice(3, 8)), np.ones((3, 5, 5), int))
    assert session.worked_in == ()
    session.paint((slice(3, 4), slice(3, 10), slice(3, 8)), np.ones((1, 7, 5), int))
    assert session.worked_in == (Plane(0, 3),)
    session.paint((slice(1, 5), slice(3, 8), slice(9, 10)), np.full((4, 5, 1), 2))
    assert session.worked_in == (Plane(0, 3),)  # of another object
    session.add(Click((2, 5, 5)))
    assert session.worked_in == (Plane(0, 2), Plane(0, 3))
    session.accept(learn=False)
    assert [lesson.mask.any() for lesson in session.pending] == [True, True]
    assert session.worked_in == ()


def test_discard_keeps_the_id_and_the_other_objects():
    session = make()
    session.add(Click((2, 5, 5)))
    session.accept()
    session.add(Click((2, 9, 9)))
    session.add(Click((3, 9, 9), axis=2))
    change = session.discard()
    assert session.label == 2
    assert set(np.unique(session.labels)) == {0, 1}
    assert session.clicks == ()
    assert not any((values == 2).any() for _, values in change.pieces)


def test_names_that_a_session_begins_with_are_kept_in_its_journal(tmp_path):
    labels = np.zeros(SHAPE, int)
    labels[2, 3:6, 3:6] = 4
    legend = Legend().naming(4, "nucleus")
    session = make(labels=labels, legend=legend, journal=Journal.create(tmp_path, VOLUME))
    session.name(1, "cell", "#123456")
    session.close()
    again = resume(tmp_path, VOLUME, DiskSegmenter(2.0), FakePolicy())
    assert again.legend == session.legend == legend.naming(1, "cell", "#123456")
    assert again.finished == (4,)


def test_the_next_object_is_of_the_same_class_if_that_is_kept(tmp_path):
    session = make(policy=FakePolicy(0, 0), journal=Journal.create(tmp_path, VOLUME))
    session.name(1, "nucleus")
    session.add(Click((2, 3, 3)))
    session.accept(learn=False, keep_class=True)
    assert (session.kind, session.legend.names) == ("nucleus", {1: "nucleus"}), "there is no such object yet"
    session.add(Click((3, 8, 7)))
    assert session.legend.names == {1: "nucleus", 2: "nucleus"}
    session.undo()
    assert (session.kind, session.legend.names) == ("nucleus", {1: "nucleus"})
    session.redo()
    session.accept(learn=False, keep_class=True)
    session.name(3, "")
    assert session.kind == ""
    session.undo()
    assert session.kind == "nucleus"
    session.paint((slice(0, 2),) * 3, np.full((2, 2, 2), 3))
    assert session.legend.names[3] == "nucleus"
    session.accept(learn=False)
    assert session.kind == ""
    session.close()
    assert observed(resume(tmp_path, VOLUME, DiskSegmenter(2.0), FakePolicy(0, 0))) == observed(session)
    again = make(policy=FakePolicy(0, 0))
    replay(again, read_recording(tmp_path))
    assert observed(again) == observed(session)


def test_the_model_is_told_the_class_that_was_kept():
    kinds = []

    class Listening(FakePolicy):
        def on_click(self, segmenter, image_slice, prompt):
            kinds.append(prompt.kind)
            return super().on_click(segmenter, image_slice, prompt)

    session = make(policy=Listening(0, 0))
    session.name(1, "nucleus")
    session.add(Click((2, 3, 3)))
    session.accept(learn=False, keep_class=True)
    session.add(Click((3, 8, 7)))
    session.select(9)
    session.add(Click((1, 8, 7)))
    assert kinds == ["nucleus", "nucleus", ""]


def test_what_is_refused_of_whole_objects_changes_nothing():
    session = make()
    session.add(Click((2, 5, 5)))
    before = observed(session)
    refused = [
        (lambda: session.merge(1, 1), "two objects"),
        (lambda: session.merge(1, 2), "object 2 was asked for"),
        (lambda: session.delete(9), "object 9 was asked for"),
        (lambda: session.relabel(9, 3), "object 9 was asked for"),
        (lambda: session.split(1, [(2, 5, 5), (2, 5, 5)]), "two or more parts"),
    ]
    for action, message in refused:
        with pytest.raises(SessionError, match=message):
            action()
    assert observed(session) == before


def test_an_object_that_gets_the_id_of_one_that_was_painted_away_inherits_nothing_of_it():
    session = make()
    for voxel in ((1, 3, 3), (3, 8, 7)):
        session.add(Click(voxel))
        session.accept(learn=False)
    session.paint((slice(1, 2),), np.zeros((1, *SHAPE[1:]), int))
    lessons, origin = session.pending, session._state.origin(2)
    session.relabel(2, 1)
    assert session.finished == (1,)
    assert [(lesson.label, lesson.image_slice) for lesson in session.pending] == [(1, lessons[1].image_slice)]
    assert session._state.origins == {1: origin}
    session.paint((slice(3, 4),), np.zeros((1, *SHAPE[1:]), int))
    session.add(Click((2, 5, 5)))
    session.relabel(3, 1)
    assert (session.label, session.finished, session.pending) == (1, (), ())


def test_there_must_be_something_to_undo_or_redo():
    session = make()
    with pytest.raises(SessionError, match="no action to undo"):
        session.undo()
    with pytest.raises(SessionError, match="no undone action"):
        session.redo()


def test_a_new_action_ends_what_could_be_redone():
    session = make()
    session.add(Click((2, 5, 5)))
    session.undo()
    assert session.can_redo
    session.add(Click((2, 6, 6)))
    assert not session.can_redo


def test_the_undo_history_stays_within_its_memory():
    session = make(PICTURE, 8.0, FakePolicy(0, 0), undo_memory_bytes=20_000)
    states = []
    for column in range(10, 40):
        states.append(observed(session))
        session.add(Click((20, column)))
    depth = 0
    while session.can_undo:
        session.undo()
        depth += 1
        assert observed(session) == states[-depth]
    assert 3 < depth < 15


def test_one_action_can_be_undone_however_little_memory_there_is():
    session = make(PICTURE, undo_memory_bytes=0)
    session.add(Click((20, 20)))
    session.add(Click((20, 30)))
    session.undo()
    assert not session.can_undo


def test_learning_ends_what_could_be_redone_even_where_nothing_can_be_undone():
    session = make(PICTURE, undo_memory_bytes=0)
    session.add(Click((20, 20)))
    session.accept(learn=False)
    session.add(Click((20, 30)))
    session.undo()
    assert session.can_redo
    session.learn()
    assert not session.can_redo


# --- resuming ---


def journaled(folder: Path, policy: FakePolicy | None = None, store: FakeStore | None = None) -> Session:
    return make(policy=policy, journal=Journal.create(folder, VOLUME), store=store)


def test_a_session_does_not_begin_in_an_old_journal(tmp_path):
    journaled(tmp_path).add(Click((2, 5, 5)))
    journal, events = Journal.reopen(tmp_path)
    assert len(events) == 1
    with pytest.raises(SessionError, match="1 actions arrived; expected a new one"):
        make(journal=journal)


@pytest.mark.parametrize("other", [VOLUME.data + 1, VOLUME.data[:, :4], np.where(VOLUME.data == VOLUME.data[0, 2, 5, 5], 0, VOLUME.data)])
def test_another_image_is_refused(tmp_path, other):
    journaled(tmp_path).add(Click((2, 5, 5)))
    with pytest.raises(SessionError, match="with the same voxels as when the session began"):
        resume(tmp_path, Image(other), DiskSegmenter(2.0), FakePolicy())


def test_killed_while_it_begins_a_session_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    folder, moments, real = tmp_path / "begins", [], {name: getattr(journal_module.os, name) for name in ("fsync", "replace")}
    labels = np.zeros(SHAPE, int)
    labels[1, 2:5] = 7

    def begin(folder: Path) -> Session:
        start = Version(1, origin="file", snapshot=DiskWeights(4.0, 9))
        known = {"labels": labels, "legend": Legend().naming(7, "cup", None), "start": start}
        return make(journal=Journal.create(folder, VOLUME), store=FakeStore(), **known)

    def watched(name: str):
        def act(*args: object) -> None:
            moments.append(shutil.copytree(folder, tmp_path / f"before {len(moments)}"))
            real[name](*args)
            moments.append(shutil.copytree(folder, tmp_path / f"after {len(moments)}"))

        return act

    with monkeypatch.context() as watching:
        for name in real:
            watching.setattr(journal_module.os, name, watched(name))
        session = begin(folder)
    whole = 0
    for left in moments:
        if (left / "journal.jsonl").exists():
            again, whole = resume(left, VOLUME, DiskSegmenter(2.0), FakePolicy(), FakeStore()), whole + 1
        else:
            again = begin(left)
        assert observed(again) == observed(session)
    assert 0 < whole < len(moments)


def test_journaled_labels_win_over_another_model(tmp_path):
    session = journaled(tmp_path)
    session.add(Click((2, 5, 5)))
    session.accept()
    session.add(Click((3, 5, 5)))
    again = resume(left_behind(tmp_path), VOLUME, DiskSegmenter(4.0), FakePolicy(1, 1))
    assert (again.labels == session.labels).all()
    assert again.clicks == session.clicks
    assert again.finished == (1,)
    again.undo()
    assert set(np.unique(again.labels)) == {0, 1}


class CountingPolicy(FakePolicy):
    """Learns little, and counts how often it was asked."""

    answers = lessons = 0

    def __init__(self, per_click=0.05, per_accept=0.05):
        super().__init__(per_click, per_accept)

    def on_click(self, segmenter, image_slice, prompt):
        self.answers += 1
        return super().on_click(segmenter, image_slice, prompt)

    def on_accept(self, segmenter, lesson):
        self.lessons += 1
        return super().on_accept(segmenter, lesson)


def five_objects(session: Session) -> None:
    for label in range(1, 6):
        session.add(Click((2, 2 * label, 5)))
        session.add(Click((3, 2 * label, 5)))
        session.accept()


def test_checkpoints_spare_the_way_from_the_start(tmp_path):
    session = journaled(tmp_path, CountingPolicy(), FakeStore())
    five_objects(session)
    session.add(Click((1, 1, 1)))
    assert len(list(tmp_path.glob("model-*.checkpoint"))) == 5  # every version
    policy = CountingPolicy()
    again = resume(tmp_path, VOLUME, DiskSegmenter(2.0), policy, FakeStore())
    assert observed(again) == observed(session)
    assert policy.answers == 1


def test_without_a_store_everything_is_learnt_again(tmp_path):
    session = journaled(tmp_path, CountingPolicy())
    five_objects(session)
    policy = CountingPolicy()
    again = resume(left_behind(tmp_path), VOLUME, DiskSegmenter(2.0), policy)
    assert observed(again) == observed(session)
    assert policy.answers == 10
    while session.can_undo:
        session.undo()
        again.undo()
        assert observed(again) == observed(session)


def test_a_policy_that_never_learns_needs_no_checkpoint(tmp_path):
    session = journaled(tmp_path, FakePolicy(0, 0), FakeStore())
    five_objects(session)
    session.add(Click((1, 1, 1)))
    assert not list(tmp_path.glob("*.checkpoint"))
    policy = CountingPolicy(0, 0)
    again = resume(tmp_path, VOLUME, DiskSegmenter(2.0), policy, FakeStore())
    assert observed(again) == observed(session)
    assert policy.answers == 1


def test_a_damaged_checkpoint_costs_time_and_nothing_else(tmp_path):
    session = journaled(tmp_path, CountingPolicy(), FakeStore())
    five_objects(session)
    newest = max(tmp_path.glob("model-*.checkpoint"))
    newest.write_bytes(newest.read_bytes()[:5])
    policy = CountingPolicy()
    again = resume(tmp_path, VOLUME, DiskSegmenter(2.0), policy, FakeStore())
    assert observed(again) == observed(session)
    assert policy.answers == 2


@pytest.mark.parametrize("undone", [1, 3, 6, 9, 12, 15])
def test_undone_learning_is_not_in_the_resumed_model(tmp_path, undone):
    session = journaled(tmp_path, CountingPolicy(), FakeStore())
    five_objects(session)
    for _ in range(undone):
        session.undo()
    policy = CountingPolicy()
    again = resume(left_behind(tmp_path), VOLUME, DiskSegmenter(2.0), policy, FakeStore())
    assert observed(again) == observed(session)
    assert policy.answers == undone // 3 * 2 + (undone % 3 > 0) * 2, "a checkpoint that undo needs again was not kept"
    while session.can_redo:
        session.redo()
        again.redo()
        assert observed(again) == observed(session)


def test_undone_learning_comes_from_its_checkpoint_too(tmp_path):
    session = journaled(tmp_path, CountingPolicy(), FakeStore())
    five_objects(session)
    session.undo()
    policy = CountingPolicy()
    again = resume(left_behind(tmp_path), VOLUME, DiskSegmenter(2.0), policy, FakeStore())
    assert policy.lessons == 0
    again.redo()
    session.redo()
    assert observed(again) == observed(session)


def test_a_failing_store_rolls_learning_back(tmp_path):
    class Full(FakeStore):
        def save(self, snapshot, path):
            path.write_text("half")
            raise OSError(28, "No space left on device")

    session = journaled(tmp_path, store=Full())
    session.add(Click((2, 5, 5)))
    session.accept(learn=False)
    before = observed(session)
    with pytest.raises(WriteError, match="No space left on device"):
        session.learn()
    assert observed(session) == before
    assert not list(tmp_path.glob("*.checkpoint"))
    assert [event.kind for event in read_journal(tmp_path)[1]] == ["add", "accept"]


def test_resumed_sessions_go_on_in_the_same_journal(tmp_path):
    session = journaled(tmp_path, store=FakeStore())
    session.add(Click((2, 5, 5)))
    session.close()
    for label in range(2, 5):
        session = resume(tmp_path, VOLUME, DiskSegmenter(2.0), FakePolicy(), FakeStore())
        session.accept()
        session.add(Click((label, 2 * label, 3)))
        session.close()
    _, events = read_journal(tmp_path)
    assert [event.sequence for event in events] == list(range(1, 11))
    again = resume(tmp_path, VOLUME, DiskSegmenter(2.0), FakePolicy(), FakeStore())
    assert observed(again) == observed(session)
    assert again.label == 4


# --- learning that leaves room for other things ---


def test_learning_with_pauses_ends_where_learning_without_ends(tmp_path):
    straight, paused = (make(policy=FakePolicy(0, 0.5)) for _ in range(2))
    for session in (straight, paused):
        session.add(Click((2, 5, 4)))
        session.add(Click((3, 5, 4)))
        session.accept(learn=False)
    report = straight.learn()
    steps, pauses = paused.learning(lambda: True), 0
    while True:
        try:
            next(steps)
            pauses += 1
            assert paused._segmenter.radius == 2.0, "while it pauses, the model is the one in force"
        except StopIteration as end:
            ended = end.value
            break
    assert ended == report
    assert pauses > 2
    assert observed(paused)[:-2] == observed(straight)[:-2]


@pytest.mark.parametrize("per_click", [0.0, 0.25])
def test_what_is_done_while_learning_pauses_is_done_with_the_model_before_and_replays(tmp_path, per_click):
    policy = FakePolicy(per_click, 0.5)
    journal = Journal.create(tmp_path / "session", VOLUME)
    session = make(policy=policy, journal=journal)
    session.add(Click((2, 5, 4)))
    session.accept(learn=False)
    before = session._segmenter.radius
    steps = session.learning(lambda: True)
    next(steps)
    session.add(Click((4, 5, 4)))
    assert session._segmenter.radius == before + per_click
    for _ in steps:
        pass
    assert not session.pending
    assert session.clicks == (Click((4, 5, 4)),)
    taught = session._segmenter.radius
    assert taught == before + per_click + 0.5
    session.add(Click((4, 6, 4)))
    labels = session.labels.copy()
    session.close()
    _, events = read_journal(tmp_path / "session")
    assert [event.kind for event in events] == ["add", "accept", "add", "learn", "add"]
    again = resume(tmp_path / "session", VOLUME, DiskSegmenter(2.0), FakePolicy(per_click, 0.5))
    np.testing.assert_array_equal(again.labels, labels)
    again.close()


def test_learning_is_called_off_by_taking_back_what_it_learns_from():
    session = make(policy=FakePolicy(0, 0.5))
    session.add(Click((2, 5, 4)))
    session.accept(learn=False)
    steps = session.learning(lambda: True)
    next(steps)
    session.undo()
    now = observed(session)
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value is None
    assert observed(session) == now
    assert session.label == 1
    assert session._segmenter.radius == 2.0
    session.accept()
    assert session._segmenter.radius == 2.5


def test_what_is_undone_while_learning_pauses_can_be_redone_and_the_lesson_waits():
    session = make(policy=FakePolicy(0, 0.5))
    session.add(Click((2, 5, 4)))
    session.accept(learn=False)
    steps = session.learning(lambda: True)
    next(steps)
    session.add(Click((4, 5, 4)))
    clicked = observed(session)
    session.undo()
    assert list(steps) == []
    assert session._segmenter.radius == 2.0
    assert len(session.pending) == 1
    session.redo()
    assert observed(session) == clicked
    session.accept()
    assert session._segmenter.radius == 3.0
    assert not session.pending


def test_learning_that_is_left_alone_for_good_or_fails_leaves_the_model_in_force():
    session = make(policy=FakePolicy(0, 0.5))
    session.add(Click((2, 5, 4)))
    session.accept(learn=False)
    before = observed(session)
    steps = session.learning(lambda: True)
    next(steps)
    steps.close()
    assert observed(session) == before
    session._model.policy = FakePolicy(failing="accept")
    steps = session.learning(lambda: True)
    with pytest.raises(RuntimeError, match="told to fail"):
        for _ in steps:
            pass
    assert observed(session) == before


def test_after_a_crash_before_learning_the_first_answers_are_known(tmp_path):
    session = journaled(tmp_path, FakePolicy(0, 0.5), FakeStore())
    session.add(Click((2, 5, 5)))
    session.accept()
    session.add(Click((3, 9, 8)))
    session.accept(learn=False)
    again = resume(left_behind(tmp_path), VOLUME, DiskSegmenter(2.0), FakePolicy(0, 0.5), FakeStore())
    assert observed(again) == observed(session)
    first = [lesson.first_iou for lesson in again.pending]
    assert first == [lesson.first_iou for lesson in session.pending]
    assert not np.isnan(first).any()


def test_what_no_model_was_asked_for_can_be_undone_after_resuming(tmp_path):
    session = journaled(tmp_path, CountingPolicy(), FakeStore())
    session.add(Click((2, 5, 5)))
    session.accept()
    session.propagate()
    session.approve(Plane(0, 3), label=1)
    session.name(1, "cell")
    policy = CountingPolicy()
    again = resume(left_behind(tmp_path), VOLUME, DiskSegmenter(2.0), policy, FakeStore())
    assert (policy.answers, policy.lessons) == (0, 0)
    for _ in range(3):
        assert observed(again) == observed(session)
        session.undo()
        again.undo()
    assert observed(again) == observed(session)
    assert not again.can_undo, "what is older would need the model of before"
    for _ in range(3):
        session.redo()
        again.redo()
    assert observed(again) == observed(session)


# --- practice ---


def practising(folder: Path | None = None, store: FakeStore | None = None) -> Session:
    journal = None if folder is None else Journal.create(folder, PICTURE)
    return make(PICTURE, policy=FakePolicy(0, 1.0, 0.25), journal=journal, store=store)


def work_on(session: Session, *steps: int) -> None:
    """An object for every number, before which so many steps are practised."""
    for number, most in enumerate(steps):
        session.add(Click((3 + number, 4 + 2 * number)))
        session.practise(most)
        session.accept()


def test_what_was_practised_counts_with_the_next_lesson():
    session = practising()
    work_on(session, 3, 3)
    assert session._segmenter.radius == 2.0 + 1.0 + 1.0 + 3 * 0.25  # there was nothing to practise before the first
    assert [version.report.practised for version in session.versions.versions[1:]] == [0, 3]


def test_practice_may_be_left_at_any_step_and_taken_up_again():
    session = practising()
    work_on(session, 0)
    steps = session.practising()
    next(steps)
    session.add(Click((8, 8)))
    next(steps)
    session.undo()
    next(steps)
    steps.close()
    assert session.practise() == 4
    session.add(Click((8, 8)))
    session.accept()
    assert session.versions.current.report.practised == 4


def test_where_the_model_changes_practice_ends():
    session = practising()
    work_on(session, 0)
    steps = session.practising()
    next(steps)
    session.forget()
    assert list(steps) == []
    session.undo()
    assert session.practise(2) == 2


@pytest.mark.parametrize("stored", [True, False])
def test_a_resumed_session_has_practised_as_much(tmp_path, stored):
    store = FakeStore() if stored else None
    session = practising(tmp_path, store)
    work_on(session, 0, 2, 4)
    session.close()
    again = resume(tmp_path, PICTURE, DiskSegmenter(2.0), FakePolicy(0, 1.0, 0.25), store)
    assert observed(again) == observed(session)
    assert again._segmenter.radius == 2.0 + 3.0 + 6 * 0.25


def test_who_only_looks_does_not_practise(tmp_path):
    session = practising(tmp_path)
    work_on(session, 0)
    looking = resume(tmp_path, PICTURE, DiskSegmenter(2.0), FakePolicy(0, 1.0, 0.25))
    assert looking.read_only
    assert looking.practise() == 0


def test_what_a_click_teaches_while_learning_pauses_stays_and_is_resumed_as_it_is(tmp_path):
    policy = FakePolicy(0.25, 1.0)
    session = Session(VOLUME, DiskSegmenter(2.0), policy, journal=Journal.create(tmp_path, VOLUME), store=FakeStore())
    session.add(Click((1, 5, 5)))
    session.accept(learn=False)
    steps = session.learning(lambda: True)
    next(steps)
    session.add(Click((2, 5, 5)))
    for _ in steps:
        pass
    assert session._segmenter.snapshot().radius == pytest.approx(2.0 + 2 * 0.25 + 1.0)
    again = resume(shutil.copytree(tmp_path, tmp_path.with_name("copy")), VOLUME, DiskSegmenter(2.0), policy, FakeStore())
    assert again._segmenter.snapshot() == session._segmenter.snapshot()
    assert observed(again) == observed(session)


# --- what memory does not hold ---


def test_what_was_undone_stays_undone_where_memory_holds_few_steps(tmp_path, monkeypatch):
    monkeypatch.setitem(Session.__init__.__kwdefaults__, "undo_memory_bytes", 1200)
    session = make(radius=4.0, policy=FakePolicy(0, 0), journal=Journal.create(tmp_path, VOLUME))
    for number in range(6):
        session.add(Click((number % SHAPE[0], 5, 5)))
    assert session._ledger.history.done < 6
    for _ in range(2):
        session.undo()
    seen, clicks = session.labels.copy(), session.clicks
    session.close()
    again = resume(tmp_path, VOLUME, DiskSegmenter(4.0), FakePolicy(0, 0))
    assert again.clicks == clicks
    assert (again.labels == seen).all()
    again.redo()
    assert len(again.clicks) == 5
    again.undo()
    again.add(Click((0, 1, 1)))
    now = again.labels.copy()
    again.close()
    assert (replay_labels(tmp_path) == now).all()


@pytest.mark.parametrize("corrected", [False, True])
def test_a_lesson_that_was_not_learnt_yet_is_not_learnt_once_its_object_is_another(corrected):
    session = make(policy=FakePolicy(0, 1.0))
    session.add(Click((2, 5, 5)))
    session.accept(learn=False)
    session.select(1)
    if corrected:
        session.add(Click((2, 5, 6)))
        session.accept(learn=False)
        (lesson,) = session.pending
        assert (lesson.mask == (session.labels[2] == 1)).all()
    else:
        session.discard()
        assert session.pending == ()
    session.undo()
    session.undo()
    assert len(session.pending) == 1
