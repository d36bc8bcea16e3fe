"""Reads a configuration: YAML, its base, overrides; the result is checked, complete and has absolute paths."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

from easydict import EasyDict

from utils.config.derive import DERIVED, check_data, check_training, derive_net
from utils.config.scalars import Scalar, as_value, load
from utils.config.validation import Paths, validate
from utils.errors import UserError
from utils.limits import CONFIG_BYTES, DEPTH
from utils.reading import check_path, check_plain, read_text

# Training a class's vis decoder writes below <configuration's folder>/<class>/.
CLASS_OUTPUTS = ("saver.save_dir", "saver.log_dir", "visualization.vis_dir")
MERGED_BY_NAME = ("net", "criterion")  # lists whose items a configuration changes one by one; other lists are replaced


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    needs: Iterable[str] = (),
    class_name: str | None = None,
    class_paths: Iterable[str] = (),
) -> EasyDict:
    """Read a configuration; the result holds every key of its sections, with absolute paths and the derived values in `net`.

    Args:
        path: the YAML file.
        overrides: "dotted.key=value" texts that replace values of the file; a list's item is named by position or by its `name`.
        needs: sections that must be there, beside net.
        class_name: the class that a tool works for: it replaces `{class_name}` in paths, and only the data set's images of this
            class are used.
        class_paths: keys whose paths are relative to <configuration's folder>/<class_name> instead, e.g. CLASS_OUTPUTS.

    Raises UserError naming the file and the dotted key of each problem and, for an unknown key, the nearest valid one.
    """
    return complete(read_config(path, overrides, needs, class_name, class_paths), path)


def stored_config(stored: Any, path: str | Path, needs: Iterable[str] = ()) -> EasyDict:
    """A configuration as the checkpoint `path` holds it, checked and completed like one that is read from YAML.

    needs: as in `load_config`. Raises UserError naming the checkpoint and the dotted key of each problem.
    """
    try:
        check_plain(stored)
        if not isinstance(stored, dict):
            raise ValueError(f"{type(stored).__name__} in place of a mapping")
    except ValueError as error:
        raise UserError(f"{path}: its configuration cannot be used, it holds {error}") from None
    raw = to_plain(stored)
    raw["net"] = without_derived(raw.get("net"))
    if isinstance(dataset := raw.get("dataset"), dict):  # there None stands for a section that is turned off
        parts = {split: dataset.get(split) for split in ("train", "test") if isinstance(dataset.get(split), dict)}
        off = {split: {key: False if value is None else value for key, value in part.items()} for split, part in parts.items()}
        raw["dataset"] = {**dataset, **off}
    for section in ("net", *needs):
        if not raw.get(section):
            raise UserError(f"{path}: its configuration has no section '{section}'")
    try:
        return complete(validate(raw), path)
    except UserError as error:
        raise UserError(f"{path}: its configuration cannot be used: {str(error).removeprefix(f'{path}: ')}") from None


def without_derived(net: Any) -> Any:
    """`net` as `complete` takes it: without what it adds."""
    if not isinstance(net, list):
        return net
    return [
        {**subnet, "kwargs": {key: value for key, value in subnet["kwargs"].items() if key not in DERIVED}}
        if isinstance(subnet, dict) and isinstance(subnet.get("kwargs"), dict)
        else subnet
        for subnet in net
    ]


def complete(config: dict[str, Any], path: str | Path) -> EasyDict:
    """Check a configuration across its sections and derive the values of `net`."""
    problems = []
    for step in (check_data, check_training, derive_net):
        try:
            step(config)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
    return EasyDict(config)


def read_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    needs: Iterable[str] = (),
    class_name: str | None = None,
    class_paths: Iterable[str] = (),
) -> dict[str, Any]:
    """The configuration as load_config reads it, each key checked, without derived values."""
    path = Path(path)
    raw = read_with_base(path)
    results = result_folders(raw)
    for override in overrides:
        apply_override(raw, override)
    follow_results(raw, results)
    if class_name is not None:
        check_class_name(class_name)
        if isinstance(dataset := as_value(raw.get("dataset")), dict):
            raw["dataset"] = {**dataset, "class_name": class_name}
    if "visualization.vis_dir" in class_paths:
        raw.setdefault("visualization", {})
    for section in ("net", *needs):
        if not as_value(raw.get(section)):
            raise UserError(f"{path}: the section '{section}' is missing")
    try:
        config = validate(raw)
        folder = path.resolve().parent
        Paths(folder, class_name, tuple(class_paths), folder / Path(config["run_dir"] or "").expanduser()).resolve(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config


def read_with_base(path: Path, readers: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's mapping merged over that of the file which its `base` names. readers: the files that led here."""
    raw = read_yaml(path)
    if (base := raw.pop("base", None)) is None:
        return raw
    try:
        check_path(base if isinstance(base, str) else None)
    except (TypeError, ValueError):
        raise UserError(f"{path}: base must be a path, not {base!r}") from None
    base_path, readers = path.parent / Path(base).expanduser(), (*readers, path.resolve())
    if len(readers) > DEPTH:
        raise UserError(f"{path}: more than {DEPTH} bases one upon the other")
    if base_path.resolve() in readers:
        raise UserError(f"{path}: base {base} leads back to {base_path.resolve()}: a configuration cannot be its own base")
    if not os.path.isfile(base_path):
        raise UserError(f"{path}: there is no base {base_path}; base is relative to the file that names it")
    return merge(read_with_base(base_path, readers), raw)


