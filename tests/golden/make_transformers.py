"""Golden files of two tiny random Gemmas, computed by Hugging Face transformers: an oracle that shares no code with us.

`make golden` runs it in an environment of its own (oracle_hf.txt: transformers 5.23.0, torch 2.13.0).  For each model
it writes a checkpoint folder, hf_gemma2/ or hf_gemma3/, and hf_gemma2.npz or hf_gemma3.npz:

    tokens_BT [3, 15], length_B [3]        three sequences, right-padded
    right_TV, left_TV, alone_TV [28, 64]   their logits, sequence after sequence: as a batch padded on the right, as one
                                           padded on the left as `generate` does it, and each by itself
    next_logp_T [25]                       log-prob of every token but the first of a sequence
    prompt_length_B [2]                    the first two are cut to prompts of these lengths ...
    greedy_BT, greedy_logp_BT [2, 30]      ... which are continued with these likeliest tokens
    gradient/<name of a tensor>            of minus the mean of next_logp_T, for the tensors in GRADIENTS

The other direction: `python tests/golden/make_transformers.py check hf_gemma2 FOLDER` opens in transformers a FOLDER
where `weights.save` wrote what `weights.load` read from hf_gemma2/; it raises unless the values are the golden ones.
"""

import argparse
import itertools
import pathlib
import sys
from collections.abc import Callable

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
SEED = 108
NEW_TOKENS = 30
LENGTHS = (15, 9, 4)
PROMPT_LENGTHS = (9, 4)
CLEAR = 0.01  # between the best two logits of a greedy step: rounding must not decide
VARIED = 10  # different tokens in a continuation: a model that repeats itself tests little

# Every size differs from every other that it could be mistaken for, and every constant from its default.
SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "head_dim": 8,
    "query_pre_attn_scalar": 5,
    "sliding_window": 6,
    "rms_norm_eps": 1e-2,
    "max_position_embeddings": 64,
}
GRADIENTS = {  # of a local layer, of a global one, and of what both ends of the model share
    "hf_gemma2": ("layers.0.self_attn.q_proj", "layers.3.mlp.down_proj", "layers.4.input_layernorm", "embed_tokens"),
    "hf_gemma3": ("layers.7.self_attn.q_proj", "layers.5.mlp.down_proj", "layers.0.self_attn.k_norm", "embed_tokens"),
}


def configs() -> dict[str, transformers.PreTrainedConfig]:
    """Both end in a part of a period: Gemma 2 has two and a half, Gemma 3 one and two local layers."""
    linear = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0}
    rope = {"sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0}, "full_attention": linear}
    gemma2 = {"num_hidden_layers": 5, "num_key_value_heads": 2, "attn_logit_softcapping": 5.0}
    gemma3 = {"num_hidden_layers": 8, "num_key_value_heads": 1, "sliding_window_pattern": 6, "rope_parameters": rope}
    return {
        "hf_gemma2": transformers.Gemma2Config(**SIZES, **gemma2, final_logit_softcapping=6.0),
        "hf_gemma3": transformers.Gemma3TextConfig(**SIZES, **gemma3),
    }


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int) -> None:
    """Random weights, the norms' included: fresh ones are zero and would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        # A faint embedding and a loud last norm: what follows a token is not that token again, and soft caps bite.
        spread = 0.5 if weight.ndim == 1 else 1.5 * weight.shape[1] ** -0.5
        spread = 0.3 if "embed" in name else spread
        middle = 1.0 if name in ("model.norm.weight", "model.language_model.norm.weight") else 0.0
        weight.copy_(middle + torch.randn(weight.shape, generator=generator) * spread)


def open_model(folder: str | pathlib.Path, kind: type = transformers.AutoModelForCausalLM) -> torch.nn.Module:
    """The checkpoint as a user would open it.  Not the object it was saved from, which may hold other buffers."""
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    return model.eval()


def sequences(vocab_size: int) -> list[torch.Tensor]:
    """Token ids of the texts, in every file the same."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, vocab_size, (length,), generator=generator) for length in LENGTHS]


def padded_logits(model: torch.nn.Module, rows: list[torch.Tensor], side: str) -> torch.Tensor:
    """Logits of the sequences in one batch, without the padding: [T, V]."""
    pad = lambda tensors: torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_side=side)  # noqa: E731
    mask = pad([torch.ones_like(row) for row in rows])
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    return model(input_ids=pad(rows), attention_mask=mask, position_ids=position).logits[mask.bool()]


