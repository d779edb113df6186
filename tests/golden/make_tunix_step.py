"""Golden files of whole GRPO steps, taken by Tunix's own RLCluster and GRPOLearner on tiny random Gemmas with LoRA.

`make golden` runs it in the environment of make_tunix.py, whose models these are.  Two prompts, four samples each:

    tunix_step_gemma3   what a GRPOConfig is without settings: one update, KL k1, means of tokens, then of sequences;
                        gradients of two micro-batches averaged; LoRA on all seven projections; temperature 0.9
    tunix_step_gemma2   two updates on the same samples, KL k3, a mean over all tokens, clips 0.2 and 0.28, dual clip;
                        the gradient's norm is clipped; LoRA on all but keys and values

    transformer/...                      weights under Flax's names, as make_tunix.py writes them
    before/{}..., after/{}...            factors under Qwix's names, rank 2, alpha 3, before the step and after it
    moment/{}...                         Adam's first moment after it; of one update (1 - b1) times its gradient
    prompt_BT, prompt_length_B           what was asked, begin-of-sequence token included
    completion_BT, completion_length_B   what was answered, without the end-of-sequence token, which Tunix cuts off
    sampler_logp_BT, ref_logp_BT         log-probs of the completion as it was sampled, and by the base
    reward_B, advantage_B
    loss_U, kl_U, clip_share_U, norm_U   of every backward pass: loss, mean KL, share of clipped tokens, gradient norm
"""

import argparse
import collections
import pathlib
from typing import Any

import jax
import make_tunix
import numpy as np
import optax
import qwix
from flax import nnx
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

PAD, BOS, EOS = 0, 1, 2
GROUP, NEW_TOKENS, PROMPT_TOKENS = 4, 8, 6
RANK, ALPHA = 2, 3.0
CASES = {
    "tunix_step_gemma3": {
        "model": "tunix_gemma3",
        "adapted": make_tunix.ADAPTED,
        "prompts": ("5 6 7 8 9", "10 11 12"),
        "temperature": 0.9,
        "micro": 1,  # prompts
        "clip_norm": 1e6,
        "settings": {},
        "unnamed": {},
    },
    "tunix_step_gemma2": {
        "model": "tunix_gemma2",
        "adapted": make_tunix.ADAPTED.replace("|.*kv_einsum", ""),
        "prompts": ("5 6 7 8 9", "10 11 12 13 14"),  # no padding: it would shift Tunix's windows in Gemma 2
        "temperature": 1.0,  # Tunix scores old log-probs at no other
        "micro": 2,
        "clip_norm": 0.1,
        "settings": {"num_iterations": 2, "kl_loss_mode": "low_var_kl", "loss_agg_mode": "token-mean"},
        "unnamed": {"epsilon_high": 0.28, "epsilon_c": 3.0},
    },
}


class Words:
    """A token is the word of its number."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return BOS

    def eos_id(self) -> int:
        return EOS

    def pad_id(self) -> int:
        return PAD


def reward(completion: str) -> float:
    """A number that differs from sample to sample."""
    ids = [int(word) for word in completion.split()]
    return len(set(ids)) + 0.25 * (sum(ids) % 7)


class Learner(grpo_learner.GRPOLearner):
    """Tunix's, with a look at what it learns from and at every update."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.examples, self.rewards = [], []
        self.seen: dict[str, list[Any]] = collections.defaultdict(list)
        trainer = self.rl_cluster.actor_trainer
        buffer, finish = trainer._buffer_metrics, trainer._post_process_train_step

        def buffer_metrics(held: Any, loss: Any, step: int, additional_metrics: Any = None) -> Any:
            self.seen["loss"].append(float(loss))
            self.seen["norm"].append(float(additional_metrics["grad_norm"][0]))
            return buffer(held, loss, step, additional_metrics)

        def post_process(aux: Any) -> None:
            self.seen["kl"].append(float(aux["kl"]))
            self.seen["clip_share"].append(float(aux["pg_clipfrac"]))
            finish(aux)

        trainer._buffer_metrics, trainer._post_process_train_step = buffer_metrics, post_process

    def _generate_and_compute_advantage(self, *given: Any, **named: Any) -> grpo_learner.TrainExample:
        self.examples.append(super()._generate_and_compute_advantage(*given, **named))
        return self.examples[-1]

    def _compute_rewards(self, **given: Any) -> np.ndarray:
        self.rewards.append(super()._compute_rewards(**given))
        return self.rewards[-1]


def moments(optimizer: nnx.Optimizer) -> dict[str, np.ndarray]:
    """Adam's first moment, named like what it follows."""
    flat = nnx.to_flat_state(nnx.state(optimizer, nnx.optimizer.OptState))
    held = {path[path.index("mu") + 1 :]: leaf for path, leaf in flat if "mu" in path}
    return make_tunix.stacked(nnx.from_flat_state(held))


def factors(model: nnx.Module) -> dict[str, np.ndarray]:
    return make_tunix.stacked(nnx.state(model, nnx.LoRAParam))


