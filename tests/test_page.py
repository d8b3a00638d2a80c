"""The page in which a trained model writes: JavaScript that equals the library, number for number."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lmlab
from lmlab.catalogue import NGramConfig
from lmlab.commands import page as command
from lmlab.commands import sample
from lmlab.data import tokenizer_json
from lmlab.data.subwords import ByteTokenizer, PairTokenizer, learned
from lmlab.data.tokenizer_json import BYTE_LEVEL, parsed
from lmlab.data.tokenizers import CharTokenizer
from lmlab.errors import UserError, one_line_errors
from lmlab.inference import generate, page
from lmlab.inference.attention_maps import attention_maps
from lmlab.inference.template import fill_page
from lmlab.models.base import LanguageModel, build_model
from lmlab.models.page import PageModel
from tests.conftest import ROOT, metrics, refused
from tests.test_models import CONFIGS, T, V

mini_racer = pytest.importorskip("py_mini_racer")  # the engine of Chromium, without a browser

ALL = CONFIGS | {
    "modern-mup": replace(CONFIGS["modern"], parametrization="mup", base_n_embd=8),
    "gpt-tanh": replace(CONFIGS["gpt-bias"], gelu="tanh"),
    "ngram": NGramConfig(order=4),
    "ngram-1": NGramConfig(order=1),
}
ATOB = """
function atob(text) {
  const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  let bits = 0, n = 0, bytes = "";
  for (const letter of text) {
    if (letter === "=") break;
    [bits, n] = [bits << 6 | letters.indexOf(letter), n + 6];
    if (n >= 8) [bytes, n] = [bytes + String.fromCharCode(bits >> n - 8 & 255), n - 8];
    bits &= 0xffff;
  }
  return bytes;
}
"""


@pytest.fixture(scope="module")
def browser():
    """Evaluates JavaScript beside the code of a page, and returns what JSON makes of the result."""
    engine = mini_racer.MiniRacer()
    engine.eval(ATOB + page.CODE.read_text(encoding="utf-8"))
    return lambda code: json.loads(engine.eval(f"JSON.stringify((() => {{ {code} }})())"))


def some_model(name):
    """A model whose weights are all far from their start; an n-gram has counted a text."""
    torch.manual_seed(0)
    model = build_model(ALL[name], V).eval()
    if name.startswith("ngram"):
        model.count(np.random.default_rng(0).zipf(1.3, 500).clip(max=V) - 1)
        return model
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def in_browser(model, weights="int16"):
    """The JavaScript that makes the model."""
    made = model.in_page(V)
    arrays = {name: page.packed(array, weights) for name, array in made.arrays.items()}
    values = {"kind": made.kind, "sizes": made.sizes, "arrays": arrays}
    return f"const model = modelIn({json.dumps(values)});"


READ = "const reader = new Reader(model, {block}), tokens = {tokens};"
EACH = "return tokens.map((_, t) => [...softmax(reader.logits(tokens.slice(0, t + 1)))]);"


def probs_of(model, tokens, block):
    """The probabilities after each token, read one by one as when the library writes."""
    reader = generate.reader_for(model, 1, block, "32-true")
    rows = [reader.logits(tokens[None, : t + 1])[0] for t in range(len(tokens))]
    return torch.tensor(np.array(rows)).double().softmax(-1).numpy()


@pytest.mark.parametrize("weights", ["int16", "int8"])
@pytest.mark.parametrize("name", ALL)
def test_probabilities_are_those_of_the_library(name, weights, browser):
    """For three times as many tokens as the model sees at once, with the same rounded weights."""
    model = some_model(name)
    block = model.config.block_size
    tokens = np.random.default_rng(1).integers(V, size=3 * block + 2)
    wanted = probs_of(page.rounded(model, weights), tokens, block)
    code = in_browser(model, weights) + READ.format(block=block, tokens=tokens.tolist()) + EACH
    np.testing.assert_allclose(browser(code), wanted, atol=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_seed_draws_the_text_that_the_library_draws(name, browser):
    model = some_model(name)
    block = model.config.block_size
    prompt = [3, 1, 2]
    options = {"seed": 4_000_000_000, "temperature": 0.7, "top_k": 5}
    rounded = page.rounded(model, "int16")
    wanted = [
        int(token[0])
        for token in generate.generate(rounded, np.array([prompt]), 60, block, **options)
    ]
    drawing = """
        const random = new Mersenne(4000000000);
        for (let n = 0; n < 60; n++) tokens.push(draw(shares(reader.logits(tokens), 0.7, 5), random));
        return tokens.slice(3);
    """
    found = browser(in_browser(model) + READ.format(block=block, tokens=prompt) + drawing)
    assert found == wanted


def test_the_library_knows_which_classes_the_page_has(browser):
    assert browser("return Object.keys(MODELS);") == list(page.KINDS)


def test_random_numbers_are_those_of_torch(browser):
    """Beyond the 624 numbers of one state, too."""
    random = torch.Generator().manual_seed(7)
    wanted = [torch.rand(1, 1, generator=random).item() for _ in range(2000)]
    code = (
        "const random = new Mersenne(7); return Array.from({length: 2000}, () => random.uniform());"
    )
    assert browser(code) == wanted


def test_likeliest_are_the_first_of_a_stable_sort(browser):
    probs = np.random.default_rng(0).integers(9, size=50) / 9  # with many equal ones
    wanted = np.argsort(-probs, kind="stable")
    for n in (1, 7, 50, 60):
        found = browser(f"return likeliest({probs.tolist()}, {n});")
        assert found == wanted[:n].tolist()


@pytest.mark.parametrize("name", ["gpt", "gpt-bias", "modern", "modern-taken-back", "modern-mup"])
def test_attention_is_that_of_the_library(name, browser):
    model = some_model(name)
    tokens = np.random.default_rng(2).integers(V, size=T)
    maps = attention_maps(page.rounded(model, "int16"), torch.from_numpy(tokens))  # (L, H, T, T)
    code = "return tokens.map(token => { model.next(token); return [...model.looks]; });"
    found = browser(in_browser(model) + READ.format(block=T, tokens=tokens.tolist()) + code)
    for t, looks in enumerate(found):
        wanted = maps[:, :, t, : t + 1].flatten()
        np.testing.assert_allclose(looks, wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["exact", "tanh"])
def test_gelu_is_torchs(kind, browser):
    z = torch.linspace(-9, 9, 181, dtype=torch.float64)
    name = {"exact": "gelu", "tanh": "tanh"}[kind]
    found = browser(f"return {z.tolist()}.map(BENDS.{name});")
    approximate = {"exact": "none", "tanh": "tanh"}[kind]
    wanted = torch.nn.functional.gelu(z, approximate=approximate)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)


def test_each_row_is_rounded_by_its_own_largest_number(browser):
    """Whatever its size; a page has the numbers that the loss in it was measured with."""
    weight = torch.tensor([[1.0, -0.3, 0.2], [7e4, 1e-3, 3e4], [-1e-30, 0, 1e-31], [0, 0, 0]])
    for weights, steps in (("int16", 2**15 - 1), ("int8", 2**7 - 1)):
        wanted = page.unpacked(weight, weights)
        found = browser(f"return [...arrayIn({json.dumps(page.packed(weight, weights))})];")
        np.testing.assert_allclose(found, wanted.flatten().numpy(), rtol=1e-6)
        error = (wanted - weight).abs() / weight.abs().amax(1, keepdim=True).clamp_min(1e-38)
        assert error.max() <= 0.51 / steps
        vector = json.dumps(page.packed(weight[0], weights))
        assert browser(f"return [...arrayIn({vector})];") == weight[0].tolist()


# Tokenizers

TEXTS = st.text(max_size=60) | st.text("ab 'sétn\n\t1２ \u3000\u0085<|->", max_size=60)
PAIRS = learned(["She's said: the cat's the cats'  42 times, été\n\n then 'll do"] * 9, 300)
SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
SPECIAL |= {"special": True, "id": len(parsed(PAIRS)["model"]["vocab"]), "content": "<|->"}
DIGITS = {"type": "Digits", "individual_digits": True}
SPLIT = {
    "type": "Split",
    "pattern": {"Regex": r" ?\p{L}+"},
    "behavior": "Isolated",
    "invert": False,
}


def changed(**parts):
    return json.dumps(parsed(PAIRS) | parts)


TOKENIZERS = {
    "char": CharTokenizer("\n abcdé's"),
    "byte": ByteTokenizer(),
    "bpe": PairTokenizer(PAIRS),
    "bpe, added": PairTokenizer(changed(added_tokens=[SPECIAL])),
    "bpe, cut": PairTokenizer(
        changed(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [SPLIT, DIGITS, BYTE_LEVEL | {"use_regex": False}],
            }
        )
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_page_encodes_as_the_library(name, browser):
    tokenizer = TOKENIZERS[name]
    browser(f"globalThis.tokenizer = tokenizerIn({json.dumps(tokenizer.in_page())}); return 0;")

    @settings(max_examples=150, deadline=None, database=None)
    @given(TEXTS)
    def check(text):
        found = browser(f"return tokenizer.encode({json.dumps(text)});")
        known = text
        if name == "char":
            known = "".join(char for char in text if char in tokenizer.chars)
            assert set(found["unknown"]) == set(text) - set(tokenizer.chars)
        assert found["ids"] == (tokenizer.encode(known).tolist() if known else [])

    check()
    for token in range(tokenizer.vocab_size):
        found = browser(f"return [...tokenizer.bytes({token})];")
        lab = tokenizer.chars[token].encode() if name == "char" else tokenizer.tokens[token]
        assert bytes(found) == lab


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ({"added_tokens": [SPECIAL | {"lstrip": True}]}, "lstrip"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT | {"invert": True}]}},
            "Split",
        ),
    ],
)
def test_a_tokenizer_that_a_page_cannot_follow_is_refused(parts, word):
    with pytest.raises(UserError, match=word):
        tokenizer_json.pairs_in_page(parsed(changed(**parts)))


def cut_by(pattern):
    """The parts of a tokenizer.json that cuts texts by a pattern alone."""
    parts = [SPLIT | {"pattern": {"Regex": pattern}}, BYTE_LEVEL | {"use_regex": False}]
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}}


PATTERNS = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2's
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s",
    r"[\s\S]",
    r"\d+|\D",
    r"[a-c\-é]{2,}?|[^\]\\'|.-]+",
    r"\p{Lu}?[\p{Ll}\p{M}]*?é|(?:a|bb?)+|(?=ab)a",
    r"[\P{L}e-]+|/",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_page_cuts_by_a_pattern_as_the_library(pattern, browser):
    text = changed(**cut_by(pattern))
    library = tokenizers.Tokenizer.from_str(text).pre_tokenizer
    values = json.dumps(PairTokenizer(text).in_page())
    browser(f"globalThis.cut = tokenizerIn({values}); return 0;")

    @settings(max_examples=100, deadline=None, database=None)
    @given(TEXTS)
    def check(text):
        found = browser(f"return cut.words({json.dumps(text)}).map(word => word.join(''));")
        assert found == [word for word, _ in library.pre_tokenize_str(text)]

    check()


@pytest.mark.parametrize(
    "pattern",
    [
        r"\w+", r"\h+", r"[[:alpha:]]+", r"(?x)a", r"^.+$", r"a++", r"a?+", r"(?i:'s)", r"(?<=a)b",
        r"[a&&b]", r"(?!a)+", r"a{3}?", r"\p{Han}+", r"\p{^L}", r"[\d-a]*\b", r"(?<a>b)", r"[a-\d]",
        r"\x41", r"a{,3}", r"(a)\1", r"\A", r"\R",
    ],
)  # fmt: skip
def test_a_pattern_that_may_mean_another_thing_in_a_page_is_refused(pattern):
    r"""\w has other letters there, ++ would be a fault, and . and ^ go by other line ends."""
    with pytest.raises(UserError, match="a page cannot encode texts with"):
        tokenizer_json.cuts_of(SPLIT | {"pattern": {"Regex": pattern}})


def test_what_cuts_after_the_bytes_is_refused():
    parts = {"type": "Sequence", "pretokenizers": [BYTE_LEVEL, SPLIT]}
    with pytest.raises(UserError, match="Split after ByteLevel"):
        tokenizer_json.pairs_in_page(parsed(changed(pre_tokenizer=parts)))


# The command


def data_of(content):
    return json.loads(re.search(r'id="data">(.*?)</script>', content, re.S)[1])


def test_a_page_tells_its_loss_beside_that_of_the_original(run, here, capsys):
    command.main(["run=run", "out=page.html"])
    content = Path("page.html").read_text(encoding="utf-8")
    (model,) = data_of(content)["models"]
    found = [float(number) for number in re.findall(r"\d+\.\d{4}", model["loss"])]
    loss = metrics(run)["best/val/loss"]
    assert found[1] == pytest.approx(loss, abs=1e-4)
    assert found[0] == pytest.approx(loss, abs=1e-3)
    assert capsys.readouterr().out == "page.html\n"


def test_two_models_and_before_stand_side_by_side(trained, run, here):
    shutil.copytree(trained / "other", here / "other")
    command.main(["run=run,other", "before=true", "out=page.html"])
    models = data_of(Path("page.html").read_text(encoding="utf-8"))["models"]
    assert ["before training" in model["about"] for model in models] == [True, False, False]
    uniform = f"{math.log(len(models[0]['tokenizer']['chars'])):.4f}"  # a bigram knew nothing
    assert uniform in models[0]["loss"]


def test_text_in_a_page_is_no_code(run, here, monkeypatch):
    """Neither a prompt nor a name, whatever it holds; and the page may fetch nothing."""
    hostile = "</script><img src=x onerror=alert(1)><!--title-->/*data*/"
    checked = page.checked_tokenizer
    monkeypatch.setattr(page, "checked_tokenizer", lambda run, prompt: checked(run, ""))
    command.main(["run=run", "out=page.html", f"prompt={hostile}"])
    content = Path("page.html").read_text(encoding="utf-8")
    assert content.count("<script") == content.count("</script>") == 4
    assert data_of(content)["prompt"] == hostile
    assert "<img" not in content and "default-src 'none'" in content
    assert not re.search(r"(src|href)=.?http|@import|fetch\(|XMLHttp|innerHTML|eval\(", content)


def refusing(arguments):
    with one_line_errors():
        command.main(arguments)


def test_what_cannot_be_made_into_a_page_is_refused(run, here, capsys):
    for words, message in (
        ("run=run out=page.txt", ["out=page.txt", "model.html"]),
        ("run=run weights=int4", ["weights=int4", "int16, int8"]),
        ("run=run,run,run,run before=true", ["5 models", "at most 4"]),
        ("run=nowhere", ["nowhere"]),
        ("run=run prompt=Q", ["prompt=Q: ", "'Q'", "known are"]),
    ):
        refused(capsys, lambda words=words: refusing(words.split()), message)
    assert not list(here.glob("*.html"))


class RNN(LanguageModel):
    """Somebody's own model, as in examples/my_lab.py."""

    def __init__(self):
        super().__init__(SimpleNamespace(block_size=T, n_embd=6))
        self.token_embedding = torch.nn.Embedding(V, 6)
        self.memory = torch.nn.RNN(6, 6, batch_first=True)
        self.head = torch.nn.Linear(6, V)

    def forward(self, idx):
        return self.head(self.memory(self.token_embedding(idx))[0])


