"""The TPU sweep, interpreted on a CPU, against the float32 reference; and compiled by the TPU's own compiler."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

import tolerance
from thinkfirst.kernels.token_logprob import api, cases, chunked, reference, streamed, tpu

WIDTH = 128
compiles = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="left out: compiling for TPUs; libtpu is not installed"
)
interpreted = functools.partial(tpu.sweep, block_T=128, block_V=128, interpret=tpu.INTERPRETED)


def operands(length, size, *, dtype="float32", floor=-np.inf, temperature=1.0, width=WIDTH):
    rng = np.random.default_rng(0)
    floor_T = np.full(length, floor)
    floor_T[::3] = -np.inf  # rows with and without one
    return streamed.Operands(
        jnp.asarray(rng.normal(size=(length, width)), dtype),
        jnp.asarray(0.3 * rng.normal(size=(size, width)), dtype),
        jnp.asarray(rng.integers(0, size, length)),
        jnp.asarray(floor_T, jnp.float32),
        jnp.float32(temperature),
    )


def weighted(logprob, arrays, *, entropy_weight):
    """Value and gradient of a sum in which every token's log-prob and entropy weigh differently."""
    length = arrays.token_T.shape[0]
    weight_T = jnp.cos(jnp.arange(length, dtype=jnp.float32))

    def total(hidden_TD, table_VD):
        logp_T, entropy_T = logprob(arrays._replace(hidden_TD=hidden_TD, table_VD=table_VD))
        return (weight_T * logp_T).sum() + entropy_weight * (jnp.sin(weight_T) * entropy_T).sum(), (logp_T, entropy_T)

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (_, values), gradients = run(arrays.hidden_TD, arrays.table_VD)
    return values, gradients


def exact(arrays, *, soft_cap, entropy_weight=0.0):
    def logprob(arrays):
        hidden_TD, table_VD, token_T, floor_T, temperature = arrays
        return reference.token_logprob(
            hidden_TD, table_VD, token_T, floor_T, temperature=temperature, soft_cap=soft_cap, chunk=len(token_T)
        )

    wide = arrays._replace(hidden_TD=arrays.hidden_TD.astype(jnp.float32), table_VD=arrays.table_VD.astype(jnp.float32))
    return weighted(logprob, wide, entropy_weight=entropy_weight)


def check(sweep, arrays, *, soft_cap=0.0, entropy_weight=0.0, entropy_gradient=False):
    truncated = bool(np.isfinite(arrays.floor_T).any())
    plan = streamed.Plan(sweep=sweep, soft_cap=soft_cap, truncated=truncated, entropy_gradient=entropy_gradient)
    found, gradients = weighted(functools.partial(streamed.token_logprob, plan), arrays, entropy_weight=entropy_weight)
    expected, exact_gradients = exact(arrays, soft_cap=soft_cap, entropy_weight=entropy_weight)
    for mine, theirs in zip(found, expected, strict=True):
        tolerance.assert_logprob(mine, theirs)
    for mine, theirs in zip(gradients, exact_gradients, strict=True):
        tolerance.assert_gradient(mine, theirs)


@pytest.mark.parametrize(
    ("length", "size", "soft_cap", "arguments"),
    [
        pytest.param(1, 300, 0.0, {}, marks=pytest.mark.long),
        (63, 256, 5.0, {"dtype": "bfloat16", "temperature": 0.7}),
        pytest.param(127, 334, 0.0, {"dtype": "bfloat16", "floor": -6.0, "temperature": 1.3}, marks=pytest.mark.long),
        pytest.param(512, 200, 30.0, {"dtype": "bfloat16"}, marks=pytest.mark.long),
        pytest.param(1000, 256, 0.0, {}, marks=pytest.mark.long),
    ],
)
def test_kernel_is_the_reference(capfd, length, size, soft_cap, arguments):
    check(interpreted, operands(length, size, **arguments), soft_cap=soft_cap)
    assert "RACE" not in "".join(capfd.readouterr()).upper()


@pytest.mark.long
@pytest.mark.parametrize(("soft_cap", "floor"), [(0.0, -np.inf), (5.0, -5.5)])
def test_gradient_of_the_entropy_comes_from_the_same_sweep(soft_cap, floor):
    arrays = operands(33, 300, floor=floor)
    check(interpreted, arrays, soft_cap=soft_cap, entropy_weight=1.0, entropy_gradient=True)


@pytest.mark.parametrize("sweep", [functools.partial(tpu.sweep, interpret=True), chunked.sweep])
@pytest.mark.parametrize("soft_cap", [0.0, 30.0])
@pytest.mark.parametrize("sure", [False, True])
def test_gradient_is_exact_to_a_thousandth_before_it_is_rounded(sweep, soft_cap, sure):
    """Of bfloat16 states and probabilities, of unlikely tokens and of likely ones, whose gradient nearly cancels."""
    arrays = operands(32, 640, dtype="bfloat16")
    if sure:
        arrays = arrays._replace(hidden_TD=arrays.hidden_TD * 0.3 + 1.2 * arrays.table_VD[arrays.token_T])
    wide = arrays._replace(hidden_TD=arrays.hidden_TD.astype(jnp.float32))
    found = sweep(*arrays[:3], None, temperature=jnp.float32(1), soft_cap=soft_cap, moments=1, own=True)

    def total(hidden_TD):
        return reference.token_logprob(hidden_TD, *wide[1:4], temperature=jnp.float32(1), soft_cap=soft_cap, chunk=32)[
            0
        ].sum()

    tolerance.assert_gradient(found.slope_TD, jax.grad(total)(wide.hidden_TD), summed_in="bfloat16")


