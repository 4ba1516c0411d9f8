"""Tests of the ``CycleGAN`` class: it trains like the command line, resumes exactly, has no side effects."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import math
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan import CycleGAN, cli, load_generator
from fastcyclegan.checkpoints.weight_sets import SETS
from fastcyclegan.errors import UserError
from fastcyclegan.inference.translate_folder import TranslateConfig
from fastcyclegan.settings.tiles import TileSettings
from fastcyclegan.tensor_files import load_tensors, to_cpu
from fastcyclegan.training.run_report import read_stats
from tests.conftest import write_images
from tests.models import TINY, same, tensors
from tests.training.runs import assert_same_state


def flags(settings: dict[str, Any]) -> list[str]:
    return [arg for name, value in settings.items() for arg in (f"--{name}", str(value))]


def test_trains_like_the_command_line(dataset: Path, tmp_path: Path) -> None:
    paths = ["--dataroot", str(dataset), "--checkpoints_dir", str(tmp_path / "runs"), "--name", "r"]
    assert cli.train([*flags(TINY), *paths]) == 0
    model = CycleGAN(**TINY)
    model.fit(dataset)
    for name, net in model.networks.items():
        expected = load_tensors(tmp_path / "runs" / "r" / "state.pt")["nets"][name]
        assert all(torch.equal(value, expected[key]) for key, value in net.state_dict().items())


def test_writes_prints_and_changes_nothing(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    torch.manual_seed(11)
    random.seed(11)
    before = (
        torch.get_rng_state(),
        random.getstate(),
        signal.getsignal(signal.SIGINT),
        torch.backends.cudnn.benchmark,
    )
    CycleGAN(**TINY, max_iters=2).fit(str(dataset))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), signal.getsignal(signal.SIGINT), torch.backends.cudnn.benchmark)
    assert list((tmp_path / "here").iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_initial_weights_depend_only_on_the_seed() -> None:
    torch.manual_seed(1)
    one = CycleGAN(**TINY)
    assert set(one.networks) == {"G_AB", "G_BA", "D_B", "D_A"}
    assert tuple(one.networks[name] for name in ("G_AB", "G_BA", "D_A", "D_B")) == (
        one.G_AB,
        one.G_BA,
        one.D_A,
        one.D_B,
    )
    torch.manual_seed(2)
    assert same(one, CycleGAN(**TINY))
    assert not same(one, CycleGAN(**TINY, seed=1))


def test_callbacks_get_records_and_can_stop_training(dataset: Path) -> None:
    model, iterations = CycleGAN(**TINY, print_freq=1), []

    def callback(caller: CycleGAN, record: dict[str, Any]) -> None:
        assert caller is model
        iterations.append(record["iteration"])
        if record["iteration"] == 3:
            model.stop()

    records = model.fit(dataset, callbacks=[callback])
    assert iterations == [record["iteration"] for record in records] == [1, 2, 3]
    assert {"epoch", "G_AB", "D_A", "cycle_A", "idt_B", "lr", "it/s", "images/s"} <= records[0].keys()
    assert model.history == records
    assert model.iteration == 3
    assert repr(model) == "CycleGAN(netG=resnet_1blocks, ngf=2, netD=n_layers, ndf=2, iteration=3)"
    # Trains the rest of the same run, with the same settings.
    assert model.fit(dataset)[-1]["iteration"] == 10


class BreaksError(Exception):
    pass


@pytest.mark.parametrize("at", [1, 3])
def test_an_error_in_a_loader_does_not_lose_iterations(at: int) -> None:
    """If a loader fails before the first record is logged, the iterations until then are still counted, and
    training can be resumed exactly at the next epoch.
    """
    batches = [(tensors(1, i), tensors(1, 10 + i)) for i in range(at)]

    def breaking() -> Any:
        yield from batches
        raise BreaksError

    settings = {**TINY, "n_epochs": 2, "n_epochs_decay": 0}
    model, whole = CycleGAN(**settings), CycleGAN(**settings)
    with pytest.raises(BreaksError):
        model.fit(breaking(), iterations_per_epoch=at + 1)
    assert model.iteration == at
    assert not same(model, CycleGAN(**settings))
    whole.fit(batches, max_iters=at)
    assert same(model, whole)


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Handle SIGINT as in a terminal, even if the tests were started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_takes_effect_after_the_iteration(dataset: Path) -> None:
    """SIGINT arrives between the updates of an iteration, but only whole iterations are trained."""
    model, whole, calls = CycleGAN(**TINY), CycleGAN(**TINY), itertools.count(1)
    # D_B is called once in the generators' phase, and then twice in the discriminators' phase, which follows
    # the generators' update.
    model.D_B.register_forward_hook(
        lambda *_: signal.raise_signal(signal.SIGINT) if next(calls) == 6 else None
    )
    whole.D_B.register_forward_hook(lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        model.fit(dataset)
    assert model.iteration == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    model.fit()  # uses the same images again
    whole.fit(dataset)
    assert same(model, whole)


def test_networks_built_in_threads_depend_only_on_the_seed() -> None:
    with ThreadPoolExecutor(4) as pool:
        models = list(
            pool.map(lambda _: CycleGAN(**TINY, seed=1).networks and CycleGAN(**TINY, seed=1), range(6))
        )
        list(pool.map(lambda model: model.networks, models))
    assert all(same(model, CycleGAN(**TINY, seed=1)) for model in models)


@pytest.mark.parametrize(
    "change",
    [lambda s: [1], lambda s: {**s, "iteration": -5}, lambda s: {**s, "nets": {}}, lambda s: {"version": 1}],
)
def test_invalid_states_are_rejected(change: Any, dataset: Path, tmp_path: Path) -> None:
    model = CycleGAN(**TINY)
    model.fit(dataset, max_iters=1)
    model.save(tmp_path, overwrite=True)
    torch.save(change(to_cpu(load_tensors(tmp_path / "state.pt"))), tmp_path / "state.pt")
    with pytest.raises(
        UserError,
        match=(
            r"state.pt: (not a training state that this version can resume"
            r"|the networks in this file are not those|iteration must be from 0 to .*, got -5)"
        ),
    ):
        CycleGAN.load(tmp_path)


@pytest.mark.parametrize("use_dropout", [False, True])
def test_training_in_pieces_with_save_and_load_is_exact(
    dataset: Path, tmp_path: Path, use_dropout: bool
) -> None:
    """Also with dropout: what the caller draws in between does not change the run."""
    whole = CycleGAN(**TINY, use_dropout=use_dropout)
    whole.fit(dataset)
    pieces = CycleGAN(**TINY, use_dropout=use_dropout)
    torch.rand(3)
    pieces.fit(dataset, max_iters=3)
    torch.rand(5)
    pieces.fit(dataset, max_iters=5)
    torch.rand(7)
    pieces.save(tmp_path / "kept")
    again = CycleGAN.load(tmp_path / "kept")
    assert same(pieces, again)
    assert again.iteration == 5
    again.fit(max_iters=None)  # the images are part of the saved configuration
    assert same(whole, again)
    assert again.fit() == []  # training is already complete


def test_the_command_line_can_use_a_saved_model(dataset: Path, tmp_path: Path) -> None:
    model = CycleGAN(**TINY)
    model.fit(dataset, max_iters=2, ema=0.5)
    model.save(tmp_path / "runs" / "r")
    assert (tmp_path / "runs" / "r" / "latest_net_G_A_ema.pth").exists()
    write_images(tmp_path / "in", 1)
    out = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.translate(["--weights", str(tmp_path / "runs" / "r"), *out]) == 0
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "out" / "000.png")),
        np.asarray(model.translate(tmp_path / "in" / "000.png")),
    )
    run = ["--name", "r", "--checkpoints_dir", str(tmp_path / "runs"), "--continue_train", "--max_iters", "4"]
    assert cli.train(run) == 0
    model.fit(max_iters=4)
    assert same(model, CycleGAN.load(tmp_path / "runs" / "r"))


def test_fit_with_a_folder_writes_the_files_of_a_run(dataset: Path, tmp_path: Path) -> None:
    model = CycleGAN(**TINY)
    model.fit(dataset, folder=tmp_path / "a" / "b", max_iters=2)
    names = {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert {"config.json", "state.pt", "index.html", "stats.jsonl", "samples", "latest_net_G_A.pth"} <= names
    model.fit(folder=str(tmp_path / "a" / "b"), max_iters=3)
    assert load_tensors(tmp_path / "a" / "b" / "state.pt")["iteration"] == 3
    with pytest.raises(UserError, match=r"b already exists: choose another folder, or load the run in it"):
        CycleGAN(**TINY).fit(dataset, folder=tmp_path / "a" / "b")
    loaded = CycleGAN.load(tmp_path / "a" / "b")
    loaded.fit(folder=tmp_path / "a" / "b", max_iters=4)
    assert load_tensors(tmp_path / "a" / "b" / "state.pt")["iteration"] == 4


def test_training_goes_on_from_the_epoch_that_was_loaded(dataset: Path, tmp_path: Path) -> None:
    """Also into the same folder, whose last state is another one. The records of the others are kept."""
    CycleGAN(**TINY, save_epoch_freq=1, print_freq=1).fit(dataset, folder=tmp_path / "r")
    elsewhere = CycleGAN.load(tmp_path / "r", epoch="1")
    elsewhere.fit(max_iters=2)
    loaded = CycleGAN.load(tmp_path / "r", epoch="1")
    assert not same(loaded, CycleGAN.load(tmp_path / "r"))
    loaded.fit(folder=tmp_path / "r", max_iters=2)
    assert loaded.iteration == 2
    assert same(loaded, elsewhere)
    assert len(read_stats(tmp_path / "r")) == 2
    assert len(read_stats(tmp_path / "r" / "replaced-after-iteration-0")) == 10
    loaded.fit(folder=tmp_path / "r", max_iters=3)
    assert len(read_stats(tmp_path / "r")) == 3


def test_folders_given_now_replace_those_of_the_configuration(dataset: Path) -> None:
    folders = {"data_A": dataset / "trainA", "data_B": dataset / "trainB"}
    model = CycleGAN(**{**TINY, "device": "auto"}, **folders, holdout=0.3, gpu_ids="-1")
    model.fit(max_iters=1)
    model.fit(dataset, max_iters=2, device="cpu")
    assert (model.config.data.dataroot, model.config.data.data_A, model.iteration) == (dataset, None, 2)
    model.fit(*folders.values(), max_iters=3)
    assert (model.config.data.dataroot, model.iteration) == (None, 3)
    with pytest.raises(UserError, match="give either --dataroot, or --data_A and --data_B, but not both"):
        CycleGAN(**TINY, dataroot=dataset, **folders)


def test_saving_into_an_existing_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.txt").write_text("mine")
    model = CycleGAN(**TINY)
    with pytest.raises(UserError, match=r"x already exists: choose another folder, or pass overwrite=True"):
        model.save(tmp_path / "x")
    model.save(tmp_path / "x", overwrite=True)
    model.save(tmp_path / "x")  # now its own folder
    assert (tmp_path / "x" / "notes.txt").read_text() == "mine"
    assert same(model, CycleGAN.load(tmp_path / "x"))
    assert CycleGAN.load(tmp_path / "x").iteration == 0


def test_loads_official_files_without_a_state(tmp_path: Path) -> None:
    model = CycleGAN(**TINY, affine=True, upsample="resize")
    for ours, official in {"G_AB": "G_A", "G_BA": "G_B", "D_B": "D_A", "D_A": "D_B"}.items():
        state = model.networks[ours].state_dict()
        torch.save(
            {f"module.{key}": value for key, value in state.items()}, tmp_path / f"5_net_{official}.pth"
        )
    again = CycleGAN.load(tmp_path, epoch="5")
    assert same(model, again)
    assert (again.config.model.ngf, again.config.model.affine, again.config.model.n_layers_D) == (2, True, 1)
    for path, message in (
        (tmp_path / "none", "not a folder"),
        (tmp_path / "5_net_G_A.pth", "use load_generator to load a single generator"),
    ):
        with pytest.raises(UserError, match=message):
            CycleGAN.load(path)
    with pytest.raises(UserError, match=r"latest_net_G_A.pth: no such file"):
        CycleGAN.load(tmp_path)


def test_invalid_settings_are_rejected() -> None:
    with pytest.raises(
        TypeError, match="CycleGAN has no setting 'lamda_identity'; did you mean lambda_identity"
    ):
        CycleGAN(lamda_identity=0)
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        CycleGAN(batch_size=0)
    with pytest.raises(
        UserError, match=r"the networks already exist, so ngf cannot change; pass it to CycleGAN\(\.\.\.\)"
    ):
        CycleGAN(**TINY).fit([(tensors(1), tensors(1))], ngf=4)


def test_direction_refers_to_the_training_folders() -> None:
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    model, turned = CycleGAN(**TINY), CycleGAN(**TINY, direction="BtoA")
    assert not np.array_equal(model.translate(array), model.translate(array, "BtoA"))
    assert np.array_equal(model.translate(array), turned.translate(array, "BtoA"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def poison(model: CycleGAN) -> None:
    with torch.no_grad():
        next(model.D_A.parameters())[0, 0, 0, 0] = math.nan


def test_translating_has_the_defaults_of_the_command_line() -> None:
    parameters = inspect.signature(CycleGAN.translate).parameters
    for setting in dataclasses.fields(TileSettings):
        assert parameters[setting.name].default == setting.default
        assert getattr(TranslateConfig, setting.name) == setting.default


def test_weights_that_are_no_numbers_are_neither_saved_nor_trained(tmp_path: Path) -> None:
    """What was saved before stays, and no folder is created."""
    model = CycleGAN(**TINY)
    model.fit([tensors(1)] * 2, [tensors(1)], max_iters=2)
    model.save(tmp_path / "kept")
    before = contents(tmp_path / "kept")
    poison(model)
    for folder in (tmp_path / "kept", tmp_path / "new"):
        with pytest.raises(
            UserError, match=rf"{folder.name}: not saved, because D_A\.model\.0\.weight contains nan; files"
        ):
            model.save(folder)
    assert contents(tmp_path / "kept") == before
    assert not (tmp_path / "new").exists()
    with pytest.raises(
        UserError,
        match=r"^the model in memory cannot be trained: nets\.D_A\.model\.0\.weight contains nan; load a",
    ):
        model.fit([tensors(1)], [tensors(1)], max_iters=3)
    assert CycleGAN.load(tmp_path / "kept").fit([tensors(1)] * 2, [tensors(1)], max_iters=3)


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_run_that_diverged_says_what_is_left(tmp_path: Path, ema: float) -> None:
    """In memory, nothing that can be trained or saved. After an own folder was written, its last state."""
    settings = {**TINY, "lr": 1e38, "ema": ema, "n_epochs": 9}
    model = CycleGAN(**settings)
    lost = r"; the weights in memory are lost, so create or load a CycleGAN again; half the .* is 5e\+37"
    with pytest.raises(UserError, match=rf"(^loss \w+ is (nan|inf) at iteration \d+|^\S+ contains .*){lost}"):
        model.fit([tensors(1)], [tensors(1)])
    with pytest.raises(UserError, match=r"^the model in memory cannot be trained: .*; load a saved one with"):
        model.fit([tensors(1)], [tensors(1)])
    with pytest.raises(UserError, match=r"x: not saved, because .* contains "):
        model.save(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_an_infinite_weight_after_the_last_iteration_ends_the_run() -> None:
    """No later loss shows it."""
    model = CycleGAN(**TINY, max_iters=1)
    next(model.D_A.parameters()).register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(UserError, match=r"^D_A\.model\.0\.weight contains nan after iteration 1; the"):
        model.fit([tensors(1)], [tensors(1)])


def test_files_with_weights_that_overflow_are_refused(tmp_path: Path) -> None:
    model = CycleGAN(**TINY)
    model.save(tmp_path / "x")
    (tmp_path / "x" / SETS).unlink()  # it has the files' checksums
    file = tmp_path / "x" / "latest_net_D_A.pth"
    weights = {key: value.double() for key, value in load_tensors(file).items()}
    weights["model.0.weight"] = weights["model.0.weight"] * 0 + 1e300
    torch.save(weights, file)
    with pytest.raises(UserError, match=r"latest_net_D_A\.pth"):
        CycleGAN.load(tmp_path / "x")
    model.fit([tensors(1)], [tensors(1)], max_iters=1)
    model.save(tmp_path / "y")
    state = to_cpu(load_tensors(tmp_path / "y" / "state.pt"))
    state["nets"]["D_A"]["model.0.weight"].fill_(math.inf)
    torch.save(state, tmp_path / "y" / "state.pt")
    with pytest.raises(UserError, match=r"state\.pt: nets\.D_A\.model\.0\.weight contains values"):
        CycleGAN.load(tmp_path / "y")


def test_a_bad_batch_in_parts_leaves_the_model_as_it_was() -> None:
    bad = tensors(4, 3)
    bad[3] = math.nan
    model, whole = (CycleGAN(**TINY, micro_batch=2, ema=0.5) for _ in range(2))
    with pytest.raises(UserError, match=r"^batch 2 of loader A: images of domain A .* got NaN$"):
        model.fit([tensors(4), bad], [tensors(4, 1)])
    whole.fit([tensors(4), bad], [tensors(4, 1)], max_iters=1)
    assert same(model, whole)
    model.fit([tensors(4), tensors(4)], [tensors(4, 1)])  # the rest of the run
    assert model.iteration == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: CycleGAN("photos"),
            "CycleGAN: config must be a TrainConfig, got 'photos'; images are",
        ),
        (
            lambda: CycleGAN(**TINY).fit([tensors(1)], [tensors(1)], callbacks=print),
            r"fit: callbacks must be a list of functions, got one function f: pass \[f\]",
        ),
    ],
)
def test_mistakes_with_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^{message}"):
        call()


IMAGES = tensors(1)  # made before a test changes torch's defaults


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def usual_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of ``trained_everywhere`` with torch's usual defaults."""
    root = tmp_path_factory.mktemp("usual")
    trained_everywhere(root)
    return root


