"""Every test that a page of docs/ names is there."""

import re

from house import source

NAMED = re.compile(r"(tests/[\w/]+_test\.py)(?:::(\w+))?")


def missing(text: str) -> list[str]:
    """The names of test files and of tests in them, in some text, that nobody will find."""
    found = []
    for path, test in NAMED.findall(text):
        file = source.ROOT / path
        if not file.is_file() or (test and f"def {test}(" not in file.read_text()):
            found.append(f"{path}::{test}")
    return found


def test_tests_that_pages_name_are_there():
    pages = sorted((source.ROOT / "docs").glob("*.md"))
    source.expect_none([f"{page.name}: {name}" for page in pages for name in missing(page.read_text())])


def test_a_name_that_is_gone_is_found():
    mine = "tests/house/named_tests_test.py"
    assert missing(f"`{mine}` and `{mine}::test_a_name_that_is_gone_is_found`") == []
    assert missing(f"`{mine}::test_gone`") == [f"{mine}::test_gone"]
    assert missing("tests/rl/gone_test.py") == ["tests/rl/gone_test.py::"]
