"""Files of strangers: nothing else is opened, costs are bounded, a dying child is only an error, any name works."""

import http.server
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashvsr_core.errors import BadInput, UserError
from tasks.media import guard
from tasks.media.decode import read_frames
from tasks.media.guard import describe, describe_guarded
from tasks.media.limits import Limits
from tests.media.clips import numbered, numbers, run


@pytest.fixture(scope="module")
def server(clips: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server with a clip: its address, and what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments, **options):  # type: ignore[no-untyped-def]
            super().__init__(*arguments, directory=str(clips), **options)

        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{target}\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT4S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
    'bandwidth="1"><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>\n',
    "concat": "ffconcat version 1.0\nfile {target}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "asx": '<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
    "ram": "{target}\n",
    "rtsp reference": "[Reference]\nRef1={target}\n",
    "imf": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016">'
    "<Id>{target}</Id></CompositionPlaylist>",
    "svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{target}"/></svg>',
    "subtitle with sub": "# VobSub index file, v7\nid: en, index: 0\n",
}


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "m3u8", "png"])
@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("where", ["file", "http"])
def test_playlists_open_nothing(
    clips: Path, server: tuple[str, list[str]], tmp_path: Path, kind: str, suffix: str, where: str
) -> None:
    address, asked = server
    target = f"{address}/cfr.mp4" if where == "http" else str(clips / "cfr.mp4")
    path = tmp_path / f"list.{suffix}"
    path.write_text(PLAYLISTS[kind].format(target=target))
    with pytest.raises(BadInput, match="of an accepted kind"):
        describe(path)
    assert asked == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.mp4", "concat:a.mp4|b.mp4", "pipe:0", "rtsp://127.0.0.1:9/x"])
def test_urls_and_protocols_are_only_names(url: str) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        describe(url)


def _box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def test_data_references_to_other_files_are_refused(clips: Path, tmp_path: Path) -> None:
    """A mov whose data reference names another file, with every box around it made larger to fit."""
    run("-i", clips / "cfr.mp4", "-c", "copy", "-an", tmp_path / "own.mov")
    assert describe(tmp_path / "own.mov").frames == 96
    data = bytearray((tmp_path / "own.mov").read_bytes())
    entry = data.index(b"dref") + 12
    assert data[entry + 4 : entry + 8] in (b"url ", b"alis")
    for kind, address in ((b"url ", str(clips / "cfr.mp4").encode()), (b"alis", bytes(150))):
        reference = _box(kind, bytes(4), address)
        changed = bytearray(data)
        changed[entry : entry + 12] = reference
        for around in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
            at = data.rindex(around, 0, entry) - 4
            size = struct.unpack(">I", data[at : at + 4])[0] + len(reference) - 12
            changed[at : at + 4] = struct.pack(">I", size)
        path = tmp_path / "outside.mov"
        path.write_bytes(changed)
        with pytest.raises(BadInput, match=rf"outside.mov.*media in another file.*{kind.decode()}"):
            describe(path)


def test_reference_movies_are_refused(clips: Path, server: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = server
    link = f"{address}/cfr.mp4\0".encode()
    reference = _box(b"rdrf", bytes(4), b"url ", struct.pack(">I", len(link)), link)
    for name, tail in (("alone.mov", b""), ("beside.mov", (clips / "faststart.mp4").read_bytes())):
        (tmp_path / name).write_bytes(_box(b"moov", _box(b"rmra", _box(b"rmda", reference))) + tail)
        with pytest.raises(BadInput):
            describe(tmp_path / name)
    assert asked == []


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(max_megapixels=0.01), ("160x64", "0.01 ", "--max-megapixels")),
        (Limits(max_frames=95), ("more than 95 frames", "--max-frames")),
        (Limits(max_hours=0.001), ("0.0 hours", "--max-hours")),
        (Limits(max_streams=1), ("2 streams", "--max-streams")),
    ],
)
def test_limits(clips: Path, limits: Limits, words: tuple[str, ...]) -> None:
    with pytest.raises(BadInput) as caught:
        describe_guarded(clips / "cfr.mp4", limits=limits)
    assert all(word in str(caught.value) for word in ("cfr.mp4", *words))


def test_images_are_bounded_too(tmp_path: Path) -> None:
    run(*numbered(0.12), tmp_path / "x%d.png")
    with pytest.raises(BadInput, match="--max-megapixels"):
        describe(tmp_path, limits=Limits(max_megapixels=0.01))
    with pytest.raises(BadInput, match="--max-frames"):
        describe(tmp_path, limits=Limits(max_frames=2))


def test_a_small_file_with_a_huge_picture(tmp_path: Path) -> None:
    """30000x30000 pixels in a PNG of a few bytes: refused by its header."""
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    crc = zlib.crc32(b"IHDR" + header)
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", crc) + bytes(64)
    )
    with pytest.raises(BadInput):
        describe_guarded(tmp_path / "bomb.png")


