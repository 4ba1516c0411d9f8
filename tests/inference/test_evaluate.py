"""evaluate.py from end to end: two folders, and translations of held-out images by runs and single files."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastcyclegan
from fastcyclegan import cli
from fastcyclegan.checkpoints.run_files import save_weights
from fastcyclegan.console import Console
from fastcyclegan.errors import UserError
from fastcyclegan.inference import evaluate as module
from fastcyclegan.inference.evaluate import config_of, evaluate, evaluate_images
from fastcyclegan.inference.translate_folder import TranslateConfig, translate_folder
from fastcyclegan.metrics.evaluator import Evaluator, Fake, Result
from fastcyclegan.metrics.images import ImageFiles
from fastcyclegan.metrics.pairs import pair_metrics
from fastcyclegan.nn.networks import Generator
from tests.conftest import saved, scene, write_images
from tests.metrics.script_networks import small_network
from tests.training.runs import arguments

pytest.importorskip("torchmetrics")
PAIRS = ["l1", "psnr", "ssim"]


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return small_network(tmp_path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with images of the same names in a subfolder, the second ones with noise."""
    rng = np.random.default_rng(0)
    for n in range(12):
        image = scene(rng, (32, 36))
        noisy = (np.asarray(image) + rng.normal(0, 20, (36, 32, 3))).clip(0, 255).astype(np.uint8)
        for name, each in (("fake", Image.fromarray(noisy)), ("real", image)):
            (tmp_path / name / "x").mkdir(parents=True, exist_ok=True)
            each.save(tmp_path / name / "x" / f"{n:02d}.png")
    return tmp_path / "fake", tmp_path / "real"


def printed(capsys: pytest.CaptureFixture[str], **settings: Any) -> tuple[Result, str]:
    """Evaluate with a console, and return the result and what was printed."""
    result = evaluate_images(config_of({"device": "cpu", **settings}), Console())
    return result, capsys.readouterr().out


def measure(**settings: Any) -> dict[str, Any]:
    return evaluate(device="cpu", **settings)


# --- Two folders --------------------------------------------------------------------------------------------


