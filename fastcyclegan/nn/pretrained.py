"""Save generators as safetensors folders, load them again, and share them on the Hugging Face hub.

``save_pretrained`` writes a folder with model.safetensors (the architecture is in its metadata), config.json
(the arguments of the class) and README.md (a model card). huggingface_hub's mixin handles downloads and
uploads, and is set up on first use; our own code reads and writes the files. The required packages come with
``pip install 'fastcyclegan[hub]'``.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from fastcyclegan.errors import UserError, one_line, shortened
from fastcyclegan.files.json_file import read_json
from fastcyclegan.files.schema import described
from fastcyclegan.nn.finite import not_finite_in, require_representable
from fastcyclegan.nn.torch_defaults import float32_by_default, usual_modes
from fastcyclegan.tensor_files import arguments_in, load_tensors

# The files that ``save_pretrained`` writes, besides the model card.
WEIGHTS_FILE = "model.safetensors"
ARGUMENTS_FILE = "config.json"
# The options of huggingface_hub's mixin that control how a file is downloaded.
_DOWNLOAD_OPTIONS = ("revision", "cache_dir", "force_download", "local_files_only", "token")

AS_TRAINED = "translates_as_trained"
"""The entry of a file's metadata, beside a network's arguments, that says how the network translates."""
_CARD = """---
{{ card_data }}
---

# {{ title }}

A generator of images ({{ architecture }}) with {{ parameters }} parameters, for the Python package \
fastcyclegan:

```python
from fastcyclegan import {{ kind }}

G = {{ kind }}.from_pretrained("{{ repo_id }}")
fake = G(images)  # float [N, {{ input_nc }}, H, W] in [-1, 1]
```

The weights use the keys of the official PyTorch code: `torch.save(G.state_dict(), "latest_net_G.pth")` \
writes a file that the official `test.py` can load.
{% if training %}
## Training

| | |
|---|---|
{% for name, value in training.items() %}| {{ name }} | {{ value }} |
{% endfor %}{% endif %}"""


def _require() -> None:
    missing = [name for name in ("huggingface_hub", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"saving and loading pretrained generators needs {' and '.join(missing)}: run pip install"
            " 'fastcyclegan[hub]'"
        )


def _training_table(config: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the training table of a model card: the images and the settings of a run.

    For the images, the table shows only the names of their folders, not the paths. ``config`` contains the
    groups of the run's config.json. Raises KeyError for a missing setting.
    """
    data, loss, optim = config["data"], config["loss"], config["optim"]
    folders = [Path(data[name]).name for name in ("dataroot", "data_A", "data_B") if data[name] is not None]
    source = "built-in"
    if folders:
        source = " and ".join(folders)
    length = f"{optim['n_epochs']} epochs and {optim['n_epochs_decay']} epochs of decay"
    if optim["max_iters"]:
        length += f", at most {optim['max_iters']:,} iterations"
    adam = f"lr {optim['lr']:g} ({optim['lr_policy']}), beta1 {optim['beta1']:g}"
    if optim.get("ema"):
        adam += f", running average of the weights {optim['ema']:g}"
    crop = data["crop_size"]
    if isinstance(crop, list):
        crop = " ".join(map(str, crop))  # height and width
    return {
        "pictures": f"{source}, {data['direction']}",
        "samples": f"{data['preprocess']}, load_size {data['load_size']}, crop_size {crop}",
        "length": f"{length}, batch size {data['batch_size']}",
        "losses": _losses(loss),
        "Adam": adam,
        "seed": str(config["run"]["seed"]),
    }


def _losses(loss: Mapping[str, Any]) -> str:
    """Return the settings of the losses of a run in words: those of any recipe, and CycleGAN's in short."""
    if "lambda_identity" not in loss:
        return ", ".join(f"{name} {value}" for name, value in loss.items())
    cycle = f"cycle {loss['lambda_A']:g} and {loss['lambda_B']:g}"
    identity = f"identity {loss['lambda_identity']:g}"
    return f"{loss['gan_mode']}, {cycle}, {identity}, image pool {loss['pool_size']}"


