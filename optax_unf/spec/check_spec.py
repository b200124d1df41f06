"""Checking a permutation spec numerically: permuted parameters must give the same outputs."""

import contextlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, PyTree

from optax_unf.infer import Inferred, resolved
from optax_unf.spec.axes import Name, names_of
from optax_unf.spec.paths import leaves_by_path, show_path
from optax_unf.spec.permutation_spec import PermutationSpec

_Changes: TypeAlias = dict[str, tuple[float, str]]  # by output: how large, and the same in words


class SpecError(ValueError):
    """A function changes under the permutations of a spec.

    Attributes:
      names: the names that change it, each permuted alone; empty where only several together do.
    """

    def __init__(self, message: str, names: tuple[Name, ...] = ()):
        super().__init__(message)
        self.names = names


def check_spec(
    fn: Callable[..., PyTree],
    spec: PermutationSpec | Inferred | PyTree,
    params: PyTree,
    *args: Any,
    key: Array,
    trials: int = 3,
    rtol: float | None = None,
    skip: Iterable[Name] | None = None,
    perturb: bool = True,
) -> None:
    """Checks that a function does not change when its parameters are permuted as a spec says.

    Each trial perturbs the parameters anew and permutes them by a random element of the group. The first trial also
    permutes by each name alone, by a cycle and a swap: these two generate every permutation of the name, so a name that
    is wrong on part of its positions does not pass by luck.

    Parameters, arguments and fn are evaluated in float64, or in their own types where fn does not accept that. fn is
    compiled once. What is checked is necessary for a spec to be right; a spec with fewer symmetries than fn has passes.

    Args:
      fn: a function of the parameters and `args` with any tree of arrays as its value: logits, a loss.
      spec: a `PermutationSpec`, the nested tuples of names that `make_spec` takes, or `Inferred(fn, *args)`.
      params: the parameters.
      *args: the other arguments of `fn`. Arrays are traced, as by `jax.jit`; everything else is constant.
      key: a PRNG key for permutations and perturbations.
      trials: how many times to try.
      rtol: how large a change is accepted, relative to the largest entry of an output (or to `rtol`, where all
        entries are smaller). By default the square root of
        the coarsest floating-point precision that occurs in fn: 1.5e-8 in float64, 3e-4 in float32.
      skip: names not to permute. By default those that a mode of `infer_spec` let in although fn changes under them, in
        `spec.io`, `spec.noise` and `spec.spatial`.
      perturb: whether to multiply every parameter by exp(noise / 4) and to replace zeros by |noise| / 10, with unit
        normal noise. Parameters keep their signs. Without it, biases that are all zeros and scales that are all ones
        hide what permuting them would change.

    Raises:
      SpecError: the outputs change; the message has the names that cause it and where they act.
      ValueError: an output is not finite, `params` does not fit the spec, or an argument is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_unf import SpecError, check_spec
      >>> def loss(params, x):
      ...     return jnp.sum(jax.nn.relu(x @ params["w1"]) @ params["w2"])
      >>> params = {"w1": jnp.ones((3, 4)), "w2": jnp.ones((4, 2))}
      >>> x = jnp.arange(6.0).reshape(2, 3)
      >>> check_spec(loss, {"w1": (None, "hidden"), "w2": ("hidden", None)}, params, x, key=jax.random.key(0))
      >>> try:
      ...     check_spec(loss, {"w1": ("in", "hidden"), "w2": ("hidden", None)}, params, x, key=jax.random.key(0))
      ... except SpecError as error:
      ...     print(error.names)
      ('in',)
    """
    spec = resolved(spec, params)
    if trials < 1:
        raise ValueError(f"The argument trials must be at least 1, but is {trials}.")
    skipped = {*spec.io, *spec.noise, *spec.spatial} if skip is None else set(skip)
    if not skipped <= set(spec.sizes):
        raise ValueError(
            f"The argument skip must have names of the spec, but has {_listed(skipped - set(spec.sizes))}; the spec "
            f"has {_listed(spec.sizes) or 'no names'}."
        )
    names = [name for name, size in spec.sizes.items() if size > 1 and name not in skipped]
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    leaves = [x if isinstance(x, jax.Array) else np.asarray(x) for x in spec.flatten(params, "parameters")]
    evaluate, precision = _compile(fn, spec, params, leaves, args)
    tolerance = precision**0.5 if rtol is None else rtol

    for trial in range(trials):
        noisy = [_perturbed(leaf, generator) for leaf in leaves] if perturb else leaves
        reference = evaluate(noisy, {})
        _check_finite(reference, perturb)

        def changes(permutation: dict[Name, np.ndarray], noisy=noisy, reference=reference) -> _Changes:
            return _changes(reference, evaluate(noisy, permutation), tolerance)

        together = changes({name: generator.permutation(spec.sizes[name]) for name in names})
        if together or trial == 0:
            alone: dict[Name, _Changes] = {}
            for name in names:
                for element in _generators(spec.sizes[name], generator):
                    alone[name] = alone.get(name) or changes({name: element})
            wrong = {name: found for name, found in alone.items() if found}
            if wrong or together:
                raise SpecError(_message(spec, wrong, together, tolerance), tuple(wrong))


def _listed(names: Iterable[Name]) -> str:
    return ", ".join(map(repr, names))


# Permutations and perturbations are made by numpy: jax would compile a program for each shape.


