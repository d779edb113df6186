"""Seconds by phase and scope, from traces small enough to add up by hand: of a CPU, a TPU and a GPU."""

import ast
import itertools
import random

import jax
import pytest

from house import source
from thinkfirst.core import timeline
from thinkfirst.core.timeline import Piece

PROGRAM = """\
HloModule jit_advance, is_scheduled=true

%body (param: (s32[], f32[2,8])) -> (s32[], f32[2,8]) {
  %param = (s32[], f32[2,8]{1,0}) parameter(0)
  %fusion.1 = f32[2,8]{1,0:T(2,128)} fusion(%param), calls=%fused, metadata={op_name="BODY/decode/add" stack_frame_id=1}
  %call.2 = f32[2,8]{1,0} custom-call(%fusion.1), metadata={op_name="BODY/decode/decode_attention/pallas_call"}
  ROOT %copy.3 = (s32[], f32[2,8]{1,0}) tuple(%call.2)
}

ENTRY %main (x: f32[2,8]) -> f32[2,8] {
  %x = f32[2,8]{1,0} parameter(0), metadata={op_name="x"}
  %while.4 = (s32[], /*index=1*/f32[2,8]{1,0}) while(%x), body=%body, metadata={op_name="jit(advance)/rollout/while"}
  %copy.5 = f32[2,8]{1,0} copy(%while.4)
  ROOT %sort.6 = f32[2,8]{1,0} sort(%copy.5), metadata={op_name="jit(advance)/rollout/sample/sort"}
}
""".replace("BODY", "jit(advance)/rollout/while/body")
DECODE, ATTENTION = ("rollout", "decode"), ("rollout", "decode", "decode_attention")


class Event:
    def __init__(self, name, start, end, **stats):
        self.name, self.start_ns, self.end_ns = name, float(start), float(end)
        self.stats = list(stats.items())


class Line:
    def __init__(self, name, *events):
        self.name, self.events = name, events


class Plane:
    def __init__(self, name, *lines):
        self.name, self.lines = name, lines


class Data:
    def __init__(self, *planes):
        self.planes = planes


def operation(name, start, end, *, device=0, run=1, program="jit_advance"):
    return Event(name, start, end, hlo_op=name, hlo_module=program, program_id=9, run_id=run, device_ordinal=device)


def programs(name):
    return [PROGRAM] if name == "jit_advance" else []


def nanoseconds(data, *steps):
    """The table without the noise of floats."""
    found = timeline.read(data)
    return {path: round(time * 1e9) for path, time in timeline.table(found, steps or found.steps, programs).items()}


def host(*events):
    return Line("python", Event("step", 0, 1000, step_num=7), *events)


def test_time_of_two_cpu_devices_by_hand():
    """The loop on device 0 counts nothing by itself; device 1 idles from 500 on, while device 0 works until 600."""
    data = Data(
        Plane(
            "/host:CPU",
            host(Event("phase:rollout", 0, 700), Event("phase:reward", 750, 950)),
            Line(
                "pool",
                operation("while.4", 100, 550),
                operation("fusion.1", 100, 200),
                Event("end: fusion.1", 200, 200),
                operation("call.2", 220, 300),  # 20 between two of decode
                operation("fusion.1", 300, 400),
                operation("sort.6", 410, 600),  # 10 between decode and sample: the rollout's
                operation("copy.5", 100, 500, device=1),
                operation("odd.1", 500, 510, device=1, run=2, program="jit_odd"),
            ),
        )
    )
    expected = {  # of both devices, to be halved
        DECODE: 100 + 100 + 20,
        ATTENTION: 80,
        ("rollout", "sample"): 190,
        ("rollout",): 10 + 400,
        ("rollout", timeline.NO_SCOPE, "jit_odd"): 10,
        ("rollout", timeline.WAITING): 90,
        ("rollout", timeline.HOST): 2 * (100 + 100),
        ("reward", timeline.HOST): 2 * 200,
        (): 2 * 100,
    }
    assert nanoseconds(data) == {path: time / 2 for path, time in expected.items()}
    assert sum(expected.values()) == 2 * 1000


