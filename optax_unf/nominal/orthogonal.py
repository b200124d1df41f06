"""Orthogonalized momentum as an optax transformation."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from optax_unf._arguments import check_real, checked_state
from optax_unf._dtypes import at_least_float32
from optax_unf._sharding import placements, propagated, replicated
from optax_unf.infer import Spec
from optax_unf.nominal.adam import adam_steps, average, moments
from optax_unf.nominal.leaves import Found, Leaves, found_by_path, refilled, taken_matrices, with_matrices, zeros
from optax_unf.nominal.matrices import find_matrices
from optax_unf.nominal.matrix import LeafMatrices
from optax_unf.nominal.polar import polar_factors, positive, rms
from optax_unf.spec.paths import leaves_by_path

# The RMS of Adam's steps in practice (Liu et al. 2025, arXiv:2502.16982, Section 2.2).
_RMS = 0.2
# As many programs are kept.
_KEPT = 128


class ScaleByOrthogonalState(NamedTuple):
    """State of `scale_by_orthogonal`.

    Attributes:
      count: number of updates so far, int32 [].
      mu: a tree like the parameters, at least float32: the momenta, of matrices and of Adam.
      nu: likewise, Adam's second moments; with `graft=False` only of leaves with parts that Adam takes, and
        `optax.MaskedNode` for the others.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride] (optax names it so)
    mu: PyTree
    nu: PyTree


