"""Speed and memory of the training step: with and without synthesis, for one and more members.

python benchmarks/train_step.py [--size=128] [--members=3] [--repeats=15]

Steps of each variant run in turn, so that a busy machine slows all alike; medians and quartiles
of the step time are printed, with peak memory; images/s and the ratio to the network alone are per
member.
"""

import argparse
import resource
import time

import jax
import numpy as np

from caal_jax import parallel
from caal_jax.data.slices import Batch
from caal_jax.defaults import training_config
from caal_jax.localise import build_localiser, build_prepare, new_models
from caal_jax.train import build_optimizer, build_step, healthy


def phantom_batch(size, batch_size):
    """Raw 8-bit noise and ramps: the step's time does not depend on what is shown."""
    rng = np.random.default_rng(0)
    shape = (batch_size, size, size, 1)
    ramp = np.linspace(0, 180, size, dtype=np.float32)[None, :, None, None]
    target, source = ((ramp + rng.uniform(0, 70, shape)).astype(np.uint8) for _ in range(2))
    low, high = np.zeros(batch_size, np.float32), np.full(batch_size, 255, np.float32)
    return Batch(target, source, low, high, low, high, np.arange(batch_size))


def plain_step(config, layout):
    """The step without equalisation and synthesis: the network's share."""
    localiser, optimizer = build_localiser(config), build_optimizer(config)
    config = config.copy_and_resolve_references()
    config.equalise = "none"
    prepare = jax.vmap(build_prepare(config))

    def step(state, number, part, batch):
        del part  # batches are whole here
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), number), len(batch.low))
        pair = healthy(prepare(batch.target, batch.low, batch.high).image)
        value = jax.value_and_grad(localiser.loss, has_aux=True)
        (loss, _), gradient = value(state["params"], keys, pair)
        gradient = parallel.mean_over_member(gradient, layout)
        update, opt_state = optimizer.update(gradient, state["opt_state"], state["params"])
        params = jax.tree.map(lambda p, u: p + u, state["params"], update)
        return {**state, "params": params, "opt_state": opt_state}, loss

    return step


def runner(config, make_step):
    """A function that runs one step of all members and waits for it."""
    layout = parallel.plan(config.num_members, config.batch_size)
    models = new_models(config, 1)
    state = {**models, "opt_state": jax.vmap(build_optimizer(config).init)(models["params"])}
    counts = np.zeros(config.num_members, np.int32)
    state["bad"] = {"count": counts, "first": counts.astype(np.uint32)}
    rounds = parallel.place(parallel.spread(state, layout), layout)
    lifted = parallel.lift(make_step(config, layout), layout, donate_first=True)
    batch = phantom_batch(config.image_size, config.batch_size)
    batch = parallel.stack_batches([batch] * layout.slots, layout)
    number, part = np.zeros(layout.used, np.uint32), np.zeros(layout.used, np.int32)

    def run():
        losses = []
        for index in range(layout.rounds):
            rounds[index], loss = lifted(rounds[index], number, part, batch)
            losses.append(loss)
        jax.block_until_ready(losses)

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    parallel.keep_memory()
    parallel.start()
    config = training_config()
    config.equalise = "preprocess"
    config.image_size, config.num_members = options.size, 1
    variants = {"network alone": runner(config, plain_step)}
    for task, patches in (
        ("fpi_blob", 3),  # the default
        ("fpi_blob", 5),  # configs/mood.py
        ("fpi", 3),
        ("pii", 3),
        ("nsa", 3),
        ("probabilistic_pii", 1),
        ("probabilistic_pii", 3),
    ):
        one = config.copy_and_resolve_references()
        one.task, one.num_patches = task, patches
        variants[f"{task} x {patches}, equalised"] = runner(one, build_step)
    many = config.copy_and_resolve_references()
    many.task, many.num_patches, many.num_members = "fpi_blob", 3, options.members
    variants[f"fpi_blob x 3, {options.members} members"] = runner(many, build_step)

    times = {name: [] for name in variants}
    for run in variants.values():
        run()
    for _ in range(options.repeats):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)

    device = jax.local_devices()[0].device_kind
    print(
        f"jax {jax.__version__} on {jax.local_device_count()} x {device}, batch "
        f"{config.batch_size} x {options.size} x {options.size}, {options.repeats} repeats"
    )
    print(f"{'step':34s} {'median':>9s} {'quartiles':>17s} {'images/s':>9s} {'x network':>9s}")
    base = np.median(times["network alone"])
    for name, seconds in times.items():
        low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75)) * 1e3
        members = options.members if name.endswith("members") else 1
        print(
            f"{name:34s} {middle:6.0f} ms {low:6.0f} .. {high:4.0f} ms "
            f"{config.batch_size / middle * 1e3:9.1f} {middle / 1e3 / base / members:9.2f}"
        )
    single = np.median(times["fpi_blob x 3, equalised"])
    ratio = np.median(times[f"fpi_blob x 3, {options.members} members"]) / single
    print(f"{options.members} members cost {ratio:.2f} single ones")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak resident memory, all of these in one process, {peak:.2f} GiB")
    on_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if on_device:  # CPUs do not tell
        print(f"peak memory on the device {on_device / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
