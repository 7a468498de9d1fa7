"""Which curve takes PQ pictures through the model best: python -m tests.bench.hdr writes tests/bench/hdr.md.

Pictures of known light are made large, shrunk 4 times in linear light, coded as PQ, taken through the embedded model
under each curve (and, for comparison, through plain enlargement), and compared with the large picture in PQ.
"""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flashvsr_core.config import UpscaleParams
from flashvsr_core.geometry import Geometry
from flashvsr_core.pixels import changed, enlarge, rgb_packer
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import embedded_weights

SCALE = 4
WIDTH, HEIGHT = 512, 384  # of the large picture
FRAMES = 9
CODES = 1023  # errors are told in code values of 10 bits, full range
HIGHLIGHT = 203.0  # cd/m2
ASSETS = Path(__file__).parents[2] / "assets"

PEAK = 10_000.0  # cd/m2 of PQ code 1
WHITE = 203.0  # cd/m2 of diffuse white in HDR (ITU-R BT.2408)

# SMPTE ST 2084
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32

# Hybrid log-gamma, ITU-R BT.2100
_A = 0.17883277
_B, _C = 1 - 4 * _A, 0.5 - _A * float(np.log(4 * _A))
_HLG_PEAK = 1000.0  # cd/m2 of HLG code 1


def nits_of_pq(code: np.ndarray) -> np.ndarray:
    """PQ code values in [0, 1] -> cd/m2, float64."""
    power = np.power(np.clip(code, 0, 1), 1 / _M2)
    return PEAK * np.power(np.maximum(power - _C1, 0) / (_C2 - _C3 * power), 1 / _M1)


def pq_of_nits(nits: np.ndarray) -> np.ndarray:
    """cd/m2 -> PQ code values in [0, 1], float64."""
    power = np.power(np.clip(nits, 0, PEAK) / PEAK, _M1)
    return np.power((_C1 + _C2 * power) / (1 + _C3 * power), _M2)


_WHITE_PQ = float(pq_of_nits(np.array(WHITE)))


@dataclass(frozen=True)
class Curve:
    """A way into the model and back, as exact functions of float64 arrays; `entry` rises."""

    name: str
    entry: Callable[[np.ndarray], np.ndarray]
    exit: Callable[[np.ndarray], np.ndarray]


def _knee(white: float) -> Curve:
    """Two straight lines in PQ: diffuse white at `white`, so that what is not highlight fills the range as in SDR."""
    return Curve(
        "knee",
        lambda pq: np.interp(pq, [0, _WHITE_PQ, 1], [0, white, 1]),
        lambda x: np.interp(x, [0, white, 1], [0, _WHITE_PQ, 1]),
    )


def _log(white: float) -> Curve:
    """A square root up to diffuse white as in SDR, a logarithm above, up to all of PQ's range; one slope at white."""
    top = PEAK / WHITE
    low, high = 1e-3, 1e3
    for _ in range(200):  # slope: white / 2 = k m; end: white + k log(1 + (top - 1) m) = 1
        m = (low * high) ** 0.5
        low, high = (low, m) if white / 2 / m * np.log1p((top - 1) * m) < 1 - white else (m, high)
    k = white / 2 / m

    def entry(pq: np.ndarray) -> np.ndarray:
        y = nits_of_pq(pq) / WHITE
        return np.where(y <= 1, white * np.sqrt(y), white + k * np.log1p(np.maximum(y - 1, 0) * m))

    def leave(x: np.ndarray) -> np.ndarray:
        y = np.where(x <= white, np.square(x / white), 1 + np.expm1(np.maximum(x - white, 0) / k) / m)
        return pq_of_nits(y * WHITE)

    return Curve("log", entry, leave)


def _hlg_entry(pq: np.ndarray) -> np.ndarray:
    light = np.minimum(nits_of_pq(pq) / _HLG_PEAK, 1)
    return np.where(light <= 1 / 12, np.sqrt(3 * light), _A * np.log(np.maximum(12 * light - _B, 1e-9)) + _C)


def _hlg_exit(x: np.ndarray) -> np.ndarray:
    light = np.where(x <= 0.5, np.square(x) / 3, (np.exp((x - _C) / _A) + _B) / 12)
    return pq_of_nits(light * _HLG_PEAK)


CURVES: dict[str, Curve] = {
    "pq": Curve("pq", lambda pq: pq, lambda x: x),
    "knee": _knee(0.75),
    "log": _log(0.75),
    "hlg": Curve("hlg", _hlg_entry, _hlg_exit),
}

_STEPS = 1 << 16


def into_model(curve: Curve) -> Callable[[np.ndarray], np.ndarray]:
    """Frames of PQ code values (uint8 or uint16, any shape) -> uint16 model values over the full range."""
    tables = {
        np.dtype(dtype): (curve.entry(np.linspace(0, 1, size)) * 65535).round().astype(np.uint16)
        for dtype, size in ((np.uint8, 256), (np.uint16, _STEPS))
    }
    return lambda frames: tables[frames.dtype][frames]


def out_of_model(curve: Curve) -> Callable[[Tensor], Tensor]:
    """Pictures T 3 H W of model values in [-1, 1] -> float32 PQ code values in [-1, 1], on their device.

    A table of 65537 steps with straight lines between them: within 1e-5 of the function.
    """
    table = torch.from_numpy(curve.exit(np.linspace(0, 1, _STEPS + 1)) * 2 - 1).float()

    def leave(x: Tensor) -> Tensor:
        at = (x.float() + 1) * (_STEPS / 2)
        below = at.floor().clamp(0, _STEPS - 1)
        index = below.long()
        steps = table.to(x.device)
        return torch.lerp(steps[index], steps[index + 1], (at - below).clamp(0, 1))

    return leave


