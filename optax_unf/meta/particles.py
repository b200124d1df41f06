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

    Particles are sharded over all devices, of all processes; where their number does not divide evenly, some are
    computed twice. Each device runs `vectorize` of its particles at a time. On a CPU, where one run's features fill
    the cache, one at a time is fastest; accelerators take all at once.

    Args:
      function: a function of one particle.
      particles: a pytree whose leaves have a leading axis of particles.
      vectorize: particles at a time on each device; `None` for the device's default.
    """
    (count,) = {leaf.shape[0] for leaf in jax.tree.leaves(particles)}
    devices = jax.devices()
    width = vectorize or (1 if devices[0].platform == "cpu" else count)

    def local(particles: In) -> Out:
        if width == 1:
            return jax.lax.map(function, particles)
        return jax.lax.map(function, particles, batch_size=width)

    if len(devices) == 1:
        return local(particles)
    split = PartitionSpec(_AXIS)
    sharded = jax.shard_map(local, mesh=_mesh(), in_specs=split, out_specs=split, check_vma=False)
    if not count % len(devices):
        return sharded(particles)
    repeated = np.arange(count + -count % len(devices)) % count
    return jax.tree.map(lambda x: x[:count], sharded(jax.tree.map(lambda x: x[repeated], particles)))


def particle_shardings(tree: PyTree) -> PyTree[NamedSharding]:
    """Leaves split by particle over all devices, or whole on each where their number does not divide evenly."""
    devices = jax.device_count()

    def sharding(x: Array) -> NamedSharding:
        splits = x.ndim > 0 and x.shape[0] % devices == 0
        return NamedSharding(_mesh(), PartitionSpec(_AXIS) if splits else PartitionSpec())

    return jax.tree.map(sharding, tree)


def replicated_shardings(tree: PyTree) -> PyTree[NamedSharding]:
    """Leaves whole on every device."""
    return jax.tree.map(lambda _: NamedSharding(_mesh(), PartitionSpec()), tree)


def placed(tree: In, shardings: PyTree[NamedSharding]) -> In:
    """Arrays where the shardings say; what comes from the host must be the same in all processes."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    # Not device_put, which compares each array between the processes.
    return jax.jit(_identity, out_shardings=shardings)(tree)


def _identity(tree: In) -> In:
    return tree


def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), (_AXIS,))
