"""The bench's best linear filter: it finds a filter that explains a clip, and gains nothing where none can."""

import numpy as np
import torch
import torch.nn.functional as F

from flashvsr_core.training.metrics import psnr
from tests.bench.linear import best_filter


def test_a_filter_that_explains_the_clip_is_found() -> None:
    generator = torch.Generator().manual_seed(3)
    small = torch.rand(4, 24, 32, generator=generator) * 160 + 40
    kernels = torch.randn(16, 1, 3, 3, generator=generator) * 0.1
    kernels[:, :, 1, 1] += 1 - kernels.sum(dim=(1, 2, 3))[:, None]
    padded = F.pad(small[:, None], (1,) * 4, mode="replicate")
    truth = F.pixel_shuffle(F.conv2d(padded, kernels), 4)[:, 0].clamp(0, 255)
    assert psnr(best_filter(small, truth, reach=1), truth) > 60
    assert psnr(best_filter(small, truth, reach=0), truth) < 30


def test_nothing_is_gained_on_what_cannot_be_foreseen() -> None:
    rng = np.random.default_rng(1)
    small, truth = (torch.from_numpy(rng.uniform(40, 200, (6, n, n)).astype(np.float32)) for n in (32, 128))
    flat = truth.mean().expand_as(truth)
    assert abs(psnr(best_filter(small, truth, reach=1), truth) - psnr(flat, truth)) < 0.1
