"""LoRA adapters in PEFT's format, in and out: adapter_model.safetensors beside adapter_config.json.

    base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight     [r, in]
    base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight     [out, r]

y = W x + scale B A x for columns x: their A is our A turned round, [in, r], and so is B.  Names and places in our
stacks are those of the base's weights (`models/layout.py`), and heads share an axis in the same order.

Format: huggingface/peft.
"""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import safetensors.numpy

from thinkfirst.core import files
from thinkfirst.models import gemma, layout, lora, peft_config, tensor_file

TENSORS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
WRAPPER = "base_model.model."  # before the name a module has in the base
PREFIXES = (
    "model.",  # Gemma 2, Gemma 3 of text
    "model.language_model.",  # the text part of a multimodal Gemma 3
    "language_model.model.",  # the same, as transformers before 4.52 called it
)


class Module(NamedTuple):
    """One projection of one layer: its name in the base, our path and row of it, the axes of its factors here."""

    name: str
    layer: int
    path: lora.Path
    row: int
    letters: lora.Letters

    @property
    def tensors(self) -> tuple[str, str]:
        """Names of A and B in the file."""
        return f"{WRAPPER}{self.name}.lora_A.weight", f"{WRAPPER}{self.name}.lora_B.weight"

    @property
    def axes(self) -> tuple[str, str]:
        """Axes of A and B in the file."""
        return f"R({self.letters.contracted})", f"({self.letters.produced})R"

    @property
    def ours(self) -> tuple[str, str]:
        """Axes of A and B in our tree."""
        return f"{self.letters.contracted}R", f"R{self.letters.produced}"


def load(folder: str | pathlib.Path, model: gemma.Model) -> lora.Adapter:
    """The adapter of `model` in `folder`, as host arrays in float32.

    Its scale is PEFT's where all modules have the same; where they differ it is 1 and B holds it.  A layer that the
    file leaves out has zeros in both factors, which training never moves; so has a rank above that of the layer.
    Raises ValueError for what is not supported, and at once for all tensors that do not fit.
    """
    settings = peft_config.read(pathlib.Path(folder) / peft_config.NAME)
    file = _open(pathlib.Path(folder))
    modules = _modules(model, _prefix(file.entries))
    held = [module for module in modules if any(name in file.entries for name in module.tensors)]
    size = layout.sizes(model.config)
    if problems := _problems(file, modules, held, settings, size):
        raise ValueError(f"{file.path} does not hold an adapter of this model: " + "; ".join(problems))
    scales = [settings.scale_of(module.name) for module in held]
    scale = scales[0] if len(set(scales)) == 1 else 1.0
    factors: lora.Tree = {}
    for path in dict.fromkeys(module.path for module in held):
        rows = [module for module in held if module.path == path]
        length = sum(module.path == path for module in modules)
        rank = max(settings.rank_of(module.name) for module in rows)
        whole = size | {"R": rank}
        a, b = (np.zeros([length, *(whole[letter] for letter in letters)], np.float32) for letters in rows[0].ours)
        for module in rows:
            theirs = (file.read(name).astype(np.float32) for name in module.tensors)
            down, up = map(layout.to_ours, theirs, module.axes, module.ours, (size, size))
            own = settings.scale_of(module.name)
            a[module.row, ..., : down.shape[-1]] = down
            b[module.row, : up.shape[0]] = up if own == scale else up * np.float32(own)
        layout.put(factors, path, {"a": a, "b": b})
    return lora.Adapter(factors=factors, scale=scale)


