"""The training loop: run iterations, log, draw samples and save snapshots."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.checkpoints.run_files import BEST, PREVIOUS
from fastcyclegan.checkpoints.weight_sets import complete_set, move_later_sets
from fastcyclegan.config import TrainConfig, to_dict
from fastcyclegan.console import Console
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.pixels import NoNumbersError, draw_grid, to_pixels
from fastcyclegan.data.tensor_loader import TensorLoader, naming_dead_workers
from fastcyclegan.errors import StoppedError, UserError, system_reason
from fastcyclegan.nn.finite import not_finite_in
from fastcyclegan.nn.torch_defaults import usual_modes
from fastcyclegan.recipes.recipe import naming_recipe
from fastcyclegan.tensor_files import to_cpu
from fastcyclegan.training.disk import disk_warning
from fastcyclegan.training.evaluations import LABEL, Evaluations
from fastcyclegan.training.intervals import Interval
from fastcyclegan.training.loss_watch import LossWatch
from fastcyclegan.training.lr_schedule import Factor, make_schedule
from fastcyclegan.training.resume import has_weights
from fastcyclegan.training.run import Run
from fastcyclegan.training.run_folder import resume_command
from fastcyclegan.training.run_report import SAMPLE_ROWS, Report
from fastcyclegan.training.safe_write import naming
from fastcyclegan.training.signals import Requests, on_interrupt, on_signals
from fastcyclegan.training.start import Overrides, start
from fastcyclegan.training.state_writer import StateWriter, UnsavableError

MAX_PENDING = 256
Tick = Callable[[dict[str, Any]], object]


class _NoReport:
    """The report of a run that writes no files."""

    missing: tuple[str, ...] = ()
    sampled: Sequence[int] = ()

    def add_stats(self, record: Mapping[str, Any]) -> None:
        pass

    def add_samples(self, iteration: int, grid: Any) -> None:
        pass

    def add_evaluations(self, history: Any) -> None:
        pass

    def close(self) -> None:
        pass


class Trainer:
    """Trains one run until it is complete or ``stop`` is set.

    ``policy``, if given, replaces the configured learning rate policy; it is a function from the number of
    steps taken to a factor. ``on_tick`` is called with the values of each log line: iteration, epoch, every
    loss, lr, it/s and images/s, and with those of each evaluation: iteration, epoch and eval_NAME for each
    metric. ``requests`` are what signals request of the run.
    """

    def __init__(
        self,
        run: Run,
        console: Console,
        policy: Factor | None = None,
        on_tick: Tick = lambda record: None,
        requests: Requests | None = None,
    ) -> None:
        self.run, self.console, self.on_tick = run, console, on_tick
        self.requests = Requests() if requests is None else requests
        self.names = run.engine.recipe.loss_names
        optim = dataclasses.replace(run.config.optim, lr=run.config.scaled_lr(run.batch))
        self.schedule = make_schedule(optim, policy)
        if run.extra.get("schedule"):
            self.schedule.load_state_dict(run.extra["schedule"])
        self.lr = self.schedule.lr(run.plan.batch(run.iteration)[0])
        self.epoch_loss: float = run.extra.get("epoch_loss", 0.0)
        self.losses = LossWatch(*run.extra.get("losses", (0.0, 0)))
        self.unlogged: list[dict[str, Any]] = list(run.extra.get("unlogged", []))
        self.pending: list[Tensor] = []
        self.since_log: list[Tensor] = []
        self.warm = False
        self.started_at = run.iteration
        self.sampled_at: int | None = None
        # The images are read once, so that it does not matter if their files disappear later.
        self.draws = run.folder is not None or len(run.trackers) > 0
        self.shown = run.images_to_show(SAMPLE_ROWS) if self.draws else []
        self.shown_keys = run.keys_to_show(SAMPLE_ROWS)
        self.images_since_log = 0
        self.log_started = time.monotonic()
        options = run.config.run
        self.log_interval = Interval(options.print_freq, console.seconds_between_lines)
        self.samples_interval = Interval(options.display_freq, 30.0, share=0.05, growth=0.05)
        self.state_interval = Interval(options.save_latest_freq, 300.0, share=0.01)
        self.writer: StateWriter | None = None
        self.report: Report | _NoReport = _NoReport()
        self.evaluations: Evaluations | None = None
        if run.evaluation is not None:
            self.evaluations = Evaluations(run, run.evaluation, console.log)
            for line in filter(None, [self.evaluations.warning()]):
                console.log(line)
        run.loader.stopping = self.requests.stopping
        if run.folder is not None:
            self._open_files(run.folder)

    @property
    def stop(self) -> int | None:
        """The number of the signal that requested the end of the run, 0 if the caller did, otherwise None."""
        return self.requests.stop

    def is_writing(self, folder: Path) -> bool:
        """Return whether ``folder`` is that of the run, and the run has not ended yet."""
        run = self.run
        if run.folder is None or run.lock is None or not run.lock.is_held:
            return False
        return run.folder.resolve() == folder.resolve()

    def _open_files(self, folder: Path) -> None:
        """Create the run's files, or continue those of a run that is resumed."""
        run, options = self.run, self.run.config.run
        self.writer = StateWriter(folder, run.engine.recipe.official_names, options.keep_epochs, run.lock)
        with naming(folder):
            complete_set(folder, LABEL, (BEST,))
        resume_at = run.iteration if options.continue_train else None
        panels = run.engine.recipe.loss_panels
        name, keep = str(options.name), options.keep_samples
        config, goes_back = to_dict(run.config), self._goes_back(folder)
        self.report = Report(folder, name, config, panels, resume_at, keep, keep_later=goes_back)
        moved_sets = 0 if self.report.replaced is None else self._move_weights(self.report.replaced)
        self._log_replaced(self.report, moved_sets)
        if self.evaluations is not None:
            self.evaluations.take_over(folder, self.report.replaced)
        if self.report.missing:
            self.console.log(
                f"{' and '.join(self.report.missing)} not installed: loss curves need matplotlib, events need"
                " tensorboard; to install both: pip install '.[log]'"
            )
        if "epoch_loss" in run.extra and options.continue_train:
            self.writer.saved_iteration = run.iteration
            self._write_records()
            label = self._label(is_last=run.iteration >= run.last)
            if self.writer.write_missing(self.state(), label, with_state=not run.resumed_from_file):
                self.console.log(f"wrote the weights of iteration {run.iteration}, which the folder lacked")
        if self.evaluations is not None:
            self.report.add_evaluations(self.evaluations.history)

    def _goes_back(self, folder: Path) -> bool:
        """Whether the run resumes from an earlier point than its last state, at the caller's request."""
        run = self.run
        epoch = run.config.run.epoch
        return epoch != "latest" or (not run.resumed_from_file and has_weights(folder, epoch))

    def _move_weights(self, replaced: Path) -> int:
        """Move the weights that this run will write others in place of. Return the number of sets."""
        run = self.run
        assert run.folder is not None
        epochs = run.iteration // run.plan.iterations_per_epoch
        with naming(run.folder):
            return move_later_sets(run.folder, epochs, run.iteration, run.config.run.epoch, replaced)

    def _log_replaced(self, report: Report, moved_sets: int) -> None:
        """Log where the files of later iterations are, if there were any."""
        run, epoch = self.run, self.run.config.run.epoch
        if not report.moved_records and not report.page.moved and not moved_sets:
            return
        text = (
            f"the run goes back to iteration {run.iteration}; what came after it (log records:"
            f" {report.moved_records}, sample grids: {report.page.moved}, sets of weights: {moved_sets}) is"
            f" now in {report.replaced}"
        )
        optim = run.config.optim
        if epoch.isdecimal() and optim.epoch_count == 1 and int(epoch) < optim.last_epoch:
            text += f"; its epochs are counted from 1: --epoch_count {int(epoch) + 1} continues the count"
        self.console.log(text)

    def stop_after(self, number: int) -> None:
        """Make the loop end after the current iteration.

        ``number`` is the signal that requested this, or 0 if it was not a signal.
        """
        self.requests.stop = number

    def train(self) -> None:
        """Run the loop.

        Whatever fails outside an iteration (reading images, writing files), the state is saved first. Raises
        UserError if a loss is not finite, an image cannot be read or a file cannot be written.
        """
        run = self.run
        self.log_started = time.monotonic()
        self.requests.started = True
        batches = self._batches()
        writer = contextlib.nullcontext() if self.writer is None else contextlib.closing(self.writer)
        closing = run.trackers.closing()
        with naming_dead_workers(), writer, self._closing_report(), closing, contextlib.closing(batches):
            self._catch_up()
            for batch in batches:
                epoch, _ = run.plan.batch(run.iteration)
                self.lr = self.schedule.lr(epoch)
                was_in_warmup = run.in_warmup
                run.freeze()
                with naming_recipe(run.engine.recipe):
                    self.pending.append(run.engine.step(batch, self.lr))
                run.iteration += 1
                if run.iteration == self.started_at + 1:
                    run.require_carried()
                if was_in_warmup and not run.in_warmup and run.iteration < run.last:
                    self.console.log(f"the generators train from iteration {run.iteration + 1} on")
                with self._saving_first():
                    self._after_step(epoch, len(batch.samples))
                if self.stop is not None or self.is_out_of_patience:
                    break
            self._finish()

    def _catch_up(self) -> None:
        """Evaluate the weights that an earlier process saved, but was stopped before it evaluated them."""
        run, evaluations = self.run, self.evaluations
        if evaluations is None or not evaluations.continues or run.iteration == run.first:
            return
        epoch, ends_epoch = run.plan.batch(run.iteration - 1)[0], self._ends_epoch
        is_due = evaluations.options.every is not None and evaluations.due(epoch, ends_epoch=ends_epoch)
        if not is_due and not (run.iteration >= run.last and evaluations.is_due_at_the_end):
            return
        with self._saving_first():
            self._evaluate(evaluations, epoch)
        if self.writer is not None and evaluations.is_evaluated:
            self.writer.write(self.state(), (self._label(is_last=run.iteration >= run.last),))
            self.writer.wait()

    @property
    def _ends_epoch(self) -> bool:
        """Whether the current iteration is the last one of its epoch."""
        return self.run.iteration % self.run.plan.iterations_per_epoch == 0

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the run ends early, because evaluations brought nothing better."""
        return self.evaluations is not None and self.evaluations.is_exhausted

    @contextlib.contextmanager
    def _closing_report(self) -> Iterator[None]:
        """Close the report at the end of the body. An error of the body is not replaced by one of closing."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(UserError, OSError):
                self._require_folder()
                self.report.close()
            raise
        self.report.close()

    def _batches(self) -> Generator[Batch]:
        """Yield the batches of the loader until the run is complete or should stop.

        A wait for a batch ends as soon as a stop is requested. If the loader fails, the state is saved before
        the error is raised.
        """
        run = self.run
        batches = run.engine.uploading(run.loader.batches(run.iteration, run.last))
        with contextlib.closing(batches), contextlib.suppress(StoppedError):
            while self.stop is None and not self.is_out_of_patience:
                with self._saving_first(), self._interruptible(), naming_dead_workers():
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let Ctrl-C end the body at once if it runs the caller's code, which cannot be asked to stop."""
        is_callers = isinstance(self.run.loader, TensorLoader)
        self.requests.interruptible = is_callers
        try:
            yield
        except KeyboardInterrupt:
            if not is_callers or not self.requests.stopping():
                raise
            raise StoppedError from None
        finally:
            self.requests.interruptible = False

    @contextlib.contextmanager
    def _saving_first(self) -> Iterator[None]:
        """If the body fails, save the state before the error is raised, and say so in a UserError."""
        try:
            yield
        except (UnsavableError, StoppedError):
            raise
        except Exception as error:
            outcome = self._save_after()
            if isinstance(error, UserError):
                raise UserError(f"{error}{outcome}") from None
            if isinstance(error, OSError):
                raise UserError(f"{_of_system(error)}{outcome}") from None
            if outcome:
                error.add_note(outcome.strip())
            raise

    def _save_after(self) -> str:
        """Save the state because of an error. Return what became of it, to be appended to the message."""
        if self.writer is None or self.run.iteration == self.started_at:
            return ""
        try:
            self._save(wait=True)
        except (UnsavableError, OSError) as unsaved:
            return f" (and then {unsaved})"
        command = resume_command(self.run.config.run)
        return f" (saved after iteration {self.run.iteration}; {command} resumes from there)"

    def _after_step(self, epoch: int, images: int) -> None:
        run = self.run
        self.images_since_log += images
        for interval in (self.log_interval, self.samples_interval, self.state_interval):
            interval.count(images)
        ends_epoch = self._ends_epoch
        if self.log_interval.due or ends_epoch or len(self.pending) >= MAX_PENDING:
            self._flush()
        # The end of an epoch comes before anything else that can fail, because the state is saved if it does.
        if ends_epoch:
            self.schedule.end_epoch(self.epoch_loss / run.plan.iterations_per_epoch)
            self.epoch_loss = 0.0
            self._copy_weights(epoch)
        if self.log_interval.due:
            self._log(epoch)
        if self.draws and self.samples_interval.due:
            self._samples()
        if self.evaluations is not None and self.evaluations.due(epoch, ends_epoch=ends_epoch):
            self._evaluate(self.evaluations, epoch)
        if self.writer is None:
            return
        if self.requests.save:
            self.requests.save = False
            self._save(wait=True)
            self.console.log(f"saved after iteration {run.iteration}, as requested by SIGUSR1")
        elif self.state_interval.due and not self.writer.busy:
            self._save()
        self.writer.check()

    def _flush(self) -> None:
        """Copy the losses since the last call to the host. Raises UserError if one of them is not finite."""
        if not self.pending:
            return
        values = torch.stack(self.pending).cpu().double()
        self.pending.clear()
        self.losses.add(values)
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
        loss = f"loss {self.names[column]} is {values[row, column].item()}"
        raise UnsavableError(f"{loss} at iteration {iteration}; {self._good_state()}")

    def _require_finite_weights(self) -> None:
        """Raise UserError if the last iteration made a weight infinite, which only the next losses show."""
        found = not_finite_in(self.run.engine.state_dict()["nets"])
        if found is not None:
            raise UnsavableError(f"{found} after iteration {self.run.iteration}; {self._good_state()}")

    def _good_state(self) -> str:
        """Return which saved state is good now that the run has diverged, and how to resume from it.

        The last one is, if the losses after it were normal at first. Otherwise it is the previous one.
        """
        run, options = self.run, self.run.config.run
        if self.writer is not None:
            self.writer.close()  # the last state may still be being written
        if run.folder is None or self.writer is None or self.writer.saved_iteration is None:
            lost = "no state was saved yet"
            if run.folder is None:
                lost = f"the weights in memory are lost, so create or load a {run.engine.recipe.title} again"
            return f"{lost}; half the learning rate is {run.config.optim.lr / 2:g}"
        last = f"the state of iteration {self.writer.saved_iteration}"
        previous = run.folder / PREVIOUS
        # With the same settings, the run would diverge again in the same way.
        half = f"--lr {run.config.optim.lr / 2:g}"
        if self.losses.is_normal or not previous.exists():
            command = f"{resume_command(options)} {half}"
            return f"{last} is kept in {run.folder}; to resume from it with half the learning rate: {command}"
        return (
            f"{last} is kept in {run.folder}, but the losses right after it were not normal; the last good"
            f" one is {previous.name}; to resume from that with half the learning rate:"
            f" {resume_command(options, previous=True)} {half}"
        )

    def _require_folder(self) -> None:
        """Raise UnsavableError if the folder is no longer the one that this run locked."""
        try:
            if self.run.lock is not None:
                self.run.lock.require()
        except UserError as error:
            raise UnsavableError(str(error)) from None

    def _write_records(self) -> None:
        """Write the records that are not in the log yet. If that fails, they become part of the state."""
        while self.unlogged:
            self.report.add_stats(self.unlogged[0])
            self.run.trackers.add_record(self.unlogged[0], self.names)
            del self.unlogged[0]

    def _log(self, epoch: int) -> None:
        self._flush()
        self._require_folder()
        run, now = self.run, time.monotonic()
        count = len(self.since_log)
        if not count:
            return
        means = dict(zip(self.names, torch.stack(self.since_log).mean(0).tolist(), strict=True))
        seconds = max(now - self.log_started, 1e-9)
        rate = count / seconds
        record: dict[str, Any] = {"iteration": run.iteration, "epoch": epoch, **means}
        record |= {"lr": self.lr, "it/s": rate, "images/s": self.images_since_log / seconds}
        self.since_log, self.images_since_log, self.log_started = [], 0, now
        self.unlogged.append(record)
        self._write_records()
        losses = " ".join(f"{name} {value:.3f}" for name, value in means.items())
        head = f"epoch {epoch} iteration {run.iteration}/{run.last}"
        speed = f"{rate:.2f} it/s {record['images/s']:.2f} images/s"
        if self.warm:  # the time before the first line is mostly warm-up
            speed += f", {_clock((run.last - run.iteration) / rate)} left"
        self.warm = True
        self.console.progress(run.iteration - run.first, run.last - run.first, f"{head}  {speed}  {losses}")
        self.log_interval.restart()
        self.on_tick(record)

    def _copy_weights(self, epoch: int) -> None:
        """Write a permanent copy of the weights if one is due after ``epoch``."""
        every = self.run.config.run.save_epoch_freq
        if self.writer is not None and every and epoch % every == 0:
            self.writer.write(self._weights(), (str(epoch),), with_state=False)

    def _evaluate(self, evaluations: Evaluations, epoch: int) -> None:
        """Evaluate the weights, and keep them if they are the best so far.

        Nothing is evaluated if the run is asked to stop meanwhile, or if a network gives no numbers. Raises
        UserError if the losses are none, either.
        """
        self._require_folder()
        try:
            with evaluations.timed():
                record = self._measured(evaluations, epoch)
        except StoppedError:
            return  # the evaluation is made when the run is resumed
        except NoNumbersError:
            self._flush()
            self.console.log(
                "the networks give no numbers for the held-out images after iteration"
                f" {self.run.iteration}, so they were not evaluated"
            )
            return
        self.on_tick(record)

    def _measured(self, evaluations: Evaluations, epoch: int) -> dict[str, Any]:
        """Evaluate the weights, keep them if they are the best so far, and show the record in the report."""
        record, is_best = evaluations.evaluate(epoch, self.requests.stopping)
        if is_best and self.writer is not None:
            beside = {BEST: evaluations.best_file()}
            self.writer.write(self._weights(), (LABEL,), with_state=False, beside=beside)
        self.report.add_evaluations(evaluations.history)
        self.run.trackers.add_evaluation(record)
        return record

    def _weights(self) -> dict[str, Any]:
        """Return a copy of the weights, and of their averages if there are some."""
        state = self.run.engine.state_dict()
        snapshot = {"iteration": self.run.iteration, "optimizers": {}, "nets": to_cpu(state["nets"])}
        if "ema" in state:
            snapshot["ema"] = to_cpu(state["ema"])
        return snapshot

    def _label(self, *, is_last: bool) -> str:
        """Return the label under which the weights are saved along with the state."""
        if self.run.config.run.save_by_iter and not is_last:
            return f"iter_{self.run.iteration}"
        return "latest"

    def save(self) -> None:
        """Save the state under the name latest, and wait until it is on the disk.

        Raises UserError if a loss is not finite or the state cannot be written.
        """
        self._save(wait=True)

    def _save(self, wait: bool = False) -> None:
        """Start writing a snapshot of the state. If ``wait`` is true, wait until it is on the disk.

        If a loss is not finite, the run ends before anything is written.
        """
        assert self.writer is not None
        started = time.monotonic()
        state = self.state()
        self.writer.write(state, (self._label(is_last=wait),), keep_last=self.losses.is_normal)
        self.losses.restart()
        if wait:
            self.writer.wait()
        self.state_interval.restart(time.monotonic() - started)

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that the next iteration depends on.

        Raises UserError if a loss is not finite.
        """
        self._flush()
        extra = {
            "schedule": self.schedule.state_dict(),
            "epoch_loss": self.epoch_loss,
            "losses": [self.losses.log_sum, self.losses.count],
        }
        if self.unlogged:
            extra["unlogged"] = list(self.unlogged)
        if self.evaluations is not None:
            extra["evaluations"] = self.evaluations.state()
        elif "evaluations" in self.run.extra:
            extra["evaluations"] = self.run.extra["evaluations"]
        return self.run.state(extra)

    def _samples(self) -> None:
        """Draw the recipe's samples of the same images as before, and add them to the report.

        The images are held-out ones if there are any, otherwise training images. Nothing is drawn if a
        network's output is not finite. Raises UserError if the losses are not, either.
        """
        started = time.monotonic()
        self._require_folder()
        try:
            grid = draw_grid(self._sample_columns())
        except NoNumbersError:
            self._flush()
            self.console.log(
                f"the networks give no numbers for the sample images after iteration {self.run.iteration}, so"
                " no grid was drawn"
            )
        else:
            self.report.add_samples(self.run.iteration, grid)
            self.run.trackers.add_image(self.run.iteration, "samples", grid)
        self.sampled_at = self.run.iteration
        self.samples_interval.restart(time.monotonic() - started)

    def _sample_columns(self) -> dict[str, list[Any]]:
        engine = self.run.engine
        columns: dict[str, list[Any]] = {}
        for images, keys in zip(self.shown, self.shown_keys, strict=False):
            translate = functools.partial(engine.translate, keys=keys)
            for name, image in engine.recipe.samples(translate, images).items():
                columns.setdefault(name, []).append(to_pixels(image)[0])
        return columns

    def _finish(self) -> None:
        """Log the remaining losses, save under the name latest and draw a last sample grid.

        If no iteration was run, only draw the grid if the last process was killed before it did.
        """
        run = self.run
        if run.iteration == self.started_at:
            is_complete = run.resumed_from_file and run.iteration >= run.last
            if is_complete and run.iteration not in self.report.sampled:
                self._samples()
            return
        if self.pending or self.since_log:
            with self._saving_first():
                self._log(run.plan.batch(run.iteration - 1)[0])
        self.console.end_progress()
        if self.evaluations is not None and run.iteration >= run.last and self.evaluations.is_due_at_the_end:
            with self._saving_first():
                self._evaluate(self.evaluations, run.plan.batch(run.iteration - 1)[0])
        if self.writer is None:
            self._require_finite_weights()
        else:
            self.writer.wait()
            if run.iteration != self.writer.saved_iteration or run.config.run.save_by_iter:
                self._save(wait=True)
        if self.draws and run.iteration != self.sampled_at:
            with self._saving_first():
                self._samples()


def _of_system(error: OSError) -> str:
    """Return the message of an error of the operating system, with the file that it is about."""
    if error.filename:
        return f"{error.filename}: {system_reason(error)}"
    return f"{type(error).__name__}: {system_reason(error)}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


@usual_modes()
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
    iteration, so that no iteration is left half finished. If that happens before the first one, nothing has
    changed, and with ``signals`` StoppedError is raised.
    """
    requests = Requests()
    # The handlers come first: a signal that arrives while the run starts must not be lost.
    restore = on_signals(requests) if signals else on_interrupt(requests)
    try:
        trainer = _started(config, console, policy, overrides, requests, on_tick)
        try:
            on_start(trainer)
            with console:
                trainer.train()
        finally:
            trainer.run.end()
    except StoppedError:
        if not signals:
            raise KeyboardInterrupt from None
        raise StoppedError(int(requests.stop is not None and requests.stop)) from None
    finally:
        restore()
    if trainer.stop == signal.SIGINT and not signals:
        raise KeyboardInterrupt
    return trainer


def _started(
    config: TrainConfig,
    console: Console,
    policy: Factor | None,
    overrides: Overrides,
    requests: Requests,
    on_tick: Callable[[Trainer, dict[str, Any]], object],
) -> Trainer:
    """Start the run and return its trainer. Raises StoppedError if it was stopped before."""

    def checking(checked: int, total: int) -> None:
        if checked % 500 == 0 and checked:
            console.log(f"checked {checked} of {total} images")

    run = start(config, console.log, checking, overrides, console.once, requests.stopping)
    try:
        location = "without files" if run.folder is None else run.folder
        console.table(f"run {location}", run.table)
        warning = disk_warning(run)
        if warning is not None:
            console.log(warning)
        trainer = Trainer(run, console, policy, lambda record: on_tick(trainer, record), requests)
        return trainer
    except BaseException:
        with contextlib.suppress(Exception):
            run.trackers.close()
        run.release()
        raise
