"""train(config, workdir): one loop for every task, localiser and number of devices."""

import contextlib
import functools
import json
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

from caal_jax import files, metrics, parallel
from caal_jax.checkpoint import Checkpoints
from caal_jax.confidence import calibration, decision
from caal_jax.confidence.views import read_views
from caal_jax.data.fingerprint import Seen
from caal_jax.data.slices import SliceBank
from caal_jax.data.volumes import VolumeBank, corner_of, cut
from caal_jax.errors import InputError, Interrupted
from caal_jax.feeding import Feed, choose_memory
from caal_jax.localise import (
    CALIBRATE_DRAW,
    Decisions,
    build_localiser,
    build_predictor,
    build_prepare,
    case_stack,
    image_scores,
    new_models,
    prepare_options,
    read_members,
)
from caal_jax.localisers import summarise
from caal_jax.preprocess import rescale
from caal_jax.preprocess.prepare import prepare_volume
from caal_jax.progress import progress, tell
from caal_jax.synthesis import TASKS, Anomaly, jitter_source
from caal_jax.synthesis.guidance import guide
from caal_jax.synthesis.mixture import pick_task, read_mixture
from caal_jax.windows import read_patch_size
from caal_jax.workdir import Curve, Part, claim, join_curves, parts_to_train

NUM_CHECKS = 4  # batches of the validation loss
MIN_SYNTHETIC = 48  # held-out synthetic cases, made from as many healthy ones as there are

# Of Muon's step to Adam's; chosen on phantoms of a seed that no reported figure is from.
MUON_SCALE = 15.0

# In patches of volumes. By default patches are a few voxels wide there, and fade among as many.
VOLUME_OPTIONS = {"probabilistic_pii": {"side": (0.2, 0.8), "num_anomalies": (1, 4)}}


def build_optimizer(config):
    """Muon (Jordan et al. 2024) for convolution kernels, Nesterov Adam for everything else.

    Muon steps along the orthogonalised momentum, with MUON_SCALE times the learning rate; Adam
    alone had a higher loss after as many steps when both were tried. Weight decay is Muon's only.
    """
    schedule = learning_rate(config)

    def matrices(params):
        def inputs_to_outputs(p):
            # Heads, onto one or two channels, are Adam's.
            if p.ndim < 4 or p.shape[-1] <= 2:
                return None
            return MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1)

        return jax.tree.map(inputs_to_outputs, params)

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
    branches = [jax.vmap(build_corrupt_one(config, name)) for name in mixture.names]

    def corrupt(key, step, *batch):
        if len(branches) == 1:
            return branches[0](*batch)
        return jax.lax.switch(pick_task(key, mixture, step), branches, *batch)

    return corrupt


