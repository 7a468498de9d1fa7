"""Train `nano`: python -m flashvsr_core.training.train --cache /tmp/cache --out /tmp/nano --minutes 9

A run may be cut into calls: `--minutes` bounds this call, `--total` plans the whole, `--resume` goes on from `--out`.
`--start FILE` begins a new run with the values of an exported model; with `--resume` only where `--out` is empty.
"""

import argparse
import json
import logging
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashvsr_core.registry import ModelSpec
from flashvsr_core.training.data import Bank, Batch, Feeder, Mix
from flashvsr_core.training.export import save_export, spec_of
from flashvsr_core.training.initial import LATENT_STD, initialise
from flashvsr_core.training.recipe import Recipe, load_recipe
from flashvsr_core.training.unroll import Model, Window, unroll

log = logging.getLogger(__name__)

_LUMA = (0.299, 0.587, 0.114)
# Latents are much larger than 1. At the plain rate the decoder's first layer would be swamped by its first step, and
# the layer that makes latents would hardly move.
_SCALES = {"tcdecoder.decoder.1.weight": 1 / LATENT_STD, "dit.head.head.weight": 4.0}
_SAVE_EVERY = 60  # seconds
_REWARM = 40  # iterations of rising rate after a resume from a checkpoint without moments
_RELEASED = (0.8, 0.95)  # shares of the time between which the detail stops being withheld from any clip
_ADDED = ("tcdecoder.detail.", "tcdecoder.gate.")  # layers that `start` can add: zeros there change nothing at first