def _training_in(run: Path) -> dict[str, str]:
    """Return the training table of the run in the folder ``run``.

    The settings come from config.json, or from the training state if that file is missing. They are read as
    plain values, so that this module does not depend on the list of settings.

    Raises UserError if ``run`` is not a run folder, or if its configuration cannot be read.
    """
    # The file names that checkpoints/ uses.
    config_file, state_file = run / "config.json", run / "state.pt"
    if config_file.is_file():
        file = config_file
    elif state_file.is_file():
        file = state_file
    else:
        raise UserError(f"{run}: not a run folder: it contains neither config.json nor state.pt")
    try:
        if file == config_file:
            return _training_table(read_json(file))
        return _training_table(load_tensors(file)["config"])
    except KeyError as error:
        raise UserError(f"{file}: not a valid run configuration: {error.args[0]!s:.60} is missing") from None
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{file}: not a valid run configuration: {one_line(error)}") from None


class Pretrained:
    """Adds ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` to a network with ``arguments``."""

    arguments: dict[str, Any]
    """The arguments that the network was built with, except those that select its implementation."""

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """Load a network that ``save_pretrained`` wrote, and return it in eval mode.

        ``source`` is its folder, or its name on the hub. ``options`` are those of
        ``huggingface_hub.ModelHubMixin.from_pretrained`` (revision, token, cache_dir ...), and arguments of
        the class, such as ``impl``. The network is in float32, whatever torch's default dtype is. Raises
        UserError for a folder with other contents or with weights that are not finite in float32, and
        ImportError if the extra ``hub`` is not installed.
        """
        _require()
        if Path(source).is_file():
            raise UserError(
                f"{source}: from_pretrained needs a folder or a name on the hub, got a file; use"
                " load_generator for files"
            )
        if Path(source).is_dir():
            _check_folder(Path(source))
        with usual_modes():
            net: Self = _mixed(_argument_class(cls)).from_pretrained(str(source), **options)
        # Remove an attribute that huggingface_hub sets on networks of its own class.
        vars(net).pop("_hub_mixin_config", None)
        return net

    def save_pretrained(
        self, folder: str | Path, *, run: str | Path | None = None, title: str = "", **options: Any
    ) -> None:
        """Write the weights, the arguments and a model card to ``folder``.

        ``run`` is the run folder whose settings the card should show. ``options`` are those of
        ``huggingface_hub.ModelHubMixin.save_pretrained``, such as push_to_hub and repo_id. Raises ValueError
        if the network's arguments do not rebuild it, UserError if a weight is not finite or ``run`` is not a
        run folder, and ImportError if the extra ``hub`` is not installed. Then no file has changed.
        """
        if not title:
            title = Path(folder).resolve().name
        mixed = self._as_mixed(run, title, title)
        mixed.save_pretrained(str(folder), config=self.arguments, **options)

    def push_to_hub(self, repo_id: str, *, run: str | Path | None = None, **options: Any) -> Any:
        """Upload to the hub the files that ``save_pretrained`` would write, and return their address.

        ``options`` are those of ``ModelHubMixin.push_to_hub``.
        """
        title = repo_id.rpartition("/")[2]
        mixed = self._as_mixed(run, title, repo_id)
        return mixed.push_to_hub(repo_id, config=self.arguments, **options)

    def _as_mixed(self, run: str | Path | None, title: str, repo_id: str) -> Any:
        """Return a view of this network, with the same parameters, whose class includes the hub's mixin."""
        _require()
        found = not_finite_in(self.state_dict())  # type: ignore[attr-defined]
        if found is not None:
            raise UserError(f"{type(self).__name__}: {found}, so it cannot be saved")
        with usual_modes():
            _check_arguments(self)
        training: dict[str, str] = {}
        if run is not None:
            training = _training_in(Path(run))
        kind = _mixed(_argument_class(type(self)))
        view = object.__new__(kind)
        vars(view).update(vars(self))
        view.card = {"title": title, "repo_id": repo_id, "training": training}
        return view


