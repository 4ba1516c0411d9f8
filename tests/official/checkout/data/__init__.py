import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image


class UnalignedDataset(torch.utils.data.Dataset):
    """Whole pictures of trainA and trainB, or testA and testB; a random B for each A, drawn from ``random`` as the pools' numbers are."""

    def __init__(self, opt):
        phase = "train" if opt.isTrain else "test"
        self.opt = opt
        self.A, self.B = (sorted((Path(opt.dataroot) / f"{phase}{side}").iterdir()) for side in "AB")

    def __len__(self):
        return max(len(self.A), len(self.B))

    def __getitem__(self, index):
        other = index % len(self.B) if self.opt.serial_batches else random.randint(0, len(self.B) - 1)
        a, b = self.A[index % len(self.A)], self.B[other]
        return {"A": picture(a), "B": picture(b), "A_paths": str(a), "B_paths": str(b)}


class AlignedDataset(torch.utils.data.Dataset):
    """The left and right halves of the pictures of train, or test."""

    def __init__(self, opt):
        self.AB = sorted((Path(opt.dataroot) / ("train" if opt.isTrain else "test")).iterdir())

    def __len__(self):
        return len(self.AB)

    def __getitem__(self, index):
        path = str(self.AB[index])
        both = picture(path)
        half = both.shape[2] // 2
        return {"A": both[:, :, :half], "B": both[:, :, half:], "A_paths": path, "B_paths": path}


class SingleDataset(torch.utils.data.Dataset):
    """The pictures of one folder."""

    def __init__(self, opt):
        self.A = sorted(Path(opt.dataroot).iterdir())

    def __len__(self):
        return len(self.A)

    def __getitem__(self, index):
        return {"A": picture(self.A[index]), "A_paths": str(self.A[index])}


def picture(path):
    return torch.from_numpy(np.asarray(Image.open(path)).astype(np.float32)).permute(2, 0, 1) / 127.5 - 1


def create_dataset(opt):
    kind = {"unaligned": UnalignedDataset, "aligned": AlignedDataset, "single": SingleDataset}[opt.dataset_mode]
    return torch.utils.data.DataLoader(kind(opt), batch_size=opt.batch_size, shuffle=not opt.serial_batches)
