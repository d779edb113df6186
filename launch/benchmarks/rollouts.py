"""Useful tokens per second of the engine and of Tunix's sampler: the same weights, prompts and limits, in turn.

Before anything is timed both continue some prompts greedily, and must write the same tokens.

A token is useful up to the limit of its row.  Tunix holds a batch until its longest row has ended, and stops there: it
is given the size of batch, of PEER_ROWS, that it is fastest with, and what peers/tunix_rollout.py says.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from thinkfirst.core import mesh, runtime, sharding
from thinkfirst.launch.benchmarks import peer_process, roofline
from thinkfirst.models import config as model_config
from thinkfirst.models import gemma, weights
from thinkfirst.rl import batch, rollout

LANES = 64  # rows that our engine decodes side by side, all shards together
CHECKED_PROMPTS, CHECKED_TOKENS, VARIED = 4, 16, 6
PEER_ROWS = (1, 2, 4)  # all rows at once, half of them, a quarter


@dataclasses.dataclass(frozen=True)
class Case:
    """Prompts x group rows; row p * group + g may become `limits[p * group + g]` new tokens long."""

    name: str
    num_prompts: int
    group: int
    prompt_tokens: int
    limits: tuple[int, ...]

    def prompts(self) -> batch.Prompts:
        """Random ids; 0 to 3 are left to the special tokens."""
        shape, rng = (self.num_prompts, self.prompt_tokens), np.random.default_rng(0)
        tokens_PT = rng.integers(4, model().vocab_size, shape).astype(np.int32)
        lengths_P = np.full(self.num_prompts, self.prompt_tokens, np.int32)
        return batch.Prompts(tokens_PT, lengths_P, np.arange(self.num_prompts, dtype=np.uint32))


class Spent(NamedTuple):
    """One run: on the clock, and of all cores."""

    seconds: float
    cpu_seconds: float


Side = Callable[[], Spent]
Sampler = Callable[[], batch.Rollout]
T = TypeVar("T")


def model() -> model_config.GemmaConfig:
    """19.8 M parameters, 8.4 M of them the embedding.  Twice the pattern; 64 is Tunix's only query scale for it."""
    return model_config.GemmaConfig(
        generation=3,
        vocab_size=32_768,
        num_layers=12,
        width=256,
        ff_width=1024,
        num_heads=4,
        num_kv_heads=1,
        head_dim=64,
        window=64,
        pattern=model_config.GEMMA3_PATTERN,
        query_scalar=64,
        global_rope_base=1_000_000.0,
        max_length=1024,
        dtype="float32",
    )


def tunix_sizes(config: model_config.GemmaConfig) -> dict[str, Any]:
    """The same as fields of Tunix's ModelConfig."""
    return {
        "num_layers": config.num_layers,
        "num_embed": config.vocab_size,
        "embed_dim": config.width,
        "hidden_dim": config.ff_width,
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "sliding_window_size": config.window,
        "local_base_frequency": int(config.local_rope_base),
        "global_base_frequency": int(config.global_rope_base),
    }


def cases() -> tuple[Case, ...]:
    """64 rows that all end together; 256 rows as the issue's long tail (mean 80, max 640), a fifth as long."""
    drawn = np.random.default_rng(0).lognormal(np.log(16) - 0.5, 1.0, 256)  # its mean is 16
    tail = tuple(int(length) for length in np.clip(drawn.round(), 1, 128))
    return Case("equal_lengths", 8, 8, 64, (64,) * 64), Case("long_tail", 32, 8, 32, tail)


def named(names: Sequence[str], known: Sequence[Case]) -> tuple[Case, ...]:
    """The cases of those names, all of them where there are none; ValueError for a name of no case."""
    by_name = {case.name: case for case in known}
    if unknown := [name for name in names if name not in by_name]:
        raise ValueError(f"no case {unknown[0]!r}; there are {', '.join(by_name)}")
    return tuple(by_name[name] for name in names or by_name)


