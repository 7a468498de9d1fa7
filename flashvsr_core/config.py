"""What a user may choose: `UpscaleParams` changes pixels and is in a job's key, `ComputeParams` must not and is not.

The string under each field is its description; deployments show it in their forms.
"""

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from flashvsr_core.errors import UserError
from flashvsr_core.geometry import WINDOW_PIXELS, TileSize
from flashvsr_core.quantities import parse_bytes
from flashvsr_core.segments import GRID

Model = Literal["auto", "nano", "v1.0", "v1.1"]
Mode = Literal["tiny", "full"]
ColorFix = Literal["auto", "adain", "wavelet", "none"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Attention = Literal["auto", "torch", "triton", "hopper", "int8", "sage"]
Profile = Literal["exact", "fast"]
LqProjection = Literal["auto", "buffer", "causal"]
Deinterlace = Literal["auto", "on", "off"]
UnknownWeights = Literal["refuse", "buffer", "causal"]
Switch = Literal["auto", "on", "off"]
Offload = Literal["auto", "none", "dit", "kv", "weights"]
OnOom = Literal["retry", "fail"]
Runner = Literal["auto", "threads", "processes", "dask", "ray"]
CLUSTERS = ("dask", "ray")

FAST_DB = 38.0  # PSNR that profile fast must keep against exact; `flashvsr bench --fidelity` measures it
NUMBERS = re.compile(r"\d+(,\d+)*")

# Read by pydantic where Prefect validates parameters; a plain dict, so that the core needs no pydantic.
FORM: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True)
class UpscaleParams:
    """Everything that changes pixels. `auto` is resolved once, when a job is planned."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORM

    model: Model = "auto"
    """nano (embedded), v1.0 or v1.1 (published weights); auto: v1.1 where its weights are present, else nano."""
    mode: Mode = "tiny"
    """tiny: fast conditional decoder; full: Wan 2.1 VAE decoder, slower and larger."""
    scale: Literal[2, 3, 4] = 4
    """Enlargement in each dimension; the published models were trained for 4."""
    sparse_ratio: float = 2.0
    """Share of attention blocks, relative to 768x1280; higher is steadier and slower (1.5 fast, 2.0 steady)."""
    kv_ratio: float = 3.0
    """History: this many slices of 8 frames stay visible to attention (the whole part counts)."""
    local_range: int = 11
    """Width of the local attention window in blocks of 128 pixels (9 sharper, 11 steadier)."""
    color_fix: ColorFix = "auto"
    """Colours follow the source: adain (statistics), wavelet (low frequencies) or none; auto: the model's best."""
    profile: Profile = "exact"
    """exact: as trained; fast: on GPUs fp8 layers and, except on Hopper, int8 attention; on CPUs bf16."""
    precision: Precision = "auto"
    """Arithmetic of the model; auto: bf16 on GPUs that have it, fp16 on older ones, fp32 on the CPU."""
    attention: Attention = "auto"
    """Attention backend by name; auto: hopper on H100 and H200, triton on other GPUs (int8 with profile
    fast), torch elsewhere.

    int8 and sage round queries and keys to 8 bits; sage has the package sageattention do it."""
    seed: int = 0
    """Seed of the noise."""
    scenes: Literal["auto", "off"] | tuple[int, ...] | str = "auto"
    """auto: a scene cut starts a fresh stream; off: never; or the first frame of every new scene (10,20).

    Or a file (path or URL) with frame numbers, times or timecodes, one a line; it is read when a job is planned."""
    deinterlace: Deinterlace = "auto"
    """auto: frames that are interlaced become whole pictures (bwdif, one per frame); on: all frames; off: none."""
    preroll: int | Literal["auto"] = "auto"
    """Frames streamed and dropped before a segment, a multiple of 8; auto: the measured default."""
    tiled_dit: Switch = "auto"
    """Compute the picture in overlapping tiles; auto: only where memory does not suffice for it untiled."""
    tile_size: str = "auto"
    """Pixels of a tile of the output: 768, or HEIGHTxWIDTH such as 768x3840, multiples of 128; auto: what fits."""
    tile_overlap: int | Literal["auto"] = "auto"
    """Pixels by which tiles overlap at least, a multiple of 128; auto: 256."""
    allow_unknown_weights: bool = False
    """Take weight files by their published names, whatever they hold; needs an LQ projection to be named."""
    lq_projection: LqProjection = "auto"
    """auto: the one the published weights were made for; buffer (v1.0) or causal (v1.1) for unknown weights."""

    def __post_init__(self) -> None:
        for name, choices in (("model", Model), ("mode", Mode), ("color_fix", ColorFix), ("precision", Precision),
                              ("attention", Attention), ("profile", Profile), ("lq_projection", LqProjection),
                              ("deinterlace", Deinterlace), ("tiled_dit", Switch)):  # fmt: skip
            _one_of(name, getattr(self, name), get_args(choices))
        _one_of("scale", self.scale, (2, 3, 4))
        _within("sparse_ratio", self.sparse_ratio, 0.1, 100.0)
        _within("kv_ratio", self.kv_ratio, 1.0, 64.0)
        _within("local_range", self.local_range, 1, 999)
        _within("seed", self.seed, 0, 2**63 - 1)
        if isinstance(self.scenes, str):
            if NUMBERS.fullmatch(self.scenes):  # as a command line has them: 10,20
                object.__setattr__(self, "scenes", tuple(map(int, self.scenes.split(","))))
            elif not self.scenes:
                raise UserError("scenes '' is no choice; give auto, off, or a file with the first frames of scenes")
        if not isinstance(self.scenes, str) and any(b <= a for a, b in zip((0, *self.scenes), self.scenes)):
            raise UserError(f"scenes {self.scenes} must be rising frame numbers above 0")
        if self.preroll != "auto":
            _within("preroll", self.preroll, 0, 512)
            if self.preroll % GRID:
                raise UserError(
                    f"preroll {self.preroll} must be a multiple of {GRID}; try {-(-self.preroll // GRID) * GRID}"
                )

        self._check_tiles()
        if self.allow_unknown_weights != (self.lq_projection != "auto"):
            raise UserError(
                "--allow-unknown-weights and --lq-projection buffer|causal go together: unknown weights do not say "
                "which they were made for, known ones do"
            )

    def _check_tiles(self) -> None:
        if self.tile_size != "auto":
            TileSize.parse(self.tile_size)
        if self.tile_overlap != "auto":
            _within("tile_overlap", self.tile_overlap, 0, 8192)
            if self.tile_overlap % WINDOW_PIXELS:
                raise UserError(f"tile_overlap {self.tile_overlap} must be a multiple of {WINDOW_PIXELS}; try 256")
        if self.tiled_dit == "off" and (self.tile_size, self.tile_overlap) != ("auto", "auto"):
            raise UserError("--tile-size and --tile-overlap say nothing with --tiled-dit off; leave them out")

    @property
    def unknown_weights(self) -> UnknownWeights:
        """refuse, or the LQ projection to run unknown weights with."""
        return "refuse" if self.lq_projection == "auto" else self.lq_projection

    @property
    def scenes_file(self) -> str | None:
        """The file that says where scenes begin, where one was named."""
        return self.scenes if isinstance(self.scenes, str) and self.scenes not in ("auto", "off") else None

    @property
    def is_resolved(self) -> bool:
        """Whether no field is left to be decided by the machine or the files that are present."""
        return self.scenes_file is None and "auto" not in (
            self.model,
            self.color_fix,
            self.precision,
            self.attention,
            self.preroll,
            self.tiled_dit,
        )


