"""Trackers, which receive the values and the sample grids of a run while it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from PIL import Image

from fastcyclegan.metrics.names import mean_of
from fastcyclegan.training.evaluation_history import PREFIX

_METHODS = ("add_scalars", "add_image", "close")


class Tracker(Protocol):
    """Receives what the tensorboard events of a run contain. Users can write their own for ``fit``.

    Iterations count from 1. They go back if the run does. If a method raises, the state of the run is saved
    (if it has a folder), and the error ends the run.
    """

    def add_scalars(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Add the values of a log line: loss/NAME for each loss, lr and it/s.

        Those of an evaluation are eval/NAME for each metric; that of KID is its mean.
        """

    def add_image(self, iteration: int, name: str, image: Image.Image) -> None:
        """Add a sample grid, whose ``name`` is "samples"."""

    def close(self) -> None:
        """Finish. Called once when training ends, also if it fails."""


def require_trackers(trackers: Any) -> tuple[Tracker, ...]:
    """Return ``trackers`` as a tuple. Raises TypeError if they are not a sequence of trackers."""
    if not isinstance(trackers, Sequence):
        raise TypeError(f"trackers must be a list of objects, got {type(trackers).__name__}")
    for tracker in trackers:
        if isinstance(tracker, type):
            raise TypeError(f"a tracker must be an object, got the class {tracker.__name__}: call it")
        missing = [name for name in _METHODS if not callable(getattr(tracker, name, None))]
        if missing:
            raise TypeError(
                f"a tracker needs the methods {', '.join(_METHODS)}; {type(tracker).__name__} lacks"
                f" {', '.join(missing)}"
            )
    return tuple(trackers)


def scalars_of(record: Mapping[str, Any], losses: Sequence[str]) -> dict[str, float]:
    """Return the values of a log line by the names of their curves.

    A record of before the run was resumed can lack a loss of the current settings.
    """
    scalars = {f"loss/{name}": record[name] for name in losses if name in record}
    return scalars | {"lr": record["lr"], "it/s": record["it/s"]}


def scalars_of_evaluation(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of an evaluation by the names of their curves."""
    found = {name: value for name, value in record.items() if name.startswith(PREFIX)}
    return {f"eval/{name.removeprefix(PREFIX)}": mean_of(value) for name, value in found.items()}


class Trackers:
    """The trackers of a run, each of which gets everything that is added."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = list(trackers)

    def __len__(self) -> int:
        return len(self._trackers)

    @property
    def names(self) -> list[str]:
        return [type(tracker).__name__ for tracker in self._trackers]

    def append(self, tracker: Tracker) -> None:
        self._trackers.append(tracker)

    def add_record(self, record: Mapping[str, Any], losses: Sequence[str]) -> None:
        """Add the values of one log line."""
        scalars = scalars_of(record, losses)
        for tracker in self._trackers:
            tracker.add_scalars(record["iteration"], dict(scalars))  # a tracker may change its own

    def add_evaluation(self, record: Mapping[str, Any]) -> None:
        """Add the values of one evaluation."""
        for tracker in self._trackers:
            tracker.add_scalars(record["iteration"], scalars_of_evaluation(record))

    def add_image(self, iteration: int, name: str, image: Image.Image) -> None:
        for tracker in self._trackers:
            tracker.add_image(iteration, name, image.copy())

    def close(self) -> None:
        """Close all trackers, even if one of them fails; then raise its error. Later calls do nothing."""
        with contextlib.ExitStack() as stack:
            while self._trackers:
                stack.callback(self._trackers.pop().close)

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Close the trackers at the end of the body. Its own error is not replaced by one of closing."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                self.close()
            raise
        self.close()
