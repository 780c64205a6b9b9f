"""What network, training data and ways to look were chosen by, from rows that `apprentice benchmark --json` has measured.

    apprentice train recipes/ablations/unet.toml --data TRAIN_DIR --out runs/unet.safetensors          # and so on
    ZOOM=diffusion=5,closer=0,late_clicks=0
    apprentice benchmark DEV_DIR/* --weights unet=runs/unet.safetensors --weights unet-real=... --zoom $ZOOM --json runs/data.json
    apprentice benchmark DEV_DIR/* --weights unet=runs/unet.safetensors --weights latefusion=... --zoom $ZOOM --json runs/networks.json
    apprentice benchmark DEV_DIR/* --zoom "" --zoom mirror=false --zoom ... --json runs/looks.json
    python benchmarks/choices.py --data runs/data.json --networks runs/networks.json --looks runs/looks.json --markdown docs/choices.md

Weights are called like their recipes; `unet` is the one that lacks nothing, and `unet-without-FAMILY` has never seen a family of images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from gallery import print_page, read_rows, section

from napari_apprentice import report
from napari_apprentice.benchmark import Row

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "mri": ("mri_hippocampus", "mri_left_atrium", "mri_ms_lesions", "sts_tumour"),
    "em": ("em_cdeep3m_mito",),
    "fundus": ("fundus_drishti",),
    "cells": ("cells_wbc",),
}
"""Family of images, as recipes leave it out -> the sets that tell what a network makes of it."""

INTRODUCTION = """
Written by `benchmarks/choices.py`. The networks are the default one in small trainings (`recipes/ablations/`: 600 steps of 8 windows of 96
pixels, from random weights, seed 1, once), each lacking something that the one called `unet` has. So little trained they need pixel
diffusion and are led astray by closer looks, so they were measured as their names in the tables say. The ways to look are tried with the
weights that came with the program then. Differences below about half a click are noise.
"""


def without_family(rows: Sequence[Row]) -> str:
    """A table of every family: its sets, answered by a network that has seen the family in training, and by one that has not."""
    lines = []
    for family, sets in FAMILIES.items():
        for name in ("unet", f"unet-without-{family}"):
            found = [row for row in rows if row.network.partition(" (")[0] == name and row.set in sets]
            if len(found) != len(sets):
                break
            lines.append(
                {"what": family, "network": name, "sets": ", ".join(sets)}
                | {f"NoC@{q}": f"{_mean([row.noc[q] for row in found]):.2f}" for q in found[0].noc}
                | {f"IoU@{k}": f"{_mean([row.iou_at[k] for row in found]):.3f}" for k in found[0].iou_at}
            )
    return report.table(lines)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def page(data: Path, networks: Path, looks: Path) -> str:
    """All sections."""
    return (
        "\n\n".join(
            [
                "# What the default was chosen by",
                INTRODUCTION.strip(),
                section("Training data", data),
                "A whole family left out, on the sets of that family:",
                without_family(read_rows(data)[1]),
                section("Network, clicks and working size", networks),
                section("Where and how to look", looks),
                "## Set by set",
                *(report.side_by_set(read_rows(path)[1]) for path in (data, networks, looks)),
            ]
        )
        + "\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name in ("data", "networks", "looks"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    return print_page(lambda: page(options.data, options.networks, options.looks), options.markdown)


if __name__ == "__main__":
    sys.exit(main())
