"""What may be permuted: axes, leaves, and the permutation spec of a whole tree."""
