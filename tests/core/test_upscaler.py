"""The streaming loop: lengths, sizes, cuts and segments, with the model's own modules on formula weights."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from flashvsr_core.config import UpscaleParams
from flashvsr_core.errors import FlashvsrError, UserError
from flashvsr_core.run import _finite
from flashvsr_core.upscaler import Upscaler
from flashvsr_core.weights import Weights, embedded_weights
from tests.core.formula import formula_weights
from tests.core.formula import moving_clip as clip

PARAMS = UpscaleParams(scale=2, color_fix="none", preroll=0, local_range=3)


@pytest.fixture(scope="session")
def weights() -> Weights:
    return formula_weights()


def run(upscaler: Upscaler, frames: np.ndarray, **options: object) -> np.ndarray:
    return np.concatenate(list(upscaler.stream(iter([frames]), **options)))  # type: ignore[arg-type]


@pytest.mark.parametrize("frames", [1, 2, 20, 21, 22, 25, 29, 100])
def test_every_length_gives_its_own_frame_count(weights: Weights, frames: int) -> None:
    out = run(Upscaler.load(weights, PARAMS), clip(frames, 8, 8))
    assert out.shape == (frames, 16, 16, 3)


@pytest.mark.parametrize(("height", "width"), [(43, 77), (100, 40), (64, 64), (1, 1), (3, 130)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_no_pixel_is_lost(weights: Weights, height: int, width: int, scale: int) -> None:
    out = run(Upscaler.load(weights, replace(PARAMS, scale=scale)), clip(1, height, width))  # type: ignore[arg-type]
    assert out.shape == (1, height * scale, width * scale, 3)


def test_chunking_of_the_input_does_not_matter(weights: Weights) -> None:
    upscaler = Upscaler.load(weights, PARAMS)
    frames = clip(40)
    pieces = (frames[i : i + 3] for i in range(0, 40, 3))
    assert np.array_equal(np.concatenate(list(upscaler.stream(pieces))), run(upscaler, frames))


def test_one_upscaler_serves_streams_that_run_side_by_side(weights: Weights) -> None:
    upscaler = Upscaler.load(weights, PARAMS)
    first, second = clip(40), clip(40, scene=1)
    alone = run(upscaler, first), run(upscaler, second)
    together = zip(upscaler.stream(iter([first])), upscaler.stream(iter([second])))
    left, right = (np.concatenate(parts) for parts in zip(*together))
    assert np.array_equal(left, alone[0])
    assert np.array_equal(right, alone[1])


# In Triton's interpreter the kernels do the same in two minutes each.
@pytest.mark.parametrize(
    ("attention", "device"),
    [("torch", "cpu"), *(pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in ("triton", "int8"))],
)
def test_what_was_upscaled_before_does_not_matter(weights: Weights, attention: str, device: str) -> None:
    """Same frames, same result, whatever the process did before: other pictures, another size, the same again."""
    params = replace(PARAMS, attention=attention, scenes="off")  # type: ignore[arg-type]
    frames = clip(25)
    fresh = run(Upscaler.load(weights, params, device), frames)
    used = Upscaler.load(weights, params, device)
    run(used, clip(33, scene=1))
    run(used, clip(2, 8, 80))
    assert np.array_equal(run(used, frames), fresh)
    assert np.array_equal(run(used, frames), fresh)


def test_a_cut_starts_a_stream_that_knows_nothing_of_the_past(weights: Weights) -> None:
    upscaler = Upscaler.load(weights, replace(PARAMS, scenes=(19,)))
    later = clip(24, scene=1)
    one = run(upscaler, np.concatenate([clip(19), later]))
    other = run(upscaler, np.concatenate([clip(19, scene=2), later]))
    assert np.array_equal(one[19:], other[19:])
    assert not np.array_equal(one[:19], other[:19])


def test_frames_before_a_cut_do_not_see_what_follows(weights: Weights) -> None:
    upscaler = Upscaler.load(weights, replace(PARAMS, scenes=(19,)))
    alone = run(Upscaler.load(weights, PARAMS), clip(19))
    assert np.array_equal(run(upscaler, np.concatenate([clip(19), clip(24, scene=1)]))[:19], alone)


@pytest.mark.parametrize("scenes", [(30,), (32,), "auto"])
def test_segments_that_start_at_a_cut_are_identical_to_the_uncut_stream(weights: Weights, scenes: object) -> None:
    upscaler = Upscaler.load(weights, replace(PARAMS, scenes=scenes, preroll=8))  # type: ignore[arg-type]
    frames = np.concatenate([clip(32 if scenes == (32,) else 30), clip(34, scene=1)])
    whole = run(upscaler, frames)
    context = 24  # as a worker reads: pre-roll and context before the segment
    cut = run(upscaler, frames[32 - context :], first=32 - context, emit=(32, 56))
    assert np.array_equal(cut, whole[32:56])


def test_a_segment_without_preroll_differs(weights: Weights) -> None:
    """Guards the tests above: history does reach over the border, so equality there means something."""
    upscaler = Upscaler.load(weights, PARAMS)
    frames = clip(64)
    assert not np.array_equal(run(upscaler, frames[32:], first=32, emit=(32, 48)), run(upscaler, frames)[32:48])


def test_reads_no_further_than_it_needs(weights: Weights) -> None:
    read = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal read
        for frame in clip(80):
            read += 1
            yield frame[None]

    upscaler = Upscaler.load(weights, replace(PARAMS, scenes="off"))
    out = np.concatenate(list(upscaler.stream(source(), emit=(0, 24))))
    assert len(out) == 24
    assert read == 33  # 25 + 8: the step that emits frame 23 reads up to frame 32


def test_seed_and_parameters_change_pixels(weights: Weights) -> None:
    frames = clip(25, 96, 128)  # several windows, so that the mask has something to choose
    base = run(Upscaler.load(weights, PARAMS), frames)
    for change in (
        {"seed": 1},
        {"sparse_ratio": 0.1},
        {"local_range": 1},
        {"color_fix": "adain"},
        {"color_fix": "wavelet"},
    ):
        assert not np.array_equal(run(Upscaler.load(weights, replace(PARAMS, **change)), frames), base), change  # type: ignore[arg-type]


def test_kv_ratio_changes_pixels(weights: Weights) -> None:
    base = run(Upscaler.load(weights, PARAMS), clip(60))
    assert not np.array_equal(run(Upscaler.load(weights, replace(PARAMS, kv_ratio=1.0)), clip(60)), base)


def test_sixteen_bit_frames_keep_their_depth(weights: Weights) -> None:
    out = run(Upscaler.load(weights, PARAMS), clip(5, dtype=np.uint16))
    assert out.dtype == np.uint16
    eight = run(Upscaler.load(weights, PARAMS), clip(5))
    assert np.abs(out / 257.0 - eight).max() < 4  # the same picture at another depth


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions_agree_with_fp32(weights: Weights, precision: str) -> None:
    base = run(Upscaler.load(weights, PARAMS), clip(29)).astype(float)
    half = run(Upscaler.load(weights, replace(PARAMS, precision=precision)), clip(29))  # type: ignore[arg-type]
    error = np.square(half - base).mean()
    assert 0 < error < 255**2 / 10**4.5  # 45 dB


def test_nan_is_an_error_that_names_the_frame() -> None:
    broken = Upscaler.load(formula_weights(), PARAMS)  # its own copy: it is about to be damaged
    broken.net.decode.decoder[26].bias.data.fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(FlashvsrError, match=r"frame 0 .*NaN"):
        run(broken, clip(5))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_number_makes_its_frame_bad_and_no_other(value: float) -> None:
    frames = torch.zeros(4, 3, 6, 5)
    frames[2, 1, 3, 4] = value
    assert _finite(frames).tolist() == [True, True, False, True]


def test_weights_with_nan_are_refused_by_name(weights: Weights) -> None:
    bad = dict(weights.dit) | {"head.head.bias": torch.full_like(weights.dit["head.head.bias"], float("nan"))}
    with pytest.raises(UserError, match=r"head\.head\.bias"):
        Upscaler.load(replace(weights, dit=bad), PARAMS)


def test_no_frames_is_an_error(weights: Weights) -> None:
    with pytest.raises(UserError, match="no frames"):
        run(Upscaler.load(weights, PARAMS), np.zeros((0, 8, 8, 3), np.uint8))


def test_embedded_model_loads_and_keeps_the_size() -> None:
    out = run(Upscaler.load(embedded_weights(), UpscaleParams()), clip(2, 24, 40))
    assert out.shape == (2, 96, 160, 3)
