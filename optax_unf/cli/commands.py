"""The commands of the command line, as functions: each calls the package, and writes or prints what it returns."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from optax_unf import meta, tasks
from optax_unf._files import write_text
from optax_unf.cli.options import RunOptions, StageOptions, run_config
from optax_unf.compare.baselines import ADAM_COSINE, BASELINES, best_rate, tune
from optax_unf.compare.optimizers import compare_optimizers
from optax_unf.compare.plot import plot_comparisons
from optax_unf.compare.results import Comparison, mean_and_error, read_comparison, read_comparisons, write_comparison
from optax_unf.compare.speed import geometric_mean, smoothed, speed_up
from optax_unf.compare.table import markdown_page, result_lines
from optax_unf.meta.card import cpu_cores, digest, provenance, this_command
from optax_unf.meta.fresh import Runs, fresh_keys, fresh_runs
from optax_unf.meta.plot import plot_run
from optax_unf.meta.progress import progress_bar
from optax_unf.meta.run_folder import holds_a_run, write_figure
from optax_unf.optimizer.architecture import Architecture, InitialScalars
from optax_unf.optimizer.meta_weights import MetaWeights, check_fits
from optax_unf.optimizer.pretrained import Listing, list_pretrained
from optax_unf.optimizer.transfer import carries_head, transfer_weights
from optax_unf.optimizer.weight_files import load_card, load_weights, pretrained_names, save_weights
from optax_unf.tasks.data.files import without_download
from optax_unf.tasks.task import as_task, task_horizon, task_spec

_LABELS = {"unf": "UNF", "nfn": "NFN", "deepsets": "Deep Sets", "none": "SGDM, meta-trained"}


def list_weights(*, describe: bool = False, task: tuple[str, ...] = (), data_dir: str | None = None) -> None:
    """Lists the pretrained meta-weights and the tasks.

    Args:
      describe: Also show sizes and work of each task whose data is there.
      task: Only these tasks, and weights for them.
      data_dir: Folder with the original data files; by default what OPTAX_UNF_DATA names.
    """
    chosen = task or tasks.names()
    for name in chosen:
        tasks.check_name(name)
    listed = list_pretrained()
    print(Listing(x for x in listed if x.trained_on in task) if task else listed)
    print("\ntasks")
    for name in chosen:
        print(_described(name, data_dir) if describe else name)


def _described(name: str, data_dir: str | None) -> str:
    try:
        with without_download():
            return str(tasks.describe(tasks.get(name, data_dir=data_dir)))
    except FileNotFoundError as error:
        return f"{name}: {error}"


def meta_train(
    *,
    task: tuple[str, ...],
    out: Path,
    architecture: Architecture = Architecture(),  # noqa: B008 (frozen)
    scalars: InitialScalars = InitialScalars(),  # noqa: B008 (frozen)
    stage: StageOptions = StageOptions(),  # noqa: B008 (frozen)
    run: RunOptions = RunOptions(),  # noqa: B008 (frozen)
    recipe: Literal["small"] | None = None,
    config: Path | None = None,
    start: str | None = None,
    learned: float = 1.0,
    seed: int = 0,
    resume: bool = False,
    save: Path | None = None,
    data_dir: str | None = None,
    progress: bool = True,
    devices: int | None = None,
    coordinator: str | None = None,
    process_id: int = 0,
    processes: int = 1,
) -> None:
    """Meta-trains an optimizer. The defaults are the paper's.

    Writes OUT/config.json, checkpoints/, metrics.jsonl and, at the end, weights.safetensors (the best meta-weights,
    with their card beside it) and curves.png.

    Args:
      task: Names of one or more tasks: see optax-unf list.
      out: Folder of the run.
      architecture: Of the learned optimizer.
      scalars: Initial values of the scalars; beside --start, --alpha alone may be given.
      stage: The one stage; --recipe or --config takes the place of these options.
      run: What holds for all stages; --config takes the place of these options.
      recipe: Stages that go far on a small budget, in place of one stage.
      config: JSON file with all settings and stages, such as the config.json of another run.
      start: Meta-weights to begin with, by name or path: see optax_unf.transfer_weights.
      learned: Factor of the learned part of the step of --start.
      seed: Of all randomness.
      resume: Continue the run in OUT from its newest checkpoint, or begin if there is none. Give the same options.
      save: Another file for the best meta-weights and their card, such as NAME.safetensors.
      data_dir: Folder with the original data files; by default what OPTAX_UNF_DATA names.
      progress: Show a progress bar.
      devices: CPU devices that JAX shall have; by default one for each core.
      coordinator: HOST:PORT of process 0, where several processes run this command together on one OUT.
      process_id: Number of this process, from 0.
      processes: How many processes there are.
    """
    if not task:
        raise ValueError("Meta-training needs at least one task, but --task has none.")
    first = process_id == 0
    if first and not resume and holds_a_run(out):
        raise ValueError(f"{out} must not hold a run, but does. Continue it with --resume, or give a new folder.")
    if learned != 1.0 and start is None:
        raise ValueError(f"--learned changes the weights of --start, but is {learned} without --start.")
    if start is not None and dataclasses.replace(scalars, alpha=None) != InitialScalars():
        raise ValueError("The weights of --start have scalars already: beside it, only --alpha may be given.")
    _start_devices(devices)
    if coordinator is not None:
        meta.distributed.initialize(coordinator, process_id, processes)
    loaded = [tasks.get(name, data_dir=data_dir) for name in task]
    settings = run_config(loaded, architecture.head, stage, run, recipe=recipe, file=config)
    key = jax.random.key(seed)
    initial = begun = None if start is None else load_weights(start)
    if begun is not None:
        spec, key_head = task_spec(loaded[0], architecture.head), jax.random.fold_in(key, 1)
        initial = transfer_weights(begun, architecture, spec, key_head, alpha=scalars.alpha, learned=learned)
        if first and not carries_head(begun, architecture, spec):
            print(
                f"The head of f is fresh, and so is beta: that of {start} does not fit. To go on with it, give --head "
                f"{begun.architecture.head} --coefficients {begun.architecture.coefficients}.",
                file=sys.stderr,
            )
    result = meta.meta_train(
        architecture,
        loaded,
        settings,
        key,
        weights=initial,
        scalars=scalars if initial is None else None,
        out=out,
        card={"given_tasks": list(task)} | ({"start": start, "start_digest": digest(begun)} if begun else {}),
        progress=progress,
    )
    if not first:
        return
    if save is not None:
        save_weights(save, result.weights, card=load_card(out / "weights.safetensors"))
    best = min(record["final_loss"] for record in result.curve)
    print(f"final_loss {best:.6g} -")
    print(f"seconds {result.seconds:.6g} s")
    print(f"Wrote {out / 'weights.safetensors'}" + (f" and {save}" if save else ""))


def evaluate(
    weights: str,
    /,
    *,
    task: str | None = None,
    seeds: int = 5,
    steps: int | None = None,
    adam: bool = True,
    data_dir: str | None = None,
    devices: int | None = None,
) -> None:
    """Trains fresh networks by a learned optimizer, on the seeds of optax-unf compare, and by tuned Adam beside it.

    The speed-up is that of optax-unf suite: steps that Adam needs for the loss both reach, over steps taken.

    Of a run's folder, Adam's loss is kept in RUN/adam.json, and drawn into RUN/curves.png.

    Args:
      weights: Meta-weights, by name or path, or the folder of a run.
      task: Name of a task; by default the one that the weights were meta-trained on.
      seeds: Fresh inner runs.
      steps: Inner steps of each; by default the task's horizon.
      adam: Whether to train by Adam, too, with a cosine and the best rate of its grid.
      data_dir: Folder with the original data files; by default what OPTAX_UNF_DATA names.
      devices: CPU devices that JAX shall have; by default one for each core.
    """
    if seeds < 1:
        raise ValueError(f"An evaluation needs at least one seed, but --seeds is {seeds}.")
    _check_steps(steps)
    _start_devices(devices)
    learned = load_weights(weights)
    loaded = tasks.get(task or _own_task(weights), data_dir=data_dir)
    check_fits(learned.spec, task_spec(loaded, learned.architecture.head))
    horizon = steps or task_horizon(loaded)
    training = meta.learned_training(learned.architecture, loaded, horizon)
    mine = fresh_runs(training, learned.theta, fresh_keys(seeds), horizon)
    _print_losses("", mine)
    if not adam:
        return
    rate = best_rate(tune(ADAM_COSINE, loaded, horizon))
    runs = fresh_runs(ADAM_COSINE.training(loaded, horizon), jnp.float32(rate), fresh_keys(seeds), horizon)
    print(f"adam_rate {rate:.3g} -")
    final = _print_losses("adam_", runs)
    _print_speed_up(mine, runs)
    if (run := Path(weights)).is_dir():
        write_text(run / "adam.json", json.dumps({"rate": rate, "steps": horizon, "final_loss": final}) + "\n")
        write_figure(run / "curves.png", plot_run(run))


def _own_task(weights: str) -> str:
    """The task that weights were meta-trained on, as the command was given it."""
    card = load_card(weights)
    names = card.get("given_tasks", [card["task"]])
    if len(names) != 1 or not (":" in names[0] or names[0] in tasks.names()):
        raise ValueError(f"{weights} was meta-trained on {card['task']}: say by --task where to evaluate it.")
    return names[0]


def _print_losses(prefix: str, runs: Runs) -> float:
    """Prints means and standard errors; returns the mean training loss."""
    means = []
    for name, losses in (("training_loss", meta.final_loss(runs.losses)), ("validation_loss", runs.validation)):
        mean, error = mean_and_error([float(x) for x in losses])
        print(f"{prefix}{name} {mean:.6g} -")
        if len(losses) > 1:
            print(f"{prefix}{name}_error {error:.6g} -")
        means.append(mean)
    return means[0]


def _print_speed_up(runs: Runs, adam: Runs) -> None:
    """Prints how many times as fast runs are as Adam's of the same seeds."""
    curves = zip(smoothed(np.asarray(runs.losses)), smoothed(np.asarray(adam.losses)), strict=True)
    horizon = runs.losses.shape[1]
    speed, error = geometric_mean(np.array([[speed_up(mine, theirs, horizon)] for mine, theirs in curves]))
    print(f"speed_up {speed:.4g} -")
    if len(runs.losses) > 1:
        print(f"speed_up_error {error:.2g} -")
    margin = 2 * np.nan_to_num(error)
    side = "ahead of" if speed > 1 + margin else "behind" if speed < 1 - margin else "about level with"
    print(f"{side.capitalize()} Adam at its best rate: {speed:.2f} times as fast to the loss that both reach.")


