"""The three stages of the GPU suite, each a list of parts with the most informative first.

1. Correctness: kernels at real sizes, then the networks, then all other tests.
2. The engine: captured iterations compared with uncaptured ones, every option, the comparison with the
   official training steps of CycleGAN and pix2pix, and the costliest kernels.
3. The benches, the most informative first.
"""

from __future__ import annotations

from bench.gpu_tasks import Benches, Command, Options, Part
from bench.gpu_test_task import Tests

# Each stage ends before the 10 minute limit of a call. The first one is short, to leave time for fixes.
SECONDS = {1: 230.0, 2: 480.0, 3: 560.0}
TITLES = {1: "correctness", 2: "the engine", 3: "the benches"}
KERNELS = ("instance_norm", "reflect_conv", "residual_block", "zero_conv", "norm_conv", "working_copies")
# Tests of the operators' contracts with PyTorch, of their launches and of shared code, which run after the
# kernels' own tests.
SHARED = (
    "instance_norm_operator", "reflect_conv_operator", "zero_conv_operator", "checks", "convolution",
    "reflect_conv_passes", "zero_conv_launch", "border_launch", "instance_norm_launch", "math", "products",
    "weights", "weight_gradients",
)  # fmt: skip
DESCRIPTORS = ("descriptor_launch", "descriptor_forms", "descriptor_driver")
NETWORKS = (
    *(f"tests/nn/test_{name}.py" for name in ("layers", "layer_checks", "deferred", "chains", "networks")),
    "tests/compat/test_networks.py",
    "tests/compat/test_in_projects.py",
)
OTHERS = (
    "tests/official/test_patch_model.py",
    "tests/fusion/test_accelerate.py",
    "tests/data/test_cached_loader.py",
)
CAPTURES = (
    "tests/engine/test_ahead.py",
    "tests/engine/test_failed_capture_gpu.py",
    "tests/engine/test_graph_memory.py",
)
OF_CAPTURES = ("first_iteration", "real_failure", "reports_the_reason", "expected_numbers", "memory_bound")
AT_REAL_SIZES = ("real_shapes", "replayed", "stream_of_their_own")
# These tests run one at a time, because each takes a third of the memory.
TOO_LARGE = ("two_to_the_31",)


def _kernel_tests(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/kernels/test_{name}.py" for name in names)


STAGES: dict[int, list[Part]] = {
    1: [
        Tests(
            "descriptors", _kernel_tests(*DESCRIPTORS), 45, keywords=("driver", "descriptor"), workers=4
        ),
        *(
            Tests(f"{name} at real sizes", _kernel_tests(name), 60, keywords=AT_REAL_SIZES)
            for name in KERNELS[:-1]
        ),
        Tests("overlapped weight gradients", _kernel_tests("overlap"), 30, keywords=AT_REAL_SIZES, workers=1),
        Tests("networks", NETWORKS, 60),
        Tests(
            "offsets past 31 bits", _kernel_tests("instance_norm", "reflect_conv", "zero_conv"), 40,
            keywords=TOO_LARGE, workers=1,
        ),
        Tests(
            "all other tests of kernels", _kernel_tests(*KERNELS, *SHARED), 150,
            exclude=(*AT_REAL_SIZES, *TOO_LARGE), rehearsed_tests=1, rehearsal_workers=2,
        ),
    ],
    2: [
        Tests(
            "captured and uncaptured iterations", ("tests/engine/test_cuda_graph.py",), 150,
            keywords=("cuda_graph", "waits_for_the_gpu"), workers=8,
        ),
        Tests(
            "captured and uncaptured iterations of pix2pix", ("tests/recipes/test_pix2pix.py",), 60,
            keywords=("cuda_graph",), workers=2,
        ),
        Tests(
            "an iteration compared with float64", ("tests/engine/test_engine.py",), 60,
            keywords=("bf16_on_the_gpu",), workers=1,
        ),
        Options("every option", 200),
        Tests(
            "compiled ahead, failed captures", CAPTURES, 60, keywords=OF_CAPTURES, workers=6,
            rehearsed_tests=1,
        ),
        Command(
            "comparison with the official step",
            ("scripts/prove.py", "--seconds", "60", "--output", "RESULTS/proof.png"), 150, shown=14,
            in_rehearsal=("--no_compile", "--size", "32", "--seconds", "1"), with_fault=("--plant-fault",),
        ),
        Command(
            "comparison of pix2pix with the official step",
            (
                "scripts/prove.py", "--model", "pix2pix", "--seconds", "20", "--output",
                "RESULTS/proof_pix2pix.png",
            ),
            80, shown=16, gpu_only=True, with_fault=("--plant-fault",),
        ),
        Command(
            "the costliest kernels", ("scripts/profile_step.py", "--output", "RESULTS"), 70, shown=24,
            in_rehearsal=("--provider", "ours", "--size", "24", "--blocks", "1"),
        ),
        Tests(
            "official checkouts, accelerate, caches", OTHERS, 60, keywords=("gpu",), workers=6,
            rehearsed_tests=1,
        ),
    ],
    3: [
        Benches("ceilings", "bench_ceilings.py", 30),
        Benches("training step", "bench_train_step.py", 220, "batch1-identity"),
        Benches("generator", "bench_generator.py", 80, "256-1-"),
        Benches("training step of pix2pix", "bench_train_step.py", 100, "pix2pix and batch"),
        Benches("residual block", "bench_residual_block.py", 60),
        Benches(
            "products of the block", "bench_reflect_conv.py", 40, "products_of_the_block", gpu_only=True
        ),
        Benches("reflected convolution", "bench_reflect_conv.py", 60, "bench_reflect_conv and not products"),
        Benches("other convolutions", "bench_zero_conv.py", 50),
        Benches("instance norm", "bench_instance_norm.py", 40),
        Benches("training step, batch 4", "bench_train_step.py", 120, "batch4-identity", gpu_only=True),
        Benches("generator of pix2pix", "bench_generator.py", 60, "pix2pix and batch"),
        Benches("generator, more images", "bench_generator.py", 80, "not 256-1- and not pix2pix"),
        Benches("training step of pix2pix, instance norm", "bench_train_step.py", 60, "pix2pix and instance"),
        Benches("accelerate", "bench_accelerate.py", 40),
        Benches("state", "bench_state.py", 40),
        Benches("loader", "bench_loader.py", 60),
    ],
}  # fmt: skip
