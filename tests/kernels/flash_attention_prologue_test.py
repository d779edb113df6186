"""Norm and rotation inside the attention kernels, interpreted: equal to the float32 reference after `prologue.both`.

Scratch and results start as NaN, and no read may overtake a write.  Heads are 256 wide, as the kernels ask for.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

import slices
import tolerance
from thinkfirst.kernels import prologue as prologues
from thinkfirst.kernels.flash_attention import api, cases_causal, cases_window, causal, causal_plan, reference, window

STRICT = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise")
KERNELS = {"window": window.attention, "causal": causal.attention}
TINY = 1e-5  # for gradients that are zero
# Of context and gradients, largest difference by largest value; in bfloat16 the operands of every product are rounded,
# which leaves 3e-3 to 7e-3.
PART = {"float32": 1e-5, "bfloat16": 1.5e-2}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks in a short text."""
    monkeypatch.setattr(causal_plan, "BLOCKS", (128,))


def drawn(length, heads, groups, *, width=256, batch=1, dtype="float32"):
    """Query, key, value, the two norm scales, and an upstream gradient."""
    rng = np.random.default_rng(length)
    shapes = [(batch, length, n, width) for n in (heads, groups, groups)] + [(width,)] * 2
    shapes.append((batch, length, heads, width))
    return [jnp.asarray(rng.normal(size=shape) * (0.3 if shape == (width,) else 1.0), dtype) for shape in shapes]


def packed(*lengths):
    """Segment ids of texts in a row, and positions that start anew with each."""
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return jnp.asarray(ids)[None], jnp.asarray(np.concatenate([np.arange(n) for n in lengths]))[None]


def both_ways(attend, arrays, place, *, normed, interpret=STRICT, **settings):
    """Context and gradients of query, key, value and scales: by the kernel, and by the reference in float32."""
    segment_BT, position_BT = place
    *inputs, upstream = arrays
    inputs = inputs if normed else inputs[:3]
    sin, cos = prologues.turns(position_BT, upstream.shape[-1], base=1e4, factor=2.0)

    def made(scales):
        return prologues.Prologue(*(scales or (None, None)), sin, cos, 1e-6)

    def kernel(query, key, value, *scales):
        return attend(query, key, value, segment_BT, prologue=made(scales), interpret=interpret, **settings)

    def exact(query, key, value, *scales):
        query, key = prologues.both(made(scales), query, key)
        return reference.attention(query, key, value, segment_BT, **settings)

    def all_of(function, inputs, upstream):
        context, pull = jax.vjp(function, *inputs)
        return context, *pull(upstream)

    quickly = jax.jit(functools.partial(all_of, kernel), compiler_options={"xla_backend_optimization_level": 0})
    precise = [x.astype(jnp.float32) for x in (*inputs, upstream)]
    return quickly(inputs, upstream), all_of(exact, precise[:-1], precise[-1])


def check(kind, arrays, place, capfd, *, normed=True, window=0, soft_cap=0.0):
    settings = {"scale": 0.06, "window": window, "soft_cap": soft_cap}
    found, expected = both_ways(KERNELS[kind], arrays, place, normed=normed, **settings)
    for one, exact in zip(found, expected, strict=True):
        assert one.dtype == arrays[0].dtype
        gap, largest = (float(jnp.abs(x).max()) for x in (one.astype(jnp.float32) - exact, exact))
        assert gap <= PART[one.dtype.name] * largest + TINY
    assert "race" not in "".join(capfd.readouterr()).lower()


@pytest.mark.parametrize("kind", ["window", "causal"])
def test_a_text_shorter_than_a_tile(kind, capfd):
    check(kind, drawn(63, 2, 1), packed(40, 23), capfd, window=30)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["window", "causal"])
@pytest.mark.parametrize(
    ("lengths", "heads", "groups", "span", "soft_cap", "normed"),
    [
        ((1,), 1, 1, 0, 0.0, True),
        ((300, 213), 2, 1, 200, 0.0, True),
        ((100, 1, 299), 2, 2, 130, 5.0, False),
        ((640,), 2, 1, 256, 0.0, True),
    ],
)
def test_several_blocks(*, kind, lengths, heads, groups, span, soft_cap, normed, capfd):
    arrays = drawn(sum(lengths), heads, groups)
    check(kind, arrays, packed(*lengths), capfd, normed=normed, window=span, soft_cap=soft_cap)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "span"), [("window", 384), ("causal", 0)])
def test_bfloat16(kind, span, capfd, monkeypatch):
    monkeypatch.setattr(causal_plan, "BLOCKS", (256,))
    check(kind, drawn(1000, 2, 1, dtype="bfloat16"), packed(400, 600), capfd, window=span)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["window", "causal"])
def test_rows_and_groups_do_not_mix(kind, capfd):
    """Two key/value heads in a step of the causal kernel, two rows with other texts; the second row is empty."""
    segment_BT, position_BT = packed(100, 120)
    place = jnp.concatenate([segment_BT, 0 * segment_BT]), jnp.concatenate([position_BT, 0 * position_BT])
    check(kind, drawn(220, 4, 2, batch=2), place, capfd, window=150)


@pytest.mark.long
@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize("span", [100, 0])
def test_every_backend_and_width(width, span):
    """64 wide the wrapper of a kernel applies the prologue, 256 wide the kernel."""
    query, key, value, query_scale, key_scale, _ = drawn(140, 2, 1, width=width)
    segment_BT, position_BT = packed(90, 50)
    given = prologues.Prologue(query_scale, key_scale, *prologues.turns(position_BT, width, base=1e4, factor=1.0), 1e-6)
    expected, found = (
        api.attention(query, key, value, segment_BT, scale=0.1, window=span, prologue=given, backend=backend)
        for backend in ("reference", "tpu_interpret")
    )
    tolerance.assert_close(found, expected)