def test_a_picture_that_grows_midway_is_refused(tmp_path: Path) -> None:
    """Two sizes in one raw stream: the decoder may not take memory for the larger."""
    for name, size in (("a", "160x64"), ("b", "4096x4096")):
        run(*numbered(0.2, "25", size), "-c:v", "libx264", "-preset", "ultrafast", tmp_path / f"{name}.ts")
    both = tmp_path / "both.ts"
    both.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    info = describe(both)
    assert info.width == 160
    with pytest.raises(BadInput, match=r"frame \d+"):
        list(read_frames(both, info, 0, info.frames))


@pytest.mark.parametrize("value", [{"max_frames": 0}, {"probe_memory_mb": 1}, {"max_megapixels": float("nan")}])
def test_limits_that_make_no_sense(value: dict[str, float]) -> None:
    with pytest.raises(UserError, match="too small"):
        Limits(**value)  # type: ignore[arg-type]


class Child:
    """Puts other code into the child in place of looking at the file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
        real = subprocess.Popen
        begin = "import sys, json; from tasks.media import guard, limits; request = json.load(sys.stdin); "
        confine = "guard.confine(limits.Limits(**request['limits']), request['path']); "

        def start(command, **options):  # type: ignore[no-untyped-def]
            return real([sys.executable, "-c", begin + confine + code], **options)

        monkeypatch.setattr(guard.subprocess, "Popen", start)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", "died of SIGSEGV"),
        ("import os; os.abort()", "died of SIGABRT"),
        ("x = bytearray(3 << 30)", "more than 2000 MB of memory (--probe-memory-mb)"),
        ("import os; os._exit(7)", "ended with status 7"),
        ("print('flashvsr-probe not json')", "ended with status 0"),
        ("open('/tmp/never', 'w').write('x' * 100000)", "SIGXFSZ"),
    ],
)
def test_a_dying_child_is_an_error_of_the_file(
    clips: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    Child(monkeypatch, code.replace("/tmp/never", str(clips / "never")))
    with pytest.raises(BadInput) as caught:
        describe_guarded(clips / "cfr.mp4")
    assert "cfr.mp4" in str(caught.value)
    assert words in str(caught.value) or (words == "SIGXFSZ" and "File too large" in str(caught.value))
    assert caught.value.exit_code == 2
    assert not (clips / "never").exists() or (clips / "never").stat().st_size == 0


def test_a_child_that_hangs_is_ended(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Child(monkeypatch, "import time; time.sleep(600)")
    with pytest.raises(BadInput, match=r"longer than 1 s.*--probe-seconds"):
        describe_guarded(clips / "cfr.mp4", limits=Limits(probe_seconds=1))


def test_a_child_that_computes_for_ever_is_ended(clips: Path) -> None:
    """Also where nobody waits for it any more."""
    code = (
        "from tasks.media import guard, limits; "
        f"guard.confine(limits.Limits(probe_seconds=1), {str(clips / 'cfr.mp4')!r})\nwhile True: pass"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode in (-signal.SIGXCPU, -signal.SIGKILL)


NAMES = [
    "two  spaces .mp4",
    'it\'s "quoted".mp4',
    "new\nline\ttab.mp4",
    "-y.mp4",
    "--help.mp4",
    "100%d %s %03d.mp4",
    "a:b;c|d&e$(touch x)`id`.mp4",
    "file:x.mp4",
    "ünïcode ☃ 漢字.mp4",
    "x" * 251 + ".mp4",
    "漢" * 83 + ".mp4",
    "[0-9]{a,b}*?.mp4",
    "\\back\\slash\\n.mp4",
    "<b>&amp;.mp4",
    "#EXTM3U.mp4",
    "%.mp4",
    " .mp4",
    "mp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_works(clips: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes((clips / "faststart.mp4").read_bytes())
    info = describe_guarded(path)
    assert info.frames == 96
    assert numbers(read_frames(path, info, 50, 53)) == [50, 51, 52]


def test_a_name_that_is_no_text(clips: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff\xfe.mp4"))
    path.write_bytes((clips / "faststart.mp4").read_bytes())
    assert describe_guarded(path).frames == 96


def test_metadata_stays_data(clips: Path, tmp_path: Path) -> None:
    """Titles and languages that look like options, filters or JSON come out as they are."""
    evil = "'; touch pwned #<script>alert(1)</script>\\n%s{}\"],[null]:force_style=x"
    path = tmp_path / "evil.mkv"
    run("-i", clips / "cfr.mp4", "-c", "copy", "-metadata", f"title={evil}", "-metadata:s:v:0", f"title={evil}", path)
    info = describe_guarded(path)
    assert info.streams[0].title == evil
    assert json.loads(json.dumps(info.streams[0].title)) == evil
