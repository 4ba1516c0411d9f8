"""The evaluations of a run so far, and which one is the best. They are part of the run's state."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastcyclegan.files.json_file import parse_json
from fastcyclegan.files.schema import (
    MisfitError,
    entries,
    joined,
    list_of,
    nothing_or,
    number,
    record,
    text,
    whole,
)
from fastcyclegan.metrics.names import METRICS, mean_of
from fastcyclegan.metrics.protocol import differences

PREFIX = "eval_"
PROTOCOL = f"{PREFIX}protocol"
"""The name of the protocol in a record of stats.jsonl, which no record of a log line has."""
_MOST = 2**53


@dataclass
class History:
    """The records of a run's evaluations, all of one ``protocol``.

    ``judge`` is the name of the value that decides which record is the best, such as eval_fid. ``metric`` is
    that of its metric. A record has the iteration, the epoch, and values by name. ``best`` is one of the
    records, or one of a process that was killed after it kept those weights.
    """

    metric: str
    judge: str
    protocol: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None

    def add(self, values: dict[str, Any]) -> bool:
        """Add a record. Return whether it is the best so far."""
        self.records.append(values)
        if self.best is not None and not self._is_better(values, self.best):
            return False
        self.best = values
        return True

    def _is_better(self, values: Mapping[str, Any], than: Mapping[str, Any]) -> bool:
        return METRICS[self.metric].is_better(mean_of(values[self.judge]), mean_of(than[self.judge]))

    @property
    def since_best(self) -> int:
        """The number of evaluations after the best one."""
        if self.best is None:
            return 0
        best = self.best["iteration"]
        later = itertools.takewhile(lambda each: each["iteration"] > best, reversed(self.records))
        return sum(1 for _ in later)

    def why_not_comparable(self, other: History) -> str:
        """Return why the values of ``other`` cannot be compared with these, or "" if they can."""
        if self.judge != other.judge:
            return f"{self.judge} judged, and now {other.judge}"
        if self.protocol.keys() != other.protocol.keys():
            return f"{' and '.join(self.protocol)} was evaluated, and now {' and '.join(other.protocol)}"
        for label, protocol in self.protocol.items():
            found = differences(protocol, other.protocol[label])
            if found:
                return f"{label}: {found[0]}"
        return ""

    def to_text(self) -> str:
        """Return the history as text, from which ``from_text`` makes it again."""
        return json.dumps(vars(self))


def judged_names(history: History) -> list[str]:
    """Return the names of the values of the metric that judges in the last record: first that which decides.

    The others are those of single directions, and of the training weights if their average decides.
    """
    first = f"{PREFIX}{history.metric}"
    names = [name for name in history.records[-1] if name == first or name.startswith(f"{first}_")]
    return sorted(names, key=lambda name: (name != history.judge, name))


def from_text(saved: Any) -> History:
    """Return the history in ``saved``. Raises MisfitError if that is not what ``to_text`` returns."""
    text()(saved, "")
    try:
        values = parse_json(saved)
    except ValueError:
        raise MisfitError("", "is not JSON") from None
    one = evaluation_record
    record(
        {
            "metric": text(*METRICS),
            "judge": text(),
            "protocol": protocols,
            "records": list_of(one),
            "best": nothing_or(one),
        }
    )(values, "")
    for each in filter(None, [*values["records"], values["best"]]):
        if values["judge"] not in each:
            raise MisfitError("judge", "is in none of the records")
    for one_record, later in itertools.pairwise(values["records"]):
        if one_record["iteration"] >= later["iteration"]:
            raise MisfitError("records", "are not in the order of their iterations")
    return History(**values)


def protocols(values: Any, place: str) -> None:
    """Check that ``values`` are the protocols of directions, by their names."""
    for label, protocol in entries(values, place).items():
        text("AtoB", "BtoA")(label, place)
        entries(protocol, joined(place, label))


def evaluation_record(values: Any, place: str) -> None:
    """Check that ``values`` are a record of an evaluation."""
    known = {"iteration": whole(0, _MOST), "epoch": whole(0, _MOST)}
    names = [name for name in entries(values, place) if isinstance(name, str) and name.startswith(PREFIX)]
    record(known, dict.fromkeys(names, _value))(values, place)


def _value(value: Any, place: str) -> None:
    if isinstance(value, Mapping):
        record({"mean": number(), "std": number()})(value, place)
    else:
        number()(value, place)
