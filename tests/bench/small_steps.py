"""Training steps of small networks, which run quickly on a CPU."""

from __future__ import annotations

import pytest

from bench.cyclegan_baseline import cyclegan_config
from bench.parity import Judge
from bench.providers import PROVIDERS, TrainStep, Unavailable, train_step

SMALL = cyclegan_config(netG="resnet_1blocks", ngf=8, ndf=8)
UNCOMPILED = [name for name, provider in PROVIDERS.items() if provider.mode is None and not provider.strict]


def step_of(name: str, judge: Judge, fault: bool = False) -> TrainStep:
    try:
        return train_step(name, judge.nets, "cpu", judge.config, fault=fault)
    except Unavailable as reason:
        pytest.skip(str(reason))
