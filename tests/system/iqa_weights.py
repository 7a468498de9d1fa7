"""Random weights of MUSIQ and CLIP's ResNet-50 in the shapes, names and formats of the published files.

Run as `python tests/system/iqa_weights.py HUB` where pyiqa is installed.
"""

import sys
from pathlib import Path

import torch
from pyiqa.archs.clip_model import CLIP, convert_weights
from pyiqa.archs.musiq_arch import MUSIQ

# Width of the common space, picture size, blocks a stage, width, patch (none), words of a text, vocabulary, and of the
# text's transformer width, heads and layers.
RN50 = (1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12)


def archive(tensors: dict[str, torch.Tensor]) -> torch.jit.ScriptModule:
    """A TorchScript archive that holds tensors under dotted names; it cannot compute, and pyiqa does not ask it to."""
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        holder = root
        for part in path:
            if part not in dict(holder.named_children()):
                holder.add_module(part, torch.nn.Module())
            holder = holder.get_submodule(part)
        holder.register_buffer(leaf, tensor)
    return torch.jit.script(root)


def write(hub: Path) -> None:
    torch.manual_seed(1)
    for folder in ("pyiqa", "clip"):
        (hub / folder).mkdir(parents=True)
    torch.save(MUSIQ(pretrained=False).state_dict(), hub / "pyiqa" / "musiq_koniq_ckpt-e95806b9.pth")
    clip = CLIP(*RN50)
    convert_weights(clip)
    numbers = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    constants = {name: torch.tensor(value) for name, value in numbers.items()}
    archive(clip.state_dict() | constants).save(str(hub / "clip" / "RN50.pt"))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
