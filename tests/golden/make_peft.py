"""Golden files of LoRA adapters on the Gemmas of make_transformers.py, as Hugging Face's PEFT writes and computes them.

    peft_gemma3    rank 4, alpha 8, all seven projections, on hf_gemma3
    peft_gemma2    rank 4, alpha 6, rank-stabilised (scaled by alpha / sqrt(rank)), query and value only, on hf_gemma2

`make golden` runs it, after make_transformers.py, in the same environment.  Beside each folder, as `save_pretrained`
leaves it, a .npz holds

    tokens_BT [3, 15], length_B [3]    three sequences, right-padded
    applied_TV, merged_TV [28, 64]     logits with the adapter on, and after `merge_and_unload`
    gradient/<name of a tensor>        of minus the mean log-prob of the tokens that have one before them

The other direction: `python tests/golden/make_peft.py check peft_gemma3 FOLDER` opens an adapter FOLDER of ours,
written from what was read in peft_gemma3/, on the same base; it raises unless the values are the golden ones.
"""

import pathlib

import make_transformers
import numpy as np
import peft
import torch

SEED = 11
QUERY_VALUE = ["q_proj", "v_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "peft_gemma2": ("hf_gemma2", {"r": 4, "lora_alpha": 6, "target_modules": QUERY_VALUE, "use_rslora": True}),
    "peft_gemma3": ("hf_gemma3", {"r": 4, "lora_alpha": 8, "target_modules": ALL}),
}
GRADIENTS = {
    "peft_gemma2": ("layers.2.self_attn.q_proj", "layers.4.self_attn.v_proj"),
    "peft_gemma3": ("layers.5.self_attn.k_proj", "layers.7.self_attn.o_proj", "layers.0.mlp.down_proj"),
}


def write(folder: pathlib.Path, base: pathlib.Path, settings: dict[str, object], seed: int) -> None:
    """An adapter with random factors, B's included: a fresh B is zero and changes nothing."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(make_transformers.open_model(base), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5 * weight.shape[1] ** -0.5)
    model.peft_config["default"].target_modules = sorted(settings["target_modules"])  # it was a set
    model.peft_config["default"].base_model_name_or_path = base.name
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()  # a form to fill in


def open_adapter(folder: str | pathlib.Path, base: pathlib.Path) -> peft.PeftModel:
    """The adapter as a user would open it, ready to be trained."""
    return peft.PeftModel.from_pretrained(make_transformers.open_model(base), folder, is_trainable=True).eval()


def values(model: peft.PeftModel, *, gradients: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What the tests compare with.  Leaves the model merged."""
    rows = make_transformers.sequences(model.config.vocab_size)
    applied = make_transformers.padded_logits(model, rows, "right")
    (-make_transformers.next_logp(applied, rows).mean()).backward()
    found = {"applied_TV": applied}
    for name in gradients:
        for half in ("lora_A", "lora_B"):
            path = f"base_model.model.model.{name}.{half}"
            found[f"gradient/{path}.weight"] = model.get_submodule(path)["default"].weight.grad
    with torch.no_grad():
        found["merged_TV"] = make_transformers.padded_logits(model.merge_and_unload(), rows, "right")
    found["tokens_BT"] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    found["length_B"] = torch.tensor(make_transformers.LENGTHS)
    return make_transformers.to_numpy(found)


def check(name: str, folder: str) -> None:
    """Raises unless peft finds in `folder`, written by us, the adapter `name` of the golden files."""
    golden = np.load(make_transformers.HERE / f"{name}.npz")
    base = make_transformers.HERE / ADAPTERS[name][0]
    ours = values(open_adapter(folder, base), gradients=GRADIENTS[name])
    for key in golden.files:
        # Of the largest value: torch on another processor rounds otherwise.
        np.testing.assert_allclose(ours[key], golden[key], rtol=0, atol=1e-5 * np.abs(golden[key]).max(), err_msg=key)
    print(f"{folder}: {name}, largest difference of a logit {np.abs(ours['applied_TV'] - golden['applied_TV']).max()}")


def main(out: pathlib.Path, seed: int) -> None:
    for name, (base, settings) in ADAPTERS.items():
        write(out / name, out / base, settings, seed)
        found = values(open_adapter(out / name, out / base), gradients=GRADIENTS[name])
        np.savez(out / f"{name}.npz", **found)
        plain = np.load(out / f"{base}.npz")["right_TV"]
        merged, moved = (np.abs(found["applied_TV"] - other).max() for other in (found["merged_TV"], plain))
        print(f"{name}: moves logits by up to {moved:.2f}; merged is applied to within {merged:.1e}")


if __name__ == "__main__":
    make_transformers.run(main, check, seed=SEED)
