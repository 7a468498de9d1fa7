"""Weight files on this machine: found in folders, recognised by sha256 and never by name, and fitted to one model.

A conversion made by `flashvsr models convert` is recognised through the manifest beside it: its own sha256 leads to the
published file that it was made from, which its header must name too. Needs no torch.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flashvsr_core.config import UnknownWeights
from flashvsr_core.errors import UserError
from flashvsr_core.registry import PARTS, PUBLISHED, FileSpec, ModelSpec, Registry, Role

MANIFEST = "converted.json"
SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
_DEPTH = 2  # folders below a given one: DIR/v1.1/file, ComfyUI/models/FlashVSR/file
_TITLES: dict[Role, str] = {
    "dit": "DiT", "lq_proj": "LQ projection", "tcdecoder": "TCDecoder", "vae": "VAE", "prompt": "prompt tensor",
}  # fmt: skip

Digest = Callable[[Path], str]


@dataclass(frozen=True)
class FoundFile:
    """A file and what it holds: `spec` of the published file with that content, or None if it is not known."""

    path: Path
    sha256: str
    spec: FileSpec | None
    converted: bool = False

    @property
    def content(self) -> str:
        """sha256 of the published file behind it: a conversion holds the same tensors."""
        return self.spec.sha256 if self.spec else self.sha256


@dataclass(frozen=True)
class ModelFiles:
    """Files that make up one model. `spec` names the LQ projection that goes with them."""

    spec: ModelSpec
    paths: Mapping[Role, Path]
    digests: Mapping[str, str]
    """By part: part of a job's key. Holds `lq_projection` too where unknown weights were allowed."""


