"""Cases on a Dask cluster: done as on this machine, and whatever becomes of the cluster, what is done stays done and the rest waits."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image as Picture

from napari_apprentice import files
from napari_apprentice.casework import Model, Plan, release
from napari_apprentice.dispatch import on_cluster, on_this_machine
from napari_apprentice.fakes import DiskSegmenter, FakePolicy, FakeStore
from napari_apprentice.project_file import Settings
from napari_apprentice.projects import create_project
from napari_apprentice.types import SessionError

NAMES = [f"eye_{number}" for number in range(5)]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("APPRENTICE_HOME", str(tmp_path / "home"))


@pytest.fixture
def make_project(tmp_path):
    def make(name):
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(0)
        for case in NAMES:
            Picture.fromarray(rng.integers(0, 255, (32, 40), dtype=np.uint8)).save(folder / f"{case}.png")
        (folder / "clicks.json").write_text(json.dumps({"clicks": [{"voxel": [12, 10]}, {"voxel": [22, 30], "object": 2}]}))
        return create_project(folder / "project", Settings("eyes", clicks="../clicks.json"), sorted(folder.glob("*.png")))

    return make


@pytest.fixture
def cluster():
    """A scheduler and a worker in threads of this process."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0", silence_logs=50, protocol="tcp://"
    ) as one:
        yield one


PLAN = Plan(partial(Model, DiskSegmenter(4.0), FakeStore(), "disks:0"), FakePolicy(0.25, 0))


class Slowly(FakePolicy):
    """Takes its time, but not for the first case of a worker."""

    clicks = 0

    def on_click(self, segmenter, image_slice, prompt):
        Slowly.clicks += 1
        if Slowly.clicks > 2:
            time.sleep(1)
        return super().on_click(segmenter, image_slice, prompt)


def labels_of(project):
    return {case: files.read_labels(project.folder / project.status(case).labels) for case in NAMES}


def test_a_cluster_does_what_this_machine_does(cluster, make_project):
    here, there = make_project("here"), make_project("there")
    list(on_this_machine(here.folder, NAMES, PLAN))
    outcomes = list(on_cluster(there.folder, NAMES, PLAN, cluster.scheduler_address, patience_s=20))
    assert sorted((outcome.case, outcome.state) for outcome in outcomes) == [(name, "done") for name in NAMES]
    for name, labels in labels_of(there).items():
        np.testing.assert_array_equal(labels, labels_of(here)[name])
    again = on_cluster(there.folder, NAMES, PLAN, cluster.scheduler_address, patience_s=20)
    assert {outcome.state for outcome in again} == {"left"}


def test_a_cluster_that_dies_in_the_middle_leaves_waiting_cases(cluster, make_project):
    project, done = make_project("p"), []
    plan = Plan(PLAN.build, Slowly(0.25, 0))
    results = on_cluster(project.folder, NAMES, plan, cluster.scheduler_address, patience_s=5)
    done.append(next(results).case)
    cluster.close(timeout=10)  # while the worker is at its second case, and has eight seconds to go
    with pytest.raises(SessionError, match=r"went away.*what is done stays done"):
        done.extend(outcome.case for outcome in results)
    until = time.monotonic() + 60
    while time.monotonic() < until:  # a worker that nobody listens to any more may end its case
        release(project)
        states = [project.status(name).state for name in NAMES]
        if "begun" not in states:
            break
        time.sleep(0.1)
    assert set(states) == {"done", "waiting"}
    assert all(project.status(name).state == "done" for name in done)
    list(on_this_machine(project.folder, NAMES, PLAN))
    assert {project.status(name).state for name in NAMES} == {"done"}


def test_a_cluster_without_workers_is_told(make_project):
    distributed = pytest.importorskip("distributed")
    project = make_project("p")
    bare = distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0", silence_logs=50, protocol="tcp://")
    with bare, pytest.raises(SessionError, match="it has no workers"):
        list(on_cluster(project.folder, NAMES, PLAN, bare.scheduler_address, patience_s=5))
    assert {project.status(name).state for name in NAMES} == {"waiting"}


def test_what_a_worker_cannot_begin_with_is_told(cluster, make_project):
    project = make_project("p")
    plan = Plan(PLAN.build, PLAN.policy, "gone.safetensors", 1)
    with pytest.raises(SessionError, match=r"a worker of the cluster could not begin with case .*gone\.safetensors"):
        list(on_cluster(project.folder, NAMES, plan, cluster.scheduler_address, patience_s=20))
    assert {project.status(name).state for name in NAMES} == {"waiting"}


@pytest.mark.parametrize("address", ["foo", "nonsense://x", "tcp://host", "host:port", ""])
def test_what_is_no_address_is_told_and_no_client_is_made(make_project, monkeypatch, address):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(distributed, "Client", lambda *_, **__: pytest.fail("a client was made"))
    with pytest.raises(SessionError, match=r"cannot be reached .*expected the address of a scheduler"):
        list(on_cluster(make_project("p").folder, NAMES, PLAN, address))


def test_a_cluster_that_is_not_there_is_told(make_project):
    pytest.importorskip("distributed")
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SessionError, match="cannot be reached") as refused:
        list(on_cluster(make_project("p").folder, NAMES, PLAN, f"tcp://127.0.0.1:{port}", patience_s=1))
    assert "expected the address of a scheduler" in str(refused.value)


def test_without_dask_there_is_no_cluster(make_project, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SessionError, match=r"not installed; expected pip install '\.\[cluster\]'"):
        list(on_cluster(make_project("p").folder, NAMES, PLAN, "tcp://127.0.0.1:1"))


def test_a_process_that_dies_is_told(make_project):
    project = make_project("p")
    with pytest.raises(SessionError, match="one of the processes died"):
        list(on_this_machine(project.folder, NAMES, Plan(partial(os._exit, 3), PLAN.policy), jobs=2))
    assert {project.status(name).state for name in NAMES} == {"waiting"}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that interrupts")
def test_an_interrupt_ends_all_processes_at_once(make_project):
    def interrupt(*_):
        raise KeyboardInterrupt

    project, before = make_project("p"), set(multiprocessing.active_children())
    usual = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 4)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(on_this_machine(project.folder, NAMES, Plan(partial(time.sleep, 120), PLAN.policy), jobs=2))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    assert time.monotonic() - began < 100, "it waited for what the processes do, which takes 120 seconds"
    assert set(multiprocessing.active_children()) <= before
    assert {project.status(name).state for name in NAMES} == {"waiting"}
