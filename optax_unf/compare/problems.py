"""Training problems of the suites: a network, data and a loss."""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from optax_unf._flax import linen as nn
from optax_unf.compare.data import Generated, Rows, Windows
from optax_unf.infer import Inferred
from optax_unf.tasks.task import Params, Task

Field = Callable[[Float[Array, " dims"]], Float[Array, ""]]


def cross_entropy(logits: Float[Array, "... classes"], labels: Array) -> Float[Array, "..."]:
    """Cross-entropy, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def smoothed_cross_entropy(logits: Float[Array, "... classes"], labels: Array) -> Float[Array, "..."]:
    """Cross-entropy with a tenth of each label spread over all classes: no small table is learned to nothing."""
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), 0.1))


def squared_error(outputs: Float[Array, "..."], targets: Float[Array, "..."]) -> Float[Array, "..."]:
    """Squared error."""
    return (outputs - targets) ** 2


@dataclasses.dataclass(frozen=True, eq=False)
class Problem(Task):
    """What all problems have in common.

    Attributes:
      network: a flax module.
      batch_size: rows of a batch.
      horizon: inner steps of a run.
      name: the problem's name.
      initial_scale: what the network's initial parameters are multiplied by.
      dtype: of the parameters.
    """

    network: nn.Module
    batch_size: int = dataclasses.field(kw_only=True)
    horizon: int = dataclasses.field(kw_only=True)
    name: str = dataclasses.field(kw_only=True, default="")
    initial_scale: float = dataclasses.field(kw_only=True, default=1.0)
    dtype: DTypeLike = dataclasses.field(kw_only=True, default=jnp.float32)

    def init(self, key: Array) -> Params:
        """Fresh parameters."""
        params = self.network.init(key, self.sample(jax.random.key(0))[0])["params"]
        return jax.tree.map(lambda x: (self.initial_scale * x).astype(self.dtype), params)

    @abc.abstractmethod
    def sample(self, key: Array) -> Any:
        """A training batch."""

    @abc.abstractmethod
    def loss(self, params: Params, batch: Any) -> Float[Array, ""]:
        """The mean loss of a batch."""

    @abc.abstractmethod
    def held_out(self) -> Any:
        """A batch of held-out data."""

    @property
    def axes(self) -> Inferred:
        """The permutation spec, inferred from the loss."""
        return Inferred(self.loss, jax.eval_shape(self.sample, jax.random.key(0)))


@dataclasses.dataclass(frozen=True, eq=False)
class Supervised(Problem):
    """Targets from inputs.

    Attributes:
      data: where rows come from.
      error: the loss of one output.
    """

    data: Rows | Windows | Generated
    error: Callable[[Array, Array], Array] = cross_entropy

    def sample(self, key: Array) -> tuple[Array, Array]:
        """A training batch."""
        return self.data.sample(key, self.batch_size)

    def loss(self, params: Params, batch: tuple[Array, Array]) -> Float[Array, ""]:
        """The mean error."""
        inputs, targets = batch
        return self.error(self.network.apply({"params": params}, inputs), targets).mean()  # pyright: ignore

    def held_out(self) -> tuple[Array, Array]:
        """Held-out rows."""
        return self.data.held_out()


@dataclasses.dataclass(frozen=True, eq=False)
class PhysicsInformed(Problem):
    """A differential equation on [-1, 1]^2, solved by a network (Raissi et al. 2019).

    Attributes:
      residual: of a field at a place; zero where the equation holds.
      boundary: the field's value at a place of the boundary.
      boundary_weight: of the boundary's squared error beside the residual's.
    """

    residual: Callable[[Field, Float[Array, " 2"]], Float[Array, ""]]
    boundary: Field
    boundary_weight: float = 10.0

    def sample(self, key: Array) -> tuple[Float[Array, "batch 2"], Float[Array, "batch 2"]]:
        """Random places inside and on the boundary."""
        inside, along, side = jax.random.split(key, 3)
        free = jax.random.uniform(along, (self.batch_size, 2), minval=-1, maxval=1)
        number = jax.random.randint(side, (self.batch_size,), 0, 4)
        fixed = (number % 2)[:, None] == jnp.arange(2)
        edge = jnp.where(fixed, jnp.where(number < 2, -1.0, 1.0)[:, None], free)
        return jax.random.uniform(inside, (self.batch_size, 2), minval=-1, maxval=1), edge

    def loss(self, params: Params, batch: tuple[Array, Array]) -> Float[Array, ""]:
        """The mean squared residual, and the weighted mean squared error on the boundary."""
        inside, edge = batch

        def field(x: Float[Array, " 2"]) -> Float[Array, ""]:
            return self.network.apply({"params": params}, x[None])[0, 0]  # pyright: ignore

        residuals = jax.vmap(lambda x: self.residual(field, x))(inside)
        errors = jax.vmap(lambda x: field(x) - self.boundary(x))(edge)
        return (residuals**2).mean() + self.boundary_weight * (errors**2).mean()

    def held_out(self) -> tuple[Array, Array]:
        """Other places, always the same."""
        keys = jax.random.split(jax.random.key(99), 8)
        return jax.tree.map(lambda *x: jnp.concatenate(x), *map(self.sample, keys))


def laplacian(field: Field, x: Float[Array, " 2"]) -> Float[Array, ""]:
    """The sum of second derivatives."""

    def second(direction: Float[Array, " 2"]) -> Float[Array, ""]:
        return jax.jvp(lambda x: jax.jvp(field, (x,), (direction,))[1], (x,), (direction,))[1]

    return sum(map(second, jnp.eye(2)), jnp.zeros(()))


def poisson(field: Field, x: Float[Array, " 2"]) -> Float[Array, ""]:
    """The residual of Poisson's equation whose solution is sin(pi x) sin(pi y)."""
    return (laplacian(field, x) + 2 * math.pi**2 * jnp.prod(jnp.sin(math.pi * x))) / math.pi**2


def helmholtz(field: Field, x: Float[Array, " 2"]) -> Float[Array, ""]:
    """The residual of Helmholtz's equation with wave number 3 whose solution is cos(pi x) sin(2 pi y)."""
    solution = jnp.cos(math.pi * x[0]) * jnp.sin(2 * math.pi * x[1])
    return (laplacian(field, x) + 9 * field(x) + (5 * math.pi**2 - 9) * solution) / (5 * math.pi**2)
