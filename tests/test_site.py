"""The site of the pages (make docs): nothing is missing in it, and each page can be tried or looked at."""

import html
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from urllib.parse import unquote

import pytest
import yaml

from scripts import site_pages
from tests.conftest import ROOT

SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def pages(nav):
    """The pages of the navigation, in order."""
    for entry in nav:
        for value in entry.values():
            yield from pages(value) if isinstance(value, list) else [value]


NAV = list(pages(SITE["nav"]))
AT_THE_TOP = {place: name for name, place in site_pages.PAGES.items()}


def source(page):
    """The file of a page."""
    return ROOT / AT_THE_TOP[page] if page in AT_THE_TOP else ROOT / "docs" / page


def test_every_page_is_in_the_navigation_once():
    assert len(NAV) == len(set(NAV)) and NAV[0] == "index.md"
    assert {*NAV} == {*AT_THE_TOP, *(path.name for path in (ROOT / "docs").glob("*.md"))}


@pytest.mark.parametrize("page", [page for page in NAV if page != "CHANGELOG.md"])
def test_a_page_has_a_command_that_is_tested_or_something_to_look_at(page):
    text = source(page).read_text(encoding="utf-8")
    lines_of_code = r"#L\d+\)"  # tests/test_learn.py looks them up
    assert re.search(rf"^```(sh|python)$|!\[|^\|[ :-]*---|{lines_of_code}", text, re.M)


def test_what_contributing_says_to_type_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```sh\n(.*?)```", text, re.S)
    verbs = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    assert {*re.findall(r"^make (\w+)", block, re.M)} <= {*verbs}
    for path in re.findall(r"-m pytest (\S+)", block):
        assert (ROOT / path).is_file()


def test_links_of_the_code_host_lead_to_pages_of_the_site():
    text = "[a](docs/x.md) [b](../LEARN.md#one) ![c](docs/x.png) [d](../README.md) <details><summary> [e](../lmlab/files.py#L7)"
    assert site_pages.for_the_site(text) == (
        "[a](x.md) [b](LEARN.md#one) ![c](x.png) [d](index.md) <details markdown><summary> [e](code/lmlab/files.py.md#__codelineno-0-7)"
    )


def check_places(site):
    """Each link of the site to a place in one of its pages leads to that place."""
    texts = {path: path.read_text() for path in site.rglob("*.html")}
    found = 0
    for path, text in texts.items():
        for page, place in re.findall(r'href="(?!https?:)([^"#]*)#([^"]+)"', text):
            target = (path.parent / page).resolve() if page else path
            found += "code/" in page
            assert re.search(
                rf'(id|name)="{re.escape(html.unescape(unquote(place)))}"', texts[target]
            ), (path, page, place)
    assert found > 30  # to lines of code


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="make docs installs mkdocs")
def test_the_site_is_built_without_a_warning_has_a_search_and_loads_nothing_from_elsewhere(
    tmp_path,
):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    found = json.loads((tmp_path / "search/search_index.json").read_text())["docs"]
    texts = {place["location"]: place["text"] for place in found}
    assert any(place.startswith("api.html#lmlab.api.load_run") for place in texts)
    assert any(place.startswith("glossary.html#perplexity") for place in texts)
    check_places(tmp_path)
    assert any("Holm" in text for text in texts.values())
    for page in tmp_path.glob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|link)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text()
        )
        assert not loaded, page
