"""Offline training with simulated clicks: one recipe file in, one weights file out.

What the network is asked in every step, and what its answer is worth, is `exercises`.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import pickle
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import lightning_fabric
import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from napari_apprentice import exercises
from napari_apprentice.exercises import Exercises
from napari_apprentice.foreign import load_foreign
from napari_apprentice.guidance import WindowClick, click_maps
from napari_apprentice.importance import memory_aware_synapses
from napari_apprentice.losses import LOSSES
from napari_apprentice.networks import build, config_of, configuration
from napari_apprentice.optimisers import OPTIMISERS, optimisers
from napari_apprentice.samples import MIN_OBJECT_PX, VIEWS, Drawn, SampleStream, draw_sample, has_objects, held_out_scenes, real_scenes
from napari_apprentice.synthetic import Scene, scene
from napari_apprentice.training_clicks import a_pixel
from napari_apprentice.types import RecipeError, WeightsError, WriteError
from napari_apprentice.weights import load_weights, save_weights

__all__ = ["Recipe", "add_importance", "read_recipe", "train"]


@dataclass(frozen=True)
class Recipe(Exercises):
    """All that decides the weights, apart from the data folder; what `exercises.Exercises` says, too.

    Attributes
    ----------
    network, network_size, config : what to build: a name, one of the sizes of that network (empty for "small"), and values that differ
        from that size (see `networks.configuration`)
    seed : of everything that is random
    steps, learning_rate, weight_decay, warmup : AdamW under one cosine cycle over all steps
    decay : share of the steps, at the end, over which the rate falls in a straight line instead, from what it was all the time; 0 for the
        cosine
    optimiser, muon_rate : "adamw" for all weights, or "muon" for the kernels of hidden layers, at that rate, and AdamW for the others
    stop_after : end after so many steps, before the cycle is over; 0 for never
    sizes : ``(working size, batch)`` pairs, one drawn for every step
    views : kinds of windows: (chance, least, largest extent of the object over the window's side)
    synthetic : share of procedural samples
    sets : training set -> relative share of the real samples; a set whose share is 0 is left out, also where a base names it
    held_out : share of the cases of every set that is only scored, never learnt from
    examples : chances of 0, 1, 2, ... examples beside every image of a batch, for a network that reads them
    restyled : share of the samples whose look a small random network changes, as if another device had taken them
    borders : share of the objects that are drawn wider or tighter than they are, as by another hand, where there are no examples; those
        that have some are anyway, in the same way as they
    strangers : share of the objects with examples of which all examples show something else
    average : decay of the exponential moving average of the weights
    workers : processes that make samples
    report_every, save_every : in steps
    precision : as Lightning Fabric names it: "32-true", "bf16-mixed" or "16-mixed"; the weights are in full precision whichever it is
    start_from : recipe of the stage before, beside this one; its weights are looked for, or else trained first, in the folder of the
        output (``NAME.toml`` makes ``NAME.safetensors``); empty to start from random weights
    only : the part of the network that is trained, by the beginning of its weights' names; empty for all of it
    foreign : file of a backbone's weights from elsewhere, beside this recipe (see `foreign`); empty for none
    importance : samples that tell how much every weight matters (see `importance.memory_aware_synapses`); 0 leaves that out of the file
    """

    network: str = "unet"
    network_size: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 1
    steps: int = 6000
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-2
    warmup: int = 200
    decay: float = 0.0
    optimiser: str = "adamw"
    muon_rate: float = 0.02
    stop_after: int = 0
    sizes: tuple[tuple[int, int], ...] = ((128, 16),)
    views: tuple[tuple[float, float, float], ...] = VIEWS
    synthetic: float = 0.5
    sets: dict[str, float] = field(default_factory=dict)
    held_out: float = 0.1
    examples: tuple[float, ...] = (1.0,)
    restyled: float = 0.0
    borders: float = 0.0
    strangers: float = 0.0
    average: float = 0.998
    workers: int = 1
    report_every: int = 500
    save_every: int = 250
    precision: str = "32-true"
    start_from: str = ""
    only: str = ""
    foreign: str = ""
    importance: int = 200


def read_recipe(path: Path | str) -> Recipe:
    """The recipe of a TOML file whose keys are the attributes of `Recipe`.

    One more key, ``base``, names another recipe, beside this one: what this one does not say is taken from there, tables key by key.

    Raises
    ------
    RecipeError : the file cannot be read, says nothing, or names something unknown
    """
    values: dict[str, Any] = {}
    for file in reversed(_with_bases(Path(path))):
        for name, value in tomllib.loads(file.read_text("utf-8-sig")).items():
            old = values.get(name)
            values[name] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
    values.pop("base", None)
    if not values:
        raise RecipeError(f"the recipe {path} is empty; expected one that says what to train, such as its network or its steps")
    known = {f.name for f in fields(Recipe)}
    if unknown := sorted(set(values) - known):
        raise RecipeError(f"the recipe {path} names {', '.join(unknown)}; expected only {', '.join(sorted(known))}")
    plain = asdict(Recipe())
    for name, value in values.items():
        kind = type(plain[name])
        if kind is float and type(value) is int:
            value = float(value)
        if kind is tuple:
            value = _tupled(value)
        if type(value) is not kind:
            raise RecipeError(f"the recipe {path} gives {name} = {value!r}; expected {_KINDS[kind]}, such as {plain[name]!r}")
        values[name] = value
    recipe = Recipe(**values)
    if said := _complaint(recipe):
        raise RecipeError(f"the recipe {path} {said}")
    return replace(recipe, sets={name: share for name, share in recipe.sets.items() if share})


def _with_bases(path: Path) -> list[Path]:
    """The file of a recipe, that of its base, and so on."""
    files: list[Path] = []
    file: Path | None = path
    while file is not None:
        if file.resolve() in [other.resolve() for other in files]:
            raise RecipeError(f"the recipe {path} is a base of itself, by way of {files[-1]}; expected a base that ends somewhere")
        files.append(file)
        try:
            base = tomllib.loads(file.read_text("utf-8-sig")).get("base", "")
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"the recipe {file} cannot be read ({error}); expected a TOML file") from error
        if not isinstance(base, str):
            raise RecipeError(f"the recipe {file} gives base = {base!r}; expected the name of a recipe beside it")
        file = file.parent / base if base else None
    return files


_KINDS = {int: "a whole number", float: "a number", str: "a text", tuple: "a list", dict: "a table"}
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")  # the others of Lightning Fabric are about the weights, too
_LARGEST_SEED = 2**32 - 1


def _complaint(recipe: Recipe) -> str:
    """What is wrong with the values of a recipe, each alone of the right type; empty if nothing is."""
    for name in ("steps", "report_every", "save_every"):
        if getattr(recipe, name) < 1:
            return f"gives {name} = {getattr(recipe, name)}; expected 1 or more"
    for name in ("learning_rate", "muon_rate", "weight_decay", "warmup", "stop_after", "workers", "dice_weight", "iou_weight", "seed"):
        if not 0 <= getattr(recipe, name) < math.inf:
            return f"gives {name} = {getattr(recipe, name)}; expected 0 or a finite number above"
    if recipe.seed > _LARGEST_SEED:
        return f"gives seed = {recipe.seed}; expected at most {_LARGEST_SEED}"
    if recipe.precision not in _PRECISIONS:
        return f"gives precision = {recipe.precision!r}; expected one of {', '.join(_PRECISIONS)}"
    shares = {
        "synthetic": recipe.synthetic,
        "held_out": recipe.held_out,
        "average": recipe.average,
        "decay": recipe.decay,
        "given": recipe.given,
        "careless": recipe.careless,
        "boxed": recipe.boxed,
        "restyled": recipe.restyled,
        "borders": recipe.borders,
        "strangers": recipe.strangers,
    }
    for name, value in shares.items():
        if not 0 <= value <= 1:
            return f"gives {name} = {value}; expected a share between 0 and 1"
    if recipe.optimiser not in OPTIMISERS:
        return f"gives optimiser = {recipe.optimiser!r}; expected {' or '.join(OPTIMISERS)}"
    if recipe.importance < 0:
        return f"gives importance = {recipe.importance}; expected 0 or a number of samples"
    if recipe.start_from and Path(recipe.start_from).suffix != ".toml":
        return f"starts from {recipe.start_from!r}; expected the .toml recipe of the stage before"
    if recipe.start_from and recipe.foreign:
        return f"starts from {recipe.start_from!r} and from the foreign weights {recipe.foreign!r}; expected one of them"
    try:
        with torch.random.fork_rng(devices=()):
            config: Any = build(recipe.network, recipe.config, recipe.network_size).config
        click_maps([WindowClick(0, 0, True)], (1, 1), config.guidance, config.disk_radius_px)
    except WeightsError:
        raise
    except Exception as error:  # whatever a constructor makes of such values
        usual = configuration(recipe.network, size=recipe.network_size)
        return (
            f"gives config = {recipe.config}, of which no network can be made ({_short(error)}); expected values such as those of {usual}"
        )
    if not recipe.sizes or any(not _pair(pair) or pair[0] % config.stride for pair in recipe.sizes):
        return f"gives sizes = {recipe.sizes}; expected pairs of a working size, a multiple of {config.stride}, and a batch of 1 or more"
    if not _numbers(recipe.rounds) or min(recipe.rounds) < 0 or sum(recipe.rounds) <= 0:
        return f"gives rounds = {recipe.rounds}; expected chances of 0, 1, 2, ... rounds, not all of them 0"
    if not _numbers(recipe.examples) or min(recipe.examples) < 0 or sum(recipe.examples) <= 0:
        return f"gives examples = {recipe.examples}; expected chances of 0, 1, 2, ... examples, not all of them 0"
    if sum(recipe.examples[1:]) and not getattr(config, "recall", 0):
        return f"gives examples = {recipe.examples} to a network that reads none; expected one with recall, or chances of 0 examples alone"
    if recipe.only.startswith("recall") and recipe.examples[0]:
        return f"trains what reads examples alone, with examples = {recipe.examples}; expected no chance of 0, which teach it nothing"
    if not recipe.views or any(not _numbers(view, 3) or not 0 < view[1] <= view[2] or view[0] < 0 for view in recipe.views):
        return f"gives views = {recipe.views}; expected triples of a chance, a least and a largest extent above 0"
    if not sum(view[0] for view in recipe.views):
        return f"gives views = {recipe.views}; expected chances that are not all of them 0"
    if unknown := sorted({recipe.loss or "nfl", *recipe.terms} - set(LOSSES)):
        return f"names the losses {', '.join(unknown)}; expected only {', '.join(LOSSES)}"
    if not _numbers(tuple(recipe.terms.values()) or (1,)) or min(recipe.terms.values(), default=1) <= 0:
        return f"gives terms = {recipe.terms}; expected a weight above 0 for each"
    if not _numbers(tuple(recipe.sets.values()) or (1,)) or min(recipe.sets.values(), default=0) < 0:
        return f"gives sets = {recipe.sets}; expected a share of 0 or more for each"
    if not recipe.synthetic and not any(recipe.sets.values()):
        return "gives synthetic = 0 and names no sets; expected one of the two, as there is nothing to learn from"
    return ""


def _numbers(values: Any, count: int | None = None) -> bool:
    """Whether it is a tuple of finite numbers: ``count`` of them, or one and more."""
    there = isinstance(values, tuple) and all(type(v) in (int, float) and -math.inf < v < math.inf for v in values)
    return there and (len(values) == count if count else len(values) > 0)


def _pair(values: Any) -> bool:
    """Whether it is a tuple of two whole numbers from 1."""
    return isinstance(values, tuple) and len(values) == 2 and all(type(v) is int and v > 0 for v in values)


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# --- the loop ---------------------------------------------------------------------------------------------------------------------------


def _share(recipe: Recipe, step: int) -> float:
    """Of the full learning rate: linear warm-up, then half a cosine down to nothing, or a straight line at the end."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    if recipe.decay:
        return min(1.0, max(recipe.steps - step, 0) / (recipe.decay * recipe.steps))
    share = (step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def _held_out_batch(folder: Path | None, recipe: Recipe, size: int, per_set: int = 10) -> tuple[Tensor, Tensor]:
    """A fixed batch of objects that training never sees: held-out cases of every set, and procedural scenes of other seeds."""
    rng = np.random.default_rng([recipe.seed, 99])
    scenes: dict[str, list[Scene]] = {"synthetic": [scene(10_000_000 + i) for i in range(per_set)]}
    if folder is not None and recipe.held_out > 0:
        scenes |= held_out_scenes(folder, list(recipe.sets), recipe.held_out, recipe.seed)
    found = []
    for of_set in scenes.values():
        tries, mine = 0, 0
        while of_set and mine < per_set and tries < 20 * per_set:
            tries += 1
            sample = draw_sample(rng, of_set[int(rng.integers(len(of_set)))], size, vary=False)
            if sample is not None:
                found.append(sample)
                mine += 1
    return torch.stack([s.image for s in found]), torch.stack([s.target for s in found])


def _score(network: nn.Module, images: Tensor, targets: Tensor, clicks: int = 5) -> list[float]:
    """Mean held-out IoU after 1, 2, ... ``clicks`` clicks in the middle of the larger error."""
    rng = np.random.default_rng(0)
    device = next(network.parameters()).device
    totals = np.zeros(clicks)
    encode: Any = network.encode
    for image, target in zip(images.split(16), targets.split(16), strict=True):
        image, target = image.to(device), target.to(device)
        first = []
        for truth in target[:, 0].cpu().numpy() > 0.5:
            at = a_pixel(rng, truth, 0.98)
            first.append([WindowClick(*at, True)] if at is not None else [])
        with torch.no_grad():
            features = encode(image)
        _, masks = exercises.corrected(network, features, target, first, clicks, rng, 0.98)
        totals += [float(exercises.iou(mask, target).sum()) for mask in masks]
    return list(totals / len(images))


class _Average:
    """Exponential moving average of a network's weights."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in network.state_dict().items()}

    def update(self, network: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                self.weights[key].lerp_(value.detach(), 1 - decay)
            else:  # how many batches a normalisation has seen
                self.weights[key].copy_(value)


def train(
    recipe_path: Path | str,
    data_dir: Path | str | None,
    out: Path | str,
    *,
    resume: bool = False,
    device: str = "auto",
    threads: int | None = None,
) -> Path:
    """Train a network by a recipe and write its averaged weights.

    Parameters
    ----------
    recipe_path : TOML file, see `Recipe`
    data_dir : folder that holds the recipe's sets as sub-folders; None if it names none
    out : the .safetensors file to write; beside it ``.csv`` with the course of training and, until the end, ``.resume``
    resume : go on from ``.resume`` if it is there; else there has to be none
    device : "auto", "cpu", "cuda" or "mps"
    threads : CPU threads; None leaves PyTorch's choice

    Raises
    ------
    RecipeError : the recipe, or the data that it names, cannot be used; or an earlier run is to be gone on with
    WriteError : what training has come to cannot be written
    """
    recipe, out = read_recipe(recipe_path), Path(out)
    _check_stages(Path(recipe_path), out)
    if not resume and (left := out.with_suffix(".resume")).exists():
        raise RecipeError(
            f"an earlier run stopped{_step_in(left)} and left {left}; expected --resume to go on, or that file removed to begin anew"
        )
    folder = Path(data_dir) if data_dir is not None else None
    if recipe.sets and folder is None:
        raise RecipeError(f"the recipe names the sets {', '.join(recipe.sets)}, but no --data arrived; expected the folder that holds them")
    if recipe.sets and folder is not None and not folder.is_dir():
        raise RecipeError(f"the recipe names the sets {', '.join(recipe.sets)}, but {folder} is no folder; expected one that holds them")
    if threads:
        torch.set_num_threads(threads)
    if recipe.start_from and not _weights_of(recipe.start_from, out).exists():
        before = Path(recipe_path).parent / recipe.start_from
        train(before, data_dir, _weights_of(recipe.start_from, out), resume=resume, device=device, threads=threads)
    fabric = lightning_fabric.Fabric(accelerator=device, devices="auto" if device != "cpu" else 1, precision=recipe.precision)
    fabric.launch()
    fabric.seed_everything(recipe.seed)
    foreign = Path(recipe_path).parent / recipe.foreign if recipe.foreign else None
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in _with_bases(Path(recipe_path)))).hexdigest()[:12]
    return _Run(recipe, folder, out, fabric, digest, foreign).finish(resume)


def _weights_of(stage: str, out: Path) -> Path:
    """Where the weights of an earlier stage lie."""
    return out.parent / Path(stage).with_suffix(".safetensors").name


def _check_stages(path: Path, out: Path) -> None:
    """Refuse a recipe that starts from itself, by way of stages that are yet to be trained, and to replace weights that one starts from."""
    stages = [path]
    while before := read_recipe(stages[-1]).start_from:
        stage, weights = stages[-1].parent / before, _weights_of(before, out)
        if stage.resolve() in [other.resolve() for other in stages]:
            raise RecipeError(f"the recipe {path} starts from itself, by way of {stages[-1]}; expected a first stage that starts from none")
        if weights.resolve() == out.resolve():
            raise RecipeError(
                f"{out} was asked for, where the weights of {before} lie, which {stages[-1]} starts from; expected another file"
            )
        if weights.exists():
            return
        stages.append(stage)


def _step_in(left: Path) -> str:
    """Where an earlier run stopped, if that can be read."""
    with suppress(Exception):
        return f" at step {int(torch.load(left, map_location='cpu', weights_only=True)['step'])}"
    return ""


class _Run:
    """One training run: what it needs, and the loop."""

    def __init__(
        self, recipe: Recipe, folder: Path | None, out: Path, fabric: lightning_fabric.Fabric, digest: str, foreign: Path | None = None
    ) -> None:
        self.recipe, self.folder, self.out, self.fabric, self.digest = recipe, folder, out, fabric, digest
        self.resume_path = out.with_suffix(".resume")
        network = build(recipe.network, recipe.config, recipe.network_size)
        if recipe.start_from:
            before = load_weights(_weights_of(recipe.start_from, out)).network
            _go_on_from(network, before, recipe.start_from)
        if foreign:
            load_foreign(network, foreign)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.startswith(recipe.only))
        if not any(p.requires_grad for p in network.parameters()):
            raise RecipeError(
                f"the recipe trains only what is called {recipe.only!r}, but the network has no such part; expected one of its parts"
            )
        self.plain, self.network = network, fabric.setup_module(network)
        rates = {"adamw": recipe.learning_rate, "muon": recipe.muon_rate}
        adamw, self.kernels = optimisers(network, recipe.optimiser, rates, recipe.weight_decay)
        every = [adamw] if self.kernels is None else [adamw, self.kernels.optimiser]
        self.optimisers = [fabric.setup_optimizers(one) for one in every]
        for name in ("encode", "decode", "recollect"):
            if hasattr(self.network, "mark_forward_method") and hasattr(network, name):
                self.network.mark_forward_method(name)
        self.average = _Average(self.plain, recipe.average)
        self.step, self.spent_s = 0, 0.0
        self.losses: list[float] = []  # since the newest report

    def save(self) -> None:
        self.check_finite()
        state = {
            "step": self.step,
            "spent_s": self.spent_s,
            "network": self.plain.state_dict(),
            "average": self.average.weights,
            "optimisers": [one.state_dict() for one in self.optimisers],
            "losses": self.losses,
            "recipe": self.digest,
        }
        temporary = self.resume_path.with_suffix(".writing")
        try:
            torch.save(state, temporary)
            os.replace(temporary, self.resume_path)
        except (RuntimeError, OSError) as error:  # PyTorch has no OSError for a full disk
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise WriteError(
                f"step {self.step} cannot be written to {self.resume_path} ({_short(error)}); "
                f"expected a writable folder with room (what was written before stays, for --resume)"
            ) from error

    def check_finite(self) -> None:
        """Refuse to write weights that are not numbers any more."""
        if broken := [name for name, value in self.average.weights.items() if not bool(value.isfinite().all())]:
            raise RecipeError(
                f"training came to weights that are not finite by step {self.step} ({broken[0]}), which are not written; "
                f"expected a recipe that does not lead there, perhaps a learning_rate below {self.recipe.learning_rate:g}"
            )

    def load(self) -> None:
        try:
            state = torch.load(self.resume_path, map_location=self.fabric.device, weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise RecipeError(
                f"{self.resume_path} is damaged ({error}); expected what an earlier run wrote; remove it to start anew"
            ) from error
        if not isinstance(state, dict) or state.get("recipe") != self.digest or len(state.get("optimisers", ())) != len(self.optimisers):
            raise RecipeError(f"{self.resume_path} belongs to another recipe; expected the one it was started with")
        self.plain.load_state_dict(state["network"])
        self.average.weights = state["average"]
        for one, its in zip(self.optimisers, state["optimisers"], strict=True):
            one.load_state_dict(its)
        self.step, self.spent_s, self.losses = int(state["step"]), float(state["spent_s"]), list(state.get("losses", ()))

    @cached_property
    def scenes(self) -> Mapping[str, Sequence[Scene]]:
        """What real samples are drawn from, by set."""
        return _scenes(self.recipe, self.folder)

    def batches(self) -> Any:
        recipe = self.recipe
        seed = recipe.seed + 1000 * self.fabric.global_rank
        stream = SampleStream(
            self.scenes,
            recipe.sets,
            recipe.synthetic,
            recipe.sizes,
            seed,
            self.step,
            views=recipe.views,
            examples=recipe.examples,
            restyled=recipe.restyled,
            borders=recipe.borders,
            strangers=recipe.strangers,
        )
        loader = DataLoader(
            stream, batch_size=None, num_workers=recipe.workers, prefetch_factor=4 if recipe.workers else None, persistent_workers=False
        )
        return iter(self.fabric.setup_dataloaders(loader))

    def advance(self, drawn: Drawn, rng: np.random.Generator) -> float:
        """One step on one batch; its loss."""
        recipe = self.recipe
        share = _share(recipe, self.step)
        for group in (group for one in self.optimisers for group in one.param_groups):
            group["lr"] = group["full"] * share
        image, target = drawn.image, drawn.target
        with self.fabric.autocast():  # Fabric does so in `forward` alone, which is not what is called here
            features = self.network.encode(image)
            known = exercises.recollected(self.network, drawn, rng)
            asked = exercises.asked(self.network, recipe, features, target, rng, known)
            torch.manual_seed(int(rng.integers(2**31)))  # what a network draws is the same after a --resume
            output = exercises.answered(self.network, features, asked.guidance, asked.previous, known)
        loss = exercises.loss_of(self.plain, output, target, asked, recipe)
        self.network.zero_grad()
        self.fabric.backward(loss)
        if self.kernels is not None:
            self.kernels.take_gradients()
        for one in self.optimisers:
            self.fabric.clip_gradients(self.network, one, max_norm=1.0, error_if_nonfinite=False)
            one.step()
        self.average.update(self.plain, self.step)
        return float(loss.detach())

    def held_out(self, images: Tensor, targets: Tensor) -> list[float]:
        """IoU of the averaged weights."""
        averaged = build(*config_of(self.plain)).to(self.fabric.device).eval()
        averaged.load_state_dict(self.average.weights)
        return _score(averaged, images, targets)

    def finish(self, resume: bool) -> Path:
        """Run to the last step and write the weights."""
        recipe = self.recipe
        if resume and self.resume_path.exists():
            self.load()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        images, targets = _held_out_batch(self.folder, recipe, recipe.sizes[0][0])
        last = min(recipe.steps, recipe.stop_after or recipe.steps)
        batches = self.batches() if self.step < last else iter(())
        log_path = self.out.with_suffix(".csv")
        rows = _rows_until(self.step, log_path)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"), TimeElapsedColumn(), TimeRemainingColumn())
        with log_path.open("w", newline="") as file, Progress(*columns) as progress:
            log = csv.writer(file)
            log.writerow(["step", "seconds", "loss", "rate", "iou@1", "iou@2", "iou@3", "iou@4", "iou@5"])
            log.writerows(rows)
            file.flush()
            task = progress.add_task("train", total=last, completed=self.step, said="")
            began = time.monotonic() - self.spent_s
            said = loss = ""
            while self.step < last:
                rng = np.random.default_rng([recipe.seed, self.step, self.fabric.global_rank, 7])
                self.losses.append(self.advance(Drawn(*next(batches)), rng))
                self.step += 1
                self.spent_s = time.monotonic() - began
                if self.step % recipe.report_every == 0 or self.step == last:
                    ious = self.held_out(images, targets)
                    said = f"held-out IoU@1/3/5 {ious[0]:.3f}/{ious[2]:.3f}/{ious[4]:.3f}"
                    log.writerow(
                        [
                            self.step,
                            round(self.spent_s),
                            f"{np.mean(self.losses):.4f}",
                            f"{recipe.learning_rate * _share(recipe, self.step):.2e}",
                            *(f"{v:.4f}" for v in ious),
                        ]
                    )
                    file.flush()
                    self.losses = []
                if self.step % recipe.save_every == 0:
                    self.save()
                if self.losses:
                    loss = f"loss {np.mean(self.losses[-50:]):.3f}"
                progress.update(task, completed=self.step, said=f"{loss} {said}")
        self.check_finite()
        self.plain.load_state_dict(self.average.weights)
        self.plain.requires_grad_(True)
        facts = {"recipe": asdict(recipe), "recipe_digest": self.digest, "seconds": round(self.spent_s), "steps": self.step}
        save_weights(self.plain.eval(), self.out, facts, _importance(self.plain, recipe, self.scenes))
        self.resume_path.unlink(missing_ok=True)
        return self.out


def _rows_until(step: int, log: Path) -> list[list[str]]:
    """What an earlier run reported up to the step that it is gone on from, without the names of the columns: the rest is done again."""
    if not step or not log.exists():
        return []
    with log.open(newline="") as file:
        return [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) <= step]


def _go_on_from(network: nn.Module, before: nn.Module, recipe: str) -> None:
    """Give a network the weights of the stage before, from which it may only differ by parts that it has besides."""
    old, new = before.state_dict(), network.state_dict()
    if type(before) is not type(network) or any(key not in new or new[key].shape != value.shape for key, value in old.items()):
        raise RecipeError(f"the recipe starts from {recipe}, which trains another network; expected the same network, or a part of it")
    network.load_state_dict(new | old)


# --- what matters -----------------------------------------------------------------------------------------------------------------------


def add_importance(weights: Path | str, data_dir: Path | str | None, out: Path | str | None = None) -> Path:
    """Tell a file of weights how much every weight matters, as `train` does at its end: from samples of the recipe that made them.

    Parameters
    ----------
    weights : what `train` wrote, at any time
    data_dir : folder that holds the recipe's sets as sub-folders; None if it names none
    out : the file to write; None for ``weights`` itself

    Raises
    ------
    WeightsError : the weights cannot be read
    RecipeError : they do not say by which recipe they were trained, or its data cannot be used
    """
    loaded = load_weights(weights)
    if "recipe" not in loaded.facts:
        raise RecipeError(f"{weights} does not say by which recipe it was trained; expected weights that `apprentice train` wrote")
    known = {f.name for f in fields(Recipe)}
    recipe = Recipe(**{k: _tupled(v) for k, v in loaded.facts["recipe"].items() if k in known})
    importance = _importance(loaded.network, recipe, _scenes(recipe, Path(data_dir) if data_dir is not None else None))
    return save_weights(loaded.network, out or weights, loaded.facts, importance)


def _tupled(value: Any) -> Any:
    """Lists, as JSON has them, as the tuples of a `Recipe`."""
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _scenes(recipe: Recipe, folder: Path | None) -> Mapping[str, Sequence[Scene]]:
    found = real_scenes(folder, list(recipe.sets), recipe.held_out, recipe.seed) if folder and recipe.sets else {}
    if not recipe.synthetic and not any(found.values()):
        raise RecipeError(
            f"the sets {', '.join(recipe.sets)} hold no labelled slice to learn from; expected some, or a share of synthetic samples"
        )
    if not recipe.synthetic and not any(has_objects(scene) for of_set in found.values() for scene in of_set):
        raise RecipeError(
            f"the sets {', '.join(recipe.sets)} hold only objects of fewer than {MIN_OBJECT_PX} pixels, or that fill nearly all of their "
            f"slice; expected some between, or a share of synthetic samples"
        )
    return found


def _importance(network: nn.Module, recipe: Recipe, scenes: Mapping[str, Sequence[Scene]]) -> dict[str, Tensor]:
    """How much every weight matters to the samples of a recipe; nothing if the recipe asks for none."""
    device = next(network.parameters()).device

    def samples() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        rng = np.random.default_rng([recipe.seed, 101])
        size = recipe.sizes[0][0]
        stream = SampleStream(scenes, recipe.sets, recipe.synthetic, ((size, 1),), recipe.seed + 101, 0, views=recipe.views)
        for _, (image, target, *_) in zip(range(recipe.importance), stream, strict=False):
            features = cast(Any, network).encode(image.to(device))
            asked = exercises.asked(network, recipe, features, target.to(device), rng)
            yield image.to(device), asked.guidance, asked.previous

    return memory_aware_synapses(network, samples()) if recipe.importance else {}
