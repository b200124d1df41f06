"""Models in plain JAX and flax.linen with their permutation specs, derived by hand.

Every case is made when it is called. Notes that hold for many:
- Sizes within a model are distinct where they can be, so that a wrong tie does not go unnoticed.
- What the data fixes is `None`: features of the input, classes, vocabularies, positions.
- A bias that has no effect (of the keys, before a softmax) moves with its units.
"""

import zoo_linen
import zoo_linen_sequences
import zoo_plain
import zoo_plain_sequences
import zoo_transforms

MODULES = (zoo_plain, zoo_plain_sequences, zoo_transforms, zoo_linen, zoo_linen_sequences)
CASES = {make.__name__: make for module in MODULES for make in module.CASES}
