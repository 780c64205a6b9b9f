"""What computed something, as far as its last digits depend on it."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

__all__ = ["Computer", "output_of", "processor_name"]


@dataclass(frozen=True)
class Computer:
    """What a model ran on. Two that are equal round alike, a graphics card only as far as its operations are deterministic.

    Attributes
    ----------
    device : "cpu", or the graphics card with its name
    processor : its name; "" where unknown
    threads : that one operation of the model may use; 0 where unknown
    torch : version of PyTorch, the build included
    system : operating system and kind of processor
    """

    device: str
    processor: str = ""
    threads: int = 0
    torch: str = ""
    system: str = ""

    @classmethod
    def here(cls, device: str, threads: int, torch: str) -> Computer:
        """This one."""
        return cls(device, processor_name() or "", threads, torch, f"{platform.system()} {platform.machine()}")

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Computer:
        """The inverse of `dataclasses.asdict`; what later versions of this program add is left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in facts.items() if key in known})

    @property
    def repeatable(self) -> bool:
        """Whether all of its operations give the same bits every time."""
        return self.device == "cpu"

    def differences(self, other: Computer) -> str:
        """What is another thing in ``other``, as in "torch 2.12.0, here 2.13.0"; "" for nothing."""
        pairs = [(field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return "; ".join(f"{name} {own or 'unknown'}, here {others or 'unknown'}" for name, own, others in pairs if own != others)


def processor_name() -> str | None:
    """What the maker calls the processor; None where nobody says."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        return output_of("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or None


def output_of(*command: str) -> str | None:
    """What a short command prints; None if it fails or prints nothing."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    return None
