"""Sources as a job sees them, a file or a sequence of images: where they are on this machine, what identifies them."""

from pathlib import Path

from flashvsr_core.errors import BadInput, UserError
from tasks.media.probe import VideoInfo
from tasks.media.scenes import LARGEST, parse_scenes
from tasks.media.sequence import find_images, is_sequence
from tasks.storage import fingerprint as fingerprints
from tasks.storage import urls


def local_source(source: str, cache_dir: Path) -> Path:
    """A path with the source's content: a file, or what names a sequence (a folder or pattern). FileNotFoundError."""
    if is_images(source):
        return urls.local_path(source)
    return urls.localise(source, cache_dir / "sources")


def fingerprint(source: str, cache_dir: Path) -> str:
    """What identifies the content: of a sequence, that of all its files and their order."""
    if not is_images(source):
        return fingerprints.fingerprint(source, cache_dir)
    files = [str(file) for file in find_images(urls.local_path(source)).files]
    return fingerprints.fingerprint_all(files, cache_dir)


def is_images(source: str) -> bool:
    """Whether a source is a sequence of images; they are read where they lie, so only those on this machine can be."""
    return urls.is_local(source) and is_sequence(urls.local_path(source))


def first_number(source: str) -> int:
    """The number of the first frame, which images made of a sequence keep; 1 for everything else."""
    return find_images(urls.local_path(source)).first if is_images(source) else 1


def require(source: str, cache_dir: Path) -> Path:
    """`local_source` of a user's wish: BadInput where nothing is there."""
    try:
        return local_source(source, cache_dir)
    except FileNotFoundError as error:
        raise BadInput(f"{source} does not exist; check the name") from error


def unchanged(source: str, expected: str, cache_dir: Path) -> Path:
    """`local_source` of a planned job; UserError where it has gone or is not what was planned for."""
    try:
        path = local_source(source, cache_dir)
        found = fingerprint(source, cache_dir)
    except (FileNotFoundError, BadInput) as error:
        raise UserError(f"{source} has disappeared while it was processed; put it back and run again") from error
    if found != expected:
        raise UserError(f"{source} changed while it was processed; run again to start on the new content")
    return path


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
