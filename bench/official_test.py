"""Translate a folder of images as the official test.py does: the baseline of the bench of translations.

    python -m bench.official_test --dataroot photos --weights latest_net_G.pth --results_dir results

This file is frozen on purpose, like official_order.py. It does what the official test.py does with ``--model
test --no_dropout`` and otherwise its defaults: it builds the network, loads the weights, and for one image
after the other opens it, resizes it to ``load_size``, crops it to ``crop_size``, translates it in torch's
defaults without gradients, and writes the image and its translation as PNG files; at the end it writes a page
with all of them. The official code imports torchvision for the transforms, and dominate for the page. Here,
Pillow, numpy and a few lines take their place, which start faster, so the comparison is not unfair to it. Do
not make this file faster.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fastcyclegan import reference

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".tif", ".tiff")


class Dataset(torch.utils.data.Dataset[tuple[Tensor, str]]):
    """The images of a folder as tensors [3, crop_size, crop_size] in [-1, 1], with their paths."""

    def __init__(self, folder: Path, load_size: int, crop_size: int) -> None:
        self.load_size, self.crop_size = load_size, crop_size
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        path = self.paths[index]
        image = Image.open(path).convert("RGB")
        image = image.resize((self.load_size, self.load_size), Image.Resampling.BICUBIC)
        left, top = (random.randint(0, self.load_size - self.crop_size) for _ in range(2))
        image = image.crop((left, top, left + self.crop_size, top + self.crop_size))
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return tensor.sub_(0.5).div_(0.5), str(path)


def load_network(weights: Path, ngf: int, n_blocks: int, device: torch.device) -> nn.Module:
    norm = functools.partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)
    net = reference.Generator(ngf=ngf, n_blocks=n_blocks, norm=norm).to(device)
    net.load_state_dict(torch.load(weights, map_location=str(device)))
    count = sum(parameter.numel() for parameter in net.parameters())
    print(f"[Network G] Total number of parameters : {count / 1e6:.3f} M")
    return net


def tensor2im(image: Tensor) -> NDArray[np.uint8]:
    """Return the first of ``image`` [N, 3, H, W] in [-1, 1] as uint8 [H, W, 3]."""
    numbers = image.data[0].cpu().float().numpy()
    return ((np.transpose(numbers, (1, 2, 0)) + 1) / 2.0 * 255.0).astype(np.uint8)


def write_page(folder: Path, rows: list[list[str]]) -> None:
    """Write index.html with one table for each image, as the official code does."""
    lines = ["<!DOCTYPE html>", "<html>", "<head><title>Experiment</title></head>", "<body>"]
    for names in rows:
        lines.append(f"<h3>{names[0]}</h3>")
        lines.append('<table border="1" style="table-layout: fixed;"><tr>')
        for name in names[1:]:
            lines.append('<td halign="center" style="word-wrap: break-word;" valign="top"><p>')
            lines.append(f'<a href="images/{name}"><img src="images/{name}" style="width:256px"></a>')
            lines.append(f"<br><p>{name}</p></p></td>")
        lines.append("</tr></table>")
    lines += ["</body>", "</html>"]
    (folder / "index.html").write_text("\n".join(lines))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line that the module docstring describes."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--dataroot", type=Path, required=True, help="folder of images")
    parser.add_argument("--weights", type=Path, required=True, help="weights of the generator")
    parser.add_argument("--results_dir", type=Path, required=True, help="folder for the results")
    parser.add_argument("--load_size", type=int, default=256, help="side to which images are resized")
    parser.add_argument("--crop_size", type=int, default=256, help="side to which they are then cropped")
    parser.add_argument("--ngf", type=int, default=64, help="filters of the generator's first layer")
    parser.add_argument("--n_blocks", type=int, default=9, help="residual blocks of the generator")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = Dataset(options.dataroot, options.load_size, options.crop_size)
    loader = torch.utils.data.DataLoader(dataset, batch_size=1, shuffle=False, num_workers=0)
    net = load_network(options.weights, options.ngf, options.n_blocks, device)
    images = options.results_dir / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (real, paths) in enumerate(loader):
        real = real.to(device)
        with torch.no_grad():
            fake = net(real)
        if number % 5 == 0:
            print(f"processing ({number:04d})-th image... {paths}")
        name, row = Path(paths[0]).stem, []
        for label, image in (("real", real), ("fake", fake)):
            Image.fromarray(tensor2im(image)).save(images / f"{name}_{label}.png")
            row.append(f"{name}_{label}.png")
        rows.append([name, *row])
    write_page(options.results_dir, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
