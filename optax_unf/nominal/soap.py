"""Adam in the eigenbases of gradients, as an optax transformation."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from optax_unf._arguments import check_real, checked_state
from optax_unf._sharding import placements, propagated, replicated
from optax_unf.infer import Spec
from optax_unf.nominal.adam import adam_step, adam_steps, average, moments, unbiased
from optax_unf.nominal.leaves import Found, Leaves, found_by_path, refilled, taken_matrices, with_matrices, zeros
from optax_unf.nominal.matrices import find_matrices
from optax_unf.nominal.matrix import LeafMatrices
from optax_unf.nominal.orthogonal import grafted
from optax_unf.nominal.polar import polar_factors, positive
from optax_unf.spec.paths import leaves_by_path

# As many programs are kept.
_KEPT = 128


class Eigenbases(NamedTuple):
    """What is remembered of the gradients G of a batch of matrices.

    Attributes:
      left_moments: the average of G G^T.
      right_moments: the average of G^T G.
      left: about the eigenvectors of the former, one a column, that of the largest eigenvalue first.
      right: likewise of the latter.
      nu: Adam's second moments of left^T G right.
    """

    left_moments: Float[Array, "batch rows rows"]
    right_moments: Float[Array, "batch columns columns"]
    left: Float[Array, "batch rows rows"]
    right: Float[Array, "batch columns columns"]
    nu: Float[Array, "batch rows columns"]


class ScaleBySoapState(NamedTuple):
    """State of `scale_by_soap`.

    Attributes:
      count: number of updates so far, int32 [].
      mu: a tree like the parameters, at least float32: the momenta.
      nu: likewise, Adam's second moments.
      bases: those of the matrices that are not too large, by path and number of the part.
    """

    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride] (optax names it so)
    mu: PyTree
    nu: PyTree
    bases: dict[str, Eigenbases]


def scale_by_soap(
    spec: Spec = None,
    *,
    momentum: float | Float[Array, ""] = 0.9,
    b2: float = 0.95,
    eps: float = 1e-3,
    every: int = 10,
    largest: int = 512,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces gradients by Adam's step in eigenbases of theirs where they are matrices, by Adam's step elsewhere.

    With the eigenvectors $Q_L$ of the average of $G G^T$ and $Q_R$ of that of $G^T G$, a matrix with Nesterov momentum
    M moves by

    $$ Q_L \frac{Q_L^T M Q_R}{\sqrt{V}} Q_R^T, \quad V \leftarrow \beta_2 V + (1 - \beta_2) (Q_L^T G Q_R)^2, $$

    scaled to the RMS of the step that Adam would make for this matrix now. Entries are correlated, so dividing each by
    its own size says little; in these bases they hardly are. As in `scale_by_orthogonal`, all directions in which the
    gradient is alike get steps alike, but what is alike is told by the average over time.

    The bases are decomposed anew in each of the first updates, then followed by one step of orthogonal iteration every
    so many updates. They turn with the neurons: the step is equivariant, but for directions that the gradients have
    not shown yet. They cost a matrix memory and time that grow with the squares and cubes of its sides; matrices with
    a long side are orthogonalized in place of it, as in `scale_by_orthogonal`.

    Nothing depends on the scale of the gradients. Derivatives are not taken through the bases.

    Args:
      spec: tells which arrays are matrices; see `find_matrices`.
      momentum: decay of the momenta.
      b2: decay of all second moments.
      eps: Adam's, relative to the root mean square of the second moments. At first the gradient is diagonal in the
        bases, and what is beside the diagonal is rounding, which an eps as small as Adam's would bring to full size.
      every: updates from one step of the bases to the next, and how many first updates decompose them.
      largest: the longest side of a matrix that gets bases.
      **options: `heads` and `adam`, of `find_matrices`.

    Returns:
      A transformation; `params` is not needed.

    Raises:
      TypeError: a parameter or gradient is not real floating-point.
      ValueError: the spec does not fit.

    References:
      Vyas et al., "SOAP: improving and stabilizing Shampoo using Adam", arXiv:2409.11321, 2024. New here: matrices are
      found as for `scale_by_orthogonal`; the size of Adam's step; momentum that looks ahead.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> tx = optax.chain(scale_by_soap(), optax.scale(-0.1))
      >>> params = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
      >>> grads = {"w": jnp.array([[3.0, 0.0], [0.0, 2.0]]), "b": jnp.ones(2)}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> bool(jnp.allclose(updates["w"], -0.1 * jnp.eye(2), atol=1e-3))
      True
    """
    find = functools.partial(find_matrices, spec=spec, **options)

    def init(params: optax.Params) -> ScaleBySoapState:
        check_real(params, "parameter")
        found = found_by_path(find, params)
        mu = zeros(params, list(found))
        return ScaleBySoapState(
            count=replicated(jnp.zeros([], jnp.int32), params),
            mu=mu,
            nu=zeros(params, list(found)),
            bases=_initial_bases(leaves_by_path(mu), found, largest, params),
        )

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ScaleBySoapState]:
        del extra  # every optax transformation accepts what others in its chain need
        check_real(updates, "gradient")
        state = checked_state(state, ScaleBySoapState)
        found = found_by_path(find, updates if params is None else params)
        count = jnp.asarray(optax.safe_increment(state.count))
        if not found:
            return updates, state._replace(count=count)
        trees = (*map(leaves_by_path, (updates, state.mu, state.nu)), state.bases)
        step = _program(tuple(found.values()), b2, eps, every, placements(trees))
        direction, mu, nu, bases = step(*trees, count=count, momentum=momentum)
        return refilled(updates, direction), ScaleBySoapState(
            count, refilled(state.mu, mu), refilled(state.nu, nu), bases
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _initial_bases(leaves: Leaves, found: Found, largest: int, params: PyTree) -> Any:
    if not leaves:
        # The placeholder of optax.tree.map_params: one leaf, so that the whole is no parameter.
        return jnp.zeros([])
    # Shapes alone, since explicitly sharded leaves cannot be flattened here.
    shapes = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in leaves.items()}
    matrices = jax.eval_shape(functools.partial(taken_matrices, found=found), shapes)
    bases = {key: _untold(x.shape, x.dtype) for key, x in matrices.items() if max(x.shape[-2:]) <= largest}
    return jax.tree.map(lambda x: replicated(x, params), bases)


