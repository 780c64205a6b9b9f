"""Laws of projects: what is written comes back, nothing is half written, and of two who want one case one has it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from napari_apprentice import project_file
from napari_apprentice.project_file import PROJECT_NAME, Settings
from napari_apprentice.projects import Status, create_project, open_project
from napari_apprentice.types import Image, InputError, InUseError, ReadError, WriteError


@pytest.fixture
def images(tmp_path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"eye {number}.png" for number in range(4)]
    for path in paths:
        Picture.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    return paths


@pytest.fixture
def project(tmp_path, images):
    return create_project(tmp_path / "project", Settings("glaucoma", names={1: "disc", 2: "cup"}), images)


# --- the list ---


def test_what_is_written_comes_back(project, images):
    again = open_project(project.folder)
    assert again == project
    assert [case.name for case in again.cases] == ["eye_0", "eye_1", "eye_2", "eye_3"]
    assert [case.image for case in again.cases] == images
    assert again.settings.names == {1: "disc", 2: "cup"}
    assert again.settings.legend.names == {1: "disc", 2: "cup"}


@settings(max_examples=25)
@given(name=st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20), text=st.text(max_size=30))
def test_every_text_survives_the_file(tmp_path_factory, name, text):
    folder = tmp_path_factory.mktemp("project")
    chosen = Settings("study", policy=text or "x", clicks=name, weights="a\\b", axis=2, propagate=False, names={3: name})
    assert create_project(folder, chosen).settings == chosen
    assert open_project(folder / PROJECT_NAME).settings == chosen


@settings(max_examples=50)
@given(before=st.integers(0, 62), middle=st.text("ab. _-é", max_size=9), after=st.integers(0, 9))
def test_whatever_an_image_is_called_its_project_can_be_opened(tmp_path_factory, before, middle, after):
    folder = tmp_path_factory.mktemp("project")
    image = folder / f"x{'a' * before}{middle}{'b' * after}.png"
    image.touch()
    made = create_project(folder, Settings("study"), [image])
    assert [case.image for case in open_project(folder).cases] == [case.image for case in made.cases] == [image]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are Unicode here")
def test_a_name_that_is_not_utf_8_is_refused_before_a_project_is_made(tmp_path, images):
    image = images[0].rename(images[0].with_name(os.fsdecode(b"eye \xff.png")))
    with pytest.raises(ReadError, match=r"eye \\udcff.png' is not UTF-8, as project.toml has to be; expected"):
        create_project(tmp_path / "project", Settings("study"), [*images[1:], image])
    assert not (tmp_path / "project" / PROJECT_NAME).exists()
    with pytest.raises(InputError, match="expected a name in UTF-8"):
        Settings("study", weights=str(image))


def test_images_are_named_relative_to_the_project(project, tmp_path):
    text = (project.folder / PROJECT_NAME).read_text()
    assert 'image = "../images/eye 0.png"' in text
    project.set_status("eye_1", Status("done", by="run"))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("project", "images"):
        (tmp_path / name).rename(moved / name)
    again = open_project(moved / "project")
    assert all(case.image.exists() for case in again.cases)
    assert again.status("eye_1").state == "done"


@pytest.fixture
def link(tmp_path):
    """``far/link`` is the folder ``deep/er``."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    try:
        (tmp_path / "far" / "link").symlink_to(tmp_path / "deep" / "er", target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    return tmp_path / "far" / "link"


def test_what_lies_beside_the_target_of_a_link_is_not_what_lies_beside_the_link(tmp_path, images, link, monkeypatch):
    right, wrong = tmp_path / "deep" / "x.png", tmp_path / "far" / "x.png"
    for path in (right, wrong):
        path.write_bytes(images[0].read_bytes())
    made = create_project(tmp_path / "made", Settings("s"), [link / ".." / "x.png"])
    monkeypatch.chdir(link)
    assert [case.image for case in made.with_images(["../x.png"]).cases] == [right]
    assert [case.image for case in open_project(tmp_path / "made").with_images([wrong]).cases] == [right, wrong]
    (tmp_path / PROJECT_NAME).write_text(
        'study = "s"\n[[case]]\nname = "one"\nimage = "far/link/../x.png"\nclicks = "far/link/../c.json"\n'
    )
    (case,) = open_project(tmp_path).cases
    assert (case.image, case.clicks) == (right, tmp_path / "deep" / "c.json")


@pytest.mark.parametrize("linked_first", [True, False])
def test_a_project_is_the_same_through_a_link(tmp_path, images, link, linked_first):
    places = (link / "project", tmp_path / "deep" / "er" / "project")
    first, second = places if linked_first else places[::-1]
    own = tmp_path / "deep" / "er" / "own.png"
    own.write_bytes(images[0].read_bytes())
    made = create_project(first, Settings("s"), [images[0], first.parent / "own.png"])
    assert open_project(second).cases == made.cases
    assert [case.image for case in made.cases] == [images[0], own]
    assert 'image = "../own.png"' in (first / PROJECT_NAME).read_text()
    assert open_project(second).with_images([images[0], second.parent / "own.png"]).cases == made.cases


def test_a_linked_image_goes_by_its_own_name(tmp_path, images, link):
    (tmp_path / "named.png").symlink_to(images[0])
    (case,) = create_project(tmp_path / "made", Settings("s"), [tmp_path / "named.png"]).cases
    assert (case.name, case.image) == ("named", tmp_path / "named.png")


def test_an_older_project_that_was_made_through_a_link_still_finds_its_images(images, link):
    folder = link / "project"
    folder.mkdir()
    (folder / PROJECT_NAME).write_text('study = "s"\n[[case]]\nname = "one"\nimage = "../../copies/eye 0.png"\n')
    copies = link.parent / "copies"
    copies.mkdir()
    (copies / "eye 0.png").write_bytes(images[0].read_bytes())
    assert open_project(folder)["one"].image == copies / "eye 0.png"


def test_a_project_may_be_written_by_hand(tmp_path, images):
    (tmp_path / PROJECT_NAME).write_text('study = "s"\n[[case]]\nname = "one"\nimage = "images/eye 0.png"\nclicks = "c.json"\n')
    project = open_project(tmp_path)
    assert project["one"].image == images[0]
    assert project.clicks_of("one") == tmp_path / "c.json"
    assert project.settings == Settings("s")


def test_what_people_wrote_into_the_file_stays(tmp_path, images):
    written = '# of Dr Ott\nstudy = "s" # pilot\n\n[[case]]\nname = "one"\nimage = "images/eye 0.png" # blurred\n'
    (tmp_path / PROJECT_NAME).write_text(written)
    project = open_project(tmp_path).with_images(images)
    text = (tmp_path / PROJECT_NAME).read_text()
    assert text.startswith(written)
    assert open_project(tmp_path) == project
    assert [case.image for case in project.cases] == images
    project.with_images(images)
    assert (tmp_path / PROJECT_NAME).read_text() == text


def test_cases_in_one_line_are_not_added_to(tmp_path, images):
    written = 'study = "s"\ncase = [{name = "one", image = "images/eye 0.png"}]\n'
    (tmp_path / PROJECT_NAME).write_text(written)
    with pytest.raises(ReadError, match=r"expected a \[\[case\]\] for each"):
        open_project(tmp_path).with_images(images)
    assert (tmp_path / PROJECT_NAME).read_text() == written


def test_a_project_that_another_program_saved_with_a_byte_order_mark_is_read(project):
    path = project.folder / PROJECT_NAME
    path.write_text(path.read_text("utf-8"), "utf-8-sig")
    assert open_project(project.folder) == project


def test_images_of_one_name_are_different_cases_and_the_same_image_is_one(project, images, tmp_path):
    twin = tmp_path / "EYE 0.png"
    twin.write_bytes(images[0].read_bytes())
    after = project.with_images([twin, images[0], twin])
    assert [case.name for case in after.cases] == ["eye_0", "eye_1", "eye_2", "eye_3", "EYE_0_2"]
    assert open_project(project.folder) == after


def test_nothing_is_lost_when_many_add_at_once(project, images, tmp_path):
    def add(number):
        path = tmp_path / f"more{number}.png"
        path.write_bytes(images[0].read_bytes())
        open_project(project.folder).with_images([path])

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(open_project(project.folder).cases) == 12


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'study' is missing"),
        ("study = 3", "study = 3"),
        ('study = "s"\nnames = 3', "names = 3"),
        ('study = "s"\n[names]\none = "disc"', "one = 'disc' among the names"),
        ('study = "s"\n[names]\n1 = ["disc"]', "1 = ['disc'] among the names"),
        ('study = "s"\n[names]\n1 = "two\\nlines"', "class name 'two\\nlines'"),
        ('study = "s"\ncase = 3', "case = 3, which is no list"),
        ('study = "s"\ncase = ["a.png"]', "case = ['a.png'], which is no list"),
        ('study = "s"\n[case]\nname = "x"\nimage = "a.png"', "which is no list of [[case]]"),
        ('study = "s"\n[[case]]\nname = "x"\nimage = 3', "image = 3"),
        ('study = "s"\n[[case]]\nname = "x"\nimage = "a.png"\nclick = "a.json"', "click = 'a.json'"),
        (f"study = {999 * '['}", "cannot be read"),
        ('study = "s"\naxis = true', "axis = True"),
        ('study = "s"\ncolour = "red"', "colour = 'red'"),
        ('study = "a/b"', "'a/b'"),
        ('study = "s"\naxis = 3', "axis 3"),
        ('study = "s"\n[[case]]\nname = "../x"\nimage = "a.png"', "'../x'"),
        ('study = "s"\n[[case]]\nname = "x"', "'image' is missing"),
        ('study = "s"\n[[case]]\nname = "x"\nimage = "a.png"\nage = 70', "age = 70"),
        ('study = "s"' + 2 * '\n[[case]]\nname = "x"\nimage = "a.png"', "twice"),
        ("study = ", "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_sentence(tmp_path, text, said):
    (tmp_path / PROJECT_NAME).write_text(text)
    with pytest.raises((ReadError, InputError)) as refused:
        open_project(tmp_path)
    assert said in str(refused.value)
    assert "expected" in str(refused.value)


def test_what_is_not_there_is_told(tmp_path, project, images):
    with pytest.raises(ReadError, match="no project in"):
        open_project(tmp_path / "nowhere")
    with pytest.raises(ReadError, match=r"nothing.png.* does not exist"):
        project.with_images([tmp_path / "nothing.png"])
    with pytest.raises(ReadError, match="extension"):
        project.with_images([project.folder / PROJECT_NAME])
    with pytest.raises(InputError, match="no case 'eye_9'; expected one of eye_0"):
        project["eye_9"]
    with pytest.raises(WriteError, match="holds a project already"):
        create_project(project.folder, Settings("s"))


# --- states ---


def test_a_case_waits_until_something_is_known(project):
    assert project.status("eye_0") == Status()
    known = project.set_status("eye_0", Status("done", "all well", "run", "session-1", "labels/x.png", 0.25))
    assert project.status("eye_0") == open_project(project.folder).status("eye_0") == known
    assert known.time
    assert math.isnan(project.set_status("eye_0", Status("begun")).expected_error)
    assert math.isnan(project.status("eye_0").expected_error)


def test_a_case_whose_image_disappears_is_missing_until_it_is_back(project, images):
    known = project.set_status("eye_0", Status("failed", "it was dark", "run"))
    images[0].rename(images[0].with_suffix(".away"))
    status = project.status("eye_0")
    assert status.state == "missing"
    assert "eye 0.png is not there; expected" in status.reason
    images[0].with_suffix(".away").rename(images[0])
    assert project.status("eye_0") == known


def test_a_case_that_is_done_stays_done_without_its_image(project, images):
    project.set_status("eye_0", Status("done"))
    images[0].unlink()
    assert project.status("eye_0").state == "done"


def test_a_damaged_state_is_told(project):
    project.set_status("eye_0", Status("done"))
    path = project.case_folder("eye_0") / "state.json"
    for text, said in (
        ("{", ""),
        ("[]", ""),
        ('{"state": "asleep"}', "state 'asleep'"),
        ('{"state": ["done"]}', r"state \['done'\]"),
        ('{"state": "done", "labels": 3}', "labels 3"),
        ('{"state": "done", "expected_error": "high"}', "expected_error 'high'"),
    ):
        path.write_text(text)
        with pytest.raises(ReadError, match=rf"eye_0.*damaged \(.*{said}") as told:
            project.stored("eye_0")
        assert project.status("eye_0") == Status("damaged", str(told.value))
        with pytest.raises(ReadError, match=r"without that file the case waits again"), project.held("eye_0"):
            pass
    assert project.next_case().name == "eye_1"
    path.unlink()
    assert project.next_case().name == "eye_0"


def test_a_state_that_cannot_be_written_leaves_the_old_one(project, monkeypatch):
    known = project.set_status("eye_0", Status("begun", by="hand"))
    for step in ("replace", "fsync"):
        with monkeypatch.context() as broken:

            def full(*_):
                raise OSError(28, "No space left on device")

            broken.setattr(project_file.os, step, full)
            with pytest.raises(WriteError, match="No space left"):
                project.set_status("eye_0", Status("done"))
        assert project.status("eye_0") == known
    assert sorted(path.name for path in project.case_folder("eye_0").iterdir()) == ["state.json"]


KILLED = """
import sys
from napari_apprentice.projects import Status, open_project
project, number = open_project(sys.argv[1]), 0
print("ready", flush=True)
while True:
    number += 1
    project.set_status("eye_0", Status("failed", "x" * (number % 5000), "run", str(number % 5000)))
"""


def test_a_state_is_whole_whenever_its_writer_is_killed(project):
    for kill in range(4):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(project.folder)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"ready\n"
            threading.Event().wait(0.02 * kill)
            for _ in range(20):
                project.stored("eye_0")
            writer.kill()
            writer.wait(timeout=60)
        status = project.stored("eye_0")
        assert status == Status() or len(status.reason) == int(status.session)


# --- who has a case ---


def test_of_two_who_want_a_case_one_has_it(project):
    with project.held("eye_0") as status:
        assert status == Status()
        with pytest.raises(InUseError), open_project(project.folder).held("eye_0", wait_s=0.1):
            pass
        with project.held("eye_1"):
            pass
    with project.held("eye_0"):
        pass


def test_whoever_waits_gets_the_case_when_it_is_free(project):
    held, got = threading.Event(), []

    def work():
        held.wait(timeout=60)
        with open_project(project.folder).held("eye_0", wait_s=20):
            got.append(True)

    waiting = threading.Thread(target=work)
    waiting.start()
    with project.held("eye_0"):
        held.set()
        threading.Event().wait(0.2)
        assert got == []
    waiting.join(timeout=60)
    assert got == [True]


HOLDER = """
import sys, time
from napari_apprentice.projects import open_project
with open_project(sys.argv[1]).held("eye_0"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_holds_nothing(project):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(project.folder)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InUseError, match=str(holder.pid)), project.held("eye_0", wait_s=0.1):
            pass
        holder.kill()
        holder.wait(timeout=60)
    with project.held("eye_0"):
        pass


# --- which one is next ---


def test_next_by_order_is_the_first_that_is_not_done(project, images):
    assert project.next_case().name == "eye_0"
    project.set_status("eye_0", Status("done", by="hand"))
    project.set_status("eye_1", Status("begun", by="run"))
    images[2].unlink()
    assert project.next_case().name == "eye_3"
    project.set_status("eye_1", Status("begun", by="hand"))
    assert project.next_case().name == "eye_1"
    for name in ("eye_1", "eye_3"):
        project.set_status(name, Status("done"))
    assert project.next_case() is None


def test_next_by_error_is_the_worst_that_nobody_has_looked_at(project):
    assert project.next_case("error") is None
    for name, error in (("eye_0", 0.1), ("eye_1", 0.4), ("eye_2", 0.3)):
        project.set_status(name, Status("done", by="run", expected_error=error))
    assert project.next_case("error").name == "eye_1"
    project.set_status("eye_1", Status("done", by="hand", expected_error=0.9))
    assert project.next_case("error").name == "eye_2"
    project.set_status("eye_0", Status("done", by="run"))
    assert project.next_case("error").name == "eye_0"
    project.set_status("eye_3", Status("failed", by="run"))
    assert project.next_case("error").name == "eye_3"


# --- places ---


@pytest.mark.parametrize(
    ("image", "labels"),
    [("a.nii.gz", "x_labels.nii.gz"), ("a.jpg", "x_labels.png"), ("a_labels.mhd", "x_labels.mha"), ("a.ome.tif", "x_labels.ome.tif")],
)
def test_labels_are_in_the_format_of_the_image(tmp_path, image, labels):
    (tmp_path / PROJECT_NAME).write_text(f'study = "s"\n[[case]]\nname = "x"\nimage = "{image}"\n')
    picture = Image(np.zeros((1, 2, 2)), path=tmp_path / image)
    assert open_project(tmp_path).labels_path("x", picture) == tmp_path / "labels" / labels


def test_the_file_says_what_it_is(project):
    text = (project.folder / PROJECT_NAME).read_text()
    assert text.startswith("# A project of napari-apprentice.")
    assert tomllib.loads(text)["names"] == {"1": "disc", "2": "cup"}
    assert not [path for path in os.listdir(project.folder) if path.endswith(".tmp")]
    assert json.dumps(tomllib.loads(text)["case"][0]) == '{"name": "eye_0", "image": "../images/eye 0.png"}'
