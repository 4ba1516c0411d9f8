"""The weights of a run are measured as they are, and a run that cannot be evaluated does not start."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan import CycleGAN, cli
from fastcyclegan.cli import parse_train
from fastcyclegan.data.fit import Fit, load_pixels
from fastcyclegan.data.pixels import NoNumbersError, to_pixels, to_unit_range
from fastcyclegan.errors import StoppedError, UserError
from fastcyclegan.metrics import library
from fastcyclegan.metrics.names import METRICS
from fastcyclegan.recipes import registry
from fastcyclegan.settings.data import Direction
from fastcyclegan.settings.evaluation import MetricName
from fastcyclegan.training.run import Run
from fastcyclegan.training.run_evaluation import RunEvaluation
from fastcyclegan.training.start import Overrides, start
from tests.conftest import write_images
from tests.recipes.states import assert_same
from tests.recipes.toys import PairsToy
from tests.training.evaluated import PAIRS, feature_file, flags, save_traced

CPU = torch.device("cpu")


def _silent(text: str) -> None:
    pass


def started(dataset: Path, *more: str) -> tuple[Run, RunEvaluation]:
    """Return a run without files at its beginning, and its evaluation."""
    config = parse_train(flags(dataset, Path("nowhere"), "r", *more))
    run = start(config, _silent, overrides=Overrides(files=False))
    assert run.evaluation is not None
    return run, run.evaluation


def l1(dataset: Path, run: Run, network: str, source: str, target: str) -> float:
    """Return the L1 distance of the translations by ``network``, computed in another way."""
    distances = []
    for file in sorted((dataset / f"test{source}").iterdir()):
        fit = Fit("exact", crop_size=16)
        image = to_unit_range(torch.from_numpy(load_pixels(file, fit).copy())[None], CPU)
        translated = to_pixels(run.engine.translate(network, image))[0].astype(float)
        real = load_pixels(dataset / f"test{target}" / file.name, fit).astype(float)
        distances.append(np.abs(translated - real).mean() / 255)
    return float(np.mean(distances))


def test_both_directions_are_measured_and_their_mean(dataset: Path) -> None:
    run, evaluation = started(dataset, *PAIRS)
    values = evaluation.measure(run.engine)
    names = {"l1", "psnr", "ssim"}
    assert values.keys() == {f"eval_{name}{end}" for name in names for end in ("", "_AtoB", "_BtoA")}
    assert values["eval_l1_AtoB"] == pytest.approx(l1(dataset, run, "G_AB", "A", "B"))
    assert values["eval_l1_BtoA"] == pytest.approx(l1(dataset, run, "G_BA", "B", "A"))
    for name in names:
        mean = (values[f"eval_{name}_AtoB"] + values[f"eval_{name}_BtoA"]) / 2
        assert values[f"eval_{name}"] == pytest.approx(mean)
    assert (evaluation.metric, evaluation.judge) == ("l1", "eval_l1")


def test_directions_are_named_as_the_user_names_them(dataset: Path) -> None:
    """With --direction BtoA, the domain A of the model is the folder of B."""
    run, evaluation = started(dataset, *PAIRS, "--direction", "BtoA", "--eval_direction", "BtoA")
    assert evaluation.judge == "eval_l1_BtoA"
    values = evaluation.measure(run.engine)
    assert values["eval_l1_BtoA"] == pytest.approx(l1(dataset, run, "G_AB", "B", "A"))
    assert values["eval_l1_AtoB"] == pytest.approx(l1(dataset, run, "G_BA", "A", "B"))


def test_the_averages_of_the_weights_are_measured_too_and_judge(dataset: Path) -> None:
    run, evaluation = started(dataset, *PAIRS, "--ema", "0.5")
    average = run.engine.average
    assert average is not None
    assert evaluation.judge == "eval_l1_ema"
    with torch.no_grad():
        for p in run.engine.nets["G_AB"].parameters():
            p.add_(torch.randn(p.shape) * 0.1)
    values = evaluation.measure(run.engine)
    assert values["eval_l1_AtoB"] == pytest.approx(l1(dataset, run, "G_AB", "A", "B"))
    assert values["eval_l1_AtoB_ema"] != values["eval_l1_AtoB"]
    assert values["eval_l1_BtoA_ema"] == values["eval_l1_BtoA"]
    with average.applied():
        assert values["eval_l1_AtoB_ema"] == pytest.approx(l1(dataset, run, "G_AB", "A", "B"))


def copied(run: Run) -> dict[str, Any]:
    state: dict[str, Any] = run.state({})
    return state


@pytest.mark.parametrize("metric", ["fid", "kid"])
def test_sets_are_measured_with_a_network_of_the_user(dataset: Path, tmp_path: Path, metric: str) -> None:
    features = feature_file(tmp_path)
    run, evaluation = started(dataset, "--eval_metric", metric, "--eval_features", str(features))
    values = evaluation.measure(run.engine)
    assert values["eval_fid"] > 0
    assert values["eval_kid"].keys() == {"mean", "std"}
    means = [values[f"eval_kid_{label}"]["mean"] for label in ("AtoB", "BtoA")]
    assert values["eval_kid"]["mean"] == pytest.approx(sum(means) / 2)
    assert "eval_l1" not in values  # the names are equal by chance
    protocol = evaluation.empty_history().protocol
    assert protocol["AtoB"]["features"]["network"] == "TorchScript"
    assert protocol["AtoB"]["sources_sha256"] == protocol["BtoA"]["images"]["real_sha256"]


def test_measuring_changes_nothing_that_training_depends_on(dataset: Path, tmp_path: Path) -> None:
    """Not even with a feature network that draws random numbers."""
    features = feature_file(tmp_path, random=True)
    more = ["--ema", "0.5", "--norm", "batch", "--no_dropout"]
    run, evaluation = started(dataset, "--eval_metric", "fid", "--eval_features", str(features), *more)
    with torch.no_grad():
        for p in run.engine.nets["G_AB"].parameters():
            p.add_(1)  # so that the averages differ
    before = copied(run)
    evaluation.measure(run.engine)
    assert_same(copied(run), before)


@pytest.mark.parametrize("ema", ["0", "0.5"])
def test_weights_that_give_no_numbers(dataset: Path, ema: str) -> None:
    run, evaluation = started(dataset, *PAIRS, "--ema", ema)
    weights = run.engine.nets["G_BA"].state_dict() if ema == "0" else run.engine.average.weights["G_BA"]  # type: ignore[union-attr]
    next(iter(weights.values())).fill_(torch.nan)
    before = copied(run)
    with pytest.raises(NoNumbersError):
        evaluation.measure(run.engine)
    after = copied(run)
    for name in ("G_AB", "G_BA"):  # the averages are not left in the networks
        for one, other in zip(before["nets"][name].values(), after["nets"][name].values(), strict=True):
            assert torch.equal(one, other) or torch.isnan(one).all()


def test_a_metric_that_is_no_number(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, evaluation = started(dataset, *PAIRS)
    monkeypatch.setattr(
        "fastcyclegan.metrics.evaluator.pair_metrics",
        lambda *images: dict.fromkeys(("l1", "psnr", "ssim"), float("nan")),
    )
    with pytest.raises(NoNumbersError):
        evaluation.measure(run.engine)


def test_a_request_to_stop_ends_the_measurement(dataset: Path) -> None:
    run, evaluation = started(dataset, *PAIRS, "--ema", "0.5")
    asked = iter([False, False, False, False, False, True])  # four translations, and the first of the average
    before = copied(run)
    with pytest.raises(StoppedError):
        evaluation.measure(run.engine, lambda: next(asked))
    assert_same(copied(run), before)


def test_gray_images_are_measured(dataset: Path) -> None:
    run, evaluation = started(dataset, *PAIRS, "--input_nc", "1", "--output_nc", "1")
    assert 0 < evaluation.measure(run.engine)["eval_l1"] < 1


def test_images_too_small_for_ssim_are_measured_without_it(dataset: Path) -> None:
    run, evaluation = started(dataset, *PAIRS, "--crop_size", "8")
    assert "eval_ssim" not in evaluation.measure(run.engine)


def test_the_description(dataset: Path) -> None:
    _, evaluation = started(dataset, *PAIRS, "--patience", "3")
    assert evaluation.describe() == (
        "L1, PSNR, SSIM of 2 images AtoB and 2 images BtoA, at most 5% of the time; l1 judges, patience 3"
    )
    _, evaluation = started(dataset, *PAIRS, "--eval_every", "1000it", "--eval_direction", "AtoB")
    assert evaluation.describe().endswith("every 1,000 iterations; l1_AtoB judges")


# --- Runs that cannot be evaluated --------------------------------------------------------------------------


def _without(folder: str) -> Any:
    return lambda root: shutil.rmtree(root / folder)


def _one_image(root: Path) -> None:
    feature_file(root)
    (root / "testB" / "001.png").unlink()


def _other_names(root: Path) -> None:
    for file in (root / "testB").iterdir():
        file.rename(file.with_name(f"b{file.name}"))


def _broken_features(root: Path) -> None:
    (root / "features.pt").write_bytes(b"no module")


def _failing_features(root: Path) -> None:
    save_traced(torch.nn.Linear(5, 2), torch.zeros(1, 3, 4, 5), root / "features.pt")


def _other_sizes(root: Path) -> None:
    for file in (root / "testB").iterdir():
        Image.open(file).resize((32, 32)).save(file)


def _nothing(root: Path) -> None:
    pass


OF_FILE = ["--eval_metric", "fid", "--eval_features", "features.pt"]
IMPOSSIBLE = {
    "no held-out images": (_without("testA"), PAIRS, "no held-out images of domain A"),
    "no pairs": (
        _other_names,
        PAIRS,
        "l1 cannot be computed: no image of .*test[AB] .held out. has a partner",
    ),
    "one image": (_one_image, OF_FILE, "it takes 2 images or more, but .*testB .held out. has 1"),
    "no file": (_nothing, OF_FILE, "features.pt: no such file"),
    "broken file": (_broken_features, OF_FILE, "features.pt: not a TorchScript module"),
    "failing file": (_failing_features, OF_FILE, "features.pt: fails for images 1x3x16x16"),
    "small images": (_nothing, ["--eval_metric", "ssim", "--crop_size", "8"], "11 pixels or more"),
    "other sizes": (
        _other_sizes,
        ["--eval_metric", "psnr", "--preprocess", "none"],
        "must have the same size, but 00[01].png has ",
    ),
}


@pytest.fixture(scope="module")
def old_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with the finished run "old"."""
    root = tmp_path_factory.mktemp("old")
    for name in ("trainA", "trainB"):
        write_images(root / "photos" / name, 2)
    assert (
        cli.train([*flags(root / "photos", root / "runs", "old", "--max_iters", "1"), "--keep_samples", "2"])
        == 0
    )
    return root / "runs"


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_run_that_cannot_be_evaluated_changes_nothing(
    case: str,
    dataset: Path,
    old_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare, more, message = IMPOSSIBLE[case]
    prepare(dataset)
    monkeypatch.chdir(dataset)
    before = contents(old_run)
    for name, first in (("new", []), ("old", ["--overwrite"])):
        capsys.readouterr()
        assert cli.train(flags(dataset, old_run, name, *first, *more)) == 2
        errors = capsys.readouterr().err
        assert errors.count("error:") == 1, errors
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(errors)
    assert contents(old_run) == before
    assert not (old_run / "new").exists()


def test_the_built_in_images_can_be_too_few(old_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are drawn after the old run is removed, so this is found out before."""
    before = contents(old_run)
    command = ["--checkpoints_dir", str(old_run), "--name", "old", "--overwrite", "--device", "cpu"]
    more = ["--eval_metric", "fid", "--eval_features"]
    assert cli.train([*command, "--max_dataset_size", "1", *more, str(feature_file(old_run.parent))]) == 2
    assert "--eval_metric: fid cannot be computed: it takes 2 images or more" in capsys.readouterr().err
    _failing_features(old_run.parent)
    assert cli.train([*command, *more, str(old_run.parent / "features.pt")]) == 2
    assert "features.pt: fails for images 1x3x64x64" in capsys.readouterr().err
    assert contents(old_run) == before


def test_one_line_without_torchmetrics(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(library.importlib, "import_module", _not_installed)
    assert cli.train(flags(dataset, tmp_path, "r", *PAIRS)) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors == [
        "error: metrics need the package torchmetrics: python -m pip install torchmetrics (the extra metrics)"
    ]
    assert not (tmp_path / "r").exists()


def _not_installed(name: str) -> Any:
    raise ModuleNotFoundError(name="torchmetrics")


def test_an_error_of_a_metric_names_the_flag_of_the_run(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: Any) -> Any:
        raise UserError("no network; pass it as --features FILE or --feature_weights FILE")

    monkeypatch.setattr("fastcyclegan.metrics.evaluator.load_features", load)
    with pytest.raises(UserError, match="pass it as --eval_features FILE or --eval_feature_weights FILE"):
        started(dataset, "--eval_every", "1")


def test_loaders_of_a_caller_are_refused() -> None:
    batches = [torch.zeros(1, 3, 16, 16)]
    model = CycleGAN(
        netG="resnet_0blocks", netD="pixel", ngf=2, ndf=2, load_size=16, crop_size=16, device="cpu"
    )
    with pytest.raises(UserError, match="need images in files"):
        model.fit(batches, batches, max_iters=1, eval_every=1)


class _Untranslating(PairsToy):
    """A recipe without directions."""

    name = "untranslating"
    directions: ClassVar[Mapping[Direction, str]] = {}


@pytest.mark.parametrize(
    ("toy", "message"),
    [(PairsToy, "need images of two domains"), (_Untranslating, "does not translate images")],
)
def test_a_recipe_of_single_images_or_without_directions_is_refused(
    toy: type[PairsToy], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_registered", [toy])
    write_images(tmp_path / "images", 4)
    command = ["--model", toy.name, "--dataset_mode", "single", "--data", str(tmp_path / "images")]
    more = ["--eval_every", "1", "--device", "cpu", "--checkpoints_dir", str(tmp_path / "runs")]
    with pytest.raises(UserError, match=message):
        start(parse_train([*command, *more]), _silent)
    assert not (tmp_path / "runs").exists()


def test_every_metric_can_judge() -> None:
    assert get_args(MetricName) == tuple(METRICS)
