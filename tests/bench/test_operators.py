"""Operators that the benches time on a GPU, run here through the interpreter.

The results that a bench checks are those of the runs that it times.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench import bench_reflect_conv as bench
from bench import bench_zero_conv as zero
from bench.operators import Case


@pytest.mark.parametrize("direction", ["forward", "forward, bordered", "dgrad", "wgrad"])
def test_products_of_the_block(direction: str, device: str) -> None:
    torch.manual_seed(0)
    C, kind = 16, direction.partition(",")[0]

    def one(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)

    inputs = [(one(2, C, 6, 8), one(C, C, 3, 3) / (9 * C) ** 0.5, one(2, C, 6, 8)) for _ in range(2)]
    case = Case(bench.eager, inputs, bench.direction_of(kind), bench.PASSES[kind])
    results = [step() for step in bench.in_the_block(direction, inputs)()]
    case.check("in_the_block", results)
    with pytest.raises(AssertionError, match=r"in_the_block: .*, input 1 of 2: relative error"):
        case.check("in_the_block", [results[0], (results[1][0] * 1.01,)])


@pytest.mark.parametrize(
    "layer", [zero.Layer(4, 8, 8, 4, 2), zero.Layer(8, 4, 4, 3, 2, True)], ids=["strided", "transposed"]
)
def test_two_networks_in_one_launch(layer: zero.Layer, device: str) -> None:
    """The launches that bench_zero_conv.py times on a GPU, each for two networks, are correct."""
    inputs = [tuple(t.to(device) for t in tensors) for tensors in zero.inputs(layer, 2, 2)[:1]]
    run = zero.functions(layer)
    case = Case(run["library"], inputs, "all")
    case.check("ours", [step() for step in case.steps(run["ours"])])
    y = run["ours"](*inputs[0][:-1])
    assert y.shape[-1] == layer.out_side
    assert layer.flops == 2 * 16 * layer.C * layer.O * layer.k**2


@pytest.mark.parametrize(("direction", "needed"), [("forward", ()), ("backward", (1,)), ("all", ())])
def test_checks_the_results_of_the_timed_runs(direction: str, needed: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    inputs = [(torch.randn(3, 4), torch.randn(4, 5), torch.randn(3, 5)) for _ in range(2)]
    case = Case(torch.mm, inputs, direction, needed)
    (first, *_), count = case.steps(torch.mm), {"forward": 1, "backward": 1, "all": 2}[direction]
    results = first()
    assert len(results) == count
    x, w, dy = inputs[0]
    expected = {"forward": [x @ w], "backward": [x.T @ dy], "all": [dy @ w.T, x.T @ dy]}[direction]
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b)
    entrant = case.entrant("ours", torch.mm, fault=True)
    entrant.run()
    with pytest.raises(AssertionError, match=r"ours: .*, input 0 of 2"):
        entrant.check()
