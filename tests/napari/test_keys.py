"""The keys: free ones, no two the same, chosen in napari's preferences, and named truly wherever they are named."""

from __future__ import annotations

import threading
from importlib import resources

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from napari.components import ViewerModel
from napari.layers import Image, Labels, Points, Shapes, Surface, Tracks, Vectors
from napari.utils.key_bindings import coerce_keybinding
from napari.utils.shortcuts import default_shortcuts
from qtpy.QtWidgets import QComboBox, QPushButton, QSpinBox

from napari import settings as napari_settings
from napari_apprentice._napari import keys, storage
from napari_apprentice._napari import widget as widget_module
from napari_apprentice._napari.bridge import Bridge
from napari_apprentice._napari.contributions import image_layer
from napari_apprentice._napari.engine import Wish
from napari_apprentice._napari.keys import CHOICES, FIXED, KEYS, MEANINGS
from napari_apprentice._napari.widget import ApprenticeWidget
from napari_apprentice._napari.worker import Task
from napari_apprentice.fakes import DiskSegmenter, FakePolicy
from napari_apprentice.journal import Journal
from napari_apprentice.session import Session
from napari_apprentice.types import Click

FREE = [wish for wish in KEYS if wish not in FIXED]
HAS_SETTINGS = hasattr(napari_settings, "get_plugin_settings")


def of_napari() -> set[str]:
    """Every key that napari uses on a layer or in a viewer, as napari writes them."""
    owners = (Image, Labels, Points, Shapes, Surface, Tracks, Vectors, ViewerModel)
    bound = {str(key) for owner in owners for key in owner.class_keymap}
    return bound | {str(key) for found in default_shortcuts.values() for key in found}


def test_no_key_that_may_be_chosen_is_one_of_napari():
    assert {"V", "M", "Space", "Ctrl+Z"} <= of_napari(), "this test would not see a collision"
    assert not {str(coerce_keybinding(key)) for key in CHOICES} & of_napari()
    assert {KEYS[wish] for wish in FREE} <= set(CHOICES)
    assert len(set(KEYS.values())) == len(KEYS) == len(MEANINGS)
    assert set(KEYS) == set(MEANINGS)


def test_the_manifest_says_what_stands_in_the_code():
    manifest = yaml.safe_load((resources.files("napari_apprentice") / "napari.yaml").read_text())
    properties = manifest["contributions"]["configurations"]["keys"]["properties"]
    assert {wish: (said["title"], said["default"], tuple(said["enum"])) for wish, said in properties.items()} == {
        wish: (MEANINGS[wish], KEYS[wish], CHOICES) for wish in FREE
    }


# --- collisions ---

anything = st.fixed_dictionaries({wish: st.sampled_from([*CHOICES, "Control-Z", "V"]) for wish in FREE})


@given(anything)
def test_whatever_is_chosen_every_wish_gets_a_key_of_its_own(wanted):
    wanted = {**KEYS, **wanted}
    given_keys, refused = keys.without_collisions(wanted)
    assert list(given_keys) == list(KEYS)
    assert len(set(given_keys.values())) == len(KEYS)
    assert all(given_keys[wish] in CHOICES for wish in FREE)
    assert {wish: given_keys[wish] for wish in FIXED} == {wish: KEYS[wish] for wish in FIXED}
    assert len(refused) == sum(given_keys[wish] != wanted[wish] for wish in KEYS)


@given(st.permutations(CHOICES))
def test_keys_without_a_collision_are_what_was_chosen(order):
    wanted = {**KEYS, **dict(zip(FREE, order, strict=False))}
    assert keys.without_collisions(wanted) == (wanted, ())


def test_a_refusal_says_what_was_chosen_and_who_has_it():
    given_keys, refused = keys.without_collisions({**KEYS, "propagate": "G", "peek": "Control-Z"})
    assert given_keys == dict(KEYS)
    assert refused == (
        "G was chosen for “Propagate; again: cancel”, but is the key of “Accept the object”; expected a free key, so it is W now",
        "Ctrl+Z was chosen for “Held: the untaught answer”, but is the key of “Undo”; expected a free key, so it is H now",
    )
    swapped = {**KEYS, "propagate": "G", "accept": "W"}
    assert keys.without_collisions(swapped) == (swapped, ())


# --- the user's choice ---


def test_an_older_napari_has_the_usual_keys(monkeypatch):
    monkeypatch.delattr(napari_settings, "get_plugin_settings", raising=False)
    assert keys.settings() is None
    assert keys.chosen(None) == KEYS


