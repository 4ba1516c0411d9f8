import os
from collections import OrderedDict

import torch

from . import networks


class BaseModel:
    def __init__(self, opt):
        self.opt, self.gpu_ids, self.isTrain = opt, opt.gpu_ids, opt.isTrain
        self.device = torch.device(f"cuda:{self.gpu_ids[0]}") if self.gpu_ids else torch.device("cpu")
        self.save_dir = os.path.join(opt.checkpoints_dir, opt.name)  # noqa: PTH118
        self.loss_names, self.model_names, self.visual_names, self.optimizers, self.image_paths = [], [], [], [], []

    @staticmethod
    def modify_commandline_options(parser, is_train):
        return parser

    def setup(self, opt):
        if self.isTrain:
            self.schedulers = [networks.get_scheduler(optimizer, opt) for optimizer in self.optimizers]
        if not self.isTrain or opt.continue_train:
            self.load_networks(f"iter_{opt.load_iter}" if opt.load_iter > 0 else opt.epoch)

    def eval(self):
        for name in self.model_names:
            getattr(self, "net" + name).eval()

    def test(self):
        with torch.no_grad():
            self.forward()
            self.compute_visuals()

    def compute_visuals(self):
        pass

    def update_learning_rate(self):
        for scheduler in self.schedulers:
            scheduler.step()
        print("learning rate", self.optimizers[0].param_groups[0]["lr"])

    def get_current_visuals(self):
        return OrderedDict((name, getattr(self, name)) for name in self.visual_names)

    def get_current_losses(self):
        return OrderedDict((name, float(getattr(self, "loss_" + name))) for name in self.loss_names)

    def save_networks(self, epoch):
        os.makedirs(self.save_dir, exist_ok=True)  # noqa: PTH103
        for name in self.model_names:
            path = os.path.join(self.save_dir, f"{epoch}_net_{name}.pth")  # noqa: PTH118
            net = getattr(self, "net" + name)
            if self.gpu_ids and torch.cuda.is_available():
                torch.save(net.module.cpu().state_dict(), path)
                net.cuda(self.gpu_ids[0])
            else:
                torch.save(net.cpu().state_dict(), path)

    def load_networks(self, epoch):
        for name in self.model_names:
            path = os.path.join(self.save_dir, f"{epoch}_net_{name}.pth")  # noqa: PTH118
            net = getattr(self, "net" + name)
            net = net.module if isinstance(net, torch.nn.DataParallel) else net
            net.load_state_dict(torch.load(path, map_location=str(self.device)))

    def set_requires_grad(self, nets, requires_grad=False):
        for net in nets:
            for param in net.parameters():
                param.requires_grad = requires_grad
