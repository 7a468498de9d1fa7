"""`flashvsr run`: upscale one video here and now."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flashvsr_core.config import ComputeParams, UpscaleParams
from flows import settings
from flows.cli import options
from flows.cli.facts import facts
from flows.cli.interrupt import heeding_interrupts
from flows.cli.server import prefect_api
from tasks.media.encode import EncodeParams
from tasks.media.guard import describe_guarded
from tasks.media.limits import Limits
from tasks.media.timestamps import parse_rate
from tasks.media.trim import Trim
from tasks.outputs import container_wanted, outputs_of
from tasks.sources import read_scenes
from tasks.storage import urls

if TYPE_CHECKING:
    from flows.cli.progress import Loudness
    from tasks.report import RunReport


def run(
    source: options.Source,
    output: options.Output = None,
    /,
    *,
    params: options.Pixels = UpscaleParams(),
    encode: options.Encoder = EncodeParams(),
    compute: options.Compute = ComputeParams(),
    store: options.Store = None,
    segment_frames: options.SegmentFrames = 512,
    force: Annotated[bool, Parameter(help="Replace an OUTPUT that this job did not make.")] = False,
    fresh: Annotated[bool, Parameter(help="Compute everything anew.")] = False,
    keep_segments: Annotated[bool, Parameter(help="Keep segments after publishing.")] = False,
    allow_truncated: options.AllowTruncated = False,
    trim: options.Part = Trim(),
    fps: options.Fps = None,
    limits: options.Bounds = Limits(),
    verify: Annotated[Literal["joins", "full"], Parameter(help="joins, or full: decode the whole result.")] = "joins",
    reference: options.Reference = None,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Upscale SOURCE into OUTPUT. A run that was killed goes on where it stopped when the command is given again."""
    begun = time.monotonic()
    console = Console(stderr=True)
    for place in (source, output, store):
        if place is not None:
            urls.normalise(place)  # a place that is refused, as for credentials in it, must not reach Prefect
    # The plan looks again; a wrong name should not have to wait for Prefect's server.
    outputs_of(source, output, params.scale, container_wanted(encode))
    if urls.is_local(source):
        info = describe_guarded(urls.local_path(source), allow_truncated, parse_rate(fps), limits)
        if params.scenes_file and urls.is_local(params.scenes_file):
            read_scenes(params.scenes_file, info)
    with pipeline(console, options.loudness(verbose, quiet)) as upscale_video:
        report = upscale_video(
            source,
            output,
            params=params,
            encode=encode,
            compute=settings.with_environment(compute),
            store=store,
            segment_frames=segment_frames,
            force=force,
            fresh=fresh,
            keep_segments=keep_segments,
            allow_truncated=allow_truncated,
            verify=verify,
            trim=trim,
            fps=fps,
            limits=limits,
            reference=reference,
        )
    tell_report(report, console, time.monotonic() - begun, as_json, quiet)


@contextmanager
def pipeline(console: Console, loudness: "Loudness") -> "Iterator[Callable[..., RunReport]]":
    """The main flow, ready to be called: with a Prefect API, progress on `console`, and an ear for Ctrl-C."""
    with ExitStack() as stack:
        with _starting(console, loudness):
            stack.enter_context(prefect_api())
            # Imported late: Prefect reads where its server is when it is imported.
            from flows.cli.progress import shown
            from flows.patience import patiently
            from flows.server import prefect_client
            from flows.upscale_video import upscale_video

        def upscale(*arguments: Any, **options: Any) -> "RunReport":
            # Again, it makes only what is missing, and nothing where only the run's end could not be told.
            return patiently(lambda: upscale_video(*arguments, **options))

        with shown(console, loudness), heeding_interrupts():
            with prefect_client():
                pass  # it answers, so that Prefect's engine, which would give up at once, finds it
            yield upscale


def _starting(console: Console, loudness: "Loudness") -> AbstractContextManager[object]:
    """Says that the command starts, which takes seconds before there is anything to see; on a terminal only."""
    if not console.is_terminal or loudness == "quiet":
        return nullcontext()
    return console.status(Text("starting", style="dim"), spinner="line" if console.options.ascii_only else "dots")


def tell_report(report: "RunReport", console: Console, elapsed: float, as_json: bool, quiet: bool = False) -> None:
    if not quiet:
        console.print(_summary(report, elapsed))
    if as_json:
        print(json.dumps(report.to_json()))


def _summary(report: "RunReport", elapsed: float) -> Table:
    from tasks.report import page_beside

    rows = [
        ("input", f"{report.source}  {report.source_width}x{report.source_height}"),
        ("output", f"{report.output.url}  {report.width}x{report.height}, {report.output.bytes / 1e6:.1f} MB"),
        ("frames", f"{report.frames}"),
        ("elapsed", f"{elapsed:.1f} s, of which the job {report.seconds:.1f} s, {report.fps:.2f} fps"),
        ("segments", f"{report.segments_computed} computed, {report.segments_reused} reused"),
        ("peak memory", f"{report.peak_memory_bytes / 2**30:.2f} GiB on {', '.join(report.devices)}"),
        ("report", page_beside(report.output.url)),
        ("job", report.job),
    ]
    rows += [("fallback", text) for text in report.fallbacks] + [("note", text) for text in report.notes]
    rows += [("warning", text) for text in report.warnings if text not in report.notes]  # notes of a plan are both
    return facts(rows, report.status)
