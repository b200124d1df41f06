"""Many inner runs at once: sharded over devices, and on each device some at a time."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

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
    mesh = Mesh(np.array(devices), (_AXIS,))
    by_particle = PartitionSpec(_AXIS)
    return jax.shard_map(local, mesh=mesh, in_specs=by_particle, out_specs=by_particle, check_vma=False)(particles)
