"""Full size on one GPU with seeded random weights: golden numbers, load time, frames per second, peak memory.

Make the clip here:  python -m tests.bench.full_size clip .carry/bbb.npz
Measure there:       python3 -m tests.bench.full_size measure .carry/bbb.npz RESULT.json
The random model is written as safetensors under the published names and loaded through the functions that the tasks
call. Its values do not change what it costs. `tests.bench.segment_task` runs the task itself, decoder and encoder
included.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from flashvsr_core.bench.inputs import random_tensor
from flashvsr_core.config import UpscaleParams
from flashvsr_core.modelfiles import locate, sha256_of
from flashvsr_core.models.dit import Dit
from flashvsr_core.models.lq_proj import LqProj
from flashvsr_core.models.tcdecoder import TcDecoder
from flashvsr_core.models.wan_vae import WanVaeDecoder
from flashvsr_core.registry import MODELS, PUBLISHED, FileSpec, Registry, Role
from flashvsr_core.stream import Network
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import load_weights

CUDA = torch.device("cuda")
SIZES = {"768x1408": (192, 352), "1536x2560": (384, 640)}
BOTH = ("v1.0", "v1.1")


def write_clip(target: Path) -> None:
    """96 frames of the demo clip, 108x192."""
    import av

    with av.open("assets/bbb.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    np.savez_compressed(target, frames=np.stack(frames))


def real_clip(path: Path, height: int, width: int, count: int) -> np.ndarray:
    """The demo clip enlarged until it covers the size, cropped at the right and the bottom: T H W 3 uint8."""
    x = torch.from_numpy(np.load(path)["frames"][:count]).permute(0, 3, 1, 2).float()
    factor = max(height / x.shape[2], width / x.shape[3])
    x = F.interpolate(x, scale_factor=factor + 1e-3, mode="bicubic", antialias=True).clamp(0, 255)
    return x[:, :, :height, :width].permute(0, 2, 3, 1).round().to(torch.uint8).contiguous().numpy()


def write_model(folder: Path) -> Registry:
    """Seeded random weights of the published shapes and types, and the registry that knows them as v1.0 and v1.1."""
    spec = MODELS["v1.1"]
    assert spec.vae is not None
    generator = torch.Generator(CUDA).manual_seed(0)
    with torch.device("meta"):
        parts: dict[Role, tuple[nn.Module, torch.dtype]] = {
            "dit": (Dit(spec.dit), torch.float32),
            "lq_proj": (LqProj(spec.lq, spec.dit.dim), torch.bfloat16),
            "tcdecoder": (TcDecoder(spec.tcdecoder), torch.float32),
            "vae": (WanVaeDecoder(spec.vae), torch.float32),
        }
    files: list[Role] = []
    for role, (module, dtype) in parts.items():
        tensors = {
            key: random_tensor(key, tuple(v.shape), generator, CUDA).to(dtype).cpu()
            for key, v in module.state_dict().items()
        }
        save_file(tensors, folder / file_name(role))
        files.append(role)
    prompt = torch.randn(1, spec.prompt_tokens, spec.dit.text_dim, generator=generator, device=CUDA).bfloat16().cpu()
    save_file({"prompt": prompt}, folder / file_name("prompt"))
    roles: tuple[Role, ...] = (*files, "prompt")
    paths = {role: folder / file_name(role) for role in roles}
    known = (FileSpec(r, p.name, BOTH, sha256_of(p), p.stat().st_size, "-") for r, p in paths.items())
    return Registry(MODELS, tuple(known))


def file_name(role: Role) -> str:
    """The published name of a part, as safetensors."""
    return Path(PUBLISHED.files_of("v1.1", role)[0].name).stem + ".safetensors"


def load(folder: Path, registry: Registry, model: str, mode: str) -> tuple[Upscaler, dict[str, float]]:
    """Load as a worker does; digests are remembered there, so here they are taken from the registry's sizes."""
    digests = {folder / spec.name: spec.sha256 for spec in registry.files}
    torch.cuda.synchronize()
    begun = time.perf_counter()
    files = locate(model, mode, [folder], registry, digest=digests.__getitem__)
    located = time.perf_counter()
    weights = load_weights(files, mode)
    params = UpscaleParams(model=model, mode=mode, scenes="off", preroll=0)  # type: ignore[arg-type]
    upscaler = Upscaler.load(weights, params, CUDA)
    torch.cuda.synchronize()
    return upscaler, {"locate_s": located - begun, "load_s": time.perf_counter() - begun}


