"""The Tiny RNN Zoo: questions, models, shards, the file."""

import dataclasses
import hashlib
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from optax_unf.cli.program import main
from optax_unf.nn import stack_models
from optax_unf.zoo.arithmetic import END, EQUALS, make_questions, show
from optax_unf.zoo.cells import CELLS
from optax_unf.zoo.config import ZooConfig
from optax_unf.zoo.make import make_shards
from optax_unf.zoo.population import BUNDLED, gather, load_zoo, save_zoo
from optax_unf.zoo.seq2seq import Seq2Seq
from optax_unf.zoo.training import Settings, Trainer, draw_settings

TINY = ZooConfig(hidden=4, largest=9, held_out=20, batch_sizes=(8,), steps=(3, 5), shard=4, lanes=2)
TRAIN = jax.jit(Trainer(TINY).train, static_argnums=1)


def test_questions_are_right_different_and_apart():
    train, test = make_questions(largest=12, held_out=40)
    assert (len(train.asked), len(test.asked)) == (129, 40)
    asked = set()
    for part in (train, test):
        for question, answer in zip(part.asked, part.answers, strict=True):
            text = show(question)
            a, b = text.lstrip(".").removesuffix("=").split("+")
            assert show(answer).rstrip(".") == str(int(a) + int(b))
            assert answer[-1] == END
            asked.add(text)
    assert len(asked) == 13**2


def test_many_questions_are_drawn():
    train, test = make_questions(largest=99_999, held_out=1000)
    assert 150_000 < len(train.asked) <= 199_000
    assert train.asked.shape[1] == len("99999+99999=")
    both = np.concatenate([train.asked, test.asked])
    assert len(np.unique(both, axis=0)) == len(both)


def test_questions_refused():
    with pytest.raises(ValueError, match=r"between 1 and 99, as there are 100 .* but are 100"):
        make_questions(largest=9, held_out=100)


def cell_of_flax(params):
    """The parameters of one cell of the zoo as those of flax's GRU."""
    dense = {"reset": "r", "update": "z", "new": "n"}
    renamed = {
        f"i{short}": {"kernel": params["input"][gate], "bias": params["bias"][gate]} for gate, short in dense.items()
    }
    renamed |= {f"h{short}": {"kernel": params["recurrent"][gate]} for gate, short in dense.items()}
    renamed["hn"]["bias"] = jnp.zeros(len(params["bias"]["new"]))
    return {"params": renamed}


@jax.jit
def run_flax(params, asked, answers):
    """Logits of the answers, by flax's GRU cell, sequence by sequence."""
    hidden = params["out"]["kernel"].shape[0]
    cell = nn.GRUCell(hidden)
    state = jnp.zeros((len(asked), hidden))
    for place in range(asked.shape[1]):
        state, _ = cell.apply(cell_of_flax(params["encoder"]), state, jax.nn.one_hot(asked[:, place], 13))
    read = jnp.concatenate([jnp.full((len(asked), 1), EQUALS), answers[:, :-1]], axis=1)
    logits = []
    for place in range(read.shape[1]):
        state, output = cell.apply(cell_of_flax(params["decoder"]), state, jax.nn.one_hot(read[:, place], 13))
        logits.append(output @ params["out"]["kernel"] + params["out"]["bias"])
    return jnp.stack(logits, axis=1)


def test_gru_and_loss_are_those_of_flax():
    model = Seq2Seq(hidden=5)
    params = model.init(jax.random.key(0), 2.0)
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), params)
    questions, _ = make_questions(largest=12, held_out=100)
    log_p = np.asarray(jax.nn.log_softmax(run_flax(params, questions.asked, questions.answers)))
    losses = []
    for row, answer in zip(log_p, questions.answers, strict=True):
        counted = len(show(answer).rstrip(".")) + 1
        losses += [-row[place, answer[place]] for place in range(counted)]
    loss = jax.jit(model.loss)(params, questions.asked, questions.answers)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)


