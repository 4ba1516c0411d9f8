"""The settings for training that starts from trained networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import described
from fastcyclegan.settings.checks import check_minimum, check_types


@dataclass(frozen=True)
class FinetuneConfig:
    """Training that starts from generators which are trained already."""

    #: Start a new run from trained generators: one file (from A to B), two files (from A to B and from B to
    #: A), or a folder with latest_net_G_A.pth or latest_net_G_B.pth (latest_net_G.pth for pix2pix). A and B
    #: are the training folders, also with BtoA. The files can be any that translate.py reads. Settings of the
    #: generators that are not given are taken from them; the discriminators start with new weights.
    init_from: tuple[Path, ...] | None = None
    #: Start from this generator from B to A.
    init_from_B: Path | None = None
    #: Networks whose weights stay as they are, separated by commas; G_AB, G_BA, D_A and D_B for CycleGAN, G
    #: and D for pix2pix. They run without dropout, and with the running statistics of batch norms.
    freeze: str | None = None
    #: Train only the discriminators for this many iterations, counted from the first start of the run and as
    #: part of it, so that trained generators do not learn from discriminators that know nothing yet.
    warmup_D: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        check_minimum(self, 0, "warmup_D")
        if self.init_from is not None and not 1 <= len(self.init_from) <= 2:
            raise UserError(
                "--init_from takes a folder, one file (the generator from A to B), or two (the second is the"
                f" generator from B to A), got {len(self.init_from)}"
            )
        if self.freeze is not None and not all(self.frozen):
            raise UserError(
                f"freeze must be names of networks, separated by commas, got {described(self.freeze)}"
            )

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names in ``freeze``."""
        if self.freeze is None:
            return ()
        return tuple(name.strip() for name in self.freeze.split(","))

    @property
    def is_from_files(self) -> bool:
        """Whether a new run starts from the weights of other files."""
        return self.init_from is not None or self.init_from_B is not None
