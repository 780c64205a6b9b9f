"""What a segmenter has learnt: an immutable value, where old values wait for an undo, and their form on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import unicodedata
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from napari_apprentice.guidance import WindowClick
from napari_apprentice.types import WeightsError, WriteError

__all__ = ["ENOUGH_TO_COMPARE", "Knowledge", "KnowledgeStore", "Remembered", "Shelf", "Tensors", "differ", "kind_of"]

FORMAT = "napari-apprentice-knowledge-1"

ENOUGH_TO_COMPARE = 3
"""Fewer remembered objects do not tell what things look like here."""


class Tensors(Mapping[str, Tensor]):
    """Named tensors that never change, and that can wait in a file until somebody looks at them again.

    ``stays`` : always in memory, so that they are the very same tensors for whoever compares
    """

    def __init__(self, values: Mapping[str, Tensor] | None = None, *, stays: bool = False) -> None:
        self._stays = stays
        self._values: dict[str, Tensor] | None = dict(values or {})
        self._device = next(iter(self._values.values())).device if self._values else torch.device("cpu")
        self._file: Path | None = None

    def _held(self) -> dict[str, Tensor]:
        if self._values is None:
            self._values = load_file(self._file, device=str(self._device))
        return self._values

    def __getitem__(self, name: str) -> Tensor:
        return self._held()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held())

    def __len__(self) -> int:
        return len(self._held())

    def spill(self, file: Path) -> None:
        """Let go of the memory, having written the tensors to ``file`` (bit for bit) unless they lie in one already."""
        if self._stays:
            return
        if self._values and self._file is None:
            save_file({k: v.detach().cpu().contiguous() for k, v in self._values.items()}, file)
            self._file = file
        if self._file is not None:
            self._values = None


def differ(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Whether any value is another one; what came back from a file is the same, though no longer the same tensor."""
    return any(value is not others[key] and not torch.equal(value, others[key]) for key, value in some.items())


_A_FEW = 3  # examples of a kind, from which on it needs no others


def kind_of(name: str) -> str:
    """What tells a class from others, whatever the case of its letters and however accents are written, without naming it.

    Empty for no class.
    """
    name = unicodedata.normalize("NFC", name).strip().casefold()
    return hashlib.sha256(name.encode()).hexdigest()[:12] if name else ""


@dataclass(frozen=True, eq=False)
class Remembered:
    """One accepted object as the network sees it: V views (from afar, zoomed), each (C, n, n).

    Attributes
    ----------
    images : (V, 3, n, n) standardised pixels, half precision
    targets : (V, 1, n, n) bool
    clicks : the user's clicks in the pixels of each view
    best : the best that a model in force ever reached on it: mean IoU from the first click alone, and from all clicks
    of : tells slices of one object from those of others, without naming it; empty where that is not known
    kind : tells objects of one class from those of others, without naming it (see `kind_of`); empty where it has none
    ground : (4, m, m) uint8, the pixels of a wide window (3) and what of it is the object (0 or 1); None where that was not kept
    """

    images: Tensor
    targets: Tensor
    clicks: tuple[tuple[WindowClick, ...], ...]
    best: tuple[float, float] = (0.0, 0.0)
    of: str = ""
    kind: str = ""
    ground: Tensor | None = None

    def view(self, number: int) -> Remembered:
        """The object in one of its views alone."""
        one = slice(number, number + 1)
        return replace(self, images=self.images[one], targets=self.targets[one], clicks=self.clicks[one])


