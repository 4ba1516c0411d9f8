"""The command of our translate.py that does what a command of the official test.py does.

Importing this module does not import torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from fastcyclegan.official.flags import RENAMED, spelled

# Flags of the official test.py, of any age. Those that translate.py has as well are left out by their names.
_SWITCHES = (
    "no_dropout",
    "use_dropout",
    "eval",
    "no_flip",
    "serial_batches",
    "verbose",
    "use_wandb",
    "no_html",
    "align_data",
)
_UNET_SIDE = "256"
"""The side to which the official test resizes images by default, which matters to a U-Net."""
_WITH_VALUE = (
    *("dataroot", "name", "model", "results_dir", "phase", "checkpoints_dir", "dataset_mode", "suffix"),
    *("num_test", "how_many", "ntest", "model_suffix", "aspect_ratio", "load_iter", "max_dataset_size"),
    *("netG", "netD", "norm", "ngf", "ndf", "n_layers_D", "input_nc", "output_nc", "init_type", "init_gain"),
    *("load_size", "crop_size", "preprocess", "gpu_ids", "display_id", "display_winsize"),
    *("display_port", "display_server", "wandb_project_name", *RENAMED),
)


def replacement(args: Sequence[str], own: Collection[str]) -> str | None:
    """Return what to write in place of ``args``, a command line for the official test.py, in one sentence.

    ``own`` are the names of the flags of translate.py. Returns None if all flags are ours or unknown.
    """
    names = [spelled(arg) for arg in args]
    theirs = [name for name in names if name in {*_SWITCHES, *_WITH_VALUE} - {*own}]
    if not theirs or "help" in names:
        return None
    values = _values(args)
    command = shlex.join(["translate.py", *_arguments(values, own)])
    text = f"--{theirs[0]} is a flag of the official test.py; write: {command}"
    if values.get("model") == "cycle_gan":
        opposite = "AtoB" if values.get("direction") == "BtoA" else "BtoA"
        reverse = {**values, "direction": opposite}
        other = shlex.join(["translate.py", *_arguments(reverse, own, f"_{opposite}")])
        text += f"; for the other direction: {other}"
    if _is_aligned(values) and "input" not in values:
        folder = _folder(values) / values.get("phase", "test")
        text += f"; first cut the images of {folder} into their halves: translate.py translates whole files"
    if any(name in values for name in ("num_test", "how_many", "ntest")):
        text += " (all images are translated)"
    return text


def _values(args: Sequence[str]) -> dict[str, str]:
    """Return the value of each flag under its present name; "" for a switch."""
    values = {}
    for position, arg in enumerate(args):
        name, (_, equals, value) = spelled(arg), arg.partition("=")
        if not name:
            continue
        if not equals and name not in _SWITCHES:
            following = args[position + 1 : position + 2]
            value = "".join(each for each in following if not each.startswith("--"))
        values[RENAMED.get(name, name)] = value
    return values


def _arguments(values: Mapping[str, str], own: Collection[str], ending: str = "") -> list[str]:
    """Return the arguments of translate.py, whose flags are ``own``, for the ``values`` of both commands'
    flags.

    ``ending`` is appended to the name of the folder for the translations.
    """
    is_single, epoch = _is_single(values), _epoch(values)
    name, suffix = values.get("name", "NAME"), values.get("model_suffix", "")
    weights = PurePosixPath(values.get("checkpoints_dir", "checkpoints"), name)
    if is_single and suffix:
        weights /= f"{epoch}_net_G{suffix}.pth"
        epoch = "latest"
    chosen = {
        "weights": values.get("weights", str(weights)),
        "input": values.get("input", _input(values)),
        "output": values.get(
            "output", str(PurePosixPath(values.get("results_dir", "results"), f"{name}{ending}"))
        ),
    }
    # The only generator of pix2pix translates in the direction in which it was trained.
    if values.get("direction", "AtoB") != "AtoB" and not is_single and not _is_pix2pix(values):
        chosen["direction"] = values["direction"]
    if epoch != "latest":
        chosen["epoch"] = epoch
    chosen |= _side(values) | _device(values)
    chosen |= {name: values[name] for name in ("batch_size", "num_threads") if name in values}
    arguments = [part for name, value in chosen.items() for part in (f"--{name}", value)]
    return [*arguments, *(f"--{name}" for name in _modes(values) if name in own)]


def _modes(values: Mapping[str, str]) -> list[str]:
    """Return the switches for a network that is to compute in another way than in training.

    Whether a ResNet has dropout shows in its file, but a U-Net's file does not tell.
    """
    if "eval" in values:
        return ["eval"]
    return ["no_dropout"] if "no_dropout" in values and _is_unet(values) else []


def _is_pix2pix(values: Mapping[str, str]) -> bool:
    return values.get("model") == "pix2pix"


def _is_unet(values: Mapping[str, str]) -> bool:
    return values.get("netG", "unet_256" if _is_pix2pix(values) else "").startswith("unet")


def _folder(values: Mapping[str, str]) -> PurePosixPath:
    return PurePosixPath(values.get("dataroot", "IMAGES"))


def _input(values: Mapping[str, str]) -> str:
    """Return the folder of the images to translate."""
    is_B = values.get("direction") == "BtoA"
    if _is_aligned(values):
        return "RIGHT_HALVES" if is_B else "LEFT_HALVES"
    if _is_single(values):
        return str(_folder(values))
    return str(_folder(values) / f"{values.get('phase', 'test')}{'B' if is_B else 'A'}")


def _is_aligned(values: Mapping[str, str]) -> bool:
    """Return whether the files hold pairs side by side, unless there is a folder for each domain."""
    usual = "aligned" if _is_pix2pix(values) or "align_data" in values else ""
    is_aligned = values.get("dataset_mode", usual) == "aligned"
    return is_aligned and not Path(_folder(values), f"{values.get('phase', 'test')}A").is_dir()


def _is_single(values: Mapping[str, str]) -> bool:
    """Return whether --dataroot is a folder of images, as the official model "test" takes it.

    That is the default of test.py since 2018, unless the folder, or another flag, shows a dataset.
    """
    if "model" in values or "dataset_mode" in values:
        return values.get("model") == "test" or values.get("dataset_mode") == "single"
    is_dataset = Path(values.get("dataroot", ""), "testA").is_dir()
    return not is_dataset and "phase" not in values and "direction" not in values


def _epoch(values: Mapping[str, str]) -> str:
    iteration = values.get("load_iter", "0")
    if iteration.strip("0"):
        return f"iter_{iteration}"
    return values.get("epoch", "latest")


def _side(values: Mapping[str, str]) -> dict[str, str]:
    """Return the side to which the official command resizes images, if it names one."""
    side = values.get("crop_size", values.get("load_size", _UNET_SIDE if _is_unet(values) else None))
    if side is None or values.get("preprocess", "resize_and_crop") != "resize_and_crop":
        return {}
    return {"resize": side}


def _device(values: Mapping[str, str]) -> dict[str, str]:
    if "device" in values:
        return {"device": values["device"]}
    if "gpu_ids" not in values:
        return {}
    first, _, _ = values["gpu_ids"].partition(",")
    return {"device": "cpu" if first == "-1" else f"cuda:{first}"}
