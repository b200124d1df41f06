"""Rules for products: matrix products and convolutions."""

from collections.abc import Sequence
from typing import Any

from optax_unf.infer.structural import split_factor
from optax_unf.infer.terms import Atom, Term, fix, product_of
from optax_unf.infer.unify import join
from optax_unf.infer.value import Value

Params = dict[str, Any]


def dot_general(params: Params, left: Value, right: Value) -> Value:
    """Contracted axes move together, and so do batch axes; the others pass."""
    (left_gone, right_gone), (left_batch, right_batch) = params["dimension_numbers"]
    for a, b in zip(left_gone, right_gone, strict=True):
        join(left.axes[a], right.axes[b])
    batch = [join(left.axes[a], right.axes[b]) for a, b in zip(left_batch, right_batch, strict=True)]
    free = [term for axis, term in enumerate(left.axes) if axis not in (*left_gone, *left_batch)]
    free += [term for axis, term in enumerate(right.axes) if axis not in (*right_gone, *right_batch)]
    return Value((*batch, *free))


def convolution(shape: tuple[int, ...], params: Params, x: Value, kernel: Value) -> Value:
    """Channels are contracted; positions are ordered, unless the window takes one of them at a time, or all at once."""
    numbers = params["dimension_numbers"]
    batch, channels, *spatial = numbers.lhs_spec
    outputs, inputs, *window = numbers.rhs_spec
    out_batch, out_channels, *out_spatial = numbers.out_spec
    axes: list[Term] = [Atom(size, "spatial") for size in shape]

    batch_term, channel_term, output_term = x.axes[batch], x.axes[channels], kernel.axes[outputs]
    if params["feature_group_count"] > 1:
        channel_group, channel_term = split_factor(channel_term, params["feature_group_count"])
        output_group, within = split_factor(output_term, params["feature_group_count"])
        output_term = product_of([join(channel_group, output_group), within])
    if params["batch_group_count"] > 1:
        batch_group, batch_term = split_factor(batch_term, params["batch_group_count"])
        output_group, within = split_factor(output_term, params["batch_group_count"])
        output_term = product_of([join(batch_group, output_group), within])
    join(channel_term, kernel.axes[inputs])
    axes[out_batch], axes[out_channels] = batch_term, output_term

    settings: Sequence[Any] = (
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
    )
    for axis, (there, here, out) in enumerate(zip(spatial, window, out_spatial, strict=True)):
        stride, padding, dilation, kernel_dilation = (setting[axis] for setting in settings)
        plain = stride == dilation == kernel_dilation == 1 and not any(padding)
        if plain and kernel.axes[here].size == 1:
            axes[out] = x.axes[there]
        elif plain and kernel.axes[here].size == x.axes[there].size:
            join(kernel.axes[here], x.axes[there])
            axes[out] = product_of(())
        else:
            fix(x.axes[there], "spatial")
            fix(kernel.axes[here], "spatial")
    return Value(tuple(axes))
