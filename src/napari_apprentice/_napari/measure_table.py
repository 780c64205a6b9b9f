"""The table of what labelled objects measure: a dock widget of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image as ImageLayer
from napari.layers import Labels
from qtpy.QtCore import QAbstractTableModel, QModelIndex, Qt, Signal
from qtpy.QtWidgets import QAbstractItemView, QComboBox, QFileDialog, QFormLayout, QMessageBox, QTableView, QVBoxLayout

from napari_apprentice import files, measure
from napari_apprentice._napari.mask_layer import copied
from napari_apprentice._napari.outline import OUTLINE_KEY
from napari_apprentice._napari.panels import Dockable, Status, button, row
from napari_apprentice._napari.placement import LEGEND_KEY, apart, image_of, show_plane
from napari_apprentice._napari.storage import newest_folder
from napari_apprentice._napari.worker import Task, Worker
from napari_apprentice.journal import replay_labels
from napari_apprentice.legend import Legend, legend_path, read_legend
from napari_apprentice.texts import write_text
from napari_apprentice.types import ApprenticeError, Image, LabelsError, Plane
from napari_apprentice.work import work_in

if TYPE_CHECKING:
    import napari

__all__ = ["MeasureTable", "TableModel"]

_MEASURE, _CANCEL = "Measure", "Cancel"
_CHOSEN_ABOVE = ("case", "labels")


class _CancelledError(Exception):
    """The user wants no table any more."""


@dataclass(frozen=True, eq=False)
class _Found:
    """What was measured of a labels layer."""

    layer: Labels
    image: Image
    labels: Any
    measures: tuple[measure.Measures, ...]
    rows: list[measure.Row]


class TableModel(QAbstractTableModel):
    """Rows of a table, all with the same columns, for Qt: in an order that the user chooses by a click on a column."""

    def __init__(self, rows: Sequence[measure.Row] = ()) -> None:
        super().__init__()
        self.rows = list(rows)
        self.columns = list(self.rows[0]) if self.rows else []

    def rowCount(self, parent: QModelIndex | None = None) -> int:  # noqa: N802
        """Number of objects."""
        return len(self.rows)

    def columnCount(self, parent: QModelIndex | None = None) -> int:  # noqa: N802
        """Number of columns."""
        return len(self.columns)

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """The text of a cell: six digits of a number."""
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        value = self.rows[index.row()].get(self.columns[index.column()])
        return "" if value is None or value != value else f"{value:.6g}" if isinstance(value, float) else str(value)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:  # noqa: N802
        """The name of a column, without underscores; the number of a row."""
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        return self.columns[section].replace("_", " ") if orientation == Qt.Orientation.Horizontal else section + 1

    def is_empty(self, column: int) -> bool:
        """Whether nothing stands in a column."""
        return all(one.get(self.columns[column]) in (None, "") for one in self.rows)

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """By the values of a column; empty cells stay last. A column that is not there changes nothing."""
        if not 0 <= column < len(self.columns):
            return
        name, descending = self.columns[column], order == Qt.SortOrder.DescendingOrder
        filled: list[measure.Row] = []
        empty: list[measure.Row] = []
        for one in self.rows:
            value = one[name]
            (empty if value is None or value != value else filled).append(one)

        def key(one: measure.Row) -> Any:
            return one[name]

        self.layoutAboutToBeChanged.emit()
        self.rows = [*sorted(filled, key=key, reverse=descending), *empty]
        self.layoutChanged.emit()


class MeasureTable(Dockable):
    """Choose labels and the image they belong to, measure, look, save.

    Parameters
    ----------
    napari_viewer : the viewer it is docked in
    """

    _advanced = Signal(int, int)

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        super().__init__()
        self._viewer = napari_viewer
        self._found: _Found | None = None
        self._cancelled = threading.Event()
        self._measuring = False
        self._layers: dict[QComboBox, list[Any]] = {}
        self.worker = Worker()
        self._make_controls()
        self._connect()
        self._list_layers()
        self._show(None)

    def _make_controls(self) -> None:
        self.labels, self.image = QComboBox(), QComboBox()
        self.labels.setToolTip("The objects to measure.")
        self.image.setToolTip("The image that they lie on: its spacing makes millimetres of voxels, and its intensities are told.")
        self.start = button(_MEASURE, "Volume, surface, place and intensity of every object, in the units of the image.")
        self.save = button("Save table…", "Write the table as comma-separated values.")
        self.export = button("Save each…", "Write every object to a file of its own, as a mask in the geometry of the image.")
        self.view = QTableView()
        self.view.setSortingEnabled(True)
        self.view.verticalHeader().hide()
        self.view.horizontalHeader().setResizeContentsPrecision(0)  # by what is seen: there may be thousands of rows
        self.view.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.view.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.view.setToolTip("A click on an object shows its largest slice, one on a column sorts by it.")
        self.status = Status()
        form = QFormLayout()
        form.addRow("objects", self.labels)
        form.addRow("image", self.image)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addLayout(row(self.start, self.save, self.export))
        layout.addWidget(self.view, 1)
        layout.addWidget(self.status)

    def _connect(self) -> None:
        events = self._viewer.layers.events
        for happened in (events.inserted, events.removed, events.renamed):
            happened.connect(self._list_layers)
        self.labels.currentIndexChanged.connect(self._on_labels_chosen)
        self.start.clicked.connect(self._on_start)
        self.save.clicked.connect(self._on_save)
        self.export.clicked.connect(self._on_export)
        self.view.clicked.connect(self._on_object)
        self.worker.activity_changed.connect(lambda words: self.status.show_busy(bool(words)))
        self._advanced.connect(self.status.show_progress)
        self.destroyed.connect(self.worker.close)

    # --- layers ---

    def _list_layers(self) -> None:
        """Let both choosers follow the viewer's layers."""
        layers = [layer for layer in self._viewer.layers if OUTLINE_KEY not in layer.metadata]
        for chooser, kind in ((self.labels, Labels), (self.image, ImageLayer)):
            chosen = self._chosen(chooser)
            self._layers[chooser] = [layer for layer in layers if isinstance(layer, kind)]
            chooser.blockSignals(True)
            chooser.clear()
            chooser.addItems([layer.name for layer in self._layers[chooser]])
            chooser.setCurrentIndex(self._layers[chooser].index(chosen) if chosen in self._layers[chooser] else chooser.count() - 1)
            chooser.blockSignals(False)
        self._on_labels_chosen()

    def _on_labels_chosen(self) -> None:
        """Choose the image that lies under the labels, if one does; the chosen one first."""
        labels, chosen = self._chosen(self.labels), self._chosen(self.image)
        images = sorted(self._layers[self.image], key=lambda image: image is not chosen)
        fitting = next((image for image in images if labels is not None and apart(labels, image) is None), chosen)
        if fitting is not None:
            self.image.setCurrentIndex(self._layers[self.image].index(fitting))
        self.start.setEnabled(labels is not None and fitting is not None)

    def _chosen(self, chooser: QComboBox) -> Any:
        layers, index = self._layers.get(chooser, []), chooser.currentIndex()
        return layers[index] if 0 <= index < len(layers) else None

    # --- wishes ---

    def _on_start(self) -> None:
        if self._measuring:
            self._cancelled.set()
            return
        labels, image = self._chosen(self.labels), self._chosen(self.image)
        self._cancelled.clear()
        try:
            if (how := apart(labels, image)) is not None:
                raise LabelsError(f"the labels {labels.name!r} {how} the image {image.name!r}; expected labels on the grid of the image")
            shown = image_of(image)
        except ApprenticeError as error:
            self._on_error(error)
            return
        self._measuring = True
        self.start.setText(_CANCEL)
        path = Path(labels.source.path) if labels.source.path else None
        legend = labels.metadata.get(LEGEND_KEY)
        self.worker.submit(Task(lambda: "measuring", lambda: self._measure(labels, path, legend, shown), self._show, self._on_error))

    def _measure(self, layer: Labels, path: Path | None, legend: Legend | None, image: Image) -> _Found:
        """In the worker. An array in memory is copied first, for the user goes on painting in it."""
        data = layer.data[0] if layer.multiscale else layer.data
        labels = copied(data) if isinstance(data, np.ndarray) else data
        measures = measure.measure(labels, image, on_layers=self._advance)
        if legend is None and path is not None and (beside := legend_path(path)).exists():
            legend = read_legend(beside)
        names = None if legend is None else legend.names
        rows = measure.table(measures, case=image.name, labels=layer.name, classes=names, work=_work(labels, image))
        return _Found(layer, image, labels, measures, rows)

    def _advance(self, done: int, total: int) -> None:
        if self._cancelled.is_set():
            raise _CancelledError
        self._advanced.emit(done, total)

    def _on_save(self) -> None:
        found = self._found
        if found is not None and (path := self._ask(f"{found.image.name}_objects.csv", "Save table", "Table (*.csv)")):
            self.worker.submit(
                Task(lambda: "saving", lambda: write_text(path, measure.as_csv(found.rows)), lambda _: self._say(path), self._on_error)
            )

    def _on_export(self) -> None:
        found = self._found
        patterns = " ".join(f"*{extension}" for extension in files.WRITABLE)
        if found is None or not (path := self._ask(files.labels_path(found.image).name, "Save each object", f"Masks ({patterns})")):
            return
        there = [each.name for each in files.object_paths(path, [one.label for one in found.measures]) if each.exists()]
        if there and not self._may_overwrite(there):
            return
        self.worker.submit(
            Task(
                lambda: "saving",
                lambda: files.write_objects(path, found.labels, like=found.image),
                lambda written: self._say(*written),
                self._on_error,
            )
        )

    def _ask(self, name: str, title: str, kinds: str) -> Path | None:
        beside = self._found.image.path if self._found is not None else None
        proposal = beside.with_name(name) if beside is not None else Path(name)
        chosen, _ = QFileDialog.getSaveFileName(self, title, str(proposal), kinds)
        return Path(chosen) if chosen else None

    def _may_overwrite(self, names: Sequence[str]) -> bool:
        """The dialog before asked for a name that is none of these."""
        question = f"{names[0]} exists already" + (f", and {len(names) - 1} more." if len(names) > 1 else ".")
        return QMessageBox.question(self, "Save each object", f"{question} Overwrite?") == QMessageBox.StandardButton.Yes

    def _on_object(self, index: QModelIndex) -> None:
        """Show the slice that has most of an object."""
        found = self._found
        if found is None or found.layer not in self._viewer.layers or found.layer.ndim != 3:
            return
        label = self.table.rows[index.row()]["label"]
        one = next(one for one in found.measures if one.label == label)
        show_plane(self._viewer.dims, found.layer, Plane(0, one.first[0] + int(np.argmax(one.slices))))

    # --- answers ---

    def _show(self, found: _Found | None) -> None:
        self._ready()
        self._found = found
        self.table = TableModel(found.rows if found is not None else ())
        self.view.horizontalHeader().setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        self.view.setModel(self.table)
        for column, name in enumerate(self.table.columns):
            self.view.setColumnHidden(column, name in _CHOSEN_ABOVE or self.table.is_empty(column))
        self.view.resizeColumnsToContents()
        self.save.setEnabled(bool(found and found.rows))
        self.export.setEnabled(bool(found and found.rows))
        if found is not None:
            self.status.say(f"{len(found.rows)} objects in {found.layer.name}." if found.rows else f"{found.layer.name} is empty.")

    def _on_error(self, error: Exception) -> None:
        self._ready()
        if isinstance(error, ApprenticeError):
            self.status.say(f"{error}.")
        elif isinstance(error, _CancelledError):
            self.status.say("Cancelled.")
        else:
            self.status.say(f"Something went wrong: {error!r}.")
            raise error

    def _ready(self) -> None:
        self._measuring = False
        self.start.setText(_MEASURE)

    def _say(self, *paths: Path) -> None:
        self.status.say(f"Saved {paths[0].name}." if len(paths) == 1 else f"Saved {len(paths)} files, {paths[0].name} to {paths[-1].name}.")

    # --- out of napari ---

    def _disconnect(self) -> None:
        self._cancelled.set()
        events = self._viewer.layers.events
        for happened in (events.inserted, events.removed, events.renamed):
            happened.disconnect(self._list_layers)
        self.worker.close()


def _work(labels: Any, image: Image) -> dict[int, measure.Work] | None:
    """What the objects cost, where the newest session of the image led to exactly these labels."""
    with suppress(ApprenticeError):
        folder = newest_folder(image) if isinstance(labels, np.ndarray) else None
        if folder is not None and np.array_equal(replay_labels(folder), labels):
            return work_in(folder, image)
    return None
