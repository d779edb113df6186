"""config.json and generation_config.json of a Hugging Face checkpoint, to and from our configuration.

Three dialects are read: transformers 4.42 to 4.50 (torch_dtype, rope_theta, sliding_window_pattern), 4.55 (layer_types
beside them) and 5 (dtype, rope_parameters); also the text_config inside a multimodal Gemma 3.  What the model does not
compute is an error, and so is a published size whose arithmetic is not the published one.
"""

import dataclasses
import pathlib
from typing import Any, Literal

from thinkfirst.models import config as model_config
from thinkfirst.models import hf_fields, hf_layers

CONFIG_NAME = "config.json"
GENERATION_NAME = "generation_config.json"

_MAX_SIZE = 2**20  # a dimension above this is a mistake in the file, not a Gemma

# Key of config.json -> field of GemmaConfig.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "intermediate_size": "ff_width",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "sliding_window": "window",
    "max_position_embeddings": "max_length",
}
_NAMES = {field: key for key, field in _SIZES.items()} | {
    "query_scalar": "query_pre_attn_scalar",
    "attention_soft_cap": "attn_logit_softcapping",
    "final_soft_cap": "final_logit_softcapping",
    "norm_epsilon": "rms_norm_eps",
}
_FREE = ("vocab_size", "max_length", "dtype")  # a resized vocabulary or a float32 release is still a published size

_GENERATION: dict[str, Literal[2, 3]] = {"gemma2": 2, "gemma3_text": 3, "gemma3": 3}
_COMPUTE: dict[str, Literal["float32", "bfloat16"]] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float32",  # activations of Gemma overflow float16
}
_ONLY = {"attention_bias": False, "use_bidirectional_attention": False, "tie_word_embeddings": True}

