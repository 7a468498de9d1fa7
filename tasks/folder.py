"""Many files: which of a folder are sources, and where the output of each goes."""

import fnmatch
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flashvsr_core.errors import BadInput, UserError
from tasks.media.images import DEFAULT_PATTERN, has_number, is_images
from tasks.media.sequence import VIDEOS, is_image
from tasks.outputs import MANIFEST, outputs_of
from tasks.report import report_beside
from tasks.storage import listing, urls
from tasks.storage.listing import Entry
from tasks.storage.roots import is_below

REPORT = ".report.json"


@dataclass(frozen=True)
class Skipped:
    """A file that is left alone, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Folder:
    """A folder or prefix of sources and the tree its outputs go to (None: each beside its source)."""

    url: str
    output_root: str | None
    scale: int
    container: str

    def __post_init__(self) -> None:
        if self.output_root is not None and not self.is_beside and is_below(self.url, self.output_root):
            raise UserError(
                f"the sources {self.url} lie under the output root {self.output_root}, where nothing is picked up; "
                "choose an output root elsewhere, or the folder itself for outputs beside their sources"
            )

    @property
    def is_beside(self) -> bool:
        """Whether outputs go beside their sources."""
        return self.output_root is None or _same(self.url, self.output_root)

    @property
    def root(self) -> str:
        return self.url if self.output_root is None else self.output_root

    def output_of(self, name: str) -> str:
        """Where the output of the source with this relative name goes: the same relative path under the root."""
        return urls.join(self.root, self._output_name(name))

    def choose(self, glob: str | None) -> tuple[list[Entry], list[Skipped]]:
        """The sources that are there, and what looks like one but is left alone."""
        found = listing.entries(self.url)
        if glob and glob.endswith("/"):
            return self._choose_sequences(found, glob)
        names = {entry.name for entry in found}
        wanted = [entry for entry in found if _matches(entry.name, glob) and not self._is_output(entry.url)]
        made = {self._output_name(entry.name): entry.name for entry in wanted} if self.is_beside else {}
        chosen, skipped = [], []
        for entry in wanted:
            if entry.name in made:
                # Also before its report is there, or while it is being replaced.
                skipped.append(Skipped(entry.url, f"it has the name of the output of {made[entry.name]}"))
            elif _report_of(entry.name) in names and _is_reported(entry):
                skipped.append(Skipped(entry.url, "it is an output of ours: its report is beside it"))
            else:
                chosen.append(entry)
        return chosen, skipped

    def _choose_sequences(self, found: list[Entry], glob: str) -> tuple[list[Entry], list[Skipped]]:
        """Folders of images whose names are like `glob` (*/ or shots/*/), each of them one source."""
        chosen, skipped = [], []
        for name, inside in _by_folder(found).items():
            url = urls.join(self.url, name)
            if not _matches(name, glob.removesuffix("/")) or self._is_output(url):
                continue
            if any(entry.name.endswith(MANIFEST) for entry in inside):
                skipped.append(Skipped(url, "its images are an output of ours: their manifest is among them"))
            elif (entry := _sequence(url, name, inside)) is not None:
                chosen.append(entry)
        return chosen, skipped

    def pick(self, names: Iterable[str]) -> tuple[list[Entry | str], list[Skipped]]:
        """The named sources (relative names, or URLs below the folder), once each; a name where nothing is."""
        chosen: dict[str, Entry | str] = {}
        skipped = []
        for name in map(self._relative, names):
            entry = listing.look(self.url, name) or self._look_for_sequence(name)
            if listing.is_hidden(name) or self._is_output(urls.join(self.url, name)):
                skipped.append(Skipped(urls.join(self.url, name), "it is in a store or under the output root"))
            elif entry is not None and _is_reported(entry):
                skipped.append(Skipped(entry.url, "it is an output of ours: its report is beside it"))
            else:
                chosen.setdefault(name, entry or name)
        return list(chosen.values()), skipped

    def _look_for_sequence(self, name: str) -> Entry | None:
        name = name.rstrip("/")
        url = urls.join(self.url, name)
        try:
            inside = [entry for entry in listing.entries(url) if "/" not in entry.name]
        except (BadInput, FileNotFoundError):
            return None
        return _sequence(url, name, inside)

    def choose_one(self, url: str, glob: str | None) -> Entry | Skipped:
        """The source at `url` below the folder, as `choose` has it, without listing everything where that can be."""
        name = self._relative(url)
        if not _matches(name, glob):
            return Skipped(url, f"its name is not one of {glob or 'those that videos have'}")
        if self.is_beside and not listing.is_hidden(name):
            # Whether it is the output of another source only its neighbours tell.
            chosen, skipped = self.choose(glob)
            found: list[Entry | Skipped] = [entry for entry in chosen if entry.name == name]
            found += [left for left in skipped if left.source == urls.join(self.url, name)]
        else:
            picked, skipped = self.pick([name])
            found = [entry for entry in picked if isinstance(entry, Entry)] + list(skipped)
        return found[0] if found else Skipped(url, "it is not there any more")

    def _output_name(self, name: str) -> str:
        directory, slash, last = name.rstrip("/").rpartition("/")
        stem = last if name.endswith("/") else last.rpartition(".")[0] or last
        if name.endswith("/") and is_images(self.container):
            return f"{directory}{slash}{urls.fitting(stem, f'_{self.scale}x')}/{DEFAULT_PATTERN}.{self.container}"
        return f"{directory}{slash}{urls.fitting(stem, f'_{self.scale}x.{self.container}')}"

    def _is_output(self, url: str) -> bool:
        return self.output_root is not None and not self.is_beside and is_below(url, self.output_root)

    def _relative(self, name: str) -> str:
        if not (name.startswith("/") or urls.SCHEME.match(name)):
            urls.join(self.url, name)  # refuses '..'
            return name
        protocol, path = urls.split(name)
        around, folder = urls.split(self.url)
        if protocol != around or not path.startswith(f"{folder.rstrip('/')}/"):
            raise UserError(f"{name} is not below {self.url}; name files of that folder")
        return path[len(folder.rstrip("/")) + 1 :]


def _by_folder(found: Iterable[Entry]) -> dict[str, list[Entry]]:
    """What lies directly in each folder below the first, by the folder's relative name."""
    folders: dict[str, list[Entry]] = {}
    for entry in found:
        directory, _, _ = entry.name.rpartition("/")
        if directory:
            folders.setdefault(directory, []).append(entry)
    return folders


def _sequence(url: str, name: str, inside: Iterable[Entry]) -> Entry | None:
    """A folder of images as one source, whose name ends in a slash; None where no images are in it."""
    images = [entry for entry in inside if is_image(entry.name)]
    if not images:
        return None
    said = "\n".join(f"{urls.name(entry.url)}:{entry.version}:{entry.size}" for entry in images)
    version = hashlib.sha256(said.encode(errors="surrogateescape")).hexdigest()
    times = [entry.modified for entry in images if entry.modified is not None]
    return Entry(url, f"{name}/", sum(entry.size for entry in images), version, max(times, default=None))


def made_from(output_url: str, source: str) -> bool:
    """Whether the file at `output_url` is, by the report beside it, our own work from `source`."""
    if has_number(urls.name(output_url)):  # images: their manifest speaks for them
        output_url = outputs_of(source, output_url, 4, "png").url
    report = _read_report(output_url)
    try:
        return report["source"] == source and report["output"]["bytes"] == urls.size(output_url)
    except (FileNotFoundError, KeyError, TypeError):
        return False


def _matches(name: str, glob: str | None) -> bool:
    if name.endswith(REPORT):
        return False
    if not glob:
        return name.rpartition(".")[2].lower() in VIDEOS
    last = name.rpartition("/")[2]
    if "/" not in glob:
        return fnmatch.fnmatchcase(last, glob)
    return fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name, glob.replace("**/", ""))


def _report_of(name: str) -> str:
    directory, slash, last = name.rpartition("/")
    return f"{directory}{slash}{urls.fitting(last.rpartition('.')[0], REPORT)}"


def _is_reported(entry: Entry) -> bool:
    report = _read_report(entry.url)
    try:
        return bool(report["output"]["bytes"] == entry.size and report["key"])
    except (KeyError, TypeError):
        return False


def _read_report(output_url: str) -> dict[str, Any]:
    try:
        found = urls.read_json(report_beside(output_url))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _same(one: str, other: str) -> bool:
    return is_below(one, other) and is_below(other, one)
