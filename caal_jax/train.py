"""train(config, workdir): one loop for every task, localiser and number of devices."""

import contextlib
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers
from tensorboardX import SummaryWriter
from tqdm import tqdm

from caal_jax import files, parallel
from caal_jax.checkpoint import Checkpoints
from caal_jax.confidence import calibration, decision
from caal_jax.data.slices import SliceBank
from caal_jax.errors import InputError
from caal_jax.localise import (
    CALIBRATE_DRAW,
    Decisions,
    Predictor,
    build_localiser,
    build_prepare,
    case_stack,
    image_scores,
    new_models,
)
from caal_jax.synthesis import TASKS, Anomaly, jitter_source
from caal_jax.synthesis.guidance import guide
from caal_jax.synthesis.mixture import pick_task, read_mixture

MIN_SYNTHETIC = 48  # held-out synthetic cases, made from as many healthy ones as there are

# Of Muon's step to Adam's; chosen on phantoms of a seed that no reported figure is from.
MUON_SCALE = 15.0


def build_optimizer(config):
    """Muon (Jordan et al. 2024) for convolution kernels, Nesterov Adam for everything else.

    Muon steps along the orthogonalised momentum, with MUON_SCALE times the learning rate; Adam
    alone had a higher loss after as many steps when both were tried. Weight decay is Muon's only.
    """
    schedule = learning_rate(config)

    def matrices(params):
        inputs_to_outputs = MuonDimensionNumbers((0, 1, 2), 3)
        return jax.tree.map(
            # The head, onto two channels, is Adam's.
            lambda p: inputs_to_outputs if p.ndim == 4 and p.shape[3] > 2 else None,
            params,
        )

    return optax.contrib.muon(
        lambda step: MUON_SCALE * schedule(step),
        ns_steps=4,
        weight_decay=config.weight_decay,
        adam_learning_rate=schedule,
        muon_weight_dimension_numbers=matrices,
    )


