"""A run that stops anywhere continues to the same bits; what it writes on the way."""

import dataclasses
import json
import os
import random
import shutil
import signal
import struct
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from kill_and_resume import after, finish, finished, in_a_save, interrupted, metrics, same_result, start, unfinished
from resumable_run import CONFIG, run

from optax_unf.meta import MetaTrainConfig
from optax_unf.meta.checkpoint import Checkpoints
from optax_unf.meta.metrics import Reporter
from optax_unf.meta.run_folder import claimed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache():
    """Processes share compiled programs with this one."""
    return Path(jax.config.jax_compilation_cache_dir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """The folder of a run in a process of its own that nobody killed."""
    out = tmp_path_factory.mktemp("whole")
    finish(out, cache)
    return out


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The folder and result of a run in this process."""
    out = tmp_path_factory.mktemp("here")
    return out, run(out)


@pytest.fixture
def copy(here, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(here[0], out)
    return out


def test_a_killed_run_ends_with_the_same_bits(tmp_path, cache, whole):
    rng = random.Random(0)
    waits = [in_a_save(0), after(rng.uniform(0, 1)), in_a_save(30)]
    found = interrupted(tmp_path, cache, waits)
    # The first wait is for a checkpoint that is being written.
    assert found[0].startswith("at ")
    assert same_result(tmp_path, whole)


def test_sigterm_saves_and_the_run_continues_exactly(tmp_path, cache, whole):
    process = start(tmp_path, cache)
    while not finished(tmp_path):
        assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=60) == 143
    newest = finished(tmp_path)[-1]
    assert metrics(tmp_path)[-1]["step"] == newest < 60
    assert unfinished(tmp_path) == []
    finish(tmp_path, cache)
    assert same_result(tmp_path, whole)


def test_a_run_continues_on_another_number_of_devices(tmp_path, cache, whole):
    process = start(tmp_path, cache, XLA_FLAGS=f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2")
    in_a_save(20)(process, tmp_path)
    process.terminate()
    assert process.wait(timeout=60) == 143
    finish(tmp_path, cache)
    a, b = (np.load(out / "result.npz") for out in (tmp_path, whole))
    for name in a.files:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_under_way(tmp_path, monkeypatch, here, number):
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    step = Reporter.step

    def signalled(self, count, *args):
        step(self, count, *args)
        if count == 32:  # in the second stage, where no checkpoint is due
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "step", signalled)
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as caught:
            run(tmp_path)
    assert number == signal.SIGINT or caught.value.code == 143
    assert {n: signal.getsignal(n) for n in handlers} == handlers
    assert finished(tmp_path)[-1] == 32
    resumed, (_, result) = run(tmp_path), here
    chex.assert_trees_all_equal((resumed.last, resumed.weights), (result.last, result.weights))
    assert resumed.curve == result.curve


def test_a_second_interrupt_stops_at_once(tmp_path, monkeypatch):
    def twice(self, *args):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second interrupt came after the step")

    monkeypatch.setattr(Reporter, "step", twice)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert finished(tmp_path) == []


def test_a_finished_run_is_not_run_again(copy, here):
    again = run(copy)
    chex.assert_trees_all_equal(again.weights, here[1].weights)
    assert again.seconds == here[1].seconds
    assert metrics(copy) == metrics(here[0])


def test_a_half_written_checkpoint_is_never_loaded(copy):
    newest = copy / "checkpoints" / "60"
    half = copy / "checkpoints" / "90.orbax-checkpoint-tmp"
    shutil.copytree(newest, half)
    shutil.rmtree(half / "record")
    with Checkpoints(copy / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.latest() == 60
        checkpoints.save(61, {"x": np.ones(2)}, {})
        assert checkpoints.latest() == 61
    # What is half-written is deleted before anything else is written.
    assert not half.exists()


@pytest.mark.parametrize("part", ["record/metadata", "state/_METADATA"])
def test_a_damaged_checkpoint_is_refused_and_can_be_deleted(copy, here, part):
    newest = copy / "checkpoints" / "60"
    (newest / part).write_bytes((newest / part).read_bytes()[:10])
    with pytest.raises(ValueError, match=r"checkpoints/60 is damaged.*Delete it"):
        run(copy)
    shutil.rmtree(newest)
    resumed = run(copy)
    chex.assert_trees_all_equal(resumed.last, here[1].last)
    assert metrics(copy) == metrics(here[0])


def test_the_newest_checkpoints_are_kept(copy):
    assert finished(copy) == [57, 60]
    shutil.rmtree(copy / "checkpoints" / "60")
    settings = CONFIG.to_dict() | {"checkpoint_every": 1, "keep_checkpoints": 3}
    run(copy, MetaTrainConfig.from_dict(settings))
    assert finished(copy) == [58, 59, 60]


def test_a_checkpoint_of_other_settings_is_refused(copy):
    with pytest.raises(ValueError, match="its horizon is 20, not 40"):
        run(copy, MetaTrainConfig(CONFIG.stages, horizon=40))


def test_the_state_survives_with_its_keys_and_empty_arrays(tmp_path):
    state = {
        "keys": jax.random.split(jax.random.key(3), 2),
        "x": (np.arange(3, dtype=np.int8), jax.numpy.ones((2, 0), jax.numpy.bfloat16), jax.numpy.float32(np.nan)),
    }
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {"curve": [{"loss": float("inf")}]})
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        chex.assert_trees_all_equal(checkpoints.state(1, jax.eval_shape(lambda: state)), state)
        assert checkpoints.record(1) == {"curve": [{"loss": float("inf")}]}
        with pytest.raises(ValueError, match=r"\['x'\].* must be float32\[?.*but is int8"):
            checkpoints.state(1, {**state, "x": (np.zeros(3, np.float32), *state["x"][1:])})


def test_without_orbax_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "orbax.checkpoint", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'optax-unf\[meta\]'"):
        run(tmp_path)


def test_the_metrics_are_those_of_each_step_and_evaluation(here):
    out, result = here
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "final_loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 61))
    assert [record["stage"] for record in steps] == 30 * [0] + 30 * [1]
    assert len(records) == len(steps) + len(evaluations)
    assert [(r["step"], r["final_loss"]) for r in evaluations] == [(r["step"], r["final_loss"]) for r in result.curve]
    # Warm-up over two steps, then a cosine down to zero at step 30; then the second stage's constant rate.
    cosine = [0.0, 0.5e-2] + [0.5e-2 * (1 + np.cos(np.pi * n / 28)) for n in range(28)]
    np.testing.assert_allclose([r["learning_rate"] for r in steps], cosine + 30 * [1e-3], rtol=1e-4, atol=1e-9)
    # 2 runs of 5 steps, then 2 pairs of 10.
    inner = [record["seconds"] * record["inner_steps_per_second"] for record in steps]
    np.testing.assert_allclose(inner, 30 * [10] + 30 * [40])


def test_tensorboard_has_the_same_numbers(here):
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (here[0] / "tensorboard").iterdir()
    data, found = file.read_bytes(), []
    while data:  # a record: its length, a checksum, the event, a checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    records = [json.loads(line) for line in (here[0] / "metrics.jsonl").read_text().splitlines()]
    wanted = [(r["step"], tag, value) for r in records for tag, value in r.items() if tag != "step"]
    assert [x[:2] for x in found] == [x[:2] for x in wanted]
    np.testing.assert_allclose([x[2] for x in found], [x[2] for x in wanted], rtol=1e-6)


def test_metrics_are_fetched_a_step_late_and_are_cut_where_the_run_continues(tmp_path):
    def lines():
        return (tmp_path / "metrics.jsonl").read_text().splitlines()

    values = {"loss": np.float32("nan"), "grad_norm": np.float32(1.0)}
    with Reporter(tmp_path, 0, 9, False) as reporter:
        for step in (1, 2, 3):
            reporter.step(step, 0, 10, values)
            assert len(lines()) == step - 1
        reporter.flush()
        assert [json.loads(line)["loss"] for line in lines()] == [None] * 3
        reporter.evaluation(3, 0, {"final_loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with Reporter(tmp_path, 3, 9, False):
        assert len(lines()) == 4
    with Reporter(tmp_path, 2, 9, False) as reporter:
        reporter.step(3, 0, 10, values)
        reporter.flush()
        assert [json.loads(line)["step"] for line in lines()] == [1, 2, 3]


def test_the_progress_bar_shows_the_numbers(capsys):
    values = {"loss": np.float32(0.25), "grad_norm": np.float32(1.5)}
    with Reporter(None, 2, 5, True) as reporter:
        reporter.evaluation(2, 0, {"final_loss": 0.125})
        reporter.step(3, 0, 10, values)
        reporter.flush()
        reporter.step(4, 0, 10, values)
    shown = capsys.readouterr().err
    assert "compiling (may take a minute): 2/5" in shown
    assert "3/5" in shown
    assert "loss=0.250, grad=1.5" in shown
    assert "final=0.1250" in shown
    assert "inner/s=" in shown
    first, rest = shown.split("3/5", 1)
    assert "step/s]" not in first.split("compiling")[1] + rest.split("4/5")[0]  # no time left before two steps are done


def test_a_folder_belongs_to_one_process(tmp_path):
    with claimed(tmp_path), pytest.raises(ValueError, match="must belong to one process, but another one is"):
        run(tmp_path, dataclasses.replace(CONFIG, stages=CONFIG.stages[:1]))
    with claimed(tmp_path):
        pass


def test_without_a_folder_nothing_is_written_and_signals_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []

    def step(self, *args):
        seen.append(signal.getsignal(signal.SIGTERM))

    monkeypatch.setattr(Reporter, "step", step)
    before = signal.getsignal(signal.SIGTERM)
    run(None)
    assert set(seen) == {before}
    assert os.listdir(tmp_path) == []
