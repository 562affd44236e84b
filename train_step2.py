"""Stage 2: self-train on pseudo labels, with adaptive-weighted matching and separation.

    python train_step2.py                                             GTA5 -> Cityscapes, released settings
    python train_step2.py --config configs/camvid_day_to_dusk.toml    data of one's own
    python train_step2.py --continue-train                            go on after an interruption

The same loop as stage 1 (utils/engine.py) with other loss weights; starts from stage 1's last checkpoint and reads the
pseudo labels that Generate_Pseudo_Label.py wrote. Writes to `runs/<config>/step2`. Next: evaluate_cityscapes.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from utils.flags import TRAINING, parse
from utils.launch import launch


def main(argv: Sequence[str] | None = None) -> None:
    """Train the `[step2]` section of the configuration."""
    config, options = parse(argv, description=__doc__, section="step2", flags=TRAINING)
    # Only now: torch takes seconds to import, and whoever mistyped a flag need not wait for it.
    from utils.stage import run_stage

    run_stage(config, options, "step2")


if __name__ == "__main__":
    launch(main)
