"""Checks numbers, then times what was checked: the kernels of the GPU at hand, beside XLA and other people's kernels.

Every side is first held against the reference in float32.  Seconds are medians of sides that take turns; a turn is
CALLS calls and one wait, so that the device is timed and not the host.
"""

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from thinkfirst.core import runtime
from thinkfirst.kernels.decode_attention import api as decode_attention
from thinkfirst.kernels.flash_attention import api as flash_attention
from thinkfirst.kernels.token_logprob import api as token_logprob
from thinkfirst.launch.benchmarks import timing

OURS: Any = "gpu"  # the backend that is measured
CALLS = 10
# Most that a result may be off, as a part of its largest value; weights, score gradients and results are bfloat16.
GAPS = {"context": 8e-3, "gradient": 1e-2, "log-prob": 1e-5, "entropy": 1e-5}
# What a peer raises where it does not take the shape, the setting or the device.
REFUSALS = (ValueError, NotImplementedError, RuntimeError, ExceptionGroup)
PACKAGES = ("jax-triton", "triton", "tokamax")

Figure = dict[str, Any]
Function = Callable[..., dict[str, Array]]  # results by their names in GAPS


class Case(NamedTuple):
    """`exact` on operands of float32 is what every side must give; one call of a side does `units` of its work."""

    operands: tuple[Array, ...]
    exact: Function
    sides: dict[str, Function]
    units: int = 1


def attention(
    batch: int,
    length: int,
    heads: tuple[int, int],
    *,
    width: int = 256,
    texts: int = 1,
    gradient: bool = False,
    **settings: Any,
) -> Case:
    """Attention of training, of `texts` packed in a row; `gradient`: forward and backward."""
    query_heads, kv_heads = heads
    counts = query_heads, kv_heads, kv_heads, query_heads
    query, key, value, upstream = _random(*((batch, length, count, width) for count in counts))
    segment = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32) * texts // length, (batch, length))
    settings = {"scale": width**-0.5, "window": 0, "soft_cap": 0.0, **settings}

    def side(function: Callable[..., Array]) -> Function:
        def run(query: Array, key: Array, value: Array, segment: Array, upstream: Array) -> dict[str, Array]:
            if not gradient:
                return {"context": function(query, key, value, segment)}
            context, pull = jax.vjp(lambda *operands: function(*operands, segment), query, key, value)
            gradients = zip(("query", "key", "value"), pull(upstream), strict=True)
            return {"context": context, **{f"gradient of {name}": found for name, found in gradients}}

        return run

    def of(backend: Any) -> Function:
        return side(functools.partial(flash_attention.attention, **settings, backend=backend))

    sides = {"ours": of(OURS), "xla": of("reference")}
    if texts == 1:
        sides |= {name: side(function) for name, function in _peers(**settings).items()}
    return Case((query, key, value, segment, upstream), of("reference"), sides)


def _peers(*, scale: float, window: int, soft_cap: float) -> dict[str, Callable[..., Array]]:
    """Attention of one text by cuDNN, which knows no soft cap, and by tokamax where it is installed."""
    settings: dict[str, Any] = {"scale": scale, "is_causal": True}
    if window:
        settings["local_window_size"] = (window - 1, 0)
    found: dict[str, Callable[..., Array]] = {}
    if not soft_cap:
        cudnn = functools.partial(jax.nn.dot_product_attention, **settings, implementation="cudnn")
        found["cudnn"] = lambda query, key, value, segment: cudnn(query, key, value)
    if importlib.util.find_spec("tokamax") is not None:
        import tokamax

        cap = soft_cap or None
        theirs = functools.partial(tokamax.dot_product_attention, **settings, logits_soft_cap=cap)
        found["tokamax"] = lambda query, key, value, segment: theirs(query, key, value)
    return found


