"""Numbers sent with the images arrive unchanged, at the same addresses, in one copy."""

from __future__ import annotations

import pytest
import torch

from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.engine.host_inputs import ROOM, HostInputs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_values_arrive_unchanged_at_the_same_addresses() -> None:
    numbers = HostInputs(DEVICE)
    places = []
    for n in range(3):
        sent = {
            "pool_A": torch.tensor([[n], [2**40 + n], [-1]]),
            "mix_A": torch.tensor([0.1 * n, 0.2, 0.3]),  # 12 bytes: the next tensor must still be aligned
            "pool_B": torch.arange(6).view(3, 2) + n,
        }
        received = numbers.send(0.1 * (n + 1), sent)
        assert all(
            torch.equal(received[name].cpu(), value) and received[name].dtype == value.dtype
            for name, value in sent.items()
        )
        assert numbers.lr.item() == pytest.approx(0.1 * (n + 1), rel=1e-7)
        places.append([value.data_ptr() for value in received.values()])
    assert places[0] == places[1] == places[2]


def test_all_numbers_take_one_copy() -> None:
    numbers = HostInputs(torch.device("cpu"))
    sent = {"pool_A": torch.zeros(3, 5, dtype=torch.int64), "mix_A": torch.zeros(5)}
    with dry_run() as dry:
        numbers.send(1e-4, sent)
    assert dry.counts.aten["copy_"] == 1


def test_numbers_that_do_not_fit_raise() -> None:
    with pytest.raises(ValueError, match=f"must fit in {ROOM} bytes"):
        HostInputs(torch.device("cpu")).send(0.1, {"pool_A": torch.zeros(ROOM, dtype=torch.int64)})