def test_greedy_decoding_reads_what_it_wrote():
    model = Seq2Seq(hidden=5)
    params = model.init(jax.random.key(2), 3.0)
    questions, _ = make_questions(largest=12, held_out=100)
    written = np.asarray(jax.jit(model.answer, static_argnums=2)(params, questions.asked, 3))
    logits = np.asarray(run_flax(params, questions.asked, written))
    np.testing.assert_array_equal(written, logits.argmax(-1))
    # What it answers itself is right, whatever stands after the end character.
    answers = written.copy()
    answers[:, -1] = END
    truth = np.where(np.cumsum(answers == END, axis=1) > 1, END, answers)
    ends = (written == END).any(1)
    right = np.asarray(model.is_right(params, questions.asked, truth))
    np.testing.assert_array_equal(right[ends], True)
    wrong = (truth + (np.arange(3) == 0)) % 13
    assert not model.is_right(params, questions.asked, wrong).any()


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_learns(cell):
    config = dataclasses.replace(TINY, hidden=8, cell=cell, largest=4, held_out=5, learning_rate=(1e-2, 1e-2))
    trainer = Trainer(config)
    train = jax.jit(trainer.train, static_argnums=1)
    settings = draw_settings(config, jnp.arange(2))
    before, after = (train(settings, 16, steps) for steps in (0, 150))
    assert np.all(after.test_loss < before.test_loss - 0.3)


