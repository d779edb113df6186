"""The TPU kernel, interpreted: with races looked for and memory full of NaN, or as plain operations."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec, SingleDeviceSharding

import tolerance
from thinkfirst.core import mesh as mesh_lib
from thinkfirst.kernels.sample import api, cases, noise, reference, tpu

CAREFUL = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
NO_TRUNCATION = {"top_k": jnp.int32(0), "top_p": jnp.float32(1), "min_p": jnp.float32(0)}
SLOW = pytest.mark.long


def operands(rows, vocabulary, width, dtype=jnp.float32, seed=0):
    """Rows whose logits spread by about 2, and a key each."""
    hidden_key, table_key, row_key = jax.random.split(jax.random.key(seed), 3)
    hidden_BD = jax.random.normal(hidden_key, (rows, width)).astype(dtype)
    table_VD = (2 / np.sqrt(width) * jax.random.normal(table_key, (vocabulary, width))).astype(dtype)
    return hidden_BD, table_VD, jax.random.split(row_key, rows)


def truncation(top_k, top_p, min_p):
    numbers = {"temperature": jnp.float32(0.8), "top_p": jnp.float32(top_p), "min_p": jnp.float32(min_p)}
    return {"top_k": jnp.int32(top_k), **numbers}


def float32_logits(hidden_BD, table_VD, soft_cap):
    logit_BV = hidden_BD.astype(jnp.float32) @ table_VD.astype(jnp.float32).T
    return soft_cap * jnp.tanh(logit_BV / soft_cap) if soft_cap else logit_BV


def entropy_and_lse(scaled_BV):
    logp_BV = jax.nn.log_softmax(scaled_BV)
    return -(jnp.exp(logp_BV) * logp_BV).sum(axis=1), jax.nn.logsumexp(scaled_BV, axis=1)


@pytest.mark.parametrize(
    ("shape", "block", "dtype", "soft_cap", "interpret"),
    [
        ((5, 63), 64, jnp.bfloat16, 0.0, CAREFUL),
        pytest.param((1, 1), 64, jnp.float32, 0.0, True, marks=SLOW),
        pytest.param((3, 127), 128, jnp.float32, 2.0, True, marks=SLOW),
        pytest.param((40, 512), 64, jnp.bfloat16, 2.0, CAREFUL, marks=SLOW),
        pytest.param((130, 1000), 64, jnp.float32, 0.0, True, marks=SLOW),
    ],
)
def test_kernel_is_the_reference(shape, block, dtype, *, soft_cap, interpret, capsys):
    """Tokens exactly, their numbers within 1e-4, at temperatures 1, 0.7 and 0; blocks that end inside and outside."""
    hidden_BD, table_VD, key_B = operands(*shape, 32, dtype)
    drawn = jax.jit(
        lambda temperature: tpu.draw(
            hidden_BD,
            table_VD,
            noise.key_words(key_B),
            temperature=temperature,
            soft_cap=soft_cap,
            block=block,
            part=16,
            interpret=interpret,
        )
    )
    logit_BV = float32_logits(hidden_BD, table_VD, soft_cap)
    for temperature in (1.0, 0.7, 0.0):
        actual = drawn(jnp.float32(temperature))
        token_B, logp_B, _ = reference.sample_counter(
            logit_BV, key_B, temperature=jnp.float32(temperature), **NO_TRUNCATION
        )
        assert actual.token_B.tolist() == token_B.tolist()
        entropy_B, lse_B = entropy_and_lse(logit_BV / (temperature or 1.0))
        for number_B, expected_B in zip(actual[1:], (logp_B, lse_B, entropy_B), strict=True):
            tolerance.assert_close(number_B, expected_B)
    assert "RACE" not in capsys.readouterr().out


@SLOW
def test_truncation_is_that_of_the_reference():
    hidden_BD, table_VD, key_B = operands(8, 200, 32)
    sample = jax.jit(functools.partial(tpu.sample, hidden_BD, table_VD, key_B, interpret=True))
    logit_BV = float32_logits(hidden_BD, table_VD, 0.0)
    for top_k, top_p, min_p in ((3, 1.0, 0.0), (0, 0.6, 0.0), (20, 0.9, 0.1), (0, 1.0, 0.05), (0, 1.0, 0.0)):
        settings = truncation(top_k, top_p, min_p)
        token_B, logp_B, floor_B = sample(**settings)
        expected = reference.sample_counter(logit_BV, key_B, **settings)
        assert token_B.tolist() == expected[0].tolist()
        tolerance.assert_close(logp_B, expected[1])
        tolerance.assert_close(floor_B, expected[2])


@SLOW
def test_rows_beyond_the_table_do_not_leak():
    """The last block reaches past the table into zeros, which are better than any row here: logits are negative."""
    hidden_BD, table_VD, key_B = operands(2, 70, 32)
    hidden_BD, table_VD = abs(hidden_BD), -abs(table_VD)
    drawn = tpu.draw(
        hidden_BD,
        table_VD,
        noise.key_words(key_B),
        temperature=jnp.float32(0),
        part=16,
        block=64,
        interpret=pltpu.InterpretParams(uninitialized_memory="zero"),
    )
    logit_BV = float32_logits(hidden_BD, table_VD, 0.0)
    assert drawn.token_B.tolist() == logit_BV.argmax(axis=1).tolist()
    tolerance.assert_close(drawn.lse_B, jax.nn.logsumexp(logit_BV, axis=1))


@SLOW
def test_frequencies_are_the_probabilities():
    """Chi-square of 8,192 draws from 12 tokens, 11 degrees of freedom: below 26.8 in 995 of 1,000."""
    hidden_BD, table_VD, _ = operands(1, 12, 32)
    key_B = jax.random.split(jax.random.key(5), 8192)
    draws = tpu.draw(
        jnp.tile(hidden_BD, (8192, 1)),
        table_VD,
        noise.key_words(key_B),
        temperature=jnp.float32(1.5),
        interpret=True,
    )
    probability_V = np.asarray(jax.nn.softmax(float32_logits(hidden_BD, table_VD, 0.0)[0] / 1.5))
    expected = 8192 * probability_V
    assert expected.min() > 5
    count = np.bincount(np.asarray(draws.token_B), minlength=12)
    assert ((count - expected) ** 2 / expected).sum() < 26.8
    logp_V = np.log(probability_V)
    tolerance.assert_close(draws.logp_B, logp_V[np.asarray(draws.token_B)])


@SLOW
@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_shares_of_the_vocabulary_draw_the_same_tokens(shards):
    """Bit for bit at temperatures 1 and 0, ties included: the table is the same 64 rows eight times."""
    hidden_BD, table_VD, key_B = operands(6, 64, 32)
    table_VD = jnp.tile(jnp.round(4 * table_VD) / 4, (8, 1))
    mesh = mesh_lib.make(mesh_lib.MeshConfig(data=1, tensor=shards), jax.devices()[:shards])
    whole, share = PartitionSpec(), PartitionSpec("tensor")
    sharded = jax.jit(
        jax.shard_map(
            lambda hidden_BD, table_VD, words, temperature: tpu.draw(
                hidden_BD, table_VD, words, temperature=temperature, axis_name="tensor", interpret=True
            ),
            mesh=mesh,
            in_specs=(whole, share, whole, whole),
            out_specs=whole,
            check_vma=False,
        )
    )
    logit_BV = float32_logits(hidden_BD, table_VD, 0.0)
    for temperature in (1.0, 0.0):
        actual = sharded(hidden_BD, table_VD, noise.key_words(key_B), jnp.float32(temperature))
        expected = reference.sample_counter(logit_BV, key_B, temperature=jnp.float32(temperature), **NO_TRUNCATION)
        assert actual.token_B.tolist() == expected[0].tolist()
        tolerance.assert_close(actual.logp_B, expected[1])
        entropy_B, lse_B = entropy_and_lse(logit_BV)
        tolerance.assert_close(actual.lse_B, lse_B)
        tolerance.assert_close(actual.entropy_B, entropy_B)


@SLOW
def test_shares_of_the_vocabulary_are_truncated_together():
    hidden_BD, table_VD, key_B = operands(6, 512, 32)
    mesh = mesh_lib.make(mesh_lib.MeshConfig(data=1, tensor=4), jax.devices()[:4])
    settings = truncation(20, 0.9, 0.02)
    whole, share = PartitionSpec(), PartitionSpec("tensor")
    token_B, logp_B, floor_B = jax.jit(
        jax.shard_map(
            lambda *given: tpu.sample(*given, **settings, axis_name="tensor", interpret=True),
            mesh=mesh,
            in_specs=(whole, share, whole),
            out_specs=whole,
            check_vma=False,
        )
    )(hidden_BD, table_VD, key_B)
    expected = reference.sample_counter(float32_logits(hidden_BD, table_VD, 0.0), key_B, **settings)
    assert token_B.tolist() == expected[0].tolist()
    tolerance.assert_close(logp_B, expected[1])
    tolerance.assert_close(floor_B, expected[2])


@SLOW
def test_a_row_depends_on_its_key_and_hidden_state_alone():
    """Whatever its place among how many: 40 rows have two places each in the lanes, 5 have four."""
    hidden_BD, table_VD, key_B = operands(40, 100, 32)
    settings = {"temperature": jnp.float32(1), **NO_TRUNCATION}
    many = tpu.sample(hidden_BD, table_VD, key_B, **settings, interpret=True)[0]
    few = tpu.sample(hidden_BD[35:], table_VD, key_B[35:], **settings, interpret=True)[0]
    assert many[35:].tolist() == few.tolist()
    assert len(set(many.tolist())) > 10


def test_join_takes_the_higher_and_of_equals_the_lower_token():
    def running(token, noisy):
        return tpu.Running(*(jnp.float32(x) for x in (token, noisy, 7 + token, 1.0, 2.0, -0.5)))

    for left, right, expected in [((3, 1), (5, 2), 5), ((3, 2), (5, 1), 3), ((3, 2), (5, 2), 3), ((5, 2), (3, 2), 3)]:
        joined = tpu.join(running(*left), running(*right))
        assert (joined.token, joined.logit, joined.total) == (expected, 7 + expected, 4)


def test_backends_asked_for_by_name_run_or_raise():
    hidden_BD, table_VD, key_B = operands(2, 20, 32)
    settings = {"temperature": jnp.float32(1), **NO_TRUNCATION}
    automatic = api.sample(hidden_BD, table_VD, key_B, **settings)
    named = api.sample(hidden_BD, table_VD, key_B, **settings, backend="reference")
    for actual, expected in zip(automatic, named, strict=True):
        np.testing.assert_array_equal(actual, expected)
    with pytest.raises(ValueError, match="no multiple of 128"):
        api.sample(hidden_BD, table_VD, key_B, **settings, backend="tpu")
    with pytest.raises(ValueError, match="runs on cpu"):
        api.sample(*operands(2, 20, 128), **settings, backend="tpu")


@SLOW
def test_the_interpreted_backend_draws_the_counter_tokens():
    hidden_BD, table_VD, key_B = operands(2, 20, 32)
    settings = {"temperature": jnp.float32(1), **NO_TRUNCATION}
    expected = reference.sample_counter(float32_logits(hidden_BD, table_VD, 1.0), key_B, **settings)
    for truncated in (False, True):
        actual = api.sample(
            hidden_BD, table_VD, key_B, **settings, truncated=truncated, soft_cap=1.0, backend="tpu_interpret"
        )
        assert actual[0].tolist() == expected[0].tolist()


@SLOW
def test_rows_with_faults_get_token_zero_and_no_log_prob():
    """A NaN in a hidden state, then one in the table; logits that are all -inf; all at +inf.  One row is sound."""
    hidden_BD, table_VD, key_B = operands(4, 200, 128)
    positive_VD = abs(table_VD) + 0.1
    cases_of = {
        "hidden": (hidden_BD.at[:3, 5].set(jnp.nan), table_VD, 3),
        "table": (hidden_BD, table_VD.at[150, 3].set(jnp.nan), 4),
        "masked": (hidden_BD.at[:3].set(-3e38), 1e6 * positive_VD, 3),
        "infinite": (hidden_BD.at[:3].set(3e38), 1e6 * positive_VD, 3),
    }
    for settings in ({"temperature": jnp.float32(1), **NO_TRUNCATION}, truncation(20, 0.9, 0.01)):
        for truncated in (False, True):
            sample = jax.jit(functools.partial(api.sample, **settings, truncated=truncated, backend="tpu_interpret"))
            for hidden, table, num_faults in cases_of.values():
                token_B, logp_B, floor_B = sample(hidden, table, key_B)
                assert token_B[:num_faults].tolist() == [0] * num_faults
                assert np.isnan(logp_B).tolist() == [True] * num_faults + [False] * (4 - num_faults)
                assert np.isneginf(floor_B[:num_faults]).all()


@SLOW
def test_only_truncation_has_logits_in_memory():
    """Compiled for a v5e: an array of rows times vocabulary is in the one program, and not in the other."""
    layout = SingleDeviceSharding(device("v5e:2x4"))
    rows, vocabulary, width = 64, 262_144, 1152
    shaped = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=layout)  # noqa: E731
    hidden = shaped((rows, width), jnp.bfloat16)
    table, words = shaped((vocabulary, width), jnp.bfloat16), shaped((rows, 2), jnp.uint32)
    numbers = {name: shaped((), jnp.float32) for name in ("temperature", "top_p", "min_p")}
    numbers["top_k"] = shaped((), jnp.int32)

    def program(truncated):
        def run(hidden, table, words, numbers):
            return tpu.sample(hidden, table, jax.random.wrap_key_data(words), **numbers, truncated=truncated)

        return jax.jit(run).lower(hidden, table, words, numbers).compile()

    large = re.compile(rf"\[(?:{rows},{vocabulary}|{vocabulary},{rows})\]")
    plain, cut = program(truncated=False), program(truncated=True)
    assert large.search(cut.as_text())
    assert not large.search(plain.as_text())
    assert plain.memory_analysis().temp_size_in_bytes < 4 * 2**20


@functools.cache
def device(topology):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("left out: compiling with the real TPU compiler; pip install libtpu")
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]


@SLOW
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x4", "v5p:2x2x1", "v6e:2x4"])
@pytest.mark.parametrize(
    ("rows", "vocabulary", "width", "soft_cap"), [(64, 262_144, 1152, 0.0), (8, 256_000, 2304, 30.0)]
)
def test_the_real_compiler_takes_it(topology, rows, vocabulary, width, soft_cap):
    """Gemma 3 1B and Gemma 2 2B: nothing of the vocabulary's size is in memory beside the table."""
    layout = SingleDeviceSharding(device(topology))
    _, shapes = cases.sample_head(rows, vocabulary, width)
    hidden, table, words, temperature = (jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout) for x in shapes)
    compiled = (
        jax.jit(lambda *given: tpu.draw(*given[:3], temperature=given[3], soft_cap=soft_cap))
        .lower(hidden, table, words, temperature)
        .compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 2**20
