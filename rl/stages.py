"""What a run is made of: frozen dataclasses, one per kind of stage, and the recipe that lists them."""

import dataclasses
import typing

from thinkfirst.core import checkpoint as checkpoint_lib
from thinkfirst.core import mesh as mesh_lib
from thinkfirst.models import config as model_config
from thinkfirst.models import remat as remat_lib
from thinkfirst.rl import advantage as advantage_lib
from thinkfirst.rl import curriculum, evaluation, objective, optimizer
from thinkfirst.rl import overlong as overlong_lib
from thinkfirst.rl.data import source
from thinkfirst.rl.rewards import domains, think_first


def _at_least(stage: object, **minimums: int) -> None:
    """Raises for the first setting below its minimum."""
    for name, minimum in minimums.items():
        value = getattr(stage, name)
        if value < minimum:
            raise ValueError(f"{type(stage).__name__}: {name}={value} must be at least {minimum}")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Rank and alpha of a fresh adapter on every projection; or a start, which brings its own.

    `start` is an adapter folder of PEFT.  Its projections, ranks and alpha count, and `rank` and `alpha` here do not.
    It is no part of the base: the KL term of GRPO pulls towards the base without it (else list it in `adapters`).
    """

    rank: int = 16
    alpha: float = 16.0
    start: str = ""

    def __post_init__(self) -> None:
        _at_least(self, rank=1)


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """Every weight of the base, trained on the demonstrations of a kind of data of its own.

    Rows of a step go through the model in `micro_batches` parts; `max_bad_steps` steps in a row with something that is
    not finite end the run (here and in the other stages that train).
    """

    optimizer: optimizer.OptimizerConfig
    data: source.Kind
    name: str = "pretrain"
    steps: int = 1000
    batch_size: int = 128
    num_tokens: int = 96
    row_tokens: int = 0
    micro_batches: int = 1
    max_bad_steps: int = 3
    save_every: int = 100

    def __post_init__(self) -> None:
        _at_least(self, steps=1, batch_size=1, num_tokens=2, micro_batches=1, max_bad_steps=1, save_every=1)
        _at_least(self, row_tokens=0)


@dataclasses.dataclass(frozen=True)
class Sft:
    """A fresh adapter trained to imitate demonstrations; one of more than `num_tokens` is left out.

    A row holds one of them, or in `row_tokens` tokens as many as fit (here and in the other stages that train).
    Layers keep for the gradient what `remat` says (models/remat.py); "auto" is settled for the chip by
    rl/remat_choice.py, here and in GRPO.
    """

    optimizer: optimizer.OptimizerConfig
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    name: str = "sft"
    steps: int = 100
    batch_size: int = 32
    num_tokens: int = 512
    row_tokens: int = 0
    micro_batches: int = 1
    remat: remat_lib.Setting = "auto"
    max_bad_steps: int = 3
    save_every: int = 20

    def __post_init__(self) -> None:
        remat_lib.check(self.remat)
        _at_least(self, steps=1, batch_size=1, num_tokens=2, micro_batches=1, max_bad_steps=1, save_every=1)
        _at_least(self, row_tokens=0)


@dataclasses.dataclass(frozen=True)
class Distill(Sft):
    """An Sft on traces of its own: those of `data`, and `replay_share` of the rows from what a Reject stage kept.

    `replay` is the name of that stage, one before this one.
    """

    name: str = "distill"
    data: source.DataConfig = dataclasses.field(default_factory=source.DataConfig)
    replay: str = ""
    replay_share: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.replay_share <= 1:
            raise ValueError(f"Distill {self.name}: replay_share={self.replay_share} must lie in [0, 1]")
        if bool(self.replay) != (self.replay_share > 0):
            raise ValueError(f"Distill {self.name}: {self.replay=} and {self.replay_share=} contradict each other")


@dataclasses.dataclass(frozen=True)
class RewardSchedule:
    """Annealed weights of the composite reward."""

    trace: curriculum.Anneal
    correctness: curriculum.Anneal
    confidence: curriculum.Anneal
    verbosity: curriculum.Anneal


@dataclasses.dataclass(frozen=True)
class ThinkFirstRewards:
    """Weights of think_first's reward in each domain; `style` scales what structure and format are worth."""

    style: curriculum.Anneal = dataclasses.field(default_factory=lambda: curriculum.Anneal(1.0, 1.0, 1))
    math: think_first.Weights = dataclasses.field(default_factory=think_first.Weights)
    choice: think_first.Weights = dataclasses.field(default_factory=think_first.Weights)
    code: think_first.Weights = dataclasses.field(default_factory=think_first.Weights)
    span: think_first.Weights = dataclasses.field(default_factory=think_first.Weights)
    general: think_first.Weights = dataclasses.field(default_factory=think_first.Weights)
    open: think_first.Weights = dataclasses.field(default_factory=think_first.Weights)

    def weights(self) -> dict[domains.Kind, think_first.Weights]:
        """The weights by domain."""
        return {kind: getattr(self, kind) for kind in typing.get_args(domains.Kind)}


