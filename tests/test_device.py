import functools
import os
from dataclasses import replace

import pytest
import torch

from lmlab import cores, machine
from lmlab.errors import UserError
from tests.conftest import NANO, config, history

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "capabilities, wanted",
    [
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": True}, "bf16-mixed"),
        ({"avx2": True}, "32-true"),
        ({}, "32-true"),
    ],
)
def test_bfloat16_where_the_processor_has_it(some_config, monkeypatch, capabilities, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(machine, "has_bf16", machine.has_bf16.__wrapped__)
    assert machine.resolve(some_config).device.precision == wanted
    other = {"bf16-mixed": "32-true", "32-true": "bf16-mixed"}[wanted]
    asked = replace(some_config, device=replace(some_config.device, precision=other))
    assert machine.resolve(asked).device.precision == other


@pytest.mark.parametrize(
    "asked, there, wanted",
    [
        (None, True, False),
        (True, True, True),
        (False, True, False),
        (True, False, False),
        (None, False, False),
    ],
)
def test_what_cannot_be_compiled_is_said_and_run_as_it_is(
    some_config, monkeypatch, capsys, asked, there, wanted
):
    monkeypatch.setattr(machine, "has_compiler", lambda device: there)
    resolved = machine.resolve(replace(some_config, run=replace(some_config.run, compile=asked)))
    assert resolved.run.compile is wanted
    assert ("warning: compile=true" in capsys.readouterr().err) is (asked is True and not there)


@pytest.mark.parametrize("name", machine.OFF)
def test_what_torch_may_not_compile_is_said_and_noted(some_config, monkeypatch, capsys, name):
    monkeypatch.setattr(machine, "has_compiler", lambda device: True)
    monkeypatch.setenv(name, "1")
    resolved = machine.resolve(replace(some_config, run=replace(some_config.run, compile=True)))
    assert resolved.run.compile is False
    assert capsys.readouterr().err.startswith(f"warning: compile=true: has no effect, since {name}")


def test_auto_takes_what_the_file_of_the_device_says(some_config, monkeypatch):
    """conf/device/cpu.yaml is used for device=auto, too, but a typed value wins."""
    file = {"precision": "bf16-mixed", "compile": True, "threads": 3}
    monkeypatch.setattr(machine, "pick", lambda choice: CPU)
    monkeypatch.setattr(machine, "read_file", lambda group, choice: {"cpu": file}[choice])
    monkeypatch.setattr(machine, "has_compiler", lambda device: True)
    left_open = replace(
        some_config,
        choices=some_config.choices | {"device": "auto"},
        device=replace(some_config.device, precision="auto"),
        run=replace(some_config.run, threads=None, compile=None),
    )
    resolved = machine.resolve(left_open)
    assert resolved.device.precision == "bf16-mixed"
    assert (resolved.run.compile, resolved.run.threads) == (True, 3)
    typed = replace(left_open, run=replace(some_config.run, threads=1, compile=False))
    resolved = machine.resolve(typed)
    assert (resolved.run.compile, resolved.run.threads) == (False, 1)


def test_a_missing_compiler_is_found_missing(monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    assert not machine.has_compiler.__wrapped__(CPU)


def test_so_are_missing_headers(monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: "/nowhere")
    assert not machine.has_compiler.__wrapped__(CPU)


@pytest.mark.parametrize(
    "model", ["model=gpt_nano", "model=modern n_layer=1 n_head=2 n_embd=32 block_size=32"]
)
def test_a_compiled_run_has_the_losses_of_one_that_is_not(train, monkeypatch, model):
    """Compiled without a C++ compiler: the graph that torch takes from the model, as it is."""
    monkeypatch.setattr(machine, "has_compiler", lambda device: True)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain, compiled = (train(f"{NANO} {model} compile={value}") for value in ("false", "true"))
    assert config(plain)["compile"] is False and config(compiled)["compile"] is True
    for key in ("train/loss", "val/loss"):
        assert history(compiled, key) == pytest.approx(history(plain, key), abs=1e-5)
    monkeypatch.undo()
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("content", "quota"),
    [("150000 100000", 1.5), ("50000 100000", 0.5), ("max 100000", None), ("", None), ("-1", None)],
)
def test_the_quota_of_a_container_is_seen(tmp_path, monkeypatch, content, quota):
    (tmp_path / "cpu.max").write_text(content + "\n")
    monkeypatch.setattr(cores, "QUOTAS", ((str(tmp_path / "cpu.max"),), (str(tmp_path / "no"),)))
    assert cores.cpu_quota() == quota
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    allowed = cores.usable_cores()
    assert allowed == 1 if quota else allowed == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("limit", "asked", "threads"),
    [("1", None, "1"), ("3", "2", "2"), ("3", "8", "3"), ("2", "4,2", "2"), ("0", "4", "4")],
)
def test_the_limit_of_threads_is_heeded(some_config, monkeypatch, limit, asked, threads):
    """With fewer threads than torch counts on, its products of bfloat16 would be wrong."""
    monkeypatch.setenv("OMP_THREAD_LIMIT", limit)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    cores.heed_thread_limit()
    assert os.environ["OMP_NUM_THREADS"] == threads
    monkeypatch.setattr(machine, "LIMIT", cores.thread_limit())
    typed = replace(some_config, run=replace(some_config.run, threads=4))
    if limit == "0":  # it is none
        assert machine.resolve(typed).run.threads == 4
    else:
        with pytest.raises(UserError, match=f"threads=4: .*OMP_THREAD_LIMIT={limit}"):
            machine.resolve(typed)
