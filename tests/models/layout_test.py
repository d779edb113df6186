"""Axes are taken apart and put together as numpy would; every tensor of a published checkpoint has its place."""

import json
import math

import jax
import numpy as np
import pytest

from thinkfirst.models import config, gemma, layout

SIZE = {"V": 64, "D": 16, "F": 24, "N": 4, "K": 2, "H": 8}


def test_a_bracket_is_one_axis():
    assert layout.shape("(NH)D", SIZE) == (32, 16)
    assert layout.shape("D(NH)", SIZE) == (16, 32)
    assert layout.shape("H", SIZE) == (8,)


@pytest.mark.parametrize("axes, letters", [("(NH)D", "DNH"), ("D(NH)", "NHD"), ("FD", "DF"), ("VD", "VD"), ("H", "H")])
def test_there_and_back(axes, letters):
    theirs = np.random.default_rng(0).standard_normal(layout.shape(axes, SIZE))
    ours = layout.to_ours(theirs, axes, letters, SIZE)
    assert ours.shape == tuple(SIZE[letter] for letter in letters)
    np.testing.assert_array_equal(layout.to_theirs(ours, axes, letters), theirs)


def test_a_head_is_a_block_of_rows():
    theirs = np.arange(32 * 16).reshape(32, 16)
    ours = layout.to_ours(theirs, "(NH)D", "DNH", SIZE)
    assert ours[5, 3, 2] == theirs[3 * 8 + 2, 5]
    part = (slice(2, 4), slice(1, 3), slice(None))
    index = layout.index("(NH)D", "DNH", part, SIZE)
    assert index == (slice(8, 24), slice(2, 4))
    np.testing.assert_array_equal(layout.to_ours(theirs[index], "(NH)D", "DNH", SIZE), ours[part])


@pytest.mark.parametrize("make", config.PUBLISHED, ids=lambda make: make.__name__)
def test_every_array_of_the_model_has_its_tensors(make):
    model = gemma.Model(make())
    shapes, letters, size = model.shapes(), model.letters(), layout.sizes(model.config)
    for leaves in (
        layout.huggingface(model.config, letters),
        layout.flax(model.config, letters, transposed_gating=True),
    ):
        tree = {}
        for leaf in leaves:
            rows = (len(leaf.stored),) if leaf.stacked else ()
            layout.put(tree, leaf.path, (*rows, *layout.shape(leaf.letters, size)))
        is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
        assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(lambda x: x, tree, is_leaf=is_shape)
        places = [(stored.name, stored.part) for leaf in leaves for stored in leaf.stored]
        assert len(places) == len(set(places)), "two weights in one place"


@pytest.mark.parametrize(
    "make, file, prefix",
    [
        (config.gemma2_2b, "hf_gemma-2-2b", "model."),
        (config.gemma3_270m, "hf_gemma-3-270m", "model."),
        (config.gemma3_1b, "hf_gemma-3-1b", "model."),
        (config.gemma3_4b, "hf_gemma-3-4b_text_hubnames", "language_model.model."),
        (config.gemma3_4b, "hf_gemma-3-4b_text_v5names", "model.language_model."),
    ],
)
def test_published_checkpoints_hold_the_tensors_we_expect(data_dir, make, file, prefix):
    published = json.loads((data_dir / "gemma" / "shapes" / f"{file}.json").read_text())
    model = gemma.Model(make())
    leaves, size = layout.huggingface(model.config, model.letters(), prefix=prefix), layout.sizes(model.config)
    expected = {stored.name: list(layout.shape(stored.axes, size)) for leaf in leaves for stored in leaf.stored}
    assert expected == published
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.shapes()))
    assert count == sum(math.prod(shape) for shape in published.values())


@pytest.mark.parametrize(
    "make, file, transposed, rows",
    [
        (config.gemma2_2b, "orbax_gemma2-2b", False, 256_128),
        (config.gemma3_270m, "orbax_gemma3-270m", True, 262_144),
        (config.gemma3_1b, "orbax_gemma3-1b", True, 262_144),
        (config.gemma3_4b, "orbax_gemma3-4b-text", True, 262_144),
    ],
)
def test_published_flax_checkpoints_hold_the_tensors_we_expect(data_dir, make, file, transposed, rows):
    published = json.loads((data_dir / "gemma" / "shapes" / f"{file}.json").read_text())
    model = gemma.Model(make())
    size = layout.sizes(model.config)
    expected = {}
    for leaf in layout.flax(model.config, model.letters(), transposed_gating=transposed):
        for stored in leaf.stored:
            shape = layout.shape(stored.axes, size)
            expected[stored.name] = list(shape if stored.part is None else (2, *shape))
    expected["transformer/embedder.input_embedding"][0] = rows
    assert expected == published


def test_all_differences_are_named():
    expected = {"a": (2,), "b": (2, 3), "c": (1,), "d": (1,)}
    found = {"b": ((3, 2), "F32"), "c": ((1,), "I64"), "d": ((1,), "BF16"), "e": ((1,), "F32"), "a": ((2,), "F32")}
    assert layout.differences(expected, found, ["F32", "BF16"]) == [
        "unexpected e",
        "b has shape (3, 2), expected (2, 3)",
        "c is I64, expected one of F32, BF16",
        "d is BF16, the others are F32",
    ]
    with pytest.raises(ValueError, match=r"here does not hold this model: x; .*; and 3 more"):
        layout.refuse("here", ["x"] * (layout.NUM_SHOWN + 3))
    layout.refuse("here", [])
