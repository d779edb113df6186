"""Estimated cycles: the arithmetic by hand, the compiler's word for real, and published timings."""

import importlib.util
import json
import sys

import pytest

from thinkfirst.kernels.cost import chips, profile

CALIBRATION = "thinkfirst.kernels.cost.calibration"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="left out: estimates of TPU cycles; libtpu is not installed"
)
SAID = {"temp_bytes": 1024, "vmem_bytes": 4096, "kernels": ["flash.1", "flash.2"], "looked_up": []}
FLASH = [{"name": "flash", "bytes": 5_460_000}, {"name": "flash", "bytes": 546}]


def test_a_chip_turns_bytes_into_cycles():
    assert chips.named("v5e").hbm_bytes_per_cycle == 546.0
    with pytest.raises(ValueError, match=r"'v9'; there are v5e, v5p, v6e"):
        chips.named("v9")


def test_each_operation_is_held_to_the_time_of_its_bytes():
    static = {"flash.1": 7_000, "flash.2": 9_000, "fusion": 500, "reduce": 10}
    said = {**SAID, "moved": FLASH, "moved_by_xla": {"fusion": 5460, "reduce": 54_600, "inside.a.fusion": 10**9}}
    found = profile.summed(chips.named("v5e"), said, static, {"flash.1": 8192, "flash.2": 4096, "fusion": 65_536})
    assert found.operations == {"flash.1": 10_000, "flash.2": 9_000, "fusion": 500, "reduce": 100}
    assert (found.cycles, found.static_cycles, found.kernel_cycles) == (19_600, 16_510, 19_000)
    assert (found.hbm_bytes, found.temp_bytes, found.vmem_bytes) == (5_460_546, 1024, 4096)
    assert found.spill_bytes == 8192, "what the worst of our kernels spills; XLA's own operations are not ours to tune"


def test_a_kernel_is_known_by_the_name_of_its_call_though_it_was_differentiated():
    calls = [{"name": name, "bytes": size} for size, name in enumerate(("flash", "old_flash", "flash", "flash_back"))]
    kernels = ["jvp_old_flash_.1", "jvp_flash_.2", "flash.1", "transpose_jvp_flash_back__.1"]
    assert profile.bytes_of_kernels(kernels, calls) == dict(zip(kernels, (1, 0, 2, 3), strict=True))
    with pytest.raises(profile.ProfileError, match=r"body\.1 comes from no Pallas call that has a name"):
        profile.bytes_of_kernels(["body.1"], [{"name": "", "bytes": 1}])


def test_profiles_are_read_from_the_files_libtpu_writes(tmp_path):
    (tmp_path / "a.textproto").write_text(
        'hlo_op_estimate {\n  hlo_op_name: "matmul.1"\n  estimated_cycles: 24866\n  num_equivalent_hlos: 1\n}\n'
        'hlo_op_estimate {\n  hlo_op_name: "fusion"\n  estimated_cycles: 10\n  num_equivalent_hlos: 3\n}\n'
    )
    (tmp_path / "b.textproto").write_text('hlo_op_estimate {\n  hlo_op_name: "reduce.1"\n}\n')
    assert profile.read_profiles(tmp_path) == {"matmul.1": 24866, "fusion": 30, "reduce.1": 0}


