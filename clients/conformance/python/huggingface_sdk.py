"""huggingface_hub: its InferenceClient's text classification and sentence similarity."""

from harness import DOCUMENTS, MODEL, NO_MODEL, QUERY, SCORES, TOKEN, URL, main, raises
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError


def client(token=TOKEN, model=MODEL):
    return InferenceClient(f"{URL}/hf-inference/models/{model}", token=token)


def same(scores):
    assert all(abs(score - own) < 1e-6 for score, own in zip(scores, SCORES, strict=True)), scores


def classified():
    """Asks pair by pair: of a list of pairs the client returns the first alone."""
    for text, own in zip(DOCUMENTS, SCORES, strict=True):
        (label,) = client().text_classification({"text": QUERY, "text_pair": text}, top_k=1)
        assert label.label == "LABEL_0"
        assert abs(label.score - own) < 1e-6, (label.score, own)


def similar(**given):
    return client(**given).sentence_similarity(QUERY, other_sentences=DOCUMENTS)


main(
    "huggingface_hub",
    {
        "classifies pairs": classified,
        "compares sentences": lambda: same(similar()),
        "error": lambda: raises(HfHubHTTPError, lambda: similar(model=NO_MODEL), "404", NO_MODEL),
        "wrong token": lambda: raises(HfHubHTTPError, lambda: similar(token="wrong"), "401", "token"),
    },
)
