"""Rewards spread over hosts, of which this process plays one after the other; real ones: tests/system/hosts_test.py."""

import jax
import pytest

from thinkfirst.core import hosts
from thinkfirst.rl import batch, shares
from thinkfirst.rl.rewards import parse, reward


def rows(groups, group=2):
    return [
        (batch.Problem(f"{n}", "Q", "1"), batch.Completion(f"{n}.{g}", (), ()))
        for n in range(groups)
        for g in range(group)
    ]


def grade(rows, *, step, phase):
    return [
        reward.Graded(float(found.text), {"style": 0.1, "code": None}, parse.parse(found), f"{step}{phase}")
        for _, found in rows
    ]


@pytest.fixture
def play(monkeypatch):
    """What every host gets, where `count` of them call `graded` with their own grader."""

    def play(count, rows, graders):
        monkeypatch.setattr(jax, "process_count", lambda: count)
        told = []

        def each(exchange):
            found = []
            for process, grader in enumerate(graders):
                monkeypatch.setattr(jax, "process_index", lambda process=process: process)
                monkeypatch.setattr(hosts, "gathered", exchange)
                try:
                    found.append(shares.graded(grader, rows, group=2, step=3, phase="easy"))
                except ValueError as error:
                    found.append(error)
            return found

        each(lambda mine: told.append(mine) or [{"failed": 0}])
        assert len(told) == count, "a host left the others waiting"
        return each(lambda mine: told)

    return play


@pytest.mark.parametrize(("count", "groups"), [(2, 4), (2, 5), (3, 2), (4, 1)])
def test_all_hosts_know_all_grades_in_order(play, count, groups):
    seen = []

    def noting(rows, *, step, phase):
        seen.append([found.text for _, found in rows])
        return grade(rows, step=step, phase=phase)

    asked = rows(groups)
    found = play(count, asked, [noting] * count)
    assert found == [grade(asked, step=3, phase="easy")] * count
    once = seen[: len(seen) // 2]
    assert [text for part in once for text in part] == [found.text for _, found in asked]
    assert all(len(part) % 2 == 0 for part in once)


def test_a_host_that_fails_says_so_and_all_stop(play):
    def broken(rows, *, step, phase):
        raise ValueError("out of order")

    found = play(3, rows(6), [grade, broken, grade])
    assert [type(one) for one in found] == [shares.FailedElsewhere, ValueError, shares.FailedElsewhere]
    assert str(found[0]) == "the rewards of step 3 failed on host 1" and str(found[1]) == "out of order"
