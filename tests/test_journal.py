"""What is in the journal is on the disk, comes back exactly, and survives every kind of sudden death."""

from __future__ import annotations

import json
import math
import os
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_apprentice import journal as journal_module
from napari_apprentice.fakes import DiskSegmenter, FakePolicy
from napari_apprentice.files import read, save_image
from napari_apprentice.journal import (
    KINDS,
    Event,
    Header,
    Journal,
    displacement,
    effective,
    fingerprint,
    read_journal,
    replay_labels,
    standing_as,
)
from napari_apprentice.labelmap import Patch
from napari_apprentice.session import Session
from napari_apprentice.types import Click, Image, InUseError, LearningReport, ReadError, SessionError, WriteError
from napari_apprentice.versions import Effort, Version

AFFINE = np.array([[-5.0, 0, 0, 100], [0, 0.5, 0.1, -3], [0, -0.1, 0.5, 7], [0, 0, 0, 1]])
IMAGE = Image(np.random.default_rng(0).random((1, 6, 30, 20)), AFFINE, "mm", name="knee")


def patch(values: np.ndarray) -> Patch:
    return Patch.between(np.zeros_like(values), values, (1, 2, 3))


clicks = st.builds(Click, st.tuples(st.integers(0, 5), st.integers(0, 29), st.integers(0, 19)), st.booleans(), st.integers(0, 2))
losses = st.floats(allow_infinity=False)
reports = st.builds(LearningReport, st.booleans(), st.text(), losses, losses, st.floats(0, 9))
patches = st.lists(st.integers(1, 70000), min_size=1, max_size=3).map(
    lambda labels: Patch(tuple(tile for label in labels for tile in patch(np.full((2, 3, 4), label)).tiles))
)
events = st.builds(
    Event,
    st.sampled_from(KINDS),
    st.integers(1, 2**32 - 1),
    st.just(24),
    st.integers(0, 10**9).map(lambda us: us / 10**6),
    st.none() | clicks,
    st.none() | patches,
    st.booleans(),
    st.none() | reports,
    st.none() | st.text(min_size=1),
)


def told(event: Event) -> tuple[object, ...]:
    """An event as something that can be compared."""
    change = None if event.patch is None else [(region, values.tolist(), values.dtype) for region, values in event.patch.after]
    facts = {field.name: getattr(event, field.name) for field in fields(event)} | {"patch": change}
    return tuple(repr(value) for value in facts.values())


@pytest.fixture(scope="module")
def unflushed():
    """No waiting for the disk where only the content matters."""
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.mark.usefixtures("unflushed")
@given(st.lists(st.lists(events, min_size=1, max_size=3), max_size=4))
@settings(max_examples=40, deadline=None)
def test_what_was_appended_is_read(tmp_path_factory, batches):
    folder = tmp_path_factory.mktemp("journal")
    with Journal.create(folder, IMAGE, policy="mi+pi", model="unet:0123") as journal:
        written = [event for batch in batches for event in journal.append(*batch)]
    header, found = read_journal(folder)
    assert list(map(told, found)) == list(map(told, written))
    assert [event.sequence for event in found] == list(range(1, len(found) + 1))
    assert header == journal.header == replace(Header.of(IMAGE, policy="mi+pi", model="unet:0123"), time=header.time)
    again, same = Journal.reopen(folder)
    again.close()
    assert again.header == header
    assert list(map(told, same)) == list(map(told, found))


def test_a_line_tells_people_who_what_where_and_when(tmp_path):
    with Journal.create(tmp_path, IMAGE, policy="pi") as journal:
        journal.append(Event("add", 3, 24, 0.25, Click((2, 10, 5), False, axis=1), patch(np.full((2, 3, 4), 3)), taught=True))
    header, line = (json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines())
    assert (header["format"], header["image"], header["shape"], header["units"], header["policy"]) == (1, "knee", [6, 30, 20], "mm", "pi")
    assert np.array_equal(header["affine"], AFFINE)
    expected = {"voxel": [2, 10, 5], "world": (AFFINE @ [2, 10, 5, 1])[:3].tolist(), "positive": False, "axis": 1}
    assert line["click"] == expected
    assert line["plane"] == [1, 10]
    assert (line["sequence"], line["kind"], line["label"], line["changed"], line["latency_s"]) == (1, "add", 3, 24, 0.25)
    assert line["time"].endswith("+00:00")


def test_losses_that_were_not_measured_stay_that_way_in_plain_json(tmp_path):
    with Journal.create(tmp_path, IMAGE) as journal:
        journal.append(Event("learn", 1, report=LearningReport(True, "ok")))
    assert "NaN" not in (tmp_path / "journal.jsonl").read_text()
    assert math.isnan(read_journal(tmp_path)[1][0].report.loss_before)


