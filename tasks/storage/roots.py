"""Where work may happen: whoever can start a run names places, and only those under the roots are touched."""

import os
from dataclasses import dataclass
from pathlib import Path

from flashvsr_core.errors import UserError
from tasks.storage import remote, urls


class OutsideRoots(UserError):
    """A place that this machine's operator did not open for work."""


@dataclass(frozen=True)
class Roots:
    """Folders, buckets and prefixes in which sources, outputs and stores may lie; none: anywhere."""

    places: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for place in self.places:
            protocol, path = urls.split(place)
            if protocol and not path:
                raise UserError(
                    f"root {place!r} names no bucket; write {protocol}://bucket or {protocol}://bucket/prefix"
                )
            if not protocol and not (os.path.isabs(place) or urls.SCHEME.match(place)):
                raise UserError(f"root {place!r} is relative; write an absolute path or a URL")

    @classmethod
    def parse(cls, text: str) -> "Roots":
        """Roots from a comma-separated list."""
        places = tuple(part.strip() for part in text.split(",") if part.strip())
        if not places:
            raise UserError(f"the list of roots {text!r} names no place; name some, or unset it to allow every place")
        return cls(places)

    def check(self, what: str, url: str) -> None:
        """OutsideRoots unless `url`, with links and `..` followed, is a root or below one."""
        if self.places and not any(is_below(url, place) for place in self.places):
            raise OutsideRoots(
                f"{what} {url} is outside of the roots {', '.join(self.places)}; name a place under one of them, "
                "or have the operator of this machine add it"
            )


def is_below(url: str, folder: str) -> bool:
    """Whether `url` is `folder` or under it. Links of local places are followed; remote names must be plain."""
    protocol, path = urls.split(url)
    around, root = urls.split(folder)
    if _family(protocol) != _family(around):
        return False
    if not protocol:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    parts, above = path.split("/"), root.split("/")
    # Some stores read '..' in a key as a name, some as the way up.
    return not {".", ".."} & set(parts) and parts[: len(above)] == above


def _family(protocol: str) -> str:
    return "s3" if protocol in remote.S3 else protocol
