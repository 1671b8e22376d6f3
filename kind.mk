# A cluster in Docker with Istio and the operator in it, for people who have Docker, kind, kubectl and helm.
# Everything goes into the kind cluster "canaryrollout"; your own kubeconfig gains the context "kind-canaryrollout".

KIND_CLUSTER := canaryrollout
KIND_CONTEXT := kind-$(KIND_CLUSTER)
KIND_KUBECTL := kubectl --context $(KIND_CONTEXT)
KIND_TAG := dev

.PHONY: kind-up kind-down kind-tools

kind-tools:
	@missing=""; for tool in docker kind kubectl helm istioctl; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	if [ -n "$$missing" ]; then echo "missing on your PATH:$$missing"; \
	echo "kind-up needs docker, kind, kubectl and helm, and istioctl to install Istio; without Docker, try make demo"; exit 1; fi
	@docker info >/dev/null 2>&1 || { echo "the Docker daemon does not answer; start it and try again"; exit 1; }

kind-up: kind-tools  ## a kind cluster with Istio, Prometheus, the operator and the sample service
	@kind get clusters 2>/dev/null | grep -qx $(KIND_CLUSTER) || kind create cluster --config kind-config.yaml --wait 120s
	docker build -t canaryrollout:$(KIND_TAG) .
	docker build -t sample-service:$(KIND_TAG) examples/sample-service
	kind load docker-image --name $(KIND_CLUSTER) canaryrollout:$(KIND_TAG) sample-service:$(KIND_TAG)
	istioctl --context $(KIND_CONTEXT) install -y --set profile=default \
	  --set values.gateways.istio-ingressgateway.type=NodePort
	$(KIND_KUBECTL) -n istio-system patch service istio-ingressgateway --type strategic \
	  --patch '{"spec": {"ports": [{"name": "http2", "port": 80, "nodePort": 30080}]}}'
	$(KIND_KUBECTL) apply -f examples/prometheus/prometheus.yaml
	helm --kube-context $(KIND_CONTEXT) upgrade --install canaryrollout deploy/helm/canaryrollout \
	  --namespace canaryrollout --create-namespace --wait --timeout 3m \
	  --set image.repository=canaryrollout --set image.tag=$(KIND_TAG)
	@echo; echo "Ready. Next, as in examples/reviews/README.md (the gateway is http://127.0.0.1:8080, host reviews.example):"
	@echo "  kubectl config use-context $(KIND_CONTEXT)"
	@echo "  kubectl apply -f examples/reviews/mesh.yaml -f examples/reviews/v1.yaml -f examples/reviews/v2.yaml"
	@echo "  kubectl apply -f examples/reviews/rollout.yaml"
	@echo "  kubectl -n shop get canaryrollouts --watch"

kind-down:  ## delete that cluster
	kind delete cluster --name $(KIND_CLUSTER)
