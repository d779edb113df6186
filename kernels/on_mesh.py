"""The kernels as a mesh runs them: every device on its rows, its heads and its part of the vocabulary.

XLA cannot partition a kernel, so that what the caller left to it of the mesh is mapped by hand here.  The rest is as in
each kernel's api.
"""

import functools
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from thinkfirst.core import mesh as mesh_lib
from thinkfirst.core import sharding
from thinkfirst.kernels import prologue as prologues
from thinkfirst.kernels.decode_attention import api as decode_attention
from thinkfirst.kernels.flash_attention import api as flash_attention
from thinkfirst.kernels.sample import api as sample_api
from thinkfirst.kernels.token_logprob import api as token_logprob_api


def attention(
    query_BTNH: Float[Array, "B T N H"],
    key_BTKH: Float[Array, "B T K H"],
    value_BTKH: Float[Array, "B T K H"],
    segment_BT: Int[Array, "B T"],
    *,
    mesh: Mesh | None,
    prologue: prologues.Prologue | None = None,
    **settings: Any,
) -> Float[Array, "B T N H"]:
    """`flash_attention.attention`, rows over the batch axes and heads over `tensor`."""

    def run(query: Any, key: Any, value: Any, segment: Any, prologue: Any) -> Any:
        return flash_attention.attention(query, key, value, segment, prologue=prologue, **settings)

    spread = jax.tree.map(lambda leaf: "H" if leaf.ndim == 1 else "BTH", prologue)
    operands = ("BTNH", "BTKH", "BTKH", "BT", spread)
    mapped = sharding.per_device(run, mesh, operands, "BTNH", whole=whole_heads(mesh, key_BTKH.shape[2]))
    return mapped(query_BTNH, key_BTKH, value_BTKH, segment_BT, prologue)


def append_attention(
    query_BNH: Float[Array, "B N H"],
    new: Any,
    ring: Any,
    layer: Int[Array, ""],
    position_B: Int[Array, "B"],
    *,
    mesh: Mesh | None,
    **settings: Any,
) -> tuple[Float[Array, "B N H"], Any]:
    """`decode_attention.append_attention`, rows over the batch axes and heads over `tensor`."""
    run = functools.partial(decode_attention.append_attention, **settings)
    pair, cache = ("BKH", "BKH"), _letters("LBSKH", ring)
    mapped = sharding.per_device(
        run, mesh, ("BNH", pair, cache, "", "B"), ("BNH", cache), whole=whole_heads(mesh, new[0].shape[1])
    )
    return mapped(query_BNH, new, ring, layer, position_B)


def grouped(
    query_BNH: Float[Array, "B N H"],
    new: Any,
    own: Any,
    layer: Int[Array, ""],
    position_B: Int[Array, "B"],
    *,
    prompt: Any,
    length_P: Int[Array, "P"],
    group_B: Int[Array, "B"],
    mesh: Mesh | None,
    **settings: Any,
) -> tuple[Float[Array, "B N H"], Any]:
    """`decode_attention.grouped`, heads over `tensor`; over the batch axes the caller maps, for `group_B` is his."""

    def run(query: Any, new: Any, own: Any, layer: Any, position: Any, *prompts: Any) -> Any:
        prompt, length, group = prompts
        return decode_attention.grouped(
            query, new, own, layer, position, prompt=prompt, length_P=length, group_B=group, **settings
        )

    pair, cache, held = ("BKH", "BKH"), _letters("LBSKH", own), _letters("LPTKH", prompt)
    mapped = sharding.per_device(
        run,
        mesh,
        ("BNH", pair, cache, "", "B", held, "P", "B"),
        ("BNH", cache),
        whole=whole_heads(mesh, new[0].shape[1]),
    )
    return mapped(query_BNH, new, own, layer, position_B, prompt, length_P, group_B)


def token_logprob(
    hidden_BTD: Float[Array, "B T D"],
    table_VD: Float[Array, "V D"],
    token_BT: Int[Array, "B T"],
    floor_BT: Float[Array, "B T"],
    *,
    temperature: Float[Array, ""],
    mesh: Mesh | None,
    **settings: Any,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """`token_logprob.token_logprob`, rows over the batch axes and the vocabulary over `tensor`."""

    def run(hidden: Any, table: Any, token: Any, floor: Any, temperature: Any) -> Any:
        return token_logprob_api.token_logprob(
            hidden, table, token, floor, temperature=temperature, axis_name=_vocabulary_axis(mesh), **settings
        )

    mapped = sharding.per_device(run, mesh, ("BTD", "VD", "BT", "BT", ""), ("BT", "BT"))
    return mapped(hidden_BTD, table_VD, token_BT, floor_BT, temperature)


def sample(
    hidden_BD: Float[Array, "B D"],
    table_VD: Float[Array, "V D"],
    key_B: Key[Array, "B"],
    limits: dict[str, jax.Array],
    *,
    mesh: Mesh | None,
    **settings: Any,
) -> tuple[Int[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    """`sample.sample`, its temperature, top_k, ... in `limits`: rows over the batch axes, vocabulary over `tensor`."""

    def run(hidden: Any, table: Any, key: Any, limits: Any) -> Any:
        return sample_api.sample(hidden, table, key, **limits, axis_name=_vocabulary_axis(mesh), **settings)

    mapped = sharding.per_device(run, mesh, ("BD", "VD", "B", dict.fromkeys(limits, "")), ("B", "B", "B"))
    return mapped(hidden_BD, table_VD, key_B, limits)


def _letters(letters: str, cache: Any) -> Any:
    """The letters of each array of a cache; a scale for each head has all but the last."""
    return jax.tree.map(lambda leaf: letters[: leaf.ndim], cache)


def _vocabulary_axis(mesh: Mesh | None) -> str | None:
    """The axis that shares of the vocabulary are spread over, if there is more than one."""
    return mesh_lib.TENSOR_AXIS if mesh is not None and mesh.shape[mesh_lib.TENSOR_AXIS] > 1 else None


def whole_heads(mesh: Mesh | None, kv_heads: int) -> str:
    """Letters of the heads that every device of a tensor group keeps: a single key/value head, or an uneven number.

    With an uneven number of several, a device's query heads would not be those of its key/value heads.
    """
    if mesh is None or kv_heads % mesh.shape[mesh_lib.TENSOR_AXIS] == 0:
        return ""
    return "K" if kv_heads == 1 else "NK"
