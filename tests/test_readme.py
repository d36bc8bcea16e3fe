"""The README's table of keys is the configuration's; `python -m tests.test_readme` prints it anew."""

import re
from pathlib import Path

from utils.config.keys import KEYS, REQUIRED

ROOT = Path(__file__).resolve().parent.parent


def key_table() -> str:
    """A row a key: its dotted name, its default and its meaning, with the choices where there are some."""
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for dotted, key in KEYS.items():
        default = "–" if key.default in (None, "", {}, []) else f"`{key.default}`"
        default = "**required**" if key.default is REQUIRED else default
        choices = f": {', '.join(f'`{choice}`' for choice in key.choices)}" if key.choices else ""
        rows.append(f"| `{dotted}` | {default} | {key.meaning}{choices} |")
    return "\n".join(rows)


def test_the_table_of_keys_is_complete_and_current() -> None:
    assert key_table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_file_and_folder_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


if __name__ == "__main__":
    print(key_table())
