"""What the record says of a session is what happened in it."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import numpy as np
import pytest

from napari_apprentice import blocks
from napari_apprentice import journal as journal_module
from napari_apprentice.agreement import agreement
from napari_apprentice.fakes import DiskSegmenter, FakePolicy, FakeStore
from napari_apprentice.journal import Journal, effective, read_journal
from napari_apprentice.measure import as_csv, in_unit
from napari_apprentice.record import case_record, click_rows, journals_in, object_rows
from napari_apprentice.record_page import page
from napari_apprentice.session import Session
from napari_apprentice.types import Click, Image, InputError, LabelsError, ReadError
from napari_apprentice.work import PAUSE_S, versions_in_use

AFFINE = np.array([[-5.0, 0, 0, 100], [0, 0.5, 0.1, -3], [0, -0.1, 0.5, 7], [0, 0, 0, 1]])
VOLUME = Image(np.random.default_rng(0).normal(100, 10, (1, 6, 24, 20)), AFFINE, "mm", name="knee")
PICTURE = Image(np.random.default_rng(1).normal(100, 10, (1, 40, 50)), name="photo <b>&")


class Clock:
    """Times of journals: the one at hand, and those to come every ``step_s``."""

    def __init__(self) -> None:
        self.now, self.step_s = datetime(2026, 3, 2, 9, tzinfo=UTC), 2.0

    def __call__(self) -> str:
        self.now += timedelta(seconds=self.step_s)
        return self.now.isoformat(timespec="microseconds")


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(journal_module, "_now", made)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return made


def begin(folder, image=VOLUME, policy=None, **options):
    journal = Journal.create(folder, image, policy="mi+pi", model="unet:0123", cohort="knees")
    return Session(image, DiskSegmenter(3.0, masks=2), policy or FakePolicy(), journal=journal, store=FakeStore(), **options)


def written(rows):
    return list(csv.DictReader(io.StringIO(as_csv(rows))))


# --- any session ---


@pytest.mark.parametrize("seed", range(10))
def test_versions_labels_names_and_counts_are_those_of_the_session(tmp_path, wander, seed):
    given = np.zeros(VOLUME.shape, np.uint8)
    given[2:4, 3:7, 4:9] = 3
    session = begin(tmp_path, labels=given if seed % 2 else None)
    in_use = []

    def look():
        in_use.append((session._journal.sequence, session.versions.number))

    wander(session, seed, 70, look)
    _, events = read_journal(tmp_path)
    found = dict(enumerate(versions_in_use(events)))
    assert all(found[sequence] == number for sequence, number in in_use if sequence < len(events))
    case = case_record(tmp_path)
    sizes = Counter(np.asarray(session.labels).ravel().tolist())
    assert all(one.voxels == sizes[one.label] for one in case.objects)
    assert {one.label for one in case.objects} >= set(sizes) - {0, 3}
    assert {one.label: one.name for one in case.objects if one.voxels} == {
        one.label: session.legend.names.get(one.label, "") for one in case.objects if one.voxels
    }
    adds = [event for event in events if event.kind == "add"]
    assert [one.event.sequence for one in case.clicks] == [event.sequence for event in adds]
    assert sum(one.work.clicks for one in case.objects) == len(adds)
    entries, done = effective(events)
    standing = sum(entry.action.kind == "add" for entry in entries[:done])
    assert sum(not one.taken_back for one in case.clicks) == standing
    assert len(page([case])) > 1000


# --- a session that is known to the second ---


@pytest.fixture
def known(tmp_path, clock):
    """Two objects: three clicks of which one is taken back; a pause; one click and a lesson."""
    session = begin(tmp_path / "first", policy=FakePolicy(0, 1))
    session.add(Click((2, 10, 10)))
    session.add(Click((2, 12, 15), False))
    session.undo()
    session.add(Click((2, 10, 11)))
    session.accept()
    clock.step_s = PAUSE_S + 40
    session.add(Click((4, 18, 10), axis=1))
    clock.step_s = 2.0
    session.accept()
    session.name(2, "meniscus")
    session.merge(1, 2)
    session.close()
    return tmp_path / "first"


def test_the_table_of_clicks_says_all_of_every_click(known):
    rows = written(click_rows(case_record(known)))
    assert len(rows) == 4
    first, fourth = rows[0], rows[-1]
    assert (first["case"], first["session"], first["study"], first["model"], first["policy"]) == (
        "knee",
        "first",
        "knees",
        "unet:0123",
        "mi+pi",
    )
    assert [row["click"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["action"] for row in rows] == ["1", "2", "4", "7"]
    assert [row["time"] for row in rows] == [f"2026-03-02T09:{t}.000000+00:00" for t in ("00:04", "00:06", "00:10", "01:12")]
    assert [float(row["elapsed_s"]) for row in rows] == [2, 4, 8, 70]
    assert [float(row["active_s"]) for row in rows] == [2, 2, 2, 0]
    assert [float(row["active_total_s"]) for row in rows] == [2, 4, 8, 10]
    assert [(row["object"], row["final_object"], row["click_of_object"]) for row in rows] == [
        ("1", "2", "1"),
        ("1", "2", "2"),
        ("1", "2", "3"),
        ("2", "2", "4"),
    ]
    assert [row["positive"] for row in rows] == ["1", "0", "1", "1"]
    assert [row["class"] for row in rows] == ["meniscus"] * 4
    assert [(row["across"], row["slice"]) for row in rows] == [("z", "2")] * 3 + [("y", "18")]
    assert [row["taken_back"] for row in rows] == ["0", "1", "0", "0"]
    assert [row["model_version"] for row in rows] == ["0", "0", "0", "1"]
    assert int(first["changed_voxels"]) == 29
    assert float(first["latency_s"]) > 0
    world = (AFFINE @ [4, 18, 10, 1])[:3]
    assert [int(fourth[f"{axis}_voxel"]) for axis in "zyx"] == [4, 18, 10]
    assert [float(fourth[f"{axis}_mm"]) for axis in "zyx"] == pytest.approx(world.tolist())


@pytest.mark.parametrize(("unit", "said", "per_mm"), [(None, "um", 1e3), ("mm", "mm", 1.0), ("um", "um", 1e3), ("nm", "nm", 1e6)])
def test_places_in_a_stack_of_nanometres_are_in_its_unit(tmp_path, known, unit, said, per_mm):
    affine = np.diag([4e-5, 8e-6, 8e-6, 1.0])
    affine[:3, 3] = 3e-3, -2e-3, 1e-3
    session = begin(tmp_path / "stack", Image(VOLUME.data, affine, "mm", name="stack"))
    session.add(Click((2, 10, 12)))
    stack = click_rows(case_record(tmp_path / "stack"), unit)
    (row,) = written(stack)
    assert [float(row[f"{axis}_{said}"]) for axis in "zyx"] == pytest.approx([per_mm * v for v in (affine @ [2, 10, 12, 1])[:3]])
    assert [row[f"{axis}_voxel"] for axis in "zyx"] == ["2", "10", "12"]
    both = written(in_unit([*click_rows(case_record(known)), *stack], unit))
    assert {name for name in both[0] if name[:2] in ("x_", "y_", "z_")} == {f"{a}_{b}" for a in "xyz" for b in ("voxel", said)}
    assert [float(both[i][f"x_{said}"]) for i in (0, -1)] == pytest.approx(
        [per_mm * (AFFINE @ [2, 10, 10, 1])[2], per_mm * (1e-3 + 12 * 8e-6)]
    )


def test_a_unit_of_places_that_there_is_not(known):
    with pytest.raises(InputError, match="'furlong' arrived; expected one of mm, um, nm"):
        click_rows(case_record(known), "furlong")


def test_the_table_of_objects_adds_up_what_each_of_them_cost(known):
    truth = np.zeros(VOLUME.shape, int)
    truth[2, 7:14, 7:15] = 5
    truth[0, 0, 0] = 6
    case = case_record(known, lambda header: truth)
    (row,) = written(object_rows(case))
    assert (row["object"], row["class"], row["clicks"], row["negative_clicks"], row["taken_back_clicks"]) == (
        "2",
        "meniscus",
        "4",
        "1",
        "1",
    )
    assert float(row["active_s"]) == 2 * 8
    assert row["accepted"] == "2026-03-02T09:00:12.000000+00:00"
    session_labels = journal_module.replay_labels(known)
    (match,) = agreement(session_labels, truth).matches
    assert (row["truth"], float(row["dice"]), float(row["iou"])) == ("5", pytest.approx(match.dice), pytest.approx(match.iou))
    assert float(row["slices_dice"]) == pytest.approx(match.slices_dice)
    assert case.agreement.missed == (6,)
    assert case.active_s == 2 * 8
    assert float(row["first_click_iou"]) > 0


def test_names_go_along_when_objects_are_split_renumbered_merged_and_deleted(tmp_path):
    session = begin(tmp_path, PICTURE)
    for label, name in enumerate(("cell", "nucleus", "", "debris"), start=1):
        session.add(Click((8 * label, 10 * label)))
        session.accept()
        session.name(label, name)
    session.select(2)
    session.accept(keep_class=True)
    session.add(Click((2, 2)))
    session.accept(keep_class=True)
    session.paint((slice(3, 5), slice(0, 2)), np.full((2, 2), session.label))
    session.paint((slice(0, 2), slice(0, 2)), np.full((2, 2), 2))
    session.split(2, [(0, 0), (16, 20)])
    session.relabel(1, 40)
    session.merge(40, 3)
    session.delete(4)
    session.name(2, "other")
    session.undo()
    names = {one.label: one.name for one in case_record(tmp_path).objects if one.voxels}
    assert names == dict(session.legend.names) == {2: "nucleus", 3: "cell", 5: "nucleus", 6: "nucleus", 7: "nucleus"}


def test_a_picture_has_no_slices_and_its_own_units(tmp_path):
    session = begin(tmp_path, PICTURE)
    session.add(Click((20, 30)))
    session.accept()
    case = case_record(tmp_path, lambda header: np.asarray(session.labels))
    (click,), (thing,) = written(click_rows(case)), written(object_rows(case))
    assert (click["across"], click["slice"], click["x_voxel"], click["y_pixel"]) == ("", "", "30", "20")
    assert not {"z_voxel", "x_mm", "x_um"} & set(click)
    assert "slices_dice" not in thing
    assert float(thing["dice"]) == 1


def test_a_truth_of_another_shape_is_refused(known):
    with pytest.raises(LabelsError, match="expected"):
        case_record(known, lambda header: np.zeros((2, 2, 2), int))


def test_labels_that_do_not_fit_into_memory_are_counted_and_compared_block_by_block(known, monkeypatch):
    truth = np.zeros(VOLUME.shape, int)
    truth[2, 7:14, 7:15] = 5
    small = case_record(known, lambda header: truth)
    monkeypatch.setattr(blocks, "LARGE_VOXELS", 10)
    large = case_record(known, lambda header: truth)
    assert isinstance(journal_module.replay_labels(known), blocks.BlockArray)
    assert object_rows(large) == object_rows(small)
    assert large.agreement == small.agreement


# --- finding journals ---


def test_journals_are_found_once_wherever_they_lie_and_come_oldest_first(tmp_path, known):
    for name in ("a/z", "a/b"):
        begin(tmp_path / name).close()
    newer = [tmp_path / name / "journal.jsonl" for name in ("a/z", "a/b")]
    oldest = known / "journal.jsonl"
    assert journals_in([tmp_path]) == [oldest, *newer]
    assert journals_in([newer[1], tmp_path / "a", known, oldest]) == [oldest, *newer]
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "nowhere", tmp_path / "nowhere.jsonl"):
        with pytest.raises(ReadError, match=f"{nothing.name} is no journal and holds none"):
            journals_in([known, nothing])


# --- the page ---


class Checker(HTMLParser):
    """Whether every tag is closed in order, and what a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.seen, self.loads, self.words = [], Counter(), [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen[tag] += 1
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen[tag] += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_whole_needs_nothing_and_trusts_no_name(tmp_path, known):
    session = begin(tmp_path / "photo", PICTURE)
    session.add(Click((20, 30)))
    session.accept()
    session.name(1, "<script>alert(1)</script>")
    cases = [case_record(path, lambda header: np.ones(header.shape, int)) for path in (known, tmp_path / "photo")]
    text = page(cases)
    seen = Checker(text)
    assert not seen.open
    assert not seen.loads
    assert not re.search(r"https?:|<script|@import|url\(|<b>&", text)
    words = " ".join(seen.words)
    for title in (
        "Clicks per object",
        "Taught and untaught",
        "Time per case",
        "Dice with the truth",
        "How long an answer takes",
        "Cases",
        "Objects",
    ):
        assert title in words
    assert "photo <b>&" in words
    assert "prefers-color-scheme: dark" in text
    assert seen.seen["svg"] == 5
    assert text == page(cases), "the same journals make the same page"


def test_without_a_truth_the_page_says_nothing_of_one(known):
    text = page([case_record(known)])
    assert "Dice" not in text
    assert Checker(text).seen["svg"] == 4


def test_counts_agree_in_number(tmp_path):
    counts = []
    session = begin(tmp_path)
    for _ in range(2):
        session.add(Click((2, 5, 5)))
        session.accept()
        found = re.findall(r'class="tile"><b>(\d+)</b><span>([^<]*)</span>', page([case_record(tmp_path)]))
        counts.append([" ".join(each) for each in found])
    assert counts[0] == ["1 case", "1 accepted object", "1 click"]
    assert counts[1] == ["1 case", "2 accepted objects", "2 clicks"]


def test_a_session_without_a_click_or_an_accepted_object_has_a_page(tmp_path):
    session = begin(tmp_path)
    session.select(3)
    text = page([case_record(tmp_path)])
    assert "No object was accepted" in text
    assert "No click was made" in text
    Checker(text)


def test_forty_cases_fit_on_a_page_and_long_tables_are_folded(known):
    case = case_record(known)
    many = [replace(case, header=replace(case.header, image=f"case {number}")) for number in range(41)]
    text = page(many)
    seen = Checker(text)
    assert seen.seen["details"] == 3
    assert all(f"case {number}" in text for number in range(41))
    assert Checker(page(many[:5])).seen["details"] == 0


def test_sessions_of_one_image_are_told_apart(known):
    text = page([case_record(known)] * 2)
    assert "knee (1)" in text
    assert "knee (2)" in text
