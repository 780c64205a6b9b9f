"""How long does a click take? Prediction, mid-interaction and post-interaction on slices of several sizes.

    python benchmarks/click_speed.py [--threads 2] [--device cpu] [--repeats 15] [--weights FILE] [--markdown docs/speed.md]

The image is scikit-image's retina photograph, resized; the object is its optic disc, clicked at fixed places. Reported are medians over the
repeats, after one unmeasured round; reading and resizing the image are not counted, cutting out and standardising windows are.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from skimage import data, transform

from napari_apprentice import Click, Image, load_segmenter, make_policy, report
from napari_apprentice.segmenter import NetworkSegmenter
from napari_apprentice.texts import write_text
from napari_apprentice.types import ImageSlice, Lesson, Plane, Prediction, Prompt

SIDES = (512, 1024, 4096)
DISC = (0.52, 0.17)  # centre of the optic disc in the photograph, as shares of its height and width
OFFSETS = (  # of ten clicks from there: rows, columns, positive
    *((0.0, 0.0, True), (0.03, 0.0, True), (0.0, 0.12, False), (-0.03, 0.01, True), (0.02, 0.02, True)),
    *((0.1, 0.02, False), (-0.02, -0.02, True), (-0.1, 0.0, False), (0.01, -0.03, True), (0.03, 0.1, False)),
)


def photograph(side: int) -> Image:
    """(3, side, side) uint8."""
    picture = transform.resize(data.retina(), (side, side), order=1, anti_aliasing=side < 1411, preserve_range=True)
    return Image(np.ascontiguousarray(np.moveaxis(picture.astype(np.uint8), -1, 0)), name=f"retina {side}²")


def clicks_at(side: int) -> tuple[Click, ...]:
    return tuple(Click((int((DISC[0] + dr) * side), int((DISC[1] + dc) * side)), positive) for dr, dc, positive in OFFSETS)


def median_ms(times: list[float]) -> float:
    return 1000 * statistics.median(times)


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def durations(steps: Iterator[None]) -> list[float]:
    """Seconds that each of some steps takes."""
    end = object()
    found = []
    while (began := time.perf_counter()) and next(steps, end) is not end:
        found.append(time.perf_counter() - began)
    return [*found, time.perf_counter() - began]


KINDS = {
    "first click": "first click",
    "later click": "later click",
    "first click, examples": "first click, 8 examples",
    "later click, examples": "later click, 8 examples",
    "accept, examples": "accept (recall)",
    "later click, learning": "later click, learning (mi)",
    "accept, learning": "accept, learning (pi)",
    "its longest step": "its longest step",
}
"""What is timed -> its column."""


def one_round(pixels: ImageSlice, clicks: tuple[Click, ...], weights: str | None, device: str) -> tuple[list[float], ...]:
    """Seconds of each of `KINDS`, from fresh weights and with cold caches."""
    segmenter, policy = load_segmenter(weights, device=device), make_policy("mi+pi")
    found: list[Prediction] = []
    first = [timed(lambda: found.append(segmenter.predict(pixels, Prompt(clicks[:1]))))]
    prompts = []
    later = []
    for count in range(2, len(clicks) + 1):
        prompts.append(Prompt(clicks[:count], found[-1]))
        later.append(timed(lambda: found.append(segmenter.predict(pixels, prompts[-1]))))
    learning = [timed(lambda p=p: policy.on_click(segmenter, pixels, p)) for p in prompts]  # type: ignore[misc]
    lesson = Lesson(pixels, clicks, found[-1].mask)
    for _ in range(policy.remembered):  # a full memory to rehearse and to be judged by
        replace(policy, post_rounds=0).on_accept(segmenter, lesson)
    policy.on_accept(segmenter, lesson)  # from then on it is asked what the taught model is worth
    steps = durations(policy.learning(segmenter, lesson))
    return first, later, *by_example(segmenter, lesson, prompts), learning, [sum(steps)], [max(steps)]


def by_example(segmenter: NetworkSegmenter, lesson: Lesson, prompts: list[Prompt]) -> tuple[list[float], list[float], list[float]]:
    """Seconds of first clicks and of later ones with as many examples as are shown at most, and of an accepted object becoming one."""
    policy = make_policy("recall")
    segmenter.restore(segmenter.base)
    for _ in range(policy.examples):
        policy.on_accept(segmenter, lesson)
    accepting = [timed(lambda: policy.on_accept(segmenter, lesson))]
    segmenter.restore(replace(segmenter.snapshot(), examples=policy.examples))
    segmenter.recollected()  # as accepting does
    first = [timed(lambda: segmenter.predict(lesson.image_slice, Prompt(lesson.clicks[:1])))]
    return first, [timed(lambda p=p: segmenter.predict(lesson.image_slice, p)) for p in prompts], accepting  # type: ignore[misc]


def measure(side: int, weights: str | None, device: str, repeats: int) -> dict[str, float]:
    """Median milliseconds of each of `KINDS`."""
    pixels = photograph(side).slice(Plane(0, 0))
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repeat in range(repeats + 1):
        fresh = ImageSlice(pixels.data, pixels.spacing, pixels.plane, (repeat, side))
        for kind, values in zip(KINDS, one_round(fresh, clicks_at(side), weights, device), strict=True):
            times[kind] += values if repeat else []
    return {kind: median_ms(values) for kind, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--weights")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load_s = min(timed(lambda: load_segmenter(options.weights, device=options.device)) for _ in range(5))
    host = report.host(report.machine(options.device, options.threads))  # before the page is written, which is a change itself
    rows = []
    for side in track(SIDES, "Sizes", console=Console(stderr=True)):
        found = measure(side, options.weights, options.device, options.repeats)
        rows.append({"slice": f"{side}² RGB"} | {KINDS[kind]: f"{ms:.0f} ms" for kind, ms in found.items()})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    command = f"python benchmarks/click_speed.py --threads {options.threads} --device {options.device} --repeats {options.repeats}"
    text = "\n".join(
        [
            "# Seconds per click",
            "",
            f"Written by `{command}`.",
            "",
            *host,
            "- Medians. A click that is made while an accepted mask teaches waits for one step at most.",
            f"- Loading the weights takes {load_s:.2f} s (best of 5); peak memory of the process over this whole run is {peak:.2f} GiB.",
            "",
            report.table(rows),
            "",
        ]
    )
    print(text)
    if options.markdown:
        write_text(options.markdown, text)


if __name__ == "__main__":
    main()
