"""Reading ahead: in order, a few at a time, errors where they belong."""

import threading
import time

import pytest

from caal_jax.data.ahead import MOST_THREADS, read_ahead


def test_order_and_errors_are_kept_and_few_are_read_ahead():
    begun, asked = [], []

    def work(number):
        begun.append(number)
        time.sleep(0.002 * (number % 3))  # so that later ones end before earlier ones
        if number == 7:
            raise ValueError("seven")
        return number, threading.current_thread()

    for number, answer in read_ahead(work, range(20)):
        asked.append(number)
        assert len(begun) <= len(asked) + MOST_THREADS
        if number == 7:
            with pytest.raises(ValueError, match="seven"):
                answer()
        else:
            found, thread = answer()
            assert found == number
            assert thread is not threading.current_thread()
    assert asked == list(range(20))
    assert list(read_ahead(work, [])) == []


def test_what_stops_asking_stops_the_threads():
    before = threading.active_count()
    for number, _ in read_ahead(lambda number: number, range(1000)):
        if number == 3:
            break
    assert threading.active_count() == before
