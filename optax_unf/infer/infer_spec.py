"""The permutation spec of any JAX function, from its jaxpr."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import PyTree

from optax_unf.infer import generic
from optax_unf.infer.axes import named_axes, reasons_of
from optax_unf.infer.interpret import Interpreter, constant_of, has_ties
from optax_unf.infer.terms import fix
from optax_unf.infer.value import Given, Value, plain, scattered
from optax_unf.spec.make_spec import make_spec
from optax_unf.spec.paths import leaves_by_path, natural_order, show_path
from optax_unf.spec.permutation_spec import PermutationSpec

Mode = Literal["fixed", "permute"]

# Why an axis may not move, and how the spec says it.
_REASONS = {
    "data": "data or output",
    "spatial": "positions of a convolution or window",
    "noise": "random draws of one key",
    "order": "its order matters",
    "constant": "meets an array that the function holds",
    "unknown": "meets an operation without a rule",
    "depth": "structure that a spec cannot express",
}


def infer_spec(
    fn: Callable[..., Any],
    params: PyTree,
    *args: Any,
    io: Mode = "fixed",
    spatial: Mode = "fixed",
    noise: Mode = "fixed",
    strict: bool = False,
) -> PermutationSpec:
    """The permutation spec of a function's parameters: which permutations of them leave the function as it is.

    Traces `fn(params, *args)` to a jaxpr, without executing anything, and follows every axis of every parameter
    through it. Axes that must permute together get one name; axes whose order the function depends on are fixed. Zhou,
    Finn & Harrison 2024 (arXiv:2402.05232, Section 5) leave this deduction open.

    An axis that is reshaped into several becomes a product of names, one that is cut into parts or made of parts a
    `Concat`. Names are made from the path and axis where a permutation occurs first. `print(spec)` also tells why axes
    are fixed, and which leaves the function does not use: those constrain nothing, so their axes have names of their
    own.

    Args:
      fn: a function of parameters and arguments, such as a loss or a model's apply function. What it returns must not
        change under a permutation; so return only that, and no new statistics or other activations.
      params: the parameters: arrays or `jax.ShapeDtypeStruct`. Running statistics that permute along with neurons
        belong here.
      *args: the other arguments: arrays or `jax.ShapeDtypeStruct`; anything else is passed as it is.
      io: `"fixed"`: axes that touch the data or the outputs (input features, classes, vocabulary, sequence positions)
        are fixed, which is the truth; `"permute"`: they have names, as if data and outputs permuted along, which is
        the simplification that the paper makes. Such names are `spec.io`.
      spatial: the same choice for the spatial axes of convolution kernels; the paper names them.
      noise: the same choice for axes along which the function draws random numbers, such as dropout masks: for one key
        the order of the draws matters, in distribution it does not.
      strict: raise an error at operations without a rule, instead of fixing what they touch with a warning.

    Returns:
      The spec.

    Raises:
      TypeError: the function cannot be traced, takes a flax.nnx model where it is given the State of one, or a leaf of
        the parameters is no array.
      ValueError: the outputs do not depend on the parameters.
      NotImplementedError: with `strict=True`, an operation has no rule.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def apply(params, x):
      ...     return jax.nn.relu(x @ params["w1"]) @ params["w2"]
      >>> params = {"w1": jnp.zeros((3, 8)), "w2": jnp.zeros((8, 2))}
      >>> spec = infer_spec(apply, params, jnp.zeros(3))
      >>> [leaf.axes for leaf in spec.leaves]
      [(None, 'w1:1'), ('w1:1', None)]
    """
    for setting, mode in {"io": io, "spatial": spatial, "noise": noise}.items():
        if mode not in ("fixed", "permute"):
            raise ValueError(f"{setting} must be 'fixed' or 'permute', but is {mode!r}.")
    leaves = leaves_by_path(params)
    for path, leaf in leaves.items():
        if not hasattr(leaf, "shape") and not isinstance(leaf, bool | int | float | complex):
            raise TypeError(
                f"Parameters must be arrays, but leaf {show_path(path)} is {leaf!r}. Keep only arrays among them, as "
                f"flax.nnx.split or equinox.partition do."
            )
    shapes = {path: tuple(np.shape(leaf)) for path, leaf in leaves.items()}
    values = {
        path: Value(scattered(shape), generic=parameter_of(number, leaves[path]))
        for number, (path, shape) in enumerate(shapes.items())
    }
    unused = _follow(fn, params, args, list(values.values()), strict)

    if not leaves:
        return make_spec({}, params)
    permuted = {"data": io, "spatial": spatial, "noise": noise}
    allowed = frozenset(reason for reason, mode in permuted.items() if mode == "permute")
    order = sorted(leaves, key=natural_order)
    axes, names = named_axes({path: values[path].axes for path in order}, allowed)
    spec = make_spec(_like(params, axes), params, sizes={name: atom.size for name, atom in names.items()})
    notes = [
        (path, f"axis {axis}: {', '.join(_REASONS[reason] for reason in reasons)}")
        for path in order
        for axis, term in enumerate(values[path].axes)
        if (reasons := tuple(r for r in reasons_of(term) if r not in allowed))
    ]
    notes += [(path, "not used") for path, is_unused in zip(leaves, unused, strict=True) if is_unused]
    return PermutationSpec(
        spec.leaves,
        io=tuple(name for name, atom in names.items() if "data" in atom.reasons),
        noise=tuple(name for name, atom in names.items() if "noise" in atom.reasons),
        spatial=tuple(name for name, atom in names.items() if "spatial" in atom.reasons),
        notes=tuple(sorted(notes, key=lambda note: natural_order(note[0]))),
    )


def _like(params: PyTree, axes: dict[str, Any]) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(params), [axes[path] for path in leaves_by_path(params)])


def parameter_of(number: int, leaf: Any) -> generic.Generic:
    """What is almost surely true of a leaf: its entries are independent, if they are real numbers."""
    is_real = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return generic.parameter(number, np.ndim(leaf)) if is_real else generic.parameter(number, 0, known=False)


def data_of(array: Any) -> generic.Generic:
    """What is true of an argument, by its values if it has any."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return generic.Generic()
    has_values = isinstance(array, np.ndarray) or (
        isinstance(array, jax.Array) and not isinstance(array, Tracer) and array.is_fully_addressable
    )
    return generic.data(tuple(array.shape), np.asarray(array) if has_values else None)


