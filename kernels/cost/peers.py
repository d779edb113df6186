"""Programs that our kernels are counted against: JAX's own splash attention, and plain XLA.

Splash attention is given 512-token blocks and its fused backward kernel, and its operands in the layout it wants: what
it costs to bring them there is not counted.  Where XLA would fuse a computed operand into a product, which this
profiler cannot price, a barrier keeps the two apart.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jaxtyping import Array, Float, Int

from thinkfirst.kernels.cost import known_tables

LENGTH, WIDTH, BLOCK = 2048, 256, 512
Case = tuple[Callable, tuple]


def _splash(heads: int, groups: int, *, window: int, soft_cap: float) -> Any:
    """Splash attention of one row."""
    shape = (LENGTH, LENGTH)
    mask = splash_mask.LocalMask(shape, (window - 1, 0), 0) if window else splash_mask.CausalMask(shape)
    blocks = splash.BlockSizes(
        block_q=BLOCK,
        block_kv=BLOCK,
        block_kv_compute=BLOCK,
        block_q_dkv=BLOCK,
        block_kv_dkv=BLOCK,
        block_kv_dkv_compute=BLOCK,
        use_fused_bwd_kernel=True,
    )
    make = splash.make_splash_mqa_single_device if groups == 1 else splash.make_splash_mha_single_device
    masks = splash_mask.MultiHeadMask([mask] * heads)
    return make(masks, block_sizes=blocks, attn_logits_soft_cap=soft_cap or None)


@contextlib.contextmanager
def _countable(kernel: Any) -> Iterator[None]:
    """Within it, the kernel is traced so that the counter knows its mask."""

    def tables(name: str) -> list:
        info = kernel.fwd_mask_info if "_fwd_" in name else kernel.dkv_mask_info
        return [info.data_next, info.block_mask, info.mask_next]

    with known_tables.known(splash, tables):
        yield


def _splash_operands(heads: int, groups: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    query = jax.ShapeDtypeStruct((heads, LENGTH, WIDTH), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((LENGTH, WIDTH) if groups == 1 else (groups, LENGTH, WIDTH), jnp.bfloat16)
    return query, key, key, jax.ShapeDtypeStruct((LENGTH,), jnp.int32)


def splash_forward(heads: int, groups: int, *, window: int = 0, soft_cap: float = 0.0) -> Case:
    """Attention alone."""
    kernel = _splash(heads, groups, window=window, soft_cap=soft_cap)

    def attend(query: Array, key: Array, value: Array, segment: Array) -> Array:
        with _countable(kernel):
            return kernel(query, key, value, segment_ids=splash.SegmentIds(segment, segment))

    return attend, _splash_operands(heads, groups)


def splash_both(heads: int, groups: int, *, window: int = 0, soft_cap: float = 0.0, rows: int = 0) -> Case:
    """Attention and the gradients of query, key and value, of one row or of several."""
    kernel = _splash(heads, groups, window=window, soft_cap=soft_cap)

    def both(operands: tuple[Array, ...], segment: Array, upstream: Array) -> tuple[Array, ...]:
        ids = splash.SegmentIds(segment, segment)
        with _countable(kernel):
            context, pull = jax.vjp(lambda *qkv: kernel(*qkv, segment_ids=ids), *operands)
            return context, *pull(upstream)

    *qkv, segment = _splash_operands(heads, groups)
    operands = (tuple(qkv), segment, qkv[0])
    if rows:
        return jax.vmap(both), jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype), operands)
    return both, operands


def _logprob(hidden_TD: Float[Array, "T D"], table_VD: Float[Array, "V D"], token_T: Int[Array, "T"]) -> Array:
    logit_TV = jnp.einsum("TD,VD->TV", hidden_TD, table_VD, preferred_element_type=jnp.float32)
    token_logit_T = jnp.take_along_axis(logit_TV, token_T[:, None], axis=1)[:, 0]
    return token_logit_T - jax.nn.logsumexp(logit_TV, axis=1)


def _logprob_grad(
    hidden_TD: Float[Array, "T D"],
    table_VD: Float[Array, "V D"],
    token_T: Int[Array, "T"],
    upstream_T: Float[Array, "T"],
) -> tuple[Array, Array]:
    logit_TV = jnp.einsum("TD,VD->TV", hidden_TD, table_VD, preferred_element_type=jnp.float32)
    token_logit_T = jnp.take_along_axis(logit_TV, token_T[:, None], axis=1)[:, 0]
    lse_T = jax.nn.logsumexp(logit_TV, axis=1)
    is_token_TV = (jnp.arange(table_VD.shape[0]) == token_T[:, None]).astype(jnp.float32)
    pull_TV = (is_token_TV - jnp.exp(logit_TV - lse_T[:, None])) * upstream_T[:, None]
    pull_TV = jax.lax.optimization_barrier(pull_TV.astype(hidden_TD.dtype))
    return token_logit_T - lse_T, jnp.einsum("TV,VD->TD", pull_TV, table_VD)


def _logprob_grad_fused(
    hidden_TD: Float[Array, "T D"],
    table_VD: Float[Array, "V D"],
    token_T: Int[Array, "T"],
    upstream_T: Float[Array, "T"],
) -> tuple[Array, Array]:
    logp_T, pull = jax.vjp(lambda hidden_TD: _logprob(hidden_TD, table_VD, token_T), hidden_TD)
    return logp_T, pull(upstream_T)[0]


def logprob(tokens: int, vocabulary: int, *, width: int = 1152) -> Case:
    """Log-probs, without entropy, through logits that are written out."""
    operands = (
        jax.ShapeDtypeStruct((tokens, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((vocabulary, width), jnp.bfloat16),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    )
    return _logprob, operands


def logprob_grad(function: Callable, tokens: int, vocabulary: int) -> Case:
    """The same and the gradient to the hidden states."""
    return function, (*logprob(tokens, vocabulary)[1], jax.ShapeDtypeStruct((tokens,), jnp.float32))


def _sample(hidden_BD: Float[Array, "B D"], table_VD: Float[Array, "V D"], key: Array) -> tuple[Array, ...]:
    logit_BV = jnp.einsum("BD,VD->BV", hidden_BD, table_VD, preferred_element_type=jnp.float32)
    noise_BV = jax.random.gumbel(jax.random.wrap_key_data(key), logit_BV.shape)
    token_B = jnp.argmax(logit_BV + noise_BV, axis=1)
    logp_BV = jax.nn.log_softmax(logit_BV, axis=1)
    entropy_B = -(jnp.exp(logp_BV) * logp_BV).sum(axis=1)
    return token_B, jnp.take_along_axis(logp_BV, token_B[:, None], axis=1)[:, 0], entropy_B


def sample_head() -> Case:
    """Token, log-prob and entropy of 64 rows from logits that are written out."""
    operands = (
        jax.ShapeDtypeStruct((64, 1152), jnp.bfloat16),
        jax.ShapeDtypeStruct((262_144, 1152), jnp.bfloat16),
        jax.ShapeDtypeStruct((2,), jnp.uint32),
    )
    return _sample, operands


def _lora(x_TD: Array, weight_DF: Array, a_DR: Array, b_RF: Array) -> Array:
    low_TR = jax.lax.optimization_barrier(jnp.einsum("TD,DR->TR", x_TD, a_DR))
    return jnp.einsum("TD,DF->TF", x_TD, weight_DF) + jnp.einsum("TR,RF->TF", low_TR, b_RF)


def lora(tokens: int = 4096, width: int = 1152, out: int = 6912, rank: int = 16) -> Case:
    """A projection with a low-rank part, as three products."""
    shapes = ((tokens, width), (width, out), (width, rank), (rank, out))
    return _lora, tuple(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)


GEMMA_3_1B = (4, 1)
GEMMA_2_2B = (8, 4)

CASES: dict[str, Callable[[], Case]] = {
    "splash_window_fwd": lambda: splash_forward(*GEMMA_3_1B, window=512),
    "splash_window_fwd_bwd": lambda: splash_both(*GEMMA_3_1B, window=512),
    "splash_window_fwd_bwd_memory": lambda: splash_both(*GEMMA_3_1B, window=512, rows=8),
    "splash_causal_g3_fwd": lambda: splash_forward(*GEMMA_3_1B),
    "splash_causal_g3_fwd_bwd": lambda: splash_both(*GEMMA_3_1B),
    "splash_causal_g2_fwd": lambda: splash_forward(*GEMMA_2_2B, soft_cap=50.0),
    "splash_causal_g2_fwd_bwd": lambda: splash_both(*GEMMA_2_2B, soft_cap=50.0),
    "splash_causal_g2_fwd_bwd_memory": lambda: splash_both(*GEMMA_2_2B, soft_cap=50.0, rows=8),
    "logprob_xla_fwd": lambda: logprob(1024, 16_384),
    "logprob_xla_fwd_grad": lambda: logprob_grad(_logprob_grad, 1024, 16_384),
    "logprob_xla_fwd_grad_memory": lambda: logprob_grad(_logprob_grad_fused, 8192, 262_144),
    "sample_head_xla": sample_head,
    "lora_xla_fwd": lora,
}
