"""Types to compute in, without jax's promotion: it knows no 8-bit floats, and can be set to refuse any two types."""

import jax.numpy as jnp
from jax.typing import DTypeLike


def at_least_float32(*dtypes: DTypeLike) -> jnp.dtype:
    """float32, or float64 if one of the floating-point types is.

    Example:
      >>> at_least_float32("bfloat16", "float8_e4m3fn")
      dtype('float32')
    """
    return jnp.dtype(jnp.float64 if any(jnp.finfo(dtype).bits > 32 for dtype in dtypes) else jnp.float32)


def is_signed_float(dtype: DTypeLike) -> bool:
    """Whether a type is of real floating-point numbers of either sign, which scales (float8_e8m0fnu) are not."""
    return bool(jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).min < 0)
