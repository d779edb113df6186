"""Every size is the published one: its parameters count up to what was published, its layers stack as they must."""

import dataclasses
import json
import math

import pytest

from thinkfirst.models import config

LOCAL, GLOBAL = "local", "global"

# Parameters of the embedding and of the rest, as the reports print them: Gemma 2 exactly, for an embedding padded to
# 256,128 rows (arXiv 2408.00118, table 2), Gemma 3 in millions (arXiv 2503.19786, table 1).
REPORTED = {
    "gemma2_2b": (590_118_912, 2_024_517_888),
    "gemma2_9b": (917_962_752, 8_324_201_984),
    "gemma2_27b": (1_180_237_824, 26_047_480_320),
    "gemma3_1b": (302e6, 698e6),
    "gemma3_4b": (675e6, 3_209e6),
    "gemma3_12b": (1_012e6, 10_759e6),
    "gemma3_27b": (1_416e6, 25_600e6),
}
# Tensors of the text model in the published files.
FILES = {
    "gemma2_2b": "hf_gemma-2-2b",
    "gemma3_270m": "hf_gemma-3-270m",
    "gemma3_1b": "hf_gemma-3-1b",
    "gemma3_4b": "hf_gemma-3-4b_text_hubnames",
}


def shapes_of_a_layer(size):
    """As matrices of a checkpoint: [out, in]."""
    query, key = size.num_heads * size.head_dim, size.num_kv_heads * size.head_dim
    shapes = [(query, size.width), (key, size.width), (key, size.width), (size.width, query)]
    shapes += [(size.ff_width, size.width)] * 2 + [(size.width, size.ff_width)] + [(size.width,)] * 4
    return shapes + [(size.head_dim,)] * 2 * size.query_key_norm


def num_parameters_but_embedding(size):
    return size.num_layers * sum(map(math.prod, shapes_of_a_layer(size))) + size.width


@pytest.mark.parametrize("name", REPORTED)
def test_parameters_are_as_many_as_reported(name):
    size = config.BY_NAME[name]()
    embedding, rest = REPORTED[name]
    if size.generation == 2:
        assert (256_128 * size.width, num_parameters_but_embedding(size)) == (embedding, rest)
    else:  # in millions; the embedding of the sizes that see images is reported with their projection, 1152 wide
        seen = 1152 if size.vocab_size == 262_208 else 0
        assert abs((size.vocab_size + seen) * size.width - embedding) < 1e6
        assert abs(num_parameters_but_embedding(size) - rest) < 1e6


@pytest.mark.parametrize("name", FILES)
def test_published_files_hold_these_shapes(data_dir, name):
    size = config.BY_NAME[name]()
    held = json.loads((data_dir / "gemma" / "shapes" / f"{FILES[name]}.json").read_text())
    expected = shapes_of_a_layer(size) * size.num_layers + [(size.width,), (size.vocab_size, size.width)]
    assert sorted(map(tuple, held.values())) == sorted(expected)


def test_sizes_go_by_their_names():
    assert {make.__name__ for make in config.PUBLISHED} == {*REPORTED, "gemma3_270m"}
    assert {name for name, make in config.BY_NAME.items() if make not in config.PUBLISHED} == {
        "narrow_gemma2",
        "demo_gemma3",
    }
    assert all(make.__name__ == name for name, make in config.BY_NAME.items())
    keys = [(size.generation, size.width, size.num_layers) for size in (make() for make in config.PUBLISHED)]
    assert len(set(keys)) == len(keys)


def test_queries_are_scaled_by_width_per_head_in_both_27b_alone():
    per_head = {name for name in config.BY_NAME if "27b" in name}
    for make in config.PUBLISHED:
        size = make()
        scaled = size.width / size.num_heads if make.__name__ in per_head else size.head_dim
        assert size.query_scalar == scaled


def test_twenty_six_layers_are_whole_periods_and_a_rest():
    assert config.gemma2_2b().stacks == (((LOCAL, GLOBAL), 13),)
    assert config.gemma3_1b().stacks == ((config.GEMMA3_PATTERN, 4), ((LOCAL, LOCAL), 1))
    assert config.gemma3_270m().stacks == ((config.GEMMA3_PATTERN, 3),)
    few = dataclasses.replace(config.gemma3_1b(), num_layers=3)
    assert few.stacks == (((LOCAL,) * 3, 1),)


def test_heads_that_cannot_be_shared_or_rotated_are_refused():
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key/value heads"):
        dataclasses.replace(config.gemma3_1b(), num_kv_heads=3)
    with pytest.raises(ValueError, match="head_dim 7 must be even"):
        dataclasses.replace(config.gemma3_1b(), head_dim=7)
