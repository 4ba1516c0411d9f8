"""Tests of the memory estimate: its agreement with the real need, limits of containers, and what fits."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastcyclegan.inference import memory
from fastcyclegan.inference.memory import Budget, budget_of, bytes_of_forms, bytes_per_pixel
from fastcyclegan.inference.translator import Translator
from fastcyclegan.nn.networks import Generator, UnetGenerator

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("net", "side", "expected"),
    [
        # The first norm: its input of 64 channels, its output, a copy of the input in NCHW, and the image.
        (Generator(n_blocks=1), 64, 3 * 64 * 4 + 12),
        (Generator(n_blocks=1, impl="triton"), 64, 3 * 64 * 4 + 12),
        # Batch norm copies nothing, so the last padding is the peak: 64 channels, and the same padded.
        (Generator(n_blocks=1, norm="batch"), 64, 64 * 4 * (1 + (70 / 64) ** 2) + 12),
        # The last upsampling: 128 channels at half the size, 8 times that for the resized input, and 64
        # channels at the full size.
        (Generator(n_blocks=0, upsample="resize"), 64, (9 * 128 / 4 + 64) * 4 + 12),
        # The first blur: 128 channels, the same padded, the result at half the size, and the image.
        (Generator(n_blocks=0, norm="none", downsample="antialias"), 64, (2 + 1 / 4) * 128 * 4 + 12),
        # The last upsampling: 128 channels at half the size, twice because of the layout, the image, and the
        # result; and the output of the first layer, which the skip keeps.
        (UnetGenerator(num_downs=5), 64, (2 * 128 / 4 + 3 + 3) * 4),
    ],
    ids=["resnet", "resnet with kernels", "batch norm", "resize", "antialias", "unet"],
)
def test_the_largest_layers_determine_the_need(net: nn.Module, side: int, expected: float) -> None:
    """Networks with few blocks need as much as those with many, because the largest layers are the outer."""
    net = Translator(net.eval(), CPU, "fp32").net
    assert bytes_per_pixel(net, 3, side) == pytest.approx(expected, rel=0.05)
    assert not any(module._forward_hooks for module in net.modules())


REAL = """
import ctypes, sys, threading
from pathlib import Path
import torch
from fastcyclegan.inference.memory import Budget
from fastcyclegan.inference.translator import Translator
from fastcyclegan.nn.networks import Generator, UnetGenerator

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

torch.set_num_threads(1)
for net in (Generator(ngf=8, n_blocks=1), UnetGenerator(ngf=8, num_downs=5)):
    translator = Translator(net.eval(), torch.device("cpu"), "fp32")
    needed = Budget(translator).needed(2, 1024, 1024)
    images = [torch.zeros(1024, 1024, 3, dtype=torch.uint8) for _ in range(2)]
    translator([torch.zeros(64, 64, 3, dtype=torch.uint8)])
    ctypes.CDLL(None).malloc_trim(0)
    before = kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    translator(images)
    print((kilobytes("VmHWM") - before) * 1024 / needed)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_the_estimate_agrees_with_the_real_need() -> None:
    """The real need is at most the estimate and, because that adds up to 128 MiB, not much less than half."""
    process = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, check=True)
    for share in map(float, process.stdout.split()):
        assert 0.45 < share <= 1


def test_fewer_images_are_translated_at_once_if_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(Translator(Generator(ngf=2, n_blocks=0).eval(), CPU, "fp32"))
    for available, count in ((None, 8), (2**50, 8), (budget.needed(3, 64, 64), 3)):
        monkeypatch.setattr(memory, "available_memory", lambda available=available: available)
        assert budget.count(8, 64, 64) == count
    monkeypatch.setattr(memory, "available_memory", lambda: budget.needed(1, 64, 64) - 1)
    assert budget.count(8, 64, 64) == 0
    assert budget.count(8, 32, 32) > 0
    assert budget.describe(64, 64) == "it needs about 0.6 MiB, and 0.6 MiB are free"
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    assert budget.describe(64, 64) == "it needs about 0.6 MiB"


def test_forms_of_the_weights_count_once() -> None:
    """The forms of 9 blocks need 4 + 1 times their weights."""
    net = Generator()
    blocks = sum(p.nbytes for name, p in net.named_parameters() if "conv_block" in name and p.dim() == 4)
    assert 5 * blocks < bytes_of_forms(net) < 5.5 * blocks
    assert bytes_of_forms(Generator(impl="reference")) == bytes_of_forms(nn.Conv2d(3, 3, 3)) == 0
    translator = Translator(Generator(ngf=2, n_blocks=0).eval(), CPU, "fp32")
    budget = Budget(translator)
    before = budget.needed(1, 64, 64)
    translator([torch.zeros(8, 8, 3, dtype=torch.uint8)])
    assert budget.needed(1, 64, 64) == before - bytes_of_forms(translator.net)
    translator.engine.release()
    assert budget.needed(1, 64, 64) == before


def test_most_work_needs_no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 2**34)
    monkeypatch.setattr(memory, "bytes_per_pixel", lambda *_: pytest.fail("the network is tried out"))
    assert Budget(Translator(Generator(ngf=2, n_blocks=0).eval(), CPU, "fp32")).count(8, 256, 256) == 8


def test_only_the_memory_of_the_host_is_estimated() -> None:
    translator = Translator(Generator(ngf=2, n_blocks=0).eval(), CPU, "fp32")
    assert budget_of(translator) is not None
    translator.device = torch.device("cuda")
    assert budget_of(translator) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_limit_of_the_address_space_is_named_but_refuses_nothing() -> None:
    code = """if True:
        import resource
        from pathlib import Path
        import torch
        from fastcyclegan.inference.memory import Budget
        from fastcyclegan.inference.translator import Translator
        from fastcyclegan.nn.networks import Generator
        budget = Budget(Translator(Generator(ngf=2, n_blocks=0).eval(), torch.device("cpu"), "fp32"))
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**29,) * 2)
        print(budget.count(1, 4096, 4096), budget.describe(64, 64))
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, text = ended.stdout.split(" ", 1)
    assert re.fullmatch(r"it needs about 0\.6 MiB, and (4[89]|5[01])\d\.\d MiB are free\n", text)
    assert count == "1"
