"""Weights of one model and how they become modules."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flashvsr_core.errors import UserError
from flashvsr_core.models.dit import Dit
from flashvsr_core.models.lq_proj import LqProj
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.registry import ModelSpec, model_spec
from flashvsr_core.stream import Network

_EMBEDDED = "nano.safetensors"


@dataclass(frozen=True)
class Weights:
    """Tensors of one model, by module and published key, and the sha256 of each file they came from."""

    spec: ModelSpec
    dit: Mapping[str, Tensor]
    lq_proj: Mapping[str, Tensor]
    tcdecoder: Mapping[str, Tensor]
    prompt: Tensor  # 1 tokens text_dim
    digests: Mapping[str, str]


def embedded_path() -> Path:
    return Path(str(resources.files("flashvsr_core"))) / "assets" / _EMBEDDED


def embedded_weights() -> Weights:
    """The model `nano` that ships inside the package."""
    path = embedded_path()
    tensors = load_file(path)
    parts = {name: _part(tensors, name) for name in ("dit", "lq_proj", "tcdecoder")}
    return Weights(model_spec("nano"), **parts, prompt=tensors["prompt"], digests={"nano": sha256_of(path)})


def build_network(weights: Weights, dtype: torch.dtype, device: torch.device) -> Network:
    """Modules on `device` in `dtype`; every tensor must fit its published key and shape."""
    spec = weights.spec
    with torch.device("meta"):
        dit, lq = Dit(spec.dit), LqProj(spec.lq, spec.dit.dim)
        decoder = TcDecoder(spec.tcdecoder)
    for module, tensors in ((dit, weights.dit), (lq, weights.lq_proj), (decoder, weights.tcdecoder)):
        _assign(module, tensors, dtype, device)
    with torch.inference_mode():
        constants = dit.constants(weights.prompt.to(device, dtype))
    return Network(dit, lq, decoder, constants)


@lru_cache(maxsize=32)
def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _assign(module: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"weights hold NaN or infinity in {key}; fetch the file again and verify it")
    converted = {key: tensor.to(device, dtype) for key, tensor in tensors.items()}
    module.load_state_dict(converted, strict=True, assign=True)
    module.eval().requires_grad_(False)