def compare(
    *,
    task: tuple[str, ...],
    out: Path = Path("runs/compare"),
    weights: tuple[str, ...] = (),
    seeds: int = 5,
    steps: int | None = None,
    fresh: bool = False,
    data_dir: str | None = None,
    devices: int | None = None,
) -> None:
    """Compares learned optimizers with Adam, AdamW and SGD with momentum at their best rates.

    Writes OUT/TASK.json after each optimizer, at the end OUT/TASK.md, and OUT/comparison.png of all tasks in OUT.
    Called again, it takes from OUT/TASK.json what was measured with the same settings and versions.

    Args:
      task: Names of one or more tasks.
      out: Folder of the results.
      weights: Meta-weights by name or path; by default the pretrained TASK-unf, -deepsets, -nfn, -sgdm there are.
      seeds: Fresh inner runs of each optimizer.
      steps: Inner steps of each; by default the task's horizon.
      fresh: Measure again what OUT/TASK.json has.
      data_dir: Folder with the original data files; by default what OPTAX_UNF_DATA names.
      devices: CPU devices that JAX shall have; by default one for each core.
    """
    _check_steps(steps)
    _start_devices(devices)
    for name in task:
        loaded = tasks.get(name, data_dir=data_dir)
        name = as_task(loaded).name
        learned = _labelled(weights or _pretrained_for(name))
        before = None if fresh else read_comparison(out / f"{name}.json")
        made = provenance(this_command())
        known = before.results if before is not None and before.made["versions"] == made["versions"] else ()
        found = Comparison(name, str(tasks.describe(loaded)), steps or task_horizon(loaded), seeds, (), made)
        results = compare_optimizers(loaded, learned, steps=steps, seeds=seeds, known=known)
        for result in progress_bar(results, len(BASELINES) + len(learned), name):
            found = dataclasses.replace(found, results=(*found.results, result))
            # What is known and not yet come to is kept: a comparison that is stopped twice loses nothing.
            names = {result.name for result in found.results}
            rest = tuple(result for result in known if result.name not in names)
            write_comparison(out, dataclasses.replace(found, results=(*found.results, *rest)))
            print(*result_lines(result), sep="\n", flush=True)
        write_comparison(out, found)
        page = markdown_page(found)
        write_text(out / f"{name}.md", page)
        print(page)
    plot(results=out)