def sha256_of(path: Path) -> str:
    """Reads the whole file, every time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(
    model: str,
    mode: str,
    folders: Sequence[Path],
    registry: Registry = PUBLISHED,
    *,
    unknown: UnknownWeights = "refuse",
    digest: Digest = sha256_of,
) -> ModelFiles:
    """The files of `model` that `mode` (tiny, full) reads, from the first of `folders` that has each.

    unknown: whether files that are not known, or belong to another model, may be taken by their published names; then
    it names the LQ projection to run them with. digest: sha256 of a file, remembered or not. Raises `UserError` with
    what is missing, what was found instead and how to get it.
    """
    spec = registry.model(model)
    search = Search(folders, registry, digest)
    found: dict[Role, FoundFile] = {}
    missing: list[Role] = []
    for role in PARTS[mode]:
        file = search.known(model, role) or (search.named(model, role) if unknown != "refuse" else None)
        if file is None:
            missing.append(role)
        else:
            found[role] = file
    if missing:
        raise UserError(_incomplete(model, missing, search))
    digests = {str(role): file.content for role, file in found.items()}
    if unknown != "refuse":
        strange = [file.path for file in found.values() if file.spec is None or model not in file.spec.models]
        if not strange and unknown != spec.lq.kind:
            raise UserError(
                f"--lq-projection {unknown} does not fit: these are the published weights of {model}, made for "
                f"{spec.lq.kind}; leave the option out"
            )
        if strange:
            spec = replace(spec, lq=replace(spec.lq, kind=unknown))
            digests["lq_projection"] = unknown
    return ModelFiles(spec, {role: file.path for role, file in found.items()}, digests)


def recognise(path: Path, registry: Registry = PUBLISHED, digest: Digest = sha256_of) -> FoundFile:
    """What `path` holds, by its content."""
    sha256 = digest(path)
    spec = registry.known(sha256)
    if spec is not None:
        return FoundFile(path, sha256, spec)
    source = read_manifest(path.parent).get(sha256)
    if source is not None and source_of(path) == source:
        spec = registry.known(source)
    return FoundFile(path, sha256, spec, converted=spec is not None)


def weight_files(folders: Sequence[Path]) -> Iterator[Path]:
    """Files in and up to two levels below `folders` that may hold weights, each once, in a fixed order."""
    seen = set()
    for folder in folders:
        for root, directories, names in os.walk(folder, followlinks=True):
            depth = len(Path(root).relative_to(folder).parts)
            directories[:] = [] if depth == _DEPTH else sorted(d for d in directories if not d.startswith("."))
            for path in (Path(root, name) for name in sorted(names)):
                real = path.resolve()
                if path.suffix in SUFFIXES and real not in seen and path.is_file():
                    seen.add(real)
                    yield path


def read_manifest(folder: Path) -> dict[str, str]:
    """sha256 of each conversion in `folder`, and of the published file it was made from."""
    path = folder / MANIFEST
    try:
        entries = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run: flashvsr models convert") from error
    return {str(own): str(source) for own, source in entries.items()} if isinstance(entries, dict) else {}


def source_of(path: Path) -> str | None:
    """What the header of a conversion says it was made from; None for any other file."""
    metadata = safetensors_header(path).get("__metadata__", {}) if path.suffix == ".safetensors" else {}
    return metadata.get("source_sha256")


def safetensors_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file; empty if it has none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size, 100_000_000):  # the format's own limit
            return {}
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return {}
    return header if isinstance(header, dict) else {}


class Search:
    """One look through folders; every file is hashed at most once, and only if it may be what is looked for."""

    def __init__(self, folders: Sequence[Path], registry: Registry = PUBLISHED, digest: Digest = sha256_of) -> None:
        self.folders = folders
        self.registry = registry
        self.digest = digest
        self.paths = list(weight_files(folders))
        self._recognised: dict[Path, FoundFile] = {}

    def recognise(self, path: Path) -> FoundFile:
        if path not in self._recognised:
            self._recognised[path] = recognise(path, self.registry, self.digest)
        return self._recognised[path]

    def known(self, model: str, role: Role) -> FoundFile | None:
        """A file with the content of one part of `model`; safetensors, which need no unpickling, are preferred."""
        wanted = self.registry.files_of(model, role)
        # A name decides nothing but the order of hashing gigabytes.
        stems = {Path(file.name).stem for file in wanted}
        ordered = sorted(self.paths, key=lambda p: (p.stem not in stems, p.suffix != ".safetensors"))
        for path in ordered:
            if not self._may_be(path, wanted):
                continue
            found = self.recognise(path)
            if found.spec in wanted:
                return found
        return None

    def named(self, model: str, role: Role) -> FoundFile | None:
        """A file that has a published name of that part, whatever it holds."""
        names = {Path(file.name).stem for file in self.registry.files_of(model, role)}
        path = next((path for path in self.paths if path.stem in names), None)
        return self.recognise(path) if path else None

    def _may_be(self, path: Path, wanted: list[FileSpec]) -> bool:
        sizes = {file.bytes for file in wanted}
        return None in sizes or path.stat().st_size in sizes or source_of(path) is not None


def _incomplete(model: str, missing: list[Role], search: Search) -> str:
    """Why `locate` failed: what is missing, what was found instead, where, and the command that helps."""
    wanted = [search.registry.files_of(model, role)[0] for role in missing]
    looked = ", ".join(map(str, search.folders))
    needs = ", ".join(f"{file.name} ({_TITLES[file.role]}, {size_text(file.bytes)})" for file in wanted)
    message = f"model {model} lacks {needs}; looked in {looked}"
    strangers = [text for role in missing if (text := stranger_text(search.named(model, role), model, role, search))]
    if strangers:
        message += "; found " + ", and ".join(strangers)
    message += f"; fetch what is missing: flashvsr models fetch {model} --dir {search.folders[0]}"
    if strangers:
        message += "; to run other weights on purpose: --allow-unknown-weights --lq-projection buffer|causal"
    return message


def stranger_text(found: FoundFile | None, model: str, role: Role, search: Search) -> str:
    """What is wrong with a file that has the name of a part of `model` but not its content."""
    if found is None:
        return ""
    if found.spec is not None:
        return f"{found.path}, which is the {_TITLES[found.spec.role]} of {' and '.join(found.spec.models)}"
    expected = search.registry.files_of(model, role)[0]
    size = found.path.stat().st_size
    if expected.bytes is not None and size < expected.bytes and found.path.suffix == Path(expected.name).suffix:
        verdict = "truncated"
    else:
        verdict = "altered or not a published file"
    return (
        f"{found.path} with {size_text(size)}, sha256 {found.sha256} "
        f"instead of {size_text(expected.bytes)}, sha256 {expected.sha256}: {verdict}"
    )


def size_text(size: int | None) -> str:
    return "size not known" if size is None else f"{size:,} bytes"
