"""Measure the images of a folder, or the translations that a generator makes of held-out images."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fastcyclegan.checkpoints.loading import config_beside
from fastcyclegan.checkpoints.run_files import DATASET, network_of, read_config
from fastcyclegan.config import DataConfig, Direction, RunConfig, TrainConfig, default_config
from fastcyclegan.console import Console, QuietConsole
from fastcyclegan.data.fit import Fit, ImageRequirements
from fastcyclegan.data.folders import need_folder
from fastcyclegan.data.listing import find_files, no_images
from fastcyclegan.data.scan import Images, identity
from fastcyclegan.engine import resolve_device
from fastcyclegan.errors import UserError
from fastcyclegan.inference.load_translator import GeneratorChoice, load_translator
from fastcyclegan.inference.translator import Translator, input_channels, no_numbers
from fastcyclegan.metrics.choice import Facts, choose_metrics, facts_of, small_sets
from fastcyclegan.metrics.evaluator import Evaluator, Fake, Result
from fastcyclegan.metrics.held_out import HeldOut, find_held_out, held_out, partners_of, resized_to
from fastcyclegan.metrics.images import ImageFiles, described_kinds
from fastcyclegan.metrics.load_lpips import has_weights, least_side
from fastcyclegan.metrics.names import require_known
from fastcyclegan.metrics.page import read_metrics, table, write_json, write_page
from fastcyclegan.metrics.protocol import described, require_same
from fastcyclegan.nn.torch_defaults import usual_modes
from fastcyclegan.recipes.recipe import Recipe
from fastcyclegan.settings.evaluate import EvaluateConfig
from fastcyclegan.settings.metrics import MetricConfig

_PATHS = (
    *("fake", "real", "weights", "dataroot", "feature_weights", "lpips_weights"),
    *("json", "page", "compare"),
)
_MOST_IMAGES, _MOST_PIXELS = 8, 2**19
"""Images and pixels that are translated at once."""


@dataclass(frozen=True)
class Task:
    """What is measured against what. ``fakes`` makes the images, each time it is called.

    ``measured`` are the files that are measured or translated, and ``names`` how messages call the two sets.
    ``translated_in`` is the precision of the network that translates them, or "". ``partners`` and
    ``ambiguous`` are as in ``HeldOut``.
    """

    fakes: Callable[[], Iterator[Fake]]
    measured: ImageFiles
    reals: ImageFiles
    partners: list[int | None]
    names: tuple[str, str]
    translated_in: str = ""
    ambiguous: str = ""

    def facts(self, config: EvaluateConfig) -> Facts:
        """Return what decides which metrics can be computed."""
        found = facts_of(self.names, self.measured, self.reals, self.partners, self.ambiguous)
        least, has_lpips = least_side(config.metric), has_weights(config.metric)
        return replace(found, least_lpips=least, has_lpips=has_lpips)


@usual_modes()
def evaluate_images(config: EvaluateConfig, console: Console) -> Result:
    """Measure what ``config`` names, print the results, and write the files that it asks for.

    Raises UserError for mistakes that the user can fix, and OSError if a file cannot be written.
    """
    _require_writable(config)
    require_known(() if config.metrics is None else config.metrics)
    task = _folders(config) if config.weights is None else _held_out_of_run(config, console)
    result = measure(task, config, console)
    title = f"{task.names[0]} against {task.names[1]}"
    console.table(title, table(result))
    if config.json is not None:
        write_json(result, config.json)
    if config.page is not None:
        write_page(result, config.page, title)
        console.log(f"page: {config.page}")
    return result


def evaluate(
    fake: str | Path | None = None,
    real: str | Path | None = None,
    *,
    verbose: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Measure images and return the numbers, as ``scripts/evaluate.py --json`` writes them.

    ``settings`` are the flags of that script as keyword arguments: ``weights="runs/maps"`` with ``dataroot``
    in place of two folders, ``metrics=("fid", "kid")``, ``features``, ``resample`` ... ``verbose`` prints
    what the script would print. Raises TypeError for an unknown setting, and UserError, with a one-line
    message, for a mistake.
    """
    given = {"fake": fake, "real": real, **settings}
    with Console() if verbose else QuietConsole() as console:
        return evaluate_images(config_of(given), console).as_dict()


def config_of(given: dict[str, Any]) -> EvaluateConfig:
    """Return the configuration of the settings ``given``, with texts in place of paths allowed."""
    changes: dict[str, Any] = {}
    for name in _PATHS:
        if isinstance(given.get(name), str):
            changes[name] = Path(given[name])
    if isinstance(given.get("metrics"), (str, list)):
        metrics = given["metrics"]
        changes["metrics"] = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    if isinstance(given.get("features"), Path):
        changes["features"] = str(given["features"])
    settings = {**given, **changes}
    known = [field.name for kind in (EvaluateConfig, MetricConfig) for field in fields(kind)]
    known.remove("metric")
    for name in settings:
        if name not in known:
            similar = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise TypeError(f"evaluate has no setting {name!r}{hint}")
    of_metric = {field.name for field in fields(MetricConfig)} & settings.keys()
    metric = MetricConfig(**{name: settings.pop(name) for name in of_metric})
    return EvaluateConfig(**settings, metric=metric)


