"""The training loop: run iterations, log, draw samples and save snapshots."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.config import TrainConfig, to_dict
from fastcyclegan.console import Console
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.pillow_loader import naming_dead_workers
from fastcyclegan.data.pixels import draw_grid, to_pixels
from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import to_cpu
from fastcyclegan.training.intervals import Interval
from fastcyclegan.training.lr_schedule import Factor, make_schedule
from fastcyclegan.training.run import Run
from fastcyclegan.training.run_report import Report
from fastcyclegan.training.signals import on_interrupt, on_signals
from fastcyclegan.training.start import Overrides, start
from fastcyclegan.training.state_writer import StateWriter

SAMPLE_ROWS = 4
MAX_PENDING = 256
Tick = Callable[[dict[str, Any]], object]


class _NoReport:
    """The report of a run that writes no files."""

    missing: tuple[str, ...] = ()

    def add_stats(self, record: Mapping[str, Any]) -> None:
        pass

    def add_samples(self, iteration: int, grid: Any) -> None:
        pass

    def close(self) -> None:
        pass


class Trainer:
    """Trains one run until it is complete or ``stop`` is set.

    ``stop`` is the number of the signal that requested the stop, or 0 if it was not a signal. ``policy``, if
    given, replaces the configured learning rate policy; it is a function from the number of steps taken to a
    factor. ``on_tick`` is called with the values of each log line: iteration, epoch, every loss, lr, it/s and
    images/s.
    """

    def __init__(
        self, run: Run, console: Console, policy: Factor | None = None, on_tick: Tick = lambda record: None
    ) -> None:
        self.run, self.console, self.on_tick = run, console, on_tick
        self.names = run.engine.recipe.loss_names
        optim = dataclasses.replace(run.config.optim, lr=run.config.scaled_lr(run.batch))
        self.schedule = make_schedule(optim, policy)
        if run.extra.get("schedule"):
            self.schedule.load_state_dict(run.extra["schedule"])
        self.epoch_loss: float = run.extra.get("epoch_loss", 0.0)
        self.pending: list[Tensor] = []
        self.since_log: list[Tensor] = []
        self.warm = False
        self.stop: int | None = None
        self.started_at = run.iteration
        self.sampled_at: int | None = None
        # The images are read once, so that it does not matter if their files disappear later.
        self.shown = [] if run.folder is None else run.images_to_show(SAMPLE_ROWS)
        self.images_since_log = 0
        self.log_started = time.monotonic()
        options = run.config.run
        self.log_interval = Interval(options.print_freq, console.seconds_between_lines)
        self.samples_interval = Interval(options.display_freq, 30.0, share=0.05)
        self.state_interval = Interval(options.save_latest_freq, 300.0, share=0.01)
        self.writer: StateWriter | None = None
        self.report: Report | _NoReport = _NoReport()
        if run.folder is not None:
            self._open_files(run.folder)

    def _open_files(self, folder: Path) -> None:
        """Create the run's files, or continue those of a run that is resumed."""
        run, options = self.run, self.run.config.run
        self.writer = StateWriter(folder, run.engine.recipe.official_names)
        if "epoch_loss" in run.extra and options.continue_train:
            self.writer.saved_iteration = run.iteration
        resume_at = run.iteration if options.continue_train else None
        panels = run.engine.recipe.loss_panels
        self.report = Report(folder, str(options.name), to_dict(run.config), panels, resume_at)
        if self.report.missing:
            self.console.log(
                f"{' and '.join(self.report.missing)} not installed: loss curves need matplotlib, events need"
                " tensorboard; to install both: pip install '.[log]'"
            )

    def stop_after(self, number: int) -> None:
        """Make the loop end after the current iteration.

        ``number`` is the signal that requested this, or 0 if it was not a signal.
        """
        self.stop = number

    def train(self) -> None:
        """Run the loop.

        Raises UserError if a loss is not finite, an image cannot be read or a file cannot be written.
        """
        run = self.run
        self.log_started = time.monotonic()
        batches = self._batches()
        writer = contextlib.nullcontext() if self.writer is None else contextlib.closing(self.writer)
        with naming_dead_workers(), contextlib.closing(self.report), writer, contextlib.closing(batches):
            for batch in batches:
                epoch, _ = run.plan.batch(run.iteration)
                self.pending.append(run.engine.step(batch, self.schedule.lr(epoch)))
                run.iteration += 1
                self._after_step(epoch, len(batch.samples))
                if self.stop is not None:
                    break
            self._finish()

    def _batches(self) -> Generator[Batch]:
        """Yield the batches of the loader.

        If the loader fails (because a file is broken or a process died), the state is saved before the error
        is re-raised.
        """
        batches = self.run.engine.uploading(self.run.loader.batches(self.run.iteration, self.run.last))
        with contextlib.closing(batches):
            try:
                with naming_dead_workers():
                    yield from batches
            except UserError as error:
                self._finish()
                if self.run.iteration == self.started_at or self.writer is None:
                    raise
                raise UserError(
                    f"{error} (saved after iteration {self.run.iteration}; --continue_train resumes from"
                    " there)"
                ) from None

    def _after_step(self, epoch: int, images: int) -> None:
        run = self.run
        self.images_since_log += images
        for interval in (self.log_interval, self.samples_interval, self.state_interval):
            interval.count(images)
        if self.log_interval.due or len(self.pending) >= MAX_PENDING:
            self._flush()
        if self.log_interval.due:
            self._log(epoch)
        if run.iteration % run.plan.iterations_per_epoch == 0:
            self._end_epoch(epoch)
        if self.writer is None:
            return
        if self.samples_interval.due:
            self._samples()
        if self.state_interval.due and not self.writer.busy:
            self._save()
        self.writer.check()

    def _flush(self) -> None:
        """Copy the losses since the last call to the host. Raises UserError if one of them is not finite."""
        if not self.pending:
            return
        values = torch.stack(self.pending).cpu().double()
        self.pending.clear()
        self._require_finite(values)
        generator = [self.names.index(name) for name in self.run.engine.recipe.generator_losses]
        for row in values:
            self.epoch_loss += row[generator].sum().item()
        self.since_log += list(values)

    def _require_finite(self, values: Tensor) -> None:
        """Raise UserError for the first loss in ``values`` that is not finite.

        ``values`` has shape [iterations, losses]. Its last row belongs to the current iteration.
        """
        if values.isfinite().all():
            return
        row, column = (~values.isfinite()).nonzero()[0].tolist()
        iteration = self.run.iteration - len(values) + row + 1
        saved = "no state was saved yet"
        if self.writer is not None and self.writer.saved_iteration is not None:
            saved = f"the state of iteration {self.writer.saved_iteration} is kept in {self.run.folder}"
        loss = f"loss {self.names[column]} is {values[row, column].item()}"
        raise UserError(f"{loss} at iteration {iteration}; {saved}")

    def _log(self, epoch: int) -> None:
        self._flush()
        run, now = self.run, time.monotonic()
        count = len(self.since_log)
        if not count:
            return
        means = dict(zip(self.names, torch.stack(self.since_log).mean(0).tolist(), strict=True))
        seconds = max(now - self.log_started, 1e-9)
        rate = count / seconds
        record: dict[str, Any] = {"iteration": run.iteration, "epoch": epoch, **means}
        record |= {"lr": self.schedule.lr(epoch), "it/s": rate, "images/s": self.images_since_log / seconds}
        self.since_log, self.images_since_log, self.log_started = [], 0, now
        self.report.add_stats(record)
        losses = " ".join(f"{name} {value:.3f}" for name, value in means.items())
        head = f"epoch {epoch} iteration {run.iteration}/{run.last}"
        speed = f"{rate:.2f} it/s {record['images/s']:.2f} images/s"
        if self.warm:  # the time before the first line is mostly warm-up
            speed += f", {_clock((run.last - run.iteration) / rate)} left"
        self.warm = True
        self.console.progress(run.iteration - run.first, run.last - run.first, f"{head}  {speed}  {losses}")
        self.log_interval.restart()
        self.on_tick(record)

    def _end_epoch(self, epoch: int) -> None:
        self._flush()
        self.schedule.end_epoch(self.epoch_loss / self.run.plan.iterations_per_epoch)
        self.epoch_loss = 0.0
        every = self.run.config.run.save_epoch_freq
        if self.writer is not None and every and epoch % every == 0:
            state = self.run.engine.state_dict()
            snapshot = {"iteration": self.run.iteration, "optimizers": {}, "nets": to_cpu(state["nets"])}
            if "ema" in state:
                snapshot["ema"] = to_cpu(state["ema"])
            self.writer.write(snapshot, (str(epoch),), with_state=False)

    def _save(self, wait: bool = False) -> None:
        """Start writing a snapshot of the state. If ``wait`` is true, wait until it is on the disk.

        If a loss is not finite, the run ends before anything is written.
        """
        assert self.writer is not None
        started = time.monotonic()
        state = self.state()
        label = f"iter_{self.run.iteration}" if self.run.config.run.save_by_iter and not wait else "latest"
        self.writer.write(state, (label,))
        if wait:
            self.writer.wait()
        self.state_interval.restart(time.monotonic() - started)

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that the next iteration depends on.

        Raises UserError if a loss is not finite.
        """
        self._flush()
        return self.run.state({"schedule": self.schedule.state_dict(), "epoch_loss": self.epoch_loss})

    def _samples(self) -> None:
        """Translate the same images in both directions and back, and add the results to the report.

        The images are held-out ones if there are any, otherwise training images.
        """
        started = time.monotonic()
        self.report.add_samples(self.run.iteration, draw_grid(self._sample_columns()))
        self.sampled_at = self.run.iteration
        self.samples_interval.restart(time.monotonic() - started)

    def _sample_columns(self) -> dict[str, list[Any]]:
        engine = self.run.engine
        columns: dict[str, list[Any]] = {}
        for A, B in self.shown:
            for name, image in engine.recipe.samples(engine.translate, A, B).items():
                columns.setdefault(name, []).append(to_pixels(image)[0])
        return columns

    def _finish(self) -> None:
        """Log the remaining losses, save under the name latest and draw a last sample grid.

        Does nothing if no iteration was run.
        """
        run = self.run
        if run.iteration == self.started_at:
            return
        if self.pending or self.since_log:
            self._log(run.plan.batch(run.iteration - 1)[0])
        self.console.end_progress()
        if self.writer is None:
            return
        self.writer.wait()
        if run.iteration != self.writer.saved_iteration or run.config.run.save_by_iter:
            self._save(wait=True)
        if run.iteration != self.sampled_at:
            self._samples()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def train(
    config: TrainConfig,
    console: Console,
    policy: Factor | None = None,
    *,
    overrides: Overrides = Overrides(),
    on_start: Callable[[Trainer], object] = lambda trainer: None,
    on_tick: Callable[[Trainer, dict[str, Any]], object] = lambda trainer, record: None,
    signals: bool = True,
) -> Trainer:
    """Train the run that ``config`` describes and return its trainer.

    Raises UserError for problems that the user can fix. ``on_start`` is called with the trainer before its
    first iteration. If ``signals`` is true, SIGINT, SIGTERM and SIGHUP end the run after the current
    iteration, with its files saved. If it is false, SIGINT raises KeyboardInterrupt after the current
    iteration, so that no iteration is left half finished.
    """

    def checking(checked: int, total: int) -> None:
        if checked % 500 == 0 and checked:
            console.log(f"checked {checked} of {total} images")

    run = start(config, console.log, checking, overrides, console.once)
    location = "without files" if run.folder is None else run.folder
    console.table(f"run {location}", run.table)
    trainer = Trainer(run, console, policy, lambda record: on_tick(trainer, record))
    on_start(trainer)
    restore = on_signals(trainer.stop_after) if signals else on_interrupt(trainer.stop_after)
    try:
        with console:
            trainer.train()
    finally:
        restore()
    if trainer.stop == signal.SIGINT and not signals:
        raise KeyboardInterrupt
    return trainer
