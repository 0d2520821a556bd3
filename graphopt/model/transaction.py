"""Write several files so that all of them take effect, or none."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


class Transaction:
    """Files written, replaced and removed together, as far as a file system lets us; undone unless committed.

    Every step is recorded before it is taken, so that an interruption at any point can be undone.
    """

    def __init__(self) -> None:
        self._written: list[tuple[Path, Path]] = []  # temporary, final
        self._backups: list[tuple[Path, Path]] = []  # backup, final
        self._obsolete: list[Path] = []

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, *exception: object) -> None:
        committed = bool(self._written) and not self._written[-1][0].exists()
        for temporary, final in self._written:
            # A temporary file that is gone was renamed: what it became is new, and is undone with the rest.
            with suppress(OSError):
                if temporary.exists():
                    temporary.unlink()
                elif not committed:
                    final.unlink()
        for backup, final in self._backups:
            with suppress(OSError):
                if committed:
                    backup.unlink()
                else:
                    os.replace(backup, final)
        if committed:
            for path in self._obsolete:
                with suppress(OSError):
                    path.unlink()

    def write(self, final: Path, chunks: Iterable[bytes], digest: hashlib._Hash | None = None) -> int:
        """Write and sync ``chunks`` under a temporary name beside ``final``, into ``digest`` too; return the bytes."""
        temporary = _sibling(final)
        self._written.append((temporary, final))
        size = 0
        with open(temporary, "xb") as stream:
            for chunk in chunks:
                stream.write(chunk)
                size += len(chunk)
                if digest:
                    digest.update(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        return size

    def remove(self, path: Path) -> None:
        """Remove ``path`` once everything is in place."""
        self._obsolete.append(path)

    def commit(self) -> None:
        """Put the files in place in the order they were written; the last one makes the others count."""
        *before, (last_temporary, last) = self._written
        for temporary, final in before:
            if final.exists():
                backup = _sibling(final)
                self._backups.append((backup, final))
                os.replace(final, backup)
            os.replace(temporary, final)
        os.replace(last_temporary, last)
        _sync_folder(last.parent)


def _sibling(final: Path) -> Path:
    """A fresh name in the same folder, so that the rename stays within one file system."""
    return final.with_name(f".{final.name[:200]}.{secrets.token_hex(6)}.tmp")


def _sync_folder(folder: Path) -> None:
    """Make the renames durable. Where a system cannot (Windows, some network drives) they are still atomic."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
