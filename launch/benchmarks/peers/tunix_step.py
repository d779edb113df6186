"""Whole GRPO steps of Tunix's RLCluster and GRPOLearner as a child process: see tunix_rollout.py, whose sampler it has.

    {"do": "load", "weights": a Hugging Face folder, "sizes": fields of Tunix's ModelConfig}
        -> {"versions": {...}}
    {"do": "step", "prompts": ids of each prompt, "group": samples of each, "limits": new tokens of each row,
     "room": the most of them, "rollout": prompts sampled at a time, "update": prompts of a micro-batch,
     "settings": of the run, "details": whether to return what was sampled and what it made}
        -> {"seconds": ..., "cpu_seconds": of all threads, "rollout_seconds": ...,
            "tokens": [[...], ...], "logp": of the reference, "advantages": [...], "loss": of the last micro-batch}

A step of the same request goes on from the one before.  What is best for Tunix is chosen as it is for its sampler; the
reference shares the actor's weights, and nothing is written to disk.
"""

import json
import os
import queue
import sys
import threading
import time
from typing import Any

sys.path.append(os.path.dirname(os.path.abspath(__file__)))  # at the end, where it shadows nothing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
import tunix_rollout
from flax import nnx
from tunix.models.gemma3 import model as gemma3
from tunix.models.gemma3 import params_safetensors
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout, vanilla_rollout

ADAPTED = ".*q_einsum|.*kv_einsum|.*attn_vec_einsum|.*gate_proj|.*up_proj|.*down_proj"
ROLES = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)


def reward(text: str) -> float:
    """The share of even ids: benchmarks/steps.py has the same."""
    ids = [int(word) for word in text.split()]
    return sum(token % 2 == 0 for token in ids) / len(ids)


class Rollout(vanilla_rollout.VanillaRollout):
    """Tunix's rollout, every row cut at its limit, every batch held until its longest row ends there."""

    def __init__(self, model: nnx.Module, cache: base_rollout.CacheConfig, limits: list[int]) -> None:
        words = tunix_rollout.Ids()
        super().__init__(model, words, cache)
        layout = {name: getattr(cache, name) for name in ("cache_size", "num_layers", "num_kv_heads", "head_dim")}
        self._sampler = tunix_rollout.Held(model, words, tunix_rollout.sampler_lib.CacheConfig(**layout))
        self._limits, self._next, self.seconds = limits, 0, 0.0

    def generate(self, prompts: list[str], rollout_config: Any, **given: Any) -> base_rollout.RolloutOutput:
        start = time.perf_counter()
        limits = self._limits[self._next : self._next + len(prompts)]
        self._next = (self._next + len(prompts)) % len(self._limits)
        self._sampler.longest = max(limits)
        found = super().generate(prompts, rollout_config, **given)
        found.tokens = [tokens[:limit] for tokens, limit in zip(found.tokens, limits, strict=True)]
        found.text = [" ".join(map(str, tokens)) for tokens in found.tokens]
        self.seconds += time.perf_counter() - start
        return found


class Learner(grpo_learner.GRPOLearner):
    """Tunix's learner, which keeps what it learnt from last."""

    def _generate_and_compute_advantage(self, *given: Any, **named: Any) -> grpo_learner.TrainExample:
        self.example = super()._generate_and_compute_advantage(*given, **named)
        return self.example