def test_compiling_is_told_from_other_work_of_the_host():
    data = Data(
        Plane(
            "/host:CPU",
            host(
                Event("phase:update", 0, 900),
                Event("PjitFunction(step)", 100, 600),
                Event("PjitFunction(step)", 101, 600),
                Event("backend_compile_and_load", 200, 500),
                Event("PjitFunction(step)", 700, 800),
            ),
            Line("pool", operation("sort.6", 550, 700)),
            Line("another thread", Event("PjitFunction(f)", 0, 300), Event("backend_compile", 1, 2)),
        )
    )
    expected = {
        ("update", timeline.COMPILING): 450,
        ("update", "rollout", "sample"): 150,
        ("update", timeline.HOST): 300,
        (): 100,
    }
    assert nanoseconds(data) == expected


def test_only_the_steps_asked_for_count():
    step = lambda number, start: Event("step", start, start + 100, step_num=number)  # noqa: E731
    other = Event("step", 0, 5, group_id=3)  # somebody's of that name
    phases = Event("phase:update", 0, 250), Event("phase:log", 250, 300)
    data = Data(Plane("/host:CPU", Line("python", step(1, 0), step(2, 100), step(3, 200), other, *phases)))
    assert nanoseconds(data, 2) == {("update", timeline.HOST): 100}
    assert nanoseconds(data, 2, 3) == {("update", timeline.HOST): 150, ("log", timeline.HOST): 50}


TPU = """
planes { name: "/host:CPU"
  lines { id: 1 name: "python" timestamp_ns: 1000
    events { metadata_id: 1 offset_ps: 0 duration_ps: 1000000 stats { metadata_id: 1 int64_value: 7 } }
    events { metadata_id: 2 offset_ps: 0 duration_ps: 1000000 } }
  event_metadata { key: 1 value { id: 1 name: "step" } }
  event_metadata { key: 2 value { id: 2 name: "phase:rollout" } }
  stat_metadata { key: 1 value { id: 1 name: "step_num" } } }
planes { name: "/device:TPU:0"
  lines { id: 1 name: "XLA Modules" timestamp_ns: 1000
    events { metadata_id: 1 offset_ps: 100000 duration_ps: 500000 } }
  lines { id: 2 name: "XLA Ops" timestamp_ns: 1000
    events { metadata_id: 2 offset_ps: 100000 duration_ps: 500000 }
    events { metadata_id: 3 offset_ps: 100000 duration_ps: 200000 }
    events { metadata_id: 4 offset_ps: 350000 duration_ps: 50000 STATS }
    events { metadata_id: 5 offset_ps: 500000 duration_ps: 100000 } }
  lines { id: 3 name: "Async XLA Ops" timestamp_ns: 1000
    events { metadata_id: 3 offset_ps: 0 duration_ps: 900000 } }
  event_metadata { key: 1 value { id: 1 name: "jit_advance(123)" } }
  event_metadata { key: 2 value { id: 2 name: "%while.4 = (s32[], f32[2,8]{1,0}) while((s32[]) %x), body=%body" } }
  event_metadata { key: 3 value { id: 3 name: "%fusion.1 = f32[2,8]{1,0:T(2,128)} fusion(f32[2,8] %param)" } }
  event_metadata { key: 4 value { id: 4 name: "%call.2 = f32[2,8]{1,0} custom-call(f32[2,8] %fusion.1)" } }
  event_metadata { key: 5 value { id: 5 name: "%sort.6 = f32[2,8]{1,0} sort(f32[2,8] %copy.5)" } }
  stat_metadata { key: 1 value { id: 1 name: "tf_op" } } }
planes { name: "/device:TPU:0 SparseCore 0" }
"""
TOLD = 'stats { metadata_id: 1 str_value: "jit(advance)/rollout/while/body/decode/token_logprob/dot:" }'


@pytest.mark.parametrize(
    ("stats", "path"), [("", ATTENTION), (TOLD, ("rollout", "decode", "token_logprob"))], ids=["by name", "as told"]
)
def test_time_of_a_tpu_by_hand(stats, path):
    """By the names of operations in the program that runs, or as the trace itself has it."""
    written = jax.profiler.ProfileData.text_proto_to_serialized_xspace(TPU.replace("STATS", stats))
    expected = {
        DECODE: 200 + 50,  # 50 between two of decode
        path: 50,
        ("rollout", "sample"): 100,
        ("rollout",): 100,
        ("rollout", timeline.HOST): 500,
    }
    assert nanoseconds(jax.profiler.ProfileData.from_serialized_xspace(written)) == expected


