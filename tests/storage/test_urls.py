"""Names, reading, listing, fetching and what can be written, on every kind of place."""

import hashlib
import json
import os
from pathlib import Path

import fsspec
import pytest

from flashvsr_core.errors import TransientError, UserError
from tasks.storage import remote, urls

ODD_NAMES = [
    "with space.mp4", "quo'te\".mp4", "new\nline.mp4", "a#b?c%20d.mp4", "zip::x.mp4", "--dash", "-", "ünï/cödé 🎬.mp4",
    "a*[b]{c}", "~", "$HOME", "C:x", "trailing.", " lead", ".hidden", "a;b|c&d", "é" * 127, "x" * 251 + ".mp4", "tab\t",
]  # fmt: skip


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/a/b/", "/a/b"),
        ("/a/../b", "/b"),
        ("file:///a/b c%20#x", "/a/b c%20#x"),
        ("FILE:///a", "/a"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("S3://bucket/a//b", "s3://bucket/a//b"),
        ("s3://bucket/a::b?c#d", "s3://bucket/a::b?c#d"),
        ("memory://a", "memory://a"),
        ("/a::b", "/a::b"),
    ],
)
def test_normalise(url: str, expected: str) -> None:
    assert urls.normalise(url) == expected
    assert urls.normalise(urls.normalise(url)) == expected


def test_normalise_relative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert urls.normalise("-x") == f"{tmp_path}/-x"
    assert urls.normalise("a::b") == f"{tmp_path}/a::b"


@pytest.mark.parametrize("url", ["", "a\0b", "file://a", "s3://b/k?versionId=3"])
def test_refused(url: str) -> None:
    with pytest.raises(UserError):
        urls.normalise(url)


