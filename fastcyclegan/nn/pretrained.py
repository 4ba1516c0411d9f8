"""Generators as safetensors files and on the hub: huggingface_hub's mixin, made when it is first used, over
our own reading of files.

A folder of ``save_pretrained`` has model.safetensors (the architecture in its metadata), config.json (the
arguments of the class) and a model card, README.md. The packages come with ``pip install
'fastcyclegan[hub]'``.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import load_tensors

# The files of a folder of ``save_pretrained``.
WEIGHTS_FILE = "model.safetensors"
ARGUMENTS_FILE = "config.json"
# The options of huggingface_hub's mixin that say how a file is fetched.
_DOWNLOAD_OPTIONS = ("revision", "cache_dir", "force_download", "local_files_only", "token")

_CARD = """---
{{ card_data }}
---

# {{ title }}

A CycleGAN generator ({{ architecture }}), {{ parameters }} weights, for the Python package fastcyclegan:

```python
from fastcyclegan import {{ kind }}

G = {{ kind }}.from_pretrained("{{ repo_id }}")
fake = G(images)  # float [N, {{ input_nc }}, H, W] in [-1, 1]
```

Its keys are those of the official PyTorch code: `torch.save(G.state_dict(), "latest_net_G.pth")` \
makes a file that its `test.py` loads.
{% if training %}
## Training

| | |
|---|---|
{% for name, value in training.items() %}| {{ name }} | {{ value }} |
{% endfor %}{% endif %}"""


def _require() -> None:
    missing = [name for name in ("huggingface_hub", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"this needs {' and '.join(missing)}: pip install 'fastcyclegan[hub]'")


def training_of(config: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return what a model card says of a run: its images by the names of their folders alone, and what it was
    trained with.

    ``config``: the groups of its config.json. Raises KeyError for a setting that is missing.
    """
    data, loss, optim = config["data"], config["loss"], config["optim"]
    folders = [Path(data[name]).name for name in ("dataroot", "data_A", "data_B") if data[name] is not None]
    source = "built-in"
    if folders:
        source = " and ".join(folders)
    length = f"{optim['n_epochs']} epochs and {optim['n_epochs_decay']} of decay"
    if optim["max_iters"]:
        length += f", at most {optim['max_iters']:,} iterations"
    cycle = f"cycle {loss['lambda_A']:g} and {loss['lambda_B']:g}"
    identity = f"identity {loss['lambda_identity']:g}"
    adam = f"lr {optim['lr']:g} ({optim['lr_policy']}), beta1 {optim['beta1']:g}"
    if optim.get("ema"):
        adam += f", average of weights {optim['ema']:g}"
    return {
        "images": f"{source}, {data['direction']}",
        "samples": f"{data['preprocess']}, load_size {data['load_size']}, crop_size {data['crop_size']}",
        "length": f"{length}, batch {data['batch_size']}",
        "losses": f"{loss['gan_mode']}, {cycle}, {identity}, pool {loss['pool_size']}",
        "Adam": adam,
        "seed": str(config["run"]["seed"]),
    }


def _training_in(run: Path) -> dict[str, str]:
    """Return ``training_of`` the run in folder ``run``. Raises UserError for a folder that is none.

    Of config.json, else of its state, as plain values: nothing here knows what settings there are.
    """
    # As checkpoints/ names them.
    config_file, state_file = run / "config.json", run / "state.pt"
    if config_file.is_file():
        file = config_file
    elif state_file.is_file():
        file = state_file
    else:
        raise UserError(f"{run}: not a run's folder with a configuration")
    try:
        if file == config_file:
            return training_of(json.loads(file.read_text()))
        return training_of(load_tensors(file)["config"])
    except KeyError as error:
        raise UserError(f"{file}: not a configuration of a run: it has no {error.args[0]}") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not a configuration of a run: {error}") from None


