"""The command line ends in launch/: below it, plain arguments."""

from house import source

COMMAND_LINE = ("absl.flags", "absl.app", "argparse", "getopt", "optparse", "sys.argv", "click", "fire")


def command_line(module: source.Module) -> list[str]:
    uses = [*source.imports(module), *source.names(module)]
    return [
        module.at(node, f"{name} belongs in launch/")
        for node, name in uses
        if any(f"{name}.".startswith(f"{banned}.") for banned in COMMAND_LINE)
    ]


def test_only_launch_reads_the_command_line():
    below = [module for module in source.modules() if module.layer != "launch"]
    source.expect_none(finding for module in below for finding in command_line(module))


def test_a_flag_elsewhere_is_found():
    for text in (
        "from absl import flags",
        "from absl import app, logging",
        "import absl.flags",
        "import argparse",
        "import sys\nsys.argv[1:]",
        "from sys import argv",
    ):
        assert command_line(source.planted("rl/a.py", text)), text
    assert not command_line(source.planted("rl/a.py", "from absl import logging\nimport sys\nsys.stdout.flush()"))
