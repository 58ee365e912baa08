"""MVTec AD: photographs of industrial products, one category at a time."""

from caal_jax.data.folder import folder
from caal_jax.data.readers import existing_folder
from caal_jax.errors import InputError

LAYOUT = "Point it at the unpacked MVTec AD folder, with <category>/train/good and so on."


def mvtec(root, *, category="", validation_fraction=0.2, seed=0):
    """One category of MVTec AD (Bergmann et al., IJCV 129, 2021) in its public layout.

    root: the folder of all categories, or, without `category`, the folder of one.
    Raises: InputError as `folder.folder`, or for a category that is not there.
    """
    root = existing_folder(root, where="data_dir", remedy=LAYOUT)
    home = root / category
    if not (home / "train" / "good").is_dir():
        names = sorted(path.parents[1].name for path in root.glob("*/train/good"))
        raise InputError(
            f"category {category!r} in data_dir {root}",
            found=f"the categories {', '.join(names)}" if names else "no <category>/train/good",
            expected="one that is there",
            remedy="Pass --config.category=NAME." if names else LAYOUT,
        )
    return folder(home, validation_fraction=validation_fraction, seed=seed)
