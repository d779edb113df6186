"""make crash: a run is killed again and again, and is compared after every kill and at its end.

python -m crash.matrix FOLDER [LIFE ...]; prints the table of docs/log.md; exit status 1 where anything differs.
"""

import pathlib
import shutil
import sys
import time

from crash import harness

# Each life is that of one run: a kill is (point, how often it is reached in this start, how many times in a row).
# The third save of SFT and the third row of GRPO end an epoch of the data.
LIVES = {
    "SIGKILL, first": [
        *(("before_save", 2, 1), ("in_arrays", 1, 2), ("before_manifest", 1, 1), ("before_rename", 1, 2)),
        *(("after_save", 1, 1), ("in_log", 2, 2), ("after_log", 1, 1), ("mid_accumulation_of_sft", 1, 1)),
        *(("mid_merge", 1, 2), ("mid_rollout", 2, 1), ("mid_reward", 3, 1), ("mid_accumulation", 1, 1)),
        *(("between_iterations", 2, 1), ("before_save", 1, 1), ("in_log", 4, 1), ("mid_evaluation", 2, 1)),
    ],
    "SIGKILL, second": [
        *(("after_save", 3, 1), ("before_manifest", 1, 2), ("mid_reward", 11, 1), ("mid_rollout", 6, 2)),
        *(("between_iterations", 4, 1), ("mid_accumulation", 2, 1), ("after_save", 1, 1), ("after_log", 1, 2)),
        *(("in_arrays", 1, 1), ("before_manifest", 1, 1), ("before_rename", 1, 1), ("mid_accumulation", 4, 1)),
        *(("after_save", 2, 1), ("mid_evaluation", 5, 2)),
    ],
    "SIGTERM, first": [
        *(("before_save", 1, 1), ("in_arrays", 1, 1), ("before_manifest", 1, 1), ("in_log", 1, 1)),
        *(("mid_merge", 1, 3), ("mid_rollout", 2, 2), ("mid_reward", 3, 1), ("mid_accumulation", 1, 1)),
        *(("between_iterations", 2, 1), ("before_rename", 1, 1), ("mid_evaluation", 2, 1)),
    ],
    "SIGTERM, second": [
        *(("mid_accumulation_of_sft", 2, 1), ("after_save", 1, 1), ("mid_reward", 11, 2), ("mid_rollout", 6, 1)),
        *(("between_iterations", 2, 1), ("after_log", 1, 1), ("mid_evaluation", 5, 2)),
    ],
}


def main() -> int:
    folder, lives = pathlib.Path(sys.argv[1]), sys.argv[2:] or list(LIVES)
    shutil.rmtree(folder, ignore_errors=True)
    data = harness.write_data(folder / "data")
    straight = harness.reference(folder / "straight", data)
    kills = wrong = 0
    start = time.monotonic()
    print("| life | kills, in order | came out differently |\n|---|---|---|", flush=True)
    for life in lives:
        workdir, signal = folder / life.replace(", ", "_"), life.partition(",")[0]
        told, differing = [], []
        for point, nth, times in LIVES[life]:
            for _ in range(times):
                found = harness.killed(workdir, data, (point, nth, signal), straight)
                kills += 1
                differing += [f"{point} {nth}: {one}" for one in found]
                print(f"{life}: {point} {nth}: {found or 'equal'}", file=sys.stderr, flush=True)
            told.append(f"{point} {nth}" + (f" ({times} times)" if times > 1 else ""))
        status, said = harness.run(workdir, data)
        ended = f"exit status {status}: {said[-300:]!r}"
        differing += [ended] if status else harness.differences(workdir, straight)
        wrong += bool(differing)
        print(f"| {life} | {', '.join(told)} | {'; '.join(differing) or 'nothing'} |", flush=True)
    seconds = time.monotonic() - start
    print(f"\n{kills} kills, {wrong} of {len(lives)} lives came out differently, {seconds:.0f} seconds")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
