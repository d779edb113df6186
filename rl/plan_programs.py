"""The programs of a recipe's stages, traced for a TPU slice that is not there: no weights, no tokenizer, no data."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from thinkfirst.core import mesh as mesh_lib
from thinkfirst.core import sharding
from thinkfirst.models import config as model_config
from thinkfirst.models import gemma, kv_cache, lora
from thinkfirst.models import remat as remat_lib
from thinkfirst.rl import batch, learner, optimizer, packing, policy, rollout_program, scheduler, sft, spread, stages


@dataclasses.dataclass(frozen=True)
class Trained:
    """A stage's model, parameters, adapter and optimiser state, as shapes laid out on a mesh."""

    model: gemma.Model
    mesh: Mesh
    params: Any
    adapter: Any
    transform: optax.GradientTransformation
    opt_state: Any

    @classmethod
    def at_work(cls, subject: policy.Policy, transform: optax.GradientTransformation, state: Any) -> "Trained":
        """What a policy's stage trains, from its arrays: `state` is the adapter and the optimiser's."""
        shape_of = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)  # noqa: E731
        params, (adapter, opt_state) = jax.tree.map(shape_of, (subject.params, tuple(state)))
        return cls(subject.model, subject.mesh, params, adapter, transform, opt_state)

    @property
    def shards(self) -> int:
        return mesh_lib.num_row_shards(self.mesh)

    @property
    def num_bytes(self) -> int:
        """What parameters, adapter and optimiser take on one device."""
        return on_device((self.params, self.adapter, self.opt_state))


def trained(shape: model_config.GemmaConfig, mesh: Mesh, stage: stages.Grpo | stages.Sft) -> Trained:
    """What the stage trains and what it needs for that."""
    model = gemma.Model(shape, mesh)
    shapes, specs = model.shapes(), model.adapted()
    params = _on(shapes, sharding.parameters(model.letters(), shapes, mesh))
    make = lambda key: lora.init(specs, key, rank=stage.lora.rank, alpha=stage.lora.alpha)  # noqa: E731
    factors = jax.eval_shape(make, jax.random.key(0))
    adapter = _on(factors, sharding.parameters(lora.letters(specs, factors), factors, mesh))
    transform = optimizer.make(stage.optimizer, stage.steps)
    layout = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(adapter)}
    everywhere = sharding.replicated(mesh)
    state = jax.eval_shape(transform.init, adapter)
    opt_state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.get(x.shape, everywhere)), state
    )
    return Trained(model, mesh, params, adapter, transform, opt_state)


def engine_shape(
    stage: stages.Grpo, subject: Trained, *, prompt: int, lanes: int, int8: bool = False
) -> scheduler.Shape:
    """What the rollout engine compiles for when every prompt is as long as it may be."""
    placed = spread.Spread.of(stage.prompts, stage.group, subject.shards)
    most = int(placed.counts.max())
    rooms = kv_cache.Rooms(prompt, stage.max_new_tokens, int8)
    return scheduler.shape_of(most, most * stage.group, lanes=lanes, rooms=rooms, truncated=_truncated(stage))


def rollout(subject: Trained, shape: scheduler.Shape) -> Any:
    """The engine's program, traced."""
    programs = rollout_program.Programs(subject.model, subject.mesh)
    return programs.trace(shape, subject.params, subject.adapter)


def scoring(stage: stages.Grpo, subject: Trained, *, rows: int, prompt: int) -> Any:
    """Log-probs of all completions of a step, in the stage's micro-batches of `rows` rows a device, traced."""
    score: Any = learner.make_scorer(subject.model, micro_batches=stage.micro_batches)
    given = experience(stage, subject, rows * subject.shards * stage.micro_batches, prompt)
    return score.trace(subject.adapter, subject.params, given, _temperature(subject.mesh))


def update(
    stage: stages.Grpo, subject: Trained, *, rows: int, prompt: int, remat: remat_lib.Name, micro_batches: int = 1
) -> Any:
    """The GRPO step with micro-batches of `rows` rows a device, traced."""
    step: Any = learner.make_step(
        subject.model,
        subject.transform,
        stage.loss.within(stage.max_new_tokens),
        micro_batches=micro_batches,
        remat=remat,
    )
    given = experience(stage, subject, rows * subject.shards * micro_batches, prompt)
    return step.trace(subject.adapter, subject.opt_state, subject.params, given, _temperature(subject.mesh))


def step(stage: stages.Grpo | stages.Sft, subject: Trained, *, prompt: int, remat: remat_lib.Name) -> Any:
    """The stage's own update, traced."""
    if isinstance(stage, stages.Sft):
        return imitation(stage, subject, remat=remat)
    rows = rows_per_device(stage, subject, prompt)
    return update(stage, subject, rows=rows, prompt=prompt, remat=remat, micro_batches=stage.micro_batches)


