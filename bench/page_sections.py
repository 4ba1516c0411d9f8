"""Write the generated sections of the project's pages from files of results.

A section stands between two lines of its page:

    <!-- SECTION: written by bench/report.py from FILE -->
    <!-- end of SECTION -->
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench.figures import Results, Row, is_ours, speed_up
from bench.result_tables import HEADINGS, counts_table, ratios, table

BEGIN, END = "<!-- {}: written by bench/report.py from {} -->", "<!-- end of {} -->"
_BEGIN_LINE = re.compile(r"<!-- (\S+): written by bench/report\.py from .*-->")
_END_LINE = re.compile(r"<!-- end of (\S+) -->")

# The training steps that bench_counts.py counts, as the README names them.
STEPS = {
    "official": "official order, fp32",
    "official_bf16": "official order, bf16 autocast",
    "ours, fp32": "fastcyclegan, fp32",
    "ours, bf16": "fastcyclegan, bf16",
}
# The benches whose tables are on the page of the benches.
TIMED = (
    "bench_train_step.py",
    "bench_generator.py",
    "bench_translate.py",
    "bench_loader.py",
    "bench_processor.py",
)
OPERATIONS = {"launches": "launches of our kernels", "aten_calls": "calls to PyTorch"}


def rewritten(text: str, sources: Mapping[str, Results]) -> str:
    """Return the page ``text`` with every section written from ``sources``, which are results by file name.

    A section is written from the first results that have its rows. Raises ValueError if none have them, or if
    the page has no section, an unknown one, or a begin or end without its counterpart.
    """
    lines: list[str] = []
    found, inside = False, ""
    for line in text.split("\n"):
        begin, end = _BEGIN_LINE.fullmatch(line), _END_LINE.fullmatch(line)
        if begin is not None:
            if inside:
                raise ValueError(f"section {inside} does not end before section {begin[1]} begins")
            found, inside = True, begin[1]
            lines += _section(inside, sources)
        elif end is not None:
            if end[1] != inside:
                raise ValueError(f"found the end of section {end[1]} without its begin")
            inside = ""
        elif not inside:
            lines.append(line)
    if inside:
        raise ValueError(f"section {inside} does not end with {END.format(inside)}")
    if not found:
        raise ValueError(f"found no section that begins with {BEGIN.format('SECTION', 'FILE')}")
    return "\n".join(lines)


def _section(section: str, sources: Mapping[str, Results]) -> list[str]:
    if section not in SECTIONS:
        raise ValueError(f"unknown section {section}, must be one of {', '.join(SECTIONS)}")
    reasons = []
    for name, results in sources.items():
        try:
            return [BEGIN.format(section, name), *SECTIONS[section](results), END.format(section)]
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(reasons[0])


def _rows(results: Results, file: str, **info: object) -> list[Row]:
    """Return the rows of a bench that have all of ``info``. Raises ValueError if there are none."""
    rows = [row for row in results.rows if row.file == file and info.items() <= row.info.items()]
    if not rows:
        wanted = "".join(f", {key} {value}" for key, value in info.items())
        raise ValueError(f"the results lack rows of {file}{wanted}")
    return rows


def _steps(results: Results, identity: bool = True) -> dict[str, Row]:
    """Return the counts of a training iteration by provider. Raises ValueError if one of STEPS is missing."""
    rows = {row.provider: row for row in _rows(results, "bench_counts.py", size=256, identity=identity)}
    if missing := [provider for provider in STEPS if provider not in rows]:
        raise ValueError(f"the results lack the counts of {'; '.join(missing)}")
    return {provider: rows[provider] for provider in STEPS}


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


# --- The README ---------------------------------------------------------------------------------------------


def _facts(results: Results) -> Iterator[str]:
    """Yield two items of a list: the operations of a training iteration, and the memory that it keeps."""
    steps = _steps(results)
    launches = steps["ours, bf16"].info["launches"]
    calls = {provider: f"{row.info['aten_calls']:,}" for provider, row in steps.items()}
    kept = {provider: f"{row.info['saved_bytes'] / 2**20:,.0f}" for provider, row in steps.items()}
    yield (
        "- **Fewer operations.** With the kernels, which are for NVIDIA GPUs, a training iteration (256x256,"
        f" batch 1, bf16) makes {launches} kernel launches and {calls['ours, bf16']} calls to PyTorch. The"
        f" official order makes {calls['official_bf16']} calls with bf16 autocast, and {calls['official']} in"
        " fp32 ([exact counts](bench/README.md#exact-counts))."
    )
    yield (
        f"- **Less memory.** The same iteration keeps {kept['ours, bf16']} MiB for its backward passes. The"
        f" official order keeps {kept['official_bf16']} MiB with bf16 autocast. In fp32 it is"
        f" {kept['ours, fp32']} MiB instead of {kept['official']}."
    )


def _speed(results: Results) -> Iterator[str]:
    """Yield the times of a training iteration if they are a GPU's, and its exact counts otherwise."""
    if results.machine.get("device") == "cuda":
        yield (
            f"A training iteration at 256x256, batch 1, on {results.title}"
            " ([all figures, and what each provider is](bench/README.md)):\n"
        )
        yield from table(_rows(results, "bench_train_step.py", size=256, batch=1, identity=True))
        return
    yield (
        "No GPU has run this version yet, so its speed on a GPU is unknown. What a training iteration does"
        " can be counted without one (256x256, batch 1):\n"
    )
    yield from counts_table(
        list(_steps(results).values()),
        {"": lambda row: STEPS[row.provider]},
        {**OPERATIONS, "saved_bytes": "MiB kept for the backward passes"},
    )


