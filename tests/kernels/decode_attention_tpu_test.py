"""The TPU kernel of decoding: equal to the reference in interpret mode, and accepted by the real compiler."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slices
import tolerance
from thinkfirst.kernels.decode_attention import api, cases, plans, quantised, reference, tpu

POISON = 1e4  # in every layer but the one that is used


def _stack(rng, dtype, *shape, layers=2, layer=1):
    """Random values in one layer, poison in the others."""
    values = np.full((layers, *shape), POISON, np.float32)
    values[layer] = rng.normal(size=shape)
    return jnp.asarray(values, dtype)


def _operands(dtype, *shape):
    batch, heads, kv_heads, width, slots = shape
    rng = np.random.default_rng(0)
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    new = (array(batch, kv_heads, width), array(batch, kv_heads, width))
    cache = tuple(_stack(rng, dtype, batch, slots, kv_heads, width) for _ in range(2))
    return array(batch, heads, width), new, cache, jnp.int32(1)


def _float32(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _assert_same(actual, expected, capfd):
    """Context close to the float32 reference's; caches equal bit for bit; no race printed."""
    tolerance.assert_close(actual[0], expected[0])
    for got, wanted in zip(actual[1], expected[1], strict=True):
        np.testing.assert_array_equal(_float32(got), wanted)
    assert "RACE" not in capfd.readouterr().out.upper()


def _check_ring(capfd, shape, position, dtype=jnp.float32, **settings):
    query, new, ring, layer = _operands(dtype, *shape)
    settings = {"scale": shape[3] ** -0.5, "window": 0, "soft_cap": 0.0, **settings}
    position_B = jnp.array(position)
    actual = api.append_attention(query, new, ring, layer, position_B, backend="tpu_interpret", **settings)
    expected = reference.append_attention(*_float32((query, new, ring)), layer, position_B, **settings)
    _assert_same(actual, expected, capfd)


def test_a_ring_before_and_after_it_wraps(capfd):
    """Positions at the last slot and far on; 2 query heads share a key."""
    _check_ring(capfd, (2, 2, 1, 64, 32), [31, 100], window=32, soft_cap=5.0)


@pytest.mark.long
@pytest.mark.parametrize(
    ("shape", "position", "window", "dtype"),
    [
        ((4, 4, 2, 64, 48), [0, 47, 48, 1000], 48, jnp.float32),
        ((2, 4, 1, 128, 64), [63, 127], 64, jnp.bfloat16),
        ((2, 2, 2, 64, 64), [1, 512], 7, jnp.float32),  # a window shorter than the ring
        ((3, 8, 2, 128, 32), [7, 31, 12], 512, jnp.bfloat16),  # longer
        ((1, 16, 1, 64, 16), [5], 0, jnp.float32),  # more query heads than a tile has sublanes
    ],
)
def test_rings(capfd, shape, position, window, dtype):
    _check_ring(capfd, shape, position, dtype, window=window)


