"""Measure the current weights of a run on its held-out images."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastcyclegan.config import DataConfig, Direction, TrainConfig
from fastcyclegan.data import builtin
from fastcyclegan.data.background import Stopping, never, raise_if
from fastcyclegan.data.fit import ImageRequirements
from fastcyclegan.data.pixels import NoNumbersError, to_pixels, to_unit_range
from fastcyclegan.data.scan import Images
from fastcyclegan.engine import Engine
from fastcyclegan.errors import UserError
from fastcyclegan.metrics.choice import LEAST_SSIM, Facts, choose_metrics, facts_of
from fastcyclegan.metrics.evaluator import Evaluator, Fake
from fastcyclegan.metrics.held_out import HeldOut, evaluation_fit, held_out
from fastcyclegan.metrics.images import Pixels, as_rgb
from fastcyclegan.metrics.load_lpips import lpips_of
from fastcyclegan.metrics.names import METRICS, OF_PAIRS, OF_SETS, mean_of
from fastcyclegan.nn.as_trained import mask_keys
from fastcyclegan.training.evaluation_history import PREFIX, History


@dataclass(frozen=True)
class _Direction:
    """A direction to evaluate: as the user names it, in terms of the model's domains, and its network."""

    label: Direction
    of_model: Direction
    network: str


class RunEvaluation:
    """Evaluates the weights of a run that ``config`` describes.

    The networks of the metrics are loaded at once, and ``use`` tries them, so that a run that cannot be
    evaluated does not start. Raises UserError if one cannot be loaded, or if the recipe does not translate
    images.
    """

    def __init__(self, config: TrainConfig, device: torch.device, log: Any) -> None:
        self.config, self.device = config, device
        self.options = config.evaluation
        self.directions = self._directions()
        self.metric = self._metric()
        names = OF_SETS if self.metric in OF_SETS else (self.metric,)
        self.evaluator = Evaluator(self.options.metric_config(), names, device, log)
        with _naming_flags():
            self.evaluator.load()
        self.held: dict[Direction, HeldOut] = {}
        self.protocol: dict[str, Any] = {}

    def _directions(self) -> list[_Direction]:
        recipe, wanted = self.config.make_recipe(), self.options.eval_direction
        if not recipe.directions:
            raise UserError(f"--eval_every and --eval_metric: {recipe.title} does not translate images")
        if self.config.data.dataset_mode == "single":
            raise UserError("--eval_every and --eval_metric need images of two domains, but there is one")
        found = []
        for of_model, network in recipe.directions.items():
            label = of_model
            if self.config.data.direction == "BtoA":
                label = "BtoA" if of_model == "AtoB" else "AtoB"
            found.append(_Direction(label, of_model, network))
        if wanted is not None and wanted not in [direction.label for direction in found]:
            raise UserError(f"--eval_direction {wanted}: this run only translates {found[0].label}")
        return found

    def _metric(self) -> str:
        """Return the name of the metric that judges."""
        if self.options.eval_metric is not None:
            return self.options.eval_metric
        data = self.config.data
        return "l1" if data.dataset_mode == "aligned" or data.is_builtin else "fid"

    @property
    def judge(self) -> str:
        """The name of the value that judges."""
        name = f"{PREFIX}{self.metric}"
        if self.options.eval_direction is not None and len(self.directions) > 1:
            name += f"_{self.options.eval_direction}"
        return f"{name}_ema" if self.config.optim.ema else name

    def require_builtin(self) -> None:
        """Raise UserError if the built-in images, which are drawn later, cannot be evaluated with."""
        data, required = self.config.data, self.config.make_recipe().requirements
        count = builtin.COUNTS["test"]
        if data.max_dataset_size is not None:
            count = min(count, data.max_dataset_size)
        self._require_possible(Facts(("testA", "testB"), count, count, count))
        image = Image.fromarray(builtin.draw("A", self.config.run.seed, "test", 0))
        fit = evaluation_fit(data, 3, required.size_multiple)
        self._try(np.asarray(image.resize(fit.resized(image.size))))

    def use(self, images: Images, data: DataConfig, required: ImageRequirements) -> None:
        """Take the held-out images of ``images`` as those to evaluate with.

        Raises UserError if the metric that judges cannot be computed for them.
        """
        for direction in self.directions:
            self.held[direction.label] = held_out(images, data, required, direction.of_model)
        facts = [_facts(held) for held in self.held.values()]
        for each in facts:
            self._require_possible(each)
        if self.metric in OF_PAIRS or images.layout == "aligned" or self.config.data.is_builtin:
            self.evaluator.use([*self.evaluator.metrics, *_cheap_metrics(facts)])
        for held in self.held.values():
            self._try(held.reals.read(0))
        self.protocol = {label: self._protocol(held) for label, held in self.held.items()}

    def _require_possible(self, facts: Facts) -> None:
        """Raise UserError if the metric that judges cannot be computed."""
        try:
            choose_metrics((self.metric,), facts, self.evaluator.log)
        except UserError as error:
            raise UserError(f"--eval_metric: {error}") from None

    def _try(self, image: Pixels) -> None:
        """Raise UserError if a network of the metrics fails for ``image`` [H, W, C]."""
        image = as_rgb(image)
        with self._keeping_random_state(), _naming_flags():
            if self.evaluator.features is not None:
                self.evaluator.features.of([image])
            if self.evaluator.lpips is not None:
                lpips_of(self.evaluator.lpips, image, image)

    def _protocol(self, held: HeldOut) -> dict[str, Any]:
        """Return what the values of a direction depend on besides the weights."""
        pairs = sum(partner is not None for partner in held.partners)
        counts = {"fake": len(held.sources), "real": len(held.reals), "pairs": pairs}
        protocol = self.evaluator.protocol(counts, held.reals)
        return {**protocol, "sources_sha256": held.sources.digest}

    def describe(self) -> str:
        """Return what is evaluated and how often, in words."""
        options, every = self.options, self.options.every
        metrics = ", ".join(METRICS[name].title for name in self.evaluator.metrics)
        counts = [f"{len(held.sources):,} images {label}" for label, held in self.held.items()]
        often = f"at most {options.eval_share:.0%} of the time"
        if every is not None:
            number, counts_iterations = every
            often = f"every {number:,} {'iterations' if counts_iterations else 'epochs'}"
        text = f"{metrics} of {' and '.join(counts)}, {often}; {self.judge.removeprefix(PREFIX)} judges"
        if options.patience is not None:
            text += f", patience {options.patience}"
        return text

    def empty_history(self) -> History:
        """Return the history of a run that has not been evaluated yet."""
        return History(self.metric, self.judge, self.protocol)

    def measure(self, engine: Engine, stopping: Stopping = never) -> dict[str, Any]:
        """Return the metrics of the current weights, and of their averages if there are some, by name.

        With two directions, there is a value for each, and their mean. Nothing that training depends on
        changes. Raises NoNumbersError if a network gives no numbers, and StoppedError soon after ``stopping``
        returns True.
        """
        with self._keeping_random_state():
            values = self._measured(engine, "", stopping)
            if engine.average is not None:
                with engine.average.applied():
                    values |= self._measured(engine, "_ema", stopping)
        if not all(math.isfinite(mean_of(value)) for value in values.values()):
            raise NoNumbersError("measure: a metric is not a number")
        return values

    def _keeping_random_state(self) -> AbstractContextManager[None]:
        """Restore torch's random generators after the body: a feature network of the user may use them."""
        devices = [self.device] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices)

    def _measured(self, engine: Engine, ending: str, stopping: Stopping) -> dict[str, Any]:
        """Return the metrics of the weights that the networks have, with ``ending`` after their names."""
        found: dict[Direction, dict[str, Any]] = {}
        for direction in self.directions:
            held = self.held[direction.label]
            fakes = self._translations(engine, direction.network, held, stopping)
            with _naming_flags():
                found[direction.label] = self.evaluator.evaluate(fakes, held.reals).metrics
        values: dict[str, Any] = {}
        for name in self.evaluator.metrics:
            each = {label: metrics[name] for label, metrics in found.items()}
            values[f"{PREFIX}{name}{ending}"] = _mean(list(each.values()))
            if len(each) > 1:
                values |= {f"{PREFIX}{name}_{label}{ending}": value for label, value in each.items()}
        return values

    def _translations(
        self, engine: Engine, network: str, held: HeldOut, stopping: Stopping
    ) -> Iterator[Fake]:
        """Yield the translations of the held-out images, made one at a time as those of sample grids."""
        seed = self.config.run.seed
        for n, path in enumerate(held.sources.paths):
            raise_if(stopping)
            pixels = held.sources.load(n)
            images = to_unit_range(torch.from_numpy(np.array(pixels))[None], self.device)
            translated = engine.translate(network, images, mask_keys(seed, [path.name]))
            yield Fake(path.name, to_pixels(translated)[0], held.partners[n])


