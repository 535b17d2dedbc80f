"""Our engine beside the library's own model `hf`: on a base, with an adapter, and in a chat."""

from __future__ import annotations

import json

import jax
import peft
import pytest
import tiny_models
import tiny_runs
import torch
from places import ROOT
from tiny_tokenizers import sentencepiece

from eval.harness import __main__ as program
from tddpo_jax.commands import exit_status
from tddpo_jax.generation import generator
from tddpo_jax.placement.mesh import make_mesh

pytest.importorskip("lm_eval")
# The library warns of what it leaves out, and so do those below it.
pytestmark = pytest.mark.filterwarnings("ignore")

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
CONTEXT = 64
TEXTS = ["the red ball", "hello there, how are you today? ", "what do you think " * 9]
CHOICES = [" in the garden", " by the river", " a", " what do you think about it?"]


@pytest.fixture(scope="module", autouse=True)
def on_one_device():
    with pytest.MonkeyPatch.context() as patch:
        one = jax.devices()[:1]
        patch.setattr(generator, "make_mesh", lambda config: make_mesh(config, one))
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, and a PEFT folder on it whose factors are both random."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = sentencepiece(chat_template=TEMPLATE)
    # With an adapter, `hf` cuts the vocabulary down to the tokenizer's.
    shape = {**tiny_runs.SHAPE, "max_position_embeddings": CONTEXT, "vocab_size": len(tokenizer)}
    base = tiny_models.save(folder / "base", tiny_models.hugging_face(**shape), tokenizer)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(tiny_models.hugging_face(**shape), config)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder / "adapter")
    return base, folder / "adapter"


@pytest.fixture(scope="module", params=["base", "adapter"])
def both(request, folders):
    """The library's model and ours."""
    from lm_eval.models.huggingface import HFLM

    from eval.harness.engine import Engine

    base, adapter = folders
    adapted = request.param == "adapter"
    theirs = HFLM(
        pretrained=str(base),
        peft=str(adapter) if adapted else None,
        dtype="float32",
        device="cpu",
        batch_size=3,
    )
    return theirs, Engine(str(adapter if adapted else base), dtype="float32")


def requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def test_log_probs_are_those_of_hf(both):
    """Of continuations, some without a context, some of one too long; and of whole texts."""
    pairs = [(text, choice) for text in ["", *TEXTS] for choice in CHOICES]
    theirs, ours = (model.loglikelihood(requests("loglikelihood", pairs)) for model in both)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    expected = [pytest.approx(logp, abs=1e-4) for logp, _ in theirs]
    assert [logp for logp, _ in ours] == expected
    # What greedy decoding gives.
    ids = both[0].tok_encode(TEXTS[0])
    answer = both[0].model.generate(input_ids=torch.tensor([ids]), max_new_tokens=3)
    said = [(None, ids, answer[0, len(ids) :].tolist())]
    theirs, ours = (model._loglikelihood_tokens(said) for model in both)
    assert ours == [(pytest.approx(theirs[0][0], abs=1e-4), True)]
    long = [*TEXTS, TEXTS[1] * 9]  # several windows
    wholes = requests("loglikelihood_rolling", [(text,) for text in long])
    theirs, ours = (model.loglikelihood_rolling(wholes) for model in both)
    assert ours == [pytest.approx(logp, abs=1e-4) for logp in theirs]


@pytest.mark.parametrize("both", ["base"], indirect=True)
def test_answers_are_those_of_hf(both):
    """With stop texts, of several lengths, and behind contexts that are too long."""
    settings = [
        {"until": ["e"], "max_gen_toks": 12},
        {"until": ["\n\n", "a"], "max_gen_toks": 9, "do_sample": False, "temperature": 0.7},
        {"max_gen_toks": 20},
    ]
    asked = [(text, each) for text in TEXTS for each in settings]
    conversation = [{"role": "user", "content": TEXTS[0]}]
    chats = [model.apply_chat_template(conversation) for model in both]
    assert chats[0] == chats[1].removeprefix("<s>")
    asked += [(chats[0], settings[2])]
    theirs, ours = (model.generate_until(requests("generate_until", asked)) for model in both)
    assert ours == theirs
    assert len(set(ours)) > 3


@pytest.mark.parametrize("both", ["base"], indirect=True)
def test_what_the_generator_does_not_have_is_refused(both):
    _, ours = both
    for settings, problem in (
        ({"num_beams": 4}, "--tasks: a task generates with num_beams"),
        ({"max_gen_toks": CONTEXT}, f"--tasks: a task asks for {CONTEXT} new tokens"),
    ):
        with pytest.raises(ValueError, match=problem):
            ours.generate_until(requests("generate_until", [("a", settings)]))
    with pytest.raises(ValueError, match=r"--tasks: a continuation has \d+ tokens"):
        ours.loglikelihood(requests("loglikelihood", [("a", TEXTS[2] * 9)]))


TASK = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with a task; the library's own tasks, which take seconds to list, are left out."""
    import datasets
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager",
        lambda include_path: TaskManager(include_path=include_path, include_defaults=False),
    )
    monkeypatch.setattr(exit_status, "set_flags", lambda: None)
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": text, "choices": CHOICES[:2], "answer": 0} for text in TEXTS]
    data = tiny_runs.write_rows(folder / "rows.jsonl", rows)
    (folder / "colours.yaml").write_text(TASK.format(data=data))
    return folder


def command(*words):
    return program.main([str(word) for word in words])


def test_the_command_writes_the_librarys_results(folders, tasks, tmp_path, capsys):
    output = tmp_path / "new" / "results.json"
    given = ("--model", folders[1], "--include-path", tasks, "--tasks", "colours", "--limit", 2)
    assert command(*given, "--output", output) == 0
    results = json.loads(output.read_text())
    assert results["results"]["colours"]["acc,none"] in (0.0, 0.5, 1.0)
    assert results["n-samples"]["colours"] == {"original": 3, "effective": 2}
    assert results["config"]["model"].startswith("tddpo_jax ")
    assert results["model_name"] == str(folders[1])
    assert "|colours" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (("--tasks", "none"), "--tasks: there is no task none"),
        (
            ("--tasks", "colours", "--limit", 1.5),
            "--limit: must be a number of examples",
        ),
        (("--tasks", "colours", "--num-fewshot", -1), "--num-fewshot: must be at least 0, got -1"),
        (("--tasks", "colours", "--output", ROOT), f"--output: {ROOT} is a directory"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(tasks, capsys, more, problem):
    assert command("--model", "embedded", "--include-path", tasks, *more) == 2
    assert capsys.readouterr().err.startswith(f"error: {problem}")
