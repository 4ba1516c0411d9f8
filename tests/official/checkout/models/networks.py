import functools

import torch
from torch import nn


class Identity(nn.Module):
    def forward(self, x):
        return x


def get_norm_layer(norm_type="instance"):
    if norm_type == "batch":
        return functools.partial(nn.BatchNorm2d, affine=True, track_running_stats=True)
    if norm_type == "instance":
        return functools.partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)
    return lambda channels: Identity()


def get_scheduler(optimizer, opt):
    def rule(epoch):
        return 1.0 - max(0, epoch + opt.epoch_count - opt.n_epochs) / float(opt.n_epochs_decay + 1)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=rule)


def init_weights(net, init_type="normal", init_gain=0.02):
    def init(module):
        kind = type(module).__name__
        if hasattr(module, "weight") and "Conv" in kind:
            nn.init.normal_(module.weight.data, 0.0, init_gain)
            if getattr(module, "bias", None) is not None:
                nn.init.constant_(module.bias.data, 0.0)
        elif "BatchNorm2d" in kind:
            nn.init.normal_(module.weight.data, 1.0, init_gain)
            nn.init.constant_(module.bias.data, 0.0)

    net.apply(init)


def init_net(net, init_type="normal", init_gain=0.02, gpu_ids=()):
    if gpu_ids:
        net.to(gpu_ids[0])
        net = nn.DataParallel(net, gpu_ids)
    init_weights(net, init_type, init_gain)
    return net


def define_G(input_nc, output_nc, ngf, netG, norm="batch", use_dropout=False, init_type="normal", init_gain=0.02, gpu_ids=()):
    norm_layer = get_norm_layer(norm)
    if netG.startswith("resnet"):
        n_blocks = int(netG.removeprefix("resnet_").removesuffix("blocks"))
        net = ResnetGenerator(input_nc, output_nc, ngf, norm_layer=norm_layer, use_dropout=use_dropout, n_blocks=n_blocks)
    else:
        downs = {"unet_32": 5, "unet_64": 6, "unet_128": 7, "unet_256": 8}[netG]
        net = UnetGenerator(input_nc, output_nc, downs, ngf, norm_layer=norm_layer, use_dropout=use_dropout)
    return init_net(net, init_type, init_gain, gpu_ids)


def define_D(input_nc, ndf, netD, n_layers_D=3, norm="batch", init_type="normal", init_gain=0.02, gpu_ids=()):
    norm_layer = get_norm_layer(norm)
    if netD == "pixel":
        net = PixelDiscriminator(input_nc, ndf, norm_layer=norm_layer)
    else:
        net = NLayerDiscriminator(input_nc, ndf, n_layers=n_layers_D if netD == "n_layers" else 3, norm_layer=norm_layer)
    return init_net(net, init_type, init_gain, gpu_ids)


class GANLoss(nn.Module):
    def __init__(self, gan_mode):
        super().__init__()
        self.register_buffer("real_label", torch.tensor(1.0))
        self.register_buffer("fake_label", torch.tensor(0.0))
        self.gan_mode = gan_mode

    def forward(self, prediction, target_is_real):
        if self.gan_mode == "wgangp":
            return -prediction.mean() if target_is_real else prediction.mean()
        label = (self.real_label if target_is_real else self.fake_label).expand_as(prediction)
        return {"lsgan": nn.MSELoss(), "vanilla": nn.BCEWithLogitsLoss()}[self.gan_mode](prediction, label)


def has_bias(norm_layer):
    return (norm_layer.func if isinstance(norm_layer, functools.partial) else norm_layer) == nn.InstanceNorm2d