def gradients() -> np.ndarray:
    """Grey ramps in PQ, from black to 10000, 1000 and 100 cd/m2, and one in red: H W 3 in cd/m2."""
    ramp = np.linspace(0, 1, WIDTH)
    rows = [nits_of_pq(ramp * float(pq_of_nits(np.array(top)))) for top in (10_000.0, 1000.0, 100.0)]
    picture = np.repeat(np.stack([*rows, rows[1]]), HEIGHT // 4, axis=0)[..., None] * np.ones(3)
    picture[3 * HEIGHT // 4 :, :, 1:] *= 0.05
    return picture


def photograph(peak: float) -> np.ndarray:
    """The bundled photograph with its bright parts stretched to `peak` cd/m2."""
    image = Image.open(ASSETS / "seeding.jpg").convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    linear = np.power(np.asarray(image, dtype=np.float64) / 255, 2.4)
    return HIGHLIGHT * linear + (peak - HIGHLIGHT) * np.power(linear, 4)


def highlights() -> np.ndarray:
    """Dim ground with discs, lines and points of 400 to 4000 cd/m2, some coloured."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    picture = np.repeat((5 + 10 * (np.sin(x / 9) * np.cos(y / 7) + 1))[..., None], 3, axis=2)
    random = np.random.default_rng(0)
    for _ in range(60):
        cx, cy, radius = random.uniform(0, WIDTH), random.uniform(0, HEIGHT), random.uniform(1.5, 14)
        colour = random.choice([[1, 1, 1], [1, 0.6, 0.1], [0.1, 0.4, 1], [1, 0.05, 0.05]])
        inside = 1 / (1 + np.exp(((np.hypot(x - cx, y - cy) - radius) * 1.5).clip(-50, 50)))
        picture += inside[..., None] * random.uniform(400, 4000) * np.array(colour)
    return picture.clip(0, 10_000)


def shrunk(light: np.ndarray) -> np.ndarray:
    blocks = light.reshape(HEIGHT // SCALE, SCALE, WIDTH // SCALE, SCALE, 3)
    return blocks.mean(axis=(1, 3))


def through(curve: Curve, small: np.ndarray, upscaler: Upscaler | None) -> np.ndarray:
    """One picture H W 3 uint16 PQ -> the middle frame of a still video, large, in PQ [0, 1]."""
    frames = into_model(curve)(np.repeat(small[None], FRAMES, axis=0))
    pack = changed(rgb_packer(16), out_of_model(curve))
    if upscaler is None:
        made = pack(enlarge(torch.from_numpy(frames[:1]), Geometry(small.shape[1], small.shape[0], SCALE)))
        return np.asarray(made)[0] / 65535
    return (
        np.concatenate([np.asarray(chunk) for chunk in upscaler.stream(iter([frames]), pack=pack)])[FRAMES // 2] / 65535
    )


def errors(made: np.ndarray, light: np.ndarray) -> tuple[float, float, float]:
    """Mean, mean over highlights, and 99.9th percentile of the error, code values of 10 bits."""
    wanted = pq_of_nits(light)
    off = np.abs(made - wanted) * CODES
    bright = light.max(axis=2) > HIGHLIGHT
    return float(off.mean()), float(off[bright].mean()), float(np.quantile(off, 0.999))


def _verdict(means: dict[str, dict[str, float]]) -> list[str]:
    """What the mean errors with the model (by picture and curve) say, in words."""
    excess = {
        curve: max(means[scene][curve] - min(means[scene].values()) for scene in means)
        for curve in next(iter(means.values()))
    }
    least = min(excess, key=lambda curve: excess[curve])
    others = ", ".join(f"{curve} {value:.2f}" for curve, value in excess.items() if curve != least)
    return [
        f"With the model the mean error of {least} is at most {excess[least]:.2f} code values above that of the",
        f"best curve of a picture (others at most: {others}). PQ goes through the model as it is.",
    ]


def main() -> None:
    upscaler = Upscaler.load(embedded_weights(), UpscaleParams(scenes="off", precision="fp32"))
    scenes = {
        "gradients": gradients(),
        "photograph, 1000 cd/m2": photograph(1000),
        "photograph, 4000 cd/m2": photograph(4000),
        "highlights": highlights(),
    }
    lines = [
        "# PQ through the model",
        "",
        "Error in PQ code values of 10 bits (full range): mean / mean where brighter than",
        f"{HIGHLIGHT:.0f} cd/m2 / 99.9th percentile. Pictures {WIDTH}x{HEIGHT}, shrunk {SCALE} times in linear light;",
        "`nano`, fp32, CPU. pq: as it is; knee: straight lines that put 203 cd/m2 at 0.75; log: square root and",
        "logarithm with 203 cd/m2 at 0.75; hlg: hybrid log-gamma of 1000 cd/m2, which clips what is brighter.",
        f"PyTorch {torch.__version__}, {platform.machine()}. Command: `python -m tests.bench.hdr`",
        "",
        "| picture | curve | nano | plain enlargement |",
        "| --- | --- | --- | --- |",
    ]
    best: dict[str, dict[str, float]] = {}
    for scene, light in scenes.items():
        small = (pq_of_nits(shrunk(light)) * 65535).round().astype(np.uint16)
        for name, curve in CURVES.items():
            found = [errors(through(curve, small, model), light) for model in (upscaler, None)]
            best.setdefault(scene, {})[name] = found[0][0]
            cells = [" / ".join(f"{value:.2f}" for value in values) for values in found]
            lines.append(f"| {scene} | {name} | " + " | ".join(cells) + " |")
    lines += ["", *_verdict(best)]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
