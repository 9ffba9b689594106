"""The examples in docs/client.md run, in their order, against one broker."""

import ast
import asyncio
import re
import textwrap
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import pytest

import vibemq
from tests.running import running

PAGE: Final = (Path(__file__).parents[2] / "docs" / "client.md").read_text("utf-8")
EXAMPLES: Final = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SHOWN: Final = re.compile(r"print\((.*)\)  # (\[.*\])$", re.MULTILINE)
FLAGS: Final = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
SECONDS_MAX: Final = 20


def compiled(example: str, url: str) -> Callable[[vibemq.Client], Coroutine[None, None, None]]:
    """An example as a coroutine. What it says that it prints is compared; a URL in it is that of the broker."""
    text = SHOWN.sub(r"assert (\1) == \2, (\1)", example).replace("vibemq://127.0.0.1:2925", url)
    space: dict[str, Any] = {"vibemq": vibemq, "asyncio": asyncio}
    # The page is ours, and running it is the point.
    exec(compile(f"async def example(client):\n{textwrap.indent(text, '    ')}", "docs/client.md", "exec"), space)  # noqa: S102
    coroutine: Callable[[vibemq.Client], Coroutine[None, None, None]] = space["example"]
    return coroutine


def goes_on_for_ever(example: str) -> bool:
    """Whether an example consumes, not in a task that it ends by itself."""
    left = list(compile(example, "", "exec", FLAGS).body)
    while left:
        node = left.pop()
        if isinstance(node, ast.AsyncFor) and "messages" in ast.unparse(node.iter):
            return True
        left += [one for one in ast.iter_child_nodes(node) if isinstance(one, ast.stmt | ast.ExceptHandler)]
        if isinstance(node, ast.AsyncFunctionDef):
            del left[-len(node.body) :]
    return False


async def nothing_left(client: vibemq.Client) -> bool:
    """Whether the consumers of `orders` have done their work."""
    queue = await client.show_queue("orders")
    return not queue["ready"] and not queue["unacked"]


async def run(example: str, url: str) -> None:
    """Run an example; one that goes on for ever is left when there is nothing to do."""
    async with vibemq.connect(url) as client, asyncio.timeout(SECONDS_MAX):
        task = asyncio.ensure_future(compiled(example, url)(client))
        try:
            while not task.done():
                await asyncio.sleep(0.01)
                if goes_on_for_ever(example) and await nothing_left(client):
                    break
        finally:
            task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            assert goes_on_for_ever(example)


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(EXAMPLES) >= 8
    with running(tmp_path / "data") as broker:
        monkeypatch.setenv("VIBEMQ_URL", broker.url)
        for example in EXAMPLES:
            try:
                asyncio.run(run(example, broker.url))
            except Exception as problem:
                problem.add_note(f"in this example of docs/client.md:\n{example}")
                raise
