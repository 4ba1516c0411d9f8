import argparse

import models

TEXT = {
    **{"dataroot": None, "name": "experiment_name", "gpu_ids": "-1", "checkpoints_dir": "./checkpoints", "model": "cycle_gan"},
    **{"netD": "basic", "netG": "resnet_9blocks", "norm": "instance", "init_type": "normal", "dataset_mode": "unaligned"},
    **{"direction": "AtoB", "preprocess": "resize_and_crop", "epoch": "latest"},
}
NUMBERS = {"input_nc": 3, "output_nc": 3, "ngf": 64, "ndf": 64, "n_layers_D": 3, "init_gain": 0.02, "batch_size": 1, "crop_size": 256}
SWITCHES = ("no_dropout", "serial_batches", "verbose")


class BaseOptions:
    def initialize(self, parser):
        for name, default in TEXT.items():
            parser.add_argument(f"--{name}", default=default, required=default is None)
        for name, default in NUMBERS.items():
            parser.add_argument(f"--{name}", type=type(default), default=default)
        for name in SWITCHES:
            parser.add_argument(f"--{name}", action="store_true")
        parser.add_argument("--load_iter", type=int, default=0)
        return parser

    def parse(self):
        parser = self.initialize(argparse.ArgumentParser())
        known, _ = parser.parse_known_args()
        parser = models.get_option_setter(known.model)(parser, self.isTrain)
        opt = parser.parse_args()
        opt.isTrain = self.isTrain
        opt.gpu_ids = [int(number) for number in opt.gpu_ids.split(",") if int(number) >= 0]
        return opt
