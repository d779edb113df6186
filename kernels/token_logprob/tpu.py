"""The sweep on TPU: hidden states against the table like attention whose keys and values are both the table (Pallas).

Grid (token blocks, vocabulary blocks), the second walked in order.  Blocks, with t tokens and v words in each:

    inverse temperature, times log2 e   [1]        SMEM
    hidden_TD                           [t, D]     stays for a row of the grid
    table_VD                            [v, D]     streamed; read once for every block of tokens
    least_T (when words are dropped)    [t, 128]   every lane the same
    -> lse and entropy                  [t, 128]   lanes 0 and 1
    -> row_TD, tilt_TD (when asked for) [t, D]     float32, unnormalised until the last step

Carried over the vocabulary, in scratch [t, 128]: the running maximum (every lane the same), the sum of exp2 and the sum
of exp2 times distance from the maximum (a part per lane, added up in the last step); and the outputs [t, D] themselves.
Logits are in bits (exp2 costs a product less than exp).  A vocabulary block is worked through in sub-blocks, so that
one's products overlap with another's softmax.  The words beyond the end of the table in its last block are masked.
"""

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from thinkfirst.kernels import placement
from thinkfirst.kernels.token_logprob import streamed

LANES = 128
ROWS = 16  # sublanes of a bfloat16 tile
NOTHING = -1e30  # logit of a dropped word; finite, so that 0 times it is 0
LOG2_E = math.log2(math.e)
COMPILED_VMEM_BYTES = 64 * 2**20  # where there is no TPU to ask: v5e and v6e have twice that, v4 a quarter
INTERPRETED = pltpu.InterpretParams(detect_races=True)  # a CPU runs the kernel; memory not yet written is NaN


def unsupported(width: int, size: int) -> str:
    """Why a table [size, width] cannot be swept; empty if it can."""
    if width % LANES:
        return f"the width must be a multiple of {LANES}, not {width}"
    return "" if size >= LANES else f"the vocabulary must have at least {LANES} words, not {size}"


def sweep(
    hidden_TD: Float[Array, "T D"],
    table_VD: Float[Array, "V D"],
    least_T: Float[Array, "T"] | None,
    *,
    temperature: Float[Array, ""],
    soft_cap: float,
    moments: int,
    block_T: int = 512,
    block_V: int = 1024,
    vmem_bytes: int | None = None,
    interpret: Any = False,
) -> streamed.Swept:
    """`streamed.Sweep` by one Pallas call.  Blocks are halved until they fit in `vmem_bytes` (default: the chip's)."""
    reason = unsupported(hidden_TD.shape[1], table_VD.shape[0])
    if reason:
        raise ValueError(f"token_logprob on TPU: {reason}")
    length, width = hidden_TD.shape
    size = table_VD.shape[0]
    padding = -length % ROWS
    length += padding
    hidden_TD = jnp.pad(hidden_TD, ((0, padding), (0, 0)))
    if vmem_bytes is None:
        on_tpu = placement.platform() == "tpu"
        vmem_bytes = pltpu.get_tpu_info().vmem_capacity_bytes if on_tpu else COMPILED_VMEM_BYTES
    block_V = min(block_V, size // LANES * LANES)
    while _vmem(block_T, block_V, hidden_TD, table_VD, moments) > vmem_bytes and max(block_T, block_V) > LANES:
        block_T, block_V = (block_T, block_V // 2) if block_V > 2 * LANES else (block_T // 2, block_V)
    block_T = _round_up(pl.cdiv(length, pl.cdiv(length, block_T)), ROWS)
    block_V = _round_up(block_V, LANES)
    scale = (LOG2_E / temperature).astype(jnp.float32).reshape(1)
    inputs = [scale, hidden_TD, table_VD]
    in_specs = [
        pl.BlockSpec(memory_space=pltpu.SMEM),
        pl.BlockSpec((block_T, width), lambda i, j: (i, 0)),
        pl.BlockSpec((block_V, width), lambda i, j: (j, 0)),
    ]
    per_token = pl.BlockSpec((block_T, LANES), lambda i, j: (i, 0))
    if least_T is not None:
        least_T = jnp.pad(least_T * LOG2_E, (0, padding))
        inputs.append(jnp.broadcast_to(least_T[:, None], (length, LANES)))
        in_specs.append(per_token)
    outputs = pl.pallas_call(
        functools.partial(
            _kernel,
            soft_cap=soft_cap,
            moments=moments,
            dropping=least_T is not None,
            sub_block=block_V // 2 if block_V % (2 * LANES) == 0 else block_V,
            rest=size % block_V,
        ),
        grid=(pl.cdiv(length, block_T), pl.cdiv(size, block_V)),
        in_specs=in_specs,
        out_specs=[per_token] + [pl.BlockSpec((block_T, width), lambda i, j: (i, 0))] * moments,
        out_shape=[jax.ShapeDtypeStruct((length, LANES), jnp.float32)]
        + [jax.ShapeDtypeStruct((length, width), jnp.float32)] * moments,
        scratch_shapes=[pltpu.VMEM((block_T, LANES), jnp.float32)] * 3,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem_bytes
        ),
        interpret=interpret,
        name=("token_logprob_forward", "token_logprob", "token_logprob_tilt")[moments],
    )(*inputs)
    outputs = [output[: length - padding] for output in outputs]
    row_TD, tilt_TD = (*outputs[1:], None, None)[:2]
    return streamed.Swept(outputs[0][:, 0], outputs[0][:, 1], row_TD, tilt_TD)


def _kernel(
    scale_ref: Any,
    hidden_ref: Any,
    table_ref: Any,
    *refs: Any,
    soft_cap: float,
    moments: int,
    dropping: bool,
    sub_block: int,
    rest: int,
) -> None:
    least_ref = refs[0] if dropping else None
    token_ref, *moment_refs = refs[dropping : dropping + 1 + moments]
    carried = *refs[dropping + 1 + moments :], *moment_refs  # peak, total, lean, then the moments
    step, last = pl.program_id(1), pl.num_programs(1) - 1

    @pl.when(step == 0)
    def start() -> None:
        carried[0][...] = jnp.full_like(carried[0], NOTHING / 2)
        for ref in carried[1:]:
            ref[...] = jnp.zeros_like(ref)

    absorb = functools.partial(_absorb, scale_ref[0], hidden_ref, table_ref, least_ref, carried, soft_cap=soft_cap)

    def whole_block() -> None:
        for begin in range(0, table_ref.shape[0], sub_block):
            absorb(begin, sub_block, sub_block)

    if rest:
        pl.when(step != last)(whole_block)
        pl.when(step == last)(lambda: absorb(0, _round_up(rest, LANES), rest))
    else:
        whole_block()

    @pl.when(step == last)
    def finish() -> None:
        _finish(token_ref, carried)


def _absorb(
    scale: Any,
    hidden_ref: Any,
    table_ref: Any,
    least_ref: Any,
    carried: tuple[Any, ...],
    begin: int,
    size: int,
    real: int,
    *,
    soft_cap: float,
) -> None:
    """Take in `size` words of the block, of which the first `real` exist."""
    peak_ref, total_ref, lean_ref, *moment_refs = carried
    precision = jax.lax.Precision.HIGHEST if hidden_ref.dtype == jnp.float32 else None
    dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32, precision=precision)
    rows_VD = table_ref[begin : begin + size, :].astype(hidden_ref.dtype)
    if real < size:
        exists_VD = jax.lax.broadcasted_iota(jnp.int32, rows_VD.shape, 0) < real
        rows_VD = jnp.where(exists_VD, rows_VD, jnp.zeros_like(rows_VD))
    bits_TV = dot(hidden_ref[...], rows_VD, (((1,), (1,)), ((), ())))
    slope_TV = None
    if soft_cap:
        tanh_TV = jnp.tanh(bits_TV * (1 / soft_cap))
        bits_TV, slope_TV = tanh_TV * (soft_cap * scale), 1 - tanh_TV * tanh_TV
    else:
        bits_TV = bits_TV * scale
    if least_ref is not None:
        bits_TV = jnp.where(bits_TV >= _across(least_ref[...], size), bits_TV, NOTHING)
    if real < size:
        bits_TV = jnp.where(jax.lax.broadcasted_iota(jnp.int32, bits_TV.shape, 1) < real, bits_TV, NOTHING)

    peak, total = peak_ref[...], total_ref[...]
    highest = jnp.max(_fold(jnp.maximum, bits_TV), axis=1, keepdims=True)
    new_peak = jnp.maximum(peak, highest)
    rise = peak - new_peak
    fade = jnp.exp2(rise)
    below_TV = bits_TV - _across(new_peak, size)
    weight_TV = jnp.exp2(below_TV)
    lean_TV = weight_TV * below_TV
    peak_ref[...] = new_peak
    total_ref[...] = fade * total + _fold(operator.add, weight_TV)
    lean_ref[...] = fade * (lean_ref[...] + rise * total) + _fold(operator.add, lean_TV)
    if not moment_refs:
        return
    row_ref, *tilt_refs = moment_refs
    fade_TD = _across(fade, row_ref.shape[1])
    for tilt_ref in tilt_refs:
        lean_TV = lean_TV if slope_TV is None else lean_TV * slope_TV
        pulled = dot(lean_TV.astype(rows_VD.dtype), rows_VD, (((1,), (0,)), ((), ())))
        risen = tilt_ref[...] + _across(rise, row_ref.shape[1]) * row_ref[...]
        tilt_ref[...] = fade_TD * risen + pulled
    weight_TV = weight_TV if slope_TV is None else weight_TV * slope_TV
    row_ref[...] = fade_TD * row_ref[...] + dot(weight_TV.astype(rows_VD.dtype), rows_VD, (((1,), (0,)), ((), ())))


