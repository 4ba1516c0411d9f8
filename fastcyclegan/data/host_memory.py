"""Find out how much memory there is.

Linux grants almost every allocation and kills the process once it uses more memory than there is, without a
message. Work that would need too much must therefore not be started.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import torch


def free_memory(device: torch.device) -> int:
    """Return the number of free bytes on ``device``, as reported by its driver or the operating system."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return total_memory()


def total_memory() -> int:
    """Return the number of bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int | None:
    """Return the bytes that this process can use before the kernel ends it, or None if this is not Linux."""
    if sys.platform != "linux":
        return None
    available = free_memory(torch.device("cpu")) + _free_swap()
    room = group_room(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    if room is None:
        return available
    return min(available, room)


def _free_swap() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("SwapFree:"):
                return int(line.split()[1]) * 1024
    return 0


def group_room(membership: Path, root: Path) -> int | None:
    """Return the bytes left within the memory limits of this process's control groups, or None.

    Containers have such limits. ``membership`` is /proc/self/cgroup, and ``root`` is where the groups are
    mounted, in version 1 or 2.
    """
    rooms: list[int] = []
    with contextlib.suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            names: tuple[str, str, str] | None = None
            if not controllers:
                top, names = root, ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                top = root / "memory"
                names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            if names is not None:
                group = top / path.lstrip("/")
                groups = [group, *group.parents]
                rooms += _rooms([one for one in groups if one.is_relative_to(top)], *names)
    return min(rooms, default=None)


def _rooms(groups: list[Path], limit: str, used: str, reclaimable: str) -> list[int]:
    """Return the bytes left in each of ``groups`` that has a limit. Cached files are given up for others."""
    rooms = []
    for group in groups:
        # Outer groups may be hidden from a container, and the value of a missing limit is "max".
        with contextlib.suppress(OSError, ValueError, KeyError):
            statistics: dict[str, Any] = dict(
                line.split() for line in (group / "memory.stat").read_text().splitlines()
            )
            cached = int(statistics[reclaimable])
            room = int((group / limit).read_text()) - int((group / used).read_text()) + cached
            rooms.append(max(room, 0))
    return rooms
