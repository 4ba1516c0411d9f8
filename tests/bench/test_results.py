"""Reports on bench results.

They include speed-ups, tables, a spreadsheet, plots, and a comparison with older results. The sections of
pages have their own tests in ``test_page_sections.py``.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.figures import Row, Spread, anchor_of, lines_of, read_results, share_of_ceiling, speed_up
from bench.result_tables import ratios, table

ABOUT = {
    "hardware": "Test chip, 2 threads",
    "device": "cpu",
    "torch": "2.13",
    "triton": "3.7",
    "python": "3.11",
    "commit": "abc",
    "date": "2026-01-02",
}


def entry(file: str, group: str, provider: str, seconds: list[float], **info: Any) -> dict[str, Any]:
    return {
        "fullname": f"bench/{file}::b",
        "name": "b",
        "group": group,
        "stats": {"data": seconds},
        "extra_info": {"provider": provider, **info},
    }


def entries(slower: float = 1.0, launches: int = 900) -> list[dict[str, Any]]:
    """Return entries of a result file in which our training step takes ``slower`` times as long as usual."""
    step: dict[str, Any] = {
        "operations": 1,
        "pictures": 2,
        "size": 64,
        "batch": 1,
        "identity": True,
        "ngf": 64,
        "blocks": 9,
        "peak_bytes": 2**30,
    }
    counts = {
        "aten_calls": 10,
        "saved_bytes": 2**20,
        "step_flops": 5e9,
        "least_bytes": 1e9,
        "counts_only": True,
    }
    image: dict[str, Any] = {"size": 64, "peak_bytes": 2**27, "precision": "fp32"}
    made = [
        entry("bench_train_step.py", "step", "official", [4.0, 4.4, 3.6], precision="fp32", **step),
        entry(
            "bench_train_step.py",
            "step",
            "ours_compiled",
            [2.0 * slower, 2.0 * slower, 2.0 * slower],
            precision="bf16",
            **step,
        ),
        entry("bench_x.py", "norm", "copy", [1e-3], bytes=4e6, operations=2),
        entry("bench_x.py", "norm", "eager", [4e-3], bytes=4e6, operations=2),
        entry("bench_x.py", "norm", "ours", [2e-3], bytes=4e6, operations=2),
        entry("bench_counts.py", "counts", "ours", [1e-6], launches=launches, **counts),
        entry("bench_ceilings.py", "ceilings", "copy", [1e-2], bytes=1e9),
        entry("bench_ceilings.py", "ceilings", "matmul fp32", [1e-2], flops=1e10),
        entry("bench_ceilings.py", "ceilings", "matmul bf16", [1e-3], flops=1e10),
        entry("bench_ceilings.py", "ceilings", "launch", [1e-3], operations=1000),
    ]
    for n in (1, 4):
        made.append(
            entry(
                "bench_generator.py",
                f"generator, {n}",
                "official",
                [n / 10] * 19 + [n / 5],
                pictures=n,
                batch=n,
                **image,
            )
        )
        made.append(
            entry(
                "bench_generator.py", f"generator, {n}", "ours", [n / 20] * 20, pictures=n, batch=n, **image
            )
        )
    return made


def results(path: Path, made: list[dict[str, Any]], **about: str) -> Path:
    path.write_text(json.dumps({"machine_info": {"fastcyclegan": {**ABOUT, **about}}, "benchmarks": made}))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return results(tmp_path / "new.json", entries())


def test_speed_up_compares_the_same_rounds() -> None:
    anchor, ours = Row("", "", "official", [4.0, 8.0]), Row("", "", "ours", [2.0, 4.0])
    assert speed_up(ours, anchor) == Spread(2, 2, 2, 2)
    # A round can consist of several iterations.
    assert speed_up(Row("", "", "ours", [20.0], {"operations": 10}), anchor).median == 2
    assert f"{Spread(1.861, 1.8, 1.93, 5):.2f}" == "1.86 (1.80 to 1.93)"
    assert anchor_of([Row("", "", "copy", [1.0]), anchor, ours]) is anchor


def test_share_of_the_ceiling_in_the_same_precision() -> None:
    rows = [
        Row("", "g", "matmul fp32", [2.0, 4.0, 2.0], {"flops": 100}),
        Row("", "g", "matmul bf16", [1.0], {"flops": 100}),
        Row("", "g", "official", [8.0], {"flops": 200, "pictures": 1, "precision": "fp32"}),
        Row("", "g", "ours", [8.0], {"flops": 200, "pictures": 1, "precision": "bf16"}),
    ]
    shares = [share_of_ceiling(row, rows) for row in rows]
    assert shares == [None, None, (0.5, "matmul fp32"), (0.25, "matmul bf16")]
    assert share_of_ceiling(rows[2], rows[1:]) is None
    # A ceiling without a precision is that of all rows, and only the same quantity is compared.
    copy = Row("", "g", "copy", [1.0], {"bytes": 10})
    assert share_of_ceiling(Row("", "g", "ours", [2.0], {"bytes": 10}), [copy]) == (0.5, "copy")
    assert share_of_ceiling(rows[2], [copy]) is None
    lines = "\n".join(lines_of(rows))
    assert "50 % of matmul fp32" in lines
    assert "25 % of matmul bf16  1.00x as fast as official" in lines
    written = list(table(rows))
    assert "share of the ceiling" in written[0]
    assert [line.split("|")[6].strip() for line in written[2:]] == ["", "", "50 %", "25 %"]


def test_images_of_any_size_are_compared_by_their_pixels() -> None:
    rows = [Row("", "g", name, [2.0], {"pixels": 5_000_000}) for name in ("whole", "exact_tiles")]
    assert "2.5 megapixels/s" in list(table(rows))[-1]
    assert "2.5 megapixels/s  1.00x as fast as whole" in list(lines_of(rows))[-1]


def test_lines_contain_rate_speed_up_and_rounds(file: Path) -> None:
    lines = "\n".join(lines_of(read_results(file).rows))
    assert re.search(
        r"ours_compiled +2 \(2 to 2\) s  1 images/s  1,024 MiB"
        r"  2.00 \(1.80 to 2.20\)x as fast as official  n=3",
        lines,
    )
    assert "900 Triton launches" in lines


def test_writes_tables_spreadsheet_and_plots(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "report"
    assert report.main([str(file), "--output", str(folder)]) == 0
    names = {path.name for path in folder.iterdir()}
    drawn = {
        f"{name}.{suffix}"
        for name in ("step_time", "images_by_batch", "memory_by_size", "roofline")
        for suffix in ("png", "svg")
    }
    assert names == {"report.md", "results.csv", *drawn}
    assert all((folder / name).stat().st_size > 5000 for name in drawn)
    text = (folder / "report.md").read_text()
    assert text.startswith(
        "# Test chip, 2 threads, torch 2.13, triton 3.7, python 3.11, commit abc, date 2026-01-02"
    )
    assert (
        "| ours_compiled | bf16 | 2 (2 to 2) s | 3 | 1 images/s | 1,024 MiB | 2.00 (1.80 to 2.20) |" in text
    )
    assert "| ours | 1.0 ms | 1 | 2 GB/s | 50 % | 2.00 |" in text
    assert "| launch | 1.0 us | 1 |  |" in text
    assert "| provider | precision | time (median, 95th percentile) | rounds |" in text
    assert "| official | fp32 | 100.0 ms, 100.0 ms | 20 | 10 images/s | 128 MiB | 1 |" in text
    assert "| ours | 900 | 10 | 1 | 5 | 1 |" in text
    assert text.strip() in capsys.readouterr().out
    with (folder / "results.csv").open() as table:
        rows = {(row["group"], row["provider"]): row for row in csv.DictReader(table)}
    ours = rows["step", "ours_compiled"]
    assert (ours["hardware"], ours["n"], float(ours["median_s"]), float(ours["speed_up_max"])) == (
        "Test chip, 2 threads",
        "3",
        2.0,
        2.2,
    )
    assert rows["counts", "ours"]["launches"] == "900"
    assert rows["counts", "ours"]["median_s"] == ""


@pytest.mark.parametrize(
    ("slower", "launches", "hardware", "status", "logged"),
    [
        pytest.param(
            1.2, 900, "", 1, "worse: step, ours_compiled: time relative to official", id="a fifth slower"
        ),
        pytest.param(1.04, 900, "", 0, "0 worse by more than 5 %", id="within the bound"),
        pytest.param(1.0, 950, "", 1, "launches 900 -> 950 (+5.6 %)", id="more launches"),
        pytest.param(
            1.2, 900, "Another chip", 1, "worse: step, ours_compiled", id="ratios compare across machines"
        ),
    ],
)
def test_comparison_finds_regressions(
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    slower: float,
    launches: int,
    hardware: str,
    status: int,
    logged: str,
) -> None:
    new = results(
        tmp_path / "later.json", entries(slower, launches), **({"hardware": hardware} if hardware else {})
    )
    assert report.main([str(new), "--against", str(file), "--fail-over", "5%"]) == status
    assert logged in capsys.readouterr().out


def test_a_busier_machine_is_a_regression_only_of_the_anchor(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = entries()
    for each in made[:2]:
        each["stats"]["data"] = [2 * s for s in each["stats"]["data"]]
    busy = results(tmp_path / "busy.json", made)
    report.main([str(busy), "--against", str(file)])
    worse = [line for line in capsys.readouterr().out.splitlines() if line.startswith("worse")]
    assert len(worse) == 1
    assert worse[0].startswith("worse: step, official: time in seconds")
    other = results(tmp_path / "other.json", made, hardware="Another chip")
    assert report.main([str(other), "--against", str(file)]) == 0


def test_lists_rows_missing_from_the_new_results(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = results(tmp_path / "fewer.json", entries()[:2])
    assert report.main([str(fewer), "--against", str(file)]) == 0
    assert "missing from the new results: norm, ours" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere.json", "nowhere.json: No such file or directory"),
        ("{odd}", "not a results file of pytest bench/ --benchmark-json=FILE"),
        ("{new} --against {odd}", "not a results file of pytest bench/"),
        ("{new} --against {else}", "nothing to compare: the two results have no figure in common"),
        ("{new} --against {new} --fail-over much", "must be a percentage such as 5%, got 'much'"),
        ("{new} --readme {odd}", "found no section that begins with"),
        ("{new} --output {new}", "cannot write there: File exists"),
        ("{quick} --readme README.md", "measured with --bench-quick, at test sizes, so not suitable"),
        ("{new} --against {quick}", "they cannot be compared"),
    ],
)
def test_reports_bad_input(
    arguments: str, message: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd.json").write_text("[1, 2]")
    results(tmp_path / "else.json", [entry("bench_y.py", "other", "ours", [1.0])])
    quick = results(tmp_path / "quick.json", entries(), sizes="for tests")
    paths = {"quick": quick, "new": file, "odd": tmp_path / "odd.json", "else": tmp_path / "else.json"}
    with pytest.raises(SystemExit) as ended:
        report.main(arguments.format(**paths).split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_what_the_kernels_gain_is_a_speed_up() -> None:
    """Fastcyclegan with its kernels is compared with itself without them, as with the official order."""
    seconds = {"official": 4.0, "ours": 1.0, "ours_without_kernels": 3.0}
    rows = [Row("bench_train_step.py", "step", name, [time]) for name, time in seconds.items()]
    lines = list(ratios(rows))
    assert lines[0].endswith("| speed-up over | official | ours_without_kernels |")
    assert lines[2:] == ["| ours | 4.00 | 3.00 |"]
