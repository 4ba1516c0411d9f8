"""Keep the features of real images on disk, because they stay the same from one evaluation to the next.

A file is named after a digest of the images' bytes, how they are read, and the feature network, so it never
has to be invalidated. It can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcyclegan.errors import cannot_write
from fastcyclegan.kernels._cache import cache_folder
from fastcyclegan.tensor_files import remove_stale_partials, write_atomically

FOLDER = "statistics"


def cache_file(digest: str, protocol: Mapping[str, Any]) -> Path:
    """Return the file for the features of the images with ``digest``, by a network of ``protocol``."""
    key = hashlib.sha256(json.dumps([digest, dict(protocol)], sort_keys=True).encode()).hexdigest()
    return cache_folder(FOLDER) / f"{key}.npy"


def cached_features(
    file: Path, count: int, compute: Callable[[], Tensor], log: Callable[[str], object]
) -> Tensor:
    """Return the features [count, D] in ``file``, or compute them and write the file.

    ``log`` is called with a line if the file is damaged or cannot be written; neither loses anything.
    """
    if file.exists():
        features = _read(file, count)
        if features is not None:
            return features
        log(f"{file}: damaged, so the features of the real images are computed again")
    features = compute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_partials(file.parent)
        write_atomically(file, lambda partial: _save(partial, features))
    except OSError as error:
        log(f"{cannot_write(file, error)}; the features of the real images are not kept for the next time")
    return features


def _read(file: Path, count: int) -> Tensor | None:
    """Return the features in ``file``, or None if it is damaged."""
    try:
        with file.open("rb") as stream:
            values = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception:  # numpy raises almost anything on damaged bytes
        return None
    is_whole = values.dtype == np.float32 and values.ndim == 2 and len(values) == count
    return torch.from_numpy(values) if is_whole and np.isfinite(values).all() else None


def _save(partial: Path, features: Tensor) -> None:
    values = np.ascontiguousarray(features.numpy())
    with partial.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(values))
        stream.write(values.data)  # unlike np.save, this raises the reason if the disk is full
