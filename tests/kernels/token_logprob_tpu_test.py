"""The TPU sweep, interpreted on a CPU, against the float32 reference; and compiled by the TPU's own compiler."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, PartitionSpec

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


def relative(found, expected):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def check(sweep, arrays, *, soft_cap=0.0, entropy_weight=0.0, entropy_gradient=False):
    truncated = bool(np.isfinite(arrays.floor_T).any())
    plan = streamed.Plan(sweep=sweep, soft_cap=soft_cap, truncated=truncated, entropy_gradient=entropy_gradient)
    found, gradients = weighted(functools.partial(streamed.token_logprob, plan), arrays, entropy_weight=entropy_weight)
    expected, exact_gradients = exact(arrays, soft_cap=soft_cap, entropy_weight=entropy_weight)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4)
    # Nothing is lost in float32; in bfloat16 the gradient itself is rounded, 1.7e-3 in this norm.
    bound = 1e-5 if arrays.hidden_TD.dtype == jnp.float32 else 4e-3
    for mine, theirs in zip(gradients, exact_gradients, strict=True):
        assert relative(mine, theirs) < bound


@pytest.mark.parametrize(
    ("length", "size", "soft_cap", "arguments"),
    [
        pytest.param(1, 300, 0.0, {}, marks=pytest.mark.slow),
        (63, 256, 5.0, {"dtype": "bfloat16", "temperature": 0.7}),
        pytest.param(127, 334, 0.0, {"dtype": "bfloat16", "floor": -6.0, "temperature": 1.3}, marks=pytest.mark.slow),
        pytest.param(512, 200, 30.0, {"dtype": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param(1000, 256, 0.0, {}, marks=pytest.mark.slow),
    ],
)
def test_kernel_is_the_reference(capfd, length, size, soft_cap, arguments):
    check(interpreted, operands(length, size, **arguments), soft_cap=soft_cap)
    assert "RACE" not in "".join(capfd.readouterr()).upper()


@pytest.mark.slow
@pytest.mark.parametrize(("soft_cap", "floor"), [(0.0, -np.inf), (5.0, -5.5)])
def test_gradient_of_the_entropy_comes_from_the_same_sweep(soft_cap, floor):
    arrays = operands(33, 300, floor=floor)
    check(interpreted, arrays, soft_cap=soft_cap, entropy_weight=1.0, entropy_gradient=True)


def test_expected_row_is_exact_to_a_thousandth_before_it_is_rounded():
    """The gradient's part that is summed over the vocabulary, from bfloat16 states and probabilities."""
    arrays = operands(32, 640, dtype="bfloat16")
    found = interpreted(*arrays[:3], None, temperature=jnp.float32(1), soft_cap=0.0, moments=1, own=True)
    hidden_TD, table_VD = (x.astype(jnp.float32) for x in arrays[:2])
    expected_TD = table_VD[arrays.token_T] - jax.nn.softmax(hidden_TD @ table_VD.T) @ table_VD
    assert relative(found.slope_TD, expected_TD) < 1e-3
    tolerance.assert_close(found.lse_T, jax.nn.logsumexp(hidden_TD @ table_VD.T, axis=1))


@pytest.mark.slow
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


@pytest.mark.parametrize("shards", [pytest.param(2, marks=pytest.mark.slow)])
def test_sharded_vocabulary_gives_what_the_whole_one_gives(shards):
    """The interpreter runs the devices one after another, so two of them, and no race detection."""
    sharded(functools.partial(tpu.sweep, block_T=32, block_V=128, interpret=True), shards, soft_cap=5.0, floor=-np.inf)


@pytest.mark.parametrize(
    ("shards", "soft_cap", "floor"),
    [(2, 5.0, -5.5)] + [pytest.param(n, 0.0, -5.5, marks=pytest.mark.slow) for n in (1, 4, 8)],
)
def test_the_combine_over_shards(shards, soft_cap, floor):
    sharded(chunked.sweep, shards, soft_cap=soft_cap, floor=floor)


