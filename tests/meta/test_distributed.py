"""Several devices, and several processes: the numbers of one device; what happens when a process dies or is stopped."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import distributed_run
import jax
import numpy as np
import pytest

from optax_unf.meta import distributed

SCRIPT = Path(distributed_run.__file__)
# A minute's notice is asked for; the script's heartbeat allows ten seconds.
NOTICE = 60


@pytest.fixture(scope="module")
def one():
    return distributed_run.estimates() | distributed_run.run(None)


def start(out, *arguments, devices=1):
    """A process with that many devices, whose errors are in a file."""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-W", "error", SCRIPT, out, *arguments]
    with (out / f"errors-{len(list(out.glob('errors-*')))}").open("w") as errors:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)


def start_two(out, signals=(None, None), devices=1):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"localhost:{probe.getsockname()[1]}"
    together = ["--processes", "2", "--coordinator", coordinator]
    sent = [() if number is None else ("--signal", str(int(number))) for number in signals]
    return [start(out, *together, "--process-id", str(n), *sent[n], devices=devices) for n in range(2)]


def check(out, one, names):
    for name in names:
        with np.load(out / f"{name}.npz") as found:
            for part in found.files:
                # Sums over particles are taken in another order.
                np.testing.assert_allclose(found[part], one[part], rtol=1e-5, atol=1e-6, err_msg=part)


def errors(out, number=0):
    return (out / f"errors-{number}").read_text()


def checkpoints(out):
    return sorted(int(path.name) for path in (out / "checkpoints").glob("*") if path.name.isdigit())


def steps(out):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if "loss" in record]


def test_eight_devices_give_the_numbers_of_one(tmp_path, one):
    process = start(tmp_path, devices=8)
    assert process.wait(timeout=300) == 0, errors(tmp_path)
    check(tmp_path, one, ["estimates", "run"])


def test_two_processes_give_the_numbers_of_one(tmp_path, one):
    for process in start_two(tmp_path, devices=2):
        assert process.wait(timeout=300) == 0, errors(tmp_path)
    check(tmp_path, one, ["estimates", "run"])
    # One of them wrote.
    assert steps(tmp_path) == list(range(1, 41))
    assert checkpoints(tmp_path) == [39, 40]


@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_ends_the_other_and_the_run_resumes(tmp_path, one, dies):
    processes = start_two(tmp_path, [signal.SIGKILL if n == dies else signal.SIGCONT for n in range(2)])
    assert processes[dies].wait(timeout=300) == -signal.SIGKILL
    assert processes[1 - dies].wait(timeout=NOTICE) != 0
    said = errors(tmp_path, 1 - dies)
    if dies == 1:
        assert "RuntimeError: Process 0 of 2 cannot go on, most likely because another process died" in said
        assert "the run continues from its newest checkpoint" in said
    else:
        # The coordinator went with it, and jax ends the process itself.
        assert "Terminating process because the JAX distributed service detected fatal errors" in said
    assert checkpoints(tmp_path) == [3]
    resumed = distributed_run.run(tmp_path)
    for name in resumed:
        np.testing.assert_allclose(resumed[name], one[name], rtol=1e-5, atol=1e-6)
    assert steps(tmp_path) == list(range(1, 41))


def test_sigterm_to_one_process_stops_all_at_one_step(tmp_path, one):
    for process in start_two(tmp_path, [signal.SIGCONT, signal.SIGTERM]):
        assert process.wait(timeout=300) == 143, errors(tmp_path)
    newest = checkpoints(tmp_path)[-1]
    assert 4 <= newest < 40
    assert steps(tmp_path) == list(range(1, newest + 1))
    # On another number of devices than the two before.
    process = start(tmp_path, "--signal", str(int(signal.SIGCONT)), devices=8)
    assert process.wait(timeout=300) == 0, errors(tmp_path, 2)
    check(tmp_path, one, ["run"])


def test_addresses_and_numbers_are_checked():
    with pytest.raises(ValueError, match="must be the HOST:PORT of process 0, but is 'localhost'"):
        distributed.initialize("localhost", 0, 2)
    with pytest.raises(ValueError, match="process 2 of 2 was started"):
        distributed.initialize("localhost:1234", 2, 2)
