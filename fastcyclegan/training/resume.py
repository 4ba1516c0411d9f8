"""Resume a run where it stopped, from its training state or from official weight files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastcyclegan.checkpoints import loading, run_files
from fastcyclegan.checkpoints.run_files import DATASET
from fastcyclegan.checkpoints.weight_sets import read_sets, require_whole
from fastcyclegan.config import RunConfig, TrainConfig
from fastcyclegan.data.loader import Log
from fastcyclegan.data.tensor_loader import TensorLoader
from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import load_tensors, to_cpu
from fastcyclegan.training.run import TENSORS, Run
from fastcyclegan.training.run_folder import resume_command
from fastcyclegan.training.state_schema import Expected, Size, check_settings, check_state
from fastcyclegan.training.state_writer import restore_previous


def restore_state(run: Run, state: Any, source: Path | str, log: Log) -> None:
    """Restore ``run`` from ``state``. ``source`` names the state in messages.

    Raises UserError if a part of the state is not valid or does not fit the run, before anything is restored.
    """
    check_settings(state, run.config, source)
    check_state(state, _expected(run), source)
    _log_changes(state, run, log)
    run.engine.load_state_dict(state)
    run.iteration, run.first, run.extra = state["iteration"], state["first"], state["extra"]


def _expected(run: Run) -> Expected:
    return Expected(run.config, run.engine.recipe, run.engine.nets, _sizes(run))


def _sizes(run: Run) -> dict[str, Size] | None:
    """Return the size of the images of each domain, or None if images of several sizes can mix."""
    if isinstance(run.loader, TensorLoader):
        if run.loader.batch_size == 1 and not run.engine.recipe.needs_equal_sizes:
            return None
        return {side: (images.shape[2], images.shape[3]) for side, images in run.loader.first.items()}
    sizes: dict[str, Size] = {}
    for side, source in run.loader.sources.items():
        if source.size is None:
            return None
        sizes[side] = (source.size[1], source.size[0])
    return sizes


def resume(run: Run, log: Log) -> None:
    """Restore ``run`` from its training state or from official files, which contain only weights."""
    config, folder = run.config, run.folder
    assert folder is not None
    file = state_file(folder, config.run.epoch)
    if file is not None:
        state = read_state(file, run.config, _expected(run), _other_state(file, config.run))
        if file.name == run_files.PREVIOUS and config.run.epoch == "latest":
            _require_no_later_weights(folder, state["iteration"])
            log(f"{folder / run_files.STATE}: no such file, so the run resumes from {file.name}")
        restore_state(run, state, file, log)
        run.resumed_from_file = True
        if file.name == run_files.PREVIOUS:
            restore_previous(folder)
        log(f"resuming {folder} after iteration {run.iteration}")
        return
    if not has_weights(folder, config.run.epoch):
        log(f"{folder} has no saved state yet, so training starts from the beginning")
        return
    _start_from_weights(run, folder, log)


def require_builtin_images(folder: Path) -> None:
    """Raise UserError if the run in ``folder`` was not trained on the built-in images.

    Its configuration names no images, either, if a caller's loaders provided them, or if only weights of
    another training are there.
    """
    if (folder / DATASET).exists():
        return
    file = state_file(folder, "latest")
    loader: Any = TENSORS
    if file is not None:
        state = load_tensors(file)
        loader = state.get("loader") if isinstance(state, dict) else None
    if loader == TENSORS and (file is not None or run_files.saved_epochs(folder)):
        raise UserError(
            f"{folder}: its configuration does not say which images it was trained on: name them with"
            " --dataroot, or with --data_A and --data_B"
        )


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


def has_weights(folder: Path, epoch: str) -> bool:
    """Return whether a run in ``folder`` resumes from its own weights, rather than from the beginning."""
    if epoch != "latest" or state_file(folder, epoch) is not None:
        return True
    # The best weights are kept before the first state is saved, and the run makes them again.
    return any(label != "best" for label in run_files.saved_epochs(folder))


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
    require_whole(folder, config.run.epoch, is_running=False)
    for name, file in files.items():
        weights = loading.read_weights(file, nets[name], generator=name in recipe.generators)
        run_files.fit_weights(nets[name], weights, file, f"{recipe.architecture} of this run")
    if run.engine.average is not None:
        run.engine.average.restart()
    log(
        f"starting from the weights in {folder}/{config.run.epoch}_net_*.pth, at epoch"
        f" {config.optim.epoch_count} and with fresh optimizers, because these files contain only"
        " weights"
    )


def read_state(
    file: Path, config: TrainConfig | None, expected: Expected, if_damaged: str = ""
) -> dict[str, Any]:
    """Return the training state in ``file``, of which every part was checked.

    Raises UserError if this version cannot resume from it, or if a part is damaged or not what is
    ``expected``. With ``config``, also if a setting differs that must not change. The message about a damaged
    file ends with ``if_damaged``.
    """
    try:
        state = load_tensors(file)
    except UserError as error:
        raise UserError(f"{error}{if_damaged}") from None
    if config is not None:
        check_settings(state, config, file)
    check_state(state, expected, file, if_damaged)
    # A copy, because the file may be overwritten while the state is in use.
    copied: dict[str, Any] = to_cpu(state)
    return copied


def _log_changes(state: Any, run: Run, log: Log) -> None:
    """Log a change of the images or of their loader since ``state`` was saved."""
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
