"""All fuzz targets by name."""

from typing import Final

from tests.fuzz import stored, text, wire
from tests.fuzz.target import Target

TARGETS: Final[dict[str, Target]] = {one.name: one for one in (*wire.TARGETS, *stored.TARGETS, *text.TARGETS)}
