"""Sections of pages that are written from results, and the pages of the project that contain them.

No figure in a section was typed by hand, and the counts in the committed results are those of the code.
"""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import report
from bench.bench_counts import PROVIDERS, TRANSLATIONS
from bench.counts import info_of, step_counts, translation_counts
from bench.figures import Results, Row, read_results
from bench.page_sections import BEGIN, END, SECTIONS, rewritten
from fastcyclegan.devtools.dry_run import count_network
from tests.pages.page import pages

ROOT = Path(__file__).parents[2]
TEXTS = {page.name: page.text for page in pages()}
WRITTEN = re.compile(
    r"^<!-- (\w+): written by bench/report\.py from (.*) -->$(.*?)^<!-- end of \1 -->$", re.M | re.S
)
PAGES = {page: text for page, text in TEXTS.items() if WRITTEN.search(text)}
LAUNCHES = re.compile(r"([\d,]*\d)\s+(?:Triton\s+|kernel\s+)?launches")


def page_with(*sections: str) -> str:
    return "\n".join(
        f"# Page\n{BEGIN.format(section, '')}\nold\n{END.format(section)}" for section in sections
    )


# The file of results that each section names. Times can be those of another machine than the counts.
SOURCES = {match[1]: match[2] for text in PAGES.values() for match in WRITTEN.finditer(text)}
TIMES = ("speed", "performance")


@functools.cache
def committed() -> Results:
    """Return the results from which the counts on the pages are written."""
    return read_results(ROOT / "bench" / "results" / SOURCES["counts"])


# --- The pages of the project -------------------------------------------------------------------------------


def test_all_sections_are_on_pages_and_all_counts_come_from_one_file() -> None:
    sections = [match[1] for text in PAGES.values() for match in WRITTEN.finditer(text)]
    assert sorted(sections) == sorted(SECTIONS)
    assert len({SOURCES[section] for section in SECTIONS if section not in TIMES}) == 1


@pytest.mark.parametrize("page", PAGES)
def test_page_is_generated_from_committed_results(page: str, tmp_path: Path) -> None:
    """The report reproduces the sections of a page from the results that they name."""
    written = tmp_path / "page.md"
    written.write_text(PAGES[page])
    files = dict.fromkeys([SOURCES["performance"], SOURCES["counts"]])
    names = [str(ROOT / "bench" / "results" / file) for file in files]
    assert report.main([*names, "--readme", str(written)]) == 0
    assert written.read_text() == PAGES[page]


def wrong_launches(text: str, launches: set[int]) -> list[str]:
    """Return the paragraphs, outside sections, that state another number of launches of an iteration."""
    paragraphs = re.split(r"\n\s*\n|\n(?=\|)", WRITTEN.sub("", text))
    return [
        paragraph
        for paragraph in paragraphs
        if "iteration" in paragraph
        and any(int(number.replace(",", "")) not in launches for number in LAUNCHES.findall(paragraph))
    ]


def test_no_page_states_another_number_of_launches_of_an_iteration() -> None:
    ours = [row for row in committed().rows if row.provider in ("ours, fp32", "ours, bf16")]
    launches = {row.info["launches"] for row in ours}
    assert launches
    for page, text in TEXTS.items():
        assert not wrong_launches(text, launches), page
    assert wrong_launches("An iteration\nmakes 1,368 kernel launches.", launches)


# --- The counts ---------------------------------------------------------------------------------------------


def counted_again(row: Row) -> dict[str, Any]:
    """Return the counts that today's code gives for a row of bench_counts.py."""
    if "network" in row.info:
        counts = count_network(row.info["network"], row.provider, row.info["precision"])
    elif "translation" in row.info:
        counts = translation_counts(*TRANSLATIONS[row.provider])
    else:
        name, precision = PROVIDERS[row.provider]
        counts = step_counts(name, 256, 1, 9, row.info["identity"], precision)
    return info_of(counts)


def committed_counts(official: bool) -> list[Row]:
    """Return the committed rows of bench_counts.py: those of the official order, or the others."""
    rows = [row for row in committed().rows if row.file == "bench_counts.py"]
    return [row for row in rows if row.provider.startswith("official") == official]


@pytest.fixture(scope="module")
def today() -> list[tuple[Row, dict[str, Any]]]:
    return [(row, counted_again(row)) for row in committed_counts(official=False)]


def same_torch() -> bool:
    """Return whether this is the version of torch that the committed results were counted with."""
    return torch.__version__.partition("+")[0] == str(committed().machine["torch"]).partition("+")[0]


def differing(today: list[tuple[Row, dict[str, Any]]], of_this_torch: bool) -> list[str]:
    """Return the counts that are no longer those of the code.

    PyTorch's own calls, and the memory that its operators keep, can differ between versions of torch.
    """
    wrong = []
    for row, info in today:
        for key in ("launches", "saved_bytes", "aten_calls"):
            depends_on_torch = key == "aten_calls" or not row.provider.startswith(("ours", "kernels"))
            if row.info[key] != info[key] and (of_this_torch or not depends_on_torch):
                wrong.append(f"{row.group}, {row.provider}: {key} {row.info[key]:,}, counted {info[key]:,}")
    return wrong


