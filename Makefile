# Every target runs from a clean clone on a Debian machine with Go, gcc, git, make and root.
export CGO_ENABLED = 0
TOOL = go tool -modfile=tools/go.mod
PACK = tools/packages
VERSION = v0.2.0
IMAGE ?= registry.invalid/gantry:$(VERSION)
PLUGIN_VERSION ?= $(VERSION)
PLUGIN_TARGETS ?= linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64
OVERLAYS = default l2-only continuity webhook prometheus

.DEFAULT_GOAL := help
.PHONY: help build deps download test check current unit policy alerts e2e model bursts deaths cuts alert-series histories test-race test-kernel fuzz lint generate verify manifests chart demo bench soak image plugin packages-tools clean

help: ## print this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/controller, bin/speaker, bin/kubectl-gantry and bin/lab
	go build -o bin/controller ./controller
	go build -o bin/speaker ./speaker
	go build -o bin/kubectl-gantry ./cmd/kubectl-gantry
	go build -o bin/lab ./test/lab/cmd/lab

deps: ## install the Debian packages that the lab needs, or list what is missing
	@sh test/deps.sh

packages-tools: ## build bin/helm, bin/helm3, bin/kustomize, bin/image and bin/crane, which build, render and push the packages
	go build -C $(PACK) -o ../../bin/ helm.sh/helm/v4/cmd/helm ./image github.com/google/go-containerregistry/cmd/crane
	go build -C $(PACK) -o ../../bin/helm3 helm.sh/helm/v3/cmd/helm
	go build -C $(PACK) -o ../../bin/kustomize sigs.k8s.io/kustomize/kustomize/v5

download: ## download the modules that the tests need, while something else is compiled
	@for dir in test/lab/kube tools/packages tools/alerts; do go list -C $$dir -deps -test ./... > /dev/null || exit 1; done
	@go list -C $(PACK) -deps tool > /dev/null

test: ## run all tests, and print a line with counts at the end
	@$(MAKE) --no-print-directory -j3 deps build download
	@$(MAKE) --no-print-directory packages-tools
	bin/lab build-kube
	go run ./test/run -beside 'FUZZ=internal FUZZTIME=20000x $(MAKE) --no-print-directory alerts fuzz' ./...

unit: ## run the tests that need neither root nor the lab; SHORT=-short leaves out what takes long
	go test $(SHORT) ./api/... ./cmd/... ./internal/... ./controller/... ./speaker/... ./test/policy/...

policy: ## check the rules of the repository
	go test ./test/policy/...

e2e: deps build packages-tools ## run only the end-to-end tests
	go test -count=1 -v ./test/e2e/...

model: ## run the model checker over every order of events of three speakers; takes a few minutes
	GANTRY_MODEL_RUNS=0 go test -count=1 -timeout=60m -run TestAllModelRunsKeepOneAnswererPerEpoch -v ./speaker/elect

test-race: deps ## run with the race detector all tests that it can watch: all but those whose programs are other processes
	CGO_ENABLED=1 go test -race -count=1 -timeout=2h ./api/... ./cmd/... ./controller/... ./internal/... ./speaker/... ./test/flood/... ./test/kernel/... ./test/run/...

test-kernel: ## run the tests that need the kernel of a cluster, in a virtual machine with Debian's; PARTS=REGEXP chooses parts of them
	@sh test/deps.sh kernel
	go run ./test/kernel -parts='$(PARTS)'

fuzz: ## run every fuzz target, or those in the directories FUZZ, for FUZZTIME: 30s, or a count such as 20000x on a busy machine
	@grep -rho --include='*_test.go' '^func Fuzz[A-Za-z0-9]*' -H $${FUZZ:-api internal controller speaker test} | sed 's/_test.go:func /_test.go /' | \
	while read file target; do \
		echo "$$target in $$(dirname $$file)"; \
		go test -run='^$$' -fuzz="^$$target$$" -fuzztime=$${FUZZTIME:-30s} ./$$(dirname $$file) || exit 1; \
	done

lint: ## run go vet and staticcheck, find functions that nothing calls, and check the modules that are linked
	go vet ./...
	go vet -tags deathwrites ./test/e2e
	go vet -tags alertseries ./test/e2e
	$(TOOL) staticcheck ./...
	tools/deadcode.sh
	tools/supply.sh

check: ## check format, lint and generated files, and run the tests that need neither root nor the lab
	@test -z "$$(gofmt -l api cmd controller internal speaker test tools)" || { gofmt -l api cmd controller internal speaker test tools; echo 'format these files with gofmt'; exit 1; }
	@$(MAKE) --no-print-directory -j2 lint current unit SHORT=-short

