"""Bad input: one clear message, exit status 2, nothing written."""

import json

import jax
import pytest

from thinkfirst.launch import recipes, restart, train
from thinkfirst.rl import guard, loop, pipeline


def run(capsys, tmp_path, *arguments):
    workdir = tmp_path / "run"
    status = train.main(["train", f"--workdir={workdir}", *arguments])
    captured = capsys.readouterr()
    assert not workdir.exists()
    return status, captured.err


def rows(path, *values):
    path.write_text("".join(value + "\n" for value in values))
    return path


GSM8K = json.dumps({"question": "Q", "answer": "so\n#### 1"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe=nope"], "--recipe=nope: there is demo_base"),
        ([], "recipe"),
        (["--recipe=demo", "--nope=1"], "nope"),
        (["--recipe=demo", "extra"], "unexpected argument 'extra'"),
        (["--recipe=demo", "--set", "stages.grpo.stepz=1"], "no setting 'stepz'"),
        (["--recipe=demo", "--set", "stages.grpo.steps=soon"], "expected int"),
        (["--recipe=demo", "--set", "stages.grpo.group=1"], "group=1 must be at least 2"),
        (["--recipe=demo", "--set", "checkpoint=nowhere"], "nowhere: no such folder"),
        (["--recipe=demo", "--set", "tokenizer=nowhere.model"], "nowhere.model: no such tokenizer file"),
        (["--recipe=demo", "--max_steps=-1"], "max_steps=-1"),
        (["--recipe=demo", "--profile_steps=13:10"], "--profile_steps=13:10 must be FIRST:STOP"),
        (["--recipe=demo", "--profile_server=70000"], "--profile_server=70000 is no port"),
        (["--recipe=demo", "--set", "stages.sft.batch_size=3"], "sft: a batch of 3 rows cannot be cut into"),
        (["--recipe=demo", "--set", "stages.grpo.row_tokens=100"], "grpo: row_tokens=100 must hold a sample of 112"),
        (["--recipe=show_work_random", "--set", "data.train=nowhere.jsonl"], "data.train=nowhere.jsonl: no such file"),
        (["--recipe=show_work_random"], "data.train is not set"),
        (["--recipe=think_first_gemma2_2b"], "gsm8k/train.jsonl: no such file"),
        (["--recipe=think_first_gemma2_2b_fast", "--set", "data.use=xyz"], "data.use=xyz: the mix has the parts"),
        (["--recipe=think_first_tiny", "--set", "data.held_out=600"], "has 24 held-out problems, not 100"),
    ],
)
def test_bad_input(capsys, tmp_path, arguments, message):
    status, err = run(capsys, tmp_path, *arguments)
    assert status == 2
    assert message in err
    assert err.strip().startswith("error: ")


def test_a_real_model_is_not_made_of_random_weights(capsys, tmp_path):
    train_file = rows(tmp_path / "train.jsonl", GSM8K)
    eval_file = rows(tmp_path / "eval.jsonl", GSM8K.replace("Q", "R"))
    sets = ["--set", f"data.train={train_file}", "--set", f"data.eval={eval_file}", "--set", "data.held_out=1"]
    status, err = run(capsys, tmp_path, "--recipe=show_work_gemma3_1b", *sets)
    assert status == 2
    assert err == "error: checkpoint is not set: --set checkpoint=FOLDER (the weights of gemma3_1b)\n"


def test_a_bad_line_is_named(capsys, tmp_path):
    train_file = rows(tmp_path / "train.jsonl", GSM8K, "{oops")
    eval_file = rows(tmp_path / "eval.jsonl", GSM8K)
    sets = ["--set", f"data.train={train_file}", "--set", f"data.eval={eval_file}"]
    status, err = run(capsys, tmp_path, "--recipe=show_work_random", *sets)
    assert status == 2
    assert "train.jsonl:2: not JSON" in err


def test_a_tokenizer_of_another_size_is_refused(capsys, tmp_path):
    train_file = rows(tmp_path / "train.jsonl", GSM8K)
    eval_file = rows(tmp_path / "eval.jsonl", GSM8K.replace("Q", "Other"))
    tokenizer = recipes.DEMO_BASE / "tokenizer.model"
    sets = [f"data.train={train_file}", f"data.eval={eval_file}", f"tokenizer={tokenizer}"]
    status, err = run(capsys, tmp_path, "--recipe=show_work_random", *[f"--set={pair}" for pair in sets])
    assert status == 2
    assert "512 pieces, but the model's embedding has 256000 rows" in err


def test_a_run_that_bad_steps_ended_has_a_status_of_its_own(capsys, monkeypatch, tmp_path):
    def ended(*_, **settings):
        raise guard.TooManyBadSteps("grpo: step 7 was not finite")

    monkeypatch.setattr(pipeline, "run", ended)
    status, err = run(capsys, tmp_path, "--recipe=demo")
    assert status == 1
    assert err == "error: grpo: step 7 was not finite\n"


def ends(capsys, monkeypatch, tmp_path, run):
    """(exit status, what was said) of a call whose pipeline is `run`."""
    monkeypatch.setattr(pipeline, "run", run)
    status = train.main(["train", f"--workdir={tmp_path / 'run'}", "--recipe=demo"])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_memory_that_does_not_suffice_ends_it_with_what_needs_less(capsys, monkeypatch, tmp_path):
    told = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes\nmore")
    for error in (told, MemoryError()):

        def full(*_, error=error, **__):
            raise error

        status, _, err = ends(capsys, monkeypatch, tmp_path, full)
        assert status == 1
        assert err.startswith("error: out of memory: ") and "thinkfirst-plan" in err and "more\n" not in err


def test_another_error_of_the_device_is_no_lack_of_memory(capsys, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise jax.errors.JaxRuntimeError("INTERNAL: something")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        ends(capsys, monkeypatch, tmp_path, broken)


def test_a_preemption_and_a_limit_are_told_apart(capsys, monkeypatch, tmp_path):
    for preempted, expected, said in ((True, 143, "told to end"), (False, 0, "stopped as asked")):

        def cut_short(_, __, budget, preempted=preempted, **___):
            budget.preempted = preempted
            raise loop.OutOfBudget

        status, out, _ = ends(capsys, monkeypatch, tmp_path, cut_short)
        assert status == expected and f"{said}; the same command goes on from here" in out


def test_the_one_that_restarts_starts_the_same_command(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(restart, "supervise", lambda command, **settings: asked.update(settings, command=command) or 5)
    line = ["train", "--recipe=demo", "--restarts=3", "--set", "seed=4", f"--workdir={tmp_path}"]
    assert train.main(line) == 5
    assert asked["command"][1:] == ["-m", "thinkfirst.launch.train", *line[1:], "--restarts=0"]
    assert asked["fruitless"] == 3
