"""Count the launches, calls and bytes of a training step, a translation and each network, without a GPU.

The work of the step's layers is calculated as well. The times of these rows cover only the counting and are
meaningless; the results are the counts in the other columns. Images are 256x256 on both CPU and GPU.
"""

from __future__ import annotations

import pytest

from bench.counts import (
    info_of,
    pix2pix_step_counts,
    pix2pix_translation_counts,
    step_counts,
    translation_counts,
)
from bench.step_work import step_work
from bench.timing import Builders, Entrant, Race, builders_of, clock
from fastcyclegan.devtools.dry_run import DTYPES, NETWORKS, VARIANTS, count_network

# With and without the identity loss. A larger batch has the same counts, and proportionally more bytes.
SETTINGS = [
    pytest.param(True, marks=pytest.mark.telling(3)),
    pytest.param(False, marks=pytest.mark.telling(4)),
]
# For each provider, the training step that is counted and its precision.
PROVIDERS = {
    "official": ("official", "fp32"),
    "official_bf16": ("official_bf16", "bf16"),
    "ours, fp32": ("ours", "fp32"),
    "ours, bf16": ("ours", "bf16"),
}
# The same for translations of one image.
TRANSLATIONS = {
    "official": ("official", "fp32"),
    "official_bf16": ("official", "bf16"),
    "ours, fp32": ("ours", "fp32"),
    "ours, bf16": ("ours", "bf16"),
    "engine, bf16, first image of a size": ("uncaptured", "bf16"),
    "engine, bf16, CUDA graph": ("captured", "bf16"),
}

pytestmark = [pytest.mark.benchmark(timer=clock, warmup=False), pytest.mark.cost(cpu=15, cuda=15)]


def make_builders(size: int, identity: bool, blocks: int) -> Builders:
    def build(provider: str) -> Entrant:
        name, precision = PROVIDERS[provider]
        counts = step_counts(name, size, 1, blocks, identity, precision)
        work = step_work(size, 1, blocks, identity, precision)
        info = {
            **info_of(counts),
            "precision": precision,
            "size": size,
            "batch": 1,
            "identity": identity,
            "step_flops": sum(w.calls * w.flops for w in work),
            "least_bytes": sum(w.calls * w.bytes for w in work),
            "by_layer": [[w.layer, w.phase, w.calls, w.flops, w.bytes] for w in work],
        }
        return Entrant(lambda: None, info=info, cold=True)

    return builders_of(PROVIDERS, build)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("identity", SETTINGS)
def bench_counts(race: Race, quick: bool, identity: bool, provider: str) -> None:
    size, blocks, loss = 256, 9, "off"
    if quick:
        size, blocks = 32, 1
    if identity:
        loss = "on"
    networks = f"{blocks} blocks, ngf 64"
    group = f"counts of a training iteration, {size}x{size}, batch 1, identity {loss}, {networks}"
    race(group, make_builders(size, identity, blocks), rounds=1)


def counted_translation(provider: str, size: int, blocks: int) -> Entrant:
    name, precision = TRANSLATIONS[provider]
    counts = translation_counts(name, precision, size, 1, blocks)
    info = {**info_of(counts), "precision": precision, "translation": True}
    return Entrant(lambda: None, info=info, cold=True)


@pytest.mark.telling(4)
@pytest.mark.parametrize("provider", TRANSLATIONS)
def bench_translation_counts(race: Race, quick: bool, provider: str) -> None:
    size, blocks = 256, 9
    if quick:
        size, blocks = 32, 1
    group = f"counts of a translation, {size}x{size}, batch 1, {blocks} blocks, ngf 64"
    race(group, builders_of(TRANSLATIONS, lambda p: counted_translation(p, size, blocks)), rounds=1)


def pix2pix_sizes(quick: bool) -> tuple[int, dict[str, int]]:
    """Return the size of the images, and the width of the networks if it is not the default one."""
    return (32, {"ngf": 8, "ndf": 8}) if quick else (256, {})


def counted_pix2pix(provider: str, size: int, norm: str, width: dict[str, int]) -> Entrant:
    name, precision = PROVIDERS[provider]
    info = info_of(pix2pix_step_counts(name, size, norm, precision, **width))
    info |= {"precision": precision, "size": size, "batch": 1, "recipe": "pix2pix", "norm": norm}
    return Entrant(lambda: None, info=info, cold=True)


@pytest.mark.telling(4)
@pytest.mark.cost(cpu=30, cuda=15)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("norm", ["batch", "instance"])
def bench_pix2pix_counts(race: Race, quick: bool, norm: str, provider: str) -> None:
    size, width = pix2pix_sizes(quick)
    group = f"counts of a training iteration of pix2pix, {size}x{size}, batch 1, unet_{size}, {norm} norm"
    race(group, builders_of(PROVIDERS, lambda p: counted_pix2pix(p, size, norm, width)), rounds=1)


def counted_pix2pix_translation(provider: str, size: int, norm: str, width: dict[str, int]) -> Entrant:
    name, precision = TRANSLATIONS[provider]
    counts = pix2pix_translation_counts(name, precision, size, norm, **width)
    info = {**info_of(counts), "precision": precision, "recipe": "pix2pix", "translation": True}
    return Entrant(lambda: None, info=info, cold=True)


@pytest.mark.telling(4)
@pytest.mark.parametrize("provider", TRANSLATIONS)
@pytest.mark.parametrize("norm", ["batch", "instance"])
def bench_pix2pix_translation_counts(race: Race, quick: bool, norm: str, provider: str) -> None:
    size, width = pix2pix_sizes(quick)
    group = f"counts of a translation by pix2pix, {size}x{size}, batch 1, unet_{size}, {norm} norm"
    builders = builders_of(TRANSLATIONS, lambda p: counted_pix2pix_translation(p, size, norm, width))
    race(group, builders, rounds=1)


def counted_network(network: str, precision: str, variant: str) -> Entrant:
    info = {**info_of(count_network(network, variant, precision)), "network": network, "precision": precision}
    return Entrant(lambda: None, info=info, cold=True)


@pytest.mark.telling(4)
@pytest.mark.cost(cpu=5, cuda=5)
@pytest.mark.parametrize("provider", VARIANTS)
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("network", NETWORKS)
def bench_network_counts(race: Race, network: str, precision: str, provider: str) -> None:
    group = f"counts of a forward and backward pass, {network}, 256x256, batch 1, {precision}"
    race(group, builders_of(VARIANTS, lambda v: counted_network(network, precision, v)), rounds=1)