# Gemma3TextConfig's defaults in transformers, which text_config leaves out.
_TEXT_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_ROPE_DEFAULTS = {"rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0}


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """The ids that begin a text, end one, and fill a row."""

    bos_id: int
    eos_ids: tuple[int, ...]
    pad_id: int


def read(folder: str | pathlib.Path) -> model_config.GemmaConfig:
    """The configuration of a checkpoint folder."""
    path = _config_path(folder)
    raw = hf_fields.read_object(path)
    try:
        return from_hf(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def special_ids(folder: str | pathlib.Path) -> SpecialIds:
    """The ids of generation_config.json, and of config.json for those it leaves out.

    The order matters: config.json of Gemma 3 270M knows no end of turn.
    """
    limit = read(folder).vocab_size
    path = _config_path(folder)
    raw = hf_fields.read_object(path)
    sources = [(path, raw), (path, _text_of(raw))]
    generation = path.with_name(GENERATION_NAME)
    if generation.is_file():
        sources.insert(0, (generation, hf_fields.read_object(generation)))
    eos_ids = _ids("eos_token_id", sources, limit)
    return SpecialIds(_one_id("bos_token_id", sources, limit), eos_ids, _one_id("pad_token_id", sources, limit))


def from_hf(raw: hf_fields.Raw) -> model_config.GemmaConfig:
    """Our configuration from the contents of config.json; ValueError names the key and the value at fault."""
    text = _text_of(raw)
    _check_unsupported(raw)
    _check_unsupported(text)
    _check_activation(text)
    generation = _GENERATION[raw["model_type"]]
    num_layers = hf_fields.whole(text, "num_hidden_layers", most=hf_layers.MAX_LAYERS)
    local_base, global_base, factor = hf_layers.rope(text, generation)
    config = model_config.GemmaConfig(
        generation=generation,
        num_layers=num_layers,
        pattern=hf_layers.pattern(text, generation, num_layers),
        query_scalar=_query_scalar(text),
        local_rope_base=local_base,
        global_rope_base=global_base,
        global_rope_factor=factor,
        attention_soft_cap=_soft_cap(text, "attn_logit_softcapping"),
        final_soft_cap=_soft_cap(text, "final_logit_softcapping"),
        norm_epsilon=hf_fields.positive(text, "rms_norm_eps"),
        dtype=_dtype(text),
        base_dtype="stored",
        **{field: hf_fields.whole(text, key, most=_MAX_SIZE) for key, field in _SIZES.items()},
    )
    _check_published(config)
    return config


def to_hf(config: model_config.GemmaConfig, *, dtype: str, special: SpecialIds) -> dict[str, Any]:
    """The config.json, for transformers 4.50 to 5, of weights of `config` that are stored as `dtype`.

    4.50 reads no layer_types: it takes Gemma 2 as alternating, and of Gemma 3 knows only periods that end in their one
    global layer.  Other patterns need a newer one.
    """
    names = {kind: name for name, kind in hf_layers.KINDS.items()}
    gemma3: dict[str, Any] = {
        "rope_local_base_freq": config.local_rope_base,
        "rope_scaling": None
        if config.global_rope_factor == 1.0
        else {"factor": config.global_rope_factor, "rope_type": "linear"},
    }
    if config.pattern == hf_layers.period(len(config.pattern)):
        gemma3["sliding_window_pattern"] = len(config.pattern)
    return {
        "architectures": [f"Gemma{config.generation}ForCausalLM"],
        "model_type": "gemma2" if config.generation == 2 else "gemma3_text",
        "num_hidden_layers": config.num_layers,
        **{key: getattr(config, field) for key, field in _SIZES.items()},
        "layer_types": [names[kind] for kind in hf_layers.repeat(config.pattern, config.num_layers)],
        "query_pre_attn_scalar": config.query_scalar,
        "rope_theta": config.global_rope_base,
        "attn_logit_softcapping": config.attention_soft_cap or None,
        "final_logit_softcapping": config.final_soft_cap or None,
        "rms_norm_eps": config.norm_epsilon,
        "torch_dtype": dtype,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "tie_word_embeddings": True,
        **generation_to_hf(special),
        **(gemma3 if config.generation == 3 else {}),
    }


def generation_to_hf(special: SpecialIds) -> dict[str, Any]:
    """The generation_config.json that stops at `special`."""
    eos_ids = list(special.eos_ids)
    return {
        "bos_token_id": special.bos_id,
        "eos_token_id": eos_ids if len(eos_ids) > 1 else eos_ids[0],
        "pad_token_id": special.pad_id,
    }


def _text_of(raw: hf_fields.Raw) -> hf_fields.Raw:
    """The keys of the language model, with the defaults that a multimodal file relies on."""
    if hf_fields.one_of(raw, "model_type", _GENERATION) != "gemma3":
        return raw
    text = hf_fields.mapping(raw, "text_config")
    hf_fields.one_of({"model_type": "gemma3_text", **text}, "model_type", ("gemma3_text",), "text_config.")
    outer = {key: raw[key] for key in ("dtype", "torch_dtype") if key in raw}
    rope = _ROPE_DEFAULTS if text.get("rope_parameters") is None else {}
    return {**_TEXT_DEFAULTS, **rope, **outer, **text}


def _check_unsupported(raw: hf_fields.Raw) -> None:
    """Raises for a switch that would change the arithmetic."""
    for key, only in _ONLY.items():
        if raw.get(key) is not None and raw[key] is not only:
            raise ValueError(f"{key} {raw[key]!r}: only {only} is supported")


def _check_activation(text: hf_fields.Raw) -> None:
    """Raises unless it is the approximate GELU.  hidden_act, "gelu" in some files, counts only without the other."""
    counts = text.get("hidden_activation") is None and "hidden_act" in text
    hf_fields.one_of(text, "hidden_act" if counts else "hidden_activation", ("gelu_pytorch_tanh",))


def _query_scalar(text: hf_fields.Raw) -> int:
    """A whole number, which a file may write as 256.0."""
    number = hf_fields.positive(text, "query_pre_attn_scalar")
    if not number.is_integer():
        raise ValueError(f"query_pre_attn_scalar {number} is not a whole number")
    return int(number)


def _soft_cap(text: hf_fields.Raw, key: str) -> float:
    """0, which caps nothing, for null."""
    return 0.0 if hf_fields.get(text, key) is None else hf_fields.positive(text, key)


def _dtype(text: hf_fields.Raw) -> Literal["float32", "bfloat16"]:
    """What to compute in; float32 where the file does not say."""
    key = "torch_dtype" if text.get("dtype") is None else "dtype"
    return "float32" if text.get(key) is None else _COMPUTE[hf_fields.one_of(text, key, _COMPUTE)]


def _check_published(config: model_config.GemmaConfig) -> None:
    """Raises where a published width and depth come with other arithmetic: the weights would run, and be wrong."""
    for make in model_config.PUBLISHED:
        published = dataclasses.asdict(make())
        if all(getattr(config, field) == published[field] for field in ("generation", "width", "num_layers")):
            wrong = [
                f"{_NAMES.get(field, field)}: {getattr(config, field)}, published {value}"
                for field, value in published.items()
                if field not in _FREE and getattr(config, field) != value
            ]
            if wrong:
                raise ValueError(f"not {make.__name__}, whose width and layers it has: " + "; ".join(wrong))


def _one_id(key: str, sources: list[tuple[pathlib.Path, hf_fields.Raw]], limit: int) -> int:
    path, value = _said(key, sources)
    return _id(path, key, value, limit)


def _ids(key: str, sources: list[tuple[pathlib.Path, hf_fields.Raw]], limit: int) -> tuple[int, ...]:
    path, value = _said(key, sources)
    if value == []:
        raise ValueError(f"{path}: {key} is an empty list")
    return tuple(_id(path, key, each, limit) for each in (value if isinstance(value, list) else [value]))


def _said(key: str, sources: list[tuple[pathlib.Path, hf_fields.Raw]]) -> tuple[pathlib.Path, Any]:
    """The first source that has `key`, and its value there."""
    for path, raw in sources:
        if raw.get(key) is not None:
            return path, raw[key]
    raise ValueError(f"{sources[-1][0]}: missing key {key!r}")


def _id(path: pathlib.Path, key: str, value: Any, limit: int) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{path}: {key} {value!r} is not an id of a vocabulary of {limit}")
    return value


def _config_path(folder: str | pathlib.Path) -> pathlib.Path:
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: " + ("not a folder" if folder.exists() else "no such folder"))
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a checkpoint folder holds {CONFIG_NAME}")
    return path