@dataclass(frozen=True, eq=False)
class Knowledge:
    """All that a segmenter has learnt; immutable, and cheap to keep because equal tensors are shared.

    Attributes
    ----------
    weights : parameter name -> value
    first, second : the optimiser's moments: parameter name -> value
    steps : optimiser steps so far
    extent_log : fading sums (of values, of squares, of weights) of log(object extent / slice extent) over accepted objects: how large
        objects are here
    memory : accepted objects to rehearse and to judge by, oldest first
    examples : how many of them the network is shown with every click, if it reads examples; which, says `like`
    before_object : what was known before the object at hand, if what it teaches is for it alone (image adaptation, mid-interaction);
        None otherwise
    worth : fading sums (of values, of weights) of how much more IoU the taught model had than the untaught one on accepted objects, before
        it learnt from them
    marks : how right these weights are about each of the newest objects of the memory (IoU from the first click alone, and from all
        clicks), as far as that was found out; not kept on disk
    source_mark : the same from all clicks, mean over the procedural objects that stand for the source domain; None if it is not known
    practised : the mean weights that practice on the memory led to, in force or not, as precise as half precision; None for none
    ahead : those that its newest step led to, as precise, from which it goes on; None for none
    lead : fading sums (of values, of weights) of how much more IoU the practised weights had than the shipped ones on accepted objects,
        before they practised on them
    """

    weights: Tensors
    first: Tensors = field(default_factory=Tensors)
    second: Tensors = field(default_factory=Tensors)
    steps: int = 0
    extent_log: tuple[float, float, float] = (0.0, 0.0, 0.0)
    memory: tuple[Remembered, ...] = ()
    examples: int = 0
    before_object: Knowledge | None = None
    worth: tuple[float, float] = (0.0, 0.0)
    marks: tuple[tuple[float, float], ...] = ()
    source_mark: float | None = None
    practised: Tensors | None = None
    ahead: Tensors | None = None
    lead: tuple[float, float] = (0.0, 0.0)

    @property
    def parts(self) -> tuple[Tensors, ...]:
        """All that is as large as the network, each once."""
        beside = [part for part in (self.practised, self.ahead) if part is not None and part is not self.weights]
        return self.weights, self.first, self.second, *beside

    def knows(self, kind: str) -> bool:
        """Whether a few objects of a kind are remembered (`_A_FEW`), so that it needs no examples of others; true for no kind."""
        return not kind or sum(one.kind == kind for one in self.memory) >= _A_FEW

    def like(self, kind: str, count: int) -> tuple[Remembered, ...]:
        """The newest ``count`` remembered objects that are examples for one of a kind, oldest first.

        These are objects of that kind alone, once it is known; until then those, and the newest others beside them. An object without a
        kind has all for examples.
        """
        if not kind or not count:
            return self.memory[-count:] if count else ()
        own = [i for i, one in enumerate(self.memory) if one.kind == kind][-count:]
        others = [] if self.knows(kind) else [i for i, one in enumerate(self.memory) if one.kind != kind]
        beside = others[max(len(others) - (count - len(own)), 0) :]
        return tuple(self.memory[i] for i in sorted([*beside, *own]))


class Shelf:
    """Keeps the tensors of past knowledge within a budget of memory: the longest unused go to a temporary folder, and come back exactly.

    Parameters
    ----------
    budget_bytes : of tensors that belong to knowledge somebody still refers to (tensors shared with the value before count once)
    """

    def __init__(self, budget_bytes: int = 1 << 30) -> None:
        self.budget_bytes = budget_bytes
        self._sizes: OrderedDict[int, tuple[weakref.ref[Knowledge], int]] = OrderedDict()
        self._newest: frozenset[int] = frozenset()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._written = 0

    @property
    def held_bytes(self) -> int:
        """What is in memory now."""
        return sum(size for _, size in self._sizes.values())

    def keep(self, knowledge: Knowledge) -> None:
        """Take note that ``knowledge`` is in use."""
        tensors = [t for part in knowledge.parts for t in part.values()]
        size = sum(t.numel() * t.element_size() for t in tensors if id(t) not in self._newest)
        self._newest = frozenset(map(id, tensors))
        key = id(knowledge)
        _, known = self._sizes.pop(key, (None, 0))
        self._sizes[key] = (weakref.ref(knowledge, lambda _: self._sizes.pop(key, None)), max(size, known))
        for old in list(self._sizes)[:-1]:
            if self.held_bytes <= self.budget_bytes or not self._spill(old):
                return

    def _spill(self, key: int) -> bool:
        """Move one to disk; False if the disk does not take it (it then stays in memory: nothing is lost)."""
        knowledge = self._sizes[key][0]()
        if knowledge is None:
            self._sizes.pop(key, None)
            return True
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="napari-apprentice-", ignore_cleanup_errors=True)
        try:
            for part in knowledge.parts:
                self._written += 1
                part.spill(Path(self._folder.name) / f"{self._written}.safetensors")
        except (OSError, SafetensorError):
            return False
        self._sizes.pop(key, None)
        return True


