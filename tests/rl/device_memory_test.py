import types

import jax
import pytest

from thinkfirst.rl import device_memory

GIB = 2**30


def test_the_compilers_error_says_what_was_asked_for():
    first = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (23.50G)"
    assert device_memory.asked_bytes(first + " exceeds available HBM (15.75G).") == int(23.5 * GIB)
    second = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm. Exceeded"
    assert device_memory.asked_bytes(second) == int(17.5 * GIB)
    assert device_memory.asked_bytes("INVALID_ARGUMENT: (23.50G) exceeds available HBM") is None


def failing(message):
    """A program whose compiler says `message`."""

    def fail():
        raise jax.errors.JaxRuntimeError(message)

    return types.SimpleNamespace(compile=fail)


def test_a_program_that_is_too_large_is_none_and_what_it_asked_for():
    text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm."
    assert device_memory.compiled(failing(text)) == (None, int(17.5 * GIB))


def test_another_error_of_the_compiler_is_not_taken_for_too_little_memory():
    with pytest.raises(ValueError, match="the compiler gave up: INTERNAL: broken"):
        device_memory.compiled(failing("INTERNAL: broken"))


def test_a_device_says_itself_what_it_has():
    stats = {"bytes_limit": 7 * GIB, "bytes_in_use": GIB}
    device = types.SimpleNamespace(device_kind="NVIDIA H200", memory_stats=lambda: stats)
    assert device_memory.limit(device) == 7 * GIB
    silent = types.SimpleNamespace(device_kind="abacus", memory_stats=lambda: None)
    with pytest.raises(ValueError, match="abacus: says nothing of its memory"):
        device_memory.limit(silent)
