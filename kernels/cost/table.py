"""The cases that `make bench-kernels` reports: what each must reach, and whom it is compared with.

Targets and recorded peers are estimated v5e cycles; the shapes are those that the cases modules state.  A recorded peer
is one that is not installed here, with the count that was once taken of it by the same means (jax 0.12, libtpu 0.0.52).
"""

import dataclasses
import importlib
import importlib.util
import pkgutil

KERNELS = "thinkfirst.kernels"
PEERS = "thinkfirst.kernels.cost.peers"
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: the case of that name in a module `cases*` of `kernels/<op>`."""

    case: str
    op: str
    target: int | float  # v5e cycles, or a ratio where `over` or `bytes_over` is set
    counts: str = ""  # the case that is counted, where it has a name of its own
    less: str = ""  # the case whose cycles are taken off: a backward pass is counted together with its forward pass
    over: str = ""  # the case whose cycles this one's are divided by
    bytes_over: str = ""  # the case whose HBM bytes this one's are divided by
    peer: str = ""  # the case of `PEERS` that is counted beside ours
    peer_less: str = ""
    recorded: tuple[tuple[str, int | float], ...] = ()
    not_built: str = ""  # why there is no kernel to count, where that was decided: its peers are counted all the same
    temp_target: int = 0  # bytes at the shape of the case `<case>_memory`, which is compiled but not counted; 0: none


ROWS = (
    Row(
        "window_fwd",
        "flash_attention",
        62_000,
        peer="splash_window_fwd",
        recorded=(("tokamax splash", 82_300),),
    ),
    Row(
        "window_fwd_bwd",
        "flash_attention",
        215_000,
        peer="splash_window_fwd_bwd",
        temp_target=20 * MIB,
    ),
    Row(
        "causal_g3_fwd",
        "flash_attention",
        105_000,
        peer="splash_causal_g3_fwd",
        recorded=(("tokamax splash", 112_900),),
    ),
    Row(
        "causal_g3_bwd",
        "flash_attention",
        245_000,
        less="causal_g3_fwd",
        peer="splash_causal_g3_fwd_bwd",
        peer_less="splash_causal_g3_fwd",
    ),
    Row(
        "causal_g2_fwd",
        "flash_attention",
        205_000,
        peer="splash_causal_g2_fwd",
        recorded=(("tokamax splash", 220_200),),
    ),
    Row(
        "causal_g2_bwd",
        "flash_attention",
        490_000,
        less="causal_g2_fwd",
        peer="splash_causal_g2_fwd_bwd",
        peer_less="splash_causal_g2_fwd",
        temp_target=20 * MIB,
    ),
    Row(
        "packed_ratio",
        "flash_attention",
        0.45,
        counts="packed_causal_fwd",
        over="causal_g3_fwd",
        recorded=(("jax splash", 1.0),),
    ),
    Row(
        "token_logprob_fwd_grad",
        "token_logprob",
        645_000,
        peer="logprob_xla_fwd_grad",
        recorded=(("XLA, fused", 821_000),),
        temp_target=45 * MIB,
    ),
    Row("token_logprob_fwd_grad_cap", "token_logprob", 660_000),
    Row("token_logprob_fwd", "token_logprob", 335_000, peer="logprob_xla_fwd"),
    Row("sample_head", "sample", 1_300_000, peer="sample_head_xla", recorded=(("XLA, by its own count", 2_740_000),)),
    Row("ring_decode", "decode_attention", 20_000, recorded=(("ragged paged attention v3", 45_800),)),
    Row("full_decode", "decode_attention", 38_000, recorded=(("ragged paged attention v3", 39_700),)),
    Row("full_decode_group", "decode_attention", 0.667, bytes_over="full_decode"),
    Row(
        "lora_fwd",
        "lora_matmul",
        590_000,
        not_built="not built: docs/kernels.md says why",
        peer="lora_xla_fwd",
        recorded=(("XLA, fused", 642_000),),
    ),
)


def chosen(names: list[str]) -> tuple[Row, ...]:
    """The rows of those names, all of them if none is named; ValueError for a name there is no row of."""
    known = {row.case: row for row in ROWS}
    for name in names:
        if name not in known:
            raise ValueError(f"no case {name!r}; there are {', '.join(known)}")
    return tuple(known[name] for name in names) if names else ROWS


def cases_of(op: str) -> dict[str, str]:
    """Case -> module, for every case that a kernel offers; LookupError where there is no such kernel yet."""
    found = {}
    if importlib.util.find_spec(f"{KERNELS}.{op}") is not None:
        package = importlib.import_module(f"{KERNELS}.{op}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if module.name.rpartition(".")[2].startswith("cases"):
                found.update(dict.fromkeys(importlib.import_module(module.name).CASES, module.name))
    if not found:
        raise LookupError(f"no kernel yet: kernels/{op} offers no cases")
    return found


def module_of(op: str, case: str) -> str:
    """The module whose CASES has the case; LookupError, in words for the table, where there is none."""
    found = cases_of(op)
    if case not in found:
        raise LookupError(f"no kernel yet: kernels/{op} offers no {case}")
    return found[case]
