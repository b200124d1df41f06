"""Orthogonalized momentum as an optax transformation."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from optax_unf._arguments import check_real, checked_state
from optax_unf._dtypes import at_least_float32
from optax_unf._sharding import placements, propagated, replicated
from optax_unf.infer import Spec
from optax_unf.nominal.matrices import find_matrices
from optax_unf.nominal.matrix import LeafMatrices, Matrix
from optax_unf.nominal.polar import polar_factor, positive, root
from optax_unf.spec.leaf import join_parts, split_parts
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
        found = _by_path(find, params)
        return ScaleByOrthogonalState(
            count=replicated(jnp.zeros([], jnp.int32), params),
            mu=_zeros(params, list(found)),
            nu=_zeros(params, [path for path, leaf in found.items() if graft or not all(leaf.matrices)]),
        )

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ScaleByOrthogonalState]:
        del extra  # every optax transformation accepts what others in its chain need
        check_real(updates, "gradient")
        state = checked_state(state, ScaleByOrthogonalState)
        found = _by_path(find, updates if params is None else params)
        trees = tuple(map(leaves_by_path, (updates, state.mu, state.nu)))
        count = jnp.asarray(optax.safe_increment(state.count))
        step = _program(tuple(found.values()), nesterov, graft, b2, eps, placements(trees))
        direction, *moments = step(*trees, count=count, momentum=momentum)
        return _refilled(updates, direction), ScaleByOrthogonalState(
            count, *(_refilled(old, new) for old, new in zip(state[1:], moments, strict=True))
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
        found = _by_path(functools.partial(find_matrices, spec=spec, **options), tree)
        leaves = {path: x.astype(at_least_float32(jnp.result_type(x))) for path, x in leaves_by_path(tree).items()}
        steps = {path: jnp.sign(x) for path, x in leaves.items()}
        steps = _orthogonalized(leaves, steps, found, graft=False)
        return jnp.sum(jnp.stack([jnp.sum(x * steps[path]) for path, x in leaves.items()]))

    return norm


_Leaves = dict[str, Array]


@functools.lru_cache(_KEPT)
def _program(
    found: tuple[LeafMatrices, ...],
    nesterov: bool,
    graft: bool,
    b2: float,
    eps: float,
    shardings: PyTree,
) -> Callable[..., tuple[_Leaves, _Leaves, _Leaves]]:
    """A step, which is one compiled program outside of `jax.jit`, too."""
    by_path = {leaf.path: leaf for leaf in found}
    step = functools.partial(_step, found=by_path, nesterov=nesterov, graft=graft, b2=b2, eps=eps)
    return jax.jit(propagated(step), out_shardings=shardings, inline=True)


def _step(
    grads: _Leaves,
    mu: _Leaves,
    nu: _Leaves,
    *,
    count: Int[Array, ""],
    found: dict[str, LeafMatrices],
    momentum: float | Float[Array, ""],
    nesterov: bool,
    graft: bool,
    b2: float,
    eps: float,
) -> tuple[_Leaves, _Leaves, _Leaves]:
    """The direction and the new moments, by path; they have the dtypes of the gradients and of the moments."""
    wide = {path: jnp.asarray(g).astype(at_least_float32(jnp.result_type(g))) for path, g in grads.items()}

    # Averages, so that none is larger than the gradients.
    mu = {path: _average(m, wide[path], momentum) for path, m in mu.items()}
    nu = {path: _average(v, wide[path] ** 2, b2) for path, v in nu.items()}
    adam = {path: adam_step(unbiased(mu[path], count, momentum), unbiased(nu[path], count, b2), eps) for path in nu}

    # Polar factors need no correction of their bias.
    matrices = [path for path, leaf in found.items() if any(leaf.matrices)]
    ahead = {path: _average(mu[path], wide[path], momentum) if nesterov else mu[path] for path in matrices}
    direction = adam | _orthogonalized(ahead, adam, found, graft)
    return {path: direction[path].astype(jnp.result_type(g)) for path, g in grads.items()}, mu, nu


def _average(old: Array, new: Array, decay: float | Float[Array, ""]) -> Array:
    decay = jnp.asarray(decay, new.dtype)
    return decay * old.astype(new.dtype) + (1 - decay) * new


def unbiased(average: Array, count: Int[Array, ""], decay: float | Float[Array, ""]) -> Array:
    """An average over `count` numbers that began at zero, without the bias towards it."""
    return average / (1 - jnp.asarray(decay, average.dtype) ** count.astype(average.dtype))


def adam_step(mu: Array, nu: Array, eps: float) -> Array:
    """A momentum over the root of second moments, epsilon being relative to their mean."""
    size = root(nu) + eps * root(jnp.mean(nu))
    return mu / positive(size)


def _orthogonalized(momenta: _Leaves, adam: _Leaves, found: dict[str, LeafMatrices], graft: bool) -> _Leaves:
    """The steps of the leaves that have matrices: polar factors of the right size, Adam's in other parts."""
    parts: dict[str, list[Array]] = {}
    sources: dict[tuple[str, int], tuple[Matrix, Array]] = {}
    for path, x in momenta.items():
        taken = found[path]
        parts[path] = split_parts(adam.get(path, x), taken.leaf)
        for k, (matrix, part) in enumerate(zip(taken.matrices, split_parts(x, taken.leaf), strict=True)):
            if matrix is not None:
                sources[path, k] = matrix, matrix.flatten(part)

    factors = _polar_factors([x for _, x in sources.values()])
    for ((path, k), (matrix, _)), factor in zip(sources.items(), factors, strict=True):
        part = parts[path][k]
        sides = factor.shape[-2:]
        size = _rms(matrix.flatten(part)) / positive(_rms(factor)) if graft else _RMS * math.sqrt(max(sides))
        parts[path][k] = matrix.unflatten(size * factor, part.shape)
    return {path: join_parts(own, found[path].leaf) for path, own in parts.items()}