def learning_rate(config):
    """Linear warm-up to the peak, then half a cosine down to zero."""
    warmup = min(config.warmup_steps, config.num_steps // 2)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, config.num_steps)


def build_corrupt(config):
    """`corrupt(key, step, keys, target, source, foreground) -> Anomaly` of one prepared batch.

    key picks the batch's task from the mixture that `config.task` names for this step: one task a
    batch, as a choice for each image would have to compute all of them. keys: one per image.
    """
    mixture = read_mixture(config.task, TASKS)
    branches = [jax.vmap(build_corrupt_one(config, TASKS[name])) for name in mixture.names]

    def corrupt(key, step, *batch):
        if len(branches) == 1:
            return branches[0](*batch)
        return jax.lax.switch(pick_task(key, mixture, step), branches, *batch)

    return corrupt


def build_corrupt_one(config, task):
    """`corrupt(key, target, source, foreground) -> Anomaly` for one prepared pair.

    The task one to `num_patches` times, equally likely, each on the result of the last; labels are
    joined by their maximum. With `source_jitter` every patch comes from a newly jittered source.
    """

    def once(key, anomaly, source, foreground):
        task_key, jitter_key = jax.random.split(key)
        if config.source_jitter:
            source = jitter_source(jitter_key, source)
        made = task(task_key, anomaly.image, source, foreground=foreground)
        return Anomaly(
            made.image,
            jnp.maximum(anomaly.label, made.label),
            jnp.maximum(anomaly.label_std, made.label_std),
        )

    def corrupt(key, target, source, foreground):
        count_key, key = jax.random.split(key)
        count = jax.random.randint(count_key, (), 1, config.num_patches + 1)
        anomaly = healthy(target)
        for patch in range(config.num_patches):
            made = once(jax.random.fold_in(key, patch), anomaly, source, foreground)
            anomaly = choose(patch < count, made, anomaly)
        return anomaly

    return guide(
        corrupt,
        config.equalise,
        equalise_foreground=config.equalise_foreground,
        foreground_threshold=config.foreground_threshold,
    )


def healthy(image):
    """An image (..., C) as an `Anomaly` with nothing to find."""
    empty = jnp.zeros_like(image[..., :1])
    return Anomaly(image, empty, empty)


def choose(condition, first, second):
    """One of two `Anomaly`s, by a condition that broadcasts against their arrays."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)


def build_step(config, layout):
    """The whole training step of one device: prepare, corrupt, gradient, update.

    Takes state {"key", "params", "opt_state"}, the step number and this device's part of a
    `Batch`; returns the new state and the member's losses.
    """
    localiser, optimizer = build_localiser(config), build_optimizer(config)
    prepare, corrupt = jax.vmap(build_prepare(config)), build_corrupt(config)

    def step(state, number, batch):
        size = len(batch.low)
        places = parallel.shard_index(layout) * size + jnp.arange(size)
        step_key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), number)
        # A key per example, numbered within the whole batch, makes the devices' number irrelevant.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, places)
        split = jax.vmap(functools.partial(jax.random.split, num=3))
        synthesis_keys, clean_keys, loss_keys = jnp.moveaxis(split(keys), 1, 0)
        target = prepare(batch.target, batch.low, batch.high)
        source = prepare(batch.source, batch.source_low, batch.source_high)
        pair = target.image, source.image, target.foreground
        anomaly = corrupt(step_key, number, synthesis_keys, *pair)
        clean = jax.vmap(lambda key: jax.random.bernoulli(key, config.clean_fraction))(clean_keys)
        anomaly = choose(clean[:, None, None, None], healthy(target.image), anomaly)
        value = jax.value_and_grad(localiser.loss, has_aux=True)
        (loss, parts), gradient = value(state["params"], loss_keys, anomaly)
        loss, parts, gradient = parallel.mean_over_member((loss, parts, gradient), layout)
        update, opt_state = optimizer.update(gradient, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], update)
        new = {"key": state["key"], "params": params, "opt_state": opt_state}
        return new, {"loss": loss, **parts}

    return step


def member_seed(config, member):
    """The seed of a member's data order."""
    return int(np.random.SeedSequence([config.seed, member]).generate_state(1)[0])


def build_bank(config, dataset, workdir):
    """The training slices of a data set, with a progress bar."""
    with tqdm(total=len(dataset.train), desc="reading", unit="case") as bar:
        return SliceBank.build(
            dataset.train,
            image_size=config.image_size,
            cache_dir=files.folder(workdir / "cache"),
            progress=lambda done, total: bar.update(done - bar.n),
        )


def train(config, workdir, dataset):
    """Trains the ensemble into a workdir, or goes on where an earlier call was stopped.

    config: an `ml_collections.ConfigDict` with the fields of `caal_jax.defaults`; dataset: a
    `caal_jax.data.DataSet`. Leaves checkpoints, `metrics.jsonl`, TensorBoard events,
    `training.json` (facts for prediction) and `decisions.json` (threshold and calibration).
    """
    workdir = Path(workdir)
    claim_workdir(config, workdir)
    for build in (build_localiser, build_prepare, build_corrupt):
        build(config)  # refuses a mistyped name before anything long begins
    bank = build_bank(config, dataset, workdir)
    channels = bank.images.shape[-1]
    facts = {"channels": channels, "num_slices": len(bank), "notes": list(bank.notes)}
    files.write_text(workdir / "training.json", json.dumps(facts, indent=1))
    layout = parallel.plan(config.num_members, config.batch_size)
    print(f"training {config.task} on {len(bank)} slices: {layout.describe()}", flush=True)

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir))
        state, start = starting_state(config, channels, checkpoints)
        write = stack.enter_context(log(workdir, config, start))
        rounds = parallel.place(parallel.spread(state, layout), layout)
        lifted = parallel.lift(build_step(config, layout), layout, donate_first=True)
        seeds = [member_seed(config, m) for m in range(config.num_members)]
        began, losses = time.monotonic(), [None] * layout.rounds
        bar = tqdm(total=config.num_steps, initial=start, desc="training", unit="step")
        for step in range(start, config.num_steps):
            number = np.full(layout.used, step, np.uint32)
            for round_ in range(layout.rounds):
                batches = [
                    bank.batch(seeds[m], step, config.batch_size) for m in layout.members(round_)
                ]
                batch = parallel.stack_batches(batches, layout)
                rounds[round_], losses[round_] = lifted(rounds[round_], number, batch)
            done = step + 1
            bar.update()
            if done % config.log_steps == 0 or done == config.num_steps:
                values = parallel.gather(losses, layout)
                check_finite(values["loss"], done, workdir)
                bar.set_postfix(loss=f"{values['loss'].mean():.4f}")
                write(done, values, time.monotonic() - began)
            if done % config.checkpoint_steps == 0 or done == config.num_steps:
                tree = parallel.gather(rounds, layout)
                optimizer = tree.pop("opt_state")
                checkpoints.save(done, model=tree, optimizer=optimizer)
        bar.close()
        model = parallel.gather(rounds, layout)
    decide(config, workdir, dataset, bank, Predictor(config, model))


def claim_workdir(config, workdir):
    """Writes config.json into a new workdir, or checks that an old one was made by this config."""
    path = files.folder(workdir) / "config.json"
    wanted = json.loads(config.to_json())
    if not path.is_file():
        files.write_text(path, json.dumps(wanted, indent=1))
        return
    found = json.loads(path.read_text())
    differing = [
        f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now"
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key) != wanted.get(key)
    ]
    if differing:
        raise InputError(
            path,
            found="a run of another config (" + "; ".join(differing) + ")",
            expected="the same config, to resume",
            remedy="Pass another --workdir, or the config that this one was made with.",
        )


def starting_state(config, channels, checkpoints):
    """The newest checkpoint, or new members: (state stacked over members, step)."""
    optimizer = build_optimizer(config)

    def new():
        model = new_models(config, channels)
        return {"model": model, "optimizer": jax.vmap(optimizer.init)(model["params"])}

    step = checkpoints.latest_step()
    if step is None:
        # Optimising a program that runs once takes ten times as long as running it.
        state, step = jax.jit(new, compiler_options={"xla_backend_optimization_level": 0})(), 0
    else:
        state = checkpoints.restore(**jax.eval_shape(new))
    return {**state["model"], "opt_state": state["optimizer"]}, step


