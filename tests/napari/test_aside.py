"""What napari waits for in its main thread is done aside: the window goes on drawing, and nothing comes out otherwise than before."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from qtpy.QtCore import Qt, QTimer
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QProgressDialog, QPushButton

from napari_apprentice import files
from napari_apprentice._napari import contributions
from napari_apprentice._napari.aside import aside
from napari_apprentice._napari.contributions import get_reader, image_layer, write_labels
from napari_apprentice._napari.measure_table import MeasureTable
from napari_apprentice._napari.placement import METADATA_KEY
from napari_apprentice._napari.saver import NOT_SAVED
from napari_apprentice._napari.widget import ApprenticeWidget
from napari_apprentice.types import WriteError

LONG_S = 0.2


@pytest.fixture
def slow(turns):
    """A function, but it only goes on when the main thread has had its turns."""

    def make(function):
        def slowly(*args, **kwargs):
            assert threading.current_thread() is not threading.main_thread()
            assert turns.wait(30), "the main thread has no turns"
            return function(*args, **kwargs)

        return slowly

    return make


def test_the_main_thread_has_its_turns_meanwhile(slow):
    assert aside(slow(lambda: "done")) == "done"
    assert QApplication.overrideCursor() is None


def test_what_is_quick_begins_no_loop(qtbot, monkeypatch):
    monkeypatch.setattr("napari_apprentice._napari.aside._AT_ONCE_S", 30.0)  # so quick it is on any machine
    turns = []
    QTimer.singleShot(0, lambda: turns.append(1))
    assert aside(lambda: 3) == 3
    assert turns == []
    qtbot.waitUntil(lambda: turns == [1], timeout=30_000)


@pytest.mark.parametrize("seconds", [0, LONG_S])
def test_errors_are_those_of_the_work(qtbot, seconds):
    class OwnError(Exception):
        pass

    def work():
        time.sleep(seconds)
        raise OwnError("words")

    with pytest.raises(OwnError, match="words"):
        aside(work)
    assert QApplication.overrideCursor() is None


def test_what_the_user_does_waits(qtbot):
    """A press of a button that was under way does not get into the middle of the work."""
    button, order = QPushButton(), []
    qtbot.addWidget(button)
    button.clicked.connect(lambda: order.append("pressed"))
    aside(lambda: time.sleep(LONG_S) or order.append("worked"))
    button.click()
    assert order == ["worked", "pressed"]


def test_in_another_thread_it_is_done_there(qtbot):
    threads = []
    thread = threading.Thread(target=lambda: aside(lambda: threads.append(threading.current_thread())), daemon=True)
    thread.start()
    thread.join(60)
    assert threads == [thread]


def test_without_a_window_it_is_done_at_once():
    code = "import threading; from napari_apprentice._napari.aside import aside; print(aside(threading.current_thread).name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["MainThread"]


def test_an_application_that_ends_meanwhile_gets_the_result(qtbot):
    ended = threading.Event()

    def end():
        QApplication.instance().quit()
        ended.set()

    QTimer.singleShot(0, end)
    assert aside(lambda: ended.wait(30) and (time.sleep(LONG_S) or "done")) == "done"


def test_a_reader_does_not_keep_the_window_waiting(tmp_path, volume, slow, monkeypatch, told):
    path = files.save_image(tmp_path / "a.nii.gz", volume)
    monkeypatch.setattr(files, "read", slow(files.read))
    ((data, _, kind),) = get_reader(str(path))(str(path))
    np.testing.assert_array_equal(data, volume.data[0])
    assert kind == "image"
    path.write_bytes(path.read_bytes()[:100])
    assert get_reader(str(path)) is None
    assert ["a.nii.gz" in sentence and "damaged" in sentence for sentence in told()] == [True]


def test_neither_does_a_writer_and_what_changes_meanwhile_is_not_half_in_the_file(tmp_path, volume, slow, monkeypatch):
    labels = np.zeros(volume.shape, np.uint8)
    QTimer.singleShot(0, lambda: labels.fill(7))  # an answer of the worker
    monkeypatch.setattr(files, "write", slow(files.write))
    write_labels(str(tmp_path / "a.nii.gz"), labels, {"metadata": {METADATA_KEY: volume}})
    assert labels.max() == 7
    assert files.read_labels(tmp_path / "a.nii.gz").max() == 0


def test_saving_that_takes_long_is_called_off_in_a_dialog_and_the_old_file_stays(make_napari_viewer, tmp_path, volume, monkeypatch, told):
    """File > Save of napari, in a real window."""
    viewer, path, began = make_napari_viewer(show=True), tmp_path / "a.nii.gz", threading.Event()
    viewer.add_labels(np.ones(volume.shape, np.uint8), name="cells")
    files.write(path, np.zeros(volume.shape, np.uint8), like=volume)
    before, whole = path.read_bytes(), files.write

    def endless(*args, go_on, **options):
        began.set()
        for _ in range(3000):
            go_on()
            time.sleep(0.01)

    def dialogs():
        return [each for each in QApplication.topLevelWidgets() if isinstance(each, QProgressDialog) and each.isVisible()]

    def press():
        if not dialogs():
            QTimer.singleShot(10, press)
            return
        (dialog,) = dialogs()
        seen.append((dialog.labelText(), dialog.isModal(), began.is_set()))
        QTest.mouseClick(dialog.findChild(QPushButton), Qt.MouseButton.LeftButton)

    seen = []
    monkeypatch.setattr(files, "write", endless)
    QTimer.singleShot(0, press)
    with pytest.raises(WriteError, match=rf"saving a\.nii\.gz was called off: {NOT_SAVED}"):
        viewer.layers.save(path, plugin="napari-apprentice")
    assert seen == [("Saving a.nii.gz …", True, True)]
    assert path.read_bytes() == before
    assert (dialogs(), QApplication.overrideCursor()) == ([], None)

    monkeypatch.setattr(files, "write", lambda *args, **options: time.sleep(3 * LONG_S) or whole(*args, **options))
    assert viewer.layers.save(path, plugin="napari-apprentice") == [str(path)]  # the dialog goes when the file is there
    assert dialogs() == []
    assert files.read_labels(path).min() == 1


@pytest.mark.parametrize("sample", ["fundus_sample", "mri_sample", "em_sample"])
def test_neither_do_samples(slow, monkeypatch, sample):
    monkeypatch.setattr(contributions, "image_layer", slow(image_layer))
    ((_, _, kind),) = getattr(contributions, sample)()
    assert kind == "image"


def test_napari_opens_files_samples_and_widgets_through_the_doors(make_napari_viewer, tmp_path, volume, slow, monkeypatch):
    viewer = make_napari_viewer()
    path = files.save_image(tmp_path / "a.nii.gz", volume)
    monkeypatch.setattr(files, "read", slow(files.read))
    (layer,) = viewer.open(path, plugin="napari-apprentice")
    np.testing.assert_array_equal(layer.data, volume.data[0])
    viewer.window._qt_viewer._qt_open(
        [str(path)], stack=False, plugin="napari-apprentice"
    )  # what dropping a file, and File > Open, lead to
    assert len(viewer.layers) == 2
    viewer.open_sample("napari-apprentice", "em")
    assert len(viewer.layers) == 3
    _, widget = viewer.window.add_plugin_dock_widget("napari-apprentice", "Apprentice")
    _, table = viewer.window.add_plugin_dock_widget("napari-apprentice", "Measure objects")
    try:
        assert (type(widget), type(table)) == (ApprenticeWidget, MeasureTable)
        assert widget.chosen_image in viewer.layers
    finally:
        widget.leave()
        table.leave()


def test_the_module_that_napari_imports_for_us_is_light():
    """napari imports it in its main thread: nothing but Qt, which is there already, comes with it."""
    code = "import qtpy.QtCore, qtpy.QtWidgets, sys; before = set(sys.modules); import napari_apprentice._napari.entrances; "
    code += "print(*sorted(name for name in set(sys.modules) - before if name.partition('.')[0] not in sys.stdlib_module_names))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, cwd=Path.cwd())
    allowed = {"napari_apprentice", "napari_apprentice._napari", "napari_apprentice._napari.aside", "napari_apprentice._napari.entrances"}
    assert set(done.stdout.split()) == allowed
