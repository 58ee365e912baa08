"""data: files or a phantom in, cases out (native-dtype image, mask or None, id, spacing)."""

from caal_jax.data import busi, folder, lgg, mood, phantom
from caal_jax.data.case import Case, DataSet, Entry, Geometry
from caal_jax.errors import InputError

__all__ = ["Case", "DataSet", "Entry", "Geometry", "load_dataset", "slice_axis"]


def load_dataset(config):
    """The data set that a config names.

    config: an `ml_collections.ConfigDict` with `dataset` ("mood", "folder", "busi" or "lgg"),
    `data_dir`, `validation_fraction` and `seed`; for mood also `region`, and with an empty
    `data_dir`, which means the built-in phantom, `phantom_size`, `phantom_train`,
    `phantom_validation` and `phantom_test`.
    Optional: `slice_axis` (folder), `extra_normals` (busi), `channel` (lgg).
    Raises: InputError for anything unusable; a folder that is given is never replaced by the
    phantom.
    """
    root, seed = config.data_dir, config.seed
    split = {"validation_fraction": config.validation_fraction, "seed": seed}
    if config.dataset not in ("mood", "folder", "busi", "lgg"):
        raise InputError(
            "dataset",
            found=repr(config.dataset),
            expected="mood, folder, busi or lgg",
            remedy="Correct the config.",
        )
    if config.dataset == "mood" and not root:
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
    if config.dataset == "mood":
        return mood.mood(root, region=config.region, **split)
    if config.dataset == "busi":
        return busi.busi(root, extra_normals=config.get("extra_normals") or None, **split)
    if config.dataset == "lgg":
        return lgg.lgg(root, channel=config.get("channel", "flair"), **split)
    return folder.folder(root, slice_axis=slice_axis(config), **split)


def slice_axis(config):
    """The axis of NIfTI volumes that `load_dataset` cuts into slices; new scans need the same."""
    if config.dataset == "mood":
        return mood.SLICE_AXES[config.region]
    return config.get("slice_axis", 2)
