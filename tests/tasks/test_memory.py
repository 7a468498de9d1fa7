"""Memory in jobs: what a plan says, what is refused, and how a segment gets through when memory runs out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.errors import UserError
from flashvsr_core.geometry import Geometry
from flashvsr_core.ladder import ladder
from flashvsr_core.picture import Painter
from flashvsr_core.registry import model_spec
from flashvsr_core.upscaler import Upscaler, resolve_params
from tasks import gpu, upscale
from tasks.media.encode import EncodeParams
from tasks.memory import enforce_limit, grow_blocks
from tasks.plan import JobPlan, Request, make_plan
from tasks.storage import urls
from tasks.storage.jobs import Job
from tasks.upscale import upscale_segment
from tests.core.formula import LEAST, formula_weights
from tests.flows.clips import make_clip

CPU = ComputeParams(devices="cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("memory") / "clip.mp4", 16, "320x128")


@pytest.fixture(autouse=True)
def _fresh_model() -> Iterator[None]:
    """What other tests found to work is forgotten, and they shall not find what these did."""
    gpu._loaded.clear()
    yield
    gpu._loaded.clear()


def planned(source: Path, folder: Path, compute: ComputeParams = CPU, **params: Any) -> tuple[Job, JobPlan]:
    pixels = UpscaleParams(scale=4, model="nano", preroll=0, **params)
    request = Request(
        str(source), str(folder / "out.mp4"), pixels, EncodeParams(preset="ultrafast"), compute, segment_frames=8
    )
    return make_plan(request, folder / "cache")


def test_a_plan_says_how_memory_is_used_and_a_limit_changes_it(clip: Path, tmp_path: Path) -> None:
    job, plan = planned(clip, tmp_path)
    assert plan.memory is not None
    assert plan.params.tiled_dit == "off"
    assert plan.memory.device_bytes < plan.memory.limit_bytes
    peak = plan.memory.device_bytes + plan.memory.host_bytes
    tight = replace(CPU, memory_limit=f"{peak - 1}")
    other, less = planned(clip, tmp_path, tight)
    assert less.memory is not None
    assert less.memory.device_bytes + less.memory.host_bytes < peak
    assert less.memory.placement.decoder_tile is not None
    assert other.key == job.key  # parts that are decoded apart change no pixel


def test_a_limit_below_everything_is_refused_with_the_least_that_works(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not fit into 0\.00 GiB .* --memory-limit") as caught:
        planned(clip, tmp_path, replace(CPU, memory_limit="1MB"))
    least = str(caught.value).rpartition("--memory-limit ")[2].split(" ")[0]
    planned(clip, tmp_path, replace(CPU, memory_limit=least))


def test_tiles_are_in_the_key_and_untiled_jobs_keep_theirs(clip: Path, tmp_path: Path) -> None:
    job, plan = planned(clip, tmp_path)
    off, _ = planned(clip, tmp_path, tiled_dit="off")
    tiled, other = planned(clip, tmp_path, tiled_dit="on", tile_size="256", tile_overlap=128)
    assert off.key == job.key != tiled.key
    assert other.params.tile_size == "256x256"
    assert plan.memory is not None
    assert other.memory is not None
    assert other.memory.slowdown > plan.memory.slowdown


def broken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Untiled pictures never fit; returns the numbers of tiles that were tried."""
    works, tried = Painter.latents, []

    def latents(self: Painter, *args: Any) -> Any:
        tried.append(len(self.tiles))
        if len(self.tiles) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return works(self, *args)

    monkeypatch.setattr(Painter, "latents", latents)
    return tried


def a_smaller_model(
    monkeypatch: pytest.MonkeyPatch, layers: int = 2, watch: Callable[[Upscaler], None] = lambda _: None
) -> None:
    """For pictures large enough for tiles to help: the embedded one would take minutes."""
    weights = formula_weights(replace(LEAST, dit=replace(LEAST.dit, num_layers=layers)))

    def load(params: UpscaleParams, *_: object) -> Upscaler:
        upscaler = Upscaler.load(weights, params)
        watch(upscaler)
        return upscaler

    monkeypatch.setattr(upscale, "loaded_upscaler", load)


def test_a_segment_that_does_not_fit_is_made_in_tiles_and_later_ones_begin_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_smaller_model(monkeypatch)
    source = make_clip(tmp_path / "wide.mp4", 16, "320x64")
    job, plan = planned(source, tmp_path)
    job.write_plan(plan.to_json())
    tried = broken(monkeypatch)
    first = upscale_segment.fn(job, plan.segments[0], CPU, tmp_path / "cache")
    assert 1 in tried
    assert any("its pixels differ from the plan's" in text for text in first.fallbacks)
    tried.clear()
    second = upscale_segment.fn(job, plan.segments[1], CPU, tmp_path / "cache")
    assert 1 not in tried
    assert second.fallbacks == first.fallbacks[-1:]
    job.remove_segments()
    assert not urls.exists(job.rung_url)


