package udp_test

import (
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/test/lab/router"
)

// soakChildEnvVariable is set in the environment of the soak process.
const soakChildEnvVariable = "SOAK_SESSION"

// TestSessionsWithFRRStayUpUnderCPULoad keeps every core busy with other processes and checks that
// sessions of 3 x 50 ms with FRR stay Up. SOAK is the duration; `make soak` runs ten
// minutes. The sessions run in a process of their own with the scheduling weight of a Pod
// with a CPU request, against busy processes with the default weight.
func TestSessionsWithFRRStayUpUnderCPULoad(t *testing.T) {
	if os.Getenv(soakChildEnvVariable) != "" {
		soakSessionsUnderCPULoad(t)
		return
	}
	self := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	self.Env = append(os.Environ(), soakChildEnvVariable+"=1")
	self.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	out, err := self.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

func soakSessionsUnderCPULoad(t *testing.T) {
	last, strict := 5*time.Second, false
	if s := os.Getenv("SOAK"); s != "" {
		var err error
		if last, err = time.ParseDuration(s); err != nil {
			t.Fatalf("SOAK says how long to soak, like 10m: %v", err)
		}
		strict = true
	}
	// A kernel without autogroups keeps the default weight.
	if err := os.WriteFile("/proc/self/autogroup", []byte("-20"), 0); err != nil {
		t.Logf("the session's weight stays: %v", err)
	}
	b := startBFDEngineInLab(t)
	r := b.startRouter(router.FRR, "router", frrSingleHopConfig)
	b.engine.SetSessions(sessionConfigsToRouter(fastProfile()))
	b.awaitNoError("both are up", func() error { return b.checkAllUp(2) })
	keepCoresBusy(t)
	late := trackMaxWakeupDelay(t)
	before := b.engine.SessionStatuses()
	timer := time.NewTimer(last)
	defer timer.Stop()
	<-timer.C
	downs := uint64(0)
	for i, s := range b.engine.SessionStatuses() {
		t.Logf("%s: %d packets in, %d out, down %d times in %s", s.SessionKey, s.ControlReceived-before[i].ControlReceived, s.ControlSent-before[i].ControlSent, s.DownEvents-before[i].DownEvents, last)
		downs += s.DownEvents - before[i].DownEvents
	}
	worst := time.Duration(late.Load())
	t.Logf("a thread that only sleeps woke %s late at the worst", worst)
	// A machine that delays every process proves nothing about
	// the engine, unless SOAK asks for the result.
	if downs > 0 && (strict || worst < 25*time.Millisecond) {
		t.Errorf("%d false downs; the last events: %v", downs, b.takeQueuedEvents())
	}
	b.waitForFRRSession("the session is up", r, nodeIPv4, func(p frrSession) bool { return p.Status == "up" })
}

// keepCoresBusy starts a busy process for each core, in its own session, until the test ends.
func keepCoresBusy(t *testing.T) {
	for range runtime.NumCPU() {
		busy := exec.Command("/bin/sh", "-c", "while :; do :; done")
		busy.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
		if err := startProcessOnLockedThread(t, busy); err != nil {
			t.Fatal(err)
		}
	}
}

// startProcessOnLockedThread starts a process from a thread that lives until the
// test ends, since the process dies with the thread.
func startProcessOnLockedThread(t *testing.T, c *exec.Cmd) error {
	started, end := make(chan error), make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		err := c.Start()
		if started <- err; err != nil {
			return
		}
		<-end
		_ = c.Process.Kill()
		_ = c.Wait() // its error is that it was killed
	}()
	err := <-started
	t.Cleanup(func() {
		close(end)
		<-ended
	})
	return err
}

// trackMaxWakeupDelay returns the longest delay, in
// nanoseconds, with which a sleeping thread was woken.
func trackMaxWakeupDelay(t *testing.T) *atomic.Int64 {
	worst, ended := &atomic.Int64{}, make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		const nap = 10 * time.Millisecond
		for {
			select {
			case <-ended:
				return
			default:
			}
			begun, spec := time.Now(), unix.NsecToTimespec(int64(nap))
			_ = unix.Nanosleep(&spec, nil) // a signal only shortens it
			if late := int64(time.Since(begun) - nap); late > worst.Load() {
				worst.Store(late)
			}
		}
	}()
	t.Cleanup(func() {
		close(ended)
		<-done
	})
	return worst
}
