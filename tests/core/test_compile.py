"""Every Triton kernel is compiled, without a GPU, for the generations that it may meet: down to machine code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

# Compiled in a process of its own: conftest.py has set this one's Triton to interpret.
SCRIPT = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from tests.core.test_compile import cases

for argument in sys.argv[1:]:
    capability, dtype = int(argument.split()[0]), argument.split()[1]
    for name, (module, signature, constants, options) in cases(capability).items():
        kernel = getattr(__import__(f"flashvsr_core.kernels.{module}", fromlist=["x"]), name.split()[0])
        types = {key: kind.replace("half", dtype) for key, kind in signature.items()}
        form = GluonASTSource if kernel.is_gluon() else ASTSource
        source = form(kernel, types | dict.fromkeys(constants, "constexpr"), constants)
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert built.asm["cubin"], name
        print(capability, name, len(built.asm["cubin"]), built.metadata.shared)
"""

_ROW = {"dim": "i32", "eps": "fp32"}
CASES: dict[str, tuple[str, dict[str, str], dict[str, object], dict[str, int]]] = {
    "_norm": ("token_ops_triton", dict.fromkeys(("x", "out", "scale", "shift"), "*half") | _ROW,
              {"OFFSET": 1.0, "WIDTH": 2048}, {}),
    "_add_norm": ("token_ops_triton",
                  dict.fromkeys(("x", "y", "gate", "total", "out", "scale", "shift"), "*half") | _ROW,
                  {"GATED": True, "OFFSET": 1.0, "WIDTH": 2048}, {}),
    "_rms_norm": ("token_ops_triton", dict.fromkeys(("x", "out", "weight"), "*half") | {"stride": "i32"} | _ROW,
                  {"WIDTH": 2048}, {}),
    "_inverse_rms": ("token_ops_triton",
                     {"q": "*half", "k": "*half", "out": "*fp32", "stride": "i32", "rows": "i32"} | _ROW,
                     {"WIDTH": 2048}, {}),
    "_windows": ("token_ops_triton",
                 dict.fromkeys(("q", "k", "v"), "*half") | {"inverse": "*fp32", "weight_q": "*half",
                 "weight_k": "*half", "cos": "*fp32", "sin": "*fp32"}
                 | dict.fromkeys(("q_out", "k_out", "v_out"), "*half") | {"q_pooled": "*fp32", "k_pooled": "*fp32"}
                 | dict.fromkeys(("stride", "rows", "heads", "count", "k_batch", "k_head", "v_batch", "v_head",
                                  "pooled_batch", "pooled_head"), "i32"),
                 {"TOKENS": 128, "PAIRS": 64}, {"num_warps": 8}),
    "_score": ("block_mask_triton",
               {"q": "*fp32", "k": "*fp32", "local": "*u8", "weights": "*fp32", "n": "i32", "query_windows": "i32",
                "key_windows": "i32", "k_head": "i32", "scale": "fp32"},
               {"QUERIES": 16, "KEYS": 64, "DIM": 128}, {}),
    "_count_digits": ("block_mask_triton", {"weights": "*i32", "histograms": "*i32", "entries": "i32",
                      "groups": "i32", "rank": "i32"},
                      {"PASS": 3, "DIGIT": 8, "CHUNK": 2048}, {"num_warps": 8}),
    "_list_above": ("block_mask_triton",
                    {"weights": "*i32", "thresholds": "*i32", "counts": "*i32", "indices": "*i32", "n": "i32",
                     "windows": "i32"}, {"WIDTH": 512}, {}),
    "_threshold": ("block_mask_triton",
                   {"histograms": "*i32", "thresholds": "*i32", "groups": "i32", "rank": "i32"}, {"DIGIT": 8}, {}),
    "_list_blocks": ("block_attention_triton",
                     {"mask": "*u8", "counts": "*i32", "indices": "*i32", "windows": "i32"}, {"WIDTH": 512}, {}),
    "_order_rows": ("block_attention_triton", {"counts": "*i32", "order": "*i32", "windows": "i32"},
                    {"WIDTH": 128}, {}),
    "_attend": ("block_attention_triton",
                {"q": "*half", "k": "tensordesc<half[128,128]>", "v": "tensordesc<half[128,128]>", "out": "*half",
                 "counts": "*i32", "indices": "*i32", "order": "*i32"}
                | dict.fromkeys(("k_batch", "k_head", "v_batch", "v_head", "heads", "query_windows", "key_windows"),
                                "i32") | {"scale": "fp32"},
                {"TOKENS": 128, "KEYS": 128, "DIM": 128, "PRECISION": "ieee"}, {"num_warps": 8, "num_stages": 2}),
    "_repeat": ("pixels_triton", {"x": "*half", "out": "*half", "height": "i32", "width": "i32"},
                {"STRIDE": 2, "CHANNELS": 128, "PIXELS": 16}, {}),
    "_interleave": ("pixels_triton", {"x": "*half", "out": "*half", "height": "i32", "width": "i32"},
                    {"STRIDE": 2, "CHANNELS": 128, "PIXELS": 16}, {}),
    "_finish": ("pixels_triton",
                {"x": "*half", "out": "*half", "pixels": "i32", "out_channel": "i32", "out_frame": "i32"},
                {"STRIDE": 8, "PIXELS": 1024}, {}),
    "_quantise_rgb": ("pixels_triton",
                  {"x": "*fp32", "out": "*u8"}
                  | dict.fromkeys(("width", "x_frame", "x_channel", "x_row"), "i32") | {"half": "fp32"},
                  {"PIXELS": 1024}, {"enable_fp_fusion": False}),
    "_project": ("last_layers_triton", dict.fromkeys(("x", "weight", "out"), "*half") | {"pixels": "i32"},
                 {"CHANNELS": 128, "PRODUCTS": 32, "PIXELS": 64}, {}),
    "_gather": ("last_layers_triton",
                {"products": "*half", "scale": "*fp32", "bias": "*fp32", "out": "*half"}
                | dict.fromkeys(("height", "width", "border", "out_channel", "out_frame"), "i32"),
                {"COLORS": 3, "PRODUCTS": 32, "PIXELS": 128}, {}),
    "_widen": ("enlarge_triton", {"x": "*u8", "out": "*fp32", "width": "i32", "peak": "fp32"},
               {"SCALE": 4, "PIXELS": 512}, {}),
    "_heighten": ("enlarge_triton",
                  {"x": "*fp32", "out": "*fp32"} | dict.fromkeys(("width", "height", "padded_width"), "i32"),
                  {"SCALE": 4, "REFLECT_X": True, "REFLECT_Y": True, "ROWS": 8, "PIXELS": 128}, {}),
}  # fmt: skip


