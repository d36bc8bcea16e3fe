"""YAML whose plain values keep their text: a key's kind decides whether `01` is the text 01 or the number 1."""

import re
from contextlib import suppress
from typing import Any

import yaml

from utils.errors import UserError
from utils.limits import DIGITS
from utils.reading import check_plain, check_scalar

NONE = ("", "None", "null")
OLD_NUMBER = re.compile(r"[-+]?0[0-9_]+|.*:.*")  # YAML 1.1 reads 010 as 8 and 1:30 as 90, which nobody means


class Scalar(str):
    """A value as it was written. `value` is what YAML reads it as, or the UserError that reading it gave."""

    value: Any

    def __new__(cls, text: str, value: Any) -> "Scalar":
        scalar = super().__new__(cls, text)
        scalar.value = value
        return scalar


def as_text(value: Any) -> Any:
    """The value of a key that takes a text: literal, but None and null are none."""
    if not isinstance(value, Scalar):
        return value
    return None if value in NONE else str(value)


def as_value(value: Any) -> Any:
    """The value of a key that takes a number, a list or a section; what the latter hold is left as it is."""
    if not isinstance(value, Scalar):
        return value
    if isinstance(value.value, UserError):
        raise value.value
    return value.value


def as_plain(value: Any) -> Any:
    """The value without any Scalar, all the way down."""
    value = as_value(value)
    if isinstance(value, dict):
        return {str(name): as_plain(item) for name, item in value.items()}
    return [as_plain(item) for item in value] if isinstance(value, list) else value


class Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number (YAML 1.1 wants 1.0e-4), None is null, and a key may stand once only."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node, lines = super().compose_mapping_node(anchor), {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                problem = f"the key '{key.value}' stands in line {lines[key.value]} and again in line {line}"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            lines[key.value] = line
        return node

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        node = super().compose_node(parent, index)
        if node.end_mark is None:  # an alias inside of what it stands for
            raise yaml.composer.ComposerError(None, None, "an alias (*) leads back to itself", self.peek_event().start_mark)
        return node


def _construct(loader: Loader, node: yaml.ScalarNode) -> Any:
    value = node.value
    with suppress(ValueError, OverflowError):  # looks like a date or a number, and is none that can be used
        if len(value) <= DIGITS and not OLD_NUMBER.fullmatch(value):
            read = yaml.SafeLoader.yaml_constructors[node.tag](loader, node)
            if isinstance(read, int | float):
                check_scalar(read)
            value = read
    return value if node.style else Scalar(node.value, value)


Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))
Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^None$"), ["N"])
for kind in ("bool", "int", "float", "timestamp"):
    Loader.add_constructor(f"tag:yaml.org,2002:{kind}", _construct)


def load(text: str) -> Any:
    """The content of a YAML text. Raises UserError with the line of what is wrong."""
    try:
        content = yaml.load(text, Loader)
        check_plain(content)
        return content
    except (yaml.YAMLError, ValueError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{where}not valid YAML ({reason})") from None
    except RecursionError:
        raise UserError("not valid YAML (too many levels)") from None
