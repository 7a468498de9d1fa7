"""Every message that the troubleshooting page quotes can be said by our code."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def sayings() -> str:
    """All string constants of our code; what a message fills in is cut out."""
    texts = []
    for top in ("flashvsr_core", "tasks", "flows"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


def test_quoted_messages_exist() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = [match[1] for match in re.finditer(r"^\| `([^`]+)` \|", page, re.MULTILINE)]
    assert len(quoted) > 20
    said = sayings()
    missing = [text for text in quoted if text not in said]
    assert missing == []
