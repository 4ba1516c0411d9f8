"""Read images with Pillow: batches from worker processes in the order of a plan, or single images."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import multiprocessing
import signal
import warnings
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastcyclegan.data.batch import Batch
from fastcyclegan.data.image_file import BadImageError, Fit, load_pixels, take_view
from fastcyclegan.data.loader import Job, Loader, Log, Row, Source
from fastcyclegan.data.sample_plan import Plan, Sample
from fastcyclegan.errors import UserError

WORKERS = 4
_Item = tuple[Tensor, Tensor, Sample, list[BadImageError]]
_Items = tuple[Tensor, Tensor, list[Sample], list[BadImageError]]


class _Unpaired(Dataset[object]):
    """The samples of a plan, indexed by (epoch, i).

    An item contains both cropped images, the sample as it was read, and the errors of skipped images. If a
    sample cannot be read, the item is the UserError.
    """

    def __init__(self, a: Source, b: Source, plan: Plan) -> None:
        # The results of the checks are removed, because every worker would get a copy of them.
        self.a = dataclasses.replace(a, checked={})
        self.b = dataclasses.replace(b, checked={})
        self.plan = plan

    def __getitem__(self, key: tuple[int, int]) -> _Item | UserError:
        sample = self.plan.sample(*key)
        try:
            a, index_A, bad_A = self.a.view_of_next_good(sample.index_A, sample.view_A)
            b, index_B, bad_B = self.b.view_of_next_good(sample.index_B, sample.view_B)
        except UserError as error:  # the main process raises it, where the user sees it
            return error
        sample = dataclasses.replace(sample, index_A=index_A, index_B=index_B)
        return torch.from_numpy(a), torch.from_numpy(b), sample, bad_A + bad_B


def _collate(items: list[_Item | UserError]) -> _Items | UserError | None:
    good: list[_Item] = []
    for item in items:
        if isinstance(item, UserError):
            return item
        good.append(item)
    if not good:
        return None
    a, b, samples, bad = zip(*good, strict=True)
    return torch.stack(a), torch.stack(b), list(samples), list(chain.from_iterable(bad))


def _quiet_worker(_: int) -> None:
    """Ignore signals in a worker, because the main process handles those sent to the whole process group.

    A worker ends when the main process stops it, or when its parent is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


_workers: weakref.WeakSet[Any] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    """Kill the remaining workers before Python exits.

    Python would send them SIGTERM, which they ignore, and then wait for them forever.
    """
    alive = [worker for worker in list(_workers) if worker.is_alive()]
    if alive:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise at the first kill
        for worker in alive:
            worker.kill()


@contextlib.contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Turn torch's error about a killed loader process into a UserError.

    torch raises that error at an arbitrary point in the code of the main process.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise UserError(
                f"a loader process died ({str(error).splitlines()[0]}); a lower --num_threads"
                " needs less memory"
            ) from None
        raise


class FolderLoader(Loader):
    """A loader that reads with Pillow in ``workers`` processes, or in this one if ``workers`` is 0."""

    def __init__(
        self,
        a: Source,
        b: Source,
        plan: Plan,
        device: torch.device,
        *,
        workers: int = 0,
        skip_bad_images: bool = False,
        log: Log = lambda text: None,
    ) -> None:
        super().__init__(a, b, plan, device, skip_bad_images=skip_bad_images, log=log)
        self.workers = workers

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        if start >= stop:
            return
        keys = ([(epoch, i) for i in numbers] for epoch, numbers in self.plan.batches(start, stop))
        with warnings.catch_warnings():
            # torch warns if there are more workers than cores, but their number was chosen by the user.
            warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
            loader: DataLoader[Any] = DataLoader(
                _Unpaired(self.a, self.b, self.plan),
                batch_sampler=keys,
                num_workers=min(self.workers, stop - start),
                collate_fn=_collate,
                worker_init_fn=_quiet_worker,
                pin_memory=self.device.type == "cuda",
                # The loader draws a seed that nothing here uses. It must not come from the generator that
                # dropout and resumed runs depend on.
                generator=torch.Generator(),
            )
            before = set(multiprocessing.active_children())
            with naming_dead_workers():
                loading = iter(loader)
            _workers.update(set(multiprocessing.active_children()) - before)
        try:
            with naming_dead_workers():
                for loaded in loading:
                    yield self._loaded(loaded)
        finally:
            del loading  # ends the workers, which an error's traceback would otherwise keep alive

    def _loaded(self, loaded: _Items | UserError | None) -> Batch:
        if isinstance(loaded, UserError):
            raise loaded
        if loaded is None:
            return self._batch_of_rows([])
        a, b, samples, bad = loaded
        self._skip_or_raise(bad)
        return self._batch(a, b, samples)


class PillowReader:
    """A reader that reads single images with Pillow in ``threads`` threads, a few ahead of its consumer."""

    def __init__(self, fit: Fit, threads: int) -> None:
        self.fit, self.threads = fit, max(threads, 1)

    def read(self, jobs: Iterable[Job]) -> Generator[tuple[Job, Row]]:
        """Yield each job with its pixels, in order."""
        waiting: deque[tuple[Job, Future[Row]]] = deque()
        with ThreadPoolExecutor(self.threads) as pool:
            try:
                for job in jobs:
                    waiting.append((job, pool.submit(read_with_pillow, job, self.fit)))
                    if len(waiting) > self.threads:
                        finished, pixels = waiting.popleft()
                        yield finished, pixels.result()
                while waiting:
                    finished, pixels = waiting.popleft()
                    yield finished, pixels.result()
            finally:
                for _, pixels in waiting:
                    pixels.cancel()


def read_with_pillow(job: Job, fit: Fit) -> Row:
    """Read the image of ``job`` and return its pixels, or the error if the file cannot be read."""
    try:
        return torch.from_numpy(take_view(load_pixels(job.path, fit), fit, job.view).copy())
    except BadImageError as bad:
        return bad
