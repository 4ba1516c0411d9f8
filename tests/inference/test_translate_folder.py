"""Tests of translating folders: any image size, output names, equal results in any batch, invalid inputs."""

from __future__ import annotations

import itertools
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastcyclegan import cli
from fastcyclegan.checkpoints.run_files import save_weights
from fastcyclegan.console import Console
from fastcyclegan.data.fit import load_halves
from fastcyclegan.errors import UserError
from fastcyclegan.inference import memory, precision_check, tiling, writer
from fastcyclegan.inference.translate_folder import Progress, TranslateConfig, translate_folder
from fastcyclegan.inference.translator import Translator
from fastcyclegan.nn.networks import Generator, UnetGenerator
from tests.conftest import write_images


def run(weights: Path, source: Path, output: Path, **options: object) -> list[str]:
    """Translate on the CPU, and return the descriptions of the images that do not fit into memory."""
    return translate_folder(TranslateConfig(weights, source, output, device="cpu", **options), Console())


def images(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (17, 9), (64, 64), (101, 7)])
def test_images_keep_their_size(weights: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    write_images(tmp_path / "in", 1, size=size)
    run(weights, tmp_path / "in", tmp_path / "out")
    with Image.open(tmp_path / "out" / "000.png") as image:
        assert image.size == size


@pytest.mark.parametrize("loader", ["folder", "dali"])
def test_batch_size_and_loader_do_not_change_the_result(weights: Path, tmp_path: Path, loader: str) -> None:
    """Results agree to one gray level. No image is resized, so both loaders return the same pixels."""
    folder = tmp_path / "in"
    for n, size in enumerate([(16, 16), (20, 12), (13, 13), (24, 24)]):
        write_images(folder / str(n), 3, size=size, seed=n, suffix=".jpg" if n % 2 else ".png")
    run(weights, folder, tmp_path / "one", batch_size=1, loader="folder")
    run(weights, folder, tmp_path / "many", batch_size=5, loader=loader)
    assert len(images(tmp_path / "many")) == 12
    singles = sorted((tmp_path / "one").rglob("*.png"))
    assert len(singles) == 12
    for path in singles:
        other = tmp_path / "many" / path.relative_to(tmp_path / "one")
        difference = np.asarray(Image.open(path)).astype(int) - np.asarray(Image.open(other)).astype(int)
        assert np.abs(difference).max() <= 1


def test_names_are_kept_and_never_collide(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("a.jpg", "a.png", "b.tif", "deep/c.webp", "before_after.bmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    run(weights, folder, tmp_path / "out", grid=True)
    assert images(tmp_path / "out") == [
        "a.jpg.png",
        "a.png.png",
        "b.png",
        "before_after.bmp.png",
        "before_after.png",
        "deep/c.png",
    ]
    run(weights, folder / "b.tif", tmp_path / "single")
    assert [path.name for path in (tmp_path / "single").iterdir()] == ["b.png"]


def test_translations_inside_the_input_folder_are_not_translated_again(weights: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2)
    for _ in range(2):
        run(weights, tmp_path / "in", tmp_path / "in" / "out")
        assert images(tmp_path / "in") == ["000.png", "001.png", "out/000.png", "out/001.png"]


def test_the_output_of_a_single_image_can_be_a_file(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image,) = write_images(tmp_path / "in", 1)
    run(weights, image, tmp_path / "out" / "painted.png", grid=True)
    assert images(tmp_path / "out") == ["before_after.png", "painted.png"]
    assert "wrote 1 image to" in capsys.readouterr().out
    run(weights, image, tmp_path / "folder")
    assert (tmp_path / "folder" / "000.png").read_bytes() == (tmp_path / "out" / "painted.png").read_bytes()


def test_large_images_are_reduced_in_the_grid(weights: Path, tmp_path: Path) -> None:
    for n, size in enumerate([(1300, 12), (1024, 20), (8, 1030)]):
        write_images(tmp_path / "in" / str(n), 1, size=size)
    run(weights, tmp_path / "in", tmp_path / "out", grid=True)
    with Image.open(tmp_path / "out" / "before_after.png") as image:
        assert image.width == 2 * 1024 + 3 * 4
        assert image.height == 18 + 9 + 20 + 1024 + 4 * 4


def test_resize_option(weights: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2, size=(50, 30))
    run(weights, tmp_path / "in", tmp_path / "out", resize=16)
    assert Image.open(tmp_path / "out" / "000.png").size == (16, 16)


def test_networks_with_one_channel_write_gray_images(tmp_path: Path) -> None:
    save_weights(tmp_path / "g.pth", Generator(1, 1, ngf=2, n_blocks=0).state_dict())
    write_images(tmp_path / "in", 1)
    run(tmp_path / "g.pth", tmp_path / "in", tmp_path / "out")
    assert Image.open(tmp_path / "out" / "000.png").mode == "L"


def test_unets_pad_to_their_own_multiple(tmp_path: Path) -> None:
    save_weights(tmp_path / "u.pth", UnetGenerator(ngf=1, num_downs=5).state_dict())
    write_images(tmp_path / "in", 1, size=(70, 33))
    run(tmp_path / "u.pth", tmp_path / "in", tmp_path / "out")
    assert Image.open(tmp_path / "out" / "000.png").size == (70, 33)


@pytest.mark.parametrize("loader", ["folder", "dali"])
def test_bad_images_are_reported_or_skipped(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], loader: str
) -> None:
    """The images before a bad one are translated in any case."""
    paths = write_images(tmp_path / "in", 4)
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    with pytest.raises(UserError, match=r"bad image .*001.png: .*--skip_bad_images"):
        run(weights, tmp_path / "in", tmp_path / "out", loader=loader)
    assert images(tmp_path / "out") == ["000.png"]
    assert "wrote 1 of 4 images" in capsys.readouterr().out
    assert run(weights, tmp_path / "in", tmp_path / "out", skip_bad_images=True, loader=loader) == []
    assert images(tmp_path / "out") == ["000.png", "002.png", "003.png"]
    output = capsys.readouterr().out
    assert f"skipped {paths[1]}: " in output
    assert "wrote 3 of 4 images" in output


def translated_by_the_program(weights: Path, tmp_path: Path, *more: str) -> int:
    """Run the program on the folder "in" and return its exit code."""
    files = ["--weights", str(weights), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    return cli.translate([*files, "--device", "cpu", *more])


def test_images_of_any_size_are_translated_on_request(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image that does not fit into the memory is named, and the others are translated."""
    write_images(tmp_path / "in", 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    assert translated_by_the_program(weights, tmp_path) == 2
    message = "it has more than 400 pixels; make the image smaller or pass --allow_decompression_bombs"
    assert message in capsys.readouterr().err
    assert translated_by_the_program(weights, tmp_path, "--allow_decompression_bombs") == 0
    assert images(tmp_path / "out") == ["000.png", "001.png"]
    monkeypatch.setattr("fastcyclegan.data.image_file.MOST_BYTES", 1000)
    monkeypatch.setattr("fastcyclegan.data.image_file.available_memory", lambda: 1000)
    assert translated_by_the_program(weights, tmp_path, "--allow_decompression_bombs") == 1
    assert "not translated: " in (output := capsys.readouterr().out)
    assert "000.png: it needs about 0.0 GiB of memory, and 0.0 GiB are free" in output


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("reason", ["the network fails", "the estimate"])
def test_an_image_that_does_not_fit_into_memory_is_named_and_the_others_are_translated(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reason: str,
    skip: bool,
) -> None:
    write_images(tmp_path / "in", 3)
    write_images(tmp_path / "in" / "huge", 1, size=(300, 200))
    translate, tried = Translator.__call__, set()

    def limited(self: Translator, batch: list[Tensor], names: Any = None) -> list[NDArray[np.uint8]]:
        tried.update(image.shape[1] for image in batch)
        if reason == "the network fails" and batch[0].shape[1] == 300:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return translate(self, batch, names)

    monkeypatch.setattr(Translator, "__call__", limited)
    if reason == "the estimate":
        monkeypatch.setattr(memory, "available_memory", lambda: 4_000_000)
    options = ["--tile", "None", *(["--skip_bad_images"] if skip else [])]
    code = translated_by_the_program(weights, tmp_path, *options)
    assert (code, images(tmp_path / "out")) == (0 if skip else 1, ["000.png", "001.png", "002.png"])
    output = capsys.readouterr().out
    beginning = "skipped" if skip else "not translated:"
    assert f"{beginning} {tmp_path / 'in' / 'huge' / '000.png'}: 300x200 does not fit into" in output
    assert "wrote 3 of 4 images" in output
    assert (300 in tried) == (reason == "the network fails")


def test_an_image_that_does_not_fit_when_it_is_read_is_named(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_images(tmp_path / "in", 3)

    def load(path: Path, *options: object) -> object:
        if path == paths[0]:
            raise MemoryError
        return load_halves(path, *options)

    monkeypatch.setattr("fastcyclegan.data.pillow_loader.load_halves", load)
    assert translated_by_the_program(weights, tmp_path) == 1
    assert images(tmp_path / "out") == ["001.png", "002.png"]
    assert f"not translated: {paths[0]}: cannot be read: out of memory" in capsys.readouterr().out


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from fastcyclegan import cli
from fastcyclegan.nn.networks import Generator

torch.set_num_threads(1)
Generator(ngf=2, n_blocks=1)(torch.zeros(1, 3, 64, 64))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20, resource.RLIM_INFINITY))
sys.exit(cli.translate(sys.argv[2:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the limits of Linux")
def test_a_real_lack_of_memory(weights: Path, tmp_path: Path) -> None:
    """130 MiB are enough for small images, and for one of 4 megapixels until the network runs.

    Tiles are off here: near such a limit, oneDNN can end the process while it makes a convolution for them.
    """
    write_images(tmp_path / "in", 3, size=(16, 16))
    Image.new("RGB", (2000, 2000)).save(tmp_path / "in" / "001.png")
    files = ["--weights", str(weights), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    options = ["--device", "cpu", "--num_threads", "1", "--batch_size", "2", "--tile", "None"]
    process = subprocess.run(
        [sys.executable, "-c", LIMITED, "130", *files, *options],
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (1, "")
    assert images(tmp_path / "out") == ["000.png", "002.png"]
    assert "001.png: 2000x2000 does not fit into the memory of cpu" in process.stdout


@pytest.mark.parametrize("step", ["_reduced", "draw_grid"])
def test_a_grid_that_does_not_fit_into_memory_is_named(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    write_images(tmp_path / "in", 2)

    def fail(images: object) -> None:
        raise MemoryError

    monkeypatch.setattr(f"fastcyclegan.inference.translate_folder.{step}", fail)
    (failure,) = run(weights, tmp_path / "in", tmp_path / "out", grid=True)
    assert failure == f"{tmp_path / 'out' / 'before_after.png'}: cannot be drawn: out of memory"
    assert images(tmp_path / "out") == ["000.png", "001.png"]


def test_dali_is_only_loaded_for_many_images(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "few", 2)
    run(weights, tmp_path / "few", tmp_path / "out")
    assert "using the folder loader" in capsys.readouterr().out
    write_images(tmp_path / "many", 64, size=(8, 8))
    run(weights, tmp_path / "many", tmp_path / "out2")
    assert "using the dali loader" in capsys.readouterr().out


def test_half_written_files_of_a_killed_process_are_removed(weights: Path, tmp_path: Path) -> None:
    """They are kept if their process may still be writing them."""
    write_images(tmp_path / "in" / "deep", 1)
    folder = tmp_path / "out" / "deep"
    folder.mkdir(parents=True)
    old, new = (folder / f".{name}.png.{2**22 + 1}.partial" for name in ("old", "new"))
    mine = folder / f".old.png.{os.getpid()}.partial"
    for file in (old, new, mine):
        file.touch()
    for file in (old, mine):
        os.utime(file, (0, 0))
    run(weights, tmp_path / "in", tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {"000.png", new.name, mine.name}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_program_after_the_images_in_progress(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    write_images(tmp_path / "in", 4)
    translate, save, calls = Translator.__call__, writer.save_image, itertools.count(1)
    number = signal.Signals[name]

    def interrupted(self: Translator, batch: list[Tensor], names: list[str]) -> list[NDArray[np.uint8]]:
        if next(calls) == 3:
            signal.raise_signal(number)
        return translate(self, batch, names)

    def slowly(image: Image.Image, target: Path) -> None:
        time.sleep(0.2)
        save(image, target)

    monkeypatch.setattr(Translator, "__call__", interrupted)
    monkeypatch.setattr(writer, "save_image", slowly)
    handler = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    before = signal.signal(number, handler)
    try:
        options = ["--batch_size", "1", "--num_threads", "2", "--precision", "fp32"]
        code = translated_by_the_program(weights, tmp_path, *options)
        assert code == 128 + number
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    shown = capsys.readouterr()
    assert shown.err == "stopped\n"
    assert f"wrote 2 of 4 images to {tmp_path / 'out'} before the program ended" in shown.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000.png", "001.png"]


@pytest.mark.parametrize("more", [[], ["--batch_size", "1"], ["--precision", "bf16"], ["--skip_bad_images"]])
def test_images_that_the_network_gives_no_numbers_for_are_named(
    overflowing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    """The others are translated, in the same batch too. --skip_bad_images is not about the network."""
    write_images(tmp_path / "in", 4, size=(16, 16))
    for name in ("000.png", "002.png"):
        Image.new("RGB", (16, 16), (9, 99, 200)).save(tmp_path / "in" / name)
    assert translated_by_the_program(overflowing, tmp_path, "--grid", *more) == 1
    shown = capsys.readouterr()
    assert images(tmp_path / "out") == ["000.png", "002.png", "before_after.png"]
    for name in ("001.png", "003.png"):
        assert f"not translated: the network gives no numbers for {tmp_path / 'in' / name}: " in shown.out
    assert shown.out.count("no numbers") == 2
    assert f"wrote 2 of 4 images to {tmp_path / 'out'}" in shown.out
    assert shown.err == ""


def test_failed_writes_are_errors(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failed write raises its error, although images are written in background threads.

    What was written before is complete, and printed.
    """
    write_images(tmp_path / "in", 4)
    save = writer.save_image

    def full(image: Image.Image, target: Path) -> None:
        if target.name == "001.png":
            raise OSError(28, "No space left on device", str(target))
        save(image, target)

    monkeypatch.setattr(writer, "save_image", full)
    assert translated_by_the_program(weights, tmp_path, "--batch_size", "1", "--num_threads", "1") == 2
    shown = capsys.readouterr()
    assert shown.err == f"error: {tmp_path / 'out' / '001.png'}: No space left on device\n"
    written = images(tmp_path / "out")
    assert f"wrote {len(written)} of 4 images to {tmp_path / 'out'} before the program ended" in shown.out
    for name in written:
        with Image.open(tmp_path / "out" / name) as image:
            image.load()


@pytest.mark.parametrize(
    "change",
    [
        *({name: value} for name in ("batch_size", "resize", "num_threads") for value in (0, 1.5, True, "4")),
        {"batch_size": None},
        {"batch_size": math.nan},
        {"device": "tpu"},
        {"epoch": "first"},
    ],
)
def test_invalid_settings_are_rejected(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        TranslateConfig(Path("w"), Path("i"), Path("o"), **change)


@pytest.fixture
def faint(tmp_path: Path) -> Path:
    """Weights of a generator whose images are nearly gray, so that bf16 gives the same values as fp32."""
    torch.manual_seed(0)
    state = Generator(ngf=2, n_blocks=1).state_dict()
    state[[name for name in state if name.endswith("weight")][-1]].mul_(0.01)
    save_weights(tmp_path / "faint_net_G_A.pth", state)
    return tmp_path / "faint_net_G_A.pth"


@pytest.mark.parametrize("agrees", [True, False])
def test_auto_takes_bf16_only_if_its_images_agree(
    faint: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    agrees: bool,
) -> None:
    """Images are the same whatever others are translated with them."""
    monkeypatch.setattr(precision_check, "gains_from_bf16", lambda *_: True)
    write_images(tmp_path / "in", 2, size=(16, 16))
    file = faint if agrees else weights
    assert translated_by_the_program(file, tmp_path, "--batch_size", "1") == 0
    shown = capsys.readouterr().out
    if agrees:
        assert f"with {file} on cpu in bf16 (100.00 % of the values within 1/255 of fp32), using" in shown
    else:
        assert f"with {file} on cpu in fp32 (in bf16, only " in shown
    precision = "bf16" if agrees else "fp32"
    for name in images(tmp_path / "out"):
        run(file, tmp_path / "in" / name, tmp_path / "alone", precision=precision)
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize(
    ("agrees", "precision", "code"),
    [(True, "bf16", 0), (False, "bf16", 1), (False, "fp32", 0), (False, "auto", 0)],
)
def test_check_prints_how_well_bf16_agrees(
    faint: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    agrees: bool,
    precision: str,
    code: int,
) -> None:
    write_images(tmp_path / "in", 9, size=(16, 16))
    file = faint if agrees else weights
    assert translated_by_the_program(file, tmp_path, "--check", "--precision", precision) == code
    assert len(images(tmp_path / "out")) == 9
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("check of ")]
    found = re.fullmatch(
        r"check of 8 of 9 images: in bf16, ([\d.]+) % of the values are within 1/255 of fp32, and the largest"
        r" difference is (\d+)/255; an image takes: fp32 [\d.]+ s, bf16 [\d.]+ s",
        line,
    )
    assert found is not None
    assert (float(found[1]) >= 99.9) == agrees


def test_a_check_without_memory_is_reported(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("fastcyclegan.inference.translate_folder.check", fail)
    write_images(tmp_path / "in", 1, size=(16, 16))
    assert translated_by_the_program(weights, tmp_path, "--check") == 1
    assert "check: not enough memory to translate the images in both precisions" in capsys.readouterr().out
    assert images(tmp_path / "out") == ["000.png"]


def test_compile_without_a_compiler_is_reported_and_images_are_translated(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "fastcyclegan.inference.load_translator.why_not_compiled", lambda device: "no C++ compiler found"
    )
    monkeypatch.setattr("torch.compile", lambda *_, **__: pytest.fail("it was compiled"))
    write_images(tmp_path / "in", 1, size=(16, 16))
    assert translated_by_the_program(weights, tmp_path, "--compile") == 0
    shown = capsys.readouterr().out
    assert "--compile: no C++ compiler found; images are translated uncompiled" in shown
    assert images(tmp_path / "out") == ["000.png"]


def test_compile_compiles_the_network(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[dict[str, object]] = []

    def compiled(net: Generator, **options: object) -> Generator:
        calls.append(options)
        return net

    monkeypatch.setattr("fastcyclegan.inference.load_translator.why_not_compiled", lambda device: "")
    monkeypatch.setattr("torch.compile", compiled)
    write_images(tmp_path / "in", 1, size=(16, 16))
    assert translated_by_the_program(weights, tmp_path, "--compile", "--check", "--precision", "fp32") == 0
    assert calls == [{"dynamic": False}] * 2  # once for each precision of the check
    assert "--compile: the first image of each size includes compilation" in capsys.readouterr().out


# --- Tiles --------------------------------------------------------------------------------------------------


def difference(one: Path, other: Path) -> int:
    """Return the largest difference between two images, in 1/255."""
    return int(np.abs(np.asarray(Image.open(one)).astype(int) - np.asarray(Image.open(other))).max())


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_tiles_give_the_images_of_the_whole(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], storage: str
) -> None:
    """Images larger than a tile are translated by tiles, and the others in batches."""
    write_images(tmp_path / "in", 1, size=(75, 101))
    write_images(tmp_path / "in" / "small", 2, size=(32, 30))
    run(weights, tmp_path / "in", tmp_path / "whole", tile=None, precision="fp32")
    assert " tiles of " not in capsys.readouterr().out
    options = ["--tile", "32", "--tile_storage", storage, "--grid", "--precision", "fp32"]
    assert translated_by_the_program(weights, tmp_path, *options) == 0
    shown = capsys.readouterr().out
    assert shown.count(" passes over tiles of 32x32, ") == 1
    assert f"{tmp_path / 'in' / '000.png'}: " in shown
    names = images(tmp_path / "whole")
    assert images(tmp_path / "out") == sorted([*names, "before_after.png"])
    for name in names:
        assert difference(tmp_path / "whole" / name, tmp_path / "out" / name) <= 1


def test_tiles_with_all_that_changes_the_translation(tmp_path: Path) -> None:
    """Masks by the name of the file, batch statistics of the image, and a size that is resized first."""
    torch.manual_seed(0)
    net = UnetGenerator(ngf=2, num_downs=6, norm="batch", use_dropout=True)
    save_weights(tmp_path / "u.pth", net.state_dict())
    write_images(tmp_path / "in", 2, size=(75, 101))
    options: dict[str, Any] = {"precision": "fp32", "resize": 120, "seed": 5}
    run(tmp_path / "u.pth", tmp_path / "in", tmp_path / "whole", tile=None, **options)
    run(tmp_path / "u.pth", tmp_path / "in", tmp_path / "out", tile=64, **options)
    for name in ("000.png", "001.png"):
        assert difference(tmp_path / "whole" / name, tmp_path / "out" / name) <= 1


@pytest.mark.parametrize("reason", ["the network fails", "the estimate"])
def test_an_image_that_does_not_fit_is_translated_by_tiles(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reason: str,
) -> None:
    write_images(tmp_path / "in", 2)
    (huge,) = write_images(tmp_path / "in" / "huge", 1, size=(300, 200))
    run(weights, huge, tmp_path / "whole.png", precision="fp32")
    translate = Translator.__call__

    def limited(self: Translator, batch: list[Tensor], names: Any = None) -> list[NDArray[np.uint8] | None]:
        if batch[0].shape[1] == 300:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return translate(self, batch, names)

    monkeypatch.setattr(Translator, "__call__", limited)
    monkeypatch.setattr(tiling, "SIDES", (64,))
    if reason == "the estimate":
        monkeypatch.setattr(memory, "available_memory", lambda: 4_000_000)
    assert translated_by_the_program(weights, tmp_path, "--precision", "fp32") == 0
    shown = capsys.readouterr().out
    assert f"{huge}: 300x200 does not fit into the memory of cpu (it needs about" in shown
    assert "so it is translated by tiles" in shown
    assert images(tmp_path / "out") == ["000.png", "001.png", "huge/000.png"]
    assert difference(tmp_path / "whole.png", tmp_path / "out" / "huge" / "000.png") <= 1


def test_an_image_that_tiles_cannot_help_is_named(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "in", 2)
    (huge,) = write_images(tmp_path / "in" / "huge", 1, size=(300, 200))
    monkeypatch.setattr(tiling, "available_memory", lambda: 100_000)
    assert translated_by_the_program(weights, tmp_path, "--tile", "64") == 1
    shown = capsys.readouterr().out
    assert f"not translated: {huge}: " in shown
    assert "MiB of memory (cpu) are needed, and 0.1 MiB are free: use --tile_storage disk, a smaller" in shown
    assert images(tmp_path / "out") == ["000.png", "001.png"]


def test_a_disk_that_becomes_full_is_told_with_the_image(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (image,) = write_images(tmp_path / "in", 1, size=(80, 80))
    calls = itertools.count()
    pwrite = os.pwrite

    def full(*given: Any) -> int:
        if next(calls) == 100:
            raise OSError(28, "No space left on device")
        return pwrite(*given)

    monkeypatch.setattr(os, "pwrite", full)
    assert translated_by_the_program(weights, tmp_path, "--tile", "32", "--tile_storage", "disk") == 1
    shown = capsys.readouterr().out
    out = tmp_path / "out"
    assert (
        f"not translated: {image}: --tile_storage disk: cannot write {out}: No space left on device" in shown
    )
    assert images(out) == []


def test_tiles_that_cannot_be_end_the_program_before_the_first_image(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "in", 1)
    for options, message in (
        (["--tile", "4", "--tile_mode", "independent"], "--tile must be at least 8 for this network, got 4"),
        (["--overlap", "8"], "--overlap has no effect without --tile_mode independent"),
        (["--tile", "x"], "--tile must be an integer or auto, got 'x'"),
    ):
        assert translated_by_the_program(weights, tmp_path, *options) == 2
        assert capsys.readouterr().err == f"error: {message}\n"
    assert not (tmp_path / "out").exists()


def test_the_check_uses_tiles_too(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "in", 1, size=(80, 80))
    monkeypatch.setattr(Translator, "__call__", lambda *_: pytest.fail("the whole image was translated"))
    assert translated_by_the_program(weights, tmp_path, "--check", "--tile", "64", "--precision", "fp32") == 0
    assert "check of 1 image: in bf16, " in capsys.readouterr().out


def test_progress_is_shown_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown every 10 seconds without a terminal, by one clock for images and tiles."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lines: list[str] = []
    console = Console()
    monkeypatch.setattr(console, "progress", lambda completed, total, text: lines.append(text))
    progress = Progress(console, 3)
    progress.of_tiles("a.png", 0.0, "")
    for second in range(1, 31):
        now[0] += 1
        progress.of_tiles("a.png", second / 60, f"pass 1 of 2, tile {second} of 60")
    assert lines == [
        "18 %, 0:00:49 left, pass 1 of 2, tile 11 of 60, a.png",
        "36 %, 0:00:38 left, pass 1 of 2, tile 22 of 60, a.png",
    ]
    now[0] += 70
    progress.of_images(1)
    assert lines[2:] == ["1/3 images, 0.01 images/s"]
    progress.of_tiles("b.png", 0.0, "")  # its time begins here
    now[0] += 20
    progress.of_tiles("b.png", 0.5, "independent tiles")
    assert lines[3:] == ["50 %, 0:00:20 left, independent tiles, b.png"]


KILLED = """
import sys
from fastcyclegan import cli
from fastcyclegan.tiles.storage import FileRows

write = FileRows.write

def blocked(*given):
    write(*given)
    print("written", flush=True)
    sys.stdin.read()

FileRows.write = blocked
sys.exit(cli.translate(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the files of processes that Linux shows")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_killed_process_leaves_no_file(weights: Path, tmp_path: Path, name: str) -> None:
    """It is killed in the middle of a pass, while maps are in the file."""
    write_images(tmp_path / "in", 1, size=(80, 80))
    (tmp_path / "out").mkdir()
    files = ["--weights", str(weights), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    options = ["--device", "cpu", "--tile", "32", "--tile_storage", "disk", "--precision", "fp32"]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *files, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert any(line == "written\n" for line in process.stdout)
        opened = [file.readlink() for file in Path(f"/proc/{process.pid}/fd").iterdir()]
        assert any(file.is_relative_to(tmp_path / "out") for file in opened)
        process.send_signal(signal.Signals[name])
    assert process.returncode != 0
    assert list((tmp_path / "out").iterdir()) == []
