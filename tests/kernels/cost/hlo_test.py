"""Bytes of the operations in a compiled program's text, against counts made by hand."""

from thinkfirst.kernels.cost import hlo

TEXT = """HloModule jit_f, is_scheduled=true

%fused_computation (param_0: f32[64,1024], param_1: pred[64]) -> (f32[64], s32[64]) {
  %param_0 = f32[64,1024]{1,0:T(8,128)} parameter(0)
  ROOT %reduce.1 = (f32[64]{0:T(128)}, s32[64]{0:T(128)}) reduce(%param_0, %param_0), to_apply=%region
}

%fused_computation.1 (param_0.1: bf16[4096,128], param_1.1: s32[8]) -> bf16[8,128] {
  %param_0.1 = bf16[4096,128]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1.1 = s32[8]{0:T(128)} parameter(1)
  ROOT %gather.1 = bf16[8,128]{1,0:T(8,128)(2,1)} gather(%param_0.1, %param_1.1), offset_dims={1}
}

ENTRY %main (a: f32[64,1024], b: bf16[4096,128], c: s32[8]) -> bf16[8,128] {
  %a = f32[64,1024]{1,0:T(8,128)} parameter(0), metadata={op_name="a"}
  %b = bf16[4096,128]{1,0:T(8,128)(2,1)} parameter(1)
  %c = s32[8]{0:T(128)} parameter(2)
  %held = f32[64,1024]{1,0:T(8,128)S(1)} copy(%a)
  %mask = pred[64]{0:T(128)(4,1)} constant({...})
  %fusion = (f32[64]{0:T(128)}, /*index=1*/s32[64]{0:T(128)}) fusion(%a, /*index=1*/%mask), calls=%fused_computation
  %kernel.1 = f32[64,1024]{1,0:T(8,128)} custom-call(%a), custom_call_target="tpu_custom_call"
  ROOT %gather_fusion = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%b, %c), kind=kCustom, calls=%fused_computation.1
}
"""


def test_an_operation_reads_its_operands_and_writes_its_results():
    found = hlo.hbm_bytes(TEXT)
    assert found["fusion"] == 64 * 1024 * 4 + 64 + (64 * 4 + 64 * 4)


def test_what_lies_in_vmem_is_not_counted():
    assert hlo.hbm_bytes(TEXT)["held"] == 64 * 1024 * 4


def test_a_gather_is_counted_by_its_results():
    assert hlo.hbm_bytes(TEXT)["gather_fusion"] == 8 * 128 * 2


def test_kernels_are_left_to_their_grids():
    assert "kernel.1" not in hlo.hbm_bytes(TEXT)


LOOP = """HloModule jit_f, is_scheduled=true

%body (p: (s32[], f32[64,1024])) -> (s32[], f32[64,1024]) {
  %p = (s32[], f32[64,1024]{1,0}) parameter(0)
  %x = f32[64,1024]{1,0} get-tuple-element(%p), index=1
  %twice = f32[64,1024]{1,0} add(%x, %x)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %next = (s32[], f32[64,1024]{1,0}) tuple(%i, %twice)
}

ENTRY %main (a: f32[64,1024]) -> f32[64,1024] {
  %a = f32[64,1024]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[64,1024]{1,0}) tuple(%zero, %a)
  %loop = (s32[], f32[64,1024]{1,0}) while(%start), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %out = f32[64,1024]{1,0} get-tuple-element(%loop), index=1
  ROOT %kernel = f32[64,1024]{1,0} custom-call(%out, %out), custom_call_target="tpu_custom_call"
}
"""


def test_a_program_moves_what_its_loops_move_as_often_as_they_run():
    array = 64 * 1024 * 4
    assert hlo.program_bytes(LOOP) == 5 * 3 * array + 2 * array
