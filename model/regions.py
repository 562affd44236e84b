"""From a label map to regions, and from features to one vector per region.

A label map on the feature grid is cut into three kinds of regions, in this order:

* *stuff*: all pixels of one stuff class in one image;
* *instances*: an 8-connected component of one thing class, the `limit` largest per class and image;
* *rest*: what is left of a thing class in an image after its largest components.

The three never overlap, so a single integer map describes them all and one pass over the features pools them all.

Geometry: B batch, D channels, R regions, h w feature grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
import torch
from torch import Tensor

IGNORE = 255


@dataclass(frozen=True, kw_only=True)
class Regions:
    """R regions of a batch, sorted by kind, image, category and rank.

    index: (B, h, w) int64, the region of each pixel; R where a pixel belongs to none.
    image, category, area: (R,) int64, what each region is part of and its number of pixels.
    siblings: (R,) int64, how many regions of the same kind share the region's image and category (n_k of Eq. 3.2).
    num_stuff, num_instances: how many of the R are stuff, and instances; the remainder is rest.
    crowd: the most regions that one category has of one kind in the batch.
    """

    index: Tensor
    image: Tensor
    category: Tensor
    area: Tensor
    siblings: Tensor
    num_stuff: int
    num_instances: int
    crowd: int

    @property
    def stuff(self) -> slice:
        """The rows of the stuff regions."""
        return slice(0, self.num_stuff)

    @property
    def instances(self) -> slice:
        """The rows of the instances."""
        return slice(self.num_stuff, self.num_stuff + self.num_instances)


def partition(labels: Tensor, *, stuff: Sequence[int], things: Sequence[int], limit: int = 10) -> Regions:
    """Cut label maps into stuff regions, thing instances and their rest (spec 3.1, 3.2).

    labels: (B, h, w) integer class ids below 256; ids in neither `stuff` nor `things` (255 above all) form no region.
    limit: instances per class and image; among components of equal area the one whose first pixel in raster order
        comes first wins.
    """
    (regions,) = partition_all([labels], stuff=stuff, things=things, limit=limit)
    return regions


def partition_all(
    maps: Sequence[Tensor], *, stuff: Sequence[int], things: Sequence[int], limit: int = 10
) -> list[Regions]:
    """`partition` of each of several batches of label maps, whose sizes may differ; all on the same device.

    Components are found on the host. The maps go there in a single copy, hence with a single wait for the device.
    """
    flat = torch.cat([labels.flatten() for labels in maps]).to(device="cpu", dtype=torch.uint8).numpy()
    ends = np.cumsum([labels.numel() for labels in maps])
    grids = [part.reshape(labels.shape) for part, labels in zip(np.split(flat, ends[:-1]), maps, strict=True)]
    is_stuff, is_thing = _membership(stuff), _membership(things)
    return [_cut(grid, is_stuff[grid], is_thing[grid], limit, maps[0].device) for grid in grids]


def _cut(grid: np.ndarray, is_stuff: np.ndarray, is_thing: np.ndarray, limit: int, device: torch.device) -> Regions:
    """The regions of a (B, h, w) uint8 label map, of which `is_stuff`, `is_thing` say what each pixel is."""
    batch = len(grid)
    rank = np.minimum(_component_rank(grid, is_thing), limit)

    # One sortable code per pixel: (kind, image, category, rank). Equal code = same region.
    kind = np.where(is_stuff, 0, np.where(rank < limit, 1, 2))
    image = np.broadcast_to(np.arange(batch)[:, None, None], grid.shape)
    radix = (3, batch, 256, limit + 1)
    code = np.ravel_multi_index((kind, image, grid, np.where(is_stuff, 0, rank)), radix)
    code = np.where(is_stuff | is_thing, code, np.prod(radix))  # sorts behind every region
    codes, index, area = np.unique(code, return_inverse=True, return_counts=True)

    count = int(np.searchsorted(codes, np.prod(radix)))
    kind, image, category, _ = np.unravel_index(codes[:count], radix)
    _, group, members = np.unique(codes[:count] // (limit + 1), return_inverse=True, return_counts=True)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(device, non_blocking=True)

    columns = tensor(np.stack([image, category, area[:count], members[group]]))
    return Regions(
        index=tensor(index.reshape(grid.shape)),
        image=columns[0],
        category=columns[1],
        area=columns[2],
        siblings=columns[3],
        num_stuff=int((kind == 0).sum()),
        num_instances=int((kind == 1).sum()),
        crowd=int(np.bincount(kind * 256 + category).max(initial=0)),
    )


def pool(features: Tensor, regions: Regions) -> Tensor:
    """Mean feature of every region, `GAP(f, M)` of spec 3: (B, D, h, w) -> (R, D) float32, differentiable.

    Each feature is read once, whatever the number of regions; sums accumulate in float32.
    """
    pixels = features.permute(0, 2, 3, 1).flatten(0, 2).float().contiguous()  # a view of float32 in channels_last
    count = regions.area.numel()
    sums = pixels.new_zeros(count + 1, pixels.shape[1]).index_add(0, regions.index.flatten(), pixels)
    return sums[:count] / regions.area[:, None]


def to_grid(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Bring label maps to the feature grid: index floor(i * H / h), torch's `nearest` (spec 3.1).

    labels: (B, H, W) integers -> (B, h, w) int64.
    """
    resized = torch.nn.functional.interpolate(labels[:, None].float(), size=list(size), mode="nearest")
    return resized[:, 0].long()


def _membership(categories: Sequence[int]) -> np.ndarray:
    """(256,) bool lookup table of the given class ids."""
    table = np.zeros(256, bool)
    table[list(categories)] = True
    return table


def _component_rank(grid: np.ndarray, is_thing: np.ndarray) -> np.ndarray:
    """Rank by area, from 0, of each thing pixel's component within its image and class; 0 elsewhere. (B, h, w)."""
    batch, height, width = grid.shape
    # The images stand one above the other with an empty row between them: one labelling for the whole batch.
    canvas = np.zeros((batch, height + 1, width), np.uint16)
    canvas[:, :height] = np.where(is_thing, grid.astype(np.uint16) + 1, 0)
    components = cc3d.connected_components(canvas.reshape(-1, width), connectivity=8)
    components = components.reshape(canvas.shape)[:, :height]

    ids, first, area = np.unique(components, return_index=True, return_counts=True)
    group = first // (height * width) * 256 + grid.ravel()[first]
    group[ids == 0] = -1
    order = np.lexsort((first, -area, group))
    ordered = group[order]
    rank = np.zeros(int(ids.max(initial=0)) + 1, np.int64)
    rank[ids[order]] = np.arange(len(ids)) - np.searchsorted(ordered, ordered)
    rank[0] = 0
    return rank[components]
