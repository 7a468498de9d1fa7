"""What a profile and `auto` mean on a device, and what a device cannot do: refused by name, never replaced silently."""

import torch

from flashvsr_core.config import Attention, Precision, UpscaleParams
from flashvsr_core.errors import UserError

# Compiled for 7.5, a program of the attention kernel takes 128 KiB of shared memory, and Turing has 64; from 8.0 on it
# fits (Triton 3.9: 64 KiB on 8.x, 160 on 9.0, 96 on 12.0).
TRITON_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)  # matrix units that know fp8
HOPPER_CAPABILITY = (9, 0)
HOPPER_HEAD_DIM = 128  # the only one that `hopper_attention` has code for


def natural_precision(profile: str, device: torch.device) -> Precision:
    """bf16 on GPUs whose matrix units know it, fp16 on older ones (Turing); on the CPU fp32, with profile fast bf16."""
    if device.type != "cuda":
        return "bf16" if profile == "fast" else "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def natural_attention(profile: str, precision: str, head_dim: int, device: torch.device) -> Attention:
    """What `auto` means: torch on the CPU; on Hopper hopper, which computes in 16 bits faster than int8 does there; on
    other GPUs int8 or triton."""
    if device.type != "cuda":
        return "torch"
    hopper = torch.cuda.get_device_capability(device) == HOPPER_CAPABILITY
    if hopper and precision != "fp32" and head_dim == HOPPER_HEAD_DIM:
        return "hopper"
    return "int8" if profile == "fast" else "triton"


def check_device(params: UpscaleParams, device: torch.device) -> None:
    """UserError where this device cannot run the resolved parameters' attention or profile."""
    check_attention(params.attention, device)
    if params.profile == "exact":
        return
    if params.precision != "bf16":
        raise UserError(
            f"profile 'fast' computes in bf16 and 8 bits, not in {params.precision}; leave out --precision, or use "
            f"--profile exact"
        )
    if device.type != "cuda":
        if not cpu_has_bf16():
            raise UserError(
                "profile 'fast' is bf16 on a CPU, and this one has no instructions for it (avx512_bf16 or amx), so it "
                "would be slower than exact; use --profile exact"
            )
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        raise UserError(
            f"profile 'fast' needs compute capability {_dotted(FP8_CAPABILITY)} for fp8, {device} has "
            f"{_dotted(capability)}; use --profile exact, with --attention int8 if that is faster there"
        )


def check_attention(attention: str, device: torch.device) -> None:
    """UserError where this device cannot run the attention backend."""
    if attention == "torch":
        return
    if device.type != "cuda":
        if not _interpreted():
            raise UserError(f"attention {attention!r} runs on CUDA GPUs only, not on {device}; use --attention torch")
        return
    capability = torch.cuda.get_device_capability(device)
    if attention == "hopper" and capability != HOPPER_CAPABILITY:
        raise UserError(
            f"attention 'hopper' is written for compute capability {_dotted(HOPPER_CAPABILITY)}, {device} has "
            f"{_dotted(capability)}; use --attention triton, or int8"
        )
    if capability < TRITON_CAPABILITY:
        raise UserError(
            f"attention {attention!r} needs compute capability {_dotted(TRITON_CAPABILITY)}, {device} has "
            f"{_dotted(capability)}; use a newer GPU, or --attention torch, which is slow"
        )


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 by instructions of its own."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _interpreted() -> bool:
    """Whether Triton interprets kernels, as tests have it do."""
    try:
        from triton import knobs
    except ImportError:  # not installed: `attention_backend` says so by name
        return True
    return bool(knobs.runtime.interpret)


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