def next_logp(logits: torch.Tensor, rows: list[torch.Tensor]) -> torch.Tensor:
    """Log-prob of every token that has one before it, from the [T, V] logits of all rows."""
    parts = zip(logits.log_softmax(-1).split([len(row) for row in rows]), rows, strict=True)
    return torch.cat([logp[:-1].gather(1, row[1:, None])[:, 0] for logp, row in parts])


def values(model: torch.nn.Module, *, gradients: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What the tests compare with."""
    rows = sequences(model.config.vocab_size)
    right = padded_logits(model, rows, "right")
    logp = next_logp(right, rows)
    (-logp.mean()).backward()
    found = {f"gradient/model.{name}.weight": model.get_submodule(f"model.{name}").weight.grad for name in gradients}
    with torch.no_grad():
        found |= {"right_TV": right, "left_TV": padded_logits(model, rows, "left"), "next_logp_T": logp}
        found["alone_TV"] = torch.cat([model(input_ids=row[None]).logits[0] for row in rows])
        greedy = [continuation(model, row[:count]) for row, count in zip(rows, PROMPT_LENGTHS, strict=False)]
    found["greedy_BT"], found["greedy_logp_BT"] = map(torch.stack, zip(*greedy, strict=True))
    found["tokens_BT"] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    found["length_B"], found["prompt_length_B"] = torch.tensor(LENGTHS), torch.tensor(PROMPT_LENGTHS)
    return to_numpy(found)


def to_numpy(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    return {name: array.astype(np.int32) if array.dtype == np.int64 else array for name, array in arrays.items()}


class UnclearError(ValueError):
    """A greedy continuation that rounding could change, or that says little: another seed is needed."""


def continuation(model: torch.nn.Module, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest next tokens by transformers' own generation and cache, and their log-probs; none ends it early."""
    model.generation_config.eos_token_id = None
    done = model.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt)[None],
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logp, token = torch.cat(done.logits).log_softmax(-1).max(-1)
    best = torch.cat(done.logits).topk(2).values
    gap, varied = float((best[:, 0] - best[:, 1]).min()), len(token.unique())
    if gap < CLEAR or varied < VARIED:
        raise UnclearError(f"a greedy step is decided by {gap}, and {varied} tokens differ: take another seed")
    return token, logp


def make(name: str, config: transformers.PreTrainedConfig, out: pathlib.Path, seed: int) -> dict[str, np.ndarray]:
    """Writes a checkpoint whose weights are drawn from `seed`, and gives its values."""
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomize(model, seed)
    model.save_pretrained(out / name)
    return values(open_model(out / name), gradients=GRADIENTS[name])


def make_first_clear(
    name: str, config: transformers.PreTrainedConfig, out: pathlib.Path, first: int
) -> tuple[int, dict[str, np.ndarray]]:
    """(seed, values) of the first seed, from `first` on, whose continuations are clear and varied."""
    for seed in itertools.count(first):
        try:
            return seed, make(name, config, out, seed)
        except UnclearError:
            continue
    raise AssertionError("unreachable")


def check(name: str, folder: str) -> None:
    """Raises unless transformers finds in `folder`, written by `weights.save`, the model `name` of the golden files."""
    golden, ours = np.load(HERE / f"{name}.npz"), values(open_model(folder), gradients=GRADIENTS[name])
    for key in golden.files:
        # Of the largest value: torch on another processor rounds otherwise.
        np.testing.assert_allclose(ours[key], golden[key], rtol=0, atol=1e-5 * np.abs(golden[key]).max(), err_msg=key)
    print(f"{folder}: {name}, largest difference of a logit {np.abs(ours['right_TV'] - golden['right_TV']).max()}")


def run(
    make_all: Callable[[pathlib.Path, int], None], check_one: Callable[[str, str], None] | None, *, seed: int
) -> None:
    """The command line of the scripts here: `check NAME FOLDER`, or where to write and what to draw weights from."""
    transformers.utils.logging.disable_progress_bar()
    if check_one and sys.argv[1:2] == ["check"]:
        return check_one(*sys.argv[2:])
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    parser.add_argument("--seed", type=int, default=seed)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    return make_all(args.out, args.seed)


def main(out: pathlib.Path, first_seed: int) -> None:
    for name, config in configs().items():
        seed, found = make_first_clear(name, config, out, first_seed)
        np.savez(out / f"{name}.npz", **found)
        print(f"{name}: seed {seed}, logits spread {found['right_TV'].std():.2f}, {found['greedy_BT'].tolist()}")


if __name__ == "__main__":
    run(main, check, seed=SEED)
