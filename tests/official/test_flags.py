"""Command lines for the official train.py, as notebooks and scripts of all years have them, work."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastcyclegan import cli
from fastcyclegan.checkpoints import run_files
from fastcyclegan.cli import parse_train
from fastcyclegan.config import TrainConfig, default_config, to_dict, with_changes
from fastcyclegan.errors import UserError

# Each command line, the settings that differ from the defaults, and the lines about its flags.
COMMANDS: list[tuple[str, dict[str, Any], list[str]]] = [
    (  # the official README
        "--dataroot ./datasets/maps --name maps_cyclegan --model cycle_gan",
        {"dataroot": "datasets/maps", "name": "maps_cyclegan"},
        [],
    ),
    (  # pairs, which the official code also trains CycleGAN on
        "--dataroot d --name f --model cycle_gan --dataset_mode aligned --direction BtoA",
        {"dataroot": "d", "name": "f", "dataset_mode": "aligned", "direction": "BtoA"},
        [],
    ),
    (  # the same in 2017
        "--dataroot d --name f --model cycle_gan --align_data",
        {"dataroot": "d", "name": "f", "dataset_mode": "aligned"},
        ["--align_data is now --dataset_mode aligned"],
    ),
    (  # a notebook without a viewer
        "--dataroot ./datasets/horse2zebra --name h2z --model cycle_gan --display_id -1",
        {"dataroot": "datasets/horse2zebra", "name": "h2z"},
        ["--display_id: no effect here"],
    ),
    (  # a script on a server, with its own port
        "--dataroot datasets/monet --name monet --model cycle_gan --display_id 12 --display_port 8091"
        " --display_server http://10.0.0.1 --display_env monet --batch_size 1 --gpu_ids 0 --preprocess"
        " scale_width_and_crop --load_size 800 --crop_size 400",
        {
            "dataroot": "datasets/monet",
            "name": "monet",
            "gpu_ids": "0",
            "preprocess": "scale_width_and_crop",
            "load_size": 800,
            "crop_size": 400,
        },
        ["--display_id, --display_port, --display_server, --display_env: no effect here"],
    ),
    (  # 2017
        "--dataroot ./datasets/summer --name s2w --model cycle_gan --pool_size 50 --no_dropout"
        " --which_model_netG resnet_6blocks --which_model_netD n_layers --which_direction BtoA --loadSize 143"
        " --fineSize 128 --batchSize 2 --nThreads 2 --niter 50 --niter_decay 60",
        {
            "dataroot": "datasets/summer",
            "name": "s2w",
            "no_dropout": True,
            "netG": "resnet_6blocks",
            "netD": "n_layers",
            "direction": "BtoA",
            "load_size": 143,
            "crop_size": 128,
            "batch_size": 2,
            "num_threads": 2,
            "n_epochs": 50,
            "n_epochs_decay": 60,
        },
        [
            "--which_model_netG is now --netG, --which_model_netD is now --netD, --which_direction is now"
            " --direction, --loadSize is now --load_size, --fineSize is now --crop_size, --batchSize is now"
            " --batch_size, --nThreads is now --num_threads, --niter is now --n_epochs, --niter_decay is now"
            " --n_epochs_decay"
        ],
    ),
    (  # values after =, and the policy that was called lambda
        "--name g2c --resize_or_crop=scale_width --loadSize=1024 --model cycle_gan --identity 0 --no_lsgan"
        " --dataset_mode unaligned --dataroot /data/g2c/ --lr_policy lambda --display_id=0",
        {
            "name": "g2c",
            "preprocess": "scale_width",
            "load_size": 1024,
            "lambda_identity": 0.0,
            "gan_mode": "vanilla",
            "dataroot": "/data/g2c",
        },
        [
            "--display_id: no effect here",
            "--resize_or_crop is now --preprocess, --loadSize is now --load_size, --identity is now"
            " --lambda_identity, --no_lsgan is now --gan_mode vanilla, --lr_policy lambda is now --lr_policy"
            " linear",
        ],
    ),
    (  # a batch job that writes no page
        "--dataroot ./datasets/ct --name ct_4 --model cycle_gan --batch_size 4 --niter 25 --niter_decay 25"
        " --display_id -1 --no_html --verbose",
        {"dataroot": "datasets/ct", "name": "ct_4", "batch_size": 4, "n_epochs": 25, "n_epochs_decay": 25},
        [
            "--display_id, --no_html, --verbose: no effect here",
            "--niter is now --n_epochs, --niter_decay is now --n_epochs_decay",
        ],
    ),
    (  # other frequencies
        "--dataroot ./d --name small --model cycle_gan --netG resnet_6blocks --ngf 32 --ndf 32 --norm batch"
        " --display_winsize 128 --display_ncols 2 --update_html_freq 500 --print_freq 10 --save_epoch_freq 9",
        {
            "dataroot": "d",
            "name": "small",
            "netG": "resnet_6blocks",
            "ngf": 32,
            "ndf": 32,
            "norm": "batch",
            "print_freq": 10,
            "save_epoch_freq": 9,
        },
        ["--display_winsize, --display_ncols, --update_html_freq: no effect here"],
    ),
    (  # gray images, all of them
        "--dataroot d --name gray --model cycle_gan --input_nc 1 --output_nc 1 --preprocess none"
        " --max_dataset_size inf --phase train --load_iter 0",
        {"dataroot": "d", "name": "gray", "input_nc": 1, "output_nc": 1, "preprocess": "none"},
        ["--phase, --load_iter: no effect here"],
    ),
    (  # a sweep, with its settings in the name
        "--dataroot d --name sweep --suffix {model}_{netG}_size{load_size}_{lr} --model cycle_gan --lr 1e-3",
        {"dataroot": "d", "name": "sweep_cycle_gan_resnet_9blocks_size286_0.001", "lr": 0.001},
        [],
    ),
    (  # the same with old names and -
        "--dataroot d --name=sweep --suffix={loadSize}_{niter:03d} --niter 7 --no-html",
        {"dataroot": "d", "name": "sweep_286_007", "n_epochs": 7},
        ["--no-html: no effect here", "--niter is now --n_epochs"],
    ),
    (  # a checkpoints folder of its own, on a CPU
        "--dataroot RotorToIce/ --load_size 256 --crop_size 256 --n_epochs 100 --n_epochs_decay 100"
        " --batch_size 16 --checkpoints_dir RotorCheckpoints --name rotor2ice --model cycle_gan --gpu_ids -1",
        {
            "dataroot": "RotorToIce",
            "load_size": 256,
            "batch_size": 16,
            "checkpoints_dir": "RotorCheckpoints",
            "name": "rotor2ice",
            "gpu_ids": "-1",
        },
        [],
    ),
    (  # a wrapper of 2018
        "--model cycle_gan --name temp --dataroot ./datasets/mini --niter 1 --niter_decay 0"
        " --save_latest_freq 10 --print_freq 1 --display_id -1 --display_single_pane_ncols 3",
        {
            "name": "temp",
            "dataroot": "datasets/mini",
            "n_epochs": 1,
            "n_epochs_decay": 0,
            "save_latest_freq": 10,
            "print_freq": 1,
        },
        [
            "--display_id, --display_single_pane_ncols: no effect here",
            "--niter is now --n_epochs, --niter_decay is now --n_epochs_decay",
        ],
    ),
]


# The same for pix2pix.
PAIRS: list[tuple[str, dict[str, Any], list[str]]] = [
    (  # the official README and notebook
        "--dataroot ./datasets/facades --name facades_pix2pix --model pix2pix --direction BtoA"
        " --display_id -1",
        {"dataroot": "datasets/facades", "name": "facades_pix2pix", "direction": "BtoA"},
        ["--display_id: no effect here"],
    ),
    (  # scripts/train_pix2pix.sh
        "--dataroot ./datasets/facades --name facades_pix2pix --model pix2pix --netG unet_256"
        " --direction BtoA --lambda_L1 100 --dataset_mode aligned --norm batch --pool_size 0",
        {"dataroot": "datasets/facades", "name": "facades_pix2pix", "direction": "BtoA"},
        ["--pool_size: no effect here"],
    ),
    (  # early 2017
        "--dataroot ./datasets/facades --name facades_pix2pix --model pix2pix --which_model_netG unet_256"
        " --which_direction BtoA --lambda_A 50 --align_data --use_dropout --no_lsgan",
        {
            "dataroot": "datasets/facades",
            "name": "facades_pix2pix",
            "direction": "BtoA",
            "lambda_L1": 50.0,
            "use_dropout": True,
        },
        [
            "--which_model_netG is now --netG, --which_direction is now --direction, --lambda_A is now"
            " --lambda_L1, --align_data is now --dataset_mode aligned, --no_lsgan is now --gan_mode vanilla"
        ],
    ),
    (  # later in 2017, with values after = and another size
        "--dataroot d --name city --model pix2pix --which_model_netG unet_128 --which_direction AtoB"
        " --lambda_A=100 --dataset_mode aligned --no_lsgan --norm batch --pool_size=0 --niter 150"
        " --niter_decay 50 --loadSize 143 --fineSize 128 --batchSize 4 --display_id=0",
        {
            "dataroot": "d",
            "name": "city",
            "netG": "unet_128",
            "n_epochs": 150,
            "n_epochs_decay": 50,
            "load_size": 143,
            "crop_size": 128,
            "batch_size": 4,
        },
        [
            "--pool_size, --display_id: no effect here",
            "--which_model_netG is now --netG, --which_direction is now --direction, --lambda_A is now"
            " --lambda_L1, --no_lsgan is now --gan_mode vanilla, --niter is now --n_epochs, --niter_decay is"
            " now --n_epochs_decay, --loadSize is now --load_size, --fineSize is now --crop_size,"
            " --batchSize is now --batch_size",
        ],
    ),
]


def flat(config: TrainConfig) -> dict[str, Any]:
    return {name: value for group in to_dict(config).values() for name, value in group.items()}


@pytest.mark.parametrize(("command", "settings", "lines"), [*COMMANDS, *PAIRS])
def test_official_command_lines_give_their_settings(
    command: str, settings: dict[str, Any], lines: list[str]
) -> None:
    logged: list[str] = []
    config = parse_train(shlex.split(command), logged.append)
    assert flat(config) == flat(default_config(config.model.model)) | settings
    assert logged == lines


MISTAKES = [
    (
        "--dataroot d --name f --model colorization",
        "--model: there is no recipe 'colorization'; the recipes are cycle_gan, pix2pix",
    ),
    (
        "--dataroot d --name f --model pix2pix --pool_size 50",
        "--pool_size 50: --model pix2pix has no image pool; leave it out, or give 0",
    ),
    ("--dataroot d --model pix2pix --lambda_A 9 --lambda_L1 9", "--lambda_A is an old name of --lambda_L1"),
    ("--dataroot d --model pix2pix --lambda_A", "--lambda_A: no value given"),
    ("--dataroot d --model pix2pix --lambda_B 10", "--lambda_B is a flag of --model cycle_gan"),
    (
        "--dataroot d --dataset_mode=colorization",
        "--dataset_mode must be one of unaligned, aligned, single, got 'colorization'",
    ),
    (
        "--dataroot d --align_data --dataset_mode unaligned",
        "--align_data is an old name of --dataset_mode: give only one of them",
    ),
    ("--dataroot d --phase val", "--phase val: give the folders with --data_A and --data_B"),
    ("--dataroot d --niter 5 --n-epochs 6", "--niter is an old name of --n_epochs: give only one of them"),
    ("--dataroot d --no_lsgan --gan_mode lsgan", "--no_lsgan is an old name of --gan_mode: give only one"),
    ("--dataroot d --identity 1 --lambda_identity=1", "--identity is an old name of --lambda_identity"),
    ("--dataroot d --load_iter 1000", "--load_iter needs --continue_train"),
    ("--dataroot d --load_iter latest", "--load_iter must be an integer of at least 0, got 'latest'"),
    (
        "--dataroot d --name n --continue_train --load_iter 5 --which_epoch 3",
        "--load_iter and --which_epoch both choose the weights: give only one of them",
    ),
    ("--dataroot d --suffix {netG}", "--suffix needs --name"),
    ("--dataroot d --name n --suffix {colour}", "--suffix {colour}: there is no setting 'colour'"),
    ("--dataroot d --name n --suffix {}", "--suffix {}: there is no setting ''"),
    ("--dataroot d --name n --suffix {netG.__class__}", "there is no setting 'netG.__class__'"),
    ("--dataroot d --name n --suffix {netG:d}", "--suffix {netG:d}: "),
    ("--dataroot d --name n --suffix {netG", "--suffix {netG: "),
    ("--dataroot d --name n --suffix a/b", "name must be a plain folder name, got 'n_a/b'"),
    ("--dataroot d --display_id", "--display_id: no value given"),
    ("--dataroot d --niter --no_html", "--niter: no value given"),
    ("--dataroot d --niter few", "--n_epochs must be an integer, got 'few'"),
    ("--dataroot d --gpu_ids 0,1", "gpu_ids must be one number, or -1 for the CPU (a run uses one GPU)"),
    ("--dataroot d --norm syncbatch", "--norm must be one of instance, batch, none, got 'syncbatch'"),
    ("--dataroot d --lambda_L1 100", "--lambda_L1 is a flag of --model pix2pix"),
]


@pytest.mark.parametrize(("command", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_what_is_not_supported_is_one_line(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.train(shlex.split(command)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1, error


def test_weights_of_an_iteration_and_a_suffix_when_a_run_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "r_286").mkdir()
    saved = with_changes(TrainConfig(), {"data": {"dataroot": Path("d")}, "optim": {"lr": 0.5}})
    run_files.write_config(tmp_path / "r_286", saved)
    (tmp_path / "r_286" / "state.pt").touch()
    command = f"--continue_train --dataroot d --name r --suffix {{load_size}} --checkpoints_dir {tmp_path}"
    logged: list[str] = []
    config = parse_train([*command.split(), "--load_iter", "0300", "--which_direction=AtoB"], logged.append)
    assert (config.run.name, config.run.epoch, config.optim.lr) == ("r_286", "iter_300", 0.5)
    assert logged == ["--load_iter 0300 is now --epoch iter_300, --which_direction is now --direction"]
    with pytest.raises(UserError, match="both choose the weights"):
        parse_train([*command.split(), "--load_iter", "3", "--epoch", "3"])


def test_a_resumed_pix2pix_takes_its_flags_without_its_name(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    run_files.write_config(
        tmp_path / "r", with_changes(default_config("pix2pix"), {"data": {"dataroot": Path("d")}})
    )
    (tmp_path / "r" / "state.pt").touch()
    logged: list[str] = []
    command = f"--continue_train --name r --checkpoints_dir {tmp_path} --pool_size 0 --lambda_A 7"
    assert flat(parse_train(command.split(), logged.append))["lambda_L1"] == 7
    assert logged == ["--pool_size: no effect here", "--lambda_A is now --lambda_L1"]


def test_the_lines_come_before_the_configuration_but_not_with_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--no_html", "--niter", "3", "--dataroot", "d"]
    assert cli.train([*flags, "--dry_run"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[:2] == ["--no_html: no effect here", "--niter is now --n_epochs"]
    with pytest.raises(SystemExit):
        cli.train([*flags, "--help"])
    output, error = capsys.readouterr()
    assert output.startswith("usage: ")
    assert "no effect here" not in output
    assert not error


def test_importing_the_module_imports_no_torch() -> None:
    program = (
        "import sys, fastcyclegan.official.flags, fastcyclegan.official.replacement\n"
        "print({'torch', 'tyro'} & sys.modules.keys())"
    )
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout == "set()\n"