def trained_everywhere(root: Path) -> None:
    """Train on files, resume, translate, save and load in every way, with random numbers in the losses."""
    for name, seed in (("A", 0), ("B", 1)):
        write_images(root / name, 3, size=(20, 20), seed=seed)
    settings = {**TINY, "gan_mode": "wgangp", "ema": 0.5, "batch_size": 2, "micro_batch": 1, "n_epochs": 2}
    model = CycleGAN(**settings, use_dropout=True, display_freq=1)
    model.fit(root / "A", root / "B", folder=root / "run", max_iters=2)
    loaded = CycleGAN.load(root / "run")
    loaded.fit(folder=root / "run", max_iters=4)
    loaded.fit([IMAGES], [IMAGES.double()], max_iters=5, iterations_per_epoch=9)
    Image.fromarray(np.asarray(loaded.translate(root / "A" / "000.png"))).save(root / "x.png")
    loaded.save(root / "saved")
    net = load_generator(root / "saved", dtype=torch.bfloat16)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    net = load_generator(root / "saved")
    net.save_pretrained(root / "hub")
    hub = type(net).from_pretrained(root / "hub")
    assert {p.dtype for p in [*net.parameters(), *hub.parameters()]} == {torch.float32}
    assert all(p.device.type == "cpu" and not p.is_inference() for p in hub.parameters())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), hub.parameters(), strict=True))
    args = ["--weights", str(root / "saved"), "--input", str(root / "B"), "--output", str(root / "out")]
    assert cli.translate([*args, "--device", "cpu", "--loader", "folder"]) == 0


