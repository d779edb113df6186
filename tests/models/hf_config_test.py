"""config.json is read in each of its dialects, comes back from what is written, and is refused where it is wrong."""

import dataclasses
import json
import pathlib
import re

import pytest

from thinkfirst.models import config, hf_config

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
LOCAL, GLOBAL = "local", "global"
SLIDING, FULL = "sliding_attention", "full_attention"
SPECIAL = hf_config.SpecialIds(bos_id=2, eos_ids=(1, 106), pad_id=0)

# One small model in every dialect; each number differs from every default.
COMMON = {
    "vocab_size": 70,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 6,
    "query_pre_attn_scalar": 5,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "hidden_activation": "gelu_pytorch_tanh",
}
GEMMA2 = COMMON | {"model_type": "gemma2", "attn_logit_softcapping": 7.0, "final_logit_softcapping": 3}
GEMMA3 = COMMON | {"model_type": "gemma3_text"}
LINEAR = {"rope_type": "linear", "factor": 4.0}
OLD_ROPE = {"rope_theta": 50_000, "rope_local_base_freq": 20_000, "rope_scaling": LINEAR}
LAYERS = {"layer_types": [SLIDING, FULL] * 2}
NEW_RULES = {
    FULL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 50_000.0},
    SLIDING: {"rope_type": "default", "rope_theta": 20_000.0},
}
G2_OLD = GEMMA2 | {"torch_dtype": "bfloat16", "rope_theta": 50_000.0, "hidden_act": "gelu"}
G2_NEW = GEMMA2 | LAYERS | {"dtype": "bfloat16", "rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0}}
G3_OLD = GEMMA3 | OLD_ROPE | {"torch_dtype": "bfloat16", "sliding_window_pattern": 2}
G3_MIDDLE = GEMMA3 | OLD_ROPE | LAYERS | {"torch_dtype": "bfloat16", "_sliding_window_pattern": 2}
G3_NEW = GEMMA3 | LAYERS | {"dtype": "bfloat16", "_sliding_window_pattern": 6, "rope_parameters": NEW_RULES}
MULTIMODAL = {
    "model_type": "gemma3",
    "eos_token_id": [1, 106],
    "torch_dtype": "bfloat16",
    "vision_config": {"model_type": "siglip_vision_model"},
}
G3_OUTER = MULTIMODAL | {"text_config": {key: value for key, value in G3_OLD.items() if key != "torch_dtype"}}
# What google/gemma-3-4b-it has: the rest is defaults.
FOUR_B = MULTIMODAL | {
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
}

SMALL2 = config.GemmaConfig(
    generation=2,
    vocab_size=70,
    num_layers=4,
    width=16,
    ff_width=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    window=6,
    pattern=(LOCAL, GLOBAL),
    query_scalar=5,
    local_rope_base=50_000.0,
    global_rope_base=50_000.0,
    attention_soft_cap=7.0,
    final_soft_cap=3.0,
    norm_epsilon=1e-5,
    max_length=64,
)
SMALL3 = dataclasses.replace(
    SMALL2,
    generation=3,
    local_rope_base=20_000.0,
    global_rope_factor=4.0,
    attention_soft_cap=0.0,
    final_soft_cap=0.0,
)


def without(raw, *keys):
    return {key: value for key, value in raw.items() if key not in keys}


def written(folder, raw):
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def published(data_dir, name):
    return json.loads((data_dir / "gemma" / "configs" / f"{name}.config.json").read_text())


@pytest.mark.parametrize(
    "raw, expected",
    [
        (G2_OLD, SMALL2),
        (G2_NEW, SMALL2),
        (G3_OLD, SMALL3),
        (G3_MIDDLE, SMALL3),
        (G3_NEW, SMALL3),
        (G3_OUTER, SMALL3),
        (MULTIMODAL | {"text_config": without(G3_NEW, "attn_logit_softcapping", "hidden_activation")}, SMALL3),
        (FOUR_B, config.gemma3_4b()),
    ],
    ids=["g2_old", "g2_new", "g3_old", "g3_middle", "g3_new", "g3_outer", "g3_outer_new", "4b"],
)
def test_every_dialect_says_the_same(raw, expected):
    assert hf_config.from_hf(raw) == expected


def test_ours_are_the_published_ones(data_dir):
    assert hf_config.from_hf(published(data_dir, "gemma-2-2b-it")) == config.gemma2_2b()
    assert hf_config.from_hf(published(data_dir, "gemma-2-2b")) == dataclasses.replace(
        config.gemma2_2b(), dtype="float32"
    )
    assert hf_config.from_hf(published(data_dir, "gemma-3-1b-it")) == config.gemma3_1b()
    assert hf_config.from_hf(published(data_dir, "gemma-3-270m-it")) == config.gemma3_270m()


def test_what_transformers_5_saved_is_read():
    two, three = hf_config.read(GOLDEN / "hf_gemma2"), hf_config.read(GOLDEN / "hf_gemma3")
    assert (two.num_layers, two.pattern, two.attention_soft_cap, two.final_soft_cap) == (5, (LOCAL, GLOBAL), 5.0, 6.0)
    assert (two.local_rope_base, two.global_rope_base, two.global_rope_factor) == (10_000.0, 10_000.0, 1.0)
    assert (three.num_layers, three.pattern, three.attention_soft_cap) == (8, config.GEMMA3_PATTERN, 0.0)
    assert (three.local_rope_base, three.global_rope_base, three.global_rope_factor) == (10_000.0, 1_000_000.0, 8.0)
    assert two.dtype == three.dtype == "float32"


@pytest.mark.parametrize("make", config.BY_NAME.values(), ids=config.BY_NAME)
def test_what_is_written_is_read(make):
    raw = hf_config.to_hf(make(), dtype=make().dtype, special=SPECIAL)
    assert hf_config.from_hf(json.loads(json.dumps(raw))) == make()


@pytest.mark.parametrize("raw", [G2_OLD, G3_NEW, G3_NEW | {"layer_types": [FULL, SLIDING, SLIDING, FULL]}])
@pytest.mark.parametrize("num_layers", [1, 3, 4])
def test_few_layers_and_odd_patterns_are_written_too(raw, num_layers):
    read = dataclasses.replace(hf_config.from_hf(raw), num_layers=num_layers)
    again = hf_config.from_hf(hf_config.to_hf(read, dtype="bfloat16", special=SPECIAL))
    assert [kind for kinds, repeats in again.stacks for kind in kinds * repeats] == [
        kind for kinds, repeats in read.stacks for kind in kinds * repeats
    ]
    assert dataclasses.replace(again, pattern=read.pattern) == read


def test_the_file_says_how_weights_are_stored_and_where_to_stop():
    raw = hf_config.to_hf(SMALL3, dtype="float16", special=SPECIAL)
    assert raw["torch_dtype"] == "float16" and raw["architectures"] == ["Gemma3ForCausalLM"]
    assert (raw["bos_token_id"], raw["eos_token_id"], raw["pad_token_id"]) == (2, [1, 106], 0)
    assert hf_config.generation_to_hf(hf_config.SpecialIds(2, (1,), 0))["eos_token_id"] == 1
    assert raw["rope_scaling"] == LINEAR and raw["rope_theta"] == 50_000.0  # transformers 5 reads these as well
    assert raw["layer_types"] == [SLIDING, FULL] * 2 and raw["sliding_window_pattern"] == 2
    assert "sliding_window_pattern" not in hf_config.to_hf(SMALL2, dtype="float16", special=SPECIAL)


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"torch_dtype": "float16"}, "float32"),
        ({"torch_dtype": "float32"}, "float32"),
        ({"torch_dtype": None}, "float32"),
        ({"dtype": "bfloat16", "torch_dtype": "float32"}, "bfloat16"),
    ],
)
def test_half_precision_is_computed_in_single(change, expected):
    assert hf_config.from_hf(G3_OLD | change).dtype == expected


