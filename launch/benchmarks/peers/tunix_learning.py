"""A training run of Tunix's RLCluster and GRPOLearner as a child process, rewarded by its parent: see tunix_rollout.py.

    {"do": "load", "weights": a Hugging Face folder, "sizes": fields of Tunix's ModelConfig, "pattern": kinds of its
     layers, "stop_ids": [...], "settings": of the run, see benchmarks/learning.py}
        -> {"versions": {...}}
    {"do": "sample", "prompts": ids of each prompt of a step}
        -> {"tokens": [[...], ...], "logp": [[...], ...], "seconds": ..., "cpu_seconds": ..., "compiling": [[...], ...]}
    {"do": "learn", "rewards": of those completions}
        -> {"loss": of the last micro-batch, "seconds": ..., "cpu_seconds": ..., "compiling": [[...], ...]}
    {"do": "evaluate", "prompts": ids of each row, "seed": ...}
        -> what "sample" answers

"compiling" are spans of time in which JAX traced or compiled; they may overlap.  A step is a "sample" and a "learn".

Of Tunix's own ways these stay: the stop token is cut off and not learnt; padding is told from text by its id; keys and
values share a factor of LoRA; a prompt is prefilled for each of its samples; a batch ends when its longest row has.
These do not, as they would decide the comparison before it began: the noise of its sampler is the same at every step
(here every batch has a seed of its own), and its KL term is k1, which pulls nowhere (here k3, as ours).
"""

import dataclasses
import os
import queue
import sys
import threading
import time
from typing import Any

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # at the end, where it shadows nothing

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import qwix
import tunix_rollout
import tunix_step
from flax import nnx
from tunix.models.gemma3 import model as gemma3
from tunix.models.gemma3 import params_safetensors
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

KINDS = {"local": gemma3.AttentionType.LOCAL_SLIDING, "global": gemma3.AttentionType.GLOBAL}
COMPILING = "/jax/core/compile/"
BATCHES = 1_000_000  # seeds of a run: more than it samples batches


class Words(tunix_rollout.Ids):
    """Ids that end with a stop token of the model's."""

    def __init__(self, stop_id: int) -> None:
        self._stop_id = stop_id

    def eos_id(self) -> int:
        return self._stop_id


class Clock:
    """What passed since it was made: seconds, those of all cores, and spans in which JAX compiled."""

    def __init__(self, spans: list[tuple[float, float]]) -> None:
        self._spans, self._first = spans, len(spans)
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, Any]:
        seconds, cpu_seconds = time.perf_counter() - self._start, time.process_time() - self._cpu_start
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "compiling": self._spans[self._first :]}


