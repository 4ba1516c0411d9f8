"""Locate folders for files that outlive a process: the cache folder and a temporary folder.

Imports only the standard library.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def user_number() -> int:
    """Return the number of the user whose permissions this process has; 0 on Windows, which has none."""
    return 0 if sys.platform == "win32" else os.geteuid()


def temporary_folder(name: str) -> Path:
    """Return the folder ``name`` in this user's temporary folder. It may not exist yet."""
    # One folder per user. Its name has a hyphen, so that Python cannot import it instead of the package.
    return Path(tempfile.gettempdir()) / f"fastcyclegan-{user_number()}" / name


def ensure_triton_home() -> None:
    """Give Triton a folder for its cache if this user has no home directory.

    Triton would make a folder of the name "~" in the working folder.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ.setdefault("TRITON_HOME", str(temporary_folder("triton")))


def cache_folder(name: str = "") -> Path:
    """Return the folder ``name`` in ``$XDG_CACHE_HOME/fastcyclegan``, or that folder itself for "".

    It may not exist yet. ``$XDG_CACHE_HOME`` defaults to ~/.cache. The specification of such variables says
    to ignore a relative path.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        if not base.is_absolute():
            base = Path.home() / ".cache"
    except RuntimeError:
        # Containers may run as a user without a home directory.
        return temporary_folder(name)
    return base.absolute() / "fastcyclegan" / name