class Pretrained:
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` for a network class that keeps its
    ``arguments``.
    """

    arguments: dict[str, Any]
    """What the network was made with, but for what computes it."""

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Self:
        """Return the network that ``save_pretrained`` wrote to the folder ``source``, or of that name on the
        hub, in eval mode.

        ``options``: those of ``huggingface_hub.ModelHubMixin.from_pretrained`` (revision, token, cache_dir
        ...), and arguments of the class, such as ``impl``. Raises UserError for a folder that has something
        else, ImportError without the extra ``hub``.
        """
        _require()
        if Path(source).is_file():
            raise UserError(f"{source}: a file; load_generator takes files")
        if Path(source).is_dir():
            _check_folder(Path(source))
        net: Self = _mixed(_owner(cls)).from_pretrained(str(source), **options)
        # What the hub notes on networks that are of its own class.
        vars(net).pop("_hub_mixin_config", None)
        return net

    def save_pretrained(
        self, folder: str | Path, *, run: str | Path | None = None, title: str = "", **options: Any
    ) -> None:
        """Write weights, arguments and a model card to ``folder``. ``run``: the run's folder whose
        configuration the card is to show.

        ``options``: those of ``huggingface_hub.ModelHubMixin.save_pretrained``, as push_to_hub and repo_id.
        Raises ValueError for a network that its arguments do not make, UserError for a ``run`` that is none,
        ImportError without the extra ``hub``.
        """
        if not title:
            title = Path(folder).resolve().name
        mixed = self._as_mixed(run, title, title)
        mixed.save_pretrained(str(folder), config=self.arguments, **options)

    def push_to_hub(self, repo_id: str, *, run: str | Path | None = None, **options: Any) -> Any:
        """Upload what ``save_pretrained`` writes, and return the address. ``options``: those of
        ``ModelHubMixin.push_to_hub``.
        """
        title = repo_id.rpartition("/")[2]
        mixed = self._as_mixed(run, title, repo_id)
        return mixed.push_to_hub(repo_id, config=self.arguments, **options)

    def _as_mixed(self, run: str | Path | None, title: str, repo_id: str) -> Any:
        """Return a view of this network, with the same parameters, of the class that the hub's mixin
        knows."""
        _require()
        _check_arguments(self)
        training: dict[str, str] = {}
        if run is not None:
            training = _training_in(Path(run))
        kind = _mixed(_owner(type(self)))
        view = object.__new__(kind)
        vars(view).update(vars(self))
        view.card = {"title": title, "repo_id": repo_id, "training": training}
        return view


def _owner(cls: type) -> type:
    """Return the class that ``arguments`` are for: ``cls``, or what it was derived from with a signature of
    its own.
    """
    return next(kind for kind in cls.__mro__ if kind.__dict__.get("keeps_arguments"))


def _check_folder(folder: Path) -> None:
    """Raise UserError where ``folder`` is not one of ``save_pretrained``."""
    if not (folder / WEIGHTS_FILE).exists():
        raise UserError(f"{folder}: no {WEIGHTS_FILE} in it; load_generator takes runs and official files")
    file = folder / ARGUMENTS_FILE
    try:
        arguments = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(arguments, dict):
        raise UserError(f"{file}: not the arguments of a network, but a {type(arguments).__name__}")


def _shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in net.state_dict().items()}


def _check_arguments(net: Any) -> None:
    strange = [name for name, value in net.arguments.items() if callable(value)]
    if strange:
        what = f"{strange[0]} was given as a function, which no file can keep; give its name"
        raise ValueError(f"{type(net).__name__}: {what}")
    with torch.device("meta"):
        made = _owner(type(net))(**net.arguments)
    if _shapes(made) != _shapes(net):
        raise ValueError(
            f"{type(net).__name__}: its layers were changed, so that its arguments do not make it any more"
        )
    _check_function(net)


@torch.no_grad()
def _check_function(net: Any) -> None:
    """Raise ValueError unless ``net`` computes what its arguments make: layers without weights may have been
    changed too.
    """
    parameter, training = next(net.parameters()), net.training
    with torch.device("meta"):
        made = _owner(type(net))(**net.arguments, impl=net.impl)
    made = made.to_empty(device=parameter.device).to(parameter.dtype).eval()
    made.load_state_dict(net.state_dict())
    side = max(32, int(getattr(net, "size_multiple", 4)))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, net.arguments["input_nc"], side, side, generator=generator).to(parameter)
    try:
        wanted, found = made(x).double(), net.eval()(x).double()
    finally:
        net.train(training)
    # Far above what two runs of one function differ by, TF32 included.
    allowed = 0.01 if parameter.dtype in (torch.float32, torch.float64) else 0.1
    if found.shape != wanted.shape or not (found - wanted).norm() <= allowed * wanted.norm():
        raise ValueError(
            f"{type(net).__name__}: its layers were changed, so that its arguments make another function"
        )


def _write_weights(net: Any, kind: type, folder: Path) -> None:
    """Write the weights of ``net``, and in their metadata the class ``kind`` and its arguments."""
    from safetensors.torch import save_file

    weights = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    about = json.dumps({"class": kind.__name__, **net.arguments})
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt", "fastcyclegan": about})


def _weights_file(source: str, download: dict[str, Any]) -> Path:
    """Return the file of weights in the folder ``source``, or, fetched, of that name on the hub."""
    from huggingface_hub import hf_hub_download

    if Path(source).is_dir():
        return Path(source) / WEIGHTS_FILE
    return Path(hf_hub_download(source, WEIGHTS_FILE, **download))


def _read_network(kind: Any, source: str, strict: bool, options: dict[str, Any]) -> Any:
    """Return the network of class ``kind`` in ``source``. ``options``: how it is fetched, and its arguments.

    Raises UserError for arguments that are none of the class, and for weights of another network.
    """
    download = {name: options.pop(name) for name in _DOWNLOAD_OPTIONS}
    file = _weights_file(source, download)
    try:
        net = kind(**options)
    except (TypeError, ValueError, AttributeError) as error:
        arguments = Path(source) / ARGUMENTS_FILE
        why = str(error).splitlines()[0]
        raise UserError(f"{arguments}: no arguments of {kind.__name__}: {why}") from None
    try:
        net.load_state_dict(load_tensors(file), strict=strict)
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()
        raise UserError(f"{file}: does not fit its {ARGUMENTS_FILE}: {why}") from None
    return net


def _facts(net: Any, kind: type) -> dict[str, Any]:
    """Return what a model card says of ``net``."""
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
    """Return ``kind`` with huggingface_hub's mixin, reading and writing files by our own rules."""
    from huggingface_hub import ModelCard, ModelHubMixin, PyTorchModelHubMixin

    options: dict[str, Any] = {
        "library_name": "fastcyclegan",
        "pipeline_tag": "image-to-image",
        "tags": ["cyclegan", "image-to-image"],
        "model_card_template": _CARD,
    }

    base: Any = kind

    class Mixed(base, PyTorchModelHubMixin, **options):
        # What the network class has of these calls these.
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
            values = {**self.card, **_facts(self, kind)}
            repo_id = kwargs.pop("repo_id", None)
            if repo_id:
                values["repo_id"] = repo_id
            card_data = self._hub_mixin_info.model_card_data
            return ModelCard.from_template(card_data=card_data, template_str=_CARD, **values)

    Mixed.__name__ = Mixed.__qualname__ = kind.__name__
    return Mixed
