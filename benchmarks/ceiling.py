"""What full supervision reaches on the phantom: the same network, shown the kinds it is tested on.

python benchmarks/ceiling.py [--seed=11] [--cases=256] [--volumes=600] [--steps=4000]

One network of `configs/mood.py`, trained for as many steps as its two members have together on
phantoms with anomalies of the test's own kinds and their exact masks, instead of synthetic ones;
judged as `python -m caal_jax.main --config=configs/mood.py --config.seed=11
--config.phantom_test=256` judges its own. That run may not see these kinds: what this one misses is
beyond the network and the number of steps, or the score, and not beyond the synthesis alone.
"""

import argparse
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from caal_jax import metrics, parallel
from caal_jax.data import load_dataset
from caal_jax.localise import (
    build_localiser,
    build_predictor,
    build_prepare,
    case_stack,
    image_scores,
    new_models,
)
from caal_jax.synthesis import Anomaly
from caal_jax.train import build_optimizer

ABNORMAL = 10  # of a batch of 16 slices; the others are drawn from all slices
TRAIN_SEED = 1000  # added: the phantoms trained on are not those of the test


def phantoms(options, seed, count):
    """The config and the entries of `count` phantoms of a seed, half of them with an anomaly."""
    path = Path(__file__).parents[1] / "configs" / "mood.py"
    config = runpy.run_path(str(path))["get_config"]().copy_and_resolve_references()
    config.seed, config.num_members, config.num_steps = seed, 1, options.steps
    config.phantom_train = config.phantom_validation = 2
    config.phantom_test = count
    return config, load_dataset(config).test


def slices_of(config, entries):
    """(images (N, S, S, 1) float16, masks (N, S, S, 1) bool) of the slices that are not empty."""
    prepare = jax.jit(jax.vmap(build_prepare(config)))
    images, masks = [], []
    for entry in tqdm(entries, desc="making phantoms to train on", unit="volume"):
        case = entry.load()
        stack = case_stack(case, image_size=config.image_size, channels=1)
        prepared = prepare(stack.raw, stack.low, stack.high)
        kept = np.flatnonzero(np.asarray(prepared.foreground).any(axis=(1, 2, 3)))
        images.append(np.float16(prepared.image)[kept])
        masks.append(case.mask[kept, ..., None])
    return np.concatenate(images), np.concatenate(masks)


def train(config, images, masks):
    """The members of a `Predictor`, one network that was shown the masks."""
    localiser, optimizer = build_localiser(config), build_optimizer(config)
    members = jax.jit(lambda: new_models(config, 1))()
    params = jax.tree.map(lambda a: a[0], members["params"])
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, number, image, mask):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), number), len(image))
        shown = Anomaly(image, mask, jnp.zeros_like(mask))
        gradient, _ = jax.grad(localiser.loss, has_aux=True)(params, keys, shown)
        change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state

    rng = np.random.default_rng(config.seed)
    abnormal = np.flatnonzero(masks.any(axis=(1, 2, 3)))
    for number in tqdm(range(config.num_steps), desc="training", unit="step"):
        anywhere = rng.integers(len(images), size=config.batch_size - ABNORMAL)
        chosen = np.concatenate([rng.choice(abnormal, ABNORMAL), anywhere])
        image, mask = np.float32(images[chosen]), np.float32(masks[chosen])
        if rng.random() < 0.5:
            image, mask = image[:, :, ::-1], mask[:, :, ::-1]
        params, state = step(params, state, number, image, mask)
    return {**members, "params": jax.tree.map(lambda a: a[None], params)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--cases", type=int, default=256)
    parser.add_argument("--volumes", type=int, default=600)
    parser.add_argument("--steps", type=int, default=4000)
    options = parser.parse_args()
    parallel.cache_programs()
    config, shown = phantoms(options, options.seed + TRAIN_SEED, options.volumes)
    predictor = build_predictor(config, train(config, *slices_of(config, shown)))
    scores, labels, kinds = [], [], []
    _, entries = phantoms(options, options.seed, options.cases)
    for entry in tqdm(entries, desc="testing", unit="case"):
        case = entry.load()
        stack = case_stack(case, image_size=config.image_size, channels=1)
        scores.append(image_scores(predictor.localise(stack), config)[0])
        labels.append(case.label)
        kinds.append(case.kind)
    scores, labels, kinds = map(np.array, (scores, labels, kinds))
    ends = metrics.image_bootstrap_interval(scores, labels, metrics.roc_auc_from_counts, seed=0)
    print(f"image AUROC {metrics.roc_auc(scores, labels):.3f} [{ends[0]:.3f}, {ends[1]:.3f}]")
    for kind in sorted({*kinds[labels == 1]}):
        own = (kinds == kind) | (labels == 0)
        print(f"    {kind:16s} {metrics.roc_auc(scores[own], labels[own]):.3f}")


if __name__ == "__main__":
    main()
