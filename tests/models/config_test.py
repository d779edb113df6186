"""Configurations are the published ones, in every dialect of config.json, and survive being written and read."""

import dataclasses
import json
import pathlib

import pytest

from thinkfirst.models import config

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
LOCAL, GLOBAL = "local", "global"


def raw(name="hf_gemma3"):
    return json.loads((GOLDEN / name / "config.json").read_text())


def published(data_dir, name):
    return config.from_hf(json.loads((data_dir / "gemma" / "configs" / f"{name}.config.json").read_text()))


def test_ours_are_the_published_ones(data_dir):
    assert published(data_dir, "gemma-2-2b-it") == config.gemma2_2b()
    assert published(data_dir, "gemma-2-2b") == dataclasses.replace(config.gemma2_2b(), dtype="float32")
    assert published(data_dir, "gemma-3-1b-it") == config.gemma3_1b()


def test_a_published_config_with_layer_types_is_read(data_dir):
    small = published(data_dir, "gemma-3-270m-it")
    assert small.pattern == config.GEMMA3_PATTERN and small.num_layers == 18
    assert small.stacks == ((config.GEMMA3_PATTERN, 3),)


def test_the_dialect_of_transformers_5_is_read():
    tiny = {"vocab_size": 64, "width": 16, "ff_width": 24, "num_heads": 4, "head_dim": 8, "window": 6}
    tiny |= {"query_scalar": 5, "norm_epsilon": 1e-2, "max_length": 64, "dtype": "float32"}
    assert config.read(GOLDEN / "hf_gemma2") == config.GemmaConfig(
        generation=2,
        num_layers=5,
        num_kv_heads=2,
        pattern=(LOCAL, GLOBAL),
        attention_soft_cap=5.0,
        final_soft_cap=6.0,
        **tiny,
    )
    assert config.read(GOLDEN / "hf_gemma3") == config.GemmaConfig(
        generation=3,
        num_layers=8,
        num_kv_heads=1,
        pattern=(LOCAL,) * 5 + (GLOBAL,),
        global_rope_base=1_000_000.0,
        global_rope_factor=8.0,
        **tiny,
    )


def test_what_is_written_is_read():
    named = [make() for make in (config.gemma2_2b, config.gemma3_1b, config.narrow_gemma2, config.demo_gemma3)]
    for ours in (*named, config.read(GOLDEN / "hf_gemma2"), config.read(GOLDEN / "hf_gemma3")):
        assert config.from_hf(json.loads(json.dumps(config.to_hf(ours)))) == ours


def test_twenty_six_layers_are_whole_periods_and_a_rest():
    assert config.gemma2_2b().stacks == (((LOCAL, GLOBAL), 13),)
    assert config.gemma3_1b().stacks == ((config.GEMMA3_PATTERN, 4), ((LOCAL, LOCAL), 1))
    few = dataclasses.replace(config.gemma3_1b(), num_layers=3)
    assert few.stacks == (((LOCAL,) * 3, 1),)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "gemma"}, "model_type 'gemma' is not gemma2 or gemma3_text"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3 key/value heads"),
        ({"head_dim": 7}, "head_dim 7 must be even"),
        ({"hidden_size": None}, "'hidden_size'"),
    ],
)
def test_a_bad_config_names_its_file(tmp_path, change, message):
    changed = {key: value for key, value in (raw() | change).items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=message) as caught:
        config.read(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_config_that_is_not_there_or_not_json_names_its_file(tmp_path):
    with pytest.raises(ValueError, match="no such file") as caught:
        config.read(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
    (tmp_path / "config.json").write_text('{\n"model_type" "gemma2"}')
    with pytest.raises(ValueError, match=r"config.json:2: not JSON"):
        config.read(tmp_path)


def test_only_linear_rope_scaling_is_read():
    older = config.to_hf(config.read(GOLDEN / "hf_gemma3"))
    assert older["rope_scaling"] == {"factor": 8.0, "rope_type": "linear"}
    for kind in ("rope_type", "type"):
        with pytest.raises(ValueError, match="not linear"):
            config.from_hf(older | {"rope_scaling": {"factor": 8.0, kind: "yarn"}})
