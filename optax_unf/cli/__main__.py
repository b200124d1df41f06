"""`python -m optax_unf.cli`."""

from optax_unf.cli.program import main

if __name__ == "__main__":
    main()
