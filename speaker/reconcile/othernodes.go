package reconcile

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/speaker/status"
)

const (
	// lastSeenInterval is how often a speaker renews its lastSeen.
	lastSeenInterval = time.Minute
	// staleSpeakerTimeout is how old lastSeen may be of a speaker that lives.
	staleSpeakerTimeout = lastSeenInterval*2 + 30*time.Second
	// vanishedSpeakerCheckDelay is how long a speaker that vanished from the gossip may take to be
	// reported as dead. After that, a speaker that still says that it runs is unreachable.
	vanishedSpeakerCheckDelay = 5 * time.Second
	// earlyOwnStatusCheckDelay and ownStatusMarkedDeadCheckDelay are how long after the loss of a
	// member a speaker checks whether another one has written that this one is dead. That happens
	// when gossip between the two is blocked. The first check comes before the controller believes
	// what the other one wrote, and the second one finds what was written late.
	earlyOwnStatusCheckDelay      = 300 * time.Millisecond
	ownStatusMarkedDeadCheckDelay = time.Second
	// minOwnStatusCheckInterval is how often a speaker that has lost no member checks the same:
	// another one may have lost it all the same. In a large cluster it checks less often: all
	// speakers together read one SpeakerStatus in each minOverallOwnStatusCheckInterval.
	minOwnStatusCheckInterval        = 10 * time.Second
	minOverallOwnStatusCheckInterval = 100 * time.Millisecond
	// missingNodeRecheckInterval is the time between two checks of a node that stays missing, after
	// the first earlyMissingNodeCheckCount. Earlier checks follow each other sooner: a speaker that
	// another one has reported as dead may need some seconds until it corrects that.
	missingNodeRecheckInterval = 30 * time.Second
	earlyMissingNodeCheckCount = 5
	// deadSpeakerFieldOwner is the field owner of what a living speaker writes about a dead one. It
	// differs from that of the speaker itself, so that neither removes the fields of the other.
	deadSpeakerFieldOwner = names.SpeakerEventSource + "-witness"
)

// missingNode is a node whose speaker is not, or no longer, a member of the gossip.
type missingNode struct {
	missingSince  time.Time
	checkAt       time.Time
	checkCount    int
	isUnreachable bool
	// isDeadMarkPending means that the speaker vanished from the gossip, and that this speaker has
	// not written so, and does not know that another one has.
	isDeadMarkPending bool
	// areStatusesCorrected means that this speaker has corrected what the speaker of the node wrote
	// last.
	areStatusesCorrected bool
	hasOtherGossipKey    bool // and is unreachable for that reason
}

// missingNodes has the nodes whose speakers are missing. The zero value has none.
type missingNodes struct {
	lastObservedMembers []string // as last observed, sorted
	missingNodeByName   map[string]missingNode
}

// observeMembersAndMarkDead takes the live members. It reports whether one of the last members has
// vanished.
func (w *StatusWriter) observeMembersAndMarkDead(ctx context.Context, members []string) (isOneGone bool) {
	isOneGone = slices.ContainsFunc(w.missingNodes.lastObservedMembers, func(name string) bool { return !slices.Contains(members, name) })
	now := w.options.Now()
	w.markDeadSpeakers(ctx, w.missingNodes.updateAndListNodesToMarkDead(members, w.options.Self, now))
	if isOneGone { // it may be the one that had to write about others
		w.markDeadSpeakersLeftUnmarked(ctx, now)
	}
	w.reportBlockedGossip(ctx)
	return isOneGone
}

// forgetWrittenStatusIfMarkedDead makes the speaker write its status again if another speaker has
// written that this one is dead.
func (w *StatusWriter) forgetWrittenStatusIfMarkedDead(ctx context.Context) {
	var s v1alpha1.SpeakerStatus
	err := w.options.UncachedReader.Get(ctx, client.ObjectKey{Namespace: w.options.Namespace, Name: w.options.Self}, &s)
	if err == nil && s.Status.WasFoundDead() {
		w.speakerStatusWrittenAt = time.Time{}
	}
}

// checkOwnStatusIfDue checks from time to time whether another speaker has written that this one is
// dead.
func (w *StatusWriter) checkOwnStatusIfDue(ctx context.Context, now time.Time) {
	if now.Sub(w.ownStatusCheckedAt) >= ownStatusCheckInterval(len(w.missingNodes.lastObservedMembers)) {
		w.ownStatusCheckedAt = now
		w.forgetWrittenStatusIfMarkedDead(ctx)
	}
}

// ownStatusCheckInterval returns how often each speaker of a cluster checks its own SpeakerStatus.
func ownStatusCheckInterval(memberCount int) time.Duration {
	return max(minOwnStatusCheckInterval, time.Duration(memberCount)*minOverallOwnStatusCheckInterval)
}

