"""The keys follow the preferences, whichever napari keeps them."""

from __future__ import annotations

from threading import Event

import pytest
from napari.utils.events import EmitterGroup
from napari.utils.events import Event as Emitter

from napari_apprentice._napari import keys
from napari_apprentice._napari.key_choice import KeyChoice
from napari_apprentice._napari.keys import ACCEPT, DISCARD, FIXED, KEYS, PEEK


class Preferences:
    """As napari 0.9 has them; ``choose`` is what the user does there."""

    def __init__(self) -> None:
        self.__dict__.update({wish: key for wish, key in KEYS.items() if wish not in FIXED})
        self.events = EmitterGroup(self, changed=Emitter)

    def choose(self, wish, key) -> None:
        setattr(self, wish, key)
        self.events.changed()


@pytest.fixture
def preferences(monkeypatch):
    made = Preferences()
    monkeypatch.setattr(keys, "settings", lambda: made)
    return made


@pytest.fixture
def choice(errands):
    made, heard = KeyChoice(errands), []
    made.changed.connect(heard.append)
    made.heard = heard
    return made


def test_they_are_the_usual_ones_until_the_preferences_are_known(preferences, monkeypatch, errands):
    preferences.accept, readable, heard = "Shift-G", Event(), []
    monkeypatch.setattr(keys, "settings", lambda: preferences if readable.wait(30) else None)
    choice = KeyChoice(errands)
    choice.changed.connect(heard.append)
    assert choice.bound == KEYS
    readable.set()
    errands.wait()
    assert choice.bound == {**KEYS, ACCEPT: "Shift-G"}
    assert heard == [choice.bound]
    assert choice.readable(ACCEPT) == "Shift+G"


def test_only_a_change_is_one(preferences, choice, errands):
    errands.wait()
    preferences.choose(ACCEPT, "G")
    assert choice.heard == []
    preferences.choose(ACCEPT, "Shift-G")
    preferences.choose(ACCEPT, "Shift-G")
    assert choice.heard == [{**KEYS, ACCEPT: "Shift-G"}]


def test_what_cannot_be_is_told_once_and_again_when_it_is_chosen_again(preferences, choice, errands, told):
    errands.wait()
    preferences.choose(DISCARD, "W")
    preferences.choose(PEEK, "Shift-H")
    assert len(told()) == 1
    assert choice.bound == {**KEYS, PEEK: "Shift-H"}
    preferences.choose(DISCARD, "J")
    preferences.choose(DISCARD, "W")
    assert len(told()) == 2


def test_who_is_closed_follows_no_more(preferences, choice, errands):
    errands.wait()
    choice.close()
    preferences.choose(ACCEPT, "Shift-G")
    assert choice.bound == KEYS


def test_without_preferences_there_is_nothing_to_follow(monkeypatch, errands):
    monkeypatch.setattr(keys, "settings", lambda: None)
    choice = KeyChoice(errands)
    errands.wait()
    choice.close()
    assert choice.bound == KEYS
