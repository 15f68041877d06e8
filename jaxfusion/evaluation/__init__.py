"""What a trained model is worth: metrics, evaluators, and the report that shows them.

The metrics here are functions of texts and numbers, and load nothing heavy.
"""

from jaxfusion.evaluation.bootstrap import Statistic, intervals, mean_of
from jaxfusion.evaluation.captions import caption_metrics, caption_statistics
from jaxfusion.evaluation.metrics import class_accuracy, confusion_matrix, exact_match, macro_f1, perplexity
from jaxfusion.evaluation.rouge import rouge
from jaxfusion.evaluation.vqa import normalise_answer, vqa_accuracy
from jaxfusion.evaluation.words import chinese_characters, chinese_words, english_words

__all__ = [
    "Statistic",
    "caption_metrics",
    "caption_statistics",
    "chinese_characters",
    "chinese_words",
    "class_accuracy",
    "confusion_matrix",
    "english_words",
    "exact_match",
    "intervals",
    "macro_f1",
    "mean_of",
    "normalise_answer",
    "perplexity",
    "rouge",
    "vqa_accuracy",
]