def imitation(stage: stages.Sft, subject: Trained, *, remat: remat_lib.Name) -> Any:
    """The SFT step, traced."""
    given = _on(_rows(layout(stage, subject)), sharding.rows(subject.mesh))
    step: Any = sft.make_step(subject.model, subject.transform, micro_batches=stage.micro_batches, remat=remat)
    return step.trace(subject.adapter, subject.opt_state, subject.params, given)


def kept_bytes(stage: stages.Grpo | stages.Sft, subject: Trained, *, prompt: int, remat: remat_lib.Name) -> int:
    """Bytes a device keeps of a micro-batch's forward pass for the gradient, by tracing one period of layers."""
    shape = subject.model.config
    period = len(shape.pattern)
    model = gemma.Model(dataclasses.replace(shape, num_layers=period), subject.mesh)
    specs = model.adapted()
    adapter = jax.eval_shape(lambda key: lora.init(specs, key, rank=stage.lora.rank, alpha=1.0), jax.random.key(0))
    width = layout(stage, subject, prompt).row_tokens
    tokens_BT = jax.ShapeDtypeStruct((rows_per_device(stage, subject, prompt) * subject.shards, width), jnp.int32)

    def residuals(adapter: Any, params: Any, tokens_BT: jax.Array) -> Any:
        segment_BT = jnp.ones_like(tokens_BT)
        return jax.vjp(
            lambda a: model.hidden(params, tokens_BT, segment_BT=segment_BT, adapter=a, remat=remat), adapter
        )[1]

    kept = jax.eval_shape(residuals, adapter, model.shapes(), tokens_BT)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    return size * shape.num_layers // period // subject.shards


def layout(stage: stages.Grpo | stages.Sft, subject: Trained, prompt: int = 0) -> packing.Plan:
    """The rows of a step whose samples are all as long as may be."""
    if isinstance(stage, stages.Grpo):
        count, longest = stage.prompts * stage.group, (range(prompt), range(stage.max_new_tokens))
    else:
        count, longest = stage.batch_size, (range(1), range(stage.num_tokens - 1))
    if stage.row_tokens:
        parts = {"num_shards": subject.shards, "micro_batches": stage.micro_batches}
        return packing.packed([longest] * count, row_tokens=stage.row_tokens, **parts)
    return packing.one_a_row(count, row_tokens=sum(map(len, longest)), room=len(longest[1]))


def rows_per_device(stage: stages.Grpo | stages.Sft, subject: Trained, prompt: int = 0) -> int:
    """Rows of a micro-batch of `layout` on one device; ValueError where they do not spread evenly."""
    rows, parts = len(layout(stage, subject, prompt).rows), stage.micro_batches * subject.shards
    if rows % parts:
        raise ValueError(f"{stage.name}: {rows} rows cannot be cut into {parts} equal parts")
    return rows // parts


def experience(stage: stages.Grpo, subject: Trained, rows: int, prompt: int) -> batch.Experience:
    """So many rows of `layout`, as shapes."""
    laid_out = _rows(dataclasses.replace(layout(stage, subject, prompt), rows=((),) * rows))
    value_BT = np.zeros(laid_out.column_BT.shape, np.float32)
    found = batch.Experience(
        rows=laid_out,
        old_logp_BT=value_BT,
        floor_BT=value_BT if _truncated(stage) else None,
        advantage_BT=value_BT,
    )
    return _on(found, sharding.rows(subject.mesh))


def on_device(tree: Any) -> int:
    """Bytes that a tree of shapes with shardings takes on one device."""
    parts = [(leaf, leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree)]
    total = 0
    for leaf, sizes in parts:
        count = 1
        for size in sizes:
            count *= size
        total += count * _bits(leaf.dtype) // 8
    return total


def _rows(plan: packing.Plan) -> batch.Rows:
    """Rows of the plan's sizes, with nothing in them."""
    return packing.lay_out([], dataclasses.replace(plan, rows=((),) * len(plan.rows)))


def _truncated(stage: stages.Grpo) -> bool:
    return stage.top_k > 0 or stage.top_p < 1 or stage.min_p > 0


def _temperature(mesh: Mesh) -> Any:
    return _on(jax.ShapeDtypeStruct((), jnp.float32), sharding.replicated(mesh))


def _on(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes, each with its sharding (one for all, or a tree of them)."""
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)  # noqa: E731
    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda leaf: place(leaf, shardings), shapes)
    return jax.tree.map(place, shapes, shardings)


def _bits(dtype: Any) -> int:
    """Of a number on a TPU: NumPy has none smaller than a byte."""
    return jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else dtype.itemsize * 8