@contextlib.contextmanager
def log(workdir, config, start):
    """Yields `write(step, values, seconds)`: a line of metrics.jsonl and TensorBoard scalars."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    # Steps after the checkpoint run again; their old lines would be duplicates.
    kept = [line for line in lines if json.loads(line)["step"] <= start]
    before = json.loads(kept[-1])["seconds"] if kept else 0.0
    files.write_text(path, "".join(f"{line}\n" for line in kept))
    schedule = learning_rate(config)
    writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)

    def write(step, values, seconds):
        rate = float(schedule(step))
        line = {"step": step, "learning_rate": rate, "seconds": round(before + seconds, 3)}
        line |= {name: np.round(value, 7).tolist() for name, value in values.items()}
        with path.open("a") as out:
            out.write(json.dumps(line) + "\n")
        writer.add_scalar("learning_rate", rate, step)
        for name, value in values.items():
            for member, one in enumerate(value):
                writer.add_scalar(f"{name}/member_{member}", one, step)

    try:
        yield write
    finally:
        writer.close()


def check_finite(losses, step, workdir):
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        raise FloatingPointError(
            f"loss of member(s) {bad.tolist()} is not finite by step {step}; the last checkpoint "
            f"in {workdir / 'checkpoints'} is from before. Lower config.learning_rate."
        )


def decide(config, workdir, dataset, bank, predictor):
    """Fits threshold and calibration on the validation cases; writes decisions.json.

    Every held-out healthy case is scored as it is (threshold, p-values) and with synthetic
    anomalies of the training task, made with keys that training never used: `MIN_SYNTHETIC` or
    more in all. Scores of both give the calibration of images, pixels of both the temperature.
    """
    corrupt_batch, last_step = build_corrupt(config), np.uint32(config.num_steps - 1)

    @jax.jit
    def corrupt(key, *case):
        return corrupt_batch(key, last_step, jax.random.split(key, len(case[0])), *case)

    key = jax.random.fold_in(jax.random.key(config.seed), CALIBRATE_DRAW)
    sums = 0.0
    normal, synthetic = [], []
    repeats = -(-MIN_SYNTHETIC // max(1, len(dataset.validation)))
    channels, size = bank.images.shape[-1], config.image_size
    for number, entry in enumerate(tqdm(dataset.validation, desc="calibrating", unit="case")):
        try:
            case = case_stack(entry.load(), image_size=size, channels=channels)
        except InputError as error:
            tqdm.write(f"skipped: {error}")
            continue
        image, foreground = predictor.prepare(case.raw, case.low, case.high)
        found = predictor(image, foreground)
        mean = found.belief.mean
        normal.append(image_scores(found, config)[0])
        sums += calibration.calibration_sums(mean, np.zeros_like(mean))
        for repeat in range(repeats):
            rng = np.random.default_rng((config.seed, number, repeat))
            made = _synthetic_case(
                corrupt,
                jax.random.fold_in(key, number * repeats + repeat),
                rng,
                bank,
                predictor,
                image,
                foreground,
            )
            found = predictor(made.image, foreground)
            synthetic.append(image_scores(found, config)[0])
            sums += calibration.calibration_sums(found.belief.mean, np.asarray(made.label)[..., 0])
    if not normal:
        raise InputError(
            "validation cases",
            found=f"none usable among {len(dataset.validation)}",
            expected="held-out healthy cases, to set the threshold",
            remedy="Add healthy cases or repair those named above.",
        )
    limit = decision.image_threshold(normal, false_positive_rate=config.false_positive_rate)
    decisions = Decisions(
        pixel=calibration.fit_temperature_from_sums(sums),
        # As many healthy as corrupted: a probability of one half means as likely as not.
        image=calibration.fit_image_calibration(np.repeat(normal, repeats), synthetic),
        healthy_scores=tuple(normal),
        threshold=limit.threshold,
        false_positive_rate=limit.false_positive_rate,
    )
    files.write_text(workdir / "decisions.json", decisions.to_json())
    return decisions


def _synthetic_case(corrupt, key, rng, bank, predictor, image, foreground):
    """A held-out case with anomalies: its one slice, or a run of a tenth to a half of the slices.

    image (N, S, S, C), foreground (N, S, S, 1); sources come from the training bank, each slice's
    from the same place of one patient. Returns an `Anomaly` of (N, ...) arrays.
    """
    depth = len(image)
    length = depth if depth == 1 else int(np.ceil(depth * rng.uniform(0.1, 0.5)))
    first = int(rng.integers(depth - length + 1))
    inside = np.zeros((depth, 1, 1, 1), bool)
    inside[first : first + length] = True
    positions = np.linspace(0, 1, depth) if depth > 1 else np.array([0.5])
    case = int(rng.integers(len(bank.case_ids)))
    sources = bank.nearest(np.full(depth, case), positions)
    source = predictor.prepare(bank.images[sources], bank.low[sources], bank.high[sources])
    made = corrupt(key, image, source.image, foreground)
    return choose(inside, made, healthy(image))
