"""Curves reach every program that is asked for, offline, and a missing one is told."""

import sys
from types import SimpleNamespace
from unittest import mock

import pytest

from caal_jax.defaults import training_config
from caal_jax.errors import InputError
from caal_jax.tracking import open_trackers


def config(tracking):
    config = training_config()
    config.tracking = tracking
    return config


def track(folder, tracking):
    trackers = open_trackers(folder, config(tracking), 0)
    for tracker in trackers:
        tracker.add(20, {"loss/member_0": 0.25, "learning_rate": 1e-3})
        tracker.close()
    return trackers


@pytest.fixture(autouse=True)
def _no_choice_of_the_user(monkeypatch):
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_tensorboard_is_always_written(tmp_path):
    assert len(track(tmp_path, "none")) == 1
    (events,) = (tmp_path / "tensorboard").glob("events*")
    assert b"loss/member_0" in events.read_bytes()


def test_weights_and_biases_stays_offline_in_the_run_s_folder(tmp_path, monkeypatch):
    wandb = mock.Mock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    track(tmp_path, "wandb")
    asked = wandb.init.call_args.kwargs
    assert (asked["mode"], asked["dir"]) == ("offline", str(tmp_path))
    assert asked["config"]["num_members"] == training_config().num_members
    run = wandb.init.return_value
    run.log.assert_called_once_with({"loss/member_0": 0.25, "learning_rate": 1e-3}, step=20)
    run.finish.assert_called_once_with()
    monkeypatch.setenv("WANDB_MODE", "online")
    track(tmp_path, "wandb")
    assert wandb.init.call_args.kwargs["mode"] == "online"


def test_mlflow_stays_offline_in_the_run_s_folder(tmp_path, monkeypatch):
    client = mock.Mock()
    client.get_experiment_by_name.return_value = None
    client.create_experiment.return_value = "7"
    client.create_run.return_value = SimpleNamespace(info=SimpleNamespace(run_id="r"))
    mlflow = SimpleNamespace(MlflowClient=mock.Mock(return_value=client))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "true")  # so that the end of the test takes them back
    assert len(track(tmp_path, "mlflow")) == 2
    place = mlflow.MlflowClient.call_args.kwargs["tracking_uri"]
    assert place == (tmp_path / "mlflow").resolve().as_uri()
    assert mock.call("r", "learning_rate", 1e-3, step=20) in client.log_metric.mock_calls
    assert mock.call("r", "num_steps", 1000) in client.log_param.mock_calls
    client.set_terminated.assert_called_once_with("r")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_not_there_is_told(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"caal_jax\[{name}\]"):
        track(tmp_path, name)


def test_other_names_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"config.tracking"):
        track(tmp_path, "tensorboard")
