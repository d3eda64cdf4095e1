"""`python -m tests.child MODULE ...` is `python -m MODULE ...` as without PyTorch, which most users
lack. Where it is, as for the tests, TensorBoard's writer imports it: seconds of every program."""

import runpy
import sys

if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
