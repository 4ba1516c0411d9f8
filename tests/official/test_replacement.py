"""translate.py, called with the flags of the official test.py, prints the command to write instead."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from fastcyclegan import cli
from fastcyclegan.checkpoints.run_files import save_weights
from fastcyclegan.nn.networks import Generator
from fastcyclegan.official.replacement import replacement

COMMANDS = [
    (  # the official README
        "--dataroot ./datasets/maps --name maps_cyclegan --model cycle_gan",
        "--weights checkpoints/maps_cyclegan --input datasets/maps/testA --output results/maps_cyclegan;"
        " for the other direction: translate.py --weights checkpoints/maps_cyclegan --input"
        " datasets/maps/testB --output results/maps_cyclegan_BtoA --direction BtoA",
    ),
    (
        "--dataroot datasets/horse2zebra/testA --name horse2zebra_pretrained --model test --no_dropout",
        "--weights checkpoints/horse2zebra_pretrained --input datasets/horse2zebra/testA --output"
        " results/horse2zebra_pretrained",
    ),
    (
        '--model test --name temp --dataroot ./datasets/mini --num_test 1 --model_suffix "_A" --no_dropout',
        "--weights checkpoints/temp/latest_net_G_A.pth --input datasets/mini --output results/temp"
        " (all images are translated)",
    ),
    (
        "--dataroot=d --name=n --how_many 5000 --which_epoch 200 --which_direction BtoA --results_dir out/"
        " --checkpoints_dir ./c --phase val --gpu_ids=0,1 --batchSize 4",
        "--weights c/n --input d/valB --output out/n --direction BtoA --epoch 200 --device cuda:0"
        " --batch_size 4 (all images are translated)",
    ),
    (
        "--dataroot d --name n --model cycle_gan --load_iter 40 --gpu_ids -1 --load-size 300 --crop-size 256",
        "--weights checkpoints/n --input d/testA --output results/n --epoch iter_40 --resize 256 --device"
        " cpu; for the other direction: translate.py --weights checkpoints/n --input d/testB --output"
        " results/n_BtoA --direction BtoA --epoch iter_40 --resize 256 --device cpu",
    ),
    (
        "--dataroot 'my images' --name n --dataset_mode single --preprocess none --load_size 512",
        "--weights checkpoints/n --input 'my images' --output results/n",
    ),
    (  # without --model, it is a folder of images
        "--name n --dataroot holiday",
        "--weights checkpoints/n --input holiday --output results/n",
    ),
    ("--name n", "--weights checkpoints/n --input IMAGES --output results/n"),
    (  # the official README and scripts/test_pix2pix.sh: files of pairs
        "--dataroot ./datasets/facades/ --direction BtoA --model pix2pix --name facades_pix2pix",
        "--weights checkpoints/facades_pix2pix --input RIGHT_HALVES --output results/facades_pix2pix --resize"
        " 256; first cut the images of datasets/facades/test into their halves: translate.py translates whole"
        " files",
    ),
    (  # the same in 2017
        "--dataroot d --name n --model pix2pix --which_model_netG unet_128 --which_direction AtoB"
        " --align_data --norm batch --how_many 50 --fineSize 128 --phase val",
        "--weights checkpoints/n --input LEFT_HALVES --output results/n --resize 128; first cut the images of"
        " d/val into their halves: translate.py translates whole files (all images are translated)",
    ),
    (  # scripts/test_single.sh
        "--dataroot ./datasets/facades/testB/ --name facades_pix2pix --model test --netG unet_256 --direction"
        " BtoA --dataset_mode single --norm batch",
        "--weights checkpoints/facades_pix2pix --input datasets/facades/testB --output"
        " results/facades_pix2pix --resize 256",
    ),
    (
        "--dataroot d --name n --model pix2pix --input my/images --netG resnet_6blocks",
        "--weights checkpoints/n --input my/images --output results/n",
    ),
    (  # CycleGAN on pairs
        "--dataroot d --name n --model cycle_gan --dataset_mode aligned",
        "--weights checkpoints/n --input LEFT_HALVES --output results/n; for the other direction:"
        " translate.py --weights checkpoints/n --input RIGHT_HALVES --output results/n_BtoA --direction BtoA;"
        " first cut the images of d/test into their halves: translate.py translates whole files",
    ),
    (  # ours and theirs together
        "--weights w --input i --output o --gpu_ids 0",
        "--weights w --input i --output o --device cuda:0",
    ),
]


@pytest.mark.parametrize(("command", "ours"), COMMANDS)
def test_the_line_names_the_command_to_write(
    command: str, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.translate(shlex.split(command)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --")
    assert " is a flag of the official test.py; write: " in error
    assert error.endswith(f"; write: translate.py {ours}\n")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--model pix2pix --eval", " --resize 256 --eval"),
        ("--model pix2pix --no_dropout", " --resize 256 --no_dropout"),
        # In evaluation mode, there is no dropout.
        ("--model test --netG unet_128 --no_dropout --eval", " --resize 256 --eval"),
        # The file of a ResNet shows that it has none.
        ("--model test --no_dropout", ""),
        ("--model pix2pix --netG resnet_9blocks --no_dropout", ""),
    ],
)
def test_modes_of_the_network_are_kept_where_we_have_them(flags: str, expected: str) -> None:
    args = shlex.split(f"--dataroot d --name n {flags}")
    text = replacement(args, ["weights", "input", "output", "eval", "no_dropout"])
    assert text is not None
    command, _, _ = text.partition(";")[2].partition("; first")
    assert command.partition("results/n")[2] == expected
    assert "--eval" not in str(replacement(args, []))


def test_pairs_in_two_folders_need_no_cutting(tmp_path: Path) -> None:
    (tmp_path / "testA").mkdir()
    text = replacement(["--dataroot", str(tmp_path), "--model", "pix2pix", "--direction=BtoA"], [])
    assert text is not None
    assert text.endswith(f"--input {tmp_path}/testB --output results/NAME --resize 256")


def test_the_command_translates(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints" / "n").mkdir(parents=True)
    for name in ("G", "G_A"):
        weights = Generator(ngf=2, n_blocks=0).state_dict()
        save_weights(tmp_path / "checkpoints" / "n" / f"latest_net_{name}.pth", weights)
    for more in ("--model cycle_gan", f"--model test --dataroot {dataset}/testB", "--model_suffix _A"):
        assert cli.translate(f"--dataroot {dataset} --name n --gpu_ids -1 {more}".split()) == 2
        _, _, command = capsys.readouterr().err.partition("write: translate.py ")
        command, _, _ = command.partition(";")
        assert cli.translate(shlex.split(command)) == 0
        assert "to results/n" in capsys.readouterr().out


def test_our_own_flags_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.translate("--weights w --input none --output o --epoch 5 --batch_size 2".split()) == 2
    assert capsys.readouterr().err == "error: none: no such file or folder\n"
