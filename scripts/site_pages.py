"""Hooks of mkdocs (mkdocs.yml): the pages that are not in docs/, and links as the site needs them.

The pages are written for the code host, where README.md is the door and links lead to files.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md"} | {
    name: name for name in ("LEARN.md", "CONTRIBUTING.md", "CHANGELOG.md")
}


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the top folder to the files of the site."""
    from mkdocs.structure.files import File

    for name, place in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Returns the text of a page with the links and foldings of the site."""
    return for_the_site(markdown)


def for_the_site(markdown: str) -> str:
    """Returns a text in which links lead to pages of the site, and what is folded is Markdown."""
    links = re.sub(r"\]\((?:\.\./|docs/)", "](", markdown)
    links = links.replace("](README.md", "](index.md")
    return links.replace("<details>", "<details markdown>")