def sharded(sweep, shards, *, soft_cap, floor):
    arrays = operands(24, 2048, floor=floor)
    plan = streamed.Plan(sweep=sweep, soft_cap=soft_cap, truncated=True, entropy_gradient=True, axis_name="tensor")
    mesh = Mesh(np.array(jax.devices()[:shards]), ("tensor",))

    def total(hidden_TD):
        spec = PartitionSpec()
        specs = streamed.Operands(spec, PartitionSpec("tensor"), spec, spec, spec)
        run = jax.shard_map(
            functools.partial(streamed.token_logprob, plan),
            mesh=mesh,
            in_specs=(specs,),
            out_specs=(spec, spec),
            check_vma=False,
        )
        logp_T, entropy_T = run(arrays._replace(hidden_TD=hidden_TD))
        return (jnp.cos(logp_T) + entropy_T).sum(), (logp_T, entropy_T)

    def whole(hidden_TD):
        logp_T, entropy_T = reference.token_logprob(
            hidden_TD, *arrays[1:4], temperature=arrays.temperature, soft_cap=soft_cap, chunk=24
        )
        return (jnp.cos(logp_T) + entropy_T).sum(), (logp_T, entropy_T)

    (_, found), gradient_TD = jax.jit(jax.value_and_grad(total, has_aux=True))(arrays.hidden_TD)
    (_, expected), exact_TD = jax.jit(jax.value_and_grad(whole, has_aux=True))(arrays.hidden_TD)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4)
    assert relative(gradient_TD, exact_TD) < 1e-5


def test_a_backend_asked_for_by_name_runs_or_raises():
    def run(width=128, size=256, **arguments):
        arrays = operands(3, size, width=width)
        one_row = jax.tree.map(lambda x: x[None], arrays[:1] + arrays[2:4])
        return api.token_logprob(one_row[0], arrays[1], *one_row[1:], temperature=jnp.float32(1), **arguments)

    with pytest.raises(ValueError, match="needs a TPU"):
        run(backend="tpu")
    with pytest.raises(ValueError, match="multiple of 128, not 96"):
        run(width=96, backend="tpu_interpret")
    with pytest.raises(ValueError, match="at least 128 words, not 100"):
        run(size=100, backend="tpu_interpret")
    with pytest.raises(ValueError, match="takes no axis_name"):
        run(backend="reference", axis_name="tensor")


def test_no_silent_zero_for_the_gradient_of_a_temperature():
    arrays, plan = operands(3, 128), streamed.Plan(sweep=chunked.sweep, soft_cap=0.0, truncated=False)
    with pytest.raises(ValueError, match="temperature"):
        jax.grad(lambda t: streamed.token_logprob(plan, arrays._replace(temperature=t))[0].sum())(jnp.float32(1))


GEMMA3_1B, GEMMA2_2B = (262144, 1152), (256128, 2304)
CHIPS = pytest.mark.parametrize(
    ("topology", "vmem"), [("v4:2x2x1", 16), ("v5e:2x4", 128), ("v5p:2x2x1", 64), ("v6e:2x4", 128)]
)


@compiles
@pytest.mark.slow
@CHIPS
def test_whole_blocks_of_gemma2_2b_compile_for(monkeypatch, topology, vmem):
    monkeypatch.setattr(tpu, "COMPILED_VMEM_BYTES", vmem * 2**20)
    compiled(topology, cases.forward_gradient(30.0, 2048, *GEMMA2_2B))


@compiles
@pytest.mark.slow
@CHIPS
def test_every_part_compiles_for(monkeypatch, topology, vmem):
    """Few tokens: small blocks compile in half the time."""
    monkeypatch.setattr(tpu, "COMPILED_VMEM_BYTES", vmem * 2**20)
    compiled(topology, cases.forward_all_gradients(0.0, 128, *GEMMA3_1B))


@compiles
@pytest.mark.slow
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
