import re
import shutil

import pytest

from flashvsr_core.errors import BadInput
from tasks.media.decode import read_frames
from tasks.media.probe import probe
from tests.media.clips import numbers, run


def cut(source, target, share=0.6):
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def refused(path, *words):
    """The one-line message of the refusal, which names the file and has these words."""
    with pytest.raises(BadInput) as caught:
        probe(path)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def test_missing_file(tmp_path):
    refused(tmp_path / "nothing.mp4", "does not exist", "check the path")


def test_directory(tmp_path):
    refused(tmp_path, "is a directory", "give the path")


def test_empty_file(tmp_path):
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "0 bytes", "copy it again")


@pytest.mark.parametrize("name", ["a.txt", "a.mp4", "line\nbreak.mp4"])
def test_not_a_video(tmp_path, name):
    (tmp_path / name).write_text("just words\n" * 100)
    with pytest.raises(BadInput, match="is not a video file") as caught:
        probe(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.ffconcat", "ffconcat version 1.0\nfile {clip}\n"),
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{clip}\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{clip}\n#EXT-X-ENDLIST\n"),
        ("list.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"),
    ],
)
def test_playlists_are_refused(clips, tmp_path, name, text):
    (tmp_path / name).write_text(text.format(clip=clips / "cfr.mp4"))
    refused(tmp_path / name, "no playlists")


def test_sound_only(tmp_path):
    run("-f", "lavfi", "-i", "sine=d=0.5", tmp_path / "a.wav")
    refused(tmp_path / "a.wav", "has sound and no video")
    run("-f", "lavfi", "-i", "sine=d=0.5", tmp_path / "a.mp4")
    refused(tmp_path / "a.mp4", "has sound and no video")


def test_sound_with_cover_art(tmp_path):
    run("-f", "lavfi", "-i", "color=red:s=32x32", "-frames:v", "1", tmp_path / "cover.png")
    picture = ("-i", tmp_path / "cover.png", "-map", "0", "-map", "1", "-disposition:v:0", "attached_pic")
    run("-f", "lavfi", "-i", "sine=d=0.5", *picture, "-c:v", "copy", tmp_path / "a.m4a")
    refused(tmp_path / "a.m4a", "cover art and no video")


def test_no_frames(clips, tmp_path):
    run("-i", clips / "cfr.mp4", "-c", "copy", "-frames:v", "0", "-an", tmp_path / "none.mkv")
    refused(tmp_path / "none.mkv", "without frames", "at least one frame")


def test_permission_error_is_explained(clips, monkeypatch):
    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tasks.media.source.av.open", denied)
    refused(clips / "cfr.mp4", "not readable", "permissions")


@pytest.mark.parametrize("name", ["faststart.mp4", "fragments.mp4", "cfr.mkv", "cfr.avi", "open.ts", "vp9.webm"])
def test_truncated(clips, tmp_path, name):
    share = 0.6 if name != "open.ts" else 0.6 + 1e-4  # not between two packets
    path = cut(clips / name, tmp_path / name, share)
    message = refused(path, "truncated", "--allow-truncated", "copy it again")
    info = probe(path, allow_truncated=True)
    assert info.truncated
    assert info.damage in message
    assert f"the {info.frames} frames that can be read" in message
    whole = probe(clips / name)
    assert whole.frames // 4 < info.frames < whole.frames
    assert numbers(read_frames(path, info, 0, info.frames)) == list(range(info.frames))
    middle = info.frames // 2
    assert numbers(read_frames(path, info, middle, info.frames)) == list(range(middle, info.frames))


def test_truncated_before_its_index(clips, tmp_path):
    path = cut(clips / "cfr.mp4", tmp_path / "cut.mp4")
    refused(path, "truncated", "moov")
    with pytest.raises(BadInput, match="not even with --allow-truncated"):
        probe(path, allow_truncated=True)


def test_live_matroska_cut_short(clips, tmp_path):
    """A file without a size but with a duration: what is missing shows against the packets."""
    data = bytearray((clips / "cfr.mkv").read_bytes())
    size = data.index(b"\x18\x53\x80\x67") + 4
    data[size : size + 8] = b"\x01" + b"\xff" * 7  # "unknown"
    (tmp_path / "live.mkv").write_bytes(data)
    assert probe(tmp_path / "live.mkv").frames == 96
    refused(cut(tmp_path / "live.mkv", tmp_path / "cut.mkv"), "header says 4.0 s", "--allow-truncated")


def test_damage_names_the_frame(clips, tmp_path):
    data = bytearray((clips / "faststart.mp4").read_bytes())
    at = len(data) // 2
    data[at : at + 3000] = bytes(3000)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    info = probe(path)
    with pytest.raises(BadInput, match=r"frame \d+ of 96") as caught:
        list(read_frames(path, info, 0, 96))
    number = int(re.search(r"frame (\d+) of", str(caught.value)).group(1))
    assert number > 8
    assert numbers(read_frames(path, info, 0, 8)) == list(range(8))


def test_colour_matrix_that_is_not_supported(tmp_path):
    tag = ("-c:v", "libx264", "-x264-params", "colormatrix=YCgCo")
    run("-f", "lavfi", "-i", "color=gray:s=64x64:d=0.1,format=yuv444p", *tag, tmp_path / "a.mp4")
    refused(tmp_path / "a.mp4", "ycgco", "not supported", "convert it")


@pytest.mark.parametrize(
    "name", ["-dash.mp4", "a b'c\"d.mp4", "50%d:x.mp4", "ünïcode ☃.mp4", "new\nline.mp4", "http:x.mp4"]
)
def test_strange_names_work(clips, tmp_path, name):
    shutil.copy(clips / "cfr.mp4", tmp_path / name)
    info = probe(tmp_path / name)
    assert numbers(read_frames(tmp_path / name, info, 50, 53)) == [50, 51, 52]


def test_an_unknown_coding(clips, tmp_path):
    """Found by fuzzing: PyAV has no codec context then."""
    data = (clips / "cfr.mkv").read_bytes()
    assert data.count(b"V_MPEG4/ISO/AVC") == 1
    (tmp_path / "a.mkv").write_bytes(data.replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"))
    refused(tmp_path / "a.mkv", "not known here", "convert it")
