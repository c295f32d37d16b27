from rerank_grpc.registry.memory import MOST_KEPT_BYTES, TRIM_SECONDS, Trimmer


def test_memory_is_given_back_when_the_process_has_grown_and_no_more_often_than_that():
    used = [1_000]
    trimmer = Trimmer(lambda: used[-1])
    assert not trimmer.due(100)
    used.append(1_000 + MOST_KEPT_BYTES + 1)
    assert not trimmer.due(100 + TRIM_SECONDS / 2)
    assert trimmer.due(100 + TRIM_SECONDS)
    trimmer.trim()
    assert not trimmer.due(100 + 2 * TRIM_SECONDS)  # it is still in use
    used.append(used[-1] + MOST_KEPT_BYTES + 1)
    assert trimmer.due(100 + 3 * TRIM_SECONDS)
