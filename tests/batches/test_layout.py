"""The packed layout: every response token scored once, and the same numbers as plain sequences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st

from tddpo_jax.batches.layout import Example, Row, Shape, score_count, stream_length
from tddpo_jax.batches.packing import choose_shapes, needed_length, pack, unpack
from tddpo_jax.losses.logprobs import branch_kl, branch_logps
from tddpo_jax.models.tensor_table import hub_tensors
from tddpo_jax.placement.shardings import path_name

# The lengths of a prompt and its responses: one, two or three, the same number in a whole list.
LENGTHS = st.integers(2, 4).flatmap(
    lambda parts: st.lists(st.tuples(*[st.integers(1, 9)] * parts), min_size=1, max_size=7)
)


def numbered_examples(lengths):
    """Examples in which no token id occurs twice, so that a token says where it came from.

    Of some responses, every third token is not the policy's.
    """
    ids = iter(np.split(np.arange(10_000, dtype=np.int32), np.cumsum(np.ravel(lengths))))
    return [
        Example(
            n,
            next(ids),
            tuple(next(ids) for _ in each[1:]),
            scored=tuple(np.arange(k) % 3 != 1 for k in each[1:]) if n % 2 else None,
        )
        for n, each in enumerate(lengths)
    ]


# ---- the example of the module's docstring -------------------------------------------------------


def test_the_documented_example():
    """Expected: the table in `layout`'s docstring, c = 11 12 13, p = 1 2, r = 21 22."""
    row = Row(Shape(rows=1, length=5, scores=5, examples=1))
    row.add(0, Example(0, np.array([1, 2]), (np.array([11, 12, 13]), np.array([21, 22]))))
    assert row.tokens.tolist() == [12, 11, 1, 2, 21]
    assert row.positions.tolist() == [3, 2, 0, 1, 2]
    assert row.key_start.tolist() == [0, 1, 2, 2, 2]
    assert row.key_end.tolist() == [4, 4, 3, 4, 5]
    assert row.uses.tolist() == [1, 1, 2, 2, 1]
    assert row.tokens[row.score_position].tolist() == [2, 11, 12, 2, 21]
    assert row.score_target.tolist() == [11, 12, 13, 21, 22]
    assert row.score_branch.tolist() == [0, 0, 0, 1, 1]


def test_one_response_follows_its_prompt_and_a_third_brings_a_prompt_of_its_own():
    """p = 1 2: `p r` for r = 21 22 23; `reversed a | p | b | p | c` for a = 11 12, b = 21 22 and
    c = 31 32."""
    row = Row(Shape(rows=1, length=5, scores=4, examples=1, responses=1))
    row.add(0, Example(0, np.array([1, 2]), (np.array([21, 22, 23]),)))
    assert row.tokens.tolist() == [1, 2, 21, 22, 0]
    assert row.positions.tolist() == [0, 1, 2, 3, 0]
    assert row.key_start.tolist() == [0, 0, 0, 0, 4]
    assert row.key_end.tolist() == [1, 2, 3, 4, 4]
    assert row.uses.tolist() == [1, 1, 1, 1, 0]
    assert row.score_branch.tolist() == [0, 0, 0, 1]
    row = Row(Shape(rows=1, length=7, scores=6, examples=1, responses=3))
    row.add(0, Example(0, np.array([1, 2]), tuple(np.array([n, n + 1]) for n in (11, 21, 31))))
    assert row.tokens.tolist() == [11, 1, 2, 21, 1, 2, 31]
    assert row.positions.tolist() == [2, 0, 1, 2, 0, 1, 2]
    assert row.key_start.tolist() == [0, 1, 1, 1, 4, 4, 4]
    assert row.key_end.tolist() == [3, 2, 3, 4, 5, 6, 7]
    assert row.uses.tolist() == [1, 2, 2, 1, 1, 1, 1]
    assert row.score_branch.tolist() == [0, 0, 1, 1, 2, 2]


# ---- any lengths ---------------------------------------------------------------------------------


