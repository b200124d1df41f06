"""The program optax-unf, as a user runs it."""

import json
import os
import re
import runpy
import subprocess
import sys

import jax
import matplotlib.image
import numpy as np
import pytest
from places import ROOT

from optax_unf import Architecture, __version__, load_card, load_weights, tasks
from optax_unf._imported import imported
from optax_unf.cli.options import RunOptions, StageOptions, run_config
from optax_unf.cli.program import main
from optax_unf.meta import PES, MetaTrainConfig, Stage, meta_train
from optax_unf.meta.card import digest

TINY = ("--task", "mlp-digits", "--head", "none", "--no-progress")
STAGE = ("--steps", "3", "--pairs", "1", "--truncation", "2", "--learning-rate", "0.1")
RUN = ("--horizon", "4", "--evaluate-every", "1", "--evaluate-runs", "2")
CARD = {"task", "data", "command", "commit", "date", "start", "outer_steps", "seconds", "machine", "versions"}
CARD |= {"selection", "architecture", "scalars", "start_digest", "config", "curve", "given_tasks"}


@pytest.fixture(autouse=True, scope="module")
def _started():
    jax.devices()  # so that the program does not choose the number of devices of the other tests


def values(printed):
    """Numbers of lines `name value unit`."""
    return {m[1]: float(m[2]) for m in re.finditer(r"^(\w+) (\S+) (?:ms|s|steps|-)$", printed, re.MULTILINE)}


def failure(capsys, *arguments):
    """The message of a command that fails."""
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code != 0
    return f"{exit_info.value.code} {capsys.readouterr()}"


@pytest.mark.slow
def test_list(capsys):
    main(["list"])
    printed = capsys.readouterr().out
    assert re.search(
        r"mlp-fashion-mnist-unf +mlp-fashion-mnist alone +mlp-fashion-mnist +unf, full "
        r".* alpha, 0\.075 +210 +0\.353 +0\.371",
        printed,
    )
    assert set(tasks.names()) <= set(printed.split())
    main(["list", "--describe", "--task", "mlp-digits"])
    assert "3,466 in 6 leaves" in capsys.readouterr().out


