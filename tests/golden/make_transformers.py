"""Golden files of two tiny random Gemmas, computed by Hugging Face transformers: an oracle that shares no code with us.

Written by transformers 5.23.0 and torch 2.13.0 (CPU) on Python 3.11, in an environment of their own:

    pip install torch==2.13.0 && pip install transformers==5.23.0
    python tests/golden/make_transformers.py

For each model it writes a checkpoint folder, hf_gemma2/ or hf_gemma3/, and hf_gemma2.npz or hf_gemma3.npz:

    tokens_BT [2, 20], length_B [2]      right-padded token ids
    logit_TV, next_logp_T                of the valid positions, row after row; the last of a row predicts nothing
    prompt_length_B, greedy_BT [2, 12]   what each row's first `prompt_length` tokens are continued with

The other direction: `python tests/golden/make_transformers.py check hf_gemma2 FOLDER` opens in transformers a FOLDER
where `weights.save` wrote what `weights.load` read from hf_gemma2/; it raises unless the values are the golden ones.
Result with the versions above: hf_gemma2 and hf_gemma3 both open, and the largest difference of a logit is 0.0.
"""

import pathlib
import sys

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
SEED = 108  # one whose continuations vary and whose float32 values are within 5e-6 of their float64 ones
NEW_TOKENS = 12
LENGTHS = (20, 13)
PROMPT_LENGTHS = (9, 4)
CLEAR = 0.02  # between the best two logits of a greedy step: rounding must not decide

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


def write_model(folder: pathlib.Path, config: transformers.PreTrainedConfig) -> None:
    """A checkpoint of random weights, the norms' included: fresh ones are zero and would hide mistakes."""
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # A faint embedding and a loud last norm: what follows a token is not that token again, and soft caps bite.
            spread = 0.5 if weight.ndim == 1 else 1.5 * weight.shape[1] ** -0.5
            spread = 0.3 if "embed" in name else spread
            middle = 1.0 if name == "model.norm.weight" else 0.0
            weight.copy_(middle + torch.randn(weight.shape, generator=generator) * spread)
    model.save_pretrained(folder)


def open_model(folder: str | pathlib.Path) -> torch.nn.Module:
    """The checkpoint as a user would open it.  Not the object it was saved from, which may hold other buffers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    return model.eval()


@torch.no_grad()
def values(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """What the tests compare with."""
    generator = torch.Generator().manual_seed(1)
    length = torch.tensor(LENGTHS)
    mask = torch.arange(max(LENGTHS))[None, :] < length[:, None]
    tokens = torch.randint(3, model.config.vocab_size, mask.shape, generator=generator) * mask
    logits = model(input_ids=tokens, attention_mask=mask.long()).logits
    logp = logits.log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None])[:, :, 0]
    greedy = [continuation(model, row[None, :count]) for row, count in zip(tokens, PROMPT_LENGTHS, strict=True)]
    return {
        "tokens_BT": tokens.numpy().astype(np.int32),
        "length_B": length.numpy().astype(np.int32),
        "logit_TV": logits[mask].numpy(),
        "next_logp_T": logp[mask[:, 1:]].numpy(),
        "prompt_length_B": np.array(PROMPT_LENGTHS, np.int32),
        "greedy_BT": np.stack(greedy).astype(np.int32),
    }


def continuation(model: torch.nn.Module, prompt: torch.Tensor) -> np.ndarray:
    """The likeliest next tokens by transformers' own generation and cache; no token ends it early."""
    model.generation_config.eos_token_id = None
    done = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.cat(done.logits).topk(2).values
    gap = (best[:, 0] - best[:, 1]).min()
    assert gap > CLEAR, f"a greedy step is decided by {gap}: take another seed"
    return done.sequences[0, prompt.shape[1] :].numpy()


def check(name: str, folder: str) -> None:
    """Raises unless transformers finds in `folder`, written by `weights.save`, the model `name` of the golden files."""
    golden, ours = np.load(HERE / f"{name}.npz"), values(open_model(folder))
    for key in golden.files:
        np.testing.assert_allclose(ours[key], golden[key], rtol=1e-6, atol=1e-6, err_msg=key)
    print(f"{folder}: {name}, largest difference of a logit {np.abs(ours['logit_TV'] - golden['logit_TV']).max()}")


def main() -> None:
    for name, config in configs().items():
        write_model(HERE / name, config)
        found = values(open_model(HERE / name))
        np.savez(HERE / f"{name}.npz", **found)
        spread, last = found["logit_TV"].std(), found["greedy_BT"].tolist()
        print(f"{name}: logits spread {spread:.2f}, continuations {last}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        check(*sys.argv[2:])
    else:
        main()
