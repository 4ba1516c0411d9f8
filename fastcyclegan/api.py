"""Python API: the base of the classes that train a recipe, translate images, save and load.

Unless the caller asks for it, nothing is printed or written and no global state is changed. The command line
is a thin layer on top of these classes, which ``models`` lists.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn

from fastcyclegan.checkpoints import run_files
from fastcyclegan.checkpoints.loading import read_weights, recipe_in, settings_of
from fastcyclegan.checkpoints.run_files import (
    read_config,
    remove_partials,
    saved_epochs,
    weights_file,
    write_config,
)
from fastcyclegan.checkpoints.weight_sets import require_whole, write_set
from fastcyclegan.config import Direction, TrainConfig, default_config, with_changes
from fastcyclegan.console import Console, QuietConsole
from fastcyclegan.data.pixels import to_image, to_pixels
from fastcyclegan.engine import resolve_device
from fastcyclegan.errors import UserError
from fastcyclegan.inference.precision_check import precision_for
from fastcyclegan.inference.translate_images import ImageLike, translate_images
from fastcyclegan.inference.translator import Translator, engine_of, network_to_call, release_engine
from fastcyclegan.nn.finite import not_finite_in, require_representable
from fastcyclegan.nn.torch_defaults import usual_modes
from fastcyclegan.recipes.recipe import Recipe
from fastcyclegan.settings.tiles import Tile, TileMode, TileSettings, TileStorage
from fastcyclegan.tensor_files import save_tensors, to_cpu
from fastcyclegan.training.frozen import require_possible_freeze
from fastcyclegan.training.given_networks import why_not_loadable
from fastcyclegan.training.given_settings import group_of, images_given, loaders_given, with_settings
from fastcyclegan.training.initial_weights import (
    before_files,
    start_from_files,
    with_architecture_of_files,
)
from fastcyclegan.training.resume import read_state, state_file
from fastcyclegan.training.run import with_absolute_paths
from fastcyclegan.training.run_folder import is_free
from fastcyclegan.training.run_lock import RunLock
from fastcyclegan.training.start import Overrides, networks_that_fit
from fastcyclegan.training.state_schema import Expected
from fastcyclegan.training.tracker import Tracker, require_trackers
from fastcyclegan.training.trainer import Trainer, train

Record = dict[str, Any]
Callback = Callable[["Model", Record], object]
_INITIALISING = threading.Lock()
# Settings that apply to a single start of a run. They are reset to these values and are not saved with it.
_ONE_START = {"continue_train": False, "overwrite": False, "dry_run": False, "epoch": "latest"}


@contextlib.contextmanager
def _preserve_global_state() -> Iterator[None]:
    """Restore the global state that training changes: torch's random state and cuDNN's benchmark flag."""
    benchmark = torch.backends.cudnn.benchmark
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark


class Model:
    """The networks of a recipe, with methods to train them, translate images, save and load.

    ``settings`` are the flags of ``scripts/train.py`` as keyword arguments (``batch_size=4``,
    ``compile=True``, ...). They override the values of ``config``, or the recipe's defaults if ``config`` is
    None. The initial weights depend only on ``seed``. Raises TypeError for an unknown setting, and UserError,
    with a one-line message, for an invalid value.

    The networks are in float32, and everything works in the same way, whatever torch's default dtype and
    device are, and inside ``torch.inference_mode`` and ``torch.no_grad``.
    """

    recipe: ClassVar[type[Recipe]]
    """What the class trains; ``models.model_class`` makes a class for each recipe."""

    def __init__(self, config: TrainConfig | None = None, **settings: Any) -> None:
        title, name = self.recipe.title, self.recipe.name
        if config is not None and not isinstance(config, TrainConfig):
            raise TypeError(
                f"{title}: config must be a TrainConfig, got {config!r}; images are passed to fit, and"
                f" {title}.load loads a model"
            )
        if config is not None and config.model.model != name:
            raise UserError(
                f"{title} trains --model {name}, but the configuration is that of --model"
                f" {config.model.model}"
            )
        if config is None:
            self.config = with_settings(before_files(default_config(name), settings), settings)
        else:
            self.config = with_settings(config, settings)
        require_possible_freeze(self.config)
        if config is None:
            self.config = with_architecture_of_files(self.config, settings)
        self.folder: Path | None = None
        """The folder that the last ``fit``, ``save`` or ``load`` wrote to or read from, if any."""
        self.history: list[Record] = []
        """All records passed to callbacks so far, over all calls of ``fit``."""
        self._epoch = "latest"  # from which ``load`` took the weights
        self._nets: dict[str, nn.Module] | None = None
        self._origins: dict[str, str] = {}  # of the networks that are not loaded
        self._random_state: Tensor | None = None  # after the weights were drawn
        self._state: dict[str, Any] | None = None
        self._trainer: Trainer | None = None
        self._is_fitting = False

    # --- The networks ---------------------------------------------------------------------------------------

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks by name, in the recipe's order."""
        if self._nets is None:
            nets = self._with_initial_weights()
            self._origins = start_from_files(self.config, nets)
            self._nets = nets
        return self._nets

    def _with_initial_weights(self) -> dict[str, nn.Module]:
        # One thread at a time: torch has a single random number generator for all threads.
        with _INITIALISING, _preserve_global_state(), usual_modes():
            torch.manual_seed(self.config.run.seed)
            nets = networks_that_fit(self.config)
            self._random_state = torch.get_rng_state()
            return nets

    @property
    def device(self) -> torch.device:
        return resolve_device(self.config.run)

    @property
    def iteration(self) -> int:
        """The number of training iterations completed so far."""
        if self._trainer is not None:
            return self._trainer.run.iteration
        return 0 if self._state is None else int(self._state["iteration"])

    def __repr__(self) -> str:
        shown = [f"{name}={getattr(self.config.model, name)}" for name in self.recipe.shown_settings]
        return f"{self.recipe.title}({', '.join([*shown, f'iteration={self.iteration}'])})"

    # --- Training -------------------------------------------------------------------------------------------

    @usual_modes()
    def fit(
        self,
        A: str | Path | Iterable[Any] | None = None,
        B: str | Path | Iterable[Any] | None = None,
        *,
        folder: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
        trackers: Sequence[Tracker] = (),
        verbose: bool = False,
        iterations_per_epoch: int | None = None,
        **settings: Any,
    ) -> list[Record]:
        """Train the model and return the logged records.

        A record is logged once a second, or every ``print_freq`` images. It contains the iteration, the
        losses, the learning rate and the speed.

        The training images can be given as

        - ``A``: a dataset folder (with trainA and trainB, or with train);
        - ``A`` and ``B``: one folder of images per domain;
        - ``A``: a loader of both domains that yields {"A": ..., "B": ...} or pairs of tensors;
        - ``A`` and ``B``: one loader per domain;
        - ``A``: a folder or a loader of images, if the recipe trains on single images;
        - neither, to use the images named in the configuration.

        Loaders must yield float tensors [N, C, H, W] in [-1, 1], or uint8 tensors, where C is what the
        networks take (``input_nc`` or ``output_nc``); files need networks with 3 channels or 1. Cropping and
        flipping are up to the caller. ``iterations_per_epoch`` is required if they have no length.

        If ``folder`` is given, the files that the command line would write are written there; by default,
        nothing is written. ``callbacks`` are called with the model and each record, and can end training
        after the current iteration with ``stop()``. ``trackers`` are objects with the methods of
        ``training.tracker.Tracker``: they get each record and the sample grids, which are drawn if there is a
        folder or a tracker, and are closed at the end. ``verbose=True`` prints everything that the command
        line would print. ``settings`` are the same keyword arguments as for the class, and apply to this call
        and all later ones.

        Calling ``fit`` again resumes training, up to the epochs and iterations that the settings then
        specify. Resuming is exact, with one exception: a loader passed by the caller starts from its
        beginning, so with loaders it is exact only between epochs.

        Networks that you change can be trained, but not loaded again from ``folder``, which a warning says.

        Every batch of a loader is checked before it is trained on; an error leaves the model as the batches
        before made it. If a loss or a weight becomes infinite or NaN, training cannot continue from the
        weights in memory, and they are not saved: load the last saved state, or create a new model.

        Ctrl-C raises KeyboardInterrupt after the current iteration. Raises UserError if training on the given
        images is not possible or if the run diverges, and TypeError for anything that is neither a folder nor
        a loader.
        """
        if callable(callbacks):
            raise TypeError("fit: callbacks must be a list of functions, got one function f: pass [f]")
        if self._is_fitting:
            raise UserError("fit: this model is being trained already, so a callback cannot train it")
        config = self._config_for(A, B, folder, settings)
        loaders = loaders_given(A, B, config)
        records: list[Record] = []

        def begin(trainer: Trainer) -> None:
            # From here on, later calls resume this run, however it ends.
            self._trainer, self.config, self._state = trainer, config, None
            if trainer.run.folder is not None:
                self.folder = trainer.run.folder

        def tick(trainer: Trainer, record: Record) -> None:
            records.append(record)
            self.history.append(record)
            for callback in callbacks:
                callback(self, record)

        overrides = Overrides(
            self.networks,
            loaders,
            iterations_per_epoch,
            self._last_state(),
            files=folder is not None,
            origins=self._origins,
            trackers=require_trackers(trackers),
            random_state=self._random_state,
        )
        if folder is not None:
            self._warn_if_not_loadable(Path(folder))
        console = Console() if verbose else QuietConsole()
        for net in self.networks.values():
            release_engine(net)  # training needs the memory
        self._is_fitting = True
        try:
            with _preserve_global_state():
                train(config, console, overrides=overrides, on_start=begin, on_tick=tick, signals=False)
        finally:
            self._is_fitting = False
        return records

    def _config_for(
        self, A: Any, B: Any, folder: str | Path | None, settings: Mapping[str, Any]
    ) -> TrainConfig:
        """Return the configuration for one call of ``fit``."""
        for name in settings:
            if name in ("init_from", "init_from_B") or (
                group_of(name, self.config) == "model" and name != "impl"
            ):
                raise UserError(
                    f"fit: the networks already exist, so {name} cannot change; pass it to"
                    f" {self.recipe.title}(...)"
                )
        images = images_given(A, B, self.config, settings)
        config = with_settings(self.config, {**settings, **images, **_ONE_START})
        if folder is not None:
            folder = Path(folder)
            resumes = self._is_own(folder)
            if not resumes and folder.is_dir() and not is_free(folder):
                raise UserError(
                    f"fit: {folder} already exists: choose another folder, or load the run in it with"
                    f" {self.recipe.title}.load"
                )
            epoch = self._epoch if resumes and self._trainer is None else "latest"
            start = {"name": folder.name, "checkpoints_dir": folder.parent, "continue_train": resumes}
            start["epoch"] = epoch
            config = with_changes(config, {"run": start})
        return config

    def _is_own(self, folder: Path) -> bool:
        """Return whether this model's last files, or those of its last run, are in ``folder``."""
        own = [self.folder, None if self._trainer is None else self._trainer.run.folder]
        return folder.resolve() in [path.resolve() for path in own if path is not None]

    def stop(self) -> None:
        """End ``fit`` after the current iteration. Meant to be called from callbacks."""
        if self._trainer is not None:
            self._trainer.stop_after(0)

    def train(self, console: Console) -> Trainer:
        """Train as configured, write and print everything that a run does, and return the trainer.

        This is what ``scripts/train.py`` does.
        """
        self._trainer = train(self.config, console)
        self._nets, self.folder = self._trainer.run.engine.nets, self._trainer.run.folder
        return self._trainer

    def _last_state(self) -> dict[str, Any] | None:
        if self._trainer is not None:
            return self._trainer.state()
        if self._state is None:
            return None
        # The caller may have changed the weights since they were loaded.
        weights = {name: to_cpu(net.state_dict()) for name, net in self.networks.items()}
        return {**self._state, "nets": weights}

    # --- Translating ----------------------------------------------------------------------------------------

    @usual_modes()
    def translate(
        self,
        images: ImageLike | Sequence[ImageLike],
        direction: Direction = "AtoB",
        batch_size: int = 8,
        evaluate: bool = False,
        *,
        tile: Tile = TileSettings.tile,
        tile_mode: TileMode = TileSettings.tile_mode,
        overlap: int = TileSettings.overlap,
        tile_storage: TileStorage = TileSettings.tile_storage,
    ) -> Any:
        """Translate an image or a list of images. Each result has the type of its input.

        An image can be a PIL image (any mode), a uint8 array [H, W, C] (or [H, W] if C is 1), a float tensor
        [C, H, W] or [N, C, H, W] in [-1, 1], or a path (the result is then a PIL image). Images can have any
        size, and each translation has the size of its image. ``direction`` refers to the training folders A
        and B. Files above 179 megapixels need the setting ``allow_decompression_bombs``, whose help names the
        danger.

        A model of pix2pix translates as in training: with the batch statistics of each image by itself, and
        with dropout, whose masks depend on the model's seed and on the name of the file (for other images:
        their position in the list). ``evaluate`` turns both off.

        An image that does not fit into memory is translated by tiles, with the result that it would have as a
        whole. An integer ``tile`` is their side in pixels, and all larger images are translated by them;
        None turns tiles off. ``tile_storage="disk"`` keeps what is needed between passes over the tiles in a
        nameless file in ``tempfile.gettempdir()``. With ``tile_mode="independent"``, the network sees only
        one tile at a time, so that colours change from tile to tile: tiles overlap by ``overlap`` pixels,
        over which they fade into each other. Use it for comparison, and for networks that exact tiles refuse.

        Raises UserError for an image that cannot be read or translated, ValueError for a wrong shape, dtype
        or range, and TypeError for anything that is not an image.
        """
        if direction not in ("AtoB", "BtoA"):
            raise UserError(f"direction must be AtoB or BtoA, got {direction!r}")
        if type(evaluate) is not bool:
            raise UserError(f"evaluate must be True or False, got {evaluate!r}")
        tiles = TileSettings(tile, tile_mode, overlap, tile_storage)
        of_model: Direction = "AtoB" if direction == self.config.data.direction else "BtoA"
        name, device = self.config.make_recipe().generator(of_model), self.device
        net = network_to_call(self.networks[name], device, evaluate)
        precision = precision_for(net, device, self.config.run.precision)
        any_size, seed = self.config.data.allow_decompression_bombs, self.config.run.seed
        return translate_images(net, images, device, precision, batch_size, any_size, seed, tiles)

    @usual_modes()
    def evaluate(
        self,
        dataroot: str | Path | None = None,
        direction: Direction | None = None,
        *,
        verbose: bool = False,
        **settings: Any,
    ) -> dict[str, Any]:
        """Translate held-out images with the current weights, and return metrics of the translations.

        The images are those of the dataset ``dataroot`` (testA and testB; val or test for pairs), by default
        of the one that the model was trained on. ``direction`` is as in ``translate``, by default the one
        that was trained. ``settings`` are flags of ``scripts/evaluate.py``: ``metrics=("fid", "kid")``,
        ``features``, ``resample``, ``image_size`` ... The result has the form of its ``--json``:
        {"protocol": {...}, "images": {"fake": n, "real": n, ...}, "metrics": {"fid": x, ...}, "intervals":
        {...}}. ``verbose`` prints what the script would print.

        Needs the extra metrics. Raises UserError, with a one-line message, if there are no such images or a
        metric cannot be computed, and TypeError for an unknown setting.
        """
        from fastcyclegan.inference.evaluate_model import evaluate_model, model_settings

        if direction not in (None, "AtoB", "BtoA"):
            raise UserError(f"direction must be AtoB or BtoA, got {direction!r}")
        any_size = {"allow_decompression_bombs": self.config.data.allow_decompression_bombs}
        config = model_settings({**any_size, "dataroot": dataroot, "direction": direction, **settings})
        trained, device = self.config.data.direction, self.device
        of_model: Direction = "AtoB" if direction in (None, trained) else "BtoA"
        net = network_to_call(
            self.networks[self.config.make_recipe().generator(of_model)], device, config.eval
        )
        precision = precision_for(net, device, config.precision)
        engine, seed = engine_of(net, precision), self.config.run.seed if config.seed is None else config.seed
        translator = Translator(net, device, precision, engine=engine, seed=seed)
        console = Console() if verbose else QuietConsole()
        return evaluate_model(translator, self.config, of_model, config, self.folder, console)

    @usual_modes()
    def sample(self, count: int = 1, seed: int = 0) -> list[Image.Image]:
        """Return ``count`` new images, made from random numbers that depend only on ``seed``.

        Raises UserError if the recipe translates images instead, or if a network gives no numbers.
        """
        if type(count) is not int or count < 1:
            raise UserError(f"sample: count must be an integer of at least 1, got {count!r}")
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise UserError(f"sample: seed must be an integer of at least 0, below 2**63, got {seed!r}")

        def run(name: str, x: Tensor) -> Tensor:
            net = self.networks[name].to(self.device)
            precision = precision_for(net, self.device, self.config.run.precision)
            return engine_of(net, precision)(x.to(self.device))

        with torch.no_grad():
            noise = torch.Generator().manual_seed(seed)
            images = self.config.make_recipe().generate(run, count, noise)
        if not images.isfinite().all():
            raise UserError(f"the networks of {self.recipe.title} give no numbers")
        return [to_image(pixels) for pixels in to_pixels(images)]

    # --- Saving and loading ---------------------------------------------------------------------------------

    @usual_modes()
    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Save the networks, the configuration and, after training, the training state to ``folder``.

        The weight files have their official names. The folder can be passed to ``load``,
        ``scripts/translate.py --weights`` and ``scripts/train.py --continue_train``. Raises UserError if the
        folder already contains files, unless ``overwrite`` is set or it is the model's own folder, if a
        weight is not finite, and if another process is training in it. Raises OSError if it cannot be
        written. Warns if the networks were changed so that ``load`` cannot build them.
        """
        folder = Path(folder)
        is_own = self._is_own(folder)
        if folder.exists() and not (overwrite or is_own) and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} already exists: choose another folder, or pass overwrite=True")
        if self._trainer is not None and self._trainer.is_writing(folder):
            self._trainer.save()
            return
        state = self._last_state()
        self._require_finite(folder, state)
        self._warn_if_not_loadable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder)
        try:
            self._write(folder, is_own, state)
        finally:
            lock.release()
        self.folder = folder

    def _warn_if_not_loadable(self, folder: Path) -> None:
        problem = why_not_loadable(self.networks, self.config)
        if problem:
            warnings.warn(
                f"{folder}: the networks were changed after they were created ({problem}), so"
                f" {self.recipe.title}.load cannot load them from there: load the *_net_*.pth files into"
                " networks of your own",
                stacklevel=4,
            )

    def _require_finite(self, folder: Path, state: Mapping[str, Any] | None) -> None:
        """Raise UserError if the networks or ``state`` have values that are not finite."""
        values: dict[str, Any] = {name: net.state_dict() for name, net in self.networks.items()}
        if state is not None:
            values |= {name: state[name] for name in ("ema", "optimizers") if name in state}
        found = not_finite_in(values)
        if found is not None:
            raise UserError(f"{folder}: not saved, because {found}; files that are already there are kept")

    def _write(self, folder: Path, is_own: bool, state: dict[str, Any] | None) -> None:
        """Write the files of ``save`` to ``folder``, which is locked."""
        remove_partials(folder)
        run = {**_ONE_START, "name": folder.resolve().name, "checkpoints_dir": folder.resolve().parent}
        write_config(folder, with_absolute_paths(with_changes(self.config, {"run": run})))
        if not is_own:  # of another run
            (folder / run_files.PREVIOUS).unlink(missing_ok=True)
        if state is not None:
            save_tensors(folder / run_files.STATE, state)
        else:
            (folder / run_files.STATE).unlink(missing_ok=True)
        averages = {} if state is None else state.get("ema", {})
        nets = {name: to_cpu(net.state_dict()) for name, net in self.networks.items()}
        weights = {"iteration": self.iteration, "nets": nets, "ema": averages}
        write_set(folder, "latest", weights, self.config.make_recipe().official_names)

    @classmethod
    @usual_modes()
    def load(cls, folder: str | Path, epoch: str = "latest", **settings: Any) -> Self:
        """Load a model from a run's folder, a folder written by ``save``, or one with official files.

        The architecture of official ``*_net_*.pth`` files is inferred from their contents. If the folder has
        a training state, ``fit`` resumes from it exactly. The epoch "previous" stands for the state before
        the last one, in case the run diverged. For any other ``epoch``, and for weight files without a state,
        ``fit`` starts with fresh optimizers. Raises UserError if a file is missing or damaged, does not match
        the architecture, or has weights that are not finite in float32.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder}: not a folder; use load_generator to load a single generator")
        config = read_config(folder)
        if config is None and not saved_epochs(folder):
            raise UserError(f"{folder}: contains neither a run nor *_net_*.pth files")
        if config is None:
            config = cls._config_of_files(folder, epoch)
        if config.model.model != cls.recipe.name:
            raise UserError(
                f"{folder} is a run of --model {config.model.model}, which {cls.recipe.title} cannot load:"
                f' fastcyclegan.model_class("{config.model.model}") can'
            )
        if not {"init_from", "init_from_B"}.isdisjoint(settings):
            raise UserError(
                f"{cls.recipe.title}.load: init_from starts a new model, so it does not apply to a loaded one"
            )
        model = cls(with_changes(config, {"run": _ONE_START}), **settings)
        model.folder, model._nets = folder, model._with_initial_weights()
        recipe = model.config.make_recipe()
        architecture = f"{recipe.architecture} of {folder}"
        file = state_file(folder, epoch)
        if file is not None:
            model._state = read_state(file, None, Expected(model.config, recipe, model.networks))
        else:
            model._epoch = epoch
            require_whole(folder, epoch, is_running=(folder / run_files.LOCK).exists())
        for name, net in model.networks.items():
            if file is not None and model._state is not None:
                source, weights = file, model._state["nets"][name]
            else:
                source = weights_file(folder, epoch, recipe.official_names[name])
                weights = read_weights(source, net, generator=name in recipe.generators)
            require_representable(weights, torch.float32, f"{source} ({name})")
            run_files.fit_weights(net, weights, f"{source} ({name})", architecture)
        return model

    from_run = load

    @classmethod
    def _config_of_files(cls, folder: Path, epoch: str) -> TrainConfig:
        """Return the configuration that fits the official files in ``folder``, which is not that of a run."""
        found = recipe_in(folder)
        if found is not cls.recipe:
            raise UserError(
                f"{folder} has the files of --model {found.name}, which {cls.recipe.title} cannot load:"
                f' fastcyclegan.model_class("{found.name}") can'
            )
        config = default_config(cls.recipe.name)
        return with_changes(config, {"model": settings_of(folder, epoch, config.make_recipe())})
