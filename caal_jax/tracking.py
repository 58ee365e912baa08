"""Training curves for other programs: TensorBoard always, Weights & Biases or MLflow if asked.

Both stay offline: what they write lies in the run's folder, unless WANDB_MODE or
MLFLOW_TRACKING_URI say otherwise.
"""

import importlib
import json
import os

from tensorboardX import SummaryWriter

from caal_jax.errors import InputError


class TensorBoard:
    """Events under `folder/tensorboard`; those of later steps than `start` count no more."""

    def __init__(self, folder, start):
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def add(self, step, values):
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self):
        self._writer.close()


class WeightsAndBiases:
    """An offline run under `folder/wandb`, to be sent with `wandb sync` if wanted."""

    def __init__(self, folder, config):
        wandb = _installed("wandb")
        mode = os.environ.get("WANDB_MODE", "offline")
        name = folder.resolve().name
        self._run = wandb.init(
            project="caal_jax", name=name, dir=str(folder), mode=mode, config=config
        )

    def add(self, step, values):
        self._run.log(values, step=step)

    def close(self):
        self._run.finish()


class MLflow:
    """A run in `folder/mlflow`: `mlflow ui --backend-store-uri FOLDER/mlflow`."""

    def __init__(self, folder, config):
        # Offline means no telemetry either; and a folder of files, which needs no database, has
        # to be asked for.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow = _installed("mlflow")
        place = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlflow").resolve().as_uri()
        self._client = mlflow.MlflowClient(tracking_uri=place)
        name = folder.resolve().name
        found = self._client.get_experiment_by_name("caal_jax")
        experiment = found.experiment_id if found else self._client.create_experiment("caal_jax")
        self._id = self._client.create_run(experiment, run_name=name).info.run_id
        for field, value in config.items():
            self._client.log_param(self._id, field, value)

    def add(self, step, values):
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self):
        self._client.set_terminated(self._id)


OTHERS = {"wandb": WeightsAndBiases, "mlflow": MLflow}


def open_trackers(folder, config, start):
    """The writers that a config asks for, each with `add(step, {name: number})` and `close()`.

    config.tracking: "none", or "wandb", "mlflow", "wandb+mlflow". start: the step that training
    goes on from; the other programs begin a new run there.
    Raises: InputError for another name, or where the named package is missing.
    """
    wanted = config.tracking
    names = [] if wanted == "none" else wanted.split("+")
    if not set(names) <= OTHERS.keys():
        raise InputError(
            "config.tracking",
            found=repr(wanted),
            expected="'none', or 'wandb' and 'mlflow', joined by '+'",
            remedy="Choose among these; TensorBoard is always written.",
        )
    fields = json.loads(config.to_json())
    return [TensorBoard(folder, start), *(OTHERS[name](folder, fields) for name in names)]


def _installed(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            "config.tracking",
            found=f"{name!r}, which cannot be imported ({error})",
            expected="an installed package",
            remedy=f"pip install 'caal_jax[{name}]'.",
        ) from error
