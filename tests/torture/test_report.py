"""The report says what ran and nothing else."""

from pathlib import Path

from tests.planted.table import TABLE
from tests.torture.kept import load, save
from tests.torture.promises import PROMISES, Promise
from tests.torture.report import Figure, Outcome, Run, as_page, as_table


def run_of(promises: list[Promise], rounds: int, failures: int, *, interrupted: bool = False) -> Run:
    sources = {source.key: source for promise in promises for source in promise.sources}
    figures = [Figure("G5", "length of a tail", "3 m"), Figure("G99", "nobody's", "4 m")]
    outcomes = {key: Outcome(source, rounds, failures, 90.0, figures) for key, source in sources.items()}
    return Run(promises, outcomes, 1_700_000_000.0, 125.0, 5, 2, 42, "abc", interrupted)


def test_every_promise_has_a_line_and_every_planted_bug() -> None:
    run = run_of(list(PROMISES), 1234, 0)
    assert [promise.name for promise in PROMISES] == [f"G{number}" for number in range(1, 19)]
    page, table = as_page(run), as_table(run)
    for promise in PROMISES:
        assert f"| {promise.name} | {promise.text} |" in page
        assert promise.text in table
        assert bool(promise.sources) != bool(promise.why_not)
    for planted in TABLE:
        assert planted.name.replace("_", " ") in page
    assert "1,234" in page
    assert "2023-11-14 22:13 UTC" in page
    assert "2 minutes of a budget of 5, 2 tests at a time\n" in page


def test_failures_interruptions_and_figures_are_shown() -> None:
    page = as_page(run_of([PROMISES[4]], 7, 3, interrupted=True))
    assert "| cuts | 65,536 | 7 | 3 |" in page
    assert "failures    3" in page
    assert "2 tests at a time, interrupted\n" in page
    assert "| G5 | length of a tail | 3 m |" in page
    assert "nobody's" not in page


def test_runs_that_are_kept_are_told_of_together(tmp_path: Path) -> None:
    first, second = run_of([PROMISES[4]], 7, 3, interrupted=True), run_of(list(PROMISES), 1000, 0)
    assert load(tmp_path / "runs.json") == []
    save(tmp_path / "runs.json", [first, second])
    assert load(tmp_path / "runs.json") == [first, second]
    page = as_page(first, second)
    assert "these 2 runs" in page
    assert "| cuts | 65,536 | 1,007 | 3 |" in page
    assert "| kills | 1,000 | 1,000 | 0 |" in page
    assert page.count("2023-11-14 22:13 UTC") == 2
    assert "promises    G5\n" in page


def test_turns_of_a_source_add_up() -> None:
    (source,) = PROMISES[4].sources
    whole = Outcome(source).plus(Outcome(source, 3, 1, 2.0)).plus(Outcome(source, 4, 0, 1.0, [Figure("G5", "x", "y")]))
    assert whole == Outcome(source, 7, 1, 3.0, [Figure("G5", "x", "y")])
