package node

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sys/unix"
)

// serviceAccountDirInContainer is the directory of the service account in a container.
const serviceAccountDirInContainer = "/var/run/secrets/kubernetes.io/serviceaccount"

// containerProcessSpec describes how to start a container that is not a responder.
type containerProcessSpec struct {
	// Hostname is the host name that the container sees.
	Hostname string
	Path     string
	Args     []string
	Env      []string
	TokenDir string
	Mounts   []volumeMount
	UID, GID int
	// DropsAllOtherCapabilities drops every capability except Capabilities.
	DropsAllOtherCapabilities bool
	KeptCapabilities          []uintptr
	NoNewPrivileges           bool
	// HasDefaultSeccompProfile denies the system calls that container runtimes deny by default.
	HasDefaultSeccompProfile bool
}

// capabilityNumbers are the numbers (linux/capability.h) of the capabilities that manifests of
// network programs use.
var capabilityNumbers = map[corev1.Capability]uintptr{
	"NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE, "NET_ADMIN": unix.CAP_NET_ADMIN, "NET_RAW": unix.CAP_NET_RAW,
}

// buildProcessSpec translates the container's specification in the Pod.
func (r *podContainer) buildProcessSpec() (containerProcessSpec, error) {
	c := &r.pod.agent.config
	if len(r.containerManifest.Command) == 0 {
		return containerProcessSpec{}, fmt.Errorf("container %s: its manifest has no command, and the lab does not read the image's", r.containerManifest.Name)
	}
	known, env, err := r.resolveEnvironment()
	if err != nil {
		return containerProcessSpec{}, fmt.Errorf("container %s: %w", r.containerManifest.Name, err)
	}
	s := containerProcessSpec{
		Args: expandVariablesInAll(append(slices.Clone(r.containerManifest.Command), r.containerManifest.Args...), known),
		Env:  env, TokenDir: filepath.Join(r.pod.volumesAndTokensDir(), "token"),
	}
	if s.Hostname = r.pod.firstObject.Name; r.pod.firstObject.Spec.HostNetwork {
		s.Hostname = c.Name
	}
	s.Path = s.Args[0]
	if r.runsGantryImage() {
		s.Path = filepath.Join(c.GantryBinDir, filepath.Base(s.Path))
	}
	if s.Mounts, err = r.prepareMounts(); err != nil {
		return containerProcessSpec{}, fmt.Errorf("container %s: %w", r.containerManifest.Name, err)
	}
	if err := r.pod.writeAndRenewServiceAccountToken(s.TokenDir); err != nil {
		return containerProcessSpec{}, err
	}
	podContext, containerContext := r.pod.firstObject.Spec.SecurityContext, r.containerManifest.SecurityContext
	if podContext != nil {
		s.setUserAndGroup(podContext.RunAsUser, podContext.RunAsGroup)
		s.HasDefaultSeccompProfile = podContext.SeccompProfile != nil && podContext.SeccompProfile.Type == corev1.SeccompProfileTypeRuntimeDefault
	}
	if containerContext != nil {
		s.setUserAndGroup(containerContext.RunAsUser, containerContext.RunAsGroup)
		s.NoNewPrivileges = containerContext.AllowPrivilegeEscalation != nil && !*containerContext.AllowPrivilegeEscalation
		if containerContext.Capabilities != nil && slices.Contains(containerContext.Capabilities.Drop, "ALL") {
			s.DropsAllOtherCapabilities = true
			for _, add := range containerContext.Capabilities.Add {
				s.KeptCapabilities = append(s.KeptCapabilities, capabilityNumbers[add])
			}
		}
	}
	return s, nil
}

func (s *containerProcessSpec) setUserAndGroup(user, group *int64) {
	if user != nil {
		s.UID, s.GID = int(*user), int(*user)
	}
	if group != nil {
		s.GID = int(*group)
	}
}

// serviceAccountTokenExpiryTimeout is how long a service account token is valid. It is renewed
// after half of that time.
const serviceAccountTokenExpiryTimeout = time.Hour

