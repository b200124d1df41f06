"""Models in flax.nnx, haiku and equinox with their permutation specs, derived by hand.

Every case is made when it is called. Notes that hold for many:
- q and k share the name of their head size, because they are contracted; v and the output projection share another.
- Axes of size 1 are `None`.
- A bias that has no effect (before a normalization by the batch, or of the keys before a softmax) moves with its units.
"""

import zoo_equinox
import zoo_haiku
import zoo_nnx
import zoo_nnx_stacked

CASES = {make.__name__: make for make in (*zoo_nnx.CASES, *zoo_nnx_stacked.CASES, *zoo_haiku.CASES, *zoo_equinox.CASES)}