def test_a_prologue_that_does_not_belong_is_refused():
    query, key, value, scale, *_ = drawn(9, 1, 1, width=16)
    segment_BT, position_BT = packed(9)
    sin, cos = prologues.turns(position_BT, 16, base=1e4, factor=1.0)
    attend = functools.partial(api.attention, query, key, value, segment_BT, scale=1.0)
    with pytest.raises(ValueError, match="queries and keys or neither"):
        attend(prologue=prologues.Prologue(scale, None, sin, cos, 1e-6))
    with pytest.raises(ValueError, match=r"\(1, 8, 8\) do not turn queries of \(1, 9, 1, 16\)"):
        attend(prologue=prologues.Prologue(scale, scale, sin[:, 1:], cos, 1e-6))


TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x4", "v5p": "v5p:2x2x1", "v6e": "v6e:2x4", "7x": "tpu7x:2x2x1"}


def compiled(chip, function, shapes, monkeypatch):
    """The executable for a chip, with the blocks that real shapes take."""
    monkeypatch.setattr(causal_plan, "BLOCKS", (512, 256, 128))
    return slices.compiled(TOPOLOGIES[chip], function, shapes)


@pytest.mark.long
@pytest.mark.parametrize("chip", list(TOPOLOGIES))
@pytest.mark.parametrize("shape", ["window", "GEMMA_3_1B", "GEMMA_2_2B"])
def test_compiles_for_a_tpu(chip, shape, monkeypatch):
    if shape == "window":
        case = cases_window.forward_and_backward(batch=8, prologue=True)
    else:
        kind = "norm and rope" if shape == "GEMMA_3_1B" else "rope"
        on_chip = {"vmem": 2**24} if chip == "v4" else {}
        case = cases_causal.backward(*getattr(cases_causal, shape), batch=8, prologue=kind, **on_chip)
    assert compiled(chip, *case, monkeypatch).memory_analysis().temp_size_in_bytes <= 20 * 2**20


@pytest.mark.long
@pytest.mark.parametrize(
    ("chip", "length", "heads", "groups", "span", "dtype"),
    [
        ("v4", 2048, 8, 4, 1024, "bfloat16"),  # Gemma 3 4B, where VMEM is smallest
        ("v5e", 1000, 4, 1, 512, "float32"),
        ("v5e", 1152, 4, 1, 1024, "float32"),
    ],
)
def test_widest_windows_fit_on_chip(*, chip, length, heads, groups, span, dtype, monkeypatch):
    shapes = [jax.ShapeDtypeStruct((1, length, n, 256), dtype) for n in (heads, groups, groups)]
    shapes += [jax.ShapeDtypeStruct((1, length), jnp.int32), *[jax.ShapeDtypeStruct((256,), dtype)] * 2]
    shapes += [jax.ShapeDtypeStruct((1, length, 128), jnp.float32)] * 2

    def gradients(query, key, value, segment, *prologue):
        def total(*arrays):
            given = prologues.Prologue(*prologue, 1e-6)
            context = window.attention(*arrays, segment, scale=0.06, window=span, soft_cap=0.0, prologue=given)
            return context.sum(dtype=jnp.float32)

        return jax.grad(total, argnums=(0, 1, 2))(query, key, value)

    compiled(chip, gradients, shapes, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize(
    ("attend", "heads", "groups", "depth"),
    [
        (functools.partial(window.attention, window=512, soft_cap=0.0), 4, 1, 1152),
        (causal.attention, 4, 1, 1152),
        (functools.partial(causal.attention, soft_cap=50.0), 8, 4, 2304),
    ],
)
def test_nothing_is_copied_between_projections_and_kernels(attend, heads, groups, depth, monkeypatch):
    """No operation on a whole query, key, value, context or gradient but the projections and the kernels."""
    batch, length, width = 2, 2048, 256

    def block(x_BTD, weights, segment_BT, *prologue):
        *inputs, output_NHD = weights
        specs = "BTD,DNH->BTNH", "BTD,DKH->BTKH", "BTD,DKH->BTKH"
        query, key, value = (jnp.einsum(spec, x_BTD, weight) for spec, weight in zip(specs, inputs, strict=True))
        given = prologues.Prologue(*prologue, 1e-6)
        context = attend(query, key, value, segment_BT, scale=0.06, prologue=given)
        return jnp.einsum("BTNH,NHD->BTD", context, output_NHD)

    def gradient(upstream_BTD, x_BTD, *rest):
        y_BTD, pull = jax.vjp(lambda x_BTD: block(x_BTD, rest[:4], *rest[4:]), x_BTD)
        return y_BTD, *pull(upstream_BTD)

    shapes = [(batch, length, depth)] * 2 + [(depth, n, width) for n in (heads, groups, groups)]
    shapes.append((heads, width, depth))
    operands = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    operands.append(jax.ShapeDtypeStruct((batch, length), jnp.int32))
    operands += [jax.ShapeDtypeStruct((width,), jnp.bfloat16)] * 2
    operands += [jax.ShapeDtypeStruct((batch, length, width // 2), jnp.float32)] * 2
    text = compiled("v5e", gradient, operands, monkeypatch).as_text()
    entry = text[text.index("\nENTRY") :]
    moved = re.findall(r"= bf16\[([\d,]+)\]\S* (?:copy|transpose|reshape)\(", entry)
    assert not [shape for shape in moved if np.prod([int(n) for n in shape.split(",")]) >= batch * length * width]
    assert text.count("tpu_custom_call") >= 2