class Trainer:
    """One run: model, its running average, optimiser and how far it has come."""

    def __init__(
        self, recipe: Recipe, spec: ModelSpec, bank: Bank, device: torch.device, total: float, fit: bool = True
    ) -> None:
        """`fit`: begin as a linear filter fitted to clips of the bank; without it `resume` or `start` must follow."""
        self.recipe, self.spec, self.bank, self.device = recipe, spec, bank, device
        self.total = total  # seconds planned for the whole run
        self.iteration, self.spent = 0, 0.0
        self.waited = 0.0  # seconds, for data
        self.rewarm = 0
        self.mix = Mix(recipe.film, recipe.soft)
        self._seed()
        self.model = Model(spec).to(device)
        if fit:
            initialise(self.model, *bank.draw_plain(self.draws, recipe.first, 25, min(recipe.sizes)))
        self.feeder = Feeder(self._draw, device)
        self.model.tcdecoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self._groups(), betas=recipe.betas, weight_decay=recipe.decay, fused=device.type == "cuda"
        )

    def _groups(self) -> list[dict[str, object]]:
        groups: dict[float, list[Tensor]] = {}
        for name, parameter in self.model.named_parameters():
            inputs = parameter[0].numel() if parameter.dim() > 1 else 1
            scale = min(1.0, self.recipe.fan_in / inputs)
            scale *= _SCALES.get(name, 1.0)
            groups.setdefault(scale, []).append(parameter)
        return [{"params": parameters, "scale": scale} for scale, parameters in groups.items()]

    @property
    def progress(self) -> float:
        return min(1.0, self.spent / self.total)

    def _seed(self) -> None:
        """Generators of the loop and of the data, which are drawn in another thread."""
        self.rng, self.draws = (np.random.default_rng([self.recipe.seed, self.iteration, i]) for i in range(2))
        torch.manual_seed(self.recipe.seed + self.iteration)

    def _draw(self) -> Batch:
        sizes = self.recipe.sizes
        size = int(self.draws.choice(sizes))
        batch = max(1, round(self.recipe.batch * (min(sizes) / size) ** 2))
        return self.bank.draw(self.draws, batch, self.recipe.frames, size, self.mix)

    def iterate(self) -> float:
        """One iteration; returns the loss."""
        recipe = self.recipe
        began = time.monotonic()
        condition, truth = self.feeder.next()
        self.waited += time.monotonic() - began
        withheld, clips = self._withheld(), len(condition)
        self.model.tcdecoder.keep = (torch.rand(clips, device=self.device) >= withheld).float() if withheld else None
        share = 1.0 if self.rng.random() < 0.5 else float(self.rng.uniform(*recipe.sparse_share))
        window = Window(kv_ratio=3, local_range=11, share=share)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            decoded = unroll(self.model, condition, window, first_latent=2 * int(self.rng.integers(500)))
        loss = self._loss(decoded.float(), truth[:, :, : decoded.shape[2]])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimizer.step()
        self._average()
        self.iteration += 1
        return float(loss.detach()) if self.iteration % 50 == 0 else 0.0

    def _withheld(self) -> float:
        """Share of clips whose detail injection is withheld now, so that the decoder learns to need the latents."""
        alone, mixed = self.recipe.alone, self.recipe.mixed
        early = np.interp(self.progress, (alone, mixed), (1.0, 0.0)) if mixed else 0.0
        return float(max(early, np.interp(self.progress, _RELEASED, (self.recipe.withheld, 0.0))))

    def _rate(self) -> float:
        rising = min(1.0, (self.iteration + 1) / self.recipe.warmup, (self.iteration - self.rewarm + 1) / _REWARM)
        return self.recipe.lr * rising * (0.01 + 0.99 * (1 + math.cos(math.pi * self.progress)) / 2)

    def _loss(self, decoded: Tensor, truth: Tensor) -> Tensor:
        """Mean over clips of the log of mean squared errors (so PSNR itself): luma, colour, luma's change."""
        error = decoded - truth
        luma = torch.einsum("bcthw,c->bthw", error, error.new_tensor(_LUMA))
        floor = self.recipe.floor
        spatial = 0.8 * luma.square().mean(dim=(1, 2, 3)) + 0.2 * error.square().mean(dim=(1, 2, 3, 4))
        change = luma.diff(dim=1).square().mean(dim=(1, 2, 3))
        return ((spatial + floor).log() + self.recipe.temporal * (change + floor).log()).mean()

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.recipe.average, (self.iteration + 1) / (self.iteration + 10))
        state = self.model.state_dict()
        torch._foreach_lerp_(list(self.average.values()), list(state.values()), 1 - keep)

    def run(self, seconds: float, out: Path) -> None:
        """Train until `seconds` of this call or the planned time are over; checkpoints go to `out`."""
        began, before, first = time.monotonic(), self.spent, self.iteration
        saved = before
        while self.spent < min(self.total, before + seconds):
            loss = self.iterate()
            self.spent = before + time.monotonic() - began
            if self.iteration % 100 == 0:
                log.info("%5.0f s  iteration %d  loss %.4f  %.2f/s  waited %.0f s", self.spent, self.iteration, loss,
                         (self.iteration - first) / max(1e-9, self.spent - before), self.waited)  # fmt: skip
            if self.spent - saved > _SAVE_EVERY:
                saved = self.spent
                self.save(out)
        self.save(out)

    def save(self, folder: Path) -> None:
        """Checkpoint in half precision, small enough to travel: weights, average, progress; and the exported model.

        Beside it state.pt, in full precision and with the optimiser's moments, for a call on the same machine.
        """
        folder.mkdir(parents=True, exist_ok=True)
        parts = {"model": self.model.state_dict(), "average": self.average, "optimizer": self.optimizer.state_dict()}
        torch.save(parts | {"iteration": self.iteration, "spent": self.spent}, folder / "state.tmp")
        (folder / "state.tmp").replace(folder / "state.pt")
        for name, state in (("weights", self.model.state_dict()), ("average", self.average)):
            save_file(
                {k: v.detach().half().cpu().contiguous() for k, v in state.items()}, folder / f"{name}.safetensors"
            )
        (folder / "progress.json").write_text(json.dumps({"iteration": self.iteration, "spent": self.spent}))
        about = {
            "recipe": json.dumps(vars(self.recipe)),
            "iterations": str(self.iteration),
            "seconds": f"{self.spent:.0f}",
        }
        save_export(folder / "nano.safetensors", self.average, self.spec, about)

    def resume(self, folder: Path) -> None:
        """Go on from what `save` left: from state.pt if it is there, else from the checkpoint that travels."""
        state = folder / "state.pt"
        if state.exists():
            progress = torch.load(state, map_location=self.device, weights_only=True)
            weights, average = progress["model"], progress["average"]
            self.optimizer.load_state_dict(progress["optimizer"])
        else:
            progress = json.loads((folder / "progress.json").read_text())
            weights, average = (load_file(folder / f"{name}.safetensors") for name in ("weights", "average"))
            self.rewarm = progress["iteration"]
        self.model.load_state_dict(weights)
        self.average = {key: average[key].to(self.device, value.dtype) for key, value in self.average.items()}
        self.iteration, self.spent = progress["iteration"], progress["spent"]
        self._seed()

    def start(self, file: Path) -> None:
        """Begin with the values of an exported model. Its decoder may lack detail injection and gate, which begin as
        zeros and change nothing; ValueError where its spec differs otherwise, or it lacks or has other tensors.
        """
        found = spec_of(file)
        wanted = self.spec.tcdecoder
        grown = replace(found.tcdecoder, detail=wanted.detail, gate=wanted.gate, shares=wanted.shares)
        if replace(found, tcdecoder=grown) != self.spec:
            raise ValueError(f"{file} has the spec {found}, this run {self.spec}; give --recipe with the file's spec")
        state, given = self.model.state_dict(), load_file(file)
        added = {key: torch.zeros_like(value) for key, value in state.items() if key.startswith(_ADDED)}
        odd = sorted((state.keys() - added.keys() - given.keys()) | (given.keys() - state.keys()))
        if odd:
            raise ValueError(f"{file} and this run do not both have {', '.join(odd)}; give --recipe with its spec")
        self.model.load_state_dict(added | given)
        self.average = {key: value.detach().clone() for key, value in self.model.state_dict().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="made by scripts/prepare_training_data.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and of nano.safetensors")
    parser.add_argument("--minutes", type=float, required=True, help="of this call")
    parser.add_argument("--deadline", type=float, help="seconds after which this call ends too, loading data included")
    parser.add_argument("--total", type=float, help="minutes planned for all calls; default: this call")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--start", type=Path, help="an exported model whose values this run begins with")
    parser.add_argument("--done", type=float, default=0.0, help="minutes of --total that --start's file has behind it")
    parser.add_argument("--recipe", type=Path, help="JSON that changes the recipe or the spec")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options, began = parser.parse_args(), time.monotonic()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True  # few shapes, seen thousands of times
    device = torch.device(options.device)
    recipe, spec = load_recipe(options.recipe)
    if options.start:  # its decoder has learned to need the latents
        recipe = replace(recipe, alone=0.0, mixed=0.0)
    resumes = options.resume and not (options.start and not (options.out / "progress.json").exists())
    bank, total = Bank(options.cache, device), 60 * (options.total or options.minutes)
    trainer = Trainer(recipe, spec, bank, device, total, fit=not (resumes or options.start))
    if resumes:
        trainer.resume(options.out)
    elif options.start:
        trainer.start(options.start)
        trainer.spent = 60 * options.done
    log.info("%.2fM parameters, from iteration %d, %.0f of %.0f s", sum(p.numel() for p in trainer.model.parameters())
             / 1e6, trainer.iteration, trainer.spent, total)  # fmt: skip
    left = options.deadline - (time.monotonic() - began) if options.deadline else math.inf
    trainer.run(min(60 * options.minutes, left), options.out)


if __name__ == "__main__":
    main()
