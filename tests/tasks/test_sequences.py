"""Sequences in remote stores: which objects are the frames, fetched once for each content."""

import os
import secrets
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flashvsr_core.config import ComputeParams
from flashvsr_core.errors import BadInput, TransientError
from tasks import sources
from tasks.media.decode import read_frames
from tasks.media.guard import describe
from tasks.plan import Request, make_plan
from tasks.storage import listing, urls
from tasks.storage.cache import COMPLETE
from tests.media.clips import numbered, numbers, run
from tests.s3server import BUCKET
from tests.tasks.enlarging import COMPUTE, PARAMS, enlarged

FRAMES = 12


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.system)])
def shots(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A prefix with frames 100 to 111, and things that are none of them."""
    place = f"memory://{secrets.token_hex(6)}"
    if request.param == "s3":
        request.getfixturevalue("seaweed")
        place = f"s3://{BUCKET}/{secrets.token_hex(6)}"
    run(*numbered(FRAMES / 25), "-start_number", "100", tmp_path / "shot_%d.png")
    for file in tmp_path.glob("shot_*.png"):
        urls.publish(file, urls.join(place, "frames", file.name), overwrite=True)
        file.rename(tmp_path / f"mine_{file.name}")
    urls.write_bytes(urls.join(place, "frames", "notes.txt"), b"no frame")
    urls.write_bytes(urls.join(place, "frames", "below", "x1.png"), b"no frame")
    return urls.join(place, "frames")


def seen(source: str, cache_dir: Path, compute: ComputeParams = ComputeParams()) -> list[int]:
    with sources.required(source, compute, cache_dir) as path:
        info = describe(path)
        return numbers(read_frames(path, info, 0, info.frames))


def test_a_prefix_or_a_pattern_is_a_sequence(shots: str, tmp_path: Path) -> None:
    for source in (shots, f"{shots}/", f"{shots}/shot_*.png"):
        assert sources.is_images(source)
        assert sources.first_number(source) == 100
        assert seen(source, tmp_path / "cache") == list(range(FRAMES))
    assert seen(f"{shots}/shot_10[3-5].png", tmp_path / "cache") == [3, 4, 5]
    assert not sources.is_images(f"{shots}/shot_100.png")
    assert not sources.is_images(f"{shots}/notes.txt")
    assert not sources.is_images(f"{shots}_nothing")
    with pytest.raises(BadInput, match="no images with such names"):
        seen(f"{shots}/x*.png", tmp_path / "cache")
    urls.remove(f"{shots}/shot_107.png")
    with pytest.raises(BadInput, match="gap: number 107 is missing"):
        seen(shots, tmp_path / "cache")


def test_it_is_fetched_once_for_each_content(shots: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    real = urls.fetch_into

    def fetch(url: str, size: int, folder: Path) -> None:
        fetched.append(url)
        real(url, size, folder)

    monkeypatch.setattr(urls, "fetch_into", fetch)
    before = sources.fingerprint(shots, tmp_path / "cache")
    for _ in range(2):
        assert seen(shots, tmp_path / "cache") == list(range(FRAMES))
    assert len(fetched) == FRAMES
    one, two = (urls.read_bytes(f"{shots}/shot_{n}.png") for n in (103, 104))
    urls.write_bytes(f"{shots}/shot_103.png", two)
    urls.write_bytes(f"{shots}/shot_104.png", one)
    assert sources.fingerprint(shots, tmp_path / "cache") != before
    assert seen(shots, tmp_path / "cache") == [0, 1, 2, 4, 3, *range(5, FRAMES)]
    assert len(fetched) == 2 * FRAMES


def test_what_is_not_used_makes_room(shots: str, tmp_path: Path) -> None:
    small = ComputeParams(source_cache_gb=1e-6)
    seen(shots, tmp_path / "cache", small)
    (kept,) = (tmp_path / "cache" / "sources").iterdir()
    with sources.required(shots, small, tmp_path / "cache") as path:
        assert path == kept
        seen(f"{shots}/shot_10*.png", tmp_path / "cache", small)
        assert len(list((tmp_path / "cache" / "sources").iterdir())) == 2  # what is in use stays
    os.utime(kept, (0, 0))
    seen(f"{shots}/shot_11*.png", tmp_path / "cache", small)
    assert not kept.exists()


def test_what_changes_while_it_is_fetched_is_not_kept(
    shots: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = urls.fetch_into

    def fetch(url: str, size: int, folder: Path) -> None:
        real(url, size, folder)
        if url.endswith("105.png"):
            urls.write_bytes(f"{shots}/shot_101.png", urls.read_bytes(f"{shots}/shot_102.png"))

    monkeypatch.setattr(urls, "fetch_into", fetch)
    with pytest.raises(TransientError, match="changed while it was fetched"):
        seen(shots, tmp_path / "cache")
    assert not list(tmp_path.glob(f"cache/sources/*/{COMPLETE}"))
    monkeypatch.undo()
    assert seen(shots, tmp_path / "cache") == [0, 2, *range(2, FRAMES)]


def test_a_job_of_a_remote_sequence(shots: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, _ = enlarged(monkeypatch, shots, tmp_path / "out.mp4")  # type: ignore[arg-type]
    assert (plan.source, plan.first_number, plan.info.frames) == (shots, 100, FRAMES)
    info = describe(tmp_path / "out.mp4")
    assert (info.width, info.frames) == (2 * plan.info.width, FRAMES)
    assert Request(f"{shots}/shot_*.png", params=PARAMS).output_url == f"{shots}/shot_2x.mp4"
    request = Request(shots, str(tmp_path / "o.mp4"), PARAMS, compute=COMPUTE, store=str(tmp_path))
    key = make_plan(request, tmp_path / "cache")[0].key
    assert make_plan(replace(request, source=f"{shots}/*.png"), tmp_path / "cache")[0].key == key
    assert len(listing.objects(shots)) == FRAMES + 1
    frames = np.concatenate(list(read_frames(tmp_path / "out.mp4", info, 0, FRAMES)))
    assert numbers([frames[:, ::2, ::2]]) == list(range(FRAMES))
