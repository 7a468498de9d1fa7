"""`flashvsr jobs`: what a store holds, and what to do with it. Only `resume` uses Prefect, with a server of its own."""

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flashvsr_core.config import ComputeParams
from flashvsr_core.errors import UserError
from flashvsr_core.quantities import age_text, bytes_text, parse_age, parse_bytes
from flows import settings
from flows.cli import options
from flows.cli.run import pipeline, tell_report
from tasks.media.encode import encoder_text

if TYPE_CHECKING:
    from tasks.catalogue import JobDetails, JobSummary

# Functions import `tasks` late: it needs torch, which takes seconds that `flashvsr --help` need not spend.

app = App(name="jobs", help="What a store holds: list, find, show, resume, recover, clean.")

StoreArgument = Annotated[str, Parameter(help="Store: a folder or fsspec URL; default .flashvsr in this folder.")]
JobArgument = Annotated[str, Parameter(help="A job's directory, as `jobs list` shows it.")]

# Behind an empty answer: the folder of an output is easily named instead of the store in it.
_WHERE = " (a store is the folder .flashvsr beside an output, or what --store named)"


@app.command(name="list")
def list_command(store: StoreArgument = ".flashvsr", /, *, as_json: options.AsJson = False) -> None:
    """Show every job in STORE: whose, in which state, how far, how big, how old."""
    from tasks import catalogue

    _print_jobs(catalogue.list_jobs(store), f"no jobs in {store}{_WHERE}", as_json)


@app.command
def find(store: StoreArgument = ".flashvsr", /, *, as_json: options.AsJson = False) -> None:
    """Show jobs with finished segments that nobody has merged: candidates for resume and recover."""
    from tasks import catalogue

    found = [job for job in catalogue.list_jobs(store) if job.is_unmerged]
    _print_jobs(found, f"no unmerged jobs in {store}{_WHERE}", as_json)


@app.command
def show(job: JobArgument, /, *, as_json: options.AsJson = False) -> None:
    """Show one job: plan, segments, who works on it, report."""
    from tasks import catalogue

    details = catalogue.describe(catalogue.job_at(job))
    if as_json:
        print(json.dumps(_details(details)))
    else:
        _print_details(details)


