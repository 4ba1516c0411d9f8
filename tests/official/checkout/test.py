"""Tests: the official script's calls, in their order, and a seed. Prints the sum of every picture made."""

import torch
from data import create_dataset
from models import create_model
from options.test_options import TestOptions

if __name__ == "__main__":
    torch.manual_seed(0)
    opt = TestOptions().parse()
    opt.serial_batches = True
    dataset = create_dataset(opt)
    model = create_model(opt)
    model.setup(opt)
    if opt.eval:
        model.eval()
    for data in dataset:
        model.set_input(data)
        model.test()
        print("sums", {name: round(image.double().sum().item(), 2) for name, image in model.get_current_visuals().items()})
