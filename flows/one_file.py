"""One file of a batch, an inbox or an event: at most one run at a time, its attempt on record, its end told."""

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from prefect.exceptions import MissingResult
from prefect.states import State

from flashvsr_core.errors import AlreadyRunning, BadInput, FlashvsrError, UserError
from flows.patience import ServerLost, lost, of_server, patiently
from flows.upscale_video import upscale_video
from tasks.folder import Folder, made_from
from tasks.report import RunReport, report_beside
from tasks.storage import urls
from tasks.storage.ledger import Ledger
from tasks.storage.listing import Entry

log = logging.getLogger(__name__)

Status = Literal["done", "already done", "busy", "failed"]


@dataclass(frozen=True)
class FileResult:
    """What became of one file; `busy`: another run is at work on it."""

    source: str
    status: Status
    output: str = ""
    frames: int = 0
    seconds: float = 0.0
    error: str = ""
    exit_code: int = 0


def upscale_file(
    place: Folder,
    source: Entry | str,
    taken: dict[str, str],
    force: bool,
    options: dict[str, Any],
    book: Ledger | None,
) -> FileResult:
    """Run `upscale_video` for one file, with its attempt in the ledger. What is wrong with the file is in the result.

    `taken` says which output belongs to which source of this run; a name instead of an entry is a file that is not
    there. ServerLost where the fault is not the file's.
    """
    begun = time.monotonic()
    name = source if isinstance(source, str) else source.name
    shown = f"{place.url}/{name}".encode(errors="backslashreplace").decode()
    try:
        name.encode()
        output = place.output_of(name)
        if isinstance(source, str):
            raise BadInput(f"{shown} does not exist; check the name")
        if output in taken:
            raise UserError(f"its output {output} is that of {taken[output]} too; rename one of them")
        taken[output] = shown
        with nullcontext() if book is None else book.claim(source, f"run on {shown}"):
            if book is not None and book.is_done(source):
                return FileResult(shown, "already done", output, seconds=time.monotonic() - begun)
            status, frames = _run(source, output, force, options, book)
        return FileResult(shown, status, output, frames, time.monotonic() - begun)
    except UnicodeEncodeError:
        error: Exception = UserError("its name is not UTF-8; rename it")
    except AlreadyRunning as busy:
        return FileResult(shown, "busy", output, seconds=time.monotonic() - begun, error=str(busy))
    except ServerLost:
        raise
    except Exception as found:  # noqa: BLE001 - whatever one file does, the others are still to be made
        error = found
    log.error("%s: %s", shown, error)
    code = getattr(error, "exit_code", 1)
    text = str(error) or type(error).__name__
    return FileResult(shown, "failed", seconds=time.monotonic() - begun, error=text, exit_code=code)


def _run(source: Entry, output: str, force: bool, options: dict[str, Any], book: Ledger | None) -> tuple[Status, int]:
    """One attempt: what became of it, and how many frames.

    What is found at the output is replaced only if it is ours: other content is another job.
    """

    def attempt() -> tuple[Status, int]:
        own = made_from(output, source.url)
        state = upscale_video(source.url, output, force=force or own, return_state=True, **options)
        return outcome(state, source.url, output)

    if book is not None:
        book.begin(source)
    try:
        made = patiently(attempt)
    except Exception as error:
        away = isinstance(error, ServerLost) or of_server(error)
        if book is not None:
            _note(book, source, error, forgive=away or isinstance(error, AlreadyRunning))
        if away and not isinstance(error, ServerLost):
            raise lost(error) from error
        raise
    if book is not None:
        book.done(source, output)
    return made


def outcome(state: State[Any], source: str, output: str) -> tuple[Status, int]:
    """What a run of the main flow came to, and how many frames; raises what it failed with.

    Where the server was asked twice (its first answer was lost), the final state comes back without the report; then
    the one beside the output counts.
    """
    try:
        made = state.result(raise_on_failure=False)
    except MissingResult:
        if not (state.is_completed() and made_from(output, source)):
            raise
        return "done", int(urls.read_json(report_beside(output))["frames"])
    if isinstance(made, RunReport):
        return "already done" if made.status == "already done" else "done", made.frames
    raise made if isinstance(made, Exception) else FlashvsrError(f"it ended as {state.name}: {state.message}")


def _note(book: Ledger, source: Entry, error: Exception, forgive: bool) -> None:
    try:
        if forgive:
            book.forgive(source)
        else:
            book.failed(source, str(error) or type(error).__name__)
    except FlashvsrError as fault:
        # The attempt was counted when it began; only its reason is missing.
        log.warning("%s: not recorded: %s", source.url, fault)
