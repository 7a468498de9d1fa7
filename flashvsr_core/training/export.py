"""The trained model as one safetensors file, with what it was made from."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashvsr_core.registry import DitSpec, LqSpec, ModelSpec, TcDecoderSpec
from flashvsr_core.weights import sha256_of

PARTS = ("dit", "lq_proj", "tcdecoder")


def save_export(path: Path, tensors: dict[str, Tensor], spec: ModelSpec, about: dict[str, Any]) -> None:
    """Write float16 tensors; `about` (data, recipe, commit, figures) goes into the metadata as JSON texts."""
    metadata = {"spec": json.dumps(asdict(spec))} | {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()
    }
    half = {key: tensor.detach().to("cpu", torch.float16).contiguous() for key, tensor in tensors.items()}
    save_file(half, path, metadata)


def load_export(path: Path) -> dict[str, Any]:
    """Fields of `Weights` from an exported file."""
    tensors = load_file(path)
    parts = {
        name: {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        for name in PARTS
    }
    return {"spec": spec_of(path), **parts, "prompt": tensors["prompt"], "digests": {"nano": sha256_of(path)}}


def spec_of(path: Path) -> ModelSpec:
    """The spec in an exported file's metadata."""
    with safe_open(path, "pt") as file:
        return spec_from(json.loads(file.metadata()["spec"]))


def spec_from(values: dict[str, Any]) -> ModelSpec:
    """A `ModelSpec` (without VAE) from the nested dicts of `asdict`, where JSON has made lists of tuples."""
    kinds = {"dit": DitSpec, "lq": LqSpec, "tcdecoder": TcDecoderSpec}
    nested = {key: kind(**{k: _tuple(v) for k, v in values[key].items()}) for key, kind in kinds.items()}
    return ModelSpec(**(values | nested))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
