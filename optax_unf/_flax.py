"""flax, for the modules that are written in it; training with an optimizer needs none of them."""

try:
    from flax import linen as linen
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "The layers of optax_unf.nn and the networks of optax_unf.compare need flax, which is not installed: "
        "pip install 'optax-unf[nn]'."
    ) from error
