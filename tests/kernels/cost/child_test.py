"""What the child tells of a case: for real, but compiled only."""

import importlib.util

import pytest

from thinkfirst.kernels import blocks
from thinkfirst.kernels.cost import child

SAMPLE = "thinkfirst.kernels.sample.cases"


@pytest.mark.long
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="left out: block sizes on trial; libtpu is not installed"
)
def test_sizes_on_trial_take_the_place_of_those_a_kernel_would_look_up():
    """Two blocks of the table are in VMEM: 1,152 columns of two bytes each, by 1,024 rows on trial."""
    known = blocks.sizes
    trial = {"op": "sample", "sizes": {"block": 1024, "part": 32}}
    tried = child.described(SAMPLE, "sample_head_short", trial, "v5e:2x2")
    assert tried["looked_up"] == [("sample", "64 rows of 1152 bfloat16")]
    assert 0 < tried["vmem_bytes"] - 2 * 1024 * 1152 * 2 < 2**20
    other = child.described(SAMPLE, "sample_head_short", {**trial, "op": "other"}, "v5e:2x2")
    assert other["vmem_bytes"] - 2 * 2048 * 1152 * 2 > 0, "another op's sizes, and none of ours"
    assert blocks.sizes is known
