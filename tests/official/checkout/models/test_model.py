from . import networks
from .base_model import BaseModel


class TestModel(BaseModel):
    def __init__(self, opt):
        BaseModel.__init__(self, opt)
        self.visual_names, self.model_names = ["real", "fake"], ["G_A"]
        common = (opt.norm, not opt.no_dropout, opt.init_type, opt.init_gain, self.gpu_ids)
        self.netG_A = networks.define_G(opt.input_nc, opt.output_nc, opt.ngf, opt.netG, *common)

    def set_input(self, input):
        self.real, self.image_paths = input["A"].to(self.device), input["A_paths"]

    def forward(self):
        self.fake = self.netG_A(self.real)

    def optimize_parameters(self):
        pass