// updateAndListNodesToMarkDead takes the live members. It returns the nodes that have just vanished
// and about which this node has to write: those that come before it in the circle of names.
func (m *missingNodes) updateAndListNodesToMarkDead(members []string, self string, now time.Time) (toMarkDead []string) {
	for _, name := range members {
		delete(m.missingNodeByName, name)
	}
	for _, name := range m.lastObservedMembers {
		if name == self || slices.Contains(members, name) {
			continue
		}
		m.addMissingNode(name, now)
		m.setDeadMarkPending(name, true)
		if nextNameInSortedRing(members, name) == self {
			toMarkDead = append(toMarkDead, name)
		}
	}
	m.lastObservedMembers = members
	return toMarkDead
}

// observeNodes adds the nodes whose speakers were never seen.
func (m *missingNodes) observeNodes(nodes []string, now time.Time) {
	for _, name := range nodes {
		if _, known := m.missingNodeByName[name]; !known && !slices.Contains(m.lastObservedMembers, name) {
			m.addMissingNode(name, now)
		}
	}
}

// addMissingNode adds a node, and schedules its first check.
func (m *missingNodes) addMissingNode(name string, now time.Time) {
	if m.missingNodeByName == nil {
		m.missingNodeByName = map[string]missingNode{}
	}
	m.missingNodeByName[name] = missingNode{missingSince: now, checkAt: now.Add(vanishedSpeakerCheckDelay)}
}

// setDeadMarkPending sets whether somebody still has to write that the speaker of a missing node is
// dead.
func (m *missingNodes) setDeadMarkPending(name string, isPending bool) {
	n := m.missingNodeByName[name]
	n.isDeadMarkPending = isPending
	m.missingNodeByName[name] = n
}

