"""Find networks in state_dicts with the various keys that real files use.

Networks are recognised whichever keys are used. Anything else is rejected, and the error lists the
differences.
"""

from __future__ import annotations

from collections import OrderedDict
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
        (lambda w: {"models": [w, renamed(w, "module.")], "losses": [1.0]}, ["models.0", "models.1"]),
        (lambda w: (w, {"G": (3, [w])}, [torch.ones(1)]), ["0", "1.G.1.0"]),
        (lambda w: {key.replace("conv_block", "block"): value for key, value in w.items()}, [""]),
    ],
)
def test_finds_networks_under_all_usual_keys(wrap: Any, places: list[str]) -> None:
    weights = generator()
    networks = find_networks(wrap(weights))
    assert sorted(network.place for network in networks) == places
    for network in networks:
        assert network.architecture.name == "resnet_2blocks"
        assert {k: v.data_ptr() for k, v in network.weights.items()} == {
            k: v.data_ptr() for k, v in weights.items()
        }


def test_recognises_a_discriminator_under_the_attribute_model() -> None:
    (network,) = find_networks(renamed(Discriminator(ndf=2).state_dict(), "model."))
    assert network.architecture.name == "basic"


def test_notes_the_changes() -> None:
    weights = {f"module.{key.replace('conv_block', 'block')}": value for key, value in generator().items()}
    assert find_networks(weights)[0].architecture.notes == (
        'removed the prefix "module."',
        "renamed block to conv_block in residual blocks",
    )


def test_running_statistics_of_old_instance_norms_are_dropped() -> None:
    weights = generator()
    for norm, width in (("model.2", 2), ("model.5", 4), ("model.10.conv_block.2", 8)):
        weights |= {f"{norm}.running_mean": torch.zeros(width), f"{norm}.running_var": torch.ones(width)}
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(3)
    (network,) = find_networks(weights)
    assert set(network.weights) == set(generator())
    assert "dropped 9 running statistics of instance norms" in network.architecture.notes[0]


def test_batch_norms_keep_their_running_statistics() -> None:
    (network,) = find_networks(generator(norm="batch"))
    assert "model.2.running_mean" in network.weights


def test_does_not_guess_an_ambiguous_norm() -> None:
    """Reject weights whose keys fit two norms that compute different functions.

    The two are batch norm after a convolution with a bias, and affine instance norm with running statistics.
    """
    weights = generator(affine=True) | {
        "model.2.running_mean": torch.zeros(2),
        "model.2.running_var": torch.ones(2),
    }
    with pytest.raises(
        UnknownArchitectureError,
        match=r"the closest is the generator resnet_2blocks .*model.2.running_mean is unexpected",
    ):
        find_networks(weights)


def without(key: str) -> dict[str, Tensor]:
    weights = generator()
    del weights[key]
    return weights


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({}, "not a state_dict: it is empty"),
        ((), "not a state_dict: it is empty"),
        ([torch.ones(1)], "not a state_dict: it is a list without named tensors"),
        ([[{"fc.weight": torch.ones(2, 2)}]], "no known one is close: its keys are fc.weight"),
        ({"epoch": 3}, "not a state_dict: it is a dict without named tensors"),
        ({"fc.weight": torch.ones(2, 2)}, "no known one is close: its keys are fc.weight"),
        (
            without("model.4.weight"),
            r"the closest is the generator resnet_2blocks \(ngf 2, .*, but model.4.weight is missing",
        ),
        (
            generator() | {"model.4.weight": torch.ones(3, 2, 3, 3)},
            r"model.4.weight has the shape \[3, 2, 3, 3\] instead of \[4, 2, 3, 3\]",
        ),
        (generator() | {"model.30.weight": torch.ones(1)}, "model.30.weight is unexpected"),
        # Another well-known repository uses a nearest-neighbour resize and a zero-padded convolution.
        (
            {k.replace("model.12.", "model.13."): v for k, v in generator().items()},
            "model.13.weight is unexpected",
        ),
        (
            generator() | {"model.1.bias": torch.tensor([1.0, float("nan")])},
            "model.1.bias contains values that are not finite",
        ),
        (
            generator() | {"model.1.weight": torch.ones(1).expand(2, 3, 7, 7)},
            "its tensors claim more bytes than the file contains",
        ),
        (
            generator() | {"model.1.bias": torch.ones(2, dtype=torch.int8)},
            "model.1.bias has the dtype int8, but weights must have one of float32",
        ),
        (
            generator() | {"model.1.bias": torch.ones(2, dtype=torch.complex64)},
            "model.1.bias has the dtype complex64",
        ),
        (generator() | {"model.1.bias": torch.ones(2).to_sparse()}, "model.1.bias is not a plain tensor"),
        (generator() | {"model.1.bias": torch.ones(2, device="meta")}, "model.1.bias is not a plain tensor"),
    ],
)
def test_rejects_unknown_contents(contents: Any, message: str) -> None:
    with pytest.raises(UnknownArchitectureError, match=message):
        find_networks(contents)


def test_attributes_of_a_file_do_not_hide_methods() -> None:
    """torch restores attributes of parameters and of dicts from a file, whatever their names are."""
    weights: Any = OrderedDict(
        (k, torch.nn.Parameter(v)) for k, v in Generator(ngf=2, n_blocks=1).state_dict().items()
    )
    weights.items = 5
    for name in ("dim", "numel", "element_size", "untyped_storage", "isfinite", "is_floating_point"):
        setattr(weights["model.1.weight"], name, 5)
    (network,) = find_networks({"G": weights})
    assert type(network.weights["model.1.weight"]) is Tensor
    assert network.architecture.name == "resnet_1blocks"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.complex64])
def test_weights_of_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    weights = {key: value.to(dtype) for key, value in Generator(ngf=2, n_blocks=1).state_dict().items()}
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(
        UnknownArchitectureError, match=f"has the dtype {kind}, but weights must have one of float32"
    ):
        find_networks(weights)


def test_handles_recursive_deeply_nested_and_repeated_contents() -> None:
    recursive: dict[str, Any] = {}
    recursive |= {str(i): [recursive] * 9 for i in range(50)}
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"in": deep}
    for contents in (recursive, deep):
        with pytest.raises(UnknownArchitectureError, match="without named tensors"):
            find_networks(contents)
    one: Any = generator()
    for _ in range(6):  # 10 ** 6 places, all with the same network
        one = [one] * 10
    with pytest.raises(UnknownArchitectureError, match="tensors, more than any known network has"):
        find_networks({"models": one})
    while deep:  # free it level by level, because Python would do so recursively
        deep = deep["in"]
