"""data: files or a phantom in, cases out (native-dtype image, mask or None, id, spacing)."""

import dataclasses

from caal_jax.data import busi, folder, hippocampus, lgg, mood, phantom, public, records, table
from caal_jax.data.case import Case, DataSet, Entry, Geometry
from caal_jax.data.readers import pick_channels, read_image
from caal_jax.errors import InputError

__all__ = ["Case", "DataSet", "Entry", "Geometry", "is_phantom", "load_dataset", "read_scan"]


def load_dataset(config):
    """The data set that a config names.

    config: an `ml_collections.ConfigDict` with `dataset` ("folder", "hippocampus" or a name of
    `caal_jax.data.public.SETS`), `data_dir`, `validation_fraction` and `seed`; for mood also
    `region`, and with an empty `data_dir`, which means the built-in phantom, `phantom_size`,
    `phantom_train`, `phantom_validation` and `phantom_test`.
    The `data_dir` of "folder" may also be a CSV table of images.
    Optional: `slice_axis` (folder), `extra_normals` (busi), and the option that picks a part of a
    public set, such as `channel` (lgg). A public set is read from its public layout, or from the
    records that `caal_jax.data.prepare` made of it.
    Raises: InputError for anything unusable; a folder that is given is never replaced by the
    phantom.
    """
    root, seed = config.data_dir, config.seed
    split = {"validation_fraction": config.validation_fraction, "seed": seed}
    own = config.dataset in ("folder", "hippocampus")
    one = None if own else public.find_set(config.dataset)
    if is_phantom(config):
        return phantom.phantom_dataset(
            region=config.region,
            size=config.phantom_size,
            num_train=config.phantom_train,
            num_validation=config.phantom_validation,
            num_test=config.phantom_test,
            seed=seed,
        )
    if not root:
        raise InputError(
            "data_dir",
            found="an empty string",
            expected=f"the folder of the {config.dataset} data",
            remedy="Pass --config.data_dir=FOLDER.",
        )
    if config.dataset == "hippocampus":
        return hippocampus.hippocampus(root, slice_axis=slice_axis(config), **split)
    if one is None:
        read = table.table if str(root).lower().endswith(".csv") else folder.folder
        return read(root, slice_axis=slice_axis(config), **split)
    if one.name == "busi" and config.get("extra_normals"):
        # Before any records, which do not hold the second folder.
        return busi.busi(root, extra_normals=config.extra_normals, **split)
    variant = config.get(one.variant) or one.default
    prepared = records.find_prepared(root, one.name, variant)
    if prepared:
        return records.read_prepared(prepared, **split)
    return one.dataset(root, variant=variant, **split)


def is_phantom(config):
    """Whether the config's data are the built-in phantom, made-up images."""
    return config.dataset == "mood" and not config.data_dir


def read_scan(path, config):
    """A new file as a `Case`, read as `load_dataset` reads those of the config's data set.

    Volumes are cut along the same axis; of LGG's colour images the config's `channel` is taken.
    Raises: InputError as `read_image`.
    """
    case = read_image(path, slice_axis=slice_axis(config))
    if config.dataset == "lgg":
        channels = lgg.CHANNELS[config.get("channel") or "flair"]
        case = dataclasses.replace(case, image=pick_channels(case.image, channels))
    return case


def slice_axis(config):
    """The axis of NIfTI volumes that `load_dataset` cuts into slices."""
    if config.dataset == "mood":
        return mood.SLICE_AXES[config.region]
    return config.get("slice_axis", 2)