def _generators(size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """A cycle through all positions and a swap of two neighbours on it: they generate the symmetric group."""
    order = generator.permutation(size)
    cycle, swap = np.arange(size), np.arange(size)
    cycle[order] = np.roll(order, 1)
    swap[order[:2]] = order[1::-1]
    yield cycle
    yield swap


def _perturbed(leaf: Any, generator: np.random.Generator) -> Any:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf
    leaf = np.asarray(leaf)
    noise = generator.normal(size=leaf.shape)
    return np.where(leaf == 0, 0.1 * np.abs(noise), leaf * np.exp(noise / 4))


# Evaluation.


def _compile(
    fn: Callable[..., PyTree], spec: PermutationSpec, params: PyTree, leaves: list[Any], args: tuple[Any, ...]
) -> tuple[Callable[[list[Any], dict[Name, np.ndarray]], dict[str, np.ndarray]], float]:
    """A function of (leaves, permutation) that gives the outputs by path, and the coarsest precision in it."""
    nodes, structure = jax.tree.flatten(args)
    arrays = {i: node for i, node in enumerate(nodes) if isinstance(node, jax.Array | np.ndarray)}
    identity = OrderedDict((name, np.arange(size)) for name, size in spec.sizes.items())

    def run(leaves: list[Array], permutation: dict[Name, Array], arrays: dict[int, Array]) -> PyTree:
        filled = [arrays.get(i, node) for i, node in enumerate(nodes)]
        return fn(
            spec.permute(permutation, spec.unflatten(leaves, like=params)), *jax.tree.unflatten(structure, filled)
        )

    def compiled(wide: bool) -> Any:
        def call(step: Callable[..., Any], values: list[Any], permutation: dict[Name, np.ndarray]) -> Any:
            with contextlib.ExitStack() as stack:
                stack.enter_context(jax.default_matmul_precision("highest"))
                if wide:
                    stack.enter_context(jax.enable_x64(True))
                    stack.enter_context(warnings.catch_warnings(action="ignore"))  # fn did not ask for float64
                cast = [_cast(x, leaf.dtype, wide) for x, leaf in zip(values, leaves, strict=True)]
                return step(cast, identity | permutation, {i: _cast(x, x.dtype, wide) for i, x in arrays.items()})

        def build(*inputs: Any) -> tuple[core.Jaxpr, Callable[..., PyTree]]:
            traced = jax.jit(run).trace(*inputs)
            return traced.jaxpr.jaxpr, traced.lower().compile()

        jaxpr, program = call(build, leaves, {})

        def evaluate(values: list[Any], permutation: dict[Name, np.ndarray]) -> dict[str, np.ndarray]:
            return {path: _as_numpy(x) for path, x in leaves_by_path(call(program, values, permutation)).items()}

        return evaluate, max(map(_precision, _dtypes(jaxpr)), default=_precision(np.dtype(np.float64)))

    try:
        return compiled(wide=True)
    except Exception:  # whatever fn does not accept in float64; an error that has other causes comes again
        pass
    return compiled(wide=False)


def _cast(x: Any, dtype: Any, wide: bool) -> Any:
    if wide and jnp.issubdtype(dtype, jnp.inexact):
        dtype = np.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else np.float64
    return x if x.dtype == dtype else np.asarray(x).astype(dtype)


def _dtypes(jaxpr: core.Jaxpr) -> Iterator[Any]:
    """The types of everything that is computed."""
    for equation in jaxpr.eqns:
        yield from (getattr(out.aval, "dtype", None) for out in equation.outvars)
        # jax has a function for these only since 0.10.
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr)):
            if isinstance(inner, core.Jaxpr | core.ClosedJaxpr):
                yield from _dtypes(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)


def _precision(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps) if dtype is not None and jnp.issubdtype(dtype, jnp.inexact) else 0.0


def _as_numpy(x: Array) -> np.ndarray:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    array = np.asarray(x)
    # Numbers of narrow types, such as bfloat16, overflow or round where they are subtracted.
    return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


# Comparison.


def _check_finite(outputs: dict[str, np.ndarray], perturb: bool) -> None:
    for path, x in outputs.items():
        if not np.isfinite(x).all():
            raise ValueError(
                f"The outputs of fn must be finite to be compared, but {np.sum(~np.isfinite(x))} of {x.size} entries "
                f"of output {show_path(path)} are not. "
                + ("Give check_spec parameters that stay valid when perturbed, or perturb=False." if perturb else "")
            )


def _changes(old: dict[str, np.ndarray], new: dict[str, np.ndarray], rtol: float) -> _Changes:
    """The outputs that change by more than rounding."""
    changes = {}
    for path, before in old.items():
        after = new[path]
        if not np.issubdtype(before.dtype, np.inexact):
            differ = np.sum(before != after)
            if differ:
                changes[path] = (np.inf, f"{differ} of {before.size} entries of output {show_path(path)} differ")
            continue
        scale = np.maximum(np.abs(before), np.abs(after)).max(initial=0)
        change = np.abs(after - before).max(initial=0)
        if not change <= rtol * max(scale, rtol):  # a change that is not a number counts
            share = float(change / scale)
            changes[path] = (share, f"output {show_path(path)} changes by {share:.1e} of its largest entry")
    return changes


def _message(spec: PermutationSpec, alone: dict[Name, _Changes], together: _Changes, rtol: float) -> str:
    lines = [f"The outputs of fn must not change when the parameters are permuted, but do so (tolerance {rtol:.1e}) by"]
    for name, changes in alone.items():
        where = [
            f"{leaf.path or '(bare array)'}[{index}]"
            for leaf in spec.leaves
            for index, axis in enumerate(leaf.axes)
            if name in names_of(axis)
        ]
        lines.append(f"- {name!r} alone, on {', '.join(where)}: {max(changes.values())[1]}.")
    if not alone:
        lines.append(f"- no name alone, but all names together: {max(together.values())[1]}.")
    lines.append(
        "Give axes that do not permute together different names, and None to those that touch data or outputs."
    )
    return "\n".join(lines)