# --- The page of the benches --------------------------------------------------------------------------------


def _counts(results: Results) -> Iterator[str]:
    """Yield the exact counts of an iteration and of a translation, and the lower bound of an iteration."""
    for identity in (True, False):
        rows = list(_steps(results, identity).values())
        yield f"{_capitalised(rows[0].group)}:\n"
        yield from counts_table(rows)
        yield ""
    for group, rows in results.groups.items():
        is_translation, recipe = rows[0].info.get("translation"), rows[0].info.get("recipe")
        if rows[0].info.get("counts_only") and (is_translation or recipe):
            yield f"{_capitalised(group)}:\n"
            yield from counts_table(rows, headings=OPERATIONS if is_translation else HEADINGS)
            yield ""
    yield (
        "These are counts of one iteration after the first. They come from a dry run on a CPU, in which no"
        " kernel and no convolution is computed. Triton launches are those of our kernels. An ATen call is a"
        " call of a PyTorch operator that computes or copies something; on a GPU it launches one kernel or"
        " several. Views, allocations and reads of single numbers are not counted. In the official order,"
        " two things are counted as on a GPU, where they take fewer calls: autocast pads in bf16, and Adam"
        " updates all weights together. The saved memory is that of all tensors kept for the backward"
        " passes, except the weights. Memory that several tensors share is counted once.\n"
    )
    yield from _floor()


def _floor() -> Iterator[str]:
    """Yield the lines about the calculated lower bound on the time of a training step on an H200."""
    from bench.step_work import Chip, step_work, total

    chip = Chip(790e12, 4.3e12, 1.1e-6, "typed in")
    floor = 1e3 * total(step_work(256, 1), chip, 0)
    yield (
        f"The lower bound for a training step at 256x256, batch 1, bf16 on an H200 is {floor:.1f} ms, plus"
        " the launches. It is calculated, not measured, for a chip whose matrix products reach 790 TFLOP/s"
        " and whose memory reaches 4.3 TB/s:"
        " `python -m bench.roofline --matrix_tflops 790 --bandwidth_gbs 4300 --launch_us 1.1` shows it by"
        " layer."
    )


