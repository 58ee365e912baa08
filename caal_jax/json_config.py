"""The config file behind --config=DIR/config.json: what a run wrote down, as a config again."""

from pathlib import Path

from caal_jax.defaults import training_config
from caal_jax.errors import InputError
from caal_jax.workdir import read_json

MAX_BYTES = 2**20


def get_config(path):
    """`read_config`, for ml_collections; any error is a plain ValueError."""
    try:
        return read_config(path)
    except InputError as error:
        # ml_collections makes a new error of the same type with its own text alone.
        raise ValueError(str(error)) from error


def read_config(path):
    """The config in a JSON file; fields that it does not name keep their defaults.

    Nothing in the file is run. Raises: InputError for a file that is too large or no config, and
    for a value of another type than the default's.
    """
    if Path(path).is_file() and Path(path).stat().st_size > MAX_BYTES:
        raise InputError(
            path,
            found=f"more than {MAX_BYTES} bytes",
            expected="the config.json of a run",
            remedy="Check --config.",
        )
    config = training_config()
    found = read_json(path)
    try:
        config.update(found)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(
            path,
            found=f"a field that does not fit ({error})",
            expected="the config.json of a run",
            remedy="Correct the field.",
        ) from error
    return config
