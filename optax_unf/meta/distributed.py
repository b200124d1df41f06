"""Several processes on JAX's own runtime, and what they have to agree on.

Every process runs the same program with the same key. In a run of one process, nothing here does anything.
"""

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils
from jaxtyping import PyTree


def initialize(coordinator: str, process_id: int, processes: int, *, heartbeat_seconds: int = 30) -> None:
    """Makes this process one of several that share their devices, through `jax.distributed`.

    Call it before anything else of JAX, in every process. From then on `jax.devices()` are those of all processes, and
    `meta_train` shards its particles over them.

    A process that has been dead or out of reach for this long is given up: JAX then ends all others. On CPUs and GPUs
    they usually notice sooner, by a transfer that fails.

    Args:
      coordinator: `HOST:PORT` of process 0, which the others can reach.
      process_id: the number of this process, from 0.
      processes: how many there are.
      heartbeat_seconds: how long a process may be silent.

    Raises:
      ValueError: the coordinator has no port, or the number of the process is not below how many there are.
      RuntimeError: JAX has been used in this process, or the others did not come within five minutes.
    """
    if not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"The coordinator must be the HOST:PORT of process 0, but is {coordinator!r}.")
    if not 0 <= process_id < processes:
        raise ValueError(
            f"Process numbers are 0 to the number of processes less one, but process {process_id} of {processes} was "
            f"started."
        )
    jax.distributed.initialize(
        coordinator,
        processes,
        process_id,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=heartbeat_seconds,
        shutdown_timeout_seconds=heartbeat_seconds,
    )


def is_first() -> bool:
    """Whether this is the process that writes files and shows progress."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns once all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def fetch(tree: PyTree) -> PyTree:
    """Arrays on the host, whole even where other processes hold parts of them; all processes must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def told_to_stop(step: int) -> bool:
    """Whether all processes stop after this step, because one of them got SIGTERM.

    `jax.distributed` takes the signal and lets the processes agree on the next step that none of them has begun. All
    have to ask after every step.

    Args:
      step: the number of the step.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def failures_explained() -> Iterator[None]:
    """Inside the `with` block, the error of a transfer between processes says what to do.

    Raises:
      RuntimeError: a transfer failed, which means that another process died.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # Gloo's errors reach Python as ValueError.
        failed = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
        if jax.process_count() == 1 or not failed:
            raise
        raise RuntimeError(
            f"Process {jax.process_index()} of {jax.process_count()} cannot go on, most likely because another process "
            f"died: its own output says why. Start all processes again, as many as you like, with the same settings "
            f"and output folder: the run continues from its newest checkpoint. What failed here: {error}"
        ) from error
