"""Damage for the fuzz suite: bytes that are changed, and values in a nested structure that are replaced."""

import copy
import random
from typing import Any


def nested(levels: int) -> list:
    return [nested(levels - 1)] if levels else []


NASTY: list[Any] = [None, True, 0, -1, 1, 2**31, 10**9, 10**23, 0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf")]
NASTY += [
    "",
    "nan",
    ".inf",
    "=1+1",
    "mean",
    "a" * 300,
    "a" * 5000,
    "a\0b",
    "\ud800",
    "\udce4",
    "line\nbreak",
    "/dev/zero",
    "../x",
]
NASTY += [[], {}, [[]], {"a": 1}, ["a"], [0, 0], [10**9] * 2, nested(20), nested(200)]
TOKENS = [
    b"\0",
    b"\xff" * 8,
    b"\x00" * 64,
    b"NaN",
    b"1e999",
    b"[" * 5000,
    b'{"a":' * 500,
    b"9" * 5000,
    b'"',
    b"\n",
    b"&a [*a]",
    b"\\ud800",
]


def change(value: Any, rng: random.Random) -> Any:
    """A copy of a structure in which one to three values are replaced, removed or doubled."""
    value = {"": copy.deepcopy(value)}
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice(places(value))
        what = rng.random()
        if what < 0.1 and holder is not value:
            del holder[key]
        elif what < 0.15 and isinstance(holder, list):
            holder.append(holder[key])
        elif what < 0.2 and isinstance(holder, dict) and holder is not value:
            holder[str(rng.choice(NASTY))] = holder[key]
        else:
            holder[key] = copy.deepcopy(rng.choice(NASTY))
    return value[""]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each value in a structure, as what holds it and under which key."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += [(value, key), *places(item)]
    return found


def damage(data: bytes, rng: random.Random) -> bytes:
    """Bytes of which one to four places are changed, and sometimes the end cut off."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content) + 1)
        what = rng.random()
        if what < 0.4:
            content[place : place + 1] = bytes([rng.randrange(256)])
        elif what < 0.6:
            content[place : place + rng.randrange(16)] = rng.randbytes(rng.randrange(16))
        elif what < 0.8:
            content[place:place] = rng.choice(TOKENS)
        else:
            other = rng.randrange(len(content) + 1)
            content[place:place] = content[other : other + rng.randrange(64)]
    return bytes(content[: rng.randrange(len(content) + 1)] if rng.random() < 0.2 else content)