def test_events_are_on_the_disk_when_append_returns(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_size))
    journal = Journal.create(tmp_path, IMAGE)
    for count in range(1, 4):
        journal.append(Event("forget", 1))
        assert (tmp_path / "journal.jsonl").stat().st_size in flushed
        flushed.clear()
        assert len(read_journal(tmp_path)[1]) == count


def test_a_new_journal_is_there_with_the_first_events_and_not_before(tmp_path):
    with Journal.create(tmp_path, IMAGE) as journal:
        with pytest.raises(ReadError, match="cannot be read"):
            read_journal(tmp_path)
        with pytest.raises(InUseError):
            Journal.create(tmp_path, IMAGE)
        journal.append(Event("open", 1), Event("open", 1))
        assert len(read_journal(tmp_path)[1]) == 2
    assert not list(tmp_path.glob("*.new"))


def test_where_a_session_fails_to_begin_there_is_no_journal(tmp_path):
    with pytest.raises(RuntimeError), Journal.create(tmp_path, IMAGE):
        raise RuntimeError
    assert not list(tmp_path.glob("journal*"))
    with Journal.create(tmp_path, IMAGE):
        pass
    assert read_journal(tmp_path)[1] == ()


def test_a_name_that_cannot_be_given_is_a_write_error(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", fail)
    journal = Journal.create(tmp_path, IMAGE)
    with pytest.raises(WriteError, match="Permission denied"):
        journal.append(Event("open", 1))
    journal.close()
    assert not (tmp_path / "journal.jsonl").exists()
    Journal.create(tmp_path, IMAGE).close()


# --- torn and damaged files ---


@pytest.fixture
def written(tmp_path):
    with Journal.create(tmp_path, IMAGE) as journal:
        for label in (1, 2, 3):
            journal.append(Event("add", label, 24, 0.0, Click((0, 0, 0)), patch(np.full((2, 3, 4), label))))
    return tmp_path / "journal.jsonl"


def test_a_torn_last_line_is_left_out_wherever_it_was_torn(written):
    whole = written.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for length in range(start, len(whole)):
        written.write_bytes(whole[:length])
        assert [event.label for event in read_journal(written)[1]] == [1, 2]


@pytest.mark.parametrize("tail", [b"", b"\0" * 300, b'{"sequence": 3, "ti', b'{"sequence": 3}\n'])
def test_appending_cuts_the_torn_tail_off_first(written, tail):
    whole = written.read_bytes()
    written.write_bytes(whole[: whole[:-1].rindex(b"\n") + 1] + tail)
    journal, found = Journal.reopen(written)
    assert len(found) == 2
    journal.append(Event("forget", 9))
    journal.close()
    assert [event.label for event in read_journal(written)[1]] == [1, 2, 9]
    assert written.read_bytes().count(b'"check": ') == written.read_bytes().count(b"\n") == 4
    assert written.read_bytes().endswith(b"\n")


def test_no_changed_byte_before_the_last_line_goes_unnoticed(written):
    whole = written.read_bytes()
    end = whole[:-1].rindex(b"\n") + 1
    for place in {*range(0, end, 5), *(i for i in range(end) if whole[i] in b"\n{}")}:
        content = bytearray(whole)
        content[place] ^= 1 + place % 255
        written.write_bytes(content)
        with pytest.raises(ReadError, match="expected"):
            read_journal(written)


def test_a_missing_line_is_noticed(written):
    lines = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(b"".join([lines[0], lines[1], lines[3]]))
    with pytest.raises(ReadError, match="damaged in line 3; expected action 2"):
        read_journal(written)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x89PNG\r\n", b"{}\n", b"\0\0\0"])
def test_what_is_no_journal_is_refused(tmp_path, content):
    (tmp_path / "journal.jsonl").write_bytes(content)
    with pytest.raises(ReadError, match="expected the journal of a session"):
        read_journal(tmp_path)


def test_a_missing_journal_is_a_read_error(tmp_path):
    with pytest.raises(ReadError, match="cannot be read"):
        read_journal(tmp_path / "nowhere")
    with pytest.raises(ReadError, match="cannot be read"):
        Journal.reopen(tmp_path / "nowhere")
    (tmp_path / "clicks.json").touch()
    with pytest.raises(ReadError, match=r"clicks.json is no journal; expected the folder of a session, or the file journal.jsonl in it"):
        read_journal(tmp_path / "clicks.json")


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    header = replace(Header.of(IMAGE), format=2)
    monkeypatch.setattr(Header, "of", lambda *args, **kwargs: header)
    Journal.create(tmp_path, IMAGE).close()
    with pytest.raises(ReadError, match="format 2; expected format 1"):
        read_journal(tmp_path)


def rewritten(path, number, **changed):
    """Give a line of a journal other entries, as another version would have written it; None takes one away."""
    lines = path.read_bytes().splitlines(keepends=True)
    record = journal_module._record(lines[number - 1])
    for key, value in changed.items():
        record[key] = value(record.get(key)) if callable(value) else value
        if value is None:
            del record[key]
    path.write_bytes(b"".join([*lines[: number - 1], journal_module._line(record), *lines[number:]]))


def test_what_later_versions_add_is_left_out(tmp_path):
    report, effort = LearningReport(True, "learnt", 1.0, 0.5), Effort(2, 0.75, 0.5)
    with Journal.create(tmp_path, IMAGE) as journal:
        journal.append(Event("accept", 1), Event("learn", 1, report=report, effort=effort, version=Version(1, parent=0)))
    rewritten(tmp_path / "journal.jsonl", 1, more=1)
    rewritten(tmp_path / "journal.jsonl", 3, more=1, **{key: lambda facts: facts | {"more": 1} for key in ("report", "effort", "version")})
    _, (_, event) = read_journal(tmp_path)
    assert repr((event.report, event.effort, event.version)) == repr((report, effort, Version(1, 0, report=report, effort=effort)))


@pytest.mark.parametrize(
    ("line", "changed", "said"),
    [
        (1, {"shape": None}, "KeyError: 'shape'"),
        (1, {"affine": 3}, "TypeError"),
        (1, {"image": None}, "TypeError"),
        (3, {"kind": "dream"}, "an action 'dream'"),
        (3, {"click": {"voxel": [0, 0, 0]}}, "KeyError: 'positive'"),
        (3, {"effort": {"clicks": 1}}, "TypeError"),
        (3, {"label": None}, "TypeError"),
    ],
)
def test_what_another_version_wrote_and_this_one_does_not_know_is_told(written, line, changed, said):
    rewritten(written, 1, package="9.1")
    rewritten(written, line, **changed)
    with pytest.raises(ReadError, match=rf"written by version 9\.1 .* line {line} of it \(.*{said}.*; expected a journal of this version"):
        read_journal(written)
    for _ in range(2):  # and leaves no lock
        with pytest.raises(ReadError, match="expected a journal of this version") as held:
            Journal.reopen(written)
    assert held.tb is not None


# --- where it cannot be written ---


def test_an_earlier_journal_is_not_overwritten(written):
    before = written.read_bytes()
    with pytest.raises(WriteError, match="is the journal of an earlier session"):
        Journal.create(written.parent, IMAGE)
    assert written.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_a_write_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="cannot be begun"):
        Journal.create(tmp_path / "file" / "folder", IMAGE)


