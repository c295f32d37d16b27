from rerank_grpc.registry.memory import MOST_KEPT_BYTES, TRIM_SECONDS, Trimmer


def test_memory_is_given_back_when_the_process_has_grown_and_no_more_often_than_that():
    used = [1_000]
    trimmer = Trimmer(lambda: used[-1])
    assert not trimmer.due(100)
    used.append(1_000 + MOST_KEPT_BYTES + 1)
    assert not trimmer.due(100 + TRIM_SECONDS / 2)
    assert trimmer.due(100 + TRIM_SECONDS)


def test_a_trim_that_frees_little_is_tried_again_later_and_later_but_never_for_the_last_time():
    used = [1_000]
    trimmer = Trimmer(lambda: used[-1])
    used.append(1_000 + 2 * MOST_KEPT_BYTES)  # and in use while it is trimmed
    assert trimmer.due(100)
    trimmer.trim()
    assert not trimmer.due(100 + TRIM_SECONDS / 2)
    assert trimmer.due(100 + TRIM_SECONDS)
    trimmer.trim()
    assert not trimmer.due(100 + 2 * TRIM_SECONDS)
    assert trimmer.due(100 + 5 * TRIM_SECONDS)
