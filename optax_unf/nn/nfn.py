"""The layer of permutation-equivariant neural functionals."""

import jax.numpy as jnp

from optax_unf._arguments import check_is_spec
from optax_unf._flax import linen as nn
from optax_unf.equivariant.layout import Features, channels_first, to_tree
from optax_unf.equivariant.nfn import feed_forward, neuron_layers, nfn_plan
from optax_unf.nn.parameters import parameters
from optax_unf.spec.permutation_spec import PermutationSpec


class NFN(nn.Module):
    r"""The equivariant linear layer of Zhou et al. 2023a (arXiv:2302.14040, Section 2), for MLPs and CNNs.

    This is the paper's NP setting: input and output neurons permute, too. With kernels W^(i) between the neurons k
    of layer i - 1 and j of layer i, biases v^(i), and a star for a mean, each term has its own matrix on the channels:

        W^(i)_jk -> sum_s W^(s)_** + sum_s v^(s)_* + W^(i)_j* + W^(i)_*k + W^(i-1)_k* + W^(i+1)_*j
                    + v^(i)_j + v^(i-1)_k + W^(i)_jk
        v^(i)_j  -> sum_s W^(s)_** + sum_s v^(s)_* + W^(i)_j* + W^(i+1)_*j + v^(i)_j

    where the paper has sums, so that features keep their scale when widths change. The equations are the same when
    the network is read from its outputs to its inputs: kernels may have their axes in either order. Fixed axes, such
    as the height and width of a convolution kernel, are channels. It spans what `UNF` spans on these networks.

    Attributes:
      spec: the permutation spec of the weight space: kernels that form one chain, and at most one bias a layer.
      channels: number of output channels.
      use_bias: add the constant equivariant maps.

    Raises:
      TypeError: `spec` is no `PermutationSpec`.
      ValueError: the spec is not that of a feed-forward network (at construction), or the input has other leaves or
        shapes than the spec.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_unf import make_spec
      >>> params = {"w1": jnp.ones((5, 3)), "b1": jnp.ones(3), "w2": jnp.ones((3, 2))}
      >>> spec = make_spec({"w1": ("in", "hidden"), "b1": ("hidden",), "w2": ("hidden", "out")}, params)
      >>> x = jax.tree.map(lambda leaf: leaf[..., None], params)
      >>> y, _ = NFN(spec, channels=4).init_with_output(jax.random.key(0), x)
      >>> y["w1"].shape
      (5, 3, 4)
    """

    spec: PermutationSpec
    channels: int
    use_bias: bool = True

    def __post_init__(self) -> None:
        check_is_spec(self.spec, "NFN's spec")
        neuron_layers(self.spec)
        super().__post_init__()

    @nn.compact
    def __call__(self, features: Features) -> Features:
        """Applies the layer.

        Args:
          features: a pytree of features.

        Returns:
          A tree of the same structure with `channels` channels; each leaf keeps its dtype.
        """
        xs = channels_first(features, self.spec)
        if not xs:
            return features
        params = parameters(self, nfn_plan(self.spec, len(xs[0]), self.channels, use_bias=self.use_bias))
        dtype = jnp.result_type(*xs)
        ys = feed_forward(params, self.spec, [x.astype(dtype) for x in xs], self.channels)
        return to_tree([y.astype(x.dtype) for y, x in zip(ys, xs, strict=True)], features, self.spec)
