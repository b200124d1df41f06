r"""A mixture of directions for each leaf: the smallest f of Eq. 31 beside an orthogonalized nominal term.

A network of a few facts about a leaf gives its step a size and adds other directions to the nominal one:

$$ e^{y_0} |o| \, \frac{\hat o + y_1 \hat W + y_2 \hat a + y_3 \hat s}{|\hat o + \ldots|}, \quad
   y = b \tanh(\beta (\tanh(facts \, K_0 + k_0) K_1 + k_1)), $$

o being the nominal term, W the parameter, a Adam's step and s a slow momentum over its root mean square; $|\cdot|$ is
the root mean square over the leaf, $\hat x = x / |x|$ clipped at 10, and b are bounds: what f can do to a run is
limited, whatever its numbers are.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from optax_unf._arguments import check_real, checked_state, given_params
from optax_unf._dtypes import at_least_float32
from optax_unf._sharding import placements, propagated, replicated
from optax_unf.infer import Spec
from optax_unf.nominal.adam import adam_step, unbiased
from optax_unf.nominal.matrices import find_matrices
from optax_unf.nominal.orthogonal import ScaleByOrthogonalState, scale_by_orthogonal
from optax_unf.nominal.polar import positive, root
from optax_unf.optimizer.theta import Layer
from optax_unf.spec.paths import leaves_by_path

FACTS, OUTPUTS = 13, 4
"""What the network sees of a leaf, and what it says: the logarithm of the step's size, and three weights."""

_BOUNDS = (1.0, 0.5, 0.5, 0.5)
_CLIP = 10.0
_EPS, _TINY = 1e-8, 1e-12
# Decays: of the slow momentum, of facts that are noisy, and of the second moments of the nominal term.
_SLOW, _FACT, _SQUARES = 0.99, 0.9, 0.95
_NOISY = 3
# The length that is assumed of a run that does not say, and how much of it such a run ever sees.
_USUAL_STEPS, _FOREVER = 1000, 0.5
_KEPT = 128

_Leaves: TypeAlias = tuple[Float[Array, "..."], ...]


class ScaleByMixtureState(NamedTuple):
    """State of `scale_by_mixture`.

    Attributes:
      nominal: of the nominal term, which counts the updates.
      slow: a tree like the parameters, at least float32: the momentum at 0.99.
      averages: the noisy facts of each leaf, averaged over time, float32 [leaves, 3].
    """

    nominal: ScaleByOrthogonalState
    slow: PyTree
    averages: Float[Array, "leaves noisy"]