def _shortest(values: Tensor) -> Tensor:
    """The same in half of the room, where nothing is lost by that: practice keeps its moments no more precise."""
    short = values.bfloat16()
    return short if torch.equal(short.to(values.dtype), values) else values


class KnowledgeStore:
    """Saves and loads knowledge (implements `session.SnapshotStore`); of the weights only what differs from the shipped ones.

    Parameters
    ----------
    base : what the segmenter knew before it learnt anything
    digest : of the weights file behind ``base``; knowledge of another network is refused
    """

    def __init__(self, base: Knowledge, digest: str) -> None:
        self.base, self.digest = base, digest

    def save(self, snapshot: Knowledge, path: Path, facts: Mapping[str, str] | None = None, *, pictures: bool = True) -> None:
        """Write ``snapshot`` to ``path`` in one piece.

        Parameters
        ----------
        facts : for people who read the file
        pictures : with the views of remembered objects; without them nothing of any image is in the file

        Raises
        ------
        WriteError : it cannot be written, or what was learnt lies in pictures that may not be written
        """
        if not pictures and snapshot.examples and snapshot.memory and not self._changed(snapshot.weights):
            raise WriteError(
                f"the model learnt by example, and {path.name} would hold none of it without the small views of "
                f"{len(snapshot.memory)} accepted objects; expected leave to write them (*with pictures*, --pictures)"
            )
        if not pictures:
            snapshot = replace(snapshot, memory=(), examples=0, before_object=None)
        about = {f"about/{key}": value for key, value in (facts or {}).items()}
        tensors, facts = self._parts(snapshot)
        facts |= {"format": FORMAT, "base": self.digest} | about
        if snapshot.before_object is not None:
            earlier, earlier_facts = self._parts(snapshot.before_object)
            tensors |= {f"{_BEFORE}{k}": v.clone() for k, v in earlier.items()}  # the file format knows no shared tensors
            facts |= {f"{_BEFORE}{k}": v for k, v in earlier_facts.items()}
        temporary = path.with_name(f".{path.name}.writing")
        try:
            temporary.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, facts))
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise WriteError(
                f"what was learnt cannot be written to {path} ({error.strerror or error}); expected a writable folder with room"
            ) from error

    def distance(self, first: Knowledge, second: Knowledge) -> float:
        """Norm of the difference of the weights over the norm of the first ones."""
        apart = sum(float((second.weights[k] - v).square().sum()) for k, v in first.weights.items() if second.weights[k] is not v)
        return math.sqrt(apart / sum(float(v.square().sum()) for v in first.weights.values()))

    def _parts(self, snapshot: Knowledge) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors and the other facts of ``snapshot``, by name, but for what was known before the object at hand."""
        tensors = {f"weight/{k}": v for k, v in self._changed(snapshot.weights) if snapshot.weights is not snapshot.practised}
        for name, values in (("practised", snapshot.practised), ("ahead", snapshot.ahead)):
            tensors |= {f"{name}/{k}": v.half() for k, v in self._changed(values or {})}  # no more precise than that
        for name, moments in (("first", snapshot.first), ("second", snapshot.second)):
            tensors |= {f"{name}/{k}": _shortest(v) for k, v in moments.items()}
        for i, item in enumerate(snapshot.memory):
            tensors |= {f"memory/{i}/images": item.images, f"memory/{i}/targets": item.targets}
            tensors |= {f"memory/{i}/ground": item.ground} if item.ground is not None else {}
        return tensors, {
            "steps": str(snapshot.steps),
            "examples": str(snapshot.examples),
            "extent_log": json.dumps(snapshot.extent_log),
            "worth": json.dumps(snapshot.worth),
            "lead": json.dumps(snapshot.lead),
            "practised": "" if snapshot.practised is None else "in force" if snapshot.weights is snapshot.practised else "not in force",
            "clicks": json.dumps([item.clicks for item in snapshot.memory]),
            "best": json.dumps([item.best for item in snapshot.memory]),
            "of": json.dumps([item.of for item in snapshot.memory]),
            "kind": json.dumps([item.kind for item in snapshot.memory]),
        }

    def _changed(self, weights: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
        """Those that are not as shipped."""
        return [(k, v) for k, v in weights.items() if v is not self.base.weights[k]]

    def load(self, path: Path) -> Knowledge:
        """Read what `save` wrote. What was learnt on top of other weights is the same on top of these if all of it is remembered objects.

        Raises
        ------
        WeightsError : the file is missing or damaged, or what it holds is nothing without other weights
        """
        facts, tensors = _read(path)
        if facts.get("base") != self.digest:
            if _lasting(tensors) != tensors.keys() or facts.get("practised") or f"{_BEFORE}steps" in facts:
                raise WeightsError(f"{path} was learnt on top of weights {facts.get('base')}; expected knowledge on top of {self.digest}")
            facts = _unmarked(facts)
        return self._whole(path, facts, tensors)

    def carry(self, path: Path) -> Knowledge:
        """What of a file holds on top of these weights, whatever it was learnt on: the remembered objects, and how large objects are.

        Where weights had learnt from them, they are examples from now on.

        Raises
        ------
        WeightsError : the file is missing or damaged, or remembers nothing
        """
        facts, tensors = _read(path)
        lasting = _lasting(tensors)
        if not lasting:
            raise WeightsError(
                f"{path} was learnt on top of weights {facts.get('base')}, and remembers no object; "
                f"expected knowledge on top of {self.digest}, or a file with the pictures of accepted objects"
            )
        about = {key: value for key, value in _unmarked(facts).items() if key not in _OF_WEIGHTS and not key.startswith(_BEFORE)}
        if lasting != tensors.keys():
            about["examples"] = str(_SHOWN)
        return self._whole(path, about | {"steps": "0"}, {key: tensors[key] for key in lasting})

    def _whole(self, path: Path, facts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Knowledge:
        """The knowledge in a file, with what was known before the object at hand; WeightsError if its parts do not fit together."""
        try:
            before = self._knowledge(_after(_BEFORE, facts), _after(_BEFORE, tensors)) if f"{_BEFORE}steps" in facts else None
            now = {key: value for key, value in tensors.items() if before is None or not key.startswith(_BEFORE)}
            return replace(self._knowledge(facts, now), before_object=before)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise WeightsError(f"{path} is damaged ({error!r}); expected what a session learnt, as it wrote it") from error

    def _knowledge(self, facts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Knowledge:
        """What the parts of a file say together; KeyError, TypeError, ValueError or OverflowError if they do not fit together."""
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if kind != "memory" and not (_holds(value, self.base.weights[name].shape, *_FLOATS) and bool(value.isfinite().all())):
                raise ValueError(key)
        device = next(iter(self.base.weights.values())).device
        named = {k: v.to(device) for k, v in tensors.items() if not k.startswith("memory/")}
        first, second = (
            Tensors({k.removeprefix(p): v.to(self.base.weights[k.removeprefix(p)].dtype) for k, v in named.items() if k.startswith(p)})
            for p in ("first/", "second/")
        )
        clicked = json.loads(facts["clicks"])
        reached = json.loads(facts.get("best", json.dumps([(0, 0)] * len(clicked))))  # older files do not say
        of, kinds = (json.loads(facts.get(key, json.dumps([""] * len(clicked)))) for key in ("of", "kind"))  # nor that
        memory = tuple(
            Remembered(
                tensors[f"memory/{i}/images"],
                tensors[f"memory/{i}/targets"],
                _clicks(views),
                (float(first), float(every)),
                str(one),
                str(kind),
                tensors.get(f"memory/{i}/ground"),  # nor this
            )
            for i, (views, (first, every), one, kind) in enumerate(zip(clicked, reached, of, kinds, strict=True))
        )
        if wrong := _unlike(memory):
            raise ValueError(wrong)
        if not first.keys() <= second.keys():
            raise ValueError("moments")
        state = facts.get("practised", "")  # nor this
        practised, ahead = (
            Tensors({k: named.get(f"{name}/{k}", v).to(v.dtype) for k, v in self.base.weights.items()}) if state else None
            for name in ("practised", "ahead")
        )
        weights = Tensors({k: named.get(f"weight/{k}", v).to(v.dtype) for k, v in self.base.weights.items()})
        if practised is not None and state == "in force":
            weights = practised
        total, squares, count = _finite(facts["extent_log"])
        worth, lead = (_pair(facts.get(key, "[0, 0]")) for key in ("worth", "lead"))  # older files do not say
        examples, steps = int(facts.get("examples", "0")), int(facts["steps"])  # older files have no examples
        if min(examples, steps) < 0:
            raise ValueError("examples or steps")
        extents = (total, squares, count)
        known = Knowledge(weights, first, second, steps, extents, memory, examples=examples, worth=worth)
        return replace(known, practised=practised, ahead=ahead, lead=lead)


_SHOWN = 8
"""So many remembered objects are shown in place of weights that had learnt from them."""

_OF_WEIGHTS = ("steps", "worth", "lead", "practised")
"""Facts that say nothing about other weights."""


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Facts and tensors of a file that a session wrote."""
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as learnt weights ({error}); expected a file that a session wrote") from error
    if facts.get("format") != FORMAT:
        raise WeightsError(f"{path} has the format {facts.get('format')}; expected {FORMAT}, as a session writes it")
    return facts, tensors


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _lasting(names: Iterable[str]) -> set[str]:
    """The names of what does not hang on weights: views of accepted objects."""
    return {name for name in names if name.startswith("memory/")}


