"""Checkpoints of a meta-training run, through orbax."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from optax_unf.meta.distributed import fetch, is_first, wait_for_all

_Restored = TypeVar("_Restored")


class Checkpoints:
    """The newest checkpoints of a run, `FOLDER/<outer step>/`.

    orbax writes a checkpoint under a temporary name and renames it when it is whole, so that one which was half-written
    when the process died is never loaded; the next run deletes it. Arrays are stored whole, however they were sharded.
    Saving returns when the checkpoint is on disk.

    Of several processes, the first writes and all read: they need a file system in common. All have to save at the same
    step.

    Args:
      folder: where the checkpoints are; it is made if need be.
      keep: how many to keep; older ones are deleted.

    Raises:
      ModuleNotFoundError: orbax is not installed.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> with Checkpoints(Path(folder), keep=2) as checkpoints:
      ...     for step in (5, 10, 15):
      ...         checkpoints.save(step, {"x": jnp.float32(step)}, {"done": step})
      ...     step = checkpoints.latest()
      ...     checkpoints.record(step), checkpoints.state(step, like={"x": jnp.float32(0)})
      ({'done': 15}, {'x': Array(15., dtype=float32)})
    """

    def __init__(self, folder: Path, keep: int) -> None:
        try:
            import orbax.checkpoint as ocp
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Checkpoints of meta-training need orbax-checkpoint, which is not installed. Run "
                "`pip install 'optax-unf[meta]'`, or meta-train without an output folder."
            ) from error
        self._args = ocp.args
        # Relative paths are refused by orbax.
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        if not is_first():
            wait_for_all("the first process has cleaned up")
        # Each process has a manager of its own, so that orbax does not let them wait for each other.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=False,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=is_first(),
            multiprocessing_options=alone,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        if is_first():
            wait_for_all("the first process has cleaned up")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The outer step of the newest checkpoint, or `None` where there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree, record: dict[str, Any]) -> None:
        """Writes arrays and a record.

        Args:
          step: the outer step, larger than that of any checkpoint so far.
          state: a pytree of arrays; PRNG keys are stored as their data.
          record: anything that JSON can hold.
        """
        leaves = [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(state)]
        # orbax refuses arrays without entries; their shape is all there is to them.
        arrays = {_name(n): np.asarray(x) for n, x in enumerate(fetch(leaves)) if x.size}
        if is_first():
            self._manager.save(
                step,
                args=self._args.Composite(state=self._args.StandardSave(arrays), record=self._args.JsonSave(record)),
                force=True,
            )
        wait_for_all(f"checkpoint {step}")

    def record(self, step: int) -> dict[str, Any]:
        """The record of a checkpoint.

        Raises:
          ValueError: the checkpoint is damaged.
        """
        args = self._args.Composite(record=self._args.JsonRestore())
        return self._restored(step, lambda: dict(self._manager.restore(step, args=args)["record"]))

    def state(self, step: int, like: PyTree) -> PyTree:
        """The arrays of a checkpoint, on the default device.

        Args:
          step: the outer step of the checkpoint.
          like: a pytree of the same structure, shapes and dtypes.

        Raises:
          ValueError: the checkpoint is damaged, or holds a state of other structure.
        """
        args = self._args.Composite(state=self._args.StandardRestore())
        arrays = self._restored(step, lambda: dict(self._manager.restore(step, args=args)["state"]))
        leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
        wanted = {_name(n) for n, (_, leaf) in enumerate(leaves) if leaf.size}
        if set(arrays) != wanted:
            raise ValueError(
                f"{self.folder / str(step)} must hold {len(wanted)} arrays, but holds {len(arrays)}. It belongs to "
                f"another run: give a new output folder."
            )
        restored = [_array(arrays.get(_name(n)), leaf) for n, (_, leaf) in enumerate(leaves)]
        for (path, leaf), x in zip(leaves, restored, strict=True):
            if x.shape != leaf.shape or x.dtype != leaf.dtype:
                raise ValueError(
                    f"{jax.tree_util.keystr(path)} in {self.folder / str(step)} must be {leaf.dtype}{leaf.shape}, but "
                    f"is {x.dtype}{x.shape}. It belongs to another run: give a new output folder."
                )
        return treedef.unflatten(restored)

    def _restored(self, step: int, restore: Callable[[], _Restored]) -> _Restored:
        try:
            return restore()
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(
                f"The checkpoint {self.folder / str(step)} is damaged: {error}. Delete it to continue from the one "
                f"before it, or give a new output folder."
            ) from error


def _name(number: int) -> str:
    return f"{number:05d}"


def _array(stored: np.ndarray | None, leaf: Any) -> jax.Array:
    if stored is None:
        return jnp.zeros(leaf.shape, leaf.dtype)
    return jax.random.wrap_key_data(jnp.asarray(stored)) if _is_key(leaf) else jnp.asarray(stored)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
