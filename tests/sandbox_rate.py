"""Jobs a second through the sandbox: python tests/sandbox_rate.py.  Quote it from a machine that does nothing else."""

import os
import time

from thinkfirst.rl.sandbox import pool, protocol

JOBS = {
    "job": protocol.Job("def f(x): return x + 1", ("f(1)", "f(2)", "f(3)")),
    "check": protocol.Check("def f(x): return x + 1", ("assert f(1) == 2", "assert f(2) == 3"), ("f",)),
}
ROUNDS, COUNT = 5, 300


def main() -> None:
    for layers in (pool.LAYERS, pool.LAYERS[:3], pool.LAYERS[:2]):
        for num_workers in (1, 2, 4):
            with pool.Sandbox(num_workers, layers=layers) as box:
                for name, job in JOBS.items():
                    best = min(seconds(box, job) for _ in range(ROUNDS))
                    print(f"  {COUNT / best:6.0f} {name}s a second; load {os.getloadavg()[0]:.1f}", flush=True)


def seconds(box: pool.Sandbox, job: protocol.Job | protocol.Check) -> float:
    started = time.perf_counter()
    assert all(outcome.status == "done" for outcome in box.run([job] * COUNT))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