def _argument_class(cls: type) -> type:
    """Return the class to build from ``arguments``: ``cls``, or its base if ``cls`` has another signature."""
    return next(kind for kind in cls.__mro__ if kind.__dict__.get("keeps_arguments"))


def _check_folder(folder: Path) -> None:
    """Raise UserError if ``folder`` was not written by ``save_pretrained``."""
    if not (folder / WEIGHTS_FILE).exists():
        raise UserError(f"{folder}: has no {WEIGHTS_FILE}; for runs and official files use load_generator")
    file = folder / ARGUMENTS_FILE
    try:
        arguments = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {one_line(error)}") from None
    if not isinstance(arguments, dict):
        raise UserError(
            f"{file}: must be a JSON object with a network's arguments, got a {type(arguments).__name__}"
        )


def _shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in net.state_dict().items()}


def _check_arguments(net: Any) -> None:
    callables = [name for name, value in net.arguments.items() if callable(value)]
    if callables:
        problem = f"{callables[0]} was passed as a function, which cannot be saved; pass its name instead"
        raise ValueError(f"{type(net).__name__}: {problem}")
    with torch.device("meta"):
        rebuilt = _argument_class(type(net))(**net.arguments)
    if _shapes(rebuilt) != _shapes(net):
        raise ValueError(
            f"{type(net).__name__}: its layers were changed: a network built from its arguments has different"
            " weight names or shapes"
        )
    _check_function(net)


@torch.no_grad()
def _check_function(net: Any) -> None:
    """Raise ValueError if ``net`` computes something other than a network rebuilt from its arguments.

    This detects changes to layers without weights, which the names and shapes of the weights do not show.
    """
    parameter, training = next(net.parameters()), net.training
    with torch.device("meta"):
        rebuilt = _argument_class(type(net))(**net.arguments, impl=net.impl)
    rebuilt = rebuilt.to_empty(device=parameter.device).to(parameter.dtype).eval()
    rebuilt.load_state_dict(net.state_dict())
    side = max(32, int(getattr(net, "size_multiple", 4)))
    generator = torch.Generator().manual_seed(0)
    shape = (1, net.arguments["input_nc"], side, side)
    x = torch.randn(shape, generator=generator, dtype=torch.float32).to(parameter)
    try:
        expected, output = rebuilt(x).double(), net.eval()(x).double()
    finally:
        net.train(training)
    # Far above the difference between two runs of the same function, TF32 included.
    allowed = 0.01 if parameter.dtype in (torch.float32, torch.float64) else 0.1
    # Large weights can overflow in both.
    difference, expected = (output - expected).nan_to_num(), expected.nan_to_num()
    if output.shape != expected.shape or not difference.norm() <= allowed * expected.norm():
        raise ValueError(
            f"{type(net).__name__}: its layers were changed: a network built from its arguments gives a"
            " different output"
        )


def _write_weights(net: Any, kind: type, folder: Path) -> None:
    """Write the weights of ``net``, with the class ``kind`` and its arguments in the metadata."""
    from safetensors.torch import save

    weights = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    recorded = {"class": kind.__name__, **net.arguments}
    if getattr(net, AS_TRAINED, False):
        recorded[AS_TRAINED] = True
    architecture = json.dumps(recorded)
    # As bytes, because the package writes only to paths that are UTF-8.
    data = save(weights, metadata={"format": "pt", "fastcyclegan": architecture})
    (folder / WEIGHTS_FILE).write_bytes(data)


def _weights_file(source: str, download: dict[str, Any]) -> Path:
    """Return the weights file in the folder ``source``, or download it if ``source`` is a name on the hub."""
    from huggingface_hub import hf_hub_download

    if Path(source).is_dir():
        return Path(source) / WEIGHTS_FILE
    return Path(hf_hub_download(source, WEIGHTS_FILE, **download))