def test_models_do_not_depend_on_those_beside_them():
    settings = draw_settings(TINY, jnp.arange(6))
    alone = draw_settings(TINY, jnp.arange(3, 4))
    assert settings.learning_rate[3] == alone.learning_rate[0]
    assert len(np.unique(settings.learning_rate)) == 6
    low, high = TINY.learning_rate
    rates = np.asarray(draw_settings(TINY, jnp.arange(2000)).learning_rate)
    assert rates.min() >= low
    assert rates.max() <= high
    # Log-uniform: as many below the geometric mean as above it.
    assert abs(np.mean(rates < np.sqrt(low * high)) - 0.5) < 0.05
    first, second = (TRAIN(jax.tree.map(lambda x: x[part], settings), 8, 2) for part in (slice(2, 4), slice(3, 5)))  # noqa: B023
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_array_equal(a[1], b[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("zoo")
    make_shards(TINY, 8, out)
    return out


@pytest.fixture
def zoo(folder):
    return gather(TINY, make_shards(TINY, 8, folder))


def test_what_was_killed_goes_on(folder, tmp_path):
    reported = []
    make_shards(TINY, 4, tmp_path, report=lambda done, of: reported.append((done, of)))
    first = (tmp_path / "shards" / "00000.safetensors").stat().st_mtime_ns
    # As a kill while it writes leaves it.
    (tmp_path / "shards" / ".00001.safetensors.7").write_bytes(b"half")
    make_shards(TINY, 8, tmp_path, report=lambda done, of: reported.append((done, of)))
    assert reported == [(0, 1), (1, 1), (1, 2), (2, 2)]
    assert (tmp_path / "shards" / "00000.safetensors").stat().st_mtime_ns == first
    whole = make_shards(TINY, 8, folder)
    for number in (0, 1):
        mine, other = make_shards(TINY, 8, tmp_path).read(number), whole.read(number)
        for name in mine.keys() - {"seconds"}:
            np.testing.assert_array_equal(mine[name], other[name])


def test_a_folder_holds_one_zoo(folder):
    with pytest.raises(ValueError, match="must hold a zoo of the same settings, but has hidden 4 and not 5"):
        make_shards(dataclasses.replace(TINY, hidden=5), 8, folder)


def test_damaged_shards_are_refused(tmp_path):
    shards = make_shards(TINY, 4, tmp_path)
    path = tmp_path / "shards" / "00000.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"00000\.safetensors must be a shard of a zoo, but is damaged"):
        gather(TINY, shards)
    with pytest.raises(ValueError, match="must hold shards of a zoo, but holds none"):
        gather(TINY, make_shards(TINY, 0, tmp_path / "empty"))


def test_models_that_diverged_are_left_out(folder, tmp_path):
    shards = make_shards(TINY, 4, tmp_path)
    arrays = {name: np.array(x) for name, x in shards.read(0).items()}
    arrays["weights/out/bias"][2, 0] = np.nan
    shards.write(0, arrays)
    assert gather(TINY, shards).records["learning_rate"].tolist() == np.delete(arrays["learning_rate"], 2).tolist()


def test_recorded_rates_are_those_of_the_weights(zoo):
    _, test = make_questions(TINY.largest, TINY.held_out)
    one = jax.tree.map(lambda x: x[5], zoo.params)
    right = zoo.model.is_right(one, test.asked, test.answers)
    assert zoo.success_rate[5] == np.float32(np.mean(right))
    loss = zoo.model.loss(one, test.asked, test.answers)
    np.testing.assert_allclose(zoo.records["test_loss"][5], loss, rtol=1e-5)
    assert zoo.records["steps"].tolist() == [3] * 4 + [5] * 4


def test_a_zoo_is_saved_and_loaded(zoo, tmp_path):
    path = tmp_path / "zoo.safetensors"
    save_zoo(path, zoo, card={"models": 8})
    loaded = load_zoo(path)
    assert loaded.config == TINY
    assert json.loads((tmp_path / "zoo.json").read_text()) == {"models": 8}
    for a, b in zip(jax.tree.leaves(zoo.params), jax.tree.leaves(loaded.params), strict=True):
        np.testing.assert_array_equal(a, b)
    some = loaded.take(np.array([3, 1]))
    assert some.success_rate.tolist() == zoo.success_rate[[3, 1]].tolist()
    small = tmp_path / "small.safetensors"
    save_zoo(small, zoo, dtype="float16")
    np.testing.assert_allclose(load_zoo(small).params["out"]["kernel"], zoo.params["out"]["kernel"], rtol=1e-3)


def test_the_bundled_zoo_is_what_its_card_says():
    zoo, card = load_zoo(), json.loads(BUNDLED.with_suffix(".json").read_text())
    assert card["sha256"] == hashlib.sha256(BUNDLED.read_bytes()).hexdigest()
    assert len(zoo) == card["models"] >= 200
    assert card["success_rate"]["histogram"] == np.histogram(zoo.success_rate, 10, (0, 1))[0].tolist()
    assert ZooConfig.from_dict(card["config"]) == zoo.config
    # Their weights have the success that is recorded, but for float16.
    _, test = make_questions(zoo.config.largest, zoo.config.held_out)
    some = zoo.take(np.arange(0, len(zoo), 20))
    right = jax.jit(lambda all: jax.lax.map(lambda one: zoo.model.is_right(one, test.asked, test.answers), all))
    np.testing.assert_allclose(np.mean(right(some.params), axis=1), some.success_rate, atol=0.01)


def changed(zoo, path, **arrays):
    """A file of the zoo with arrays in place of others, or without those that are None."""
    save_zoo(path, zoo)
    new = {name: np.array(x) for name, x in safetensors.numpy.load_file(path).items()}
    for name, change in arrays.items():
        key = f"weights/{name}" if "/" in name else name
        new[key] = change(new[key]) if change else None
    metadata = {"format": "optax_unf zoo 1", "config": json.dumps(zoo.config.to_dict())}
    path.write_bytes(safetensors.numpy.save({k: x for k, x in new.items() if x is not None}, metadata))
    return path


def at(index, value):
    def change(x):
        x[index] = value
        return x

    return change


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"out/kernel": None}, "shape \\(4, 13\\) at 'out/kernel', but model 0 .* no such tensor"),
        ({"out/kernel": lambda x: x[:, :3]}, "shape \\(4, 13\\) at 'out/kernel', but model 0 .* shape \\(3, 13\\)"),
        ({"out/kernel": lambda x: x[:5]}, "'out/kernel' has 5: model 5 is not whole"),
        ({"encoder/bias/new": at(6, np.nan)}, "leaf 'encoder/bias/new' of model 6 has NaN"),
        ({"success_rate": at(3, 1.5)}, "between 0 and 1, but that of model 3 is 1.5"),
        ({"success_rate": at(2, np.nan)}, "between 0 and 1, but that of model 2 is nan"),
        ({"success_rate": None}, "must record success_rate"),
    ],
)
def test_bad_zoos_are_refused_by_the_index_of_the_model(zoo, tmp_path, arrays, message):
    path = changed(zoo, tmp_path / "zoo.safetensors", **arrays)
    with pytest.raises(ValueError, match=message):
        load_zoo(path)


