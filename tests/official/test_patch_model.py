"""In float64, training a checkout with our step gives the same weights, losses and files as with its own.

Generated images are computed on demand.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcyclegan.official.patch_model import Options
from tests.conftest import write_images
from tests.official.training import (
    BASE,
    MODEL,
    NETWORKS,
    STEP,
    Edits,
    assert_ours,
    assert_same,
    checkout,
    train,
)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param("", id="defaults"),
        # Batches of 2 from 5 images: the last one is incomplete, and the pool fills up within the second.
        pytest.param("--batch_size 2 --direction BtoA", id="batches"),
        # One pool stores images of several sizes.
        pytest.param("--preprocess none", id="sizes"),
        # With batch norm, the order of the passes and the running statistics matter.
        pytest.param("--norm batch --batch_size 3 --gan_mode vanilla", id="batch norm"),
        pytest.param(
            "--netG unet_32 --netD pixel --lambda_identity 0 --pool_size 0", id="U-Net, no identity, no pool"
        ),
    ],
)
# A scheduler warns if it thinks that its optimizer has not stepped.
@pytest.mark.filterwarnings("error:Detected call of")
def test_a_seeded_run_matches_the_checkouts(tmp_path: Path, images: Path, flags: str) -> None:
    folder = checkout(tmp_path)
    if "none" in flags:
        write_images(images / "trainA", 2, size=(40, 24), seed=9)
    ours = train(folder, images, flags, Options())
    assert_ours(ours[2])
    assert_same(ours, train(folder, images, flags, None))


VARIANTS: dict[str, Edits] = {
    # The code of 2017-19 has an optional sigmoid and no gan_mode.
    "old": [
        (
            NETWORKS,
            "n_layers=3, norm_layer=nn.BatchNorm2d):",
            "n_layers=3, norm_layer=nn.BatchNorm2d, use_sigmoid=False):",
        ),
        (
            NETWORKS,
            "norm_layer=norm_layer)\n    return init",
            "norm_layer=norm_layer, use_sigmoid=False)\n    return init",
        ),
        (MODEL, "networks.GANLoss(opt.gan_mode)", "networks.GANLoss('lsgan')"),
        (
            MODEL,
            "self.loss_names = [",
            "del opt.gan_mode\n        opt.no_lsgan = False\n        self.loss_names = [",
        ),
    ],
    # In the code of 2025, setup() initialises the networks, and a device replaces gpu_ids.
    "new": [
        (NETWORKS, "    return init_net(net, init_type, init_gain, gpu_ids)", "    return net"),
        (
            BASE,
            "def setup(self, opt):",
            (
                "def setup(self, opt):\n        for n in self.model_names: networks.init_net(getattr(self,"
                " 'net' + n))"
            ),
        ),
    ],
    # With one GPU, the official init_net wraps networks like this.
    "wrapped": [
        (
            NETWORKS,
            "init_weights(net, init_type, init_gain)",
            "net = nn.DataParallel(net)\n    init_weights(net)",
        )
    ],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkouts_of_other_years(tmp_path: Path, images: Path, variant: str) -> None:
    folder = checkout(tmp_path, VARIANTS[variant])
    ours = train(folder, images, "", Options(), epochs=2)
    assert_ours(ours[2])
    official = train(folder, images, "", None, epochs=2)
    assert_same(ours, official)
    saved = []
    for model, _, _ in (ours, official):
        model.save_networks("7")
        saved.append(
            {path.name: torch.load(path) for path in sorted(Path(model.save_dir).glob("7_net_*.pth"))}
        )
    assert [list(weights) for weights in saved[0].values()] == [
        list(weights) for weights in saved[1].values()
    ]
    assert (
        saved[0].keys() == saved[1].keys() == {f"7_net_{name}.pth" for name in ("G_A", "G_B", "D_A", "D_B")}
    )


def test_comparing_leaves_no_trace_and_images_are_computed_on_demand(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastcyclegan.official import patch_model

    def states() -> list[Any]:
        weights = [value.clone() for value in [*G.state_dict().values()]] if G is not None else []
        return [
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            [w.tolist() for w in weights],
        ]

    G: Any = None
    unchanged: list[bool] = []

    def checked(model: Any, *args: Any) -> float:
        nonlocal G
        G = model.netG_A
        before = states()
        difference = compare_steps(model, *args)
        unchanged.append(states() == before)
        return difference

    compare_steps = patch_model.compare_steps
    monkeypatch.setattr(patch_model, "compare_steps", checked)
    model, _, _ = train(checkout(tmp_path), images, "--norm batch", Options(), epochs=1)
    assert unchanged == [True]
    before = states()
    visuals = model.get_current_visuals()
    assert list(visuals) == ["real_A", "fake_B", "rec_A", "idt_B", "real_B", "fake_A", "rec_B", "idt_A"]
    assert states() == before
    assert torch.equal(visuals["rec_A"], model.netG_B(model.netG_A(model.real_A)).detach())
    assert float(model.loss_G) == pytest.approx(
        sum(loss for name, loss in model.get_current_losses().items() if name[:2] != "D_")
    )
    # The moments are there for forks that save the optimizers.
    assert model.optimizer_G.state_dict()["state"][0]["exp_avg"].any()
    with pytest.raises(AttributeError, match="no attribute 'fake_C'"):
        _ = model.fake_C


@pytest.mark.gpu
def test_our_step_on_a_gpu(tmp_path: Path, images: Path) -> None:
    """Our step trains a checkout on a GPU: with the kernels in fp32, then in bf16 with a CUDA graph.

    In fp32 the losses match the checkout's until Adam turns the rounding errors of gradients near 0 into
    steps.
    """
    folder = checkout(tmp_path)
    settings: dict[str, Any] = {"flags": "--lr 0.0002 --gpu_ids 0", "dtype": torch.float32}
    _, ours, logged = train(folder, images, options=Options("fp32"), **settings)
    assert any(
        line.startswith(
            "training step: replaced by fastcyclegan's, on cuda:0 in fp32, networks computed by triton"
        )
        for line in logged
    ), logged
    _, official, _ = train(folder, images, options=None, **settings)
    for row, official_row in zip(ours[:3], official[:3], strict=True):
        assert row == pytest.approx(official_row, rel=0.01)
    model, ours, logged = train(folder, images, options=Options(compile=True), **settings)
    assert any("in bf16, compiled, networks computed by triton" in line for line in logged), logged
    before = [p.data_ptr() for p in model.netG_A.parameters()]
    model.save_networks("1")
    assert [p.data_ptr() for p in model.netG_A.parameters()] == before
    model.optimize_parameters()
    assert all(np.isfinite(list(losses.values())).all() for losses in ours)
    assert next(model.netG_A.parameters()).is_cuda


def test_training_resumes_from_the_checkouts_files(tmp_path: Path, images: Path) -> None:
    folder = checkout(tmp_path)
    model, _, _ = train(folder, images, "", None, epochs=1)
    model.save_networks("latest")
    ours, official = (
        train(folder, images, "--continue_train", options, epochs=1) for options in (Options(), None)
    )
    assert any(line.startswith(STEP) for line in ours[2])
    assert_same(ours, official)
