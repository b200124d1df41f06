"""The parameters of a flax module, by a plan."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from optax_unf._flax import linen as nn
from optax_unf.equivariant.plan import Plan, draw


def parameters(module: nn.Module, plan: Plan, *, may_lack: bool = False) -> dict[str, Float[Array, "..."]]:
    """The parameters of a flax module, drawn from the plan when it is initialized.

    Args:
      module: the module, inside of its compact method.
      plan: what it has.
      may_lack: whether weights that are given may lack some of them.
    """
    if module.is_initializing() and not all(module.has_variable("params", name) for name in plan):
        drawn = draw(plan, module.make_rng("params"))
        return {name: module.param(name, lambda _, name=name: drawn[name]) for name in plan}
    if may_lack:
        return {name: module.get_variable("params", name) for name in plan if module.has_variable("params", name)}
    return {name: module.param(name, lambda _, std=std: jnp.zeros(std.shape)) for name, std in plan.items()}
