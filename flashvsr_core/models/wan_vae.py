"""Wan 2.1 VAE decoder, the `full` decoder: latents become frames, one latent frame at a time.

Own module rather than a library's. Read for the choice: Wan 2.1's `wan/modules/vae.py` and the `AutoencoderKLWan`
family (diffusers' and sglang's child of it). All of them keep the feature cache in attributes of the module, clear it
when `decode()` begins and ends, and return the whole video from one call: a stream would have to reach into their
private `_feat_map`, two streams could not share the weights, and the family's keys would need a rename table. What is
left without encoder, tiling and config machinery is this file; its keys are the published ones, its memory is an
argument.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flashvsr_core.registry import VaeSpec

FRAMES_PER_LATENT = 4
_PAST = 2  # frames of its past that each convolution over time sees
_LEVELS = (4, 4, 2, 1)  # channels of the resolutions 1/8, 1/4, 1/2, 1, in units of `spec.dim`
_BLOCKS = 3  # residual blocks at each resolution
_DOUBLES_TIME = (True, True, False)  # which of the three enlargements also doubles the frames
_TIMED = 2 * (_BLOCKS + 1)  # layers up to and with the last that doubles the frames
_REACH_UNIT = 8  # output pixels of one latent pixel
_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
         0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip

Memory = list[Tensor]


class Past:
    """What the convolutions over time remember, in the order in which they run: two frames of each one's input.

    The buffers are overwritten in place: at 1536x2560 they take 17 GiB in bf16, and two sets would not fit.
    """

    def __init__(self, memory: Memory | None) -> None:
        self.first = memory is None  # the stream's first latent frame is being decoded
        self.frames: Memory = memory or []
        self.turn = 0

    def before(self, x: Tensor) -> Tensor:
        """`x` (B T C H W) with two frames of its past in front: zeros at the start of a stream."""
        if self.first:
            self._open(x)
        past = self.frames[self.turn]
        self.turn += 1
        x = torch.cat([past, x], dim=1)
        past.copy_(x[:, -_PAST:])
        return x

    def skip(self, x: Tensor) -> None:
        """The convolution whose turn it is does not see `x`; its past stays empty."""
        self._open(x)
        self.turn += 1

    def _open(self, x: Tensor) -> None:
        self.frames.append(x.new_zeros((x.shape[0], _PAST, *x.shape[2:])))


class Norm(nn.Module):
    """`normalize(x, dim=channels) * sqrt(C) * gamma` for tensors ... C H W; gamma has `axes` more dimensions."""

    def __init__(self, channels: int, axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * axes))

    def forward(self, x: Tensor) -> Tensor:
        # In place where the result is nobody else's: tensors of the last resolution take gigabytes.
        return F.normalize(x, dim=-3).mul_(self.gamma.view(-1, 1, 1) * x.shape[-3] ** 0.5)


class CausalConv(nn.Conv3d):
    """3x3x3 or 3x1x1 convolution whose window in time ends at the frame itself.

    Run frame by frame, as a 2-D convolution over the channels of three frames: the same sums, but in this layout three
    frames are one view, and no scratch memory for all frames at once is needed (tests/bench/full_size.md).
    """

    def __init__(self, inputs: int, outputs: int, size: int = 3) -> None:
        super().__init__(inputs, outputs, (3, size, size), padding=(0, size // 2, size // 2))

    def forward(self, x: Tensor, past: Past) -> Tensor:  # type: ignore[override]
        """x: B T C H W."""
        count = x.shape[1]
        x = past.before(x)
        weight = rearrange(self.weight, "o c t h w -> o (t c) h w")
        out = x.new_empty((x.shape[0], count, self.out_channels, *x.shape[3:]))
        for i in range(count):
            window = rearrange(x[:, i : i + 1 + _PAST], "b t c h w -> b (t c) h w")
            out[:, i] = F.conv2d(window, weight, self.bias, padding=self.padding[1:])
        return out


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            Norm(inputs), nn.SiLU(inplace=True), CausalConv(inputs, outputs),
            Norm(outputs), nn.SiLU(inplace=True), nn.Identity(), CausalConv(outputs, outputs),
        )  # fmt: skip
        self.shortcut = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        y = x
        for layer in self.residual:
            y = layer(y, past) if isinstance(layer, CausalConv) else layer(y)
        if self.shortcut is not None:
            batch, kernel = x.shape[0], self.shortcut.weight[:, :, 0]
            x = F.conv2d(rearrange(x, "b t c h w -> (b t) c h w"), kernel, self.shortcut.bias)
            x = rearrange(x, "(b t) c h w -> b t c h w", b=batch)
        return y.add_(x)


class AttentionBlock(nn.Module):
    """Self-attention with one head among the pixels of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels, axes=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        batch, height = x.shape[0], x.shape[3]
        frames = rearrange(x, "b t c h w -> (b t) c h w")
        qkv = rearrange(self.to_qkv(self.norm(frames)), "n (p c) h w -> p n 1 (h w) c", p=3)
        y = F.scaled_dot_product_attention(*qkv.contiguous().unbind(0))
        y = self.proj(rearrange(y, "n 1 (h w) c -> n c h w", h=height))
        return x + rearrange(y, "(b t) c h w -> b t c h w", b=batch)


