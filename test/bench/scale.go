package main

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/assign"
	server "github.com/gantry-lb/gantry/controller/assign/apitest"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/view"
)

// The size of the cluster in which the controller starts.
const (
	scaleServiceCount = 100000
	scalePoolCount    = 1000
	// assignAllChildProcessArg and controllerStartChildProcessArg start this program again, so that
	// the memory of one controller is measured: the first assigns addresses to all Services and
	// writes them to a file, the second starts with that file.
	assignAllChildProcessArg, controllerStartChildProcessArg = "scale-fill", "scale-start"
)

// childProcessMainByArg are the functions of the child processes, by argument.
var childProcessMainByArg = map[string]func(ctx context.Context, file string) error{assignAllChildProcessArg: measureAssigningAllServices, controllerStartChildProcessArg: measureControllerStartWithServices}

// measureControllerWithManyServices starts the real worker with 100,000 Services and 1,000 pools,
// on an API in memory.
func measureControllerWithManyServices(ctx context.Context, dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, arg := range []string{assignAllChildProcessArg, controllerStartChildProcessArg} {
		cmd := exec.CommandContext(ctx, self, arg, dir)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.Env = append(os.Environ(), "GOGC=50") // the controller's own setting
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", arg, err)
		}
	}
	return nil
}

// copyingAPI is an API whose list returns new objects, as a list from a real API server does, with
// the fields that caches drop.
type copyingAPI struct{ *server.Client }

// ForEachLiveService implements assign.API.
func (c copyingAPI) ForEachLiveService(ctx context.Context, visit func(*corev1.Service)) error {
	return c.Client.ForEachLiveService(ctx, func(s *corev1.Service) { visit(copyWithManagedFields(s)) })
}

func copyWithManagedFields(s *corev1.Service) *corev1.Service {
	o := s.DeepCopy()
	o.ManagedFields = []metav1.ManagedFieldsEntry{{FieldsV1: metav1.NewFieldsV1(string(make([]byte, 2048)))}}
	return o
}

// compactService returns a Service as the controller's cache stores it.
func compactService(s *corev1.Service) *corev1.Service {
	o, _ := assign.CompactService(s)
	return o.(*corev1.Service)
}

// runningServiceWorker is a controller's worker that is running.
type runningServiceWorker struct {
	*assign.ServiceWorker
	stop        context.CancelFunc
	endedSignal chan struct{}
}

func startServiceWorker(ctx context.Context, s *server.Server) *runningServiceWorker {
	client := server.NewClient(s, nil)
	reader := configurationreader.NewReader(configurationreader.Options{ReadObjects: client.ReadCachedPoolsAndReservations, Log: slog.New(slog.DiscardHandler)})
	w := &runningServiceWorker{endedSignal: make(chan struct{}), ServiceWorker: assign.NewServiceWorker(assign.ServiceWorkerOptions{
		API: copyingAPI{client}, ConfigurationReader: reader, Now: time.Now, Log: slog.New(slog.DiscardHandler), RecordEvent: func(*corev1.Service, string, string, string) {}, Namespace: names.DefaultNamespace,
	})}
	ctx, w.stop = context.WithCancel(ctx)
	go func() { _ = reader.Start(ctx) }()
	go client.RunCacheUpdates(ctx, w)
	go func() {
		defer close(w.endedSignal)
		_ = w.Run(ctx)
	}()
	return w
}

