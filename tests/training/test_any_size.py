"""Tests of --allow_decompression_bombs from the scan to the sample grids, for both loaders, and on resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from fastcyclegan import CycleGAN, cli
from fastcyclegan.data.dali_pipeline import why_not_dali
from fastcyclegan.errors import UserError
from tests.conftest import write_images
from tests.models import TINY
from tests.training.runs import arguments

SWITCH = "--allow_decompression_bombs"


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset of images of 21,000 pixels, and a limit below that, but above what labels of grids need."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for seed, name in enumerate(("trainA", "trainB", "testA", "testB")):
        write_images(tmp_path / "large" / name, 2, size=(60, 40), seed=seed)
    return tmp_path / "large"


@pytest.mark.parametrize("options", [("folder", "0"), ("folder", "2"), ("dali", "1")], ids=" ".join)
def test_runs_read_images_of_any_size_on_request(
    large: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str]
) -> None:
    """Worker processes read them too, and so does a resumed run, until the saved switch is turned off."""
    if options[0] == "dali" and why_not_dali(torch.device("cpu")):
        pytest.skip("DALI does not work here")
    runs = tmp_path / "runs"
    more = ["--loader", options[0], "--num_threads", options[1], "--display_freq", "1"]
    assert cli.train(arguments(large, runs, "r", *more)) == 2
    error = capsys.readouterr().err
    assert f"it has more than 1,000 pixels; make the image smaller or pass {SWITCH} (and 7 more);" in error
    assert not (runs / "r").exists()
    assert cli.train(arguments(large, runs, "r", *more, SWITCH, "--max_iters", "2")) == 0
    assert f"2 and 2 held out, of any size ({SWITCH})" in capsys.readouterr().out
    assert len(list((runs / "r" / "samples").glob("*.png"))) == 2
    again = ["--checkpoints_dir", str(runs), "--name", "r", "--continue_train", "--max_iters", "3"]
    assert cli.train(again) == 0
    assert f"of any size ({SWITCH})" in capsys.readouterr().out
    assert cli.train([*again, "--no_allow_decompression_bombs", "--max_iters", "4"]) == 2
    assert "it has more than 1,000 pixels" in capsys.readouterr().err


def test_images_of_any_size_from_python(large: Path, tmp_path: Path) -> None:
    model = CycleGAN(**TINY, max_iters=1)
    image = large / "testA" / "000.png"
    with pytest.raises(UserError, match=f"it has more than 1,000 pixels.*{SWITCH}"):
        model.fit(large)
    with pytest.raises(UserError, match=f"it has more than 1,000 pixels.*{SWITCH}"):
        model.translate(image)
    model.fit(large, allow_decompression_bombs=True)
    assert model.translate(image).size == (60, 40)
    model.save(tmp_path / "kept")
    assert CycleGAN.load(tmp_path / "kept").translate(image).size == (60, 40)
    assert Image.MAX_IMAGE_PIXELS == 500