// deadMarksLeftToWrite returns the nodes that vanished before now, and about which this node has to
// write: the first write failed, or the node that had to write is gone, too.
func (m *missingNodes) deadMarksLeftToWrite(self string, now time.Time) []string {
	var out []string
	for name, n := range m.missingNodeByName {
		if n.isDeadMarkPending && n.missingSince.Before(now) && nextNameInSortedRing(m.lastObservedMembers, name) == self {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// doesMajorityLive reports whether most of the known speakers live. If not, this node may be the
// one that is cut off.
func (m *missingNodes) doesMajorityLive() bool {
	return len(m.lastObservedMembers) > len(m.missingNodeByName)
}

// runningUnreachableNames returns the nodes whose speakers run and cannot be reached, sorted.
func (m *missingNodes) runningUnreachableNames() []string {
	return m.selectNames(func(n missingNode) bool { return n.isUnreachable })
}

// namesWithOtherGossipKey returns those of the unreachable nodes that use another gossip key,
// sorted.
func (m *missingNodes) namesWithOtherGossipKey() []string {
	return m.selectNames(func(n missingNode) bool { return n.isUnreachable && n.hasOtherGossipKey })
}

// selectNames returns the names of the nodes for which isSelected is true, sorted.
func (m *missingNodes) selectNames(isSelected func(missingNode) bool) []string {
	var out []string
	for name, n := range m.missingNodeByName {
		if isSelected(n) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// nextNameInSortedRing returns the name that follows the given one in the sorted names, which form
// a circle.
func nextNameInSortedRing(sorted []string, name string) string {
	if len(sorted) == 0 {
		return ""
	}
	i, _ := slices.BinarySearch(sorted, name)
	return sorted[i%len(sorted)]
}

// nodesWithSpeakerPod returns the other nodes with a ready Pod of a speaker.
func (w *StatusWriter) nodesWithSpeakerPod(ctx context.Context) []string {
	var pods corev1.PodList
	match := client.MatchingLabels{names.LabelAppName: names.AppName, names.LabelComponent: names.ComponentSpeaker}
	if err := w.options.Client.List(ctx, &pods, client.InNamespace(w.options.Namespace), match, client.UnsafeDisableDeepCopy); err != nil {
		return nil
	}
	var out []string
	for i := range pods.Items {
		p := &pods.Items[i]
		isReady := func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue }
		if p.Spec.NodeName != "" && p.Spec.NodeName != w.options.Self && slices.ContainsFunc(p.Status.Conditions, isReady) {
			out = append(out, p.Spec.NodeName)
		}
	}
	return out
}

// markDeadSpeakers writes about speakers that have just vanished from the gossip. A mark that fails
// stays pending.
func (w *StatusWriter) markDeadSpeakers(ctx context.Context, nodes []string) {
	for _, node := range nodes {
		w.finishDeadMark(ctx, node, w.markDeadSpeaker(ctx, node))
	}
}

// retryPendingDeadMarks writes the marks that failed. A node that was cut off from most others
// leaves them to correctStatusesOfDeadNodes: the others live, and the gossip may find them again
// only after the API server answers.
func (w *StatusWriter) retryPendingDeadMarks(ctx context.Context) {
	if w.missingNodes.doesMajorityLive() {
		w.markDeadSpeakersLeftUnmarked(ctx, w.options.Now())
	}
}

// markDeadSpeakersLeftUnmarked writes about the speakers that vanished before now, and about which
// nobody has written.
func (w *StatusWriter) markDeadSpeakersLeftUnmarked(ctx context.Context, now time.Time) {
	for _, node := range w.missingNodes.deadMarksLeftToWrite(w.options.Self, now) {
		since := w.missingNodes.missingNodeByName[node].missingSince
		w.finishDeadMark(ctx, node, w.markDeadSpeakerSilentSince(ctx, node, since))
	}
}

// finishDeadMark ends the pending mark of a node unless the write failed.
func (w *StatusWriter) finishDeadMark(ctx context.Context, node string, err error) {
	if err == nil {
		w.missingNodes.setDeadMarkPending(node, false)
	} else if ctx.Err() == nil {
		w.options.Log.Warn("writing that a speaker is gone; trying again", "node", node, "error", err)
	}
}

// markDeadSpeakerSilentSince writes that the speaker of a node is dead, unless somebody has written
// so, or the speaker itself has written something after since.
func (w *StatusWriter) markDeadSpeakerSilentSince(ctx context.Context, node string, since time.Time) error {
	var s v1alpha1.SpeakerStatus
	if err := w.options.UncachedReader.Get(ctx, client.ObjectKey{Namespace: w.options.Namespace, Name: node}, &s); err != nil {
		return client.IgnoreNotFound(err)
	}
	if s.Status.WasFoundDead() || s.Status.LastSeen != nil && s.Status.LastSeen.After(since) {
		return nil
	}
	return w.markDeadSpeaker(ctx, node)
}

// markDeadSpeaker writes that the speaker of a node is dead. It is no error if the node has no
// SpeakerStatus.
func (w *StatusWriter) markDeadSpeaker(ctx context.Context, node string) error {
	s := status.DeadSpeakerStatus(node, w.options.Self, w.options.Now())
	return client.IgnoreNotFound(w.applyStatusOfDeadSpeaker(ctx, node, s))
}

func (w *StatusWriter) applyStatusOfDeadSpeaker(ctx context.Context, node string, s v1alpha1.SpeakerStatusStatus) error {
	o := &v1alpha1.SpeakerStatus{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "SpeakerStatus"},
		ObjectMeta: metav1.ObjectMeta{Namespace: w.options.Namespace, Name: node},
		Status:     s,
	}
	return applyStatus(ctx, w.options.Client, o, deadSpeakerFieldOwner)
}

// checkMissingNodes finds out which missing speakers run all the same: gossip with them is blocked.
// It reports whether the result changed.
func (w *StatusWriter) checkMissingNodes(ctx context.Context) (changed bool) {
	now := w.options.Now()
	for name, n := range w.missingNodes.missingNodeByName {
		if now.Before(n.checkAt) {
			continue
		}
		before := n
		n.isUnreachable, n.checkAt = w.doesSpeakerSayThatItRuns(ctx, name), now.Add(missingNodeRecheckInterval)
		if n.checkCount++; n.checkCount < earlyMissingNodeCheckCount {
			n.checkAt = now.Add(vanishedSpeakerCheckDelay)
		}
		n.hasOtherGossipKey = n.isUnreachable && w.hasOtherGossipKey(ctx, name)
		w.missingNodes.missingNodeByName[name] = n
		if before.isUnreachable != n.isUnreachable || before.hasOtherGossipKey != n.hasOtherGossipKey {
			changed = true
		}
	}
	w.reportBlockedGossip(ctx)
	return changed
}

// doesSpeakerSayThatItRuns reads the SpeakerStatus of another node.
func (w *StatusWriter) doesSpeakerSayThatItRuns(ctx context.Context, node string) bool {
	var s v1alpha1.SpeakerStatus
	if err := w.options.UncachedReader.Get(ctx, client.ObjectKey{Namespace: w.options.Namespace, Name: node}, &s); err != nil {
		return false
	}
	isFresh := s.Status.LastSeen != nil && w.options.Now().Sub(s.Status.LastSeen.Time) < staleSpeakerTimeout
	return isFresh && meta.IsStatusConditionTrue(s.Status.Conditions, names.ConditionSpeakerReady)
}
