"""Write tensorboard events in the caller's thread, where a full disk raises an error.

The writers of torch and tensorboard write in a thread of their own. Their errors appear there as tracebacks,
and the caller may wait for that thread forever.
"""

from __future__ import annotations

import io
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from fastcyclegan.training.event_image import GROWTH, encode, reduced
from fastcyclegan.training.safe_write import append, naming

_VERSION = "brain.Event:2"


def _later_name(folder: Path) -> str:
    """A name that TensorBoard, which reads a folder's files in the order of their names, reads last.

    The seconds alone do not order the files of a run that is resumed at once or after the clock was set back.
    """
    names = (re.match(r"events\.out\.tfevents\.(\d{10})\.", file.name) for file in folder.iterdir())
    latest = max((int(name[1]) for name in names if name), default=0)
    second = max(int(time.time()), latest + 1)
    return f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}"


class EventFile:
    """A new file of tensorboard events in ``folder``. Each event is handed to the system when it is added.

    With ``purge_step``, TensorBoard drops the events of earlier files from this iteration on. Raises
    UserError if the file cannot be written; what was added before stays valid.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self.next_image = 0.0
        with naming(folder):
            folder.mkdir(exist_ok=True)
            self.path = folder / _later_name(folder)
        with naming(self.path):
            self._stream = self.path.open("xb", buffering=0)
        self._add(Event(file_version=_VERSION))
        if purge_step is not None:
            self._add(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        with naming(self.path):
            append(self._stream, record.getvalue())

    def add_scalars(self, iteration: int, scalars: Mapping[str, float]) -> None:
        """Add one value to the curve of each name in ``scalars``."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._add(Event(step=iteration, summary=Summary(value=values)))

    def add_image(self, iteration: int, name: str, image: Image.Image) -> None:
        """Add a reduced copy of ``image``, unless the iteration has not grown by 5 % since the last one.

        Events cannot be removed again. This way, their size only grows with the logarithm of the iterations.
        """
        if iteration < self.next_image:
            return
        self.next_image = iteration * GROWTH
        small = reduced(image)
        encoded = Summary.Image(
            height=small.height, width=small.width, colorspace=3, encoded_image_string=encode(small)
        )
        self._add(Event(step=iteration, summary=Summary(value=[Summary.Value(tag=name, image=encoded)])))

    def close(self) -> None:
        """Close the file. Raises UserError if the system reports a failed write only now."""
        with naming(self.path):
            self._stream.close()
