"""Published weights on this machine: fetch, verify, convert. Every file is verified before its final name appears."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import httpx
from huggingface_hub import hf_hub_url
from huggingface_hub.utils import build_hf_headers
from safetensors.torch import save_file
from torch import Tensor

from flashvsr_core.errors import FlashvsrError, TransientError, UserError
from flashvsr_core.modelfiles import (
    MANIFEST,
    Digest,
    FoundFile,
    Search,
    read_manifest,
    recognise,
    sha256_of,
    size_text,
    stranger_text,
)
from flashvsr_core.registry import PARTS, PUBLISHED, FileSpec, Registry, Role
from flashvsr_core.weights import read_prompt, read_tensors
from tasks.storage import local, urls
from tasks.storage.faults import explained
from tasks.weights import remembered_sha256

CHUNK = 32 << 20  # bytes asked of a mirror at once; what an interruption costs
_TIMEOUT = 30  # seconds without a byte before a connection counts as broken
_SPARE = 64 << 20  # bytes left free on the disk

Progress = Callable[[str, int, int | None], None]
"""(file name, bytes there, bytes in total or None)"""


@dataclass(frozen=True)
class ModelFile:
    """One part of a model in a folder."""

    role: Role
    path: Path
    sha256: str
    bytes: int
    action: str  # fetched, present, converted


def roles_of(model: str, registry: Registry) -> list[Role]:
    """The parts of `model` that are published, for all modes together."""
    roles = dict.fromkeys(role for parts in PARTS.values() for role in parts)
    return [role for role in roles if registry.files_of(model, role)]


def fetch(
    model: str,
    folder: Path,
    source: str | None = None,
    registry: Registry = PUBLISHED,
    progress: Progress | None = None,
    digest: Digest = remembered_sha256,
) -> list[ModelFile]:
    """Bring every part of `model` that `folder` does not hold yet, from where it is published or from a mirror.

    source: fsspec URL or path of a mirror that holds the files by their published names (directly, or in a folder
    called after the model or repository, as Hugging Face clones and our own folders are). An interrupted fetch goes on
    where it stopped. Raises `UserError` where a file is not what was published, space or network is missing.
    """
    registry.model(model)
    report = progress or (lambda name, done, total: None)
    with _locked(folder):
        search = Search([folder], registry, digest)
        found = {role: search.known(model, role) for role in roles_of(model, registry)}
        missing = [registry.files_of(model, role)[0] for role, file in found.items() if file is None]
        origins = [_mirrored(source, model, spec, registry) if source else _Origin(spec, spec.url) for spec in missing]
        _check_space(folder, origins)
        files = [_present(role, file) for role, file in found.items() if file]
        for done, origin in enumerate(origins):
            path = folder / origin.spec.folder / origin.spec.name
            if path.exists():
                raise UserError(
                    f"{stranger_text(recognise(path, registry, digest), model, origin.spec.role, search)}; move it "
                    f"away, or fetch into another folder with --dir"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _bring(origin, path, report, from_mirror=source is not None)
            except httpx.HTTPError as error:
                raise _unreachable(error, model, [o.spec for o in origins[done:]], folder) from error
            size = path.stat().st_size
            files.append(ModelFile(origin.spec.role, path, origin.spec.sha256, size, "fetched"))
    return files


def verify(folder: Path, model: str | None, registry: Registry = PUBLISHED) -> tuple[list[FoundFile], list[str]]:
    """Read every weight file in `folder` again: what each holds, and what is wrong (nothing, if the list is empty).

    With `model`, that model must also be complete; files of others are not complained about.
    """
    if model is not None:
        registry.model(model)
    search = Search([folder], registry, sha256_of)
    found = [search.recognise(path) for path in search.paths]
    names = {Path(spec.name).stem: spec for spec in registry.files if model is None or model in spec.models}
    problems = [
        stranger_text(file, names[file.path.stem].models[0], names[file.path.stem].role, search)
        for file in found
        if file.spec is None and file.path.stem in names
    ]
    if model is None and not found:
        problems.append(f"{folder} holds no weights; fetch some: flashvsr models fetch v1.1 --dir {folder}")
    for role in roles_of(model, registry) if model else ():
        if search.known(model or "", role) is None:
            spec = registry.files_of(model or "", role)[0]
            problems.append(
                f"{spec.name} ({size_text(spec.bytes)}) is missing; run: flashvsr models fetch {model} --dir {folder}"
            )
    return found, problems


def convert(
    model: str, folder: Path, registry: Registry = PUBLISHED, digest: Digest = remembered_sha256
) -> list[ModelFile]:
    """Write every pickle of `model` in `folder` once more as safetensors, beside it; loading then prefers that file.

    The header names the published file's sha256, and the manifest beside it the sha256 of the conversion.
    """
    spec = registry.model(model)
    with _locked(folder):
        search = Search([folder], registry, digest)
        files = []
        for role in roles_of(model, registry):
            found = search.known(model, role)
            if found is None:
                continue
            if found.path.suffix == ".safetensors":
                files.append(_present(role, found))
                continue
            tensors = {"prompt": read_prompt(found.path, spec)} if role == "prompt" else read_tensors(found.path)
            files.append(_convert(found, role, tensors))
    if not files:
        raise UserError(f"{folder} holds no weights of {model}; run: flashvsr models fetch {model} --dir {folder}")
    return files


@dataclass(frozen=True)
class _Origin:
    """Where one file will come from; `bytes` as its store says, if it was asked."""

    spec: FileSpec
    url: str
    bytes: int | None = None


def _mirrored(source: str, model: str, wanted: FileSpec, registry: Registry) -> _Origin:
    """The mirror's copy of a part: by published name where it usually is, else by its exact size."""
    specs = registry.files_of(model, wanted.role)
    folders = ["", model, "shared", *(spec.repository.rpartition("/")[2] for spec in specs)]
    wrong = []
    for spec in specs:
        for below in dict.fromkeys((*folders, spec.path.rpartition("/")[0])):
            url = "/".join(part for part in (source.rstrip("/"), below, spec.name) if part)
            size = _size(url)
            if size is not None and spec.bytes in (None, size):
                return _Origin(spec, url, size)
            if size is not None:
                wrong.append(f"{url} has {size:,} bytes instead of {spec.bytes:,}")
    # Web servers cannot be listed.
    listed = {} if urls.split(source)[0] in ("http", "https") else urls.list_sizes(source)
    for spec in specs:
        for name, size in listed.items():
            if size == spec.bytes:
                return _Origin(spec, f"{source.rstrip('/')}/{name}", size)
    raise UserError(
        f"mirror {source} has no {wanted.name} of {model} ({size_text(wanted.bytes)}, sha256 {wanted.sha256})"
        + (f"; {'; '.join(wrong)}" if wrong else "")
        + f"; copy it there from {wanted.url}"
    )


