# Every target runs from a clean clone on a Debian machine with Go, gcc, git, make and root.
export CGO_ENABLED = 0
TOOL = go tool -modfile=tools/go.mod
IMAGE ?= gantry-lb/gantry:v0.1.0

.DEFAULT_GOAL := help
.PHONY: help build deps test unit policy e2e race lint generate verify manifests demo bench image clean

help: ## print this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/controller, bin/speaker and bin/lab
	go build -o bin/controller ./controller
	go build -o bin/speaker ./speaker
	go build -o bin/lab ./test/lab/cmd/lab

deps: ## install what the lab needs from Debian, or name what is missing
	@sh test/deps.sh

test: deps build ## unit, policy and end-to-end tests, with a closing line that counts them
	bin/lab build-kube
	go run ./test/run ./...

unit: ## the tests that need neither root nor the lab
	go test ./api/... ./internal/... ./controller/... ./speaker/... ./test/policy/...

policy: ## the rules of the repository
	go test ./test/policy/...

e2e: deps build ## the end-to-end tests alone
	go test -count=1 -v ./test/e2e/...

race: ## the unit tests with the race detector
	CGO_ENABLED=1 go test -race ./controller/... ./speaker/... ./internal/...

lint: ## go vet and staticcheck
	go vet ./...
	$(TOOL) staticcheck ./...

generate: ## deepcopy and the CRDs
	$(TOOL) controller-gen object paths=./api/...
	$(TOOL) controller-gen crd paths=./api/... output:crd:dir=config/crd/bases

verify: generate ## fail when generated files are not what is committed
	git diff --exit-code -- api config

manifests: build ## write dist/gantry.yaml, the installation in one file
	mkdir -p dist
	bin/lab kubectl kustomize config/default > dist/gantry.yaml

demo: deps build ## a cluster, a Service, a client, a dead node; KEEP=1 leaves it up
	go run ./test/demo

bench: deps build ## the figures of the README, beside this machine's own baseline
	go run ./test/bench

image: ## build the container image
	docker build -t $(IMAGE) .

clean: ## remove what was built
	rm -rf bin dist
