"""Can one work in a volume that is larger than memory? Seconds to open it, seconds per click, memory, and what scrolling waits for.

    python benchmarks/large_volume.py [--clicks 200] [--learning 200] [--others 20] [--threads 2] [--weights FILE]
        [--markdown docs/large-volumes.md]

The volume is a zarr array of 2000 × 4096 × 4096 voxels that is on no disk: whoever reads a chunk has it made at that moment (cells of about
140 pixels, 32 layers high, in noise). Each session is measured in a process of its own, with the shipped weights and a journal on the disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import MemoryStore

from napari_apprentice import report
from napari_apprentice.types import DEFAULT_POLICY, Click

SHAPE = (2000, 4096, 4096)
LAYOUTS = {"slices of 1024²": (1, 1024, 1024), "bricks of 16 × 256²": (16, 256, 256), "cubes of 64³": (64, 64, 64)}
PERIOD = (32, 256, 256)  # one cell
RADIUS = (13.0, 70.0, 60.0)
CELL, GROUND, NOISE = 150, 95, 40
CLICKS_PER_OBJECT = 4
BAR = "opens in 3 s, the first mask comes in 3 s, memory stays under 2 GB over 200 clicks, scrolling never waits for the model"


# --- the volume ---


@lru_cache(maxsize=PERIOD[0])
def one_period(z: int) -> npt.NDArray[np.bool_]:
    """(256, 256) where the cell is in layer ``z`` of its period."""
    y, x = np.ogrid[: PERIOD[1], : PERIOD[2]]
    centre = [side / 2 for side in PERIOD]
    distance = ((z - centre[0]) / RADIUS[0]) ** 2 + ((y - centre[1]) / RADIUS[1]) ** 2 + ((x - centre[2]) / RADIUS[2]) ** 2
    return np.asarray(distance <= 1)


@lru_cache(maxsize=1)
def noise() -> npt.NDArray[np.uint8]:
    """A long row of noise, of which every row of the volume is a piece."""
    return np.random.default_rng(0).integers(0, NOISE, 2**22, dtype=np.uint8)


def made(start: tuple[int, ...], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The voxels of a box, which lies in whole or equal parts of a period."""
    box = np.empty(shape, np.uint8)
    rows, cols = (np.arange(first, first + size) % period for first, size, period in zip(start[1:], shape[1:], PERIOD[1:], strict=True))
    for layer in range(shape[0]):
        z = start[0] + layer
        box[layer] = np.where(one_period(z % PERIOD[0])[np.ix_(rows, cols)], CELL, GROUND)
        offset = hash((z, *start[1:])) % (noise().size - box[layer].size)
        box[layer] += noise()[offset : offset + box[layer].size].reshape(box[layer].shape)
    return box


class Generated(MemoryStore):
    """A store that makes the chunks of an array when they are read; it holds nothing but the description of the array."""

    chunks: tuple[int, ...] = ()
    read_chunks = 0

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if not key.startswith("c/"):
            return await super().get(key, prototype, byte_range)
        index = tuple(int(part) for part in key.split("/")[1:])
        self.read_chunks += 1
        start = tuple(i * side for i, side in zip(index, self.chunks, strict=True))
        return prototype.buffer.from_bytes(made(start, self.chunks).tobytes())


def volume(chunks: tuple[int, ...]) -> Any:
    store = Generated()
    store.chunks = chunks
    return zarr.create_array(store, shape=SHAPE, chunks=chunks, dtype=np.uint8, compressors=None, filters=None, fill_value=0)


# --- the user ---


