"""A policy at work: parameters, adapter and what turns problems into prompts and rollouts into completions."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from thinkfirst.core import sharding
from thinkfirst.models import gemma, lora, peft
from thinkfirst.models import tokenizer as tokenizer_lib
from thinkfirst.rl import batch, rollout, stages


@dataclasses.dataclass
class Policy:
    """The model being trained.  `adapter` None is the base itself.

    `source` is the folder the base was read from, `merged` what has become part of it since; `words` may be missing as
    long as nobody asks for text.  `reread` gives the base as another model wants it, with adapters merged into what was
    stored: a base of integers is never merged into.
    """

    model: gemma.Model
    words: tokenizer_lib.Tokenizer | None
    mesh: Mesh
    params: gemma.Params
    stop_ids: tuple[int, ...]
    adapter: lora.Adapter | None = None
    merged: tuple[lora.Adapter, ...] = ()
    source: str = ""
    reread: Callable[[gemma.Model, Sequence[lora.Adapter]], gemma.Params] | None = None
    instruction: str = ""
    max_prompt_tokens: int = 512
    lanes: int = rollout.LANES
    int8_cache: bool = False
    _engines: dict[int, rollout.Engine] = dataclasses.field(default_factory=dict)

    @property
    def tokenizer(self) -> tokenizer_lib.Tokenizer:
        """The tokenizer; ValueError says what to fetch where there is none."""
        return self.words or tokenizer_lib.Tokenizer(self.source)

    def fresh_adapter(self, config: stages.LoraConfig, key: jax.Array) -> lora.Adapter:
        """What a stage starts from, laid out on the mesh: an adapter that changes nothing yet, or that of `start`."""
        if config.start:
            return self.laid_out(peft.load(config.start, self.model))
        specs = self.model.adapted()
        make = lambda key: lora.init(specs, key, rank=config.rank, alpha=config.alpha)  # noqa: E731
        shapes = jax.eval_shape(make, key)
        layout = sharding.parameters(lora.letters(specs, shapes), shapes, self.mesh)
        return jax.jit(make, out_shardings=layout)(key)

    def laid_out(self, adapter: lora.Adapter) -> lora.Adapter:
        """An adapter of the host on the mesh."""
        letters = lora.letters(self.model.adapted(), adapter)
        return jax.device_put(adapter, sharding.parameters(letters, adapter, self.mesh))

    def merge(self) -> None:
        """Makes the adapter part of the base."""
        if self.adapter is None:
            raise ValueError("there is no adapter to merge")
        if self.model.config.base_dtype != "stored":
            assert self.reread is not None
            merged = (*self.merged, self.adapter)
            self.params = {}  # makes room
            self.params = self.reread(self.model, merged)
        else:
            layout = jax.tree.map(lambda leaf: leaf.sharding, self.params)
            specs = self.model.adapted()
            merge = jax.jit(lambda params, adapter: lora.merge(params, adapter, specs), out_shardings=layout)
            self.params, merged = merge(self.params, self.adapter), (*self.merged, self.adapter)
        self.merged, self.adapter = merged, None

    def stored(self) -> tuple[gemma.Model, gemma.Params]:
        """The base with all that was merged, and none of it as integers: what is exported."""
        if self.model.config.base_dtype == "stored":
            return self.model, self.params
        assert self.reread is not None
        return self.model.stored, self.reread(self.model.stored, self.merged)

    def prompts(self, problems: Sequence[batch.Problem]) -> batch.Prompts:
        """Tokenised prompts of problems, as host arrays padded to a bucket, `max_prompt_tokens` at most."""
        rows = [self.tokenizer.prompt(problem.question, self.instruction) for problem in problems]
        for problem, row in zip(problems, rows, strict=True):
            if len(row) > self.max_prompt_tokens:
                raise ValueError(
                    f"problem {problem.id}: prompt of {len(row)} tokens, max_prompt_tokens={self.max_prompt_tokens}"
                )
        width = min(batch.bucket(max(map(len, rows))), self.max_prompt_tokens)
        return batch.pad_prompts(rows, [zlib.crc32(problem.id.encode()) for problem in problems], width)

    def engine(self, room: int) -> rollout.Engine:
        """The engine for up to `room` new tokens; it is kept, so that equal shapes compile once."""
        if room not in self._engines:
            self._engines[room] = rollout.Engine(
                self.model,
                self.mesh,
                room=room,
                stop_ids=self.stop_ids,
                lanes=self.lanes,
                int8=self.int8_cache,
            )
        return self._engines[room]

    def sample(
        self,
        prompts: batch.Prompts,
        sampling: batch.Sampling,
        key: jax.Array,
        *,
        group: int,
        room: int,
        pause: Callable[[], None] | None = None,
    ) -> batch.Rollout:
        """`group` completions of each prompt, on the host."""
        return self.engine(room).sample(self.params, self.adapter, prompts, sampling, key, group=group, pause=pause)

    def completions(self, rollout: batch.Rollout) -> list[batch.Completion]:
        """The rows of a rollout as text; the stop token is left out of it."""
        found = []
        for tokens_T, logp_T, length, stopped in zip(
            rollout.tokens_BT, rollout.logp_BT, rollout.length_B, rollout.stopped_B, strict=True
        ):
            count = int(length) - int(stopped)
            text, spans = self.tokenizer.decode(tokens_T[:count].tolist())
            found.append(batch.Completion(text, spans, tuple(map(float, logp_T[:count])), bool(stopped)))
        return found
