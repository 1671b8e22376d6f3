# Three rollouts on the lab's mesh, watched, measured and checked; the lab is started for it and ended with it.
.PHONY: demo

demo: .venv/.stamp ## Play three rollouts on a real mesh: one promoted, two taken back (2 minutes once tools are built)
	@.venv/bin/python -m lab.demo
