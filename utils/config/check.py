"""Holds a raw configuration against the table of keys: unknown keys, wrong kinds, missing values, defaults, paths."""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils.config.keys import KEYS, KINDS, OPTIONAL, REQUIRED, SUBNET_KINDS, Key
from utils.errors import UserError


def grow_tree(prefix: str = "") -> dict[str, Any]:
    """KEYS as nested dicts; a list's items are described by the one item of a Python list."""
    tree: dict[str, Any] = {}
    for dotted, key in KEYS.items():
        if not dotted.startswith(prefix) or (not prefix and re.search(r"\[\w", dotted)):
            continue
        *parents, last = dotted[len(prefix) :].split(".")
        node = tree
        for part in parents:
            child = node.setdefault(part.removesuffix("[]"), [{}] if part.endswith("[]") else {})
            node = child[0] if isinstance(child, list) else child
        node[last] = key
    return tree


TREE = grow_tree()
SUBNET_TREES = {kind: grow_tree(f"net[{kind}].") for kind in set(SUBNET_KINDS.values())}


class Checker:
    """Checks the sections of one configuration; relative paths become absolute.

    Args:
        folder: what they are relative to.
        class_name: replaces `{class_name}` in paths; None where the tool is not started for a class.
        class_paths: keys whose paths are relative to folder/class_name instead.

    In every method `where` is the dotted name for messages and `key` the name in KEYS. All raise UserError.
    """

    def __init__(self, folder: Path, class_name: str | None = None, class_paths: Iterable[str] = ()) -> None:
        self.folder, self.class_name = folder, class_name
        self.class_paths = frozenset(class_paths)

    def section(self, raw: Any, tree: dict[str, Any], where: str = "", key: str = "", partial: bool = False) -> dict[str, Any]:
        """The section with defaults filled in; `partial`: only what is given, as in dataset.train, merged over dataset."""
        if not isinstance(raw, dict):
            raise UserError(f"{where} must be a mapping of keys, not {raw!r}")
        for name in raw:
            if name not in tree:
                deeper = () if where else below_top()
                raise UserError(f"{join(where, name)} is not a key{nearest(str(name), tree, where, deeper)}")
        checked: dict[str, Any] = {}
        for name, child in tree.items():
            if name not in raw and (partial or (not where and not isinstance(child, Key))):
                continue
            checked[name] = self.node(raw.get(name), child, join(where, name), join(key, name))
        return checked

    def node(self, raw: Any, child: Any, where: str, key: str) -> Any:
        if isinstance(child, Key):
            if key in ("dataset.train", "dataset.test"):
                return self.section(raw or {}, TREE["dataset"], where, "dataset", partial=True)
            return self.value(raw, child, where)
        if isinstance(child, list):
            if raw is not None and not isinstance(raw, list):
                raise UserError(f"{where} must be a list, not {raw!r}")
            if key == "net":
                return [self.subnet(item, f"net[{i}]") for i, item in enumerate(raw or [])]
            return [self.section(item, child[0], f"{where}[{i}]", f"{key}[]") for i, item in enumerate(raw or [])]
        if raw in (None, False) and key in OPTIONAL:
            return None
        return self.section({} if raw is None else raw, child, where, key)

    def subnet(self, raw: Any, where: str) -> dict[str, Any]:
        """One item of `net`; which kwargs it may have depends on its type."""
        if not isinstance(raw, dict):
            raise UserError(f"{where} must be a mapping of keys, not {raw!r}")
        where = f"net.{raw['name']}" if isinstance(raw.get("name"), str) else where
        if "type" in raw and str(raw["type"]) not in SUBNET_KINDS:
            raise UserError(f"{where}.type '{raw['type']}' is unknown{nearest(str(raw['type']), SUBNET_KINDS, '')}")
        kind = SUBNET_KINDS.get(str(raw.get("type")), "backbone")
        return self.section(raw, {**TREE["net"][0], **SUBNET_TREES[kind]}, where, f"net[{kind}]")

    def value(self, raw: Any, key: Key, where: str) -> Any:
        if raw is None:
            if key.default is REQUIRED:
                raise UserError(f"{where} is missing: {key.meaning}")
            raw = key.default
            if raw is None:
                return None
        elif raw is False and "off" in key.choices:  # how YAML reads a bare off
            raw = "off"
        elif not is_kind(raw, key.kind):
            raise UserError(f"{where} must be {KINDS[key.kind]}, not {raw!r}")
        if key.choices and raw not in key.choices:
            raise UserError(f"{where} '{raw}' is unknown{nearest(raw, key.choices, '')}")
        if key.least is not None and raw < key.least:
            raise UserError(f"{where} must be at least {key.least}, not {raw}")
        if key.most is not None and raw > key.most:
            raise UserError(f"{where} must be at most {key.most}, not {raw}")
        return self.path(raw, where) if key.kind == "path" and raw else raw

    def path(self, raw: str, where: str) -> str:
        if "{class_name}" in raw:
            if self.class_name is None:
                raise UserError(f"{where} '{raw}' is for the vis tools, which are started for a class with --class_name")
            raw = raw.replace("{class_name}", self.class_name)
        folder = self.folder / self.class_name if where in self.class_paths else self.folder
        return os.path.normpath(folder / Path(raw).expanduser())


def is_kind(value: Any, kind: str) -> bool:
    def is_int(x: Any) -> bool:
        return isinstance(x, int) and not isinstance(x, bool)

    def is_number(x: Any) -> bool:
        return is_int(x) or (isinstance(x, float) and x == x)

    def is_list(x: Any, each: Any, length: int | None = None) -> bool:
        return isinstance(x, list | tuple) and length in (None, len(x)) and all(map(each, x))

    return {
        "int": lambda: is_int(value),
        "number": lambda: is_number(value),
        "bool": lambda: isinstance(value, bool),
        "str": lambda: isinstance(value, str),
        "path": lambda: isinstance(value, str),
        "size": lambda: is_list(value, lambda x: is_int(x) and x > 0, 2),
        "triple": lambda: is_list(value, is_number, 3),
        "bools": lambda: is_list(value, lambda x: isinstance(x, bool), 3),
        "strides": lambda: is_list(value, lambda x: is_int(x) and x > 0) and len(value) > 0,
        "ints": lambda: is_list(value, is_int) and len(value) > 0,
        "names": lambda: is_list(value, lambda x: isinstance(x, str)),
        "mapping": lambda: isinstance(value, dict),
    }[kind]()


def join(where: str, name: Any) -> str:
    return f"{where}.{name}" if where else str(name)


def below_top() -> list[str]:
    """Dotted names of the sections and keys below the top level, up to the first list."""
    paths = [dotted.split("[")[0].split(".") for dotted in KEYS]
    return [".".join(path[:depth]) for path in paths for depth in range(2, len(path) + 1)]


def nearest(name: str, valid: Iterable[str], where: str, deeper: Iterable[str] = ()) -> str:
    """The end of a message about an unknown name: the nearest of the valid ones and those `deeper`, else all that are valid."""
    valid = list(valid)
    # compared by the last part, so that a subnet's long common prefix does not make all of them alike
    parts = {choice: choice.rsplit(".")[-1] for choice in (*valid, *deeper)}
    if close := difflib.get_close_matches(name.rsplit(".")[-1], parts.values(), n=1, cutoff=0.6):
        return f": did you mean '{join(where, next(choice for choice, part in parts.items() if part == close[0]))}'?"
    return f": use one of {', '.join(valid)}"
