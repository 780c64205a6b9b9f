"""The dock widget: it shows the bridge's state and passes wishes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image as ImageLayer
from napari.layers import Labels
from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import QApplication, QComboBox, QFileDialog, QLabel, QMessageBox, QSpinBox, QVBoxLayout, QWidget

from napari_apprentice import files
from napari_apprentice._napari.answers import SliceView, State
from napari_apprentice._napari.bridge import NOTHING_OPEN, Bridge
from napari_apprentice._napari.engine import DEVICES, POLICIES, Engine, Wish, default_engine, shipped_networks
from napari_apprentice._napari.keys import ACCEPT, APPROVE, DISCARD, DOUBTFUL, KEYS, NEXT_MASK, PROPAGATE, SWITCH_SIGN
from napari_apprentice._napari.model_panel import ModelPanel
from napari_apprentice._napari.objects_panel import ObjectsPanel
from napari_apprentice._napari.outline import OUTLINE_KEY
from napari_apprentice._napari.panels import Fold, More, SignSwitch, Status, button, line, row
from napari_apprentice._napari.placement import LEGEND_KEY, look_upright
from napari_apprentice._napari.strip import SliceStrip
from napari_apprentice.cohorts import cohorts

if TYPE_CHECKING:
    import napari

__all__ = ["ApprenticeWidget"]

_NO_LABELS = "nothing"
_MOST_OBJECTS = 65535
_PROPAGATE = f"Propagate   ({KEYS[PROPAGATE]})"
_CANCEL = f"Cancel   ({KEYS[PROPAGATE]})"


class ApprenticeWidget(QWidget):
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
        self._earlier: Path | None = None
        self._docked = self._left = self._working = False
        self.bridge = Bridge(napari_viewer, engine or default_engine)
        self._make_controls()
        self._arrange()
        self._connect()
        self._list_layers()
        self._show_state(None)
        self.status.say(NOTHING_OPEN)

    # ------------------------------------------------------------------------------------------------------------- layout

    def _make_controls(self) -> None:
        self.image = QComboBox()
        self.image.setToolTip("The image or volume to work on.")
        self.image.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.image.setMinimumContentsLength(12)
        self.start = button("Start", "Begin a new session on this image.\nEverything you do is kept on disk at once.")
        self.resume = button("Resume", "Go on with the newest earlier session of this image.")
        self.sign = SignSwitch(KEYS[SWITCH_SIGN])
        self.object = QSpinBox()
        self.object.setRange(1, _MOST_OBJECTS)
        self.object.setKeyboardTracking(False)
        self.object.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self.object.setToolTip("The open object. Choose another number to open that object.")
        self.clicks = QLabel()
        self.accept = button(
            f"Accept   ({KEYS[ACCEPT]})",
            f"The mask is good: finish and protect this object, learn from it, go on to the next.\nKey {KEYS[ACCEPT]}.",
        )
        self.propagate = button(
            _PROPAGATE, f"Carry this object, or the one accepted last, to the slices above and below.\nKey {KEYS[PROPAGATE]}."
        )
        self.doubtful = button(
            f"Doubtful   ({KEYS[DOUBTFUL]})", f"Go to the slice that is most likely wrong, to correct it.\nKey {KEYS[DOUBTFUL]}."
        )
        self.next_mask = button(
            f"Next mask   ({KEYS[NEXT_MASK]})",
            f"The model proposes several masks for these clicks: take the next one.\nKey {KEYS[NEXT_MASK]}.",
        )
        self.approve = button(
            f"Keep slice   ({KEYS[APPROVE]})",
            f"This slice is good as it is: no propagation touches it again, and the next one starts from it too.\nKey {KEYS[APPROVE]}.",
        )
        self.strip = SliceStrip()
        self.accept.setMinimumHeight(34)
        self.accept.setStyleSheet("QPushButton:enabled { font-weight: bold; }")
        self.undo = button("Undo", "Take the last action back: click, mask and model together.\nCtrl+Z on any of the session's layers.")
        self.redo = button("Redo", "Do again what was taken back.\nCtrl+Shift+Z on any of the session's layers.")
        self.discard = button("Discard", f"Drop this object's clicks and mask (can be undone).\nKey {KEYS[DISCARD]}.")
        self.save = button("Save labels", "Write the labels beside the image, in its own format and geometry.")
        self.objects = ObjectsPanel(_MOST_OBJECTS)
        self.model = ModelPanel(shipped_networks())
        self.more = More(POLICIES, DEVICES)
        self.status = Status()

    def _arrange(self) -> None:
        layout = QVBoxLayout(self)
        layout.setContentsMargins(10, 8, 10, 8)
        layout.setSpacing(6)
        layout.addWidget(self.image)
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
        layout.addWidget(self._session_controls)
        layout.addWidget(self.status)
        layout.addWidget(line())
        layout.addWidget(self.objects)
        layout.addWidget(self.model)
        layout.addWidget(self.more)
        layout.addStretch(1)

    def _connect(self) -> None:
        bridge, layers = self.bridge, self._viewer.layers
        self.image.currentIndexChanged.connect(self._on_image_chosen)
        self.start.clicked.connect(self._on_start)
        self.resume.clicked.connect(self._on_resume)
        self.sign.changed.connect(self._on_sign)
        self.object.valueChanged.connect(bridge.select)
        self.next_mask.clicked.connect(bridge.next_mask)
        self.accept.clicked.connect(bridge.accept)
        self.propagate.clicked.connect(bridge.propagate)
        self.doubtful.clicked.connect(bridge.show_doubtful)
        self.approve.clicked.connect(bridge.approve)
        self.strip.clicked.connect(bridge.show_slice)
        self.objects.named.connect(bridge.name)
        self.objects.delete_clicked.connect(bridge.delete)
        self.objects.merge_clicked.connect(bridge.merge)
        self.objects.relabel_clicked.connect(bridge.relabel)
        self.objects.split_clicked.connect(bridge.split)
        self.objects.unfolded.connect(lambda unfolded: self._fold_others(self.objects) if unfolded else None)
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
        self.model.unfolded.connect(self._on_unfolded)
        self.more.unfolded.connect(lambda unfolded: self._fold_others(self.more) if unfolded else None)
        self.more.upright_changed.connect(self._on_upright)
        bridge.state_changed.connect(self._on_state)
        bridge.said.connect(self.status.say)
        bridge.busy_changed.connect(self.status.show_busy)
        bridge.progressed.connect(self.status.show_progress)
        bridge.propagating_changed.connect(self._on_propagating)
        bridge.sign_changed.connect(self.sign.show_sign)
        bridge.earlier_found.connect(self._on_earlier_found)
        for happened in (layers.events.inserted, layers.events.removed, layers.events.renamed):
            happened.connect(self._list_layers)
        dims = self._viewer.dims.events
        dims.point.connect(self._show_plane)
        dims.order.connect(bridge.find_slices)
        dims.ndisplay.connect(bridge.find_slices)
        # Qt may destroy the widget without closing it, when the window goes.
        self.destroyed.connect(bridge.close)
        QApplication.instance().aboutToQuit.connect(bridge.worker.close)

    # ---------------------------------------------------------------------------------------------------------- the image

    def _list_layers(self) -> None:
        """Let both choosers follow the viewer's layers, and stay where they are if they can."""
        chosen = self.chosen_image
        newcomer = [layer for layer in self._viewer.layers if isinstance(layer, ImageLayer) and layer not in self._images]
        self._images = [layer for layer in self._viewer.layers if isinstance(layer, ImageLayer)]
        _refill(self.image, [layer.name for layer in self._images])
        wanted = newcomer[-1] if newcomer and self.bridge.state is None else chosen
        index = self._images.index(wanted) if wanted in self._images else len(self._images) - 1
        _choose(self.image, index)
        if self.chosen_image != chosen:
            self._on_image_chosen()
        names = [layer.name for layer in self._viewer.layers if isinstance(layer, Labels) and OUTLINE_KEY not in layer.metadata]
        _refill(self.more.labels, [_NO_LABELS, *names])
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
        closed, self._working = self._working and state is None, state is not None
        self._show_state(state)
        self.bridge.find_slices()
        if closed and not self.bridge.opening:
            self._on_image_chosen()  # the session that was closed can be resumed

    def _on_start(self) -> None:
        if self.bridge.state is not None or self.bridge.opening:
            self.bridge.stop()
        elif self.chosen_image is not None:
            self.bridge.start(self.chosen_image, self._wish())

    def _on_resume(self) -> None:
        if self.chosen_image is not None and self._earlier is not None:
            self.bridge.start(self.chosen_image, self._wish(resume=self._earlier))

    def _wish(self, resume: Path | None = None) -> Wish:
        name = self.more.labels.currentText()
        layer = self._viewer.layers[name] if self.more.labels.currentIndex() > 0 else None
        labels, legend = (None, None) if layer is None else (layer.data, layer.metadata.get(LEGEND_KEY))
        about = (self.model.cohort, self.model.knowledge, self.model.weights, legend)
        return Wish(self.more.policy.currentData(), self.more.device.currentText(), labels, resume, *about)

    def _on_sign(self, positive: bool) -> None:
        self.bridge.positive = positive

    def _on_propagating(self, going: bool) -> None:
        self.propagate.setText(_CANCEL if going else _PROPAGATE)

    def _fold_others(self, opened: Fold) -> None:
        """One of the folds is open at a time, so that all fits on a small screen."""
        for fold in (self.objects, self.model, self.more):
            if fold is not opened:
                fold.unfold(False)

    def _on_unfolded(self, unfolded: bool) -> None:
        if unfolded:
            self._fold_others(self.model)
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
        image = self.bridge.image
        if image is None:
            return
        path = files.labels_path(image) if image.path is not None else self._ask_where(files.labels_path(image))
        if path is not None and image.path is not None and not self.bridge.may_write(path):
            path = self._ask_whether(path)
        if path is not None:
            self.bridge.save(path)

    def _ask_where(self, proposal: Path) -> Path | None:
        """The path that the user chose (and, if there is a file, agreed to overwrite), or None."""
        patterns = " ".join(f"*{extension}" for extension in files.WRITABLE)
        chosen, _ = QFileDialog.getSaveFileName(self, "Save labels", str(proposal), f"Label maps ({patterns})")
        return Path(chosen) if chosen else None

    def _ask_whether(self, path: Path) -> Path | None:
        """What to do about a file that this window did not write."""
        question = QMessageBox(self)
        question.setText(f"{path.name} exists already, and was not written from this window.")
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
        idle = not working and not self.bridge.opening
        self.image.setEnabled(idle)
        self.start.setText("Start" if idle else "Close session")
        self.start.setEnabled(bool(self._images))
        self.resume.setEnabled(idle and self._earlier is not None)
        self.objects.setEnabled(working)
        self._session_controls.setEnabled(working and not self.bridge.opening)
        self.model.network.setEnabled(not self.bridge.opening)
        self.model.show_versions(state.versions if state is not None else None)
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
        self.propagate.setEnabled(image is not None and image.ndim == 3)
        self.doubtful.setEnabled(bool(state.doubts))
        self.approve.setEnabled(image is not None and image.ndim == 3)
        self.objects.show_object(state.label, state.legend)
        self.undo.setEnabled(state.can_undo)
        self.redo.setEnabled(state.can_redo)

    # ------------------------------------------------------------------------------------------------------ out of napari

    def leave(self) -> None:
        """Disconnect from the viewer, and let the worker end once its queue is done. Safe to call again."""
        if self._left:
            return
        self._left = True
        layers = self._viewer.layers
        for happened in (layers.events.inserted, layers.events.removed, layers.events.renamed):
            happened.disconnect(self._list_layers)
        dims = self._viewer.dims.events
        dims.point.disconnect(self._show_plane)
        dims.order.disconnect(self.bridge.find_slices)
        dims.ndisplay.disconnect(self.bridge.find_slices)
        self.bridge.close()

    def closeEvent(self, event: Any) -> None:  # noqa: N802
        """Closed as a window of its own."""
        self.leave()
        super().closeEvent(event)

    def changeEvent(self, event: Any) -> None:  # noqa: N802
        """A dock that the user closes takes its widget out, without closing or deleting it."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange:
            docked, self._docked = self._docked, self.parent() is not None
            if docked and not self._docked:
                self.leave()


def _refill(combo: QComboBox, names: list[str]) -> None:
    """Replace the entries, stay at the chosen name if it is still there, and tell nobody."""
    chosen = combo.currentText()
    blocked = combo.blockSignals(True)
    combo.clear()
    combo.addItems(names)
    combo.blockSignals(blocked)
    _choose(combo, max(combo.findText(chosen), 0) if names else -1)


def _choose(combo: QComboBox, index: int) -> None:
    """Set the index and tell nobody."""
    blocked = combo.blockSignals(True)
    combo.setCurrentIndex(index)
    combo.blockSignals(blocked)
