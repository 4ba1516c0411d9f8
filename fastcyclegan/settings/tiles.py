"""The settings of translating an image by tiles."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import described
from fastcyclegan.settings.checks import check_types

Tile = int | Literal["auto"] | None
TileMode = Literal["exact", "independent"]
TileStorage = Literal["memory", "disk"]


@dataclass(frozen=True)
class TileSettings:
    """Whether and how images are translated by tiles. These are flags of translate.py, which describes them.

    Raises UserError for a value that is impossible, or that has no effect beside the others.
    """

    tile: Tile = "auto"
    tile_mode: TileMode = "exact"
    overlap: int = 64
    tile_storage: TileStorage = "memory"

    @classmethod
    def of(cls, config: Any) -> TileSettings:
        """Return the settings of a configuration that has these fields among others."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    def __post_init__(self) -> None:
        is_side = type(self.tile) is int and 1 <= self.tile < 2**31
        if not is_side and self.tile is not None and self.tile != "auto":
            raise UserError(
                f"tile must be an integer of at least 1, auto or None, got {described(self.tile)}"
            )
        if type(self.overlap) is not int or not 0 <= self.overlap < 2**31:
            raise UserError(f"overlap must be an integer of at least 0, got {described(self.overlap)}")
        check_types(self)
        if self.tile is None:
            self._require_default("with --tile None", "tile_mode", "overlap", "tile_storage")
        elif self.tile_mode == "exact":
            self._require_default("without --tile_mode independent", "overlap")
        else:
            self._require_default("with --tile_mode independent, which stores nothing", "tile_storage")

    def _require_default(self, why: str, *names: str) -> None:
        """Raise UserError if one of the settings ``names``, which have no effect, is given."""
        for field in fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise UserError(f"--{field.name} has no effect {why}")
