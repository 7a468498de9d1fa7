"""Options that `run` and `plan` share, and how they become the parameters everybody else is given."""

from typing import Annotated, Literal

import typer

from flashvsr_core.config import Attention, ColorFix, ComputeParams, Mode, Model, Precision, UpscaleParams
from flashvsr_core.errors import UserError

Source = Annotated[str, typer.Argument(help="Video to upscale: a path or fsspec URL.", show_default=False)]
Output = Annotated[
    str | None, typer.Argument(help="Result (.mp4, .mkv or .mov); default <stem>_<scale>x.mp4 beside SOURCE.")
]
ModelOption = Annotated[Model, typer.Option("--model", help="nano is embedded; auto: v1.1 if its weights are present.")]
ModeOption = Annotated[Mode, typer.Option("--mode", help="tiny: fast decoder; full: Wan 2.1 VAE decoder.")]
ScaleOption = Annotated[int, typer.Option("--scale", help="2, 3 or 4; the published models were trained for 4.")]
SparseOption = Annotated[float, typer.Option("--sparse-ratio", help="More is steadier and slower (1.5 to 2).")]
KvOption = Annotated[float, typer.Option("--kv-ratio", help="History in slices of 8 frames.")]
LocalOption = Annotated[int, typer.Option("--local-range", help="Attention window in blocks: 9 sharper, 11 steadier.")]
ColorOption = Annotated[ColorFix, typer.Option("--color-fix", help="How colours follow the source.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the noise.")]
PrecisionOption = Annotated[Precision, typer.Option("--precision", help="Arithmetic of the model.")]
AttentionOption = Annotated[Attention, typer.Option("--attention", help="Attention backend.")]
DevicesOption = Annotated[str, typer.Option("--devices", help="auto, cpu, all, or GPU numbers such as 0,2.")]
ScenesOption = Annotated[str, typer.Option("--scenes", help="auto, off, or first frames of scenes such as 120,340.")]
SegmentOption = Annotated[int, typer.Option("--segment-frames", help="Frames of one segment, a multiple of 8.")]
PrerollOption = Annotated[
    int | None, typer.Option("--preroll", help="Frames streamed and dropped before a segment; default: measured.")
]
CodecOption = Annotated[str, typer.Option("--codec", help="h264 or h265.")]
CrfOption = Annotated[int | None, typer.Option("--crf", help="Quality, lower is better; default 18 (h264), 20 (h265).")]
PresetOption = Annotated[str, typer.Option("--preset", help="Encoder preset, from ultrafast to veryslow.")]
PixFmtOption = Annotated[str, typer.Option("--pix-fmt", help="auto, or for example yuv420p10le for 10 bits.")]
StoreOption = Annotated[
    str | None, typer.Option("--store", help="Where segments are kept; default .flashvsr/ beside OUTPUT.")
]
ModelsDirOption = Annotated[
    str | None, typer.Option("--models-dir", envvar="FLASHVSR_MODELS", help="Folder with published weights.")
]
WorkDirOption = Annotated[
    str | None, typer.Option("--work-dir", envvar="FLASHVSR_WORK", help="Folder for work files; default: user cache.")
]
TruncatedOption = Annotated[
    bool, typer.Option("--allow-truncated", help="Upscale what can be read of a truncated SOURCE.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on the last line.")]


def parse_scenes(text: str) -> Literal["auto", "off"] | tuple[int, ...]:
    """`auto`, `off` or a list of frame numbers."""
    if text in ("auto", "off"):
        return text  # type: ignore[return-value]
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"scenes {text!r} is not auto, off or frame numbers such as 120,340") from error


def upscale_params(
    model: Model,
    mode: Mode,
    scale: int,
    sparse_ratio: float,
    kv_ratio: float,
    local_range: int,
    color_fix: ColorFix,
    seed: int,
    precision: Precision,
    attention: Attention,
    scenes: str,
    preroll: int | None,
) -> UpscaleParams:
    return UpscaleParams(
        model=model,
        mode=mode,
        scale=scale,  # type: ignore[arg-type]
        sparse_ratio=sparse_ratio,
        kv_ratio=kv_ratio,
        local_range=local_range,
        color_fix=color_fix,
        precision=precision,
        attention=attention,
        seed=seed,
        scenes=parse_scenes(scenes),
        preroll="auto" if preroll is None else preroll,
    )


def compute_params(devices: str, models_dir: str | None, work_dir: str | None) -> ComputeParams:
    return ComputeParams(devices=devices, models_dir=models_dir, work_dir=work_dir)
