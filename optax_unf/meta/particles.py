"""Many inner runs at once: sharded over devices, and on each device some at a time."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

In = TypeVar("In")
Out = TypeVar("Out")

_AXIS = "particles"


def map_particles(function: Callable[[In], Out], particles: In, *, vectorize: int | None = None) -> Out:
    """`function` of each particle.

    Particles are sharded over all local devices if their number divides evenly; each device runs `vectorize` of its
    particles at a time. On a CPU, where one run's features fill the cache, one at a time is fastest; accelerators
    take all at once.

    Args:
      function: a function of one particle.
      particles: a pytree whose leaves have a leading axis of particles.
      vectorize: particles at a time on each device; `None` for the device's default.
    """
    (count,) = {leaf.shape[0] for leaf in jax.tree.leaves(particles)}
    devices = jax.local_devices()
    width = vectorize or (1 if devices[0].platform == "cpu" else count)

    def local(particles: In) -> Out:
        if width == 1:
            return jax.lax.map(function, particles)
        return jax.lax.map(function, particles, batch_size=width)

    if len(devices) == 1 or count % len(devices):
        return local(particles)
    split = PartitionSpec(_AXIS)
    return jax.shard_map(local, mesh=_mesh(), in_specs=split, out_specs=split, check_vma=False)(particles)


def particle_shardings(tree: PyTree) -> PyTree[NamedSharding]:
    """Leaves split by particle over all local devices, or whole on each where their number does not divide evenly."""
    devices = len(jax.local_devices())

    def sharding(x: Array) -> NamedSharding:
        splits = x.ndim > 0 and x.shape[0] % devices == 0
        return NamedSharding(_mesh(), PartitionSpec(_AXIS) if splits else PartitionSpec())

    return jax.tree.map(sharding, tree)


def replicated_shardings(tree: PyTree) -> PyTree[NamedSharding]:
    """Leaves whole on every local device."""
    return jax.tree.map(lambda _: NamedSharding(_mesh(), PartitionSpec()), tree)


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (_AXIS,))
