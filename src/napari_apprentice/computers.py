"""What computed something, as far as its last digits depend on it; and processes of this computer that work for another one."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_apprentice.types import SessionError

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

__all__ = ["Computer", "output_of", "processes", "processor_name"]


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


@contextmanager
def processes(number: int, enter: Callable[..., None] | None = None, *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """Processes that work for this one: they leave an interrupt to it, and end with it, at once where it fails or is killed.

    Parameters
    ----------
    enter : called in each of them at first, with ``arguments``

    Raises
    ------
    SessionError : one of them died
    """
    import multiprocessing  # these here, as most of what needs this module needs no processes
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(number, multiprocessing.get_context("spawn"), _enter, (enter, arguments)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise SessionError(
                "one of the processes died, perhaps for want of memory, or the script that began them has no `if __name__ == '__main__':`; "
                "expected fewer jobs, or that line (what was written stays)"
            ) from error
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            pool.shutdown(cancel_futures=True)  # its own thread waits for the processes: of two that do, one is told of no child
            raise


def _enter(enter: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    """A process of the pool begins: it leaves an interrupt to the one that began it, and dies with that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if enter is not None:
        enter(*arguments)


def _die_with_parent() -> None:
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
