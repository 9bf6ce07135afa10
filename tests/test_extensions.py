"""The choice of SMTP extensions, by --extensions and by the table."""

from __future__ import annotations

import pytest

from blackhole.process import configuration
from blackhole.settings import OperatorError
from blackhole.smtp.extensions import DEFAULTS, EXTENSIONS, choose
from tests.option_samples import read


def test_default_is_what_a_listener_without_a_choice_offers() -> None:
    assert choose(["default"]) == DEFAULTS == {row.keyword for row in EXTENSIONS if row.by_default}


def test_word_takes_away_what_an_earlier_one_has_chosen() -> None:
    everything = {row.keyword for row in EXTENSIONS}
    assert choose(["all", "-BINARYMIME", "-chunking"]) == everything - {"BINARYMIME", "CHUNKING"}
    assert choose(["-VRFY", "VRFY"]) == {"VRFY"}
    assert choose([]) == choose(["none"]) == set()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["BINARYMIME"], "BINARYMIME needs CHUNKING, which is not in the list"),
        (["default", "-8BITMIME"], "SMTPUTF8 needs 8BITMIME, which is not in the list"),
        (["PIPELINIG"], "unknown keyword PIPELINIG; the keywords are PIPELINING, SIZE, "),
    ],
)
def test_wrong_choice_is_an_error(words: list[str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        choose(words)


def test_wrong_choice_is_an_error_of_the_operator_before_the_start() -> None:
    with pytest.raises(OperatorError, match="extensions: BINARYMIME needs CHUNKING"):
        configuration.read(read("--extensions=BINARYMIME"), print)
