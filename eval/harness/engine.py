"""Our engine as a model of the library lm-evaluation-harness.

It gives what the library's own model `hf` gives, in the same order of the same tokens: texts are
encoded as there, contexts that are too long lose their beginning, and an answer ends at a stop
text, at the end of sequence or at the checkpoint's stop tokens. Adapters are not merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tddpo_jax import __version__
from tddpo_jax.batches.layout import Example
from tddpo_jax.config.schema import MeshConfig, ModelConfig
from tddpo_jax.data.chat_format import chat_format
from tddpo_jax.errors import UserError
from tddpo_jax.generation.generator import Generator, configured_stops
from tddpo_jax.generation.sampling import Sampling
from tddpo_jax.models.tensor_table import parameter_count
from tddpo_jax.placement.computation import computation
from tddpo_jax.scoring.data_sets import greedy_log_probs
from tddpo_jax.system.console import Screen
from tddpo_jax.weights.locate import resolve, weights_of

Scored = tuple[float, bool]  # a log-prob in nats, and whether greedy decoding gives the text
TokenRequest = tuple[Any, list[int], list[int]]  # its texts or None, context, continuation

ANSWERS_AT_ONCE = 128  # between two reports of progress
# What a task may set of generation, beside its length and its stop texts.
KNOWN = ("do_sample", "temperature", "top_k", "top_p")


class Engine(TemplateLM):
    """A model that the library can evaluate."""

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "auto",
        template: str | None = None,
        chat: bool = False,
        screen: Screen | None = None,
    ) -> None:
        """Loads a model.

        Args:
            path: a path that `weights.locate.resolve` accepts.
            dtype: dtype of weights and computation.
            template: name of a chat template; None for the tokenizer's own.
            chat: whether prompts will be conversations; the end of turn then ends an answer, too.
            screen: shows the progress; None shows nothing.

        Raises:
            UserError: the path, the template or a file of the model is wrong.
        """
        super().__init__()
        self.path = path
        self._generator = Generator.from_path(path, dtype, template=template, mesh=MeshConfig())
        self.tokenizer = self._generator.tokenizer
        self._style = chat_format(self.tokenizer, template)
        if not chat:
            ends = {*configured_stops(resolve(path)), self.eot_token_id}
            self._generator.stop_ids = tuple(sorted(ends - {None}))
        mesh = self._generator.mesh
        self._how = computation(
            ModelConfig(dtype=dtype, remat="none"), mesh, self._generator.adapters.model.config
        )
        self._screen = screen or Screen(quiet=True)

    # ---- tokens ----------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The end of sequence."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else begin

    @property
    def max_length(self) -> int:
        """The most tokens of a text."""
        return self._generator.context

    @property
    def tokenizer_name(self) -> str:
        """A name for the library's cache of requests."""
        return self.path.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """The ids of a text, with a beginning of sequence unless it has one."""
        if add_special_tokens is None:
            begins = has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
            settings = {"add_special_tokens": False} if begins else {}
        else:
            settings = {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, **settings)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The chat template, for the library's records."""
        return self._style.jinja if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as a text, with or without the beginning of an answer behind it."""
        text = self.tokenizer.apply_chat_template(
            chat_history,
            chat_template=self._style.jinja,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        assert isinstance(text, str)
        return text

    # ---- log-probs -------------------------------------------------------------------------------

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """log p of whole texts, in nats; a long one is read window by window."""
        windows = [
            (number, *make_disjoint_window(window))
            for number, request in enumerate(requests)
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
        ]
        scored = self._loglikelihood_tokens([(None, *window) for _, *window in windows])
        sums = [0.0] * len(requests)
        for (number, *_), (logp, _) in zip(windows, scored, strict=True):
            sums[number] += logp
        for request, logp in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, logp)
        return sums

    def _loglikelihood_tokens(self, requests: list[TokenRequest], **_: Any) -> list[Scored]:
        """The log-probs of continuations. Continuations of one context share it."""
        sharing: dict[tuple[int, ...], list[int]] = {}
        for number, (_texts, context, continuation) in enumerate(requests):
            sharing.setdefault(self._fitting(context, continuation), []).append(number)
        # All examples of a call have the same number of responses.
        of_count: dict[int, list[Example]] = {}
        for shared, numbers in sharing.items():
            said = tuple(_array(requests[number][2]) for number in numbers)
            of_count.setdefault(len(numbers), []).append(Example(numbers[0], _array(shared), said))
        results: dict[int, Scored] = {}
        for examples in of_count.values():
            logps, greedy = (values.tolist() for values in self._score(examples))
            for example, *scored in zip(examples, logps, greedy, strict=True):
                numbers = sharing[tuple(example.prompt.tolist())]
                results |= dict(zip(numbers, zip(*scored, strict=True), strict=True))
        for number, (texts, *_rest) in enumerate(requests):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, results[number])
        return [results[number] for number in range(len(requests))]

    def _score(self, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
        adapters, mesh = self._generator.adapters, self._generator.mesh
        with self._screen.stage("contexts scored") as progress:
            return greedy_log_probs(
                lambda rows: adapters.for_rows([0] * rows, mesh),
                examples,
                self._how,
                mesh,
                progress,
            )

    def _fitting(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[int, ...]:
        """A context that leaves room for its continuation, whose last token is not read."""
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise UserError(
                f"--tasks: a continuation has {len(continuation)} tokens, and the model's context "
                f"has {self.max_length}"
            )
        return tuple(context[-room:])

    # ---- answers ---------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text behind each context, up to a stop text."""
        asked = [self._asked(*request.args) for request in requests]
        order = sorted(range(len(asked)), key=lambda number: len(asked[number][0]))
        texts: dict[int, str] = {}
        with self._screen.stage("answers") as progress:
            for first in range(0, len(order), ANSWERS_AT_ONCE):
                numbers = order[first : first + ANSWERS_AT_ONCE]
                completions = self._generator.generate(
                    [asked[number][0] for number in numbers],
                    [asked[number][1] for number in numbers],
                    [(0, number) for number in numbers],
                )
                for number, completion in zip(numbers, completions, strict=True):
                    text = self.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
                    texts[number] = postprocess_generated_text(text, asked[number][2], None)
                progress(first + len(numbers), len(order))
        for number, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, texts[number])
        return [texts[number] for number in range(len(requests))]

    def _asked(
        self, context: str, settings: dict[str, Any]
    ) -> tuple[np.ndarray, Sampling, list[str]]:
        """The ids of a context, how it is continued, and the texts that end the answer."""
        given = dict(normalize_gen_kwargs(settings))
        end = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        until = handle_stop_sequences(given.pop("until", None), eos=end)
        new_tokens = int(given.pop("max_gen_toks"))
        if unknown := given.keys() - {*KNOWN}:
            raise UserError(
                f"--tasks: a task generates with {min(unknown)}, which our generator does not have"
            )
        if (room := self.max_length - new_tokens) < 1:
            raise UserError(
                f"--tasks: a task asks for {new_tokens} new tokens, and the model's context has "
                f"{self.max_length}"
            )
        samples = bool(given.get("do_sample"))
        sampling = Sampling(
            temperature=float(given.get("temperature", 1.0)) if samples else 0.0,
            top_k=int(given.get("top_k", 0)),
            top_p=float(given.get("top_p", 1.0)),
            max_new_tokens=new_tokens,
        )
        return _array(self.tok_encode(context)[-room:]), sampling, until

    def get_model_info(self) -> dict[str, Any]:
        """What the results say about the model."""
        config = self._generator.adapters.model.config
        return {
            "model": f"tddpo_jax {__version__}",
            "model_args": f"path={self.path}",
            "model_sha": weights_of(self.path),
            "model_num_parameters": parameter_count(config.parameters),
            "model_dtype": str(np.dtype(self._generator.dtype)),
        }


def _array(ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, np.int32)
