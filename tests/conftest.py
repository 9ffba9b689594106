"""What holds for every test.

Runs repeat: Hypothesis derives its examples from the test alone, so that a red test stays red and nothing fails by
chance.
To look for new failures instead, with examples drawn anew and kept in .hypothesis/:

    HYPOTHESIS_PROFILE=search make test
"""

import os

from hypothesis import settings

# No deadlines: how long an example took says something about the machine, and nothing about the code.
settings.register_profile("repeat", derandomize=True, database=None, deadline=None, print_blob=True)
settings.register_profile("search", max_examples=2_000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))
