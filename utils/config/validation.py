"""Holds a raw configuration against the schema. All problems are found; each names its dotted key."""

import difflib
import os
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from utils.config.scalars import as_value
from utils.config.schema import PATH, SUBNET_KINDS, SUBNETS, Config, DatasetPart, Kind, parts_of, section_of
from utils.errors import UserError

MOST = 5  # problems in a message
OUTPUTS = ("saver.save_dir", "saver.log_dir", "saver.load_path", "evaluator.save_dir", "evaluator.vis_compound.save_dir")
OUTPUTS += ("evaluator.vis_single.save_dir", "dataset.feature_cache.dir", "visualization.vis_dir")


def validate(raw: dict[str, Any]) -> dict[str, Any]:
    """The configuration with every default, as plain values. Raises UserError with all its problems in one line."""
    problems: list[str] = []
    checked = validate_section(Config, {name: value for name, value in raw.items() if name != "net"}, "", problems)
    net = [
        validate_subnet(as_value(item), index, problems)
        for index, item in enumerate(as_list(as_value(raw["net"]), "net", problems))
    ]
    if problems:
        more = f"; and {len(problems) - MOST} more" if len(problems) > MOST else ""
        raise UserError("; ".join(problems[:MOST]) + more)
    return {**checked, "net": net}


def as_list(raw: Any, where: str, problems: list[str]) -> list[Any]:
    if isinstance(raw, list):
        return raw
    problems.append(f"{where} must be a list, not {raw!r}")
    return []


def validate_subnet(raw: Any, index: int, problems: list[str]) -> dict[str, Any]:
    """One item of `net`; its type decides which kwargs it may have."""
    if not isinstance(raw, dict):
        problems.append(f"net[{index}] must be a mapping of keys, not {raw!r}")
        return {}
    where = f"net.{raw['name']}" if isinstance(raw.get("name"), str) else f"net[{index}]"
    return validate_section(SUBNETS[SUBNET_KINDS.get(str(raw.get("type")), "backbone")], raw, where, problems)


