"""Resume a run where it stopped, from its training state or from official weight files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastcyclegan.checkpoints import loading, run_files
from fastcyclegan.checkpoints.weight_sets import read_sets
from fastcyclegan.config import RunConfig, TrainConfig, to_dict
from fastcyclegan.data.loader import Log
from fastcyclegan.errors import UserError
from fastcyclegan.recipes.recipe import Recipe
from fastcyclegan.tensor_files import load_tensors, to_cpu
from fastcyclegan.training.run import STATE_VERSION, Run
from fastcyclegan.training.run_folder import resume_command
from fastcyclegan.training.state_writer import restore_previous

# Settings that must not change after a state was saved. They determine the samples, their order and the
# pools.
FIXED = (
    *(("data", name) for name in ("direction", "batch_size", "serial_batches")),
    ("loss", "pool_size"),
    ("run", "seed"),
)
# The parts of a state that are dicts.
_DICTS = ("nets", "optimizers", "recipe", "rng", "config", "extra")


def _architecture(config: TrainConfig) -> str:
    return f"{config.model.netG} (ngf {config.model.ngf}, {config.model.norm} norm) of this run"


def restore_state(run: Run, state: Any, source: Path | str, log: Log) -> None:
    """Restore ``run`` from ``state``. ``source`` names the state in messages."""
    _check_state(state, run, source, log)
    for name, net in run.engine.nets.items():
        run_files.fit_weights(net, state["nets"][name], f"{source} ({name})", _architecture(run.config))
    run.engine.load_state_dict(state)
    run.iteration, run.first, run.extra = state["iteration"], state["first"], state["extra"]


def resume(run: Run, log: Log) -> None:
    """Restore ``run`` from its training state or from official files, which contain only weights."""
    config, folder = run.config, run.folder
    assert folder is not None
    file = state_file(folder, config.run.epoch)
    if file is not None:
        state = read_state(file, run.engine.recipe, _other_state(file, config.run))
        if file.name == run_files.PREVIOUS and config.run.epoch == "latest":
            _require_no_later_weights(folder, state["iteration"])
            log(f"{folder / run_files.STATE}: no such file, so the run resumes from {file.name}")
        restore_state(run, state, file, log)
        run.resumed_from_file = True
        if file.name == run_files.PREVIOUS:
            restore_previous(folder)
        log(f"resuming {folder} after iteration {run.iteration}")
        return
    if config.run.epoch == "latest" and not run_files.saved_epochs(folder):
        log(f"{folder} has no saved state yet, so training starts from the beginning")
        return
    _start_from_weights(run, folder, log)


def _other_state(file: Path, run: RunConfig) -> str:
    """Return how to resume from the previous state if the last one, ``file``, is damaged."""
    if file.name != run_files.STATE or not file.with_name(run_files.PREVIOUS).exists():
        return ""
    return f"; to resume from the state before it: {resume_command(run, previous=True)}"


def _require_no_later_weights(folder: Path, iteration: int) -> None:
    """Raise UserError if resuming after ``iteration`` would replace weights that were trained for longer."""
    latest = read_sets(folder).get("latest", {"iteration": 0})
    if latest["iteration"] > iteration:
        raise UserError(
            f"{folder / run_files.STATE}: no such file; the weights in latest_net_*.pth are those of"
            f" iteration {latest['iteration']}, and {run_files.PREVIOUS} is that of iteration {iteration}:"
            " --epoch previous resumes from there and replaces these weights"
        )


def state_file(folder: Path, epoch: str) -> Path | None:
    """Return the file of the state to resume from, or None if ``epoch`` is one of weights files.

    Raises UserError if there is no previous state although ``epoch`` asks for it.
    """
    last, previous = folder / run_files.STATE, folder / run_files.PREVIOUS
    if epoch == "previous":
        if not previous.exists():
            raise UserError(f"{previous}: no such file: no state before the last one was kept")
        return previous
    if epoch != "latest":
        return None
    if last.exists():
        return last
    # Where files cannot have two names, the last state is renamed before a new one takes its place.
    return previous if previous.exists() else None


def _start_from_weights(run: Run, folder: Path, log: Log) -> None:
    config = run.config
    recipe, nets = run.engine.recipe, run.engine.nets
    files = {}
    for name in nets:
        files[name] = run_files.weights_file(folder, config.run.epoch, recipe.official_names[name])
    for file in files.values():
        if not file.exists():
            epochs = run_files.saved_epochs(folder)
            available = ", ".join(epochs) if epochs else "none"
            raise UserError(f"{file}: no such file; epochs saved in {folder}: {available}")
    for name, file in files.items():
        networks = loading.read_networks(file)
        network = loading.choose(networks, file, generator=name in recipe.generators)
        run_files.fit_weights(nets[name], network.weights, file, _architecture(config))
    if run.engine.average is not None:
        run.engine.average.restart()
    log(
        f"starting from the weights in {folder}/{config.run.epoch}_net_*.pth, at epoch"
        f" {config.optim.epoch_count} and with fresh optimizers and pools, because these files contain only"
        " weights"
    )


def read_state(file: Path, recipe: Recipe, if_damaged: str = "") -> dict[str, Any]:
    """Return the training state in ``file``.

    Raises UserError if this version cannot resume from it, or if it belongs to another recipe. The message
    about a damaged file ends with ``if_damaged``.
    """
    try:
        state = load_tensors(file)
    except UserError as error:
        raise UserError(f"{error}{if_damaged}") from None
    if not _is_state(state):
        raise UserError(f"{file}: not a training state that this version can resume")
    nets = state["nets"]
    if set(nets) != set(recipe.networks) or not all(isinstance(net, dict) for net in nets.values()):
        raise UserError(f"{file}: the networks in this file are not {recipe.networks_title}")
    # A copy, because the file may be overwritten while the state is in use.
    copied: dict[str, Any] = to_cpu(state)
    return copied


def _is_state(state: Any) -> bool:
    """Return whether ``state`` has all parts of a training state of this version."""
    if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
        return False
    if not all(isinstance(state.get(name), dict) for name in _DICTS):
        return False
    if not all(isinstance(state.get(name), int) for name in ("iteration", "first")):
        return False
    return bool(state["iteration"] >= 0)


def _check_state(state: Any, run: Run, file: Path | str, log: Log) -> None:
    """Raise UserError if ``state`` does not fit the configuration of ``run``.

    A change of the images or of their loader is only logged.
    """
    current = to_dict(run.config)
    for group, name in FIXED:
        before, now = state["config"][group][name], current[group][name]
        if before != now:
            raise UserError(f"{file}: {name} was {before} and cannot change to {now} in the middle of a run")
    if state["pictures"] != run.fingerprints():
        log(
            "the training images have changed since this run started; training continues with the current"
            " ones"
        )
    if state.get("loader", run.reader) != run.reader:
        log(
            f"images were previously read by {state['loader']} and are now read by {run.reader}; after"
            " resizing, some pixels differ by one level"
        )
