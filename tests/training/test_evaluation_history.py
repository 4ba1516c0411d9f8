"""The history of evaluations: which is the best, what can be compared, and how the state keeps it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from fastcyclegan.files.schema import MisfitError
from fastcyclegan.training.evaluation_history import History, from_text, judged_names
from tests.files.altered_values import PLAIN, altered

PROTOCOL = {"AtoB": {"images": {"fake": 2}, "versions": {"torch": "2.9"}}}


def history(metric: str = "fid", *values: Any, judge: str | None = None) -> History:
    """Return a history with one evaluation of each of ``values``, at the iterations 10, 20, ..."""
    made = History(metric, f"eval_{metric}" if judge is None else judge, PROTOCOL)
    for n, value in enumerate(values, start=1):
        made.add({"iteration": 10 * n, "epoch": n, made.judge: value})
    return made


def best(one: History) -> int:
    assert one.best is not None
    return int(one.best["iteration"])


def test_lower_or_higher_values_are_better() -> None:
    assert best(history("fid", 5.0, 3.0, 4.0)) == 20
    assert best(history("psnr", 5.0, 3.0, 6.0, 6.0)) == 30  # an equal value is no better
    kid = history("kid", *({"mean": mean, "std": 1.0} for mean in (0.2, -0.1, 0.1)))
    assert best(kid) == 20


def test_add_returns_whether_the_record_is_the_best() -> None:
    one = history()
    found = [one.add({"iteration": n, "epoch": 1, "eval_fid": value}) for n, value in enumerate((4, 4, 3, 5))]
    assert found == [True, False, True, False]


def test_evaluations_since_the_best() -> None:
    assert history("fid").since_best == 0
    assert history("fid", 5.0, 3.0).since_best == 0
    assert history("fid", 3.0, 4.0, 5.0).since_best == 2
    one = history("fid", 3.0, 4.0)
    one.best = {"iteration": 70, "epoch": 7, "eval_fid": 1.0}  # of a process that was killed later
    assert one.since_best == 0
    one.best = None
    assert one.since_best == 0


def test_other_versions_can_be_compared_but_not_other_protocols() -> None:
    one, other = history(), history()
    other.protocol = {"AtoB": {"images": {"fake": 2}, "versions": {"torch": "3.0"}}}
    assert one.why_not_comparable(other) == ""
    other.protocol = {"AtoB": {"images": {"fake": 3}, "versions": {"torch": "2.9"}}}
    assert one.why_not_comparable(other) == "AtoB: images.fake is 2 and 3"
    other.protocol = {**PROTOCOL, "BtoA": {}}
    assert one.why_not_comparable(other) == "AtoB was evaluated, and now AtoB and BtoA"
    assert one.why_not_comparable(history("kid")) == "eval_fid judged, and now eval_kid"


def test_the_value_that_judges_comes_first() -> None:
    one = history("l1", 0.5, judge="eval_l1_ema")
    one.records[-1] |= {"eval_l1": 0.4, "eval_l1_AtoB": 0.3, "eval_lpips": 0.2, "iteration": 10}
    assert judged_names(one) == ["eval_l1_ema", "eval_l1", "eval_l1_AtoB"]


def test_the_text_restores_the_history() -> None:
    for one in (history(), history("kid", {"mean": 0.5, "std": 0.25}, {"mean": 0.75, "std": 0.125})):
        assert from_text(one.to_text()) == one


def changed(**parts: Any) -> str:
    return json.dumps({**vars(history("fid", 5.0, 3.0)), **parts})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "must be text, got None"),
        ("{", "is not JSON"),
        ("[]", "must be a dict, got a list"),
        ("{}", "metric is missing"),
        (changed(metric="x"), "metric must be one of fid, kid"),
        (changed(more=1), "more is unexpected"),
        (changed(judge="eval_kid"), "judge is in none of the records"),
        (changed(protocol={"AtoB": 3}), "protocol.AtoB must be a dict, got 3"),
        (changed(protocol={"x": {}}), "protocol must be one of AtoB, BtoA"),
        (changed(best={"iteration": 1, "epoch": 1, "x": 1}), "best.x is unexpected"),
        (changed(best={"iteration": 1, "epoch": 1, "eval_fid": None}), "best.eval_fid must be a number"),
        (changed(best={"iteration": 1, "epoch": 1, "eval_fid": {"mean": 1}}), "best.eval_fid.std is missing"),
        (changed(records=history("fid", 5.0, 3.0).records[::-1]), "are not in the order of their iterations"),
        (changed(best=None).replace("5.0", "NaN"), "records.0.eval_fid must be a number, got nan"),
    ],
)
def test_what_is_no_history_is_refused(text: Any, problem: str) -> None:
    with pytest.raises(MisfitError) as error:
        from_text(text)
    assert problem in str(error.value)


def test_altered_histories_are_refused_or_legal() -> None:
    good = vars(history("kid", {"mean": 0.5, "std": 0.2}, {"mean": 0.4, "std": 0.2}))
    refused = 0
    for seed in range(300):
        values, _ = altered(random.Random(seed), good, PLAIN)
        try:
            text = json.dumps(values)
        except (TypeError, ValueError, RecursionError):  # it cannot be written
            continue
        try:
            restored = from_text(text)
        except MisfitError:
            refused += 1
            continue
        restored.add({"iteration": 30, "epoch": 3, restored.judge: {"mean": 0.1, "std": 0.1}})
        assert restored.since_best == 0
        assert restored.why_not_comparable(history("fid", 1.0))
        json.loads(restored.to_text())
    assert refused > 100