FROM_8_0 = {  # Triton multiplies int8 from here on; older GPUs are refused anyway
    "_quantise": ("int8_attention_triton",
                  {"x": "*half", "less": "*fp32", "out": "*i8", "scales": "*fp32"}
                  | dict.fromkeys(("x_batch", "x_head", "heads", "windows"), "i32"),
                  {"LESS": True, "BY_WINDOW": True, "TOKENS": 128, "DIM": 128, "LEVELS": 127}, {"num_warps": 8}),
    "_attend int8": ("int8_attention_triton",
                     {"q": "*i8", "k": "tensordesc<i8[128,128]>", "v": "tensordesc<half[128,128]>",
                      "q_scales": "*fp32", "k_scales": "*fp32", "out": "*half", "counts": "*i32", "indices": "*i32",
                      "order": "*i32"}
                     | dict.fromkeys(("v_batch", "v_head", "heads", "query_windows", "key_windows"), "i32")
                     | {"scale": "fp32"},
                     {"TOKENS": 128, "KEYS": 128, "DIM": 128, "PRECISION": "ieee"},
                     {"num_warps": 8, "num_stages": 2}),
}  # fmt: skip
FROM_8_9 = {  # fp8
    "_norm_rounded": ("fp8_linear_triton",
                      dict.fromkeys(("x", "y", "gate", "total", "scale", "shift"), "*half")
                      | {"out": "*fp8e4nv", "scales": "*fp32"} | _ROW,
                      {"ADDED": True, "GATED": True, "OFFSET": 1.0, "LARGEST": 448.0, "WIDTH": 2048}, {}),
    "_unfold": ("fp8_patches_triton",
                {"x": "*half", "scale": "*fp32", "out": "*fp8e4nv"}
                | dict.fromkeys(("frames", "height", "width", "channels", "count", "stride"), "i32"),
                {"TAPS": 4, "SIDE": 3, "LARGEST": 448.0, "WIDTH": 2048}, {}),
    "_interleave_rounded": ("last_layers_triton",
                            {"x": "*half", "scale": "*fp32", "less": "*fp32", "out": "*fp8e4nv", "height": "i32",
                             "width": "i32"},
                            {"STRIDE": 2, "CHANNELS": 128, "LARGEST": 448.0, "PIXELS": 16}, {}),
    "_quantise_rows": ("fp8_linear_triton", {"x": "*half", "out": "*fp8e4nv", "scales": "*fp32", "dim": "i32"},
                       {"GELU": True, "LARGEST": 448.0, "WIDTH": 8192, "REST": 1024}, {"num_warps": 8}),
}  # fmt: skip


