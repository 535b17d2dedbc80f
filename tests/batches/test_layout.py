"""The packed layout: every response token scored once, and the same numbers as plain sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st

from tddpo_jax.batches.layout import Pair, Row, Shape, score_count, stream_length
from tddpo_jax.batches.packing import choose_shapes, needed_length, pack, unpack
from tddpo_jax.losses.logprobs import branch_kl, branch_logps
from tddpo_jax.models.tensor_table import hub_tensors
from tddpo_jax.placement.shardings import path_name

LENGTHS = st.lists(st.tuples(*[st.integers(1, 9)] * 3), min_size=1, max_size=7)


def numbered_pairs(lengths):
    """Pairs in which no token id occurs twice, so that a token says where it came from."""
    ids = iter(np.split(np.arange(10_000, dtype=np.int32), np.cumsum(np.ravel(lengths))))
    return [Pair(n, next(ids), next(ids), next(ids)) for n in range(len(lengths))]


# ---- the example of the module's docstring -------------------------------------------------------


def test_the_documented_example():
    """Expected: the table in `layout`'s docstring, c = 11 12 13, p = 1 2, r = 21 22."""
    row = Row(Shape(rows=1, length=5, scores=5, pairs=1))
    row.add(0, Pair(0, *(np.array(ids) for ids in ([1, 2], [11, 12, 13], [21, 22]))))
    assert row.tokens.tolist() == [12, 11, 1, 2, 21]
    assert row.positions.tolist() == [3, 2, 0, 1, 2]
    assert row.key_start.tolist() == [0, 1, 2, 2, 2]
    assert row.key_end.tolist() == [4, 4, 3, 4, 5]
    assert row.tokens[row.score_position].tolist() == [2, 11, 12, 2, 21]
    assert row.score_target.tolist() == [11, 12, 13, 21, 22]
    assert row.score_branch.tolist() == [0, 0, 0, 1, 1]


# ---- any lengths ---------------------------------------------------------------------------------


def seen_sequence(batch, row, position):
    """What a stream position sees, in the order of rotary positions, which must be 0, 1, 2, ..."""
    keys = np.arange(batch.key_start[row, position], batch.key_end[row, position])
    keys = keys[np.argsort(batch.positions[row, keys])]
    assert batch.positions[row, keys].tolist() == list(range(len(keys)))
    return batch.tokens[row, keys].tolist()


def scored_tokens(batches):
    """Every scored token: (pair, branch, visible sequence, target)."""
    for batch in batches:
        for row, score in np.argwhere(batch.score_branch < 2 * batch.pair.shape[1]):
            place, branch = divmod(int(batch.score_branch[row, score]), 2)
            visible = seen_sequence(batch, row, batch.score_position[row, score])
            yield int(batch.pair[row, place]), branch, visible, int(batch.score_target[row, score])


def expected_scores(pairs):
    """By definition: response token k is predicted from the prompt and the k tokens before it."""
    for number, pair in enumerate(pairs):
        for branch, response in enumerate((pair.chosen, pair.rejected)):
            for k, target in enumerate(response.tolist()):
                yield number, branch, [*pair.prompt.tolist(), *response[:k].tolist()], target


@given(lengths=LENGTHS, rows=st.integers(1, 3), plain=st.booleans(), data=st.data())
def test_every_response_token_is_scored_once(lengths, rows, plain, data):
    """Expected: the definition of a conditional log-probability, token by token."""
    pairs = numbered_pairs(lengths)
    longest = max(needed_length(pair, plain) for pair in pairs)
    row_length = data.draw(st.sampled_from([None, longest, longest + 5]))
    shapes = choose_shapes(pairs, len(pairs), rows=rows, row_length=row_length, plain=plain)
    batches = pack(pairs, shapes)
    assert sorted(scored_tokens(batches)) == sorted(expected_scores(pairs))


@given(lengths=LENGTHS)
def test_every_stream_position_sees_its_own_sequence(lengths):
    """A token sees the sequence that ends with it; padding sees nothing; a pair takes
    prompt + chosen + rejected - 2 positions."""
    pairs = numbered_pairs(lengths)
    total = sum(map(stream_length, pairs))
    scores = sum(map(score_count, pairs))
    (batch,) = pack(pairs, [Shape(1, total + 7, scores + 3, len(pairs) + 2)])
    live = [i for i in range(total + 7) if batch.key_end[0, i] > batch.key_start[0, i]]
    assert live == list(range(total))
    sequences = [seen_sequence(batch, 0, i) for i in live]
    assert [sequence[-1] for sequence in sequences] == batch.tokens[0, :total].tolist()
    expected = {
        tuple([*pair.prompt, *response][:end])
        for pair in pairs
        for response in (pair.chosen, pair.rejected)
        for end in range(1, len(pair.prompt) + len(response))
    }
    assert {tuple(sequence) for sequence in sequences} == expected