alerts: ## run the tests of alerts and dashboards by the engine of Prometheus; the first run compiles it
	go test -C tools/alerts ./...

current: ## fail if generated files were not current; they are afterwards
	@tools/generate.sh check

generate: ## generate the deepcopy functions, the CRDs and the reference pages
	@tools/generate.sh

verify: generate ## fail if generated files differ from the committed ones
	git diff --exit-code -- api config docs

manifests: packages-tools ## write dist/gantry.yaml, the installation in one file, and dist/gantry-OVERLAY.yaml
	mkdir -p dist
	for o in $(OVERLAYS); do bin/kustomize build config/$$o > dist/gantry-$$o.yaml || exit 1; done
	mv dist/gantry-default.yaml dist/gantry.yaml

chart: packages-tools ## write dist/gantry-VERSION.tgz, the Helm chart
	bin/helm package charts/gantry --destination dist

demo: deps build ## show a cluster, a Service, a client and the failure of a node; KEEP=1 keeps the cluster
	go run ./test/demo

bench: deps build ## measure the figures of docs/figures.md, with this machine's own baseline
	go run ./test/bench

bursts: deps build ## create 10,000 Services ten times, each time with the loss of the leader at another moment; takes half an hour
	GANTRY_BURSTS=long go test -count=1 -timeout=30m -v -run TestAllServicesAreServedAfterLeaderLossInBurst ./controller/assign
	GANTRY_BURSTS=long go test -count=1 -timeout=2h -v -run TestBurstSurvivesLeaderLoss ./test/e2e

deaths: deps build ## count the writes when a router and a node die, with 1,000 Services on ten nodes; takes fifteen minutes
	go test -tags deathwrites -count=1 -timeout=40m -v -run 'TestDeathOfA(Router|Node)CostsFewWrites' ./test/e2e

cuts: deps build ## measure how soon the condition of a Service says that its only node is cut off; takes four minutes
	go test -tags deathwrites -count=1 -timeout=20m -v -run TestConditionSaysThatANodeIsCutOff ./test/e2e

alert-series: deps build ## record the metrics of both programs during faults in the lab, for the tests of alerts and dashboards
	go test -tags alertseries -count=1 -timeout=40m -v -run TestRecordMetricsForAlerts ./test/e2e

histories: ## run 200,000 random histories of two controllers at the same time, or HISTORIES of them; takes ten minutes
	go test -count=1 -timeout=10h -v -run TestTwoControllersNeverGiveOneAddressTwice ./controller/assign -rapid.checks=$(or $(HISTORIES),200000)

soak: deps build ## keep every core busy for ten minutes of BFD at 3 x 50 ms, and for ten of a cluster in which no node may seem dead; SOAK=1m makes it one minute each
	SOAK=$(or $(SOAK),10m) go test -count=1 -timeout=2h -v -run TestSessionsWithFRRStayUpUnderCPULoad ./speaker/bfd/udp
	SOAK=$(or $(SOAK),10m) go test -count=1 -timeout=2h -v -run TestNoFalseTakeoverUnderCPULoad ./test/e2e

image: packages-tools ## write dist/image.tar with the name IMAGE, for docker load, podman load or kind load; needs no container engine
	CGO_ENABLED=0 GOOS=linux go build -trimpath -ldflags='-s -w' -o dist/image/ ./controller ./speaker
	bin/image -bin dist/image -o dist/image.tar -tag $(IMAGE) -arch $$(go env GOARCH) -revision "$$(git rev-parse HEAD 2>/dev/null)"

plugin: ## write dist/kubectl-gantry-OS-ARCH.tar.gz for Linux, macOS and Windows, and the krew manifest dist/krew/gantry.yaml
	@for target in $(PLUGIN_TARGETS); do \
		os=$${target%/*}; arch=$${target#*/}; dir=dist/krew/$$os-$$arch; name=kubectl-gantry; [ $$os != windows ] || name=kubectl-gantry.exe; \
		mkdir -p $$dir && cp LICENSE $$dir && GOOS=$$os GOARCH=$$arch go build -trimpath -ldflags='-s -w' -o $$dir/$$name ./cmd/kubectl-gantry && \
		tar -C $$dir -czf dist/kubectl-gantry-$$os-$$arch.tar.gz LICENSE $$name || exit 1; \
	done
	@sh tools/krew.sh dist $(PLUGIN_VERSION) $(PLUGIN_TARGETS) > dist/krew/gantry.yaml

clean: ## remove the directories bin and dist
	rm -rf bin dist