def run(upscaler: Upscaler, frames: np.ndarray) -> dict[str, Any]:
    """Stream the clip once: every emitted chunk is on the host as uint8 when its time is taken."""
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    times, emitted, shape = [], 0, ()
    for chunk in upscaler.stream(iter([frames])):
        assert isinstance(chunk, np.ndarray)
        times.append(time.perf_counter() - begun)
        emitted += len(chunk)
        shape = chunk.shape[1:3]
    steps = np.diff(times)
    return {
        "frames": emitted,
        "size": "x".join(map(str, shape)),
        "seconds": times[-1],
        "fps": emitted / times[-1],
        "first_s": times[0],
        "step_ms": float(np.median(steps)) * 1e3,
        "steady_fps": 8 / float(np.median(steps)),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


@contextmanager
def staged(net: Network) -> Iterator[dict[str, list[float]]]:
    """Milliseconds of each module's calls."""
    spent: dict[str, list[float]] = {"lq_proj": [], "dit": [], "decode": []}
    events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
    hooks = []
    for name in spent:
        module = getattr(net, name)

        def before(*_: object) -> None:
            events.append(("", torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            events[-1][1].record()

        def after(*_: object, name: str = name) -> None:
            events[-1][2].record()
            events[-1] = (name, *events[-1][1:])

        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    yield spent
    torch.cuda.synchronize()
    for name, start, stop in events:
        spent[name].append(start.elapsed_time(stop))
    for hook in hooks:
        hook.remove()


def attention() -> dict[str, Any]:
    """The Triton kernel at full size: error against float32 and time by tile."""
    from triton.testing import do_bench

    from flashvsr_core.kernels import block_attention_triton as kernel
    from flashvsr_core.kernels.block_attention import attend_torch

    generator = torch.Generator(CUDA).manual_seed(0)
    q, k, v = (torch.randn(1, 12, w, 128, 128, generator=generator, device=CUDA) for w in (66, 264, 264))
    blocks = torch.rand(1, 12, 66, 264, generator=generator, device=CUDA) < 0.45
    blocks[:, 3, 5] = False
    result: dict[str, Any] = {"errors": {}, "ms": {}}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        parts = [x.to(dtype) for x in (q, k, v)]
        out = kernel.attend_triton(*parts, blocks).float()
        assert not out[:, 3, 5].any()
        exact = attend_torch(*(x.float() for x in parts), blocks)
        plain = attend_torch(*parts, blocks).float()
        name = str(dtype).removeprefix("torch.")
        result["errors"][name] = {"triton": _error(out, exact), "torch": _error(plain, exact)}
    parts = [x.bfloat16() for x in (q, k, v)]
    lists = kernel.list_blocks(blocks)
    work = 4 * float(blocks.sum()) * 128 * 128 * 128
    result["ms"]["list_blocks"] = do_bench(lambda: kernel.list_blocks(blocks), return_mode="median")
    for keys, warps, stages in ((64, 8, 2), (64, 8, 3), (128, 8, 2), (64, 4, 2), (64, 4, 3), (32, 4, 3)):
        try:
            tile = kernel.Tile(keys, warps, stages)
            ms = do_bench(lambda tile=tile: kernel.launch(*parts, lists, tile), return_mode="median")
        except Exception as error:  # noqa: BLE001  a tile that does not fit is one row of the table
            result["ms"][f"{keys}/{warps}/{stages}"] = str(error)[:80]
            continue
        result["ms"][f"{keys}/{warps}/{stages}"] = {"ms": ms, "tflops": work / ms / 1e9}
    return result


def _error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def measure(clip: Path, target: Path) -> None:
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "runs": []}

    def note(name: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        found = work()
        print(f"{name}: {time.perf_counter() - begun:.1f} s", found if name != "write model" else "", flush=True)
        target.write_text(json.dumps(result, indent=1))
        return found

    result["attention"] = note("attention", attention)
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        registry = note("write model", lambda: write_model(folder))
        result["model_bytes"] = sum(spec.bytes or 0 for spec in registry.files)
        torch.cuda.empty_cache()
        cases = [("v1.1", "tiny", "768x1408", 85), ("v1.1", "tiny", "1536x2560", 61), ("v1.0", "tiny", "768x1408", 85),
                 ("v1.1", "full", "768x1408", 45), ("v1.1", "full", "1536x2560", 37)]  # fmt: skip
        upscaler, loaded, times = None, ("", ""), {}
        for model, mode, size, count in cases:
            if loaded != (model, mode):
                upscaler = None
                torch.cuda.empty_cache()
                upscaler, times = note(f"load {model} {mode}", lambda a=model, b=mode: load(folder, registry, a, b))
                loaded = (model, mode)
            assert upscaler is not None
            frames = real_clip(clip, *SIZES[size], count)
            row = {"model": model, "mode": mode, **times}
            try:
                warm = note(f"warm {model} {mode} {size}", lambda f=frames[:29], u=upscaler: run(u, f))
                row |= note(f"run {model} {mode} {size}", lambda f=frames, u=upscaler: run(u, f))
                row["cold_first_s"] = warm["first_s"]
                with staged(upscaler.net) as spent:
                    run(upscaler, frames[:45])
                row["stage_ms"] = {name: float(np.median(ms[1:])) for name, ms in spent.items()}
            except torch.cuda.OutOfMemoryError as error:
                row["out_of_memory"] = str(error)[:200]
            result["runs"].append(row)
            torch.cuda.empty_cache()
            note(f"done {model} {mode} {size}", lambda r=row: r)


if __name__ == "__main__":
    write_clip(Path(sys.argv[2])) if sys.argv[1] == "clip" else measure(Path(sys.argv[2]), Path(sys.argv[3]))
