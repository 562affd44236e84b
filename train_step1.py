"""Stage 1: align a labelled source and an unlabelled target on all levels at once.

    python train_step1.py                                             GTA5 -> Cityscapes, released settings
    python train_step1.py --config configs/camvid_source_only.toml    data of one's own, the source alone
    python train_step1.py --config configs/camvid_day_to_dusk.toml    from there, with the target
    python train_step1.py --continue-train                            go on after an interruption

One update: source forward, fill the banks, cross-entropy; target forward, adversary and matching against the banks;
then the discriminator (`train_step` in utils/engine.py). Writes `last.pt`, snapshots, logs to `runs/<config>/step1`.
Next: Generate_Pseudo_Label.py. Hours and scores to expect: docs/reproduce.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from utils.flags import TRAINING, parse
from utils.launch import launch


def main(argv: Sequence[str] | None = None) -> None:
    """Train the `[step1]` section of the configuration."""
    config, options = parse(argv, description=__doc__, section="step1", flags=TRAINING)
    # Only now: torch takes seconds to import, and whoever mistyped a flag need not wait for it.
    from utils.stage import run_stage

    run_stage(config, options, "step1")


if __name__ == "__main__":
    launch(main)
