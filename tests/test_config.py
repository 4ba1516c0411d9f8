"""Tests of every check of the configuration, and of its conversion to JSON and back."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from fastcyclegan import reference as ref
from fastcyclegan.config import (
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    from_dict,
    to_dict,
    with_changes,
)
from fastcyclegan.errors import UserError
from fastcyclegan.recipes.cyclegan import AUGMENTATIONS, CycleGANRecipe
from fastcyclegan.settings.metrics import MetricConfig
from fastcyclegan.training.run import with_absolute_paths
from tests.files.altered_values import NOT_JSON, PLAIN, altered, nested

BAD: list[tuple[str, Callable[[], object]]] = [
    ("crop_size 300 is larger than load_size 286", lambda: DataConfig(crop_size=300)),
    ("height 300 of crop_size is larger than load_size 286", lambda: DataConfig(crop_size=(300, 8))),
    ("width 300 of crop_size is larger than load_size 286", lambda: DataConfig(crop_size=(8, 300))),
    (
        "width 300 of crop_size is larger than load_size 286",
        lambda: DataConfig(crop_size=(288, 300), preprocess="scale_width_and_crop"),
    ),
    (
        "crop_size must be one number, or two for height and width, got 3 of them",
        lambda: DataConfig(crop_size=[8] * 3),
    ),
    ("must be given together", lambda: DataConfig(data_A=Path("a"))),
    ("but not both", lambda: DataConfig(dataroot=Path("r"), data_A=Path("a"), data_B=Path("b"))),
    ("preprocess must be one of", lambda: DataConfig(preprocess="squash")),
    (
        "dataset_mode must be one of unaligned, aligned, single, got 'pairs'",
        lambda: DataConfig(dataset_mode="pairs"),
    ),
    ("single images, but this run trains on the layout unaligned", lambda: DataConfig(data=Path("a"))),
    (
        "but only one of them",
        lambda: DataConfig(data=Path("a"), dataroot=Path("b"), dataset_mode="single"),
    ),
    (
        "--data_A and --data_B are two domains; for single images, give one --data FOLDER",
        lambda: DataConfig(data_A=Path("a"), data_B=Path("b"), dataset_mode="single"),
    ),
    (
        "--direction BtoA swaps A and B, but single images have no B",
        lambda: DataConfig(data=Path("a"), dataset_mode="single", direction="BtoA"),
    ),
    (
        r"to --data; with --dataroot, the folders test \(or val\) are held out",
        lambda: DataConfig(holdout=0.2),
    ),
    (
        r"--model cycle_gan cannot train on images in the layout single \(one folder: --data\); it needs",
        lambda: TrainConfig(DataConfig(data=Path("a"), dataset_mode="single")),
    ),
    (r"holdout must be in \[0, 1\)", lambda: DataConfig(data_A=Path("a"), data_B=Path("b"), holdout=1.0)),
    ("batch_size must be at least 1, got 0", lambda: DataConfig(batch_size=0)),
    ("netG must be resnet_9blocks", lambda: ModelConfig(netG="resnet_ninblocks")),
    ("norm must be one of instance, batch, none, got 'group'", lambda: ModelConfig(norm="group")),
    ("contradict", lambda: ModelConfig(use_dropout=True, no_dropout=True)),
    ("input_nc must be at least 1, got 0", lambda: ModelConfig(input_nc=0)),
    ("output_nc must be at most", lambda: ModelConfig(output_nc=2**40)),
    ("only works with ResNet generators", lambda: ModelConfig(netG="unet_256", upsample="resize")),
    (
        "--downsample antialias only works with ResNet generators",
        lambda: ModelConfig(netG="unet_128", downsample="antialias"),
    ),
    ("lr_policy must be one of", lambda: OptimConfig(lr_policy="exponential")),
    (r"beta1 must be in \[0, 1\)", lambda: OptimConfig(beta1=1.0)),
    ("lr must be finite, got nan", lambda: OptimConfig(lr=float("nan"))),
    ("nothing to train: epoch_count 201", lambda: OptimConfig(epoch_count=201)),
    ("pool_size must be at least 0", lambda: LossConfig(pool_size=-1)),
    (
        "diffaugment must be a comma-separated list of color, translation, cutout, got 'colour'",
        lambda: LossConfig(diffaugment="colour,cutout"),
    ),
    ("color, translation, cutout, got ''", lambda: LossConfig(diffaugment="color,")),
    ("diffaugment lists cutout more than once", lambda: LossConfig(diffaugment="cutout,color,cutout")),
    ("diffaugment must be str or NoneType, got 3", lambda: LossConfig(diffaugment=3)),
    ("plain folder name", lambda: RunConfig(name="a/b")),
    ("plain folder name", lambda: RunConfig(name="..")),
    ("plain folder name", lambda: RunConfig(name="a\nb")),
    ("keep_samples must be at least 2, got 1", lambda: RunConfig(keep_samples=1)),
    ("keep_epochs must be at least 1, got 0", lambda: RunConfig(keep_epochs=0)),
    ("seed must be below", lambda: RunConfig(seed=2**63)),
    ("--epoch needs --continue_train", lambda: RunConfig(epoch="5")),
    ("--holdout only applies to", lambda: DataConfig(dataroot=Path("r"), holdout=0.5)),
    ("--lambda_gp only applies to --gan_mode wgangp", lambda: LossConfig(lambda_gp=3.0)),
    ("init_gain must be finite, got nan", lambda: ModelConfig(init_gain=float("nan"))),
    ("init_gain must be at least 0", lambda: ModelConfig(init_gain=-1.0)),
    ("lr must be finite, got inf", lambda: OptimConfig(lr=float("inf"))),
    ("ngf must be int, got 4.5", lambda: ModelConfig(ngf=4.5)),
    ("lr must be float, got None", lambda: OptimConfig(lr=None)),
    ("batch_size must be int, got True", lambda: DataConfig(batch_size=True)),
    ("data_A must be Path or NoneType, got 'x'", lambda: DataConfig(data_A="x", data_B=Path("y"))),
    ("contradict", lambda: RunConfig(continue_train=True, overwrite=True)),
    ("device must be auto", lambda: RunConfig(device="gpu")),
    ("gpu_ids must be one number", lambda: RunConfig(gpu_ids="0,1")),
    ("both set the device", lambda: RunConfig(gpu_ids="0", device="cpu")),
    ("epoch must be latest", lambda: RunConfig(epoch="worst", continue_train=True)),
    ("eval_every must be a number of epochs", lambda: EvaluationConfig(eval_every="0")),
    ("or of iterations, such as 2000it, got '5 it'", lambda: EvaluationConfig(eval_every="5 it")),
    ("got '-1it'", lambda: EvaluationConfig(eval_every="-1it")),
    ("eval_every must be str or NoneType, got True", lambda: EvaluationConfig(eval_every=True)),
    ("eval_share must be above 0, got 0.0", lambda: EvaluationConfig(eval_metric="l1", eval_share=0.0)),
    ("eval_share must be at most 0.5, got 0.6", lambda: EvaluationConfig(eval_metric="l1", eval_share=0.6)),
    ("eval_share must be finite", lambda: EvaluationConfig(eval_metric="l1", eval_share=float("nan"))),
    ("patience must be at least 1, got 0", lambda: EvaluationConfig(eval_metric="l1", patience=0)),
    ("eval_metric must be fid or kid", lambda: EvaluationConfig(eval_metric="is")),
    (
        "eval_features_size must be at least 8, got 3",
        lambda: EvaluationConfig(eval_metric="fid", eval_features_size=3),
    ),
    (
        "eval_feature_weights are those of vgg16, but features is inception",
        lambda: EvaluationConfig(eval_metric="fid", eval_feature_weights=Path("w.pth")),
    ),
    ("crop_size 254 is not a multiple of 4", lambda: TrainConfig(data=DataConfig(crop_size=254))),
    (
        "crop_size 260 is not a multiple of 256",
        lambda: TrainConfig(data=DataConfig(crop_size=260), model=ModelConfig(netG="unet_256")),
    ),
    (
        "crop_size 20 is too small: --netD basic needs at least 24",
        lambda: TrainConfig(data=DataConfig(crop_size=20)),
    ),
    (
        "height 98 of crop_size is not a multiple of 4",
        lambda: TrainConfig(data=DataConfig(crop_size=(98, 160))),
    ),
    (
        "width 162 of crop_size is not a multiple of 4",
        lambda: TrainConfig(data=DataConfig(crop_size=(96, 162))),
    ),
    (
        "height 20 of crop_size is too small: --netD basic needs at least 24",
        lambda: TrainConfig(data=DataConfig(crop_size=(20, 160))),
    ),
    ("identity loss needs equal channel counts", lambda: TrainConfig(model=ModelConfig(input_nc=1))),
    (
        "wgangp mixes",
        lambda: TrainConfig(data=DataConfig(preprocess="none"), loss=LossConfig(gan_mode="wgangp")),
    ),
]


@pytest.mark.parametrize(("message", "build"), BAD, ids=[f"{n}: {row[0]}" for n, row in enumerate(BAD)])
def test_invalid_settings_are_rejected(message: str, build: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=message):
        build()


def test_official_defaults() -> None:
    c = TrainConfig()
    assert (c.data.load_size, c.data.crop_size, c.data.batch_size, c.data.preprocess) == (
        286,
        256,
        1,
        "resize_and_crop",
    )
    assert (c.model.netG, c.model.netD, c.model.ngf, c.model.ndf, c.model.norm) == (
        "resnet_9blocks",
        "basic",
        64,
        64,
        "instance",
    )
    assert (c.model.init_type, c.model.init_gain, c.model.use_dropout) == ("normal", 0.02, False)
    assert (c.loss.gan_mode, c.loss.lambda_A, c.loss.lambda_B, c.loss.lambda_identity, c.loss.pool_size) == (
        "lsgan",
        10,
        10,
        0.5,
        50,
    )
    assert (c.optim.lr, c.optim.beta1, c.optim.n_epochs, c.optim.n_epochs_decay, c.optim.lr_policy) == (
        2e-4,
        0.5,
        100,
        100,
        "linear",
    )
    assert (c.optim.lr_decay_iters, c.run.save_epoch_freq, c.run.epoch) == (50, 5, "latest")


def test_choices_match_the_reference() -> None:
    hints = get_type_hints(ModelConfig)
    assert get_args(hints["norm"]) == ref.NORMS
    assert get_args(hints["init_type"]) == ref.INIT_TYPES
    assert get_args(hints["upsample"]) == ref.UPSAMPLES
    assert get_args(hints["downsample"]) == ref.DOWNSAMPLES
    assert get_args(get_type_hints(LossConfig)["gan_mode"]) == ref.GAN_MODES
    assert AUGMENTATIONS == ref.AUGMENTATIONS


def test_augmentations_are_named_in_any_order() -> None:
    assert LossConfig().augmentations == ()
    assert LossConfig(diffaugment="cutout").augmentations == ("cutout",)
    assert LossConfig(diffaugment="cutout, color,translation").augmentations == AUGMENTATIONS


def test_json_round_trip() -> None:
    config = with_changes(
        TrainConfig(),
        {"data": {"data_A": Path("x"), "data_B": Path("y")}, "run": {"name": "n"}, "loss": {"lambda_A": 5.0}},
    )
    assert from_dict(to_dict(config)) == config
    older = to_dict(config)
    del older["data"]["cache"], older["run"]["keep_samples"], older["run"]["keep_epochs"]
    del older["model"]["downsample"], older["evaluation"]
    assert from_dict(older) == config
    for nonsense in ({}, [], {"data": 3}):
        with pytest.raises(
            UserError, match="it lacks at least one of the groups data, model, loss, optim, run"
        ):
            from_dict(nonsense)


@pytest.mark.parametrize(
    ("crop_size", "saved", "crop"),
    [(128, 128, (128, 128)), ((96, 160), [96, 160], (96, 160)), ([96, 160], [96, 160], (96, 160))],
)
def test_a_crop_has_one_side_or_two(crop_size: Any, saved: Any, crop: tuple[int, int]) -> None:
    config = TrainConfig(data=DataConfig(crop_size=crop_size))
    assert config.data.crop == crop
    assert to_dict(config)["data"]["crop_size"] == saved
    assert from_dict(to_dict(config)) == config


def test_the_height_of_a_crop_may_exceed_load_size_where_images_are_at_least_as_high() -> None:
    data = DataConfig(crop_size=(400, 160), preprocess="scale_width_and_crop")
    assert TrainConfig(data=data).data.crop == (400, 160)


def test_images_have_one_size_if_they_are_cropped_or_form_batches() -> None:
    assert DataConfig().has_one_size
    assert not DataConfig(preprocess="none").has_one_size
    assert DataConfig(preprocess="none", batch_size=2).has_one_size


MISFITS: list[tuple[str, dict[str, Any]]] = [
    ("engine must be a group of settings, got None", {"engine": None}),
    ("run must be a group of settings, got None", {"run": None}),
    ("model must be a group of settings, got a list", {"model": []}),
    ("loss must be a group of settings, got 3", {"loss": 3}),
    ("it has groups that are unknown to this version: colour", {"colour": {}}),
    ("it has settings that are unknown to this version: colour", {"data": {"colour": 1}}),
    (r"settings that are unknown to this version: 'x\\n', 3, None", {"data": {"x\n": 1, 3: 1, None: 1}}),
    ("batch_size must be int, got True", {"data": {"batch_size": True}}),
    ("lr must be finite, got nan", {"optim": {"lr": math.nan}}),
    ("ngf must be int, got 8.0", {"model": {"ngf": 8.0}}),
    ("n_epochs must be below 2[*][*]63, got an integer of 1329 bits", {"optim": {"n_epochs": 10**400}}),
    ("lambda_A must be below 2[*][*]63", {"loss": {"lambda_A": 10**400}}),
    ("micro_batch must be int or NoneType, got a list", {"engine": {"micro_batch": nested()}}),
    ("netG must have at most 256 blocks", {"model": {"netG": "resnet_999999999blocks"}}),
    ("netG must be resnet_9blocks.*, got '99999", {"model": {"netG": "9" * 5000}}),
    ("n_layers_D must be at most 12, got 99", {"model": {"netD": "n_layers", "n_layers_D": 99}}),
    ("load_size must be at most 65536", {"data": {"load_size": 2**20}}),
    ("crop_size must be at most 65536", {"data": {"crop_size": [8, 2**20], "load_size": 2**16}}),
    ("crop_size must be one number, or two for .*, got a list", {"data": {"crop_size": [[1]] * 2}}),
    ("ngf must be at most 2147483647", {"model": {"ngf": 2**40}}),
    ("num_threads must be at most 4096", {"data": {"num_threads": 10**9}}),
    ("device must be auto", {"run": {"device": f"cuda:{10**30}"}}),
    ("dataroot must be a path, got ''", {"data": {"dataroot": ""}}),
    ("dataroot contains characters that no path can have", {"data": {"dataroot": "a\0b"}}),
    ("dataroot contains characters that no path can have", {"data": {"dataroot": "\ud800"}}),
]


@pytest.mark.parametrize(("message", "change"), MISFITS, ids=[row[0] for row in MISFITS])
def test_groups_and_settings_that_do_not_fit_are_named(message: str, change: dict[str, Any]) -> None:
    saved: dict[str, Any] = to_dict(TrainConfig())
    for group, settings in change.items():
        saved[group] = {**saved[group], **settings} if isinstance(settings, dict) and settings else settings
    with pytest.raises(UserError, match=message) as error:
        from_dict(saved)
    assert str(error.value).isprintable()


def is_refused(saved: Any) -> bool:
    """Return whether ``saved`` is refused, in one line. If it is not, it must be read as it is."""
    message = ""
    try:
        config = from_dict(saved)
    except UserError as error:
        message = str(error)
        assert message
        assert message.isprintable()
        assert len(message) < 300
        return True
    assert from_dict(to_dict(config)) == config
    for group, settings in to_dict(config).items():
        for name, value in saved.get(group, {}).items():
            is_path = name in ("dataroot", "data_A", "data_B", "checkpoints_dir")
            if name == "eval_every" and type(value) is int:  # a number of epochs can be one in JSON
                value = str(value)
            assert settings[name] == (str(Path(value)) if is_path and value else value)
    return False


def altered_configs(seeds: range) -> int:
    """Return how many of the configurations with one alteration are refused."""
    tiny = {"run": {"name": "r", "print_freq": 3}, "optim": {"max_iters": 4}, "data": {"data_A": Path("a")}}
    tiny["data"]["data_B"] = Path("b")
    saved = to_dict(with_changes(TrainConfig(), tiny))
    return sum(is_refused(altered(random.Random(seed), saved, (*PLAIN, *NOT_JSON))[0]) for seed in seeds)


def test_altered_configurations_are_refused_or_legal() -> None:
    assert 150 < altered_configs(range(300)) < 300


@pytest.mark.slow
def test_many_altered_configurations_are_refused_or_legal() -> None:
    refused = altered_configs(range(10_000, 30_000))
    print(f"{refused} of 20,000 altered configurations were refused")
    assert 10_000 < refused < 20_000


def test_builtin_preset_is_a_valid_configuration() -> None:
    config = with_changes(TrainConfig(), CycleGANRecipe.builtin)
    assert config.data.is_builtin
    assert not DataConfig(dataroot=Path("x")).is_builtin


def test_evaluations_are_every_n_epochs_or_iterations_or_a_share_of_the_time() -> None:
    assert EvaluationConfig(eval_every="5").every == (5, False)
    assert EvaluationConfig(eval_every="2000it").every == (2000, True)
    assert EvaluationConfig(eval_every=5) == EvaluationConfig(eval_every="5")  # type: ignore[arg-type]
    assert EvaluationConfig(eval_metric="l1").every is None
    assert EvaluationConfig(eval_metric="l1").asks
    assert not EvaluationConfig().asks


def test_the_settings_of_evaluations_are_those_of_their_metrics() -> None:
    features = {"eval_features": "vgg16", "eval_features_size": "none", "eval_feature_weights": Path("w")}
    others = {"eval_resize": "legacy", "eval_lpips_net": "vgg16", "eval_lpips_weights": Path("l")}
    metric = EvaluationConfig(eval_every="1", **features, **others).metric_config()
    assert metric == MetricConfig("vgg16", "none", Path("w"), "legacy", "vgg16", Path("l"))


def test_evaluations_are_saved_with_absolute_paths() -> None:
    files = {"eval_feature_weights": Path("w.pth"), "eval_lpips_weights": Path("l.pth")}
    config = TrainConfig(
        evaluation=EvaluationConfig(eval_metric="fid", eval_features="vgg16", **files)  # type: ignore[arg-type]
    )
    saved = with_absolute_paths(config).evaluation
    assert (saved.eval_features, saved.eval_feature_weights) == ("vgg16", Path("w.pth").absolute())
    assert saved.eval_lpips_weights == Path("l.pth").absolute()
    other = TrainConfig(evaluation=EvaluationConfig(eval_metric="fid", eval_features="f.pt"))
    assert with_absolute_paths(other).evaluation.eval_features == str(Path("f.pt").absolute())
    assert from_dict(to_dict(with_absolute_paths(config))) == with_absolute_paths(config)
