"""Rows of tokens with a teacher's numbers: what is read of them, and what is refused."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.row_encoder import RowEncoder, UnusableRow
from lifecycle.text.row_files import RowError
from lifecycle.text.taught_rows import told_of

TOKENIZER = ByteTokenizer()
ENCODER = RowEncoder(ChatTemplate(TOKENIZER))


def row(**changes: Any) -> dict[str, Any]:
    """Two of four tokens are learned."""
    made = {
        "input_ids": [1, 70, 71, 72], "labels": [-100, 70, -100, 72],
        "teacher_ids": [[], [70, 80], [], [9]], "teacher_logprobs": [[], [-0.5, -2], [], [-0.1]],
    }  # fmt: skip
    return made | changes


def test_what_is_said_of_learned_tokens_is_kept() -> None:
    encoded = ENCODER.encode_taught(row())
    assert encoded.ids == [1, 70, 71, 72] and encoded.loss_mask == [False, True, False, True]
    np.testing.assert_array_equal(encoded.told.ids, [[70, 80], [9, -1]])
    np.testing.assert_allclose(encoded.told.logprobs, [[-0.5, -2], [-0.1, 0]])
    assert encoded.told.ids.dtype == np.int32 and encoded.told.logprobs.dtype == np.float32
    assert encoded.prompt_ids == [1, 70, 71] and ENCODER.decoded(row()) == TOKENIZER.decode([1, 70, 71, 72])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input_ids": [1, 70, 71, 99_999]}, r"input_ids must be a list of ids below"),
        ({"input_ids": [1, 70, True, 72]}, r"input_ids must be a list of ids below"),
        ({"input_ids": []}, r"input_ids must be a list"),
        ({"labels": [-100, 70, -100]}, r"labels must be a list with one entry for each of the 4 input_ids"),
        ({"labels": [-100, 71, -100, 72]}, r"labels\[1\] is 71; give the token's own id, 70, or -100"),
        ({"labels": [1, 70, -100, 72]}, r"nothing predicts the first token"),
        ({"teacher_ids": [[], [70, 80], [], []]}, r"teacher_ids\[3\] must be a list of ids .*, of one at least"),
        ({"teacher_ids": [[], [70, 70], [], [9]]}, r"teacher_ids\[1\]: an id is there twice"),
        ({"teacher_ids": [[], [70, -1], [], [9]]}, r"teacher_ids\[1\] must be a list of ids"),
        ({"teacher_ids": [[], [70, 80], [4], [9]]}, r"teacher_ids\[2\]: the token has no label, so nobody reads it"),
        ({"teacher_logprobs": [[], [-0.5], [], [-0.1]]}, r"teacher_logprobs\[1\] must be a list with one number"),
        ({"teacher_logprobs": [[], [0.5, -2], [], [-0.1]]}, r"teacher_logprobs\[1\] has 0\.5; give finite numbers"),
        ({"teacher_logprobs": [[], [-math.inf, -2], [], [-0.1]]}, r"has -inf; give finite numbers"),
        ({"teacher_logprobs": [[], [math.nan, -2], [], [-0.1]]}, r"has nan; give finite numbers"),
        ({"teacher_logprobs": [[], ["-1", -2], [], [-0.1]]}, r"has '-1'; give finite numbers"),
        ({"teacher_logprobs": [[], [-0.1, -0.2], [], [-0.1]]}, r"the probabilities add up to 1\.724"),
        ({"teacher_logprobs": "no"}, r"teacher_logprobs must be a list"),
    ],
)
def test_a_row_that_cannot_be_right_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RowError, match=says):
        ENCODER.encode_taught(row(**changes))


def test_a_row_without_labels_is_dropped() -> None:
    nothing = {"labels": [-100] * 4, "teacher_ids": [[]] * 4, "teacher_logprobs": [[]] * 4}
    with pytest.raises(UnusableRow, match="no token has a label"):
        ENCODER.encode_taught(row(**nothing))


@given(st.integers(0, 1000), st.integers(1, 12))
def test_any_distribution_is_read_as_it_is(seed: int, num: int) -> None:
    draw = np.random.default_rng(seed)
    ids = draw.permutation(50)[:num].tolist()
    logprobs = np.log(draw.dirichlet(np.full(num, 0.3)) + 1e-12)
    made = {"input_ids": [1, 2], "labels": [-100, 2], "teacher_ids": [[], ids]}
    mask, told = told_of(made | {"teacher_logprobs": [[], np.minimum(logprobs, 0).tolist()]}, 50)
    assert mask == [False, True] and told.ids.tolist() == [ids]
    np.testing.assert_allclose(told.logprobs[0], logprobs, rtol=1e-5, atol=1e-6)
