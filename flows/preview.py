"""A preview: a few short excerpts through the whole pipeline, beside the source enlarged by bicubic interpolation."""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from flashvsr_core.errors import UserError
from tasks.media.encode import EncodeParams
from tasks.media.guard import describe_guarded
from tasks.media.timestamps import parse_rate
from tasks.media.trim import Trim, trimmed
from tasks.plan import Request
from tasks.preview import Excerpt, Layout, choose, write_picture, write_video
from tasks.report import RunReport
from tasks.sources import required
from tasks.storage import urls

log = logging.getLogger(__name__)

VIDEO, PICTURE = "comparison.mp4", "comparison.png"
# What the encoder loses should not be taken for the model's doing.
NEARLY_LOSSLESS = EncodeParams(crf=8, preset="fast")


@dataclass(frozen=True)
class Preview:
    """What was made: frames [start, stop) of the source, and where the comparisons are; no video of a single frame."""

    excerpts: tuple[tuple[int, int], ...]
    picture: str
    video: str | None
    seconds: float  # of computing, all excerpts


def make_preview(
    run: Callable[..., RunReport],
    request: Request,
    cache_dir: Path,
    excerpts: int = 3,
    seconds: float = 1.0,
    layout: Layout = "side",
    force: bool = False,
) -> Preview:
    """Upscale excerpts of `request.source` with `run` (the main flow) and publish comparisons in the folder OUTPUT."""
    source = urls.normalise(request.source)
    folder = _folder(request)
    places = {name: urls.join(folder, name) for name in (VIDEO, PICTURE)}
    if not force and (there := [url for url in places.values() if urls.exists(url)]):
        raise UserError(f"{there[0]} exists; choose another OUTPUT, or use --force to replace it")
    with required(source, request.compute, cache_dir) as path:
        info = describe_guarded(path, request.allow_truncated, parse_rate(request.fps), request.limits)
        chosen = choose(info, excerpts, seconds)
        work = cache_dir / "work"
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="preview-", dir=work) as name:
            done, spent, model = [], 0.0, ""
            for start, stop in chosen:
                result = Path(name, f"{start}.mkv")
                report = run(
                    source,
                    str(result),
                    params=request.params,
                    encode=NEARLY_LOSSLESS,
                    compute=request.compute,
                    store=str(Path(name, "store")),
                    allow_truncated=request.allow_truncated,
                    trim=Trim(start=f"{start}f", frames=stop - start),
                    fps=request.fps,
                    limits=request.limits,
                )
                spent += report.seconds
                model = report.plan["params"]["model"]
                done.append(Excerpt(start, stop, trimmed(info, start, stop), result))
            labels = ("bicubic", f"flashvsr {model}")
            made = {PICTURE: Path(name, PICTURE)}
            write_picture(path, tuple(done), request.params.scale, labels, made[PICTURE])
            if info.frames > 1:
                made[VIDEO] = Path(name, VIDEO)
                write_video(path, tuple(done), request.params.scale, layout, labels, made[VIDEO])
            for key, file in made.items():
                urls.publish(file, places[key], overwrite=True, consume=True)
        return Preview(chosen, places[PICTURE], places[VIDEO] if VIDEO in made else None, spent)


def _folder(request: Request) -> str:
    if request.output is not None:
        return urls.normalise(request.output)
    beside = replace(request, encode=EncodeParams()).output_url
    stem = urls.name(beside).rpartition(".")[0]
    return urls.join(urls.parent(beside), f"{stem}_preview")
