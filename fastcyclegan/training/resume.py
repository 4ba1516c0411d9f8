"""Takes a run up where it stopped: from its state, or from official files of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastcyclegan.checkpoints import loading, run_files
from fastcyclegan.config import TrainConfig, to_dict
from fastcyclegan.data.loader import Say
from fastcyclegan.errors import UserError
from fastcyclegan.recipes.cyclegan import GENERATORS
from fastcyclegan.tensor_files import load_tensors, to_cpu
from fastcyclegan.training.run import STATE_VERSION, TENSORS, Run

# Settings that a state was made with and cannot be continued without: they fix the samples, their order and
# the pools.
FIXED = (
    *(("data", name) for name in ("direction", "batch_size", "serial_batches")),
    ("loss", "pool_size"),
    ("run", "seed"),
)


def _architecture(config: TrainConfig) -> str:
    return f"{config.model.netG} (ngf {config.model.ngf}, {config.model.norm} norm) of this run"


def take_up(run: Run, state: Any, source: Path | str, say: Say) -> None:
    """Put ``run`` where ``state`` was taken."""
    _check_state(state, run, source, say)
    for name, net in run.engine.nets.items():
        run_files.fit_weights(net, state["nets"][name], f"{source} ({name})", _architecture(run.config))
    run.engine.load_state_dict(state)
    run.iteration, run.first, run.extra = state["iteration"], state["first"], state["extra"]


def resume(run: Run, say: Say) -> None:
    """Put ``run`` where it stopped: from its state, else from official files, whose weights alone are
    known."""
    config, folder = run.config, run.folder
    assert folder is not None
    state_file = folder / run_files.STATE
    if state_file.exists() and config.run.epoch == "latest":
        take_up(run, read_state(state_file), state_file, say)
        say(f"continuing {folder} after iteration {run.iteration}")
        return
    files = {name: run_files.weights_file(folder, config.run.epoch, name) for name in run.engine.nets}
    lacking = [str(file) for file in files.values() if not file.exists()]
    if lacking:
        there = ", ".join(run_files.saved_epochs(folder)) or "none"
        raise UserError(f"{lacking[0]}: no such file; weights in {folder}: {there}")
    for name, file in files.items():
        network = loading.choose(loading.read_networks(file), file, generator=name in GENERATORS)
        run_files.fit_weights(run.engine.nets[name], network.weights, file, _architecture(config))
    if run.engine.average is not None:
        run.engine.average.restart()
    say(
        f"starting from the weights {folder}/{config.run.epoch}_net_*.pth with fresh optimizers, pools and"
        f" epoch {config.optim.epoch_count}: such files hold nothing else"
    )


def read_state(file: Path) -> dict[str, Any]:
    """Return the state in ``file``. Raises UserError where it is none that this version can continue."""
    state = load_tensors(file)
    parts = {
        "nets": dict,
        "optimizers": dict,
        "recipe": dict,
        "rng": dict,
        "config": dict,
        "extra": dict,
        "iteration": int,
        "first": int,
    }
    whole = isinstance(state, dict) and state.get("version") == STATE_VERSION
    if (
        not whole
        or any(not isinstance(state.get(name), kind) for name, kind in parts.items())
        or state["iteration"] < 0
    ):
        raise UserError(f"{file}: not a state that this version can continue")
    if set(state["nets"]) != {"G_AB", "G_BA", "D_A", "D_B"} or not all(
        isinstance(net, dict) for net in state["nets"].values()
    ):
        raise UserError(f"{file}: its networks are not the four of a CycleGAN")
    # Out of the file, which somebody may write to while this is in use.
    copied: dict[str, Any] = to_cpu(state)
    return copied


def _check_state(state: Any, run: Run, file: Path | str, say: Say) -> None:
    """Raise UserError where ``state`` is not of this version or not of this configuration; say where its
    pictures were others.
    """
    ours = to_dict(run.config)
    for group, name in FIXED:
        was, now = state["config"][group][name], ours[group][name]
        if was != now:
            raise UserError(f"{file}: {name} was {was} and cannot become {now} in the middle of a run")
    if state["pictures"] != run.fingerprints():
        say(
            "the training pictures are not the ones that this run began with: it goes on with those that are"
            " there now"
        )
    kind = run.choice.kind if run.choice is not None else TENSORS
    if state.get("loader", kind) != kind:
        say(
            f"pictures were read by {state['loader']} and are now by {kind}, whose resizing differs by a"
            " level here and there"
        )
