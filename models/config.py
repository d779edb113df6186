"""The shape of a Gemma: one frozen dataclass, and one function for each published size.

Sources: the Gemma 2 report (arXiv 2408.00118), the Gemma 3 report (arXiv 2503.19786) and the checkpoints' own files.
`hf_config` reads and writes these configurations as Hugging Face's config.json.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

Kind = Literal["local", "global"]
BaseDtype = Literal["stored", "int8", "int4"]
GEMMA2_PATTERN: tuple[Kind, ...] = ("local", "global")
GEMMA3_PATTERN: tuple[Kind, ...] = ("local",) * 5 + ("global",)


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """Sizes and constants of one model.  A soft cap of 0 caps nothing.

    `dtype` is what the model computes in; weights keep the dtype they are stored in, but for those of the einsums where
    `base_dtype` asks for integers (models/quantised.py).
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
    base_dtype: BaseDtype = "stored"

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
    """google/gemma-2-2b and -it: 2.61 G parameters."""
    return _gemma2(num_layers=26, width=2304, ff_width=9216, num_heads=8, num_kv_heads=4)


def gemma2_9b() -> GemmaConfig:
    """google/gemma-2-9b and -it: 9.24 G parameters.

    The files of June 2024 had query_pre_attn_scalar 224; Google set it to 256, as trained, the month after.
    """
    return _gemma2(num_layers=42, width=3584, ff_width=14_336, num_heads=16, num_kv_heads=8)


def gemma2_27b() -> GemmaConfig:
    """google/gemma-2-27b and -it: 27.2 G parameters.  Queries are scaled by width / num_heads, not by head_dim."""
    small = _gemma2(num_layers=46, width=4608, ff_width=36_864, num_heads=32, num_kv_heads=16)
    return dataclasses.replace(small, head_dim=128, query_scalar=144)


def gemma3_270m() -> GemmaConfig:
    """google/gemma-3-270m and -it: 0.27 G parameters."""
    return _gemma3_text(num_layers=18, width=640, ff_width=2048)


def gemma3_1b() -> GemmaConfig:
    """google/gemma-3-1b-pt and -it: 1.00 G parameters."""
    return _gemma3_text(num_layers=26, width=1152, ff_width=6912)


def gemma3_4b() -> GemmaConfig:
    """The text part of google/gemma-3-4b-pt and -it: 3.88 G parameters."""
    return _gemma3_multimodal(num_layers=34, width=2560, ff_width=10_240, num_heads=8, num_kv_heads=4)


def gemma3_12b() -> GemmaConfig:
    """The text part of google/gemma-3-12b-pt and -it: 11.8 G parameters."""
    return _gemma3_multimodal(num_layers=48, width=3840, ff_width=15_360, num_heads=16, num_kv_heads=8)


def gemma3_27b() -> GemmaConfig:
    """The text part of google/gemma-3-27b-pt and -it: 27.0 G parameters.  Queries are scaled by width / num_heads."""
    small = _gemma3_multimodal(num_layers=62, width=5376, ff_width=21_504, num_heads=32, num_kv_heads=16)
    return dataclasses.replace(small, head_dim=128, query_scalar=168)


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


def _gemma2(*, num_layers: int, width: int, ff_width: int, num_heads: int, num_kv_heads: int) -> GemmaConfig:
    """What the sizes of Gemma 2 have in common."""
    return GemmaConfig(
        generation=2,
        vocab_size=256_000,
        num_layers=num_layers,
        width=width,
        ff_width=ff_width,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=256,
        window=4096,
        pattern=GEMMA2_PATTERN,
        query_scalar=256,
        attention_soft_cap=50.0,
        final_soft_cap=30.0,
    )


def _gemma3_text(*, num_layers: int, width: int, ff_width: int) -> GemmaConfig:
    """What the sizes of Gemma 3 without images have in common."""
    return GemmaConfig(
        generation=3,
        vocab_size=262_144,
        num_layers=num_layers,
        width=width,
        ff_width=ff_width,
        num_heads=4,
        num_kv_heads=1,
        head_dim=256,
        window=512,
        pattern=GEMMA3_PATTERN,
        query_scalar=256,
        global_rope_base=1_000_000.0,
        max_length=32_768,
    )


def _gemma3_multimodal(*, num_layers: int, width: int, ff_width: int, num_heads: int, num_kv_heads: int) -> GemmaConfig:
    """What the sizes of Gemma 3 with images have in common: 64 more rows of embedding, a longer reach."""
    return dataclasses.replace(
        _gemma3_text(num_layers=num_layers, width=width, ff_width=ff_width),
        vocab_size=262_208,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        window=1024,
        global_rope_factor=8.0,
        max_length=131_072,
    )


PUBLISHED: tuple[Callable[[], GemmaConfig], ...] = (
    gemma2_2b,
    gemma2_9b,
    gemma2_27b,
    gemma3_270m,
    gemma3_1b,
    gemma3_4b,
    gemma3_12b,
    gemma3_27b,
)
BY_NAME: dict[str, Callable[[], GemmaConfig]] = {
    make.__name__: make for make in (*PUBLISHED, narrow_gemma2, demo_gemma3)
}
