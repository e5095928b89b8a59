"""How near is an answer to a gold one in meaning? BERTScore, through the `bert-score` library.

Zhang et al. 2020, https://arxiv.org/abs/1904.09675: tokens of both texts are matched by the cosine
of their contextual embeddings. Scores of different scoring models do not compare, so the library's
hash of model, layer and versions goes with each. The library is imported when a scorer is made.
"""

import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from qa import UserError, in_one_line
from qa.metrics import as_metric
from qa.squad import Example
from qa.study import ROOT, Settings, expand_path

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
        from huggingface_hub.utils import logging as hub_logging
        from transformers import AutoModel
        from transformers.utils import logging

        folder = ROOT / "qa/embedded/encoder" if model == "embedded" else expand_path(model)
        place = str(folder) if folder.exists() else model
        level = logging.get_verbosity()
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        hub_logging.set_verbosity_error()  # its retries: what fails is said below, in one line
        try:
            # The library would load pickled weights too: safetensors have to be there.
            config = AutoModel.from_pretrained(place, use_safetensors=True).config
            known = bert_score.utils.model2layers.get(model)
            self.num_layers = num_layers or known or config.num_hidden_layers
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.bert_scorer = BERTScorer(
                    place, self.num_layers, lang="en", rescale_with_baseline=rescale
                )
            if rescale:
                _ = self.bert_scorer.baseline_vals
        except (Exception, AssertionError) as error:  # both libraries raise a dozen unrelated kinds
            if rescale and "Baseline not Found" in str(error):
                raise UserError(
                    f"bertscore_rescale: the library has no baseline for {model}; leave it out, or "
                    "take a scoring model that has one (roberta-large)"
                ) from None
            raise UserError(
                f"bertscore_model: {model} cannot be loaded ({in_one_line(error)}); "
                "give a hub id or folder with safetensors weights, or embedded"
            ) from None
        finally:
            logging.set_verbosity(level)
            logging.enable_progress_bar()
        # transformers keeps the precision of the file; in half of it equal texts score 99.98.
        self.bert_scorer._model.float()
        tokenizer = self.bert_scorer._tokenizer
        tokenizer.model_max_length = min(tokenizer.model_max_length, MAX_TOKENS)
        # The library's own hash, of the name alone: where a folder stands differs between machines.
        name = folder.name if folder.exists() and model != "embedded" else model
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
