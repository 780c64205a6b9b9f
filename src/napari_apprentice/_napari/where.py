"""The question where a file is to go."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtWidgets import QFileDialog, QMessageBox, QWidget

from napari_apprentice import files

__all__ = ["ask_where"]


def ask_where(parent: QWidget, title: str, proposal: Path, kinds: str) -> Path | None:
    """The path that the user chose, and, if there is a file, agreed to overwrite; None if there is to be none.

    A name without an extension gets that of the proposal.

    Parameters
    ----------
    title : of the dialog
    kinds : of files, as Qt's dialogs take them
    """
    chosen, _ = QFileDialog.getSaveFileName(parent, title, str(proposal), kinds)
    if not chosen:
        return None
    path = Path(chosen)
    if path.suffix:
        return path
    path = path.with_name(path.name + proposal.name.removeprefix(files.stem(proposal)))
    if path.exists():  # the dialog asked about a name that is not this one
        answer = QMessageBox.question(parent, title, f"{path.name} exists already. Overwrite?")
        return path if answer == QMessageBox.StandardButton.Yes else None
    return path
