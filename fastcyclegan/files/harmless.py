"""Read the harmless objects that people save beside weights, without running code from the file.

torch.load with weights_only refuses every object that is not on its list. Here that list is extended, while
one file is read, by NumPy's scalars and dtypes, namespaces, paths, dates and times. None of them is unpickled
as its class would do it: each name stands for a small constructor of this module, which checks what it is
given and returns a plain value. A NumPy scalar becomes a number or a text of Python, a namespace becomes
``Fields``, and a path becomes a pure path of its own system.

What a file does with these names was not written by us. Its unpickler calls them (REDUCE), creates objects
of them (NEWOBJ), and hands a state to such objects (BUILD). Therefore functions are used where possible,
which allow only calls; the two classes have no attributes beyond their slots, and check their state. A file
can also refer to one large text again and again, so what is copied is counted.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import torch

# The characters of texts, parts of paths and fields of namespaces that are copied for one file, at most. No
# real file has as many.
_MOST_COPIED = 1_000_000
_FORMATS = {
    **{"b1": "?", "i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q"},
    **{"f2": "e", "f4": "f", "f8": "d", "c8": "2f", "c16": "2d"},
}
"""The formats of struct for the dtypes of numbers, by the name that NumPy gives them in a file."""
_TEXT = re.compile(r"[SU][0-9]{1,7}")
# The names of NumPy's types, and of the classes of its dtypes, which a file can have as values.
_SCALARS = (
    "bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64"
    " complex128 str_ bytes_ intc uintc long ulong longlong ulonglong"
)
_DTYPES = (
    "Bool Int8 Int16 Int32 Int64 UInt8 UInt16 UInt32 UInt64 Float16 Float32 Float64 Complex64 Complex128 Str"
    " Bytes Byte UByte Short UShort Int UInt Long ULong LongLong ULongLong"
)


class RefusedError(ValueError):
    """An object of a file is not harmless. The message is a short name for it."""


@dataclass
class _Reading:
    """The file that is being read: by which thread, and how much more may be copied for it."""

    thread: int
    left: int = _MOST_COPIED


READING = threading.RLock()
"""Hold it while torch reads a file, so that another thread's ``harmless_objects`` has no effect on that."""
_reading: _Reading | None = None


def _count(count: int = 0) -> None:
    """Count what is copied for the file that is being read.

    Raises RefusedError if that is too much, and in other threads than the one that reads with
    ``harmless_objects``: torch's list is that of the whole process.
    """
    reading = _reading
    if reading is None or reading.thread != threading.get_ident():
        raise RefusedError("an object that only fastcyclegan reads")
    reading.left -= count
    if reading.left < 0:
        raise RefusedError("far more text than any real file has beside its weights")


# --- What the names in a file stand for ---------------------------------------------------------------------


class Fields:
    """The fields of an argparse.Namespace or a types.SimpleNamespace, in ``entries``."""

    __slots__ = ("entries",)
    entries: dict[str, Any]

    def __new__(cls) -> Fields:
        _count()
        fields = super().__new__(cls)
        fields.entries = {}
        return fields

    def __setstate__(self, state: object) -> None:
        if type(state) is not dict or any(type(name) is not str for name in state):
            raise RefusedError("a namespace whose fields have no names")
        _count(len(state))
        self.entries.update(state)

    def __len__(self) -> int:
        return len(self.entries)


class DType:
    """A NumPy dtype of plain values.

    ``name`` is its kind and size, such as "f8". ``order`` is that of its bytes: "<", ">", or "|" for none.
    """

    __slots__ = ("name", "order")
    name: str
    order: str

    def __new__(cls, name: object, *options: object) -> DType:
        _count()
        if type(name) is not str or not (name in _FORMATS or _TEXT.fullmatch(name)):
            shown = f" ({name})" if type(name) is str and re.fullmatch(r"\w{1,20}", name) else ""
            raise RefusedError(f"a NumPy dtype that is not one of plain values{shown}")
        dtype = super().__new__(cls)
        dtype.name, dtype.order = name, "|"
        return dtype

    def __setstate__(self, state: object) -> None:
        # Version, order, then what it is made of (subarray, names, fields), size, alignment and flags.
        is_plain = type(state) is tuple and len(state) == 8 and state[2:5] == (None, None, None)
        if not is_plain or state[1] not in ("<", ">", "|"):  # type: ignore[index]
            raise RefusedError("a NumPy dtype that is not one of plain values")
        self.order = state[1]  # type: ignore[index]

    @property
    def size(self) -> int:
        """The bytes of one value."""
        if self.name in _FORMATS:
            return struct.calcsize("<" + _FORMATS[self.name])
        return int(self.name[1:]) * (4 if self.name[0] == "U" else 1)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class NumpyType:
    """A type of NumPy, where a file has the type itself."""

    name: str

    def __str__(self) -> str:
        return self.name


