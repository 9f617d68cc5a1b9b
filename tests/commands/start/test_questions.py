"""Questions: the default for Return, again after a wrong answer, none where nobody answers."""

import io

import pytest

from refimpl.commands.start.questions import Questions, one_of, whole_number
from refimpl.errors import InputError


def test_nobody_is_asked() -> None:
    questions = Questions(is_asking=False, answers=io.StringIO("x\n"))
    assert questions.ask("How?", "so", one_of(["so"])) == "so"
    assert questions.asked == 0


def test_return_gives_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    questions = Questions(True, io.StringIO("\n  other \n"))
    assert [questions.ask("How?", "so"), questions.ask("And?", "")] == ["so", "other"]
    assert capsys.readouterr().out == "How? [so] And? "
    assert questions.asked == 2


def test_a_wrong_answer_is_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "many\n0\n000\n-3\n1e3\n５\n99999999999999999999\n"
    questions = Questions(True, io.StringIO(f"lroa\nlora\n{wrong}012\n"))
    assert questions.ask("What?", "whole", one_of(["lora", "whole"])) == "lora"
    assert questions.ask("Steps?", "5", whole_number) == "012"
    said = capsys.readouterr().out
    assert "'lroa' is none of lora, whole; the nearest is 'lora'" in said
    assert said.count("Steps? [5] ") == 8
    assert questions.asked == 2


@pytest.mark.parametrize("answers", ["", "lroa\n"])
def test_answers_that_end_are_an_error_on_a_line_of_its_own(
    answers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="take every default with --yes"):
        Questions(True, io.StringIO(answers)).ask("How?", "so", one_of(["so"]))
    assert capsys.readouterr().out.endswith("How? [so] \n")
