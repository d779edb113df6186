"""The bench as a program: what it refuses, and what it says of kernels, counted or not."""

import dataclasses
import json

import pytest

from thinkfirst.kernels.cost import profile, table
from thinkfirst.launch import bench
from thinkfirst.launch.benchmarks import cycle_counts, cycle_table

COUNTS = {
    "causal_g3_fwd": 100_000,
    "causal_g3_bwd": 340_000,
    "packed_causal_fwd": 40_000,
    "splash_causal_g3_fwd": 140_000,
    "splash_causal_g3_fwd_bwd": 400_000,
    "window_fwd_bwd": 216_000,
    "splash_window_fwd_bwd": 300_000,
}


@pytest.fixture
def counted(monkeypatch):
    """The counter replaced by COUNTS; a list of what it was asked for."""
    asked = []

    def estimate(module, case, *, chip, trial=None):
        asked.append((case, chip))
        if case not in COUNTS:
            raise profile.ProfileError(f"{case} for {chip}: libtpu cannot profile copy.1")
        cycles = COUNTS[case] - (trial or {"sizes": {}})["sizes"].get("block", 0)
        return profile.Estimate(
            cycles=cycles,
            static_cycles=cycles,
            kernel_cycles=cycles - 5000,
            hbm_bytes=10**6,
            temp_bytes=2**20,
            vmem_bytes=2**22,
            spill_bytes=2**19,
            operations={"kernel.1": cycles - 5000, "fusion": 5000},
            looked_up=[["causal", "4 heads"], ["window", "1 head"]],
        )

    monkeypatch.setattr(profile, "require", lambda: None)
    monkeypatch.setattr(profile, "estimate", estimate)
    monkeypatch.setattr(profile, "temp_bytes", lambda module, case, *, chip: 30 * 2**20)
    monkeypatch.setattr(cycle_counts, "versions", lambda chips: {"libtpu": "0.0.1"})
    monkeypatch.setattr(table, "module_of", lambda op, case: f"kernels.{op}.cases")
    return asked


def run(*arguments):
    return bench.main(["bench", *arguments])


def kernels(tmp_path, *arguments, status=0):
    out = tmp_path / "figures.json"
    assert run("--suite=kernels", f"--out={out}", *arguments) == status
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--suite=gpu"], "--suite=gpu: there is kernels, rollout, learner, step, learning"),
        (["--suite=learning,step"], "--suite=learning takes hours and stands alone"),
        (["--suite=learner", "--peer=tunix"], "--peer means nothing here"),
        (["--suite=learner", "--cases=updates"], "no case 'updates'; there are update, score, token_logprob"),
        (["--suite=learning", "--seeds=0,one"], "--seeds=0,one: numbers, such as 0,1,2"),
        (["--suite=learning", "--recipe=nobody"], "--recipe=nobody: there is demo_base"),
        (["--worse=1.1"], "--worse=1.1: takes --compare"),
        (["--compare=nowhere.json"], "nowhere.json: no figures to compare with: "),
        (["--suite=kernels"], "needs --tpu_estimate: v5e, v5p, v6e"),
        (["--suite=kernels", "--tpu_estimate=v9"], "'v9'"),
        (["--suite=kernels", "--tpu_estimate=v5e", "--cases=window"], "no case 'window'; there are window_fwd"),
        (["--suite=kernels", "--tpu_estimate=v5e", "--report=nowhere.md"], "nowhere.md: no place for the table"),
        (["--cases=window_fwd"], "--cases are those of one suite"),
        (["window_fwd"], "unexpected argument 'window_fwd'"),
    ],
)
def test_what_it_cannot_do_it_says(arguments, complaint, capsys):
    assert run(*arguments) == 2
    assert complaint in capsys.readouterr().err


def test_without_libtpu_it_says_how_to_get_it(monkeypatch, capsys):
    def missing():
        raise profile.Unavailable("libtpu is not installed")

    monkeypatch.setattr(profile, "require", missing)
    assert run("--suite=kernels", "--tpu_estimate=v5e") == 2
    assert "libtpu is not installed" in capsys.readouterr().err


def test_a_backward_pass_is_counted_without_its_forward_pass(counted, tmp_path):
    (figure,) = kernels(tmp_path, "--tpu_estimate=v5e", "--cases=causal_g3_bwd")
    assert figure["cycles"] == 240_000
    assert (figure["peer_cycles"], figure["peer_kernel_cycles"]) == (260_000, 260_000)
    assert (figure["case"], figure["chip"], figure["target"]) == ("causal_g3_bwd", "v5e", 245_000)
    assert figure["versions"] == {"libtpu": "0.0.1"}


