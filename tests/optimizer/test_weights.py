"""Meta-weights on disk: what comes back, and what is refused."""

import dataclasses
import functools
import json
import os
import pickle
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from places import ROOT

from optax_unf import Architecture, init_weights, load_card, load_weights, make_spec, save_weights
from optax_unf._safetensors import read_arrays, write_arrays
from optax_unf.optimizer.theta import to_arrays
from optax_unf.optimizer.weight_files import pretrained_names
from optax_unf.tasks import get, task_spec

SHARED = ROOT.parent / "shared" / "data"
AXES = {"conv": (None, "in", "out"), "fused": (("heads", "size"), "out"), "scale": ("out",)}
PARAMS = {"conv": jnp.zeros((3, 2, 4)), "fused": jnp.zeros((6, 4)), "scale": jnp.zeros(4)}
ARCHITECTURES = [
    Architecture(hidden_channels=4),
    Architecture(hidden_channels=4, coefficients="tied"),
    Architecture(hidden_channels=4, head="deepsets", pool=True),
    Architecture(head="none"),
    Architecture(head="none", step_warmup=True),
    Architecture(hidden_channels=4, head="deepsets", nominal="orthogonalized", step="distance"),
]


@functools.cache
def make_weights(config=ARCHITECTURES[0]):
    return init_weights(config, make_spec(AXES, PARAMS, sizes={"heads": 2}), jax.random.key(0))


@pytest.mark.parametrize("head", ["unf", "nfn", "deepsets"])
def test_weights_are_drawn_without_an_evaluation(head):
    def theta(*shape):
        spec = make_spec({"kernel": ("in", "out")}, {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)})
        return init_weights(Architecture(head=head, hidden_channels=4), spec, jax.random.key(0)).theta

    # One channel of this leaf is 40 GB.
    chex.assert_trees_all_equal(theta(100_000, 100_000), theta(3, 2))


@pytest.mark.parametrize("config", ARCHITECTURES)
def test_what_is_saved_comes_back(tmp_path, config):
    weights = make_weights(config)
    save_weights(tmp_path / "w.safetensors", weights, card={"task": "none"})
    loaded = load_weights(tmp_path / "w.safetensors")
    chex.assert_trees_all_equal(loaded, weights)
    assert (loaded.architecture, loaded.spec) == (weights.architecture, weights.spec)
    assert jax.tree.structure(loaded) == jax.tree.structure(weights)
    assert load_card(tmp_path / "w.safetensors") == {"task": "none"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.json", "w.safetensors"]


def test_weights_without_a_card(tmp_path):
    save_weights(tmp_path / "w.safetensors", make_weights())
    with pytest.raises(FileNotFoundError, match=r"The card of .*w\.safetensors must be .*w\.json, but there is none"):
        load_card(tmp_path / "w.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, make_weights())
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_weights(path, make_weights(ARCHITECTURES[3]), card={"not JSON": object()})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, make_weights())
    before = path.read_bytes()

    def fail(file, data):
        with file.open("wb") as opened:
            opened.write(data[:10])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="no space left"):
        save_weights(path, make_weights(ARCHITECTURES[3]))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


LAYOUTS = {
    "C order": np.ascontiguousarray,
    "Fortran order": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "every second": lambda x: np.repeat(x, 2, -1)[..., ::2] if x.ndim else x,
    "backwards": lambda x: np.ascontiguousarray(x[::-1])[::-1] if x.ndim else x,
    "a field of records": lambda x: np.stack([x, -x], -1)[..., 0],
    "one row for all": lambda x: np.broadcast_to(x[:1], x.shape) if x.ndim else x,
    "high bytes first": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "between words": lambda x: np.frombuffer(b"0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape),
    "on a device": jnp.asarray,
}


def saved_and_loaded(tmp_path, theta):
    save_weights(tmp_path / "w.safetensors", dataclasses.replace(make_weights(), theta=theta))
    return load_weights(tmp_path / "w.safetensors").theta


# numpy has bfloat16 in one order of bytes only.
@pytest.mark.parametrize(
    ("layout", "dtype"),
    [(layout, "float32") for layout in LAYOUTS]
    + [(layout, "bfloat16") for layout in LAYOUTS if layout != "high bytes first"],
)
def test_saving_does_not_depend_on_the_layout_in_memory(tmp_path, layout, dtype):
    theta = jax.tree.map(lambda x: LAYOUTS[layout](np.asarray(x, dtype)), make_weights().theta)
    for x, y in zip(*map(jax.tree.leaves, (theta, saved_and_loaded(tmp_path, theta))), strict=True):
        assert y.dtype == dtype
        assert np.asarray(x).tolist() == y.tolist()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "complex64", "bool", "int8", "uint64"])