def save(folder: str | pathlib.Path, model: gemma.Model, adapter: lora.Adapter, *, base: str) -> None:
    """Writes a folder that PEFT opens as an adapter of `base`, its configuration last: without it nothing is opened.

    A layer whose factors are both zero, which is what `load` makes of one that is left out, is left out again.
    """
    folder = pathlib.Path(folder)
    host = {path: (np.asarray(each["a"]), np.asarray(each["b"])) for path, each in lora.walk(adapter.factors)}
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    modules = _modules(model, PREFIXES[0])
    assert host.keys() <= {module.path for module in modules}, "the adapter is another model's"
    for module in modules:
        pair = [factor[module.row].astype(np.float32) for factor in host.get(module.path, ())]
        if any(factor.any() for factor in pair):
            theirs = map(layout.to_theirs, pair, module.axes, module.ours)
            tensors |= dict(zip(module.tensors, theirs, strict=True))
            ranks[module.name] = len(pair[1])
    if not tensors:
        raise ValueError(f"{folder}: the adapter to save is zero everywhere")
    config = peft_config.write(ranks, adapter.scale, model.config.num_layers, base=base)
    (folder / peft_config.NAME).unlink(missing_ok=True)
    files.write_bytes(folder / TENSORS_NAME, safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    files.write_text(folder / peft_config.NAME, json.dumps(config, indent=2) + "\n")


def _open(folder: pathlib.Path) -> tensor_file.TensorFile:
    if not (folder / TENSORS_NAME).is_file() and (folder / PICKLE_NAME).is_file():
        raise ValueError(
            f"{folder / PICKLE_NAME}: a pickle, which can run any code when it is opened, is not read; "
            f"load it with PEFT and save it again as {TENSORS_NAME}"
        )
    return tensor_file.TensorFile(folder / TENSORS_NAME)


def _prefix(names: Iterable[str]) -> str:
    """What stands before "layers" in the names of the base's modules."""
    first = (prefix for prefix in PREFIXES if any(name.startswith(f"{WRAPPER}{prefix}layers.") for name in names))
    return next(first, PREFIXES[0])


def _modules(model: gemma.Model, prefix: str) -> list[Module]:
    """Every projection that can be adapted, in every layer, in the order of our tree."""
    specs, found = model.adapted(), []
    for leaf in layout.huggingface(model.config, model.letters(), prefix=prefix):
        path = leaf.path[:-1]
        if path in specs:
            for row, stored in enumerate(leaf.stored):
                name = stored.name.removesuffix(".weight")
                (layer,) = re.findall(r"\.(\d+)\.", name)
                found.append(Module(name, int(layer), path, row, lora.split(specs[path][0])))
    return found


def _problems(
    file: tensor_file.TensorFile,
    modules: list[Module],
    held: list[Module],
    settings: peft_config.Settings,
    size: Mapping[str, int],
) -> list[str]:
    """What is wrong with the file, a line per tensor, module or key."""
    expected: dict[str, tuple[int, ...]] = {}
    for module in held:
        length = dict(size) | {"R": settings.rank_of(module.name)}
        expected |= {name: layout.shape(axes, length) for name, axes in zip(module.tensors, module.axes, strict=True)}
    problems = [] if held else ["it has no lora_A or lora_B of any projection"]
    problems += [f"missing {name}" for name in sorted(expected.keys() - file.entries.keys())]
    problems += [f"unexpected {name}" for name in sorted(file.entries.keys() - expected.keys())]
    for name in sorted(expected.keys() & file.entries.keys()):
        entry = file.entries[name]
        if entry.shape != expected[name]:
            problems.append(f"{name} has shape {entry.shape}, expected {expected[name]}")
        if entry.dtype not in tensor_file.FLOATS:
            problems.append(f"{name} is {entry.dtype}, not {', '.join(tensor_file.FLOATS)}")
    idle = settings.idle(module.name for module in held)
    problems += [f"{key!r} of rank_pattern or alpha_pattern matches no module of the file" for key in idle]
    if settings.targets is not None:
        asked = {module.name for module in modules if settings.adapts(module.name, module.layer)}
        found = {module.name for module in held}
        problems += [f"{name} is adapted, which target_modules leaves out" for name in sorted(found - asked)]
        problems += [f"{name} is not adapted, which target_modules asks for" for name in sorted(asked - found)]
    return problems