def _performance(results: Results) -> Iterator[str]:
    """Yield the tables of the steps, generators, translations, loaders and processors, and what is slower."""
    from bench.generator_providers import GENERATORS

    yield (
        f"Measured on: {results.title}. In each table, the providers took turns in one run, in random order."
        " Speed-ups compare rounds that ran one after the other: the median, with the smallest and largest of"
        " all rounds."
    )
    if results.machine.get("device") != "cuda":
        yield ("**This version has not been measured on a GPU yet**: these are CPU figures at reduced sizes.")
    measured = {row.provider for row in _rows(results, "bench_train_step.py")}
    for file in TIMED:
        for group, rows in results.groups.items():
            if rows[0].file == file:
                yield f"\n{_capitalised(group)}:\n"
                yield from table(rows)
                yield from ratios(rows)
                measured |= {row.provider for row in rows}
    yield ""
    for name, provider in GENERATORS.items():
        if name in measured:
            yield f"- `{name}`: {provider.title}"
    yield ""
    yield from _slower(results)


def _slower(results: Results) -> Iterator[str]:
    """Yield every case in which one of ours is slower, or needs more memory, than an official provider."""
    cases, uncompiled = [], False
    for group, rows in results.groups.items():
        others = [row for row in rows if row.provider in ("official", "official_compiled")]
        for ours, other in itertools.product(filter(is_ours, rows), others):
            if factors := list(_worse_than(ours, other)):
                pair = f"`{ours.provider}` against `{other.provider}`"
                cases.append(f"- {_capitalised(group)}: {pair}: {', '.join(factors)}.")
                uncompiled |= ours.provider == "ours"
    if not cases:
        yield "None of ours is slower, or needs more memory, than `official` or `official_compiled`."
        return
    yield (
        "These are all cases in which one of ours is slower than `official` or `official_compiled`, if only"
        " by the median, or needs more memory:\n"
    )
    yield from cases
    if uncompiled and results.machine.get("device") != "cuda":
        yield (
            "\nOn a CPU, `ours` computes in fp32. `ours_compiled` computes in bf16 if the processor has"
            " instructions for it, as does `official_compiled`."
        )


def _worse_than(ours: Row, other: Row) -> Iterator[str]:
    if ours.info.get("counts_only"):
        return
    ratio = speed_up(ours, other)
    if ratio.median < 1:
        yield f"{ratio:.2f} times as fast"
    peaks: list[Any] = [row.info.get("peak_bytes") for row in (ours, other)]
    if all(peaks) and peaks[0] > peaks[1]:
        yield f"{peaks[0] / peaks[1]:.2f} times the peak memory"


# --- The pages of the kernels and of accelerate -------------------------------------------------------------


def _networks(results: Results) -> Iterator[str]:
    """Yield the counts of one forward and backward pass of each network."""
    rows = [row for row in _rows(results, "bench_counts.py") if "network" in row.info]
    if not rows:
        raise ValueError("the results lack the counts of networks of bench_counts.py")
    yield "One forward and backward pass at 256x256, batch 1 (`python scripts/count_operations.py`):\n"
    labels: dict[str, Callable[[Row], str]] = {
        "network": lambda row: row.info["network"],
        "precision": lambda row: row.info["precision"],
        "computed by": lambda row: row.provider,
    }
    yield from counts_table(rows, labels)


def _accelerate(results: Results) -> Iterator[str]:
    """Yield the counts of a step of networks from other fields, before and after ``accelerate``."""
    rows = [row for row in _rows(results, "bench_accelerate.py") if row.info.get("counts_only")]
    if not all("network" in row.info for row in rows):
        raise ValueError("the results lack the counts of networks of bench_accelerate.py")
    yield "One forward and backward pass in fp32 (`pytest bench/bench_accelerate.py --benchmark-only`):\n"
    labels: dict[str, Callable[[Row], str]] = {
        "network": lambda row: row.info["network"],
        "images": lambda row: row.info["images"],
        "": lambda row: row.provider,
    }
    yield from counts_table(rows, labels)


# The lines between the two marks of each section.
SECTIONS: dict[str, Callable[[Results], Iterator[str]]] = {
    "facts": _facts,
    "speed": _speed,
    "counts": _counts,
    "performance": _performance,
    "networks": _networks,
    "accelerate": _accelerate,
}
