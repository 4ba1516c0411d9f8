"""The table of memory by size: what is measured, what is counted, and what is left out."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from bench import tile_memory
from bench.machine import DEVICE
from bench.tile_memory import Job, Measured, in_own_process, measured

JOB = Job(128, 64, "unet_128", 4, "memory")


def cells(output: str, first: str) -> list[list[str]]:
    """Return the rows of tables whose first cell is ``first``."""
    lines = [line for line in output.splitlines() if line.startswith(f"| {first} ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_each_size_is_measured_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert tile_memory.main("--sizes 96 --tile 64 --ngf 4 --netG unet_128".split()) == 0
    output = capsys.readouterr().out
    assert "unet_128 ngf 4, fp32, tiles of 64, maps: memory" in output
    measurement, count = cells(output, "96 x 96")
    assert len(measurement) == len(tile_memory.HEADING)
    assert len(count) == len(tile_memory.ON_A_GPU)
    if DEVICE == "cpu":
        above, total = (float(cell.removesuffix(" GiB")) for cell in measurement[2:4])
        assert 0 <= above < total
    assert all(float(cell.removesuffix(" s")) > 0 for cell in measurement[4:5])


def test_tiles_take_less_memory_than_the_whole_image() -> None:
    """At this size the largest maps of the whole image take 3 times 16 MiB, and tiles store 3 MiB."""
    job = Job(512, 128, "resnet_6blocks", 16, "memory")
    tiles, whole = measured(job), measured(replace(job, tile=None))
    if tiles.above is None or whole.above is None:
        pytest.skip("this system has no memory high-water mark")
    assert tiles.above < whole.above


def test_ratios_are_those_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole images are measured where they fit, by the estimate. Other processes do not change the ratio."""
    ran: list[Job] = []

    def run(job: Job) -> Measured:
        ran.append(job)
        return Measured(2**29, 2**30, 30.0, 6.0) if job.tile else Measured(2**31, 2**32, 10.0, 4.0)

    monkeypatch.setattr(tile_memory, "DEVICE", "cpu")
    monkeypatch.setattr("fastcyclegan.inference.memory.available_memory", lambda: 2**28)
    arguments = "--sizes 256,4096 --tile 512 --ngf 4 --netG unet_128 --whole".split()
    assert tile_memory.main(arguments, run) == 0
    output = capsys.readouterr().out
    tiles = ["0.50 GiB", "1.00 GiB", "30.0 s", "6.0 s"]
    assert cells(output, "256 x 256")[0][2:] == [*tiles, "2.00 GiB", "4.0 s", "1.50"]
    assert cells(output, "4096 x 4096")[0][2:] == [*tiles, "does not fit", "-", "-"]
    assert [(job.side, job.tile) for job in ran] == [(256, 512), (256, None), (4096, 512)]


def test_estimates_count_what_is_kept_in_memory() -> None:
    """With maps on the disk, the stored ones do not count."""
    in_memory, on_disk = (tile_memory.estimated(replace(JOB, storage=s)) for s in ("memory", "disk"))
    assert in_memory - on_disk == tile_memory.counted(JOB, 4)[0] > 0
    assert [2 * n for n in tile_memory.counted(JOB, 2)] == list(tile_memory.counted(JOB, 4))


def test_a_killed_process_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system kills a process that needs more memory than there is, without a message."""
    monkeypatch.setattr(tile_memory, "measured", signal.raise_signal)

    def run(job: Job) -> Measured:
        return in_own_process(signal.SIGKILL)  # type: ignore[arg-type]

    with pytest.raises(SystemExit) as ended:
        tile_memory.main("--sizes 128 --tile 64 --netG unet_128 --ngf 4".split(), run)
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("error: the process was killed; probably, memory has run out\n")


@pytest.mark.parametrize("sizes", ["0", "512,", "512,large", "-4"])
def test_refuses_what_is_no_size(sizes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tile_memory.main([f"--sizes={sizes}"])
    assert ended.value.code == 2
    assert f"must be sides in pixels such as 2048,4096, got '{sizes}'" in capsys.readouterr().err
