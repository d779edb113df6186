"""An adapter folder that says more than its factors do, or does not fit the model, is refused and the fault named."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import peft_folder
from thinkfirst.models import lora, peft

A, B = peft_folder.tensor(1, "q_proj", "A"), peft_folder.tensor(1, "q_proj", "B")
EMBEDDING = "base_model.model.model.embed_tokens.lora_embedding_A"
OLD = "language_model.model."
ONES = {shape: np.ones(shape, np.float32) for shape in ((2, 16), (3, 16), (2, 32), (2, 64), (64, 16), (32,))}
SETTINGS = [
    ({"peft_type": "IA3"}, "peft_type 'IA3' is not LORA"),
    ({"peft_type": None}, "peft_type None is not LORA"),
    ({"bias": "lora_only"}, "bias 'lora_only' is not none"),
    ({"lora_bias": True}, "lora_bias=True is not supported"),
    ({"use_dora": True}, "use_dora=True is not supported"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out=True is not supported"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head'] is not supported"),
    ({"trainable_token_indices": [5]}, "trainable_token_indices=[5] is not supported"),
    ({"layer_replication": [[0, 2], [1, 5]]}, "layer_replication=[[0, 2], [1, 5]] is not supported"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4' changes the base too"),
    ({"r": 0}, "r=0 must be a whole number of at least 1"),
    ({"r": None}, "r=None must be a whole number"),
    ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern q_proj='4' must be a whole number"),
    ({"rank_pattern": [4]}, "rank_pattern=[4] must be an object"),
    ({"lora_alpha": None}, "lora_alpha=None must be a number"),
    ({"lora_alpha": float("nan")}, "lora_alpha=nan must be a number"),
    ({"alpha_pattern": {"q_proj": True}}, "alpha_pattern q_proj=True must be a number"),
    ({"alpha_pattern": {"*": 2}}, "alpha_pattern: '*' is not a regular expression"),
    ({"target_modules": "(q_proj"}, "target_modules: '(q_proj' is not a regular expression"),
    ({"target_modules": [1]}, "target_modules=[1] must be a list of names"),
    ({"layers_to_transform": ["1"]}, "layers_to_transform=['1'] must be whole numbers"),
]
CONTRADICTIONS = [
    ({"alpha_pattern": {"k_prj": 2}}, "'k_prj' of rank_pattern or alpha_pattern matches no module of the file"),
    ({"rank_pattern": {"proj": 2}}, "'proj' of rank_pattern or alpha_pattern matches no module of the file"),
    ({"target_modules": ["q_proj"]}, "model.layers.4.mlp.up_proj is adapted, which target_modules leaves out"),
    ({"layers_to_transform": 0}, "model.layers.1.mlp.up_proj is adapted, which target_modules leaves out"),
    ({"exclude_modules": ["up_proj"]}, "model.layers.4.mlp.up_proj is adapted, which target_modules leaves out"),
    ({"rank_pattern": {"layers.1.self_attn.q_proj": 3}}, f"{A} has shape (2, 16), expected (3, 16)"),
]
TENSORS = [
    ({B: None}, f"missing {B}"),
    ({A: None}, f"missing {A}"),
    ({A: None, B: None}, "model.layers.1.self_attn.q_proj is not adapted, which target_modules asks for"),
    ({A: ONES[3, 16]}, f"{A} has shape (3, 16), expected (2, 16)"),
    ({B: ONES[2, 32]}, f"{B} has shape (2, 32), expected (32, 2)"),
    ({A: np.ones((2, 16))}, f"{A} is F64, not BF16, F16, F32"),
    ({A: np.ones((2, 16), np.int8)}, f"{A} is I8, not BF16, F16, F32"),
    ({A.replace(".1.", ".5."): ONES[2, 16]}, f"unexpected {A.replace('.1.', '.5.')}"),
    ({A.replace("lora_A.weight", "lora_A.default.weight"): ONES[2, 16]}, "q_proj.lora_A.default.weight"),
    ({A.replace("lora_A.weight", "lora_magnitude_vector"): ONES[32,]}, "q_proj.lora_magnitude_vector"),
    ({EMBEDDING: ONES[2, 64]}, f"unexpected {EMBEDDING}"),
    ({"base_model.model.lm_head.weight": ONES[64, 16]}, "unexpected base_model.model.lm_head.weight"),
    ({peft_folder.tensor(0, "q_proj", "A", OLD): ONES[2, 16]}, f"unexpected base_model.model.{OLD}layers.0.self_attn"),
]


def refusal(folder):
    """What is said of the adapter in `folder`."""
    with pytest.raises(ValueError) as caught:
        peft.load(folder, peft_folder.model_of("hf_gemma2"))
    return str(caught.value)


def sound():
    return peft_folder.factors(peft_folder.model_of("hf_gemma2").config)


@pytest.mark.parametrize(("settings", "message"), SETTINGS)
def test_a_setting_that_is_wrong_or_says_more_is_named(settings, message, tmp_path):
    peft_folder.write(tmp_path, sound(), **settings)
    assert refusal(tmp_path).startswith(f"{tmp_path / 'adapter_config.json'}: {message}")


@pytest.mark.parametrize(("settings", "message"), CONTRADICTIONS)
def test_settings_that_the_tensors_contradict_are_named(settings, message, tmp_path):
    peft_folder.write(tmp_path, sound(), **settings)
    said = refusal(tmp_path)
    assert said.startswith(f"{tmp_path / 'adapter_model.safetensors'} does not hold") and message in said


@pytest.mark.parametrize(("changes", "message"), TENSORS)
def test_a_tensor_that_does_not_fit_is_named(changes, message, tmp_path):
    held = {name: value for name, value in (sound() | changes).items() if value is not None}
    peft_folder.write(tmp_path, held)
    said = refusal(tmp_path)
    assert said.startswith(f"{tmp_path / 'adapter_model.safetensors'} does not hold") and message in said
    assert ";" not in said, "only that"


def test_all_tensors_that_do_not_fit_are_named_at_once(tmp_path):
    held = peft_folder.factors(peft_folder.model_of("hf_gemma2").config, 3)
    with pytest.raises(ValueError) as caught:
        peft.load(peft_folder.write(tmp_path / "adapter", held), peft_folder.model_of("hf_gemma2"))
    for name in held:
        assert f"{name} has shape" in str(caught.value)


def test_the_adapter_of_another_model_is_refused(tmp_path):
    folder = peft_folder.write(tmp_path / "adapter", peft_folder.factors(peft_folder.model_of("hf_gemma3").config))
    with pytest.raises(ValueError, match=r"unexpected .*layers\.7.*k_proj.lora_B.weight has shape \(8, 2\)"):
        peft.load(folder, peft_folder.model_of("hf_gemma2"))


def test_a_file_without_factors_is_refused(tmp_path):
    folder = peft_folder.write(tmp_path / "adapter", {}, target_modules=None)
    with pytest.raises(ValueError, match="it has no lora_A or lora_B of any projection"):
        peft.load(folder, peft_folder.model_of("hf_gemma2"))


def test_a_missing_or_broken_file_is_named(tmp_path):
    model = peft_folder.model_of("hf_gemma2")
    folder = peft_folder.write(tmp_path / "adapter", peft_folder.factors(model.config))
    path = folder / "adapter_config.json"
    for content, message in (("{", "not JSON"), ("[]", "not a JSON object"), ("[" * 100_000, "not JSON")):
        path.write_text(content)
        with pytest.raises(ValueError, match=rf"adapter_config\.json: {message}"):
            peft.load(folder, model)
    path.write_bytes(b'"\xff"')
    with pytest.raises(ValueError, match=r"adapter_config\.json: not JSON"):
        peft.load(folder, model)
    path.unlink()
    with pytest.raises(ValueError, match=r"adapter_config\.json: no such file"):
        peft.load(folder, model)
    peft_folder.write(folder, peft_folder.factors(model.config))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model\.bin: a pickle, which can run any code"):
        peft.load(folder, model)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: no such file"):
        peft.load(folder, model)


def test_an_adapter_without_a_number_is_not_saved(tmp_path):
    model = peft_folder.model_of("hf_gemma2")
    nothing = jax.tree.map(jnp.zeros_like, lora.init(model.adapted(), jax.random.key(0), rank=1, alpha=1.0))
    with pytest.raises(ValueError, match="zero everywhere"):
        peft.save(tmp_path, model, nothing, base="b")


def test_a_save_cut_short_leaves_nothing_to_open(tmp_path, monkeypatch):
    model = peft_folder.model_of("hf_gemma2")
    adapter = lora.init(model.adapted(), jax.random.key(0), rank=1, alpha=1.0)
    peft.save(tmp_path, model, adapter, base="b")
    monkeypatch.setattr(peft.files, "write_text", lambda path, content: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        peft.save(tmp_path, model, dataclasses.replace(adapter, scale=2.0), base="b")
    with pytest.raises(ValueError, match=r"adapter_config\.json: no such file"):
        peft.load(tmp_path, model)