// waitUntilTrueAndMeasure waits until done returns true, and returns how long that took.
func waitUntilTrueAndMeasure(ctx context.Context, what string, done func() bool) (time.Duration, error) {
	for begun := time.Now(); ; {
		if done() {
			return time.Since(begun), nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// newInMemoryAPIServerWithPools returns a Server with all pools.
func newInMemoryAPIServerWithPools() *server.Server {
	s := server.NewServer(nil)
	for i := range scalePoolCount {
		s.SetPool(fmt.Sprintf("pool-%04d", i), v1beta1.IPAddressPoolSpec{Addresses: []string{fmt.Sprintf("10.%d.%d.0/24", i/256, i%256)}})
	}
	return s
}

// measureAssigningAllServices measures how long the addresses for 100,000 existing Services take,
// and writes the Services to the file.
func measureAssigningAllServices(ctx context.Context, file string) error {
	s := newInMemoryAPIServerWithPools()
	for i := range scaleServiceCount {
		s.CreateService(compactService(newTypicalService(i)))
	}
	w := startServiceWorker(ctx, s)
	given, err := waitUntilTrueAndMeasure(ctx, "all addresses", func() bool { return s.CountWriteRequestsOfKind("service") >= scaleServiceCount })
	if err != nil {
		return err
	}
	w.stop()
	<-w.endedSignal
	fmt.Printf("%-64s %.1f s, %d writes of the AddressLedger\n", fmt.Sprintf("%d Services and %d pools in memory: an address for each", scaleServiceCount, scalePoolCount), given.Seconds(), s.CountWriteRequestsOfKind("ledger"))
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	out := gob.NewEncoder(f)
	for _, o := range s.AllServices() {
		b, err := o.Marshal()
		if err != nil {
			return fmt.Errorf("writing a Service: %w", err)
		}
		if err := out.Encode(b); err != nil {
			return fmt.Errorf("writing a Service: %w", err)
		}
	}
	return f.Close()
}

// loadInMemoryAPIServerFromFile returns a Server with the Services of the file, as the controller's
// cache stores them.
func loadInMemoryAPIServerFromFile(file string) (*server.Server, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := newInMemoryAPIServerWithPools()
	for in := gob.NewDecoder(f); ; {
		var b []byte
		err := in.Decode(&b)
		if errors.Is(err, io.EOF) {
			s.DropServiceChangesBeforeFirstClient()
			return s, nil
		}
		var o corev1.Service
		if err := errors.Join(err, o.Unmarshal(b)); err != nil {
			return nil, fmt.Errorf("reading a Service: %w", err)
		}
		s.CreateService(compactService(&o))
	}
}

// createEmptyLedgerMarkedComplete creates the AddressLedger as the controller before left it:
// without an open assignment. Without it, the next controller would write each Service once.
func createEmptyLedgerMarkedComplete(ctx context.Context, s *server.Server) error {
	client := server.NewClient(s, nil)
	l, err := client.ReadOrCreateLedger(ctx, names.PendingAssignmentsLedger)
	if err != nil {
		return fmt.Errorf("creating the AddressLedger: %w", err)
	}
	l.Spec.Incomplete = false
	if _, err := client.CompareAndSwapLedger(ctx, l); err != nil {
		return fmt.Errorf("writing the AddressLedger: %w", err)
	}
	return nil
}

// measureControllerStartWithServices measures the start of a controller with the Services of the
// file.
func measureControllerStartWithServices(ctx context.Context, file string) error {
	s, err := loadInMemoryAPIServerFromFile(file)
	if err != nil {
		return err
	}
	begun := time.Now()
	for _, o := range s.AllServices() {
		_ = view.FromService(copyWithManagedFields(o))
	}
	reading := time.Since(begun)
	if err := createEmptyLedgerMarkedComplete(ctx, s); err != nil {
		return err
	}
	debug.FreeOSMemory()
	// restarts the measurement of the peak
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		return fmt.Errorf("resetting the peak of memory: %w", err)
	}
	memoryBefore := readOwnProcessStatusKilobytes("VmRSS")
	begun = time.Now()
	w := startServiceWorker(ctx, s)
	if _, err := waitUntilTrueAndMeasure(ctx, "the start", w.IsLedgerLoaded); err != nil {
		return err
	}
	loaded := time.Since(begun)
	more := compactService(newTypicalService(scaleServiceCount))
	s.CreateService(more)
	k := view.ObjectKey{Namespace: more.Namespace, Name: more.Name}
	if _, err := waitUntilTrueAndMeasure(ctx, "an address", func() bool { return len(s.ServiceByKey(k).Status.LoadBalancer.Ingress) > 0 }); err != nil {
		return err
	}
	next := time.Since(begun)
	time.Sleep(5 * time.Second) // the worker checks every Service
	fmt.Printf("%-64s ready after %.2f s, the next address after %.2f s, %d MB at most (VmHWM), %d writes of Services (one is for the new one)\n",
		fmt.Sprintf("start with %d Services and %d pools in memory", scaleServiceCount, scalePoolCount), loaded.Seconds(), next.Seconds(), readOwnProcessStatusKilobytes("VmHWM")>>10, s.CountWriteRequestsOfKind("service"))
	fmt.Printf("%-64s %.2f s, %d MB (VmRSS)\n", "baseline: copying and reading the same Services once; memory of these only", reading.Seconds(), memoryBefore>>10)
	w.stop()
	<-w.endedSignal
	return nil
}

// newTypicalService returns a complete Service, as Helm charts create them.
func newTypicalService(i int) *corev1.Service {
	app := fmt.Sprintf("application-%06d", i)
	policy := corev1.IPFamilyPolicySingleStack
	internal := corev1.ServiceInternalTrafficPolicyCluster
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: fmt.Sprintf("team-%03d", i%500), Name: app,
			Labels: map[string]string{
				"app.kubernetes.io/name": app, "app.kubernetes.io/instance": app, "app.kubernetes.io/managed-by": "Helm", "helm.sh/chart": app + "-1.2.3",
			},
			Annotations: map[string]string{"meta.helm.sh/release-name": app, "meta.helm.sh/release-namespace": fmt.Sprintf("team-%03d", i%500)},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: fmt.Sprintf("10.%d.%d.%d", 96+i>>16, i>>8&255, i&255), IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			IPFamilyPolicy: &policy, InternalTrafficPolicy: &internal, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyCluster,
			Selector:        map[string]string{"app.kubernetes.io/name": app, "app.kubernetes.io/instance": app},
			SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []corev1.ServicePort{
				{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromString("http"), NodePort: 30000},
				{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromString("https"), NodePort: 30001},
			},
		},
	}
	s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
	return s
}

// readOwnProcessStatusKilobytes returns the value of a line of /proc/self/status, in kB.
func readOwnProcessStatusKilobytes(name string) int {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), "\n"+name+":")
	var n int
	if _, err := fmt.Sscan(rest, &n); err != nil {
		return 0
	}
	return n
}
