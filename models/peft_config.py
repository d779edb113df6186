"""PEFT's adapter_config.json: which modules are adapted, with which rank and scale.  All that is more is refused.

A module is named as in the base, e.g. "model.layers.3.self_attn.q_proj".  The rules of matching are PEFT's:

    target_modules, exclude_modules    a list of names or of ends of names; or one expression for whole names
    rank_pattern, alpha_pattern        an expression for a name or its end -> value; the first that matches counts
    scale                              alpha / rank, and with use_rslora alpha / sqrt(rank) (arXiv 2312.03732)

Dropout is left out: nothing here drops activations.
"""

import collections
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

NAME = "adapter_config.json"
# Settings of PEFT with which the factors of the projections are not all there is to an adapter.
_REFUSED: tuple[str, ...] = (
    *("use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters"),
    *("layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config"),
    "monteclora_config",
)
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # init_lora_weights that subtract from the base


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that count.  `targets` None is not known, and then whatever the tensors adapt is right."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    targets: str | tuple[str, ...] | None = None
    excluded: str | tuple[str, ...] = ()
    layers: tuple[int, ...] = ()  # all of them if empty
    root: bool = False

    def rank_of(self, module: str) -> int:
        """Rank of a module's factors."""
        return next((self.rank_pattern[key] for key in self.rank_pattern if _ends(key, module)), self.rank)

    def scale_of(self, module: str) -> float:
        """The number a module's factors are scaled by."""
        alpha = next((self.alpha_pattern[key] for key in self.alpha_pattern if _ends(key, module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.root else rank)

    def adapts(self, module: str, layer: int) -> bool:
        """Whether `targets`, which is known, takes this projection of layer `layer`."""
        assert self.targets is not None
        wanted = self.targets == "all-linear" or _listed(self.targets, module)
        return wanted and not _listed(self.excluded, module) and (not self.layers or layer in self.layers)

    def idle(self, modules: Iterable[str]) -> list[str]:
        """The keys of the patterns that match none of `modules`."""
        names = list(modules)
        keys = [*self.rank_pattern, *self.alpha_pattern]
        return sorted({key for key in keys if not any(_ends(key, name) for name in names)})


def read(path: pathlib.Path) -> Settings:
    """The settings in `path`; ValueError names it and the first setting that is wrong or not supported."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; an adapter folder of PEFT holds {NAME}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: not a JSON object")
    try:
        return _checked(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write(ranks: Mapping[str, int], scale: float, num_layers: int, *, base: str) -> dict[str, Any]:
    """What adapter_config.json says of modules of these ranks and one scale, in a model of `num_layers` layers.

    A projection that is alike in all layers goes by its own name, any other by the whole names of its modules.
    """
    counts = collections.Counter(ranks.values())
    common = max(counts, key=lambda rank: (counts[rank], rank))
    targets: list[str] = []
    other: dict[str, int] = {}
    for projection in dict.fromkeys(_projection(module) for module in ranks):
        held = {module: rank for module, rank in ranks.items() if _projection(module) == projection}
        targets += [projection] if len(held) == num_layers else held
        other |= {projection: min(held.values())} if len(set(held.values())) == 1 else held
    other = {key: rank for key, rank in other.items() if rank != common}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": common,
        "lora_alpha": _alpha(scale, common),
        "rank_pattern": other,
        "alpha_pattern": {key: _alpha(scale, rank) for key, rank in other.items()},
        "target_modules": targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }


def _checked(raw: dict[str, Any]) -> Settings:
    """The settings in the contents of adapter_config.json."""
    if raw.get("peft_type") != "LORA":
        raise ValueError(f"peft_type {raw.get('peft_type')!r} is not LORA")
    if raw.get("bias", "none") != "none":
        raise ValueError(f"bias {raw['bias']!r} is not none: a Gemma has no biases")
    for name in _REFUSED:
        if raw.get(name):
            raise ValueError(f"{name}={raw[name]!r} is not supported")
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise ValueError(f"init_lora_weights={start!r} changes the base too: convert it to a plain LoRA when saving")
    targets, layers = raw.get("target_modules"), raw.get("layers_to_transform")
    return Settings(
        rank=_rank("r", raw.get("r")),
        alpha=_number("lora_alpha", raw.get("lora_alpha")),
        rank_pattern={key: _rank(f"rank_pattern {key}", rank) for key, rank in _pattern("rank_pattern", raw)},
        alpha_pattern={key: _number(f"alpha_pattern {key}", alpha) for key, alpha in _pattern("alpha_pattern", raw)},
        targets=None if targets is None else _names("target_modules", targets),
        excluded=_names("exclude_modules", raw.get("exclude_modules") or []),
        layers=_layers([] if layers is None else layers),
        root=bool(raw.get("use_rslora")),
    )


def _rank(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
    return value


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be a number")
    return float(value)


def _pattern(name: str, raw: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    pattern = raw.get(name) or {}
    if not isinstance(pattern, dict):
        raise ValueError(f"{name}={pattern!r} must be an object")
    for key in pattern:
        _compiled(name, key)
    return pattern.items()


def _names(name: str, value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return _compiled(name, value)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{name}={value!r} must be a list of names or one expression")
    return tuple(value)


def _layers(value: Any) -> tuple[int, ...]:
    layers = value if isinstance(value, list) else [value]
    if not all(type(layer) is int for layer in layers):
        raise ValueError(f"layers_to_transform={value!r} must be whole numbers")
    return tuple(layers)


def _compiled(name: str, expression: str) -> str:
    """`expression`, which Python can read."""
    try:
        re.compile(expression)
    except re.error as error:
        raise ValueError(f"{name}: {expression!r} is not a regular expression: {error}") from error
    return expression


def _ends(expression: str, module: str) -> bool:
    """Whether the module's name, or the end of it after a dot, is `expression`."""
    return re.fullmatch(rf"(?:.*\.)?(?:{expression})", module) is not None


def _listed(names: str | tuple[str, ...], module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _projection(module: str) -> str:
    return module.rpartition(".")[2]


def _alpha(scale: float, rank: int) -> int | float:
    """alpha with alpha / rank == scale; the nearest number where there is none, as after a root."""
    near = scale * rank
    tries = (float(round(near)), near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
    found = next((alpha for alpha in tries if alpha / rank == scale), near)
    return int(found) if found.is_integer() else found
