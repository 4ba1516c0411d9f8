"""Tests of how recipes are found: those of this package, of programs and of plug-ins, and faulty ones."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from fastcyclegan import CycleGAN, UserError, model_class, register_recipe
from fastcyclegan.cli import parse_train
from fastcyclegan.config import (
    TrainConfig,
    config_class,
    default_config,
    from_dict,
    to_dict,
    with_changes,
)
from fastcyclegan.recipes import registry
from fastcyclegan.recipes.cyclegan import CycleGANRecipe
from fastcyclegan.recipes.recipe import Recipe
from fastcyclegan.recipes.registry import flags_of, names, owners, recipe_class
from fastcyclegan.settings.recipe import LossSettings, ModelSettings
from tests.recipes.toys import PairsToy, ToyLoss, ToyModel


@dataclass(frozen=True)
class LayersLoss(ToyLoss):
    layers: tuple[int, ...] = (3,)


@pytest.fixture(autouse=True)
def only_built_in_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", [])


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], None]]:
    """Install a package: its name, its entry point (NAME = MODULE:CLASS) and the text of the module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = set(sys.modules)

    def install(package: str, entry_points: str, text: str) -> None:
        info = tmp_path / f"{package.replace('-', '_')}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[fastcyclegan.recipes]\n{entry_points}\n")
        module = entry_points.partition("=")[2].partition(":")[0].strip()
        (tmp_path / f"{module}.py").write_text(text)

    yield install
    for name in set(sys.modules) - modules:
        del sys.modules[name]


TOY = "from tests.recipes.toys import PairsToy as Toy\n"


def test_cyclegan_is_a_recipe_like_any_other() -> None:
    assert names()[0] == "cycle_gan"
    assert recipe_class("cycle_gan") is CycleGANRecipe
    assert model_class("cycle_gan") is CycleGAN
    assert default_config() == TrainConfig()


def test_a_program_can_register_a_recipe() -> None:
    assert register_recipe(PairsToy) is PairsToy
    assert register_recipe(PairsToy) is PairsToy  # again, as when a module is reloaded
    assert recipe_class("toy") is PairsToy
    assert names() == ["cycle_gan", "pix2pix", "toy"]
    assert model_class("toy") is model_class("toy")
    assert model_class("toy").__name__ == "Toy"


def test_a_plug_in_is_found_and_imported_only_when_it_is_needed(plug_in: Any) -> None:
    plug_in("toy-recipe", "toy = toy_module:Toy", f"print('imported')\n{TOY}")
    assert names() == ["cycle_gan", "pix2pix", "toy"]
    recipe_class("cycle_gan")
    assert "toy_module" not in sys.modules
    assert recipe_class("toy") is PairsToy
    assert "toy_module" in sys.modules


def test_the_configuration_of_a_recipe_has_its_settings_and_defaults() -> None:
    class Changed(PairsToy):
        name = "changed"
        Loss = LayersLoss
        defaults = {"optim": {"lr": 1e-2}, "loss": {"lambda_toy": 7.0}}  # noqa: RUF012

    register_recipe(Changed)
    config = default_config("changed")
    assert (config.optim.lr, config.loss.lambda_toy, config.model.width) == (1e-2, 7.0, 4)
    assert (config.data.dataset_mode, config.model.model) == ("aligned", "changed")
    config = with_changes(config, {"model": {"width": 8}, "loss": {"layers": (1, 2)}})
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    # A setting that a saved configuration lacks has the recipe's default.
    saved = to_dict(config)
    del saved["loss"]["lambda_toy"], saved["optim"]["lr"]
    assert from_dict(saved) == config
    assert isinstance(config_class("changed")().loss, ToyLoss)


def test_flags_belong_to_recipes() -> None:
    register_recipe(PairsToy)
    assert flags_of(PairsToy) == {"width": "model", "lambda_toy": "loss"}
    assert owners("lambda_toy") == ["toy"]
    assert owners("lambda_A") == ["cycle_gan"]
    assert owners("lr") == owners("model") == owners("impl") == []
    with pytest.raises(TypeError, match=r"^CycleGAN has no setting 'lambda_toy', which belongs to toy$"):
        CycleGAN(lambda_toy=1.0)
    with pytest.raises(TypeError, match=r"^Toy has no setting 'lambda_A', which belongs to cycle_gan$"):
        model_class("toy")(lambda_A=1.0)
    with pytest.raises(TypeError, match=r"^Toy has no setting 'widht'; did you mean width"):
        model_class("toy")(widht=1)