def scale_by_orthogonal(
    spec: Spec = None,
    *,
    momentum: float | Float[Array, ""] = 0.95,
    nesterov: bool = True,
    graft: bool = True,
    heads: bool = False,
    adam: str | None = None,
    b2: float = 0.95,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces gradients by the polar factors of their momentum where they are matrices, by Adam's step elsewhere.

    A matrix with Nesterov momentum $M = U \Sigma V^T$ moves by $r U V^T$. Its RMS is 0.2, about that of Adam's steps
    ($r = 0.2 \sqrt{\max(rows, columns)}$; Liu et al. 2025), or, *grafted*, that of the step that Adam would make for
    this matrix now. An orthogonalized step has its full size whatever the noise, while Adam's shrinks as the
    gradient's mean drowns in it: grafting keeps that.

    Nothing depends on the scale of the gradients: Adam's epsilon is relative to the RMS of the leaf.

    Args:
      spec: tells which arrays are matrices; see `find_matrices`.
      momentum: decay of the momenta, those of Adam included.
      nesterov: whether the momentum of matrices looks ahead by one step.
      graft: whether matrices take the RMS of Adam's step, at the cost of its second moments for them.
      heads: whether each head is a matrix of its own, or all of a projection are one.
      adam: a regular expression; leaves whose path it is found in are left to Adam.
      b2: decay of Adam's second moments.
      eps: Adam's, relative to the root mean square of the second moments of the leaf.

    Returns:
      A transformation; `params` is not needed.

    Raises:
      TypeError: a parameter or gradient is not real floating-point.
      ValueError: the spec does not fit.

    References:
      Jordan et al., "Muon", 2024; Liu et al., "Muon is scalable for LLM training", arXiv:2502.16982, 2025.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = optax.chain(scale_by_orthogonal(graft=False), optax.scale(-0.1))
      >>> params = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
      >>> updates, state = tx.update({"w": jnp.eye(2), "b": jnp.ones(2)}, tx.init(params), params)
      >>> updates["b"].round(3)
      Array([-0.1, -0.1], dtype=float32)
    """
    find = functools.partial(find_matrices, spec=spec, heads=heads, adam=adam)

    def init(params: optax.Params) -> ScaleByOrthogonalState:
        check_real(params, "parameter")
        found = found_by_path(find, params)
        return ScaleByOrthogonalState(
            count=replicated(jnp.zeros([], jnp.int32), params),
            mu=zeros(params, list(found)),
            nu=zeros(params, [path for path, leaf in found.items() if graft or not all(leaf.matrices)]),
        )

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ScaleByOrthogonalState]:
        del extra  # every optax transformation accepts what others in its chain need
        check_real(updates, "gradient")
        state = checked_state(state, ScaleByOrthogonalState)
        found = found_by_path(find, updates if params is None else params)
        trees = tuple(map(leaves_by_path, (updates, state.mu, state.nu)))
        count = jnp.asarray(optax.safe_increment(state.count))
        step = _program(tuple(found.values()), nesterov, graft, b2, eps, placements(trees))
        direction, *moments = step(*trees, count=count, momentum=momentum)
        return refilled(updates, direction), ScaleByOrthogonalState(
            count, *(refilled(old, new) for old, new in zip(state[1:], moments, strict=True))
        )

    return optax.GradientTransformationExtraArgs(init, update)


def orthogonal(
    learning_rate: optax.ScalarOrSchedule, spec: Spec = None, *, weight_decay: float = 0.0, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """Orthogonalized momentum for matrices, Adam for the rest.

    Args:
      learning_rate: a number or a schedule; of Adam's size, and the same for matrices and the rest.
      spec: tells which arrays are matrices; see `find_matrices`.
      weight_decay: decoupled, and multiplied by the learning rate, as in `optax.adamw`.
      **options: of `scale_by_orthogonal`.

    Returns:
      A transformation.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> params = jnp.zeros((3, 2))
      >>> tx = orthogonal(0.1)
      >>> state = tx.init(params)
      >>> for _ in range(50):
      ...     updates, state = tx.update(jax.grad(lambda w: jnp.sum((w - 1) ** 2))(params), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(jnp.abs(params - 1).max() < 0.2)
      True
    """
    parts = [scale_by_orthogonal(spec, **options)]
    if weight_decay:
        parts.append(optax.with_extra_args_support(optax.add_decayed_weights(weight_decay)))
    return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))


def dual_norm(spec: Spec = None, **options: Any) -> Callable[[PyTree], Float[Array, ""]]:
    r"""The norm that is dual to the steps of `scale_by_orthogonal` without grafting, for `scale_by_distance`.

    $0.2 \sqrt{\max(rows, columns)} \|S\|_{nuclear}$ for matrices, by $\langle S, polar(S) \rangle$, and the sum of
    absolute values for the rest.

    Args:
      spec: tells which arrays are matrices; see `find_matrices`.
      **options: of `find_matrices`.

    Returns:
      A function of a tree like the parameters, with a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> norm = dual_norm()({"w": jnp.eye(2), "b": jnp.array([1.0, -2.0])})
      >>> bool(abs(norm - (3 + 0.2 * 2**0.5 * 2)) < 0.2)
      True
    """

    def norm(tree: PyTree) -> Float[Array, ""]:
        found = found_by_path(functools.partial(find_matrices, spec=spec, **options), tree)
        leaves = {path: x.astype(at_least_float32(jnp.result_type(x))) for path, x in leaves_by_path(tree).items()}
        steps = {path: jnp.sign(x) for path, x in leaves.items()}
        steps = _orthogonalized(leaves, steps, found, graft=False)
        return jnp.sum(jnp.stack([jnp.sum(x * steps[path]) for path, x in leaves.items()]))

    return norm


@functools.lru_cache(_KEPT)
def _program(
    found: tuple[LeafMatrices, ...],
    nesterov: bool,
    graft: bool,
    b2: float,
    eps: float,
    shardings: PyTree,
) -> Callable[..., tuple[Leaves, Leaves, Leaves]]:
    """A step, which is one compiled program outside of `jax.jit`, too."""
    by_path = {leaf.path: leaf for leaf in found}
    step = functools.partial(_step, found=by_path, nesterov=nesterov, graft=graft, b2=b2, eps=eps)
    return jax.jit(propagated(step), out_shardings=shardings, inline=True)


def _step(
    grads: Leaves,
    mu: Leaves,
    nu: Leaves,
    *,
    count: Int[Array, ""],
    found: Found,
    momentum: float | Float[Array, ""],
    nesterov: bool,
    graft: bool,
    b2: float,
    eps: float,
) -> tuple[Leaves, Leaves, Leaves]:
    """The direction and the new moments, by path; they have the dtypes of the gradients and of the moments."""
    new, mu, nu = moments(grads, mu, nu, momentum, b2)
    adam = adam_steps(mu, nu, count, momentum, b2, eps)

    # Polar factors need no correction of their bias.
    matrices = [path for path, leaf in found.items() if any(leaf.matrices)]
    ahead = {path: average(mu[path], new[path], momentum) if nesterov else mu[path] for path in matrices}
    direction = adam | _orthogonalized(ahead, adam, found, graft)
    return {path: direction[path].astype(jnp.result_type(g)) for path, g in grads.items()}, mu, nu


def _orthogonalized(momenta: Leaves, adam: Leaves, found: Found, graft: bool) -> Leaves:
    """The steps of the leaves that have matrices: polar factors of the right size, Adam's in other parts."""
    matrices = taken_matrices(momenta, found)
    factors = dict(zip(matrices, polar_factors(list(matrices.values())), strict=True))
    leaves = {path: adam.get(path, x) for path, x in momenta.items()}
    if graft:
        steps = grafted(factors, taken_matrices(leaves, found))
    else:
        steps = {key: _RMS * math.sqrt(max(x.shape[-2:])) * x for key, x in factors.items()}
    return with_matrices(leaves, steps, found)


def grafted(directions: Leaves, steps: Leaves) -> Leaves:
    """The directions of matrices, each with the RMS of the step beside it."""
    return {key: rms(steps[key]) / positive(rms(x)) * x for key, x in directions.items()}
