"""Damaged and hostile files of many containers: headers mutated, packets cut. Nothing crashes, hangs, eats memory."""

import os
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue

import numpy as np
import pytest

from flashvsr_core.errors import BadInput
from tasks.media.guard import describe_guarded
from tests.media.clips import numbered, run
from tests.media.test_formats import VIDEOS

ROOT = Path(__file__).parents[2]
SEED = 20261124
PER_SOURCE = 105  # mutations of each source: 2205 files
WORKERS = 2
PATIENCE = 30  # seconds for one file
MEMORY = 2000  # MB of address space
SOUND = ("-f", "lavfi", "-i", "sine=d=0.6")
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF)

pytestmark = pytest.mark.system


@dataclass(frozen=True)
class Finding:
    """What became of one mutated file."""

    name: str
    said: str  # the last thing its process said, and how it ended where it did
    seconds: float


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One small file of every kind."""
    folder = tmp_path_factory.mktemp("sources")
    chosen = (
        "h264.mp4", "h264.mkv", "h264.ts", "h264.flv", "h265.mp4", "av1.webm", "vp9.webm", "prores.mov", "dnxhr.mxf",
        "ffv1.mkv", "mpeg2.mpg", "mpeg2.mxf", "mpeg4.avi", "mjpeg.avi", "numbers.gif",
    )  # fmt: skip
    for name in chosen:
        with_sound = name in ("h264.mp4", "h264.mkv", "h264.ts", "mpeg4.avi")
        sound = (*SOUND, "-c:a", "aac", "-shortest") if with_sound else ()
        run(*numbered(0.6, "25", "256x128"), *sound, *VIDEOS[name], folder / name)
    run("-i", folder / "h264.mp4", "-c", "copy", "-movflags", "frag_keyframe+empty_moov", folder / "fragments.mp4")
    stills = {"a.png": (), "a.jpg": (), "a.tiff": (), "a.dpx": (), "a.exr": ("-pix_fmt", "gbrpf32le"),
              "a.webp": ("-c:v", "libwebp"), "animated.webp": ("-c:v", "libwebp_anim")}  # fmt: skip
    for name, options in stills.items():
        count = () if name.startswith("anim") else ("-frames:v", "1")
        run(*numbered(0.2, "25"), *options, *count, folder / name)
    return sorted(folder.iterdir())


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Header or index bytes changed, any bytes changed, cut, a hole, a piece twice, noise, or numbers blown up."""
    out = bytearray(data)
    head = min(len(out), int(rng.choice([64, 512, 4096])))
    kind = int(rng.integers(8))
    if kind in (0, 1):  # header, or the end, where mp4 and mkv have their indexes
        for _ in range(int(rng.integers(1, 9))):
            at = int(rng.integers(head))
            out[at if kind == 0 else len(out) - 1 - at] = int(rng.choice([*EXTREMES, int(rng.integers(256))]))
    elif kind == 2:  # anywhere
        for _ in range(max(1, len(out) // 1000)):
            out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
    elif kind == 3:  # cut
        del out[int(rng.integers(1, len(out))) :]
    elif kind == 4:  # a hole within
        start = int(rng.integers(len(out)))
        del out[start : start + int(rng.integers(1, 1 + len(out) // 4))]
    elif kind == 5:  # a piece twice
        start = int(rng.integers(len(out)))
        piece = out[start : start + int(rng.integers(1, 2048))]
        out[start:start] = piece
    elif kind == 6:  # random piece over another place
        start, length = int(rng.integers(len(out))), int(rng.integers(1, 512))
        out[start : start + length] = rng.integers(0, 256, min(length, len(out) - start), dtype=np.uint8).tobytes()
    else:  # numbers of four bytes in the header become extreme
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(max(1, head - 4)))
            out[at : at + 4] = bytes([int(rng.choice([0x7F, 0xFF, 0x80, 0x00])), *rng.integers(0, 256, 3).tolist()])
    return bytes(out)


class Worker:
    """A process that looks at files one after another, started anew when one ends it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def look(self, path: Path) -> Finding:
        process = self.process or self._start()
        assert process.stdin is not None
        begun = time.monotonic()
        process.stdin.write(f"{path}\n".encode())
        process.stdin.flush()
        said = ""
        for line in self._lines(process, begun + PATIENCE):
            said = line
            if line != "probed":
                return Finding(path.name, said, time.monotonic() - begun)
        ended = process.poll() if time.monotonic() < begun + PATIENCE else "hang"
        self.stop()
        return Finding(path.name, f"{said or 'nothing'}, then {ended}", time.monotonic() - begun)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _start(self) -> subprocess.Popen[bytes]:
        env = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.fuzz_child", str(MEMORY)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, cwd=ROOT, bufsize=0,
        )  # fmt: skip
        return self.process

    @staticmethod
    def _lines(process: subprocess.Popen[bytes], deadline: float) -> Iterator[str]:
        assert process.stdout is not None
        pending = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while selector.select(max(0.0, deadline - time.monotonic())):
                data = os.read(process.stdout.fileno(), 65536)
                if not data:
                    process.wait()
                    return
                *lines, pending = (pending + data).split(b"\n")
                yield from (line.decode() for line in lines)


def campaign(sources: list[Path], folder: Path) -> list[Finding]:
    """Every mutation of every source."""
    waiting: Queue[tuple[Path, int]] = Queue()
    for number in range(PER_SOURCE):
        for source in sources:
            waiting.put((source, number))

    def work() -> list[Finding]:
        worker, found = Worker(), []
        try:
            while True:
                source, number = waiting.get_nowait()
                rng = np.random.default_rng([SEED, number, *source.name.encode()])
                path = folder / f"{number}-{source.name}"
                path.write_bytes(mutate(source.read_bytes(), rng))
                finding = worker.look(path)
                found.append(finding)
                if not finding.said.startswith(("done", "refused")):
                    continue  # kept, to be looked at
                path.unlink()
        except Empty:
            return found
        finally:
            worker.stop()

    with ThreadPoolExecutor(WORKERS) as pool:
        return [finding for found in pool.map(lambda _: work(), range(WORKERS)) for finding in found]


@pytest.mark.timeout(1800)
def test_two_thousand_damaged_files(sources: list[Path], tmp_path: Path) -> None:
    findings = campaign(sources, tmp_path)
    count = Counter(finding.said.split()[0] for finding in findings)
    print(f"{len(findings)} files: {dict(count)}; slowest {max(f.seconds for f in findings):.1f} s")
    for finding in findings:
        if not finding.said.startswith(("done", "refused")):
            print(f"{finding.name}: {finding.said} ({finding.seconds:.1f} s)")
    assert len(findings) >= 2000
    assert count["done"] > 50, "mutations must leave some files alive"
    assert count["refused"] > 500
    # In the command, what ends the probing child is an error of the file; so it must be here, through that child.
    ended = [f for f in findings if f.said.startswith("nothing")]
    for finding in ended:
        with pytest.raises(BadInput):
            describe_guarded(tmp_path / finding.name)
    worse = [f"{f.name}: {f.said}" for f in findings if not f.said.startswith(("done", "refused", "nothing"))]
    assert worse == []
    assert [f.name for f in findings if "hang" in f.said] == []
    assert len(ended) <= len(findings) // 100


@pytest.mark.timeout(1200)
def test_the_command_refuses_what_was_damaged(sources: list[Path], tmp_path: Path) -> None:
    """Some of the same files through the command itself: a sentence and status 2, or a plan."""
    seen = Counter[int]()
    for number, source in enumerate(sources[::3]):
        rng = np.random.default_rng([SEED, number % 5, *source.name.encode()])
        path = tmp_path / f"{number}-{source.name}"
        path.write_bytes(mutate(source.read_bytes(), rng))
        command = [sys.executable, "-m", "flows.cli.main", "plan", str(path), "--work-dir", str(tmp_path / "w")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        assert done.returncode in (0, 2), done.stderr
        assert "Traceback" not in done.stderr
        if done.returncode:
            assert done.stderr.startswith("flashvsr: "), done.stderr
        seen[done.returncode] += 1
    assert seen[2] >= 2
