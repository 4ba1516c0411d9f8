"""The engine's rows in the table at the start of a run."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import torch

from fastcyclegan.config import OptimConfig
from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.engine import Engine
from fastcyclegan.kernels.dispatch import as_on_gpu
from fastcyclegan.recipes.pix2pix import Pix2PixModel, Pix2PixRecipe
from tests.engine.kernel_engine import engine


def test_the_table_reports_kernels_compiled_ahead() -> None:
    kernel_engine = engine()
    assert "kernels" not in kernel_engine.describe()
    kernel_engine.choices = dataclasses.replace(kernel_engine.choices, compile_ahead=True)
    assert (
        kernel_engine.describe()["kernels"]
        == "compiled before the first iteration, if missing from Triton's cache"
    )


def pix2pix_rows(impl: str, **model: Any) -> dict[str, str]:
    """Return the table of a pix2pix run: on a GPU if ``impl`` is "triton", otherwise on a CPU."""
    config = Pix2PixModel(netG="unet_32", ngf=4, ndf=4, impl="auto" if impl == "triton" else impl, **model)
    recipe = Pix2PixRecipe(model=config)
    with contextlib.ExitStack() as stack:
        if impl == "triton":
            stack.enter_context(as_on_gpu())
            stack.enter_context(dry_run())
        nets = recipe.build_networks()
        return Engine(recipe, nets, OptimConfig(), torch.device("cpu"), "fp32").describe()


def test_the_table_of_a_unet_on_a_gpu_names_what_computes_its_layers() -> None:
    """The library is that of the device, which is a CPU here."""
    rows = pix2pix_rows("triton", norm="instance")
    assert rows["impl"] == "triton"
    # Neither are there reflection-padded convolutions, nor networks that run as one.
    assert rows["convolutions"] == "strided, transposed and 4x4: oneDNN"
    assert rows["norms"] == "instance: Triton, fused with the activation"
    rows = pix2pix_rows("triton")
    assert rows["impl"] == "triton, but PyTorch computes every layer"
    assert rows["norms"] == "batch: PyTorch"


def test_the_table_of_a_resnet_in_pix2pix_has_reflection_padded_convolutions() -> None:
    config = Pix2PixModel(netG="resnet_1blocks", ngf=4, ndf=4)
    with as_on_gpu(), dry_run():
        recipe = Pix2PixRecipe(model=config)
        rows = Engine(recipe, recipe.build_networks(), OptimConfig(), torch.device("cpu"), "fp32").describe()
    assert rows["convolutions"].startswith("reflection-padded: Triton")
    assert rows["impl"] == "G triton, D triton, but PyTorch computes every layer"
    assert rows["norms"] == "batch: PyTorch"


def test_the_table_of_cyclegan_names_triton_for_pairs() -> None:
    rows = engine().describe()
    assert rows["convolutions"].endswith(
        "strided, transposed and 4x4: Triton for paired networks, oneDNN for single ones"
    )
    assert rows["norms"] == "instance: Triton, fused with the activation"
    rows = engine(pairing="off").describe()
    assert rows["convolutions"].endswith("strided, transposed and 4x4: oneDNN")


def test_the_table_of_a_unet_on_a_cpu_names_what_computes_its_layers() -> None:
    rows = pix2pix_rows("cpp", norm="instance")
    assert rows["convolutions"] == "the C++ kernels where there is one, otherwise oneDNN"
    assert rows["norms"] == "instance: the C++ kernels, fused with the activation"
    assert pix2pix_rows("cpp")["norms"] == "batch: PyTorch"
    rows = pix2pix_rows("reference", norm="instance")
    assert rows["convolutions"] == "oneDNN for all"
    assert rows["norms"] == "instance: PyTorch"
    assert pix2pix_rows("reference", norm="none")["norms"] == "none"