def _unmarked(facts: Mapping[str, str]) -> dict[str, str]:
    """Facts without what models in force have reached on remembered objects, which other weights have not."""
    return {key: value for key, value in facts.items() if key != "best"}


def _unlike(memory: Sequence[Remembered]) -> str:
    """The part of a remembered object that is none, or is of another size than the first object's; "" where all fit together."""
    for i, one in enumerate(memory):
        views, side = len(one.clicks), memory[0].images.shape[-1:]
        places = [value for clicks in one.clicks for click in clicks for value in click]
        if not views or not all(one.clicks) or not all(map(math.isfinite, (*places, *one.best))):
            return f"clicks or best of object {i}"
        if not _holds(one.images, (views, 3, *side, *side), torch.float16, torch.float32) or not bool(one.images.isfinite().all()):
            return f"memory/{i}/images"
        if not _holds(one.targets, (views, 1, *side, *side), torch.bool):
            return f"memory/{i}/targets"
        if one.ground is not None and not _holds(one.ground, (4, *one.ground.shape[-1:] * 2), torch.uint8):
            return f"memory/{i}/ground"
    return ""


def _holds(tensor: Tensor, shape: tuple[int, ...], *dtypes: torch.dtype) -> bool:
    """Whether a tensor has a shape, with something in it, and one of some types."""
    return tensor.shape == shape and tensor.numel() > 0 and tensor.dtype in dtypes


def _finite(text: str) -> tuple[float, ...]:
    """Numbers."""
    values = tuple(map(float, json.loads(text)))
    if not all(map(math.isfinite, values)):
        raise ValueError(text)
    return values


def _pair(text: str) -> tuple[float, float]:
    """Two numbers."""
    first, second = _finite(text)
    return first, second


_BEFORE = "before_object/"
_Value = TypeVar("_Value")


def _after(prefix: str, named: Mapping[str, _Value]) -> dict[str, _Value]:
    """What is named with ``prefix``, without it."""
    return {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}


def _clicks(views: list[list[list[float]]]) -> tuple[tuple[WindowClick, ...], ...]:
    return tuple(tuple(WindowClick(float(row), float(col), bool(positive)) for row, col, positive in clicks) for clicks in views)
