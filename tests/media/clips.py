"""Tiny clips made by ffmpeg. Frames show their number in bits: a wrong one cannot pass for the right one."""

import subprocess
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from flashvsr_core.layout import Planes
from flashvsr_core.pixels import yuv_packer
from tasks.media.decode import read_frames
from tasks.media.encode import EncodeParams, check_segment, encode_segment, layout_of, resolve
from tasks.media.ffmpeg import find_ffmpeg
from tasks.media.mux import merge
from tasks.media.probe import VideoInfo, probe

BITS = 10
BLOCK = 16  # pixels
WIDTH, HEIGHT = BITS * BLOCK, 64
NUMBERS = f"geq=lum='if(bitand(N,pow(2,floor(X/{BLOCK}))),220,30)':cb=128:cr=128"
OPEN_GOP = "keyint=90:min-keyint=60:open-gop=1:bframes=5:b-pyramid=normal:scenecut=0"


def run(*arguments: str | Path) -> None:
    subprocess.run([find_ffmpeg(), "-nostdin", "-v", "error", "-y", *map(str, arguments)], check=True)


def numbered(seconds: float, rate: str = "25", size: str = f"{WIDTH}x{HEIGHT}", first: str = "") -> list[str]:
    """Input arguments: frames that show their number; `first` filters run before numbers are drawn."""
    chain = f"color=gray:s={size}:r={rate}:d={seconds},format=yuv420p,{first}{',' if first else ''}{NUMBERS}"
    return ["-f", "lavfi", "-i", chain]


def numbers(chunks: Iterable[np.ndarray]) -> list[int]:
    """The numbers that frames (T H W 3, uint8 or uint16) show."""
    found = []
    for frame in (frame for chunk in chunks for frame in chunk):
        half = 128 if frame.dtype == np.uint8 else 128 << 8
        row = frame[frame.shape[0] // 2, :, 1]
        found.append(sum(1 << bit for bit in range(BITS) if row[bit * BLOCK + BLOCK // 2] > half))
    return found


def planes_of(chunks: Iterable[np.ndarray], info: VideoInfo, encode: EncodeParams) -> Iterator[Planes]:
    """RGB chunks as the planes an encoder wants."""
    pack = yuv_packer(layout_of(encode, info))
    for chunk in chunks:
        peak = 255 if chunk.dtype == np.uint8 else 65535
        x = torch.from_numpy(chunk.astype(np.float32)).permute(0, 3, 1, 2) * (2 / peak) - 1
        planes = pack(x)
        assert isinstance(planes, tuple)
        yield planes


def copy_through(
    source: Path, output: Path, params: EncodeParams, parts: int, folder: Path
) -> tuple[VideoInfo, tuple[str, ...]]:
    """Decode `source`, encode it in `parts` segments of its own size, merge: VideoInfo of the source, notes."""
    info = probe(source)
    encode = resolve(params, info, info.width, info.height)
    bounds = [round(part * info.frames / parts) for part in range(parts + 1)]
    segments = []
    for number, (start, stop) in enumerate(pairwise(bounds)):
        path = folder / f"part {number}.mp4"
        chunks = planes_of(read_frames(source, info, start, stop), info, encode)
        done = encode_segment(chunks, path, info, encode, info.width, info.height)
        check_segment(path, done.frames, info.width, info.height)
        segments.append((path, done.frames))
    return info, merge(segments, source, info, encode, output)
