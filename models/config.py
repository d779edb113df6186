"""The shape of a Gemma: one frozen dataclass, published sizes as functions, and the config.json of Hugging Face.

Sources: the Gemma 2 report (arXiv 2408.00118), the Gemma 3 report (arXiv 2503.19786) and the checkpoints' own files.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, Literal

Kind = Literal["local", "global"]
GEMMA2_PATTERN: tuple[Kind, ...] = ("local", "global")
GEMMA3_PATTERN: tuple[Kind, ...] = ("local",) * 5 + ("global",)


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """Sizes and constants of one model.  A soft cap of 0 caps nothing.

    `dtype` is what the model computes in; weights keep the dtype they are stored in.
    """

    generation: Literal[2, 3]
    vocab_size: int
    num_layers: int
    width: int
    ff_width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int
    pattern: tuple[Kind, ...]
    query_scalar: int
    local_rope_base: float = 10_000.0
    global_rope_base: float = 10_000.0
    global_rope_factor: float = 1.0
    attention_soft_cap: float = 0.0
    final_soft_cap: float = 0.0
    norm_epsilon: float = 1e-6
    max_length: int = 8192
    dtype: Literal["float32", "bfloat16"] = "bfloat16"

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even: RoPE rotates pairs")

    @property
    def query_key_norm(self) -> bool:
        """Gemma 3 normalises queries and keys; Gemma 2 caps their products instead."""
        return self.generation == 3

    @property
    def stacks(self) -> tuple[tuple[tuple[Kind, ...], int], ...]:
        """(kinds of a period, how often it repeats), in order: the whole periods, then what is left of one."""
        repeats, rest = divmod(self.num_layers, len(self.pattern))
        whole = ((self.pattern, repeats),) if repeats else ()
        return whole + (((self.pattern[:rest], 1),) if rest else ())


def gemma2_2b() -> GemmaConfig:
    """google/gemma-2-2b and -it: 2.6 G parameters, 26 layers."""
    return GemmaConfig(
        generation=2,
        vocab_size=256_000,
        num_layers=26,
        width=2304,
        ff_width=9216,
        num_heads=8,
        num_kv_heads=4,
        head_dim=256,
        window=4096,
        pattern=GEMMA2_PATTERN,
        query_scalar=256,
        attention_soft_cap=50.0,
        final_soft_cap=30.0,
    )


def gemma3_1b() -> GemmaConfig:
    """google/gemma-3-1b-pt and -it: 1.0 G parameters, 26 layers."""
    return GemmaConfig(
        generation=3,
        vocab_size=262_144,
        num_layers=26,
        width=1152,
        ff_width=6912,
        num_heads=4,
        num_kv_heads=1,
        head_dim=256,
        window=512,
        pattern=GEMMA3_PATTERN,
        query_scalar=256,
        global_rope_base=1_000_000.0,
        max_length=32_768,
    )


def narrow_gemma2() -> GemmaConfig:
    """A Gemma 2 with the real vocabulary and very little else: real prompts at a laptop's speed."""
    return GemmaConfig(
        generation=2,
        vocab_size=256_000,
        num_layers=2,
        width=32,
        ff_width=64,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        window=128,
        pattern=GEMMA2_PATTERN,
        query_scalar=16,
        attention_soft_cap=50.0,
        final_soft_cap=30.0,
        max_length=1024,
        dtype="float32",
    )


def demo_gemma3() -> GemmaConfig:
    """The Gemma 3 of the demo: local and global layers, q/k norms, 0.49 M parameters."""
    return GemmaConfig(
        generation=3,
        vocab_size=512,
        num_layers=4,
        width=96,
        ff_width=256,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        window=32,
        pattern=("local", "global"),
        query_scalar=32,
        global_rope_base=100_000.0,
        max_length=256,
        dtype="float32",
    )


BY_NAME: dict[str, Callable[[], GemmaConfig]] = {
    "gemma2_2b": gemma2_2b,
    "gemma3_1b": gemma3_1b,
    "narrow_gemma2": narrow_gemma2,
    "demo_gemma3": demo_gemma3,
}