def _bring(origin: _Origin, path: Path, report: Progress, from_mirror: bool) -> None:
    """Download to a name that says it is not finished, verify, then give it its own."""
    spec = origin.spec
    part = path.with_name(f".{path.name}.{spec.sha256[:16]}.part")
    if from_mirror:
        _from_mirror(origin, part, report)
    else:
        _from_web(spec, part, report)
    size, sha256 = part.stat().st_size, sha256_of(part)
    if sha256 != spec.sha256:
        part.unlink()
        raise UserError(
            f"{origin.url} holds {size:,} bytes, sha256 {sha256}, instead of {size_text(spec.bytes)}, sha256 "
            f"{spec.sha256}; it was not kept; use another mirror, or none"
        )
    os.replace(part, path)


def _from_mirror(origin: _Origin, part: Path, report: Progress) -> None:
    assert origin.bytes is not None
    with explained("fetch", origin.url):
        store, key = _open_store(origin.url)
        with part.open("ab") as file:
            if file.tell() > origin.bytes:
                file.truncate(0)
            done = file.tell()
            report(origin.spec.name, done, origin.bytes)
            while done < origin.bytes:
                chunk = store.cat_file(key, start=done, end=min(done + CHUNK, origin.bytes))
                if not 0 < len(chunk) <= origin.bytes - done:
                    raise TransientError(f"{origin.url} changed while it was fetched; run again when it is complete")
                file.write(chunk)
                done += len(chunk)
                report(origin.spec.name, done, origin.bytes)


