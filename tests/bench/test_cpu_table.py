"""The table of times by which impl="auto" chooses on a processor: its format, its layers and its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import cpu_table
from bench.cpu_table import OPS, Layer, dtypes, measured_layers, text_of, write_table
from bench.step_work import layers_of
from fastcyclegan import reference
from fastcyclegan.kernels._convolution import AtenConvolution
from fastcyclegan.kernels.cpu import choice
from fastcyclegan.kernels.cpu.convolution import chosen
from fastcyclegan.kernels.cpu.library import why_not_cpp

# Every kernel in every way in which it is measured.
SMALL = [Layer(op, 8, 8, 16, 3, 1, reflect=1) for op in OPS]
SMALL += [Layer(op, *channels, 16, 7, 1, reflect=3) for op in OPS for channels in ((3, 8), (8, 3))]
SMALL += [Layer(op, 3, 8, 16, 4, 2, padding=1) for op in OPS if op != "dgrad"]
SMALL += [Layer(op, 8, 1, 16, 4, 1, padding=1) for op in OPS]
needs_kernels = pytest.mark.skipif(why_not_cpp() != "", reason=f"impl='cpp' {why_not_cpp()}")


def run(file: Path, *arguments: str) -> int:
    return cpu_table.main(["--rounds", "1", "--out", str(file), *arguments])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_table, "measured_layers", lambda: SMALL)
    monkeypatch.setattr(cpu_table, "LEAST_SECONDS", 1e-6)


@needs_kernels
@pytest.mark.usefixtures("small")
def test_writes_both_times_of_every_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "folder" / "table.json"
    assert run(file) == 0
    table = json.loads(file.read_text())
    kind = cpu_table.processor()
    assert set(table) == {layer.key(dtype) for layer in SMALL for dtype in dtypes(kind)}
    assert {f"{op} float32 3x3 s1 8-8 256" for op in OPS} <= set(table)
    assert all(set(times) == {"cpp", "torch"} for times in table.values())
    assert all(ms > 0 for times in table.values() for ms in times.values())
    output = capsys.readouterr().out
    assert all(name in output for name in table)
    assert f"class {kind}:" in output
    assert f"wrote {len(table)} layers to {file}" in output


def test_what_is_written_is_what_the_choice_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "conv float32 3x3 s1 256-256 4096": {"cpp": 1.5, "torch": 3.0},
        "conv float32 3x3 s1 64-64 4096": {"cpp": 3.0, "torch": 1.5},
    }
    monkeypatch.setattr(choice, "TABLES", tmp_path)
    monkeypatch.setattr(choice, "processor", lambda: "of-this-test")
    choice.is_faster.cache_clear()
    write_table(table, choice.table_file("of-this-test"))
    assert choice.times("of-this-test") == table
    assert text_of(table).count("\n") == 4
    assert choice.is_faster("conv", torch.float32, 3, 1, 256, 250, 4097)
    assert not choice.is_faster("conv", torch.float32, 3, 1, 64, 64, 4097)
    assert not choice.is_faster("conv", torch.bfloat16, 3, 1, 256, 250, 4097)
    choice.is_faster.cache_clear()


@needs_kernels
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("function", "op"), [("norm_convolve", "conv"), ("gradients", "dgrad")])
def test_a_wrong_result_ends_the_run_without_a_table(
    function: str, op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(cpu_table, function)

    def wrong(*arguments: Any, by: str, **options: Any) -> Any:
        result = right(*arguments, by=by, **options)
        for tensor in result if isinstance(result, tuple) else (result.out,):
            tensor.mul_(1.01 if by == "cpp" else 1)
        return result

    monkeypatch.setattr(cpu_table, function, wrong)
    with pytest.raises(AssertionError, match=f"{op} float32 3x3 s1 8-8 256: relative error"):
        run(tmp_path / "table.json")
    assert not (tmp_path / "table.json").exists()


@pytest.mark.parametrize(
    ("arguments", "reason", "message"),
    [
        ("", "needs a processor with AVX2", "impl='cpp' needs a processor with AVX2"),
        ("--processor_check", "needs a processor with AVX2", "impl='cpp' needs a processor with AVX2"),
        ("--rounds 0", "", "--rounds must be at least 1, got 0"),
    ],
)
def test_refuses_in_one_line(
    arguments: str,
    reason: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cpu_table, "why_not_cpp", lambda: reason)
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "table.json", *arguments.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(message)
    assert not list(tmp_path.iterdir())


def test_the_check_prints_only_the_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu_table, "why_not_cpp", lambda: "")
    monkeypatch.setattr(cpu_table, "processor", lambda: "avx2")
    assert run(tmp_path / "table.json", "--processor_check") == 0
    assert capsys.readouterr().out.startswith("class avx2: ")
    assert not list(tmp_path.iterdir())


def test_bf16_is_only_measured_where_there_are_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert dtypes("avx2") == [torch.float32, torch.bfloat16]
    assert dtypes("avx512") == [torch.float32, torch.bfloat16]
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert dtypes("avx512") == [torch.float32]


def test_the_layers_of_the_default_networks_are_measured() -> None:
    """Every convolution of the default networks for which there is a kernel has an entry that decides it."""
    measured = {(layer.op, layer.k, layer.stride) for layer in measured_layers()}
    exact = {(layer.op, layer.k, layer.C, layer.O, layer.side**2) for layer in measured_layers()}
    with_a_kernel = set()
    for net in (reference.Generator(), reference.Discriminator(), reference.UnetGenerator()):
        for layer in layers_of(net, (256, 256), 1):
            conv = net.get_submodule(layer.name)
            assert isinstance(conv, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
            transposed = isinstance(conv, torch.nn.ConvTranspose2d)
            call = AtenConvolution(list(conv.stride), [0, 0], [1, 1], transposed, [0, 0], 1)
            x, k, stride = torch.empty(layer.x, device="meta"), conv.kernel_size[0], conv.stride[0]
            for name, op in OPS.items():
                if chosen(op, x, conv.weight, call, 0, "cpp") is not None:
                    assert (name, k, stride) in measured
                    with_a_kernel.add((name, k, layer.weight[1], layer.weight[0]))
    kernels = {(7, 3, 64), (3, 256, 256), (7, 64, 3), (4, 3, 64), (4, 512, 1)}
    strided = ("dgrad", 4, 3, 64)
    assert with_a_kernel == {(op, *kernel) for op in OPS for kernel in kernels} - {strided}
    assert with_a_kernel <= {(op, k, C, O) for op, k, C, O, _ in exact}
    assert {(op, 3, 256, 256, 64 * 64) for op in OPS} <= exact
