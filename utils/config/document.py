"""Writes docs/configuration.md from the schema: python -m utils.config.document > docs/configuration.md"""

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from utils.config.schema import KWARGS, SUBNET_KINDS, Config, DatasetPart, Subnet, section_of
from utils.config.validation import choices_of, is_list, join

HEAD = """# Configuration

This page is generated from `utils/config/schema.py`: `python -m utils.config.document > docs/configuration.md`.

An experiment is one YAML file. `python tools/train_val.py --config FILE --print_config` prints what a run will use.

- **Overrides.** `key=value` arguments replace values: `trainer.max_epoch=10`. A list's item is named by its `name` or its
  position: `net.reconstruction.kwargs.hidden_dim=128`.
- **Base.** `base: ../MVTec-AD/config.yaml` takes every value from another file, and the file names only what differs. Mappings
  are merged key by key, `net` and `criterion` item by item by `name`; every other list is replaced, and so are the
  kwargs of a section that names another `type`. `null` or `False` drops an optional section of the base. `base` is relative to
  the file that names it; a base may have a base.
- **Paths.** All other relative paths are relative to the folder of the configuration that is run, also those of its base and of
  overrides.
- **Splits.** `dataset.train` and `dataset.test` are merged over `dataset`: any dataset key may stand in them.
- **Errors.** An unknown key names the nearest valid one. All wrong keys and values are named at once, before anything starts;
  then come values that do not suit each other.

Keys that the published code has keep its defaults, except how often a line is logged. "ours" marks what it does not have.
"""
SUBNETS = {kind: name for name, kind in SUBNET_KINDS.items()} | {"backbone": "models.backbones.<name>"}


def page() -> str:
    tables: dict[str, list[str]] = {"Top level": ["| `base` | – | the configuration that this one is merged over |"]}
    for name, field in Config.model_fields.items():
        if name == "net":
            tables["net"] = list(rows(Subnet, "net[]"))
        elif child := section_of(field):
            tables[name] = list(rows(child, f"{name}[]" if is_list(field) else name))
        else:
            tables["Top level"].append(row(name, field))
    for kind, model in KWARGS.items():
        tables[f"kwargs of {SUBNETS[kind]}"] = list(rows(model, "kwargs"))
    head = "| key | default | meaning |\n| --- | --- | --- |\n"
    return "\n".join([HEAD, *(f"## {title}\n\n{head}" + "\n".join(table) + "\n" for title, table in tables.items())])


def rows(model: type[BaseModel], where: str) -> Iterator[str]:
    """A row a key, sections within sections included."""
    for name, field in model.model_fields.items():
        dotted, child = join(where, name), section_of(field)
        if child is None:
            yield row(dotted, field)
        elif child is DatasetPart:
            yield f"| `{dotted}` | – | dataset keys that hold for this split only, e.g. meta_file |"
        else:
            if field.description:
                yield f"| `{dotted}` | – | {field.description} |"
            yield from rows(child, f"{dotted}[]" if is_list(field) else dotted)


def row(dotted: str, field: FieldInfo) -> str:
    default = "–" if field.default in (None, "", []) else f"`{field.default}`"
    default = "**required**" if field.default is PydanticUndefined else default
    choices = choices_of(field) if dotted != "net[].type" else tuple(SUBNETS.values())
    listed = f": {', '.join(f'`{choice}`' for choice in choices)}" if choices else ""
    return f"| `{dotted}` | {default} | {field.description}{listed} |"


if __name__ == "__main__":
    print(page(), end="")