@dataclass(frozen=True)
class ComputeParams:
    """How the work is done; must not change pixels."""

    __pydantic_config__: ClassVar[dict[str, Any]] = FORM

    devices: str = "auto"
    """auto (the first GPU, else the CPU), cpu, all, or GPU numbers such as 0,2."""
    runner: Runner = "auto"
    """threads (one process), processes (one per GPU), dask, ray; auto: processes on several GPUs, else threads."""
    workers: int | Literal["auto"] = "auto"
    """Threads, processes or local cluster workers; auto: one per device (threads: two)."""
    cluster: str | None = None
    """Address of a Dask scheduler or Ray cluster; default: a local one that ends with the run."""
    models_dir: str | None = None
    """Folder with published weights; default: the user's cache directory."""
    work_dir: str | None = None
    """Folder for fetched sources and work files; default: the user's cache directory."""
    memory_limit: str | None = None
    """Device memory to plan for, such as 12GiB, without the CUDA context; default: what the device has."""
    tiled_vae: Switch = "auto"
    """Decode the picture in parts, each with its surroundings: the same pixels, less memory; auto: where needed."""
    unload_dit: bool = False
    """The DiT's weights leave the device while frames are decoded (as --offload dit)."""
    offload: Offload = "auto"
    """What stays off the device: none, dit (while decoding), kv (and the past), weights (block by block)."""
    on_oom: OnOom = "retry"
    """Out of memory: retry goes on with less on the device, at last in tiles; fail forbids what changes pixels."""
    source_cache_gb: float = 100.0
    """GB of fetched sources kept in work_dir; those unused for longest go first, never one in use."""

    def __post_init__(self) -> None:
        if self.devices not in ("auto", "cpu", "all") and not all(d.isdigit() for d in self.devices.split(",")):
            raise UserError(f"devices {self.devices!r} is not auto, cpu, all or GPU numbers such as 0,2")
        _one_of("runner", self.runner, get_args(Runner))
        for name, choices in (("tiled_vae", Switch), ("offload", Offload), ("on_oom", OnOom)):
            _one_of(name, getattr(self, name), get_args(choices))
        if self.unload_dit and self.offload == "none":
            raise UserError("--unload-dit and --offload none contradict each other; give one of them")
        if self.memory_limit is not None:
            parse_bytes(self.memory_limit)
        if self.workers != "auto":
            _within("workers", self.workers, 1, 1024)
        if self.cluster is not None and self.runner not in CLUSTERS:
            raise UserError(f"cluster {self.cluster!r} needs --runner dask or --runner ray, not {self.runner}")
        _within("source_cache_gb", self.source_cache_gb, 0.0, 1e6)


def _one_of(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name} {value!r} is not known; choose one of {', '.join(map(str, choices))}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{name} {value} is out of range; allowed are {low} to {high}")