def plot(run: Path | None = None, /, *, results: Path | None = None, out: Path | None = None) -> None:
    """Draws the curves of a meta-training run, or those of all comparisons in a folder.

    Args:
      run: Folder of a meta-training run.
      results: Folder of results of optax-unf compare.
      out: The picture; by default RUN/curves.png or RESULTS/comparison.png.
    """
    if run is not None and results is None:
        figure, path = plot_run(run), out or run / "curves.png"
    elif results is not None and run is None:
        figure, path = plot_comparisons(read_comparisons(results)), out or results / "comparison.png"
    else:
        raise ValueError("Give either the folder of a run, or --results with the folder of comparisons.")
    write_figure(path, figure)
    print(f"Wrote {path}")


def _check_steps(steps: int | None) -> None:
    if steps is not None and steps < 1:
        raise ValueError(f"Inner runs need at least one step, but --steps is {steps}.")


def _start_devices(count: int | None) -> None:
    """Gives the CPU so many devices, which is possible only before JAX has started."""
    if count is not None and count < 1:
        raise ValueError(f"JAX needs at least one device, but --devices is {count}.")
    try:
        jax.config.update("jax_num_cpu_devices", count or cpu_cores())
    except RuntimeError as error:
        if count is not None and count != jax.local_device_count("cpu"):
            raise ValueError(
                f"The number of devices must be set before JAX has started, but it runs with "
                f"{jax.local_device_count('cpu')} and --devices is {count}."
            ) from error


