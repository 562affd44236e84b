"""The rungs of the ladder, as data: what each changes in a recipe.

Baselines set everything of the method aside that the recipe configures, and start from the defaults; the other rungs
leave one part out of the recipe, or add one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from model.bafft import ALIGNMENT_LOSSES

METHOD = ("weights", "aim", "aim_weights", "isia", "label_map", "rare_classes")
"""Settings of a stage that make the method; all others belong to every rung alike."""

ISIA_LOSSES = ("separation", "aggregation")
ISIA = {"isia": "paper", "weights": dict.fromkeys(ISIA_LOSSES, 1e-2)}
AIM = {"aim": "adaptive"}
SOURCE_ONLY, CONFIGURED, ORACLE = "source_only", "configured", "oracle"


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One way to train.

    fresh: the settings METHOD start from their defaults instead of the recipe's. losses: a fragment of configs/losses.
    stage: laid over both stages, last; step2: over stage 2 alone, after it. translated: source images are translated
    where the recipe says so. stages: 1 trains stage 1 for the updates of both, None as the recipe does. target_labels:
    the target's own training labels take the place of the source.
    """

    name: str
    title: str
    fresh: bool = False
    losses: str = ""
    stage: Mapping[str, Any] = field(default_factory=dict)
    step2: Mapping[str, Any] = field(default_factory=dict)
    translated: bool = True
    stages: int | None = None
    target_labels: bool = False


def _baseline(name: str, title: str, **changes: Any) -> Rung:
    return Rung(name=name, title=title, fresh=True, **changes)


def _without(name: str, title: str, **changes: Any) -> Rung:
    return Rung(name=f"no_{name}", title=f"without {title}", **changes)


def _extra(name: str, title: str, **changes: Any) -> Rung:
    return Rung(name=name, title=f"with {title}", stage=changes)


RUNGS = (
    _baseline(SOURCE_ONLY, "source-only", stages=1, translated=False, stage={"statistics": "source"}),
    _baseline("control", "source-only, target statistics", stages=1, translated=False, stage={"statistics": "target"}),
    _baseline("adversary", "adversary only (AdaptSegNet)", stages=1, translated=False, losses="adversary"),
    _baseline("sim", "SIM", stages=2, losses="sim"),
    _baseline("released", "BAFFT, released", stages=2, losses="released"),
    _baseline("paper", "BAFFT, paper", stages=2, losses="paper"),
    Rung(name=CONFIGURED, title="as configured"),
    _without("separation", "separation", stage={"weights": {"separation": 0.0}}),
    _without("aggregation", "aggregation", stage={"weights": {"aggregation": 0.0}}),
    _without("aim", "AIM's weights", stage={"aim": "none"}),
    _without("instances", "instance matching", stage={"weights": {"instances": 0.0}}),
    _without("stuff", "stuff matching", stage={"weights": {"stuff": 0.0}}),
    _without("alignment", "any matching, ISIA or AIM", stage={"weights": dict.fromkeys(ALIGNMENT_LOSSES, 0.0)}),
    _without("adversary", "the adversary", stage={"weights": {"adv": 0.0}}),
    _without("image_level", "translated images", translated=False),
    _without("stage2", "stage 2", stages=1),
    _without("mixed", "ClassMix", stage={"weights": {"mixed": 0.0}}),
    _without("rare", "rare classes first", stage={"rare_classes": 0.0}),
    Rung(name="isia", title="with ISIA in stage 2", step2=ISIA),
    Rung(name="aim", title="with AIM in stage 2", step2=AIM),
    Rung(name="isia_aim", title="with ISIA and AIM in stage 2", step2=ISIA | AIM),
    _extra("with_adversary", "the adversary", weights={"adv": 1e-3}),
    _extra("strong_isia", "ISIA in both stages, weights 1", isia="paper", weights=dict.fromkeys(ISIA_LOSSES, 1.0)),
    _extra("entropy", "entropy minimisation", weights={"entropy": 1e-3}),
    _extra("online", "a teacher's labels", weights={"online": 1.0}),
    _extra("mixed", "ClassMix", weights={"mixed": 1.0}),
    _extra("masked", "masked images", weights={"masked": 1.0}),
    _extra("rare", "rare classes first", rare_classes=0.01),
    _baseline("modern", "modern", stages=1, losses="modern"),
    _baseline(
        "modern_bare",
        "modern without ISIA and AIM",
        stages=1,
        losses="modern",
        stage={"weights": {"separation": 0.0, "aggregation": 0.0, "instances": 0.0}},
    ),
    _baseline(ORACLE, "oracle", stages=1, translated=False, stage={"statistics": "source"}, target_labels=True),
)
BY_NAME = {rung.name: rung for rung in RUNGS}
