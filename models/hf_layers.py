"""What config.json says of its layers: which of them see how far, and how each kind rotates.

transformers 4.42 to 4.50 has sliding_window_pattern, rope_theta, rope_scaling and rope_local_base_freq; 4.55 adds
layer_types; 5 has rope_parameters, one rule in Gemma 2 and one for each kind of layer in Gemma 3.
"""

from thinkfirst.models import config as model_config
from thinkfirst.models import hf_fields

KINDS: dict[str, model_config.Kind] = {"sliding_attention": "local", "full_attention": "global"}
MAX_LAYERS = 1000

_ROPE_TYPES = ("default", "linear")


def pattern(text: hf_fields.Raw, generation: int, num_layers: int) -> tuple[model_config.Kind, ...]:
    """The declared period, unless layer_types says otherwise: then the shortest that repeats."""
    declared = model_config.GEMMA2_PATTERN if generation == 2 else _declared(text)
    names = text.get("layer_types")
    if names is None:
        if not declared:
            raise ValueError("missing key 'layer_types' or 'sliding_window_pattern'")
        return declared
    if not isinstance(names, list) or len(names) != num_layers:
        raise ValueError(f"layer_types {names!r} is not a list of num_hidden_layers = {num_layers} kinds")
    unknown = [name for name in names if name not in tuple(KINDS)]
    if unknown:
        raise ValueError(f"layer_types has {unknown[0]!r}, which is not {' or '.join(KINDS)}")
    kinds = tuple(KINDS[name] for name in names)
    candidates = [declared] * bool(declared) + [kinds[:length] for length in range(1, num_layers + 1)]
    return next(each for each in candidates if repeat(each, num_layers) == kinds)


def repeat(period: tuple[model_config.Kind, ...], num_layers: int) -> tuple[model_config.Kind, ...]:
    """The kind of each layer."""
    return tuple(period[i % len(period)] for i in range(num_layers))


def period(length: int) -> tuple[model_config.Kind, ...]:
    """Local layers, then a global one: what sliding_window_pattern = `length` means."""
    local: tuple[model_config.Kind, ...] = ("local",)
    return local * (length - 1) + ("global",)


def rope(text: hf_fields.Raw, generation: int) -> tuple[float, float, float]:
    """(local base, global base, global factor).  Where a file speaks both dialects they must agree."""
    said = set()
    if text.get("rope_parameters") is not None:
        said.add(_rope_of_5(text, generation))
    if not said or any(text.get(key) is not None for key in ("rope_theta", "rope_scaling")):
        said.add(_rope_of_4(text, generation))
    if len(said) > 1:
        raise ValueError(f"rope_parameters {text['rope_parameters']} and rope_theta, rope_scaling do not agree")
    local_base, local_factor, global_base, global_factor = said.pop()
    if local_factor != 1.0:
        raise ValueError(f"rope factor {local_factor} on sliding layers: only full-attention layers can be scaled")
    return local_base, global_base, global_factor


def _declared(text: hf_fields.Raw) -> tuple[model_config.Kind, ...]:
    """The period that either spelling of sliding_window_pattern gives; empty without."""
    for key in ("sliding_window_pattern", "_sliding_window_pattern"):
        if text.get(key) is not None:
            return period(hf_fields.whole(text, key, most=MAX_LAYERS))
    return ()


def _rope_of_5(text: hf_fields.Raw, generation: int) -> tuple[float, float, float, float]:
    """(local base, local factor, global base, global factor) of rope_parameters."""
    rules, where = hf_fields.mapping(text, "rope_parameters"), "rope_parameters."
    halves = [rules, rules] if generation == 2 else [hf_fields.mapping(rules, kind, where) for kind in KINDS]
    names = [where, where] if generation == 2 else [f"{where}{kind}." for kind in KINDS]
    local, whole = (
        (hf_fields.positive(half, "rope_theta", name), _factor(half, name))
        for half, name in zip(halves, names, strict=True)
    )
    return local + whole


def _rope_of_4(text: hf_fields.Raw, generation: int) -> tuple[float, float, float, float]:
    """The same of rope_theta and its kin: rope_scaling is of every layer in Gemma 2, of global ones in Gemma 3."""
    scaled = text.get("rope_scaling") is not None
    factor = _factor(hf_fields.mapping(text, "rope_scaling"), "rope_scaling.") if scaled else 1.0
    base = hf_fields.positive(text, "rope_theta")
    if generation == 2:
        return base, factor, base, factor
    return hf_fields.positive(text, "rope_local_base_freq"), 1.0, base, factor


def _factor(rules: hf_fields.Raw, where: str) -> float:
    """By how much positions are divided.  Old files call the type "type"."""
    named = {"rope_type": rules.get("type", "default"), **rules}
    linear = hf_fields.one_of(named, "rope_type", _ROPE_TYPES, where) == "linear"
    return hf_fields.positive(rules, "factor", where) if linear else 1.0