def test_time_of_a_gpu_by_hand():
    """Its streams name operation and program; runs cannot be told apart, so that gaps are nobody's."""
    kernel = lambda name, start, end: Event(f"loop_{name}", start, end, hlo_op=name, hlo_module="jit_advance")  # noqa: E731
    data = Data(
        Plane("/host:CPU", host(Event("phase:rollout", 0, 1000))),
        Plane(
            "/device:GPU:0",
            Line("Stream #1(Compute)", kernel("fusion.1", 0, 100), kernel("call.2", 200, 300), Event("memset", 0, 900)),
            Line("Stream #2(Compute)", kernel("sort.6", 250, 350)),
        ),
    )
    assert nanoseconds(data) == {DECODE: 100, ATTENTION: 50, ("rollout", "sample"): 100, ("rollout", "host"): 750}


def test_the_program_of_that_name_that_knows_the_operations_is_taken():
    op = lambda start, name: timeline.Op(start, start + 10, name, "jit_advance", (9, 1), "")  # noqa: E731
    ops = [op(0.0, "fusion.1"), op(10.0, "sort.6")]
    other = 'ENTRY %main () -> f32[] {\n  %fusion.1 = f32[] fusion(), metadata={op_name="jit(advance)/update/add"}\n}\n'
    found = timeline.Trace({1: (0.0, 20.0)}, [Piece(0.0, 20.0, "rollout")], {"CPU 0": ops})
    for texts in ([other, PROGRAM], [PROGRAM, other]):
        assert timeline.table(found, [1], lambda name, texts=texts: texts).keys() == {DECODE, ("rollout", "sample")}


def test_the_scopes_in_a_program():
    assert timeline.paths_in(PROGRAM) == {
        "param": DECODE,
        "fusion.1": DECODE,
        "call.2": ATTENTION,
        "copy.3": DECODE,
        "x": (),
        "while.4": None,
        "copy.5": ("rollout",),
        "sort.6": ("rollout", "sample"),
    }


@pytest.mark.parametrize(
    ("op_name", "path"),
    [
        ("jit(step)/update/while/body/jvp(flash_attention)/dot_general", ("update", "flash_attention")),
        ("jit(step)/update/transpose(jvp(flash_attention))/exp", ("update", "backward", "flash_attention")),
        ("jit(step)/transpose(jvp(update))/transpose(jvp(score))/a", ("backward", "update", "score")),
        ("jit(update)/shard_map/decode/jit(sample)/transpose", ("decode",)),
        ("jit(advance)/rollout/sample/shard_map/sample/sort", ("rollout", "sample")),
        ("jit(f)/prefilled/update.1/my_score", ()),
        ("", ()),
    ],
)
def test_the_scopes_in_a_name(op_name, path):
    assert timeline.path_of(op_name) == path


def test_no_time_is_counted_twice_however_events_nest_and_overlap():
    rng = random.Random(3)
    for _ in range(200):
        starts = [rng.randrange(100) for _ in range(rng.randrange(1, 12))]
        events = [Piece(float(start), float(start + rng.randrange(30)), number) for number, start in enumerate(starts)]
        found = timeline.innermost(events)
        assert all(one.end <= other.start for one, other in itertools.pairwise(found))
        for time in range(130):
            here = [event for event in events if event.start <= time < event.end]
            mine = [piece for piece in found if piece.start <= time < piece.end]
            assert len(mine) == bool(here)
            if here:
                assert events[mine[0].path].start == max(event.start for event in here)


def scopes(module):
    """The named scopes that a module opens."""
    calls = [node for node in ast.walk(module.tree) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "named_scope"]
    return [(call, ast.literal_eval(call.args[0])) for call in named]


def test_every_named_scope_is_summed_and_there_are_no_others():
    opened = [(module, *found) for module in source.modules() for found in scopes(module)]
    source.expect_none(
        module.at(call, f"scope {name!r} is not in core/timeline.py")
        for module, call, name in opened
        if name not in timeline.SCOPES
    )
    assert {name for _, _, name in opened} == set(timeline.SCOPES)
    assert scopes(source.planted("rl/a.py", 'with jax.named_scope("new"): pass'))[0][1] not in timeline.SCOPES
