"""The suite of jupyter_kernel_test, against the IPython kernel and against the example kernel."""

from __future__ import annotations

import jupyter_kernel_test


class TestTrioPython(jupyter_kernel_test.KernelTests):
    """Every part of the suite has what it asks for: nothing is skipped."""

    kernel_name = "trio-python"
    language_name = "python"
    file_extension = ".py"

    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('to the other one', file=sys.stderr)"
    completion_samples = [
        {"text": "zi", "matches": {"zip"}},
        {"text": "import sysc", "matches": {"sysconfig"}},
    ]
    complete_code_samples = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n"]
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2", "with open('f') as f:"]
    invalid_code_samples = ["import = 7q", "a = ]"]
    code_page_something = "zip?"
    code_generate_error = "raise RuntimeError('on purpose')"
    code_execute_result = [
        {"code": "6*7", "result": "42"},
        {"code": "'a' * 3", "result": "'aaa'"},
        {"code": "6*7", "result": "42"},
        {"code": "6*7", "result": "42"},
        {"code": "import trio; await trio.sleep(0); 'awaited'", "result": "'awaited'"},
    ]
    code_display_data = [
        {
            "code": "from IPython.display import HTML; display(HTML('<b>x</b>'))",
            "mime": "text/html",
        },
        {"code": "display({'image/svg+xml': '<svg/>'}, raw=True)", "mime": "image/svg+xml"},
        {"code": "display('it', display_id='an-id')", "mime": "text/plain"},
    ]
    code_history_pattern = "6?7*"
    supported_history_operations = ("tail", "range", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"


class TestTrioPythonWelcome(jupyter_kernel_test.IopubWelcomeTests):
    kernel_name = "trio-python"
    support_iopub_welcome = True


class TestEcho(jupyter_kernel_test.KernelTests):
    """The smallest kernel there is; what it has no samples for, test_examples looks at."""

    kernel_name = "echo"
    language_name = "echo"
    file_extension = ".txt"
    code_hello_world = "hello, world"


class TestEchoWelcome(jupyter_kernel_test.IopubWelcomeTests):
    kernel_name = "echo"
    support_iopub_welcome = True
