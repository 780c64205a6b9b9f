"""Only one process at a time works in a session's folder; whoever comes second is told who was first.

The lock is the operating system's own (through `filelock`), so it goes with the process that holds it, however that ends: what a killed
process leaves behind locks nothing. Who holds it stands beside it in a file for people. Looking needs no lock.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from napari_apprentice.types import InUseError, WriteError

__all__ = ["LOCK_NAME", "FolderLock"]

LOCK_NAME = "in-use.lock"
"""What the lock of a folder is called. The file stays when the lock goes: deleting it could split those who wait for it."""

_HOLDER_NAME = "in-use.json"


class FolderLock:
    """The right to change what lies in a folder, until `release` or the end of the process.

    Parameters
    ----------
    folder : it is there already

    Raises
    ------
    InUseError : somebody else has it, another session of this process included
    WriteError : the folder cannot be written
    """

    def __init__(self, folder: Path) -> None:
        import filelock  # here, so that whoever only looks need not wait for it

        self._holder = folder / _HOLDER_NAME
        # A session may be closed by another thread than the one that opened it.
        self._lock = filelock.FileLock(folder / LOCK_NAME, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            raise InUseError(
                f"the folder {folder.name!r} is in use by {_who(self._holder)}; expected it to be closed there first"
            ) from error
        except OSError as error:
            raise WriteError(f"{folder} cannot be locked ({error.strerror}); expected a folder that can be written") from error
        with suppress(OSError):  # the lock counts, not the name
            self._holder.write_text(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "time": _now()}), "utf-8")

    def release(self) -> None:
        """Let others in. Safe to call again."""
        if self._lock.is_locked:
            with suppress(OSError):
                self._holder.unlink(missing_ok=True)
            self._lock.release()


def _who(holder: Path) -> str:
    """Process, computer and time of whoever holds a lock, as far as they are known."""
    try:
        known = json.loads(holder.read_text("utf-8"))
        process, host, since = int(known["process"]), str(known["host"]), datetime.fromisoformat(known["time"]).astimezone()
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    here = host == socket.gethostname()
    if here and process == os.getpid():
        return f"this very process ({process}) since {since:%Y-%m-%d %H:%M}"
    return f"process {process} on {'this computer' if here else 'the computer'} {host} since {since:%Y-%m-%d %H:%M}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