class Full:
    """A file on a disk that fills up after ``room`` bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if not self.room:
            raise OSError(28, "No space left on device")
        count = self.file.write(bytes(data[: self.room]))
        self.room -= count
        return count

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1, 100, 400])
def test_a_full_disk_leaves_the_journal_as_it_was_and_later_appends_work(written, room):
    journal, _ = Journal.reopen(written)
    before, file = written.read_bytes(), journal._file
    journal._file = Full(file, room)
    with pytest.raises(WriteError, match=r"No space left on device\), so the action was not done"):
        journal.append(Event("paint", 4, patch=patch(np.random.default_rng(0).integers(1, 9, (9, 9, 9)))), Event("learn", 4))
    assert written.read_bytes() == before
    assert journal.sequence == 3
    journal._file = file
    journal.append(Event("forget", 9))
    assert [event.label for event in read_journal(written)[1]] == [1, 2, 3, 9]


def test_a_failed_flush_counts_as_not_written(written, monkeypatch):
    def fail(descriptor):
        raise OSError(5, "Input/output error")

    journal, _ = Journal.reopen(written)
    before = written.read_bytes()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError, match="Input/output error"):
        journal.append(Event("forget", 9))
    assert written.read_bytes() == before


# --- what it means ---


def entry_names(kinds: str) -> tuple[str, int]:
    """Undo (u), redo (r), learn (l); any other letter is an action of that name. What is left, a capital for one that was learnt after."""
    names = {"u": "undo", "r": "redo", "l": "learn", "o": "open"}
    entries, done = effective([Event(names.get(kind, "add"), ord(kind)) for kind in kinds])
    return "".join(chr(e.action.label).upper() if e.learn else chr(e.action.label) for e in entries), done


@pytest.mark.parametrize(
    ("kinds", "left", "done"),
    [
        ("", "", 0),
        ("abc", "abc", 3),
        ("abcuu", "abc", 1),
        ("abcuur", "abc", 2),
        ("abcuud", "ad", 2),
        ("oab", "ab", 2),
        ("abl", "aB", 2),
        ("ablu", "aB", 1),
        ("abul", "A", 1),
        ("ablud", "ad", 2),
        ("alurb", "Ab", 2),
    ],
)
def test_undo_and_redo_leave_the_actions_in_force(kinds, left, done):
    assert entry_names(kinds) == (left, done)


@pytest.mark.parametrize("label", [1, 300])
def test_labels_are_replayed_without_image_or_model(tmp_path, label):
    labels = np.zeros(IMAGE.shape, int)
    labels[0, :5] = label
    with Journal.create(tmp_path, IMAGE) as journal:
        session = Session(IMAGE, DiskSegmenter(4), FakePolicy(), labels=labels, journal=journal)
        session.add(Click((2, 10, 5)))
        session.accept()
        session.add(Click((3, 10, 5), axis=2))
        session.add(Click((3, 20, 9)))
        session.undo()
    replayed = replay_labels(tmp_path)
    assert (replayed == session.labels).all()
    assert replayed.dtype == session.labels.dtype


# --- fingerprints ---


def test_every_voxel_of_a_small_image_counts():
    seen = {fingerprint(IMAGE)}
    for voxel in [(0, 0, 0, 0), (0, 3, 17, 11), (0, 5, 29, 19)]:
        data = IMAGE.data.copy()
        data[voxel] += 1e-9
        seen.add(fingerprint(Image(data)))
    seen.add(fingerprint(Image(IMAGE.data.reshape(1, 30, 6, 20))))
    assert len(seen) == 5


def test_type_order_and_geometry_do_not_count():
    data = np.arange(60, dtype=np.uint8).reshape(1, 6, 10)
    same = [data, data.astype(">i4"), np.asfortranarray(data.astype(float))]
    assert len({fingerprint(Image(array)) for array in same} | {fingerprint(Image(data, np.diag([2.0, 3.0, 1.0])))}) == 1


def test_little_of_a_huge_image_is_read():
    class Huge:
        shape, dtype, touched = (1, 4000, 4096, 4096), np.dtype(np.uint16), 0

        def __getitem__(self, index):
            block = np.broadcast_to(np.uint16(7), [len(range(*i.indices(s))) for i, s in zip(index, self.shape, strict=True)])
            Huge.touched += block.size
            return block

    assert len(fingerprint(Image(Huge()))) == 32
    assert Huge.touched == 27 * 32**2


def test_a_journal_of_a_file_knows_where_it_lies(tmp_path):
    path = tmp_path / "slice.png"
    save_image(path, Image(np.arange(1200, dtype=np.uint8).reshape(1, 30, 40)))
    header = Header.of(read(path))
    assert header.path == str(path)
    assert header.image == "slice"
    assert header.shape == (30, 40)


# --- the geometry that a session knew ---

VALUES = np.random.default_rng(3).random((1, 4, 9, 9))
STATED = Image(VALUES, np.diag([3.0, 0.5, 0.5, 1]), "mm", name="stack")
UNSTATED = Image(VALUES, name="stack")


def test_what_somebody_stated_holds_for_a_file_that_states_nothing():
    again = standing_as(Header.of(STATED), UNSTATED)
    np.testing.assert_array_equal(again.affine, STATED.affine)
    assert (again.units, again.data is UNSTATED.data) == ("mm", True)
    assert displacement(Header.of(STATED), again) == ""
    for image in (STATED, UNSTATED):
        assert standing_as(Header.of(image), image) is image
        assert displacement(Header.of(image), image) == ""


def test_other_voxels_are_another_image():
    with pytest.raises(SessionError, match="with the same voxels"):
        standing_as(Header.of(STATED), replace(UNSTATED, data=VALUES + 1))


@pytest.mark.parametrize(
    ("affine", "units", "words"),
    [
        (np.diag([3.0, 0.25, 0.5, 1]), "mm", "spacing of 3 × 0.25 × 0.5 mm now; it had 3 × 0.5 × 0.5 mm"),
        (None, "pixel", "spacing of 1 × 1 × 1 pixel now"),
        (STATED.affine + np.array([[0, 0, 0, 0], [0, 0, 0, 1.0], [0, 0, 0, 0], [0, 0, 0, 0]]), "mm", "up to 2 voxels away"),
        (np.diag([3.0, 0.5, -0.5, 1]), "mm", "voxels away"),
    ],
)
def test_an_image_that_lies_elsewhere_says_how(affine, units, words):
    assert words in displacement(Header.of(STATED), Image(VALUES, affine, units))


def test_a_header_of_single_precision_is_the_same_place():
    affine = np.diag([3.0000001, 0.49999998, 0.5, 1])
    affine[:3, 3] = 100.00001, -200.00002, 0
    before = replace(STATED, affine=affine.astype(np.float32).astype(float))
    assert displacement(Header.of(before), replace(STATED, affine=affine)) == ""
