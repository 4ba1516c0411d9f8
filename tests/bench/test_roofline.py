"""The roofline model, which gives a lower bound on the time of a step.

Its operation counts match known figures and a layer calculated by hand, and the events of a profile are
assigned to layers.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import bench_ceilings, operators, roofline
from bench.machine import DEVICE
from bench.roofline import key_of, measured_by_layer
from bench.step_work import Chip, Work, layers_of, passes, step_work, total
from fastcyclegan import reference

CHIP = Chip(1e12, 1e11, 1e-6, "typed in")


def flops(work: list[Work]) -> float:
    return sum(w.calls * w.flops for w in work)


def test_matches_known_operation_counts() -> None:
    """The operation counts at 256x256 match the known figures.

    A generator takes 49.55 GMAC and a discriminator 3.15. A step takes 1.88 TFLOP, or 1.29 without the
    identity loss.
    """
    G, D = (
        sum(layer.flops for layer in layers_of(net, (256, 256), 1))
        for net in (reference.Generator(), reference.Discriminator())
    )
    assert pytest.approx(49.55e9, rel=1e-3) == G / 2
    assert pytest.approx(3.15e9, rel=2e-3) == D / 2
    assert flops(step_work(256, 1)) == pytest.approx(1.88e12, rel=2e-3)
    assert flops(step_work(256, 1, identity=False)) == pytest.approx(1.29e12, rel=3e-3)
    assert flops(step_work(256, 3)) == pytest.approx(3 * flops(step_work(256, 1)))
    assert flops(step_work(128, 1)) == pytest.approx(flops(step_work(256, 1)) / 4, rel=0.01)


@pytest.mark.parametrize(
    ("layer", "macs"), [("model.1", 49 * 3 * 8 * 16 * 12), ("model.10.conv_block.1", 9 * 32 * 32 * 4 * 3)]
)
def test_matches_a_layer_calculated_by_hand(layer: str, macs: int) -> None:
    net = reference.Generator(ngf=8, n_blocks=1)
    layers = {each.name: each for each in layers_of(net, (16, 12), 1)}
    assert layers[layer].flops == 2 * macs
    if layer != "model.1":
        return
    w, y = 8 * 3 * 49, 8 * 16 * 12
    made = {(w.layer, w.phase): w for w in passes(layers[layer], 2, 6, 2, 6, "G")}
    label = "conv 7x7, 3 to 8, 16x12"
    assert [made[label, f"G, {p}"].calls for p in ("forward", "dgrad", "wgrad")] == [6, 2, 6]
    # The input image includes its padding: 22 x 18.
    assert made[label, "G, forward"].bytes == 2 * (3 * 22 * 18 + w + y)
    assert made[f"norm after {label}", "G, forward"].bytes == 2 * 2 * y
    assert made[f"norm after {label}", "G, backward"].bytes == 2 * 5 * y


def test_floors_add_up() -> None:
    work = [Work("a", "G, forward", 2, 1e9, 1e6), Work("b", "update", 1, 0.0, 1e9)]
    assert [w.floor(CHIP) for w in work] == pytest.approx([2e-3, 1e-2])
    assert [w.bound(CHIP) for w in work] == ["arithmetic", "memory"]
    assert total(work, CHIP, 500) == pytest.approx(1.25e-2)


def test_assigns_profile_events_to_layers() -> None:
    x, w = (1, 8, 16, 16), (8, 8, 3, 3)
    work = [
        Work("conv", "G, forward", 2, 1.0, 1.0, (x, w)),
        Work("conv", "G, dgrad", 2, 1.0, 1.0, (x, w)),
        Work("conv", "G, wgrad", 1, 1.0, 1.0, (x, w)),
        Work("Adam", "update", 1, 0.0, 1.0),
    ]
    events = [
        {
            "name": "aten::convolution",
            "shapes": [list(x), list(w), []],
            "backward": False,
            "seconds": 0.5,
            "calls": 2,
        },
        {
            "name": "aten::convolution_backward",
            "shapes": [[1, 8, 16, 16], list(x), list(w)],
            "backward": True,
            "seconds": 0.9,
            "calls": 2,
        },
        {"name": "aten::add", "shapes": [list(x), list(x)], "backward": True, "seconds": 7.0, "calls": 2},
    ]
    seconds = measured_by_layer(work, events)
    assert seconds == pytest.approx({key_of(work[0]): 0.5, key_of(work[1]): 0.6, key_of(work[2]): 0.3})


def test_prints_the_floor_of_a_typed_in_chip(capsys: pytest.CaptureFixture[str]) -> None:
    typed = "--size 32 --blocks 1 --matrix_tflops 790 --bandwidth_gbs 4300 --launch_us 1.5".split()
    assert roofline.main([*typed, "--launches", "100"]) == 0
    logged = capsys.readouterr().out
    assert "Ceilings (typed in): 790 TFLOP/s, 4300 GB/s, 1.5 us per launch" in logged
    assert "100 launches 0.15 ms" in logged
    # Without --launches, the launches of our own step are counted.
    assert roofline.main(typed) == 0
    launches = int(capsys.readouterr().out.partition("by layers; ")[2].split()[0])
    assert launches > 200


def test_measures_the_ceilings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(operators.MATRIX, DEVICE, 64)
    monkeypatch.setitem(bench_ceilings.COPIED, DEVICE, 1 << 16)
    monkeypatch.setattr(bench_ceilings, "LAUNCHES", 10)
    for precision in ("fp32", "bf16"):
        chip = roofline.measured_chip(precision)
        assert 1e6 < chip.matrix < 1e16
        assert 1e6 < chip.bandwidth < 1e14
        assert 0 < chip.launch < 1
        assert chip.source.startswith("measured on ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--matrix_tflops 790", "--matrix_tflops, --bandwidth_gbs and --launch_us must be given together"),
        ("--matrix_tflops 790 --bandwidth_gbs 0 --launch_us 1", "be more than 0"),
        ("--size 30", "--size must be a multiple of 4"),
        ("--profile nowhere.json", "nowhere.json: No such file or directory"),
        ("--profile {odd} --size 64", "--profile sets the size"),
        ("--batch 0", "--batch and --blocks at least 1"),
        ("--profile {odd}", "not a profile.json from scripts/profile_step.py"),
    ],
)
def test_reports_bad_input(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd.json").write_text(json.dumps([1]))
    with pytest.raises(SystemExit) as ended:
        roofline.main(arguments.format(odd=tmp_path / "odd.json").split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
