"""The program `optax-unf`: arguments in, and messages out where something is wrong."""

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import optax_unf


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command.

    Args:
      arguments: what stands after `optax-unf`; by default that of this process.

    Raises:
      SystemExit: with a message where arguments or files are wrong.

    Example:
      >>> main(["list", "--task", "mlp-digits"])  # doctest: +ELLIPSIS
      name  fits  trained on ...
      tasks
      mlp-digits
    """
    try:
        import tyro
    except ModuleNotFoundError:
        raise SystemExit(
            "The command line needs tyro, which is not installed. Run: pip install 'optax-unf[cli]'."
        ) from None
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(f"optax-unf {optax_unf.__version__}")
        return
    if given[:1] == ["zoo"]:
        given = [" ".join(given[:2]), *given[2:]]
    try:
        tyro.extras.subcommand_cli_from_dict(
            _commands(),
            prog="optax-unf",
            description=__doc__,
            args=given,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone),
        )
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise SystemExit(f"optax-unf: {error.filename}: {error.strerror}") from error
        if not _raised_here(error):
            raise
        raise SystemExit(f"optax-unf: {error}") from error


def _commands() -> dict[str, Callable[..., None]]:
    # They need all that the extra `cli` brings, whose absence has a message of its own.
    from optax_unf.cli import commands
    from optax_unf.cli.suite import run_suite
    from optax_unf.cli.zoo import make_zoo, table, train_predictors

    return {
        "list": commands.list_weights,
        "meta-train": commands.meta_train,
        "evaluate": commands.evaluate,
        "compare": commands.compare,
        "suite": run_suite,
        "plot": commands.plot,
        "zoo make": make_zoo,
        "zoo train": train_predictors,
        "zoo table": table,
    }


def _raised_here(error: Exception) -> bool:
    """Whether the package raised an error itself, and so says what to do; others keep their traceback."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return Path(last.filename).is_relative_to(Path(__file__).parents[1])