@pytest.mark.parametrize(
    "changed",
    [
        (lambda: default_dtype(torch.float64),),
        (lambda: default_dtype(torch.float16), torch.no_grad),
        (lambda: default_dtype(torch.bfloat16), lambda: default_device("meta")),
        (torch.inference_mode, lambda: torch.device("meta")),
        (deterministic,),
    ],
    ids=["float64", "float16", "bfloat16", "inference", "deterministic"],
)
def test_what_the_caller_set_in_torch_changes_nothing(usual_run: Path, tmp_path: Path, changed: Any) -> None:
    """Every bit of the weights, the state, the samples and the translations is the same."""
    with contextlib.ExitStack() as stack:
        for change in changed:
            stack.enter_context(change())
        before = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
        trained_everywhere(tmp_path)
        assert before == (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled())
    for folder in ("run", "saved"):
        assert_same_state(usual_run / folder, tmp_path / folder)
    files = ("x.png", "run/samples/0000002.png", "out/000.png", "out/001.png", "out/002.png")
    for file in files:
        assert (usual_run / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_callbacks_can_save_snapshots_elsewhere(tmp_path: Path) -> None:
    """Each snapshot is that of its iteration, and the model can go on in the folder of its run."""
    model = CycleGAN(**TINY)
    found = []

    def snapshot(model: CycleGAN, record: dict[str, Any]) -> None:
        model.save(tmp_path / "snap", overwrite=True)
        found.append((record["iteration"], CycleGAN.load(tmp_path / "snap").iteration))

    images = [tensors(1)] * 2
    options: Any = {"folder": tmp_path / "run", "print_freq": 1, "n_epochs": 1, "n_epochs_decay": 0}
    model.fit(images, images, callbacks=[snapshot], **options)
    assert found == [(1, 1), (2, 2)]
    model.fit(images, images, **{**options, "n_epochs": 2})
    assert CycleGAN.load(tmp_path / "run").iteration == 4


def test_a_callback_cannot_train_the_model(tmp_path: Path) -> None:
    model = CycleGAN(**TINY)
    images = [tensors(1)] * 2
    with pytest.raises(UserError, match=r"^fit: this model is being trained already"):
        model.fit(images, images, print_freq=1, n_epochs=1, callbacks=[lambda m, r: m.fit(images, images)])
    model.fit(images, images, n_epochs=1, n_epochs_decay=0)
    assert model.iteration == 2


@pytest.mark.parametrize("trained", [True, False])
def test_the_command_line_does_not_train_a_saved_model_on_the_built_in_images(
    trained: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The configuration of a model that loaders trained names no images, as that of a built-in run does."""
    model = CycleGAN(**TINY)
    if trained:
        model.fit([tensors(1)], [tensors(1)], n_epochs=1, n_epochs_decay=0)
    model.save(tmp_path / "kept")
    before = {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()}
    resumed = ["--continue_train", "--checkpoints_dir", str(tmp_path), "--name", "kept", "--device", "cpu"]
    assert cli.train(resumed) == 2
    line = "kept: its configuration does not say which images it was trained on: name them with --dataroot"
    assert line in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (tmp_path / "kept").iterdir()} == before