@dataclasses.dataclass(frozen=True)
class Grpo:
    """A fresh adapter trained on the rewards of its own samples.

    A step samples once and updates `num_iterations` times on what it sampled.  With `refill_tokens` above 0, groups
    whose rewards are all equal are dropped and others sampled in their place, until there are `prompts` or so many
    tokens were sampled in the step (rl/refill.py).  Without `learn_stop` a completion's stop token has no part in the
    loss, as in Tunix.
    `user_rewards` are functions of the user's own, "module:function" or "0.1*module:function", that are added to the
    pipeline's; each has `user_reward_seconds` for the samples of a step (rl/rewards/user.py).
    """

    optimizer: optimizer.OptimizerConfig
    phases: tuple[curriculum.Phase, ...]
    rewards: RewardSchedule | ThinkFirstRewards
    loss: objective.LossConfig = dataclasses.field(default_factory=objective.LossConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    name: str = "grpo"
    steps: int = 100
    prompts: int = 16
    group: int = 4
    row_tokens: int = 0
    micro_batches: int = 1
    remat: remat_lib.Setting = "auto"
    num_iterations: int = 1
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    advantage: advantage_lib.Name = "grpo"
    learn_stop: bool = True
    overlong: overlong_lib.OverlongConfig = dataclasses.field(default_factory=overlong_lib.OverlongConfig)
    refill_tokens: int = 0
    user_rewards: tuple[str, ...] = ()
    user_reward_seconds: float = 60.0
    max_bad_steps: int = 3
    save_every: int = 10

    def __post_init__(self) -> None:
        _at_least(self, steps=1, prompts=1, group=2, micro_batches=1, max_new_tokens=1, save_every=1, top_k=0)
        _at_least(self, num_iterations=1, refill_tokens=0, max_bad_steps=1, row_tokens=0)
        if self.overlong.buffer > self.max_new_tokens:
            raise ValueError(
                f"Grpo {self.name}: overlong.buffer={self.overlong.buffer} exceeds max_new_tokens={self.max_new_tokens}"
            )
        if not self.temperature > 0:
            raise ValueError(f"Grpo {self.name}: temperature={self.temperature} must be above 0 to explore")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Grpo {self.name}: top_p={self.top_p} must lie in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"Grpo {self.name}: min_p={self.min_p} must lie in [0, 1]")
        remat_lib.check(self.remat)
        if self.advantage not in (names := typing.get_args(advantage_lib.Name)):
            raise ValueError(f"Grpo {self.name}: advantage={self.advantage!r} is none of {', '.join(names)}")
        if self.prompts * self.group % self.micro_batches:
            raise ValueError(
                f"Grpo {self.name}: {self.prompts} x {self.group} rows cannot be cut into {self.micro_batches} parts"
            )


@dataclasses.dataclass(frozen=True)
class Reject:
    """Rejection sampling: traces of the policy's own that are right and well formed, kept for a later Distill.

    The first `problems` of the training problems, of `difficulties` in turn, are answered `samples` times each,
    `prompts` of them at once.  Of a problem's samples the `keep` with the highest rewards are written, among those in
    the form asked for whose correctness (where there is no single answer, whose rubric) is at least `least`.
    """

    rewards: RewardSchedule | ThinkFirstRewards
    name: str = "reject"
    problems: int = 256
    difficulties: tuple[str, ...] = ("any",)
    prompts: int = 64
    samples: int = 4
    keep: int = 1
    least: float = 1.0
    temperature: float = 1.0
    max_new_tokens: int = 256
    user_rewards: tuple[str, ...] = ()
    user_reward_seconds: float = 60.0

    def __post_init__(self) -> None:
        _at_least(self, problems=1, prompts=1, samples=1, keep=1, max_new_tokens=1)
        if not self.temperature > 0:
            raise ValueError(f"Reject {self.name}: temperature={self.temperature} must be above 0")


@dataclasses.dataclass(frozen=True)
class Merge:
    """The current adapter becomes part of the base, which is from here on also the reference of the KL term.

    After a gate that gave its stage up there is nothing to merge, and the base stays as it is.
    """

    name: str = "merge"