def merge(base: Any, own: Any, key: str = "") -> Any:
    """`own` over `base`: mappings by key, the lists of MERGED_BY_NAME by their items' names; everything else is replaced.

    Where `own` names another `type`, the kwargs of the base's type do not count.
    """
    if isinstance(base, dict) and isinstance(own, dict):
        if own.get("type", base.get("type")) != base.get("type"):
            base = {name: value for name, value in base.items() if name != "kwargs"}
        return {**base, **{name: merge(base.get(name), value, name) for name, value in own.items()}}
    if key in MERGED_BY_NAME and isinstance(base, list) and isinstance(own, list):
        by_name = {item.get("name"): item for item in base if isinstance(item, dict)}
        for item in own:
            name = item.get("name") if isinstance(item, dict) else None
            by_name[name] = merge(by_name.get(name), item)
        return list(by_name.values())
    return own


def to_plain(value: Any) -> Any:
    """EasyDicts as dicts, all the way down."""
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the file. Raises UserError naming file and line."""
    try:
        raw = load(read_text(path, CONFIG_BYTES))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text in UTF-8 ({error.reason}); save it again as UTF-8") from None
    except UserError as error:
        raise UserError(f"{path}, {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys, this file holds {type(raw).__name__}")
    return raw


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Put the value of "dotted.key=value" into the raw configuration, in place."""
    dotted, equals, text = override.partition("=")
    dotted = dotted.strip("\ufeff \t\r\n")  # from a table or a file; the value is taken as it is
    if not equals or not dotted:
        raise UserError(f"argument '{override}': overrides are written key=value, e.g. trainer.max_epoch=10")
    try:
        value = Scalar(text, as_value(load(text)))
    except UserError as error:
        value = Scalar(text, UserError(f"argument '{override}': the value is {error}"))
    *parents, last = dotted.split(".", DEPTH)
    node: Any = raw
    for part in parents:
        node = as_value(node)
        if not isinstance(node, dict | list):
            raise UserError(f"argument '{override}': there is no section to hold '{part}'")
        node = node[list_index(node, part, override)] if isinstance(node, list) else open_section(node, part, override)
    if isinstance(node, list):
        node[list_index(node, last, override)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"argument '{override}': there is no section to hold '{last}'")


def result_folders(raw: dict[str, Any]) -> dict[str, str]:
    """The save_dir of the evaluator, under the name "", and of its kinds of pictures."""
    evaluator = raw.get("evaluator") if isinstance(raw.get("evaluator"), dict) else {}
    parts = {"": evaluator, **{style: evaluator.get(style) for style in ("vis_compound", "vis_single")}}
    return {
        name: part["save_dir"] for name, part in parts.items() if isinstance(part, dict) and isinstance(part.get("save_dir"), str)
    }


def follow_results(raw: dict[str, Any], before: dict[str, str]) -> None:
    """Where overrides moved evaluator.save_dir, move the pictures in it along. before: result_folders without the overrides."""
    now = result_folders(raw)
    if "" not in before or now.get("") in (None, before[""]):
        return
    for style in now.keys() & before.keys() - {""}:
        if now[style] == before[style] and PurePath(before[style]).is_relative_to(before[""]):
            raw["evaluator"][style]["save_dir"] = str(now[""] / PurePath(before[style]).relative_to(before[""]))


def list_index(items: list, part: str, override: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in map(as_value, items)]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(items):
        return int(part)
    raise UserError(f"argument '{override}': '{part}' is neither a position 0 to {len(items) - 1} nor one of the names {names}")


def open_section(node: dict, part: str, override: str) -> Any:
    node[part] = as_value(node.get(part)) or {}
    if not isinstance(node[part], dict | list):
        raise UserError(f"argument '{override}': '{part}' is a value, not a section")
    return node[part]


def check_class_name(class_name: str) -> None:
    """The class becomes a folder's name. Raises UserError for what would be another folder."""
    if not class_name or class_name in (".", "..") or "/" in class_name or "\\" in class_name:
        raise UserError(f"'{class_name}' cannot be a class that a tool works for: it is not the name of a folder")
