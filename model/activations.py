"""Two ways for a network to hold less for its backward pass; neither changes a name in its state dict.

* `checkpoint_blocks`: keep only what goes into each residual block and compute the rest again. The same numbers.
* `use_inplace_norms`: Mapillary's inplace-abn, which overwrites what goes into a norm and computes it back from what
  comes out. Only a function with an inverse allows that: the network is then built with `InvertibleNorm`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from model.deeplab import NetworkError, SegmentationNetwork
from model.norms import InvertibleNorm


def checkpoint_blocks(network: SegmentationNetwork) -> None:
    """Compute the inside of each block again in the backward pass instead of keeping it, from now on.

    Raises NetworkError for a network without blocks.
    """
    blocks = network.blocks()
    if not blocks:
        raise NetworkError(f"network {network.name} has no blocks to checkpoint: set [model] checkpointing = false")
    for block in blocks:
        block.forward = partial(_recomputed, block, block.forward)


def _recomputed(block: nn.Module, forward: Callable[..., Any], *inputs: Tensor) -> Any:
    """`forward` of the block, under a checkpoint."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    tracked = [norm.track_running_stats for norm in norms]

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return contextlib.nullcontext(), _second_pass(norms, tracked)

    # Only what drops at random must draw the same again: to remember a generator's state makes CUDA wait.
    draws = any("drop" in type(module).__name__.lower() for module in block.modules())
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, preserve_rng_state=draws)


@contextlib.contextmanager
def _second_pass(norms: Sequence[_BatchNorm], tracked: Sequence[bool]) -> Iterator[None]:
    """Within the scope batch norms repeat their first pass, in which they tracked their statistics or not.

    Those that did are handed their running statistics again (autograd must save the same tensors as in the first pass)
    and move them by nothing.
    """
    before = [(norm.track_running_stats, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, tracks in zip(norms, tracked, strict=True):
        norm.track_running_stats, norm.momentum, norm.num_batches_tracked = tracks, 0.0, None
    try:
        yield
    finally:
        for norm, values in zip(norms, before, strict=True):
            norm.track_running_stats, norm.momentum, norm.num_batches_tracked = values


def use_inplace_norms(network: SegmentationNetwork) -> None:
    """Let every `InvertibleNorm` of the network work in place. Raises NetworkError without the package inplace-abn."""
    try:
        from inplace_abn.functions import inplace_abn
    except ImportError as error:  # not there, or compiled against another torch or CUDA
        raise NetworkError(
            f"[model] inplace_abn needs the package inplace-abn ({error}): build it as requirements-cuda.txt says, or "
            "set inplace_abn = false; checkpointing = true saves memory and needs nothing"
        ) from None
    for module in network.modules():
        if isinstance(module, InvertibleNorm):
            module.in_place = inplace_abn
