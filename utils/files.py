"""Write files completely or not at all, into folders that no other run writes, and never through a planted link."""

import errno
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from utils.errors import UserError

with suppress(ImportError):  # not on Windows, where folders are not locked
    import fcntl

LOCK = ".lock"
FORMULA = re.compile("'*[=+\\-@\t\r]")  # begins a cell that a spreadsheet would take for a formula

held: set[Path] = set()  # the folders that this process has locked


def write_atomically(path: str | Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a reader sees the old content or the whole new one.

    A link at `path` is replaced. Raises UserError naming the path if the folder or the disk does not take it; the temporary file
    is removed then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            with open(temporary, "xb") as file:  # x: not through a link
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: the path holds a NUL character
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None


def write_below(folder: str | Path, name: str | os.PathLike, write: Callable[[BinaryIO], None]) -> None:
    """write_atomically of folder/name. Raises UserError where a link inside of `folder` leads out of it."""
    path = Path(folder) / name
    if not Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(folder)):
        raise UserError(f"{path.parent}: a link in it leads out of {folder}; remove it")
    write_atomically(path, write)


def check_writable(folder: str | Path) -> None:
    """Raise UserError if no file can be written into `folder`, which need not be there yet: before hours of work are lost."""
    folder = Path(folder)
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; a file name that is not UTF-8 keeps its bytes."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))


def open_to_append(path: str | Path, mode: str = "ab", **kwargs: str | None) -> BinaryIO | TextIO:
    """The file, opened for appending; a link in its place is removed first. Raises OSError."""
    with suppress(FileNotFoundError):
        if os.path.islink(path):
            os.unlink(path)
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666), **kwargs)


# --- one run at a time in a folder


@contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Keep other processes that lock `folder` out of it. It is made if it is not there, and removed if it stays empty.

    The lock is the kernel's, on the file .lock: it ends with the process, however that ends, and is not inherited by workers.
    Raises UserError that says who is there, or that the folder cannot be written. File systems without locks have none.
    """
    folder = Path(os.path.realpath(folder))
    if folder in held:
        yield
        return
    made = [place for place in (folder, *folder.parents) if not os.path.exists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open_locked(folder)
    except OSError as error:
        remove_empty(made)
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None
    held.add(folder)
    try:
        yield
    finally:
        held.discard(folder)
        with suppress(OSError):
            (folder / LOCK).unlink()  # while it is locked: who waits for it looks again
        file.close()
        remove_empty(made)


def open_locked(folder: Path) -> BinaryIO:
    """The folder's lock file, locked, with who locked it. Raises OSError, or UserError if another process has it."""
    path = folder / LOCK
    while True:
        file = open_to_append(path, "a+b")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.exists(path) or not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                file.close()  # its owner has removed it meanwhile
                continue
        except NameError:  # Windows
            pass
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                owner = file.read(500).decode("utf-8", "replace") or "another process"
                file.close()
                raise UserError(f"{folder}: {owner} writes here; wait for it, or choose another folder") from None
        with suppress(OSError):  # a full disk is another's to report
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')},".encode())
            file.flush()
        return file


def remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


# --- cells of tables that people open in spreadsheets


def to_cell(text: str) -> str:
    """A text as a field of a CSV file that no spreadsheet runs: what begins like a formula gets an apostrophe."""
    text = f"'{text}" if FORMULA.match(text) else text
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text


def from_cell(cell: str) -> str:
    """The text that `to_cell` was given. cell: as a CSV reader gives it."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell
