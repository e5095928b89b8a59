"""How near is an answer to a gold one in meaning? BERTScore, through the `bert-score` library.

Zhang et al. 2020, https://arxiv.org/abs/1904.09675: tokens of both texts are matched by the cosine
of their contextual embeddings. Scores of different scoring models do not compare, so the library's
hash of model, layer and versions goes with each. The library is imported when a scorer is made.
"""

import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from qa import UserError
from qa.metrics import as_metric
from qa.pretrained import (
    SHORT_NAMES,
    check_finite,
    check_vocabulary,
    is_adapter,
    is_local,
    load_config,
    load_tokenizer,
    loading,
    locate,
)
from qa.squad import Example
from qa.study import Settings

MAX_TOKENS = 512  # some tokenizers name no limit, which the library passes on and overflows


class _Text(str):
    """Has the same hash in every process: bert-score batches texts in the order of a set."""

    def __hash__(self) -> int:
        return zlib.crc32(self.encode("utf-8", "surrogatepass"))


class Scorer:
    """One scoring model.

    model: hub id, folder, or embedded. num_layers: None takes the library's choice for models it
    knows, else all. rescale: with the library's baseline for English. Raises UserError.
    """

    def __init__(self, model: str, num_layers: int | None = None, rescale: bool = False):
        import os
        import warnings

        os.environ.setdefault("MPLBACKEND", "agg")  # the library imports pyplot
        import bert_score.utils
        import torch
        from bert_score import BERTScorer
        from transformers import AutoModel

        remedy = "give a hub id or folder with safetensors weights, or embedded"
        with loading("bertscore_model", model, remedy), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            place = locate(model)
            if is_adapter(place):
                raise UserError("is a PEFT adapter; give its base, or a merged model")
            # The library takes no flags. It would load pickled weights, and ask whether code may
            # run: all that it loads is loaded here first, where neither is possible.
            config, checked = load_config(place), load_tokenizer(place)
            encoder = AutoModel.from_pretrained(
                place, config=config, use_safetensors=True, trust_remote_code=False
            )
            check_vocabulary(encoder, checked)
            check_finite(dict(encoder.named_parameters()))
            if checked.pad_token_id is None:
                raise UserError("has a tokenizer without a padding token; choose another model")
            del encoder
            names = [os.path.abspath(place), os.path.relpath(place)] if is_local(model) else [place]
            if "t5" not in config.model_type:  # by which the library tells T5s
                names = [name for name in names if "t5" not in name]
            if not names:
                raise UserError('has "t5" in its name, so that the library takes it for a T5; '
                                "choose another, or call it from another folder")  # fmt: skip
            place = names[0]
            known = bert_score.utils.model2layers.get(model)
            self.num_layers = num_layers or known or config.num_hidden_layers
            self.bert_scorer = BERTScorer(
                place, self.num_layers, lang="en", rescale_with_baseline=rescale
            )
        if rescale:
            try:
                _ = self.bert_scorer.baseline_vals
            except (ValueError, IndexError):
                raise UserError(
                    f"bertscore_rescale: the library has no baseline for {model}; leave it out, or "
                    "take a scoring model that has one (roberta-large)"
                ) from None
        # transformers keeps the precision of the file; in half of it equal texts score 99.98.
        self.bert_scorer._model.float()
        tokenizer = self.bert_scorer._tokenizer
        tokenizer.model_max_length = min(tokenizer.model_max_length, MAX_TOKENS)
        # The library's own hash, of the name alone: where a folder stands differs between machines.
        name = (
            Path(place).absolute().name if is_local(model) and model not in SHORT_NAMES else model
        )
        self.hash = bert_score.utils.get_hash(name, self.num_layers, False, rescale, False, False)
        self.torch = torch

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The library's F of each (prediction, gold answer); 0 for empty texts.

        In one call equal pairs are scored once and equal texts embedded once. Nothing is kept for
        the next: which texts share a batch moves the last digits, and the same call gives the same.
        """
        scores = {(a, b): 0.0 for a, b in pairs if not a.strip() or not b.strip()}
        others = [pair for pair in dict.fromkeys(pairs) if pair not in scores]
        if others:
            predictions, references = ([_Text(text) for text in column] for column in zip(*others))
            with self.torch.inference_mode():
                _, _, found = self.bert_scorer.score(predictions, references)
            scores |= dict(zip(others, found.tolist(), strict=True))
        return [scores[pair] for pair in pairs]

    def score(
        self, predictions: Sequence[Mapping[str, str]], examples: Sequence[Example]
    ) -> np.ndarray:
        """Percent, (len(predictions), Q): by the best gold answer; 0 without a prediction."""
        pairs, places = [], []
        for row, texts in enumerate(predictions):
            for column, example in enumerate(examples):
                text = texts.get(example.id, "")
                pairs += [(text, truth) for truth, _ in example.answers]
                places += [(row, column)] * len(example.answers)
        scores = np.full((len(predictions), len(examples)), -np.inf)
        rows, columns = np.array(places).T
        np.maximum.at(scores, (rows, columns), self.pairs(pairs))
        return 100.0 * scores


@lru_cache(maxsize=1)
def make_scorer(model: str, num_layers: int | None, rescale: bool) -> Scorer:
    """The scorer of these settings: the last one, where they are the same."""
    return Scorer(model, num_layers, rescale)


def scorer_of(settings: Settings) -> Scorer:
    """The scorer that the settings name. Raises UserError."""
    return make_scorer(
        settings.bertscore_model, settings.bertscore_num_layers, settings.bertscore_rescale
    )


def bertscore_metric(
    model: str = "embedded", num_layers: int | None = None, rescale: bool = False
) -> Any:
    """BERTScore as an `evaluate.Metric` beside `metrics.squad_metric`, with the same inputs."""
    scorer = make_scorer(model, num_layers, rescale)

    def compute(texts: Mapping[str, str], examples: Sequence[Example]) -> dict[str, Any]:
        return {
            "bertscore_f1": float(scorer.score([texts], examples).mean()),
            "bertscore_hash": scorer.hash,
        }

    return as_metric(
        "BertScore", "BERTScore F by the best gold answer, in percent",
        "https://arxiv.org/abs/1904.09675", compute,
    )  # fmt: skip
