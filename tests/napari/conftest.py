"""Fixtures of the face's tests. They need a screen: a real one, or Xvfb (which pytest-xvfb starts)."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from napari_apprentice.fakes import DiskSegmenter, FakePolicy, FakeStore
from napari_apprentice.journal import Journal
from napari_apprentice.session import Session, resume
from napari_apprentice.types import Image

HAS_SCREEN = sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY")) or shutil.which("Xvfb") is not None


def pytest_runtest_setup(item):
    if not HAS_SCREEN:
        pytest.skip("needs a screen: there is neither a DISPLAY nor an Xvfb on the PATH")


class SlowSegmenter(DiskSegmenter):
    """Takes its time, without holding the interpreter; ``gate`` makes it wait for the test."""

    def __init__(self, seconds: float = 0.0, gate: threading.Event | None = None) -> None:
        super().__init__()
        self.seconds, self.gate = seconds, gate

    def predict(self, image_slice, prompt):
        if self.gate is not None:
            assert self.gate.wait(30), "nobody opened the gate"
        time.sleep(self.seconds)
        return super().predict(image_slice, prompt)


class DiskEngine:
    """Opens real sessions with the fake segmenter, and remembers them."""

    def __init__(self, segmenter=DiskSegmenter, policy=FakePolicy) -> None:
        self.segmenter, self.policy = segmenter, policy
        self.sessions: list[Session] = []
        self.wishes = []
        self.error: Exception | None = None

    def __call__(self, image, wish, folder):
        assert threading.current_thread() is not threading.main_thread()
        self.wishes.append(wish)
        if self.error is not None:
            raise self.error
        if wish.resume is not None:
            session = resume(wish.resume, image, self.segmenter(), self.policy(), FakeStore())
        else:
            journal = Journal.create(folder, image, policy=wish.policy)
            session = Session(image, self.segmenter(), self.policy(), labels=wish.labels, journal=journal, store=FakeStore())
        self.sessions.append(session)
        return session

    @property
    def session(self) -> Session:
        return self.sessions[-1]


@pytest.fixture(autouse=True)
def apprentice_home(tmp_path, monkeypatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("APPRENTICE_HOME", str(home))
    return home


@pytest.fixture
def engine() -> DiskEngine:
    return DiskEngine()


@pytest.fixture
def make_engine():
    """Engines with a segmenter or policy of the test's choice."""
    return DiskEngine


@pytest.fixture
def slow_engine():
    """Engines whose predictions take ``seconds``, or wait for ``gate``."""
    return lambda seconds=0.0, gate=None: DiskEngine(lambda: SlowSegmenter(seconds, gate))


@pytest.fixture
def told():
    """Sentences that were shown to the user."""
    from napari.utils.notifications import notification_manager

    before = len(notification_manager.records)
    return lambda: [record.message for record in notification_manager.records[before:]]


@pytest.fixture
def volume() -> Image:
    """An anisotropic volume whose first axis runs against the world."""
    values = np.random.default_rng(0).normal(100, 10, (1, 8, 40, 50)).astype(np.float32)
    affine = np.array([[-3.0, 0, 0, 40], [0, 0.5, 0, -10], [0, 0, 0.5, 7], [0, 0, 0, 1]])
    return Image(values, affine, "mm", name="scan")


@pytest.fixture
def photograph() -> Image:
    values = np.random.default_rng(1).integers(0, 255, (3, 60, 80)).astype(np.uint8)
    return Image(values, name="photo")
