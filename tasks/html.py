"""The report as one page for people: no network, no other file, every text escaped."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from tasks.media.encode import encoder_text
from tasks.pictures import Comparison, Pair

_DATA = r"(data:image/webp;base64,[A-Za-z0-9+/=]+)"
_COMPARED = re.compile(
    r'<div class="compare" style="aspect-ratio: (\d+) / (\d+)">\s*<img class="after" src="'
    + _DATA
    + r'" alt="frame (\d+)(, detail)?, result">\s*<img class="before" src="'
    + _DATA
)
VISIBLE = 0.5  # levels: a join's excess above this may be seen
LIVELY = (0.8, 1.3)  # stability outside of these is worth a look
DRIFTED = 3.0  # levels of colour drift above which colours may look wrong


@dataclass(frozen=True)
class Bar:
    """A rectangle of a plot in per cent of its area, with what a pointer is told."""

    x: float
    width: float
    height: float
    label: str
    kind: str = ""


@dataclass(frozen=True)
class Lane:
    """What one device did."""

    name: str
    bars: tuple[Bar, ...]


def page(report: dict[str, Any], comparisons: Sequence[Comparison]) -> str:
    """The page of a report (as report.json holds it) with its pictures."""
    template = _environment().get_template("report.html.j2")
    script, style = _read("report.js"), _read("report.css")
    results = report["results"]
    computed = set(report["computed"] or [r["segment"] for r in results])
    fresh = [r for r in results if r["segment"] in computed]
    return template.render(
        report=report,
        plan=report["plan"],
        quality=report["quality"],
        comparisons=comparisons,
        name=report["output"]["url"].rpartition("/")[2],
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        lanes=lanes(fresh),
        span=_span(fresh),
        speeds=bars(results, lambda r: r["frames"] / r["seconds"] if r["seconds"] else 0.0, "fps", computed),
        memories=bars(results, lambda r: r["peak_memory_bytes"] / 2**30, "GiB", computed),
        joins=join_bars(report["quality"]["joins"]) if report["quality"] else (),
        worst_join=worst_join(report["quality"]),
        visible=VISIBLE,
        doubts=doubts(report["quality"]),
        computed=computed,
    )


def comparisons_of(page: str) -> tuple[Comparison, ...]:
    """The pictures of a page that `page` made; none where there are none."""
    found: dict[int, dict[bool, Pair]] = {}
    for width, height, after, frame, detail, before in _COMPARED.findall(page):
        found.setdefault(int(frame), {})[bool(detail)] = Pair(before, after, int(width), int(height))
    return tuple(Comparison(frame, pairs[False], pairs.get(True)) for frame, pairs in found.items() if False in pairs)


def lanes(results: Sequence[dict[str, Any]]) -> tuple[Lane, ...]:
    """Segments over time, a lane for each worker; only those whose beginning is known."""
    timed = [r for r in results if r["started"]]
    if not timed:
        return ()
    begin = min(r["started"] for r in timed)
    span = max(r["started"] + r["seconds"] for r in timed) - begin or 1.0
    found: dict[str, list[Bar]] = {}
    for r in sorted(timed, key=lambda r: r["started"]):
        label = f"segment {r['segment']}: {r['seconds']:.1f} s, {r['frames']} frames"
        bar = Bar(100 * (r["started"] - begin) / span, max(0.3, 100 * r["seconds"] / span), 100, label)
        found.setdefault(_lane_name(r), []).append(bar)
    return tuple(Lane(name, tuple(made)) for name, made in sorted(found.items()))


def bars(results: Sequence[dict[str, Any]], value: Any, unit: str, computed: set[int]) -> dict[str, Any]:
    """One bar a segment."""
    values = [value(r) for r in results]
    top = max(values, default=0.0) or 1.0
    width = 100 / max(1, len(values))
    made = tuple(
        Bar(
            i * width,
            width * 0.86,
            100 * v / top,
            f"segment {r['segment']}: {v:.2f} {unit}",
            "" if r["segment"] in computed else "reused",
        )
        for i, (r, v) in enumerate(zip(results, values))
    )
    return {"bars": made, "top": top, "unit": unit}


def join_bars(joins: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Flicker at every join that was looked at, and what is usual around it."""
    top = max((max(j["flicker"], j["flicker_around"]) for j in joins), default=0.0) or 1.0
    width = 100 / max(1, len(joins))
    made = tuple(
        (
            Bar(
                i * width, width * 0.38, 100 * j["flicker_around"] / top, f"around: {j['flicker_around']:.2f}", "around"
            ),
            Bar(
                i * width + width * 0.42,
                width * 0.38,
                100 * j["flicker"] / top,
                f"join at frame {j['frame']}: {j['flicker']:.2f}" + (", a scene cut" if j["cut"] else ""),
                "cut" if j["cut"] else "bad" if j["excess"] > VISIBLE else "",
            ),
        )
        for i, j in enumerate(joins)
    )
    return {"pairs": made, "top": top, "unit": "levels"}


def worst_join(quality: dict[str, Any] | None) -> float | None:
    """The largest excess of a join within a scene."""
    excesses = [join["excess"] for join in quality["joins"] if not join["cut"]] if quality else []
    return max(excesses, default=None)


def doubts(quality: dict[str, Any] | None) -> tuple[str, ...]:
    """What the numbers give reason to look at; the bounds are those of docs/report.md."""
    if quality is None:
        return ()
    found = []
    stability, worst = quality["stability"], worst_join(quality)
    if stability is not None and stability > LIVELY[1]:
        found.append(f"stability {stability:.2f}: something may flicker that does not in the source")
    if stability is not None and stability < LIVELY[0]:
        found.append(f"stability {stability:.2f}: noise was removed, or motion is smeared")
    if worst is not None and worst > VISIBLE:
        found.append(
            f"worst join {worst:+.2f}: a border between segments may be seen; a larger --preroll helps, or a lower "
            "--crf where the encoder makes it"
        )
    if quality["color_drift"] > DRIFTED:
        found.append(
            f"colour drift {quality['color_drift']:.2f}: colours differ from the source's; try --color-fix wavelet"
        )
    return tuple(found)


def _shown(value: object) -> str:
    """A parameter's value for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ("", [], ()):
        return "\N{EN DASH}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _moment(text: str) -> str:
    """`2026-11-24T17:23:13+00:00` without what people do not read."""
    return f"{text[:16].replace('T', ' ')} UTC" if text.endswith("+00:00") else text


def _lane_name(result: dict[str, Any]) -> str:
    host, _, rest = result["worker"].partition("/")
    device = rest.partition("/")[2]
    return f"{device} on {host}" if device else result["device"]


def _span(results: Sequence[dict[str, Any]]) -> float:
    timed = [r for r in results if r["started"]]
    return max(r["started"] + r["seconds"] for r in timed) - min(r["started"] for r in timed) if timed else 0.0


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


@lru_cache
def _environment() -> Environment:
    from jinja2 import FunctionLoader

    made = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "bytes": _bytes,
        "duration": _duration,
        "encoder": encoder_text,
        "shown": _shown,
        "moment": _moment,
    }
    return made


def _read(name: str) -> str:
    return files("tasks").joinpath("templates", name).read_text(encoding="utf-8")
