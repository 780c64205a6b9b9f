"""Rows of a benchmark for machines (JSON) and for people (Markdown), each with all that is needed to measure them again."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

from napari_apprentice.benchmark import Row
from napari_apprentice.computers import output_of, processor_name
from napari_apprentice.texts import write_text

__all__ = [
    "explained",
    "host",
    "machine",
    "markdown",
    "means",
    "provenance",
    "side_by_set",
    "side_by_side",
    "table",
    "versions",
    "write_json",
]


def machine(device: str, threads: int | None = None) -> dict[str, Any]:
    """Where and with what a measurement is made.

    Parameters
    ----------
    device : the one that the model runs on
    threads : that one process of the model uses

    Returns
    -------
    JSON values under cpu, cores, threads, memory_gib, device, system, python, torch, numpy, version, commit, date; None where unknown
    """
    return {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": _memory_gib(),
        "device": device,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "numpy": _version("numpy"),
        "version": _version("napari-apprentice"),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def versions(*distributions: str) -> dict[str, str | None]:
    """Of installed distributions, None for those that are not, to be joined to `machine`."""
    return {name: _version(name) for name in distributions}


def write_json(path: Path, about: Mapping[str, Any], rows: Iterable[Row]) -> None:
    """Write ``{"machine": ..., "rows": [...]}``; the file is whole at every moment.

    Raises
    ------
    WriteError : it cannot be written
    """
    write_text(path, json.dumps({"machine": dict(about), "rows": [row.as_dict() for row in rows]}, indent=1) + "\n")


def markdown(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Two tables for every robot, the mean over the sets below each, under a short one where several networks are compared."""
    notes = [
        "- Prequential: every object is scored before the model learns from it. `2nd` is the second half of the sequence.",
        "- `drop` is the largest fall of the mean IoU from one click to the next, in points. Seconds are model time for one click.",
    ]
    compared = any(len({row.network for row in rows if row.robot == robot}) > 1 for robot in {row.robot for row in rows})
    parts = ["# Clicks to reach", "\n".join([*provenance(about, rows), *notes, *explained(rows, costs=compared)])]
    for robot in dict.fromkeys(row.robot for row in rows):
        chosen = [row for row in rows if row.robot == robot]
        shown = [*chosen, *means(chosen)]
        parts.append(f"## Robot `{robot}`")
        if len({row.network for row in chosen}) > 1:
            parts.append(side_by_side(chosen))
        parts += [table([_quality(row) for row in shown]), table([_speed(row) for row in shown])]
    return "\n\n".join(parts) + "\n"