def test_an_own_model_brings_its_own_code(browser):
    """With the code that docs/page.md shows."""
    text = (ROOT / "docs/page.md").read_text(encoding="utf-8")
    names = {"lmlab": lmlab}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], names)
    RNN.in_page = names["RNN"].in_page
    torch.manual_seed(0)
    model = RNN().eval()
    tokens = np.random.default_rng(0).integers(V, size=2 * T)
    code = model.in_page(V).script + in_browser(model)
    found = browser(code + READ.format(block=T, tokens=tokens.tolist()) + EACH)
    np.testing.assert_allclose(found, probs_of(model, tokens, T), atol=1e-4)  # of int16


def test_a_model_without_code_for_a_page_is_named(monkeypatch, run, here, capsys):
    from lmlab.models.bigram import Bigram

    monkeypatch.setattr(Bigram, "in_page", LanguageModel.in_page)
    refused(
        capsys,
        lambda: refusing(["run=run"]),
        ["model=bigram", "Bigram has no in_page()"],
    )


FAULTS = {
    "None": (None, "is NoneType; it needs to be lmlab.PageModel"),
    "no script": (PageModel("toy", {}, {}), "needs a script with MODELS.toy = class"),
    "another kind": (PageModel(3, {}, {}), "has a kind or a script that is no text"),
    "the end": (PageModel("bigram", {}, {}, "</script>"), "has a script with </script in it"),
    "comment": (PageModel("bigram", {}, {}, "// <!-- a"), "has a script with <!-- in it"),
    "beginning": (PageModel("bigram", {}, {}, "'<Script'"), "has a script with <Script in it"),
    "sizes": (PageModel("bigram", {"n": torch.tensor(3)}, {}), "no plain values"),
    "nan": (PageModel("bigram", {}, {"a": torch.tensor([math.nan])}), "arrays['a']"),
    "list": (PageModel("bigram", {}, {"a": [1.0]}), "arrays['a']"),
    "empty": (PageModel("bigram", {}, {"a": torch.zeros(3, 0)}), "arrays['a']"),
    "large": (PageModel("bigram", {}, {"a": torch.tensor([2**40])}), "arrays['a']"),
    "complex": (PageModel("bigram", {}, {"a": torch.zeros(1, dtype=torch.cfloat)}), "arrays['a']"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_an_own_in_page_returns_is_checked(name, monkeypatch, run, here, capsys):
    from lmlab.models.bigram import Bigram

    returned, words = FAULTS[name]
    monkeypatch.setattr(Bigram, "in_page", lambda self, vocab_size: returned)
    refused(capsys, lambda: refusing(["run=run"]), ["what Bigram.in_page returns ", words])


def test_each_model_is_computed_by_its_own_script(trained, run, here, monkeypatch):
    """Even if the scripts name their class alike, or as one of the lab's, or as a name of the page."""
    from lmlab.models.bigram import Bigram

    script = "const data = {n}; MODELS.bigram = class {{ after() {{ return [data]; }} }};  // the last line"
    made = [PageModel("bigram", {}, {}, script.format(n=n)) for n in (7, 8)]
    made.append(PageModel("bigram", {}, {"table": torch.eye(3)}))
    returned = iter(made)
    monkeypatch.setattr(Bigram, "in_page", lambda self, vocab_size: next(returned))
    shutil.copytree(trained / "other", here / "other")
    command.main(["run=run,other", "before=true", "out=page.html"])
    content = Path("page.html").read_text(encoding="utf-8")
    engine = mini_racer.MiniRacer()
    engine.eval(ATOB + page.CODE.read_text(encoding="utf-8"))
    engine.eval("".join(re.findall(r"OWN\[\d\] = .*?return MODELS; };", content, re.S)))
    first, second, last = map(json.dumps, data_of(content)["models"])
    assert engine.eval(f"modelIn({first}).after([0])[0]") == 7
    assert engine.eval(f"modelIn({second}).after([0])[0]") == 8
    assert engine.eval(f"modelIn({last}) instanceof Bigram")
    engine.eval("OWN.length = 0;")  # as if a fault of syntax had ended each script
    with pytest.raises(
        mini_racer.JSEvalException, match="the script of the model bigram cannot be"
    ):
        engine.eval(f"modelIn({first})")
    assert content.count("<script") == content.count("</script>") == 6  # an element for each


def test_whole_numbers_are_kept_as_they_are(browser):
    for numbers in ([0, 255], [0, 256], [-1, 5], [2**31 - 1, -(2**31)]):
        packed = json.dumps(page.packed(torch.tensor(numbers), "int8"))
        assert browser(f"return [...arrayIn({packed})];") == numbers


def test_the_size_of_a_page_is_known_before_it_is_made():
    for name in ALL:
        model = some_model(name).in_page(V)
        for weights in ("int16", "int8"):
            packed = [page.packed(array, weights)["data"] for array in model.arrays.values()]
            size = sum(map(len, packed))
            assert size - 4 * len(packed) <= page.size_in_page(model, weights) <= size


# In a browser, if there is one

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
PROBE = """
<script>
addEventListener("load", () => {
  const [writer] = writers, texts = [], written = () => writer.places.map(place => place.text).join("");
  const next = () => {
    if (writing) return setTimeout(next, 20);
    texts.push(written());
    if (texts.length === 1) {
      writer.choose(7);
      const bar = [...writer.bars.children].find(bar => !bar.className.includes("true"));
      taken = bar.querySelector("code").textContent;
      bar.click();
      return next();
    }
    document.documentElement.dataset.result = JSON.stringify({texts, taken, rows: writer.bars.children.length});
  };
  let taken;
  $("pace").value = "1e9";
  next();
});
</script>
"""


REFUSED = """
<script>
addEventListener("load", () => {
  const [writer] = writers, texts = [], written = () => writer.places.map(place => place.text).join("");
  const wrong = [["top_k", "-5"], ["top_k", "0.5"], ["length", "0"], ["length", ""], ["seed", "-1"], ["seed", "4294967296"]];
  const next = () => {
    if (writing) return setTimeout(next, 20);
    texts.push(written());
    const [id, value] = wrong[texts.length - 1] ?? [];
    if (!id) return document.documentElement.dataset.result = JSON.stringify({texts, open: $("more").open});
    const before = $(id).value;
    $("more").open = false;
    $(id).value = value;
    $(id).dispatchEvent(new Event("change"));
    $("other").onclick = () => begin(true);
    $("other").click();
    for (const one of writers) one.refresh();
    if (writing) texts.push("writes");
    $(id).value = before;
    begin(true);  // takes what it took before
    next();
  };
  $("pace").value = "1e9";
  next();
});
</script>
"""


def noted_in_browser(page_file, probe):
    """What a page notes in `data-result`, after a script at its end; the browser says nothing else."""
    content = page_file.read_text(encoding="utf-8")
    page_file.write_text(content.replace("</body>", probe + "</body>"), encoding="utf-8")
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    arguments += ["--virtual-time-budget=1000000", "--dump-dom", page_file.resolve().as_uri()]
    done = subprocess.run([CHROMIUM, *arguments], capture_output=True, text=True, timeout=120)
    found = re.search(r'data-result="(.*?)"[ >]', done.stdout, re.S)
    assert found and "CONSOLE" not in done.stderr, done.stderr
    return json.loads(found[1].replace("&quot;", '"').replace("&amp;", "&"))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_number_that_a_field_does_not_take_changes_nothing(run, here):
    command.main(["run=run", "out=page.html", "prompt=he "])
    result = noted_in_browser(Path("page.html"), REFUSED)
    assert len(result["texts"]) == 7 and len({*result["texts"]}) == 1
    assert result["open"]  # the field that the browser shows


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_writes_what_sample_writes_and_takes_another_way(run, here, capsys):
    command.main(["run=run", "out=page.html", "prompt=he "])
    result = noted_in_browser(Path("page.html"), PROBE)
    capsys.readouterr()
    sample.main(["run=run", "prompt=he ", "seed=0", "max_tokens=300", "device=cpu"])
    first, second = result["texts"]
    assert first == capsys.readouterr().out.removesuffix("\n")
    assert result["rows"] == 9  # chances, of all its characters
    assert second[:7] == first[:7] and second[7] != first[7]
    assert second[7] == {"␣": " ", "↵": "\n"}.get(result["taken"], result["taken"])
    assert len(second) == len(first)


@pytest.mark.parametrize("template", sorted((ROOT / "lmlab").rglob("*.html")), ids=lambda p: p.name)
def test_a_browser_without_scripts_says_what_it_lacks(template):
    page = fill_page(template, "a title", {}).decode()
    body = page.split("<body>")[1]
    assert body.lstrip().startswith("<noscript>") and body.count("needs JavaScript") == 1