def seen_sequence(batch, row, position):
    """What a stream position sees, in the order of rotary positions, which must be 0, 1, 2, ..."""
    keys = np.arange(batch.key_start[row, position], batch.key_end[row, position])
    keys = keys[np.argsort(batch.positions[row, keys])]
    assert batch.positions[row, keys].tolist() == list(range(len(keys)))
    return batch.tokens[row, keys].tolist()


def scored_tokens(batches):
    """Every scored token: (example, response, visible sequence, target)."""
    for batch in batches:
        places, responses = batch.lengths.shape[1:]
        for row, score in np.argwhere(batch.score_branch < places * responses):
            place, response = divmod(int(batch.score_branch[row, score]), responses)
            visible = seen_sequence(batch, row, batch.score_position[row, score])
            number, target = batch.example[row, place], batch.score_target[row, score]
            yield int(number), response, visible, int(target)


def expected_scores(examples):
    """By definition: response token k is predicted from the prompt and the k tokens before it."""
    for number, example in enumerate(examples):
        for n, response in enumerate(example.responses):
            for k, target in enumerate(response.tolist()):
                if example.scored is not None and not example.scored[n][k]:
                    continue
                yield number, n, [*example.prompt.tolist(), *response[:k].tolist()], target


@given(lengths=LENGTHS, rows=st.integers(1, 3), plain=st.booleans(), data=st.data())
def test_every_response_token_is_scored_once(lengths, rows, plain, data):
    """Expected: the definition of a conditional log-probability, token by token."""
    examples = numbered_examples(lengths)
    longest = max(needed_length(example, plain) for example in examples)
    row_length = data.draw(st.sampled_from([None, longest, longest + 5]))
    shapes = choose_shapes(examples, len(examples), rows=rows, row_length=row_length, plain=plain)
    batches = pack(examples, shapes)
    assert sorted(scored_tokens(batches)) == sorted(expected_scores(examples))


@given(lengths=LENGTHS)
def test_every_stream_position_sees_its_own_sequence(lengths):
    """A token sees the sequence that ends with it; padding sees nothing.

    A pair takes prompt + chosen + rejected - 2 positions, a single response prompt + response - 1,
    and three responses take those of a pair and those of a single one.
    """
    examples = numbered_examples(lengths)
    prompts = {1: 1, 2: 1, 3: 2}[len(lengths[0]) - 1]
    total = sum(prompts * each[0] + sum(each[1:]) - len(each[1:]) for each in lengths)
    assert sum(map(stream_length, examples)) == total
    scores, responses = sum(map(score_count, examples)), len(lengths[0]) - 1
    shape = Shape(1, total + 7, scores + 3, len(examples) + 2, responses=responses)
    (batch,) = pack(examples, [shape])
    live = [i for i in range(total + 7) if batch.key_end[0, i] > batch.key_start[0, i]]
    assert live == list(range(total))
    sequences = [seen_sequence(batch, 0, i) for i in live]
    assert [sequence[-1] for sequence in sequences] == batch.tokens[0, :total].tolist()
    expected = {
        tuple([*example.prompt, *response][:end])
        for example in examples
        for response in example.responses
        for end in range(1, len(example.prompt) + len(response))
    }
    assert {tuple(sequence) for sequence in sequences} == expected


