"""Calls that lost their time by waiting for cores keep small ones on one thread for a while."""

import pytest

from rnnkernel import _crowd

MS = 1_000_000
SMALL, LARGE = 1e6, 1e10


def lose(times):
    for _ in range(times):
        _crowd.report(10 * MS, 9 * MS)


def run_well(times):
    for _ in range(times):
        _crowd.report(1 * MS, 0)


@pytest.fixture(autouse=True)
def crowd():
    _crowd.forget()
    _crowd.set_ignored(False)
    yield
    _crowd.set_ignored(True)
    _crowd.forget()


def test_a_few_losses():
    lose(2)  # the first call after others may have had to wake threads
    assert not _crowd.is_crowded(SMALL)
    lose(28)  # longer each time, so that this test may be slow
    assert _crowd.is_crowded(SMALL)


def test_large_calls_have_their_threads():
    lose(30)
    assert not _crowd.is_crowded(LARGE)


def test_calls_that_run_well_between_those_that_lose():
    for _ in range(30):
        run_well(2)
        lose(1)
    assert _crowd.is_crowded(SMALL)


def test_calls_that_lose_now_and_then():
    for _ in range(30):
        run_well(30)
        _crowd.report(5 * MS, 4 * MS)
        assert not _crowd.is_crowded(SMALL)


def test_it_ends_where_calls_run_well():
    lose(30)
    run_well(30)
    assert not _crowd.is_crowded(SMALL)
    lose(1)
    assert not _crowd.is_crowded(SMALL)


@pytest.mark.parametrize(("time", "lost"), [(10 * MS, 5 * MS), (MS // 3, MS // 3), (0, 0)])
def test_what_is_no_loss(time, lost):
    for _ in range(30):
        _crowd.report(time, lost)
    assert not _crowd.is_crowded(SMALL)


def test_it_ends_by_itself():
    lose(30)
    assert _crowd.is_crowded(SMALL)
    while _crowd.is_crowded(SMALL):
        pass
