"""The command line: ``apprentice demo | segment | propagate | measure | benchmark | train | info | cohort | report | replay``.

What a command needs is imported when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from typing import Any

from napari_apprentice import __version__
from napari_apprentice.cli._images import add_demo, add_measure, add_propagate, add_segment
from napari_apprentice.cli._models import add_benchmark, add_info, add_train
from napari_apprentice.cli._records import add_replay, add_report
from napari_apprentice.cli._studies import add_cohort
from napari_apprentice.types import ApprenticeError

__all__ = ["main"]

_QUIET = logging.NullHandler()
"""Whatever tifffile logs of damaged files is told in a sentence of ours; whoever configures logging sees it, too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : what stands after ``apprentice``; by default what the process was started with

    Returns
    -------
    0 when it was done, 1 when a comparison found a difference, 2 when something cannot be used (one sentence on stderr says what), 130 when
    it was interrupted, 141 when nobody read on what it printed, as other programs have it
    """
    logging.getLogger("tifffile").addHandler(_QUIET)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be in any encoding
    with redirect_stderr(sys.stderr and _AsMuchAsFits(sys.stderr)):
        try:
            try:
                return _run(argv)
            finally:
                print(end="", flush=True)
        except BrokenPipeError:
            _write_no_more()
            return 141
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EIO):
                _write_no_more()
                return _refused(f"not all could be written ({error.strerror}); expected free space, also for standard output")
            if error.filename is None:
                raise
            return _refused(f"{os.fsdecode(error.filename)!r} cannot be used ({error.strerror}); expected a name that this user can reach")


class _AsMuchAsFits:
    """Standard error, whatever becomes of what is written there: a full disk under a log must not end hours of work."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _refused(sentence: str) -> int:
    print(f"apprentice: {sentence}", file=sys.stderr)
    return 2


def _write_no_more() -> None:
    """Nobody takes standard output; what Python still wants to write at its end goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        code: int | None = arguments.run(arguments)
    except ApprenticeError as error:
        return _refused(str(error))
    except KeyboardInterrupt:
        print("apprentice: interrupted", file=sys.stderr)
        return 130
    return code or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="apprentice",
        description="Interactive segmentation that learns from every mask that you accept.",
        epilog="`apprentice COMMAND --help` says more about a command.",
    )
    parser.add_argument("-V", "--version", action="version", version=f"napari-apprentice {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (add_demo, add_segment, add_propagate, add_measure, add_benchmark, add_train, add_info, add_cohort, add_report, add_replay):
        add(commands)
    return parser
