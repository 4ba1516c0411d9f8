"""Draw a photograph, its translation by independent and by exact tiles, and how these differ from the whole.

    python -m bench.tile_picture --weights latest_net_G_A.pth --image photo.jpg --tile 256 --output tiles.png

Below the photograph is its translation as a whole. Below that by tiles is the absolute difference from the
whole, in 8-bit values: multiplied by the same factor in each column, so that the columns can be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fastcyclegan import load_generator
from fastcyclegan.data.image_file import open_image
from fastcyclegan.data.pixels import save_image
from fastcyclegan.errors import UserError
from fastcyclegan.inference.tiling import TiledTranslator
from fastcyclegan.inference.translator import Translator
from fastcyclegan.settings.tiles import TileSettings

Pixels = NDArray[np.uint8]
Panel = tuple[str, Pixels]

GAP, LINE, TEXT = 10, 24, 15
FACTOR = 2


def difference(a: Pixels, b: Pixels) -> Pixels:
    """Return the absolute difference of two images."""
    return np.abs(a.astype(np.int16) - b).astype(np.uint8)


def panels(translator: Translator, photo: Pixels, tile: int, overlap: int) -> list[list[Panel]]:
    """Return the upper and the lower row of images, each with its title."""
    pixels = torch.from_numpy(photo)
    whole = translator([pixels])[0]
    if whole is None:
        raise UserError("the network gives no numbers for the image")
    all_settings = {
        f"independent tiles of {tile}": TileSettings(tile, "independent", 0),
        f"the same, overlapping by {overlap}": TileSettings(tile, "independent", overlap),
        f"exact tiles of {tile}": TileSettings(tile),
    }
    upper, lower = [("photograph", photo)], [("translated as a whole", whole)]
    for title, settings in all_settings.items():
        image = TiledTranslator(translator, settings, Path())(pixels, "0", title)
        assert image is not None  # the whole image gave numbers
        apart = difference(image, whole)
        upper.append((title, image))
        shown = np.minimum(apart.astype(np.int16) * FACTOR, 255).astype(np.uint8)
        lower.append((f"difference x {FACTOR}, at most {apart.max()} of 255", shown))
    return [upper, lower]


def drawn(rows: Sequence[Sequence[Panel]], width: int) -> Image.Image:
    """Draw ``rows`` of images of one size, each ``width`` pixels wide and below its title."""
    height, full = rows[0][0][1].shape[:2]
    size = width, round(height * width / full)
    step = width + GAP, LINE + size[1] + GAP
    sheet = Image.new("RGB", (len(rows[0]) * step[0] - GAP, len(rows) * step[1] - GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for row, line in enumerate(rows):
        for column, (title, pixels) in enumerate(line):
            corner = column * step[0], row * step[1]
            draw.text(corner, title, "black", font)
            image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
            sheet.paste(image, (corner[0], corner[1] + LINE))
    return sheet


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line that the module docstring describes."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--weights", required=True, metavar="PATH", help="as for translate.py")
    parser.add_argument("--image", type=Path, required=True, metavar="FILE")
    parser.add_argument("--tile", type=int, default=256, help="side of a tile (default: %(default)s)")
    parser.add_argument("--overlap", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--width", type=int, default=310, help="of each image (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("tiles.png"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        net = load_generator(options.weights).eval()
        photo = np.array(open_image(options.image, 3, print))
        translator = Translator(net, torch.device("cpu"), "fp32")
        sheet = drawn(panels(translator, photo, options.tile, options.overlap), options.width)
    except UserError as error:
        parser.error(str(error))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_image(sheet, options.output)
    print(f"written: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