@given(lengths=LENGTHS)
def test_what_is_known_of_every_example(lengths):
    """Lengths count the tokens that are scored; weights mark the places that hold an example."""
    examples, responses = numbered_examples(lengths), len(lengths[0]) - 1
    references = np.arange(responses * len(examples), dtype=np.float32).reshape(-1, responses)
    found = {}
    for batch in pack(examples, choose_shapes(examples, len(examples)), references):
        for row, place in np.argwhere(batch.example >= 0):
            number = int(batch.example[row, place])
            assert number not in found
            found[number] = tuple(batch.lengths[row, place].tolist())
            assert batch.ref_logps[row, place].tolist() == references[number].tolist()
        np.testing.assert_array_equal(batch.weight, batch.example >= 0)
    # Of responses with a mask, tokens 1, 4, 7, ... are not the policy's.
    assert found == {
        n: tuple(k - n % 2 * ((k + 1) // 3) for k in each[1:]) for n, each in enumerate(lengths)
    }


# ---- the same numbers ----------------------------------------------------------------------------

# Responses of one token, a prompt of one token, and pairs that reach over a block of attention.
LENGTHS_OF_PAIRS = [(19, 31, 7), (1, 5, 1), (11, 1, 13), (23, 40, 29), (3, 1, 1)]
PAIRS = tiny_models.random_examples(LENGTHS_OF_PAIRS)
THIRD = (17, 3, 1, 37, 5)  # tokens of a third response
# One, two and three responses to each prompt.
EXAMPLES = {
    1: tiny_models.random_examples([lengths[:2] for lengths in LENGTHS_OF_PAIRS]),
    2: PAIRS,
    3: tiny_models.random_examples(
        [(*lengths, third) for lengths, third in zip(LENGTHS_OF_PAIRS, THIRD, strict=True)]
    ),
}


def layouts(responses):
    examples = EXAMPLES[responses]
    count, total, scores = (
        len(examples),
        sum(map(stream_length, examples)),
        sum(map(score_count, examples)),
    )
    shapes = {
        "packed": Shape(1, total, scores, count),
        "longer rows": Shape(3, total + 61, scores + 17, count + 2),
        "one example a row, in micro-batches": Shape(2, 150, 107, 1),
        "plain": Shape(count, 65 * responses, 107, 1, plain=True),
    }
    return {name: dataclasses.replace(s, responses=responses) for name, s in shapes.items()}


LAYOUTS = [(responses, name) for responses in EXAMPLES for name in layouts(responses)]


def weights_of(responses):
    """The loss of these tests is a sum of log-probs under weights that tell all branches apart."""
    return np.random.default_rng(5).normal(size=(len(PAIRS), responses)).astype(np.float32)


@tiny_models.quick_jit
def log_probs_and_gradients(model, batch):
    """Log-probs of the branches and the gradients of their sum under `ref_logps` as weights."""

    def value(model):
        logps = branch_logps(tiny_models.run(model, batch), model.head_weight, batch)
        return jnp.sum(logps * batch.ref_logps), logps

    (_, logps), gradients = jax.value_and_grad(value, has_aux=True)(model)
    return logps, gradients


def by_name(gradients):
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def results():
    """Per layout: log-probs in the order of the examples, gradients summed over micro-batches."""
    model = tiny_models.load_from(tiny_models.hugging_face())
    found = {}
    for responses, name in LAYOUTS:
        examples, shape = EXAMPLES[responses], layouts(responses)[name]
        batches = pack(examples, [shape], weights_of(responses))
        parts = [log_probs_and_gradients(model, batch) for batch in batches]
        logps = unpack(batches, [np.asarray(part[0]) for part in parts], len(examples))
        gradients = [by_name(part[1]) for part in parts]
        summed = {key: sum(g[key] for g in gradients) for key in gradients[0]}
        found[responses, name] = logps, summed
    return found


@pytest.fixture(scope="module")
def theirs():
    """transformers, one whole sequence after another: log-probs and gradients of the same sum."""
    return {responses: transformers_results(responses) for responses in EXAMPLES}


def transformers_results(responses):
    model, weights = tiny_models.hugging_face(), weights_of(responses)
    logps = np.zeros_like(weights)
    for number, example in enumerate(EXAMPLES[responses]):
        for n, response in enumerate(example.responses):
            ids = torch.from_numpy(np.concatenate([example.prompt, response])).long()
            log_probs = torch.log_softmax(model(ids[None]).logits[0, :-1], dim=-1)
            scored = log_probs.gather(1, ids[1:, None])[len(example.prompt) - 1 :].sum()
            (scored * float(weights[number, n])).backward()
            logps[number, n] = scored.item()
    return logps, {name: weight.grad.numpy() for name, weight in model.named_parameters()}


@pytest.mark.parametrize(("responses", "name"), LAYOUTS)
def test_log_probs_and_gradients_are_those_of_transformers(responses, name, results, theirs):
    """Expected: transformers on each branch alone, neither packed, shared nor padded."""
    logps, gradients = results[responses, name]
    wanted_logps, wanted_gradients = theirs[responses]
    np.testing.assert_allclose(logps, wanted_logps, rtol=1e-5, atol=1e-4)
    for hf_name, (parameter, layer) in hub_tensors(tiny_models.CONFIG.parameters).items():
        wanted, got = wanted_gradients[hf_name], gradients[parameter.path]
        got = got if layer is None else got[layer]
        np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max(), err_msg=hf_name)


@pytest.mark.parametrize(("responses", "name"), [each for each in LAYOUTS if each[1] != "plain"])
def test_no_layout_changes_the_numbers(responses, name, results):
    """Expected: the plain layout, to float32 rounding, 1e-5 relative."""
    logps, gradients = results[responses, name]
    plain_logps, plain_gradients = results[responses, "plain"]
    np.testing.assert_allclose(logps, plain_logps, rtol=1e-5)
    for path, wanted in plain_gradients.items():
        error = np.linalg.norm(gradients[path] - wanted)
        assert error <= 1e-5 * np.linalg.norm(wanted), path


# ---- sums ----------------------------------------------------------------------------------------


def identity_model(values):
    """Hidden states and a head of two words under which position t gives word 1 log-prob values[t].

    With logits (0, z), log-softmax of word 1 is z - log(1 + e^z) = v for z = v - log(1 - e^v)."""
    logits = values - np.log(-np.expm1(values))
    return jnp.asarray(logits, jnp.float32)[None, :, None], jnp.array([[0.0], [1.0]])


def test_long_sums_are_exact_wherever_a_pair_stands():
    """3 x 999 values near -4 nats: float32 added one after another loses up to 1e-3; the sums here
    are those of float64 to one rounding (2^-11 at 4,000 nats), more tokens than one chunk."""
    pairs = tiny_models.random_examples([(2, 999, 998), (5, 1001, 7), (1, 3, 1000)], vocabulary=2)
    for pair in pairs:
        for ids in (pair.prompt, *pair.responses):
            ids[:] = 1
    (batch,) = pack(pairs, [Shape(1, 4096, 4096, 3)])
    values = np.random.default_rng(0).uniform(-8, -1, 4096).astype(np.float32)
    hidden, head = identity_model(values.astype(np.float64))
    logps = jax.jit(branch_logps)(hidden, head, batch)
    expected = np.zeros(6)
    live = batch.score_branch[0] < 6
    np.add.at(expected, batch.score_branch[0][live], values[batch.score_position[0]][live])
    np.testing.assert_allclose(np.ravel(logps), expected, rtol=3e-7)


def test_exact_kl_is_the_sum_over_the_vocabulary():
    """KL = sum over scored tokens and words of p (log p - log p0), by numpy in float64."""
    rng = np.random.default_rng(0)
    shape = layouts(2)["packed"]
    (batch,) = pack(PAIRS, [shape])
    hidden, ref_hidden = rng.normal(size=(2, 1, shape.length, 7)).astype(np.float32)
    head, ref_head = rng.normal(size=(2, 61, 7)).astype(np.float32)
    actual = jax.jit(branch_kl)(hidden, head, ref_hidden, ref_head, batch)

    def log_probs(hidden, head):
        logits = hidden[0].astype(np.float64) @ head.T
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    p, p0 = log_probs(hidden, head), log_probs(ref_hidden, ref_head)
    token_kl = (np.exp(p) * (p - p0)).sum(-1)
    expected = np.zeros(2 * len(PAIRS))
    np.add.at(expected, batch.score_branch[0], token_kl[batch.score_position[0]])
    np.testing.assert_allclose(np.ravel(actual), expected, rtol=1e-5)