def test_two_folders(
    folders: tuple[Path, Path], network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake, real = folders
    files = {"json": tmp_path / "out.json", "page": tmp_path / "out.html"}
    result, out = printed(capsys, fake=fake, real=real, features=network, resample=20, **files)
    written = json.loads(files["json"].read_text())
    assert written == result.as_dict()
    assert list(written) == ["protocol", "images", "metrics", "intervals"]
    assert written["images"] == {"fake": 12, "real": 12, "pairs": 12}
    metrics = written["metrics"]
    assert list(metrics) == ["fid", "kid", *PAIRS] == list(written["intervals"])
    assert list(metrics["kid"]) == ["mean", "std"]
    assert all(type(metrics[name]) is float for name in ("fid", *PAIRS))
    assert all(low < high for low, high in written["intervals"].values())
    images = written["protocol"]["images"]
    assert (images["resized"], images["fake_jpeg"], images["real_jpeg"]) == ("no", 0, 0)
    page = files["page"].read_text(encoding="utf-8")
    assert page.count("<figure>") == 8
    assert f"<title>{fake} against {real}</title>" in page
    assert page.count("<figcaption>x/") == 8  # names within the folder
    for line in (
        "FID ↓",
        "SSIM ↑",
        "without lpips: its weights are not on this machine",
        "only 12 images: FID",
    ):
        assert line in out
    assert f"page: {files['page']}\n" in out
    # The same numbers in Python, silently; texts are paths.
    again = measure(fake=str(fake), real=str(real), features=str(network), resample=20)
    assert again == written
    assert capsys.readouterr().out == ""
    assert (
        fastcyclegan.evaluate(fake, real, features=network, resample=20, device="cpu", verbose=True)
        == written
    )
    assert "FID ↓" in capsys.readouterr().out


def test_metrics_of_pairs_are_those_of_each_pair(folders: tuple[Path, Path]) -> None:
    fake, real = folders
    found = measure(fake=fake, real=real, metrics=["psnr", "l1", "ssim"])["metrics"]
    each = []
    for file in sorted(fake.rglob("*.png")):
        images = (np.asarray(Image.open(path)) for path in (file, real / file.relative_to(fake)))
        each.append(pair_metrics(*images, PAIRS))
    assert found == {name: float(np.mean([pair[name] for pair in each])) for name in PAIRS}


def test_equal_folders(folders: tuple[Path, Path], network: Path) -> None:
    fake, _ = folders
    found = measure(fake=fake, real=fake, features=network)["metrics"]
    assert 0 <= found["fid"] < 1e-6
    assert abs(found["kid"]["mean"]) <= 4 * found["kid"]["std"]
    assert (found["l1"], found["ssim"]) == (0, 1)


def test_kinds_of_files_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colour = Image.new("RGB", (16, 16), "teal")
    for folder in ("fake", "real"):
        (tmp_path / folder).mkdir()
        saved(tmp_path / folder, colour, "a.png")
    saved(tmp_path / "fake", colour.convert("RGBA"), "b.png")
    saved(tmp_path / "real", colour.convert("L"), "b.jpg")
    fake, real = tmp_path / "fake", tmp_path / "real"
    result, out = printed(capsys, fake=fake, real=real, metrics=["l1"])
    assert f"{fake}: 1 image is partly transparent, and put on white\n" in out
    assert f"{real}: 1 image is JPEG, whose compression has changed the pixels\n" in out
    assert f"{real}: 1 image is gray: the values count as red, green and blue\n" in out
    assert result.images["pairs"] == 2
    assert (result.protocol["images"]["fake_jpeg"], result.protocol["images"]["real_jpeg"]) == (0, 1)


def test_images_without_a_partner(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    fake, real = folders
    (fake / "x" / "00.png").rename(fake / "y.png")
    result, _ = printed(capsys, fake=fake, real=real, metrics=["l1"])
    assert result.images == {"fake": 12, "real": 12, "pairs": 11}
    (fake / "x").rename(fake / "z")
    message = r"^l1 cannot be computed: no image of .*fake has a partner of the same name in .*real$"
    with pytest.raises(UserError, match=message):
        measure(fake=fake, real=real, metrics=["l1"])


def test_two_files_of_one_name_only_matter_for_pairs(
    folders: tuple[Path, Path], network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake, real = folders
    shutil.copy(fake / "x" / "00.png", fake / "x" / "00.jpg")
    result, out = printed(capsys, fake=fake, real=real, features=network)
    assert list(result.metrics) == ["fid", "kid"]
    assert "without l1, psnr, ssim, lpips: " in out
    assert "two images could be its partner" in out
    assert result.images == {"fake": 13, "real": 12, "pairs": 0}
    with pytest.raises(UserError, match=r"^l1 cannot be computed: .*two images could be its partner"):
        measure(fake=fake, real=real, metrics="l1")


def test_other_sizes_of_a_pair(
    folders: tuple[Path, Path], network: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake, real = folders
    Image.new("RGB", (20, 36)).save(real / "x" / "03.png")
    result, out = printed(capsys, fake=fake, real=real, features=network)
    assert list(result.metrics) == ["fid", "kid"]
    assert (
        "the images of a pair must have the same size, but 03.png has 32x36 pixels and its partner 20x36"
        in out
    )


def test_small_images(tmp_path: Path) -> None:
    for folder in ("fake", "real"):
        write_images(tmp_path / folder, 1, size=(20, 30))
    saved(tmp_path / "fake", Image.new("RGB", (10, 40)), "small.png")
    saved(tmp_path / "real", Image.new("RGB", (10, 40)), "small.png")
    settings = {"fake": tmp_path / "fake", "real": tmp_path / "real"}
    for name, needed in (("ssim", 11), ("lpips", 31)):
        message = f"^{name} cannot be computed: .* takes images of {needed} pixels or more, but one has 10$"
        with pytest.raises(UserError, match=message):
            measure(metrics=name, **settings)
    assert measure(metrics=["l1"], **settings)["images"]["pairs"] == 2


def test_links_are_followed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    fake, real = folders
    (tmp_path / "link").symlink_to(fake)
    (fake / "x" / "loop").symlink_to(fake)
    (fake / "x" / "20.png").symlink_to(fake / "x" / "00.png")
    found = measure(fake=tmp_path / "link", real=real, metrics=["l1"])
    assert found["images"] == {"fake": 13, "real": 12, "pairs": 12}
    (fake / "x" / "21.png").symlink_to(fake / "missing.png")
    with pytest.raises(UserError, match=r"21.png: no such file"):
        measure(fake=fake, real=real, metrics=["l1"])


def test_images_that_cannot_be_read(folders: tuple[Path, Path], network: Path) -> None:
    fake, real = folders
    for folder in (fake, real):
        file = folder / "x" / "05.png"
        data = file.read_bytes()
        for metrics in ({"metrics": ["l1"]}, {"metrics": ["fid"], "features": network}):
            file.write_bytes(data[: len(data) // 2])
            with pytest.raises(UserError, match=rf"{folder.name}/x/05.png: .+"):
                measure(fake=fake, real=real, **metrics)
            file.unlink()
            os.mkfifo(file)
            with pytest.raises(UserError, match=r"05.png: not a regular file"):
                measure(fake=fake, real=real, **metrics)
            file.unlink()
        file.write_bytes(data)


def test_unusual_images(tmp_path: Path, network: Path) -> None:
    """Turned, 16 bits, palettes with transparency, and tiny ones beside large ones."""
    exif = Image.Exif()
    exif[0x0112] = 6
    rng = np.random.default_rng(0)
    folder = tmp_path / "odd"
    folder.mkdir()
    saved(folder, scene(rng, (40, 20)), "turned.jpg", exif=exif)
    saved(folder, Image.fromarray(rng.integers(0, 2**16, (30, 20)).astype(np.uint16)), "deep.png")
    saved(folder, scene(rng, (20, 20)).convert("P"), "palette.png", transparency=3)
    saved(folder, scene(rng, (90, 70)).convert("CMYK"), "cmyk.jpg")
    saved(folder, scene(rng, (11, 11)), "tiny.webp")
    found = measure(fake=folder, real=folder, features=network)
    assert found["images"] == {"fake": 5, "real": 5, "pairs": 5}
    assert (found["metrics"]["l1"], found["metrics"]["ssim"]) == (0, 1)


# --- Comparisons --------------------------------------------------------------------------------------------


def test_numbers_of_the_same_protocol_are_compared(
    folders: tuple[Path, Path], network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake, real = folders
    settings: dict[str, Any] = {"real": real, "features": network, "resample": 5}
    before = measure(fake=fake, json=tmp_path / "a.json", **settings)
    for file in (fake / "x").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    result, out = printed(capsys, fake=fake, compare=tmp_path / "a.json", **settings)
    difference = result.metrics["l1"] - before["metrics"]["l1"]
    assert difference > 0
    assert f"difference {difference:+.5g}\n" in out
    # Neither the number of bootstrap samples nor a version is part of what is measured.
    changed = json.loads((tmp_path / "a.json").read_text())
    changed["protocol"]["versions"]["torch"] = "1.0"
    (tmp_path / "a.json").write_text(json.dumps(changed))
    measure(fake=fake, compare=tmp_path / "a.json", **settings | {"resample": 0})


def test_numbers_of_another_protocol_are_refused_before_the_computation(
    folders: tuple[Path, Path], network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, real = folders
    file = tmp_path / "a.json"
    settings: dict[str, Any] = {"fake": fake, "real": real, "features": network}
    measure(json=file, **settings)
    monkeypatch.setattr(Evaluator, "evaluate", None)
    changes: list[tuple[str, dict[str, Any]]] = [
        ("features.side", {"features_size": 16}),
        ("features.sha256", {"features": small_network(tmp_path, 1)}),
        ("kid.subsets", {"kid_subsets": 7}),
        ("kid.subset_size", {"kid_subset_size": 2}),
        ("images.pairs", {"metrics": ["fid", "kid"]}),
        ("features.network is TorchScript and not given", {"metrics": ["l1"], "features": "inception"}),
    ]
    for place, change in changes:
        with pytest.raises(
            UserError, match=f"a.json: numbers of different protocols cannot be compared: .*{place}"
        ):
            measure(compare=file, json=tmp_path / "b.json", **settings | change)
    # Another real image, or one more.
    Image.new("RGB", (32, 36)).save(real / "x" / "00.png")
    with pytest.raises(UserError, match=r"cannot be compared: images.real_sha256 is "):
        measure(compare=file, **settings)
    (fake / "x" / "00.png").unlink()
    with pytest.raises(UserError, match=r"cannot be compared: images.fake is 12 and 11"):
        measure(compare=file, **settings)
    assert not (tmp_path / "b.json").exists()


# --- Translations -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets of two domains (photos) and of pairs (pairs), and a run on each (cycle and pix)."""
    root = tmp_path_factory.mktemp("runs")
    for seed, (name, count) in enumerate({"trainA": 3, "trainB": 3, "testA": 5, "testB": 4}.items()):
        write_images(root / "photos" / name, count, seed=seed)
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        (root / "pairs" / part).mkdir(parents=True)
        for n in range(4):
            scene(rng, (128, 64)).save(root / "pairs" / part / f"{n}.png")
    cycle = ["--max_iters", "2", "--ema", "0.5", "--lr", "0.1"]
    assert cli.train(arguments(root / "photos", root, "cycle", *cycle)) == 0
    pix = (
        f"--model pix2pix --dataroot {root}/pairs --checkpoints_dir {root} --name pix --max_iters 1"
        " --netG unet_64 --ngf 2 --netD pixel --ndf 2 --load_size 70 --crop_size 64"
        " --device cpu --loader folder --num_threads 0"
    )
    assert cli.train(pix.split()) == 0
    for file in (root / "cycle").glob("latest_net_*.pth"):  # as the best weights of the run are called
        shutil.copy(file, file.with_name(file.name.replace("latest", "best")))
    return root


def folder_of(translate: Any, source: Path, output: Path, **options: Any) -> None:
    assert (
        translate_folder(
            TranslateConfig(translate, source, output, device="cpu", precision="fp32", **options), Console()
        )
        == []
    )


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_translations_are_those_that_translate_writes(
    root: Path, tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch, direction: Any
) -> None:
    """Bit for bit, in the same size, so all numbers are those of the written files."""
    source, target = root / "photos" / f"test{direction[0]}", root / "photos" / f"test{direction[-1]}"
    folder_of(root / "cycle", source, tmp_path / "out", direction=direction)
    made: list[Fake] = []
    before = Evaluator.evaluate

    def keep(self: Evaluator, fakes: Any, reals: ImageFiles, resample: int = 0) -> Result:
        made.extend(fakes)
        return before(self, made, reals, resample)

    monkeypatch.setattr(Evaluator, "evaluate", keep)
    settings: dict[str, Any] = {"features": network, "kid_subsets": 5}
    found = measure(weights=root / "cycle", direction=direction, image_size="none", **settings)
    assert len(made) == len(list(source.iterdir()))
    for fake in made:
        assert np.array_equal(fake.pixels, np.asarray(Image.open(tmp_path / "out" / fake.name)))
    monkeypatch.setattr(Evaluator, "evaluate", before)
    written = measure(fake=tmp_path / "out", real=target, **settings)
    assert found["metrics"] == written["metrics"]
    assert found["images"] == written["images"]
    assert found["protocol"]["images"]["translated_in"] == "fp32"


def test_images_are_resized_as_asked(root: Path, tmp_path: Path) -> None:
    """By default to the size of the crops in training, here 16."""
    folder_of(root / "cycle", root / "photos" / "testA", tmp_path / "out", resize=16)
    for source in (root / "photos" / "testB").iterdir():
        (tmp_path / "real").mkdir(exist_ok=True)
        Image.open(source).resize((16, 16), Image.Resampling.BICUBIC).save(tmp_path / "real" / source.name)
    written = measure(fake=tmp_path / "out", real=tmp_path / "real", metrics=["l1", "ssim"])
    for settings in ({}, {"image_size": 16}):
        found = measure(weights=root / "cycle", metrics=["l1", "ssim"], **settings)
        assert found["metrics"] == written["metrics"]
        assert found["protocol"]["images"]["resized"] == "to 16x16"
    same, other = (
        measure(weights=root / "cycle", metrics=["l1"], image_size=size)["protocol"] for size in (16, 20)
    )
    assert (
        found["protocol"]["images"]["real_sha256"]
        == same["images"]["real_sha256"]
        != other["images"]["real_sha256"]
    )


def test_weights_of_other_epochs_and_their_averages(root: Path) -> None:
    latest, best, ema = (
        measure(weights=root / "cycle", metrics=["l1"], **settings)["metrics"]["l1"]
        for settings in ({}, {"epoch": "best"}, {"ema": True})
    )
    assert latest == best != ema
    with pytest.raises(UserError, match=r"no weights file for generator G_A; epochs saved in"):
        measure(weights=root / "cycle", epoch="7")


@pytest.mark.parametrize("of_run", [True, False])
def test_the_name_of_a_file_tells_its_direction(root: Path, tmp_path: Path, of_run: bool) -> None:
    """In the folder of a run, which names the dataset as well, or alone."""
    settings: dict[str, Any] = {"metrics": ["l1"]}
    folder = root / "cycle"
    if not of_run:
        for file in folder.glob("latest_net_G_?.pth"):
            shutil.copy(file, tmp_path)
        folder, settings["dataroot"] = tmp_path, root / "photos"
        settings["image_size"] = 16
    for name, direction in (("G_A", "AtoB"), ("G_B", "BtoA")):
        file = folder / f"latest_net_{name}.pth"
        expected = measure(weights=root / "cycle", direction=direction, metrics=["l1"])
        assert measure(weights=file, **settings) == expected
        assert measure(weights=file, direction=direction, **settings) == expected
        other = {"AtoB": "BtoA", "BtoA": "AtoB"}[direction]
        with pytest.raises(
            UserError, match=f"{file.name}: by its name, this generator does not translate {other}"
        ):
            measure(weights=file, direction=other, **settings)


def test_a_single_official_file(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its name tells nothing, so the direction names the folder to translate. Images keep their size."""
    torch.manual_seed(0)
    save_weights(tmp_path / "net.pth", Generator(ngf=2, n_blocks=1).state_dict())
    results = []
    for direction in ("AtoB", "BtoA"):
        result, out = printed(
            capsys,
            weights=tmp_path / "net.pth",
            dataroot=root / "photos",
            direction=direction,
            metrics=["l1"],
        )
        source = root / "photos" / f"test{direction[0]}"
        assert f"translations of {source} against {root / 'photos' / f'test{direction[-1]}'}\n" in out
        assert result.protocol["images"]["resized"] == "no"
        folder_of(tmp_path / "net.pth", source, tmp_path / direction)
        written = measure(
            fake=tmp_path / direction, real=root / "photos" / f"test{direction[-1]}", metrics=["l1"]
        )
        assert result.metrics == written["metrics"]
        results.append(result.metrics["l1"])
    assert results[0] != results[1]
    assert (
        measure(weights=tmp_path / "net.pth", dataroot=root / "photos", metrics=["l1"])["metrics"]["l1"]
        == results[0]
    )
    with pytest.raises(
        UserError, match=r"^give --dataroot, the dataset whose held-out images are to be transl"
    ):
        measure(weights=tmp_path / "net.pth")


def test_a_folder_of_official_weights(root: Path, tmp_path: Path) -> None:
    """Without the configuration of a run."""
    for file in (root / "cycle").glob("latest_net_G_?.pth"):
        shutil.copy(file, tmp_path)
    for direction in ("AtoB", "BtoA"):
        settings: dict[str, Any] = {"direction": direction, "metrics": ["l1"], "image_size": 16}
        found = measure(weights=tmp_path, dataroot=root / "photos", **settings)
        assert found == measure(weights=root / "cycle", **settings)
    found = measure(weights=tmp_path, dataroot=root / "photos", metrics=["l1"])
    assert found["protocol"]["images"]["resized"] == "no"


def test_pairs_side_by_side(root: Path, tmp_path: Path) -> None:
    """Of the folder val, with dropout as in training, of the run or of its file alone."""
    found = measure(weights=root / "pix", metrics=PAIRS)
    assert found["images"] == {"fake": 4, "real": 4, "pairs": 4}
    for file in sorted((root / "pairs" / "val").iterdir()):
        for name, box in (("A", (0, 0, 64, 64)), ("B", (64, 0, 128, 64))):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.open(file).crop(box).save(tmp_path / name / file.name)
    folder_of(root / "pix", tmp_path / "A", tmp_path / "out")
    assert measure(fake=tmp_path / "out", real=tmp_path / "B", metrics=PAIRS)["metrics"] == found["metrics"]
    evaluated, other = (
        measure(weights=root / "pix", metrics=["l1"], **settings)
        for settings in ({"eval": True}, {"seed": 3})
    )
    assert len({each["metrics"]["l1"] for each in (found, evaluated, other)}) == 3
    shutil.copy(root / "pix" / "latest_net_G.pth", tmp_path / "latest_net_G.pth")
    alone = measure(weights=tmp_path / "latest_net_G.pth", dataroot=root / "pairs", metrics=PAIRS)
    assert alone["metrics"] == found["metrics"]
    with pytest.raises(
        UserError, match="has a single generator, which translates AtoB: direction cannot be BtoA"
    ):
        measure(weights=root / "pix", direction="BtoA")


def test_two_held_out_images_of_one_name(root: Path, tmp_path: Path, network: Path) -> None:
    """They only matter for pairs. An unknown metric is told before the network is loaded."""
    shutil.copytree(root / "photos", tmp_path / "photos")
    shutil.copy(tmp_path / "photos" / "testA" / "000.png", tmp_path / "photos" / "testA" / "000.jpg")
    settings: dict[str, Any] = {
        "weights": root / "cycle",
        "dataroot": tmp_path / "photos",
        "features": network,
    }
    assert list(measure(**settings)["metrics"]) == ["fid", "kid"]
    with pytest.raises(UserError, match=r"^l1 cannot be computed: .*two images could be its partner"):
        measure(metrics=["l1", "fid"], **settings)
    with pytest.raises(UserError, match="there is no metric 'is'"):
        measure(metrics=["is"], **settings | {"weights": root / "none"})


def test_another_dataset_than_that_of_the_run(root: Path, tmp_path: Path) -> None:
    """It needs no training images. The held-out images of a run without any are missing."""
    write_images(tmp_path / "new" / "testA", 2, seed=8)
    write_images(tmp_path / "new" / "testB", 2, seed=9)
    found = measure(weights=root / "cycle", dataroot=tmp_path / "new", metrics=["l1"])
    assert found["images"] == {"fake": 2, "real": 2, "pairs": 2}
    pairs = measure(weights=root / "cycle", dataroot=root / "pairs", metrics=["l1"])
    assert pairs["images"] == {"fake": 4, "real": 4, "pairs": 4}
    with pytest.raises(UserError, match=r"none: no such folder"):
        measure(weights=root / "cycle", dataroot=tmp_path / "none")


def test_gray_networks_are_compared_with_gray_images(root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_weights(tmp_path / "gray.pth", Generator(1, 1, ngf=2, n_blocks=0).state_dict())
    folder_of(tmp_path / "gray.pth", root / "photos" / "testA", tmp_path / "out")
    (tmp_path / "real").mkdir()
    for file in (root / "photos" / "testB").iterdir():
        Image.open(file).convert("L").save(tmp_path / "real" / file.name)
    found = measure(weights=tmp_path / "gray.pth", dataroot=root / "photos", metrics=["l1"])
    assert (
        found["metrics"] == measure(fake=tmp_path / "out", real=tmp_path / "real", metrics=["l1"])["metrics"]
    )


def test_the_built_in_dataset_is_in_the_folder_of_the_run(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(root / "cycle", run)
    config = json.loads((run / "config.json").read_text())
    config["data"]["dataroot"] = None
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"^give --dataroot"):
        measure(weights=run)
    shutil.copytree(root / "photos", run / "dataset")
    expected = measure(weights=root / "cycle", metrics=["l1"])
    assert measure(weights=run, metrics=["l1"]) == expected
    assert measure(weights=run / "latest_net_G_A.pth", metrics=["l1"]) == expected


def test_a_network_that_gives_no_numbers(root: Path, overflowing: Path) -> None:
    with pytest.raises(UserError, match=r"the network gives no numbers for .*testA/000.png"):
        measure(weights=overflowing, dataroot=root / "photos", metrics=["l1"])


def test_few_images_are_translated_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("_MOST_IMAGES", "_MOST_PIXELS"):
        with monkeypatch.context() as patch:
            whole = measure(weights=root / "cycle", metrics=["l1"])
            patch.setattr(module, limit, 1)
            # In other batches, results agree to one gray level.
            found = measure(weights=root / "cycle", metrics=["l1"])
            assert found["metrics"]["l1"] == pytest.approx(whole["metrics"]["l1"], abs=1 / 255)
            assert found["images"] == whole["images"]


# --- Mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fake": "none"}, "^none: no such folder$"),
        ({"real": "fake/x/00.png"}, "^fake/x/00.png: not a folder$"),
        ({"real": "empty"}, "^empty: contains no images"),
        (
            {"metrics": ["l1", "is"]},
            "^there is no metric 'is'; the metrics are fid, kid, l1, psnr, ssim, lpips$",
        ),
        ({"features": "none.pt"}, "^none.pt: no such file; features must be inception, vgg16 or a file$"),
        ({"json": "none/a.json"}, "^none/a.json: there is no folder .*none$"),
        ({"page": "fake"}, "^fake: is a folder$"),
        ({"json": "a", "page": "./a"}, "^--json and --page are the same file: a$"),
        ({"compare": "none.json"}, "^none.json: no such file$"),
        ({"compare": "fake/x/00.png"}, "^fake/x/00.png: not a file that evaluate.py --json wrote: "),
        ({"device": "tpu"}, "device"),
        (
            {"lpips_weights": "none.pth", "metrics": "lpips", "features": "inception"},
            "^none.pth: no such file$",
        ),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(folders[0].parent)
    Path("empty").mkdir()
    before = sorted(Path().rglob("*"))
    given = {
        "fake": "fake",
        "real": "real",
        "metrics": ["fid"],
        "features": "small0.pt",
        "device": "cpu",
        "json": "out.json",
    }
    with pytest.raises(UserError, match=message) as error:
        evaluate(**given | settings)
    assert "\n" not in str(error.value)
    assert sorted(Path().rglob("*")) == before


def test_unknown_settings_are_a_type_error(folders: tuple[Path, Path]) -> None:
    for name, hint in (("feature", "features"), ("metric", "metrics")):
        with pytest.raises(TypeError, match=rf"no setting '{name}'; did you mean {hint}\?"):
            measure(fake=folders[0], real=folders[1], **{name: "a.pt"})
    with pytest.raises(TypeError, match=r"evaluate has no setting 'foo'$"):
        measure(fake=folders[0], real=folders[1], foo=1)


def test_settings_are_converted() -> None:
    config = config_of(
        {
            "fake": "a",
            "real": Path("b"),
            "metrics": "fid",
            "features": Path("c.pt"),
            "kid_subsets": 3,
            "compare": "d",
        }
    )
    assert (config.fake, config.real, config.compare) == (Path("a"), Path("b"), Path("d"))
    assert (config.metrics, config.metric.features, config.metric.kid_subsets) == (("fid",), "c.pt", 3)
    assert config_of({"weights": "run", "metrics": ["l1", "fid"]}).metrics == ("l1", "fid")
