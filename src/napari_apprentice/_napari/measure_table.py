"""The table of what labelled objects measure: a dock widget of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image as ImageLayer
from napari.layers import Labels
from qtpy.QtCore import QModelIndex, Qt, Signal
from qtpy.QtWidgets import QAbstractItemView, QComboBox, QFormLayout, QMessageBox, QPushButton, QTableView, QVBoxLayout

from napari_apprentice import files, measure
from napari_apprentice._napari.answers import CalledOffError, Cancellable
from napari_apprentice._napari.mask_layer import copied
from napari_apprentice._napari.outline import OUTLINE_KEY
from napari_apprentice._napari.panels import Chooser, Dockable, Status, button, row
from napari_apprentice._napari.placement import LEGEND_KEY, apart, image_of, show_plane
from napari_apprentice._napari.storage import newest_folder
from napari_apprentice._napari.table_model import TableModel
from napari_apprentice._napari.where import ask_where
from napari_apprentice._napari.worker import Task, Worker
from napari_apprentice.journal import replay_labels
from napari_apprentice.legend import Legend, legend_path, read_legend
from napari_apprentice.texts import counted, write_text
from napari_apprentice.types import ApprenticeError, Image, LabelsError, Plane
from napari_apprentice.work import work_in

if TYPE_CHECKING:
    import napari

__all__ = ["MeasureTable"]

_MEASURE, _EXPORT, _CANCEL = "Measure", "Save each…", "Cancel"
_CHOSEN_ABOVE = ("case", "labels")
_UNITS = {"automatic": None, "mm": "mm", "µm": "um", "nm": "nm"}


@dataclass(frozen=True, eq=False)
class _Found:
    """What was measured of a labels layer."""

    layer: Labels
    image: Image
    labels: Any
    measures: tuple[measure.Measures, ...]
    rows: list[measure.Row]


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
        self._under_way: tuple[QPushButton, Cancellable] | None = None
        self._fits = False
        self._layers: dict[QComboBox, list[Any]] = {}
        self.worker = Worker()
        self._make_controls()
        self._connect()
        self._list_layers()
        self._show(None)

    def _make_controls(self) -> None:
        self.labels, self.image, self.unit = Chooser(), Chooser(), Chooser()
        self.labels.setToolTip("The objects to measure.")
        self.image.setToolTip("The image that they lie on: its spacing makes lengths of voxels, and its intensities are told.")
        for words, unit in _UNITS.items():
            self.unit.addItem(words, unit)
        self.unit.setToolTip("The unit of the table, also where it is saved; automatic: µm where voxels are finer than 10 µm, else mm.")
        self.start = button(_MEASURE, "Volume, surface, place and intensity of every object, in the units of the image.")
        self.save = button("Save table…", "Write the table as comma-separated values.")
        self.export = button(_EXPORT, "Write every object to a file of its own, as a mask in the geometry of the image.")
        self.view = QTableView()
        self.view.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # the keyboard stays with the canvas
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
        form.addRow("unit", self.unit)
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
        self.unit.currentIndexChanged.connect(self._on_unit)
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
        self._fits = labels is not None and fitting is not None
        if self._found is not None and labels is not None and labels is not self._found.layer:
            self._fill(None)  # it would be taken for a table of these
            self.status.say("")
        self._show_what_can_be_done()

    def _chosen(self, chooser: QComboBox) -> Any:
        layers, index = self._layers.get(chooser, []), chooser.currentIndex()
        return layers[index] if 0 <= index < len(layers) else None

    # --- wishes ---

    def _on_start(self) -> None:
        if self._called_off():
            return
        labels, image = self._chosen(self.labels), self._chosen(self.image)
        try:
            if (how := apart(labels, image)) is not None:
                raise LabelsError(f"the labels {labels.name!r} {how} the image {image.name!r}; expected labels on the grid of the image")
            shown = image_of(image)
        except ApprenticeError as error:
            self._on_error(error)
            return
        way = self._begin(self.start)
        path = Path(labels.source.path) if labels.source.path else None
        legend, unit = labels.metadata.get(LEGEND_KEY), self.unit.currentData()

        def advance(done: int, total: int) -> None:
            way.go_on()
            self._advanced.emit(done, total)

        def work() -> _Found:
            return self._measure(labels, path, legend, shown, unit, advance)

        self.worker.submit(Task(lambda: "measuring", work, self._show, self._on_error))

    def _called_off(self) -> bool:
        """Call off what is under way, if something is."""
        if self._under_way is not None:
            self._under_way[1].cancel()
        return self._under_way is not None

    def _begin(self, pressed: QPushButton) -> Cancellable:
        """Nothing else can be done until `_ready`, and what was pressed calls it off."""
        self._under_way = pressed, Cancellable()
        self._show_what_can_be_done()
        return self._under_way[1]

    def _measure(
        self,
        layer: Labels,
        path: Path | None,
        legend: Legend | None,
        image: Image,
        unit: str | None,
        advance: Callable[[int, int], None],
    ) -> _Found:
        """In the worker. An array in memory is copied first, for the user goes on painting in it."""
        data = layer.data[0] if layer.multiscale else layer.data
        labels = copied(data) if isinstance(data, np.ndarray) else data
        measures = measure.measure(labels, image, on_layers=advance)
        if legend is None and path is not None and (beside := legend_path(path)).exists():
            legend = read_legend(beside)
        names = None if legend is None else legend.names
        rows = measure.table(measures, case=image.name, labels=layer.name, classes=names, work=_work(labels, image), unit=unit)
        return _Found(layer, image, labels, measures, rows)

    def _on_unit(self) -> None:
        found, unit = self._found, self.unit.currentData()
        if found is not None:
            self.worker.submit(Task(str, lambda: replace(found, rows=measure.in_unit(found.rows, unit)), self._fill, self._on_error))

    def _on_save(self) -> None:
        found = self._found
        if found is not None and (path := self._ask(f"{found.image.name}_objects.csv", "Save table", "Table (*.csv)")):
            self.worker.submit(
                Task(
                    lambda: "saving",
                    lambda: write_text(path, measure.as_csv(found.rows)),
                    lambda _: self._say(path),
                    self._on_error,
                    lasting=True,
                )
            )

    def _on_export(self) -> None:
        if self._called_off():
            return
        found = self._found
        patterns = " ".join(f"*{extension}" for extension in files.WRITABLE)
        if found is None or not (path := self._ask(files.labels_path(found.image).name, "Save each object", f"Masks ({patterns})")):
            return
        there = [each.name for each in files.object_paths(path, [one.label for one in found.measures]) if each.exists()]
        if there and not self._may_overwrite(there):
            return
        way = self._begin(self.export)

        def work() -> tuple[Path, ...]:
            return files.write_objects(path, found.labels, like=found.image, go_on=way.go_on)

        self.worker.submit(Task(lambda: "saving", work, self._on_exported, self._on_error, lasting=True))

    def _on_exported(self, written: tuple[Path, ...]) -> None:
        self._ready()
        self._say(*written)

    def _ask(self, name: str, title: str, kinds: str) -> Path | None:
        beside = self._found.image.path if self._found is not None else None
        proposal = beside.with_name(name) if beside is not None else Path(name)
        return ask_where(self, title, proposal, kinds)

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
        self._fill(found)
        if found is not None:
            count = counted(len(found.rows), "object")
            self.status.say(f"{count} in {found.layer.name}." if found.rows else f"{found.layer.name} is empty.")

    def _fill(self, found: _Found | None) -> None:
        self._found = found
        self.table = TableModel(found.rows if found is not None else ())
        self.view.horizontalHeader().setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        self.view.setModel(self.table)
        for column, name in enumerate(self.table.columns):
            self.view.setColumnHidden(column, name in _CHOSEN_ABOVE or self.table.is_empty(column))
        self.view.resizeColumnsToContents()
        self._show_what_can_be_done()

    def _on_error(self, error: Exception) -> None:
        self._ready()
        if isinstance(error, ApprenticeError):
            self.status.say(f"{error}.")
        elif isinstance(error, CalledOffError):
            self.status.say("Cancelled.")
        else:
            self.status.say(f"Something went wrong: {error!r}.")
            raise error

    def _ready(self) -> None:
        self._under_way = None
        self._show_what_can_be_done()

    def _show_what_can_be_done(self) -> None:
        under_way = self._under_way[0] if self._under_way is not None else None
        for pressed, words in ((self.start, _MEASURE), (self.export, _EXPORT)):
            pressed.setText(_CANCEL if pressed is under_way else words)
        some = bool(self._found and self._found.rows)
        for control, possible in ((self.start, self._fits), (self.save, some), (self.export, some), (self.unit, True)):
            control.setEnabled(control is under_way or (under_way is None and possible))

    def _say(self, *paths: Path) -> None:
        self.status.say(f"Saved {paths[0].name}." if len(paths) == 1 else f"Saved {len(paths)} files, {paths[0].name} to {paths[-1].name}.")

    # --- out of napari ---

    def _disconnect(self) -> None:
        if self._under_way is not None and self._under_way[0] is self.start:
            self._under_way[1].cancel()  # nobody will see the table; but files that were asked for are written
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
