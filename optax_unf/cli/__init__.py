"""The program `optax-unf`."""

from optax_unf.cli.program import main as main
