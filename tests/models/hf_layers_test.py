"""Which layers see how far and how each kind rotates is read from every dialect, or refused by key and value."""

import re

import pytest

from thinkfirst.models import config, hf_layers

LOCAL, GLOBAL = "local", "global"
SLIDING, FULL = "sliding_attention", "full_attention"
LINEAR = {"rope_type": "linear", "factor": 4.0}
G2_OLD = {"rope_theta": 50_000.0}
G3_OLD = {"rope_theta": 50_000, "rope_local_base_freq": 20_000, "rope_scaling": LINEAR, "sliding_window_pattern": 2}
NEW_RULES = {FULL: LINEAR | {"rope_theta": 50_000.0}, SLIDING: {"rope_type": "default", "rope_theta": 20_000.0}}
LAYERS = {"layer_types": [SLIDING, FULL] * 2}
G2_NEW = LAYERS | {"rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0}}
G3_NEW = LAYERS | {"rope_parameters": NEW_RULES, "_sliding_window_pattern": 6}


def read(raw, generation):
    return hf_layers.pattern(raw, generation, 4), hf_layers.rope(raw, generation)


def without(raw, *keys):
    return {key: value for key, value in raw.items() if key not in keys}


def rules(kind, **changes):
    return {"rope_parameters": NEW_RULES | {kind: NEW_RULES[kind] | changes}}


@pytest.mark.parametrize("generation, raw", [(2, G2_OLD), (2, G2_NEW), (3, G3_OLD), (3, G3_NEW)])
def test_every_dialect_is_read(generation, raw):
    expected = (50_000.0, 50_000.0, 1.0) if generation == 2 else (20_000.0, 50_000.0, 4.0)
    assert read(raw, generation) == ((LOCAL, GLOBAL), expected)


def test_layer_types_outrank_the_period():
    for kinds, expected in (
        ([SLIDING, SLIDING, FULL, SLIDING], (LOCAL, LOCAL, GLOBAL)),
        ([FULL] * 4, (GLOBAL,)),
        ([SLIDING] * 4, config.GEMMA3_PATTERN),  # the first four of the six that the file declares
        ([FULL, SLIDING, SLIDING, SLIDING], (GLOBAL, LOCAL, LOCAL, LOCAL)),
    ):
        assert hf_layers.pattern(G3_NEW | {"layer_types": kinds}, 3, 4) == expected
    assert hf_layers.pattern(G2_OLD | {"layer_types": [SLIDING]}, 2, 1) == config.GEMMA2_PATTERN


def test_a_period_ends_in_its_global_layer():
    assert hf_layers.period(1) == (GLOBAL,) and hf_layers.period(6) == config.GEMMA3_PATTERN
    assert hf_layers.repeat((LOCAL, GLOBAL), 3) == (LOCAL, GLOBAL, LOCAL)


def test_a_linear_factor_of_one_is_none():
    assert hf_layers.rope(G3_NEW | rules(SLIDING, rope_type="linear", factor=1), 3) == (20_000.0, 50_000.0, 4.0)


def test_a_default_rope_has_no_factor():
    assert hf_layers.rope(G3_NEW | rules(FULL, rope_type="default"), 3) == (20_000.0, 50_000.0, 1.0)


WHOLE = "is not a whole number from 1 to"
FAULTS = {
    "no_rope": (without(G3_OLD, "rope_theta", "rope_scaling"), "missing key 'rope_theta'"),
    "no_local_base": (without(G3_OLD, "rope_local_base_freq"), "missing key 'rope_local_base_freq'"),
    "no_layers": (without(G3_OLD, "sliding_window_pattern"), "missing key 'layer_types' or 'sliding_window_pattern'"),
    "long_period": (G3_OLD | {"sliding_window_pattern": 10**9}, f"sliding_window_pattern 1000000000 {WHOLE} 1000"),
    "layers_short": (G3_NEW | {"layer_types": [FULL]}, "is not a list of num_hidden_layers = 4 kinds"),
    "layers_kind": (
        G3_NEW | {"layer_types": [FULL, SLIDING, "linear_attention", FULL]},
        "has 'linear_attention', which",
    ),
    "layers_odd": (
        G3_NEW | {"layer_types": [FULL, [], FULL, FULL]},
        "layer_types has [], which is not sliding_attention",
    ),
    "layers_word": (G3_NEW | {"layer_types": "full"}, "layer_types 'full' is not a list"),
    "yarn": (G3_OLD | {"rope_scaling": LINEAR | {"rope_type": "yarn"}}, "rope_scaling.rope_type 'yarn' is not default"),
    "yarn_type": (G3_OLD | {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling.rope_type 'yarn' is not"),
    "no_factor": (G3_OLD | {"rope_scaling": {"rope_type": "linear"}}, "missing key 'rope_scaling.factor'"),
    "scaling_word": (G3_OLD | {"rope_scaling": "linear"}, "rope_scaling 'linear' is not an object"),
    "gemma2_scaled": (G2_OLD | {"rope_scaling": LINEAR}, "rope factor 4.0 on sliding layers"),
    "new_yarn": (G3_NEW | rules(FULL, rope_type="yarn"), "rope_parameters.full_attention.rope_type 'yarn' is not"),
    "new_local_yarn": (G3_NEW | rules(SLIDING, rope_type="llama3"), "sliding_attention.rope_type 'llama3' is not"),
    "new_local_linear": (G3_NEW | rules(SLIDING, **LINEAR), "rope factor 4.0 on sliding layers"),
    "new_base": (G3_NEW | rules(SLIDING, rope_theta="1e4"), "sliding_attention.rope_theta '1e4' is not a positive"),
    "new_half": (
        G3_NEW | {"rope_parameters": {FULL: NEW_RULES[FULL]}},
        "missing key 'rope_parameters.sliding_attention'",
    ),
    "new_flat": (G3_NEW | {"rope_parameters": NEW_RULES[FULL]}, "missing key 'rope_parameters.sliding_attention'"),
    "new_gemma2_yarn": (
        G2_NEW | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e4}},
        "rope_parameters.rope_type 'yarn' is not default or linear",
    ),
    "new_gemma2_linear": (G2_NEW | {"rope_parameters": NEW_RULES[FULL]}, "rope factor 4.0 on sliding layers"),
    "new_gemma2_nested": (G2_NEW | {"rope_parameters": NEW_RULES}, "missing key 'rope_parameters.rope_theta'"),
    "two_minds": (G3_OLD | {"rope_parameters": NEW_RULES, "rope_theta": 1e4}, "rope_theta, rope_scaling do not agree"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named(name):
    raw, message = FAULTS[name]
    generation = 2 if "gemma2" in name else 3
    with pytest.raises(ValueError, match=re.escape(message)):
        read(raw, generation)
