"""Training of a translator between the domains: model/translator.py's losses, weighed, in a run folder like a stage's.

Only images of the target are read. Which images an update sees, and which part of them, is a function of seed and
number of the update, so that a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tomli_w
import torch
from torch import Tensor

from dataset.corpora import Sample, number_of
from dataset.labels import ClassTable
from model.translator import CycleGAN, Segmenter, to_unit
from model.weight_files import first_line
from utils import datasets, networks, quick_check
from utils.checkpoint import CheckpointError, load_last, require_keys, restore_rng, rng_state, save_last
from utils.config import Config, ConfigError, CycleGANSettings, Stage
from utils.console import say
from utils.engine import Losses, Pair, Rates, fit, frozen, fuses
from utils.files import atomic_write, names_and_sizes
from utils.flags import Options
from utils.interrupts import Request, exit_code, postponed
from utils.json_files import plain
from utils.lock import only_one
from utils.log import RunLog
from utils.manifest import write_manifest
from utils.nonfinite import NonFiniteError, is_finite
from utils.resume import has_state
from utils.run_files import CONFIG, LAST, MANIFEST
from utils.runtime import autocast, loss_scaler, peak_memory_mb, pick_device, seed_everything, tune_kernels

_CROPS = 2  # the stream of the draws of crops, beside those of the two domains' order


@dataclass
class TranslatorState:
    """Everything an interrupted training needs to go on as if nothing had happened."""

    method: CycleGAN
    optimizer: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0

    @classmethod
    def fresh(cls, settings: CycleGANSettings, *, device: torch.device, precision: str) -> TranslatorState:
        """State before the first update; weights are torch's random numbers, the optimisers the paper's."""
        method = CycleGAN(
            width=settings.width,
            blocks=settings.blocks,
            discriminator_width=settings.discriminator_width,
            pool=settings.pool,
            crop=settings.crop,
        ).to(device)
        adam = partial(torch.optim.Adam, lr=settings.learning_rate, betas=(0.5, 0.999), fused=fuses(device))
        return cls(
            method, adam(method.generators()), adam(method.judges().parameters()), loss_scaler(device, precision)
        )

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.method.parameters()).device

    def state_dict(self) -> dict[str, Any]:
        """One dict of plain values and tensors; the pools of images are buffers of the method."""
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": rng_state(),
            "step": self.step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it; a missing key is an error."""
        require_keys(state, [*self.state_dict(), "format", "meta"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.optimizer_d.load_state_dict(state["optimizer_d"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        restore_rng(state["rng"])


# ---- one update ----


def train_step(
    state: TranslatorState,
    settings: CycleGANSettings,
    source: Tensor,
    target: Tensor,
    *,
    segment: Segmenter | None,
    precision: str,
) -> Losses:
    """One update of generators and discriminators from source and target images (B, 3, H, W) within -1..1.

    Returns every computed loss, unweighted and detached.
    """
    method, device = state.method, state.device
    state.optimizer.zero_grad(set_to_none=True)
    state.optimizer_d.zero_grad(set_to_none=True)
    with frozen(method.judges()), autocast(device, precision):
        losses, *fakes = method.generator_losses(source, target, identity=settings.lambda_identity > 0, segment=segment)
    weights = {
        "adv": 1.0,
        "cycle": settings.lambda_cycle,
        "identity": settings.lambda_identity,
        "semantic": settings.lambda_semantic,
    }
    state.scaler.scale(torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()).backward()
    with autocast(device, precision):
        judged = method.discriminator_losses(source, target, *(fake.detach().float() for fake in fakes))
    state.scaler.scale(torch.stack(list(judged.values())).sum()).backward()
    state.scaler.step(state.optimizer)
    state.scaler.step(state.optimizer_d)
    state.scaler.update()
    return {name: loss.detach() for name, loss in {**losses, **judged}.items()}


def crops(images: Tensor, size: tuple[int, int], rng: np.random.Generator, *, mirror: bool) -> Tensor:
    """(B, 3, H, W) -> a part of `size` (W, H) of each at a random place, and if `mirror` half of them mirrored."""
    parts = []
    for image in images:
        across, down, flip = rng.random(3)
        left = int(across * (image.shape[-1] - size[0] + 1))
        top = int(down * (image.shape[-2] - size[1] + 1))
        part = image[:, top : top + size[1], left : left + size[0]]
        parts.append(part.flip(-1) if mirror and flip < 0.5 else part)
    return torch.stack(parts)


def update(
    state: TranslatorState,
    settings: CycleGANSettings,
    batches: Sequence[Pair],
    *,
    seed: int,
    segment: Segmenter | None,
    precision: str,
) -> tuple[Losses, Rates]:
    """One update on random parts of a pair of batches, at the learning rate of its place in the training."""
    ((source, target),) = batches
    rate = learning_rate(settings, state.step)
    for group in (*state.optimizer.param_groups, *state.optimizer_d.param_groups):
        group["lr"] = rate
    rng = np.random.default_rng([seed, _CROPS, state.step])
    parts = [
        to_unit(crops(batch.images, settings.crop, rng, mirror=settings.random_mirror)) for batch in (source, target)
    ]
    return train_step(state, settings, *parts, segment=segment, precision=precision), {"learning_rate": rate}


def learning_rate(settings: CycleGANSettings, step: int) -> float:
    """Constant for the first half of the updates, then falling to 0 in a line."""
    return settings.learning_rate * min(1.0, 2 * (1 - step / settings.num_steps))


def segmenter(config: Config, classes: ClassTable, device: torch.device) -> Segmenter | None:
    """The frozen network of the semantic loss as a function of images within -1..1, None where its weight is 0."""
    settings = config.cyclegan
    if settings.lambda_semantic == 0:
        return None
    if not settings.segmenter:
        raise ConfigError(
            "[cyclegan] lambda_semantic needs a network that knows the source: --segmenter RUN, such as the folder of a"
            " source-only train_step1.py; or set lambda_semantic = 0"
        )
    network, normalize, _, report = networks.trained_network(settings.segmenter, config, classes, device)
    for line in report.lines:
        say(f"segmenter: {line}")
    network.requires_grad_(False)
    return lambda images: network(normalize((images.float() + 1) * 127.5)).logits


# ---- the run ----


def trained_translator(config: Config, options: Options, classes: ClassTable) -> CycleGAN:
    """The translator in `[cyclegan] snapshot_dir`, trained first, or to its end, where it is not.

    Raises ConfigError where that was not asked for, and CheckpointError for a translator of another shape.
    """
    config = _with_fitting_crop(config)
    settings, device = config.cyclegan, pick_device(config.run.device)
    folder = Path(settings.snapshot_dir)
    saved = load_last(folder) if (folder / LAST).exists() else None
    if saved and saved["step"] >= settings.num_steps:
        state = _state(config, device, saved)
        images = (
            datasets.samples_of(datasets.corpus(config, "source", classes), "train", labelled=True),
            datasets.corpus(config, "target", classes).samples(config.step1.split, labelled=False),
        )
        for domain in _other_images(saved["meta"], _images(*images)):
            say(f"note: {folder / LAST} was trained on other images of the {domain} (by their names and sizes)")
        say(f"translator: {folder / LAST}, trained with {state.step} updates")
    else:
        _check_intent(folder, options, step=saved["step"] if saved else None)
        with only_one(folder, "wait for it, or choose another --snapshot-dir"):
            state = _train(config, classes, device, saved)
    return state.method.eval()


def _with_fitting_crop(config: Config) -> Config:
    """The configuration with a crop that lies in the images of both domains; says where it had to be made smaller."""
    sizes = [datasets.input_size(config, domain) for domain in ("source", "target")]
    asked = config.cyclegan.crop
    crop = min(asked[0], *(width for width, _ in sizes)), min(asked[1], *(height for _, height in sizes))
    if crop != asked:
        say(f"note: [cyclegan] crop = {list(asked)} is larger than the images; it is {list(crop)}")
    return dataclasses.replace(config, cyclegan=dataclasses.replace(config.cyclegan, crop=crop))


def _check_intent(folder: Path, options: Options, *, step: int | None) -> None:
    """A training is neither begun anew nor gone on with unless that is asked for."""
    if options.continue_train:
        has_state(folder)
    elif step is not None:
        raise ConfigError(
            f"{folder} holds a translator of {step} updates only: add --continue-train to go on with it, choose "
            f"another --snapshot-dir, or set --num-steps {step} to take it as it is"
        )


def _state(config: Config, device: torch.device, saved: Mapping[str, Any] | None) -> TranslatorState:
    """A new state, or the saved one; says which settings differ from those it was trained with."""
    seed_everything(config.run.seed)
    state = TranslatorState.fresh(config.cyclegan, device=device, precision=config.run.precision)
    if saved is None:
        return state
    folder = Path(config.cyclegan.snapshot_dir)
    try:
        state.load_state_dict(saved)
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{folder / LAST} does not fit this configuration ({first_line(str(error))}); continue with the settings "
            f"in {folder / CONFIG}, or choose another --snapshot-dir"
        ) from None
    trained, asked = saved["meta"]["settings"], plain(dataclasses.asdict(config.cyclegan))
    for key in asked:
        if key != "snapshot_dir" and trained.get(key) != asked[key]:
            say(f"note: differs from the training so far: [cyclegan] {key}: {trained.get(key)} -> {asked[key]}")
    seed = saved["meta"].get("seed", config.run.seed)
    if seed != config.run.seed:
        say(f"note: differs from the training so far: [run] seed: {seed} -> {config.run.seed}")
    return state


def _images(source: Sequence[Sample], target: Sequence[Sample]) -> dict[str, str]:
    """Which images a translator is trained on, by their names, sizes and order."""
    sides = {"source": source, "target": target}
    return {domain: names_and_sizes(sample.image for sample in samples) for domain, samples in sides.items()}


def _other_images(meta: Mapping[str, Any], images: Mapping[str, str]) -> list[str]:
    """The domains of which a saved training saw other images, as far as it says so."""
    return [domain for domain, files in meta.get("images", {}).items() if files != images[domain]]


def _check_stream(config: Config, meta: Mapping[str, Any], images: Mapping[str, str]) -> None:
    """Raises ConfigError where a training that goes on would see images twice or never."""
    reasons = [f"other images of the {domain} (their names, sizes or order)" for domain in _other_images(meta, images)]
    before, now = meta["settings"]["batch_size"], config.cyclegan.batch_size
    reasons += [f"batch_size: {before} -> {now}"] if before != now else []
    if reasons:
        folder = Path(config.cyclegan.snapshot_dir)
        raise ConfigError(
            f"{folder / LAST} cannot go on: {'; '.join(reasons)}, so images would come twice or never; continue with "
            f"the settings in {folder / CONFIG}, or choose another --snapshot-dir"
        )


def _train(
    config: Config, classes: ClassTable, device: torch.device, saved: Mapping[str, Any] | None
) -> TranslatorState:
    """Train from the saved state, or from the beginning, to the last update."""
    settings, precision = config.cyclegan, config.run.precision
    stage = Stage(batch_size=settings.batch_size, num_steps=settings.num_steps, split=config.step1.split)
    source = datasets.source_dataset(config, stage, classes)
    target = datasets.target_dataset(config, stage, classes)
    quick_check.check_data(config, stage, source=source, target=target, validation=None)
    tune_kernels(device)
    segment = segmenter(config, classes, device)
    state = _state(config, device, saved)  # last: the random numbers are as they were
    images = _images(source.samples, target.samples)
    if saved:
        _check_stream(config, saved["meta"], images)
    folder = Path(settings.snapshot_dir)
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_bytes(tomli_w.dumps(config.to_dict()).encode())
    counts = f"{number_of(len(source), 'source image')}, {number_of(len(target), 'target image')}"
    say(f"translator: trained on {counts}, after {state.step} updates; run folder {folder}")
    with RunLog(
        folder,
        tensorboard=config.run.tensorboard,
        resume_step=state.step if saved else None,
        board_folder=config.run.log_dir or None,
    ) as log:
        run = TranslatorRun(config=config, state=state, log=log, images=images)
        run.began -= saved["meta"]["seconds"] if saved else 0.0
        with postponed() as run.request:
            batches = datasets.training_pairs(config, stage, source, target, start=state.step)
            learn = partial(update, state, settings, seed=config.run.seed, segment=segment, precision=precision)
            fit(state, settings, batches, learn, on_update=run.update, on_snapshot=run.snapshot)
    run.finish({"source": len(source), "target": len(target), "segmenter": settings.segmenter})
    return state


@dataclass(kw_only=True)
class TranslatorRun:
    """What a training leaves in its folder: log, resumable state, manifest."""

    config: Config
    state: TranslatorState
    log: RunLog
    images: Mapping[str, str]
    request: Request = field(default_factory=Request)
    began: float = field(default_factory=time.monotonic)
    losses: dict[str, float] = field(default_factory=dict)

    def update(self, batches: Sequence[Pair], losses: Losses, rates: Rates) -> str:
        """Log an update now and then; stop at a loss that is no number, in any case before it is saved. Save and end
        the process where that was asked for."""
        step = self.state.step
        logged, saved = step % self.config.run.log_every == 0, self.config.cyclegan.saves_after(step)
        if not (logged or saved or self.request.signal):
            return ""
        values = torch.stack(list(losses.values())).tolist()
        self.losses = {f"loss/{name}": value for name, value in zip(losses, values, strict=True)}
        broken = [name for name, value in self.losses.items() if not math.isfinite(value)]
        if broken:
            images = ", ".join(name for pair in batches for side in pair for name in side.names)
            raise NonFiniteError(f"{', '.join(broken)} not finite at update {step}, images {images}")
        if logged:
            self.log.scalars(step, self.losses | rates)
        if self.request.signal and not saved:
            self.snapshot()
        return ""

    def snapshot(self) -> None:
        """Write the state to resume from; end the process if it was asked to. Raises NonFiniteError before weights are
        saved that hold what is no number."""
        if not is_finite(self.state.method):
            raise NonFiniteError(f"the translator's weights are not finite at update {self.state.step}")
        meta = {
            "settings": plain(dataclasses.asdict(self.config.cyclegan)),
            "seed": self.config.run.seed,
            "images": dict(self.images),
            "seconds": time.monotonic() - self.began,
        }
        save_last(Path(self.config.cyclegan.snapshot_dir), self.state.state_dict() | {"meta": meta})
        if self.request.signal:
            self._leave()

    def _leave(self) -> NoReturn:
        """End the process as its signal asked, after the state was saved."""
        name = signal.Signals(self.request.signal).name
        say(f"{name}: saved after update {self.state.step}; to go on: the same command with --continue-train")
        raise SystemExit(exit_code(self.request.signal))

    def finish(self, inputs: Mapping[str, Any]) -> None:
        """Write the manifest and say how it went."""
        folder, device = Path(self.config.cyclegan.snapshot_dir), self.state.device
        seconds, memory = time.monotonic() - self.began, peak_memory_mb(device)
        result = {"steps": self.state.step, "last": self.losses, "seconds": seconds, "peak_memory_mb": memory}
        write_manifest(folder / MANIFEST, {"inputs": inputs, "result": result}, device=device)
        say(f"{self.state.step} updates, {seconds:.0f} s, peak memory {memory:.0f} MiB, in {folder}")