def _follow(
    fn: Callable[..., Any], params: PyTree, args: tuple[Any, ...], values: list[Value], strict: bool
) -> list[bool]:
    """Follows the parameters' axes through the function; tells which leaves it does not use."""
    inputs, treedef = jax.tree.flatten((params, args))
    is_array = [hasattr(x, "shape") and hasattr(x, "dtype") for x in inputs]
    is_array[: len(values)] = [True] * len(values)

    def flat(*arrays: Any) -> Any:
        given = iter(arrays)
        return fn_of(treedef.unflatten([next(given) if a else x for a, x in zip(is_array, inputs, strict=True)]))

    def fn_of(tree: Any) -> Any:
        params, args = tree
        return [x for x in jax.tree.leaves(fn(params, *args)) if hasattr(x, "shape")]

    try:
        closed = jax.make_jaxpr(flat)(*(x for x, a in zip(inputs, is_array, strict=True) if a))
    except jax.errors.ConcretizationTypeError as error:
        raise TypeError(
            "infer_spec follows a function that jax can trace, but this one looks at the values of its arguments, as "
            "Python's if, while and int() do. Use jax.lax.cond and jnp.where instead, or pass settings as plain Python "
            "values."
        ) from error
    except (AttributeError, TypeError) as error:
        if not _uses_as_model(params, error):
            raise
        name = getattr(fn, "__name__", "")
        loss = name if name.isidentifier() else "loss"
        raise TypeError(
            f"The function must take the parameters, here the State of a flax.nnx model, but uses them as the model "
            f"itself ({error}). Merge the model inside of the function:\n\n"
            f"graph, params, rest = nnx.split(model, nnx.Param, ...)\n"
            f"spec = Inferred(lambda params, rest, *args: {loss}(nnx.merge(graph, params, rest), *args), rest, batch)"
            f"\n\ninfer_spec takes the same function, and params after it."
        ) from error
    jaxpr, used = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    if values and not any(used[: len(values)]):
        raise ValueError(
            "The outputs of the function must depend on its parameters, but no leaf is used. Check that it gets its "
            "parameters from its first argument."
        )
    arguments = [x for x, a in zip(inputs, is_array, strict=True) if a][len(values) :]
    given = [Value(scattered(tuple(np.shape(x)), "data"), Given(), generic=data_of(x)) for x in arguments]
    read = [value for value, u in zip([*values, *given], used, strict=True) if u]
    interpreter = Interpreter(strict=strict, has_ties=has_ties(jaxpr))
    for output in interpreter.run(jaxpr, [constant_of(c) for c in closed.consts], read):
        for term in plain(output).axes:
            fix(term, "data")
    interpreter.finish(values)
    return [not u for u in used[: len(values)]]


def _uses_as_model(params: PyTree, error: Exception) -> bool:
    """Whether a function failed because it calls, or asks for attributes of, the State of a flax.nnx model."""
    kind = type(params)
    return kind.__name__ == "State" and kind.__module__.startswith("flax.nnx") and "State" in str(error)
