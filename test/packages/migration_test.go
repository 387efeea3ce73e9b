package packages

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/migrate"
	"github.com/gantry-lb/gantry/test/cluster"
)

// migratedPoolManifest is a pool that must survive.
const migratedPoolManifest = "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: kept, namespace: metallb-system}\nspec: {addresses: [192.0.2.0/24]}\n"

// installMetalLBStandIn installs what MetalLB's chart leaves, in place of Gantry's CRDs, and a
// pool. Nobody answers for its webhook here.
func (b *packageInstaller) installMetalLBStandIn() {
	b.Helper()
	standIn := cluster.MetalLBStandIn{Nodes: []string{"node1"}, Addresses: []string{"192.0.2.1"}, GossipPort: 7946}
	b.chart = filepath.Join(b.TempDir(), "metallb")
	if err := standIn.WriteChart(b.chart); err != nil {
		b.Fatal(err)
	}
	b.runHelm("{}", "install", "metallb", b.flagsOverForeignCRDs()...)
	b.chart = ""
	b.runKubectl("", "delete", "validatingwebhookconfiguration", "metallb-webhook-configuration")
	b.await("a pool", func(ctx context.Context) error {
		_, err := b.kubectl.Run(ctx, migratedPoolManifest, "apply", "-f", "-")
		return err
	})
}

// flagsOverForeignCRDs are the flags with which Helm installs over CRDs that another program wrote.
func (b *packageInstaller) flagsOverForeignCRDs() []string {
	if b.helm == "helm3" {
		return []string{"--take-ownership"}
	}
	return []string{"--take-ownership", "--force-conflicts"}
}

// prepareMigration does what kubectl gantry migrate --yes does.
func (b *packageInstaller) prepareMigration(helmReleaseOfGantry string) {
	b.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", b.kubectl.Kubeconfig)
	if err != nil {
		b.Fatal(err)
	}
	access, err := migrate.NewClusterAccess(config)
	if err != nil {
		b.Fatal(err)
	}
	findings, err := migrate.ReadFindings(b.Context(), access, migrate.ReadQuestion{GantryNamespace: "metallb-system", HelmReleaseOfGantry: helmReleaseOfGantry})
	if err != nil {
		b.Fatal(err)
	}
	for _, a := range findings.ListActions() {
		if err := a.Apply(b.Context(), access); err != nil {
			b.Fatal(err)
		}
	}
}

// stopMetalLBController is the first step of docs/from-metallb.md.
func (b *packageInstaller) stopMetalLBController() {
	b.Helper()
	b.runKubectl("", "-n", "metallb-system", "scale", "deployment/metallb-controller", "--replicas=0")
}

// isPoolThere reports whether the pool is left.
func (b *packageInstaller) isPoolThere() bool {
	_, err := b.kubectl.Run(b.Context(), "", "-n", "metallb-system", "get", "ipaddresspool/kept")
	return err == nil
}

// expectUninstallationDeletesPool makes the trap: the uninstallation of MetalLB deletes the CRDs
// and all pools.
func (b *packageInstaller) expectUninstallationDeletesPool() {
	b.T.Helper()
	b.runHelm("{}", "uninstall", "metallb")
	b.await("the end of the CRDs", func(context.Context) error {
		if b.isPoolThere() {
			return fmt.Errorf("the pool is left: this test makes no trap")
		}
		return nil
	})
}

// TestUninstallationOfMetalLBDeletesNoPool makes the trap, and avoids it: helm uninstall of
// MetalLB deletes the CRDs and all pools, unless kubectl gantry migrate has taken Helm's marks
// off.
func TestUninstallationOfMetalLBDeletesNoPool(t *testing.T) {
	b := newPackageInstaller(t)
	b.installMetalLBStandIn()
	b.expectUninstallationDeletesPool()
	b.installMetalLBStandIn()
	b.stopMetalLBController()
	b.prepareMigration("")
	b.runHelm("{}", "uninstall", "metallb")
	if !b.isPoolThere() {
		t.Error("helm uninstall of MetalLB has deleted the pool")
	}
	b.runHelm("{}", "install", "gantry", "--take-ownership", "--force-conflicts")
	if !b.isPoolThere() {
		t.Error("the installation of Gantry has deleted the pool")
	}
}

// TestHelm3DeletesNoPoolOnceItForgotMetalLB makes the trap of Helm 3, which deletes the CRDs also
// after kubectl gantry migrate, and avoids it as docs/from-metallb.md says: without the Secrets of
// the release, nobody can uninstall it.
func TestHelm3DeletesNoPoolOnceItForgotMetalLB(t *testing.T) {
	b := newPackageInstaller(t)
	b.helm = "helm3"
	b.installMetalLBStandIn()
	b.stopMetalLBController()
	b.prepareMigration("")
	b.expectUninstallationDeletesPool()
	b.installMetalLBStandIn()
	b.stopMetalLBController()
	b.prepareMigration("")
	b.runHelm("{}", "install", "gantry", b.flagsOverForeignCRDs()...)
	b.runKubectl("", "-n", "metallb-system", "delete", "secret", "-l", "owner=helm,name=metallb")
	if out, err := b.tryHelm("{}", "uninstall", "metallb"); err == nil || !strings.Contains(out, "not found") {
		t.Errorf("helm uninstall of a release that is forgotten gives %v\n%s", err, out)
	}
	if !b.isPoolThere() {
		t.Error("helm uninstall of MetalLB has deleted the pool")
	}
}

// TestHelmInstallsGantryOverMetalLB makes two traps, and avoids them: Helm refuses CRDs of another
// release, and the conversion webhook of MetalLB makes every list of BGPPeers fail.
func TestHelmInstallsGantryOverMetalLB(t *testing.T) {
	b := newPackageInstaller(t)
	for _, crd := range strings.Fields(b.runKubectl("", "get", "customresourcedefinitions", "-o", "name")) {
		if strings.HasSuffix(crd, ".gantry.dev") {
			b.runKubectl("", "delete", crd)
		}
	}
	b.installMetalLBStandIn()
	b.stopMetalLBController()
	if out, err := b.tryHelm("{}", "install", "gantry"); err == nil || !strings.Contains(out, "invalid ownership metadata") && !strings.Contains(out, "kubectl patch customresourcedefinition bgppeers.metallb.io") {
		t.Fatalf("an installation over MetalLB's CRDs gives %v\n%s\nthis test makes no trap", err, out)
	}
	b.prepareMigration("gantry")
	b.runHelm("{}", "install", "gantry", "--force-conflicts")
	var peers v1beta2.BGPPeerList
	if err := b.apiClient.List(t.Context(), &peers); err != nil {
		t.Errorf("the BGPPeers cannot be listed: %v", err)
	}
	if !b.isPoolThere() {
		t.Error("the installation has deleted the pool")
	}
}

// TestMigrationEndsConversionByWebhook: objects that MetalLB stored in the older version are read
// after kubectl gantry migrate, also before Gantry is installed.
func TestMigrationEndsConversionByWebhook(t *testing.T) {
	b := newPackageInstaller(t)
	b.leaveConversionWebhook()
	b.prepareMigration("")
	b.checkOldBGPPeerIsRead("kubectl gantry migrate")
}
