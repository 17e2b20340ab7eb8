import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from anyvit.costs.fresh import call_in_new_process
from anyvit.errors import AnyViTError, BudgetError, DataError, MissingExtraError

CALLED = "tests.costs.called"


def test_the_answer_comes_from_another_process_and_prints_stay_there(capfd):
    argument = {"list": [1, 2.5, None, True], "text": "déjà vu ≤"}
    answer = call_in_new_process(f"{CALLED}:echo", argument)
    assert answer["argument"] == argument
    assert answer["process"] != os.getpid()
    assert answer["directory"] == os.getcwd()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("function", "kind", "words"),
    [
        ("refuse", BudgetError, "latency<=5ms cannot be met: ≥ 7 ms"),
        ("refuse_strangely", DataError, "no image"),
    ],
)
def test_errors_come_back_in_class_and_words(function, kind, words):
    with pytest.raises(AnyViTError) as error:
        call_in_new_process(f"{CALLED}:{function}", words)
    assert type(error.value) is kind
    assert str(error.value) == words


def test_errors_made_of_more_than_words_come_back():
    with pytest.raises(MissingExtraError, match="nncf is not installed"):
        call_in_new_process(f"{CALLED}:lack")


@pytest.mark.parametrize(
    ("function", "argument", "words"),
    [
        ("crash", None, ["tests.costs.called:crash ended with status 1", "about to divide", "ZeroDivisionError"]),
        ("vanish", 0, ["ended with status 0 and no answer"]),
        ("vanish", 7, ["ended with status 7 and no answer"]),
        ("die", None, ["was killed by signal 9", "memory runs out"]),
        ("answer_nan", None, ["Out of range float values"]),
        ("nowhere", None, ["has no attribute 'nowhere'"]),
    ],
)
def test_other_failures_quote_what_was_printed_last(function, argument, words):
    with pytest.raises(AnyViTError) as error:
        call_in_new_process(f"{CALLED}:{function}", argument)
    assert type(error.value) is AnyViTError
    assert all(word in str(error.value) for word in words)
    assert len(str(error.value).splitlines()) < 20


def test_an_argument_must_be_json():
    with pytest.raises(TypeError, match="not JSON serializable"):
        call_in_new_process(f"{CALLED}:echo", object())


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_ends_the_new_process(tmp_path):
    told = tmp_path / "process"

    def interrupt():
        while not (told.exists() and told.read_text()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        call_in_new_process(f"{CALLED}:wait", str(told))
    thread.join()
    assert not alive(int(told.read_text()))


def test_a_script_needs_no_main_guard_and_may_stand_beside_files_that_hide_the_library(tmp_path):
    (tmp_path / "queue.py").write_text("raise SystemExit('the wrong queue')")
    (tmp_path / "mine.py").write_text("import queue\ndef double(x): return 2 * x\n")
    script = tmp_path / "scripts" / "script.py"
    script.parent.mkdir()
    script.write_text(
        "import sys\n"
        f"sys.path.append({str(tmp_path)!r})\n"
        "from anyvit.costs.fresh import call_in_new_process\n"
        "print(call_in_new_process('mine:double', 21))\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("42\n", "")