@pytest.mark.parametrize(
    "url", ["s3://key:verysecret@bucket/a.mp4", "https://me:verysecret@host/a", "S3://verysecret@b"]
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    for act in (urls.normalise, urls.exists, urls.name, urls.is_local):
        with pytest.raises(UserError, match="AWS_PROFILE") as caught:
            act(url)
        assert "verysecret" not in str(caught.value)
    assert urls.normalise("s3://bucket/me@home.mp4") == "s3://bucket/me@home.mp4"


@pytest.mark.parametrize("url", ["nosuch://a/b", "ftpx://a"])
def test_unknown_protocol(url: str) -> None:
    with pytest.raises(UserError, match="not known"):
        urls.exists(url)


def test_parts() -> None:
    assert urls.join("s3://b/", "x", "y z") == "s3://b/x/y z"
    assert urls.join("/", "x") == "/x"
    assert urls.join("memory://", "x") == "memory://x"
    assert urls.parent("s3://b/x/y") == "s3://b/x"
    assert urls.parent("s3://b") == "s3://b"
    assert urls.parent("/a") == "/"
    assert urls.name("s3://b/x y?") == "x y?"
    assert urls.name("/a/b::c") == "b::c"
    for part in ("", "/etc", "..", "a/../b"):
        with pytest.raises(UserError):
            urls.join("/a", part)
    with pytest.raises(UserError):
        urls.local_path("s3://b/x")


def test_life_of_an_object(place: str, tmp_path: Path) -> None:
    url = urls.join(place, "deep", "one.bin")
    assert not urls.exists(url)
    for missing in (urls.size, urls.read_bytes, urls.digest, urls.remove):
        with pytest.raises(FileNotFoundError):
            missing(url)
    urls.remove(url, missing_ok=True)
    urls.write_bytes(url, b"first, longer")
    urls.write_bytes(url, b"second")
    assert (urls.exists(url), urls.size(url), urls.read_bytes(url)) == (True, 6, b"second")
    assert urls.digest(url) == hashlib.sha256(b"second").hexdigest()
    assert not urls.exists(urls.parent(url))
    urls.copy_to_local(url, tmp_path / "to" / "here")
    assert (tmp_path / "to" / "here").read_bytes() == b"second"
    urls.remove(url)
    assert not urls.exists(url)
    with pytest.raises(FileNotFoundError):
        urls.copy_to_local(url, tmp_path / "to" / "there")
    assert os.listdir(tmp_path / "to") == ["here"]


def test_json(place: str) -> None:
    url = urls.join(place, "a.json")
    urls.write_json(url, {"a": [1, "ü", None]})
    assert urls.read_json(url) == {"a": [1, "ü", None]}
    with pytest.raises(ValueError):
        urls.write_json(url, float("nan"))
    assert urls.read_json(url) == {"a": [1, "ü", None]}


def test_listing(place: str) -> None:
    assert urls.list_names(place) == []
    for name in ("b", "a c", "sub/d"):
        urls.write_bytes(urls.join(place, name), name.encode())
    assert urls.list_sizes(place) == {"a c": 3, "b": 1}
    assert urls.list_names(urls.join(place, "b")) == []
    urls.write_bytes(urls.join(place, "e"), b"")
    assert urls.list_sizes(place) == {"a c": 3, "b": 1, "e": 0}, "listings must not be remembered"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names(place: str, name: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.write_bytes(b"content")
    url = urls.join(place, name)
    urls.publish(made, url, overwrite=False)
    with pytest.raises(FileExistsError):
        urls.publish(made, url, overwrite=False)
    urls.publish(made, url, overwrite=True)
    assert urls.read_bytes(url) == b"content"
    assert urls.exists(url)
    assert urls.list_names(urls.parent(url)) == [urls.name(url)]
    assert urls.name(url) == name.rpartition("/")[2]
    assert not urls.create_exclusive(url, b"no")
    assert urls.localise(url, tmp_path / "cache").read_bytes() == b"content"
    urls.check_writable(url)
    urls.remove(url)
    assert urls.list_names(urls.parent(url)) == []


def test_backslash(tmp_path: Path) -> None:
    """Local only: SeaweedFS takes a backslash in a key for a slash."""
    urls.write_bytes(str(tmp_path / "back\\slash"), b"1")
    assert urls.list_names(str(tmp_path)) == ["back\\slash"]


def test_not_utf8(tmp_path: Path) -> None:
    url = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.mp4")
    urls.write_bytes(url, b"1")
    assert urls.read_bytes(url) == b"1"
    assert urls.list_names(str(tmp_path)) == [urls.name(url)]


def test_localise(place: str, tmp_path: Path, file, race) -> None:
    url = urls.join(place, "in", "a.MP4")
    urls.publish(file(b"one"), url, overwrite=True)
    cache = tmp_path / "cache"
    path = urls.localise(url, cache)
    assert path.read_bytes() == b"one"
    if urls.is_local(url):
        assert path == Path(url)
        assert not cache.exists()
        return
    assert path.suffix == ".mp4"
    assert set(race(4, lambda _: urls.localise(url, cache))) == {path}
    urls.publish(file(b"two!"), url, overwrite=True)
    second = urls.localise(url, cache)
    assert (second.read_bytes(), path.read_bytes()) == (b"two!", b"one")
    assert sorted(os.listdir(cache)) == sorted([path.name, second.name])
    with pytest.raises(FileNotFoundError):
        urls.localise(urls.join(place, "none"), cache)


def test_localise_fetches_once(tmp_path: Path, race, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    download = remote.download

    def count(*where: str) -> None:
        fetched.append(where)
        download(*where)

    monkeypatch.setattr(remote, "download", count)
    urls.write_bytes("memory://once/a", b"1")
    race(8, lambda _: urls.localise("memory://once/a", tmp_path))
    assert len(fetched) == 1


def test_localise_of_what_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://changing/a"
    urls.write_bytes(url, b"1")
    download = remote.download

    def change(*where: str) -> None:
        download(*where)
        urls.write_bytes(url, b"2")

    monkeypatch.setattr(remote, "download", change)
    with pytest.raises(TransientError, match="changed"):
        urls.localise(url, tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


def test_writable(place: str) -> None:
    urls.check_writable(place)
    urls.check_writable(urls.join(place, "a", "b"))
    assert urls.list_names(place) == []
    urls.write_bytes(urls.join(place, "there"), b"kept")
    urls.check_writable(urls.join(place, "there"))
    urls.check_writable(place)
    assert urls.read_bytes(urls.join(place, "there")) == b"kept"
    if urls.is_local(place):
        assert os.listdir(place) == ["there"]
        assert (urls.free_bytes(urls.join(place, "x", "y")) or 0) > 0
    else:
        assert urls.free_bytes(place) is None


def test_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    bad = [tmp_path / "file" / "x", tmp_path / "fifo", tmp_path / ("x" * 256), Path("/proc/x"), Path("/dev/null")]
    for url in map(str, bad):
        if url.endswith("x" * 256):
            with pytest.raises(UserError):
                urls.write_bytes(url, b"")
            continue
        with pytest.raises(UserError):
            urls.check_writable(url)
    with pytest.raises(UserError, match="directory"):
        urls.write_bytes(str(tmp_path / "file" / "x"), b"")
    with pytest.raises(UserError):
        urls.write_bytes(str(tmp_path), b"")
    assert sorted(os.listdir(tmp_path)) == ["fifo", "file"]


def test_no_permission(unprivileged: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    for act in (urls.check_writable, lambda url: urls.write_bytes(url, b"")):
        with pytest.raises(UserError, match="choose another place"):
            act("/etc/flashvsr-test")


@pytest.mark.system
def test_s3_refusals(seaweed, file, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'nosuchbucket' does not exist"):
        urls.check_writable("s3://nosuchbucket/a")
    assert not urls.exists("s3://nosuchbucket/a")
    assert urls.list_names("s3://nosuchbucket/a") == []
    made = file(b"1")
    with monkeypatch.context() as patch:
        patch.setitem(fsspec.config.conf, "s3", seaweed.options | {"secret": "wrong"})
        for act in (
            urls.check_writable,
            urls.exists,
            lambda url: urls.write_bytes(url, b""),
            lambda url: urls.create_exclusive(url, b""),
            lambda url: urls.publish(made, url, overwrite=True),
            lambda url: urls.publish(made, url, overwrite=False),
        ):
            with pytest.raises(UserError, match="s3://media/a"):
                act("s3://media/a")
    gone = {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 0}}}
    monkeypatch.setitem(fsspec.config.conf, "s3", seaweed.options | gone)
    with pytest.raises(TransientError, match=r"s3://media/a.*run again"):
        urls.exists("s3://media/a")


def test_json_is_what_people_can_read(tmp_path: Path) -> None:
    urls.write_json(str(tmp_path / "a.json"), {"b": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}


def test_names_that_would_be_too_long_are_cut() -> None:
    assert urls.fitting("clip", "_4x.mp4") == "clip_4x.mp4"
    for stem in ("x" * 251, "\u6f22" * 83, "\u6f22x" * 63 + "\udcff"):
        name = urls.fitting(stem, "_4x.report.json")
        assert 250 <= len(os.fsencode(name)) <= 255
        assert name.endswith("_4x.report.json")
        assert name != urls.fitting(stem + "y", "_4x.report.json")
