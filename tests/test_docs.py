"""What README.md, CONTRIBUTING.md and docs/ name exists: links, files, scripts, options, keys. The site needs no network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tiny import ROOT

CODE = ("datasets", "tools", "utils")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and MkDocs make of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_anchors_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_code_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:utils|models|datasets|tests|tools|experiments)/[\w/.-]+\.(?:py|sh|yaml|jpg))`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_options_and_keys_of_its_commands_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")  # a command goes on after a backslash
    for script in re.findall(r"(?:sh|python) ((?:tools|experiments|tests)/[\w/.-]+)", text):
        assert (ROOT / script).is_file(), script
    sources = "".join(file.read_text(encoding="utf-8") for folder in CODE for file in (ROOT / folder).rglob("*.py"))
    for command in re.findall(r"tools/\w+\.py.*", text):
        for option in re.findall(r"(?<=\s)--\w+", command):
            assert option == "--help" or f'"{option}"' in sources, option
    keys = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for key in re.findall(r"(?<![\w.])((?:dataset|trainer|saver|evaluator)\.[a-z_.]+)=", text):
        assert f"`{re.sub(r'^dataset.(train|test)', 'dataset', key)}" in keys, key


def test_the_site_builds_without_a_warning_and_loads_nothing_from_a_network(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="make docs installs mkdocs-material")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    for page in PAGES[2:]:
        html = (tmp_path / f"{page.stem}.html").read_text(encoding="utf-8")
        assert re.findall(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=.?(?:https?:)?//[^>]*", html) == []


def test_every_page_is_in_the_site_and_in_the_readme_s_index() -> None:
    navigation, readme = (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), PAGES[0].read_text(encoding="utf-8")
    for page in PAGES[2:]:
        assert page.name in navigation
        assert page.name == "index.md" or f"docs/{page.name}" in readme
