"""The method: networks and banks under one roof, and every loss by name.

`BAFFT` never calls backward and never steps an optimiser. Two verbs change its state: `observe_source` fills the
banks, `observe_target` moves AIM's weights. Everything else is a pure function of the tensors it is given, and returns
named losses that the engine weighs (spec 3.5).

Geometry: B batch, C classes, D channels, H W input size, h w feature grid, R regions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import aim, isia
from model.deeplab import SegmentationNetwork, SegOutput
from model.prototypes import PrototypeBank
from model.regions import IGNORE, Regions, partition_all, pool, to_grid

LABEL_MAPS = ("prediction", "merged")
ALIGNMENT_LOSSES = ("stuff", "instances", "separation", "aggregation")
MEMORY = ("stuff_bank", "thing_bank", "adaptive")
TARGET_LOSSES = ("adv", *ALIGNMENT_LOSSES, "pseudo")


@dataclass(frozen=True)
class Alignment:
    """How target regions are matched with the source.

    aim: weight of an instance, one of `aim.MODES`; aim_weights: per class id, for `fixed`.
    isia: form of separation and aggregation, one of `isia.MODES`.
    label_map: `prediction`, or `merged`: the pseudo label where one exists (spec 3.2).
    instances: the largest components that count, per class and image.
    slots_stuff, slots_thing: bank sizes per class.
    """

    aim: str = "none"
    aim_weights: tuple[float, ...] = ()
    isia: str = "none"
    label_map: str = "prediction"
    instances: int = 10
    slots_stuff: int = 50
    slots_thing: int = 500


class View(NamedTuple):
    """A batch as the alignment looks at it: features (B, D, h, w) and the label map (B, h, w) to cut them by."""

    features: Tensor
    label_map: Tensor


class TargetRegions(NamedTuple):
    """What the alignment losses need to know of a target batch, measured once.

    vectors (R, D) pooled features with gradient; distance (R,) to the class's bank, 0 where `valid` (R,) is False.
    """

    regions: Regions
    vectors: Tensor
    distance: Tensor
    valid: Tensor
    num_images: int


class BAFFT(nn.Module):
    """Segmentation network, output-space discriminator, source banks and AIM's weights."""

    fixed: Tensor
    filtered: Tensor
    """(2, C): at the last observation, how many source regions of each class entered the banks, of how many."""

    def __init__(
        self,
        *,
        network: SegmentationNetwork,
        discriminator: nn.Module,
        stuff: Sequence[int],
        things: Sequence[int],
        alignment: Alignment,
    ) -> None:
        """stuff, things: class ids. Raises ValueError for an unknown mode or a wrong number of fixed weights."""
        super().__init__()
        for value, choices in (
            (alignment.aim, aim.MODES),
            (alignment.isia, isia.MODES),
            (alignment.label_map, LABEL_MAPS),
        ):
            if value not in choices:
                raise ValueError(f"unknown alignment mode {value!r}; choose one of {', '.join(choices)}")
        self.network = network
        self.discriminator = discriminator
        self.stuff, self.things = tuple(stuff), tuple(things)
        self.alignment = alignment
        dim = network.feature_dim
        self.stuff_bank = PrototypeBank(categories=self.stuff, slots=alignment.slots_stuff, dim=dim)
        self.thing_bank = PrototypeBank(categories=self.things, slots=alignment.slots_thing, dim=dim)
        self.adaptive = aim.AdaptiveWeights(num_classes=network.num_classes)
        self.register_buffer("filtered", torch.zeros(2, network.num_classes), persistent=False)
        if alignment.aim == "fixed":
            self.register_buffer("fixed", aim.fixed_weights(alignment.aim_weights, num_classes=network.num_classes))

    # -- source and target ---------------------------------------------------------------------------------------------

    def observe_source(self, output: SegOutput, labels: Tensor) -> Tensor:
        """Fill the banks from a source batch (spec 3.1); labels (B, H, W) ground truth.

        Where the prediction is wrong a pixel belongs to no region; a pooled vector enters only if the pooled
        classifier recognises it. Returns the share of the candidates that entered, a scalar (0 without candidates).
        """
        view = self.view_source(output, labels)
        return self._fill_banks(view.features, *self._cut(view))

    def describe_target(self, output: SegOutput, pseudo: Tensor) -> TargetRegions:
        """Cut a target batch into regions, pool them and measure them against the banks (spec 3.2).

        pseudo (B, H, W): pseudo labels, 255 where there is none; used by the label map `merged` alone. Stuff counts if
        its bank is full and the pooled classifier agrees, an instance if its bank is full, the rest never.
        """
        view = self.view_target(output, pseudo)
        return self._describe(view.features, *self._cut(view))

    def observe_and_describe(self, source: View, target: View) -> tuple[Tensor, TargetRegions]:
        """`observe_source`, then `describe_target`, of views; the host waits for the device once instead of twice."""
        source_regions, target_regions = self._cut(source, target)
        return self._fill_banks(source.features, source_regions), self._describe(target.features, target_regions)

    @torch.no_grad()
    def view_source(self, output: SegOutput, labels: Tensor) -> View:
        """Features without gradient, and R of spec 3.1: the truth where the prediction is right."""
        truth = to_grid(labels, output.logits.shape[-2:])
        wrong = output.logits.argmax(dim=1) != truth
        return View(output.features.detach(), truth.masked_fill(wrong, IGNORE))

    def view_target(self, output: SegOutput, pseudo: Tensor) -> View:
        """Features, and the label map of spec 3.2."""
        label_map = output.logits.argmax(dim=1)
        if self.alignment.label_map == "merged":
            given = to_grid(pseudo, output.logits.shape[-2:])
            label_map = torch.where(given == IGNORE, label_map, given)
        return View(output.features, label_map)

    def _cut(self, *views: View) -> list[Regions]:
        maps = [view.label_map for view in views]
        return partition_all(maps, stuff=self.stuff, things=self.things, limit=self.alignment.instances)

    @torch.no_grad()
    def _fill_banks(self, features: Tensor, regions: Regions) -> Tensor:
        """What `observe_source` does and returns, once the regions are known."""
        vectors = pool(features, regions)
        accepted = self._recognised(vectors, regions.category)
        for bank, rows in ((self.stuff_bank, regions.stuff), (self.thing_bank, regions.instances)):
            bank.insert(vectors[rows], regions.category[rows], accepted=accepted[rows], crowd=regions.crowd)
        candidates = slice(0, regions.instances.stop)
        category, entered = regions.category[candidates], accepted[candidates].float()
        both = torch.stack([entered, torch.ones_like(entered)])
        self.filtered = torch.zeros_like(self.filtered).index_add(1, category, both)
        return entered.sum() / max(regions.instances.stop, 1)

    def _describe(self, features: Tensor, regions: Regions) -> TargetRegions:
        """What `describe_target` does, once the regions are known."""
        vectors, category = pool(features, regions), regions.category
        stuff, things, crowd = regions.stuff, regions.instances, regions.crowd
        stuff_distance, stuff_ready = self.stuff_bank.nearest(vectors[stuff], category[stuff], crowd=crowd)
        thing_distance, thing_ready = self.thing_bank.nearest(vectors[things], category[things], crowd=crowd)
        recognised = self._recognised(vectors[stuff], category[stuff])
        rest = vectors.new_zeros(len(vectors) - things.stop)
        valid = torch.cat([stuff_ready & recognised, thing_ready, rest.bool()])
        distance = torch.cat([stuff_distance, thing_distance, rest])
        distance = torch.where(valid, distance, torch.zeros_like(distance))
        return TargetRegions(regions, vectors, distance, valid, len(features))

    # -- target --------------------------------------------------------------------------------------------------------

    @property
    def acceptance(self) -> Tensor:
        """(C,) share of each class's source regions that entered its bank at the last observation; NaN without any."""
        entered, seen = self.filtered
        return entered / seen

    @torch.no_grad()
    def observe_target(self, target: TargetRegions) -> None:
        """Move AIM's adaptive weights towards the distances of this batch's instances (spec 3.3)."""
        regions, rows = target.regions, target.regions.instances
        self.adaptive.update(target.distance[rows], regions.category[rows], regions.siblings[rows], target.valid[rows])

    def alignment_losses(self, target: TargetRegions) -> dict[str, Tensor]:
        """`stuff` (L_cls), `instances` (L_ins or L_AIM), `separation` and `aggregation` (L_ISIA) of a target batch."""
        regions, mode = target.regions, self.alignment.aim
        stuff, things = regions.stuff, regions.instances
        distance, category = target.distance, regions.category
        per_class = self.fixed if mode == "fixed" else self.adaptive()
        stuff_mode = mode if mode == "released" else "none"  # AIM proper weighs things only
        losses = {
            name: aim.matching(
                distance[rows],
                weight=aim.instance_weights(weighting, distance[rows], category[rows], per_class=per_class),
                siblings=regions.siblings[rows],
                num_images=target.num_images,
            )
            for name, rows, weighting in (("stuff", stuff, stuff_mode), ("instances", things, mode))
        }
        return losses | self._isia(target)

    def segmentation_loss(self, log_probabilities: Tensor, labels: Tensor, *, pixels: Tensor | int) -> Tensor:
        """Cross-entropy over the labelled pixels, `seg` on source truth and `pseudo` on pseudo labels.

        log_probabilities (B, C, H, W), labels (B, H, W) with 255 ignored. `pixels` is the number of labelled pixels of
        the *whole* batch of the update, so that accumulated parts add up to the loss of the batch. 0 without a label.
        """
        # On CUDA the fused sum is one of no fixed order.
        reduction = "none" if torch.are_deterministic_algorithms_enabled() else "sum"
        total = F.nll_loss(log_probabilities, labels, ignore_index=IGNORE, reduction=reduction).sum()
        return total / torch.as_tensor(pixels).to(total.device, non_blocking=True).clamp(min=1)

    def adversarial_loss(self, probabilities: Tensor) -> Tensor:
        """L_adv: the target's output should be taken for source, label 0 (spec 3.1b). probabilities (B, C, H, W)."""
        return _domain_loss(self.discriminator(probabilities), 0.0)

    def discriminator_losses(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """L_D: source is 0, target is 1, each halved (spec 3.1b). Both (B, C, H, W) probabilities, detached here."""
        return {
            "D_source": 0.5 * _domain_loss(self.discriminator(source.detach()), 0.0),
            "D_target": 0.5 * _domain_loss(self.discriminator(target.detach()), 1.0),
        }

    # -- state ---------------------------------------------------------------------------------------------------------

    def memory(self) -> dict[str, dict[str, Tensor]]:
        """What the method has observed, for a checkpoint: banks and AIM's weights, without the networks."""
        return {name: getattr(self, name).state_dict() for name in MEMORY}

    def load_memory(self, memory: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore what `memory` gave. Raises KeyError or RuntimeError where banks are missing or of another size."""
        for name in MEMORY:
            getattr(self, name).load_state_dict(memory[name])

    # -- shared --------------------------------------------------------------------------------------------------------

    def _recognised(self, vectors: Tensor, category: Tensor) -> Tensor:
        """(R,) bool: does the pooled classifier put each vector (R, D) into its own class? No gradient."""
        with torch.no_grad():
            return self.network.classify(vectors).argmax(dim=1) == category

    def _isia(self, target: TargetRegions) -> dict[str, Tensor]:
        regions, vectors = target.regions, target.vectors
        nothing = vectors[:0].sum()  # 0, with a zero gradient even where a feature overflowed
        if self.alignment.isia == "none":
            return {"separation": nothing, "aggregation": nothing}
        if self.alignment.isia == "released":
            apart = isia.separation_released(
                vectors,
                regions,
                stuff_valid=target.valid[regions.stuff],
                instance_valid=target.valid[regions.instances],
                num_images=target.num_images,
            )
            return {"separation": apart, "aggregation": nothing}
        source, full = self._source_centroids()
        centroids = isia.class_centroids(vectors, regions, num_images=target.num_images, num_classes=source.shape[0])
        valid = full & centroids.present
        return {
            "separation": isia.separation(source, centroids.vectors, valid),
            "aggregation": isia.aggregation(source, centroids.vectors, valid),
        }

    def _source_centroids(self) -> tuple[Tensor, Tensor]:
        """c_s of every class (C, D) and whether its bank is full (C,), from both banks."""
        vectors = self.stuff_bank.prototypes.new_zeros(self.network.num_classes, self.network.feature_dim)
        full = torch.zeros(len(vectors), dtype=torch.bool, device=vectors.device)
        for bank in (self.stuff_bank, self.thing_bank):
            vectors[bank.category_of], full[bank.category_of] = bank.centroids()
        return vectors, full


def needs_alignment(losses: Collection[str]) -> bool:
    """Whether any of the named losses is computed from regions and banks."""
    return any(name in losses for name in ALIGNMENT_LOSSES)


def _domain_loss(logits: Tensor, label: float) -> Tensor:
    """BCEWithLogits against one domain label, mean over the discriminator's map; in float32."""
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