def test_other_files_are_refused(zoo, tmp_path):
    with pytest.raises(FileNotFoundError, match="A zoo must be a file"):
        load_zoo(tmp_path / "none.safetensors")
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        load_zoo(path)
    path.write_bytes(safetensors.numpy.save({"x": np.ones(3)}))
    with pytest.raises(ValueError, match="must have the format 'optax_unf zoo 1', but has None"):
        load_zoo(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"steps": ()}, "steps must be one or more numbers"),
        ({"learning_rate": (1e-2, 1e-4)}, "learning_rate must be a range of positive numbers, lowest first"),
        ({"shard": 10, "lanes": 4}, "multiple of 4 lanes, but has 10"),
        ({"cell": "rnn"}, "cell must be one of gru, lstm, vanilla, but is 'rnn'"),
    ],
)
def test_settings_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ZooConfig(**settings)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="there is no colour"):
        ZooConfig.from_dict({"colour": 1})


@pytest.mark.slow
def test_weight_decay_makes_weights_smaller():
    settings = draw_settings(TINY, jnp.zeros(2, jnp.int32))
    settings = Settings(settings.key, jnp.full(2, 1e-2), settings.init_scale, jnp.array([0.0, 10.0]))
    kernel = TRAIN(settings, 8, 5).params["out"]["kernel"]
    assert jnp.linalg.norm(kernel[1]) < 0.8 * jnp.linalg.norm(kernel[0])


def test_populations_are_stacked_and_checked():
    model = Seq2Seq(hidden=3)
    models = [model.init(jax.random.key(seed)) for seed in range(3)]
    stacked = stack_models(models)
    np.testing.assert_array_equal(stacked["out"]["kernel"][2], models[2]["out"]["kernel"])
    with pytest.raises(ValueError, match=r"'decoder/bias/new' has shape \(3,\) there and has shape \(4,\) in model 1"):
        stack_models([models[0], Seq2Seq(hidden=4).init(jax.random.key(0))])
    with pytest.raises(ValueError, match=r"'out/bias' has shape .* there and is missing in model 2"):
        stack_models([*models[:2], {**models[2], "out": {"kernel": models[2]["out"]["kernel"]}}])
    models[1] = jax.tree.map(lambda x: x.at[0].set(jnp.inf), models[1])
    with pytest.raises(ValueError, match="of model 1 has NaN or infinite"):
        stack_models(models)
    with pytest.raises(ValueError, match="at least one model"):
        stack_models([])


@pytest.mark.slow
def test_the_program_makes_a_zoo_and_goes_on(tmp_path, capsys):
    jax.devices()  # so that the program does not choose the number of devices of the other tests
    settings = ("--hidden", "4", "--largest", "9", "--held-out", "20", "--batch-sizes", "8", "--steps", "3", "5")
    command = ["zoo", "make", "--out", str(tmp_path), "--shard", "4", "--lanes", "2", *settings, "--no-progress"]
    main([*command, "--models", "8"])
    main([*command, "--gather-only"])
    path = tmp_path / "zoo.safetensors"
    assert capsys.readouterr().out == 2 * f"Wrote 8 models to {path}\n"
    assert load_zoo(path).config == TINY
    assert json.loads(path.with_suffix(".json").read_text())["models"] == 8
    with pytest.raises(SystemExit, match="must hold a zoo of the same settings"):
        main([*command, "--models", "8", "--seed", "1"])
    with pytest.raises(SystemExit, match="A zoo must be a file"):
        main(["zoo", "train", str(tmp_path / "none.safetensors"), "--out", str(tmp_path)])
