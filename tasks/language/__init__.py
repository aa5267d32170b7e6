"""Language modelling: Transformer-XL with and without weight normalisation, and an LSTM.

AdamP paper, Table 4; AdaRem paper, Table 3.
"""

from tasks.language.lstm import DropoutLstm
from tasks.language.task import LanguageModel, Scoring
from tasks.language.text import Corpus, text_corpus
from tasks.language.transformer_xl import DECODER, TransformerXL, weight_normalise

__all__ = [
    "DECODER",
    "Corpus",
    "DropoutLstm",
    "LanguageModel",
    "Scoring",
    "TransformerXL",
    "text_corpus",
    "weight_normalise",
]
