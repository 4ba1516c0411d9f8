"""Device memory of a captured iteration, with weight gradients on a separate stream or on the same one."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import pytest
import torch

from fastcyclegan.config import EngineConfig, LossConfig, ModelConfig
from fastcyclegan.kernels import _overlap
from fastcyclegan.testing import make_engine, seeded_networks
from tests.engine.test_cuda_graph import batches, train

SIZE = 256


def captured(overlap: Any) -> tuple[int, int, int]:
    """Capture an iteration and return three sizes in bytes.

    These are the peak memory that the capture added to the memory in use before it, the size of its memory
    pool, and the part of the pool that belongs to the side stream.
    """
    options = EngineConfig(graph="on", overlap=overlap)
    engine = make_engine(
        seeded_networks(ModelConfig()),
        LossConfig(pool_size=0),
        device="cuda",
        precision="bf16",
        options=options,
    )
    data = [
        dataclasses.replace(b, A=b.A.cuda(), B=b.B.cuda()) for b in batches(4, size=SIZE, dtype=torch.float32)
    ]
    train(engine, data[:3])
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    # Not max_memory_allocated, which counts memory whose release is delayed as free.
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    train(engine, data[3:])
    peak = torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    assert engine.graphs is not None
    assert engine.graphs.captured == 1
    weights = engine.streams.weight_gradients
    side_stream = weights.cuda_stream if weights is not None else None
    segments = [
        s
        for s in torch.cuda.memory_snapshot()
        if tuple(s["segment_pool_id"]) == tuple(engine.graphs._capture._pool)
    ]
    side_bytes = sum(s["total_size"] for s in segments if s["stream"] == side_stream)
    return peak, sum(s["total_size"] for s in segments), side_bytes


@pytest.mark.gpu
def test_overlapping_stays_within_its_memory_bound() -> None:
    """Overlapping weight gradients keeps only a limited amount of memory alive.

    The weight gradients of a generator read more than 500 MB in an iteration (nine blocks of 36 MB, then of
    18). Without a limit, all of this was kept alive.
    """
    one_stream, pool_of_one, _ = captured("off")
    gc.collect()
    torch.cuda.empty_cache()
    two_streams, pool_of_two, side_bytes = captured("wgrad")
    held = _overlap.most_held()
    assert 0 < held <= _overlap.MAX_BYTES
    # At every point, memory use is that of one stream, plus the tensors that are kept alive, plus the memory
    # for the side stream's own work.
    assert two_streams <= one_stream + held + side_bytes
    # Tensors that are kept alive are freed later and leave gaps elsewhere, so as much memory again may be
    # needed to fit them.
    assert pool_of_two <= pool_of_one + 2 * _overlap.MAX_BYTES + side_bytes
