"""Write files completely or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError


def write_atomically(path: str | Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a reader sees the old content or the whole new one.

    Raises UserError naming the path if the folder or the disk does not take it; the temporary file is removed then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def check_writable(folder: str | Path) -> None:
    """Raise UserError if no file can be written into `folder`, which need not be there yet: before hours of work are lost."""
    folder = Path(folder)
    there = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically; a file name that is not UTF-8 keeps its bytes."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))
