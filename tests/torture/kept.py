"""Runs in a file, so that a page can tell of several: a long count in parts, or one that was interrupted."""

import json
from collections.abc import Sequence
from pathlib import Path

from tests.torture.promises import PROMISES
from tests.torture.report import Figure, Outcome, Run

SOURCES = {source.key: source for promise in PROMISES for source in promise.sources}


def load(file: Path) -> list[Run]:
    """The runs in a file, oldest first; none when there is no file. A source that is no more is passed over."""
    if not file.exists():
        return []
    runs = []
    for kept in json.loads(file.read_text()):
        names, outcomes = kept.pop("promises"), kept.pop("outcomes")
        found = {
            key: Outcome(SOURCES[key], **{**one, "figures": [Figure(*figure) for figure in one["figures"]]})
            for key, one in outcomes.items()
            if key in SOURCES
        }
        runs.append(Run([promise for promise in PROMISES if promise.name in names], found, **kept))
    return runs


def save(file: Path, runs: Sequence[Run]) -> None:
    """Write them all."""
    kept = []
    for run in runs:
        outcomes = {key: outcome._asdict() for key, outcome in run.outcomes.items()}
        for one in outcomes.values():
            del one["source"]
        kept.append({**run._asdict(), "promises": [promise.name for promise in run.promises], "outcomes": outcomes})
    file.write_text(json.dumps(kept, indent=1))