def test_a_configuration_of_another_recipe_is_refused() -> None:
    register_recipe(PairsToy)
    with pytest.raises(UserError, match=r"^CycleGAN trains --model cycle_gan, but the configuration is"):
        CycleGAN(default_config("toy"))
    with pytest.raises(UserError, match=r"^CycleGAN trains --model cycle_gan, not 'toy'$"):
        CycleGAN(model="toy")
    with pytest.raises(
        UserError, match=r"^model: --model cycle_gan has the settings ModelConfig, got ToyModel$"
    ):
        TrainConfig(model=ToyModel())
    with pytest.raises(UserError, match=r"^loss: --model toy has the settings ToyLoss, got LossConfig$"):
        dataclasses.replace(TrainConfig(), model=ToyModel(model="toy"))


# --- Faulty recipes -----------------------------------------------------------------------------------------


def test_unknown_recipes_are_named_with_a_similar_one() -> None:
    register_recipe(PairsToy)
    with pytest.raises(UserError, match=r"^--model: there is no recipe 'tyo'; did you mean toy\?$"):
        recipe_class("tyo")
    with pytest.raises(
        UserError, match=r"^--model: there is no recipe 'x'; the recipes are cycle_gan, pix2pix, toy, a"
    ):
        default_config("x")
    saved = to_dict(TrainConfig())
    saved["model"]["model"] = "gone"
    with pytest.raises(UserError, match=r"there is no recipe 'gone'"):
        from_dict(saved)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import missing_package_of_toy", "ModuleNotFoundError: No module named 'missing_package_of_toy'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit", "SystemExit"),
        ("def", "SyntaxError: invalid syntax"),
        ("x = 1", "AttributeError: module 'toy_module' has no attribute 'Toy'"),
    ],
)
def test_a_plug_in_that_cannot_be_imported_is_one_line(plug_in: Any, text: str, reason: str) -> None:
    plug_in("toy-recipe", "toy = toy_module:Toy", text)
    expected = "the recipe toy of the package toy-recipe (toy_module:Toy) cannot be imported: "
    with pytest.raises(UserError) as failure:
        recipe_class("toy")
    assert str(failure.value).startswith(expected + reason)
    assert "\n" not in str(failure.value)
    # It does not keep others from working.
    assert recipe_class("cycle_gan") is CycleGANRecipe
    assert owners("lambda_A") == ["cycle_gan"]


def test_two_recipes_of_one_name_are_refused(plug_in: Any) -> None:
    plug_in(
        "one-recipe",
        "toy = one_module:Toy",
        "from tests.recipes.toys import PairsToy\nclass Toy(PairsToy): pass",
    )
    plug_in("other-recipe", "toy = other_module:Toy", TOY)
    with pytest.raises(
        UserError, match=r"^--model toy: there are several recipes of that name: .*one-recipe"
    ):
        recipe_class("toy")


def test_a_recipe_cannot_take_the_name_of_another(plug_in: Any) -> None:
    class Second(PairsToy):
        name = "cycle_gan"

    with pytest.raises(UserError, match=r"^--model cycle_gan: there are several recipes of that name"):
        register_recipe(Second)
    assert recipe_class("cycle_gan") is CycleGANRecipe  # what was refused changes nothing
    plug_in("toy-recipe", "other = toy_module:Toy", TOY)
    with pytest.raises(UserError, match=r"^the recipe other of .* is called 'toy' in its class"):
        recipe_class("other")


@dataclass(frozen=True)
class TakenFlag(LossSettings):
    lr: float = 1.0


@dataclass(frozen=True)
class FlagTwice(LossSettings):
    width: int = 1


@dataclass
class NotFrozen:
    width: int = 1


class NoDataclass(ModelSettings):
    width: int = 1


class Incomplete(Recipe):
    name = "incomplete"