def measure(task: Task, config: EvaluateConfig, console: Console) -> Result:
    """Compute the metrics of ``task`` that ``config`` asks for, and print what they depend on.

    Numbers to compare them with are checked before.
    """
    saved = None if config.compare is None else read_metrics(config.compare)
    facts = task.facts(config)
    chosen = choose_metrics(config.metrics, facts, console.log)
    device = resolve_device(RunConfig(device=config.device))
    evaluator = Evaluator(config.metric, chosen, device, console.log)
    try:
        evaluator.load()
    except UserError as error:
        if config.metrics is None and facts.pairs:
            raise UserError(f"{error}; --metrics l1 psnr ssim needs no such file") from None
        raise
    lines = described_kinds(task.reals.kinds, task.names[1])
    if not task.translated_in:
        lines = described_kinds(task.measured.kinds, task.names[0]) + lines
    for line in filter(None, [*lines, small_sets(facts, chosen)]):
        console.log(line)
    protocol = _protocol(evaluator, task, facts)
    if saved is not None:
        require_same(saved[1], protocol, str(config.compare))
    result = evaluator.evaluate(_with_progress(task, console), task.reals, config.resample)
    console.end_progress()
    result.protocol = protocol
    if saved is not None:
        result.other = saved[0]
    console.table("protocol", described(result.protocol))
    return result


def _protocol(evaluator: Evaluator, task: Task, facts: Facts) -> dict[str, Any]:
    """Return the protocol of ``task``, with how images are made and resized."""
    counts = {"fake": facts.fakes, "real": facts.reals, "pairs": facts.pairs if evaluator.of_pairs else 0}
    protocol = evaluator.protocol(counts, task.reals)
    images = {**protocol["images"], "resized": _described_fit(task.reals.fit)}
    if task.translated_in:
        images["translated_in"] = task.translated_in
    else:
        images["fake_jpeg"] = task.measured.kinds["jpeg"]
    return {**protocol, "images": images}


def _described_fit(fit: Fit) -> str:
    match fit.preprocess:
        case "keep":
            return "no"
        case "exact":
            width, height = fit.resized((1, 1))
            return f"to {width}x{height}"
        case "scale_width":
            return f"to width {fit.load_size}"
        case _:
            return f"to multiples of {fit.multiple}"


def _with_progress(task: Task, console: Console) -> Iterator[Fake]:
    total = len(task.measured)
    for number, fake in enumerate(task.fakes(), start=1):
        if console.is_terminal or number % 100 == 0:
            console.progress(number, total, f"{number}/{total} images")
        yield fake


# --- Two folders --------------------------------------------------------------------------------------------


def _folders(config: EvaluateConfig) -> Task:
    assert config.fake is not None
    assert config.real is not None
    fakes, reals = (_files(folder, config) for folder in (config.fake, config.real))
    root, names = config.fake, (str(config.fake), str(config.real))
    partners, ambiguous = partners_of(root, fakes.paths, config.real, reals.paths)

    def made() -> Iterator[Fake]:
        for n, path in enumerate(fakes.paths):
            yield Fake(path.relative_to(root).as_posix(), fakes.read(n), partners[n])

    return Task(made, fakes, reals, partners, names, ambiguous=ambiguous)


def _files(folder: Path, config: EvaluateConfig) -> ImageFiles:
    need_folder(folder)
    found = find_files(folder)
    if found.unreadable:
        raise UserError(f"the folder {found.unreadable[0]} cannot be read")
    if not found.images:
        raise no_images(found)
    return ImageFiles(found.images, Fit(any_size=config.allow_decompression_bombs))


# --- Held-out images that are translated --------------------------------------------------------------------


def _held_out_of_run(config: EvaluateConfig, console: Console) -> Task:
    assert config.weights is not None
    weights, is_folder = config.weights, config.weights.is_dir()
    choice = GeneratorChoice.of(config)
    if not is_folder:  # the direction then tells which folder is translated
        choice = replace(choice, direction=None)
    translator, summary = load_translator(choice, console)
    run = read_config(weights) if is_folder else config_beside(weights)
    data = data_of(run, config, weights if is_folder else weights.parent)
    recipe = default_config().recipe if run is None else run.recipe
    of_model = _direction(weights, run, recipe, config.direction)
    required = _requirements(translator, run, of_model)
    seed = 0 if run is None else run.run.seed
    images = find_held_out(data, seed, required, recipe.layouts, console.log)
    if run is None and config.image_size is None:  # in which size it was trained is not known
        config = replace(config, image_size="none")
    task = translation_task(translator, images, data, required, of_model, config)
    console.log(f"translating {len(task.measured):,} images {summary}")
    return task


