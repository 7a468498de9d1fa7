"""Figures of merit on 8-bit frames: luma PSNR and SSIM, and how well changes from frame to frame are met."""

import torch
import torch.nn.functional as F
from torch import Tensor

_BT601 = (0.299, 0.587, 0.114)


def luma(frames: Tensor) -> Tensor:
    """uint8 T H W 3 -> T H W float32, 0..255."""
    return frames.float() @ torch.tensor(_BT601, device=frames.device)


def psnr(a: Tensor, b: Tensor) -> float:
    """dB between luma clips T H W (0..255), from the mean squared error over the whole clip."""
    return float(10 * torch.log10(255**2 / (a - b).square().mean().clamp(min=1e-12)))


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean SSIM of luma clips T H W (0..255): Gaussian window 11x11, sigma 1.5, no padding (Wang et al., 2004)."""
    x = torch.arange(-5, 6, device=a.device, dtype=torch.float32)
    row = torch.exp(-x.square() / (2 * 1.5**2))
    row = (row / row.sum())[None, None, None]
    values = [_ssim(p[:, None], q[:, None], row) for p, q in zip(a.split(8), b.split(8))]
    return float(torch.cat(values).mean())


def _ssim(a: Tensor, b: Tensor, row: Tensor) -> Tensor:
    mean = lambda z: F.conv2d(F.conv2d(z, row), row.transpose(2, 3))  # noqa: E731
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    score = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return score.mean(dim=(1, 2, 3))


def difference_error(a: Tensor, b: Tensor) -> float:
    """Mean absolute error of frame-to-frame differences of luma clips T H W, in levels."""
    return float((a.diff(dim=0) - b.diff(dim=0)).abs().mean())
