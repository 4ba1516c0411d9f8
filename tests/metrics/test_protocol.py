"""Numbers of different protocols are not compared, whatever part differs, except for versions."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from fastcyclegan.errors import UserError
from fastcyclegan.metrics.protocol import VERSIONS, described, differences, require_same, versions

PROTOCOL: dict[str, Any] = {
    "images": {"fake": 3, "real": 4, "pairs": 0, "real_sha256": "ab", "resized": "no"},
    "features": {"network": "small.pt", "sha256": "12", "side": None, "resize": "none"},
    "kid": {"subsets": 100, "subset_size": 2},
    "lpips": {"version": "0.1", "layers": ["relu1", "relu2"]},
    "precision": "fp32",
    "versions": {"torch": "2.12"},
}


def leaves(part: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    found = []
    for name, value in part.items():
        found += leaves(value) if isinstance(value, dict) else [(part, name)]
    return found


@pytest.mark.parametrize("number", range(len(leaves(PROTOCOL))))
def test_every_part_counts_except_for_versions(number: int) -> None:
    for change in ("another", "missing"):
        other = copy.deepcopy(PROTOCOL)
        part, name = leaves(other)[number]
        if change == "another":
            part[name] = "another"
        else:
            del part[name]
        texts = differences(PROTOCOL, other)
        if name == "torch":
            assert texts == []
            require_same(PROTOCOL, other, "file")
            continue
        (text,) = texts
        assert text.split(" is ")[0].endswith(name)
        assert text.endswith({"another": " and another", "missing": " and not given"}[change])
        for pair in ((PROTOCOL, other), (other, PROTOCOL)):
            with pytest.raises(
                UserError, match=r"^file: numbers of different protocols cannot be compared: "
            ):
                require_same(*pair, "file")


def test_a_protocol_that_was_written_and_read_is_the_same() -> None:
    require_same(PROTOCOL, json.loads(json.dumps(PROTOCOL)), "file")


def test_parts_that_only_one_has() -> None:
    assert differences({}, {"kid": {"subsets": 3}}) == ["kid.subsets is not given and 3"]
    assert differences({"kid": 3}, {"kid": {"subsets": 3}}) == [
        "kid is 3 and not given",
        "kid.subsets is not given and 3",
    ]
    assert differences({"side": None}, {}) == ["side is None and not given"]


def test_the_line_names_one_difference_and_counts_the_others() -> None:
    other = copy.deepcopy(PROTOCOL)
    other["images"]["real"] = 5
    other["kid"]["subsets"] = "3\n" * 900
    with pytest.raises(UserError, match=r"compared: images.real is 4 and 5 \(and 1 more\)$"):
        require_same(PROTOCOL, other, "file")
    with pytest.raises(UserError) as error:  # what a file contains does not fill the terminal
        require_same({"kid": "3\n" * 900}, {}, "file")
    assert len(str(error.value)) < 200
    assert str(error.value).isprintable()


def test_versions_of_the_packages() -> None:
    assert set(versions()) == {"fastcyclegan", "torch", "torchmetrics", "numpy", "pillow"}
    assert versions()["torch"][0].isdigit()
    assert VERSIONS == "versions"


def test_rows_for_a_table() -> None:
    rows = described(PROTOCOL)
    assert list(rows) == list(PROTOCOL)
    assert rows["kid"] == "subsets 100, subset_size 2"
    assert rows["precision"] == "fp32"
