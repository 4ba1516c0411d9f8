"""Harmless objects beside weights are read as plain values, and nothing that a file does with them runs code.

The hostile files are pickles written by hand, because Python would not write them.
"""

from __future__ import annotations

import argparse
import datetime
import pickle
import threading
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch

from fastcyclegan.errors import UserError
from fastcyclegan.files.harmless import NAMES, DType, Fields, NumpyType, RefusedError, harmless_objects
from fastcyclegan.tensor_files import load_tensors

UTC = datetime.UTC
NOW = datetime.datetime(2024, 2, 29, 23, 59, 58, 7, UTC)
SAME = [
    *(NOW, NOW.replace(tzinfo=None), NOW.date(), NOW.timetz(), datetime.timedelta(-3, 5, 7), UTC),
    datetime.timezone(datetime.timedelta(hours=2), "here"),
    *(torch.Size([2, 3]), torch.device("cuda", 1), torch.bfloat16, torch.float8_e4m3fn),
    OrderedDict(a=1),
]
NUMBERS = [
    *(np.bool_(True), np.int8(-5), np.uint16(65535), np.int64(-(2**62)), np.uint64(2**64 - 1)),
    *(np.float16(0.5), np.float32(0.1), np.float64(-1e300), np.complex64(1 - 2j), np.complex128(3j)),
    *(np.str_("año 𝄞"), np.bytes_(b"\x00\xffx"), np.array([258], ">i2")[0]),
]


def loaded(folder: Path, value: Any, zipped: bool = True) -> Any:
    torch.save(value, folder / "x.pth", _use_new_zipfile_serialization=zipped)
    return load_tensors(folder / "x.pth")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_harmless_objects_are_read_as_plain_values(tmp_path: Path, zipped: bool) -> None:
    options = argparse.Namespace(lr=0.1, out=Path("runs/a"), inner=types.SimpleNamespace(n=np.int64(3)))
    contents = {"w": torch.arange(3.0), "args": options, "same": SAME, "numbers": NUMBERS}
    contents["paths"] = [PurePosixPath("/a/b"), PureWindowsPath("C:\\a\\b")]
    result = loaded(tmp_path, contents, zipped)
    assert torch.equal(result["w"], contents["w"])
    assert result["same"] == SAME
    assert result["paths"] == contents["paths"]
    assert result["args"].entries["lr"] == 0.1
    assert result["args"].entries["out"] == PurePosixPath("runs/a")
    assert result["args"].entries["inner"].entries == {"n": 3}
    for value, expected in zip(result["numbers"], NUMBERS, strict=True):
        assert type(value) is type(expected.item())
        assert value == expected.item()


