"""The demo: three rollouts on a real mesh under constant load, watched, measured and checked.

It is a demonstration that can fail. Beside the operator runs a witness that shares nothing with it but the API server:
it notes every version of every object with the time it appeared, keeps an account of every single request, and asks
Prometheus the gate's own questions ten times a second. At the end pure functions turn these notes into facts
(`lab.demo.facts`) and the facts into verdicts (`lab.demo.checks`).

    python -m lab.demo            # or: make demo
"""
