"""Describe a run in words, for the table that is printed at its start."""

from __future__ import annotations

from fastcyclegan.config import DataConfig, TrainConfig
from fastcyclegan.engine import Engine
from fastcyclegan.training.disk import describe_disk
from fastcyclegan.training.run import Run


def describe_run(run: Run) -> dict[str, str]:
    """Return the rows of the table, as a dict from their names to their texts."""
    return {
        **_samples(run),
        "networks": _networks(run.config, run.engine),
        "learning rate": _learning_rate(run.config, run.batch),
        **run.engine.describe(),
        **_disk(run),
    }


def _disk(run: Run) -> dict[str, str]:
    if run.folder is None:
        return {}
    return {"disk": describe_disk(run)}


def _samples(run: Run) -> dict[str, str]:
    data, images, per_epoch = run.data, run.images, run.plan.iterations_per_epoch
    if images is None:
        counts = f"batches of {run.plan.batch_size}, {per_epoch} iterations per epoch"
        return {"samples": f"from the caller's loaders, {counts}"}
    any_size = ", of any size (--allow_decompression_bombs)" if data.allow_decompression_bombs else ""
    train = f"{len(images.train_A)} of domain A and {len(images.train_B)} of domain B for training"
    held_out = f"{len(images.test_A)} and {len(images.test_B)} held out"
    batches = f"batch size {data.batch_size}, {per_epoch} iterations per epoch"
    return {
        "images": f"{train}, {held_out}{any_size}",
        "samples": f"{data.preprocess}, {_size(data)}, {batches}",
        "loader": str(run.choice),
    }


def _size(data: DataConfig) -> str:
    if data.preprocess == "resize_and_crop":
        return f"from {data.load_size} to {data.crop_size} pixels"
    if data.preprocess == "crop":
        return f"{data.crop_size} pixels"
    if "width" in data.preprocess:
        return f"width {data.load_size}"
    return "original size"


def _networks(config: TrainConfig, engine: Engine) -> str:
    model, recipe = config.model, engine.recipe
    others = [name for name in recipe.networks if name not in recipe.generators]
    G, D = (_weights(engine, name) for name in (recipe.generators[0], others[0]))
    return f"{model.netG} ngf {model.ngf} ({G:,} weights each), {model.netD} ndf {model.ndf} ({D:,} each)"


def _weights(engine: Engine, name: str) -> int:
    return sum(p.numel() for p in engine.nets[name].parameters())


def _learning_rate(config: TrainConfig, batch: int) -> str:
    optim, lr = config.optim, f"{config.scaled_lr(batch):g}"
    if optim.lr_scaling == "sqrt":
        lr += f" = {optim.lr:g} x sqrt({batch}) (--lr_scaling sqrt)"
    return f"{lr}, {optim.lr_policy}"