@given(lengths=LENGTHS)
def test_what_is_known_of_every_pair(lengths):
    """Lengths count response tokens; weights mark the places that hold a pair."""
    pairs = numbered_pairs(lengths)
    references = np.arange(2 * len(pairs), dtype=np.float32).reshape(-1, 2)
    found = {}
    for batch in pack(pairs, choose_shapes(pairs, len(pairs)), references):
        for row, place in np.argwhere(batch.pair >= 0):
            number = int(batch.pair[row, place])
            assert number not in found
            found[number] = batch.lengths[row, place].tolist()
            assert batch.ref_logps[row, place].tolist() == references[number].tolist()
        np.testing.assert_array_equal(batch.weight, batch.pair >= 0)
    assert found == {n: [len(p.chosen), len(p.rejected)] for n, p in enumerate(pairs)}


# ---- the same numbers ----------------------------------------------------------------------------

# Responses of one token, a prompt of one token, and pairs that reach over a block of attention.
PAIRS = tiny_models.random_pairs([(19, 31, 7), (1, 5, 1), (11, 1, 13), (23, 40, 29), (3, 1, 1)])
TOTAL = sum(map(stream_length, PAIRS))
SCORES = sum(map(score_count, PAIRS))
LAYOUTS = {
    "packed": Shape(1, TOTAL, SCORES, len(PAIRS)),
    "longer rows": Shape(3, TOTAL + 61, SCORES + 17, len(PAIRS) + 2),
    "one pair a row, in micro-batches": Shape(2, 90, 69, 1),
    "plain": Shape(len(PAIRS), 130, 69, 1, plain=True),
}
# The loss of these tests: a sum of log-probs under weights that tell every branch from every other.
WEIGHTS = np.random.default_rng(5).normal(size=(len(PAIRS), 2)).astype(np.float32)


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
    """Per layout: log-probs in the order of the pairs, and gradients summed over micro-batches."""
    model = tiny_models.load_from(tiny_models.hugging_face())
    found = {}
    for name, shape in LAYOUTS.items():
        batches = pack(PAIRS, [shape], WEIGHTS)
        parts = [log_probs_and_gradients(model, batch) for batch in batches]
        logps = unpack(batches, [np.asarray(part[0]) for part in parts], len(PAIRS))
        gradients = [by_name(part[1]) for part in parts]
        found[name] = logps, {key: sum(g[key] for g in gradients) for key in gradients[0]}
    return found


@pytest.fixture(scope="module")
def theirs():
    """transformers, one whole sequence after another: log-probs and gradients of the same sum."""
    model = tiny_models.hugging_face()
    logps = np.zeros((len(PAIRS), 2))
    for number, pair in enumerate(PAIRS):
        for branch, response in enumerate((pair.chosen, pair.rejected)):
            ids = torch.from_numpy(np.concatenate([pair.prompt, response])).long()
            log_probs = torch.log_softmax(model(ids[None]).logits[0, :-1], dim=-1)
            scored = log_probs.gather(1, ids[1:, None])[len(pair.prompt) - 1 :].sum()
            (scored * float(WEIGHTS[number, branch])).backward()
            logps[number, branch] = scored.item()
    return logps, {name: weight.grad.numpy() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_log_probs_and_gradients_are_those_of_transformers(name, results, theirs):
    """Expected: transformers on each branch alone, neither packed, shared nor padded."""
    logps, gradients = results[name]
    np.testing.assert_allclose(logps, theirs[0], rtol=1e-5, atol=1e-4)
    for hf_name, (parameter, layer) in hub_tensors(tiny_models.CONFIG.parameters).items():
        wanted, got = theirs[1][hf_name], gradients[parameter.path]
        got = got if layer is None else got[layer]
        np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max(), err_msg=hf_name)


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"plain"}))
def test_no_layout_changes_the_numbers(name, results):
    """Expected: the plain layout, to float32 rounding, 1e-5 relative."""
    (logps, gradients), (plain_logps, plain_gradients) = results[name], results["plain"]
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
    pairs = tiny_models.random_pairs([(2, 999, 998), (5, 1001, 7), (1, 3, 1000)], vocabulary=2)
    for pair in pairs:
        for ids in pair[1:]:
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
    (batch,) = pack(PAIRS, [LAYOUTS["packed"]])
    hidden, ref_hidden = rng.normal(size=(2, 1, TOTAL, 7)).astype(np.float32)
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
