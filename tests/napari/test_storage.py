from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from napari_apprentice._napari import storage
from napari_apprentice.fakes import DiskSegmenter, FakePolicy
from napari_apprentice.journal import JOURNAL_NAME, Journal
from napari_apprentice.session import Session
from napari_apprentice.types import Click, Image


def begin(image: Image, *, clicks: int):
    folder = storage.fresh_folder(image)
    session = Session(image, DiskSegmenter(), FakePolicy(), journal=Journal.create(folder, image))
    for number in range(clicks):
        session.add(Click((2, 10 + number, 10)))
    session.close()
    return folder


def test_sessions_lie_under_the_home_of_the_environment(apprentice_home, volume):
    folder = storage.fresh_folder(volume)
    assert folder.parent == apprentice_home / "sessions"
    assert folder.name.startswith("scan-")


def test_a_new_start_never_takes_an_old_folder(volume):
    folders = [begin(volume, clicks=1) for _ in range(3)]
    assert len(set(folders)) == 3


def test_the_newest_session_with_something_in_it_is_found(volume):
    assert storage.newest_folder(volume) is None
    first, second = begin(volume, clicks=1), begin(volume, clicks=2)
    os.utime(second / JOURNAL_NAME, (1, 1))
    assert storage.newest_folder(volume) == first
    begin(volume, clicks=0)
    assert storage.newest_folder(volume) == first


def test_images_are_told_apart_by_their_values_and_found_again_after_reading_them_anew(volume):
    folder = begin(volume, clicks=1)
    assert storage.newest_folder(replace(volume, data=volume.data.copy())) == folder
    assert storage.newest_folder(replace(volume, data=volume.data + 1)) is None


def test_names_that_no_folder_can_have_are_made_plain(volume):
    named = replace(volume, name="a/b: c?*")
    assert storage.fresh_folder(named).parent.name == "sessions"
    begin(named, clicks=1)
    assert storage.newest_folder(named) is not None


def test_a_session_of_a_renamed_image_is_found_and_one_of_its_own_name_goes_before_it(volume):
    named = begin(volume, clicks=1)
    renamed = replace(volume, name="patient 1")
    assert storage.newest_folder(renamed) == named
    own = begin(renamed, clicks=1)
    os.utime(own / JOURNAL_NAME, (1, 1))
    assert storage.newest_folder(renamed) == own
    assert storage.newest_folder(volume) == named


def test_a_session_of_a_longer_name_is_another_one():
    image = Image(np.arange(100.0).reshape(1, 10, 10), name="a")
    longer = replace(image, name="a-b")
    folder = storage.fresh_folder(longer)
    Session(longer, DiskSegmenter(), FakePolicy(), journal=Journal.create(folder, longer)).add(Click((3, 3)))
    own = begin(image, clicks=0)
    Session(image, DiskSegmenter(), FakePolicy(), journal=Journal.create(own.with_name(f"{own.name}-2"), image)).add(Click((3, 3)))
    assert storage.newest_folder(image) == own.with_name(f"{own.name}-2")
    assert storage.newest_folder(longer) == folder
