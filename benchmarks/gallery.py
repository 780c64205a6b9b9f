"""The networks side by side, on one page, from rows that `apprentice benchmark --json` has measured.

    apprentice benchmark DEV_DIR/* --network unet,deeplab,diversity,cdnet,adaptiveclick --json runs/gallery.json
    apprentice benchmark DEV_DIR/... --network unet,... --policy none,ia+sa,mi+pi --json runs/policies.json
    apprentice benchmark HARD_DIR ... --network unet,... --max-clicks 100 --json runs/hard.json
    apprentice benchmark DEV_DIR/* --weights cdnet=runs/cdnet.safetensors --weights cdnet-baseline=... --json runs/ablations.json
    python benchmarks/gallery.py runs/gallery.json [--policies runs/policies.json] [--hard runs/hard.json]
        [--ablations runs/ablations.json ...] --markdown docs/gallery.md

Every table has the means over the sets of its file, each set counting the same; the last one has every set of the first file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from napari_apprentice import report
from napari_apprentice.benchmark import Row
from napari_apprentice.texts import write_text
from napari_apprentice.types import ApprenticeError, ReadError


def read_rows(path: Path) -> tuple[Mapping[str, Any], list[Row]]:
    """The machine and the rows of a file.

    Raises
    ------
    ReadError : it cannot be read, or there are no rows in it
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        about, rows = content["machine"], [Row(**row) for row in content["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReadError(f"{path} cannot be read ({error}); expected rows as `apprentice benchmark --json` writes them") from error
    if not rows:
        raise ReadError(f"{path} holds no row; expected what `apprentice benchmark --json` writes")
    return about, rows


def section(title: str, path: Path, words: Sequence[str] = ()) -> str:
    """How the rows of a file were measured, and a table of them for every robot."""
    about, rows = read_rows(path)
    sets = ", ".join(dict.fromkeys(row.set for row in rows))
    parts = [f"## {title}", "\n".join([*report.provenance(about, rows), f"- Sets: {sets}.", *words, *report.explained(rows)])]
    for robot in dict.fromkeys(row.robot for row in rows):
        parts += [f"Robot `{robot}`:", report.side_by_side([row for row in rows if row.robot == robot])]
    return "\n\n".join(parts)


INTRODUCTION = """
Written by `benchmarks/gallery.py`; what the networks are: [networks.md](networks.md). All were trained by `recipes/` on the same samples in
the same order (`recipes/gallery.toml`; the ablations at three tenths of that), once, with seed 1, on processors. `shipped` is the U-Net
that came with version 0.1.0, and saw more than twenty times as many. What the processors did beside shows in the seconds: compare them
within a table, and roughly.
"""


def page(rows: Path, hard: Path | None, ablations: Sequence[Path], policies: Path | None = None) -> str:
    """All sections."""
    parts = ["# The gallery", INTRODUCTION.strip(), section("Networks", rows)]
    if policies is not None:
        prequential = "- Prequential: every object is scored before the model learns from it."
        parts.append(section("Networks and policies", policies, [prequential]))
    if hard is not None:
        parts.append(section("Hard objects, many clicks", hard))
    parts += [section(f"What the parts are worth: {path.stem}", path) for path in ablations]
    parts += ["## Set by set", report.side_by_set(read_rows(rows)[1])]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--policies", type=Path)
    parser.add_argument("--hard", type=Path)
    parser.add_argument("--ablations", type=Path, nargs="*", default=[])
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    return print_page(lambda: page(options.rows, options.hard, options.ablations, options.policies), options.markdown)


def print_page(make: Callable[[], str], path: Path | None) -> int:
    """Print a page, and write it to ``path`` if there is one; the exit status of the program."""
    try:
        text = make()
        if path is not None:
            write_text(path, text)
    except ApprenticeError as error:
        print(error, file=sys.stderr)
        return 1
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
