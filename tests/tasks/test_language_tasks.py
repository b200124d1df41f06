"""The recurrent and the Transformer task."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_unf import infer_spec, load_weights, tasks
from optax_unf.meta import PES, MetaTrainConfig, Stage, meta_train
from optax_unf.tasks import RNNTask, TransformerTask, task_spec
from optax_unf.tasks.data.text import python_reference

# Batches.


def rnn(**sizes: int) -> RNNTask:
    tokens = np.random.default_rng(0).integers(0, 11, (2, 60))
    defaults = {"length": 5, "batch_size": 4, "embedding": 3, "hidden": 6, "held_out_size": 8}
    return RNNTask("small", *tokens, 11, **(defaults | sizes))


def transformer(**sizes: int) -> TransformerTask:
    tokens = np.random.default_rng(0).integers(0, 11, (2, 60))
    defaults = {"length": 5, "batch_size": 4, "width": 6, "heads": 2, "held_out_size": 8}
    return TransformerTask("small", *tokens, 11, **(defaults | sizes))


def test_batches_are_pieces_of_the_text():
    task = RNNTask("numbers", np.arange(40, dtype=np.uint8), np.arange(40, 80, dtype=np.uint8), 80, batch_size=16)
    drawn = [task.sample(jax.random.key(seed)) for seed in range(8)]
    pieces = np.concatenate(drawn)
    assert pieces.dtype == np.int32
    np.testing.assert_array_equal(pieces, pieces[:, :1] + np.arange(33))
    assert set(pieces[:, 0].tolist()) == set(range(8))  # from the first place to the last
    np.testing.assert_array_equal(drawn[0], jax.jit(task.sample)(jax.random.key(0)))
    assert not np.array_equal(drawn[0], drawn[1])
    held_out = task.held_out()
    assert held_out.shape == (1024, 33)
    np.testing.assert_array_equal(held_out, held_out[:, :1] + np.arange(33))
    assert [held_out.min(), held_out.max()] == [40, 79]  # none of the training text
    np.testing.assert_array_equal(held_out, task.held_out())


def test_texts_that_cannot_be():
    tokens = np.arange(40)
    with pytest.raises(ValueError, match="The test text of short must have more than 32 tokens, but has 32"):
        RNNTask("short", tokens, tokens[:32], 40)
    with pytest.raises(ValueError, match="below the vocabulary, 39, but one is 39"):
        RNNTask("wrong", tokens, tokens, 39)


# Networks.


def some_params(task):
    keys = iter(jax.random.split(jax.random.key(0), 100))
    params = task.init(jax.random.key(1))
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), params)


def in_float64(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def rnn_in_numpy(params, tokens):
    logits = np.zeros((*tokens.shape, len(params["out"]["bias"])))
    layer = params["recurrent"]
    for n, sequence in enumerate(tokens):
        state = np.zeros(len(layer["kernel"]))
        for t, token in enumerate(sequence):
            read = params["embedding"][token] @ layer["input"]
            state = np.maximum(read + state @ layer["kernel"] + layer["bias"], 0)
            logits[n, t] = state @ params["out"]["kernel"] + params["out"]["bias"]
    return logits


def transformer_in_numpy(params, tokens):
    def norm(layer, x):
        centred = x - x.mean()
        return centred / np.sqrt((centred**2).mean() + 1e-6) * layer["scale"] + layer["bias"]

    def attention(block, xs):
        heads, size = block["query"].shape[1:]
        out = np.zeros_like(xs)
        for head in range(heads):
            query, key, value = (xs @ block[name][:, head] for name in ("query", "key", "value"))
            for t in range(len(xs)):
                weights = np.exp([query[t] @ key[s] / np.sqrt(size) for s in range(t + 1)])
                seen = sum(w * value[s] for s, w in enumerate(weights / weights.sum()))
                out[t] += seen @ block["projection"][head]
        return out

    logits = []
    for sequence in tokens:
        xs = np.stack([params["embedding"][token] + params["positions"][t] for t, token in enumerate(sequence)])
        for name in sorted(name for name in params if name.startswith("block_")):
            block = params[name]
            xs = xs + attention(block, np.stack([norm(block["norm_1"], x) for x in xs]))
            for t, x in enumerate(xs):
                hidden = np.maximum(norm(block["norm_2"], x) @ block["up"]["kernel"] + block["up"]["bias"], 0)
                xs[t] = x + hidden @ block["down"]["kernel"] + block["down"]["bias"]
        logits.append([norm(params["norm"], x) @ params["out"]["kernel"] + params["out"]["bias"] for x in xs])
    return np.array(logits)


NETWORKS = [(rnn, rnn_in_numpy), (transformer, transformer_in_numpy)]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "in_numpy"), NETWORKS)
def test_network_agrees_with_numpy(make, in_numpy):
    task = make()
    params, batch = some_params(task), task.sample(jax.random.key(2))
    predict = jax.jit(task.predict)
    logits = predict(params, batch[:, :-1])
    expected = in_numpy(in_float64(params), np.asarray(batch[:, :-1]))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    chosen = np.take_along_axis(expected, np.asarray(batch[:, 1:, None]), -1)[..., 0]
    loss = (np.log(np.exp(expected).sum(-1)) - chosen).mean()
    np.testing.assert_allclose(task.loss(params, batch), loss, rtol=1e-5)
    # What comes later changes nothing before, and something at its place.
    for place in range(5):
        changed = batch.at[:, place].set((batch[:, place] + 1) % 11)
        differs = np.abs(predict(params, changed[:, :-1]) - logits).max((0, 2))
        np.testing.assert_array_equal(differs[:place], 0)
        assert differs[place] > 1e-3


@pytest.mark.parametrize(("make", "data"), [(rnn, "byte"), (transformer, "token")])
def test_permutations_keep_the_loss(make, data):
    task = make()
    spec, params, batch = task_spec(task), some_params(task), task.sample(jax.random.key(2))
    compiled = jax.jit(task.loss)
    loss = compiled(params, batch)
    fixed = {name: jnp.arange(spec.sizes[name]) for name in (data, "position") if name in spec.sizes}
    for seed in range(3):
        g = spec.random_permutation(jax.random.key(seed)) | fixed
        permuted = spec.permute(g, params)
        assert not np.array_equal(permuted["out"]["kernel"], params["out"]["kernel"])
        np.testing.assert_allclose(compiled(permuted, batch), loss, rtol=1e-5)
        # The tokens may be numbered otherwise, if the text is.
        g[data] = jax.random.permutation(jax.random.key(seed), 11)
        permuted = spec.permute(g, params)
        np.testing.assert_allclose(compiled(permuted, jnp.argsort(g[data])[batch]), loss, rtol=1e-5)
        assert abs(compiled(permuted, batch) - loss) > 1e-3


@pytest.mark.parametrize(("make", "data"), [(rnn, "byte"), (transformer, "token")])
def test_inferred_spec(make, data):
    """The same but for the tokens: `infer_spec` does not know that those read and those predicted are one alphabet.

    Positions have an order, since attention is causal: the name that the task gives their axis is the paper's choice.
    """
    task = make()
    abstract, batch = jax.eval_shape(task.init, jax.random.key(0)), task.sample(jax.random.key(1))
    for io, split in (("fixed", {None}), ("permute", {"embedding:0", "out/bias:0"})):
        inferred = infer_spec(task.loss, abstract, batch, io=io)
        names = {}
        for leaf, given in zip(inferred.leaves, task_spec(task).leaves, strict=True):
            for found, name in zip(leaf.axes, given.axes, strict=True):
                names.setdefault(name, set()).add(found)
        assert names.pop(data) == split
        assert names.pop("position", {None}) == {None}
        assert all(len(found) == 1 for found in names.values())
        assert len(set.union(*names.values()) - {None}) == len(names)


# Initialization and sizes.


def mean_losses(task, count=4):
    """The mean loss of each place of a sequence, at initialization."""

    def losses(key):
        batch = task.sample(key)
        logits = task.predict(task.init(key), batch[:, :-1])
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), batch[:, 1:, None], -1)[..., 0].mean(0)

    return jax.jit(jax.vmap(losses))(jax.random.split(jax.random.key(0), count)).mean(0)


def test_recurrent_initialization(monkeypatch):
    monkeypatch.delenv("OPTAX_UNF_DATA", raising=False)
    task = tasks.get("rnn-lm1b-small")
    assert task.source == python_reference().source
    params = task.init(jax.random.key(0))
    np.testing.assert_array_equal(params["recurrent"]["kernel"], np.eye(32))
    assert not params["recurrent"]["bias"].any()
    assert not params["out"]["bias"].any()
    for kernel, fan_in in ((params["embedding"], 1), (params["recurrent"]["input"], 16), (params["out"]["kernel"], 32)):
        np.testing.assert_allclose(kernel.std() * np.sqrt(fan_in), 1, atol=0.1)
    # The text is another with each version of Python, which the mean over few runs shows.
    losses = mean_losses(task, 64)
    # The first logits have variance 1 / 2, the mean square of half a standard normal; the identity adds up the rest.
    np.testing.assert_allclose(losses[0], np.log(256) + 0.25, atol=0.25)
    assert losses[-8:].mean() > losses[8:16].mean() > losses[:4].mean()
    assert 1.4 < losses.mean() / np.log(256) < 2.5


@pytest.mark.slow
def test_transformer_initialization(monkeypatch):
    monkeypatch.delenv("OPTAX_UNF_DATA", raising=False)
    task = tasks.get("transformer-lm1b-small")
    assert task.source == python_reference().source
    assert max(task.train.max(), task.test.max()) < task.vocabulary == 512
    params = task.init(jax.random.key(0))
    for path, leaf in jax.tree.leaves_with_path(params):
        name = path[-1].key
        assert not jax.typeof(leaf).weak_type  # a training step would compile a second time
        if name in ("scale", "bias"):
            np.testing.assert_array_equal(leaf, float(name == "scale"))
        else:
            fan_in = 128 if path[-2:][0].key == "down" else 32  # heads x values are 32, and so is every other input
            np.testing.assert_allclose(leaf.std() * np.sqrt(fan_in), 1, atol=0.2)
    # Normalized activations, so that logits have variance 1 at every place.
    np.testing.assert_allclose(mean_losses(task, 16), np.log(512) + 0.5, atol=0.35)


SIZES = {
    # name: vocabulary, floating-point operations of a step; counted by hand below
    "rnn-lm1b-small": (256, 32, 32, 16, 32),
    "rnn-lm1b": (256, 128, 32, 64, 128),
}


@pytest.mark.parametrize("name", SIZES)
def test_recurrent_sizes(name):
    vocabulary, batch, length, embedding, hidden = SIZES[name]
    description = tasks.get(name).describe()
    assert description.batch == ((batch, length + 1),)
    assert description.horizon == 2000
    assert description.parameters == (
        vocabulary * embedding + embedding * hidden + hidden * hidden + hidden + hidden * vocabulary + vocabulary
    )
    # What bytes bring, once for each byte; the recurrence and the logits, for each place. The backward pass is twice
    # the work of the forward pass.
    forward = 2 * (vocabulary * embedding * hidden + batch * length * (hidden * hidden + hidden * vocabulary))
    assert description.flops == 3 * forward


@pytest.mark.slow
@pytest.mark.parametrize(("name", "vocabulary"), [("transformer-lm1b-small", 512), ("transformer-lm1b", 32_000)])
def test_transformer_sizes(name, vocabulary):
    description = tasks.get(name).describe()
    block = 2 * 2 * 32 + 4 * 32 * 32 + (32 * 128 + 128) + (128 * 32 + 32)
    assert description.parameters == vocabulary * 32 + 8 * 32 + 2 * block + 2 * 32 + 32 * vocabulary + vocabulary
    assert description.parameters == {512: 58_752, 32_000: 2_105_472}[vocabulary]
    assert description.batch == ((8, 9),)
    assert description.horizon == 5000
    tokens = 8 * 8
    products = 4 * 32 * 32 + 2 * 32 * 128  # of one token in one block
    attention = 2 * 8 * 32  # scores and values
    assert description.flops == 3 * 2 * tokens * (2 * (products + attention) + 32 * vocabulary)


# Meta-training at full size.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "guess"), [("rnn-lm1b", 256), pytest.param("transformer-lm1b", 32_000, marks=pytest.mark.long)]
)
def test_meta_training_at_full_size(name, guess):
    task = tasks.get(name)
    assert task.vocabulary == guess
    start = load_weights("mlp-fashion-mnist-deepsets")
    # At their own step size, made for a perceptron, the recurrent network diverges.
    start = dataclasses.replace(start, theta=start.theta.with_scalars(log_alpha=jnp.log(0.01)))
    # These losses begin above the 10 nats that PES would clip at.
    stage = Stage(PES(pairs=1, truncation=1, max_loss=100.0), steps=2, learning_rate=1e-3)
    settings = MetaTrainConfig((stage,), horizon=2, evaluate_every=2, evaluate_runs=1)
    result = meta_train(start.architecture, task, settings, jax.random.key(1), weights=start, progress=False)
    assert np.log(guess) < result.curve[-1]["final_loss"] < 3 * np.log(guess)
    for moved in jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), result.last.theta, start.theta)):
        assert 1e-5 < moved < 1e-2