def _scalar(dtype: object, data: object) -> object:
    """Return the value of a NumPy scalar as Python's bool, int, float, complex, bytes or str."""
    _count()
    if type(dtype) is not DType or type(data) is not bytes or len(data) != dtype.size:
        raise RefusedError("a NumPy scalar that is not a plain one")
    order = ">" if dtype.order == ">" else "<"
    if dtype.name in _FORMATS:
        parts = struct.unpack(order + _FORMATS[dtype.name], data)
        return complex(*parts) if len(parts) == 2 else parts[0]
    _count(len(data))
    if dtype.name[0] == "S":
        return data.rstrip(b"\0")
    return data.decode("utf-32-le" if order == "<" else "utf-32-be").rstrip("\0")


def _path(kind: Callable[..., PurePath]) -> Callable[..., PurePath]:
    def build(*parts: object) -> PurePath:
        _count(sum(len(part) if type(part) is str else 0 for part in parts) + len(parts))
        if any(type(part) is not str for part in parts):
            raise RefusedError("a path whose parts are not text")
        return kind(*parts)

    return build


def _time(kind: Callable[..., object]) -> Callable[..., object]:
    """Return a constructor of ``kind``, a class of datetime. Its objects are small and never change."""

    def build(*arguments: object) -> object:
        _count()
        return kind(*arguments)

    return build


def _numpy() -> Iterator[tuple[Any, str]]:
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # NumPy 1, NumPy 2
        yield _scalar, f"{module}.scalar"
    yield DType, "numpy.dtype"
    types = [f"numpy.{name}" for name in _SCALARS.split()]
    types += [f"numpy.dtypes.{name}DType" for name in _DTYPES.split()]
    for name in types:
        yield NumpyType(name), name


def _others() -> Iterator[tuple[Any, str]]:
    yield Fields, "argparse.Namespace"
    yield Fields, "types.SimpleNamespace"
    posix, windows = _path(PurePosixPath), _path(PureWindowsPath)
    for module in ("pathlib", "pathlib._local"):  # the second is that of Python 3.13
        for name in ("PurePath", "Path", "PurePosixPath", "PosixPath"):
            yield posix, f"{module}.{name}"
        for name in ("PureWindowsPath", "WindowsPath"):
            yield windows, f"{module}.{name}"
    for kind in (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone):
        yield _time(kind), f"datetime.{kind.__name__}"


_ALLOWED = {name: stand_in for stand_in, name in (*_numpy(), *_others())}
NAMES = frozenset(_ALLOWED)
"""The full names in a file that ``harmless_objects`` reads, besides those that torch itself reads."""


# --- While a file is read -----------------------------------------------------------------------------------


def _allowed_by_the_caller() -> set[str]:
    """Return the names on torch's list, which has classes, and pairs of a class and its name."""
    names = set()
    for entry in torch.serialization.get_safe_globals():
        names.add(entry[1] if isinstance(entry, tuple) else f"{entry.__module__}.{entry.__qualname__}")
    return names


@contextlib.contextmanager
def harmless_objects() -> Iterator[None]:
    """Let torch.load, with weights_only and in this thread, read the objects in ``NAMES``.

    A name that the caller has allowed itself keeps its meaning.
    """
    global _reading
    with READING:
        others = _allowed_by_the_caller()
        mine: list[Any] = [(stand_in, name) for name, stand_in in _ALLOWED.items() if name not in others]
        _reading = _Reading(threading.get_ident())
        try:
            with torch.serialization.safe_globals(mine):
                yield
        finally:
            _reading = None
