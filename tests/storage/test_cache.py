"""The bounded cache of fetched sources: the longest unused goes first, what is in use never."""

import logging
import os
import secrets
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tasks.storage import local, remote, urls
from tasks.storage.cache import SourceCache

ROOT = Path(__file__).parents[2]
SIZE = 1000


@pytest.fixture
def cache(tmp_path: Path) -> SourceCache:
    """Holds three files of the tests' size."""
    return SourceCache(tmp_path / "cache", 3.5 * SIZE / 1e9)


@pytest.fixture
def sources(place: str) -> list[str]:
    if urls.is_local(place):
        place = f"memory://{secrets.token_hex(6)}"
    found = [urls.join(place, f"{name}.mp4") for name in "abcde"]
    for url in found:
        urls.write_bytes(url, url[-5:-4].encode() * SIZE)
    return found


def use(cache: SourceCache, url: str) -> Path:
    with cache.localised(url) as path:
        assert path.read_bytes() == url[-5:-4].encode() * SIZE
        time.sleep(0.02)  # times of use must differ
        return path


def held(cache: SourceCache) -> set[str]:
    files = [path for path in cache.folder.iterdir() if path.suffix == ".mp4"]
    assert len(files) == len(list(cache.folder.iterdir())), "locks and temporaries are left"
    return {path.read_bytes()[:1].decode() for path in files}


def test_the_longest_unused_goes_first(cache: SourceCache, sources: list[str]) -> None:
    a, b, c, d, e = sources
    for url in (a, b, c, a, d):
        use(cache, url)
    assert held(cache) == {"a", "c", "d"}
    use(cache, e)
    assert held(cache) == {"a", "d", "e"}


def test_what_is_in_use_stays(cache: SourceCache, sources: list[str], caplog: pytest.LogCaptureFixture) -> None:
    a, b, c, d, e = sources
    with ExitStack() as used:
        paths = [used.enter_context(cache.localised(url)) for url in (a, b, c)]
        use(cache, d)
        assert "in use or needed" in caplog.text
        assert all(path.exists() for path in paths)
        use(cache, e)
        assert held(cache) == {"a", "b", "c", "e"}
    use(cache, d)
    assert held(cache) == {"c", "d", "e"}


def test_other_processes_use_it_too(cache: SourceCache, tmp_path: Path) -> None:
    """A file that another process holds stays; it goes once that process was killed."""
    cache.folder.mkdir()
    held_file = cache.folder / "held.mp4"
    held_file.write_bytes(b"x" * 3 * SIZE)
    code = "import sys; from pathlib import Path; from tasks.storage import cache\n"
    code += "handle = cache._hold(Path(sys.argv[1])); print(handle is not None, flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(held_file)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "True\n"
    url = f"memory://{secrets.token_hex(6)}/a.mp4"
    urls.write_bytes(url, b"a" * SIZE)
    use(cache, url)
    assert held_file.exists()
    child.kill()
    child.wait()
    urls.write_bytes(url, b"a" * SIZE)
    other = urls.join(urls.parent(url), "b.mp4")
    urls.write_bytes(other, b"b" * SIZE)
    use(cache, other)
    assert not held_file.exists()


def test_leftovers_of_killed_fetches_go(cache: SourceCache, sources: list[str]) -> None:
    cache.folder.mkdir()
    child = os.fork()
    if child == 0:
        with local.staged(str(cache.folder / "half.mp4")) as temporary:
            Path(temporary).write_bytes(b"half")
            os._exit(0)
    os.waitpid(child, 0)
    assert len(list(cache.folder.iterdir())) == 1
    use(cache, sources[0])
    assert held(cache) == {"a"}


def test_removed_by_another_between_fetch_and_use(
    cache: SourceCache, sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, fetched = urls.localise, []

    def removed_once(*args):  # type: ignore[no-untyped-def]
        path = real(*args)
        fetched.append(path)
        if len(fetched) == 1:
            path.unlink()
        return path

    monkeypatch.setattr(urls, "localise", removed_once)
    use(cache, sources[0])
    assert len(fetched) == 2


def test_many_at_once(cache: SourceCache, sources: list[str], race) -> None:
    found = race(10, lambda i: use(cache, sources[i % 5]).suffix)
    assert found == [".mp4"] * 10
    use(cache, sources[0])
    assert held(cache) >= {"a"}


def test_a_local_source_is_used_where_it_is(cache: SourceCache, tmp_path: Path) -> None:
    (tmp_path / "own.mp4").write_bytes(b"1")
    with cache.localised(str(tmp_path / "own.mp4")) as path:
        assert path == tmp_path / "own.mp4"
    assert not cache.folder.exists()


def test_a_larger_source_than_the_limit_is_fetched_all_the_same(tmp_path: Path, caplog) -> None:
    url = f"memory://{secrets.token_hex(6)}/a.mp4"
    urls.write_bytes(url, b"a" * SIZE)
    caplog.set_level(logging.WARNING)
    use(SourceCache(tmp_path / "cache", 0.0), url)
    assert "more than the 0.0 GB allowed" in caplog.text


def test_patience_is_ours_unless_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("s3fs")
    monkeypatch.setitem(fsspec.config.conf, "s3", {})
    assert remote.filesystem("s3").config_kwargs == remote.RETRIES
    chosen = {"retries": {"max_attempts": 1}}
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": chosen})
    assert remote.filesystem("s3").config_kwargs == chosen