def _pretrained_for(task: str) -> list[str]:
    wanted = [f"{task}-{kind}{head}" for head in ("unf", "tied", "deepsets", "nfn", "sgdm") for kind in ("", "rms-")]
    if not (found := [name for name in wanted if name in pretrained_names()]):
        raise ValueError(
            f"There must be pretrained meta-weights for {task}, {' or '.join(wanted)}, but there are none. Name others "
            f"by --weights."
        )
    return found


def _labelled(sources: Sequence[str]) -> dict[str, MetaWeights]:
    """Meta-weights by what they are called in tables; by their own names where that would be the same."""
    labelled: dict[str, MetaWeights] = {}
    for source in sources:
        weights = load_weights(source)
        label = ", ".join((_LABELS[weights.architecture.head], *_traits(weights.architecture)))
        labelled[f"{label} ({Path(source).stem})" if label in labelled else label] = weights
    return labelled


def _traits(config: Architecture) -> list[str]:
    """What tells an architecture from the paper's."""
    tied = (config.head, config.coefficients) == ("unf", "tied")
    traits = {
        "tied": tied,
        "preconditioned": config.preconditioner is not None,
        "orthogonalized": config.nominal == "orthogonalized",
        "SOAP": config.nominal == "soap",
        "distance": config.step == "distance",
    }
    return [name for name, present in traits.items() if present]