def test_dtypes_and_types_of_numpy_keep_their_names(tmp_path: Path) -> None:
    written = [np.dtype("float32"), np.dtype(">i2"), np.dtype("U7"), np.float32, np.dtypes.Float64DType]
    short, swapped, text, *types_read = loaded(tmp_path, written)
    assert [(d.name, d.order, d.size) for d in (short, swapped, text)] == [
        ("f4", "<", 4),
        ("i2", ">", 2),
        ("U7", "<", 28),
    ]
    assert types_read == [NumpyType("numpy.float32"), NumpyType("numpy.dtypes.Float64DType")]


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_both_numpys_and_all_pythons_are_read(tmp_path: Path, module: str) -> None:
    """Names that this Python or this NumPy would not write, and a path of another system."""
    dtype = b"cnumpy\ndtype\n(X\x02\x00\x00\x00i8I00\nI01\ntR".replace(b"I00\n", b"\x89").replace(
        b"I01\n", b"\x88"
    )
    state = b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    data = b"c_codecs\nencode\n(X\x08\x00\x00\x00\x05" + bytes(7) + b"X\x06\x00\x00\x00latin1tR"
    number = b"c" + module.encode() + b"\nscalar\n" + dtype + state + data + b"\x86R"
    path = b"cpathlib._local\nWindowsPath\nX\x03\x00\x00\x00C:\\X\x01\x00\x00\x00a\x86R"
    assert read(tmp_path, number + path + b"\x86") == (5, PureWindowsPath("C:\\a"))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.longdouble(1), r"a NumPy dtype that is not one of plain values \(f16\)"),
        (np.datetime64("2024-02-29"), r"a NumPy dtype that is not one of plain values \(M8\)"),
        (np.dtype("O"), r"a NumPy dtype that is not one of plain values \(O8\)"),
        (np.dtype([("a", "f4")]), r"a NumPy dtype that is not one of plain values \(V4\)"),
        (
            np.zeros(2),
            r"objects other than tensors \(numpy\.\w+\.multiarray\._reconstruct\), which",
        ),
        ({"a": np.int64(1), "b": object()}, r"objects other than tensors \(object\), which could run code"),
        ([argparse.Action([], "a")], r"objects other than tensors \(argparse.Action\), which could run code"),
        ([argparse.Namespace(), threading.Thread], r"objects other than tensors \(threading.Thread\), which"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_all_else_is_refused_by_its_name(tmp_path: Path, value: Any, found: str) -> None:
    with pytest.raises(UserError, match=rf"x.pth: cannot be loaded: it contains {found}.*; save only the"):
        loaded(tmp_path, value)


# --- Hostile files ------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def pickled(value: Any) -> bytes:
    """Return the pickle of a plain value, as part of another."""
    return pickle.dumps(value, 2)[2:-1]


def read(folder: Path, operations: bytes) -> Any:
    """Read the file of the older format whose contents are what ``operations`` leave."""
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
    (folder / "x.pth").write_bytes(head + b"\x80\x02" + operations + b"." + pickle.dumps([], 2))
    return load_tensors(folder / "x.pth")


def listed(operations: bytes) -> bytes:
    """Return operations that leave a list of all that ``operations`` leave."""
    return b"](" + operations + b"e"


NAMESPACE, DTYPE = b"cargparse\nNamespace\n", b"cnumpy\ndtype\n"
SCALAR = b"cnumpy._core.multiarray\nscalar\n"
PATH = b"cpathlib\nPosixPath\n"
DAMAGED = "it is damaged, or not a PyTorch file"
OF_F8 = DTYPE + pickled(("f8",)) + b"R"
HOSTILE: list[tuple[str, bytes, str]] = [
    ("fields without names", NAMESPACE + b")\x81" + pickled({1: 2}) + b"b", "a namespace whose fields"),
    ("slots beside a state", NAMESPACE + b")\x81" + pickled((None, {"entries": 1})) + b"b", "a namespace"),
    ("a state that is no dict", NAMESPACE + b")\x81" + pickled([1]) + b"b", "a namespace whose fields"),
    ("arguments of a namespace", NAMESPACE + pickled(({},)) + b"R", DAMAGED),
    ("a state for a class", NAMESPACE + pickled({"__new__": 1}) + b"b", DAMAGED),
    ("a state for a function", PATH + pickled({"__code__": 1}) + b"b", DAMAGED),
    ("a state for a path", PATH + pickled(("a",)) + b"R" + pickled((None, {"_str": 1})) + b"b", DAMAGED),
    ("an object of a function", PATH + pickled(("a",)) + b"\x81", DAMAGED),
    ("an object of a function that reads", SCALAR + pickled(("a",)) + b"\x81", DAMAGED),
    ("a call of a type's name", b"cnumpy\nfloat32\n" + pickled(("a",)) + b"R", DAMAGED),
    ("a call of an object", NAMESPACE + b")\x81)R", DAMAGED),
    ("a path of numbers", PATH + pickled((1,)) + b"R", "a path whose parts are not text"),
    ("a dtype by its class", DTYPE + b"cnumpy\nfloat32\n\x85R", "a NumPy dtype that is not one of plain"),
    ("a dtype of fields", OF_F8 + pickled((3, "|", None, ("a",), {}, 8, 1, 0)) + b"b", "a NumPy dtype that"),
    ("a dtype with slots", OF_F8 + pickled((None, {"name": "O8"})) + b"b", "a NumPy dtype that is not one"),
    ("a huge dtype", DTYPE + pickled(("U99999999",)) + b"R", r"a NumPy dtype that.*\(U99999999\)"),
    ("a scalar of an object", SCALAR + OF_F8 + pickled([]) + b"\x86R", "a NumPy scalar that is not a plain"),
    ("a scalar with too few bytes", SCALAR + OF_F8 + b"cbuiltins\nbytearray\n)R\x86R", "a NumPy scalar that"),
    (
        "a scalar without a dtype",
        SCALAR + pickled(("f8", 1)) + b"R",
        "a NumPy scalar that is not a plain one",
    ),
    ("a date far away", b"cdatetime\ntimedelta\n" + pickled((10**600,)) + b"R", DAMAGED),
    ("an unpickler", b"cpickle\nloads\n" + pickled(("",)) + b"R", r"other than tensors \(pickle.loads\)"),
    ("an attribute of ours", b"cargparse\nNamespace.__init__\n", r"\(argparse.Namespace.__init__\)"),
]


@pytest.mark.parametrize(("reason", "operations", "message"), HOSTILE, ids=[row[0] for row in HOSTILE])
def test_hostile_files_are_refused(tmp_path: Path, reason: str, operations: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, listed(NAMESPACE + operations))  # the first name makes it a file with harmless objects
    assert "\n" not in str(error.value)


def test_a_state_only_fills_the_fields(tmp_path: Path) -> None:
    """Names with a meaning in Python are entries like all others, also for a second state."""
    names = ["__class__", "__setstate__", "__dict__", "entries", "__del__", "__reduce__"]
    state = pickled(dict.fromkeys(names, 1))
    fields = read(tmp_path, NAMESPACE + b")\x81" + state + b"b" + pickled({"more": 2}) + b"b")
    assert type(fields) is Fields
    assert fields.entries == {**dict.fromkeys(names, 1), "more": 2}
    assert not hasattr(fields, "__dict__")


REPEATED: list[tuple[str, bytes, bytes]] = [
    # (what, operations that create the large part, operations that use it once)
    ("a path", pickled(("x" * 9999,)) + b"q\x01", PATH + b"h\x01R"),
    ("parts of a path", pickled(("x",) * 4999) + b"q\x01", PATH + b"h\x01R"),
    ("a namespace", pickled({str(n): n for n in range(9999)}) + b"q\x01", NAMESPACE + b")\x81h\x01b"),
    (
        "a text",
        b"(" + DTYPE + pickled(("U2500",)) + b"Rc_codecs\nencode\n"
        + text("x\0\0\0" * 2500) + text("latin1") + b"\x86Rtq\x01",
        SCALAR + b"h\x01R",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "large", "use"), REPEATED, ids=[row[0] for row in REPEATED])
def test_what_is_copied_again_and_again_is_limited(
    tmp_path: Path, reason: str, large: bytes, use: bytes
) -> None:
    few = read(tmp_path, listed(large + use * 20))
    assert len(few) == 21
    with pytest.raises(UserError, match="far more text than any real file has beside its weights"):
        read(tmp_path, listed(large + use * 200))
    assert len(read(tmp_path, listed(large + use * 90))) == 91  # each file begins anew


# --- The list of torch, which is that of the whole process --------------------------------------------------


def globals_now() -> set[Any]:
    return set(torch.serialization.get_safe_globals())


def test_the_list_is_as_before_after_every_file(tmp_path: Path) -> None:
    before = globals_now()
    loaded(tmp_path, np.int64(1))
    with pytest.raises(UserError):
        loaded(tmp_path, [np.int64(1), object()])
    assert globals_now() == before
    torch.save(argparse.Namespace(), tmp_path / "x.pth")
    with pytest.raises(pickle.UnpicklingError, match="Namespace was not an allowed global"):
        torch.load(tmp_path / "x.pth", weights_only=True)


def test_names_that_the_caller_allows_keep_their_meaning(tmp_path: Path) -> None:
    value = [argparse.Namespace(a=1), np.int64(2)]
    with torch.serialization.safe_globals([argparse.Namespace, (str, "never.used")]):
        before = globals_now()
        result = loaded(tmp_path, value)
        assert globals_now() == before
    assert result == value
    assert type(result[0]) is argparse.Namespace
    assert type(loaded(tmp_path, value)[0]) is Fields


def in_another_thread(task: Callable[[], object]) -> Any:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(task())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    return results[0]


def test_other_threads_cannot_use_the_list(tmp_path: Path) -> None:
    for value in (argparse.Namespace(a=1), np.int64(1), Path("a"), NOW):
        torch.save(value, tmp_path / "x.pth")
        with harmless_objects():
            result = in_another_thread(lambda: torch.load(tmp_path / "x.pth", weights_only=True))
            assert isinstance(result, RefusedError)
            torch.load(tmp_path / "x.pth", weights_only=True)


def test_files_are_read_in_several_threads(tmp_path: Path) -> None:
    torch.save([np.int64(1), argparse.Namespace(a=1)], tmp_path / "x.pth")
    before = globals_now()
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(load_tensors(tmp_path / "x.pth"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(number, fields.entries) for number, fields in results] == [(1, {"a": 1})] * 8
    assert globals_now() == before


def test_stand_ins_work_only_while_a_file_is_read() -> None:
    with pytest.raises(RefusedError):
        Fields()
    with pytest.raises(RefusedError):
        DType("f8")
    assert "argparse.Namespace" in NAMES
