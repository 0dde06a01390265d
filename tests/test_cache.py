"""A cache that is bounded, forgets in order, and can be used by several threads."""

import copy
import pickle
import threading

import pytest

import metaprox as mp
from metaprox.cache import BoundedCache


def test_the_entry_that_was_not_looked_up_for_longest_goes():
    gone = []
    cache = BoundedCache(3, gone.append)
    for key in "abc":
        cache[key] = key.upper()
    assert cache["a"] == "A"
    assert "b" in cache  # which is no look-up
    cache["d"] = "D"
    assert (list(cache), gone) == (["c", "a", "d"], ["B"])
    cache["c"] = "C again"
    del cache["a"]
    assert (list(cache), gone) == (["d", "c"], ["B"])  # replaced and deleted values made no place
    with pytest.raises(KeyError):
        cache["b"]


def test_setdefault_and_get_or_make_keep_what_is_there():
    cache = BoundedCache(2)
    assert cache.setdefault("a", 1) == cache.setdefault("a", 2) == cache.get_or_make("a", lambda: 3) == 1
    assert cache.get_or_make("b", lambda: 4) == cache["b"] == 4
    assert cache.setdefault("c", 5) == 5
    assert list(cache) == ["b", "c"]


def test_nothing_is_kept_where_making_it_raises():
    cache = BoundedCache(2)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_make("a", lambda: 1 / 0)
    assert cache.get_or_make("a", lambda: 1) == 1


def test_copies_are_empty_and_of_the_same_size():
    cache = BoundedCache(2)
    cache["a"] = threading.Lock()  # what could not be copied
    for other in (copy.copy(cache), copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert len(other) == 0
        other.update(dict.fromkeys(range(5)))
        assert list(other) == [3, 4]
    assert list(cache) == ["a"]


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_a_size_is_a_number_of_entries(size):
    with pytest.raises(mp.InputError, match="size must be an integer >= 1"):
        BoundedCache(size)


def test_threads_never_see_more_than_the_bound():
    cache, failed, start = BoundedCache(4), [], threading.Barrier(4)

    def use(thread):
        start.wait()
        try:
            for turn in range(2000):
                assert cache.get_or_make((thread, turn), lambda turn=turn: turn) == turn
                assert len(list(cache)) <= 4
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=use, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(cache) == 4


def test_threads_that_ask_at_once_get_the_same():
    cache, made, got = BoundedCache(4), threading.Barrier(2), []

    def make():
        made.wait()  # both make one
        return object()

    threads = [threading.Thread(target=lambda: got.append(cache.get_or_make("a", make))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got[0] is got[1] is cache["a"]