def test_a_token_of_another_shard_has_no_logit_and_no_row():
    arrays = operands(16, 256)
    token_T = jnp.arange(16) * 40 - 200  # some below, some above
    run = functools.partial(tpu.sweep, temperature=jnp.float32(1), soft_cap=0.0, moments=1, interpret=True)
    found, none = (run(*arrays[:2], token_T, None, own=own) for own in (True, False))
    here_T = (token_T >= 0) & (token_T < 256)
    rows_TD = jnp.where(here_T[:, None], arrays.table_VD[token_T], 0)
    tolerance.assert_close(found.slope_TD - none.slope_TD, rows_TD)
    tolerance.assert_close(found.logit_T, (arrays.hidden_TD * rows_TD).sum(axis=1))


@pytest.mark.long
def test_large_logits_do_not_overflow_and_a_sure_token_has_no_gradient():
    arrays = operands(16, 256)
    sure_TD = 100.0 * arrays.table_VD[arrays.token_T]
    plan = streamed.Plan(sweep=interpreted, soft_cap=0.0, truncated=False)
    (logp_T, entropy_T), (gradient_TD, _) = weighted(
        functools.partial(streamed.token_logprob, plan), arrays._replace(hidden_TD=sure_TD), entropy_weight=0.0
    )
    np.testing.assert_allclose(logp_T, 0.0, atol=1e-3)  # of logits near 1,000
    np.testing.assert_allclose(entropy_T, 0.0, atol=1e-4)
    np.testing.assert_allclose(gradient_TD, 0.0, atol=1e-3)


def test_a_backend_asked_for_by_name_runs_or_raises():
    def run(width=128, size=256, dtype="float32", **arguments):
        arrays = operands(3, size, width=width, dtype=dtype)
        one_row = jax.tree.map(lambda x: x[None], arrays[:1] + arrays[2:4])
        return api.token_logprob(one_row[0], arrays[1], *one_row[1:], temperature=jnp.float32(1), **arguments)

    with pytest.raises(ValueError, match="needs a TPU"):
        run(backend="tpu")
    with pytest.raises(ValueError, match="multiple of 128, not 96"):
        run(width=96, backend="tpu_interpret")
    with pytest.raises(ValueError, match="at least 128 words, not 100"):
        run(size=100, backend="tpu_interpret")
    with pytest.raises(ValueError, match="copied by the 2, the table has 257"):
        run(size=257, dtype="bfloat16", backend="tpu_interpret")
    with pytest.raises(ValueError, match="takes no axis_name"):
        run(backend="reference", axis_name="tensor")


def test_no_silent_zero_for_the_gradient_of_a_temperature():
    arrays, plan = operands(3, 128), streamed.Plan(sweep=chunked.sweep, soft_cap=0.0, truncated=False)
    with pytest.raises(ValueError, match="temperature"):
        jax.grad(lambda t: streamed.token_logprob(plan, arrays._replace(temperature=t))[0].sum())(jnp.float32(1))


GEMMA3_1B, GEMMA2_2B = (262144, 1152), (256128, 2304)
CHIPS = pytest.mark.parametrize(
    ("topology", "vmem"), [("v4:2x2x1", 16), ("v5e:2x4", 128), ("v5p:2x2x1", 64), ("v6e:2x4", 128), ("tpu7x:2x2x1", 64)]
)


@compiles
@pytest.mark.long
@CHIPS
def test_whole_blocks_of_gemma2_2b_compile_for(monkeypatch, topology, vmem):
    monkeypatch.setattr(tpu, "COMPILED_VMEM_BYTES", vmem * 2**20)
    compiled(topology, cases.forward_gradient(30.0, 2048, *GEMMA2_2B))


@compiles
@pytest.mark.long
@CHIPS
def test_every_part_compiles_for(monkeypatch, topology, vmem):
    """Few tokens: small blocks compile in half the time."""
    monkeypatch.setattr(tpu, "COMPILED_VMEM_BYTES", vmem * 2**20)
    compiled(topology, cases.forward_all_gradients(0.0, 128, *GEMMA3_1B))


@compiles
@pytest.mark.long
@pytest.mark.parametrize("length", [1, 130, 1000])
def test_uneven_lengths_compile(length):
    compiled("v5e:2x4", cases.forward_gradient(30.0, length, 1002, 128))


@compiles
@pytest.mark.long
def test_8192_tokens_over_262144_words_take_45_mib():
    memory = compiled("v5e:2x4", cases.forward_gradient(0.0, 8192, 262144, 1152)).memory_analysis()
    assert memory.temp_size_in_bytes <= 45 * 2**20


def compiled(topology, case):
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    layout = jax.sharding.SingleDeviceSharding(devices[0])
    function, shapes = case
    shapes = [jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=layout) for shape in shapes]
    cached_from = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)  # without a TPU the cache cannot be read back
    try:
        return jax.jit(function).lower(*shapes).compile()
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", cached_from)
