import codecs
import gzip
import itertools
import lzma
import math
import os
import socket
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab import files
from lmlab.catalogue import CorpusConfig, FileConfig
from lmlab.data import corpora
from lmlab.errors import UserError

WHOLE = CorpusConfig(val_fraction=0.1, test_fraction=0.0, holdout_fraction=0.0)


def whole(corpus):
    return "".join(corpus(WHOLE))


def read(path):
    return "".join(
        corpora.file(
            FileConfig(val_fraction=0.1, test_fraction=0.0, holdout_fraction=0.0, path=str(path))
        )
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A file to be overwritten: hypothesis runs many examples in one test."""
    return tmp_path_factory.mktemp("texts") / "x.txt"


def test_sentence_has_nine_characters_and_suits_a_bigram():
    text = whole(corpora.sentence)
    pairs, firsts = Counter(itertools.pairwise(text)), Counter(text[:-1])
    optimum = -sum(n * math.log(n / firsts[pair[0]]) for pair, n in pairs.items()) / (len(text) - 1)
    assert len(set(text)) == 9
    assert optimum < 0.5


def test_tales_are_the_package_data_as_delivered():
    text = whole(corpora.tales)
    assert (
        files.sha256(text.encode())
        == "ef752551f06e31d7419ae8a9d2a9e299abac2bb0dc0bb2dc71e5d9e0a30634cd"
    )
    assert len(text.split("\n\n")) == 464


def test_pydoc_is_half_a_megabyte_of_this_python():
    assert len(whole(corpora.pydoc)) > 400_000


def test_a_file_is_read_to_the_letter(tmp_path):
    text = "naïve\r\n\tcafé 日本\u2028\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read(tmp_path / "a.txt") == text
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read(tmp_path / "bom.txt") == text


@given(st.text(min_size=1).filter(lambda text: text != "\ufeff"), st.booleans(), st.integers(1, 9))
def test_a_file_read_in_pieces_is_its_text(place, text, marked, size):
    """Wherever the pieces end, also within a character; a byte-order mark is one at the beginning
    alone.
    """
    place.write_bytes(b"\xef\xbb\xbf" * marked + text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "PIECE", size)
        assert read(place) == (text if marked else text.removeprefix("\ufeff"))
        assert max(map(len, corpora.pieces(place))) <= size


def test_a_byte_order_mark_is_left_out_at_the_beginning_of_each_file_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "PIECE", 4)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes("\ufeffone\ufefftwo\ufeff".encode())
    assert read(tmp_path) == "one\ufefftwo\ufeff\none\ufefftwo\ufeff"


WRONG = [b"\xff", b"\xe9 ", b"\xed\xa0\x80", b"\xf0\x9f\x98"]


@given(st.text(), st.sampled_from(WRONG), st.booleans(), st.integers(1, 9))
def test_the_first_byte_that_is_no_text_is_named_wherever_it_stands(
    place, text, wrong, marked, size
):
    before = b"\xef\xbb\xbf" * marked + text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "PIECE", size)
        for after in (b"", b"and more"):
            place.write_bytes(before + wrong + after)
            with pytest.raises(UserError, match=f"byte {len(before)} is not UTF-8 text"):
                read(place)


def test_a_folder_or_a_glob_is_read_in_order(tmp_path):
    texts = {
        "b.txt": "second",
        "a.txt": "first",
        "deep/c.md": "third",
        ".hidden": "no",
        ".git/x": "no",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read(tmp_path) == "first\nsecond\nthird"
    assert read(tmp_path / "*.txt") == "first\nsecond"
    assert read(tmp_path / "**/*.md") == "third"


def test_what_a_folder_holds_and_is_not_read_is_named_once(tmp_path, capfd):
    (tmp_path / "a.txt").write_text("text")
    assert read(tmp_path) == "text" and capfd.readouterr().err == ""
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for _ in range(2):
        assert read(tmp_path) == "text"
    assert capfd.readouterr().err == (
        f"path={tmp_path}: files read 1, left out 4: {tmp_path}/.hidden (hidden), "
        f"{tmp_path}/b.txt (empty), {tmp_path}/link (a link to nothing), "
        f"{tmp_path}/pipe (no plain file)\n"
    )
    for n in range(9):
        (tmp_path / f"c{n}").write_bytes(b"")
    assert read(tmp_path) == "text"
    assert "files read 1, left out 13: " in (said := capfd.readouterr().err)
    assert said.endswith(" and 8 others\n")
    assert read(tmp_path / "*.txt") == "text"
    assert "*.txt: files read 1, left out 1: " in capfd.readouterr().err
    (tmp_path / "deep.txt").mkdir()
    (tmp_path / "d.txt").symlink_to("a.txt")
    assert read(tmp_path / "*.txt") == "text\ntext"
    said = capfd.readouterr().err
    assert f"{tmp_path}/deep.txt (a folder)\n" in said
    assert f"files read more than once 1: {tmp_path}/d.txt (the same file as {tmp_path}/a.t" in said


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (
            b"caf\xe9 and more",
            "byte 3 is not UTF-8 .*iconv -f LATIN1 -t UTF-8 .*x.txt > .* Latin-1",
        ),
        (gzip.compress(b"a text", mtime=0), "begins like a file of gzip; unpack it first"),
        (lzma.compress(b"a text"), "begins like a file of xz"),
        (
            "plain ASCII text, at first sight".encode("utf-16-le"),
            "as in UTF-16; convert .*iconv -f UTF-16 ",
        ),
        *[
            (
                "plain text, and mehr als ASCII: ü 日本".encode(name),
                "as in UTF-32; convert .*iconv -f UTF-32 ",
            )
            for name in ("utf-32", "utf-32-le", "utf-32-be")
        ],
        (None, "no file there"),
    ],
)
def test_a_file_that_is_no_text_is_named(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"path={tmp_path}/x.txt: .*{complaint}"):
        read(tmp_path / "x.txt")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Stands in for the network: a file that the download takes for tiny-shakespeare."""
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "input.txt"
    source.write_text("To be, or not to be")
    monkeypatch.setattr(corpora, "SHAKESPEARE_URL", source.as_uri())
    monkeypatch.setattr(corpora, "SHAKESPEARE_SHA256", files.sha256(source.read_bytes()))
    return source


def test_shakespeare_is_downloaded_once(server):
    assert whole(corpora.shakespeare) == "To be, or not to be"
    server.unlink()
    assert whole(corpora.shakespeare) == "To be, or not to be"


def test_without_network_a_line_says_where_to_put_the_file(server, tmp_path):
    server.unlink()
    with pytest.raises(UserError) as error:
        whole(corpora.shakespeare)
    place = tmp_path / "cache" / "tinyshakespeare.txt"
    assert str(place) in str(error.value) and server.as_uri() in str(error.value)
    place.write_text("To be, or not to be")
    assert whole(corpora.shakespeare) == "To be, or not to be"


def test_a_wrong_download_is_not_kept(server, tmp_path):
    server.write_text("<html>captive portal</html>")
    with pytest.raises(UserError, match="data=shakespeare"):
        whole(corpora.shakespeare)
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "cache" / "tinyshakespeare.txt").write_text("something else")
    with pytest.raises(UserError, match="sha256 differs"):
        whole(corpora.shakespeare)