def test_saving_keeps_numbers_of_any_type(tmp_path, dtype):
    theta = jax.tree.map(lambda x: np.asarray(4 * x).astype(dtype), make_weights().theta)
    with jax.enable_x64(True):
        for x, y in zip(*map(jax.tree.leaves, (theta, saved_and_loaded(tmp_path, theta))), strict=True):
            assert (y.dtype, y.tolist()) == (x.dtype, x.tolist())


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e3m4", "int4", "complex128", "object"])
def test_numbers_that_would_not_come_back_are_not_saved(tmp_path, dtype):
    theta = make_weights().theta.with_scalars(beta=np.zeros((), jnp.dtype(dtype)))
    with pytest.raises(TypeError, match=f"must have one of the types float64, .* but beta is {dtype}. Convert it"):
        saved_and_loaded(tmp_path, theta)
    assert list(tmp_path.iterdir()) == []


def damaged(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, make_weights())
    return path, path.read_bytes()


def test_a_truncated_file_is_refused(tmp_path):
    path, content = damaged(tmp_path)
    for size in (0, 4, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"w\.safetensors must be a safetensors file"):
            load_weights(path)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a weight file was executed",))


def test_a_foreign_file_is_refused_and_never_executed(tmp_path):
    path = tmp_path / "w.safetensors"
    for content in (pickle.dumps(Bomb()), b"{}", b"\x00" * 100, json.dumps({"a": 1}).encode()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="must be a safetensors file"):
            load_weights(path)
    safetensors.numpy.save_file({"x": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="must hold meta-weights in the format"):
        load_weights(path)


def test_arrays_of_another_shape_are_refused(tmp_path):
    weights = make_weights()
    wider = init_weights(Architecture(hidden_channels=5), weights.spec, jax.random.key(0))
    path = tmp_path / "w.safetensors"
    save_weights(path, type(weights)(wider.theta, weights.architecture, weights.spec))
    with pytest.raises(ValueError, match=r"must hold theta.*as its architecture says"):
        load_weights(path)


def rewritten(tmp_path, config, change):
    """A file of weights whose arrays and metadata were changed by hand."""
    path = tmp_path / "w.safetensors"
    save_weights(path, make_weights(config))
    with safetensors.safe_open(path, "numpy") as file:
        arrays, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    change(arrays, metadata)
    safetensors.numpy.save_file(arrays, path, metadata)
    return path


def needed(config):
    names = to_arrays(make_weights(config).theta)
    # Tied coefficients have matrices only for what was there in meta-training.
    return [name for name in names if "/head/all" not in name and "/head/own" not in name]


@pytest.mark.slow
@pytest.mark.parametrize("config", ARCHITECTURES)
def test_a_missing_array_is_seen_when_the_file_is_read(tmp_path, config):
    for name in needed(config):
        path = rewritten(tmp_path, config, lambda arrays, _, name=name: arrays.pop(name))
        with pytest.raises(ValueError, match=rf"w\.safetensors must hold theta '{name}' of shape .* holds no theta"):
            load_weights(path)


@pytest.mark.parametrize("config", ARCHITECTURES)
def test_an_array_too_many_or_of_another_shape_is_seen(tmp_path, config):
    path = rewritten(tmp_path, config, lambda arrays, _: arrays.update({"network/trunk_7/kernel": np.ones((4, 4))}))
    with pytest.raises(ValueError, match="must hold no theta 'network/trunk_7/kernel'"):
        load_weights(path)
    for name in needed(config):
        path = rewritten(tmp_path, config, lambda arrays, _, name=name: arrays.update({name: np.ones((5, 7))}))
        with pytest.raises(ValueError, match=rf"must hold theta '{name}' .* holds theta '{name}' of shape \(5, 7\)"):
            load_weights(path)


def test_tied_coefficients_may_lack_roles_but_not_be_of_another_shape(tmp_path):
    name = "network/head/all a>a"
    path = rewritten(tmp_path, ARCHITECTURES[1], lambda arrays, _: arrays.pop(name))
    assert "all a>a" not in load_weights(path).theta.network[-1]
    path = rewritten(tmp_path, ARCHITECTURES[1], lambda arrays, _: arrays.update({name: np.ones((3, 1))}))
    with pytest.raises(ValueError, match=rf"must hold theta '{name}' of shape \(4, 1\), .* of shape \(3, 1\)"):
        load_weights(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"architecture": '{"head": "unf", "width": 3}'},
            "architecture are head, .*there is no width.*a later version",
        ),
        ({"architecture": '{"head": "transformer"}'}, "does not: The setting head of an architecture must be"),
        ({"architecture": '{"hidden_channels": "8"}'}, "does not: "),
        ({"architecture": "[1, 2"}, "does not: "),
        ({"architecture": None}, "does not: 'architecture'"),
        ({"spec": '[{"path": "conv"}]'}, "does not: 'shape'"),
        ({"spec": "null"}, "hold a weight space.* holds none"),
    ],
)
def test_a_description_that_is_wrong_is_seen_when_the_file_is_read(tmp_path, metadata, message):
    def change(_, found):
        found.update(metadata)
        for name in [name for name, text in found.items() if text is None]:
            del found[name]

    with pytest.raises(ValueError, match=rf"w\.safetensors must .*{message}"):
        load_weights(rewritten(tmp_path, ARCHITECTURES[0], change))