def test_packing_is_a_ratio_and_nothing_is_counted_twice(counted, tmp_path):
    found = kernels(tmp_path, "--tpu_estimate=v5e", "--cases=causal_g3_fwd,packed_ratio", "--nopeers")
    assert found[1]["ratio"] == 0.4
    assert counted == [("causal_g3_fwd", "v5e"), ("packed_causal_fwd", "v5e")]


def test_memory_is_that_of_the_larger_shape_where_a_target_names_it(counted, tmp_path, capsys):
    (figure,) = kernels(tmp_path, "--tpu_estimate=v5e", "--cases=window_fwd_bwd")
    assert (figure["temp_bytes"], figure["temp_case"]) == (30 * 2**20, "window_fwd_bwd_memory")
    said = capsys.readouterr().out
    assert "216,000 (kernels alone 211,000)  target 215,000 met by the kernels alone" in said
    assert "temp 30.0 MiB  of 20.0 MiB MISSED" in said
    assert "splash_window_fwd_bwd 300,000 (kernels alone 295,000)" in said


def test_targets_are_for_v5e_only(counted, tmp_path):
    (figure,) = kernels(tmp_path, "--tpu_estimate=v6e", "--cases=causal_g3_fwd")
    assert figure["target"] is None
    assert figure["recorded"] == {}


def test_a_case_that_cannot_be_counted_is_reported_not_left_out(counted, tmp_path, capsys):
    (figure,) = kernels(tmp_path, "--tpu_estimate=v5e", "--cases=sample_head", status=1)
    assert figure["cycles"] is None
    assert "cannot profile copy.1" in figure["error"]
    assert "cannot profile copy.1" in capsys.readouterr().out


def test_the_file_is_a_list_with_what_others_read_of_it(counted, tmp_path):
    """Names of cases and keys are an interface: scripts pick figures out of the file by them."""
    names = "window_fwd window_fwd_bwd causal_g3_fwd causal_g3_bwd causal_g2_fwd causal_g2_bwd packed_ratio"
    names += " token_logprob_fwd_grad token_logprob_fwd sample_head ring_decode full_decode lora_fwd"
    found = kernels(tmp_path, "--tpu_estimate=v5e", f"--cases={','.join(names.split())}", status=1)
    assert [figure["case"] for figure in found] == names.split()
    for figure in found:
        keys = {"case", "chip", "cycles", "temp_bytes", "target", "peer", "peer_cycles", "versions"}
        assert keys | {"vmem_bytes", "spill_bytes", "hbm_bytes"} <= set(figure)


def test_a_kernel_that_was_decided_against_is_no_failure(counted, tmp_path, capsys):
    (figure,) = kernels(tmp_path, "--tpu_estimate=v5e", "--cases=lora_fwd")
    assert (figure["cycles"], figure["error"], figure["peer"]) == (None, "", "lora_xla_fwd")
    assert "not built: " in figure["not_built"]
    assert figure["not_built"] in capsys.readouterr().out
    assert f"| lora_fwd | v5e | {figure['not_built']} | 590,000 |" in cycle_table.render([figure])
    assert not [case for case, _ in counted if case == "lora_fwd"]


def test_a_kernel_that_does_not_exist_is_reported_not_left_out(monkeypatch):
    missing = dataclasses.replace(table.ROWS[0], op="no_such_kernel")
    with pytest.raises(LookupError, match="kernels/no_such_kernel offers no cases"):
        table.module_of(missing.op, missing.case)


def test_a_search_is_refused_a_report(counted, capsys):
    assert run("--suite=kernels", "--tpu_estimate=v5e", "--search", "--report=docs/kernels.md") == 2
    assert "--report means nothing here" in capsys.readouterr().err


def test_the_report_goes_between_its_markers_and_nowhere_else(counted, tmp_path):
    page = tmp_path / "kernels.md"
    page.write_text(f"before\n{cycle_table.BEGIN}\nold\n{cycle_table.END}\nafter\n")
    figures = kernels(
        tmp_path, "--tpu_estimate=v5e", "--cases=window_fwd_bwd,causal_g3_fwd,packed_ratio", f"--report={page}"
    )
    text = page.read_text()
    assert text.startswith(f"before\n{cycle_table.BEGIN}\n")
    assert text.endswith(f"{cycle_table.END}\nafter\n")
    assert "old" not in text
    assert cycle_table.render(figures) in text
    assert "| window_fwd_bwd | v5e | 216,000 (kernels alone 211,000) | 215,000, met by the kernels alone |" in text
    assert "| 30.0 MiB of 20.0 MiB, MISSED | 4.0 MiB | 0.5 MiB |" in text
    assert "| packed_ratio | v5e | 0.400 | 0.450, met |" in text
    assert "tokamax splash (recorded)" in text
    assert "with libtpu 0.0.1" in text