// writeAndRenewServiceAccountToken writes the Pod's service account to dir and renews the token.
// Later calls do nothing.
func (p *pod) writeAndRenewServiceAccountToken(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "token")); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := p.writeToken(dir); err != nil {
		return err
	}
	go func() {
		for {
			select {
			case <-p.ctx.Done():
				return
			case <-time.After(serviceAccountTokenExpiryTimeout / 2):
			}
			_ = p.agent.retryUntilNoError(p.ctx, func(context.Context) error { return p.writeToken(dir) })
		}
	}()
	return nil
}

func (p *pod) writeToken(dir string) error {
	o := p.firstObject
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	seconds := int64(serviceAccountTokenExpiryTimeout / time.Second)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: o.Name, UID: o.UID},
	}}
	t, err := p.agent.client.CoreV1().ServiceAccounts(o.Namespace).CreateToken(ctx, o.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("getting a token for %s/%s: %w", o.Namespace, o.Spec.ServiceAccountName, err)
	}
	ca, err := p.agent.client.CoreV1().ConfigMaps(o.Namespace).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("getting the CA: %w", err)
	}
	for name, text := range map[string]string{"token": t.Status.Token, "ca.crt": ca.Data["ca.crt"], "namespace": o.Namespace} {
		temporary := filepath.Join(dir, "."+name)
		if err := os.WriteFile(temporary, []byte(text), 0o644); err != nil {
			return err
		}
		if err := os.Rename(temporary, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// execAsContainerProcess turns this process into the container. It returns only if that fails.
func execAsContainerProcess(text string) error {
	var s containerProcessSpec
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&s); err != nil {
		return err
	}
	runtime.LockOSThread() // the calls below affect this thread only, which becomes the container
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("creating namespaces for mounts and the host name: %w", err)
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("setting the host name %q: %w", s.Hostname, err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	if err := os.MkdirAll(serviceAccountDirInContainer, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(s.TokenDir, serviceAccountDirInContainer, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting the service account: %w", err)
	}
	if len(s.Mounts) > 0 {
		if err := enterContainerRoot(s.Mounts); err != nil {
			return err
		}
	}
	if err := s.dropPrivileges(); err != nil {
		return err
	}
	return syscall.Exec(s.Path, s.Args, s.Env)
}

// dropPrivileges gives up the privileges that the manifest does not grant.
func (s *containerProcessSpec) dropPrivileges() error {
	if s.DropsAllOtherCapabilities {
		for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
			if !slices.Contains(s.KeptCapabilities, c) {
				// fails if the kernel does not have it
				_ = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
			}
		}
	}
	if (s.UID != 0 || s.GID != 0) && !isUIDMappedInUserNamespace(s.UID) {
		// The user namespace of an ordinary user maps root only. Without capabilities root is as
		// weak as any other user.
		if err := dropCapabilities(); err != nil {
			return fmt.Errorf("dropping all capabilities: %w", err)
		}
	} else if s.UID != 0 || s.GID != 0 {
		if err := syscall.Setgroups(nil); err != nil {
			return fmt.Errorf("dropping groups: %w", err)
		}
		if err := syscall.Setgid(s.GID); err != nil {
			return fmt.Errorf("changing to group %d: %w", s.GID, err)
		}
		if err := syscall.Setuid(s.UID); err != nil {
			return fmt.Errorf("changing to user %d: %w", s.UID, err)
		}
	}
	if s.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("forbidding new privileges: %w", err)
		}
	}
	if s.HasDefaultSeccompProfile {
		return applyDefaultSeccompProfile()
	}
	return nil
}

// isUIDMappedInUserNamespace reports whether the user namespace of this process maps the user.
func isUIDMappedInUserNamespace(uid int) bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(text)) {
		var first, outside, count int
		if _, err := fmt.Sscan(line, &first, &outside, &count); err == nil && uid >= first && uid-first < count {
			return true
		}
	}
	return false
}

// dropCapabilities removes all capabilities from the thread and from what it executes, although its
// user is root.
func dropCapabilities() error {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		_ = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0) // fails if the kernel does not have it
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&header, &none[0])
}
