"""Models go to the library transformers and come from it; its own results are the reference."""

import errno
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lmlab
from lmlab import files
from lmlab.commands import export
from lmlab.commands import train as cli
from lmlab.data import subwords
from lmlab.errors import UserError, one_line_errors
from lmlab.models.base import build_model
from lmlab.models.hugging_face import gpt_config
from lmlab.runs import checkpoints
from tests.conftest import config, metrics, refused, script, working_in
from tests.test_decoder import GPT, MODERN
from tests.test_models import with_random_weights

sys.path.append(str(Path(sys.prefix) / "transformers"))  # where make install puts it
transformers = pytest.importorskip("transformers")

T = 16
LINE = (
    "data=sentence val_fraction=0.2 threads=1 device=cpu precision=32-true batch_size=2 "
    f"block_size={T} n_layer=2 n_embd=24 n_head=2 warmup_steps=0 max_steps=3 name=x "
)
MODELS = {
    "gpt": "model=gpt bias=false",
    "gpt-bias": "model=gpt bias=true gelu=tanh",
    "gpt-mup": "model=gpt bias=true parametrization=mup base_n_embd=6",
    "modern": "model=modern tokenizer=bpe vocab_size=258",
    "modern-tied": "model=modern tied=true activation=gelu",
}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def loaded(folder):
    """The model and the tokenizer that transformers makes of a folder."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Runs with weights far from their start, and their folders, by name."""
    folders = {}
    with working_in(tmp_path_factory.mktemp("exported")) as here:
        for name, keys in MODELS.items():
            cli.main(f"{LINE} {keys} lr=0.3 out={name}".split())
            script("export").main([f"run={name}", f"out={name}-export", "checkpoint=last"])
            run = checkpoints.load(here / name, "last", "cpu")
            folders[name] = run, here / f"{name}-export"
        yield folders


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_an_exported_model_has_the_same_logits_and_tokens(exported, name):
    run, folder = exported[name]
    model, tokenizer = loaded(folder)
    idx = torch.randint(run.tokenizer.vocab_size, (3, T))
    wanted = run.model(idx)
    assert wanted.std() > 0.05
    torch.testing.assert_close(model(idx).logits, wanted, rtol=1e-5, atol=1e-5)
    text = "hello world\nhold\n"
    ids = tokenizer(text).input_ids
    assert ids == run.tokenizer.encode(text).tolist() and tokenizer.decode(ids) == text


