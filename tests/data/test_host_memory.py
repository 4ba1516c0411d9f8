"""Tests of the memory that there is: what the system reports, and the limits of containers."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from fastcyclegan.data.host_memory import available_memory, free_memory, group_room


def test_the_free_memory_is_that_of_the_system() -> None:
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50


def test_the_available_memory_is_that_of_the_system() -> None:
    available = available_memory()
    if sys.platform == "linux":
        assert available is not None
        assert 0 < available < 2**50
    else:
        assert available is None


def write_group(folder: Path, version: int, limit: str, used: str, stat: str) -> None:
    """Write the files that describe the memory of a control group."""
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip((*names[version], "memory.stat"), (limit, used, stat), strict=True):
        (folder / name).write_text(f"{text}\n")


def test_limits_of_control_groups_count(tmp_path: Path) -> None:
    """The least room of a group and those around it counts. Cached files are given up, so they are room."""
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    assert group_room(membership, root) is None
    membership.write_text("0::/outer/inner\n")
    assert group_room(membership, root) is None
    write_group(root / "outer" / "inner", 2, "max", "100", "anon 60\ninactive_file 40")
    assert group_room(membership, root) is None
    write_group(root / "outer", 2, "1000", "900", "anon 850\ninactive_file 50")
    assert group_room(membership, root) == 150
    write_group(root, 2, "500", "900", "inactive_file 50")
    assert group_room(membership, root) == 0
    membership.write_text("9:name=systemd:/\n4:cpu,memory:/job\n")
    write_group(root / "memory" / "job", 1, "700", "300", "total_inactive_file 10")
    assert group_room(membership, root) == 410