def build_corrupt_one(config, name):
    """`corrupt(key, target, source, foreground) -> Anomaly` for one prepared pair.

    The task of that name one to `num_patches` times, equally likely, each on the result of the
    last; labels are joined by their maximum. With `source_jitter` every patch comes from a newly
    jittered source.
    """

    options = VOLUME_OPTIONS.get(name, {}) if read_patch_size(config) else {}
    task = functools.partial(TASKS[name], **options)

    def once(key, anomaly, source, foreground):
        task_key, jitter_key = jax.random.split(key)
        if config.source_jitter:
            # A volume's slices all move alike.
            jitter = jax.vmap(jitter_source, (None, 0)) if source.ndim == 4 else jitter_source
            source = jitter(jitter_key, source)
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

    Takes a state as of `starting_state`, the step number, the number of the part of the batch (0
    unless `config.accumulation` splits it) and this device's share of that `Batch`; returns the new
    state and the member's losses. The last part updates, with the mean gradient of all.
    """
    localiser, optimizer = build_localiser(config), build_optimizer(config)
    prepare, corrupt = jax.vmap(build_prepare(config)), build_corrupt(config)

    def update(state, number, loss, gradient):
        change, opt_state = optimizer.update(gradient, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], change)
        finite = jax.tree.reduce(lambda all_, g: all_ & jnp.isfinite(g).all(), gradient, True)
        finite &= jnp.isfinite(loss)
        if config.skip_nonfinite:
            old = state["params"], state["opt_state"]
            params, opt_state = choose(finite, (params, opt_state), old)
        bad = {
            "count": state["bad"]["count"] + ~finite,
            "first": jnp.where(
                finite, state["bad"]["first"], state["bad"]["first"].clip(max=number)
            ),
        }
        return {**state, "params": params, "opt_state": opt_state, "bad": bad}

    def step(state, number, part, batch):
        size = len(batch.low)
        places = (part * layout.group + parallel.shard_index(layout)) * size + jnp.arange(size)
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
        clean = clean.reshape(-1, *[1] * (target.image.ndim - 1))
        anomaly = choose(clean, healthy(target.image), anomaly)
        value = jax.value_and_grad(localiser.loss, has_aux=True)
        (loss, parts), gradient = value(state["params"], loss_keys, anomaly)
        loss, parts, gradient = parallel.mean_over_member((loss, parts, gradient), layout)
        if config.accumulation > 1:
            total = jax.tree.map(lambda s, g: jnp.where(part > 0, s, 0) + g, state["sum"], gradient)
            mean = jax.tree.map(lambda s: s / config.accumulation, total)
            new = jax.lax.cond(
                part == config.accumulation - 1,
                lambda: update(state, number, loss, mean),
                lambda: {**state, "sum": total},
            )
        else:
            new = update(state, number, loss, gradient)
        return new, {"loss": loss, **parts}

    return step


def member_seed(config, member):
    """The seed of a member's data order."""
    return int(np.random.SeedSequence([config.seed, member]).generate_state(1)[0])


def build_bank(config, entries, folder, *, held_out_of=None):
    """The slices or volumes of the entries, with a progress bar.

    folder: nobody else's; what does not fit into memory lies in files below it. held_out_of: the
    training bank that a bank of validation cases goes with.
    """
    name = "train" if held_out_of is None else "held_out"
    cache = folder / "cache" / f"process_{jax.process_index()}" / name
    shutil.rmtree(cache, ignore_errors=True)  # what a killed process left there
    patch = read_patch_size(config)
    equalise = None
    if patch and config.equalise == "preprocess":
        options = prepare_options(config)
        equalise = lambda *volume: prepare_volume(*volume, **options).image  # noqa: E731
    with progress(total=len(entries), desc="reading", unit="case") as bar:
        given = {"cache_dir": cache, "progress": lambda done, total: bar.update(done - bar.n)}
        if held_out_of is not None:
            channels = held_out_of.shape[-1]
            given |= {"min_patients": 1, "channels" if patch else "max_channels": channels}
        if patch:
            return VolumeBank.build(entries, patch=patch, equalise=equalise, **given)
        return SliceBank.build(entries, image_size=config.image_size, **given)