@pytest.mark.long
@pytest.mark.parametrize("position", [[0, 15, 16, 40], [95, 2, 200, 95]])
def test_blocks_beyond_every_rows_length_are_skipped(capfd, position):
    """Three blocks of 32 slots, two rows a step: what a row has not reached is NaN, and never looked at."""
    query, new, ring, layer = _operands(jnp.float32, 4, 4, 1, 64, 96)
    settings = {"scale": 0.2, "window": 0, "soft_cap": 0.0}
    used = np.minimum(np.array(position), 95) // 32
    beyond = (np.arange(96) // 32)[None, :] > used[:, None]
    unread = tuple(jnp.where(beyond[None, :, :, None, None], jnp.nan, cache) for cache in ring)
    context, written = tpu.append_attention(
        query, new, unread, layer, jnp.array(position), block=32, rows=2, interpret=tpu.INTERPRET, **settings
    )
    written = tuple(
        jnp.where(beyond[None, :, :, None, None], old, cache) for old, cache in zip(ring, written, strict=True)
    )
    expected = reference.append_attention(query, new, ring, layer, jnp.array(position), **settings)
    _assert_same((context, written), expected, capfd)


def _check_grouped(capfd, shape, position, length, group, *, tokens, dtype=jnp.float32, cut=None, **settings):
    """`group`: the prompt of each row; a prompt that no row looks at is NaN.  `cut`: rows and slots read in a step."""
    query, new, own, layer = _operands(dtype, *shape)
    rng = np.random.default_rng(1)
    prompt = tuple(_stack(rng, dtype, len(length), tokens, shape[2], shape[3]) for _ in range(2))
    settings = {"length_P": jnp.array(length), "group_B": jnp.array(group), "scale": shape[3] ** -0.5, **settings}
    settings = {"window": 0, "soft_cap": 0.0, **settings}
    position_B = jnp.array(position)
    looks = {g for g, p in zip(group, position, strict=True) if p >= 0}
    unused = jnp.array([p not in looks for p in range(len(length))])[None, :, None, None, None]
    unread = tuple(jnp.where(unused, jnp.nan, cache) for cache in prompt)
    how = {"backend": "tpu_interpret"} if cut is None else {"interpret": tpu.INTERPRET, **cut}
    grouped = api.grouped if cut is None else tpu.grouped
    actual = grouped(query, new, own, layer, position_B, prompt=unread, **settings, **how)
    expected = reference.grouped(*_float32((query, new, own)), layer, position_B, prompt=_float32(prompt), **settings)
    _assert_same(actual, expected, capfd)


def test_rows_of_two_prompts_in_any_order(capfd):
    """Prompts of 1 and 32 tokens, one between them that no row looks at, and an idle row that looks at the last."""
    shape = (5, 4, 2, 64, 32)
    _check_grouped(capfd, shape, [0, 5, 20, 31, -1], [1, 9, 32, 7], [2, 0, 2, 0, 3], tokens=32, soft_cap=5.0)


SCATTERED = [3, 1, 3, 3, 0, 1, 3, 3, 3, 1, 3, 3]  # runs of 1, 3, 0 and 8 rows


@pytest.mark.long
@pytest.mark.parametrize("group", [[0] * 4 + [1] * 4 + [2] * 4, [1] * 12, SCATTERED, list(range(12))])
def test_runs_of_any_length_and_prompts_in_blocks(capfd, monkeypatch, group):
    """Four rows at a time, own caches of two blocks; prompts of three blocks, of which one, none and three are used."""
    monkeypatch.setattr(plans, "PROMPT_ROWS", 4)
    monkeypatch.setattr(plans, "PROMPT_BLOCK", 32)
    cut = {"block": 32, "rows": 4}
    shape, position = (12, 4, 1, 64, 64), [0, 5, 20, 31, 1, 2, 63, 64, 130, 15, 16, 17]
    _check_grouped(capfd, shape, position, [20, 0, 96, 33, *range(8)], group, tokens=96, cut=cut)


@pytest.mark.long
def test_a_window_over_prompt_and_own_tokens(capfd):
    """A ring of 32 slots: rows whose window holds all of the prompt, a part, one token and none of it."""
    shape, position = (6, 4, 1, 64, 32), [0, 4, 30, 31, 32, 100]
    _check_grouped(capfd, shape, position, [48, 20, 48], [0, 0, 0, 1, 2, 1], tokens=48, window=32)


@pytest.mark.long
def test_a_group_of_three_in_bfloat16(capfd):
    _check_grouped(capfd, (3, 4, 1, 128, 64), [0, 63, 40], [33], [0, 0, 0], tokens=48, dtype=jnp.bfloat16)


def _check_reference(group, position, window):
    """The reference against the attention of a cache that holds prompt and own tokens of one row."""
    tokens, lengths = 5, [5, 3]
    query, new, own, layer = _operands(jnp.float32, 4, 4, 2, 8, 6)
    rng = np.random.default_rng(2)
    prompt = tuple(_stack(rng, jnp.float32, 2, tokens, 2, 8) for _ in range(2))
    shared = {"scale": 0.3, "soft_cap": 4.0, "window": window}
    settings = {"prompt": prompt, "length_P": jnp.array(lengths), "group_B": jnp.array(group), **shared}
    context, written = api.grouped(query, new, own, layer, jnp.array(position), **settings)
    for b, (prompt_of, at) in enumerate(zip(group, position, strict=True)):
        length = lengths[prompt_of]
        whole = tuple(
            jnp.concatenate([p[:, prompt_of, None, :length], o[:, b, None]], axis=2)
            for p, o in zip(prompt, own, strict=True)
        )
        one = tuple(x[b : b + 1] for x in new)
        expected, rings = api.append_attention(query[b : b + 1], one, whole, layer, jnp.array([length + at]), **shared)
        tolerance.assert_close(context[b], expected[0])
        np.testing.assert_array_equal(written[0][:, b], rings[0][:, 0, length:])


@pytest.mark.parametrize(("group", "window"), [([0, 0, 1, 1], 0), ([1, 0, 0, 1], 0), ([1, 0, 0, 1], 4)])
def test_the_reference_of_a_group_is_attention_over_one_long_cache(group, window):
    _check_reference(group, [0, 3, 5, 1], window)


def _coded(stacks):
    return tuple(quantised.quantised(stack) for stack in stacks)


def _check_coded(capfd, shape, position, length, group, *, tokens, **settings):
    """8-bit own caches and prompts: the kernel's context close to the reference's, integers and scales equal."""
    query, new, own, layer = _operands(jnp.float32, *shape)
    rng = np.random.default_rng(1)
    prompt = _coded(_stack(rng, jnp.float32, len(length), tokens, shape[2], shape[3]) for _ in range(2))
    settings = {"prompt": prompt, "length_P": jnp.array(length), "group_B": jnp.array(group), **settings}
    operands = (query, new, _coded(own), layer, jnp.array(position))
    actual = api.grouped(*operands, scale=0.125, backend="tpu_interpret", **settings)
    expected = api.grouped(*operands, scale=0.125, backend="reference", **settings)
    tolerance.assert_close(actual[0], expected[0])
    for got, wanted in zip(jax.tree.leaves(actual[1]), jax.tree.leaves(expected[1]), strict=True):
        tolerance.assert_close(got, wanted)
    assert "RACE" not in capfd.readouterr().out.upper()


@pytest.mark.long
def test_eight_bit_caches(capfd):
    """Two key/value heads, two blocks of own slots, two of which a row has not come to; rows of two prompts mixed."""
    position = [0, 127, 128, 255]
    _check_coded(capfd, (4, 4, 2, 64, 256), position, [3, 128], [1, 0, 1, 1], tokens=128, soft_cap=5.0)


def test_idle_rows_are_finite_and_write_slot_0_of_their_own():
    query, new, own, layer = _operands(jnp.float32, 2, 4, 2, 64, 32)
    settings = {"prompt": own, "length_P": jnp.array([3, 4]), "group_B": jnp.array([0, 1]), "scale": 1.0}
    context, written = api.grouped(query, new, own, layer, jnp.array([-1, -1]), **settings)
    tolerance.assert_close(context, jnp.repeat(new[1], 2, axis=1))
    for before, after, token in zip(own, written, new, strict=True):
        np.testing.assert_array_equal(after, before.at[1, :, 0].set(token))


def test_bytes_of_a_shared_prompt():
    """16 x 1,024 slots against 2 x 512 + 16 x 512."""
    assert cases.BYTES["full_decode"] >= 1.5 * cases.BYTES["full_decode_group"]


def test_what_the_kernel_cannot_do_is_refused_by_name():
    query, new, ring, layer = _operands(jnp.float32, 2, 4, 2, 64, 20)
    ask = lambda backend: api.append_attention(  # noqa: E731
        query, new, ring, layer, jnp.array([3, 4]), scale=1.0, backend=backend
    )
    with pytest.raises(ValueError, match="20 slots"):
        ask("tpu_interpret")
    context, _ = ask("auto")
    np.testing.assert_array_equal(context, ask("reference")[0])
    query, new, ring, layer = _operands(jnp.float32, 2, 4, 2, 64, 32)
    with pytest.raises(ValueError, match="needs a TPU"):
        ask("tpu")


# The real compiler, with no TPU.


@pytest.fixture(params=["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def chip(request):
    """Puts shapes on a compile-only device."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: nothing is compiled for a TPU")
    layout = slices.single(request.param)
    return lambda tree: slices.on(tree, layout)


def _compiled(function, operands):
    return jax.jit(function, donate_argnums=2).lower(*operands).compile()


@pytest.mark.long
@pytest.mark.parametrize("chip", ["v5e:2x2"], indirect=True)
@pytest.mark.parametrize("name", cases.CASES)
def test_the_cases_compile(chip, name):
    function, operands = cases.CASES[name]()
    assert _compiled(function, chip(operands)).memory_analysis().temp_size_in_bytes < 2**20


def _cache(coded, *shape):
    if coded:
        return quantised.Quantised(
            jax.ShapeDtypeStruct((*shape, 256), jnp.int8), jax.ShapeDtypeStruct(shape, jnp.float32)
        )
    return jax.ShapeDtypeStruct((*shape, 256), jnp.bfloat16)


@pytest.mark.long
@pytest.mark.parametrize(("heads", "kv_heads", "soft_cap"), [(4, 1, 0.0), (8, 4, 50.0)])
def test_128_slots_of_1280_tokens_compile(chip, heads, kv_heads, soft_cap):
    """Gemma 3 1B and Gemma 2 2B: prompts of 256, own tokens up to 1,024; then a ring of 512, all lengths as data."""
    compile_slots(chip, heads, kv_heads, soft_cap, coded=False)


@pytest.mark.long
@pytest.mark.parametrize("chip", ["v5e:2x2"], indirect=True)
@pytest.mark.parametrize(("heads", "kv_heads", "soft_cap"), [(4, 1, 0.0), (8, 4, 50.0)])
def test_128_slots_of_8_bits_compile(chip, heads, kv_heads, soft_cap):
    compile_slots(chip, heads, kv_heads, soft_cap, coded=True)


def compile_slots(chip, heads, kv_heads, soft_cap, *, coded):
    own, ring, prompt = (
        (_cache(coded, 2, rows, slots, kv_heads),) * 2 for rows, slots in ((128, 1024), (128, 512), (16, 256))
    )
    new = jax.ShapeDtypeStruct((128, kv_heads, 256), jnp.bfloat16)
    query = jax.ShapeDtypeStruct((128, heads, 256), jnp.bfloat16)
    number = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731

    def both(query, new, caches, place, shared):
        (layer, position, group), (prompt, length) = place, shared
        settings = {"scale": 1 / 16, "soft_cap": soft_cap}
        groups = {"prompt": prompt, "length_P": length, "group_B": group}
        context, own = tpu.grouped(query, new, caches[0], layer, position, **groups, window=0, **settings)
        return tpu.append_attention(context, new, caches[1], layer, position, window=512, **settings), own

    operands = (query, (new, new), (own, ring), (number(), number(128), number(128)), (prompt, number(16)))
    _compiled(both, chip(operands))


@pytest.mark.long
@pytest.mark.parametrize("chip", ["v5e:2x2"], indirect=True)
def test_no_layer_is_copied_out_of_the_stack(chip):
    """Tokens in a loop, layers in a scan, caches carried: less is set aside than one layer of one cache."""
    layers, rows, slots = 3, 16, 512
    cache = jax.ShapeDtypeStruct((layers, rows, slots, 1, 256), jnp.bfloat16)
    new, query = jax.ShapeDtypeStruct((rows, 1, 256), jnp.bfloat16), jax.ShapeDtypeStruct((rows, 4, 256), jnp.bfloat16)

    def decode(query, new, ring, position):
        def layer(carry, index):
            query, ring = carry
            return tpu.append_attention(
                query, new, ring, index, position, scale=1 / 16, window=slots, soft_cap=0.0
            ), None

        step = lambda _, carry: jax.lax.scan(layer, carry, jnp.arange(layers))[0]  # noqa: E731
        return jax.lax.fori_loop(0, 8, step, (query, ring))

    operands = (query, (new, new), (cache, cache), jax.ShapeDtypeStruct((rows,), jnp.int32))
    assert _compiled(decode, chip(operands)).memory_analysis().temp_size_in_bytes < rows * slots * 256 * 2 / 2
