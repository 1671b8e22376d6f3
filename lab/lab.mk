# The lab: a real mesh on this machine. LAB_NAME=other runs a second one beside it, NODE=real adds a real node.
LAB_NAME ?= default
NODE ?= none
LAB_PYTHON ?= .venv/bin/python

.PHONY: lab-up lab-down lab-check lab-status lab-tools

lab-up: ## Build the lab's tools (once), start a mesh and print how to use it [NODE=real] [LAB_NAME=...]
	@$(LAB_PYTHON) -m lab up --name $(LAB_NAME) --node $(NODE)

lab-down: ## End exactly what lab-up started [LAB_NAME=...]
	@$(LAB_PYTHON) -m lab down --name $(LAB_NAME)

lab-check: ## Prove that the running lab splits and counts real requests [LAB_NAME=...]
	@$(LAB_PYTHON) -m lab check --name $(LAB_NAME)

lab-status: ## Show the lab's parts, processes and logs [LAB_NAME=...]
	@$(LAB_PYTHON) -m lab status --name $(LAB_NAME)

lab-tools: ## Build every tool of the lab, also those that only tests need
	@$(LAB_PYTHON) -m lab tools