def cluster(case: dict[str, Any], base: nnx.Module, seed: int) -> rl_cluster.RLCluster:
    """The base as reference and, with random factors, as actor."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    provider = qwix.LoraProvider(module_path=case["adapted"], rank=RANK, alpha=ALPHA)
    actor = qwix.apply_lora_to_model(base, provider, **base.get_model_input(), rngs=nnx.Rngs(params=3, lora=3))
    make_tunix.randomize(actor, nnx.LoRAParam, seed, most=0.15)
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    adam = optax.adamw(1e-2, b1=0.9, b2=0.99, weight_decay=0.1)
    return rl_cluster.RLCluster(
        actor=actor,
        reference=base,
        tokenizer=Words(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.chain(optax.clip_by_global_norm(case["clip_norm"]), adam),
                eval_every_n_steps=100,
                max_steps=case["settings"].get("num_iterations", 1),
                mini_batch_size=len(case["prompts"]),
                train_micro_batch_size=case["micro"],
                rollout_micro_batch_size=len(case["prompts"]),
                compute_logps_micro_batch_size=len(case["prompts"]),
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=NEW_TOKENS,
                max_prompt_length=PROMPT_TOKENS,
                kv_cache_size=32,
                temperature=case["temperature"],
                top_p=1.0,
                return_logprobs=True,
            ),
        ),
    )


def sampled(held: rl_cluster.RLCluster, prompts: np.ndarray) -> base_rollout.RolloutOutput:
    """What the cluster samples for the step; its seed is set to the first whose completions test something.

    None may contain the padding token, which Tunix would cut out of the middle, or be empty; some end by themselves.
    """
    config = held.cluster_config.rollout_config
    for seed in range(1000):
        config.seed = seed
        found = held.rollout.generate(list(np.repeat(prompts, GROUP)), config)
        lengths = [len(tokens) for tokens in found.tokens]
        padded = any((np.asarray(tokens) == PAD).any() for tokens in found.tokens)
        if not padded and min(lengths) > 0 and min(lengths) < NEW_TOKENS == max(lengths):
            return found
    raise AssertionError("every seed samples padding: take other weights")


def padded(rows: list[Any], kind: type) -> np.ndarray:
    """Rows of up to NEW_TOKENS values, filled up with zeros."""
    return np.array([[*row, *[0] * (NEW_TOKENS - len(row))] for row in rows], kind)


def values(case: dict[str, Any], base: nnx.Module, seed: int) -> dict[str, np.ndarray]:
    """What the test compares with."""
    make_tunix.randomize(base, nnx.Param, seed)
    held, prompts = cluster(case, base, seed), np.array(case["prompts"])
    settings = grpo_learner.GRPOConfig(num_generations=GROUP, **case["settings"])
    for name, value in case["unnamed"].items():
        setattr(settings, name, value)  # Tunix reads them with getattr
    learner = Learner(
        rl_cluster=held,
        algo_config=settings,
        reward_fns=lambda prompts, completions, **_: [reward(completion) for completion in completions],
    )
    before, rollout = factors(held.actor_trainer.model), sampled(held, prompts)
    learner.train([{"prompts": prompts}])
    (example,) = learner.examples
    assert (example.completion_ids == padded(rollout.tokens, np.int32)).all(), "the step sampled something else"
    after, seen = factors(held.actor_trainer.model), learner.seen
    found = {
        "prompt_BT": np.array([padded_prompt(row) for row in np.array(example.prompt_ids)], np.int32),
        "prompt_length_B": (np.array(example.prompt_ids) != PAD).sum(axis=1),
        "completion_BT": example.completion_ids,
        "completion_length_B": np.array(example.completion_mask).sum(axis=1),
        "sampler_logp_BT": padded(rollout.logprobs, np.float32),
        "ref_logp_BT": example.ref_per_token_logps,
        "reward_B": learner.rewards[0],
        "advantage_B": example.advantages,
        **{f"{name}_U": np.array(seen[name], np.float32) for name in ("loss", "kl", "clip_share", "norm")},
        **make_tunix.flax_weights(base, transposed_gating="gemma3" in case["model"]),
        **{f"before/{name}": array for name, array in before.items()},
        **{f"after/{name}": array for name, array in after.items()},
        **{f"moment/{name}": array for name, array in moments(held.actor_trainer.optimizer).items()},
    }
    return {name: np.asarray(array) for name, array in found.items()}


def padded_prompt(row: np.ndarray) -> list[int]:
    """Right-padded, as it was left-padded."""
    tokens = row[row != PAD].tolist()
    return [*tokens, *[0] * (PROMPT_TOKENS - len(tokens))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=make_tunix.HERE)
    parser.add_argument("--seed", type=int, default=make_tunix.SEED)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    models = make_tunix.models()
    for name, case in CASES.items():
        found = values(case, models[case["model"]], args.seed)
        np.savez_compressed(args.out / f"{name}.npz", **found)
        lengths, rewards = found["completion_length_B"].tolist(), found["reward_B"].tolist()
        told = {key: np.round(found[key], 4).tolist() for key in ("loss_U", "kl_U", "clip_share_U", "norm_U")}
        print(f"{name}: completions of {lengths} tokens, rewards {rewards}, {told}")


if __name__ == "__main__":
    main()