def _polar_factors(matrices: Sequence[Float[Array, "_ _ _"]]) -> list[Array]:
    """The polar factors of batches of matrices, those of one shape together."""
    wide = [x if x.shape[-2] <= x.shape[-1] else x.mT for x in matrices]
    groups: dict[Any, list[int]] = {}
    for k, x in enumerate(wide):
        # Side by side in one array, parts of leaves with different shardings would lose them.
        groups.setdefault((x.shape[-2:], x.dtype) if jax.device_count() == 1 else k, []).append(k)

    factors: dict[int, Array] = {}
    for members in groups.values():
        together = polar_factor(jnp.concatenate([wide[k] for k in members]))
        start = 0
        for k in members:
            stop = start + wide[k].shape[0]
            factors[k] = together[start:stop]
            start = stop
    return [factors[k] if wide[k] is x else factors[k].mT for k, x in enumerate(matrices)]


def _rms(x: Float[Array, "batch rows columns"]) -> Float[Array, "batch 1 1"]:
    return root(jnp.mean(x * x, axis=(-2, -1), keepdims=True))


def _by_path(find: Callable[[PyTree], tuple[LeafMatrices, ...]], params: PyTree) -> dict[str, LeafMatrices]:
    # optax.tree.map_params passes a placeholder, without leaves, which no spec fits.
    return {leaf.path: leaf for leaf in find(params)} if jax.tree.leaves(params) else {}


def _zeros(params: PyTree, paths: Sequence[str]) -> PyTree:
    """Zeros like the parameters of these paths, at least float32, and masked nodes for the others."""
    dtypes = {path: at_least_float32(jnp.result_type(x)) for path, x in leaves_by_path(params).items()}
    zeros = [
        jnp.zeros_like(x, dtypes[path]) if path in paths else optax.MaskedNode()
        for path, x in leaves_by_path(params).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(params), zeros)


def _refilled(tree: PyTree, leaves: _Leaves) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[path] for path in leaves_by_path(tree)])
