"""`flashvsr models`: what is published, what is here, and how it gets here."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from flashvsr_core.errors import UserError
from flashvsr_core.modelfiles import Search, size_text
from flashvsr_core.registry import PUBLISHED, Registry
from flows.cli import options

if TYPE_CHECKING:
    from tasks.models import ModelFile

# Functions import `tasks` late: it needs torch, which takes seconds that `flashvsr --help` need not spend.

app = App(name="models", help="Published weights: list, fetch, verify, convert.")

ModelArgument = Annotated[str, Parameter(help="v1.0 or v1.1.")]

# Tests put their own small files here; nothing else may.
registry: Registry = PUBLISHED


@app.command(name="list")
def list_models(*, directory: options.ModelsDir = None, as_json: options.AsJson = False) -> None:
    """Show the published models, their sizes, and which of their files are here."""
    from tasks.models import roles_of
    from tasks.weights import remembered_sha256, search_folders

    search = Search([folder for folder in search_folders(directory) if folder.is_dir()], registry, remembered_sha256)
    rows: list[dict[str, Any]] = []
    for model in registry.names:
        for role in roles_of(model, registry):
            spec, found = registry.files_of(model, role)[0], search.known(model, role)
            path = str(found.path) if found else None
            rows.append({"model": model, "part": role, "name": spec.name, "bytes": spec.bytes, "path": path})
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        here = row["path"] or f"not here ({row['name']})"
        print(f"{row['model']}  {row['part']:9}  {size_text(row['bytes']):>19}  {here}")


@app.command
def fetch(
    model: ModelArgument,
    /,
    *,
    directory: options.ModelsDir = None,
    source: Annotated[
        str | None, Parameter(name="--from", help="Mirror: a folder or fsspec URL that holds the published files.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Bring a model's files here, verified; what is there is kept, what was interrupted goes on."""
    from tasks import models

    folder = _folder(directory)
    with _progress() as progress:
        bars: dict[str, TaskID] = {}

        def report(name: str, done: int, total: int | None) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total)
            progress.update(bars[name], completed=done)

        files = models.fetch(model, folder, source, registry, report)
    _print_files(files, as_json)


@app.command
def verify(
    model: Annotated[str | None, Parameter(help="v1.0 or v1.1; default: whatever is there.")] = None,
    /,
    *,
    directory: options.ModelsDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Read every file again and compare it with what was published. Exit status 2 if something is wrong."""
    from tasks import models

    found, problems = models.verify(_folder(directory), model, registry)
    rows: list[dict[str, Any]] = [
        {
            "path": str(file.path),
            "sha256": file.sha256,
            "part": file.spec.role if file.spec else None,
            "models": file.spec.models if file.spec else (),
            "converted": file.converted,
        }
        for file in found
    ]
    if as_json:
        print(json.dumps({"files": rows, "problems": problems}))
    else:
        for row in rows:
            known = f"{row['part']} of {' and '.join(row['models'])}" if row["part"] else "not a published file"
            print(f"{row['path']}: {known}{', converted' if row['converted'] else ''}")
    if problems:
        raise UserError("; ".join(problems))


@app.command
def convert(model: ModelArgument, /, *, directory: options.ModelsDir = None, as_json: options.AsJson = False) -> None:
    """Write a model's pickles as safetensors, once, beside them; loading then reads no pickle any more."""
    from tasks import models

    _print_files(models.convert(model, _folder(directory), registry), as_json)


def _folder(directory: Path | None) -> Path:
    from tasks.weights import default_folder

    return directory.absolute() if directory else default_folder()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
    )


def _print_files(files: "list[ModelFile]", as_json: bool) -> None:
    if as_json:
        print(json.dumps([{**vars(file), "path": str(file.path)} for file in files]))
        return
    for file in files:
        print(f"{file.action}: {file.path} ({file.bytes:,} bytes, {file.role})")