FAULTS: list[tuple[Any, str]] = [
    ({"name": "Toy!"}, "consists of small letters, digits and _, got 'Toy!'"),
    ({"networks": ["N"]}, "networks must be a tuple of names"),
    ({"networks": ("N", "N")}, "networks must have at least one name, and none twice, got ['N', 'N']"),
    ({"generators": ()}, "generators must have at least one name, and none twice, got []"),
    ({"state_dict": dict}, "a recipe that defines state_dict must define load_state_dict"),
    ({"networks": ("N", "D"), "directions": {"AtoB": "D"}}, "D translates, so it must be one of the gen"),
    ({"generators": ("M",)}, "M is not one of its networks: N"),
    ({"networks": ("N", "a b")}, "the name of a network must be letters"),
    ({"directions": {"AtoB": "M"}}, "M translates, so it must be one of the generators: N"),
    ({"directions": {"AtoC": "N"}}, "AtoC is no direction; there are AtoB, BtoA"),
    ({"layouts": ("paired",)}, "paired is no layout; there are unaligned, aligned, single"),
    ({"layouts": "aligned"}, "layouts must be a tuple of names"),
    ({"title": "A toy"}, "its title must be letters and digits"),
    ({"Loss": TakenFlag}, "its flag --lr is already one of all recipes"),
    ({"Loss": FlagTwice}, "its flag --width is in Model and in Loss"),
    ({"Loss": NotFrozen}, "Loss must be a frozen dataclass derived from LossSettings"),
    ({"Model": NoDataclass}, "Model has settings, so it needs @dataclass"),
    ({"fixed": ("pool_size",)}, "pool_size is none of its settings"),
    ({"defaults": {"optimizer": {}}}, "its defaults are for optimizer, but the groups are"),
    ({"defaults": {"optim": {"rate": 1}}}, "its defaults set rate, which is not in the group optim"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_a_faulty_recipe_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    faulty = type("Faulty", (PairsToy,), change)
    with pytest.raises(UserError) as failure:
        register_recipe(faulty)
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


def test_what_is_no_recipe_or_incomplete_is_refused() -> None:
    with pytest.raises(UserError, match=r"^ToyModel: a recipe must be a class derived from"):
        register_recipe(ToyModel)
    with pytest.raises(UserError, match=r"a recipe must be a class derived from"):
        register_recipe(3)  # type: ignore[type-var]
    with pytest.raises(
        UserError,
        match=r"^Incomplete: a recipe must define build_networks, phases, samples, networks, generators$",
    ):
        register_recipe(Incomplete)


@dataclass(frozen=True)
class ManyKinds(LossSettings):
    """A setting of each kind that can be given on a command line and saved."""

    layers: tuple[int, ...] = (3,)
    pair: tuple[float, float] = (0.5, 1.0)
    mode: Literal["sum", "mean"] | None = None
    file: Path | None = None
    rate: float = 0.1
    switch: bool = False


def test_settings_of_a_recipe_can_be_of_many_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kinds(PairsToy):
        name = "kinds"
        Loss = ManyKinds

    register_recipe(Kinds)
    flags = "--model kinds --data d --layers 1 2 --pair 1 2 --mode sum --file a.png --rate 2 --switch"
    config = parse_train(flags.split())
    expected = ManyKinds((1, 2), (1.0, 2.0), "sum", Path("a.png"), 2.0, True)
    assert config.loss == expected
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    for wrong, message in (
        ({"layers": (1, "2")}, r"^layers must be tuple\[int, \.\.\.\], got a tuple$"),
        ({"pair": (1.0,)}, r"^pair must be tuple\[float, float\], got a tuple$"),
        ({"mode": "max"}, "^mode must be sum or mean or NoneType, got 'max'$"),
        ({"switch": 1}, "^switch must be bool, got 1$"),
    ):
        with pytest.raises(UserError, match=message):
            ManyKinds(**wrong)  # type: ignore[arg-type]


@dataclass(frozen=True)
class OfficialFlag(LossSettings):
    niter: int = 3


def test_a_recipe_cannot_give_official_flags_another_meaning() -> None:
    class Clashing(PairsToy):
        name = "clashing"
        Loss = OfficialFlag

    class Refused(PairsToy):
        name = "refused"
        defaults = {"optim": {"lr": "high"}}  # noqa: RUF012

    register_recipe(Clashing)
    with pytest.raises(UserError, match="its flag --niter has another meaning on the command line"):
        parse_train("--model clashing --data d --niter 5".split())
    register_recipe(Refused)
    with pytest.raises(UserError, match=r"^the defaults of the recipe refused: lr must be float, got 'high'"):
        default_config("refused")
    with pytest.raises(UserError, match=r"^the name of a recipe must be text, got 3$"):
        model_class(3)  # type: ignore[arg-type]
