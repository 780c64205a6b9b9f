"""How sure is the network, and how sure should it be? Calibration of its probabilities and of the IoU that it predicts.

    python benchmarks/calibration.py SET_DIR [SET_DIR ...] [--fit TRAINING_SET_DIR ...] [--limit 16] [--jobs 2]
        [--markdown docs/calibration.md]

Robot `centre` clicks on every object; after 1, 3, 5 and 10 clicks the probabilities are compared with the truth. With ``--fit``, a
temperature and a straight line for the predicted IoU are fitted to the held-out cases of training sets. The program divides by these
temperatures where it shows probabilities (`calibration.temperature`), and uses the line after one click alone, for what runs tell of their
answers (`expectation`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from scipy.stats import spearmanr

from napari_apprentice import load_segmenter, report
from napari_apprentice.benchmark import trace
from napari_apprentice.calibration import Reliability, fit_temperature, negative_log_likelihood, reliability
from napari_apprentice.datasets import LabelledSet, ObjectRef, open_set
from napari_apprentice.samples import split_cases
from napari_apprentice.simulation import make_robot
from napari_apprentice.texts import write_text
from napari_apprentice.types import ApprenticeError, ImageSlice, LearningReport, Lesson, Prediction, Prompt, RecipeError, Segmenter

CLICKS = (1, 3, 5, 10)
HELD_OUT = 0.1  # as in recipes/default.toml
SAMPLED_PX = 4000  # of an object's box: so that every object weighs the same, and all fit into memory

Mask = npt.NDArray[np.bool_]


class Witness:
    """Never learns, and keeps what was predicted (implements `types.AdaptationPolicy`)."""

    def __init__(self) -> None:
        self.predictions: list[Prediction] = []

    def on_click(self, segmenter: Segmenter, image_slice: ImageSlice, prompt: Prompt) -> Prediction:
        self.predictions.append(segmenter.predict(image_slice, prompt))
        return self.predictions[-1]

    def learning(self, segmenter: Segmenter, lesson: Lesson) -> Generator[None, None, LearningReport]:
        yield from ()
        return LearningReport()

    def practising(self, segmenter: Segmenter, most: int | None = None) -> Generator[None, None, int]:
        yield from ()
        return 0


@dataclass(frozen=True, eq=False)
class Observation:
    """What was predicted of one object after some clicks, and what is true.

    Attributes
    ----------
    logits, truth : (SAMPLED_PX,) drawn from the prediction's box
    in_slice : reliability of the likelier class in the whole slice, where the prediction means background for certain outside of its box
    outside : share of the object that lies outside of the box
    score, iou : predicted and real
    """

    set: str
    clicks: int
    logits: npt.NDArray[np.float32]
    truth: Mask
    in_slice: Reliability
    outside: float
    score: float
    iou: float


def likelier(chances: npt.NDArray[Any], truth: Mask) -> Reliability:
    """Reliability of the likelier of the two classes; all pixels together weigh 1."""
    return reliability(np.maximum(chances, 1 - chances), (chances > 0.5) == truth, weight=1 / chances.size)


def observe(name: str, clicks: int, prediction: Prediction, truth: Mask, rng: np.random.Generator) -> Observation:
    inner = truth[prediction.box.slices]
    everywhere = np.zeros(truth.shape)
    everywhere[prediction.box.slices] = expit(prediction.logits.astype(np.float64))
    sampled = rng.integers(inner.size, size=SAMPLED_PX)
    return Observation(
        set=name,
        clicks=clicks,
        logits=prediction.logits.ravel()[sampled],
        truth=inner.ravel()[sampled],
        in_slice=likelier(everywhere, truth),
        outside=1 - int(inner.sum()) / int(truth.sum()),
        score=prediction.score,
        iou=int((prediction.mask & truth).sum()) / int((prediction.mask | truth).sum()),
    )


def objects_in(labelled: LabelledSet, limit: int | None, held_out: bool) -> Sequence[ObjectRef]:
    """At most ``limit``, spread evenly; of the cases that training leaves out, or of all."""
    if not held_out:
        return labelled.objects(limit=limit)
    cases = split_cases(labelled.cases, HELD_OUT)[1]
    refs = [ref for ref in labelled.objects() if ref.case in cases]
    if not refs:
        raise RecipeError(f"{labelled.name} has no held-out case among its {len(labelled.cases)}; expected at least one to fit to")
    return [refs[i] for i in np.unique(np.linspace(0, len(refs) - 1, min(limit or len(refs), len(refs))).round().astype(int))]


def observe_set(folder: Path, limit: int | None, weights: Path | None, threads: int, held_out: bool) -> list[Observation]:
    torch.set_num_threads(threads)
    segmenter, robot, labelled = load_segmenter(weights, device="cpu"), make_robot("centre"), open_set(folder)
    rng, found = np.random.default_rng(0), []
    for ref in objects_in(labelled, limit, held_out):
        witness, truth = Witness(), labelled.truth(ref)
        trace(robot, segmenter, witness, labelled.slice(ref), truth, max_clicks=max(CLICKS), targets=(1.0,))
        for clicks in CLICKS:  # a perfect mask gets no further click
            prediction = witness.predictions[min(clicks, len(witness.predictions)) - 1]
            found.append(observe(labelled.name, clicks, prediction, truth, rng))
    return found


def observe_all(folders: Sequence[Path], options: argparse.Namespace, held_out: bool) -> list[Observation]:
    work = partial(observe_set, limit=options.limit, weights=options.weights, threads=options.threads, held_out=held_out)
    if options.jobs <= 1:
        return [one for folder in folders for one in work(folder)]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        return [one for found in pool.map(work, folders) for one in found]


@dataclass(frozen=True)
class Fit:
    """Logits are to be divided by ``temperature``; the real IoU is about ``slope`` · predicted + ``offset``."""

    temperature: float
    slope: float
    offset: float

    def chances(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        return np.asarray(expit(logits.astype(np.float64) / self.temperature))

    def iou(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.clip(self.slope * scores + self.offset, 0, 1)


def fit_to(seen: Sequence[Observation]) -> Fit:
    scores, ious = np.array([one.score for one in seen]), np.array([one.iou for one in seen])
    slope, offset = np.polyfit(scores, ious, 1) if np.ptp(scores) > 0 else (0.0, ious.mean())
    return Fit(fit_temperature(*sampled_of(seen)), float(slope), float(offset))


def sampled_of(seen: Sequence[Observation]) -> tuple[npt.NDArray[np.float32], Mask]:
    return np.concatenate([one.logits for one in seen]), np.concatenate([one.truth for one in seen])


def groups_of(seen: Sequence[Observation]) -> Iterator[tuple[str, int, list[Observation]]]:
    """By set and clicks; then all sets together, by clicks."""
    names = list(dict.fromkeys(one.set for one in seen))
    for name in names:
        yield from ((name, clicks, [one for one in seen if (one.set, one.clicks) == (name, clicks)]) for clicks in CLICKS)
    if len(names) > 1:
        yield from (("**all sets**", clicks, [one for one in seen if one.clicks == clicks]) for clicks in CLICKS)


def pixel_cells(group: Sequence[Observation], fit: Fit | None) -> dict[str, str]:
    logits, truth = sampled_of(group)
    chances, in_slices = expit(logits.astype(np.float64)), [one.in_slice for one in group]
    cells = {
        "ECE": f"{likelier(chances, truth).expected_error:.3f}",
        "ECE of foreground": f"{reliability(chances, truth).expected_error:.3f}",
        "ECE of slice": f"{sum(in_slices[1:], in_slices[0]).expected_error:.3f}",
        "outside": f"{100 * fmean(one.outside for one in group):.1f} %",
        "NLL": f"{negative_log_likelihood(logits, truth):.3f}",
    }
    if fit is not None:
        tempered = fit.chances(logits)
        cells |= {"ECE at T": f"{likelier(tempered, truth).expected_error:.3f}"}
        cells |= {"ECE of foreground at T": f"{reliability(tempered, truth).expected_error:.3f}"}
        cells |= {"NLL at T": f"{negative_log_likelihood(logits, truth, fit.temperature):.3f}"}
    return cells


def score_cells(group: Sequence[Observation], fit: Fit | None) -> dict[str, str]:
    scores, ious = np.array([one.score for one in group]), np.array([one.iou for one in group])
    order = spearmanr(scores, ious).statistic if min(np.ptp(scores), np.ptp(ious)) > 0 else float("nan")
    cells = {
        "IoU": f"{ious.mean():.3f}",
        "predicted": f"{scores.mean():.3f}",
        "ECE": f"{reliability(scores, ious).expected_error:.3f}",
        "error": f"{np.abs(scores - ious).mean():.3f}",
        "rank correlation": f"{order:.2f}",
    }
    if fit is not None:
        mapped = fit.iou(scores)
        cells |= {"ECE by line": f"{reliability(mapped, ious).expected_error:.3f}", "error by line": f"{np.abs(mapped - ious).mean():.3f}"}
    return cells


def page(about: dict[str, Any], seen: Sequence[Observation], fitted: Sequence[Observation], command: str, limit: int | None) -> str:
    fits = {clicks: fit_to([one for one in fitted if one.clicks == clicks]) for clicks in CLICKS} if fitted else {}
    groups = list(groups_of(seen))
    heads = [{"set": name, "clicks": str(clicks), "objects": str(len(group))} for name, clicks, group in groups]
    spread = f"at most {limit} objects a set, spread evenly" if limit else "all objects"
    intro = [
        *report.host(about),
        f"- Weights: {about['weights']}, frozen. Robot `centre`, no object finished before its last click, {spread} in sorted order.",
        "- ECE is the expected calibration error in 15 bins of equal width (Guo et al., 2017); every object weighs the same.",
        f"- Pixels are {SAMPLED_PX} drawn from the box that a prediction covers: `ECE` of the likelier class, `ECE of foreground` of the",
        "  foreground probability, `NLL` the negative log-likelihood of a pixel.",
        "- Outside of its box a prediction means background for certain. `ECE of slice` counts these pixels too, with probability 0, which",
        "  flatters where the object is small; `outside` is the share of the object that lies there.",
        "- `error` is the mean absolute difference of predicted and real IoU, `rank correlation` is Spearman's.",
    ]
    parts = ["# How sure, and how rightly", f"Written by `{command}`.", "\n".join(intro)]
    if fits:
        parts += ["## What a correction would do", *correction(fits, fitted)]
    for title, cells in (("Probabilities of pixels", pixel_cells), ("Predicted IoU", score_cells)):
        lines = [head | cells(group, fits.get(clicks)) for head, (_, clicks, group) in zip(heads, groups, strict=True)]
        parts += [f"## {title}", report.table(lines)]
    return "\n\n".join(parts) + "\n"


def correction(fits: Mapping[int, Fit], fitted: Sequence[Observation]) -> list[str]:
    """What was fitted, by clicks and for any number of them, and how well it does where it was fitted."""
    names = ", ".join(dict.fromkeys(one.set for one in fitted))
    lines = []
    for name, group, fit in [
        *((str(clicks), [one for one in fitted if one.clicks == clicks], fit) for clicks, fit in fits.items()),
        ("any", fitted, fit_to(fitted)),
    ]:
        pixels, scores = pixel_cells(group, fit), score_cells(group, fit)
        line = {"clicks": name, "T": f"{fit.temperature:.2f}", "line": f"{fit.slope:.2f} · predicted {fit.offset:+.2f}"}
        line |= {key: f"{pixels[key]} → {pixels[f'{key} at T']}" for key in ("ECE", "ECE of foreground", "NLL")}
        lines.append(line | {f"{key} of IoU": f"{scores[key]} → {scores[f'{key} by line']}" for key in ("ECE", "error")})
    words = [
        f"Fitted to {len(fitted) // len(CLICKS)} objects of the held-out cases of {names};",
        "of it the program uses the temperatures, for the probabilities that it shows (*More > how sure*), and the line after one click,",
        "for what runs tell.",
        "T is the temperature by which logits are divided, which changes no mask; the line gives the IoU that is likely, within 0 and 1.",
        "The figures are those of these objects, before → after. In the tables below, `at T` and `by line` take the T and the line of",
        "the same number of clicks.",
    ]
    return ["\n".join(words), report.table(lines)]


def run(options: argparse.Namespace) -> None:
    segmenter = load_segmenter(options.weights, device="cpu")
    about = report.machine("cpu", options.threads) | {"weights": f"{segmenter.name} {segmenter.loaded.digest}"}
    fitted = observe_all(options.fit, options, held_out=True)
    seen = observe_all(options.sets, options, held_out=False)
    words = "python benchmarks/calibration.py SET_DIR ..." + (" --fit TRAINING_SET_DIR ..." if fitted else "")
    text = page(about, seen, fitted, words + (f" --limit {options.limit}" if options.limit else ""), options.limit)
    print(text, end="")
    if options.markdown is not None:
        write_text(options.markdown, text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET_DIR")
    parser.add_argument("--fit", type=Path, nargs="+", default=[], metavar="TRAINING_SET_DIR")
    parser.add_argument("--weights", type=Path, metavar="FILE")
    parser.add_argument("--limit", type=int, metavar="N")
    parser.add_argument("--jobs", type=int, default=1, metavar="N")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    try:
        run(options)
    except ApprenticeError as error:
        print(f"calibration: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
