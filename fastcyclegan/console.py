"""Console output: log lines and, at the bottom of a terminal, one live line with a progress bar.

Without a terminal, progress is printed as plain lines.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from rich.cells import cell_len, set_cell_size
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from fastcyclegan.errors import printable

_BAR = 10


class _Output(RichConsole):
    """Standard output that may be closed early, for example by `| head`.

    When that happens, a notice is written to standard error once, and all further output is dropped.
    """

    def on_broken_pipe(self) -> None:
        self.give_up("standard output was closed")

    def give_up(self, reason: str) -> None:
        self.quiet = True
        with contextlib.suppress(OSError):
            os.write(2, f"{reason}: continuing without output\n".encode())
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # otherwise Python complains at exit


class Console:
    """Prints log lines and progress to standard output. Leaving ``with console:`` removes the live line."""

    def __init__(self) -> None:
        self._rich = _Output(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.failed = False
        """Whether output was lost, other than because its reader wanted no more."""
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    @property
    def is_terminal(self) -> bool:
        return self._rich.is_terminal

    @property
    def seconds_between_lines(self) -> float:
        if self.is_terminal:
            return 1.0
        return 10.0

    def log(self, line: str) -> None:
        """Print one line, above the live line if there is one.

        Characters that would act on the terminal are escaped, and those that it cannot show.
        """
        try:
            self._rich.print(self._shown(line))
        except OSError as error:  # the terminal is gone
            reason = error.strerror
            if not reason:
                reason = "standard output failed"
            self._rich.give_up(reason)
            self.failed = True

    def _shown(self, text: str) -> str:
        encoding = self._rich.encoding
        return printable(text).encode(encoding, "backslashreplace").decode(encoding)

    def table(self, title: str, rows: Mapping[str, object]) -> None:
        """Print ``rows`` as aligned names and values under ``title``."""
        width = max(map(len, rows))
        self.log(title)
        for name, value in rows.items():
            self.log(f"  {name:<{width}}  {value}")

    def progress(self, completed: int, total: int, text: str) -> None:
        """Show progress in the live line of a terminal, or print a plain line if there is no terminal."""
        if not self.is_terminal or self._rich.quiet:
            self.log(text)
            return
        room = self._rich.width - _BAR - len(" 100% ") - 1
        text = self._shown(text)
        if cell_len(text) > room:  # keep it to one line in a narrow terminal
            end = "…" if self._shown("…") == "…" else "."
            text = set_cell_size(text, room - 1) + end
        if self._progress is None:
            columns = (
                BarColumn(bar_width=_BAR),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.description}", markup=False),
            )
            self._progress = Progress(*columns, console=self._rich, transient=True)
            self._progress.start()
            self._task = self._progress.add_task(text, total=total)
        assert self._task is not None
        self._progress.update(self._task, completed=completed, total=total, description=text)

    def once(self, completed: int, total: int, text: str) -> None:
        """Show the progress of one task in a live line that disappears when the task is finished.

        Without a terminal, print one line when the task begins.
        """
        if self.is_terminal or completed == 0:
            self.progress(completed, total, text)
        if completed == total:
            self.end_progress()

    def end_progress(self) -> None:
        """Remove the live line."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_progress()


class QuietConsole(Console):
    """A console that prints nothing, for runs that report to callbacks instead. They do so once a second."""

    seconds_between_lines = 1.0

    def log(self, line: str) -> None:
        pass

    def progress(self, completed: int, total: int, text: str) -> None:
        pass
