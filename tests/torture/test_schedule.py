"""Sources take turns by their shares, and leave what they do not need to the others."""

from tests.torture.promises import PROMISES, Source
from tests.torture.report import Outcome
from tests.torture.schedule import TURNS, Schedule
from tests.torture.turns import ROOT


def source(key: str, torture: int, share: float, *, waits: bool = False) -> Source:
    return Source(key, "rounds", torture, share, (), waits=waits)


def simulated(schedule: Schedule, jobs: int, rounds_per_s: float) -> dict[str, float]:
    """The seconds that each source ran, if every one of them does so many rounds a second."""
    now, running, seconds = 0.0, list[tuple[float, Outcome]](), dict[str, float]()
    while True:
        while len(running) < jobs and (turn := schedule.next(now)):
            took = min(turn.seconds, turn.rounds / rounds_per_s)
            seconds[turn.source.key] = seconds.get(turn.source.key, 0.0) + took
            running.append((now + took, Outcome(turn.source, int(took * rounds_per_s), 0, took)))
        if not running:
            return seconds
        first = min(running, key=lambda one: one[0])
        running.remove(first)
        now = first[0]
        schedule.done(first[1])


def test_time_is_shared_and_what_is_left_over_goes_to_the_others() -> None:
    sources = [source("large", 10**9, 20), source("small", 10**9, 10), source("soon", 100, 10)]
    seconds = simulated(Schedule(sources, 1000, 1, 0), 1, 10)
    assert seconds["soon"] == 10
    assert sum(seconds.values()) == 1000
    assert 1.7 < seconds["large"] / seconds["small"] < 2.8


def test_all_jobs_are_used_to_the_end() -> None:
    sources = [source(str(number), 10**9, 1 + number, waits=number % 2 == 0) for number in range(6)]
    seconds = simulated(Schedule(sources, 1000, 2, 0), 2, 10)
    assert 1990 < sum(seconds.values()) <= 2005


def test_no_source_runs_beside_itself_and_each_turn_has_other_seeds() -> None:
    one = source("one", 100, 1)
    schedule = Schedule([one], 1000, 2, 7)
    first = schedule.next(0)
    assert first is not None
    assert (first.rounds, first.seed, first.seconds) == (100, 7, 1000 * 2 / TURNS)
    assert schedule.next(0) is None
    schedule.done(Outcome(one, 60))
    second = schedule.next(500)
    assert second is not None
    assert second.rounds == 40
    assert second.seed - first.seed >= 1_000_000
    schedule.done(Outcome(one, 45))
    assert schedule.next(600) is None
    assert schedule.outcomes["one"].rounds == 105


def test_who_fails_or_does_nothing_has_no_other_turn() -> None:
    for outcome in (Outcome(source("one", 100, 1), 5, 1), Outcome(source("one", 100, 1), 0, 0)):
        schedule = Schedule([outcome.source], 1000, 1, 0)
        assert schedule.next(0) is not None
        schedule.done(outcome)
        assert schedule.next(1) is None


def test_who_waits_runs_beside_who_computes() -> None:
    sources = [source("a", 9, 1), source("b", 9, 1), source("c", 9, 1, waits=True)]
    schedule = Schedule(sources, 1000, 2, 0)
    assert [turn.source.key for turn in (schedule.next(0), schedule.next(0)) if turn] == ["a", "c"]


def test_a_source_is_known_by_its_key() -> None:
    sources = {one for promise in PROMISES for one in promise.sources}
    assert len({one.key for one in sources}) == len(sources)


def test_every_test_of_a_source_is_there_and_counts_for_it() -> None:
    for each in {one for promise in PROMISES for one in promise.sources}:
        for test in each.tests:
            path, _, function = test.partition("::")
            text = (ROOT / path).read_text()
            assert not function or f"def {function}(" in text
            assert f'counted("{each.key}"' in text