@pytest.mark.parametrize(
    "raw",
    [
        G3_OLD | {"query_pre_attn_scalar": 5.0, "rope_theta": 5e4},
        G3_OLD | {"rope_scaling": {"type": "linear", "factor": 4}},
        G3_OLD | {"hidden_act": "gelu"},
        without(G3_OLD, "hidden_activation") | {"hidden_act": "gelu_pytorch_tanh"},
        G3_OLD | {"tie_word_embeddings": True, "use_bidirectional_attention": None, "attention_bias": False},
        G3_OLD | {"rope_parameters": NEW_RULES},
    ],
)
def test_what_says_the_same_in_other_words_is_read(raw):
    assert hf_config.from_hf(raw) == SMALL3


WHOLE = "is not a whole number from 1 to"
FAULTS = {
    "no_model_type": (without(G3_OLD, "model_type"), "missing key 'model_type'"),
    "model_type": (G3_OLD | {"model_type": "gemma"}, "model_type 'gemma' is not gemma2 or gemma3_text or gemma3"),
    "model_type_list": (G3_OLD | {"model_type": ["gemma2"]}, "model_type ['gemma2'] is not gemma2"),
    "missing": (without(G2_OLD, "hidden_size"), "missing key 'hidden_size'"),
    "no_soft_cap": (without(G2_OLD, "attn_logit_softcapping"), "missing key 'attn_logit_softcapping'"),
    "no_activation": (without(G3_OLD, "hidden_activation"), "missing key 'hidden_activation'"),
    "string": (G3_OLD | {"hidden_size": "16"}, f"hidden_size '16' {WHOLE} 1048576"),
    "bool": (G3_OLD | {"num_key_value_heads": True}, f"num_key_value_heads True {WHOLE}"),
    "fraction": (G3_OLD | {"vocab_size": 70.0}, f"vocab_size 70.0 {WHOLE}"),
    "null": (G3_OLD | {"sliding_window": None}, f"sliding_window None {WHOLE}"),
    "zero": (G3_OLD | {"num_attention_heads": 0}, f"num_attention_heads 0 {WHOLE}"),
    "zero_kv": (G3_OLD | {"num_key_value_heads": 0}, f"num_key_value_heads 0 {WHOLE}"),
    "negative": (G3_OLD | {"head_dim": -8}, f"head_dim -8 {WHOLE}"),
    "huge": (G3_OLD | {"intermediate_size": 2**20 + 1}, f"intermediate_size 1048577 {WHOLE}"),
    "deep": (G3_OLD | {"num_hidden_layers": 1001}, f"num_hidden_layers 1001 {WHOLE} 1000"),
    "heads": (G3_OLD | {"num_key_value_heads": 3}, "4 query heads cannot share 3 key/value heads"),
    "odd_head": (G3_OLD | {"head_dim": 7}, "head_dim 7 must be even"),
    "epsilon": (G3_OLD | {"rms_norm_eps": 0}, "rms_norm_eps 0 is not a positive number"),
    "epsilon_bool": (G3_OLD | {"rms_norm_eps": True}, "rms_norm_eps True is not a positive number"),
    "soft_cap": (G2_OLD | {"final_logit_softcapping": 0.0}, "final_logit_softcapping 0.0 is not a positive number"),
    "scalar": (G3_OLD | {"query_pre_attn_scalar": 5.5}, "query_pre_attn_scalar 5.5 is not a whole number"),
    "infinite": (
        G3_OLD | {"query_pre_attn_scalar": float("inf")},
        "query_pre_attn_scalar inf is not a positive number",
    ),
    "nan": (G3_OLD | {"rope_theta": float("nan")}, "rope_theta nan is not a positive number"),
    "dtype": (G3_OLD | {"torch_dtype": "int8"}, "torch_dtype 'int8' is not float32 or bfloat16 or float16"),
    "new_dtype": (G3_NEW | {"dtype": "auto"}, "dtype 'auto' is not float32"),
    "activation": (G3_OLD | {"hidden_activation": "silu"}, "hidden_activation 'silu' is not gelu_pytorch_tanh"),
    "act": (without(G2_OLD, "hidden_activation"), "hidden_act 'gelu' is not gelu_pytorch_tanh"),
    "bias": (G3_OLD | {"attention_bias": True}, "attention_bias True: only False is supported"),
    "both_ways": (G3_NEW | {"use_bidirectional_attention": True}, "use_bidirectional_attention True: only False"),
    "untied": (G3_OLD | {"tie_word_embeddings": False}, "tie_word_embeddings False: only True is supported"),
    "untied_outside": (G3_OUTER | {"tie_word_embeddings": False}, "tie_word_embeddings False: only True"),
    "no_text": (without(FOUR_B, "text_config"), "missing key 'text_config'"),
    "text_list": (FOUR_B | {"text_config": []}, "text_config [] is not an object"),
    "text_type": (FOUR_B | {"text_config": GEMMA2}, "text_config.model_type 'gemma2' is not gemma3_text"),
}