def test_on_oom_fail_forbids_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_clip(tmp_path / "wide.mp4", 8, "320x64")
    job, plan = planned(source, tmp_path)
    job.write_plan(plan.to_json())
    tried = broken(monkeypatch)
    with pytest.raises(UserError, match="--on-oom fail forbids"):
        upscale_segment.fn(job, plan.segments[0], replace(CPU, on_oom="fail"), tmp_path / "cache")
    assert set(tried) == {1}
    assert not job.holds(0)


@dataclass
class Held:
    """What was on the device while a segment was made: bytes of the DiT's weights, whether the past was there between
    blocks, and pixels decoded at once."""

    computing: int = 0
    decoding: int = 0
    past: bool = False
    decoded: int = 0

    def watch(self, upscaler: Upscaler) -> None:
        net, offloader = upscaler.net, upscaler.offloader
        decode = net.decode

        def block(_: object, args: tuple[Any, ...], __: object) -> None:
            self.computing = max(self.computing, offloader.weight_bytes)

        def dit(_: object, args: tuple[Any, ...], __: object) -> None:
            self.past |= any(ring.buffers is not None for ring in args[3])

        def decoder(_: object, args: tuple[Any, ...]) -> None:
            self.decoding = max(self.decoding, offloader.weight_bytes)
            self.decoded = max(self.decoded, args[0].shape[-2] * args[0].shape[-1])

        net.dit.blocks[-1].register_forward_hook(block)  # type: ignore[union-attr]
        net.dit.register_forward_hook(dit)
        decode.register_forward_pre_hook(decoder)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Held]:
    """Makes a segment of one and the same job with the choices named: what it held."""
    folder = tmp_path_factory.mktemp("flags")
    job, plan = planned(make_clip(folder / "wide.mp4", 8, "96x32"), folder)
    job.write_plan(plan.to_json())

    def made(**flags: Any) -> Held:
        found = Held()
        with pytest.MonkeyPatch.context() as patch:
            a_smaller_model(patch, layers=5, watch=found.watch)
            upscale_segment.fn(job, plan.segments[0], replace(CPU, **flags), folder / "cache")
        job.remove_segments()
        return found

    return made


def test_every_choice_that_changes_no_pixel_changes_what_is_on_the_device(held: Callable[..., Held]) -> None:
    """As the command line gives them, down to the model. Those that change pixels: tests/core/test_tiling.py."""
    plain = held()
    assert plain.computing == plain.decoding > 0
    assert plain.past
    for flags in ({"unload_dit": True}, {"offload": "dit"}):
        found = held(**flags)
        assert 0 < found.computing <= plain.computing, flags
        assert found.decoding == 0, flags
    assert not held(offload="kv").past
    streamed = held(offload="weights")
    assert 0 < streamed.computing < 0.45 * plain.computing
    assert (streamed.decoding, streamed.past) == (0, False)
    assert held(offload="none") == plain
    assert held(tiled_vae="on").decoded < plain.decoded


def test_a_limit_holds_for_the_allocator_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80 * 2**30))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: taken.append((share, device.index))
    )
    for limit in ("8GiB", "100GiB", None):
        enforce_limit(ComputeParams(memory_limit=limit), torch.device("cuda"))
    assert taken == [(0.1, 1), (1.0, 1), (1.0, 1)]  # PyTorch asks for a number


def test_blocks_grow_only_where_memory_is_tight(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    params = resolve_params(UpscaleParams(model="v1.1"), model_spec("v1.1"), torch.device("cpu"))
    whole, *others = ladder(model_spec("v1.1"), params, ComputeParams(), Geometry(352, 192, 4), "cuda")
    tight = next(rung for rung in others if rung.placement.offload == "kv")
    grow_blocks(whole, torch.device("cuda"))
    grow_blocks(tight, torch.device("cpu"))
    assert told == []
    grow_blocks(tight, torch.device("cuda"))
    assert told == ["expandable_segments:True"]
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    grow_blocks(tight, torch.device("cuda"))
    assert len(told) == 1


def test_a_full_work_folder_is_found_before_a_segment_is_begun(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, plan = planned(clip, tmp_path)
    job.write_plan(plan.to_json())
    monkeypatch.setattr(urls, "free_bytes", lambda url: 100 if url.endswith("work") else 2**50)
    with pytest.raises(UserError, match=r"work has 0 MiB free .*--work-dir"):
        upscale_segment.fn(job, plan.segments[0], CPU, tmp_path / "cache")
    assert not gpu._loaded


def test_a_work_folder_that_others_fill_ends_a_segment_early_and_is_left_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, plan = planned(make_clip(tmp_path / "small.mp4", 8), tmp_path)
    job.write_plan(plan.to_json())
    work = tmp_path / "cache" / "work"
    monkeypatch.setattr(urls, "free_bytes", lambda url: 2**50 if url == str(work) else 100)
    with pytest.raises(UserError, match=r"work/.* has 0 MiB free .*finished segments stay.*--work-dir"):
        upscale_segment.fn(job, plan.segments[0], CPU, tmp_path / "cache")
    assert gpu._loaded, "it had begun"
    assert not job.holds(0)
    assert list(work.iterdir()) == []
