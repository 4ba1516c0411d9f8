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


def picture(path):
    return torch.from_numpy(np.asarray(Image.open(path)).astype(np.float32)).permute(2, 0, 1) / 127.5 - 1


def create_dataset(opt):
    return torch.utils.data.DataLoader(UnalignedDataset(opt), batch_size=opt.batch_size, shuffle=not opt.serial_batches)