@pytest.mark.skipif(not HAS_SETTINGS, reason="this napari has no settings of plugins")
def test_a_key_that_is_chosen_in_the_preferences_works_at_once(qtbot, volume, engine, told):
    viewer = ViewerModel()
    data, arguments, _ = image_layer(volume)
    layer = viewer.add_image(data, **arguments)
    bridge = Bridge(viewer, engine)
    heard = []
    bridge.keys_changed.connect(heard.append)
    bridge.start(layer, Wish())
    qtbot.waitUntil(lambda: bridge.worker.waiting == 0, timeout=30_000)
    points = next(each for each in viewer.layers if isinstance(each, Points))
    chosen = napari_settings.get_plugin_settings("napari-apprentice").keys
    chosen.accept = "Shift-G"
    assert heard[-1]["accept"] == "Shift-G"
    for each in (layer, points):
        assert coerce_keybinding("Shift-G") in each.keymap
        assert coerce_keybinding("G") not in each.keymap
    assert "Shift+G accepts" in points.help
    assert told() == []

    chosen.discard = "W"  # the key that propagates
    assert len(told()) == 1
    assert told()[0].endswith("is the key of “Propagate; again: cancel”; expected a free key, so it is J now.")
    assert heard[-1]["discard"] == "J"
    chosen.peek = "Shift-H"
    assert len(told()) == 1, "it is told once"
    with pytest.raises(ValueError, match="Shift-V"):
        chosen.peek = "Shift-V"

    bridge.stop()
    assert not layer.keymap
    bridge.close()
    chosen.accept = "K"
    assert heard[-1]["accept"] == "Shift-G", "who is closed listens no more"
    assert bridge.worker.join(60)


@pytest.mark.skipif(not HAS_SETTINGS, reason="this napari has no settings of plugins")
@pytest.mark.parametrize("first", [0, 1])
def test_two_sessions_on_one_layer_give_its_keys_back_in_either_order(first):
    layer, pressed = Points(), []
    layer.bind_key("G", lambda _: pressed.append("the user's"))
    theirs = [keys.LayerKeys({"accept": "G"}, {"accept": lambda name=name: pressed.append(name)}) for name in "ab"]

    def press() -> str:
        for act in [act for key, act in layer.keymap.items() if str(key) == "G"]:
            act(layer)
        return pressed.pop() if pressed else ""

    for each in theirs:
        each.bind(layer)
    assert press() == "b"
    for each in theirs:
        each.change({"accept": "G"})  # as when the user chooses another key in the preferences
    assert press() == "b"
    theirs[first].release()
    assert press() == "ba"[first]
    theirs[1 - first].release()
    assert press() == "the user's"


def test_buttons_tooltips_and_the_sheet_name_the_chosen_keys(qtbot, engine):
    napari_settings.get_plugin_settings("napari-apprentice").keys.accept = "Shift-E"
    widget = ApprenticeWidget(ViewerModel(), engine)
    qtbot.addWidget(widget)
    qtbot.waitUntil(lambda: widget.accept.text() == "Accept   (Shift+E)", timeout=30_000)
    assert "Shift+E" in widget.accept.toolTip()
    assert ("Shift+E", "Accept the object") in widget.sheet.lines
    napari_settings.get_plugin_settings("napari-apprentice").keys.open_here = "Shift-R"
    assert widget.objects.hint.text().startswith("Shift+R opens")
    napari_settings.get_plugin_settings("napari-apprentice").keys.switch_sign = "Shift-S"
    assert all("Shift+S" in each.toolTip() for each in widget.sign.findChildren(QPushButton))
    assert widget.sheet.lines == list(keys.cheat_sheet(widget.bridge.keys))
    assert len(widget.sheet.lines) == len(KEYS) + 3
    widget.leave()
    assert widget.bridge.worker.join(60)


def test_a_session_can_be_resumed_after_a_start_at_once_that_was_called_off(qtbot, engine, volume):
    folder = storage.fresh_folder(volume)
    session = Session(volume, DiskSegmenter(), FakePolicy(), journal=Journal.create(folder, volume))
    session.add(Click((2, 20, 20)))
    session.close()
    widget, held = ApprenticeWidget(viewer := ViewerModel(), engine), threading.Event()
    qtbot.addWidget(widget)
    widget.bridge.worker.submit(Task(lambda: "held up", lambda: held.wait(30)))
    data, arguments, _ = image_layer(volume)
    viewer.add_image(data, **arguments)
    widget.start.click()
    assert widget.bridge.opening
    widget._started_at = float("-inf")  # else a second click so soon is a double click
    widget.start.click()
    assert not widget.bridge.opening
    held.set()
    qtbot.waitUntil(lambda: widget.bridge.worker.waiting == 0, timeout=30_000)
    assert widget.resume.isEnabled()
    widget.leave()
    assert widget.bridge.worker.join(60)


def test_every_control_says_what_it_is_for(qtbot, monkeypatch, engine):
    monkeypatch.setattr(widget_module, "default_engine", engine)
    widget = ApprenticeWidget(ViewerModel())
    qtbot.addWidget(widget)
    controls = [each for kind in (QPushButton, QComboBox, QSpinBox) for each in widget.findChildren(kind)]
    assert len(controls) > 20
    assert [each.objectName() or each for each in controls if not each.toolTip()] == []
    widget.leave()
    assert widget.bridge.worker.join(60)
