from . import networks
from .base_model import BaseModel


class TestModel(BaseModel):
    @staticmethod
    def modify_commandline_options(parser, is_train=True):
        parser.set_defaults(dataset_mode="single")
        parser.add_argument("--model_suffix", default="")
        return parser

    def __init__(self, opt):
        BaseModel.__init__(self, opt)
        self.visual_names, self.model_names = ["real", "fake"], ["G" + opt.model_suffix]
        common = (opt.norm, not opt.no_dropout, opt.init_type, opt.init_gain, self.gpu_ids)
        self.netG = networks.define_G(opt.input_nc, opt.output_nc, opt.ngf, opt.netG, *common)
        # Under the name that load_networks looks for.
        setattr(self, "netG" + opt.model_suffix, self.netG)

    def set_input(self, input):
        self.real, self.image_paths = input["A"].to(self.device), input["A_paths"]

    def forward(self):
        self.fake = self.netG(self.real)

    def optimize_parameters(self):
        pass
