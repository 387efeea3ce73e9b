package continuity

import (
	"sync/atomic"
	"time"

	"github.com/gantry-lb/gantry/api/names"
)

// feature is one of the two things that an Engine does. A fault of one leaves the other alone.
type feature struct {
	// activity is what the feature does, for the log.
	activity string
	isOn     bool
	fault    atomic.Pointer[names.Explanation]
	// checkedAt is when the kernel was asked last.
	checkedAt time.Time
	// retryAt is when to write again after an error; zero if the last write succeeded.
	retryAt time.Time
}

// Fault says why the feature does nothing; it is zero if nothing is wrong.
func (f *feature) Fault() names.Explanation {
	if s := f.fault.Load(); s != nil {
		return *s
	}
	return names.Explanation{}
}

// nextCheck is when the kernel should be asked again; zero if never. A refused write is tried
// again instead.
func (f *feature) nextCheck() time.Time {
	if !f.isOn || !f.Fault().IsSet() || !f.retryAt.IsZero() {
		return time.Time{}
	}
	return f.checkedAt.Add(proxyCheckInterval)
}

// mayWrite reports whether a write is of use: nothing is wrong, or only the last write failed.
func (f *feature) mayWrite() bool { return !f.Fault().IsSet() || !f.retryAt.IsZero() }

// SteeringFault says why new connections are not steered around dead nodes; it is zero if nothing
// is wrong.
func (e *Engine) SteeringFault() names.Explanation { return e.steeringFeature.Fault() }

// ForwardingFault says why packets of open connections are not forwarded; it is zero if nothing is
// wrong.
func (e *Engine) ForwardingFault() names.Explanation { return e.forwardingFeature.Fault() }

// checkIfDue asks the kernel again where something is wrong.
func (e *Engine) checkIfDue(now time.Time) {
	if at := e.steeringFeature.nextCheck(); !at.IsZero() && !now.Before(at) {
		e.checkSteering()
	}
	if at := e.forwardingFeature.nextCheck(); !at.IsZero() && !now.Before(at) {
		e.checkForwarding()
	}
}

// checkSteering finds out whether rules that steer could be written and would be of use.
func (e *Engine) checkSteering() {
	e.checkFeature(&e.steeringFeature, e.options.PacketRules.CheckKernel, "the kernel module nf_tables")
}

// checkForwarding finds out whether rules that forward could be written and would be of use.
func (e *Engine) checkForwarding() {
	e.checkFeature(&e.forwardingFeature, e.options.PacketRules.CheckKernelForwards, "the kernel modules nf_tables, nft_dup_ipv4 and nft_dup_ipv6")
}

// checkFeature asks the kernel for the rules of a feature, and for those of kube-proxy.
func (e *Engine) checkFeature(f *feature, checkKernel func() error, neededModules string) {
	if !f.isOn {
		return
	}
	f.checkedAt = e.options.Now()
	if err := checkKernel(); err != nil {
		e.setFault(f, names.NewExplanation(names.ReasonPacketRulesRefused, "%v: give the speaker the capability NET_ADMIN, and the node %s", err, neededModules))
		return
	}
	found, err := e.options.PacketRules.HasServiceProxyRules()
	switch {
	case err != nil:
		e.setFault(f, names.NewExplanation(names.ReasonPacketRulesRefused, "%v", err))
	case !found:
		e.setFault(f, names.NewExplanation(names.ReasonNoServiceProxy,
			"kube-proxy has no rules on this node: another program forwards packets to Pods, and Gantry cannot steer these"))
	default:
		e.setFault(f, names.Explanation{})
	}
}

// setWriteFault stores that the kernel refused rules, and when to write again.
func (e *Engine) setWriteFault(f *feature, err error, now time.Time) {
	f.retryAt = now.Add(writeRetryDelay)
	e.metrics.failedWriteCount.Add(1)
	e.setFault(f, names.NewExplanation(names.ReasonPacketRulesRefused, "%v", err))
}

// setFault stores why a feature does nothing, and logs it when it changes.
func (e *Engine) setFault(f *feature, fault names.Explanation) {
	if before := f.Fault(); before == fault {
		return
	}
	f.fault.Store(&fault)
	if fault.IsSet() {
		e.options.Log.Warn("the node cannot "+f.activity, "reason", fault.Reason, "error", fault.Text)
	} else {
		e.options.Log.Info("the node can " + f.activity + " again")
	}
}
