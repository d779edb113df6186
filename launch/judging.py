"""The sandbox of a program's run: started before JAX where there are programs to run, and ended with the run."""

import contextlib
from collections.abc import Iterator

from thinkfirst.rl.rewards import code
from thinkfirst.rl.sandbox import pool


@contextlib.contextmanager
def judge(*, needed: bool) -> Iterator[code.Judge | None]:
    """Who runs the programs among the answers; None where there are none.  Prints the level of the sandbox.

    To be entered before anything asks JAX for its devices: the workers are programs of their own, exec'd while this
    process is small.  ValueError where this host cannot confine them.
    """
    if not needed:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            box = stack.enter_context(pool.Sandbox())
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        yield code.Judge(box)
