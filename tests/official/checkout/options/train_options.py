from .base_options import BaseOptions


class TrainOptions(BaseOptions):
    isTrain = True

    def initialize(self, parser):
        parser = BaseOptions.initialize(self, parser)
        defaults = {"display_freq": 400, "print_freq": 100, "save_latest_freq": 5000, "epoch_count": 1, "n_epochs": 100}
        for name, default in {**defaults, "n_epochs_decay": 100, "pool_size": 50, "lr_decay_iters": 50}.items():
            parser.add_argument(f"--{name}", type=int, default=default)
        for name, default in {"beta1": 0.5, "lr": 0.0002}.items():
            parser.add_argument(f"--{name}", type=float, default=default)
        parser.add_argument("--gan_mode", default="lsgan")
        parser.add_argument("--lr_policy", default="linear")
        parser.add_argument("--continue_train", action="store_true")
        return parser