def parameters() -> gemma.Params:
    """Random weights whose greedy text varies: a faint embedding, uneven norms, and a last norm that decides."""
    params, rng = gemma.Model(model()).init(0), np.random.default_rng(0)

    def uneven(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if "scale" not in name:
            return leaf * (0.1 if "embedding" in name else 1.0)
        return leaf + rng.uniform(-0.2, 0.2, leaf.shape).astype(np.float32) + (9.0 if "final_norm" in name else 0.0)

    return jax.tree_util.tree_map_with_path(uneven, params)


class Ours:
    """The engine, as it is and in plainer ways; nothing else in this file knows it."""

    def __init__(self, params: gemma.Params) -> None:
        self._mesh = mesh.make(mesh.MeshConfig())
        self._model = gemma.Model(model(), self._mesh)
        self._params = jax.device_put(params, sharding.replicated(self._mesh))
        self._engines: dict[str, rollout.Engine] = {}  # by case

    def sampler(
        self, case: Case, *, temperature: float = 1.0, lanes: int = 0, shared: bool = True
    ) -> Sampler:
        """Rolls the case out in so many lanes, 0 for LANES; without `shared` each sample prefills its prompt."""
        room = max(case.limits)
        of_shard = max(1, (lanes or LANES) // mesh.num_row_shards(self._mesh))
        engine = rollout.Engine(self._model, self._mesh, room=room, stop_ids=(), lanes=of_shard)
        sampling = batch.Sampling.of(temperature=temperature, max_new_tokens=room)
        sampling = dataclasses.replace(sampling, max_new_tokens=np.array(case.limits, np.int32))
        prompts, key, group = case.prompts(), jax.random.key(7), case.group
        if not shared:
            prompts, group = jax.tree.map(lambda x: np.repeat(x, case.group, axis=0), prompts), 1
        if shared and not lanes:
            self._engines[case.name] = engine
        return lambda: engine.sample(self._params, None, prompts, sampling, key, group=group)

    def plain(self, case: Case, *, temperature: float = 1.0, lanes: int = 0) -> dict[str, Sampler]:
        """The same rows in plainer ways; a lane for every row, so that none takes a second, only where that is news."""
        ways = {"prompts prefilled for each sample": self.sampler(case, temperature=temperature, shared=False)}
        if (rows := len(case.limits)) > (lanes or LANES):
            ways["a lane for every row"] = self.sampler(case, temperature=temperature, lanes=rows)
        return ways

    def reached(self, case: Case, seconds: float) -> float | None:
        """The share of the device's bandwidth that turns took: each reads the weights and the caches."""
        metrics = self._engines[case.name].metrics
        weights_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self._params))
        moved = metrics["rollout/turns"] * (weights_bytes + metrics["rollout/cache_bytes"])
        return roofline.fraction(roofline.roof(), num_flops=0, num_bytes=moved, seconds=seconds)


def timed(sample: Sampler, case: Case) -> Side:
    """Runs of our side; every row must end at its limit."""

    def run() -> Spent:
        start, cpu_start = time.perf_counter(), time.process_time()
        found = sample()
        spent = Spent(time.perf_counter() - start, time.process_time() - cpu_start)
        if (other := found.length_B != np.array(case.limits)).any():
            raise ValueError(f"{case.name}: row {other.argmax()} did not end at its limit")
        return spent

    return run


def request(case: Case, *, rows: int, temperature: float = 1.0, tokens: bool = False) -> dict[str, Any]:
    """What the peer is asked for."""
    return {
        "do": "sample",
        "prompts": np.repeat(case.prompts().tokens_PT, case.group, axis=0).tolist(),
        "limits": case.limits,
        "room": max(case.limits),
        "rows": rows,
        "temperature": temperature,
        "seed": 7,
        "tokens": tokens,
    }


