"""The commands `optax-unf zoo`."""

import json
from pathlib import Path

from optax_unf._files import write_text
from optax_unf.cli.suite import keep_compiled
from optax_unf.meta.card import provenance, this_command
from optax_unf.zoo.card import make_card
from optax_unf.zoo.config import ZooConfig
from optax_unf.zoo.experiment import read_results, run, write_results
from optax_unf.zoo.make import make_shards
from optax_unf.zoo.page import write_page
from optax_unf.zoo.population import gather, load_zoo, save_zoo
from optax_unf.zoo.predictors import LABELS, PredictorName


def make_zoo(
    *,
    out: Path,
    config: ZooConfig = ZooConfig(),  # noqa: B008 (frozen)
    models: int = 10_000,
    gather_only: bool = False,
    progress: bool = True,
) -> None:
    """Trains a zoo, shard by shard. Called again, it goes on.

    Writes OUT/config.json, OUT/shards/, and at the end OUT/zoo.safetensors with its card, OUT/zoo.json.

    Args:
      out: Folder of the zoo.
      config: The models.
      models: How many, rounded up to whole shards.
      gather_only: Train no more; write the file of the shards that are there.
      progress: Show a progress bar.
    """
    with _Progress(progress and not gather_only) as bar:
        shards = make_shards(config, 0 if gather_only else models, out, report=bar)
    zoo = gather(config, shards)
    path = out / "zoo.safetensors"
    save_zoo(path, zoo)
    card = make_card(zoo, provenance(this_command()), path)
    write_text(path.with_suffix(".json"), json.dumps(card, indent=1) + "\n")
    print(f"Wrote {len(zoo):,} models to {path}")


def train_predictors(
    zoo: Path,
    /,
    *,
    out: Path,
    predictor: tuple[PredictorName, ...] = tuple(LABELS),
    train: tuple[int, ...] = (250, 500, 1000, 2000, 4000, 8000),
    seeds: int = 5,
    test_on: tuple[Path, ...] = (),
    join_gates: bool = False,
) -> None:
    """Trains predictors of success on a zoo, and tests them.

    Writes OUT/results.jsonl after each. Called again, it goes on with what is missing there.

    Args:
      zoo: File of the zoo.
      out: Folder of the results.
      predictor: Which predictors.
      train: Numbers of models to train on; larger ones than the zoo has are left out.
      seeds: Of splits and training.
      test_on: Files of further zoos, to test on what was trained on most models.
      join_gates: Take the gates of a cell as one array, so that predictors fit other cells.
    """
    keep_compiled()
    population = load_zoo(zoo)
    others = {path.stem: load_zoo(path) for path in test_on}
    most = len(population) - 2 * (len(population) // 10)
    sizes = tuple(size for size in train if size < most) + ((most,) if max(train) >= most else ())
    results = read_results(out / "results.jsonl")
    new = run(
        population,
        predictor,
        sizes,
        range(seeds),
        known=tuple(results),
        others=others,
        join_gates=join_gates,
    )
    for result in new:
        results.append(result)
        write_results(out / "results.jsonl", results)
        print(
            f"{result.predictor} on {result.train}, seed {result.seed}, {result.tested_on}: tau {result.tau:.3f}, "
            f"R2 {result.r2:.3f}, {result.seconds:.0f} s",
            flush=True,
        )


def table(zoo: Path, /, *, results: Path, out: Path) -> None:
    """Writes the table and the pictures of results: OUT/zoo.md and OUT/zoo-*.png.

    Args:
      zoo: File of the zoo.
      results: Folder where optax-unf zoo train wrote.
      out: Folder of the page.
    """
    made = provenance(this_command())
    write_page(out, load_zoo(zoo), read_results(results / "results.jsonl"), made)
    print(f"Wrote {out / 'zoo.md'}")


class _Progress:
    """A bar of shards, if tqdm is installed and it is wanted."""

    def __init__(self, wanted: bool) -> None:
        self._bar = None
        if wanted:
            try:
                from tqdm.auto import tqdm
            except ModuleNotFoundError:
                return
            self._bar = tqdm(unit="shard", desc="zoo")

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, of: int) -> None:
        if self._bar is not None:
            self._bar.total = of
            self._bar.update(done - self._bar.n)