class ResnetGenerator(nn.Module):
    def __init__(self, input_nc, output_nc, ngf=64, norm_layer=nn.BatchNorm2d, use_dropout=False, n_blocks=6, padding_type="reflect"):
        # As the official code writes it: by the module's own name for the class.
        super(ResnetGenerator, self).__init__()  # noqa: UP008
        bias = has_bias(norm_layer)
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(input_nc, ngf, 7, bias=bias), norm_layer(ngf), nn.ReLU(True)]
        for width in (2 * ngf, 4 * ngf):
            layers += [nn.Conv2d(width // 2, width, 3, 2, 1, bias=bias), norm_layer(width), nn.ReLU(True)]
        layers += [ResnetBlock(4 * ngf, norm_layer, use_dropout, bias) for _ in range(n_blocks)]
        for width in (2 * ngf, ngf):
            layers += [nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1, bias=bias), norm_layer(width), nn.ReLU(True)]
        self.model = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(ngf, output_nc, 7), nn.Tanh())

    def forward(self, x):
        return self.model(x)


class ResnetBlock(nn.Module):
    def __init__(self, width, norm_layer, use_dropout, bias):
        super().__init__()
        half = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=bias), norm_layer(width)]
        again = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=bias), norm_layer(width)]
        self.conv_block = nn.Sequential(*half, nn.ReLU(True), *[nn.Dropout(0.5)] * use_dropout, *again)

    def forward(self, x):
        return x + self.conv_block(x)


class UnetGenerator(nn.Module):
    def __init__(self, input_nc, output_nc, num_downs, ngf=64, norm_layer=nn.BatchNorm2d, use_dropout=False):
        super(UnetGenerator, self).__init__()  # noqa: UP008
        level = UnetLevel(8 * ngf, 8 * ngf, None, None, norm_layer, inner=True)
        for _ in range(num_downs - 5):
            level = UnetLevel(8 * ngf, 8 * ngf, None, level, norm_layer, use_dropout=use_dropout)
        for width in (4 * ngf, 2 * ngf, ngf):
            level = UnetLevel(width, 2 * width, None, level, norm_layer)
        self.model = UnetLevel(output_nc, ngf, input_nc, level, norm_layer, outer=True)

    def forward(self, x):
        return self.model(x)


class UnetLevel(nn.Module):
    def __init__(self, width, below, input_nc, level, norm_layer, inner=False, outer=False, use_dropout=False):
        super().__init__()
        bias, self.outermost = has_bias(norm_layer), outer
        down = [nn.LeakyReLU(0.2, True), nn.Conv2d(input_nc or width, below, 4, 2, 1, bias=bias), norm_layer(below)]
        up = [nn.ReLU(True), nn.ConvTranspose2d(below * (1 if inner else 2), width, 4, 2, 1, bias=bias or outer), norm_layer(width)]
        if outer:
            down, up = down[1:2], [*up[:2], nn.Tanh()]
        elif inner:
            down = down[:2]
        self.model = nn.Sequential(*down, *([level] if level else []), *up, *[nn.Dropout(0.5)] * use_dropout)

    def forward(self, x):
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class NLayerDiscriminator(nn.Module):
    def __init__(self, input_nc, ndf=64, n_layers=3, norm_layer=nn.BatchNorm2d):
        super(NLayerDiscriminator, self).__init__()  # noqa: UP008
        layers, last = [nn.Conv2d(input_nc, ndf, 4, 2, 1), nn.LeakyReLU(0.2, True)], ndf
        for n in range(1, n_layers + 1):
            width = ndf * min(2**n, 8)
            stride = 2 if n < n_layers else 1
            layers += [nn.Conv2d(last, width, 4, stride, 1, bias=has_bias(norm_layer)), norm_layer(width), nn.LeakyReLU(0.2, True)]
            last = width
        self.model = nn.Sequential(*layers, nn.Conv2d(last, 1, 4, 1, 1))

    def forward(self, x):
        return self.model(x)


class PixelDiscriminator(nn.Module):
    def __init__(self, input_nc, ndf=64, norm_layer=nn.BatchNorm2d):
        super(PixelDiscriminator, self).__init__()  # noqa: UP008
        bias = has_bias(norm_layer)
        middle = [nn.Conv2d(ndf, 2 * ndf, 1, bias=bias), norm_layer(2 * ndf), nn.LeakyReLU(0.2, True)]
        self.net = nn.Sequential(nn.Conv2d(input_nc, ndf, 1), nn.LeakyReLU(0.2, True), *middle, nn.Conv2d(2 * ndf, 1, 1, bias=bias))

    def forward(self, x):
        return self.net(x)
