"""The Python class of each recipe: ``CycleGAN``, ``Pix2Pix``, and those that ``model_class`` makes for
plug-ins.
"""

from __future__ import annotations

import functools

from torch import nn

from fastcyclegan.api import Model
from fastcyclegan.recipes.cyclegan import CycleGANRecipe
from fastcyclegan.recipes.pix2pix import Pix2PixRecipe
from fastcyclegan.recipes.recipe import Recipe
from fastcyclegan.recipes.registry import recipe_class


class CycleGAN(Model):
    """The four networks of a CycleGAN, with methods to train them, translate images, save and load.

    G_AB translates the model's domain A to B, G_BA translates B to A, and D_A and D_B are the discriminators.
    ``settings`` are the flags of ``scripts/train.py`` as keyword arguments (``netG="resnet_6blocks"``,
    ``lambda_identity=0``, ``batch_size=4``, ``compile=True``, ...). See ``Model`` for the rest.
    """

    recipe = CycleGANRecipe

    @property
    def G_AB(self) -> nn.Module:
        return self.networks["G_AB"]

    @property
    def G_BA(self) -> nn.Module:
        return self.networks["G_BA"]

    @property
    def D_A(self) -> nn.Module:
        return self.networks["D_A"]

    @property
    def D_B(self) -> nn.Module:
        return self.networks["D_B"]


class Pix2Pix(Model):
    """The two networks of pix2pix, with methods to train them on pairs, translate images, save and load.

    G translates the model's domain A to B, and D is the discriminator, which sees both images of a pair.
    ``settings`` are the flags of ``scripts/train.py --model pix2pix`` as keyword arguments
    (``netG="unet_128"``, ``lambda_L1=10``, ``no_dropout=True``, ...). Images are translated as the official
    code does: with dropout and the batch statistics of each image by itself. See ``Model`` for the rest.
    """

    recipe = Pix2PixRecipe

    @property
    def G(self) -> nn.Module:
        return self.networks["G"]

    @property
    def D(self) -> nn.Module:
        return self.networks["D"]


_WRITTEN: dict[type[Recipe], type[Model]] = {CycleGANRecipe: CycleGAN, Pix2PixRecipe: Pix2Pix}


def model_class(name: str) -> type[Model]:
    """Return the Python class that trains the recipe ``name``, the value of --model.

    Raises UserError if there is no such recipe, or if it cannot be imported.
    """
    return _class_of(recipe_class(name))


@functools.cache
def _class_of(recipe: type[Recipe]) -> type[Model]:
    if recipe in _WRITTEN:
        return _WRITTEN[recipe]
    members = {
        "recipe": recipe,
        "__doc__": f"{recipe.__doc__}\n\n    See ``fastcyclegan.api.Model`` for its methods.",
        "__module__": __name__,
    }
    return type(recipe.title, (Model,), members)
