"""The cases that `make bench-kernels` reports: what each must reach, and whom it is compared with.

Targets and recorded peers are estimated v5e cycles for the shapes that the cases modules state; a recorded peer is one
that is not installed here, with the count that was taken of it once.
"""

import dataclasses

ATTENTION = "thinkfirst.kernels.flash_attention.cases"
LOGPROB = "thinkfirst.kernels.token_logprob.cases"
DECODE = "thinkfirst.kernels.decode_attention.cases"
SAMPLE = "thinkfirst.kernels.sample.cases"
LORA = "thinkfirst.kernels.lora_linear.cases"
PEERS = "thinkfirst.kernels.cost.peers"
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.  `module.CASES[case]` is what is counted."""

    case: str
    module: str
    target: float  # v5e cycles, or a ratio where `over` is set; 0: none was set
    over: str = ""  # the case whose cycles this one's are divided by
    peer: str = ""  # a case of `PEERS`, counted beside ours
    recorded: tuple[tuple[str, int], ...] = ()  # peers that are not installed here
    memory_case: str = ""  # the case, of a larger shape, whose temporary memory is reported
    temp_target: int = 0  # bytes; 0: none was set


ROWS = (
    Row(
        "window_fwd",
        ATTENTION,
        62_000,
        peer="splash_window_fwd",
        recorded=(("tokamax splash 512/512/256", 82_300),),
    ),
    Row(
        "window_fwd_bwd",
        ATTENTION,
        215_000,
        peer="splash_window_fwd_bwd",
        memory_case="window_fwd_bwd_memory",
        temp_target=20 * MIB,
    ),
    Row(
        "causal_g3_fwd",
        ATTENTION,
        105_000,
        peer="splash_causal_g3_fwd",
        recorded=(("tokamax splash 512/512/256", 112_900),),
    ),
    Row("causal_g3_bwd", ATTENTION, 245_000, peer="splash_causal_g3_bwd"),
    Row(
        "causal_g2_fwd",
        ATTENTION,
        205_000,
        peer="splash_causal_g2_fwd",
        recorded=(("tokamax splash 512/512/256", 220_200),),
    ),
    Row(
        "causal_g2_bwd",
        ATTENTION,
        490_000,
        peer="splash_causal_g2_bwd",
        memory_case="causal_g2_bwd_memory",
        temp_target=20 * MIB,
    ),
    Row("packed_ratio", ATTENTION, 0.45, over="causal_g3_fwd", recorded=(("jax splash, ratio", 1),)),
    Row(
        "token_logprob_fwd_grad",
        LOGPROB,
        645_000,
        peer="logprob_xla_fwd_grad",
        memory_case="token_logprob_fwd_grad_memory",
        temp_target=45 * MIB,
    ),
    Row("token_logprob_fwd", LOGPROB, 335_000, peer="logprob_xla_fwd"),
    Row("sample_head", SAMPLE, 1_300_000, peer="sample_head_xla"),
    Row("ring_decode", DECODE, 20_000, recorded=(("ragged paged attention v3", 45_800),)),
    Row("full_decode", DECODE, 38_000, recorded=(("ragged paged attention v3", 39_700),)),
    Row("lora_fwd", LORA, 585_000, peer="lora_xla_fwd"),
)


def chosen(names: list[str]) -> tuple[Row, ...]:
    """The rows of those names, all of them if none is named; ValueError for a name there is no row of."""
    known = {row.case: row for row in ROWS}
    for name in names:
        if name not in known:
            raise ValueError(f"no case {name!r}; there are {', '.join(known)}")
    return tuple(known[name] for name in names) if names else ROWS