def train(config, workdir, dataset):
    """Trains the ensemble into a workdir, or goes on where an earlier call was stopped.

    config: an `ml_collections.ConfigDict` with the fields of `caal_jax.defaults`; dataset: a
    `caal_jax.data.DataSet`. Leaves checkpoints, `metrics.jsonl`, TensorBoard events,
    `training.json` (facts for prediction) and `decisions.json` (threshold and calibration).

    With `config.members` only those members are trained, without decisions; a call without it
    trains the members that are missing, also those that a larger `config.num_members` adds to a
    finished run, and decides for all of them. With several processes (`parallel.start`) every one
    makes the same call; process 0 writes and decides.

    Raises: `InputError` where the run cannot go on: another config or version, a workdir in use,
    a loss that is not finite, memory or disk exhausted; `Interrupted` after SIGTERM.
    """
    workdir = Path(workdir)
    check_fields(config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(parallel.loss_told())
        todo = None
        if parallel.writes():
            if not config.members:
                stack.enter_context(files.lock(workdir))
            claim(config, workdir)
            todo = parts_to_train(config, workdir)
        parts = [Part(folder, tuple(members)) for folder, members in parallel.agree(todo)]
        own = workdir
        if config.members:  # other processes may train other members in this workdir
            own = workdir / parts[0].folder
            if parallel.writes():
                stack.enter_context(files.lock(own))
        seen = Seen()
        bank = build_bank(config, seen.watch(dataset.train), own)
        parallel.require_same("training data", [len(bank), bank.shape, bank.case_ids])
        facts = {
            "channels": bank.shape[-1],
            "num_slices": len(bank),
            "notes": list(bank.notes),
            "version": version("caal_jax"),
        }
        if parallel.writes():
            files.write_text(workdir / "training.json", json.dumps(facts, indent=1))
            seen.save(workdir / "fingerprints.npz")
        held_out = build_bank(config, dataset.validation, own, held_out_of=bank)
        if held_out.shape != bank.shape:  # grey, beside training cases in colour
            held_out = None
        for part in parts:
            with contextlib.ExitStack() as held, memory_told(config):
                if parallel.writes() and workdir / part.folder != own:
                    held.enter_context(files.lock(workdir / part.folder))
                train_part(config, workdir, part, bank, held_out)
        if not parallel.writes() or config.members:
            return
        join_curves(workdir, parts)
        if not (workdir / "decisions.json").is_file():
            members = read_members(workdir, config, facts["channels"])
            with memory_told(config):
                decide(config, workdir, dataset, bank, build_predictor(config, members))


def check_fields(config):
    """Refuses values that cannot work before anything long begins."""
    for build in (build_localiser, build_prepare, build_corrupt):
        build(config)
    check_task_for_volumes(config)
    read_views(config.augment)
    if config.num_samples < 1:
        raise InputError(
            "config.num_samples",
            found=config.num_samples,
            expected="1, a plain answer of every member, or more",
            remedy="Correct it.",
        )
    if config.accumulation < 1 or config.batch_size % config.accumulation:
        raise InputError(
            "config.accumulation",
            found=config.accumulation,
            expected=f"a divisor of config.batch_size ({config.batch_size})",
            remedy="Correct one of them.",
        )
    if config.checkpoint not in ("last", "best"):
        raise InputError(
            "config.checkpoint",
            found=repr(config.checkpoint),
            expected="last or best",
            remedy="Correct it.",
        )


def check_task_for_volumes(config):
    """Refuses tasks that cannot corrupt patches of volumes, if `config.patch_size` asks for those.

    Raises `InputError` with what the task itself says.
    """
    patch = read_patch_size(config)
    if not patch:
        return
    image = jax.ShapeDtypeStruct((*patch, 1), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    for name in read_mixture(config.task, TASKS).names:
        corrupt = build_corrupt_one(config, name)
        try:
            jax.eval_shape(corrupt, key, image, image, jax.ShapeDtypeStruct(image.shape, bool))
        except InputError as error:
            raise InputError(
                "config.task",
                found=f"{name!r}, which does not know volumes ({error})",
                expected="a task for volumes, as config.patch_size is set",
                remedy="Choose another task, or leave config.patch_size empty.",
            ) from error


def train_part(config, workdir, part, bank, held_out):
    """Trains members together to the last step, from where their checkpoints are.

    held_out: the bank of the validation cases, on which the loss of each checkpoint is measured, or
    None.
    """
    folder, count = workdir / part.folder, len(part.members)
    size = config.batch_size // config.accumulation
    layout = parallel.plan(count, size, parallel.all_devices())
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(folder)) if parallel.writes() else None
        state, start = starting_state(config, bank.shape[-1], part.members, checkpoints)
        if start == config.num_steps:
            return
        source, pick, held = choose_memory(bank, layout)
        if parallel.writes():
            (workdir / "decisions.json").unlink(missing_ok=True)  # they are older than the members
            curve = stack.enter_context(Curve(folder, count, start, config))
            text = f"training {config.task} on {held}: {layout.describe()}"
            print(text + (f", from step {start}" if start else ""), flush=True)
            size_of_one = summarise(build_localiser(config), bank.shape)
            print(f"{config.localiser}: {size_of_one}", flush=True)
        rounds = parallel.place(parallel.spread(state, layout), layout)
        lifted = parallel.lift(build_step(config, layout), layout, donate_first=True)
        seeds = [member_seed(config, member) for member in part.members]
        checks = [
            bank.batch(config.seed, number, size, held_out=held_out)
            for number in range(NUM_CHECKS if held_out is not None else 0)
        ]
        rates, rows = learning_rate(config), len(layout.local)
        began, losses = time.monotonic(), [None] * layout.rounds
        bar = stack.enter_context(
            progress(total=config.num_steps, initial=start, desc="training", unit="step")
        )
        asked = stack.enter_context(parallel.stop_signal())
        feed = Feed(
            lambda step: [
                round_batches(config, layout, round_, source, seeds, step)
                for round_ in range(layout.rounds)
            ],
            range(start, config.num_steps),
            source,
        )
        for step, batches_of_rounds in feed:
            number = np.full(rows, step, np.uint32)
            for round_, batches in enumerate(batches_of_rounds):
                found = []
                for micro in range(config.accumulation):
                    batch = jax.tree.map(lambda a, m=micro: a[m * size : (m + 1) * size], batches)
                    batch = pick(parallel.stack_batches(batch, layout))
                    which = np.full(rows, micro, np.int32)
                    rounds[round_], one = lifted(rounds[round_], number, which, batch)
                    found.append(one)
                losses[round_] = mean_of(found)
            if step == start:
                jax.block_until_ready(losses)
                if parallel.writes():
                    tell(f"first step, compiled: {time.monotonic() - began:.1f} s")
            done = step + 1
            bar.update()
            stopping = asked(done)
            last = done == config.num_steps
            measures = done % config.checkpoint_steps == 0 or last
            saves = measures or stopping
            logs = done % config.log_steps == 0 or measures
            if not (saves or logs):
                continue
            bad = parallel.gather([state["bad"] for state in rounds], layout)
            if bad["count"].any() and not config.skip_nonfinite:
                raise not_finite(config, workdir, part, bank, bad["first"])
            tree = parallel.gather(rounds, layout) if saves else None
            if logs:
                values = parallel.gather(losses, layout)
                if measures and checks:
                    check = validation_loss(config, layout, lifted, tree, checks, pick)
                    values["validation_loss"] = check
                if config.skip_nonfinite:
                    values["skipped"] = bad["count"]
                bar.set_postfix(loss=f"{values['loss'].mean():.4f}")
                if parallel.writes():
                    curve.write(done, float(rates(done)), time.monotonic() - began, values)
            if saves and parallel.writes():
                model = {name: tree[name] for name in ("key", "params")}
                optimizer = {name: tree[name] for name in ("opt_state", "bad")}
                measured = (
                    check.mean() if measures and checks and np.isfinite(check).all() else None
                )
                checkpoints.save(
                    done,
                    part.members,
                    validation_loss=measured,
                    model=model,
                    optimizer=optimizer,
                )
            if stopping and not last:
                break
        bar.close()
        if parallel.writes():
            print(f"{feed.share_waited:.1%} of the time went into waiting for data", flush=True)
            curve.finish()
            checkpoints.finish()
        if done < config.num_steps:
            raise Interrupted(f"asked to stop: step {done} is saved; repeat the command to go on")


def validation_loss(config, layout, step, members, batches, pick):
    """The loss of members on held-out batches, (M,): that of a training step that is thrown away.

    The training's own program is run, so that nothing has to be compiled; its keys come from step
    numbers that training does not reach, the same every time. step: `build_step`, lifted. members:
    a state that `parallel.gather` returned. batches: `Batch`es of the step's size, for all members.
    """
    here, rows = parallel.local_slots(layout), len(layout.local)
    total = 0.0
    for number, batch in enumerate(batches, start=config.num_steps):
        rounds = parallel.place(parallel.spread(members, layout), layout)
        found = []
        for round_, state in enumerate(rounds):
            slots = [batch if k in here else None for k, _ in enumerate(layout.members(round_))]
            stacked = pick(parallel.stack_batches(slots, layout))
            steps, parts = np.full(rows, number, np.uint32), np.zeros(rows, np.int32)
            found.append(step(state, steps, parts, stacked)[1]["loss"])
        total = total + parallel.gather(found, layout)
    return total / len(batches)


def mean_of(trees):
    """The mean of trees of arrays."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *parts: sum(parts) / len(parts), *trees)


def round_batches(config, layout, round_, bank, seeds, step):
    """The batch of each slot of a round; what other processes compute is None or not read."""
    here, size = parallel.local_slots(layout), config.batch_size // config.accumulation

    def batch(slot, member):
        rows = np.tile(parallel.local_rows(layout, slot, size), config.accumulation)
        return bank.batch(seeds[member], step, config.batch_size, rows=rows)

    return [
        batch(slot, m) if slot in here else None for slot, m in enumerate(layout.members(round_))
    ]


def starting_state(config, channels, members, checkpoints):
    """The newest checkpoint, or new members: (state stacked over members, step).

    The state: {"key", "params", "opt_state", "bad"}, where "bad" counts the steps that were not
    finite and tells the first; and "sum", the gradients of a batch so far, if it comes in parts.
    """
    optimizer = build_optimizer(config)

    def new():
        model = new_models(config, channels, members)
        bad = {
            "count": jnp.zeros(len(members), jnp.int32),
            "first": jnp.full(len(members), np.iinfo(np.uint32).max, jnp.uint32),
        }
        opt_state = jax.vmap(optimizer.init)(model["params"])
        return {"model": model, "optimizer": {"opt_state": opt_state, "bad": bad}}

    template, start, state = jax.eval_shape(new), 0, None
    if parallel.writes() and checkpoints.steps():
        try:
            start, state = checkpoints.restore(**template)
        except InputError:
            if len(checkpoints.steps()) > 1:
                raise
            # Its steps are all there were, and they come again; of more, somebody should look.
            tell("it is the only one: training begins anew")
        checkpoints.discard_after(start)
    start = parallel.agree(start)
    if not start:
        # Optimising a program that runs once takes ten times as long as running it.
        state = jax.jit(new, compiler_options={"xla_backend_optimization_level": 0})()
    elif state is None:
        state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), template)
    if start:
        state = parallel.agree_on_arrays(state)
    state = {**state["model"], **state["optimizer"]}
    if config.accumulation > 1:
        state["sum"] = jax.tree.map(np.zeros_like, state["params"])
    return state, start


def not_finite(config, workdir, part, bank, first):
    """The error for a loss or gradient that is not finite; first: each member's first such step."""
    step = int(first.min())
    place = int(first.argmin())
    indices = bank.batch(member_seed(config, part.members[place]), step, config.batch_size).indices
    cases = sorted({bank.case_ids[case] for case in bank.case_index[indices]})
    return InputError(
        "training",
        found=f"a loss or gradient that is not finite in step {step + 1} of member "
        f"{part.members[place]}, on a batch of {', '.join(cases)}",
        expected="finite numbers",
        remedy=f"The checkpoint in {workdir / part.folder / 'checkpoints'} is from before. Lower "
        "config.learning_rate in a new workdir, or go on in this one with "
        "--config.skip_nonfinite=True.",
    )


@contextlib.contextmanager
def memory_told(config):
    """Turns a device's lack of memory into an `InputError`."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" in reason:
            size_field = "config.patch_size" if read_patch_size(config) else "config.image_size"
            raise InputError(
                "device memory",
                found=reason,
                expected="room for a training step",
                remedy=f"Raise config.accumulation (now {config.accumulation}), or lower "
                f"config.batch_size ({config.batch_size}), {size_field} "
                f"({config[size_field.removeprefix('config.')]}) or config.width ({config.width}).",
            ) from error
        raise


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
    normal, synthetic, spread = [], [], metrics.SpreadHistogram()
    repeats = -(-MIN_SYNTHETIC // max(1, len(dataset.validation)))
    given = {"image_size": config.image_size, "patch": read_patch_size(config)}
    make = _synthetic_volume if given["patch"] else _synthetic_case
    for number, entry in enumerate(progress(dataset.validation, desc="calibrating", unit="case")):
        try:
            case = case_stack(entry.load(), channels=bank.shape[-1], **given)
        except InputError as error:
            tell(f"skipped: {error}")
            continue
        image, foreground = predictor.prepare(case.raw, case.low, case.high)
        found = predictor(image, foreground)
        mean = found.belief.mean
        normal.append(image_scores(found, config)[0])
        sums += calibration.calibration_sums(mean, np.zeros_like(mean))
        for repeat in range(repeats):
            rng = np.random.default_rng((config.seed, number, repeat))
            made = make(
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
            label, label_std = (np.asarray(a)[..., 0] for a in (made.label, made.label_std))
            sums += calibration.calibration_sums(found.belief.mean, label)
            if predictor.num_samples > 1:
                # Elsewhere the label is a certain 0, which any std covers.
                part = label > 0
                std = np.sqrt(found.belief.variance[part])
                spread.update(found.belief.mean[part], std, label[part], label_std[part])
    if not normal:
        raise InputError(
            "validation cases",
            found=f"none usable among {len(dataset.validation)}",
            expected="held-out healthy cases, to set the threshold",
            remedy="Add healthy cases or repair those named above.",
        )
    limit = decision.image_threshold(normal, false_positive_rate=config.false_positive_rate)
    pixel = calibration.fit_temperature_from_sums(sums, fit_bias=config.fit_bias)
    decisions = Decisions(
        pixel=pixel,
        # As many healthy as corrupted: a probability of one half means as likely as not.
        image=calibration.fit_image_calibration(np.repeat(normal, repeats), synthetic),
        healthy_scores=tuple(normal),
        threshold=limit.threshold,
        false_positive_rate=limit.false_positive_rate,
        held_out=held_out_confidence(sums, pixel, spread, normal, synthetic),
    )
    files.write_text(workdir / "decisions.json", decisions.to_json())
    return decisions


def held_out_confidence(sums, pixel, spread, normal, synthetic):
    """How the confidence measures up on the data it was calibrated on, NaN left out: {name: value}.

    sums: `calibration_sums`; pixel: the `Calibration` fitted to them; spread: a `SpreadHistogram`
    of the pixels with a synthetic anomaly; normal, synthetic: image scores.
    """
    pixels, probability, label = sums[sums[:, 0] > 0].T
    found = {}
    for name, p in (
        ("", np.asarray(calibration.apply(pixel, probability / pixels), float)),
        ("_uncalibrated", probability / pixels),
    ):
        entries = np.stack([pixels - label, label, pixels * p], axis=-1)
        found[f"ece{name}"] = metrics.expected_calibration_error_from_statistics(entries)
        clipped = np.clip(p, 1e-7, 1 - 1e-7)
        losses = label * np.log(clipped) + (pixels - label) * np.log1p(-clipped)
        found[f"nll{name}"] = -losses.sum() / pixels.sum()
    found |= {f"std_coverage_{100 * level:.0f}": c for level, c in spread.coverage().items()}
    found["std_sharpness"] = spread.sharpness()
    found["std_z_score_std"] = spread.z_score_std()
    found["std_normalised_error"] = spread.normalised_error()
    labels = np.repeat([False, True], [len(normal), len(synthetic)])
    found["image_auroc"] = metrics.roc_auc(np.concatenate([normal, synthetic]), labels)
    return {name: float(value) for name, value in found.items() if not np.isnan(value)}


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


def _synthetic_volume(corrupt, key, rng, bank, predictor, image, foreground):
    """A held-out volume with anomalies in one patch around a foreground voxel.

    image (D, H, W, C), foreground (D, H, W, 1), NumPy; the source is the patch at the same relative
    place of a training volume. Returns an `Anomaly` of (D, H, W, ...) arrays.
    """
    patch = bank.shape[:3]
    inside = np.argwhere(foreground[..., 0])
    centre = inside[rng.integers(len(inside))] if len(inside) else np.array(image.shape[:3]) // 2
    corner = corner_of(centre, image.shape, patch)
    case = rng.integers(len(bank), size=1)
    source = bank.patches(case, [(centre + 0.5) / image.shape[:3]])
    source = rescale(source, bank.low[case[0]], bank.high[case[0]])
    target = np.float32(cut(image, corner, patch))[None]
    made = corrupt(key, target, source, cut(foreground, corner, patch)[None])
    empty = np.zeros((*image.shape[:3], 1), np.float16)
    whole = Anomaly(image.copy(), empty, empty.copy())
    for volume, part in zip(whole, made, strict=True):
        cut(volume, corner, patch)[...] = part[0]
    return whole
