"""Tests of which modules are skipped or not fused, and of the reasons that the report gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

from fastcyclegan.fusion.accelerate import accelerate
from fastcyclegan.nn.networks import Generator
from tests.fusion.networks import PAD, assert_identical, reasons_by_path, replaced_kinds


class MyNorm(nn.InstanceNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class MyRelu(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return x


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda m, args, out: 2 * out)
    return module


def with_replaced_forward(module: nn.Module) -> nn.Module:
    module.forward = lambda x: x  # type: ignore[method-assign]
    return module


def conv(**options: object) -> nn.Conv2d:
    return nn.Conv2d(4, 4, **{"kernel_size": 3, **options})  # type: ignore[arg-type]


NOT_FUSED: list[tuple[Callable[[], list[nn.Module]], dict[str, str]]] = [
    (
        lambda: [nn.InstanceNorm2d(4, track_running_stats=True), nn.ReLU()],
        {"0": "it tracks running statistics"},
    ),
    (lambda: [MyNorm(4), nn.ReLU()], {"0": "it is a subclass of a torch.nn layer"}),
    (lambda: [hooked(nn.InstanceNorm2d(4)), nn.ReLU()], {"0": "it has hooks"}),
    (
        lambda: [with_replaced_forward(nn.InstanceNorm2d(4)), nn.ReLU()],
        {"0": "its forward was replaced on the instance"},
    ),
    (
        lambda: [nn.InstanceNorm2d(4), MyRelu()],
        {"0": "the MyRelu after it cannot be fused: it is a subclass of a torch.nn layer"},
    ),
    (
        lambda: [nn.InstanceNorm2d(4), hooked(nn.ReLU())],
        {"0": "the ReLU after it cannot be fused: it has hooks"},
    ),
    (lambda: [nn.InstanceNorm2d(4), nn.PReLU()], {"0": "PReLU comes after it"}),
    (lambda: [nn.InstanceNorm2d(4)], {"0": "its output is returned by the Sequential"}),
    (lambda: [PAD(1), conv(stride=2)], {"0": "the Conv2d after it cannot be fused: it has stride=(2, 2)"}),
    (
        lambda: [PAD(1), conv(dilation=2)],
        {"0": "the Conv2d after it cannot be fused: it has dilation=(2, 2)"},
    ),
    (lambda: [PAD(1), conv(groups=2)], {"0": "the Conv2d after it cannot be fused: it has groups=2"}),
    (
        lambda: [PAD(1), conv(kernel_size=2)],
        {"0": "the Conv2d after it cannot be fused: its kernel_size is even: (2, 2)"},
    ),
    (
        lambda: [PAD(1), conv(kernel_size=(3, 1))],
        {"0": "the Conv2d after it cannot be fused: it has kernel_size=(3, 1)"},
    ),
    (
        lambda: [PAD(1), conv(padding=1)],
        {"0": "the Conv2d after it cannot be fused: it has its own padding: (1, 1)"},
    ),
    (lambda: [PAD((1, 1, 1, 2)), conv()], {"0": "its padding is not the same on all sides: (1, 1, 1, 2)"}),
    (lambda: [hooked(PAD(1)), conv()], {"0": "it has hooks"}),
    (lambda: [PAD(1), hooked(conv())], {"0": "the Conv2d after it cannot be fused: it has hooks"}),
    (lambda: [PAD(1), spectral_norm(conv())], {"0": "the Conv2d after it cannot be fused: it has hooks"}),
    (
        lambda: [PAD(1), parametrizations.weight_norm(conv())],
        {"0": "the ParametrizedConv2d after it cannot be fused: it has a parametrization"},
    ),
    (lambda: [PAD(1), nn.ReLU(), conv()], {"0": "ReLU comes after it"}),
    (lambda: [conv(padding=1, padding_mode="reflect", stride=2)], {"0": "it has stride=(2, 2)"}),
    (
        lambda: [conv(padding=(1, 0), padding_mode="reflect")],
        {"0": "its padding is not the same on all sides: (1, 0)"},
    ),
    (lambda: [conv(padding=1, padding_mode="circular")], {}),
]


@pytest.mark.parametrize(
    ("build", "reasons"),
    NOT_FUSED,
    ids=lambda value: next(iter(value.values()), "") if isinstance(value, dict) else "",
)
def test_reasons_for_not_fusing(build: Callable[[], list[nn.Module]], reasons: dict[str, str]) -> None:
    """The report gives the expected reasons, nothing is fused, and results are bit-identical."""
    torch.manual_seed(0)
    net = nn.Sequential(*build())
    torch.manual_seed(0)
    plain = nn.Sequential(*build())
    report = accelerate(net)
    assert reasons_by_path(report) == reasons
    assert not any("+" in kind for kind in replaced_kinds(report).values())
    assert_identical(net, plain, torch.randn(2, 4, 6, 7))


def test_lazy_norms_are_skipped_until_initialised() -> None:
    net = nn.Sequential(nn.LazyInstanceNorm2d(track_running_stats=False), nn.ReLU())
    assert reasons_by_path(accelerate(net))["0"] == "it is lazy: run the network once first"
    net(torch.randn(1, 3, 4, 4))
    assert replaced_kinds(accelerate(net)) == {"0": "InstanceNorm2d + ReLU"}


def test_our_own_networks_are_skipped() -> None:
    """``accelerate`` skips our own networks, whose chains already fuse more."""
    report = accelerate(Generator(ngf=4, n_blocks=1))
    assert not report.replaced
    assert {"it is a subclass of a torch.nn layer"} == {
        entry.why for entry in report.left if "Norm" in entry.what
    }
