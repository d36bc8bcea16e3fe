"""Every relative link and anchor in README.md, CONTRIBUTING.md and docs/ resolves, and what docs/faults.md names exists."""

import re
from pathlib import Path

import pytest

from tests.helpers.tiny import ROOT

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


def test_every_page_is_in_the_site_and_in_the_readme_s_index() -> None:
    navigation, readme = (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), PAGES[0].read_text(encoding="utf-8")
    for page in PAGES[2:]:
        assert page.name in navigation
        assert page.name == "index.md" or f"docs/{page.name}" in readme
