"""Reading what others wrote: regular files of a bounded size, and values that are finite, not too deep and not too many."""

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from utils import limits


def read_bytes(path: str | Path, most: int = limits.FILE_BYTES) -> bytes:
    """The content of a regular file. Raises OSError with a reason in words for anything else, and for a name that is none."""
    try:
        status = os.stat(path)
    except ValueError as error:  # a NUL character, or one that no name can hold
        raise OSError(errno.EINVAL, f"not a file name: {error}", str(path)) from None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):  # a device never ends, a pipe may never begin
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, more than {most:,}", str(path))
    with open(path, "rb") as file:
        return file.read(most)


def read_text(path: str | Path, most: int = limits.FILE_BYTES, encoding: str = "utf-8", errors: str = "strict") -> str:
    """As `read_bytes`; UnicodeDecodeError, a ValueError, for another encoding. A line ends as it does in the file."""
    return read_bytes(path, most).decode(encoding, errors)


def parse_json(text: str | bytes) -> Any:
    """A JSON value. Raises ValueError for what is none, for a key that stands twice, and for what `check_plain` refuses."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repeated)
    except RecursionError:
        raise ValueError(f"more than {limits.DEPTH} levels") from None
    check_plain(value)
    return value


def _without_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key[:100]!r} stands twice")
        content[key] = value
    return content


def check_plain(value: Any) -> None:
    """Raises ValueError for what is not of texts, finite numbers, True, False, None, lists and mappings, in the limits."""
    left = limits.VALUES
    waiting: list[tuple[Iterator[Any], int]] = [(iter([value]), 0)]
    while waiting:
        items, depth = waiting[-1]
        item = next(items, waiting)
        if item is waiting:
            waiting.pop()
            continue
        left -= 1
        if left < 0:
            raise ValueError(f"more than {limits.VALUES:,} values")
        if isinstance(item, dict | list | tuple):
            if depth >= limits.DEPTH:
                raise ValueError(f"more than {limits.DEPTH} levels")
            parts = [*item.keys(), *item.values()] if isinstance(item, dict) else item
            waiting.append((iter(parts), depth + 1))
        else:
            check_scalar(item)


def check_scalar(value: Any) -> None:
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, int):
        if abs(value) > limits.WHOLE:
            raise ValueError("a whole number of more than 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"the number {value}, which is not finite")
    elif value is not None:
        raise ValueError(f"a value of type {type(value).__name__}")


def check_text(text: str) -> None:
    """Raises ValueError for a text that is too long or cannot be a name in any file system."""
    if len(text) > limits.TEXT:
        raise ValueError(f"a text of {len(text):,} characters, more than {limits.TEXT:,}")
    if "\0" in text:
        raise ValueError(f"a text with a NUL character, {text[:100]!r}")
    try:
        text.encode("utf-8", "surrogateescape")  # bytes of a name that is not UTF-8 stay as they are
    except UnicodeEncodeError:
        raise ValueError(f"a text with half a character, {text[:100]!r}") from None


def check_path(text: str) -> None:
    """Raises ValueError for a text that no file system has as a path."""
    check_text(text)
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError(f"a name that this shell's locale cannot hold, {text[:100]!a}; set PYTHONUTF8=1") from None
    if any(len(os.fsencode(part)) > limits.NAME_BYTES for part in PurePath(text).parts):
        raise ValueError(
            f"a path with a name of more than {limits.NAME_BYTES} bytes, {text[:100]!r}…"
        )  # no half characters in a message


def is_inside(name: str) -> bool:
    """Whether a name of a list stays, as it is written, below the folder that it is relative to."""
    path = PurePath(name)
    return not path.anchor and ".." not in path.parts
