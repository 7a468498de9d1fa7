"""Which weights a job uses, where they are, and how they are read."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from flashvsr_core.config import UnknownWeights
from flashvsr_core.errors import UserError
from flashvsr_core.modelfiles import ModelFiles, Search, sha256_of
from flashvsr_core.modelfiles import locate as locate_files
from flashvsr_core.registry import PUBLISHED, ModelSpec, Registry, model_spec
from flashvsr_core.weights import Weights, embedded_path, embedded_weights, load_weights
from tasks.storage.fingerprint import fingerprint

log = logging.getLogger(__name__)

EMBEDDED = "nano"
PREFERRED = "v1.1"  # what `auto` takes where it is present


@dataclass(frozen=True)
class LocatedWeights:
    """Weights that were found and recognised, not loaded yet. `files` is None for the embedded model."""

    spec: ModelSpec
    digests: Mapping[str, str]
    mode: str = "tiny"
    files: ModelFiles | None = None


def locate(
    model: str,
    mode: str,
    folder: Path | None,
    unknown: UnknownWeights = "refuse",
    registry: Registry = PUBLISHED,
) -> LocatedWeights:
    """Find the weights of `model` in `folder`, then in the user's cache directory.

    `auto` is v1.1 where its DiT is present (an incomplete v1.1 is an error, not a reason for another model), else the
    embedded nano. unknown: see `flashvsr_core.modelfiles.locate`.
    """
    folders = search_folders(folder)
    if model == "auto":
        present = PREFERRED in registry.models and Search(folders, registry, remembered_sha256).known(PREFERRED, "dit")
        model = PREFERRED if present else EMBEDDED
    if model == EMBEDDED:
        if unknown != "refuse":
            raise UserError(f"--allow-unknown-weights is not for the embedded model {EMBEDDED}; name another --model")
        return LocatedWeights(model_spec(EMBEDDED), {EMBEDDED: sha256_of(embedded_path())}, mode)
    files = locate_files(model, mode, folders, registry, unknown=unknown, digest=remembered_sha256)
    return LocatedWeights(files.spec, files.digests, mode, files)


def load(found: LocatedWeights) -> Weights:
    """Read the located files, memory-mapped."""
    return embedded_weights() if found.files is None else load_weights(found.files, found.mode)


def search_folders(folder: Path | None) -> list[Path]:
    """Where weights are looked for, in this order."""
    return [default_folder()] if folder is None else list(dict.fromkeys([folder.absolute(), default_folder()]))


def default_folder() -> Path:
    return platformdirs.user_cache_path("flashvsr") / "models"


def remembered_sha256(path: Path) -> str:
    """sha256 of a file, which is read again only after it changed (size, times or inode)."""
    try:
        return fingerprint(str(path), platformdirs.user_cache_path("flashvsr")).removeprefix("sha256:")
    except UserError as error:
        log.warning("%s cannot be remembered and is computed every time: %s", path, error)
        return sha256_of(path)
