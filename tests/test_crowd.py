"""Calls that lost their time by waiting for cores keep small ones on one thread for a while."""

import pytest

from rnnkernel import _crowd

MS = 1_000_000
SMALL, LARGE = 1e6, 1e10


def lose(times):
    for _ in range(times):
        _crowd.report(10 * MS, 9 * MS)


def run_well():
    _crowd.report(10 * MS, 1 * MS)


@pytest.fixture(autouse=True)
def crowd():
    _crowd.set_ignored(False)
    run_well()
    yield
    run_well()
    _crowd.set_ignored(True)


def test_a_few_losses_in_a_row():
    for _ in range(5):
        lose(2)
        assert not _crowd.is_crowded(SMALL)
        run_well()
    lose(30)  # longer each time, so that this test may be slow
    assert _crowd.is_crowded(SMALL)


def test_large_calls_have_their_threads():
    lose(30)
    assert not _crowd.is_crowded(LARGE)


def test_a_call_that_does_not_lose_ends_it():
    lose(30)
    run_well()
    assert not _crowd.is_crowded(SMALL)
    lose(2)
    assert not _crowd.is_crowded(SMALL)


@pytest.mark.parametrize(("time", "lost"), [(10 * MS, 6 * MS), (MS // 3, MS // 3), (0, 0)])
def test_what_is_no_loss(time, lost):
    for _ in range(30):
        _crowd.report(time, lost)
    assert not _crowd.is_crowded(SMALL)


def test_it_ends_by_itself():
    lose(3)
    while _crowd.is_crowded(SMALL):
        pass
