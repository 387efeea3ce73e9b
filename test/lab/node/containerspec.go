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

// tokenDir is where a Pod finds its service account.
const tokenDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// containerSpec says how a container that is no responder is started.
type containerSpec struct {
	// Hostname is what the container takes its machine's name to be.
	Hostname string
	Path     string
	Args     []string
	Env      []string
	TokenDir string
	Mounts   []volumeMount
	UID, GID int
	// DropCapabilities drops every capability but Capabilities.
	DropCapabilities bool
	Capabilities     []uintptr
	NoNewPrivileges  bool
}

// capabilityNumbers are the numbers of those that manifests of network programs name (linux/capability.h).
var capabilityNumbers = map[corev1.Capability]uintptr{
	"NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE, "NET_ADMIN": unix.CAP_NET_ADMIN, "NET_RAW": unix.CAP_NET_RAW,
}

// buildSpec reads the container's specification.
func (r *container) buildSpec() (containerSpec, error) {
	c := &r.pod.agent.config
	if len(r.spec.Command) == 0 {
		return containerSpec{}, fmt.Errorf("container %s: the lab knows programs by the manifest's command", r.spec.Name)
	}
	known, env, err := r.resolveEnvironment()
	if err != nil {
		return containerSpec{}, fmt.Errorf("container %s: %w", r.spec.Name, err)
	}
	s := containerSpec{
		Args: expandAll(append(slices.Clone(r.spec.Command), r.spec.Args...), known),
		Env:  env, TokenDir: filepath.Join(r.pod.directory(), "token"),
	}
	if s.Hostname = r.pod.firstObject.Name; r.pod.firstObject.Spec.HostNetwork {
		s.Hostname = c.Name
	}
	s.Path = s.Args[0]
	if strings.HasPrefix(r.spec.Image, c.Image) {
		s.Path = filepath.Join(c.BinDir, filepath.Base(s.Path))
	}
	if s.Mounts, err = r.prepareMounts(); err != nil {
		return containerSpec{}, fmt.Errorf("container %s: %w", r.spec.Name, err)
	}
	if err := r.pod.keepTokenFresh(s.TokenDir); err != nil {
		return containerSpec{}, err
	}
	pod, own := r.pod.firstObject.Spec.SecurityContext, r.spec.SecurityContext
	if pod != nil {
		s.setIdentity(pod.RunAsUser, pod.RunAsGroup)
	}
	if own != nil {
		s.setIdentity(own.RunAsUser, own.RunAsGroup)
		s.NoNewPrivileges = own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation
		if own.Capabilities != nil && slices.Contains(own.Capabilities.Drop, "ALL") {
			s.DropCapabilities = true
			for _, add := range own.Capabilities.Add {
				s.Capabilities = append(s.Capabilities, capabilityNumbers[add])
			}
		}
	}
	return s, nil
}

func (s *containerSpec) setIdentity(user, group *int64) {
	if user != nil {
		s.UID, s.GID = int(*user), int(*user)
	}
	if group != nil {
		s.GID = int(*group)
	}
}

// tokenTimeout is the life of a service account token; it is renewed at half of it.
const tokenTimeout = time.Hour

// keepTokenFresh writes the Pod's service account to dir, once, and keeps the token fresh.
func (p *pod) keepTokenFresh(dir string) error {
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
			case <-time.After(tokenTimeout / 2):
			}
			_ = p.agent.retryUntilDone(p.ctx, func(context.Context) error { return p.writeToken(dir) })
		}
	}()
	return nil
}

func (p *pod) writeToken(dir string) error {
	o := p.firstObject
	ctx, cancel := context.WithTimeout(p.ctx, 10*time.Second)
	defer cancel()
	seconds := int64(tokenTimeout / time.Second)
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

// enterContainer turns the process into the container; it returns only when that fails.
func enterContainer(text string) error {
	var s containerSpec
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&s); err != nil {
		return err
	}
	runtime.LockOSThread() // what follows counts for this thread, which becomes the container
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("taking namespaces for mounts and the name: %w", err)
	}
	if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("taking the name %q: %w", s.Hostname, err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	if err := os.MkdirAll(tokenDir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(s.TokenDir, tokenDir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting the service account: %w", err)
	}
	if len(s.Mounts) > 0 {
		if err := enterRoot(s.Mounts); err != nil {
			return err
		}
	}
	if err := s.dropPrivileges(); err != nil {
		return err
	}
	return syscall.Exec(s.Path, s.Args, s.Env)
}

// dropPrivileges gives up the rights that the manifest does not grant.
func (s *containerSpec) dropPrivileges() error {
	if s.DropCapabilities {
		for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
			if !slices.Contains(s.Capabilities, c) {
				_ = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0) // one that this kernel does not have
			}
		}
	}
	if (s.UID != 0 || s.GID != 0) && !isMappedUser(s.UID) {
		// A user's own namespace has no other user than root: without capabilities it is as weak as any.
		if err := dropCapabilities(); err != nil {
			return fmt.Errorf("giving up every capability: %w", err)
		}
	} else if s.UID != 0 || s.GID != 0 {
		if err := syscall.Setgroups(nil); err != nil {
			return fmt.Errorf("dropping groups: %w", err)
		}
		if err := syscall.Setgid(s.GID); err != nil {
			return fmt.Errorf("becoming group %d: %w", s.GID, err)
		}
		if err := syscall.Setuid(s.UID); err != nil {
			return fmt.Errorf("becoming user %d: %w", s.UID, err)
		}
	}
	if s.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("giving up new privileges: %w", err)
		}
	}
	return nil
}

// isMappedUser says whether the user namespace of this process knows the user.
func isMappedUser(uid int) bool {
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

// dropCapabilities leaves the thread, and what it executes, without any, although its user is root.
func dropCapabilities() error {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		_ = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0) // one that this kernel does not have
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&header, &none[0])
}