def _untold(shape: tuple[int, ...], dtype: DTypeLike) -> Eigenbases:
    """The bases before the first gradient."""
    batch, rows, columns = shape

    def identities(side: int) -> Array:
        return jnp.broadcast_to(jnp.eye(side, dtype=dtype), (batch, side, side))

    return Eigenbases(
        left_moments=jnp.zeros((batch, rows, rows), dtype),
        right_moments=jnp.zeros((batch, columns, columns), dtype),
        left=identities(rows),
        right=identities(columns),
        nu=jnp.zeros(shape, dtype),
    )


@functools.lru_cache(_KEPT)
def _program(
    found: tuple[LeafMatrices, ...], b2: float, eps: float, every: int, shardings: PyTree
) -> Callable[..., Any]:
    """A step, which is one compiled program outside of `jax.jit`, too."""
    by_path = {leaf.path: leaf for leaf in found}
    step = functools.partial(_step, found=by_path, b2=b2, eps=eps, every=every)
    return jax.jit(propagated(step), out_shardings=shardings, inline=True)


def _step(
    grads: Leaves,
    mu: Leaves,
    nu: Leaves,
    bases: dict[str, Eigenbases],
    *,
    count: Int[Array, ""],
    found: Found,
    momentum: float | Float[Array, ""],
    b2: float,
    eps: float,
    every: int,
) -> tuple[Leaves, Leaves, Leaves, dict[str, Eigenbases]]:
    """The direction and the new state; they have the dtypes of the gradients and of the state."""
    new, mu, nu = moments(grads, mu, nu, momentum, b2)
    adam = adam_steps(mu, nu, count, momentum, b2, eps)

    ahead = {path: average(mu[path], g, momentum) for path, g in new.items()}
    momenta, gradients = taken_matrices(ahead, found), taken_matrices(new, found)
    bases = _followed(bases, gradients, count, b2, every)
    long = [key for key in momenta if key not in bases]
    factors = dict(zip(long, polar_factors([momenta[key] for key in long]), strict=True))
    turned = {key: _adam_in(own, momenta[key], count, b2, eps) for key, own in bases.items()}

    direction = with_matrices(adam, grafted(factors | turned, taken_matrices(adam, found)), found)
    return {path: direction[path].astype(jnp.result_type(g)) for path, g in grads.items()}, mu, nu, bases


def _adam_in(own: Eigenbases, momentum: Array, count: Int[Array, ""], b2: float, eps: float) -> Array:
    """Adam's step in the eigenbases, turned back."""
    step = adam_step(own.left.mT @ momentum @ own.right, unbiased(own.nu, count, b2), eps)
    return own.left @ step @ own.right.mT


def _followed(
    bases: dict[str, Eigenbases], gradients: Leaves, count: Int[Array, ""], b2: float, every: int
) -> dict[str, Eigenbases]:
    """The bases, and the moments in them, after one more gradient."""
    bases = {key: _averaged(own, gradients[key], b2) for key, own in bases.items()}
    turn = jnp.where(count <= every, 2, jnp.where(count % every == 0, 1, 0))
    bases = jax.lax.switch(turn, (lambda bases: bases, _iterated, _decomposed), bases)
    return {
        key: own._replace(nu=average(own.nu, (own.left.mT @ gradients[key] @ own.right) ** 2, b2))
        for key, own in bases.items()
    }


@jax.default_matmul_precision("highest")
def _averaged(own: Eigenbases, grad: Array, b2: float) -> Eigenbases:
    constant = jax.lax.stop_gradient(grad)
    return own._replace(
        left_moments=average(own.left_moments, constant @ constant.mT, b2),
        right_moments=average(own.right_moments, constant.mT @ constant, b2),
    )


def _decomposed(bases: dict[str, Eigenbases]) -> dict[str, Eigenbases]:
    def vectors(moments: Array) -> Array:
        return jnp.linalg.eigh(_of_unit_trace(moments))[1][..., ::-1]

    return {
        key: own._replace(left=vectors(own.left_moments), right=vectors(own.right_moments))
        for key, own in bases.items()
    }


@jax.default_matmul_precision("highest")
def _iterated(bases: dict[str, Eigenbases]) -> dict[str, Eigenbases]:
    """One step of orthogonal iteration."""

    def vectors(moments: Array, old: Array) -> Array:
        return jnp.linalg.qr(_of_unit_trace(moments) @ old)[0]

    return {
        key: own._replace(left=vectors(own.left_moments, own.left), right=vectors(own.right_moments, own.right))
        for key, own in bases.items()
    }


def _of_unit_trace(moments: Array) -> Array:
    """Squares of small gradients are tiny, those of large ones large."""
    return moments / positive(jnp.trace(moments, axis1=-2, axis2=-1)[..., None, None])