def clicks(count: int) -> Iterator[tuple[Click, bool]]:
    """Clicks on cells all over the volume, a few for each, and whether the cell is finished with that."""
    rng = np.random.default_rng(1)
    offsets = ((0.0, 0.0, True), (1.25, 0.0, False), (0.0, 0.8, True), (0.0, -1.25, False))
    for _ in range(count // CLICKS_PER_OBJECT):
        z, y, x = (int(rng.integers(side // period)) * period + period // 2 for side, period in zip(SHAPE, PERIOD, strict=True))
        z += int(rng.integers(-6, 7))
        for number, (down, right, positive) in enumerate(offsets, start=1):
            voxel = (z, int(y + down * RADIUS[1]), int(x + right * RADIUS[2]))
            yield Click(voxel, positive), number == CLICKS_PER_OBJECT


def overlap(plane: npt.NDArray[Any], label: int, click: Click) -> float:
    """IoU of an object with the cell that was clicked on."""
    truth = np.zeros(plane.shape, bool)
    top, left = (v // period * period for v, period in zip(click.voxel[1:], PERIOD[1:], strict=True))
    truth[top : top + PERIOD[1], left : left + PERIOD[2]] = one_period(click.voxel[0] % PERIOD[0])
    mask = plane == label
    return float((mask & truth).sum() / (mask | truth).sum())


# --- measuring ---


Spent = tuple[float, float]
"""Seconds on the clock, and seconds of processor time of the whole process."""


@dataclass
class Times:
    """What everything took, and the largest resident memory of the process in GiB."""

    clicks: int = 0
    policy: str = DEFAULT_POLICY
    imports: Spent = (0.0, 0.0)
    opening: Spent = (0.0, 0.0)
    clicking: list[Spent] = field(default_factory=list)
    accepting: list[Spent] = field(default_factory=list)
    scroll_idle: list[Spent] = field(default_factory=list)
    scroll_busy: list[Spent] = field(default_factory=list)
    saving: Spent = (0.0, 0.0)
    resuming: Spent = (0.0, 0.0)
    iou: list[float] = field(default_factory=list)
    before_gib: float = 0.0
    peak_gib: float = 0.0
    journal_mib: float = 0.0


def timed(action: Callable[[], Any]) -> tuple[Spent, Any]:
    began, worked = time.perf_counter(), time.process_time()
    result = action()
    return (time.perf_counter() - began, time.process_time() - worked), result


def memory_gib(what: str) -> float:
    """VmRSS or VmHWM of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 2**20


class Scrolling(threading.Thread):
    """Reads planes of image and labels as a viewer does, one after the other, while another thread clicks."""

    def __init__(self, image: Any, labels: Any) -> None:
        super().__init__(daemon=True)
        self._image, self._labels, self._stopped = image, labels, threading.Event()
        self.times: list[Spent] = []

    def step(self, z: int) -> None:
        self.times.append(timed(lambda: (np.asarray(self._image[z]), self._labels[z]))[0])

    def run(self) -> None:
        z = SHAPE[0] // 3
        while not self._stopped.wait(0.05):
            self.step(z := z + 1)

    def stop(self) -> list[Spent]:
        self._stopped.set()
        self.join()
        return self.times


def worked(chunks: tuple[int, ...], policy: str, count: int, threads: int, weights: str | None) -> Times:
    """A session of so many clicks in a volume with such chunks, in a process of its own."""
    times = Times(count, policy)
    times.imports, _ = timed(lambda: __import__("napari_apprentice.assembly"))
    import torch

    from napari_apprentice import open_session, resume_session, write
    from napari_apprentice.types import Image

    torch.set_num_threads(threads)
    times.before_gib = memory_gib("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "session"
        image = volume(chunks)
        times.opening, session = timed(lambda: open_session(image, weights=weights, policy=policy, folder=kept))
        for number, (click, last) in enumerate(clicks(count)):
            times.clicking.append(timed(lambda click=click: session.add(click))[0])
            if last:
                label = session.label
                times.accepting.append(timed(session.accept)[0])
                times.iou.append(overlap(session.labels[click.voxel[0]], label, click))
                print(f"click {number + 1}: {times.accepting[-1]} {memory_gib('VmRSS'):.2f} GiB", flush=True)
            if number == count // 2:
                session.undo()
                session.redo()
        shown = Scrolling(image, session.labels.duplicate(np.uint32))
        for z in range(100, 110):
            shown.step(z)
        times.scroll_idle, shown.times = shown.times, []
        shown.start()
        for click, _ in clicks(CLICKS_PER_OBJECT * 2):
            session.add(click)
        times.scroll_busy = shown.stop()
        times.saving, _ = timed(lambda: write(Path(folder) / "labels.ome.zarr", session.labels, like=session.image))
        times.peak_gib = memory_gib("VmHWM")
        before = {z: session.labels[z] for z in np.random.default_rng(2).integers(SHAPE[0], size=10).tolist()}
        session.close()
        times.journal_mib = sum(f.stat().st_size for f in kept.glob("journal*")) / 2**20
        times.resuming, again = timed(lambda: resume_session(kept, Image(session.image.data), weights=weights))
        assert all(np.array_equal(again.labels[z], plane) for z, plane in before.items())
        again.close()
    return times


# --- telling ---


def once(spent: Spent) -> str:
    return f"{spent[0]:.2f} s ({spent[1]:.2f} s)"


def middle_and_most(several: list[Spent]) -> str:
    clock, worked = zip(*several, strict=True)
    return f"{statistics.median(clock):.2f}, at most {max(clock):.2f} s ({statistics.median(worked):.2f}, at most {max(worked):.2f} s)"


def table(found: dict[str, Times]) -> str:
    """One column a layout."""
    lines: dict[str, Callable[[Times], str]] = {
        "clicks": lambda t: str(t.clicks),
        "the model learns (policy)": lambda t: t.policy,
        "import the package and PyTorch": lambda t: once(t.imports),
        "open": lambda t: once(t.opening),
        "first mask": lambda t: once(t.clicking[0]),
        "click": lambda t: middle_and_most(t.clicking),
        "accept and learn": lambda t: middle_and_most(t.accepting),
        "read a slice, alone": lambda t: middle_and_most(t.scroll_idle),
        "read a slice while the model answers": lambda t: middle_and_most(t.scroll_busy),
        "save as OME-Zarr": lambda t: once(t.saving),
        "resume": lambda t: once(t.resuming),
        "memory after the import": lambda t: f"{t.before_gib:.2f} GiB",
        "memory, the most there ever was": lambda t: f"{t.peak_gib:.2f} GiB",
        "journal": lambda t: f"{t.journal_mib:.2f} MiB",
        "mean IoU of accepted cells": lambda t: f"{statistics.fmean(t.iou):.3f}",
    }
    return report.table([{"set": name, **{layout: tell(times) for layout, times in found.items()}} for name, tell in lines.items()])


def text(found: dict[str, Times], host: Sequence[str], command: str) -> str:
    cores = len(os.sched_getaffinity(0))
    lines = [
        "# Large volumes",
        "",
        *host,
        f"- Processors that the process may use: {cores}; processes that wanted each of them, meanwhile: {os.getloadavg()[2] / cores:.0f}.",
        f"- Written by `{command}`; zarr {report.versions('zarr')['zarr']}.",
        f"- A zarr array of {' × '.join(map(str, SHAPE))} uint8 voxels (31 GiB), whose chunks are made when they are read.",
        f"  Clicks in slices all over it, every {CLICKS_PER_OBJECT}th accepted; shipped weights; journal and labels on the disk.",
        "- Seconds on the clock, and in brackets of processor time of the whole process: what others take of the machine makes the",
        "  difference.",
        "- *Open* is `open_session`, weights included. *Read a slice* is what a viewer does: 4096² of the image (chunks that nobody",
        "  read before) and of the labels, alone and while another thread clicks, whose processor time counts, too. Memory is VmHWM.",
        f"- To be reached: {BAR}.",
        "",
        table(found).replace("| set |", "| |", 1),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=int, default=200, help="in the first session, in which the model does not learn")
    parser.add_argument("--learning", type=int, default=200, help="clicks in a session in which it does, in the same volume")
    parser.add_argument("--others", type=int, default=20, help="clicks in a session in every other layout")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    counts = f"--clicks {options.clicks} --learning {options.learning} --others {options.others}"
    sessions = {
        name: (LAYOUTS[layout], policy, count) for name, layout, policy, count in runs(options.clicks, options.learning, options.others)
    }
    found, host = {}, report.host(report.machine("cpu", options.threads))  # before the page is written, which is a change itself
    for name, session in sessions.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[name] = pool.apply(worked, (*session, options.threads, options.weights))
        written = text(found, host, f"python benchmarks/large_volume.py {counts} --threads {options.threads}")
        print(written, flush=True)
        if options.markdown:
            options.markdown.write_text(written)


def runs(count: int, learning: int, others: int) -> Iterator[tuple[str, str, str, int]]:
    """Name, layout, policy and number of clicks of every session."""
    first, *rest = LAYOUTS
    yield first, first, "none", count
    yield f"{first}, learning", first, DEFAULT_POLICY, learning
    for layout in rest:
        yield f"{layout}, learning", layout, DEFAULT_POLICY, others


if __name__ == "__main__":
    main()
