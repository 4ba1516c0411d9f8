"""Describe a run in words, for the table that is printed at its start."""

from __future__ import annotations

from fastcyclegan.config import DataConfig, TrainConfig
from fastcyclegan.data.scan import Images
from fastcyclegan.engine import Engine
from fastcyclegan.training.disk import describe_disk
from fastcyclegan.training.frozen import describe_frozen
from fastcyclegan.training.initial_weights import described
from fastcyclegan.training.run import Run


def describe_run(run: Run) -> dict[str, str]:
    """Return the rows of the table, as a dict from their names to their texts."""
    recipe = run.engine.recipe
    return {
        **_samples(run),
        "networks": recipe.describe_networks({name: _weights(run.engine, name) for name in recipe.networks}),
        **_weights_row(run),
        **describe_frozen(run.config, recipe),
        **recipe.rows(),
        "learning rate": _learning_rate(run.config, run.batch),
        **run.engine.describe(),
        **_evaluation(run),
        **_disk(run),
        **_trackers(run),
    }


def _weights_row(run: Run) -> dict[str, str]:
    return {"weights": described(run.origins)} if run.origins else {}


def _evaluation(run: Run) -> dict[str, str]:
    if run.evaluation is None:
        return {}
    return {"evaluation": run.evaluation.describe()}


def _disk(run: Run) -> dict[str, str]:
    if run.folder is None:
        return {}
    return {"disk": describe_disk(run)}


def _trackers(run: Run) -> dict[str, str]:
    options, names = run.config.run, run.trackers.names
    if options.use_wandb:
        names = [f"wandb (project {options.wandb_project_name})", *names]
    if not names:
        return {}
    return {"trackers": ", ".join(names)}


def _samples(run: Run) -> dict[str, str]:
    data, images, per_epoch = run.data, run.images, run.plan.iterations_per_epoch
    if images is None:
        counts = f"batches of {run.plan.batch_size}, {per_epoch} iterations per epoch"
        return {"samples": f"from the caller's loaders, {counts}"}
    any_size = ", of any size (--allow_decompression_bombs)" if data.allow_decompression_bombs else ""
    train, held_out = _counts(images)
    batches = f"batch size {data.batch_size}, {per_epoch} iterations per epoch"
    return {
        "images": f"{train}, {held_out}{any_size}",
        "samples": f"{data.preprocess}, {_size(data)}, {batches}",
        "loader": str(run.choice),
    }


def _counts(images: Images) -> tuple[str, str]:
    """Return how many images there are for training, and how many are held out, in words."""
    if images.layout == "unaligned":
        train = f"{len(images.train_A)} of domain A and {len(images.train_B)} of domain B for training"
        return train, f"{len(images.test_A)} and {len(images.test_B)} held out"
    count, kind = len(images.train_A), ""
    if images.layout == "aligned":
        kind = "pair " if count == 1 else "pairs "
    return f"{count} {kind}for training", f"{len(images.test_A)} held out"


def _size(data: DataConfig) -> str:
    height, width = data.crop
    crop = f"{width} pixels" if width == height else f"{width}x{height} pixels"
    if data.preprocess == "resize_and_crop":
        return f"from {data.load_size} to {crop}"
    if data.preprocess == "crop":
        return crop
    if data.preprocess == "scale_width_and_crop":
        return f"from width {data.load_size} to {crop}"
    if data.preprocess == "scale_width":
        return f"width {data.load_size}"
    return "original size"


def _weights(engine: Engine, name: str) -> int:
    return sum(p.numel() for p in engine.nets[name].parameters())


def _learning_rate(config: TrainConfig, batch: int) -> str:
    optim, lr = config.optim, f"{config.scaled_lr(batch):g}"
    if optim.lr_scaling == "sqrt":
        lr += f" = {optim.lr:g} x sqrt({batch}) (--lr_scaling sqrt)"
    return f"{lr}, {optim.lr_policy}"