class Run:
    """A training run that waits for requests: `step` takes one step of it."""

    def __init__(self, model: Any, mesh: jax.sharding.Mesh, asked: dict[str, Any]) -> None:
        settings = asked["settings"]
        width = max(map(len, asked["prompts"]))
        provider = qwix.LoraProvider(module_path=ADAPTED, rank=settings["rank"], alpha=settings["alpha"])
        with jax.set_mesh(mesh):
            rngs = nnx.Rngs(params=3, lora=3)
            actor = qwix.apply_lora_to_model(model, provider, **model.get_model_input(), rngs=rngs)
        cluster = rl_cluster.RLCluster(
            actor=actor,
            reference=model,
            tokenizer=tunix_rollout.Ids(),
            cluster_config=rl_cluster.ClusterConfig(
                role_to_mesh=dict.fromkeys(ROLES, mesh),
                training_config=_training(asked),
                rollout_config=base_rollout.RolloutConfig(
                    max_tokens_to_generate=asked["room"],
                    max_prompt_length=width,
                    kv_cache_size=width + asked["room"],
                    temperature=settings["temperature"],
                    eos_tokens=[tunix_rollout.NO_ID],
                    seed=7,
                ),
            ),
        )
        layout = {name: getattr(model.config, name) for name in ("num_layers", "num_kv_heads", "head_dim")}
        cache = base_rollout.CacheConfig(cache_size=width + asked["room"], **layout)
        self._rollout = cluster._rollout = Rollout(cluster.rollout.model(), cache, asked["limits"])
        config = {"beta": settings["beta"], "epsilon": settings["clip"], "kl_loss_mode": "low_var_kl"}
        self._learner = Learner(
            rl_cluster=cluster,
            algo_config=grpo_learner.GRPOConfig(num_generations=asked["group"], loss_agg_mode="token-mean", **config),
            reward_fns=lambda prompts, completions, **_: [reward(text) for text in completions],
        )
        self._losses: list[Any] = []
        trainer = cluster.actor_trainer
        finish = trainer._post_process_train_step

        def post_process(aux: Any) -> None:
            self._losses.append(trainer._buffered_train_metrics.losses[-1])
            finish(aux)

        trainer._post_process_train_step = post_process
        self._prompts = np.array([" ".join(map(str, prompt)) for prompt in asked["prompts"]])
        self._asked: queue.Queue[None] = queue.Queue()
        self._done: queue.Queue[None] = queue.Queue()
        self._ended = False
        threading.Thread(target=self._train, daemon=True).start()

    def step(self) -> None:
        """One step, whole: the learner has come back for the next batch."""
        self._asked.put(None)
        self._done.get()
        if self._ended:
            raise RuntimeError("the training run has ended: its traceback is above")

    def measured(self) -> dict[str, float]:
        """A step on the clock."""
        before = self._rollout.seconds
        start, cpu_start = time.perf_counter(), time.process_time()
        self.step()
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
        return {**spent, "rollout_seconds": self._rollout.seconds - before}

    def details(self) -> dict[str, Any]:
        """What the last step sampled, and what it made of it."""
        example = jax.device_get(self._learner.example)
        lengths = example.completion_mask.sum(axis=1)
        held = {"tokens": example.completion_ids, "logp": example.ref_per_token_logps}
        cut = {name: [row[:n].tolist() for row, n in zip(rows, lengths, strict=True)] for name, rows in held.items()}
        return {**cut, "advantages": example.advantages.tolist(), "loss": float(self._losses[-1])}

    def _batches(self) -> Any:
        while True:
            self._asked.get()
            yield {"prompts": self._prompts}
            self._done.put(None)

    def _train(self) -> None:
        try:
            self._learner.train(self._batches())
        finally:
            self._ended = True
            self._done.put(None)


def _training(asked: dict[str, Any]) -> rl_cluster.RLTrainingConfig:
    settings = asked["settings"]
    adam = optax.adamw(settings["learning_rate"], b1=0.9, b2=0.99, weight_decay=settings["weight_decay"])
    return rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.chain(optax.clip_by_global_norm(settings["clip_norm"]), adam),
        eval_every_n_steps=1_000_000,
        max_steps=1_000_000,
        mini_batch_size=len(asked["prompts"]),
        train_micro_batch_size=asked["update"],
        rollout_micro_batch_size=asked["rollout"],
        compute_logps_micro_batch_size=asked["update"],
    )


class Peer:
    """One model, and a run for every request."""

    def load(self, weights: str, sizes: dict[str, Any]) -> dict[str, Any]:
        """Reads the weights with Tunix's own loader, as float32."""
        self.mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
        config = gemma3.ModelConfig(**sizes, param_dtype=jnp.float32)
        self.model = params_safetensors.create_model_from_safe_tensors(
            weights, config, mesh=self.mesh, dtype=jnp.float32
        )
        self.runs: dict[str, Run] = {}
        return tunix_rollout.versions()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What one request asks for."""
        if request.pop("do") == "load":
            return self.load(request["weights"], request["sizes"])
        details, name = request.pop("details"), json.dumps(request)
        if name not in self.runs:
            self.runs[name] = Run(self.model, self.mesh, request)
        spent = self.runs[name].measured()
        return {**spent, **(self.runs[name].details() if details else {})}


if __name__ == "__main__":
    tunix_rollout.serve(Peer())
