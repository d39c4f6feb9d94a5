"""How long collectives take on a topology's networks.

The model of "How to Scale Your Model" (jax-ml.github.io/scaling-book, sections 2 and 3): a ring sends both ways, so a
torus dimension that wraps around gives a device two links; an open one gives the devices at its ends a single link,
through which everything passes. Several dimensions are used at once. An all-to-all is bound by the bisection of the
longest dimension. A hop costs a microsecond. Between slices every chip sends at its share of the data-centre network.
GPUs are the same with a switch in place of a torus, and a node, behind whose switch they are, in place of a slice.
What must hold: no number here is better than the links' stated rates allow. Contention between collectives over
different axes is not modelled, and measured rates are lower: that book uses 90 GB/s where 100 are stated.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lifecycle.planning.compiled.collectives import Collective
from lifecycle.planning.compiled.device_groups import MeshShape
from lifecycle.planning.topology import Topology, device_coordinates

if TYPE_CHECKING:
    from jax.sharding import Mesh

HOP_S = 1e-6
CHIPLET_LINK = 6.0  # rate between a tpu7x chip's two devices, in torus links (source: its system architecture page)


@dataclass(frozen=True)
class Span:
    """The part of a topology that a group of devices spans."""

    sides: tuple[int, ...]  # chips along each torus dimension that the group spans
    closed: tuple[bool, ...]  # whether the group closes a ring in that dimension
    slices: int
    is_one_chip: bool

    @property
    def links(self) -> int:
        """Links through which a device at a corner of the group can receive."""
        return sum(2 if ring else 1 for ring in self.closed)


class Network:
    """The networks between the devices of a mesh.

    `coordinates` has a row `x, y, z, core, slice` for each device, in the mesh's order.
    """

    def __init__(self, topology: Topology, mesh: MeshShape, coordinates: np.ndarray) -> None:
        self.topology, self.mesh = topology, mesh
        self._coordinates = coordinates.reshape(*mesh.sizes, coordinates.shape[-1])
        self._spans: dict[tuple[str, ...], Span] = {}  # hundreds of candidates in a search ask for the same few

    def span(self, axes: tuple[str, ...]) -> Span:
        """The span of the group along these axes that contains the mesh's first device."""
        if axes not in self._spans:
            index = tuple(slice(None) if axis in axes else 0 for axis in self.mesh.axes)
            self._spans[axes] = self._span(self._coordinates[index].reshape(-1, self._coordinates.shape[-1]))
        return self._spans[axes]

    def _span(self, members: np.ndarray) -> Span:
        counts = [len(np.unique(members[:, i])) for i in range(members.shape[1])]
        spanned = [i for i in range(3) if counts[i] > 1]
        shape = (*self.topology.shape, 1, 1)
        closed = tuple(self.topology.wrap[i] and counts[i] == shape[i] for i in spanned)
        sides = tuple(counts[i] for i in spanned)
        return Span(sides, closed, slices=counts[4], is_one_chip=not spanned and counts[4] == 1)

    def seconds(self, collective: Collective) -> float:
        """Seconds of one run if nothing else uses the network; 0 on a link to the host whose rate is unknown."""
        chip = self.topology.chip
        if collective.is_to_host:
            return collective.wire_bytes / chip.host_bytes_per_s if chip.host_bytes_per_s else 0.0
        span = self.span(collective.axes)
        if span.is_one_chip:
            return collective.wire_bytes / (CHIPLET_LINK * chip.link_bytes_per_s) + HOP_S
        inside = collective.group_size // span.slices
        across = 0.0
        if span.slices > 1:  # each device of a slice sends its shard of the traffic between slices
            share = collective.wire_bytes * (1 - 1 / span.slices) / (1 - 1 / collective.group_size)
            across = share / inside / (chip.dcn_bytes_per_s / chip.devices_per_chip)
        within = self._in_torus if chip.is_tpu else self._on_switch
        return across + (within(collective, span, inside) if inside > 1 else 0.0)

    def _on_switch(self, collective: Collective, span: Span, group_size: int) -> float:
        """Behind a switch every device sends and receives at its full rate."""
        chip = self.topology.chip
        sent = collective.wire_bytes_among(group_size)
        return sent / (chip.links * chip.link_bytes_per_s) + HOP_S * math.log2(max(2, group_size))

    def _in_torus(self, collective: Collective, span: Span, group_size: int) -> float:
        chip = self.topology.chip
        link = chip.link_bytes_per_s / chip.devices_per_chip
        hops = sum(side / 2 if ring else side - 1 for side, ring in zip(span.sides, span.closed, strict=True))
        if collective.kind in ("collective-permute", "collective-broadcast"):
            return collective.wire_bytes / link + HOP_S
        if collective.kind in ("all-to-all", "ragged-all-to-all"):
            longest = max(
                (side / (8 if ring else 4) for side, ring in zip(span.sides, span.closed, strict=True)), default=1.0
            )
            return collective.payload_bytes * longest / link + HOP_S * hops
        times = 2 if collective.kind == "all-reduce" else 1
        sent = collective.payload_bytes * (group_size - 1) / group_size * times
        return sent / (max(1, span.links) * link) + HOP_S * hops * times


def network_of(topology: Topology, mesh: "Mesh") -> Network:
    """The networks between the devices of a mesh over the topology."""
    shape = MeshShape(tuple(mesh.axis_names), mesh.devices.shape, topology.num_slices)
    return Network(topology, shape, device_coordinates(topology, mesh.devices))
