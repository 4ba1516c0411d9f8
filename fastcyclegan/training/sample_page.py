"""Keep a bounded number of sample grids, and write the page that shows them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fastcyclegan.checkpoints.run_files import remove_partials
from fastcyclegan.data.pixels import save_image
from fastcyclegan.tensor_files import write_atomically
from fastcyclegan.training.safe_write import naming


def expendable(iterations: Sequence[int]) -> int:
    """Return the one of ``iterations`` whose removal leaves the smallest gap on a logarithmic scale.

    ``iterations`` are at least three, from 1 on and ascending. The first and the last are never returned.
    """
    inner = range(1, len(iterations) - 1)
    return iterations[min(inner, key=lambda n: iterations[n + 1] / iterations[n - 1])]


class SamplePage:
    """The sample grids in ``folder``, at most ``keep`` of them, and ``page`` beside it, which shows them.

    ``head`` is the start of the page, up to the grids. With ``resume_at``, grids of later iterations are
    removed, or moved to the folder ``later`` if it is given; ``moved`` is their number. The page always shows
    the files that are there: it is written after a grid is added and before grids are removed, and anew when
    this object is created. Raises UserError if a file cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        page: Path,
        head: str,
        keep: int,
        resume_at: int | None = None,
        later: Path | None = None,
    ) -> None:
        self.folder, self.page, self.head, self.keep = folder, page, head, keep
        with naming(self.folder):
            self.folder.mkdir(exist_ok=True)
            remove_partials(self.folder)
            found = sorted(map(_iteration, self.folder.glob("*.png")))
        shown, self.removed = self._read()
        surplus = [n for n in found if resume_at is not None and n > resume_at]
        self.kept = [n for n in found if n > 0 and n not in surplus]
        self.moved = 0
        if later is not None and surplus:
            self._move(surplus, later)
            self.moved, surplus = len(surplus), []
        # The process was killed after it wrote the page and before it removed these files. Now they count as
        # kept again, so they must not count as removed.
        unfinished = [n for n in self.kept if n not in shown and n < max(shown, default=0)]
        self.removed = max(0, self.removed - len(unfinished))
        self._update(surplus)

    def _move(self, iterations: Sequence[int], target: Path) -> None:
        """Move the grids of ``iterations`` to the folder ``target``."""
        with naming(target):
            target.mkdir(parents=True, exist_ok=True)
        for iteration in iterations:
            file = self.file(iteration)
            with naming(file):
                file.replace(target / file.name)

    def _read(self) -> tuple[set[int], int]:
        """Return the iterations that the page shows, and how many grids were removed before."""
        if not self.page.exists():
            return set(), 0
        with naming(self.page):
            text = self.page.read_text(encoding="utf-8", errors="replace")
        removed = re.search(r"^<!--removed ([0-9]{1,15})-->", text, re.MULTILINE)
        shown = {int(number) for number in re.findall(r"^<!--([0-9]{1,18})-->", text, re.MULTILINE)}
        return shown, 0 if removed is None else int(removed[1])

    def file(self, iteration: int) -> Path:
        """Return the path of the grid of ``iteration``."""
        return self.folder / f"{iteration:07d}.png"

    def add(self, iteration: int, grid: Image.Image) -> Path:
        """Write a grid and show it on the page, and remove another one if there are too many.

        Returns the path of the new grid.
        """
        file = self.file(iteration)
        with naming(file):
            save_image(grid, file)
        self.kept = sorted({*self.kept, iteration})
        self._update([])
        return file

    def show(self, head: str) -> None:
        """Write the page with another start."""
        self.head = head
        self._update([])

    def _update(self, surplus: list[int]) -> None:
        """Write the page, and remove the grids ``surplus`` and those that exceed the limit."""
        while len(self.kept) > self.keep:
            surplus.append(expendable(self.kept))
            self.kept.remove(surplus[-1])
            self.removed += 1
        with naming(self.page):
            write_atomically(self.page, lambda partial: partial.write_text(self._text(), encoding="utf-8"))
        for iteration in surplus:
            with naming(self.file(iteration)):
                self.file(iteration).unlink(missing_ok=True)

    def _text(self) -> str:
        lines = [self.head]
        if self.removed:
            noun = "grid between these was" if self.removed == 1 else "grids between these were"
            note = f"{self.removed:,} {noun} removed (--keep_samples {self.keep})"
            lines.append(f"<!--removed {self.removed}--><p>{note}</p>\n")
        lines.append('<div class="newest-first">\n')
        for n in self.kept:
            image = f'<img src="{self.folder.name}/{self.file(n).name}" alt="samples" loading="lazy">'
            lines.append(f"<!--{n}--><section><h3>iteration {n}</h3>{image}</section>\n")
        return "".join(lines)


def _iteration(file: Path) -> int:
    """Return the iteration of the grid in ``file``, or 0 if its name is not that of a grid."""
    if re.fullmatch(r"[0-9]{7}|[1-9][0-9]{7,17}", file.stem):
        return int(file.stem)
    return 0
