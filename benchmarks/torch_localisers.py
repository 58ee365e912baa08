"""The localisers' networks restated in PyTorch, for the benchmark and for the tests of parity.

Each function takes `Weights` of the Flax network's parameters and images (B, C, H, W), and spends
the weights in the order of Flax's names. Heads and losses are those of the soft binary label.
"""

import torch
import torch.nn.functional as F


def to_torch(tree):
    """Flax parameters -> the same tree of tensors.

    Kernels become (O, I, H, W). Those of transposed convolutions become (I, O, H, W) and their
    mirror image, as Flax correlates with them as they are.
    """

    def convert(tree, transposed=False):
        if isinstance(tree, dict):
            return {
                name: convert(part, transposed or "Transpose" in name)
                for name, part in tree.items()
            }
        array = torch.tensor(tree)
        if array.ndim != 4:
            return array
        if transposed:
            return array.permute(2, 3, 0, 1).flip(2, 3).contiguous()
        return array.permute(3, 2, 0, 1).contiguous()

    return convert(tree)


class Weights:
    """Hands out a level of a parameter tree: its first Conv, the next one, and so of each kind."""

    def __init__(self, tree):
        self.tree, self.spent = tree, {}

    def __getitem__(self, name):
        return self.tree[name]

    def take(self, kind):
        number = self.spent.get(kind, 0)
        self.spent[kind] = number + 1
        return self.tree[f"{kind}_{number}"]

    def part(self, name):
        return Weights(self.tree[name])

    def conv(self, x, stride=1, *, tensorflow_same=False):
        w = self.take("Conv")
        kernel, size = w["kernel"], w["kernel"].shape[-1]
        if tensorflow_same and stride == 2:
            x = F.pad(x, (0, size - 2, 0, size - 2)) if size > 1 else x
            return F.conv2d(x, kernel, w.get("bias"), stride)
        return F.conv2d(x, kernel, w.get("bias"), stride, padding=size // 2)

    def transposed(self, x, stride):
        kernel = self.take("ConvTranspose")["kernel"]
        size = kernel.shape[-1]
        return F.conv_transpose2d(x, kernel, None, stride, size // 2, output_padding=1)

    def norm(self, x):
        if any(name.startswith("BatchNorm") for name in self.tree):
            w = self.take("BatchNorm")
            return F.batch_norm(x, w["mean"], w["var"], w["scale"], w["bias"], eps=1e-5)
        w = self.take("GroupNorm")
        groups = max(1, min(8, x.shape[1] // 4))
        while x.shape[1] % groups:
            groups -= 1 if groups % 2 else groups // 2
        return F.group_norm(x, groups, w["scale"], w["bias"], eps=1e-6)

    def active(self, x):
        return F.relu(self.norm(x))


def fold(x):
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(b, 4 * c, h // 2, w // 2)


def unfold(x):
    b, c, h, w = x.shape
    x = x.reshape(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(b, c // 4, 2 * h, 2 * w)


def nearest(x, by=2):
    return F.interpolate(x, scale_factor=by, mode="nearest")


def bilinear(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def unet(w, images, *, depth):
    around = F.pad(images, (1, 1, 1, 1), mode="replicate")
    contrast = images - F.avg_pool2d(around, 3, 1)
    images = torch.cat([(images - 0.3) / 0.3, contrast / 0.1], 1)

    def residual(x):
        y = w.conv(w.active(x))
        return x + w.conv(w.active(y))

    x = w.conv(fold(images))
    skips = []
    for level in range(depth):
        if level:
            x = w.conv(fold(x))
        x = residual(x)
        skips.append(x)
    for skip in skips[-2::-1]:
        x = nearest(w.conv(w.active(x)))
        x = residual(x + skip)
    x = F.relu(unfold(w.conv(w.active(x))))
    x = F.relu(w.conv(torch.cat([x, images], 1)))
    return w.conv(x)


def fpi_wrn(w, images, *, width, outputs):
    """Depth 16, the published "dec"."""

    def residual(x, features, down=1, up=1):
        a = w.active(x)
        if features != x.shape[1]:
            x = w.conv(a, down, tensorflow_same=True)
        elif down == 2:
            x = F.avg_pool2d(x, 2)
        y = w.conv(a, down, tensorflow_same=True)
        if up == 2:
            x, y = nearest(x), nearest(y)
        return x + w.conv(w.active(y))

    x = w.conv(images)
    for stage, times in enumerate((16, 32, 64, 64, 64)):
        x = residual(x, times * width, down=2 if stage else 1)
    for features in (32 * width, 16 * width, 16, outputs):
        x = residual(x, features, up=2)
    return x + w["initial"].reshape(1, -1, 1, 1)


def nsa_resnet18(w, images):
    def down(x, stride):
        y = w.active(w.conv(x, stride))
        y = w.norm(w.conv(y))
        return F.relu(y + (w.norm(w.conv(x, 2)) if stride == 2 else x))

    def up(x):
        y = w.active(w.transposed(x, 2))
        y = w.norm(w.conv(y))
        return F.relu(y + w.norm(w.transposed(x, 2)))

    x = F.max_pool2d(w.active(w.conv(images, 2)), 3, 2, padding=1)
    for stride in (1, 1, 2, 1, 2, 1, 2, 1):
        x = down(x, stride)
    x = F.relu(w.conv(F.relu(w.conv(x))))
    for _ in range(3):
        x = up(x)
    x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    return w.transposed(x, 2) + w["initial"].reshape(1, -1, 1, 1)


def unit(w, x):
    w = Weights(w.take("Unit"))
    return w.active(w.conv(x))


def encoder(w, x, depth):
    maps = []
    for level in range(depth):
        x = F.avg_pool2d(x, 2) if level else x
        for _ in range(3):
            x = unit(w, x)
        maps.append(x)
    return maps


def gaussian(w, x):
    w = Weights(w.take("Gaussian"))
    return w.conv(x), F.softplus(w.conv(x)) + 1e-6


def latents(w, maps, *, levels, noise=None, given=None):
    pairs, values = [None] * levels, [None] * levels
    for i in reversed(range(levels)):
        x = maps[i + len(maps) - levels]
        if i < levels - 1:
            u = unit(w, unit(w, bilinear(values[i + 1])))
            x = unit(w, unit(w, torch.cat([x, u], 1)))
        mean, std = pairs[i] = gaussian(w, x)
        values[i] = given[i] if given else mean + std * noise[i]
    return pairs, values


def likelihood(w, values, *, depth):
    levels = len(values)
    outputs, x = [None] * levels, None
    for i in reversed(range(levels)):
        y = unit(w, unit(w, values[i]))
        for _ in range(depth - levels):
            y = unit(w, bilinear(y))
        if x is not None:
            y = torch.cat([y, unit(w, bilinear(x))], 1)
            y = unit(w, unit(w, y))
        x = y
        outputs[i] = nearest(w.conv(x), 2**i)
    return outputs


def divergence(q, p):
    ratio, distance = (q[1] / p[1]) ** 2, ((q[0] - p[0]) / p[1]) ** 2
    return 0.5 * (ratio + distance - 1 - torch.log(ratio)).flatten(1).sum(1)


def phiseg(w, images, label, noise, *, depth):
    """Training: outputs of each level, (mean, std) of each posterior and prior."""
    levels = len(noise)
    both = torch.cat([images - 0.5, label - 0.5], 1)
    maps = encoder(w.part("posterior_encoder"), both, depth)
    q, values = latents(w.part("posterior_latents"), maps, levels=levels, noise=noise)
    maps = encoder(w.part("prior_encoder"), images - 0.5, depth)
    p, _ = latents(w.part("prior_latents"), maps, levels=levels, given=values)
    return likelihood(w.part("likelihood"), values, depth=depth), q, p


def phiseg_draw(w, images, noise, *, depth):
    """Outputs for latents drawn given the image alone."""
    maps = encoder(w.part("prior_encoder"), images - 0.5, depth)
    _, values = latents(w.part("prior_latents"), maps, levels=len(noise), noise=noise)
    return sum(likelihood(w.part("likelihood"), values, depth=depth))


def _features(w, images, depth):
    maps = encoder(w.part("encoder"), images - 0.5, depth)
    x, w = maps[-1], w.part("decoder")
    for skip in maps[-2::-1]:
        x = torch.cat([bilinear(x), skip], 1)
        for _ in range(3):
            x = unit(w, x)
    return x


def _global(w, x):
    return [a.mean((2, 3)) for a in gaussian(w, x)]


def _combine(w, x, normal, noise):
    z = (normal[0] + normal[1] * noise)[:, :, None, None].expand(-1, -1, *x.shape[2:])
    x = torch.cat([x, z], 1)
    for _ in range(3):
        x = unit(w, x)
    return w.conv(x)


def probabilistic_unet(w, images, label, noise, *, depth):
    """Training: outputs, (mean, std) of the posterior and of the prior."""
    both = torch.cat([images - 0.5, label - 0.5], 1)
    q = _global(w.part("posterior_normal"), encoder(w.part("posterior_encoder"), both, depth)[-1])
    p = _global(w.part("prior_normal"), encoder(w.part("prior_encoder"), images - 0.5, depth)[-1])
    return _combine(w.part("combine"), _features(w, images, depth), q, noise), q, p


def probabilistic_unet_draw(w, images, noise, *, depth):
    """Outputs for a latent drawn given the image alone."""
    p = _global(w.part("prior_normal"), encoder(w.part("prior_encoder"), images - 0.5, depth)[-1])
    return _combine(w.part("combine"), _features(w, images, depth), p, noise)