def host(about: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown that say when, where and with what something was measured; ``about`` is of `machine`."""
    name = f"{about['cpu'] or 'unknown processor'}, {about['cores']} cores"
    if about["threads"]:
        name += f", threads a process: {about['threads']}"
    if about["memory_gib"]:
        name += f", {about['memory_gib']} GiB of memory"
    source = f"napari-apprentice {about['version']}" + (f" at commit {about['commit']}" if about["commit"] else "")
    return [
        f"- Measured on {about['date']} with {source}, Python {about['python']}, torch {about['torch']}, device {about['device']}.",
        f"- Machine: {name}, {about['system']}.",
    ]


def provenance(about: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Lines of `host`, and of what the rows were measured on."""
    clicks = " or ".join(dict.fromkeys(str(row.max_clicks) for row in rows))
    seeds = ", ".join(dict.fromkeys(str(row.seed) for row in rows))
    chosen = dict.fromkeys(_chosen(row) for row in rows)
    return [
        *host(about),
        f"- Data: {'; '.join(chosen)} of the sets named below. Order `sorted` is cases by name, then slices, targets and ids;",
        "  a number is the seed of a permutation of it (`numpy.random.default_rng`).",
        f"- At most {clicks} clicks an object; an object that does not reach a target counts as that many. Robot seed {seeds}.",
    ]


def _chosen(row: Row) -> str:
    cases = "all cases" if row.cases == "*" else f"cases `{row.cases}`"
    return f"at most {row.limit} objects, spread evenly over {cases}" if row.limit else cases


def explained(rows: Sequence[Row], *, costs: bool = True) -> list[str]:
    """Lines of Markdown about the columns that `side_by_side` has for these rows; ``costs`` : also those that no other table has."""
    notes = []
    if any(row.proposed > 1 for row in rows):
        notes.append("- `best` IoU is that of the best mask of all that were proposed for the click, `IoU` that of the one that was shown.")
    if costs and any(row.cost for row in rows):
        notes += [
            "- Millions of parameters. GFLOPs of a click after the first (all windows it looks at, a multiplication and an addition being",
            "  two). MiB of weights and of all tensors alive at once during it, without the inner workspace of convolutions.",
        ]
    return notes


def side_by_side(rows: Sequence[Row]) -> str:
    """A Markdown table of what networks cost and what they are worth, each a line for every policy and order: means over the sets."""
    return table([_beside(row) for row in means(rows) or rows])


def side_by_set(rows: Sequence[Row]) -> str:
    """The same for every set by itself."""
    return table([_beside(row) for row in rows])


def _beside(row: Row) -> dict[str, str]:
    cells = _names(row)
    if cost := row.cost:
        cells |= {"M": f"{cost['parameters'] / 1e6:.2f}", "GFLOPs": f"{cost['gflops']:.1f}", "MiB": f"{cost['memory_mib']:.0f}"}
    seconds = row.seconds_per_click
    cells |= {"click s": f"{seconds['encode'] + seconds['decode']:.3f}", "adapt s": f"{seconds['adapt']:.3f}"}
    return cells | _reached(row)


def _reached(row: Row) -> dict[str, str]:
    cells = {f"NoC@{q}": f"{value:.2f}" for q, value in row.noc.items()}
    cells |= {f"NoF@{q}": str(value) for q, value in list(row.nof.items())[-2:]}
    for k, value in row.iou_at.items():
        cells[f"IoU@{k}"] = f"{value:.3f}"
        if row.proposed > 1 and k in row.best_iou_at:
            cells[f"best IoU@{k}"] = f"{row.best_iou_at[k]:.3f}"
    return cells


def _quality(row: Row) -> dict[str, str]:
    cells = _names(row) | _reached(row)
    cells |= {f"2nd NoC@{q}": f"{value:.2f}" for q, value in row.second_half["noc"].items()}
    cells |= {f"2nd IoU@{k}": f"{value:.3f}" for k, value in row.second_half["iou_at"].items() if k in ("1", "5")}
    return cells | {"drop": f"{100 * row.max_drop:.2f}"}


def _speed(row: Row) -> dict[str, str]:
    cells = _names(row) | {f"Dice@{k}": f"{value:.3f}" for k, value in row.dice_at.items()}
    return cells | {f"{phase} s": f"{value:.3f}" for phase, value in row.seconds_per_click.items()}


def _names(row: Row) -> dict[str, str]:
    return {"set": row.set, "network": row.network, "policy": row.policy, "order": row.order, "objects": str(row.n_objects)}


def table(lines: Sequence[Mapping[str, str]]) -> str:
    """Markdown. Columns in the order in which the lines first name them; a line without one leaves its cell empty."""
    heads = list(dict.fromkeys(head for line in lines for head in line))
    numbers = [head not in ("set", "network", "policy", "order", "method", "step", "what") for head in heads]
    rows = [heads, ["---:" if number else "---" for number in numbers], *([line.get(head, "") for head in heads] for line in lines)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def means(rows: Sequence[Row]) -> list[Row]:
    """One row for every network, policy and order that has more than one set: the mean over sets, each counting the same."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.network, row.policy, row.order), []).append(row)
    return [_mean(group) for group in groups.values() if len({row.set for row in group}) > 1]


_FACTS = ("max_clicks", "seed", "limit", "parameters")
"""What no mean or sum is made of: the same for all rows."""


def _mean(rows: Sequence[Row]) -> Row:
    first = rows[0].as_dict()
    merged = _merge([row.as_dict() for row in rows])
    return Row(**{**first, **merged, "set": f"**mean of {len(rows)} sets**"})


def _merge(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of all measured numbers, sums of counts, whatever the nesting."""
    merged: dict[str, Any] = {}
    for key, value in values[0].items():
        column = [one[key] for one in values if key in one]
        if key in _FACTS:
            merged[key] = value
        elif isinstance(value, Mapping):
            merged[key] = _merge(column)
        elif isinstance(value, float):
            merged[key] = fmean(column)
        elif isinstance(value, int):
            merged[key] = sum(column)
    return merged


def _memory_gib() -> float | None:
    with suppress(AttributeError, OSError, ValueError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return None


def _version(distribution: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(distribution)
    return None


def _commit() -> str | None:
    """Of the checkout that this file is tracked in, marked if it was changed since."""
    here = Path(__file__).parent
    if output_of("git", "-C", str(here), "ls-files", Path(__file__).name) is None:
        return None
    return output_of("git", "-C", str(here), "describe", "--always", "--dirty", "--exclude=*")
