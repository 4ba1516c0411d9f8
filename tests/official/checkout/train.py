"""Trains: the official script's calls, in their order, and seeds. Prints the losses with all their digits."""

import json
import random

import torch
from data import create_dataset
from models import create_model
from options.train_options import TrainOptions

if __name__ == "__main__":
    random.seed(0)
    torch.manual_seed(0)
    opt = TrainOptions().parse()
    dataset = create_dataset(opt)
    model = create_model(opt)
    model.setup(opt)
    total_iters = 0
    for epoch in range(opt.epoch_count, opt.n_epochs + opt.n_epochs_decay + 1):
        for data in dataset:
            total_iters += 1
            model.set_input(data)
            model.optimize_parameters()
            if total_iters % opt.display_freq == 0:
                model.compute_visuals()
                print("visuals", {name: list(image.shape) for name, image in model.get_current_visuals().items()})
            if total_iters % opt.print_freq == 0:
                print("losses", json.dumps(model.get_current_losses()))
            if total_iters % opt.save_latest_freq == 0:
                model.save_networks("latest")
        model.update_learning_rate()
        model.save_networks("latest")
        model.save_networks(epoch)
