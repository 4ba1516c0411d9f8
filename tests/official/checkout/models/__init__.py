import importlib


def find_model_using_name(model_name):
    module = importlib.import_module(f"models.{model_name}_model")
    wanted = model_name.replace("_", "") + "model"
    return next(kind for name, kind in vars(module).items() if name.lower() == wanted)


def get_option_setter(model_name):
    return find_model_using_name(model_name).modify_commandline_options


def create_model(opt):
    return find_model_using_name(opt.model)(opt)