class Run:
    """A training run that waits for prompts, then for rewards."""

    def __init__(self, model: Any, mesh: jax.sharding.Mesh, stop_ids: list[int], settings: dict[str, Any]) -> None:
        self._settings, self._drawn = settings, 0
        provider = qwix.LoraProvider(
            module_path=tunix_step.ADAPTED, rank=settings["rank"], alpha=settings["alpha"]
        )
        rngs = nnx.Rngs(params=settings["seed"], lora=settings["seed"])
        with jax.set_mesh(mesh):
            actor = qwix.apply_lora_to_model(model, provider, **model.get_model_input(), rngs=rngs)
        width, room = settings["prompt_tokens"], settings["max_new_tokens"]
        self._config = base_rollout.RolloutConfig(
            max_tokens_to_generate=room,
            max_prompt_length=width,
            kv_cache_size=width + room,
            temperature=settings["temperature"],
            eos_tokens=stop_ids,
            return_logprobs=True,
        )
        cluster = rl_cluster.RLCluster(
            actor=actor,
            reference=model,
            tokenizer=Words(stop_ids[0]),
            cluster_config=rl_cluster.ClusterConfig(
                role_to_mesh=dict.fromkeys(tunix_step.ROLES, mesh),
                training_config=_training(settings),
                rollout_config=self._config,
            ),
        )
        self._rollout, self._generate = cluster.rollout, cluster.rollout.generate
        cluster.rollout.generate = self._seeded
        self._trainer = cluster.actor_trainer
        self._losses: list[Any] = []
        finish = self._trainer._post_process_train_step

        def post_process(aux: Any) -> None:
            self._losses.append(self._trainer._buffered_train_metrics.losses[-1])
            finish(aux)

        self._trainer._post_process_train_step = post_process
        self._learner = grpo_learner.GRPOLearner(
            rl_cluster=cluster,
            algo_config=grpo_learner.GRPOConfig(
                num_generations=settings["group"],
                beta=settings["beta"],
                epsilon=settings["clip"],
                kl_loss_mode="low_var_kl",
                loss_agg_mode=settings["average"],
            ),
            reward_fns=self._rewarded,
        )
        self._asked: queue.Queue[Any] = queue.Queue()
        self._rewards: queue.Queue[list[float]] = queue.Queue()
        self._told: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._train, daemon=True).start()

    def sample(self, prompts: list[list[int]]) -> dict[str, Any]:
        """The completions of a step, which then waits for their rewards."""
        self._asked.put(np.array([" ".join(map(str, prompt)) for prompt in prompts]))
        self._wait("sampled")
        return _rows(self._sampled)

    def learn(self, rewards: list[float]) -> dict[str, Any]:
        """The rest of the step: the learner has come back for the next one, and its update is made."""
        self._rewards.put(rewards)
        self._wait("learnt")
        jax.block_until_ready(nnx.state(self._trainer.model, nnx.LoRAParam))
        return {"loss": float(self._losses[-1])}

    def evaluate(self, prompts: list[list[int]], seed: int) -> dict[str, Any]:
        """Completions by the sampler of training, in batches of its size, so that nothing is compiled for them."""
        texts = [" ".join(map(str, prompt)) for prompt in prompts]
        size = self._settings["prompts"] * self._settings["group"]
        found: dict[str, Any] = {"tokens": [], "logp": []}
        for first in range(0, len(texts), size):
            part = texts[first : first + size]
            asked = part + texts[:1] * (size - len(part))
            config = dataclasses.replace(self._config, seed=BATCHES * (seed + 1) - 1 - first // size)
            rows = _rows(self._generate(asked, config))
            for name, values in rows.items():
                found[name] += values[: len(part)]
        return found

    def _seeded(self, prompts: list[str], rollout_config: Any, **given: Any) -> Any:
        """Tunix's rollout with a seed of the batch's own."""
        config = dataclasses.replace(rollout_config, seed=BATCHES * self._settings["seed"] + self._drawn)
        self._drawn += 1
        self._sampled = self._generate(prompts, config, **given)
        return self._sampled

    def _rewarded(self, prompts: Any, completions: list[str], **_: Any) -> list[float]:
        """What the parent says."""
        self._told.put("sampled")
        rewards = self._rewards.get()
        if len(rewards) != len(completions):
            raise ValueError(f"{len(rewards)} rewards for {len(completions)} completions")
        return rewards

    def _batches(self) -> Any:
        while True:
            yield {"prompts": self._asked.get()}
            self._told.put("learnt")

    def _train(self) -> None:
        try:
            self._learner.train(self._batches())
        finally:
            self._told.put("ended")

    def _wait(self, expected: str) -> None:
        if (told := self._told.get()) != expected:
            raise RuntimeError(f"the training run has {told} and not {expected}: a traceback may be above")


def _training(settings: dict[str, Any]) -> rl_cluster.RLTrainingConfig:
    rates = jnp.asarray(settings["rates"], jnp.float32)
    adam = optax.adamw(lambda step: rates[step], **settings["adam"])
    return rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.chain(optax.clip_by_global_norm(settings["clip_norm"]), adam),
        eval_every_n_steps=1_000_000,
        max_steps=1_000_000,
        mini_batch_size=settings["prompts"],
        train_micro_batch_size=settings["update"],
        rollout_micro_batch_size=settings["prompts"],
        compute_logps_micro_batch_size=settings["prompts"],
    )


def _rows(found: base_rollout.RolloutOutput) -> dict[str, Any]:
    tokens = [np.asarray(row).tolist() for row in found.tokens]
    return {"tokens": tokens, "logp": [list(map(float, row)) for row in found.logprobs]}


class Peer:
    """One model and its run."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith(COMPILING):
            end = time.perf_counter()
            self.spans.append((end - duration_secs, end))

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Reads the weights with Tunix's own loader, as float32; its layers are of the kinds that are asked for."""
        gemma3.GEMMA3_ATTENTION_PATTERN = tuple(KINDS[kind] for kind in request["pattern"])
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
        config = gemma3.ModelConfig(**request["sizes"], param_dtype=jnp.float32)
        model = params_safetensors.create_model_from_safe_tensors(
            request["weights"], config, mesh=mesh, dtype=jnp.float32
        )
        self.run = Run(model, mesh, request["stop_ids"], request["settings"])
        return tunix_rollout.versions()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What one request asks for."""
        if (do := request.pop("do")) == "load":
            return self.load(request)
        clock = Clock(self.spans)
        return {**getattr(self.run, do)(**request), **clock.read()}


if __name__ == "__main__":
    tunix_rollout.serve(Peer())
