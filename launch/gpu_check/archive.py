"""logs.tgz: everything that the steps wrote, within a size."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

#: Bytes of one file that are packed at first; what is longer keeps its beginning and its end.
PER_FILE = 4 * 2**20
LEAST = 4096


def pack(folder: Path, target: Path, limit: int, per_file: int = PER_FILE) -> list[str]:
    """Write the files under `folder` to `target`, a .tgz of at most `limit` bytes, which is replaced when done.

    Returns the names of files of which a part is missing. Files are cut shorter until the archive fits; where even
    that does not help, there is none.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    made = target.with_name(target.name + ".new")
    while per_file >= LEAST:
        cut = _write(made, folder, files, per_file)
        if made.stat().st_size <= limit:
            os.replace(made, target)
            return cut
        per_file //= 2
    made.unlink()
    target.unlink(missing_ok=True)
    return [path.relative_to(folder).as_posix() for path in files]


def _write(made: Path, folder: Path, files: list[Path], per_file: int) -> list[str]:
    cut = []
    with tarfile.open(made, "w:gz", compresslevel=6) as archive:
        for path in files:
            name = path.relative_to(folder).as_posix()
            try:
                size, content = path.stat().st_size, _content(path, per_file)
                entry = archive.gettarinfo(path, name)
            except OSError:
                continue  # a process that is being ended has just removed it
            entry.size = len(content)
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""  # the archive is sent to others
            archive.addfile(entry, io.BytesIO(content))
            if size > per_file:
                cut.append(name)
    return cut


def _content(path: Path, most: int) -> bytes:
    """The file, or its first quarter and its end around a line that says what is missing."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= most:
            return file.read(most)
        begin = file.read(most // 4)
        end_bytes = most - most // 4
        file.seek(-end_bytes, os.SEEK_END)
        return begin + f"\n[... {size - most} bytes left out ...]\n".encode() + file.read(end_bytes)
