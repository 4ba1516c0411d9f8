"""Where the package keeps files from one process to the next. Imports nothing but the standard library."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def temporary_folder(name: str) -> Path:
    """Return the folder ``name`` among the temporary files of this user, which need not exist yet."""
    # One a user, and none that Python could take for the package.
    return Path(tempfile.gettempdir()) / f"fastcyclegan-{os.getuid()}" / name


def cache_folder(name: str) -> Path:
    """Return the folder ``name`` in ``$XDG_CACHE_HOME/fastcyclegan`` (default ~/.cache), which need not exist
    yet.
    """
    configured = os.environ.get("XDG_CACHE_HOME")
    try:
        base = Path(configured) if configured else Path.home() / ".cache"
    except RuntimeError:
        # A user without a home, as containers have them.
        return temporary_folder(name)
    return base.absolute() / "fastcyclegan" / name