def peer_side(peer: peer_process.Peer, case: Case) -> Side:
    """Runs of the peer with the batch size it is fastest with, compiled."""

    def side(rows: int) -> Side:
        asked = request(case, rows=rows)

        def run() -> Spent:
            answer = peer.ask(asked)
            return Spent(answer["seconds"], answer["cpu_seconds"])

        return run

    sides = {rows: side(rows) for rows in (-(-len(case.limits) // parts) for parts in PEER_ROWS)}
    best = fastest(sides)
    print(f"{case.name}: {peer.name} takes {best} rows at a time", flush=True)
    return sides[best]


def fastest(sides: dict[T, Side]) -> T:
    """The side whose second run takes the fewest CPU seconds; all are compiled by the first."""
    for run in sides.values():
        run()
    found = {name: run() for name, run in sides.items()}
    print("CPU seconds by size:", ", ".join(f"{name}: {spent.cpu_seconds:.1f}" for name, spent in found.items()))
    return min(found, key=lambda name: found[name].cpu_seconds)


def check_plain(ours: Ours) -> None:
    """ValueError unless the plainer ways write the same greedy tokens."""
    num_rows = 2 * CHECKED_PROMPTS
    case = Case("greedy", CHECKED_PROMPTS, 2, 2 * CHECKED_TOKENS, (CHECKED_TOKENS,) * num_rows)
    mine = ours.sampler(case, temperature=0.0, lanes=num_rows // 2)().tokens_BT
    for name, sample in ours.plain(case, temperature=0.0, lanes=num_rows // 2).items():
        if (sample().tokens_BT != mine).any():
            raise ValueError(f"greedy tokens differ, nothing is timed: ours and {name}")


def check(ours: Ours, peer: peer_process.Peer) -> None:
    """ValueError unless both write the same greedy tokens, and more than a few different ones."""
    limits = (CHECKED_TOKENS,) * CHECKED_PROMPTS
    case = Case("greedy", CHECKED_PROMPTS, 1, 2 * CHECKED_TOKENS, limits)
    mine = ours.sampler(case, temperature=0.0)().tokens_BT
    asked = request(case, rows=CHECKED_PROMPTS, temperature=0.0, tokens=True)
    theirs = np.array(peer.ask(asked)["tokens"])
    if theirs.shape != mine.shape or (theirs != mine).any():
        raise ValueError(
            f"greedy tokens differ, nothing is timed: ours {mine.tolist()}, {peer.name}'s {theirs.tolist()}"
        )
    varied = min(len(set(row)) for row in mine.tolist())
    if varied < VARIED:
        raise ValueError(f"a greedy text of {varied} different tokens says little: take other weights")
    print(f"checked: {mine.size} greedy tokens are the same, at least {varied} different ones in a row", flush=True)


def interleaved(sides: dict[str, Side], repeats: int) -> dict[str, Spent]:
    """Medians of each side's runs, taken in turn after one warm-up each."""
    runs: dict[str, list[Spent]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            spent = run()
            if turn:
                runs[name].append(spent)
    return {name: Spent(*map(statistics.median, zip(*spent, strict=True))) for name, spent in runs.items()}


def figure(
    case: Case, medians: dict[str, Spent], versions: dict[str, Any], reached: float | None = None
) -> dict[str, Any]:
    """Useful tokens per second of both, and how many times the peer's ours are; None for a peer that is left out.

    `seconds` and `cpu_seconds` are of every side, the plainer ways too; `roofline` is None where there is none.
    """
    useful = sum(case.limits)
    ours = useful / medians["ours"].seconds
    peer = useful / medians["peer"].seconds if "peer" in medians else None
    return {
        "case": case.name,
        "ours": ours,
        "peer": peer,
        "ratio": peer and ours / peer,
        "seconds": {name: spent.seconds for name, spent in medians.items()},
        "cpu_seconds": {name: spent.cpu_seconds for name, spent in medians.items()},
        "roofline": reached,
        "versions": versions,
    }


def run(repeats: int, peer: peer_process.Peer | None, *, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """A figure for each case; ValueError, with nothing timed, if two sides do not write the same."""
    params = parameters()
    ours, versions = Ours(params), {"ours": runtime.versions()}
    if peer:
        with tempfile.TemporaryDirectory() as scratch:
            weights.save(f"{scratch}/gemma", gemma.Model(model()), params)
            asked = {"do": "load", "weights": f"{scratch}/gemma", "sizes": tunix_sizes(model())}
            versions["peer"] = peer.ask(asked)["versions"]
        check(ours, peer)
    check_plain(ours)
    figures = []
    for case in cases:
        sides = {"ours": timed(ours.sampler(case), case)}
        sides |= {name: timed(sample, case) for name, sample in ours.plain(case).items()}
        if peer:
            sides["peer"] = peer_side(peer, case)
        medians = interleaved(sides, repeats)
        figures.append(figure(case, medians, versions, ours.reached(case, medians["ours"].seconds)))
        print(report(case, medians), flush=True)
    return figures


def report(case: Case, medians: dict[str, Spent]) -> str:
    """The lines of a case."""
    useful = sum(case.limits)
    lines = [f"{case.name}: {len(case.limits)} rows of {case.prompt_tokens} prompt tokens, {useful} useful new tokens"]
    for name, spent in medians.items():
        ratio = f"  ratio {spent.seconds / medians['ours'].seconds:.2f}" if name != "ours" else ""
        of_cpu = f" ({spent.cpu_seconds / medians['ours'].cpu_seconds:.2f} in CPU seconds)" if ratio else ""
        rate = f"{useful / spent.seconds:8.0f} useful tokens/s"
        lines.append(f"  {spent.seconds:8.3f} s  {spent.cpu_seconds:8.3f} CPU s  {rate}  {name}{ratio}{of_cpu}")
    return "\n".join(lines)
