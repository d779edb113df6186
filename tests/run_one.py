"""The entry of every Bazel test: `run_one.py FILE` is `pytest FILE`, with nothing written beside the sources."""

import sys
import tempfile

import pytest

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(pytest.main(["-o", f"cache_dir={scratch}", *sys.argv[1:]]))
