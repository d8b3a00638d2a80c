"""Hooks of mkdocs (mkdocs.yml): the pages that are not in docs/, and links as the site needs them.

The pages are written for the code host, where README.md is the door and links lead to files. A file of
code to whose lines a page leads becomes a page of the site.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md"} | {
    name: name for name in ("LEARN.md", "CONTRIBUTING.md", "CHANGELOG.md")
}
LINE = re.compile(r"\]\((?:\.\./)?([\w/]+\.py)#L(\d+)\)")  # a link to a line of code


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the top folder, and those of code, to the files of the site."""
    from mkdocs.structure.files import File

    for name, place in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=text))
    for name in linked_code():
        files.append(File.generated(config, f"code/{name}.md", content=page_of_code(name)))
    return files


def linked_code() -> list[str]:
    """Returns the files of code to whose lines a page leads."""
    pages = [ROOT / name for name in PAGES] + sorted((ROOT / "docs").glob("*.md"))
    texts = [page.read_text(encoding="utf-8") for page in pages]
    return sorted({name for text in texts for name, _ in LINE.findall(text)})


def page_of_code(name: str) -> str:
    """Returns a page with the code of a file, whose lines have numbers and can be led to."""
    code = (ROOT / name).read_text(encoding="utf-8")
    return f'# {name}\n\n````python linenums="1"\n{code}````\n'


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Returns the text of a page with the links and foldings of the site."""
    if page.file.src_uri.startswith("code/"):
        return markdown
    if page.file.src_uri == "glossary.md":
        markdown = with_headings(markdown)
    return for_the_site(markdown)


def with_headings(glossary: str) -> str:
    """Returns the glossary with a heading for each word, so that the search leads to it."""
    words = re.sub(r"^- \*\*(.+?)\*\*: ", r"## \1\n\n", glossary, flags=re.M)
    return re.sub(r"^  (?=\S)", "", words, flags=re.M)


def for_the_site(markdown: str) -> str:
    """Returns a text in which links lead to pages of the site, and what is folded is Markdown."""
    links = LINE.sub(r"](code/\1.md#__codelineno-0-\2)", markdown)
    links = re.sub(r"\]\((?:\.\./|docs/)", "](", links)
    links = links.replace("](README.md", "](index.md")
    return links.replace("<details>", "<details markdown>")
