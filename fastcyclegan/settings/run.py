"""The settings of a run: its name, its files, its device and its precision."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import described
from fastcyclegan.settings.checks import check_minimum, check_types, is_folder_name


@dataclass(frozen=True)
class RunConfig:
    """The run: its name, its files, its device and its precision."""

    #: Name of the run's folder in --checkpoints_dir. Default: the dataset's name and a number.
    name: str | None = None
    #: Folder that contains the folders of all runs.
    checkpoints_dir: Path = Path("runs")
    #: Resume the run named by --name where it stopped, with its saved settings. Flags given now override
    #: them.
    continue_train: bool = False
    #: Replace the run named by --name if it exists.
    overwrite: bool = False
    #: With --continue_train, start from the *_net_*.pth files of this epoch (5, iter_1000, best, ...) instead
    #: of the saved state. latest: start from such files only if there is no state. previous: resume from the
    #: state before the last one, in case the run diverged.
    epoch: str = "latest"
    #: Compile the networks with torch.compile.
    compile: bool = False
    #: Device to train on: cpu, cuda, cuda:N or mps; auto uses cuda if available, then mps, then cpu.
    device: str = "auto"
    #: Official flag: 0 means --device cuda:0, -1 means --device cpu.
    gpu_ids: str | None = None
    #: Precision of the networks' computation; weights and losses are always fp32. auto: bf16 on a GPU that
    #: supports it, and with --compile on a CPU that supports it, otherwise fp32.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    #: Seed for the initial weights, the samples and the replay pools.
    seed: int = 0
    #: Number of images between log lines. Default: one line per second in a terminal, otherwise one every ten
    #: seconds.
    print_freq: int | None = None
    #: Number of images between sample grids. Default: one every 30 seconds in the first ten minutes, then one
    #: whenever the run has lasted 5% longer, or less often if they would take more than 5% of the time.
    display_freq: int | None = None
    #: Keep at most this many sample grids, at least 2. The others are removed so that those kept are spread
    #: evenly on a logarithmic scale of iterations: close together at first, then ever rarer.
    keep_samples: int = 100
    #: Number of images between saves of the training state. Default: one every 5 minutes, or less often if
    #: they would take more than 1% of the time.
    save_latest_freq: int | None = None
    #: Every --save_latest_freq images, save the weights as iter_N instead of latest.
    save_by_iter: bool = False
    #: Number of epochs between permanent copies of the weights (5_net_G_A.pth and so on); 0 keeps no copies.
    save_epoch_freq: int = 5
    #: Keep only the newest N permanent copies of the weights (5_net_G_A.pth and so on). The copies of
    #: save_by_iter are counted separately. Default: keep all.
    keep_epochs: int | None = None
    #: Also log to Weights & Biases (extra wandb).
    use_wandb: bool = False
    #: Name of the project there, with --use_wandb.
    wandb_project_name: str = "CycleGAN-and-pix2pix"
    #: Print the resolved configuration and exit.
    dry_run: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_minimum(self, 0, "seed", "save_epoch_freq")
        if self.seed >= 2**63:
            raise UserError(f"seed must be below 2**63, got {self.seed}")
        check_minimum(self, 1, "print_freq", "display_freq", "save_latest_freq", "keep_epochs")
        check_minimum(self, 2, "keep_samples")
        if self.name is not None and not is_folder_name(self.name):
            raise UserError(f"name must be a plain folder name, got {described(self.name)}")
        if self.continue_train and self.overwrite:
            raise UserError("--continue_train and --overwrite contradict each other")
        if self.epoch != "latest" and not self.continue_train:
            raise UserError("--epoch needs --continue_train")
        if not re.fullmatch(r"latest|previous|best|(iter_)?[0-9]{1,18}", self.epoch):
            raise UserError(
                f"epoch must be latest, previous, best, a number or iter_N, got {described(self.epoch)}"
            )
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,2})?", self.device):
            raise UserError(f"device must be auto, cpu, cuda, cuda:N or mps, got {described(self.device)}")
        if self.gpu_ids is not None and not re.fullmatch(r"-1|[0-9]{1,2}", self.gpu_ids):
            raise UserError(
                "gpu_ids must be one number, or -1 for the CPU (a run uses one GPU), got"
                f" {described(self.gpu_ids)}"
            )
        if not self.wandb_project_name:
            raise UserError("wandb_project_name must not be empty")
        if self.gpu_ids is not None and self.device != "auto":
            raise UserError("--gpu_ids and --device both set the device: give only one of them")