def validate_section(model: type[BaseModel], raw: dict[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    """The section as plain values; its problems are added to `problems`."""
    try:
        return plain(model.model_validate(raw))
    except ValidationError as error:
        found = dict.fromkeys(describe(model, details, where) for details in error.errors(include_url=False))
        problems += found
        return {}


def plain(section: BaseModel) -> dict[str, Any]:
    """The section's keys in the schema's order.

    The whole configuration has only the sections that the file has and does not turn off; dataset.train and dataset.test have
    only the keys that the file has, also those that are turned off there.
    """
    result = {}
    for name, field in type(section).model_fields.items():
        value, given = getattr(section, name), name in section.model_fields_set
        if isinstance(section, Config) and section_of(field):
            given = given and value is not None
        elif not isinstance(section, DatasetPart):
            given = True  # a default stands for a key that is left out
        if given:
            result[name] = plain_value(value)
    return result


def plain_value(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return plain(value)
    return [plain_value(item) for item in value] if isinstance(value, list) else value


# --- the schema, looked at from outside


def kind_of(field: FieldInfo) -> Kind | None:
    """What a plain value must be, in words."""
    return next((p for p in (*field.metadata, *parts_of(field.annotation)) if isinstance(p, Kind)), None)


def choices_of(field: FieldInfo) -> tuple[Any, ...]:
    return next((typing.get_args(p) for p in parts_of(field.annotation) if typing.get_origin(p) is typing.Literal), ())


def is_list(field: FieldInfo) -> bool:
    return typing.get_origin(field.annotation) is list and section_of(field) is not None


# --- paths


@dataclass(frozen=True)
class Paths:
    """Where relative paths lead: to `folder`, those of OUTPUTS to `run_dir`; of `class_paths` to its class_name."""

    folder: Path
    class_name: str | None  # replaces {class_name} in a path
    class_paths: tuple[str, ...]
    run_dir: Path

    def resolve(self, values: dict[str, Any], model: type[BaseModel] = Config, where: str = "") -> None:
        """Make the paths of a section absolute, in place."""
        for name, field in model.model_fields.items():
            dotted, value, child = join(where, name), values.get(name), section_of(field)
            if dotted == "net":
                for subnet in value:
                    self.resolve(subnet, SUBNETS[SUBNET_KINDS[subnet["type"]]], f"net.{subnet['name']}")
            elif child and isinstance(value, dict):
                self.resolve(value, child, dotted)
            elif isinstance(value, str) and value and kind_of(field) is PATH:
                values[name] = self.absolute(value, dotted)

    def absolute(self, value: str, where: str) -> str:
        if "{class_name}" in value:
            if self.class_name is None:
                raise UserError(f"{where} '{value}' is for the vis tools, which are started for a class with --class_name")
            value = value.replace("{class_name}", self.class_name)
        folder = self.run_dir if where in OUTPUTS or where.endswith(".save_recon.save_dir") else self.folder
        folder = folder / self.class_name if where in self.class_paths else folder
        return os.path.normpath(folder / Path(value).expanduser())


# --- messages


def describe(model: type[BaseModel], details: dict[str, Any], where: str) -> str:
    """A problem that pydantic found, in our words. where: the dotted name of the section that `model` describes."""
    problem, value = details["type"], details["input"]
    field: FieldInfo | None = None
    section: type[BaseModel] | None = model
    for part in details["loc"]:
        if isinstance(part, int) and section:
            where = f"{where}[{part}]"
        elif section and part in section.model_fields:
            field = section.model_fields[part]
            where, section = join(where, part), section_of(field)
        elif section and problem == "extra_forbidden":
            deeper = below_top() if section is Config else ()
            return f"{join(where, part)} is not a key{nearest(str(part), section.model_fields, where, deeper)}"
        # else: a part of a plain value, which is named as a whole
    if problem == "missing":
        return f"{where} is missing: {field.description}"
    if section:
        kind = "a list" if field and is_list(field) and not where.endswith("]") else "a mapping of keys"
        return f"{where} must be {kind}, not {value!r}"
    if (choices := choices_of(field)) and (isinstance(value, str) or where.startswith("net")):
        return f"{where} '{value}' is unknown{nearest(str(value), choices)}"
    bounds = {"greater_than_equal": ("ge", "at least"), "less_than_equal": ("le", "at most")}
    if problem in bounds:
        name, words = bounds[problem]
        return f"{where} must be {words} {details['ctx'][name]:g}, not {value}"
    kind = kind_of(field)
    return f"{where} must be {kind.words if kind else 'a text'}, not {value!r}"


def join(where: str, name: Any) -> str:
    return f"{where}.{name}" if where else str(name)


def below_top() -> list[str]:
    """Dotted names of the sections and keys below the top level, up to the first list."""

    def names(model: type[BaseModel], where: str) -> Iterator[str]:
        for name, field in model.model_fields.items():
            if where:
                yield f"{where}.{name}"
            child = section_of(field)
            if child and not is_list(field) and child is not DatasetPart:
                yield from names(child, join(where, name))

    return list(names(Config, ""))


def nearest(name: str, valid: Iterable[str], where: str = "", deeper: Iterable[str] = ()) -> str:
    """The end of a message about an unknown name: the nearest of the valid ones and those `deeper`, else all that are valid."""
    valid = list(valid)
    # compared by the last part, so that a subnet's long common prefix does not make all of them alike
    parts = {choice: choice.rsplit(".")[-1] for choice in (*valid, *deeper)}
    if close := difflib.get_close_matches(name.rsplit(".")[-1], parts.values(), n=1, cutoff=0.6):
        return f": did you mean '{join(where, next(choice for choice, part in parts.items() if part == close[0]))}'?"
    return f": use one of {', '.join(valid)}"
