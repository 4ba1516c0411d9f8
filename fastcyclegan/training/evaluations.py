"""The evaluations of a run: when they are due, which is the best, and when they end the run."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcyclegan.checkpoints.run_files import BEST
from fastcyclegan.checkpoints.weight_sets import is_whole, move_set
from fastcyclegan.data.background import Stopping, never
from fastcyclegan.errors import one_line
from fastcyclegan.files.json_file import read_json
from fastcyclegan.files.schema import entries
from fastcyclegan.metrics.names import shown
from fastcyclegan.training.evaluation_history import PREFIX, History, from_text, judged_names
from fastcyclegan.training.run import Run
from fastcyclegan.training.run_evaluation import RunEvaluation
from fastcyclegan.training.run_report import new_folder
from fastcyclegan.training.safe_write import naming

FIRST = 30.0
"""Seconds until the first evaluation, if their number depends on the time."""
LABEL = "best"
"""The label of the best weights, as that of an epoch."""


class Evaluations:
    """Evaluates a run, whose evaluation is ``evaluation``, while it trains."""

    def __init__(self, run: Run, evaluation: RunEvaluation, log: Any) -> None:
        self.run, self.evaluation, self.log = run, evaluation, log
        self.options = run.config.evaluation
        self.continues = False
        """Whether the history began in an earlier process."""
        self.history = self._resumed(evaluation.empty_history())
        self.created, self.spent, self.cost = time.monotonic(), 0.0, 0.0

    # --- What earlier processes did -------------------------------------------------------------------------

    def _resumed(self, new: History) -> History:
        """Return the history of the run so far, or ``new`` if it has none that can be continued."""
        saved = self.run.extra.get("evaluations")
        if saved is None:
            return new
        old = from_text(saved)
        reason = old.why_not_comparable(new)
        if reason:
            self.log(
                "the evaluations so far cannot be compared with those from now on, so the best weights are"
                f" chosen anew ({reason})"
            )
            return new
        self.continues = True
        old.protocol = new.protocol  # with the current versions
        return old

    def warning(self) -> str:
        """Return a line if the run ends before its first evaluation is due, or ""."""
        run, every = self.run, self.options.every
        if every is None or run.iteration >= run.last:
            return ""
        number, counts_iterations = every
        length = 1 if counts_iterations else run.plan.iterations_per_epoch
        if run.last // (number * length) > run.iteration // (number * length):
            return ""
        unit = "iterations" if counts_iterations else f"epochs of {length:,} iterations"
        return (
            f"no evaluation is due before the run ends, after iteration {run.last:,}: --eval_every counts"
            f" {unit}"
        )

    def take_over(self, folder: Path, replaced: Path | None) -> None:
        """Make the best weights in ``folder`` and the history agree.

        A process that was killed may have kept weights that are not in the history: these are the best. If
        the files are damaged or missing, the best is chosen anew. Those that were judged in another way are
        moved to the folder ``replaced``, or to a new one beside them.
        """
        history = self.history
        kept = self._kept(folder)
        if kept is not None and kept.why_not_comparable(history):
            target = new_folder(folder, f"replaced-{LABEL}") if replaced is None else replaced
            with naming(target):
                move_set(folder, LABEL, target, (BEST,))
            self.log(f"the best weights of earlier evaluations are now in {target}")
            kept = None
        if kept is not None and kept.best is not None and is_whole(folder, LABEL, kept.best["iteration"]):
            history.best = kept.best
        elif history.best is not None:
            self.log(
                f"the weights of the best evaluation (iteration {history.best['iteration']}) are not in"
                f" {folder}, so the best is chosen anew"
            )
            history.best = None

    def _kept(self, folder: Path) -> History | None:
        """Return what ``folder`` records about its best weights, as a history without other records."""
        try:
            saved = entries(read_json(folder / BEST), "")
            known = {name: saved.get(name) for name in ("metric", "judge", "protocol")}
            return from_text(json.dumps({**known, "records": [], "best": saved.get("record")}))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # MisfitError is a ValueError
            self.log(f"{folder / BEST}: damaged, so the best is chosen anew: {one_line(error)}")
            return None

    # --- While the run trains -------------------------------------------------------------------------------

    def due(self, epoch: int, *, ends_epoch: bool) -> bool:
        """Return whether the weights are to be evaluated after the current iteration, in ``epoch``."""
        every, iteration = self.options.every, self.run.iteration
        if self.is_evaluated:
            return False
        if every is not None:
            number, counts_iterations = every
            return iteration % number == 0 if counts_iterations else ends_epoch and epoch % number == 0
        elapsed = time.monotonic() - self.created
        if self.spent == 0:
            return elapsed >= FIRST
        # The share must not be exceeded when this evaluation, which probably takes as long as the last one,
        # is over.
        return self.spent + self.cost <= self.options.eval_share * (elapsed + self.cost)

    @property
    def is_due_at_the_end(self) -> bool:
        """Whether the last weights of a complete run are to be evaluated, at whatever share of the time."""
        return self.options.every is None and not self.is_evaluated

    @property
    def is_evaluated(self) -> bool:
        """Whether the current weights have been evaluated."""
        records = self.history.records
        return bool(records) and records[-1]["iteration"] == self.run.iteration

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time that the body takes as that of an evaluation."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.cost = max(time.monotonic() - started, 1e-9)
            self.spent += self.cost

    def evaluate(self, epoch: int, stopping: Stopping = never) -> tuple[dict[str, Any], bool]:
        """Evaluate the current weights. Return the record, and whether they are the best so far.

        Raises NoNumbersError if a network gives no numbers, and StoppedError if ``stopping`` returns True.
        """
        started = time.monotonic()
        values = self.evaluation.measure(self.run.engine, stopping)
        values = {"iteration": self.run.iteration, "epoch": epoch, **values}
        is_best = self.history.add(values)
        self.log(f"{self._line(values, is_best)}; took {time.monotonic() - started:.1f} s")
        return values, is_best

    def _line(self, values: dict[str, Any], is_best: bool) -> str:
        """Return the line about an evaluation: the value that judges, and the others of its metric."""
        history, judge = self.history, self.history.judge
        assert history.best is not None
        each = [f"{name.removeprefix(PREFIX)} {shown(values[name])}" for name in judged_names(history)]
        best = "the best so far"
        if not is_best:
            best = f"best {shown(history.best[judge])} at iteration {history.best['iteration']}"
        return f"evaluated iteration {values['iteration']}: {', '.join(each)}; {best}"

    @property
    def is_exhausted(self) -> bool:
        """Whether so many evaluations brought nothing better that the run should end."""
        patience = self.options.patience
        return patience is not None and self.history.since_best >= patience

    def best_file(self) -> str:
        """Return the contents of the file about the best weights."""
        history = self.history
        assert history.best is not None
        saved = {
            "iteration": history.best["iteration"],
            "epoch": history.best["epoch"],
            "metric": history.metric,
            "value": history.best[history.judge],
            "judge": history.judge,
            "record": history.best,
            "protocol": history.protocol,
        }
        return json.dumps(saved, indent=2) + "\n"

    def state(self) -> str:
        """Return what the run's state contains of this."""
        return self.history.to_text()