def _from_web(spec: FileSpec, part: Path, report: Progress) -> None:
    """Download from the hub or GitHub; a connection that breaks is taken up again as long as each brings something.

    Not hf_hub_download: since huggingface_hub 2 it throws away what an interrupted download had brought. Its address
    and headers are used, so that HF_ENDPOINT and HF_TOKEN work as everywhere.
    """
    with part.open("ab") as file:
        while spec.bytes is None or file.tell() < spec.bytes:
            before = file.tell()
            try:
                if _receive(spec, file, report):
                    return
            except httpx.TransportError:
                if file.tell() == before:
                    raise


def _receive(spec: FileSpec, file: BinaryIO, report: Progress) -> bool:
    """One connection; whether it came to the file's end."""
    url, headers = _address(spec)
    done = file.tell()
    headers |= {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # everything was there already
        response.raise_for_status()
        if done and response.status_code != httpx.codes.PARTIAL_CONTENT:
            file.truncate(0)
            done = 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else spec.bytes
        report(spec.name, done, total)
        for chunk in response.iter_raw():
            file.write(chunk)
            done += len(chunk)
            report(spec.name, done, total)
    return True


def _address(spec: FileSpec) -> tuple[str, dict[str, str]]:
    if spec.host == "github":
        return spec.url, {}
    return hf_hub_url(spec.repository, spec.path, revision=spec.revision), dict(build_hf_headers())


def _open_store(url: str) -> tuple[Any, str]:
    protocol, path = urls.split(url)
    if not protocol:
        return fsspec.filesystem("file"), path
    store, key = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return store, key


def _size(url: str) -> int | None:
    with explained("look at", url):
        try:
            store, key = _open_store(url)
            found = store.info(key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, ImportError) as error:
            raise UserError(f"{url} cannot be read: {error}; use a folder, s3:// or another fsspec URL") from error
    return int(found["size"]) if found["type"] == "file" and found["size"] is not None else None


def _check_space(folder: Path, origins: list[_Origin]) -> None:
    need = sum(origin.bytes or origin.spec.bytes or 0 for origin in origins)
    need -= sum(path.stat().st_size for path in folder.rglob("*.part"))
    free = shutil.disk_usage(folder).free
    if need > 0 and free < need + _SPARE:
        raise UserError(
            f"{folder} has {free:,} bytes free but {need:,} are to be fetched; free some space or choose another "
            "folder with --dir"
        )


def _unreachable(error: Exception, model: str, missing: list[FileSpec], folder: Path) -> FlashvsrError:
    copies = ", ".join(f"{spec.url} to {folder / spec.folder / spec.name}" for spec in missing)
    return UserError(
        f"cannot fetch {missing[0].url}: {' '.join(str(error).split())[:200] or type(error).__name__}; run again to "
        f"go on where it stopped, use a mirror with --from URL, or copy from a machine with network access: {copies}; "
        f"then check with: flashvsr models verify {model} --dir {folder}"
    )


def _present(role: Role, found: FoundFile) -> ModelFile:
    return ModelFile(role, found.path, found.content, found.path.stat().st_size, "present")


def _convert(found: FoundFile, role: Role, tensors: dict[str, Tensor]) -> ModelFile:
    target = found.path.with_suffix(".safetensors")
    if target.exists():
        raise UserError(f"{target} exists and is no conversion of {found.path.name}; move it away and run again")
    part = target.with_name(f".part.{target.name}")
    need = sum(tensor.nbytes for tensor in tensors.values())
    if (free := shutil.disk_usage(target.parent).free) < need + _SPARE:
        raise UserError(f"{target.parent} has {free:,} bytes free but {target.name} takes {need:,}; free some space")
    metadata = {"source_sha256": found.content, "source": found.path.name, "role": role}
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, part, metadata)
    written = read_tensors(part)
    if any(tensor.dtype != written[key].dtype or not tensor.equal(written[key]) for key, tensor in tensors.items()):
        part.unlink()
        raise TransientError(f"{target} does not read back as it was written; check the disk and run again")
    sha256 = sha256_of(part)
    manifest = read_manifest(target.parent) | {sha256: found.content}
    urls.write_json(str(target.parent / MANIFEST), manifest)
    os.replace(part, target)
    return ModelFile(role, target, found.content, target.stat().st_size, "converted")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time in a models folder."""
    with explained("write", str(folder), writing=True):
        folder.mkdir(parents=True, exist_ok=True)
        with local.locked(str(folder / ".fetch.lock")):
            yield