def cases(capability: int) -> dict[str, tuple[str, dict[str, str], dict[str, object], dict[str, int]]]:
    hopper = _for_hopper() if capability == 90 else {}
    return CASES | (FROM_8_0 if capability >= 80 else {}) | (FROM_8_9 if capability >= 89 else {}) | hopper


def _for_hopper() -> dict[str, tuple[str, dict[str, str], dict[str, object], dict[str, int]]]:
    from triton.experimental.gluon.language import NVMMASharedLayout

    layout, of_bytes = (repr(NVMMASharedLayout(128, bits, 2)) for bits in (16, 8))
    signature = CASES["_attend"][1]
    tiles = {"q": 64, "k": 128, "v": 128}
    described = {name: f"tensordesc<half[{rows},128],{layout}>" for name, rows in tiles.items()}
    convolved = dict.fromkeys(("x", "weight"), f"tensordesc<fp8e4nv[128,128],{of_bytes}>")
    convolved |= {"projection": f"tensordesc<half[32,128],{layout}>", "offset": "*fp32", "out": "*half"}
    return {
        "_attend hopper": ("hopper_attention", signature | described, {"STAGES": 2}, {"num_warps": 4}),
        "_convolve": ("hopper_convolution", convolved | dict.fromkeys(("rows", "line", "tiles_in_all"), "i32"),
                      {"STAGES": 4, "TAPS": 9}, {"num_warps": 4}),
    }  # fmt: skip


GENERATIONS = {75: "fp16", 80: "bf16", 86: "bf16", 89: "bf16", 90: "bf16", 120: "bf16"}
KERNELS = Path(__file__).parents[2] / "flashvsr_core" / "kernels"


def test_every_kernel_is_among_the_cases() -> None:
    """What is launched on a grid is a kernel; other functions are compiled with them."""
    texts = {path.stem: path.read_text() for path in KERNELS.glob("*.py")}
    launched = {(module, name) for module, text in texts.items() for name in re.findall(r"\b(_\w+)\[", text)}
    made = {(module, name) for module, text in texts.items() for name in re.findall(r"jit\ndef (_\w+)", text)}
    compiled = {(case[0], name.split()[0]) for name, case in cases(90).items()}
    assert launched & made <= compiled <= made


@pytest.mark.system  # two minutes of a core
def test_kernels_compile(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {"PATH": "/usr/bin:/bin", "TRITON_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    asked = [f"{capability} {dtype}" for capability, dtype in GENERATIONS.items()]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *asked],
        env=environment, cwd=KERNELS.parents[1], capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == sum(len(cases(capability)) for capability in GENERATIONS)
