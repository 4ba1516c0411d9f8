"""Tests of the description of a weights file, and of the weights files in a folder."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fastcyclegan import cli
from fastcyclegan.checkpoints.loading import load_generator, read_networks
from fastcyclegan.errors import UserError
from fastcyclegan.nn.networks import Generator, UnetGenerator
from tests.files.altered_values import altered_json


def test_inspect_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = Generator(ngf=2, n_blocks=1, affine=True)
    nested = {
        "G_A2B": {f"module.{k}": v.half() for k, v in net.state_dict().items()},
        "epoch": 12,
        "optimizer": {"state": {}},
    }
    torch.save(nested, tmp_path / "a.ckpt")
    assert cli.inspect_checkpoint([str(tmp_path / "a.ckpt")]) == 0
    head, network, note, others = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{tmp_path / 'a.ckpt'}: 0.0 MB")
    count = sum(p.numel() for p in net.parameters())
    assert network == (
        f"  G_A2B: generator resnet_1blocks (ngf 2, 3 to 3 channels, affine instance norm): "
        f"{len(net.state_dict())} tensors, {count:,} values, float16"
    )
    assert note == '    removed the prefix "module."'
    assert others == "  other contents: epoch (int 12), optimizer (entries: 1)"
    (tmp_path / "b.pth").write_text("hello")
    assert cli.inspect_checkpoint([str(tmp_path)]) == 0
    assert f"{tmp_path / 'b.pth'}: cannot be loaded: it is damaged" in capsys.readouterr().out
    assert cli.inspect_checkpoint([str(tmp_path / "b.pth")]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path / 'b.pth'}: cannot be loaded: it is damaged, or not a PyTorch file\n"
    )
    assert cli.inspect_checkpoint([str(tmp_path / "none")]) == 2


def test_inspect_objects_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Generator(ngf=2, n_blocks=1).state_dict()
    options = argparse.Namespace(lr=0.1, out=Path("runs"))
    contents = {"models": [weights, weights], "epoch": np.int64(5), "args": options, "type": np.dtype("f4")}
    torch.save(contents, tmp_path / "a.pth")
    torch.save((weights, 7), tmp_path / "b.pth")
    assert cli.inspect_checkpoint([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[1:3]] == ["  models.0", "  models.1"]
    assert lines[3] == "  other contents: epoch (int 5), args (entries: 2), type (DType f4)"
    assert lines[5].startswith("  0: generator resnet_1blocks")
    assert lines[6] == "  other contents: 1 (int 7)"


def test_the_text_of_other_objects_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A storage prints every number, and a small file can claim any number of bytes."""
    contents = {"G": Generator(ngf=2, n_blocks=1).state_dict(), "kept": torch.zeros(9).untyped_storage()}
    torch.save({**contents, "text": "long" * 10_000, "set": {1, 2}}, tmp_path / "a.pth")
    assert cli.inspect_checkpoint([str(tmp_path / "a.pth")]) == 0
    others = capsys.readouterr().out.splitlines()[-1]
    assert others == f"  other contents: kept (TypedStorage), text (str {'long' * 10}), set (set)"


def contents(case: str) -> dict[str, object]:
    net, key = Generator(ngf=2, n_blocks=1).state_dict(), "k" * 10_000
    cases: dict[str, dict[str, object]] = {
        "place": {key: net},
        "prefix": {f"{key}.{name}": value for name, value in net.items()},
        "many": {f"{key}{n}": net for n in range(40)},
        "others": {"net": net, **{f"{key}{n}": key for n in range(20)}},
        "dtype": {**net, key: torch.zeros(1, dtype=torch.int64)},
        "nan": {**net, key: torch.tensor([float("nan")])},
        "sparse": {**net, key: torch.zeros(2).to_sparse()},
        "dimensions": {**net, key: torch.zeros([1] * 80)},
        "unknown": {f"{key}{n}": torch.zeros(1) for n in range(100)},
    }
    return cases[case]


@pytest.mark.parametrize(
    "case", ["place", "prefix", "many", "others", "dtype", "nan", "sparse", "dimensions", "unknown"]
)
def test_long_and_many_names_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    torch.save(contents(case), tmp_path / "x.pth")
    cli.inspect_checkpoint([str(tmp_path / "x.pth")])
    output = "".join(capsys.readouterr())
    assert "kkk..." in output
    assert len(output) < 4000
    if case not in ("place", "prefix", "others"):  # those contain a single generator, which is loaded
        with pytest.raises(UserError) as error:
            load_generator(tmp_path / "x.pth")
        assert len(str(error.value)) < 1000


def test_altered_metadata_are_refused_or_legal(tmp_path: Path) -> None:
    """They describe the weights, which are recognised without them. What they add is checked."""
    nets = (
        Generator(ngf=2, n_blocks=1, use_dropout=True),
        UnetGenerator(ngf=1, num_downs=5, use_dropout=True),
    )
    for net in nets:
        good = {"class": type(net).__name__, **net.arguments}
        for seed in range(75):
            text = altered_json(random.Random(seed), good).decode("utf-8", "replace")
            save_file(net.state_dict(), tmp_path / "x.safetensors", {"fastcyclegan": text})
            (network,) = read_networks(tmp_path / "x.safetensors")
            found = network.architecture
            expected = {
                **net.arguments,
                **{n: found.arguments.get(n) for n in ("use_dropout", "padding_type")},
            }
            assert found.kind is type(net), seed
            for name, value in found.arguments.items():
                assert type(value) is type(expected[name]), (seed, name)
                assert value == expected[name], (seed, name)
            found.build("reference").load_state_dict(network.weights)
            assert str(found).isprintable()


def test_metadata_of_another_kind_are_ignored(tmp_path: Path) -> None:
    metadata = {"fastcyclegan": json.dumps({"class": ["Generator"]})}
    save_file(Generator(ngf=2, n_blocks=1).state_dict(), tmp_path / "x.safetensors", metadata)
    assert isinstance(load_generator(tmp_path / "x.safetensors"), Generator)