class Enlarge(nn.Module):
    """Twice the height and width, half the channels; with `time`, also twice the frames, but for the stream's first."""

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest-exact"), nn.Conv2d(channels, channels // 2, 3, padding=1)
        )
        self.time_conv = CausalConv(channels, 2 * channels, size=1) if time else None

    def forward(self, x: Tensor, past: Past) -> Tensor:
        if self.time_conv is not None and past.first:
            past.skip(x)
        elif self.time_conv is not None:
            x = rearrange(self.time_conv(x, past), "b t (s c) h w -> b (t s) c h w", s=2)
        return torch.stack([self.resample(frame) for frame in x.unbind(1)], dim=1)


class _Decoder(nn.Module):
    def __init__(self, spec: VaeSpec) -> None:
        super().__init__()
        widths = [level * spec.dim for level in _LEVELS]
        self.conv1 = CausalConv(spec.z_dim, widths[0])
        self.middle = nn.ModuleList(
            [ResidualBlock(widths[0], widths[0]), AttentionBlock(widths[0]), ResidualBlock(widths[0], widths[0])]
        )
        layers: list[nn.Module] = []
        inputs = widths[0]
        for level, width in enumerate(widths):
            for _ in range(_BLOCKS):
                layers.append(ResidualBlock(inputs, width))
                inputs = width
            if level < len(_DOUBLES_TIME):
                layers.append(Enlarge(width, _DOUBLES_TIME[level]))
                inputs = width // 2
        self.upsamples = nn.ModuleList(layers)
        self.head = nn.Sequential(Norm(inputs), nn.SiLU(inplace=True), CausalConv(inputs, 3))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        """One latent frame, B 1 C h w -> frames B T 3 H W."""
        return self.back(self.front(x, past), past)

    def front(self, x: Tensor, past: Past) -> Tensor:
        """Up to the last layer that looks at the whole picture; B 1 C h w."""
        x = self.conv1(x, past)
        for layer in self.middle:
            x = layer(x, past)
        return x

    def back(self, x: Tensor, past: Past) -> Tensor:
        """The rest: convolutions, which look no further than `WanVaeDecoder.reach`. Returns frames B T 3 H W."""
        for layer in self.upsamples[:_TIMED]:
            x = layer(x, past)
        # From here on nothing changes the number of frames: one at a time takes a quarter of the memory.
        turn, frames = past.turn, []
        for frame in x.split(1, dim=1):
            past.turn = turn
            for layer in self.upsamples[_TIMED:]:
                frame = layer(frame, past)
            norm, activation, conv = self.head
            frames.append(conv(activation(norm(frame)), past))
        return torch.cat(frames, dim=1)


class WanVaeDecoder(nn.Module):
    """Keys as published (`decoder.*`, `conv2.*` of Wan2.1_VAE.pth). Inside, tensors are B T C H W."""

    front_memories = 5  # tensors of the memory that belong to `front`: its first convolution and two blocks of two

    def __init__(self, spec: VaeSpec) -> None:
        super().__init__()
        self.conv2 = nn.Conv3d(spec.z_dim, spec.z_dim, 1)
        self.decoder = _Decoder(spec)

    def forward(self, latents: Tensor, condition: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """latents: B 16 F h w, as the DiT leaves them; condition is not used (the other decoder's is).

        A stream's first latent frame (memory None) gives 1 frame, every other 4. Returns frames B 3 T H W, not clamped
        (they reach beyond [-1, 1]), and the memory, whose size does not depend on the length of the video; the memory
        that was passed in is overwritten.
        """
        frames, memory = _frame_by_frame(self.decoder, self._scaled(latents), memory)
        return rearrange(frames, "b t c h w -> b c t h w"), memory

    @property
    def reach(self) -> int:
        """How many output pixels away what a pixel of `back` depends on may lie, a multiple of 8."""
        convolutions = 2 * _BLOCKS + 1  # at each resolution: those of its blocks and the enlargement's, or the last one
        return _REACH_UNIT * -(-(2 * _BLOCKS * 8 + convolutions * (4 + 2 + 1) + 1) // _REACH_UNIT)

    def front(self, latents: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """The part of `forward` that must see the whole picture: B C F h w for `back`, and its own memory."""
        x, memory = _frame_by_frame(self.decoder.front, self._scaled(latents), memory)
        return rearrange(x, "b t c h w -> b c t h w"), memory

    def back(self, x: Tensor, condition: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """The rest of `forward`, which may be computed for parts of the picture; arguments likewise."""
        frames, memory = _frame_by_frame(self.decoder.back, rearrange(x, "b c t h w -> b t c h w"), memory)
        return rearrange(frames, "b t c h w -> b c t h w"), memory

    def _scaled(self, latents: Tensor) -> Tensor:
        mean, std = (latents.new_tensor(v, dtype=torch.float32)[:, None, None, None] for v in (_MEAN, _STD))
        return rearrange(self.conv2((latents * std + mean).to(latents.dtype)), "b c t h w -> b t c h w")


def _frame_by_frame(
    layers: Callable[[Tensor, Past], Tensor], x: Tensor, memory: Memory | None
) -> tuple[Tensor, Memory]:
    """`layers` on one latent frame (dim 1) after the other."""
    frames = []
    for latent in x.split(1, dim=1):
        past = Past(memory)
        frames.append(layers(latent, past))
        memory = past.frames
    assert memory is not None, "there is at least one latent frame"
    return torch.cat(frames, dim=1), memory