def test_spills_are_read_from_the_report_on_vmem(tmp_path):
    blocks = [
        {"allocations": [{"size": 8192, "tag": "SPILL"}, {"size": 2**20, "tag": "window", "shape": "u8[1048576]"}]},
        {"allocations": [{"size": 4096, "tag": "SPILL"}]},
    ]
    operations = {"matmul.1": {"blocks": blocks}, "copy": {"blocks": [{"allocations": [{"size": 4096}]}]}}
    report = json.dumps({"global_info": {"module_name": "x"}, "hlo_breakdowns": operations}, indent=2)
    (tmp_path / "1-TLP-00-vmem_report.html").write_text(f"<script>\n const DATA ={report};\n let a = {{}};\n</script>")
    assert profile.read_spills(tmp_path) == {"matmul.1": 12_288, "copy": 0}
    (tmp_path / "1-TLP-00-vmem_report.html").write_text("<script></script>")
    with pytest.raises(profile.ProfileError, match="not of the form"):
        profile.read_spills(tmp_path)


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        (
            "E1 x\nE1 y] Static LLO profiling of copy.3 failed: INVALID_ARGUMENT: dma-general\n",
            "libtpu cannot profile copy.3: INVALID_ARGUMENT: dma-general",
        ),
        (
            "F1 llo.cc:66] Check failed: TakeStatus() is OK (INTERNAL)\n in HLO [fusion.8] \n",
            "libtpu gave up on fusion.8: TakeStatus() is OK (INTERNAL)",
        ),
        ("Traceback\n  x\njax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: vmem\n", "JaxRuntimeError: RESOURCE_EXH"),
        ("Traceback\n  x\nKeyError: 'gone'\nsomething after it\n", "exit status 1: KeyError: 'gone'"),
        ("", "exit status 1: it said nothing"),
    ],
)
def test_a_failure_is_told_in_one_line_with_the_operation(stderr, expected):
    assert expected in profile.why(1, stderr)
    assert "\n" not in profile.why(1, stderr)


def test_without_libtpu_no_estimate_is_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(profile.Unavailable, match=r"pip install 'thinkfirst\[tpu\]'"):
        profile.estimate(CALIBRATION, "matmul_xla", chip="v5e")


def test_a_child_that_fails_is_an_error_that_names_the_case():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("left out: a case that does not exist, asked of a real child; libtpu is not installed")
    with pytest.raises(profile.ProfileError, match=r"gone for v5e: .*KeyError: 'gone'"):
        profile.estimate(CALIBRATION, "gone", chip="v5e")


@needs_libtpu
@pytest.mark.long
def test_a_child_tells_memory_kernels_and_cycles():
    found = profile.estimate(CALIBRATION, "matmul_small", chip="v5e")
    assert list(found.operations) == ["matmul.1"]
    # 2 x 512 x 1024 x 1024 x 2 FLOP at 131,072 a cycle is 16,384; the rest is filling the pipeline
    assert 16_384 < found.cycles < 33_000
    assert found.hbm_bytes == (2 * 512 * 1024 + 1024 * 1024 + 1024 * 1024) * 2
    assert found.temp_bytes == 0
    assert 0 < found.spill_bytes < found.vmem_bytes < 16 * 2**20
    assert profile.estimate(CALIBRATION, "matmul_small", chip="v5e") == found, "the count must not vary"


@needs_libtpu
@pytest.mark.long
@pytest.mark.parametrize("chip", list(chips.CHIPS))
def test_a_large_block_spills_and_a_small_one_does_not(chip):
    """A block of 512 x 1024 sums is 512 registers of 8 x 128, one of 128 x 128 is 16; there are 64."""
    assert profile.estimate(CALIBRATION, "matmul_small_block", chip=chip).spill_bytes == 0
    spilled = profile.estimate(CALIBRATION, "matmul_small", chip=chip).spill_bytes
    assert spilled > 0
    assert spilled % 4096 == 0


@needs_libtpu
@pytest.mark.long
@pytest.mark.parametrize("case", ["matmul_pallas", "matmul_xla"])
def test_estimates_agree_with_published_timings(case):
    """JAX's guide to Pallas matmuls, v5e, 4096^3: seconds of a call less 0.11 ms, which is what any call took there."""
    published = {"matmul_pallas": 0.889e-3 - 0.11e-3, "matmul_xla": 0.827e-3 - 0.11e-3}
    chip = chips.named("v5e")
    found = profile.estimate(CALIBRATION, case, chip=chip.name)
    assert found.cycles / chip.clock_hz == pytest.approx(published[case], rel=0.1)
