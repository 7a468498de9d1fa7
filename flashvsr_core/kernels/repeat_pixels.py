"""Nearest enlargement by 2 of frames that come as channels of one: what follows each growth in time in the decoder."""

from einops import rearrange
from torch import Tensor


def repeat_pixels(x: Tensor, stride: int) -> Tensor:
    """t (s c) h w -> (t s) c 2h 2w: a time step becomes `stride`, a pixel 2x2. Channels lie last in the result."""
    x = rearrange(x, "t (s c) h w -> t s h 1 w 1 c", s=stride)
    t, s, h, _, w, _, c = x.shape
    return rearrange(x.expand(t, s, h, 2, w, 2, c), "t s h p w q c -> (t s) (h p) (w q) c").permute(0, 3, 1, 2)
