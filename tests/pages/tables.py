"""How the tests run the pages: placeholders, smaller sizes, exit codes, and commands that run elsewhere.

Every entry must match a command or an example of a page, so that none outlives what it was made for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tests.commands import TINY
from tests.pages.page import Code

# Names in capitals that stand for something of the reader's.
PLACEHOLDERS = {
    "CHECKOUT": "checkout",
}

FLAGS = " ".join(TINY)
OFFICIAL = "--ngf 2 --ndf 2 --netG resnet_1blocks --netD pixel"
# Replacements that keep commands and examples short, in this order.
SMALLER = {
    # Training. Compiling takes a minute even for small networks; test_long_commands.py does it.
    "train.py --compile": f"train.py {FLAGS} --max_iters 2",
    "train.py --data_A": f"train.py {FLAGS} --max_iters 2 --data_A",
    "train.py --continue_train": "train.py --device cpu --num_threads 0 --max_iters 4 --continue_train",
    "/train.py --dataroot": f"/train.py {OFFICIAL} --n_epochs 1 --n_epochs_decay 0 --dataroot",
    "/test.py --dataroot": f"/test.py {OFFICIAL} --dataroot",
    "--init_from latest_net_G_A.pth --warmup_D 500": (
        "--init_from runs/maps_pretrained/latest_net_G_A.pth --warmup_D 1"
    ),
    # Read what was written. The server would run until it is stopped.
    "tensorboard --logdir runs": "tensorboard --logdir runs --inspect",
    # A file instead of the network.
    "download_dataset.py horse2zebra": "download_dataset.py horse2zebra --archive horse2zebra.zip",
    # Tiles, of images of 30x30.
    "--tile 512": "--tile 16",
    "tile=512": "tile=16",
    # Benches.
    "profile_step.py --provider ours_compiled": "profile_step.py --provider ours --size 32 --blocks 1",
    "pytest bench/ ": "pytest bench/ --bench-quick -k 'instance_norm and not compiled' ",
    "bench/bench_NAME.py": "bench/bench_instance_norm.py --bench-quick -k 'not compiled'",
    "bench/bench_train_step.py bench/bench_generator.py bench/bench_translate.py bench/bench_processor.py": (
        "bench/bench_processor.py --bench-quick"
    ),
    "bench/bench_accelerate.py": "bench/bench_accelerate.py --bench-quick -k 'not compiled'",
    # An older result, measured in the same way, than which none is slower: the new one itself.
    "--against old.json": "--against new.json",
    # Results of a GPU, which there are none of yet.
    "bench/results/GPU.json ": "",
    "bench.built_in_quality": "bench.built_in_quality --seeds 1 --max_iters 2 --device cpu",
    # Kernels take minutes in Triton's interpreter: whether the command selects tests.
    "test_instance_norm.py -k float32": "test_instance_norm.py -k float32 --collect-only",
    # Commands for a GPU: whether they select tests and benches, in folders within this one.
    "-p no:cacheprovider": "-p no:cacheprovider --collect-only",
    "/opt/": "opt/",
    # Examples.
    'netG="resnet_6blocks", load_size=143, crop_size=128': (
        'netG="resnet_1blocks", ngf=2, ndf=2, load_size=26, crop_size=24, num_threads=0'
    ),
    'netG="unet_128", load_size=143, crop_size=128': (
        'netG="unet_32", ngf=2, ndf=2, load_size=34, crop_size=32, num_threads=0'
    ),
    'model.fit("pairs")': 'model.fit("photos", "paintings")',
    "load_size=64, crop_size=64, max_iters=2": "load_size=26, crop_size=24, max_iters=2",
    "n_epochs=50, n_epochs_decay=50": "n_epochs=1, n_epochs_decay=0",
    "n_epochs=50,\n    n_epochs_decay=50": "n_epochs=1,\n    n_epochs_decay=0",
    "n_epochs_decay=60": "n_epochs_decay=1",
    "n_epochs_decay=70": "n_epochs_decay=2",
    "torch.rand(1, 3, 256, 256)": "torch.rand(1, 3, 64, 64)",
    # Metrics without networks that would be downloaded.
    "--fake painted --real paintings --json": "--fake photos --real paintings --metrics l1 psnr --json",
    'evaluate("painted"': 'evaluate("photos"',
    'torch.hub.load("facebookresearch/dinov2", "dinov2_vitb14").eval()': (
        "torch.nn.Sequential(torch.nn.Conv2d(3, 8, 32, 32), torch.nn.AdaptiveAvgPool2d(1),"
        " torch.nn.Flatten())"
    ),
}

# Commands that do not run here, and where they are run: a test, .ci/run (with the line that does it, if
# it is not the very command), or by hand, with the reason. A command that ends in an asterisk stands for
# all that begin like it. The extra test contains dali, log and bench.
INSTALLS = '.ci/run: python -m pip install --quiet -e ".[test]"'
PROFILE = "tests/bench/test_profile_step.py::test_profiles_a_step_on_this_machine"
ELSEWHERE = {
    'python -m pip install -e ".[dali,log]"': INSTALLS,
    'python -m pip install -e ".[bench]"': INSTALLS,
    'python -m pip install -e ".[metrics]"': INSTALLS,
    'python -m pip install -e ".[test]"': ".ci/run",
    'python -m pip install -e ".[test]" && python -m pytest': ".ci/run",
    "python3.11 -m venv *": ".ci/run: python3 -m venv",
    "python -m pytest": ".ci/run",
    ".ci/run": "tests/test_project_files.py::test_ci_only_calls_the_script",
    "git clone *": "by hand: needs the network",
    "pipx run --spec . fastcyclegan-train": "by hand: needs pipx, and installs torch once more",
    "pip install -e .": "tests/recipes/test_plug_in.py::test_help_shows_the_flags_of_the_recipe",
    "python scripts/train.py --model sketch *": (
        "tests/recipes/test_plug_in.py::test_it_trains_on_single_images_and_in_python"
    ),
    "python -m pip install pre-commit && pre-commit install": "by hand: changes what git runs",
    "python -m pytest -m slow*": "by hand: takes longer than all other tests",
    "python scripts/compile_kernels.py": ".ci/run: python scripts/compile_kernels.py --arch sm_90",
    "python scripts/compile_kernels.py --warm *": (
        "tests/kernel_gate/test_warm.py::test_filling_the_cache_reports_each_stage"
    ),
    "python scripts/prove.py --data_A *": "tests/bench/test_prove.py::test_runs_on_the_users_own_images",
    "timeout 200 python scripts/prove.py *": (
        "tests/bench/test_prove.py::test_prints_and_draws_a_passing_proof"
    ),
    "timeout 100 python scripts/prove.py --model pix2pix *": (
        "tests/bench/test_pix2pix_baseline.py::test_prove_compares_pairs_of_one_scene"
    ),
    "python scripts/train.py --data_A photos --data_B paintings --name tracked --use_wandb *": (
        "tests/training/test_wandb_tracker.py::test_a_run_logs_what_tensorboard_gets"
    ),
    "python scripts/evaluate.py --weights runs/photos2paintings --epoch best": (
        "tests/inference/test_evaluate.py::test_weights_of_other_epochs_and_their_averages"
    ),
    "python scripts/evaluate.py --fake painted --real paintings --features dinov2.pt *": (
        "tests/metrics/test_features.py::test_images_are_resized_as_asked"
    ),
    "python scripts/train.py --compile --data_A photos --data_B paintings --name judged *": (
        "tests/training/test_evaluated_runs.py::test_patience_ends_the_run_with_its_files_saved"
    ),
    "python scripts/profile_step.py": PROFILE,
    "python scripts/profile_step.py --provider ours_compiled --output *": PROFILE,
    "python -m bench.cpu_table": ("tests/bench/test_cpu_table.py::test_writes_both_times_of_every_layer"),
    "python -m bench.layer_shares": (
        "tests/bench/test_layer_shares.py::test_prints_every_call_and_the_whole_iteration"
    ),
    "python -m bench.tile_memory*": (
        "tests/bench/test_tile_memory.py::test_each_size_is_measured_in_a_process_of_its_own"
    ),
    "python -m bench.tile_picture*": "tests/bench/test_tile_picture.py::test_draws_a_file",
    "python -m bench.loss_curves": "tests/pages/test_long_commands.py::test_loss_curves",
    "python scripts/gpu_suite.py*": "tests/bench/test_rehearsal.py::test_rehearses_a_stage",
    "timeout 200 python -m bench.gpu_options*": (
        "tests/bench/test_gpu_options.py::test_options_without_a_fault_pass"
    ),
    'python -c "import torch,triton;print(*': "by hand: prints the name of the GPU",
    "timeout 40 python -c *": "tests/kernels/test_reflect_conv.py::test_real_shapes",
}

# Commands that end with another exit code than 0, and why.
EXIT_CODES = {
    "python -m fastcyclegan.official": (2, "named in a sentence, without its script"),
}

# What the examples of a page make: expressions and their values.
RESULTS: dict[str, dict[str, object]] = {
    "README.md": {
        "list(fake.shape)": [1, 3, 64, 64],
        "painting.size": [24, 20],
        "model.iteration": 3,  # an epoch of the three images that are not held out
        "bool(torch.isfinite(loss))": True,
    },
    "fastcyclegan/README.md": {
        "list(logits.shape)": [1, 1, 6, 6],
        "bool(torch.isfinite(loss))": True,
        "[painting.size, photo.size]": [[24, 20], [24, 20]],
        "model.iteration": 9,  # three epochs
        "len(Path('losses.csv').read_text().splitlines()) >= 10": True,  # a line for each value
        "Path('samples_9.png').exists()": True,
    },
    "fastcyclegan/checkpoints/README.md": {
        "sorted(torch.load('latest_net_G.pth')) == sorted(G.state_dict())": True,
        "pathlib.Path('photos2paintings', 'README.md').exists()": True,
    },
    "fastcyclegan/fusion/README.md": {"list(y.shape)": [1, 16, 32, 32]},
    "fastcyclegan/tiles/README.md": {"painting.size": [24, 20]},
    "kernels/README.md": {"list(y.shape)": [2, 3, 16, 16]},
}
# Lines that they print.
PRINTED = {
    "README.md": "accelerate: 1 replaced, nothing skipped",
    "fastcyclegan/fusion/README.md": "accelerate: 2 replaced, nothing skipped",
}


def reduced(text: str) -> str:
    """Return a command or an example with values for placeholders, at its smaller size."""
    for name, value in PLACEHOLDERS.items():
        text = re.sub(rf"(?<![A-Z]){name}(?![A-Z_])", value, text)
    for long, short in SMALLER.items():
        text = text.replace(long, short)
    # In a table of commands, an installed command stands for itself.
    return f"{text} --help" if text.startswith("fastcyclegan-") and " " not in text else text


def place(command: str, elsewhere: dict[str, str] = ELSEWHERE) -> str | None:
    """Return where ``command`` is run if these tests do not run it."""
    for pattern, where in elsewhere.items():
        if command == pattern or (pattern.endswith("*") and command.startswith(pattern[:-1])):
            return where
    return None


def unmatched(codes: Iterable[Code]) -> list[str]:
    """Return the entries of the tables that match no command and no example of ``codes``."""
    texts = [code.text for code in codes]
    run = [text for text in texts if place(text) is None]
    entries = [*PLACEHOLDERS, *SMALLER]
    unused = [entry for entry in entries if not any(entry in text for text in run)]
    unused += [entry for entry in EXIT_CODES if entry not in run]
    return unused + [
        entry for entry in ELSEWHERE if not any(place(text, {entry: ""}) == "" for text in texts)
    ]
