"""litellm: its rerank, by the providers that have a form of their own."""

import os

from harness import DOCUMENTS, MODEL, NO_MODEL, QUERY, SCORES, TOKEN, URL, main, raises, ranks

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

BASES = {
    "cohere": URL,
    "deepinfra": f"{URL}/v1",
    "hosted_vllm": f"{URL}/vllm",
    "huggingface": URL,
    "infinity": f"{URL}/infinity",
    "jina_ai": URL,
    "nvidia_nim": URL,
}


def ask(provider, model=MODEL, token=TOKEN, **fields):
    reply = litellm.rerank(
        model=f"{provider}/{model}",
        query=QUERY,
        documents=DOCUMENTS,
        api_base=BASES[provider],
        api_key=token,
        **fields,
    )
    return reply.results


def pairs(results):
    return [(result["index"], result["relevance_score"]) for result in results]


def check(provider):
    results = ask(provider)
    assert all(result["document"]["text"] == DOCUMENTS[result["index"]] for result in results)
    ranks(pairs(results))


def deepinfra():
    """Checks scores in the documents' order, which is all that DeepInfra gives."""
    found = pairs(ask("deepinfra"))
    assert [index for index, _ in found] == list(range(len(DOCUMENTS)))
    ranks(sorted(found, key=lambda pair: -pair[1]))


def nvidia():
    """Checks the order alone, since the scores are made of logits."""
    for count in (len(DOCUMENTS), 2):
        ranks([(index, SCORES[index]) for index, _ in pairs(ask("nvidia_nim", top_n=count))], count)


def errors():
    for provider in BASES.keys() - {"huggingface"}:  # which sends no name
        raises(litellm.NotFoundError, lambda name=provider: ask(name, NO_MODEL), NO_MODEL)


ORDINARY = ("cohere", "hosted_vllm", "huggingface", "infinity", "jina_ai")

main(
    "litellm",
    {
        **{provider: lambda name=provider: check(name) for provider in ORDINARY},
        "deepinfra": deepinfra,
        "nvidia_nim": nvidia,
        "top_n": lambda: ranks(pairs(ask("infinity", top_n=2)), 2),
        "error": errors,
        "wrong token": lambda: raises(
            litellm.AuthenticationError, lambda: ask("infinity", token="wrong"), "token"
        ),
    },
)
