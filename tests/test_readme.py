"""Run the README's Python code as written, in order and in one folder, except for reduced sizes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fastcyclegan import Generator
from fastcyclegan.checkpoints.run_files import save_weights
from tests.conftest import write_images

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
# Replacements that keep the examples short. Each must match, or an example would run at its full size.
SMALLER = {
    'netG="resnet_6blocks", load_size=143, crop_size=128': (
        'netG="resnet_1blocks", ngf=2, ndf=2, load_size=26, crop_size=24, num_threads=0'
    ),
    "n_epochs=50,\n    n_epochs_decay=50": "n_epochs=1,\n    n_epochs_decay=0",
    "n_epochs_decay=60": "n_epochs_decay=1",
    "torch.rand(1, 3, 256, 256)": "torch.rand(1, 3, 64, 64)",
}


def test_all_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(BLOCKS) >= 8
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("photos", "paintings")):
        write_images(tmp_path / name, 4, size=(30, 30), seed=seed)
    (file,) = write_images(tmp_path / "x", 1, suffix=".jpg")
    file.rename(tmp_path / "holiday.jpg")
    save_weights(tmp_path / "latest_net_G_A.pth", Generator(ngf=2, n_blocks=1).state_dict())
    for long in SMALLER:
        assert any(long in block for block in BLOCKS), long
    results = {}
    for block in BLOCKS:
        for long, short in SMALLER.items():
            block = block.replace(long, short)
        exec(compile(block, "README.md", "exec"), results)
    assert results["logits"].shape[:2] == (1, 1)
    assert torch.isfinite(results["loss"])
    assert (results["painting"].size, results["photo"].size) == ((24, 20), (24, 20))
    assert results["model"].iteration == 6  # two epochs of the three images that are not held out
    printed = capsys.readouterr().out
    assert "accelerate: 2 replaced, nothing skipped" in printed
    assert (tmp_path / "photos2paintings" / "README.md").exists()
