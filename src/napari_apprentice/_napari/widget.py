"""The dock widget: it shows the bridge's state and passes wishes on."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from napari.layers import Image as ImageLayer
from napari.layers import Labels
from qtpy.QtWidgets import QApplication, QComboBox, QLabel, QMessageBox, QVBoxLayout, QWidget

from napari_apprentice import files
from napari_apprentice._napari.answers import SliceView, State
from napari_apprentice._napari.bridge import NOTHING_OPEN, Bridge
from napari_apprentice._napari.contributions import LayerTuple, image_layer
from napari_apprentice._napari.engine import DEVICES, POLICIES, Engine, Wish, default_engine, shipped_networks
from napari_apprentice._napari.keys import ACCEPT, APPROVE, DISCARD, DOUBTFUL, NEXT_MASK, PROPAGATE, REDO, SWITCH_SIGN, UNDO, readable
from napari_apprentice._napari.leftovers import hide_left
from napari_apprentice._napari.model_panel import ModelPanel
from napari_apprentice._napari.objects_panel import ObjectsPanel
from napari_apprentice._napari.outline import OUTLINE_KEY
from napari_apprentice._napari.panels import (
    Chooser,
    Dockable,
    Fold,
    FoldArea,
    KeySheet,
    More,
    SignSwitch,
    Status,
    button,
    id_box,
    line,
    row,
)
from napari_apprentice._napari.placement import (
    LEGEND_KEY,
    SERIES_KEY,
    apart,
    full_resolution,
    image_of,
    is_in_mm,
    look_upright,
    state_spacing,
    time_point,
    time_points_of,
)
from napari_apprentice._napari.progress_plot import ProgressPlot
from napari_apprentice._napari.questions import HOW_LARGE, WHICH_TIME, Questions
from napari_apprentice._napari.strip import SliceStrip
from napari_apprentice._napari.where import ask_where
from napari_apprentice._napari.worker import Task
from napari_apprentice.cohorts import cohorts
from napari_apprentice.types import DEFAULT_POLICY, WriteError

if TYPE_CHECKING:
    import napari

__all__ = ["ApprenticeWidget"]

_NO_LABELS = "nothing"
_PROPAGATE, _SAVE, _CANCEL = "Propagate", "Save labels", "Cancel"


class ApprenticeWidget(Dockable):
    """Choose an image, start, click, accept, save.

    Parameters
    ----------
    napari_viewer : the viewer it is docked in
    engine : opens sessions; by default with the shipped weights
    """

    def __init__(self, napari_viewer: napari.Viewer, engine: Engine | None = None) -> None:
        super().__init__()
        self._viewer = napari_viewer
        self._images: list[ImageLayer] = []
        self._labels: list[Labels] = []
        self._earlier: Path | None = None
        self._working = self._awaited = False
        self._started_at = float("-inf")
        self.bridge = Bridge(napari_viewer, engine or default_engine)
        self._make_controls()
        self._arrange()
        self._connect()
        self._show_keys(self.bridge.keys)
        self._list_layers()
        self._show_state(None)
        self.status.say(NOTHING_OPEN)

    # ------------------------------------------------------------------------------------------------------------- layout

    def _make_controls(self) -> None:
        self.image = Chooser()
        self.image.setToolTip("The image or volume to work on.")
        self.image.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.image.setMinimumContentsLength(12)
        self.questions = Questions()
        self.start = button("Start", "Begin a new session on this image.\nEverything you do is kept on disk at once.")
        self.resume = button("Resume", "Go on with the newest earlier session of this image.")
        self.sign = SignSwitch()
        self.object = id_box("The open object. Choose another number to open that object.")
        self.object.setKeyboardTracking(False)
        self.clicks = QLabel()
        self.clicks.setToolTip("How many clicks the open object has.")
        self.accept = button("Accept", "The mask is good: finish and protect this object, learn from it, go on to the next.", least_px=34)
        self.propagate = button(_PROPAGATE, "Carry this object, or the one accepted last, to the slices above and below.")
        self.doubtful = button("Doubtful", "Go to the carried slice where a correction is expected to help most.")
        self.next_mask = button("Next mask", "The model proposes several masks for these clicks: take the next one.")
        self.approve = button(
            "Keep slice", "This slice is good as it is: no propagation touches it again, and the next one starts from it too."
        )
        self.strip = SliceStrip()
        self.progress = ProgressPlot()
        self.accept.setStyleSheet("QPushButton:enabled { font-weight: bold; }")
        self.undo = button("Undo", "Take the last action back: click, mask and model together.")
        self.redo = button("Redo", "Do again what was taken back.")
        self.discard = button("Discard", "Drop this object's clicks and mask (can be undone).")
        self.save = button(_SAVE, "Write the labels beside the image, in its own format and geometry.")
        self.objects = ObjectsPanel()
        self.model = ModelPanel(shipped_networks())
        self.more = More(POLICIES, DEVICES)
        self.sheet = KeySheet()
        self._folds: tuple[Fold, ...] = (self.objects, self.model, self.more, self.sheet)
        self.status = Status()
        self._tooltips = {
            wish: (each, each.toolTip())
            for wish, each in {
                ACCEPT: self.accept,
                PROPAGATE: self.propagate,
                DOUBTFUL: self.doubtful,
                NEXT_MASK: self.next_mask,
                APPROVE: self.approve,
                UNDO: self.undo,
                REDO: self.redo,
                DISCARD: self.discard,
            }.items()
        }

    def _arrange(self) -> None:
        layout = QVBoxLayout(self)
        layout.setContentsMargins(10, 8, 10, 8)
        layout.setSpacing(6)
        layout.addWidget(self.image)
        layout.addWidget(self.questions)
        layout.addLayout(row(self.start, self.resume))
        layout.addWidget(line())
        self._session_controls = QWidget()
        inner = QVBoxLayout(self._session_controls)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.setSpacing(6)
        inner.addLayout(row(QLabel("Object"), self.object, self.clicks))
        inner.addWidget(self.sign)
        inner.addWidget(self.next_mask)
        inner.addWidget(self.accept)
        inner.addLayout(row(self.propagate, self.doubtful, self.approve))
        inner.addWidget(self.strip)
        inner.addLayout(row(self.undo, self.redo, self.discard))
        inner.addWidget(self.save)
        inner.addWidget(self.progress)
        layout.addWidget(self._session_controls)
        layout.addWidget(self.status)
        layout.addWidget(line())
        titles = row()
        titles.setSpacing(0)
        layout.addLayout(titles)
        for fold in self._folds:
            titles.addWidget(fold.title)
        titles.addStretch(1)
        self._fold_area = FoldArea(self._folds)
        self._fold_area.hide()
        layout.addWidget(self._fold_area)
        layout.addStretch(1)

    def _connect(self) -> None:
        bridge, layers = self.bridge, self._viewer.layers
        self.image.currentIndexChanged.connect(self._on_image_chosen)
        self.questions.spacing_stated.connect(self._on_spacing)
        self.questions.time_wished.connect(self._on_time)
        self.start.clicked.connect(self._on_start)
        self.resume.clicked.connect(self._on_resume)
        self.sign.changed.connect(self._on_sign)
        self.object.valueChanged.connect(lambda label: bridge.select(int(label)))
        self.next_mask.clicked.connect(bridge.next_mask)
        self.accept.clicked.connect(bridge.accept)
        self.propagate.clicked.connect(bridge.propagate)
        self.doubtful.clicked.connect(bridge.show_doubtful)
        self.approve.clicked.connect(bridge.approve)
        self.strip.clicked.connect(bridge.show_slice)
        self.objects.named.connect(bridge.name)
        self.objects.class_kept.connect(bridge.keep_class)
        self.objects.delete_clicked.connect(bridge.delete)
        self.objects.merge_clicked.connect(bridge.merge)
        self.objects.relabel_clicked.connect(bridge.relabel)
        self.objects.split_clicked.connect(bridge.split)
        bridge.splitting_changed.connect(self.objects.show_splitting)
        bridge.slices_found.connect(self._on_slices)
        self.undo.clicked.connect(bridge.undo)
        self.redo.clicked.connect(bridge.redo)
        self.discard.clicked.connect(bridge.discard)
        self.save.clicked.connect(self._on_save)
        self.model.go_back_clicked.connect(bridge.go_back)
        self.model.pin_clicked.connect(bridge.pin)
        self.model.export_clicked.connect(bridge.export)
        self.model.forget_clicked.connect(bridge.forget)
        self.model.peeked.connect(bridge.peek)
        self.model.network_chosen.connect(lambda: bridge.change_model(self._wish()))
        bridge.model_changed.connect(self.model.keep_network)
        for fold in self._folds:
            fold.unfolded.connect(lambda unfolded, fold=fold: self._fold_others(fold) if unfolded else None)
            fold.unfolded.connect(self._fold_area.setVisible)
            fold.unfolded.connect(lambda unfolded, fold=fold: self.progress.make_room(fold, unfolded))
        self.model.unfolded.connect(self._on_unfolded)
        bridge.keys_changed.connect(self._show_keys)
        self.more.upright_changed.connect(self._on_upright)
        self.more.sureness_changed.connect(bridge.show_sureness)
        bridge.state_changed.connect(self._on_state)
        bridge.said.connect(self.status.say)
        bridge.busy_changed.connect(self.status.show_busy)
        bridge.progressed.connect(self.status.show_progress)
        bridge.propagating_changed.connect(self._on_propagating)
        bridge.saving_changed.connect(lambda going: self.save.setText(_CANCEL if going else _SAVE))
        bridge.sign_changed.connect(self.sign.show_sign)
        bridge.earlier_found.connect(self._on_earlier_found)
        for happened in (layers.events.inserted, layers.events.removed, layers.events.renamed):
            happened.connect(self._list_layers)
        dims = self._viewer.dims.events
        dims.point.connect(self._show_plane)
        dims.point.connect(bridge.look)
        for turned in (dims.order, dims.ndisplay):
            turned.connect(bridge.find_slices)
            turned.connect(bridge.look)
        # Qt may destroy the widget without closing it, when the window goes.
        self.destroyed.connect(lambda: bridge.close(with_viewer=True))
        QApplication.instance().aboutToQuit.connect(bridge.worker.close)

    # ---------------------------------------------------------------------------------------------------------- the image

    def _list_layers(self) -> None:
        """Let both choosers follow the viewer's layers, and stay where they are if they can."""
        chosen = self.chosen_image
        before = self._images
        self._images = [layer for layer in self._viewer.layers if isinstance(layer, ImageLayer) and OUTLINE_KEY not in layer.metadata]
        newcomer = [layer for layer in self._images if layer not in before]
        _refill(self.image, [layer.name for layer in self._images])
        wanted = newcomer[-1] if newcomer and self.bridge.state is None and not self.bridge.opening else chosen
        index = self._images.index(wanted) if wanted in self._images else len(self._images) - 1
        _choose(self.image, index)
        if self.chosen_image != chosen:
            if self.chosen_image is not None and self.bridge.state is None and not self.bridge.opening:
                self.bridge.say(NOTHING_OPEN)  # what was said was about another image
            self._on_image_chosen()
        labels = self._chosen_labels
        self._labels = [layer for layer in self._viewer.layers if isinstance(layer, Labels) and OUTLINE_KEY not in layer.metadata]
        _refill(self.more.labels, [_NO_LABELS, *(layer.name for layer in self._labels)])
        _choose(self.more.labels, self._labels.index(labels) + 1 if labels in self._labels else 0)
        self._show_state(self.bridge.state)

    @property
    def chosen_image(self) -> ImageLayer | None:
        """The image layer that the chooser shows."""
        index = self.image.currentIndex()
        return self._images[index] if 0 <= index < len(self._images) else None

    def _on_image_chosen(self) -> None:
        self._on_earlier_found(self.chosen_image, None)
        if self.chosen_image is not None:
            self.bridge.look_for_earlier(self.chosen_image)

    def _on_earlier_found(self, layer: ImageLayer | None, folder: Path | None) -> None:
        if layer == self.chosen_image:
            self._earlier = folder
            self._show_state(self.bridge.state)

    # ------------------------------------------------------------------------------------------------------------- wishes

    def _on_state(self, state: State | None) -> None:
        if state is not None and not self._working:
            self.more.labels.setCurrentIndex(0)  # they were for this start
        ended = (self._working or self._awaited) and state is None and not self.bridge.opening
        self._working, self._awaited = state is not None, self.bridge.opening
        self._show_state(state)
        self.bridge.find_slices()
        if ended:
            self._on_image_chosen()  # the session that was closed can be resumed, or the one that was there when another was called off

    def _on_start(self) -> None:
        if self.bridge.opening and time.monotonic() - self._started_at < QApplication.doubleClickInterval() / 1000:
            return  # a double click opens once
        if self.bridge.state is not None or self.bridge.opening:
            self.bridge.stop()
        elif self.questions.unanswered:
            self.bridge.say(HOW_LARGE)
        elif (layer := self.chosen_image) is not None and layer.ndim == 4:
            self.bridge.say(WHICH_TIME)
        elif layer is not None:
            labels = self._chosen_labels
            if labels is not None and is_in_mm(labels) == is_in_mm(layer) and (how := apart(labels, layer)) is not None:
                self.bridge.tell(f"the labels {labels.name!r} {how} the image {layer.name!r}; expected labels on the grid of the image")
                return
            self._started_at = time.monotonic()
            self.bridge.start(layer, self._wish())

    def _on_spacing(self, spacing_mm: tuple[float, ...] | None) -> None:
        if (layer := self.chosen_image) is not None:
            state_spacing(layer, spacing_mm, [each for each in self._viewer.layers if isinstance(each, Labels)])
            self._viewer.reset_view()
            self._show_state(self.bridge.state)
            self.bridge.say(NOTHING_OPEN)

    def _on_time(self, time: int) -> None:
        """Take one volume out of a series: beside it, where it is a layer of four axes, else in its place."""
        layer = self.chosen_image
        if layer is None:
            return
        if layer.ndim == 4:
            data, arguments = time_point(layer, time)
            layer.visible = False
            self._viewer.add_image(data, **arguments)
            return
        path, count = image_of(layer).path, layer.metadata[SERIES_KEY][0]
        assert path is not None

        def then(shown: LayerTuple) -> None:
            if self.bridge.state is not None or self.bridge.opening:
                return  # a session has begun meanwhile, on what was shown
            data, arguments, _ = shown
            layer.data = data
            layer.metadata = {**layer.metadata, **arguments["metadata"], SERIES_KEY: (count, time)}
            hidden = hide_left(layer, self._viewer.layers)
            self.bridge.say(f"time point {time} of {count}" + "; the labels of the one before are hidden" * bool(hidden))
            self._on_image_chosen()

        def work() -> LayerTuple:
            return image_layer(files.read(path, time=time))

        self.bridge.worker.submit(Task(lambda: f"reading time point {time}", work, then, self.bridge.report))

    def _on_resume(self) -> None:
        if self.chosen_image is not None and self._earlier is not None:
            self.bridge.start(self.chosen_image, self._wish(resume=self._earlier))

    @property
    def _chosen_labels(self) -> Labels | None:
        """The labels layer to begin with, if one is chosen."""
        index = self.more.labels.currentIndex() - 1
        return self._labels[index] if 0 <= index < len(self._labels) else None

    def _wish(self, resume: Path | None = None) -> Wish:
        layer = self._chosen_labels
        labels, legend = (None, None) if layer is None else (full_resolution(layer), layer.metadata.get(LEGEND_KEY))
        about = (self.model.cohort, self.model.knowledge, self.model.weights, legend)
        return Wish(self.more.policy.currentData(), self.more.device.currentText(), labels, resume, *about)

    def _on_sign(self, positive: bool) -> None:
        self.bridge.positive = positive
        self.bridge.take_clicks()

    def _on_propagating(self, going: bool) -> None:
        self.propagate.setText(self._with_key(_CANCEL if going else _PROPAGATE, PROPAGATE))

    def _with_key(self, words: str, wish: str) -> str:
        return f"{words}   ({readable(self.bridge.keys[wish])})"

    def _show_keys(self, keys: Mapping[str, str]) -> None:
        """Name the keys (wish -> key) wherever they are named."""
        named = ((self.accept, "Accept", ACCEPT), (self.doubtful, "Doubtful", DOUBTFUL), (self.next_mask, "Next mask", NEXT_MASK))
        for each, words, wish in (*named, (self.approve, "Keep slice", APPROVE), (self.propagate, _PROPAGATE, PROPAGATE)):
            each.setText(self._with_key(words, wish))
        for wish, (each, words) in self._tooltips.items():
            each.setToolTip(f"{words}\nKey {readable(keys[wish])}, while one of the session's layers is active.")
        self.sign.show_key(keys[SWITCH_SIGN])
        for panel in (self.objects, self.model, self.sheet):
            panel.show_keys(keys)

    def _fold_others(self, opened: Fold) -> None:
        """One of the folds is open at a time, so that all fits on a small screen."""
        for fold in self._folds:
            if fold is not opened:
                fold.unfold(False)

    def _on_unfolded(self, unfolded: bool) -> None:
        if unfolded:
            self.model.list_studies(tuple(sorted({cohort.name for cohort in cohorts()})))

    def _on_slices(self, view: SliceView | None) -> None:
        """Show what the slices of the object at work are."""
        self.strip.setVisible(view is not None)
        if view is not None:
            self.strip.show_slices(view.slices, flipped=view.flipped)
        self._show_plane()

    def _show_plane(self) -> None:
        """Mark the slice that the viewer shows."""
        plane = self.bridge.plane
        self.strip.show_index(None if plane is None else plane.index)

    def _on_upright(self, upright: bool) -> None:
        look_upright(self._viewer, upright)

    def _on_save(self) -> None:
        if self.bridge.saving:
            self.bridge.cancel_saving()
            return
        image = self.bridge.image
        if image is None:
            return
        count, shown = (1, 0) if self.chosen_image is None else time_points_of(self.chosen_image)
        path = self._place(files.labels_path(image, time=shown if count > 1 else None), known=image.path is not None)
        if path is None:
            return
        try:
            files.check_place(path, like=image)
        except WriteError as error:
            self.bridge.report(error)
        else:
            self.bridge.save(path)

    def _place(self, path: Path, *, known: bool) -> Path | None:
        """Where labels are to be written: ``path``, unless the user has to say; None if the user says nowhere.

        ``known`` : the image has a file, and so its folder is the user's choice
        """
        if not known:
            return self._ask_where(path)
        if not os.access(path.parent, os.W_OK):
            self.bridge.say(f"nothing can be written to {path.parent}; choose another place for {path.name}")
            return self._ask_where(Path.home() / path.name)
        return path if self.bridge.may_write(path) else self._ask_whether(path)

    def _ask_where(self, proposal: Path) -> Path | None:
        """The path that the user chose (and, if there is a file, agreed to overwrite), or None."""
        patterns = " ".join(f"*{extension}" for extension in files.WRITABLE)
        return ask_where(self, "Save labels", proposal, f"Label maps ({patterns})")

    def _ask_whether(self, path: Path) -> Path | None:
        """What to do about a file that this session did not write."""
        question = QMessageBox(self)
        question.setText(f"{path.name} exists already, and was not written by this session.")
        question.setInformativeText(f"In {path.parent}")
        overwrite = question.addButton("Overwrite", QMessageBox.ButtonRole.DestructiveRole)
        elsewhere = question.addButton("Save as …", QMessageBox.ButtonRole.ActionRole)
        question.setDefaultButton(question.addButton(QMessageBox.StandardButton.Cancel))
        question.exec()
        if question.clickedButton() is elsewhere:
            return self._ask_where(path)
        return path if question.clickedButton() is overwrite else None

    # ----------------------------------------------------------------------------------------------------- the state shown

    def _show_state(self, state: State | None) -> None:
        working = state is not None
        may_change = state is not None and not state.read_only
        idle = not working and not self.bridge.opening
        self.image.setEnabled(idle)
        self.questions.ask(self.chosen_image if idle else None)
        self.start.setText("Start" if idle else "Close session")
        self.start.setEnabled(bool(self._images))
        self.resume.setEnabled(idle and self._earlier is not None)
        self.objects.setEnabled(may_change)
        for each in (self.object, self.sign, self.next_mask, self.accept, self.discard):
            each.setEnabled(may_change)
        self.status.show_device(state.device if state is not None else "")
        self._session_controls.setEnabled(working and not self.bridge.opening)
        self.model.network.setEnabled(not self.bridge.opening)
        self.model.show_versions(state.versions if state is not None else None)
        self.model.show_network(state.weights if state is not None else None)
        header = state.header if state is not None else None
        self.model.show_study(header.cohort if header is not None else None)
        self.more.show_policy((header.policy or DEFAULT_POLICY) if header is not None else None)
        self.progress.show_efforts(state.versions.efforts if state is not None else (), len(state.clicks) if state is not None else 0)
        self.next_mask.setVisible(state is not None and state.masks > 1)
        if state is None:
            self.clicks.setText("")
            return
        self.object.blockSignals(True)
        self.object.setValue(state.label)
        self.object.blockSignals(False)
        count = len(state.clicks)
        self.clicks.setText("no clicks yet" if not count else "1 click" if count == 1 else f"{count} clicks")
        image = self.bridge.image
        self.propagate.setEnabled(may_change and image is not None and image.ndim == 3)
        self.doubtful.setEnabled(bool(state.doubts))
        self.approve.setEnabled(may_change and image is not None and image.ndim == 3)
        self.objects.show_object(state.label, state.legend, state.kind)
        self.undo.setEnabled(may_change and state.can_undo)
        self.redo.setEnabled(may_change and state.can_redo)

    # ------------------------------------------------------------------------------------------------------ out of napari

    def _disconnect(self) -> None:
        layers = self._viewer.layers
        for happened in (layers.events.inserted, layers.events.removed, layers.events.renamed):
            happened.disconnect(self._list_layers)
        dims = self._viewer.dims.events
        dims.point.disconnect(self._show_plane)
        dims.point.disconnect(self.bridge.look)
        for turned in (dims.order, dims.ndisplay):
            turned.disconnect(self.bridge.find_slices)
            turned.disconnect(self.bridge.look)
        self.bridge.close()


def _refill(combo: QComboBox, names: list[str]) -> None:
    """Replace the entries and tell nobody."""
    blocked = combo.blockSignals(True)
    combo.clear()
    combo.addItems(names)
    combo.blockSignals(blocked)


def _choose(combo: QComboBox, index: int) -> None:
    """Set the index and tell nobody."""
    blocked = combo.blockSignals(True)
    combo.setCurrentIndex(index)
    combo.blockSignals(blocked)
