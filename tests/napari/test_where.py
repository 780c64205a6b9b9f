"""The question where a file is to go."""

from __future__ import annotations

import pytest
from qtpy.QtWidgets import QFileDialog, QMessageBox, QWidget

from napari_apprentice._napari.where import ask_where


@pytest.fixture
def asked(qtbot, tmp_path, monkeypatch):
    """What comes of a name typed into the dialog, and of an answer to whether a file may be overwritten."""
    parent = QWidget()
    qtbot.addWidget(parent)

    def ask(typed, *, proposal="scan_labels.nii.gz", overwrite=None):
        monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / typed) if typed else "", ""))
        questions = []

        def question(_, title, words):
            questions.append(words)
            return QMessageBox.StandardButton.Yes if overwrite else QMessageBox.StandardButton.No

        monkeypatch.setattr(QMessageBox, "question", question)
        path = ask_where(parent, "Save", tmp_path / proposal, "")
        assert bool(questions) is (overwrite is not None)
        return None if path is None else path.relative_to(tmp_path).name

    return ask


@pytest.mark.parametrize(
    ("typed", "proposal", "expected"),
    [
        ("", "scan_labels.nii.gz", None),
        ("mine.mha", "scan_labels.nii.gz", "mine.mha"),
        ("mine", "scan_labels.nii.gz", "mine.nii.gz"),
        ("mine", "scan_labels.OME.TIF", "mine.OME.TIF"),
        ("mine", "scan_objects.csv", "mine.csv"),
        ("mine", "model-3.safetensors", "mine.safetensors"),
    ],
)
def test_a_name_without_an_extension_gets_that_of_the_proposal(asked, typed, proposal, expected):
    assert asked(typed, proposal=proposal) == expected


@pytest.mark.parametrize(("overwrite", "expected"), [(True, "mine.nii.gz"), (False, None)])
def test_a_file_of_the_longer_name_is_not_overwritten_unasked(asked, tmp_path, overwrite, expected):
    (tmp_path / "mine.nii.gz").write_bytes(b"somebody else's")
    assert asked("mine", overwrite=overwrite) == expected