def logprob(length: int, vocabulary: int, width: int, *, soft_cap: float = 0.0, gradient: bool = False) -> Case:
    """Log-probs and entropies; `gradient`: that of weighted log-probs to the hidden states too."""
    hidden, table = _random((1, length, width), (vocabulary, width))
    (weight,) = _random((1, length), dtype=jnp.float32)
    token = jnp.asarray(np.random.default_rng(1).integers(0, vocabulary, (1, length)), jnp.int32)
    settings: dict[str, Any] = {"temperature": jnp.float32(1.0), "soft_cap": soft_cap, "truncated": False}

    def side(backend: Any) -> Function:
        def run(hidden: Array, table: Array, token: Array, weight: Array) -> dict[str, Array]:
            def forward(hidden: Array) -> tuple[Array, Array]:
                floor = jnp.full(token.shape, -jnp.inf)
                return token_logprob.token_logprob(hidden, table, token, floor, **settings, backend=backend)

            if not gradient:
                return dict(zip(("log-prob", "entropy"), forward(hidden), strict=True))
            (logp, entropy), pull = jax.vjp(forward, hidden)
            return {"log-prob": logp, "entropy": entropy, "gradient": pull((weight, jnp.zeros_like(weight)))[0]}

        return run

    sides = {"ours": side(OURS), "xla, chunks of words": side("chunked"), "xla, chunks of tokens": side("reference")}
    return Case((hidden, table / width**0.5, token, weight), side("reference"), sides)