def test_a_missing_file_names_what_there_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="mlp-fashion-mnist-unf"):
        load_weights(tmp_path / "nothing.safetensors")


def to_train(name):
    """Whether to train with these weights: every task and head, but larger tasks compile for long."""
    return name.startswith(("mlp-", "universal")) or not (
        name.endswith("-sgdm") or name.replace("small-", "small-rms-") in pretrained_names()
    )


@pytest.mark.slow
@pytest.mark.promotes("tasks add biases to rows")
@pytest.mark.parametrize("name", [name for name in pretrained_names() if to_train(name)])
def test_pretrained_weights_train(name, monkeypatch):
    from optax_unf.meta import final_loss, learned_training, training_losses

    weights = load_weights(name)
    of_mlp = name.startswith(("mlp-", "universal"))
    if not of_mlp:
        monkeypatch.setenv("OPTAX_UNF_DATA", os.environ.get("OPTAX_UNF_DATA") or str(SHARED))
    task = get("mlp-digits" if of_mlp else load_card(name)["task"])
    problem = learned_training(weights.architecture, task)
    keys = jax.random.split(jax.random.key(0), 1)
    losses = jax.jit(lambda theta: training_losses(problem, theta, keys, 150 if of_mlp else 100))(weights.theta)
    assert final_loss(losses)[0] < (0.5 if of_mlp else 0.85 * losses[0, 0])


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", [name for name in pretrained_names() if load_weights(name).spec is not None])
def test_pretrained_weights_of_one_space_fit_their_task(name, monkeypatch):
    monkeypatch.setenv("OPTAX_UNF_DATA", os.environ.get("OPTAX_UNF_DATA") or str(SHARED))
    weights = load_weights(name)
    assert weights.spec == task_spec(get(load_card(name)["task"]), weights.architecture.head)


@pytest.mark.parametrize("name", pretrained_names())
def test_every_pretrained_file_has_a_card(name):
    card = load_card(name)
    assert {"task", "config", "architecture", "outer_steps", "curve", "date", "versions", "command"} <= set(card)
    assert card["command"].startswith(("python ", "optax-unf "))
    if not card["outer_steps"]:
        return
    losses = [record["final_loss"] for record in card["curve"]]
    # A run that set out from good weights, or that was evaluated twice only, need not show progress.
    assert card.get("start") or len(losses) <= 2 or min(losses) < losses[0]
    # The weights are those of the best evaluation, at which they trained networks.
    best = min(card["curve"], key=lambda record: record["final_loss"])
    assert best["final_loss"] < best["loss_at_100"]


def test_arrays_come_back_whatever_their_strides(tmp_path):
    """Of every file of the package: predictors and zoos are written by the same function."""
    arrays = {"a": np.arange(6.0).reshape(2, 3).T, "b/c": np.arange(8, dtype=np.float32)[::2]}
    write_arrays(tmp_path / "x.safetensors", arrays, {"format": "any"})
    metadata, found = read_arrays(tmp_path / "x.safetensors")
    assert metadata == {"format": "any"}
    chex.assert_trees_all_equal(found, arrays)