def _finish(token_ref: Any, carried: tuple[Any, ...]) -> None:
    """Add up the lanes, normalise, and turn bits into nats.  A row of which nothing is kept gets lse -inf, else 0."""
    peak_ref, total_ref, lean_ref, *moment_refs = carried
    total = jnp.broadcast_to(jnp.sum(total_ref[...], axis=1, keepdims=True), token_ref.shape)
    lean = jnp.broadcast_to(jnp.sum(lean_ref[...], axis=1, keepdims=True), token_ref.shape)
    inverse = jnp.where(total > 0, 1 / total, 0.0)
    log_total = jnp.log2(total)
    mean = lean * inverse  # of the distance from the maximum
    entropy = jnp.where(total > 0, log_total - mean, 0.0)
    lane = jax.lax.broadcasted_iota(jnp.int32, token_ref.shape, 1)
    token_ref[...] = jnp.where(lane == 0, peak_ref[...] + log_total, entropy) * (1 / LOG2_E)
    if not moment_refs:
        return
    row_ref, *tilt_refs = moment_refs
    row_ref[...] = row_ref[...] * _across(inverse, row_ref.shape[1])
    for tilt_ref in tilt_refs:
        tilt = tilt_ref[...] * _across(inverse, row_ref.shape[1]) - _across(mean, row_ref.shape[1]) * row_ref[...]
        tilt_ref[...] = tilt * (1 / LOG2_E)


def _vmem(block_T: int, block_V: int, hidden_TD: jax.Array, table_VD: jax.Array, moments: int) -> int:
    """Bytes of VMEM that a step takes, about: streamed blocks are there twice, and a sub-block's softmax is large."""
    width = hidden_TD.shape[1]
    hidden = 2 * block_T * width * hidden_TD.dtype.itemsize
    table = block_V * width * (2 * table_VD.dtype.itemsize + hidden_TD.dtype.itemsize)
    sums = (3 * moments) * block_T * width * 4
    return hidden + table + sums + block_T * (7 * LANES + 3 * block_V) * 4


def _across(lanes: jax.Array, width: int) -> jax.Array:
    return jnp.tile(lanes, (1, width // LANES))


def _fold(combine: Any, x: jax.Array) -> jax.Array:
    """[t, n * 128] -> [t, 128]."""
    return functools.reduce(combine, [x[:, begin : begin + LANES] for begin in range(0, x.shape[1], LANES)])


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
