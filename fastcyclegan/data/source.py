"""The image files of a domain, and how the images of a sample are read from them with Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastcyclegan.data.background import Stopping, never, raise_if
from fastcyclegan.data.checked_files import Checked
from fastcyclegan.data.equal_sizes import largest_sides, required_size, size_text
from fastcyclegan.data.fit import Fit, ImageRequirements, load_halves, load_pixels, take_view
from fastcyclegan.data.halves import Half
from fastcyclegan.data.image_file import BadImageError, Pixels, Size
from fastcyclegan.data.sample_plan import Sample, View
from fastcyclegan.data.scan import Images
from fastcyclegan.errors import UserError
from fastcyclegan.settings.data import DataConfig


@dataclass(frozen=True)
class Source:
    """The image files of one domain, and how to resize, crop and convert them.

    ``checked`` maps the paths of the files to the results of their checks. ``size`` is the (width, height)
    that all images must have when they are loaded, or None if they may differ. ``half`` is the half of each
    file that is the image, or None if the image is the whole file.
    """

    paths: Sequence[Path]
    fit: Fit
    checked: dict[Path, Checked]
    size: Size | None = None
    half: Half | None = None

    def require_size(self, index: int, size: Size) -> None:
        """Raise BadImageError if image ``index`` was loaded with another ``size`` than all images must have.

        Its file then changed after it was checked.
        """
        if self.size is not None and size != self.size:
            now = f"--preprocess {self.fit.preprocess} makes it {size_text(size)} now"
            wanted = f"all images of a batch must be {size_text(self.size)}"
            raise BadImageError(self.paths[index], f"{now}, but {wanted}")

    def view(self, index: int, view: View) -> Pixels:
        """Read image ``index`` with Pillow, crop and flip it according to ``view``, and return a new array.

        Raises BadImageError if the image cannot be used.
        """
        return self.cropped(index, load_pixels(self.paths[index], self.fit, half=self.half), view)

    def largest_sides(self, shown: Sequence[Path]) -> Size:
        """Return the largest width and height, when loaded, of the images and of those in ``shown``."""
        return largest_sides([*self.paths, *shown], self.checked, self.fit, self.half)

    def cropped(self, index: int, pixels: Pixels, view: View) -> Pixels:
        """Crop and flip the resized ``pixels`` of image ``index``, and return a new array.

        Raises BadImageError if the image does not have the size that it must have.
        """
        pixels = take_view(pixels, self.fit, view)
        self.require_size(index, (pixels.shape[1], pixels.shape[0]))
        return pixels.copy()

    def view_of_next_good(
        self, index: int, view: View, stopping: Stopping = never
    ) -> tuple[Pixels, int, list[BadImageError]]:
        """Read image ``index`` or, if it cannot be read, the next image that can.

        Returns its pixels (cropped and flipped according to ``view``), its index, and the errors of the bad
        images before it. Raises UserError if no image can be read or memory runs out, and StoppedError
        between images once ``stopping`` returns True.
        """
        bad: list[BadImageError] = []
        for number in (*range(index, len(self.paths)), *range(index)):
            raise_if(stopping)
            try:
                return self.view(number, view), number, bad
            except BadImageError as error:
                if error.is_lack_of_memory:
                    raise
                bad.append(error)
        raise UserError(
            f"none of the {len(self.paths)} images can be read any more; the first error: {bad[0]}"
        )


def sources_of(
    images: Images, data: DataConfig, required: ImageRequirements, held_out: bool = False
) -> dict[str, Source]:
    """Return the sources of the domains of ``images``, by name: A and B, or A alone for single images.

    They contain the training images or, if ``held_out`` is set, the images to show: the held-out ones of a
    domain, or its training images if there are none. The images to show may differ in size. Raises UserError
    if training images have other sizes than batches need.
    """
    lists = {"A": (images.train_A, images.test_A), "B": (images.train_B, images.test_B)}
    if images.layout == "single":
        del lists["B"]
    sources = {}
    for (side, (paths, shown)), channels in zip(lists.items(), required.channels, strict=False):
        fit, half, size = Fit.of(data, channels, required.size_multiple), images.half(side), None
        if held_out and shown:
            paths = shown
        if not held_out:
            size = required_size(paths, images.checked, fit, data, half)
        sources[side] = Source(paths, fit, images.checked, size, half)
    return sources


def have_one_fit(sources: Mapping[str, Source]) -> bool:
    """Return whether the images of all ``sources`` are resized, cropped and converted alike."""
    first, *others = [source.fit for source in sources.values()]
    return all(other == first for other in others)


def require_equal_sizes(sources: Mapping[str, Source], index: int, sizes: Mapping[str, Size]) -> None:
    """Raise BadImageError if the images of pair ``index`` were loaded with different ``sizes``.

    One of their files then changed after it was checked.
    """
    if len(set(sizes.values())) > 1:
        a, b = sources["A"], sources["B"]
        now = f"--preprocess {b.fit.preprocess} makes it {size_text(sizes['B'])} now"
        partner = f"its partner {a.paths[index]} is {size_text(sizes['A'])}"
        raise BadImageError(b.paths[index], f"{now}, but {partner}")


def _pair(sources: Mapping[str, Source], index: int, sample: Sample) -> dict[str, Pixels]:
    """Read the images of pair ``index``, and return them as ``Source.view`` does."""
    first = sources["A"]
    if first.half is not None and have_one_fit(sources):  # decode the file only once
        halves = load_halves(first.paths[index], first.fit, [source.half for source in sources.values()])
        views = {
            side: source.cropped(index, pixels, sample.view(side))
            for (side, source), pixels in zip(sources.items(), halves, strict=True)
        }
    else:
        views = {side: source.view(index, sample.view(side)) for side, source in sources.items()}
    sizes = {side: (pixels.shape[1], pixels.shape[0]) for side, pixels in views.items()}
    require_equal_sizes(sources, index, sizes)
    return views


def next_good_pair(
    sources: Mapping[str, Source], index: int, sample: Sample, stopping: Stopping = never
) -> tuple[dict[str, Pixels], Sample, list[BadImageError]]:
    """Read pair ``index`` or, if one of its images cannot be read, the next pair of which all can.

    Returns the pixels of its images, cropped and flipped as in ``sample``; ``sample`` with its index; and the
    errors of the pairs before it. Single images are pairs of one. Raises as ``view_of_next_good`` does.
    """
    count, bad = len(sources["A"].paths), list[BadImageError]()
    for number in (*range(index, count), *range(index)):
        raise_if(stopping)
        try:
            return _pair(sources, number, sample), sample.with_indices({"A": number}), bad
        except BadImageError as error:
            if error.is_lack_of_memory:
                raise
            bad.append(error)
    things = "images" if len(sources) == 1 else "pairs"
    raise UserError(f"none of the {count} {things} can be read any more; the first error: {bad[0]}")


def next_good_images(
    sources: Mapping[str, Source], sample: Sample, stopping: Stopping = never
) -> tuple[dict[str, Pixels], Sample, list[BadImageError]]:
    """Read the images of ``sample``, which do not belong together, or the next ones that can be read.

    Returns and raises as ``next_good_pair`` does.
    """
    views, indices, bad = dict[str, Pixels](), dict[str, int](), list[BadImageError]()
    for side, source in sources.items():
        views[side], indices[side], errors = source.view_of_next_good(
            sample.index(side), sample.view(side), stopping
        )
        bad += errors
    return views, sample.with_indices(indices), bad
