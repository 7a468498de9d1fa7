"""Sources as a job sees them, a file or a sequence of images: where they are on this machine, what identifies them."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flashvsr_core.config import ComputeParams
from flashvsr_core.errors import BadInput, UserError
from tasks.media.probe import VideoInfo
from tasks.media.scenes import LARGEST, parse_scenes
from tasks.media.sequence import VIDEOS, WILDCARDS, find_images, in_order, is_image, is_sequence
from tasks.storage import fingerprint as fingerprints
from tasks.storage import listing, urls
from tasks.storage.cache import SourceCache
from tasks.storage.listing import Entry


@contextmanager
def localised(source: str, compute: ComputeParams, cache_dir: Path) -> Iterator[Path]:
    """A path with the source's content, which stays for the duration of a `with` block: a file, or what names a
    sequence (a folder or pattern). FileNotFoundError where nothing is there."""
    cache = SourceCache(cache_dir / "sources", compute.source_cache_gb)
    if not is_images(source):
        with cache.localised(source) as path:
            yield path
    elif urls.is_local(source):
        yield urls.local_path(source)
    else:
        entries, _ = _remote_images(source)
        with cache.localised_all(entries, _identity(entries), lambda: _identity(_remote_images(source)[0])) as path:
            yield path


def fingerprint(source: str, cache_dir: Path) -> str:
    """What identifies the content: of a sequence, that of all its files and their order."""
    if not is_images(source):
        return fingerprints.fingerprint(source, cache_dir)
    if not urls.is_local(source):
        return _identity(_remote_images(source)[0])
    files = [str(file) for file in find_images(urls.local_path(source)).files]
    return fingerprints.fingerprint_all(files, cache_dir)


def is_images(source: str) -> bool:
    """Whether a source is a sequence of images: a folder, a prefix, or a pattern that is no file's name."""
    if urls.is_local(source):
        return is_sequence(urls.local_path(source))
    last = urls.name(source)
    if WILDCARDS & set(last):
        return not urls.exists(source)
    if last.rpartition(".")[2].lower() in VIDEOS or is_image(last) or urls.exists(source):
        return False
    try:
        return any(is_image(name) for name in listing.objects(source))
    except FileNotFoundError:
        return False


def linked(source: str) -> tuple[str, ...]:
    """The files of a local sequence, each of which may be a link to anywhere; nothing of any other source."""
    if not (urls.is_local(source) and is_images(source)):
        return ()
    return tuple(str(file) for file in find_images(urls.local_path(source)).files)


def first_number(source: str) -> int:
    """The number of the first frame, which images made of a sequence keep; 1 for everything else."""
    if not is_images(source):
        return 1
    return find_images(urls.local_path(source)).first if urls.is_local(source) else _remote_images(source)[1]


def _remote_images(source: str) -> tuple[list[Entry], int]:
    """The objects of a remote sequence in order, and the number of the first."""
    by_pattern = bool(WILDCARDS & set(urls.name(source)))
    there = listing.objects(urls.parent(source) if by_pattern else source)
    names, first = in_order(repr(source), there, urls.name(source) if by_pattern else None)
    return [there[name] for name in names], first


def _identity(entries: Sequence[Entry]) -> str:
    """Of objects in this order, by what the store says of their contents; names do not matter."""
    said = "\n".join(f"{entry.version}:{entry.size}" for entry in entries)
    return f"objects:{hashlib.sha256(said.encode()).hexdigest()}"


@contextmanager
def required(source: str, compute: ComputeParams, cache_dir: Path) -> Iterator[Path]:
    """`localised` for a user's wish: BadInput where nothing is there."""
    with ExitStack() as used:
        try:
            path = used.enter_context(localised(source, compute, cache_dir))
        except FileNotFoundError as error:
            raise BadInput(f"{source} does not exist; check the name") from error
        yield path


@contextmanager
def unchanged(source: str, expected: str, compute: ComputeParams, cache_dir: Path) -> Iterator[Path]:
    """`localised` for a planned job; UserError as `check_unchanged` says."""
    check_unchanged(source, expected, cache_dir)  # before other content is fetched
    with localised(source, compute, cache_dir) as path:
        check_unchanged(source, expected, cache_dir)
        yield path


def check_unchanged(source: str, expected: str, cache_dir: Path) -> None:
    """UserError if a source is gone or has other content (on S3: another version or etag) than the `expected` one."""
    try:
        found = fingerprint(source, cache_dir)
    except (FileNotFoundError, BadInput) as error:
        raise UserError(f"{source} has disappeared while it was processed; put it back and run again") from error
    if found != expected:
        raise UserError(f"{source} changed while it was processed; run again to start on the new content")


def read_scenes(url: str, whole: VideoInfo) -> tuple[int, ...]:
    """The first frames of scenes from a list (`parse_scenes`); UserError where it cannot be read."""
    try:
        if (size := urls.size(url)) > LARGEST:
            raise UserError(f"scenes {url} has {size} bytes, allowed are {LARGEST}; is it a list of scenes?")
        text = urls.read_bytes(url).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"scenes {url!r} is neither auto nor off, and no such file exists; correct --scenes") from error
    except UnicodeDecodeError as error:
        raise UserError(f"scenes {url} is no text; give a list of frame numbers or times, one a line") from error
    return parse_scenes(text, f"scenes {url}", whole)
