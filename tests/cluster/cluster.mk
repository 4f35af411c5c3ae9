##@ The local Kubernetes
.PHONY: cluster cluster-down cluster-status
cluster: ## Start it, or the parts of it that are missing (NODES=2: with a second node)
	@$(PYTHON3) -m tests.cluster up --nodes $(NODES)

cluster-down: ## Stop it and remove everything except caches
	@$(PYTHON3) -m tests.cluster down

cluster-status: ## Show what runs and where to reach it
	@$(PYTHON3) -m tests.cluster status
