"""What parameters a layer has: their names, shapes, and standard deviations before training."""

import functools
from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from optax_unf.equivariant.contract import Tensor
from optax_unf.equivariant.signature_groups import is_own, label_of, most_terms, own_labels, roles, signature_groups

Plan: TypeAlias = Mapping[str, np.ndarray]
"""The standard deviation of every entry of each parameter, by name. Zeros are zeros at initialization."""

# Outputs have unit variance at initialization. Half of it comes from the entry itself, so that it neither
# vanishes for inputs with zero mean nor grows with the number of leaves.
_OWN_SHARE = 0.5


def deep_sets_plan(inputs: int, outputs: int, *, shared: int = 0, pool: bool, use_bias: bool) -> Plan:
    """The parameters of a Deep Sets layer, of which `shared` further inputs are the same at every entry."""
    share = _OWN_SHARE if pool else 1.0
    plan: dict[str, np.ndarray] = {"kernel": np.full((inputs + shared, outputs), np.sqrt(share / (inputs + shared)))}
    if pool:
        plan["pooled"] = np.full((inputs, outputs), np.sqrt(share / inputs))
    if use_bias:
        plan["bias"] = np.zeros(outputs)
    return plan


@functools.lru_cache(maxsize=64)
def full_plan(leaves: tuple[Tensor, ...], inputs: int, outputs: int, *, use_bias: bool = True) -> Plan:
    """The parameters of a layer with full coefficients: for each signature, all contractions by all expansions."""
    heights, widths = ([channels * leaf.positions for leaf in leaves] for channels in (inputs, outputs))
    others = [-height for height in heights]
    for group in signature_groups(leaves):
        total = sum(heights[source] for source, _ in group.sources)
        for leaf, _ in group.targets:
            others[leaf] += total

    plan: dict[str, np.ndarray] = {}
    for group in signature_groups(leaves):
        stds = [
            [std(own=is_own(d, a, leaves), fan_in=heights[a[0]], others=others[a[0]]) for a in group.targets]
            for d in group.sources
        ]
        rows = [heights[leaf] for leaf, _ in group.sources]
        columns = [widths[leaf] for leaf, _ in group.targets]
        plan["kernel" + group.label] = np.repeat(np.repeat(np.array(stds), rows, axis=0), columns, axis=1)
        if use_bias and not group.signature:
            plan["bias"] = np.zeros(sum(columns))
    return plan


@functools.lru_cache(maxsize=64)
def tied_plan(leaves: tuple[Tensor, ...], inputs: int, outputs: int, *, use_bias: bool = True) -> Plan:
    """The parameters of a layer with tied coefficients: a matrix for every pair of roles that there is."""
    names = ["mean"]
    for group in signature_groups(leaves):
        for leaf, expansion in group.targets:
            names += ["all " + label_of(role, expansion) for role in roles(group, leaves)]
            names += ["own " + label for label, _ in own_labels(group, leaves, leaf, expansion)]
    other = np.full((inputs, outputs), np.sqrt((1.0 - _OWN_SHARE) / (inputs * most_terms(leaves))))
    plan = {"entry": np.full((inputs, outputs), np.sqrt(_OWN_SHARE / inputs)), **dict.fromkeys(names, other)}
    return plan | {"bias": np.zeros(outputs)} if use_bias else plan


def std(*, own: bool, fan_in: int, others: int) -> float:
    """The standard deviation of a matrix at initialization: of a leaf's own entries, or of one of the other terms."""
    if own:
        return float(np.sqrt((_OWN_SHARE if others else 1.0) / max(fan_in, 1)))
    return float(np.sqrt((1.0 - _OWN_SHARE) / max(others, 1)))


def draw(plan: Plan, key: Array) -> dict[str, Float[Array, "..."]]:
    """Parameters before training.

    All numbers are drawn at once, by one program, and then cut, where they can be by numpy: each draw and each cut of
    another shape would be compiled.
    """
    if not plan:
        return {}
    stds = np.concatenate([std.ravel() for std in plan.values()])
    numbers = _normal(key, stds.astype(np.float32))
    if not isinstance(numbers, Tracer):
        numbers = np.asarray(numbers)
    ends = np.cumsum([std.size for std in plan.values()])
    return {
        name: jnp.asarray(numbers[end - std.size : end].reshape(std.shape))
        for (name, std), end in zip(plan.items(), ends, strict=True)
    }


@jax.jit
def _normal(key: Array, stds: Float[ArrayLike, " n"]) -> Float[Array, " n"]:
    return jax.random.normal(key, jnp.shape(stds), jnp.float32) * stds