@pytest.mark.slow
def test_meta_train_then_resume_and_repeat(tmp_path, capsys):
    out, copy = tmp_path / "run", tmp_path / "saved" / "best.safetensors"
    main(["meta-train", *TINY, *STAGE, *RUN, "--seed", "5", "--out", str(out), "--save", str(copy)])
    config = MetaTrainConfig(
        (Stage(PES(pairs=1, truncation=2), steps=3, learning_rate=0.1),), horizon=4, evaluate_every=1, evaluate_runs=2
    )
    truth = meta_train(Architecture(head="none"), tasks.get("mlp-digits"), config, jax.random.key(5), progress=False)
    assert MetaTrainConfig.from_dict(json.loads((out / "config.json").read_text())) == config
    for file in (out / "weights.safetensors", copy):
        assert load_weights(file).theta == truth.weights.theta
        card = load_card(file)
        assert set(card) == CARD
        assert (card["task"], card["outer_steps"], card["curve"]) == ("mlp-digits", 3, truth.curve)
    before = matplotlib.image.imread(out / "curves.png")
    assert before.std() > 0.01
    assert values(capsys.readouterr().out)["final_loss"] == pytest.approx(min(r["final_loss"] for r in truth.curve))

    main(["evaluate", str(out), "--steps", "4", "--seeds", "2"])  # the task is that of the card
    found = values(capsys.readouterr().out)
    assert found["training_loss"] > 0
    assert json.loads((out / "adam.json").read_text())["final_loss"] == pytest.approx(
        found["adam_training_loss"], rel=1e-5
    )
    assert (matplotlib.image.imread(out / "curves.png") != before).any()  # Adam's line

    again = ["meta-train", *TINY, "--config", str(out / "config.json"), "--seed", "5"]
    message = failure(capsys, *again, "--out", str(out))
    assert "Continue it with --resume, or give a new folder" in message
    main([*again, "--out", str(out), "--resume"])
    main([*again, "--out", str(tmp_path / "other")])
    assert load_weights(tmp_path / "other" / "weights.safetensors").theta == truth.weights.theta
    message = failure(capsys, *again[:-1], "6", "--out", str(out), "--resume")
    assert "other settings: its key[1] is 5, not 6" in message
    longer = list(again)
    longer[longer.index("--config") + 1] = str(tmp_path / "longer.json")
    (tmp_path / "longer.json").write_text((out / "config.json").read_text().replace('"steps": 3', '"steps": 4'))
    assert "other settings: its stages[0].steps is 3, not 4" in failure(capsys, *longer, "--out", str(out), "--resume")
    assert MetaTrainConfig.from_dict(json.loads((out / "config.json").read_text())) == config
    message = failure(capsys, *again, "--out", str(out), "--resume", "--start", "mlp-fashion-mnist-sgdm")
    assert "other settings: its scalars is" in message

    (out / "curves.png").unlink()
    main(["plot", str(out)])
    assert (out / "curves.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("others", [False, True])
def test_meta_training_begins_with_other_weights(tmp_path, others):
    start = "mlp-fashion-mnist-sgdm"
    options = ["--start", start]
    options += ["--preconditioner", "rms", "--step-warmup", "--alpha", "2e-3"] if others else []
    rate = ("--steps", "1", "--pairs", "1", "--truncation", "2", "--learning-rate", "1e-30")
    main(["meta-train", *TINY, *rate, *RUN, "--out", str(tmp_path / "run"), *options])
    trained = load_weights(tmp_path / "run" / "weights.safetensors")
    np.testing.assert_allclose(trained.alpha, 2e-3 if others else load_weights(start).alpha, rtol=1e-6)
    assert trained.architecture.preconditioner == ("rms" if others else None)
    np.testing.assert_allclose(trained.theta.scalars.warmup(0), 1 - np.exp(-1 / 100) if others else 1.0, rtol=1e-5)
    card = load_card(tmp_path / "run" / "weights.safetensors")
    assert (card["start"], card["start_digest"]) == (start, digest(load_weights(start)))


@pytest.mark.parametrize("steps", ["0", "-5"])
@pytest.mark.parametrize("command", [["evaluate", "mlp-fashion-mnist-sgdm"], ["compare"]])
def test_inner_runs_have_steps(capsys, tmp_path, command, steps):
    options = ["--out", str(tmp_path)] if command == ["compare"] else []
    message = failure(capsys, *command, *TINY[:2], *options, "--steps", steps)
    assert f"at least one step, but --steps is {steps}" in message


def test_the_learned_part_of_a_start_needs_a_start(capsys, tmp_path):
    message = failure(capsys, "meta-train", *TINY, *RUN, "--out", str(tmp_path / "run"), "--learned", "0.2")
    assert "--learned changes the weights of --start, but is 0.2 without --start" in message
    assert not (tmp_path / "run").exists()


def test_describing_downloads_nothing(capsys, monkeypatch, tmp_path):
    pooch = pytest.importorskip("pooch")
    monkeypatch.delenv("OPTAX_UNF_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path)
    monkeypatch.setattr(pooch, "retrieve", lambda *arguments, **options: pytest.fail("downloads"))
    main(["list", "--describe", "--task", "mlp-fashion-mnist", "mlp-digits"])
    printed = capsys.readouterr().out
    assert re.search(r"mlp-fashion-mnist: The data file \S+ is not downloaded yet", printed)
    assert "3,466 in 6 leaves" in printed


def test_a_start_that_failed_does_not_block_its_folder(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / "run" / name).write_text("{}")
    main(["meta-train", *TINY, *STAGE, *RUN, "--out", str(tmp_path / "run")])
    assert load_weights(tmp_path / "run").architecture.head == "none"


def test_a_fresh_head_is_told(tmp_path, capsys):
    options = ["--task", "mlp-digits", "--head", "deepsets", "--start", "mlp-fashion-mnist-tied", "--no-progress"]
    main(["meta-train", *options, *STAGE, *RUN, "--out", str(tmp_path / "run")])
    told = capsys.readouterr().err
    assert "The head of f is fresh, and so is beta: that of mlp-fashion-mnist-tied does not fit." in told
    assert "give --head unf --coefficients tied" in told


def test_a_start_has_scalars_already(capsys, tmp_path):
    start = ("--start", "mlp-fashion-mnist-sgdm", "--gamma-0", "0.5")
    message = failure(capsys, "meta-train", *TINY, *RUN, "--out", str(tmp_path / "run"), *start)
    assert "beside it, only --alpha may be given" in message
    assert not (tmp_path / "run").exists()


def test_the_defaults_are_those_of_the_paper():
    config = run_config([tasks.get("mlp-digits")], "unf", StageOptions(), RunOptions())
    assert config == MetaTrainConfig()
    (stage,) = config.stages
    assert (stage.steps, config.horizon, config.clip_norm) == (50_000, 2000, 1.0)
    assert stage.estimator == PES(pairs=16, truncation=50, sigma=0.01, objective="final")


@pytest.mark.parametrize("name", ["pes", "truncated-es", "nres", "full-es", "backprop"])
def test_every_estimator_can_be_chosen(name):
    estimator = StageOptions(estimator=name).stage().estimator
    assert type(estimator).__name__.lower() == name.replace("-", "")
    number = "runs" if name == "backprop" else "pairs"
    assert getattr(StageOptions(estimator=name, **{number: 3}).stage().estimator, number) == 3


def test_a_recipe_is_its_stages():
    task = tasks.get("mlp-digits")
    config = run_config([task], "unf", StageOptions(), RunOptions(horizon=1000), recipe="small")
    assert len(config.stages) > 1
    assert config.horizon == 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["meta-train", "--task", "mlp-nothing"], "The task must be one of mlp-digits"),
        (["meta-train", "--task", "mlp-digits", "--head", "adam"], "adam"),
        (
            ["meta-train", *TINY, "--estimator", "backprop", "--pairs", "3"],
            "--runs, --skip, --truncation, but --pairs is given",
        ),
        (["meta-train", *TINY, "--recipe", "small", "--steps", "5"], "but --steps is given besides"),
        (["meta-train", *TINY, "--config", "x.json", "--clip-norm", "5"], "but --clip-norm is given besides"),
        (["meta-train", *TINY, "--truncation", "51"], "Shorten the truncation"),
        (["meta-train", *TINY, "--devices", "64"], "before JAX has started"),
        (["meta-train", *TINY, "--devices", "0"], "at least one device, but --devices is 0"),
        (["meta-train", *TINY, "--config", "missing.json"], "missing.json: No such file"),
        (["meta-train", *TINY, "--config", str(ROOT / "README.md")], "README.md must be JSON, but is not"),
    ],
)
def test_meta_training_that_cannot_be_is_refused(arguments, message, tmp_path, capsys):
    assert message in failure(capsys, *arguments, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "mlp-fashion-mnist-unf", "--task", "rnn-lm1b-small"], "fit only the weight space"),
        (["evaluate", "no-such-weights", "--task", "mlp-digits"], "must be a file or one of"),
        (["evaluate", "mlp-fashion-mnist-sgdm", "--task", "mlp-digits", "--seeds", "0"], "at least one seed"),
        (["compare", "--task", "mlp-digits"], "There must be pretrained meta-weights for mlp-digits"),
        (["list", "--task", "mlp-nothing"], "The task must be one of mlp-digits"),
        (["plot"], "Give either the folder of a run"),
        (["plot", "no-such-folder"], "a file metrics.jsonl, but no-such-folder has none"),
        (["plot", "--results", "no-such-folder"], "must hold results of a comparison"),
    ],
)
def test_other_commands_say_what_is_wrong(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in failure(capsys, *arguments)


@pytest.mark.slow
def test_evaluate_in_a_process_of_its_own_on_several_devices(capsys):
    options = ["--task", "mlp-digits", "--seeds", "3", "--steps", "5", "--no-adam"]
    arguments = ["evaluate", "mlp-fashion-mnist-sgdm", *options]
    main(arguments)
    here = values(capsys.readouterr().out)
    command = [sys.executable, "-m", "optax_unf.cli", *arguments, "--devices", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert values(done.stdout) == pytest.approx(here, rel=1e-4)
    assert set(here) == {"training_loss", "training_loss_error", "validation_loss", "validation_loss_error"}


def test_one_seed_has_no_error(capsys):
    options = ["--task", "mlp-digits", "--seeds", "1", "--steps", "5", "--no-adam"]
    main(["evaluate", "mlp-fashion-mnist-sgdm", *options])
    assert set(values(capsys.readouterr().out)) == {"training_loss", "validation_loss"}


def test_what_cannot_be_written_is_a_message(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = failure(capsys, "meta-train", *TINY, *STAGE, *RUN, "--out", str(tmp_path / "file" / "run"))
    assert f"optax-unf: {tmp_path / 'file'}" in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_damaged_comparison_is_not_written_over(capsys, tmp_path):
    path = tmp_path / "mlp-digits.json"
    path.write_text('{"format": "optax_unf comparison 1", "res')
    arguments = ["compare", "--task", "mlp-digits", "--weights", "mlp-fashion-mnist-sgdm", "--steps", "60"]
    message = failure(capsys, *arguments, "--out", str(tmp_path))
    assert f"{path} must be JSON, but is damaged" in message
    assert path.read_text().endswith('"res')


@pytest.mark.slow
def test_compare_and_continue(tmp_path, capsys):
    command = [
        "compare",
        "--task",
        "mlp-digits",
        "--weights",
        "mlp-fashion-mnist-sgdm",
        "--steps",
        "60",
        "--seeds",
        "2",
    ]
    command += ["--out", str(tmp_path)]
    main(command)
    printed = capsys.readouterr().out
    numbers = values(printed)
    for name in ("sgdm_meta_trained", "adam", "adam_cosine", "adamw_cosine", "sgdm"):
        assert numbers[f"{name}_training_loss"] < 2.4
    assert numbers["adam_rate"] > 0
    page = (tmp_path / "mlp-digits.md").read_text()
    assert page in printed
    assert len([line for line in page.splitlines() if line.startswith("| ")]) == 2 + 5
    assert "weight decay 0.0001" in page
    assert matplotlib.image.imread(tmp_path / "comparison.png").std() > 0.01

    # Stopped before the last optimizer: all numbers but the times are the same.
    record = json.loads((tmp_path / "mlp-digits.json").read_text())
    before = record["results"]
    (tmp_path / "mlp-digits.json").write_text(json.dumps(record | {"results": before[:-1]}))
    main(command)
    after = json.loads((tmp_path / "mlp-digits.json").read_text())["results"]
    for result in (*before, *after):
        del result["seconds_per_step"]
    assert after == before


@pytest.mark.slow
def test_the_example_of_meta_training(capsys):
    main_of_example = runpy.run_path(str(ROOT / "examples" / "meta_train.py"))["main"]
    main_of_example.__globals__.update(OUTER_STEPS=2, HORIZON=20, TRUNCATION=5)
    main_of_example()
    assert re.search(r"final loss \d\.\d+ after 2 outer steps", capsys.readouterr().out)


OWN_TASK = """
import jax, jax.numpy as jnp

class Line:
    horizon = 20

    def init(self, key):
        return {"w": jnp.zeros(3)}

    def sample(self, key):
        return jax.random.normal(key, (8, 3))

    def loss(self, params, x):
        return jnp.mean((x @ params["w"] - x.sum(-1)) ** 2)

    def held_out(self):
        return jnp.eye(3)
"""


@pytest.mark.slow
def test_a_task_of_ones_own_serves_every_command(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN_TASK)
    task = f"{tmp_path}/mine.py:Line"
    main(
        [
            "meta-train",
            "--task",
            task,
            *STAGE,
            *RUN,
            "--head",
            "none",
            "--out",
            str(tmp_path / "run"),
            "--no-progress",
        ]
    )
    assert load_card(tmp_path / "run" / "weights.safetensors")["task"] == "Line"
    main(["evaluate", str(tmp_path / "run"), "--seeds", "2", "--no-adam"])  # the task as it was given
    assert values(capsys.readouterr().out)["training_loss"] > 0
    main(["evaluate", str(tmp_path / "run" / "weights.safetensors"), "--task", task, "--seeds", "2"])
    printed = capsys.readouterr().out
    assert values(printed)["validation_loss"] > 0
    assert printed.splitlines()[-1].endswith(
        f"{values(printed)['speed_up']:.2f} times as fast to the loss that both reach."
    )
    with pytest.raises(SystemExit, match=r"must have init, sample and loss, but lacks"):
        main(["evaluate", "universal", "--task", "math:pi"])
    (tmp_path / "aux.py").write_text(OWN_TASK.replace("return jnp", "return 0, jnp"))
    with pytest.raises(SystemExit, match=r"must be one floating-point number, .* that of Line is a tuple"):
        main(["evaluate", "universal", "--task", f"{tmp_path}/aux.py:Line"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "mlp-fashion-mnist-sgmd", "--task", "mlp-digits"], r"Did you mean mlp-fashion-mnist-sgdm\?"),
        (["evaluate", "universal", "--task", "mlp-digit"], r"Did you mean mlp-digits\?"),
    ],
)
def test_near_misses_are_named(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"optax-unf {__version__}\n"


def test_a_file_of_ones_own_imports_its_neighbour(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour_of_mine.py").write_text("STEPS = 7\n")
    (tmp_path / "mine.py").write_text("from neighbour_of_mine import STEPS\n")
    assert imported(f"{tmp_path}/mine.py:STEPS") == 7
    (tmp_path / "broken.py").write_text("import no_such_module_at_all\n")
    with pytest.raises(ValueError, match=r"broken\.py of .* cannot be imported: No module named 'no_such_module"):
        imported(f"{tmp_path}/broken.py:STEPS")
