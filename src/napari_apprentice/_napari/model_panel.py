"""The folded panel about the model: its versions, its study, and where it begins. It holds no knowledge of sessions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import numpy as np
from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QFont
from qtpy.QtWidgets import (
    QComboBox,
    QFileDialog,
    QFormLayout,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_apprentice._napari.keys import PEEK, readable
from napari_apprentice._napari.panels import Choice, Chooser, Fold, box, button, row
from napari_apprentice._napari.where import ask_where
from napari_apprentice.versions import Catalogue, Effort, Version

__all__ = ["ModelPanel", "saved"]

_FILES = "What a model has learnt (*.safetensors)"
_WEIGHTS = "Weights of a network (*.safetensors)"
_SHIPPED = "as shipped"
_OTHER = "another file…"
_DEFAULT = "unet"


class ModelPanel(Fold):
    """Shows a `Catalogue`; says which network and which version the user wants to use, pin or export.

    Parameters
    ----------
    networks : name of every network that there are weights of -> their file
    """

    go_back_clicked = Signal(int)
    pin_clicked = Signal(int, bool)
    export_clicked = Signal(int, object, bool)
    """Number of the version, and the path that the user chose."""
    forget_clicked = Signal()
    peeked = Signal(bool)
    """True as the button goes down, False as it comes up."""
    network_chosen = Signal()
    """Another network, which `weights` now names."""

    def __init__(self, networks: Mapping[str, Path] | None = None) -> None:
        super().__init__("Model")
        self.network = Chooser()
        self.network.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.network.setMinimumContentsLength(6)
        self.network.setToolTip(
            "The network that answers. Choosing another one keeps labels and clicks, and answers the clicks anew.\n"
            "What the model has learnt stays with the network that learnt it."
        )
        for name, path in (networks or {}).items():
            self.network.addItem(name, path)
        self.network.addItem(_OTHER)
        self.network.setCurrentIndex(max(self.network.findText(_DEFAULT), 0))
        self._network = self._before = self._own = self.network.currentIndex()
        self._shown: Path | None = None
        self.network.activated.connect(self._on_network)
        self._versions = Catalogue()
        self._file: Path | None = None
        self.study = Choice("none")
        self.study.setToolTip(
            "Name of the study that the model belongs to: it begins with what that study has taught it, and adds to it.\n"
            "What one study teaches never reaches another. All of it stays on this computer. Takes effect at the next start."
        )
        self.begin_with = button(_SHIPPED, "Begin with a version that was exported to a file. Takes effect at the next start.")
        self.begin_with.clicked.connect(self._on_begin_with)
        self.summary = QLabel()
        self.summary.setWordWrap(True)
        self.list = QListWidget()
        self.list.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.list.setFixedHeight(72)
        self.list.setToolTip(
            "Every accepted object that changed the model made a version of it.\n"
            "In per cent: how right the answer to the first click was, and in brackets what the untaught model would have got.\n"
            "★ is pinned: it stays whatever happens."
        )
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.currentItemChanged.connect(self._show_choice)
        self.go_back = button("Go back", "Work with the chosen version from now on.\nClicks and labels stay; can be undone.")
        self.pin = button("Pin", "Keep the chosen version for good (can be undone).")
        self.export = button(
            "Export…",
            "Write the chosen version to a file, to begin with it another time.\nNo picture of any image is in it, unless that is ticked.",
        )
        self.pictures = box("with pictures")
        self.pictures.setToolTip(
            "The exported file may hold the small views of accepted objects by which the model goes.\n"
            "Without them a model that learnt by example cannot be exported."
        )
        self.forget = button("Forget", "Work with the model as it was shipped.\nClicks, labels and versions stay; can be undone.")
        self.peek = button("Untaught", "While this is held down: outline what the untaught model would have said.")
        self.go_back.clicked.connect(lambda: self.go_back_clicked.emit(self._chosen()))
        self.pin.clicked.connect(lambda: self.pin_clicked.emit(self._chosen(), not self._versions[self._chosen()].pinned))
        self.export.clicked.connect(self._on_export)
        self.forget.clicked.connect(self.forget_clicked)
        self.peek.pressed.connect(lambda: self.peeked.emit(True))
        self.peek.released.connect(lambda: self.peeked.emit(False))
        self.fill(self._arranged())
        self.show_versions(None)
        self.summary.setText(_summary(self._versions))
        self._show_choice()

    @property
    def cohort(self) -> str | None:
        """Name of the study; None for none."""
        return self.study.currentText().strip() or None

    @property
    def knowledge(self) -> Path | None:
        """The file to begin with; None for the model as shipped, or as the study has it."""
        return self._file

    @property
    def weights(self) -> Path | None:
        """The file of the chosen network; None for the default."""
        path: Path | None = self.network.itemData(self._network)
        return None if self.network.itemText(self._network) == _DEFAULT else path

    def show_network(self, weights: Path | None) -> None:
        """Show the network of the open session, by the file of its weights; None for no session, which shows what the user chose again."""
        if weights == self._shown:
            return
        index = self._own if weights is None else self._listed(weights)
        if self._shown is None or index == self._network:
            self._own = self._network
        self._shown = weights
        self._network = self._before = index
        self.network.setCurrentIndex(index)

    def keep_network(self, changed: bool) -> None:
        """Stay at the network that was chosen, or, where it did not come, go back to the one before."""
        self._network, self._before = (self._network, self._network) if changed else (self._before, self._before)
        self.network.setCurrentIndex(self._network)

    def show_keys(self, keys: Mapping[str, str]) -> None:
        """Name the key (wish -> key) that does what a button does."""
        self.peek.setText(f"Untaught   ({readable(keys[PEEK])})")

    def list_studies(self, names: tuple[str, ...]) -> None:
        """Offer these names; what stands there stays."""
        text = self.study.currentText()
        self.study.clear()
        self.study.addItems(["", *names])
        self.study.setCurrentText(text)

    def show_study(self, name: str | None) -> None:
        """Show the study of the open session, "" for none; None for no session."""
        self.study.show_open(name)

    def show_versions(self, versions: Catalogue | None) -> None:
        """Show the versions of a session; None for no session."""
        self.begin_with.setEnabled(versions is None)
        self.forget.setEnabled(versions is not None)
        self.peek.setEnabled(versions is not None)
        versions = versions or Catalogue()
        if versions == self._versions and self.list.count() == len(versions.versions) + len(versions.refusals):
            return
        chosen, self._versions = self._chosen(), versions
        blocked = self.list.blockSignals(True)
        self.list.clear()
        for version in reversed(versions.versions):
            for refusal in reversed([refusal for refusal in versions.refusals if refusal.version == version.number]):
                self._add(f"     ✕  object {refusal.label}: refused", refusal.message, None)
            used = version.number == versions.number
            self._add(f"{'▸' if used else '  '} {version.number}  {_words(version)}", _details(version), version, bold=used)
            if version.number == chosen:
                self.list.setCurrentRow(self.list.count() - 1)
        self.list.blockSignals(blocked)
        self.summary.setText(_summary(versions))
        self._show_choice()

    def _arranged(self) -> QWidget:
        content = QWidget()
        layout = QVBoxLayout(content)
        layout.setContentsMargins(8, 0, 0, 0)
        layout.setSpacing(6)
        form = QFormLayout()
        form.addRow("network", self.network)
        form.addRow("study", self.study)
        form.addRow("begin with", self.begin_with)
        layout.addLayout(form)
        layout.addWidget(self.summary)
        layout.addWidget(self.list)
        layout.addLayout(row(self.go_back, self.pin, self.export))
        layout.addLayout(row(self.forget, self.peek, self.pictures))
        return content

    def _add(self, text: str, details: str, version: Version | None, *, bold: bool = False) -> None:
        item = QListWidgetItem(text)
        item.setToolTip(details)
        item.setData(Qt.ItemDataRole.UserRole, -1 if version is None else version.number)
        if version is None:
            item.setFlags(Qt.ItemFlag.ItemIsEnabled)  # not to be chosen
        if bold:
            font = QFont(item.font())
            font.setBold(True)
            item.setFont(font)
        self.list.addItem(item)

    def _chosen(self) -> int:
        """Number of the chosen version; -1 for none."""
        item = self.list.currentItem()
        return -1 if item is None else int(item.data(Qt.ItemDataRole.UserRole))

    def _show_choice(self) -> None:
        chosen = self._chosen()
        kept = {version.number: version for version in self._versions.kept}
        for each in (self.go_back, self.pin, self.export):
            each.setEnabled(chosen in kept)
        self.pin.setText("Unpin" if chosen in kept and kept[chosen].pinned else "Pin")

    def _on_network(self, index: int) -> None:
        """Take an entry of the list, or the file that the user chooses now."""
        if self.network.itemText(index) == _OTHER:
            chosen, _ = QFileDialog.getOpenFileName(self, "Network", "", _WEIGHTS)
            index = self._listed(Path(chosen)) if chosen else self._network
        self.network.setCurrentIndex(index)
        if index != self._network:
            self._before, self._network = self._network, index
            self.network_chosen.emit()

    def _listed(self, path: Path) -> int:
        """Index of the entry of a file, which is added if need be."""
        known = [self.network.itemData(index) for index in range(self.network.count())]
        if path not in known:
            self.network.insertItem(self.network.count() - 1, path.name, path)
            return self.network.count() - 2
        return known.index(path)

    def _on_begin_with(self) -> None:
        """Choose a file; a second press gives it up again."""
        chosen = "" if self._file is not None else QFileDialog.getOpenFileName(self, "Begin with", "", _FILES)[0]
        self._file = Path(chosen) if chosen else None
        self.begin_with.setText(self._file.name if self._file else _SHIPPED)

    def _on_export(self) -> None:
        number = self._chosen()
        path = ask_where(self, "Export", Path(f"model-{number}.safetensors"), _FILES)
        if path is not None:
            self.export_clicked.emit(number, path, self.pictures.isChecked())


def saved(efforts: tuple[Effort, ...]) -> str:
    """What teaching has brought so far, in one sentence."""
    if not efforts:
        return "nothing accepted yet"
    taught, untaught = (100 * float(np.mean([getattr(e, side) for e in efforts])) for side in ("taught_iou", "untaught_iou"))
    objects = "1 object" if len(efforts) == 1 else f"{len(efforts)} objects"
    return f"{objects}: the first click gets {taught:.0f} % right, untaught {untaught:.0f} %"


def _summary(versions: Catalogue) -> str:
    if not versions.versions:
        return "no session"
    return f"Version {versions.number} ({versions.current.sentence}). {saved(versions.efforts)}"


def _words(version: Version) -> str:
    time = f"{datetime.fromisoformat(version.time).astimezone():%H:%M}  " if version.time else ""
    score = f"  {100 * version.effort.taught_iou:.0f} % ({100 * version.effort.untaught_iou:.0f} %)" if version.effort else ""
    return f"{'★ ' if version.pinned else ''}{time}{version.sentence}{score}"


def _details(version: Version) -> str:
    lines = [version.sentence, f"made {datetime.fromisoformat(version.time).astimezone():%Y-%m-%d %H:%M:%S}" if version.time else ""]
    lines += [f"on top of version {version.parent}" if version.parent is not None else "", version.case]
    lines += [version.report.message] if version.report else []
    lines += [version.effort.sentence] if version.effort else []
    return "\n".join(line for line in lines if line)
