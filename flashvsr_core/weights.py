"""Weights of one model and how they become modules."""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flashvsr_core.errors import UserError
from flashvsr_core.modelfiles import ModelFiles, sha256_of
from flashvsr_core.models.dit import Dit
from flashvsr_core.models.lq_proj import LqProj
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.models.wan_vae import WanVaeDecoder
from flashvsr_core.registry import PARTS, ModelSpec, Role, model_spec
from flashvsr_core.stream import Network

_EMBEDDED = "nano.safetensors"

# Keys of published files that no module here has: the VAE's encoder. Everything else must fit exactly.
UNUSED: dict[Role, tuple[str, ...]] = {"vae": ("encoder.", "conv1.")}


@dataclass(frozen=True)
class Weights:
    """Tensors of one model, by module and published key, and the sha256 of each file they came from.

    The decoder that a mode does not use may be empty.
    """

    spec: ModelSpec
    dit: Mapping[str, Tensor]
    lq_proj: Mapping[str, Tensor]
    tcdecoder: Mapping[str, Tensor]
    prompt: Tensor  # 1 tokens text_dim
    digests: Mapping[str, str]
    vae: Mapping[str, Tensor] | None = None


def embedded_path() -> Path:
    return Path(str(resources.files("flashvsr_core"))) / "assets" / _EMBEDDED


def embedded_weights() -> Weights:
    """The model `nano` that ships inside the package."""
    path = embedded_path()
    tensors = load_file(path)
    parts = {name: _part(tensors, name) for name in ("dit", "lq_proj", "tcdecoder")}
    return Weights(model_spec("nano"), **parts, prompt=tensors["prompt"], digests={"nano": sha256_of(path)})


def load_weights(files: ModelFiles, mode: str) -> Weights:
    """Tensors of the parts that `mode` reads, memory-mapped: nothing is copied before it goes to a device."""
    parts = {role: read_tensors(files.paths[role]) for role in PARTS[mode] if role != "prompt"}
    for role, prefixes in UNUSED.items():
        if role in parts:
            parts[role] = {key: value for key, value in parts[role].items() if not key.startswith(prefixes)}
    return Weights(
        files.spec,
        dit=parts["dit"],
        lq_proj=parts["lq_proj"],
        tcdecoder=parts.get("tcdecoder", {}),
        vae=parts.get("vae"),
        prompt=read_prompt(files.paths["prompt"], files.spec),
        digests=dict(files.digests),
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors file or a pickle; of a pickle nothing but tensors is ever loaded."""
    loaded = _load(path)
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{path} is no state dict: it must hold named tensors only; fetch the published file")
    return loaded


def read_prompt(path: Path, spec: ModelSpec) -> Tensor:
    """The fixed prompt embedding, 1 tokens text_dim: published as a bare tensor, converted as a file's only one."""
    loaded = _load(path)
    if isinstance(loaded, dict) and len(loaded) == 1:
        loaded = next(iter(loaded.values()))
    expected = (1, spec.prompt_tokens, spec.dit.text_dim)
    if not isinstance(loaded, Tensor) or tuple(loaded.shape) != expected:
        shape = tuple(loaded.shape) if isinstance(loaded, Tensor) else type(loaded).__name__
        raise UserError(f"{path} does not hold the prompt of {spec.name}: {shape}, not a tensor {expected}")
    return loaded


def build_network(weights: Weights, dtype: torch.dtype, device: torch.device, mode: str = "tiny") -> Network:
    """Modules on `device` in `dtype`; every tensor must fit its published key and shape. What depends on timestep and
    prompt alone is computed here, once."""
    spec = weights.spec
    with torch.device("meta"):
        dit, lq = Dit(spec.dit), LqProj(spec.lq, spec.dit.dim)
        decoder = TcDecoder(spec.tcdecoder) if mode == "tiny" else _wan_vae(spec)
    tensors = weights.tcdecoder if mode == "tiny" else weights.vae or {}
    for name, module, part in (("dit", dit, weights.dit), ("lq_proj", lq, weights.lq_proj), (mode, decoder, tensors)):
        _assign(name, module, part, dtype, device)
    # Weights are laid out anew for speed; keys and values stay as published.
    dit.fuse()
    lq.fuse()
    prompt = {"prompt": weights.prompt.to(device).to(dtype)}
    _check_finite("prompt", prompt, {"prompt": weights.prompt})
    with torch.inference_mode():
        constants = dit.constants(prompt["prompt"])
    return Network(dit, lq, decoder, constants)


def _wan_vae(spec: ModelSpec) -> WanVaeDecoder:
    if spec.vae is None:
        raise UserError(f"model {spec.name} has no VAE, so no mode 'full'; use mode 'tiny' or model v1.1")
    return WanVaeDecoder(spec.vae)


def _load(path: Path) -> object:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is no whole safetensors file ({error}); fetch it again") from error
    try:
        # weights_only builds tensors and plain containers; any other instruction of the pickle is refused, not run.
        # Pickles of torch < 1.6 are no zip files and cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0] if "nsupported" not in str(error) else "it holds more than tensors"
        raise UserError(
            f"{path} was refused and nothing in it was run: {reason}; use a published file, which flashvsr models "
            f"fetch gets, or a safetensors file"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged or holds no weights ({error}); fetch it again") from error


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _assign(
    name: str, module: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> None:
    _check_fit(name, module, tensors)
    # Bytes go to the device as they are in the file and change type there, which is faster than on the CPU.
    converted = {key: tensor.to(device).to(dtype) for key, tensor in tensors.items()}
    _check_finite(name, converted, tensors)
    module.load_state_dict(converted, strict=True, assign=True)
    module.eval().requires_grad_(False)


def _check_fit(name: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if expected == found:
        return
    key = next(key for key in (*expected, *found) if expected.get(key) != found.get(key))
    wrong = sum(expected.get(key) != found.get(key) for key in {**expected, **found})
    raise UserError(
        f"weights of {name} do not fit the model: {wrong} of {len(expected)} tensors differ, the first is {key}: "
        f"{found.get(key, 'missing')} instead of {expected.get(key, 'none')}; use the model they were made for"
    )


def _check_finite(name: str, converted: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """One question to the device for all tensors; which of them it is matters only if something is wrong."""
    if torch.stack([tensor.isfinite().all() for tensor in converted.values()]).all():
        return
    key = next(key for key, tensor in converted.items() if not tensor.isfinite().all())
    if source[key].isfinite().all():
        raise UserError(f"weights {name}.{key} do not fit into {converted[key].dtype}; use --precision bf16 or fp32")
    raise UserError(f"weights hold NaN or infinity in {name}.{key}; fetch the file again and verify it")