def text_of(path):
    """The text of data=file with this path."""
    return "".join(corpora.file(FileConfig(0.0, 0.0, 0.0, str(path))))


def test_a_folder_behind_a_link_is_read_and_a_loop_ends(tmp_path):
    for name, content in (("in/a.txt", "a" * 5), ("out/b.txt", "b" * 5)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "in/more").symlink_to(tmp_path / "out")
    (tmp_path / "out/back").symlink_to(tmp_path / "in")
    assert text_of(tmp_path / "in") == "aaaaa\nbbbbb"


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=r"closed: cannot be read \(Permission denied\)"):
        text_of(tmp_path)


def test_an_empty_file_adds_nothing_and_empty_files_alone_are_refused(tmp_path):
    (tmp_path / "__init__.py").write_bytes(b"")
    (tmp_path / "bom.txt").write_bytes(codecs.BOM_UTF8)
    with pytest.raises(UserError, match="there is no text, only empty files"):
        text_of(tmp_path)
    (tmp_path / "code.py").write_text("x = 1\n")
    assert text_of(tmp_path) == text_of(tmp_path / "*.py") == "x = 1\n"


def test_a_download_that_never_answers_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("LMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/input.txt"
        monkeypatch.setattr(corpora, "SHAKESPEARE_URL", url)
        with pytest.raises(UserError, match=r"the download failed .*timed out"):
            list(corpora.shakespeare(CorpusConfig(0.1, 0.0, 0.0)))
    assert socket.getdefaulttimeout() is None


def test_a_folder_is_read_by_its_visible_name_whatever_the_order_of_the_disk(tmp_path):
    for names in (("a", "current"), ("z", "Acurrent")):
        root = tmp_path / names[0]
        (root / ".releases/v1").mkdir(parents=True)
        (root / ".releases/v1/a.txt").write_text("text ")
        (root / "b/.hidden").mkdir(parents=True)
        (root / "b/.hidden/c.txt").write_text("more ")
        (root / names[1]).symlink_to(".releases/v1")
        (root / "later").symlink_to("b/.hidden")
        (root / "loop").symlink_to(".")
        assert sorted(read(root).split()) == ["more", "text"]