@dataclasses.dataclass(frozen=True)
class Gate:
    """The last stage that trained is given up if its evaluation is worse than the one before it (rl/gate.py).

    `metrics` is what every held-out problem counts by: "score" is how right the strictly read answer is, or the rubric
    where there is no single answer; "accuracy" and "strict" leave the latter out, and read leniently and strictly.  A
    stage must not be worse by any of them: what open domains gain does not pay for answers that are no longer right.
    `level` is the most that the chance of giving up a stage that changed nothing may be.
    """

    name: str = "gate"
    metrics: tuple[evaluation.Metric, ...] = ("score", "accuracy")
    level: float = 0.05

    def __post_init__(self) -> None:
        names = typing.get_args(evaluation.Metric)
        for metric in self.metrics:
            if metric not in names:
                raise ValueError(f"Gate {self.name}: metrics={metric!r} is none of {', '.join(names)}")
        if not self.metrics:
            raise ValueError(f"Gate {self.name}: metrics must name one of {', '.join(names)}")
        if not 0 < self.level < 1:
            raise ValueError(f"Gate {self.name}: level={self.level} must lie in (0, 1)")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Held-out problems answered `samples` times at `temperature`, and once greedily; reported under `label`.

    `form` is what a good trace looks like: numbered steps, or the four sections.  With `suite` the questions of
    rl/data/suite.py are answered too, once, greedily.
    """

    label: str
    name: str
    samples: int = 4
    temperature: float = 1.0
    max_new_tokens: int = 256
    form: evaluation.Form = "steps"
    suite: bool = False

    def __post_init__(self) -> None:
        _at_least(self, samples=1, max_new_tokens=1)
        if self.form not in (names := typing.get_args(evaluation.Form)):
            raise ValueError(f"Evaluate {self.name}: form={self.form!r} is none of {', '.join(names)}")


@dataclasses.dataclass(frozen=True)
class Export:
    """The base, with all that was merged into it, as a Hugging Face folder."""

    folder: str
    name: str = "export"


Stage = Pretrain | Sft | Distill | Grpo | Reject | Merge | Gate | Evaluate | Export


def labelled(stage: Evaluate, label: str) -> Evaluate:
    """The same evaluation under another label, and the name that goes with it."""
    return dataclasses.replace(stage, label=label, name=f"evaluate_{label}")


def num_updates(stage: Pretrain | Sft | Grpo) -> int:
    """Optimiser steps of a stage."""
    return stage.steps * (stage.num_iterations if isinstance(stage, Grpo) else 1)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A recipe: where the model comes from, what it is taught with, and the stages in order.

    `checkpoint` is a Hugging Face folder.  A run that begins with pre-training has none, nor has one with
    `random_weights`: there `architecture` names the model's shape in `models/config.py`.  `adapters` are folders of
    PEFT, merged in order into the checkpoint as it is read.  `tokenizer` defaults to the checkpoint's; a run that
    pre-trains makes its own.  `lanes` completions are decoded side by side on each data shard; `int8_cache` keeps
    their keys and values as 8-bit integers, and `base_dtype` the base's weights as integers (models/quantised.py): not
    for a run that pre-trains.
    """

    recipe: str
    stages: tuple[Stage, ...]
    data: source.DataConfig
    checkpoint: str = ""
    adapters: tuple[str, ...] = ()
    architecture: str = ""
    base_dtype: model_config.BaseDtype = "stored"
    random_weights: bool = False
    tokenizer: str = ""
    instruction: str = ""
    max_prompt_tokens: int = 512
    lanes: int = 64
    int8_cache: bool = False
    seed: int = 0
    mesh: mesh_lib.MeshConfig = dataclasses.field(default_factory=mesh_lib.MeshConfig)
    cpu_devices: int = 1
    keep: checkpoint_lib.Keep = dataclasses.field(default_factory=checkpoint_lib.Keep)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.recipe}: stages must have names of their own: {names}")
        if self.base_dtype != "stored" and any(isinstance(stage, Pretrain) for stage in self.stages):
            raise ValueError(f"{self.recipe}: pre-training needs base_dtype=stored; {self.base_dtype} is not trained")
        labels = [stage.label for stage in self.stages if isinstance(stage, Evaluate)]
        if len(set(labels)) < len(labels):
            raise ValueError(f"{self.recipe}: evaluations must have labels of their own: {labels}")
        _check_order(self.recipe, self.stages)
        if self.lanes < 1:
            raise ValueError(f"lanes={self.lanes} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")


def _check_order(recipe: str, stages: tuple[Stage, ...]) -> None:
    """Raises where a stage needs what none before it leaves."""
    rejected: set[str] = set()
    standing = trained = evaluated = False  # an evaluation to compare with; a stage to give up; its own evaluation
    for stage in stages:
        if isinstance(stage, Distill) and stage.replay and stage.replay not in rejected:
            raise ValueError(f"{recipe}: {stage.name} replays {stage.replay!r}, which is no Reject stage before it")
        if isinstance(stage, Reject):
            rejected.add(stage.name)
        elif isinstance(stage, Sft | Grpo):
            trained, evaluated = True, False
        elif isinstance(stage, Merge | Pretrain):
            standing, trained = standing and isinstance(stage, Merge), False
        elif isinstance(stage, Evaluate):
            standing, evaluated = standing or not trained, trained
        elif isinstance(stage, Gate):
            if not (standing and trained and evaluated):
                raise ValueError(
                    f"{recipe}: {stage.name} needs, in this order and with no merge in between, an Evaluate, a stage "
                    "that trains an adapter, and an Evaluate"
                )
            trained = False
