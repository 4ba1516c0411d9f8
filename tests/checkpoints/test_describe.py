"""Tests of the description of a weights file, and of the weights files in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastcyclegan import cli
from fastcyclegan.nn.networks import Generator


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