def _direction(
    weights: Path, run: TrainConfig | None, recipe: type[Recipe], wanted: Direction | None
) -> Direction:
    """Return the direction, in terms of the model's domains, in which ``weights`` translate.

    The name of a single file can tell. Raises UserError if that is not the direction that is ``wanted``.
    """
    trained: Direction = "AtoB" if run is None else run.data.direction
    of_model: Direction = "AtoB" if wanted in (None, trained) else "BtoA"
    if weights.is_dir():
        return of_model
    name = network_of(weights, recipe())
    known = [direction for direction, network in recipe.directions.items() if network == name]
    if not known:
        return of_model
    if wanted is not None and of_model not in known:
        raise UserError(f"{weights}: by its name, this generator does not translate {wanted}")
    return known[0]


def data_of(run: TrainConfig | None, config: EvaluateConfig, folder: Path | None) -> DataConfig:
    """Return the settings of the images to evaluate with. ``folder`` is that of the run, if it has one.

    Raises UserError if they are not known.
    """
    data = DataConfig() if run is None else run.data
    if config.dataroot is not None:
        others: dict[str, Any] = {"data_A": None, "data_B": None, "data": None, "holdout": DataConfig.holdout}
        data = replace(data, dataroot=config.dataroot, **others)
    elif data.is_builtin:
        builtin = Path() if folder is None else folder / DATASET
        if run is None or folder is None or not builtin.is_dir():
            raise UserError("give --dataroot, the dataset whose held-out images are to be translated")
        data = replace(data, dataroot=builtin)
    return replace(data, allow_decompression_bombs=config.allow_decompression_bombs)


def _requirements(translator: Translator, run: TrainConfig | None, of_model: Direction) -> ImageRequirements:
    if run is not None:
        return run.make_recipe().requirements
    taken = input_channels(translator.net)
    returned = int(getattr(translator.net, "arguments", {}).get("output_nc", taken))
    channels = (taken, returned) if of_model == "AtoB" else (returned, taken)
    return ImageRequirements(translator.multiple, 8, channels)


def translation_task(
    translator: Translator,
    images: Images,
    data: DataConfig,
    required: ImageRequirements,
    of_model: Direction,
    config: EvaluateConfig,
) -> Task:
    """Return the task of measuring what ``translator`` makes of the held-out images of one domain.

    ``of_model`` is the direction in terms of the model's domains.
    """
    chosen = held_out(images, data, required, of_model)
    size = config.image_size
    if size is not None:
        chosen = _in_size(chosen, size)
    names = (f"translations of {_folder(chosen.sources)}", str(_folder(chosen.reals)))

    def made() -> Iterator[Fake]:
        return _translations(translator, chosen)

    precision = translator.engine.precision
    return Task(made, chosen.sources, chosen.reals, chosen.partners, names, precision, chosen.ambiguous)


def _in_size(chosen: HeldOut, size: int | Literal["none"]) -> HeldOut:
    """Return the images with another size: the side of a square, or "none" to keep theirs."""
    sides = None if size == "none" else (size, size)
    sources, reals = (
        replace(each, fit=resized_to(sides, each.fit)) for each in (chosen.sources, chosen.reals)
    )
    return replace(chosen, sources=sources, reals=reals)


def _folder(files: ImageFiles) -> Path:
    return files.paths[0].parent


def _translations(translator: Translator, chosen: HeldOut) -> Iterator[Fake]:
    """Yield the translations of the sources of ``chosen``, in order."""
    waiting: list[tuple[int, NDArray[np.uint8]]] = []

    def flush() -> Iterator[Fake]:
        paths = [chosen.sources.paths[n] for n, _ in waiting]
        images = [torch.from_numpy(np.array(pixels)).to(translator.device) for _, pixels in waiting]
        results = translator(images, [path.name for path in paths])
        for (n, pixels), path, result in zip(waiting, paths, results, strict=True):
            if result is None:
                raise UserError(no_numbers(path))
            yield Fake(path.name, result, chosen.partners[n], pixels)
        waiting.clear()

    for n in range(len(chosen.sources)):
        pixels = chosen.sources.load(n)
        area = (len(waiting) + 1) * pixels.shape[0] * pixels.shape[1]
        is_full = len(waiting) == _MOST_IMAGES or area > _MOST_PIXELS
        if waiting and (waiting[0][1].shape != pixels.shape or is_full):
            yield from flush()
        waiting.append((n, pixels))
    if waiting:
        yield from flush()


def _require_writable(config: EvaluateConfig) -> None:
    """Raise UserError if a file to write is in a folder that does not exist, before anything is computed."""
    for file in filter(None, (config.json, config.page)):
        if not file.absolute().parent.is_dir():
            raise UserError(f"{file}: there is no folder {file.absolute().parent}")
        if file.is_dir():
            raise UserError(f"{file}: is a folder")
    if config.json is not None and config.page is not None and identity(config.json) == identity(config.page):
        raise UserError(f"--json and --page are the same file: {config.json}")
