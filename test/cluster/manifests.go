package cluster

import "fmt"

// FirstPoolAndL2AdvertisementManifest is an IPAddressPool and its L2Advertisement, as manuals show
// them.
const FirstPoolAndL2AdvertisementManifest = `apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata:
  name: first-pool
  namespace: metallb-system
spec:
  addresses:
  # the network at home is 192.168.0.0/24
  - 192.168.0.201-192.168.0.233
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata:
  name: example
  namespace: metallb-system
spec:
  ipAddressPools:
  - first-pool
`

// ExampleServiceAndDeploymentManifest is a Service of type LoadBalancer in a namespace of its
// own, and the Deployment behind it.
const ExampleServiceAndDeploymentManifest = `apiVersion: v1
kind: Namespace
metadata:
  name: tekton-pipelines
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: tekton-dashboard
  namespace: tekton-pipelines
spec:
  replicas: 3
  selector:
    matchLabels: {app: tekton-dashboard}
  template:
    metadata:
      labels: {app: tekton-dashboard}
    spec:
      containers:
      - name: dashboard
        image: dashboard
        ports:
        - containerPort: 9097
---
apiVersion: v1
kind: Service
metadata:
  labels: {app: tekton-dashboard}
  name: tekton-dashboard
  namespace: tekton-pipelines
spec:
  selector: {app: tekton-dashboard}
  ports:
  - name: http
    port: 9097
    protocol: TCP
    targetPort: 9097
  type: LoadBalancer
`

// UDPEchoServiceManifest returns a UDP Service whose only Pod runs on the given node.
func UDPEchoServiceManifest(name, node string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %[1]s
  labels: {app: %[1]s}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 1
  containers:
  - name: echo
    image: echo
    ports:
    - {containerPort: 7000, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata:
  name: %[1]s
spec:
  type: LoadBalancer
  selector: {app: %[1]s}
  ports:
  - {port: 7000, protocol: UDP}
`, name, node)
}

// PodOnEachNodeManifest is a Service of type LoadBalancer with a Pod on each node. Its fields
// ipFamilyPolicy and externalTrafficPolicy may be added at the end.
const PodOnEachNodeManifest = `apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: everywhere
spec:
  selector:
    matchLabels: {app: everywhere}
  template:
    metadata:
      labels: {app: everywhere}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: web
        ports:
        - {name: web, containerPort: 8080}
---
apiVersion: v1
kind: Service
metadata:
  name: everywhere
spec:
  type: LoadBalancer
  allocateLoadBalancerNodePorts: false
  selector: {app: everywhere}
  ports:
  - {name: http, port: 80, targetPort: web}
`