def scale_by_mixture(
    layers: Sequence[Layer],
    total_steps: ArrayLike | None = None,
    *,
    spec: Spec = None,
    momentum: float | Float[Array, ""] = 0.9,
    beta: float | Float[Array, ""] = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Replaces gradients by orthogonalized momentum, resized and mixed with other directions, leaf by leaf.

    Args:
      layers: two, with a `kernel` and a `bias` each: from `FACTS` numbers over hidden ones to `OUTPUTS`.
      total_steps: updates in the whole run, traced or not. Without it, a run of 1,000 is assumed that stays in its
        middle.
      spec: tells which arrays are matrices; see `find_matrices`.
      momentum: decay of the nominal term.
      beta: weight of f; at 0 this is the nominal term, `scale_by_orthogonal`.

    Returns:
      A transformation whose `update` requires `params`, in units of their initial size (`in_units`).

    Raises:
      TypeError: a parameter or gradient is not real floating-point.
      ValueError: `params` is missing, or the spec does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> layers = [{"kernel": jnp.zeros((a, b)), "bias": jnp.zeros(b)} for a, b in ((FACTS, 8), (8, OUTPUTS))]
      >>> params = {"w": jnp.eye(3)}
      >>> mixed, nominal = scale_by_mixture(layers, 100), scale_by_orthogonal(momentum=0.9)
      >>> (a, _), (b, _) = (tx.update(params, tx.init(params), params) for tx in (mixed, nominal))
      >>> bool(jnp.allclose(a["w"], b["w"]))
      True
    """
    nominal = scale_by_orthogonal(spec, momentum=momentum)

    def init(params: optax.Params) -> ScaleByMixtureState:
        check_real(params, "parameter")
        leaves = len(jax.tree.leaves(params))
        return ScaleByMixtureState(
            nominal=checked_state(nominal.init(params), ScaleByOrthogonalState),
            slow=jax.tree.map(lambda x: jnp.zeros_like(x, at_least_float32(jnp.result_type(x))), params),
            averages=replicated(jnp.zeros((leaves, _NOISY), jnp.float32), params),
        )

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ScaleByMixtureState]:
        del extra  # every optax transformation accepts what others in its chain need
        params = given_params(params)
        state = checked_state(state, ScaleByMixtureState)
        steps, found = nominal.update(updates, state.nominal, params)
        nominal_state = checked_state(found, ScaleByOrthogonalState)
        if not jax.tree.leaves(updates):
            return steps, state._replace(nominal=nominal_state)

        leaves, structure = jax.tree.flatten(steps)
        given = tuple(
            tuple(jax.tree.leaves(tree))
            for tree in (updates, params, state.nominal.mu, nominal_state.mu, nominal_state.nu)
        )
        program = _program(_matrices(updates, spec), placements((tuple(leaves), tuple(jax.tree.leaves(state.slow)))))
        mixed, slow, averages = program(
            tuple(leaves),
            tuple(jax.tree.leaves(state.slow)),
            given=given,
            averages=state.averages,
            layers=tuple(dict(layer) for layer in layers),
            beta=jnp.asarray(beta, jnp.float32),
            momentum=jnp.asarray(momentum, jnp.float32),
            count=state.nominal.count,
            total_steps=total_steps,
        )
        return structure.unflatten(mixed), ScaleByMixtureState(
            nominal_state, jax.tree.unflatten(jax.tree.structure(state.slow), slow), averages
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _matrices(tree: PyTree, spec: Spec) -> tuple[bool, ...]:
    """For each leaf, in the order of the tree, whether it has matrices."""
    found = {leaf.path: any(leaf.matrices) for leaf in find_matrices(tree, spec)}
    return tuple(found[path] for path in leaves_by_path(tree))


@functools.lru_cache(_KEPT)
def _program(matrices: tuple[bool, ...], shardings: PyTree) -> Any:
    """The mixture as one compiled program outside of `jax.jit`, too."""
    mixed = propagated(functools.partial(_mixed, matrices=matrices))
    return jax.jit(mixed, out_shardings=None if shardings is None else (*shardings, None), inline=True)


def _mixed(
    steps: _Leaves,
    slow: _Leaves,
    *,
    given: tuple[_Leaves, ...],
    averages: Float[Array, "leaves noisy"],
    layers: Sequence[Mapping[str, Array]],
    beta: Float[Array, ""],
    momentum: Float[Array, ""],
    count: Int[Array, ""],
    total_steps: ArrayLike | None,
    matrices: tuple[bool, ...],
) -> tuple[_Leaves, _Leaves, Float[Array, "leaves noisy"]]:
    """The mixtures, the slow momenta and the averages of noisy facts after one more gradient."""
    wide = [[jnp.asarray(x).astype(at_least_float32(jnp.result_type(x))) for x in xs] for xs in (steps, *given)]
    nominal, grads, params, mu_before, mu, nu = wide

    ratio = functools.partial(adam_step, eps=_EPS)
    squares = [unbiased(v, count + 1, _SQUARES) for v in nu]
    adam = [ratio(unbiased(m, count + 1, momentum), v) for m, v in zip(mu, squares, strict=True)]

    # How well a gradient agrees with those before it, and what of it is not noise.
    noisy = [
        jnp.stack([_cosine(g, m), _cosine(g, s), _rms(a)]).astype(jnp.float32)
        for g, m, s, a in zip(grads, mu_before, slow, adam, strict=True)
    ]
    averages = _FACT * averages + (1 - _FACT) * jnp.stack(noisy)
    facts = _facts(unbiased(averages, count + 1, _FACT), params, matrices, count, total_steps)

    first, second = layers
    hidden = jnp.tanh(facts @ first["kernel"] + first["bias"][None])
    chosen = jnp.asarray(_BOUNDS)[None] * jnp.tanh(beta * (hidden @ second["kernel"] + second["bias"][None]))

    slow = tuple((_SLOW * s + (1 - _SLOW) * g).astype(s.dtype) for s, g in zip(slow, grads, strict=True))
    mixtures = []
    for leaf, (o, x, a, s, v) in enumerate(zip(nominal, params, adam, slow, squares, strict=True)):
        y = chosen[leaf].astype(o.dtype)
        s = ratio(s.astype(o.dtype), v)
        d = _unit(o) + y[1] * _clipped(x) + y[2] * _clipped(a) + y[3] * _clipped(s)
        mixtures.append((jnp.exp(y[0]) * _rms(o) * _unit(d)).astype(steps[leaf].dtype))
    return tuple(mixtures), slow, averages


def _facts(
    averages: Float[Array, "leaves noisy"],
    params: Sequence[Float[Array, "..."]],
    matrices: tuple[bool, ...],
    count: Int[Array, ""],
    total_steps: ArrayLike | None,
) -> Float[Array, "leaves facts"]:
    """What the network sees of each leaf, all numbers of about unit size."""
    entries = jnp.asarray([float(x.size) for x in params])
    scale, shift = jnp.asarray([3.0, 3.0, 2.0]), jnp.asarray([0.0, 0.0, 1.0])
    own = scale[None] * averages - shift[None]
    whole = entries @ own / jnp.sum(entries)

    total = jnp.asarray(_USUAL_STEPS if total_steps is None else total_steps, jnp.float32)
    tau = jnp.asarray(count, jnp.float32) / total
    if total_steps is None:
        tau = jnp.minimum(tau, _FOREVER)
    time = [2 * tau - 1, jnp.tanh(10 * (tau - 0.1)), jnp.tanh(10 * (tau - 0.9))]
    length = [jnp.log(total) - 6, jnp.exp(-jnp.asarray(count + 1, jnp.float32) / 20)]
    is_matrix = jnp.asarray(matrices, jnp.float32)[:, None] - 0.5
    sizes = jnp.stack([jnp.log(jnp.maximum(_rms(x).astype(jnp.float32), _TINY)) for x in params])[:, None]

    def shared(*numbers: Float[Array, ""]) -> Float[Array, "leaves numbers"]:
        return jnp.broadcast_to(jnp.stack(numbers), (len(params), len(numbers)))

    return jnp.concatenate([is_matrix, own, shared(*whole, *time), jnp.clip(sizes, -2, 2), shared(*length)], axis=1)


def _rms(x: Float[Array, "*shape"]) -> Float[Array, ""]:
    return root(jnp.sum(x * x) / max(x.size, 1))


def _unit(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return x / positive(_rms(x))


def _clipped(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.clip(_unit(x), -_CLIP, _CLIP)


def _cosine(x: Float[Array, "*shape"], y: Float[Array, "*shape"]) -> Float[Array, ""]:
    return jnp.sum(_unit(x) * _unit(y.astype(x.dtype))) / max(x.size, 1)
