"""Hostile inputs, drawn: whatever is read, the answer is a result or one line.

Each area has a module here. `make test` draws a share of its cases, `make fuzz` all; the same in
each run. `FUZZ_CASE="AREA/17" pytest tests/fuzz` draws one again, and lets its exception through.
"""
