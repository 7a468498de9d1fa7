"""The segment task itself at full size on one GPU: source file in, encoded, checked and stored segment out.

Make the clips here: python -m tests.bench.segment_task clips SOURCE FOLDER        (SOURCE: at least 1280x720)
Measure there:       python3 -m tests.bench.segment_task measure FOLDER RESULT.json
Needs PyAV, Prefect and a GPU, no ffmpeg program and no Prefect server: the tasks are called as `.fn`. The weights are
seeded random numbers under the published names, so the jobs are planned with `allow_unknown_weights`.
"""

import json
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from flashvsr_core.config import ComputeParams, UpscaleParams
from tasks.gpu import devices_of, loaded_upscaler
from tasks.media.encode import EncodeParams
from tasks.plan import Request, plan_job
from tasks.upscale import upscale_segment
from tests.bench.full_size import write_model

CLIPS = {"768x1408": (352, 192), "1536x2560": (640, 384)}  # width, height of the source, which is enlarged 4 times
CASES = (("tiny", "768x1408", 0), ("tiny", "1536x2560", 0), ("full", "768x1408", 0), ("full", "1536x2560", 48))
ENCODE = EncodeParams(preset="veryfast", threads=16)


def write_clips(source: Path, folder: Path) -> None:
    """The film scaled until it covers each size, its middle cut out, as H.264 of visually lossless quality."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (width, height) in CLIPS.items():
        with av.open(str(source)) as film, av.open(str(folder / f"{name}.mp4"), "w") as target:
            stream = film.streams.video[0]
            out = target.add_stream("libx264", rate=Fraction(stream.average_rate or 25), options={"crf": "14"})
            out.width, out.height, out.pix_fmt = width, height, "yuv420p"
            factor = max(width / stream.width, height / stream.height)
            wide, high = (-(-int(x * factor) // 2) * 2 + 2 for x in (stream.width, stream.height))
            left, top = (wide - width) // 2, (high - height) // 2
            for frame in film.decode(video=0):
                pixels = frame.reformat(wide, high, "rgb24").to_ndarray()
                cut = pixels[top : top + height, left : left + width]
                target.mux(out.encode(av.VideoFrame.from_ndarray(cut.copy(), format="rgb24")))
            target.mux(out.encode())


def write_clip(target: Path, frames: np.ndarray) -> None:
    """Frames T H W 3 uint8 as H.264 of visually lossless quality, 25 a second."""
    with av.open(str(target), "w") as container:
        out = container.add_stream("libx264", rate=25, options={"crf": "14", "preset": "veryfast"})
        out.height, out.width, out.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(out.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(out.encode())


def measure(clips: Path, target: Path) -> None:
    """Plan, load and make segments of each case; a first segment warms up, the second is the figure."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        models = Path(name, "models")
        models.mkdir()
        write_model(models)
        torch.cuda.empty_cache()
        for mode, size, frames in CASES:
            rows.append(case(Path(name), models, clips / f"{size}.mp4", mode, frames))
            print(rows[-1], flush=True)
            target.write_text(json.dumps(
                {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}, indent=1
            ))  # fmt: skip


def case(folder: Path, models: Path, clip: Path, mode: str, frames: int) -> dict[str, Any]:
    compute = ComputeParams(models_dir=str(models))
    params = UpscaleParams(
        model="v1.1", mode=mode, scenes="off", allow_unknown_weights=True, lq_projection="causal"  # type: ignore[arg-type]
    )  # fmt: skip
    output = folder / f"{clip.stem}-{mode}.mp4"
    request = Request(str(clip), str(output), params, ENCODE, compute, segment_frames=frames or 64)
    job, plan = plan_job.fn(request, folder / "cache")
    job.write_plan(plan.to_json())
    begun = time.perf_counter()
    loaded_upscaler(plan.params, plan.digests, compute, devices_of(compute)[0])
    torch.cuda.synchronize()
    load = time.perf_counter() - begun
    segments = []
    for segment in plan.segments[:2]:
        begun = time.perf_counter()
        result = upscale_segment.fn(job, segment, compute, folder / "cache")
        seconds = time.perf_counter() - begun
        streamed = segment.stop - max(0, segment.start - int(plan.params.preroll))
        segments.append(
            {
                "frames": result.frames,
                "streamed": streamed,
                "seconds": result.seconds,
                "with_check_and_store": seconds,
                "streamed_fps": streamed / result.seconds,
                "peak_gib": result.peak_memory_bytes / 2**30,
                "bytes": result.bytes,
            }
        )
    return {"mode": mode, "size": clip.stem, "load_s": load, "segments": segments}


if __name__ == "__main__":
    if sys.argv[1] == "clips":
        write_clips(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        measure(Path(sys.argv[2]), Path(sys.argv[3]))