@contextlib.contextmanager
def _naming_flags() -> Iterator[None]:
    """Let the UserErrors of metrics in the body name the flags of a run, which begin with eval_."""
    try:
        yield
    except UserError as error:
        raise UserError(
            re.sub("--(?=features|feature_weights|lpips_weights)", "--eval_", str(error))
        ) from None


def _facts(held: HeldOut) -> Facts:
    """Return what decides which metrics can be computed with ``held``."""
    source, real = (f"{files.paths[0].parent} (held out)" for files in (held.sources, held.reals))
    return facts_of((source, real), held.sources, held.reals, held.partners, held.ambiguous)


def _cheap_metrics(facts: Sequence[Facts]) -> list[str]:
    """Return the metrics of pairs that need no network and can be computed with images of these ``facts``."""
    if any(each.unequal or not each.pairs for each in facts):
        return []
    has_ssim = all(each.least_side >= LEAST_SSIM for each in facts)
    return ["l1", "psnr", "ssim"] if has_ssim else ["l1", "psnr"]


def _mean(values: list[Any]) -> Any:
    """Return the mean of numbers, or of {"mean": x, "std": x}."""
    if isinstance(values[0], dict):
        return {key: float(np.mean([value[key] for value in values])) for key in values[0]}
    return float(np.mean(values))
