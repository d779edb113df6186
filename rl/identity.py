"""What a run is made of besides its settings, and which settings a run may be gone on with after they changed.

A run belongs to its data, tokenizer and base.  They are looked at, not their names: a file that was replaced is told
from the one the run began with, and a moved folder with the same weights would be the same base.
"""

import re
from collections.abc import Mapping
from typing import Any

from thinkfirst.core import digest, hosts
from thinkfirst.rl import policy
from thinkfirst.rl.data import source

PROBE = "What is <start_of_turn> 12 + 30?\n"

# These change where and how fast a run computes, what it keeps and what it says: not what it draws and learns, but for
# the last bits of floats on another mesh.  Everything else is another run.
FREE = re.compile(
    r"mesh\.(data|fsdp|tensor)|cpu_devices|keep\.(last|best|every)|notes(\.\d+)?"
    r"|stages\.\d+\.(save_every|max_bad_steps|user_reward_seconds)"
)


def of(subject: policy.Policy, problems: source.Source | None = None) -> dict[str, str]:
    """Digests of the base's weights on the mesh, of the tokenizer with the template of its chat, and of the rows."""
    words = subject.words
    spoken = [words.digest, words.prompt(PROBE, subject.instruction), words.stop_ids] if words else []
    return {
        "base": digest.of_arrays(subject.params),
        "tokenizer": digest.of_rows([spoken, list(subject.stop_ids)]),
        **({"data": problems.fingerprint()} if problems else {}),
    }


def check(then: Mapping[str, Any], now: Mapping[str, str], where: str) -> None:
    """ValueError names what is no longer what it was."""
    if changed := [f"{name} {then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name]]:
        what = "; ".join(changed)
        raise ValueError(f"{where}: made with another {what}; put the old one back, or use another --workdir")


def allowed(changed: list[str], where: str) -> None:
    """ValueError names the settings of `config.differences` that a run cannot be gone on with; tells of the others."""
    binding = [line for line in changed if not FREE.fullmatch(line.partition(":")[0])]
    if binding:
        raise ValueError(f"{where} holds a run with other settings ({'; '.join(binding)}); use another --workdir")
    for line in changed:
        hosts.say(f"goes on with another {line}")

