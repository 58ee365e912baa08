"""A fresh copy of the made-up run for every test."""

import made_up_report
import pytest


@pytest.fixture
def results():
    return made_up_report.make_results()


@pytest.fixture
def curves():
    return made_up_report.make_curves()


@pytest.fixture
def history():
    return made_up_report.make_history()
