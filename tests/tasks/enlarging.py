"""The pipeline's own steps with plain enlargement where the model is: reading, writing and merging, made cheap."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from flashvsr_core.config import ComputeParams, UpscaleParams
from flashvsr_core.geometry import Geometry
from flashvsr_core.layout import Planes
from flashvsr_core.pixels import Pack, enlarge, rgb_packer
from flashvsr_core.relief import Placement
from tasks import upscale
from tasks.assemble import assemble
from tasks.media.encode import EncodeParams
from tasks.plan import JobPlan, Request, make_plan
from tasks.verify import verify_output

PARAMS = UpscaleParams(scale=2, model="nano", preroll=0, scenes="off")
COMPUTE = ComputeParams(devices="cpu")


class Enlarger:
    """Stands where an Upscaler does: the core's own enlargement and packing, no model."""

    rgb_pack = staticmethod(rgb_packer)

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def begin(self, placement: Placement) -> None:
        """Nothing is placed anywhere."""

    def stream(
        self,
        frames: Iterable[np.ndarray],
        *,
        first: int,
        emit: tuple[int, int],
        pack: Pack,
        on_fallback: Callable[[str], None],
    ) -> Iterator[np.ndarray | Planes]:
        start, stop = emit
        at = first
        for chunk in frames:
            wanted = chunk[max(0, start - at) : max(0, stop - at)]
            at += len(chunk)
            if len(wanted):
                geometry = Geometry(wanted.shape[2], wanted.shape[1], self.scale)
                yield pack(enlarge(torch.from_numpy(np.ascontiguousarray(wanted)), geometry))
            if at >= stop:
                return


def enlarged(
    monkeypatch: pytest.MonkeyPatch,
    source: Path,
    output: Path,
    encode: EncodeParams = EncodeParams(),
    params: UpscaleParams = PARAMS,
    segment_frames: int = 16,
) -> tuple[JobPlan, tuple[str, ...]]:
    """Plan, make every segment, merge and verify into `output`: the plan, and all notes."""
    monkeypatch.setattr(upscale, "loaded_upscaler", lambda params, *_: Enlarger(params.scale))
    folder = output.parent / f"{output.name}.work"
    folder.mkdir()
    request = Request(
        str(source), str(output), params, encode, COMPUTE, store=str(folder / "store"), segment_frames=segment_frames
    )
    job, plan = make_plan(request, folder / "cache")
    job.write_plan(plan.to_json())
    for segment in plan.segments:
        upscale.upscale_segment.fn(job, segment, COMPUTE, folder / "cache")
    merged, notes = assemble.fn(job, plan, folder, folder / "cache")
    verify_output.fn(merged, plan, "full")
    merged.rename(output)
    return plan, plan.notes + notes
