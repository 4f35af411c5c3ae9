##@ The local Kubernetes
.PHONY: cluster cluster-down cluster-status
cluster: ## Start it, or whatever of it is missing (NODES=2: a second node)
	@$(PYTHON3) -m tests.cluster up --nodes $(NODES)

cluster-down: ## Stop it and leave nothing behind but caches
	@$(PYTHON3) -m tests.cluster down

cluster-status: ## What of it runs, and where to reach it
	@$(PYTHON3) -m tests.cluster status