def test_committed_counts_are_those_of_the_code(today: list[tuple[Row, dict[str, Any]]]) -> None:
    translations = [row for row, _ in today if "translation" in row.info]
    assert len(today) == 2 * 2 + 3 * 2 * 3 + len(translations)
    assert not differing(today, same_torch())


@pytest.mark.slow
def test_committed_counts_of_the_official_order_are_those_of_the_code() -> None:
    official = [(row, counted_again(row)) for row in committed_counts(official=True)]
    assert len(official) == 2 * 2
    assert not differing(official, same_torch())


@pytest.mark.parametrize("key", ["launches", "saved_bytes", "aten_calls"])
def test_an_altered_count_is_found(today: list[tuple[Row, dict[str, Any]]], key: str) -> None:
    for number in range(len(today)):
        altered = copy.deepcopy(today)
        altered[number][0].info[key] += 1
        assert len(differing(altered, of_this_torch=True)) == len(differing(today, of_this_torch=True)) + 1


# --- Sections -----------------------------------------------------------------------------------------------


def on_gpu(results: Results) -> Results:
    """Return ``results`` as a GPU would give them: training steps have real sizes."""
    rows = copy.deepcopy(results.rows)
    for row in rows:
        if row.file == "bench_train_step.py":
            row.info["size"] = 256
    return Results({**results.machine, "device": "cuda"}, rows)


def test_speed_shows_times_only_of_a_gpu() -> None:
    on_cpu = rewritten(page_with("speed"), {"x.json": committed()})
    assert "No GPU has run this version yet" in on_cpu
    assert "| fastcyclegan, bf16 |" in on_cpu
    written = rewritten(page_with("speed"), {"x.json": on_gpu(committed())})
    assert "No GPU" not in written
    assert "| ours |" in written
    assert "speed-up over official" in written
    for text in (on_cpu, written):
        assert len(text.splitlines()) - 3 <= 14


def test_a_section_comes_from_the_first_results_that_have_its_rows() -> None:
    """The times are those of a GPU whose results lack the counts, which come from the other file."""
    times = on_gpu(committed())
    times.rows = [row for row in times.rows if not row.info.get("counts_only")]
    written = rewritten(page_with("facts", "speed"), {"gpu.json": times, "cpu.json": committed()})
    assert BEGIN.format("facts", "cpu.json") in written
    assert BEGIN.format("speed", "gpu.json") in written
    assert "No GPU" not in written


def race(memory: int = 0, **seconds: list[float]) -> list[Row]:
    info = {"peak_bytes": memory}
    return [
        Row("bench_train_step.py", "step", provider, times, dict(info)) for provider, times in seconds.items()
    ]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(
            race(official=[2.0], ours=[1.0], ours_compiled=[1.0]), "None of ours is slower", id="none"
        ),
        pytest.param(
            race(official=[2.0], official_compiled=[1.0], ours=[4.0]),
            "- Step: `ours` against `official`: 0.50 times as fast.\n"
            "- Step: `ours` against `official_compiled`: 0.25 times as fast.",
            id="slower than both",
        ),
        pytest.param(
            race(official=[2.0], official_compiled=[0.9], ours_compiled=[1.0]),
            "- Step: `ours_compiled` against `official_compiled`: 0.90 times as fast.",
            id="slower than one",
        ),
        pytest.param(
            race(memory=100, official=[2.0]) + race(memory=150, ours_compiled=[1.0]),
            "- Step: `ours_compiled` against `official`: 1.50 times the peak memory.",
            id="more memory",
        ),
    ],
)
def test_performance_names_what_is_slower_or_larger(rows: list[Row], expected: str) -> None:
    written = rewritten(page_with("performance"), {"x.json": Results(committed().machine, rows)})
    assert expected in written
    assert ("On a CPU, `ours` computes in fp32" in written) == ("`ours` against" in written)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("# Page", "found no section that begins with <!-- SECTION: written by", id="none"),
        pytest.param(page_with("fact"), "unknown section fact, must be one of facts, speed,", id="unknown"),
        pytest.param(
            page_with("facts").replace(END.format("facts"), ""),
            "section facts does not end with <!-- end of facts -->",
            id="no end",
        ),
        pytest.param(
            page_with("facts", "speed").replace(END.format("facts"), ""),
            "section facts does not end before section speed begins",
            id="no end before the next",
        ),
        pytest.param(
            f"{page_with('facts')}\n{END.format('speed')}",
            "found the end of section speed without its begin",
            id="no begin",
        ),
    ],
)
def test_reports_a_page_that_cannot_be_rewritten(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a page is reported in one line, and other pages are not changed either."""
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text(page_with("facts"))
    bad.write_text(text)
    with pytest.raises(SystemExit) as ended:
        report.main([str(ROOT / "bench" / "results" / SOURCES["counts"]), "--readme", str(good), str(bad)])
    assert ended.value.code == 2
    assert f"error: {bad}: {message}" in capsys.readouterr().err
    assert good.read_text() == page_with("facts")


@pytest.mark.parametrize("section", SECTIONS)
def test_reports_results_that_lack_the_rows_of_a_section(section: str) -> None:
    with pytest.raises(ValueError, match="the results lack"):
        rewritten(page_with(section), {"x.json": Results(committed().machine, [])})
