"""Two stand-ins for jax-triton, which cannot be imported without a GPU build of JAX.

`interpret()`: every `triton_call` runs on the CPU under Triton's interpreter, its outputs first filled with NaN, every
operand between two guard strips of NaN.  `record()`: nothing runs, and `compile_for_hopper` builds what was called.
Both see the very arguments that jax-triton would get.  For programs that a test starts, never for pytest itself.
"""

import importlib.machinery
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thinkfirst.kernels import placement

GUARD = 64  # elements before and behind each array
COMPILER_OPTIONS = ("name", "num_warps", "num_stages")


class Call(NamedTuple):
    kernel: Any
    dtypes: tuple[str, ...]  # of the arrays, inputs first
    constants: dict[str, Any]
    options: dict[str, Any]


class Guarded:
    """A numpy array that Triton's interpreter takes for a tensor on the CPU."""

    def __init__(self, array: np.ndarray) -> None:
        filler = np.nan if jnp.issubdtype(array.dtype, jnp.floating) else -(2**30)
        self.memory = np.full(array.size + 2 * GUARD, filler, array.dtype)
        self.memory[GUARD : GUARD + array.size] = array.reshape(-1)
        self.shape, self.dtype = array.shape, array.dtype

    def array(self) -> np.ndarray:
        inside = self.memory[GUARD : self.memory.size - GUARD]
        outside = np.concatenate([self.memory[:GUARD], self.memory[self.memory.size - GUARD :]])
        untouched = np.isnan(outside) if jnp.issubdtype(self.dtype, jnp.floating) else outside == -(2**30)
        assert untouched.all(), "a kernel wrote outside its output"
        return inside.reshape(self.shape)

    def data_ptr(self) -> int:
        return self.memory.ctypes.data + GUARD * self.memory.itemsize

    def untyped_storage(self) -> "Guarded":
        return self

    def cpu(self) -> "Guarded":
        return self

    def new_empty(self, *_: Any, **__: Any) -> "Guarded":
        return self

    def set_(self, *_: Any) -> None:
        """Shares memory already."""

    copy_ = set_

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.shape

    def stride(self) -> tuple[int, ...]:
        return ()


def _install(triton_call: Any) -> None:
    """The dispatch of `api.py` finds jax-triton, and a GPU, so that what is tested is what callers get."""
    module = types.ModuleType("jax_triton")
    module.__spec__ = importlib.machinery.ModuleSpec("jax_triton", None)
    placement.platform = lambda: "gpu"  # type: ignore[assignment]
    module.triton_call = triton_call  # type: ignore[attr-defined]
    sys.modules["jax_triton"] = module


def interpret() -> None:
    assert "triton" not in sys.modules, "the interpreter is chosen when triton is imported"
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    patch, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot
    convert = interpreter._convert_float

    def round_to_nearest(data: Any, source: Any, target: Any, mode: Any) -> Any:
        """Triton 3.6 cuts a float32 off where the hardware rounds it to bfloat16."""
        if (source, target) == (interpreter.tl.float32, interpreter.tl.bfloat16):
            return data.astype(jnp.bfloat16).view(np.uint16)
        return convert(data, source, target, mode)

    interpreter._convert_float = round_to_nearest

    def widen(tile: Any) -> Any:
        """Triton 3.6 multiplies the bits of bfloat16 numbers, which it keeps as uint16."""
        if tile.data.dtype != np.uint16:
            return tile
        return interpreter.TensorHandle(tile.data.view(jnp.bfloat16).astype(np.float32), interpreter.tl.float32)

    interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(self, widen(a), widen(b), *rest)

    def patch_and_index(tensor: Any, scope: Any) -> None:
        """Triton 3.6 calls int() on arrays of one element, which NumPy 2.4 refuses."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_index

    def triton_call(*arrays: Any, kernel: Any, out_shape: Any, grid: Any, **rest: Any) -> Any:
        shapes, tree = jax.tree.flatten(out_shape)
        constants = {name: value for name, value in rest.items() if name not in COMPILER_OPTIONS}

        def run(*inputs: Any) -> Any:
            operands = [Guarded(np.asarray(array)) for array in inputs]
            empty = [np.full(shape.shape, np.nan, shape.dtype) for shape in shapes]
            outputs = [Guarded(array) for array in empty]
            with np.errstate(all="ignore"):
                kernel[grid](*operands, *outputs, **constants)
            return tree.unflatten([output.array() for output in outputs])

        return jax.pure_callback(run, out_shape, *arrays, vmap_method="sequential")

    _install(triton_call)


def record() -> list[Call]:
    """Calls made from now on, in order."""
    calls: list[Call] = []

    def triton_call(*arrays: Any, kernel: Any, out_shape: Any, grid: Any, **rest: Any) -> Any:
        dtypes = tuple(str(array.dtype) for array in (*arrays, *jax.tree.leaves(out_shape)))
        constants = {name: value for name, value in rest.items() if name not in COMPILER_OPTIONS}
        calls.append(Call(kernel, dtypes, constants, {name: rest[name] for name in COMPILER_OPTIONS}))
        return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), out_shape)

    _install(triton_call)
    return calls


def compile_for_hopper(call: Call) -> dict[str, Any]:
    """Registers, spilled bytes (`stack`) and shared memory of a call compiled for sm_90, and whether it uses wgmma."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = call.kernel.arg_names
    short = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32", "int32": "*i32"}
    pointers = dict(zip(names, (short[dtype] for dtype in call.dtypes), strict=False))
    assert set(names) == set(pointers) | set(call.constants), f"{names} called with {pointers} and {call.constants}"
    source = ASTSource(
        call.kernel,
        {name: pointers.get(name, "constexpr") for name in names},
        constexprs=call.constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in range(len(pointers))},
    )
    options = {name: call.options[name] for name in ("num_warps", "num_stages")}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text.stdout)}
    return {
        "name": call.options["name"],
        "registers": usage["REG"],
        "stack": usage["STACK"] + usage["LOCAL"],
        "shared": compiled.metadata.shared,
        "wgmma": "wgmma.mma_async" in compiled.asm["ptx"],
    }