@pytest.mark.parametrize("raw, message", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_with_its_file(tmp_path, raw, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        hf_config.read(written(tmp_path, raw))
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")


def test_a_folder_without_a_config_is_named(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'config.json'}: no such file")):
        hf_config.read(tmp_path)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'gone'}: no such folder")):
        hf_config.read(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'file'}: not a folder")):
        hf_config.read(tmp_path / "file")


def of_size(make, **changes):
    return hf_config.to_hf(make(), dtype="bfloat16", special=SPECIAL) | changes


@pytest.mark.parametrize(
    "raw, wrong",
    [
        (of_size(config.gemma2_9b, query_pre_attn_scalar=224), "query_pre_attn_scalar: 224, published 256"),
        (of_size(config.gemma2_2b, intermediate_size=9000), "intermediate_size: 9000, published 9216"),
        (of_size(config.gemma2_2b, attn_logit_softcapping=None), "attn_logit_softcapping: 0.0, published 50.0"),
        (of_size(config.gemma2_27b, head_dim=144), "head_dim: 144, published 128"),
        (of_size(config.gemma3_1b, sliding_window=1024), "sliding_window: 1024, published 512"),
        (of_size(config.gemma3_1b, num_attention_heads=8), "num_attention_heads: 8, published 4"),
        (of_size(config.gemma3_1b, rms_norm_eps=1e-5), "rms_norm_eps: 1e-05, published 1e-06"),
        (of_size(config.gemma3_1b, rope_local_base_freq=1e6), "local_rope_base: 1000000.0, published 10000.0"),
        (of_size(config.gemma3_4b, rope_scaling=None), "global_rope_factor: 1.0, published 8.0"),
        (of_size(config.gemma3_270m, layer_types=[FULL] * 18), "pattern: ('global',), published ('local', "),
        (
            of_size(config.gemma3_12b, num_key_value_heads=4, rope_theta=1e4),
            "num_key_value_heads: 4, published 8; global_rope_base: 10000.0, published 1000000.0",
        ),
    ],
)
def test_a_published_size_keeps_its_arithmetic(raw, wrong):
    with pytest.raises(ValueError, match=re.escape(wrong)):
        hf_config.from_hf(raw)


@pytest.mark.parametrize("make", config.PUBLISHED)
def test_vocabulary_length_and_dtype_of_a_published_size_are_free(make):
    raw = of_size(make, vocab_size=262_400, max_position_embeddings=2048, torch_dtype="float32")
    expected = dataclasses.replace(make(), vocab_size=262_400, max_length=2048, dtype="float32")
    assert hf_config.from_hf(raw) == expected
    assert hf_config.from_hf(of_size(make, num_hidden_layers=1, layer_types=[SLIDING], head_dim=64)).head_dim == 64