def _check_kinds(kind: Any, options: Mapping[str, Any]) -> None:
    """Raise TypeError if an option of a default that is a number, a text or a bool is of another type."""
    parameters = inspect.signature(kind).parameters
    for name, value in options.items():
        default = parameters[name].default if name in parameters else None
        if isinstance(default, (bool, int, str)) and type(value) is not type(default) and not callable(value):
            wanted = type(default).__name__
            raise TypeError(f"{name} must be of type {wanted}, got {described(value)}")


def _read_network(kind: Any, source: str, strict: bool, options: dict[str, Any]) -> Any:
    """Load the network of class ``kind`` from ``source``, a folder or a name on the hub.

    ``options`` are the download options and the arguments of the class. Raises UserError for arguments that
    the class does not accept, and for weights of another network.
    """
    download = {name: options.pop(name) for name in _DOWNLOAD_OPTIONS}
    file = _weights_file(source, download)
    weights = load_tensors(file)
    require_representable(weights, torch.float32, file)
    for key, value in weights.items():
        if not value.is_floating_point() and not key.endswith("num_batches_tracked"):
            raise UserError(f"{file}: {shortened(key)} has the dtype {value.dtype} instead of floating point")
    try:
        _check_kinds(kind, options)
        with float32_by_default():
            net = kind(**options)
    # torch raises RuntimeError for more memory than there is, and for sizes below 0.
    except (TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as error:
        arguments = Path(source) / ARGUMENTS_FILE
        reason = one_line(error)
        raise UserError(f"{arguments}: not valid arguments for {kind.__name__}: {reason}") from None
    try:
        net.load_state_dict(weights, strict=strict)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{file}: the weights do not match {ARGUMENTS_FILE}: {reason}") from None
    net.translates_as_trained = arguments_in(file).get(AS_TRAINED) is True
    return net


def _card_values(net: Any, kind: type) -> dict[str, Any]:
    """Return the values that a model card shows for ``net``."""
    shown = [f"{name} {value}" for name, value in net.arguments.items() if value not in (False, None)]
    count = sum(parameter.numel() for parameter in net.parameters())
    return {
        "kind": kind.__name__,
        "architecture": ", ".join(shown),
        "input_nc": net.arguments["input_nc"],
        "parameters": f"{count:,}",
    }


@functools.cache
def _mixed(kind: type) -> Any:
    """Return ``kind`` combined with huggingface_hub's mixin, which uses our code to read and write files."""
    from huggingface_hub import ModelCard, ModelHubMixin, PyTorchModelHubMixin

    options: dict[str, Any] = {
        "library_name": "fastcyclegan",
        "pipeline_tag": "image-to-image",
        "tags": ["image-to-image"],
        "model_card_template": _CARD,
    }

    base: Any = kind

    class Mixed(base, PyTorchModelHubMixin, **options):
        # ``Pretrained`` has methods with the same names, which call these.
        from_pretrained: Any = classmethod(vars(ModelHubMixin)["from_pretrained"].__func__)
        save_pretrained, push_to_hub = PyTorchModelHubMixin.save_pretrained, PyTorchModelHubMixin.push_to_hub
        card: Mapping[str, Any]

        def _save_pretrained(self, save_directory: Path) -> None:
            _write_weights(self, kind, save_directory)

        @classmethod
        def _from_pretrained(
            cls, *, model_id: str, map_location: str = "cpu", strict: bool = True, **options: Any
        ) -> Any:
            return _read_network(kind, model_id, strict, options).to(map_location).eval()

        def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
            values = {**self.card, **_card_values(self, kind)}
            repo_id = kwargs.pop("repo_id", None)
            if repo_id:
                values["repo_id"] = repo_id
            card_data = self._hub_mixin_info.model_card_data
            return ModelCard.from_template(card_data=card_data, template_str=_CARD, **values)

    Mixed.__name__ = Mixed.__qualname__ = kind.__name__
    return Mixed
