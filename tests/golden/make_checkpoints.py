"""Golden files of checkpoint folders as they are published: three dialects of config.json, three ways to hold weights.

    hf_gemma2_sharded    Gemma 2, float32, several files and an index      config.json in the words of gemma-2-2b
    hf_gemma3_bf16       Gemma 3, bfloat16, one file                       ... of gemma-3-1b-it
    hf_gemma3_mm         Gemma 3 that sees, float32: the language model's  ... of gemma-3-4b-it: nested, and what has
                         tensors are language_model.model.*, others are    its default is left out
                         to be skipped; linear RoPE scaling of 8

Beside each folder a .npz holds tokens_BT [3, 15], length_B [3] and right_TV [28, 64]: the logits of the valid
positions, row after row, in float32 whatever the weights are stored in.  `make golden` runs it.
"""

import json
import pathlib
from typing import Any

import make_transformers
import numpy as np
import torch
import transformers

SEED = 7
SIZES = {
    "hidden_size": 12,
    "intermediate_size": 10,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "sliding_window": 6,
    "vocab_size": 64,
}
GEMMA2 = {
    **SIZES,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 5.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 6.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "max_position_embeddings": 64,
    "num_hidden_layers": 5,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 3,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
    "transformers_version": "4.42.4",
    "use_cache": True,
}
GEMMA3 = {
    **SIZES,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 6],
    "final_logit_softcapping": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "max_position_embeddings": 64,
    "num_hidden_layers": 7,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 3,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "use_cache": True,
}
GEMMA3_MM = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "boi_token_index": 40,
    "eoi_token_index": 41,
    "image_token_index": 0,
    "eos_token_id": [1, 6],
    "initializer_range": 0.02,
    "mm_tokens_per_image": 4,
    "text_config": {
        **SIZES,
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "torch_dtype": "float32",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {
        "hidden_size": 8,
        "image_size": 8,
        "intermediate_size": 8,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "patch_size": 4,
        "vision_use_head": False,
    },
}
FOLDERS: dict[str, tuple[type, dict[str, Any], str]] = {
    "hf_gemma2_sharded": (transformers.Gemma2ForCausalLM, GEMMA2, "8KB"),
    "hf_gemma3_bf16": (transformers.Gemma3ForCausalLM, GEMMA3, "1MB"),
    "hf_gemma3_mm": (transformers.Gemma3ForConditionalGeneration, GEMMA3_MM, "1MB"),
}


def write(folder: pathlib.Path, kind: type, published: dict[str, Any], *, shard_size: str, seed: int) -> None:
    """A checkpoint with random weights, and `published` word for word as its config.json."""
    folder.mkdir(exist_ok=True)
    text = json.dumps(published, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text)
    model = kind(transformers.AutoConfig.from_pretrained(folder))
    make_transformers.randomize(model, seed)
    model.to(getattr(torch, published["torch_dtype"])).save_pretrained(folder, max_shard_size=shard_size)
    (folder / "config.json").write_text(text)


def main(out: pathlib.Path, seed: int) -> None:
    for name, (kind, published, shard_size) in FOLDERS.items():
        write(out / name, kind, published, shard_size=shard_size, seed=seed)
        model = make_transformers.open_model(out / name, kind)
        rows = make_transformers.sequences(SIZES["vocab_size"])
        with torch.no_grad():
            logits = make_transformers.padded_logits(model, rows, "right")
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        length = torch.tensor(make_transformers.LENGTHS)
        found = {"tokens_BT": tokens, "length_B": length, "right_TV": logits}
        np.savez(out / f"{name}.npz", **make_transformers.to_numpy(found))
        print(f"{name}: logits spread {logits.std():.2f}, {sorted(path.name for path in (out / name).iterdir())}")


if __name__ == "__main__":
    make_transformers.run(main, None, seed=SEED)
