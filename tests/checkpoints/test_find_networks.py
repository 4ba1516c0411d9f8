"""State_dicts as they are found: a network in every spelling is read right, all else is refused with what is
strange.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan.checkpoints.architecture import UnknownArchitectureError
from fastcyclegan.checkpoints.find_networks import find_networks
from fastcyclegan.nn.networks import Discriminator, Generator


def generator(**arguments: Any) -> dict[str, Tensor]:
    return Generator(**{"ngf": 2, "n_blocks": 2, **arguments}).state_dict()


def renamed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in weights.items()}


@pytest.mark.parametrize(
    ("wrap", "places"),
    [
        (lambda w: renamed(w, "module."), [""]),
        (lambda w: renamed(w, "_orig_mod.module."), [""]),
        (lambda w: renamed(w, "module._orig_mod."), [""]),
        (lambda w: renamed(w, "netG."), ["netG"]),
        (lambda w: renamed(w, "model."), ["model"]),
        (lambda w: {"state_dict": renamed(w, "module."), "epoch": 3}, ["state_dict"]),
        (
            lambda w: {"a": {"b": {"model_state": w}}, "optimizer": {"state": {}, "param_groups": [1]}},
            ["a.b.model_state"],
        ),
        (lambda w: {"G_A2B": w, "G_B2A": w}, ["G_A2B", "G_B2A"]),
        (
            lambda w: {"state_dict": {**renamed(w, "G_AB."), **renamed(w, "G_BA.")}},
            ["state_dict.G_AB", "state_dict.G_BA"],
        ),
        (lambda w: {**w, **renamed(w, "ema.")}, ["", "ema"]),
        (lambda w: {key.replace("conv_block", "block"): value for key, value in w.items()}, [""]),
    ],
)
def test_spellings_of_the_wild(wrap: Any, places: list[str]) -> None:
    weights = generator()
    networks = find_networks(wrap(weights))
    assert sorted(network.place for network in networks) == places
    for network in networks:
        assert network.architecture.name == "resnet_2blocks"
        assert {k: v.data_ptr() for k, v in network.weights.items()} == {
            k: v.data_ptr() for k, v in weights.items()
        }


def test_a_discriminator_that_is_the_attribute_model_looks_like_a_u_net() -> None:
    (network,) = find_networks(renamed(Discriminator(ndf=2).state_dict(), "model."))
    assert network.architecture.name == "basic"


def test_what_was_done_is_noted() -> None:
    weights = {f"module.{key.replace('conv_block', 'block')}": value for key, value in generator().items()}
    assert find_networks(weights)[0].architecture.notes == (
        "the prefix module. was taken off",
        "residual blocks were called block",
    )


def test_running_statistics_of_old_instance_norms_are_dropped() -> None:
    weights = generator()
    for norm, width in (("model.2", 2), ("model.5", 4), ("model.10.conv_block.2", 8)):
        weights |= {f"{norm}.running_mean": torch.zeros(width), f"{norm}.running_var": torch.ones(width)}
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(3)
    (network,) = find_networks(weights)
    assert set(network.weights) == set(generator())
    assert "9 running statistics of instance norms were dropped" in network.architecture.notes[0]


def test_batch_norms_keep_theirs() -> None:
    (network,) = find_networks(generator(norm="batch"))
    assert "model.2.running_mean" in network.weights


def test_a_norm_that_could_be_two_is_not_guessed() -> None:
    """Batch norm after a convolution with a bias, or affine instance norm with statistics: the same keys,
    other functions.
    """
    weights = generator(affine=True) | {
        "model.2.running_mean": torch.zeros(2),
        "model.2.running_var": torch.ones(2),
    }
    with pytest.raises(
        UnknownArchitectureError,
        match=r"nearest is the generator resnet_2blocks .*model.2.running_mean is strange",
    ):
        find_networks(weights)


def without(key: str) -> dict[str, Tensor]:
    weights = generator()
    del weights[key]
    return weights


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "not a state_dict: it holds nothing"),
        ([torch.ones(1)], "not a state_dict: it holds no tensors, but a list"),
        ({"epoch": 3}, "not a state_dict: it holds no tensors"),
        ({"fc.weight": torch.ones(2, 2)}, "none is near: its keys are fc.weight"),
        (
            without("model.4.weight"),
            r"nearest is the generator resnet_2blocks \(ngf 2, .*, but model.4.weight is missing",
        ),
        (
            generator() | {"model.4.weight": torch.ones(3, 2, 3, 3)},
            r"model.4.weight is \[3, 2, 3, 3\] and not \[4, 2, 3, 3\]",
        ),
        (generator() | {"model.30.weight": torch.ones(1)}, "model.30.weight is strange"),
        # Nearest-neighbour resize and a zero-padded convolution of its own, as in another well-known
        # repository.
        (
            {k.replace("model.12.", "model.13."): v for k, v in generator().items()},
            "model.13.weight is strange",
        ),
        (
            generator() | {"model.1.bias": torch.tensor([1.0, float("nan")])},
            "model.1.bias holds numbers that are not finite",
        ),
        (
            generator() | {"model.1.weight": torch.ones(1).expand(2, 3, 7, 7)},
            "its tensors claim more than the file holds",
        ),
        (
            generator() | {"model.1.bias": torch.ones(2, dtype=torch.int8)},
            "model.1.bias holds int8, and weights are floating point",
        ),
        (
            generator() | {"model.1.bias": torch.ones(2, dtype=torch.complex64)},
            "model.1.bias holds complex64",
        ),
        (
            generator() | {"model.1.bias": torch.full((2,), 1e300, dtype=torch.float64)},
            "model.1.bias holds numbers that are not finite",
        ),
        (generator() | {"model.1.bias": torch.ones(2).to_sparse()}, "model.1.bias is no plain tensor"),
        (generator() | {"model.1.bias": torch.ones(2, device="meta")}, "model.1.bias is no plain tensor"),
    ],
)
def test_what_is_not_known_is_refused(found: Any, message: str) -> None:
    with pytest.raises(UnknownArchitectureError, match=message):
        find_networks(found)


def test_mappings_that_hold_themselves_come_to_an_end() -> None:
    knot: dict[str, Any] = {}
    knot |= {str(i): knot for i in range(50)}
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"in": deep}
    for found in (knot, deep):
        with pytest.raises(UnknownArchitectureError, match="holds no tensors"):
            find_networks(found)
    while deep:  # freed level by level: Python's own way of freeing it is recursive
        deep = deep["in"]
