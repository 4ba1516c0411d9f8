"""What travels beside the images: unharmed, always to the same place, in one copy."""

from __future__ import annotations

import pytest
import torch

from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.engine.host_inputs import ROOM, HostInputs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_values_arrive_where_they_were_before() -> None:
    numbers = HostInputs(DEVICE)
    places = []
    for n in range(3):
        sent = {
            "pool_A": torch.tensor([[n], [2**40 + n], [-1]]),
            "mix_A": torch.tensor([0.1 * n, 0.2, 0.3]),  # 12 bytes: what follows must be aligned all the same
            "pool_B": torch.arange(6).view(3, 2) + n,
        }
        found = numbers.send(0.1 * (n + 1), sent)
        assert all(
            torch.equal(found[name].cpu(), value) and found[name].dtype == value.dtype
            for name, value in sent.items()
        )
        assert numbers.lr.item() == pytest.approx(0.1 * (n + 1), rel=1e-7)
        places.append([value.data_ptr() for value in found.values()])
    assert places[0] == places[1] == places[2]


def test_one_copy_takes_all() -> None:
    numbers = HostInputs(torch.device("cpu"))
    sent = {"pool_A": torch.zeros(3, 5, dtype=torch.int64), "mix_A": torch.zeros(5)}
    with dry_run() as dry:
        numbers.send(1e-4, sent)
    assert dry.counts.aten["copy_"] == 1


def test_too_many_are_named() -> None:
    with pytest.raises(ValueError, match=f"there is room for {ROOM}"):
        HostInputs(torch.device("cpu")).send(0.1, {"pool_A": torch.zeros(ROOM, dtype=torch.int64)})
