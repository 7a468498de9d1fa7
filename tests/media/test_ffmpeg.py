import logging
import stat

import ffmpeg
import pytest

from flashvsr_core.errors import UserError
from tasks.media.ffmpeg import FfmpegError, ffmpeg_version, find_ffmpeg, run_ffmpeg


def test_the_program_is_found_without_a_system_ffmpeg(monkeypatch):
    find_ffmpeg.cache_clear()
    monkeypatch.setenv("PATH", "")
    program = find_ffmpeg()
    assert "imageio_ffmpeg" in program
    assert ffmpeg_version(program) != "unknown"


def test_an_explicit_setting_comes_first(tmp_path):
    own = tmp_path / "my ffmpeg"
    own.write_text("#!/bin/sh\necho 'ffmpeg version 7.7 Copyright'\n")
    own.chmod(own.stat().st_mode | stat.S_IXUSR)
    assert find_ffmpeg(str(own)) == str(own)
    assert ffmpeg_version(str(own)) == "7.7"
    with pytest.raises(UserError, match="is not a program; correct the setting"):
        find_ffmpeg(str(tmp_path / "nothing"))


def test_path_is_the_last_resort(tmp_path, monkeypatch):
    def no_wheel():
        raise RuntimeError("no ffmpeg exe could be found")

    find_ffmpeg.cache_clear()
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", no_wheel)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="pip install imageio-ffmpeg"):
        find_ffmpeg()
    own = tmp_path / "ffmpeg"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert find_ffmpeg() == str(own)
    find_ffmpeg.cache_clear()


def test_errors_carry_what_ffmpeg_said(tmp_path):
    command = ffmpeg.output(ffmpeg.input("nothing here.mp4"), str(tmp_path / "out.mp4"))
    with pytest.raises(FfmpegError, match=r"ended with status \d+: .*No such file.*nothing here\.mp4"):
        run_ffmpeg(command)


def test_complaints_are_logged(tmp_path, caplog):
    command = ffmpeg.output(ffmpeg.input("color=red:d=0.1:s=32x32", format="lavfi"), str(tmp_path / "out.mp4"))
    with caplog.at_level(logging.DEBUG, logger="tasks.media.ffmpeg"):
        run_ffmpeg(command)
    assert (tmp_path / "out.mp4").stat().st_size > 0


def test_a_run_is_bounded_in_time_and_memory():
    """As a stranger's file could have it: endless, or hungry."""
    endless = ffmpeg.output(ffmpeg.input("testsrc2=s=64x64", f="lavfi", readrate=1), "-", format="null")
    with pytest.raises(FfmpegError, match=r"longer than 1 s and was ended.*command: ffmpeg"):
        run_ffmpeg(endless, seconds=1)
    hungry = ffmpeg.output(ffmpeg.input("color=s=12000x12000:d=1", f="lavfi"), "-", format="null")
    with pytest.raises(FfmpegError, match=r"may take 400 MB.*made to do harm"):
        run_ffmpeg(hungry, memory_mb=400)