def decode(
    layers: int, batch: int, slots: int, heads: tuple[int, int], *, width: int = 256, tokens: int = 0, **settings: Any
) -> Case:
    """Some tokens through some layers, each written to its cache; with `tokens`, after prompts that 8 rows share."""
    steps, begin, prompts = 8, slots // 2, batch // 8
    query_heads, kv_heads = heads
    new, cache = (batch, kv_heads, width), (layers, batch, slots, kv_heads, width)
    shapes = [(batch, query_heads, width), new, new, cache, cache]
    if tokens:
        shapes += [(layers, prompts, tokens, kv_heads, width)] * 2
    operands = _random(*shapes)
    settings = {"scale": width**-0.5, **settings}

    def side(backend: Any) -> Function:
        def run(query: Array, key: Array, value: Array, *stacks: Array) -> dict[str, Array]:
            function: Callable[..., Any] = decode_attention.append_attention
            shared: dict[str, Any] = {}
            if tokens:
                function = decode_attention.grouped
                group_B = jnp.arange(batch) % prompts  # the rows of a prompt stand apart, as in a running batch
                shared = {"prompt": stacks[2:], "length_P": jnp.full((prompts,), tokens), "group_B": group_B}

            def step(i: Any, carry: Any) -> Any:
                total, caches = carry
                position = jnp.full((batch,), begin + i // layers)
                place = caches, i % layers, position
                context, caches = function(query, (key, value), *place, **shared, **settings, backend=backend)
                return total + context.astype(jnp.float32), caches

            zeros = jnp.zeros(query.shape, jnp.float32)
            return {"context": jax.lax.fori_loop(0, steps * layers, step, (zeros, stacks[:2]))[0]}

        return run

    return Case(operands, side("reference"), {"ours": side(OURS), "xla": side("reference")}, units=steps)


G3, G2 = (4, 1), (8, 4)  # query and key/value heads of Gemma 3 1B and Gemma 2 2B
CASES: dict[str, Callable[[], Case]] = {
    "window_fwd": lambda: attention(8, 2048, G3, window=512),
    "window_fwd_bwd": lambda: attention(8, 2048, G3, window=512, gradient=True),
    "causal_g3_fwd": lambda: attention(8, 2048, G3),
    "causal_g3_fwd_bwd": lambda: attention(8, 2048, G3, gradient=True),
    "causal_g2_fwd": lambda: attention(8, 2048, G2, soft_cap=50.0),
    "causal_g2_fwd_bwd": lambda: attention(8, 2048, G2, soft_cap=50.0, gradient=True),
    "packed_fwd": lambda: attention(8, 2048, G3, texts=4),
    "token_logprob_fwd": lambda: logprob(8192, 262_144, 1152),
    "token_logprob_fwd_grad": lambda: logprob(8192, 262_144, 1152, gradient=True),
    "token_logprob_fwd_grad_cap": lambda: logprob(8192, 256_128, 2304, soft_cap=30.0, gradient=True),
    "ring_decode": lambda: decode(22, 64, 512, G3, window=512),
    "full_decode": lambda: decode(4, 64, 1024, G3),
    "full_decode_group": lambda: decode(4, 64, 1024, G3, tokens=512),
}


def run(repeats: int, names: Sequence[str], *, peers: bool) -> tuple[list[Figure], int]:
    """(a figure for each case, printed as they come, 0); ValueError for a case whose numbers are wrong, not timed."""
    for name in names:
        if name not in CASES:
            raise ValueError(f"no case {name!r}; there are {', '.join(CASES)}")
    versions = _versions()
    print(f"milliseconds on {versions['device']}; ratio: ours over it")
    figures: list[Figure] = []
    for name in names or CASES:
        figures.append({"case": name, **measured(name, CASES[name](), repeats, peers=peers), "versions": versions})
        for line in lines(name, figures[-1]):
            print(line, flush=True)
    return figures, 0


def measured(name: str, case: Case, repeats: int, *, peers: bool) -> Figure:
    """Gaps, median seconds and temporary bytes of each side, and why a peer was not timed."""
    with jax.default_matmul_precision("highest"):
        exact = jax.device_get(jax.jit(case.exact)(*map(_widened, case.operands)))
    figure: Figure = {"gaps": {}, "seconds": {}, "temp_bytes": {}, "refused": {}}
    programs: dict[str, Callable[[], Any]] = {}
    for side, function in case.sides.items():
        if side != "ours" and not peers:
            continue
        try:
            program: Any = jax.jit(function).lower(*case.operands).compile()
            gaps = _gaps(jax.device_get(program(*case.operands)), exact)
            for result, gap in gaps.items():
                timing.require_small({f"{name}, {side}, {result}": gap}, GAPS[result.partition(" of ")[0]])
        except REFUSALS as error:
            if side == "ours":
                raise
            figure["refused"][side] = str(error).partition("\n")[0]
            continue
        programs[side] = functools.partial(_calls, program, case.operands)
        figure["gaps"][side] = gaps
        figure["temp_bytes"][side] = program.memory_analysis().temp_size_in_bytes
    medians = timing.alternate(programs, repeats)
    figure["seconds"] = {side: seconds / CALLS / case.units for side, seconds in medians.items()}
    return figure


def _gaps(found: dict[str, Any], exact: dict[str, Any]) -> dict[str, float]:
    """Largest difference of each result, as a part of its largest value."""
    return {
        name: float(np.abs(np.asarray(found[name], np.float32) - right).max() / np.abs(right).max())
        for name, right in exact.items()
    }


def _calls(program: Callable[..., Any], operands: tuple[Array, ...]) -> None:
    for _ in range(CALLS):
        last = program(*operands)
    jax.block_until_ready(last)


def lines(name: str, figure: Figure) -> list[str]:
    """The figure as lines of text."""
    ours = figure["seconds"]["ours"]
    found = [
        f"{name:28s} {side:24s} {seconds * 1e3:9.3f} ms  ratio {ours / seconds:5.2f}  "
        f"temp {figure['temp_bytes'][side] / 2**20:9.1f} MiB  off {max(figure['gaps'][side].values()):.0e}"
        for side, seconds in figure["seconds"].items()
    ]
    return found + [f"{name:28s} {side:24s} {why}" for side, why in figure["refused"].items()]


def _versions() -> dict[str, str]:
    there = (name for name in PACKAGES if importlib.util.find_spec(name.replace("-", "_")) is not None)
    return {**runtime.versions(), **{name: importlib.metadata.version(name) for name in there}}


def _widened(array: Array) -> Array:
    return array.astype(jnp.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _random(*shapes: tuple[int, ...], dtype: Any = jnp.bfloat16) -> tuple[Array, ...]:
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for shape in shapes)