@settings(max_examples=30)
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=20))
def test_the_exported_tokenizer_agrees_on_any_text(exported, texts):
    run, folder = exported["modern"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(texts).input_ids
    assert ids == [found.tolist() for found in run.tokenizer.encode_pieces(texts)]
    assert [tokenizer.decode(found) for found in ids] == texts


def test_the_card_tells_the_numbers_and_what_made_them(exported):
    run, folder = exported["gpt"]
    card = (folder / "README.md").read_text()
    noted = metrics(run.path)
    for part in (f"| val/loss | {noted['val/loss']:.6g} |", noted["command"], noted["data_sha256"]):
        assert part in card
    assert "n_layer: 2" in card and "null" in card and "None" not in card


def test_the_card_of_a_resumed_run_names_what_resumed_it_where_that_differs():
    noted = {"command": "a", "code_sha256": "1", "git_dirty": False, "plugin_sha256": None}
    resumed = {"resumed/command": "b", "resumed/code_sha256": "1", "resumed/git_dirty": True}
    assert dict(export.made_by(noted | resumed)) == {
        "command": "a",
        "git_dirty": False,
        "code_sha256": "1",
        "command (resumed)": "b",
        "git_dirty (resumed)": True,
    }


def test_the_card_of_a_folder_of_hugging_faces_claims_no_training(exported, tmp_path):
    _, folder = exported["gpt"]
    export.main([f"run={folder}", f"out={tmp_path / 'again'}"])
    card = (tmp_path / "again/README.md").read_text()
    assert "does not say what it was trained on" in card and "n_layer: 2" in card
    assert not any(word in card for word in ("trained with", "data:", "max_steps", "lr:", "seed:"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A folder with a random GPT-2 of two layers and a tokenizer, as transformers saves them."""
    folder = tmp_path_factory.mktemp("gpt2") / "model"
    tokenizer = subwords.PairTokenizer(subwords.learned(["hello world\nhold her low\n"] * 9, 266))
    keys = transformers.GPT2Config(
        n_layer=2,
        n_head=2,
        n_embd=24,
        n_positions=T,
        vocab_size=tokenizer.vocab_size,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    with_random_weights(transformers.GPT2LMHeadModel(keys)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    return folder


@torch.no_grad()
def test_a_gpt2_comes_in_with_its_logits_and_goes_out_as_the_same_file(gpt2, here):
    run = checkpoints.load(gpt2, choice="cpu")
    model, tokenizer = loaded(gpt2)
    idx = torch.randint(run.tokenizer.vocab_size, (3, T))
    torch.testing.assert_close(run.model(idx), model(idx).logits, rtol=1e-5, atol=1e-5)
    assert run.tokenizer.encode("hello low").tolist() == tokenizer("hello low").input_ids
    script("export").main([f"run={gpt2}", "out=again"])
    one, two = gpt2 / "model.safetensors", here / "again/model.safetensors"
    assert one.read_bytes() == two.read_bytes()
    assert json.loads((here / "again/tokenizer.json").read_text()) == json.loads(
        (gpt2 / "tokenizer.json").read_text()
    )


def test_it_is_sampled_evaluated_explained_and_tuned(gpt2, here, train, capsys):
    before = sorted(path.name for path in gpt2.iterdir())
    script("sample").main([f"run={gpt2}", "max_tokens=5", "seed=1", "prompt=hello"])
    assert capsys.readouterr().out.startswith("hello")
    script("evaluate").main([f"run={gpt2}", "data=sentence"])
    assert "text/bits_per_byte" in capsys.readouterr().out
    script("explain").main([f"run={gpt2}", "text=hello world"])
    assert (here / "explain.html").exists()
    tuned = train(f"{LINE.replace('n_layer=2 n_embd=24 n_head=2', '')} init_from={gpt2} dropout=0")
    assert metrics(tuned)["val/loss"] < metrics(tuned)["reference/uniform"] * 3
    assert config(tuned)["gelu"] == "tanh" and config(tuned)["tokenizer"] == "file"
    weights = checkpoints.load(tuned, "last").model.state_dict()
    start = checkpoints.load(gpt2, choice="cpu").model.state_dict()
    assert all((weights[name] - start[name]).abs().max() < 0.1 for name in start)
    assert sorted(path.name for path in gpt2.iterdir()) == before  # nothing is written there
    refused(capsys, lambda: called("evaluate", f"run={gpt2}"), ["no text", str(gpt2), "data="])
    words = [f"run={gpt2}: is a model", "which text it was trained on"]
    refused(capsys, lambda: called("evaluate", f"run={gpt2},{gpt2}", "data=sentence"), words)
    for ask in (lambda: lmlab.load_run(gpt2).metrics, lambda: lmlab.load_run(gpt2).history):
        with pytest.raises(UserError, match="no text or numbers of its own"):
            ask()


@pytest.mark.parametrize(
    "command",
    [
        "plot runs={}",
        "compare {}",
        "scaling sweeps={}",
        "export sweep={} out=new.zip",
        "train resume={}",
        "train replay={}",
    ],
)
def test_where_a_run_is_needed_a_line_says_what_to_do_with_such_a_folder(gpt2, capsys, command):
    name, *arguments = command.format(gpt2).split()

    def ask():
        if name == "train":
            cli.main(arguments)
        else:
            called(name, *arguments)

    before = sorted(path.name for path in gpt2.iterdir())
    line = f"{gpt2}: is a model of Hugging Face's, not a run; init_from={gpt2} begins a run"
    refused(capsys, ask, [line])
    assert sorted(path.name for path in gpt2.iterdir()) == before


def test_nanochat_has_no_place_for_the_scale_of_the_scores():
    config = replace(MODERN, parametrization="mup", base_n_embd=12)
    with pytest.raises(UserError, match=r"parametrization=mup base_n_embd=12; .*base_n_embd=24"):
        build_model(config, 7).in_transformers(7)
    same = build_model(replace(config, base_n_embd=24), 7)
    assert same.in_transformers(7).config["model_type"] == "nanochat"


@pytest.mark.parametrize("name", ["sample", "evaluate", "explain", "export"])
@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_checkpoint_that_is_not_there_is_not_asked_for(gpt2, train, capsys, name, checkpoint):
    more = {"explain": ["out=x.html"], "export": ["out=x"], "evaluate": ["data=sentence"]}
    arguments = [f"run={gpt2}", f"checkpoint={checkpoint}", *more.get(name, [])]
    refused(
        capsys, lambda: called(name, *arguments), [f"checkpoint={checkpoint}: {gpt2} is a folder"]
    )
    if checkpoint == "best":
        run = train("model=bigram data=sentence val_fraction=0 block_size=8 threads=1 max_steps=2")
        asked = [f"run={run}", *arguments[1:]]
        refused(capsys, lambda: called(name, *asked), [f"checkpoint=best: {run} has no best.ckpt"])


def test_a_model_that_transformers_lacks_is_written_as_it_is(here, train, capsys):
    for model, needed in (
        ("bigram", "no model of this kind"),
        ("modern positions=learned", "positions=learned; NanoChat needs positions=rotary"),
    ):
        run = train(
            f"{LINE if 'modern' in model else LINE.split('n_layer')[0]} model={model} max_steps=3 name=x"
        )
        capsys.readouterr()
        script("export").main([f"run={run}", f"out={model[:3]}", "checkpoint=last"])
        assert needed in capsys.readouterr().err
        written = safetensors.torch.load_file(here / f"{model[:3]}/model.safetensors")
        ours = checkpoints.load(run, "last", "cpu").model.state_dict()
        assert written.keys() == ours.keys()
        assert all(torch.equal(written[name], ours[name]) for name in ours)


def test_what_is_there_is_not_written_over(gpt2, here, capsys):
    (here / "full").mkdir()
    (here / "full/a").write_text("mine")
    for out in ("full", "full/a"):
        refused(capsys, lambda out=out: called("export", f"run={gpt2}", f"out={out}"), [out])
    (here / "empty").mkdir()
    script("export").main([f"run={gpt2}", "out=empty"])
    assert (here / "empty/config.json").exists()


@pytest.mark.parametrize("was_there", [True, False])
def test_of_two_exports_at_once_one_is_written(gpt2, here, capsys, monkeypatch, was_there):
    """The other one fills the folder after this one has looked."""
    if was_there:
        (here / "out").mkdir()
    contents = export.contents

    def late(*arguments):
        (here / "out").mkdir(exist_ok=True)
        (here / "out/README.md").write_text("the other's")
        return contents(*arguments)

    monkeypatch.setattr(export, "contents", late)
    refused(capsys, lambda: called("export", f"run={gpt2}", "out=out"), ["out=out: is there"])
    assert [path.name for path in here.rglob("*")] == ["out", "README.md"]
    assert (here / "out/README.md").read_text() == "the other's"


def test_a_link_to_an_empty_folder_is_written_through(gpt2, here, capsys):
    (here / "disk").mkdir()
    (here / "link").symlink_to("disk")
    script("export").main([f"run={gpt2}", "out=link"])
    assert (here / "link").is_symlink() and (here / "disk/config.json").exists()
    assert sorted(path.name for path in here.iterdir()) == ["disk", "link"]
    (here / "gone").symlink_to("nowhere")
    words = ["out=gone: is a link to nowhere"]
    refused(capsys, lambda: called("export", f"run={gpt2}", "out=gone"), words)


def test_a_full_disk_is_named_by_the_folder_that_was_asked_for(gpt2, here, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_pieces", full)
    line = "error: out=new: new/config.json: cannot be written (No space left on device)"
    refused(capsys, lambda: called("export", f"run={gpt2}", "out=new"), [line])
    assert not list(here.iterdir())


def called(name, *arguments):
    with one_line_errors():
        script(name).main([*arguments])


def altered(name, values):
    return lambda folder: (folder / name).write_text(
        json.dumps(json.loads((folder / name).read_text()) | values)
    )


def weights_of(folder, change):
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    change(weights)
    safetensors.torch.save_file(weights, path, {"format": "pt"})


FIRST = "transformer.ln_f.bias"


def of_type(dtype):
    """Makes one of the weights a tensor of this type."""
    return lambda folder: weights_of(folder, lambda w: w.update({FIRST: w[FIRST].to(dtype)}))


HOSTILE = {
    "another model": (altered("config.json", {"model_type": "llama"}), 'allowed is "gpt2"'),
    "no numbers": (altered("config.json", {"n_layer": "2"}), 'n_layer="2"'),
    "huge": (altered("config.json", {"n_embd": 2**40}), f"n_embd={2**40}"),
    "another formula": (altered("config.json", {"activation_function": "relu"}), "gelu_new"),
    "cross attention": (altered("config.json", {"add_cross_attention": True}), "allowed is false"),
    "another norm": (altered("config.json", {"layer_norm_epsilon": 1e-6}), "layer_norm_epsilon"),
    "dropouts": (altered("config.json", {"attn_pdrop": 0.5}), "resid_pdrop"),
    "heads": (altered("config.json", {"n_head": 5}), "n_head=5"),
    "more layers": (altered("config.json", {"n_layer": 3}), "transformer.h.2"),
    "fewer layers": (altered("config.json", {"n_layer": 1}), "n_layer=1"),
    "another vocabulary": (altered("config.json", {"vocab_size": 400}), "vocab_size=400"),
    "another context": (altered("config.json", {"n_positions": 99}), "do not fit"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json: "),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "is no JSON object"),
    "odd dropout": (altered("config.json", {"attn_pdrop": []}), "need the same number"),
    "quantized": (altered("config.json", {"quantization_config": {}}), "quantization_config"),
    "large": (
        altered("config.json", {"n_positions": 16_000_000, "n_embd": 4096}),
        "do not fit",
    ),
    "many layers": (altered("config.json", {"n_layer": 10**6}), "config.json: n_layer=1000000"),
    "a thousand layers": (
        altered("config.json", {"n_layer": 1000, "n_embd": 4096}),
        "transformer.h.2.ln_1.weight is missing",
    ),
    "many positions": (altered("config.json", {"n_positions": 16_000_000}), "says (16000000, 24)"),
    "wide": (
        altered("config.json", {"n_embd": 99_998}),
        "has the shape (72,), and config.json says (299994,)",
    ),
    "null": (altered("config.json", {"n_embd": None}), "n_embd=null: needs a whole number"),
    "another width": (altered("config.json", {"n_inner": 7}), "null and 96"),
    "a long value": (altered("config.json", {"n_inner": "7" * 999}), "777…: is not supported"),
    "dropouts in an object": (altered("config.json", {"resid_pdrop": {}}), "need the same number"),
    "whole numbers": (of_type(torch.int8), f"{FIRST} has the type I8; allowed are F32"),
    "truths": (of_type(torch.bool), "has the type BOOL"),
    "eight bits": (of_type(torch.float8_e4m3fn), "has the type F8_E4M3"),
    "a weight twice": (
        lambda folder: weights_of(folder, lambda w: w.update({"ln_f.bias": w[FIRST] + 1})),
        "are the same weight",
    ),
    "a pickle alone": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "pytorch_model.bin can hold code",
    ),
    "several files": (
        lambda folder: (folder / "model.safetensors").rename(
            folder / "model.safetensors.index.json"
        ),
        "several files of weights are not read",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "save_pretrained"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    "odd tokenizer": (altered("tokenizer.json", {"padding": {}}), "padding"),
    "rubbish": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 99),
        "no file of weights",
    ),
    "a pickle": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"cos\nsystem\n(S'x'\ntR."),
        "no file of weights",
    ),
    "cut": (
        lambda folder: (folder / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()[:-9]
        ),
        "no file of weights",
    ),
    "nan": (
        lambda folder: weights_of(
            folder, lambda w: w["transformer.ln_f.weight"].fill_(float("nan"))
        ),
        "not all of its weights are finite",
    ),
    "another shape": (
        lambda folder: weights_of(
            folder, lambda w: w.update({"transformer.ln_f.weight": torch.ones(9)})
        ),
        "do not fit",
    ),
    "an unknown weight": (
        lambda folder: weights_of(folder, lambda w: w.update(other=torch.ones(1))),
        '"transformer.other" is no weight',
    ),
    "a weight with a name for the terminal": (
        lambda folder: weights_of(folder, lambda w: w.update({"\x1b[31m\n": torch.ones(1)})),
        r'"transformer.\u001b[31m\n" is no weight',
    ),
    "a weight with a long name": (
        lambda folder: weights_of(folder, lambda w: w.update({"y" * 5000: torch.ones(1)})),
        "yyy… is no weight",
    ),
    "a head of its own": (
        lambda folder: weights_of(
            folder, lambda w: w.update({"lm_head.weight": w["transformer.wte.weight"] + 1})
        ),
        "lm_head.weight differs",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_misshapen_or_hostile_folder_is_named(gpt2, here, capsys, name):
    damage, words = HOSTILE[name]
    shutil.copytree(gpt2, here / "bad")
    damage(here / "bad")
    for command in (
        lambda: called("sample", "run=bad"),
        lambda: cli.main(["init_from=bad", "device=cpu", "threads=1"]),
    ):
        refused(capsys, command, ["bad", words])
    assert not (here / "outputs").exists()


@pytest.mark.parametrize("end", ["file", "folder", "nothing"])
def test_links_to_plain_files_are_followed(gpt2, here, end):
    """As in the cache of Hugging Face's, where all files are links into another folder."""
    snapshot = here / "snapshots/1"
    snapshot.mkdir(parents=True)
    shutil.copytree(gpt2, here / "blobs")
    for file in gpt2.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    if end == "file":
        ours = checkpoints.load(snapshot, choice="cpu").model.state_dict()
        wanted = checkpoints.load(gpt2, choice="cpu").model.state_dict()
        assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
        return
    for name, words in (("model.safetensors", "missing"), ("tokenizer.json", "No such file")):
        target = here / "blobs" / name
        target.unlink()
        if end == "folder":
            target.mkdir()
            words = "no plain file|not a plain file"
        with pytest.raises(UserError, match=rf"snapshots/1/{name}: .*({words})"):
            checkpoints.load(snapshot, choice="cpu")


def test_first_names_of_gpt2_are_read(gpt2, here):
    """Without the prefix, with masks, in half precision, with the head as well."""
    shutil.copytree(gpt2, here / "old")

    def older(weights):
        for name in [*weights]:
            weights[name.removeprefix("transformer.")] = weights.pop(name).half()
        weights["h.0.attn.bias"] = torch.ones(1, 1, T, T)
        weights["lm_head.weight"] = weights["wte.weight"].clone()

    weights_of(here / "old", older)
    ours = checkpoints.load(here / "old", choice="cpu").model.state_dict()
    wanted = checkpoints.load(gpt2, choice="cpu").model.state_dict()
    assert all(torch.equal(ours[name], wanted[name].half().float()) for name in wanted)


def test_keys_of_a_gpt2_are_keys_of_gpt():
    keys = gpt_config(transformers.GPT2Config().to_dict())
    assert keys == replace(
        GPT, block_size=1024, n_layer=12, n_head=12, n_embd=768, dropout=0.1, gelu="tanh"
    )
    assert gpt_config(transformers.GPT2Config(n_inner=4 * 768).to_dict()) == keys
    with pytest.raises(UserError, match="needs a whole number"):
        gpt_config({"n_layer": True})