@app.command
def resume(
    job: JobArgument,
    output: Annotated[
        str | None, Parameter(help="Result; default: as recorded by the job, else the usual name.")
    ] = None,
    /,
    *,
    compute: options.Compute = ComputeParams(),
    force: Annotated[bool, Parameter(help="Replace an OUTPUT that this job did not make.")] = False,
    keep_segments: Annotated[bool, Parameter(help="Keep segments after publishing.")] = False,
    verify: Annotated[Literal["joins", "full"], Parameter(help="joins, or full: decode the whole result.")] = "joins",
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Go on with JOB as its plan says: same source, parameters and segments. Only what is missing is computed."""
    begun = time.monotonic()
    console = Console(stderr=True)
    with pipeline(console, options.loudness(verbose, quiet)) as upscale_video:
        from tasks import catalogue  # imports Prefect, which must find the server

        compute = settings.with_environment(compute)
        request = catalogue.request_again(catalogue.job_at(job), output, compute, options.cache_dir(compute))
        console.print(f"resuming {request.source} into {request.output_url}", soft_wrap=True, markup=False)
        report = upscale_video(
            request.source,
            request.output,
            params=request.params,
            encode=request.encode,
            compute=request.compute,
            store=request.store,
            segment_frames=request.segment_frames,
            force=force,
            keep_segments=keep_segments,
            allow_truncated=request.allow_truncated,
            verify=verify,
            trim=request.trim,
            fps=request.fps,
        )
    tell_report(report, console, time.monotonic() - begun, as_json, quiet)


@app.command
def recover(
    job: JobArgument,
    output: Annotated[str, Parameter(help="Result; of images one name with %06d for all, or a folder.")],
    /,
    *,
    source: Annotated[
        str | None, Parameter(name="--source", help="The video that was upscaled; only needed where plan.json is gone.")
    ] = None,
    partial: Annotated[
        bool, Parameter(help="Of an incomplete job take the longest finished range, video only.")
    ] = False,
    force: Annotated[bool, Parameter(help="Replace an OUTPUT that exists.")] = False,
    verify: Annotated[Literal["joins", "full"], Parameter(help="joins, or full: decode the whole result.")] = "joins",
    work_dir: options.WorkDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Merge what JOB finished into OUTPUT, computing nothing: for jobs whose process, server or database is gone."""
    from tasks import catalogue
    from tasks.recover import recover as merge_finished

    cache_dir = options.cache_dir(settings.with_environment(ComputeParams(work_dir=work_dir)))
    found = merge_finished(catalogue.job_at(job), output, cache_dir, partial, force, verify, source)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    rows = [
        ("output", f"{found.output.url}  {bytes_text(found.output.bytes)}"),
        ("frames", f"{found.frames} of {found.source_frames}: [{found.start}, {found.stop}) of the source"),
        *(("gap", f"frames [{start}, {stop}) were never finished") for start, stop in found.gaps),
        *(
            ("left out", f"frames [{start}, {stop}) are finished, apart from the rest")
            for start, stop in found.left_out
        ),
        *(("note", note) for note in found.notes),
        ("report", found.report),
    ]
    _print_rows(rows)


@app.command
def clean(
    store: StoreArgument = ".flashvsr",
    /,
    *,
    older_than: Annotated[str | None, Parameter(help="Only jobs that changed last before that: 12h, 7d, 2w.")] = None,
    larger_than: Annotated[str | None, Parameter(help="Only jobs that take more: 500MB, 10GB.")] = None,
    records: Annotated[bool, Parameter(help="Of finished jobs remove plan and report too.")] = False,
    dry_run: Annotated[bool, Parameter(help="Only show what would be removed.")] = False,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], help="Do not ask (asked on terminals only).")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Remove abandoned jobs and what finished ones left behind, by age, size, or both; never a running one."""
    age = None if older_than is None else parse_age(older_than)
    size = None if larger_than is None else parse_bytes(larger_than)
    if age is None and size is None:
        raise UserError("nothing says what to remove; give --older-than 7d, --larger-than 10GB, or both")
    from tasks import catalogue

    chosen = catalogue.choose(catalogue.list_jobs(store), age, size, time.time())
    planned = [r for r in (catalogue.clean(job, records, dry_run=True) for job in chosen) if r.files]
    if dry_run or not planned:
        removals = planned
    else:
        if not yes and not as_json and sys.stdin.isatty():
            _ask(planned)
        removals = [catalogue.clean(removal.job, records) for removal in planned]
    freed = sum(removal.bytes for removal in removals)
    if as_json:
        jobs = [
            {**catalogue.to_json(r.job), "files": r.files, "removed_bytes": r.bytes, "kept": r.kept} for r in removals
        ]
        print(json.dumps({"dry_run": dry_run, "bytes": freed, "jobs": jobs}))
        return
    for r in removals:
        done = (
            f"kept: {r.kept}" if r.kept else f"{'would remove' if dry_run else 'removed'} {_removal(r.files, r.bytes)}"
        )
        print(f"{r.job.url}: {r.job.state}, {done}")
    print(f"{'would free' if dry_run else 'freed'} {bytes_text(freed)} ({freed} bytes) of {len(removals)} jobs")


def _ask(planned: list[Any]) -> None:
    for removal in planned:
        print(f"{removal.job.url}: {removal.job.state}, {_removal(removal.files, removal.bytes)}", file=sys.stderr)
    print(f"remove from these {len(planned)} jobs? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("nothing was removed; answer y, or give --yes")


def _removal(files: int, size: int) -> str:
    return f"{files} files, {bytes_text(size)}"


def _print_jobs(jobs: "list[JobSummary]", nothing: str, as_json: bool) -> None:
    from tasks import catalogue

    if as_json:
        print(json.dumps([catalogue.to_json(job) for job in jobs]))
        return
    if not jobs:
        print(nothing)
        return
    # Blocks rather than a table: a path that a column cuts cannot be copied into the next command.
    for job in jobs:
        size, old = bytes_text(job.bytes), age_text(catalogue.age(job))
        print(job.url)
        print(f"  {_state(job)}; {_progress(job)}; {size}, changed {old} ago")
        print(f"  {job.source or 'source not known'} -> {job.output or 'output not known yet'}")


def _state(job: "JobSummary") -> str:
    texts = {
        "running": f"running {job.holder}",
        "incomplete": f"incomplete: {job.segments_done} of {job.segments} segments",
        "unmerged": "complete, not merged",
        "unreadable": f"no readable plan: {job.problem}",
    }
    return texts.get(job.state, job.state)


def _progress(job: "JobSummary") -> str:
    if job.state == "finished" and not job.segments_done:
        return f"{job.frames} frames in {job.segments} segments, which were removed"
    return (
        f"segments {job.segments_done}/{_or_unknown(job.segments)}, frames {job.frames_done}/{_or_unknown(job.frames)}"
    )


def _or_unknown(number: int | None) -> str:
    return "?" if number is None else str(number)


def _details(details: "JobDetails") -> dict[str, Any]:
    from tasks import catalogue

    plan, report = details.plan, details.report
    shown: dict[str, Any] = {**catalogue.to_json(details.summary), "plan": None}
    if plan is not None:
        shown["plan"] = plan.to_json()
        del shown["plan"]["info"]["timestamps"]  # packed, and long
        geometry = plan.geometry
        shown["output_size"] = [geometry.out_width, geometry.out_height]
    shown["segment_table"] = _segment_rows(details)
    shown["report"] = report.to_json() if report else None
    if report:
        del shown["report"]["plan"]
    return shown


def _segment_rows(details: "JobDetails") -> list[dict[str, Any]]:
    done = {result.segment: result for result in details.segments}
    ranges = {r.segment: (r.start, r.stop) for r in details.segments}
    if details.plan is not None:
        ranges = {s.index: (s.start, s.stop) for s in details.plan.segments}
    # Segments are removed once the output is published; the report still tells of them.
    told = {result.segment: result for result in details.report.results} if details.report else {}
    at_work = {beat.segment: beat for beat in details.beats}
    rows = []
    for index, (start, stop) in sorted(ranges.items()):
        result = done.get(index) or told.get(index)
        rows.append(
            {
                "segment": index,
                "start": start,
                "stop": stop,
                "state": "finished"
                if index in done
                else "removed"
                if result
                else "begun"
                if index in at_work
                else "missing",
                "fps": result.frames / result.seconds if result and result.seconds else None,
                "device": result.device if result else None,
                "peak_memory_bytes": result.peak_memory_bytes if result else None,
                "bytes": result.bytes if result else None,
                "attempts": result.attempts if result else at_work[index].attempt if index in at_work else 0,
                "done": result.frames if result else at_work[index].done if index in at_work else 0,
            }
        )
    return rows


def _print_details(details: "JobDetails") -> None:
    job, plan, report = details.summary, details.plan, details.report
    rows = [("job", job.url), ("state", _state(job)), ("progress", _progress(job))]
    rows += [("source", job.source or "not known"), ("output", job.output or "not known yet")]
    rows += [("size", bytes_text(job.bytes)), ("lease", job.holder or "nobody works on it")]
    if plan is not None:
        params, encode, geometry = plan.params, plan.encode, plan.geometry
        sizes = f"{geometry.width}x{geometry.height} to {geometry.out_width}x{geometry.out_height}"
        rate = plan.info.frame_rate[0] / plan.info.frame_rate[1]
        rows += [
            ("picture", f"{sizes}, {plan.info.frames} frames at {rate:.3f} fps"),
            (
                "model",
                f"{params.model} {params.mode}, {params.precision}, attention {params.attention}, {plan.device_type}",
            ),
            ("encoder", encoder_text(vars(encode))),
            *(("note", note) for note in plan.notes),
        ]
    if report is not None:
        rows.append(
            ("report", f"{report.status}: {report.frames} frames in {report.seconds:.1f} s, {report.fps:.2f} fps")
        )
        rows += [("fallback", text) for text in report.fallbacks]
    _print_rows(rows)
    table = Table(box=None)
    for heading in ("segment", "frames", "state", "done", "fps", "memory", "attempts", "device"):
        table.add_column(heading, justify="left" if heading in ("frames", "state", "device") else "right")
    for row in _segment_rows(details):
        fps = "" if row["fps"] is None else f"{row['fps']:.2f}"
        memory = "" if row["peak_memory_bytes"] is None else bytes_text(row["peak_memory_bytes"])
        frames = f"[{row['start']}, {row['stop']})"
        attempts, finished = str(row["attempts"] or ""), f"{row['done']}/{row['stop'] - row['start']}"
        device = escape(row["device"] or "")
        table.add_row(str(row["segment"]), escape(frames), row["state"], finished, fps, memory, attempts, device)
    Console().print(table)


def _print_rows(rows: list[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"{name:<9} {value}")
