"""Speed and memory of every localiser against a PyTorch restatement with the same weights.

python benchmarks/localisers.py [--names=unet,fpi_wrn] [--size=128] [--batch=8] [--dtype=float32]
    [--rounds=5] [--members=0] [--compile]

Train step: loss, gradient and Adam; inference: one map of probabilities per image. Both libraries
get the same images, batch and precision, and take turns in one process; torch has channels_last
(and torch.compile with --compile: not by default, as a small U-Net alone then takes a minute or
more on two CPU cores). The default sizes of a network are those of its config.
Needs torch: pip install '.[torch]'.
"""

import argparse
import itertools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
import torch_localisers as restated
from timing import alternate

from caal_jax import localisers, parallel
from caal_jax.localisers.heads import soft_binary
from caal_jax.synthesis import Anomaly

NAMES = tuple(localisers.LOCALISERS)
CUDA = torch.cuda.is_available()


class Peer(torch.nn.Module):
    """A restatement as a module: forward is the training loss, `answer` the map of one draw."""

    def __init__(self, name, variables, size, batch):
        super().__init__()
        self.name, self.size, self.batch = name, size, batch
        self.tree = restated.to_torch(jax.tree.map(np.asarray, variables["params"]))
        self.leaves = torch.nn.ParameterList(self._own(self.tree))

    def _own(self, tree):
        """Makes parameters of a tree's tensors, in place, and yields them."""
        for name, part in tree.items():
            if isinstance(part, dict):
                yield from self._own(part)
            else:
                layout = torch.channels_last if part.ndim == 4 else torch.contiguous_format
                part = part.to("cuda" if CUDA else "cpu", memory_format=layout)
                tree[name] = torch.nn.Parameter(part)
                yield tree[name]

    def draw(self, *shape):
        return torch.randn(self.batch, *shape, device=self.leaves[0].device)

    def noise(self):
        if self.name == "probabilistic_unet":
            return self.draw(6)
        return [self.draw(2, self.size // 2**level, self.size // 2**level) for level in range(2, 7)]

    def outputs(self, image):
        weights = restated.Weights(self.tree)
        options = {"unet": {"depth": 4}, "fpi_wrn": {"width": 4, "outputs": 1}}
        if self.name in ("phiseg", "probabilistic_unet"):
            draw = getattr(restated, f"{self.name}_draw")
            return draw(weights, image, self.noise(), depth=7)
        return getattr(restated, self.name)(weights, image, **options.get(self.name, {}))

    def forward(self, image, label):
        entropy = F.binary_cross_entropy_with_logits
        if self.name not in ("phiseg", "probabilistic_unet"):
            return entropy(self.outputs(image).float(), label)
        network = getattr(restated, self.name)
        found, q, p = network(restated.Weights(self.tree), image, label, self.noise(), depth=7)
        pixels = self.size**2
        if self.name == "probabilistic_unet":
            return entropy(found.float(), label) + restated.divergence(q, p).mean() / pixels
        levels = itertools.accumulate(reversed(found))
        pairs = enumerate(zip(q, p, strict=True))
        kl = sum(4**level * restated.divergence(*pair).mean() for level, pair in pairs)
        return sum(entropy(level.float(), label) for level in levels) + kl / pixels


def torch_functions(name, variables, batch, dtype, compiled):
    """(train step, inference) of the restatement, both without arguments."""
    image, label = (
        torch.tensor(np.moveaxis(a, -1, 1)).to(
            "cuda" if CUDA else "cpu", memory_format=torch.channels_last
        )
        for a in (batch.image, batch.label)
    )
    peer = Peer(name, variables, image.shape[-1], len(image))
    optimizer = torch.optim.Adam(peer.parameters(), fused=True)
    loss, answer = peer, peer.outputs
    if compiled:
        loss, answer = torch.compile(loss), torch.compile(answer)

    def precision():
        kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
        return torch.autocast(image.device.type, kind, enabled=dtype != "float32")

    def finish(value):
        if CUDA:
            torch.cuda.synchronize()
        return value.detach().cpu().numpy()

    def train():
        optimizer.zero_grad(set_to_none=True)
        with precision():
            value = loss(image, label)
        value.backward()
        optimizer.step()
        return finish(value)

    def infer():
        with torch.inference_mode(), precision():
            return finish(torch.sigmoid(answer(image).float()).mean())

    return train, infer


def jax_functions(localiser, variables, batch, members):
    """(train step of all members in turn, inference) of a localiser, both without arguments.

    And the memory of the compiled step, the seconds of its compilation, the bytes of all states.
    """
    optimizer = optax.adam(1e-3)
    # As in training: the batch is split over the devices, which on a CPU are its cores.
    count = math.gcd(jax.device_count(), len(batch.image))
    mesh = jax.make_mesh((count,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (jax.sharding.NamedSharding(mesh, jax.P(*axes)) for axes in (("batch",), ()))
    batch, variables = jax.device_put(batch, split), jax.device_put(variables, whole)
    copies = [jax.tree.map(jnp.array, variables) for _ in range(members)]
    states = [jax.device_put((copy, optimizer.init(copy)), whole) for copy in copies]
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(states))

    def step(state, key, batch):
        variables, opt_state = state
        (loss, _), gradient = jax.value_and_grad(localiser.loss, has_aux=True)(
            variables, key, batch
        )
        update, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(variables, update), opt_state), loss

    step = jax.jit(step, donate_argnums=0)
    key = jax.random.key(0)
    began = time.perf_counter()
    step = step.lower(states[0], key, batch).compile()
    seconds = time.perf_counter() - began
    answer = jax.jit(lambda v, images: localiser.sample(v, key, images, 1).mean())

    def train():
        for number in range(members):
            states[number], loss = step(states[number], key, batch)
        return loss

    return train, lambda: answer(variables, batch.image), step.memory_analysis(), seconds, held


def torch_peak(function):
    """Peak bytes a call has allocated, beyond what there was; None where torch cannot tell."""
    if not CUDA:
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", default=",".join(NAMES))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--members", type=int, default=0, help="also time an ensemble, one device")
    parser.add_argument("--compile", action="store_true", help="torch.compile the restatements")
    options = parser.parse_args()
    parallel.keep_memory()
    parallel.start()
    device = jax.local_devices()[0]
    print(
        f"jax {jax.__version__} on {jax.device_count()} x {device.device_kind}, "
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, "
        f"batch {options.batch} x {options.size} x {options.size}, {options.dtype}, "
        f"best of {options.rounds}; x: torch's time over ours"
    )
    print(f"{'':28s}{'ours':>10s}{'torch':>10s}   images/s")
    rng = np.random.default_rng(0)
    shape = (options.batch, options.size, options.size, 1)
    image, label = rng.random(shape, np.float32), rng.random(shape, np.float32)
    batch = Anomaly(image, label, 0 * label)
    for name in options.names.split(","):
        make = localisers.LOCALISERS[name]
        localiser = make(head=soft_binary(), compute_dtype=options.dtype)
        # As in training: optimising a program that runs once takes ten times as long.
        quick = {"xla_backend_optimization_level": 0}
        variables = jax.jit(localiser.init, compiler_options=quick)(jax.random.key(0), image[0])
        theirs = torch_functions(name, variables, batch, options.dtype, options.compile)
        *ours, memory, seconds, held = jax_functions(localiser, variables, batch, 1)
        print(f"{name}: {localisers.summarise(localiser, shape[1:])}")
        for what, one, other in zip(("train step", "inference"), ours, theirs, strict=True):
            mine, peers = alternate(one, other, rounds=options.rounds)
            rates = [options.batch / t for t in (mine, peers)]
            print(
                f"    {what:24s}{rates[0]:10.1f}{rates[1]:10.1f}   x{peers / mine:.2f}", flush=True
            )
        needs = memory.temp_size_in_bytes / 2**20
        peak = torch_peak(theirs[0])
        told = f", torch's {peak / 2**20:.0f} MiB" if peak is not None else ""
        state = memory.argument_size_in_bytes / 2**20
        print(
            f"    memory of a train step {needs:.0f} MiB beside {state:.0f} MiB of state and data"
            f"{told}; compiled in {seconds:.1f} s"
        )
        if options.members:
            many, *_, all_held = jax_functions(localiser, variables, batch, options.members)
            single, several = alternate(ours[0], many, rounds=options.rounds)
            print(
                f"    {options.members} members cost {several / single:.2f} single ones in time, "
                f"{all_held / held:.2f} in memory of their states"
            )


if __name__ == "__main__":
    main()