def read(folder: str | pathlib.Path) -> GemmaConfig:
    """The configuration of a Hugging Face checkpoint folder."""
    path = pathlib.Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a checkpoint folder holds config.json")
    try:
        raw = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    try:
        return from_hf(raw)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def from_hf(raw: dict[str, Any]) -> GemmaConfig:
    """Our configuration from the contents of config.json, in the dialects of transformers 4.42 to 5."""
    model_type = raw["model_type"]
    if model_type not in ("gemma2", "gemma3_text"):
        raise ValueError(f"model_type {model_type!r} is not gemma2 or gemma3_text")
    generation: Literal[2, 3] = 2 if model_type == "gemma2" else 3
    local_base, global_base, factor = _rope_from_hf(raw, generation)
    return GemmaConfig(
        generation=generation,
        vocab_size=raw["vocab_size"],
        num_layers=raw["num_hidden_layers"],
        width=raw["hidden_size"],
        ff_width=raw["intermediate_size"],
        num_heads=raw["num_attention_heads"],
        num_kv_heads=raw["num_key_value_heads"],
        head_dim=raw["head_dim"],
        window=raw["sliding_window"],
        pattern=_pattern_from_hf(raw, generation),
        query_scalar=int(raw["query_pre_attn_scalar"]),
        local_rope_base=local_base,
        global_rope_base=global_base,
        global_rope_factor=factor,
        attention_soft_cap=raw.get("attn_logit_softcapping") or 0.0,
        final_soft_cap=raw.get("final_logit_softcapping") or 0.0,
        norm_epsilon=raw["rms_norm_eps"],
        max_length=raw["max_position_embeddings"],
        dtype=raw.get("dtype") or raw.get("torch_dtype") or "float32",
    )


def to_hf(config: GemmaConfig) -> dict[str, Any]:
    """The config.json of `config`, as transformers 4.50 writes it."""
    layers = [config.pattern[i % len(config.pattern)] for i in range(config.num_layers)]
    names = {"local": "sliding_attention", "global": "full_attention"}
    gemma3 = {
        "rope_local_base_freq": config.local_rope_base,
        "rope_scaling": None
        if config.global_rope_factor == 1.0
        else {"factor": config.global_rope_factor, "rope_type": "linear"},
        "sliding_window_pattern": len(config.pattern),
    }
    return {
        "architectures": [f"Gemma{config.generation}ForCausalLM"],
        "model_type": "gemma2" if config.generation == 2 else "gemma3_text",
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "intermediate_size": config.ff_width,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "sliding_window": config.window,
        "layer_types": [names[kind] for kind in layers],
        "query_pre_attn_scalar": config.query_scalar,
        "rope_theta": config.global_rope_base,
        "attn_logit_softcapping": config.attention_soft_cap or None,
        "final_logit_softcapping": config.final_soft_cap or None,
        "rms_norm_eps": config.norm_epsilon,
        "max_position_embeddings": config.max_length,
        "torch_dtype": config.dtype,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        **(gemma3 if config.generation == 3 else {}),
    }


def _rope_from_hf(raw: dict[str, Any], generation: int) -> tuple[float, float, float]:
    """(local base, global base, global linear factor)."""
    if "rope_parameters" in raw:
        rules = raw["rope_parameters"]
        if "full_attention" in rules:
            local, whole = rules["sliding_attention"], rules["full_attention"]
        else:
            local = whole = rules
        return float(local["rope_theta"]), float(whole["rope_theta"]), float(whole.get("factor", 1.0))
    scaling = raw.get("rope_scaling") or {}
    if scaling and scaling.get("rope_type", scaling.get("type")) != "linear":
        raise ValueError(f"rope_scaling {scaling} is not linear")
    base = float(raw["rope_theta"])
    local = float(raw["rope_local_base_freq"]) if generation == 3 else base
    return local, base, float(scaling.get("factor", 1.0))


def _pattern_from_hf(raw: dict[str, Any], generation: Literal[2, 3]) -> tuple[Kind, ...]:
    """The shortest repeating pattern of local and global layers."""
    length = raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern")
    if "layer_types" not in raw:
        local: tuple[Kind, ...] = ("local",)
        return GEMMA2_PATTERN if generation == 2 else local * ((length or 6) - 1) + GEMMA3_PATTERN[-1:]
    names: dict[str, Kind] = {"sliding_attention": "local", "full_attention": "global"}
    kinds = tuple(names[name] for name in raw["layer_types"])
    for size in range(1, len(kinds) + 1):
        if all(kind == kinds[i % size] for i, kind in enumerate(kinds)):
            return kinds[:size]
    return kinds
