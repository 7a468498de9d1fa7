"""What profiles mean on devices that are not here: choices and refusals by compute capability."""

import sys

import pytest
import torch

from flashvsr_core.config import UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.profiles import check_attention, check_device, natural_attention
from flashvsr_core.registry import model_spec
from flashvsr_core.upscaler import Upscaler, resolve_params
from tests.core.formula import formula_weights

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")


def a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    known = capability >= (8, 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: known or including_emulation)


def resolved(device: torch.device, **choices: object) -> UpscaleParams:
    return resolve_params(UpscaleParams(model="nano", **choices), model_spec("nano"), device)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("profile", "capability", "precision", "attention"),
    [("exact", (7, 5), "fp16", "triton"), ("exact", (8, 0), "bf16", "triton"), ("fast", (8, 9), "bf16", "int8"),
     ("exact", (9, 0), "bf16", "hopper"), ("fast", (9, 0), "bf16", "hopper"), ("fast", (12, 0), "bf16", "int8")],
)  # fmt: skip
def test_what_auto_means(
    monkeypatch: pytest.MonkeyPatch, profile: str, capability: tuple[int, int], precision: str, attention: str
) -> None:
    """PyTorch also calls bf16 supported where it is emulated (Turing); that is not what is asked for."""
    a_gpu(monkeypatch, capability)
    found = resolved(GPU, profile=profile)
    assert (found.precision, found.attention) == (precision, attention)
    assert resolved(GPU, profile=profile, attention="sage").attention == "sage"


def test_the_kernel_for_hopper_is_chosen_only_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    a_gpu(monkeypatch, (9, 0))
    assert resolved(GPU, precision="fp32").attention == "triton"
    assert natural_attention("exact", "bf16", 64, GPU) == "triton"
    check_attention("hopper", GPU)
    a_gpu(monkeypatch, (12, 0))
    with pytest.raises(UserError, match=r"'hopper' is written for compute capability 9\.0, cuda:0 has 12\.0"):
        check_attention("hopper", GPU)


@pytest.mark.parametrize("attention", ["triton", "int8", "sage"])
def test_a_gpu_that_cannot_run_the_attention_kernel_is_refused(monkeypatch: pytest.MonkeyPatch, attention: str) -> None:
    a_gpu(monkeypatch, (7, 5))
    with pytest.raises(UserError, match=rf"'{attention}' needs compute capability 8\.0, cuda:0 has 7\.5"):
        check_attention(attention, GPU)
    check_attention("torch", GPU)
    a_gpu(monkeypatch, (8, 6))
    check_attention(attention, GPU)


def test_fast_needs_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    a_gpu(monkeypatch, (8, 6))
    check_device(resolved(GPU, attention="int8"), GPU)
    with pytest.raises(UserError, match=r"needs compute capability 8\.9 for fp8, cuda:0 has 8\.6; use --profile exact"):
        check_device(resolved(GPU, profile="fast"), GPU)
    a_gpu(monkeypatch, (8, 9))
    check_device(resolved(GPU, profile="fast"), GPU)
    with pytest.raises(UserError, match="not in fp32"):
        check_device(resolved(GPU, profile="fast", precision="fp32"), GPU)


def test_fast_on_a_cpu_is_bf16_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    found = Upscaler.load(formula_weights(), UpscaleParams(profile="fast"))
    assert (found.params.precision, found.params.attention) == ("bf16", "torch")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.raises(UserError, match="no instructions for it"):
        Upscaler.load(formula_weights(), UpscaleParams(profile="fast"))


@pytest.mark.parametrize("attention", ["triton", "int8", "sage"])
def test_gpu_attention_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch, attention: str) -> None:
    knobs = pytest.importorskip("triton").knobs
    monkeypatch.setattr(knobs.runtime, "interpret", False)
    with pytest.raises(UserError, match=f"'{attention}' runs on CUDA GPUs only, not on cpu"):
        Upscaler.load(formula_weights(), UpscaleParams(attention=attention))  # type: ignore[arg-type]


def test_a_missing_sageattention_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from flashvsr_core.kernels.block_attention import attention_backend

    monkeypatch.delitem(sys.modules, "flashvsr_core.kernels.sage_attention", raising=False)
    monkeypatch.setitem(sys.modules, "sageattention", None)
    monkeypatch.setitem(sys.modules, "sageattention.quant_per_block", None)
    with pytest.raises(UserError, match=r"sageattention>=1\.0\.6,<2.*flashvsr\[gpu\]"):
        attention_backend("sage")
