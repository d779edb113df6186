"""Tunix's sampler as a child process: requests on stdin, answers on stdout, one JSON object a line.

It runs in Tunix's environment (`make tunix-env`), imports nothing of thinkfirst and is imported by nothing.

    {"do": "load", "weights": a Hugging Face folder, "sizes": fields of Tunix's ModelConfig}
        -> {"versions": {...}}
    {"do": "sample", "prompts": ids of each row, "limits": new tokens of each row, "room": the most a row may ask for,
     "rows": rows of a batch, "temperature": 0 for greedy, "seed": ..., "tokens": whether to return them}
        -> {"seconds": ..., "cpu_seconds": of all threads, "tokens": [[...], ...]}

Whatever goes wrong ends it, with the traceback on stderr.

What is best for Tunix is chosen: no log-probs asked for, nothing sorted (top-p 1, no top-k), a cache without a slot too
many, no text decoded, and a batch that ends with its longest row.  Programs are compiled once for a batch size.
"""

import importlib.metadata
import json
import os
import sys
import time
from typing import Any

import jax.numpy as jnp
from tunix.generate import sampler as sampler_lib
from tunix.models.gemma3 import model as gemma3
from tunix.models.gemma3 import params_safetensors

PACKAGES = ("google-tunix", "jax", "jaxlib", "flax", "numpy")
NO_ID = -1  # as the only stop token: none is ever drawn


class Ids:
    """A tokenizer for prompts that are ids already; what it decodes to is nothing."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return ""

    def bos_id(self) -> int:
        return 0  # none: any other would be put before every prompt

    def eos_id(self) -> int:
        return NO_ID

    def pad_id(self) -> int:
        return 0


class Held(sampler_lib.Sampler):
    """A sampler whose next batch ends after `longest` new tokens, as if its last row had drawn a stop token there.

    Tunix knows no limit of a row; the end of its loop is data, so no program is compiled for this.
    """

    longest = 0

    def init_sample_state(self, all_input_ids: Any, total_sampling_steps: int, **settings: Any) -> Any:
        state = super().init_sample_state(all_input_ids, total_sampling_steps=total_sampling_steps, **settings)
        # The loop takes one step more than there are tokens, unless every row stopped before.
        end = all_input_ids.shape[1] + self.longest - 1
        return state if end == total_sampling_steps - 1 else state.replace(total_sampling_steps=end)


class Peer:
    """One model and its samplers, by the slots of their caches."""

    def load(self, weights: str, sizes: dict[str, Any]) -> dict[str, Any]:
        """Reads the weights with Tunix's own loader, as float32."""
        self.sizes = sizes
        config = gemma3.ModelConfig(**sizes, param_dtype=jnp.float32)
        self.model = params_safetensors.create_model_from_safe_tensors(weights, config, dtype=jnp.float32)
        self.samplers: dict[int, Held] = {}
        return versions()

    def sampler(self, slots: int) -> Held:
        """The sampler with so many cache slots for a row; it keeps its compiled programs."""
        if slots not in self.samplers:
            layout = {name: self.sizes[name] for name in ("num_layers", "num_kv_heads", "head_dim")}
            self.samplers[slots] = Held(self.model, Ids(), sampler_lib.CacheConfig(cache_size=slots, **layout))
        return self.samplers[slots]

    def sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """Every row to its limit: batches one after the other, each held until its longest row ends."""
        limits, rows, room = request["limits"], request["rows"], request["room"]
        prompts = [" ".join(map(str, prompt)) for prompt in request["prompts"]]
        width = max(map(len, request["prompts"]))
        sampler = self.sampler(width + room)
        drawing = {"temperature": request["temperature"], "top_p": 1.0} if request["temperature"] else {}
        found = []
        start, cpu_start = time.perf_counter(), time.process_time()
        for first in range(0, len(prompts), rows):
            batch = slice(first, first + rows)
            sampler.longest = max(limits[batch])
            found += sampler(
                prompts[batch],
                max_generation_steps=room,
                max_prompt_length=width,
                eos_tokens=[NO_ID],
                seed=request["seed"],
                **drawing,
            ).tokens
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
        tokens = [row[:limit].tolist() for row, limit in zip(found, limits, strict=True)]
        return {**spent, **({"tokens": tokens} if request["tokens"] else {})}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What one request asks for."""
        if request["do"] == "load":
            return self.load(request["weights"], request["sizes"])
        return self.sample(request)


def versions() -> dict[str, Any]:
    """The answer to "load"."""
    return {"versions": {name: importlib.metadata.version(name) for name in PACKAGES}}


def serve(peer: Any) -> None:
    """Answers the requests on stdin until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not land among the answers
    for line in sys.stdin:
        print(json.dumps(peer.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    serve(Peer())
