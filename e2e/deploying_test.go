// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// What docs/deploying.md and the examples for it promise, as far as one machine can tell:
// manifests are read by the types of their own APIs, and the Caddyfiles in them run.

// example returns a file of the examples.
func example(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "examples", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// globalDuration returns the value of a global option of a Caddyfile.
func globalDuration(t *testing.T, caddyfile, option string) time.Duration {
	t.Helper()
	m := regexp.MustCompile(`(?m)^\s*` + option + ` (\S+)$`).FindStringSubmatch(caddyfile)
	if m == nil {
		t.Fatalf("the Caddyfile has no %s", option)
	}
	value, err := time.ParseDuration(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// cluster is what the manifests of the example describe.
type cluster struct {
	configs     map[string]corev1.ConfigMap
	claims      map[string]corev1.PersistentVolumeClaim
	services    map[string]corev1.Service
	deployments map[string]appsv1.Deployment
}

// decoded decodes a manifest into a value of its type, and adds it by its name.
func decoded[V any](t *testing.T, text string, all map[string]V, name func(*V) string) {
	t.Helper()
	var value V
	if err := yaml.UnmarshalStrict([]byte(text), &value); err != nil {
		t.Errorf("%v in:\n%s", err, text)
	}
	if _, again := all[name(&value)]; again {
		t.Errorf("two manifests of one kind are named %s", name(&value))
	}
	all[name(&value)] = value
}

// manifests decodes all manifests of the example. A field that the API does not have is an
// error.
func manifests(t *testing.T) cluster {
	t.Helper()
	c := cluster{make(map[string]corev1.ConfigMap), make(map[string]corev1.PersistentVolumeClaim), make(map[string]corev1.Service), make(map[string]appsv1.Deployment)}
	for _, file := range []string{"kubernetes/app.yaml", "kubernetes/caddy.yaml"} {
		for text := range strings.SplitSeq(example(t, file), "\n---\n") {
			var head struct{ APIVersion, Kind string }
			if err := yaml.Unmarshal([]byte(text), &head); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			switch head.APIVersion + " " + head.Kind {
			case "v1 ConfigMap":
				decoded(t, text, c.configs, func(v *corev1.ConfigMap) string { return v.Name })
			case "v1 PersistentVolumeClaim":
				decoded(t, text, c.claims, func(v *corev1.PersistentVolumeClaim) string { return v.Name })
			case "v1 Service":
				decoded(t, text, c.services, func(v *corev1.Service) string { return v.Name })
			case "apps/v1 Deployment":
				decoded(t, text, c.deployments, func(v *appsv1.Deployment) string { return v.Name })
			default:
				t.Errorf("%s: %s %s is not a kind that this test knows", file, head.APIVersion, head.Kind)
			}
		}
	}
	return c
}

// hasPort reports whether a container of the deployment has a port by name or by number.
func hasPort(d *appsv1.Deployment, port intstr.IntOrString) bool {
	for i := range d.Spec.Template.Spec.Containers {
		for _, p := range d.Spec.Template.Spec.Containers[i].Ports {
			if p.Name == port.StrVal || port.Type == intstr.Int && p.ContainerPort == port.IntVal {
				return true
			}
		}
	}
	return false
}

// selected returns the deployment of the pods that a service selects.
func (c *cluster) selected(t *testing.T, s *corev1.Service) *appsv1.Deployment {
	t.Helper()
	for _, d := range c.deployments {
		found := len(s.Spec.Selector) > 0
		for label, value := range s.Spec.Selector {
			found = found && d.Spec.Template.Labels[label] == value
		}
		if found {
			return &d
		}
	}
	t.Fatalf("the service %s selects no pods", s.Name)
	return nil
}

// The manifests have no field that Kubernetes does not know, and fit together: selectors,
// names of ports, volumes, and the times of a stop.
func TestKubernetes_ManifestsFitTogether(t *testing.T) {
	c := manifests(t)
	if len(c.configs) != 1 || len(c.claims) != 1 || len(c.services) != 3 || len(c.deployments) != 2 {
		t.Fatalf("got %d configs, %d claims, %d services and %d deployments", len(c.configs), len(c.claims), len(c.services), len(c.deployments))
	}
	for _, s := range c.services {
		d := c.selected(t, &s)
		for _, port := range s.Spec.Ports {
			if !hasPort(d, port.TargetPort) {
				t.Errorf("service %s: the pods of %s have no port %s", s.Name, d.Name, port.TargetPort.String())
			}
			// there is no translation of ports without an address of the service
			if s.Spec.ClusterIP == corev1.ClusterIPNone && !hasPort(d, intstr.FromInt32(port.Port)) {
				t.Errorf("service %s: the pods of %s have no port %d", s.Name, d.Name, port.Port)
			}
		}
	}
	for _, d := range c.deployments {
		pod := d.Spec.Template.Spec
		for label, value := range d.Spec.Selector.MatchLabels {
			if d.Spec.Template.Labels[label] != value {
				t.Errorf("deployment %s: its selector does not match the label %s of its pods", d.Name, label)
			}
		}
		volumes := make(map[string]bool)
		for i := range pod.Volumes {
			v := &pod.Volumes[i]
			volumes[v.Name] = false
			if v.ConfigMap != nil && c.configs[v.ConfigMap.Name].Name == "" {
				t.Errorf("deployment %s: there is no ConfigMap %s", d.Name, v.ConfigMap.Name)
			}
			if v.PersistentVolumeClaim != nil && c.claims[v.PersistentVolumeClaim.ClaimName].Name == "" {
				t.Errorf("deployment %s: there is no claim %s", d.Name, v.PersistentVolumeClaim.ClaimName)
			}
		}
		for i := range pod.Containers {
			container := &pod.Containers[i]
			for _, m := range container.VolumeMounts {
				if _, known := volumes[m.Name]; !known {
					t.Errorf("deployment %s: there is no volume %s", d.Name, m.Name)
				}
				volumes[m.Name] = true
			}
			if probe := container.ReadinessProbe; probe == nil || probe.HTTPGet == nil || !hasPort(&d, probe.HTTPGet.Port) {
				t.Errorf("deployment %s: the readiness of %s is not asked for at one of its ports", d.Name, container.Name)
			}
		}
		for name, mounted := range volumes {
			if !mounted {
				t.Errorf("deployment %s: the volume %s is not mounted", d.Name, name)
			}
		}
	}
	config := c.configs["caddy"].Data["Caddyfile"]
	caddy := c.deployments["caddy"]
	for _, m := range regexp.MustCompile(`(?m)^http://:(\d+) \{$`).FindAllStringSubmatch(config, -1) {
		if !hasPort(&caddy, intstr.Parse(m[1])) {
			t.Errorf("the pods of Caddy have no port %s", m[1])
		}
	}
	most := globalDuration(t, config, "shutdown_delay") + globalDuration(t, config, "grace_period")
	if got := *caddy.Spec.Template.Spec.TerminationGracePeriodSeconds; time.Duration(got)*time.Second <= most {
		t.Errorf("Caddy is killed after %d s, and its end may take %s", got, most)
	}
	app := c.deployments["app"].Spec.Template.Spec
	sleep, err := time.ParseDuration(app.Containers[0].Lifecycle.PreStop.Exec.Command[1] + "s")
	if err != nil || sleep < 2*globalDuration(t, config, "refresh") || time.Duration(*app.TerminationGracePeriodSeconds)*time.Second <= sleep {
		t.Errorf("the application sleeps for %s before its end, %v", sleep, err)
	}
	service := c.services["app"]
	if want := fmt.Sprintf("name %s.default.svc.cluster.local\n", service.Name); !strings.Contains(config, want) || service.Spec.ClusterIP != corev1.ClusterIPNone {
		t.Errorf("the Caddyfile does not ask for the addresses of %s", service.Name)
	}
	if !strings.Contains(config, fmt.Sprintf("port %d\n", service.Spec.Ports[0].Port)) {
		t.Error("the Caddyfile names another port of the application")
	}
}

// deployed starts Caddy with the Caddyfile of an example, with replacements for what this
// machine does not have. Its storage is where Caddy has it by default, in the folder of data.
func deployed(t *testing.T, data, caddyfile string, replace ...string) *instance {
	t.Helper()
	caddy, err := build()
	if err != nil {
		t.Fatal(err)
	}
	c := &instance{
		t: t, caddy: caddy, client: http.DefaultClient, folder: t.TempDir(), data: data,
		admin: fmt.Sprintf("127.0.0.1:%d", freePort(t)), site: fmt.Sprintf("127.0.0.1:%d", freePort(t)), stop: func() {},
	}
	text := strings.NewReplacer(append(replace, "http://localhost {", "http://"+c.site+" {", "http://:8080 {", "http://"+c.site+" {")...).Replace(caddyfile)
	text = regexp.MustCompile(`(?m)^\{$`).ReplaceAllString(text, "{\n\tadmin "+c.admin+"\n\tauto_https off")
	c.config = filepath.Join(c.folder, "Caddyfile")
	if err := os.WriteFile(c.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.stop() })
	c.start()
	return c
}

// The Caddyfiles of the manifests and of the container are as `caddy fmt` writes them.
func TestDeploying_CaddyfileIsFormatted(t *testing.T) {
	caddy, err := build()
	if err != nil {
		t.Fatal(err)
	}
	text := manifests(t).configs["caddy"].Data["Caddyfile"]
	command := exec.Command(caddy, "fmt", "-")
	command.Stdin = strings.NewReader(text)
	if got, err := command.Output(); err != nil || strings.TrimSpace(string(got)) != strings.TrimSpace(text) {
		t.Errorf("caddy fmt: %v:\n%s", err, got)
	}
}

// After SIGTERM, the Caddy of the manifests is no longer ready, and goes on serving for
// shutdown_delay. Its readiness does not depend on upstreams.
func TestKubernetes_StopServesUntilItIsNoticed(t *testing.T) {
	up := startBackend(t)
	host, port, _ := strings.Cut(up.addr, ":")
	ready := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	config := manifests(t).configs["caddy"].Data["Caddyfile"]
	c := deployed(t, "", config, "name app.default.svc.cluster.local", "name localhost", "port 8080", "port "+port+"\nversions ipv4",
		"http://:8081 {", "http://"+ready+" {", "http://:2020 {", fmt.Sprintf("http://127.0.0.1:%d {", freePort(t)), "shutdown_delay 10s", "shutdown_delay 3s")
	status := func(address string) int {
		response, err := http.Get("http://" + address)
		if err != nil {
			return 0
		}
		defer response.Body.Close()
		return response.StatusCode
	}
	eventually(t, "the site answers", func() bool { return status(c.site) == http.StatusOK })
	eventually(t, "the upstream has a status", func() bool { return c.modes()[host+":"+port] == "ready up" })
	up.sick.Store(true)
	eventually(t, "the upstream is down", func() bool { return c.modes()[host+":"+port] == "ready down" })
	if got := status(ready); got != http.StatusOK {
		t.Errorf("ready while all upstreams are down: status %d, want 200", got)
	}
	up.sick.Store(false)
	eventually(t, "the upstream is up again", func() bool { return c.modes()[host+":"+port] == "ready up" })

	began := time.Now()
	if err := syscall.Kill(c.pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is not ready", func() bool { return status(ready) == http.StatusServiceUnavailable })
	if got := status(c.site); got != http.StatusOK {
		t.Errorf("the site after SIGTERM: status %d, want 200", got)
	}
	eventually(t, "it ends", func() bool { return status(c.site) == 0 })
	if took := time.Since(began); took < 2500*time.Millisecond || took > 15*time.Second {
		t.Errorf("the site served for %s after SIGTERM, want about 3 s", took)
	}
}

// composed returns the project of the example.
func composed(t *testing.T) *types.Project {
	t.Helper()
	file := filepath.Join("..", "examples", "docker", "compose.yml")
	project, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir: filepath.Dir(file), ConfigFiles: []types.ConfigFile{{Filename: file}}, Environment: types.Mapping{},
	}, func(o *loader.Options) { o.SetProjectName("example", true) })
	if err != nil {
		t.Fatal(err)
	}
	return project
}

// The compose file is one, keeps /data and /config, and lets Caddy end in its own time.
func TestCompose_KeepsWhatCaddyNeeds(t *testing.T) {
	project := composed(t)
	caddy := project.Services["caddy"]
	var targets []string
	for _, v := range caddy.Volumes {
		targets = append(targets, v.Type+" "+v.Target)
	}
	if want := []string{"bind /etc/caddy", "volume /data", "volume /config"}; !slices.Equal(targets, want) {
		t.Errorf("volumes: got %q, want %q", targets, want)
	}
	for _, p := range caddy.Ports {
		if p.Target == 2019 {
			t.Error("the admin API is published")
		}
	}
	config := example(t, "docker/Caddyfile")
	if got, most := time.Duration(*caddy.StopGracePeriod), globalDuration(t, config, "grace_period"); got <= most {
		t.Errorf("Caddy is killed after %s, and its end may take %s", got, most)
	}
	if _, err := os.Stat(filepath.Join(caddy.Build.Context, caddy.Build.Dockerfile)); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"app1", "app2"} {
		if command := project.Services[name].Command; len(command) < 4 || !strings.Contains(config, name+command[3]) {
			t.Errorf("%s: %q does not listen where the Caddyfile expects it", name, command)
		}
	}
}

// The upstreams of the compose file and of the manifests answer the checks.
func TestDeploying_UpstreamsAnswer(t *testing.T) {
	caddy, err := build()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{composed(t).Services["app1"].Command, manifests(t).deployments["app"].Spec.Template.Spec.Containers[0].Command} {
		address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], ":8080", address)
		}
		command := exec.CommandContext(t.Context(), caddy, args[1:]...)
		command.Env = append(os.Environ(), "XDG_DATA_HOME="+t.TempDir(), "XDG_CONFIG_HOME="+t.TempDir())
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = command.Process.Signal(os.Interrupt)
			_ = command.Wait()
		})
		eventually(t, "the upstream answers its check", func() bool {
			body, err := get(http.DefaultClient, "http://"+address+"/healthz")
			return err == nil && strings.HasPrefix(body, "hello")
		})
	}
}

// Modes outlive a container if /data does, and are forgotten otherwise.
func TestDocker_ModesNeedTheVolume(t *testing.T) {
	one, two := startBackend(t), startBackend(t)
	config, volume := example(t, "docker/Caddyfile"), t.TempDir()
	start := func(data string) *instance {
		return deployed(t, data, config, "app1:8080", one.addr, "app2:8080", two.addr)
	}
	mode := func(c *instance) string {
		mode, _, _ := strings.Cut(c.modes()[one.addr], " ")
		return mode
	}
	c := start(volume)
	if out, errs, status := c.run("drain", one.addr, "--address", c.admin); status != 0 {
		t.Fatalf("status %d: %s%s", status, out, errs)
	}
	c.stop()
	for _, tc := range []struct{ what, data, want string }{{"the same /data", volume, "drain"}, {"another /data", t.TempDir(), "ready"}} {
		c := start(tc.data)
		if got := mode(c); got != tc.want {
			t.Errorf("%s: mode %s, want %s", tc.what, got, tc.want)
		}
		if _, err := os.Stat(filepath.Join(tc.data, "caddy")); err != nil {
			t.Error(err)
		}
		c.stop()
	}
}

// After SIGTERM, a request in flight has the time of grace_period, and the process ends
// after it nevertheless.
func TestDocker_StopWaitsForGracePeriod(t *testing.T) {
	finish, end := make(chan struct{}), make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/short":
			select {
			case <-finish:
			case <-end:
			}
		case "/endless":
			select {
			case <-end:
			case <-r.Context().Done():
			}
		}
		fmt.Fprint(w, "answered")
	}))
	t.Cleanup(up.Close)
	t.Cleanup(func() { close(end) })
	c := deployed(t, "", example(t, "docker/Caddyfile"), "app1:8080 app2:8080", up.Listener.Addr().String(), "grace_period 30s", "grace_period 3s")
	answers := make(map[string]chan string)
	for _, path := range []string{"/short", "/endless"} {
		answer := make(chan string, 1)
		answers[path] = answer
		go func() {
			response, err := http.Get("http://" + c.site + path)
			if err != nil {
				answer <- "error"
				return
			}
			defer response.Body.Close()
			body, _ := io.ReadAll(response.Body)
			answer <- fmt.Sprint(response.StatusCode, " ", string(body))
		}()
	}
	eventually(t, "both are in flight", func() bool {
		body, err := get(http.DefaultClient, "http://"+c.admin+"/alive/upstreams?upstream="+up.Listener.Addr().String())
		return err == nil && strings.Contains(body, `"requests":2,`)
	})
	began := time.Now()
	if err := syscall.Kill(c.pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(time.Second, func() { close(finish) })
	if got := <-answers["/short"]; got != "200 answered" {
		t.Errorf("the short request: got %q, want its answer", got)
	}
	if got := <-answers["/endless"]; got == "200 answered" {
		t.Error("the endless request was answered")
	}
	eventually(t, "it ends", func() bool { return strings.Contains(c.log(), `"msg":"shutdown complete"`) })
	if took := time.Since(began); took < 2500*time.Millisecond || took > 15*time.Second {
		t.Errorf("the end took %s, want about 3 s", took)
	}
}

// The dashboard has no field that Grafana does not know, and panels of known types.
func TestDashboard_IsOfGrafanasSchema(t *testing.T) {
	plugins.RegisterDefaultPlugins()
	type classic = dashboard.Dashboard //nolint:staticcheck // the form that every version of Grafana imports
	var d classic
	// both may return an error that consists of none
	if err := d.UnmarshalJSONStrict([]byte(example(t, "prometheus/dashboard.json"))); err != nil && err.Error() != "" {
		t.Fatal(err)
	}
	if err := d.Validate(); err != nil && err.Error() != "" {
		t.Error(err)
	}
	if err := new(classic).UnmarshalJSONStrict([]byte(`{"panels": [{"type": "stat", "nonsense": 1}]}`)); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("a field that does not exist is not noticed: %v", err)
	}
	if len(d.Panels) < 10 {
		t.Errorf("it has %d panels", len(d.Panels))
	}
}

// The drop-in fits the unit of a package, and systemd finds nothing to complain of.
func TestSystemd_DropInIsValid(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		skip(t, "systemd-analyze (Debian package systemd) is not installed")
	}
	caddy, err := build()
	if err != nil {
		t.Fatal(err)
	}
	dropIn := example(t, "systemd/alive.conf")
	if stop := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)s$`).FindStringSubmatch(dropIn); stop == nil || stop[1] != "40" {
		t.Errorf("TimeoutStopSec: got %q, want 40s, as docs/deploying.md says", stop)
	}
	folder := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// as packages of Caddy have it, where /bin/false is their own build
	write("caddy.service", "[Unit]\nDescription=Caddy\n\n[Service]\nType=notify\nUser=root\nExecStart=/bin/false run\nExecReload=/bin/false reload\nTimeoutStopSec=5s\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n")
	write("caddy.service.d/alive.conf", strings.ReplaceAll(dropIn, "/usr/local/bin/caddy", caddy))
	command := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", "--recursive-errors=no", filepath.Join(folder, "caddy.service"))
	command.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+folder+":")
	if out, err := command.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
	// the drop-in replaces the commands: a service of this type has one
	write("caddy.service.d/alive.conf", strings.ReplaceAll(strings.Replace(dropIn, "ExecStart=\n", "", 1), "/usr/local/bin/caddy", caddy))
	command = exec.CommandContext(t.Context(), analyze, "verify", "--man=no", "--recursive-errors=no", filepath.Join(folder, "caddy.service"))
	command.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+folder+":")
	if out, _ := command.CombinedOutput(); !strings.Contains(string(out), "more than one ExecStart") {
		t.Errorf("two commands are not noticed, so this test notices nothing: %s", out)
	}
}

// What the Dockerfile leaves out of its context is no part of the build.
func TestDockerfile_ContextHasAllPackages(t *testing.T) {
	command := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if .Module}}{{if .Module.Main}}{{.Dir}}{{end}}{{end}}", "./cmd/caddy")
	command.Dir = ".."
	out, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	folders := strings.Fields(string(out))
	if len(folders) < 20 {
		t.Fatalf("found only %d packages", len(folders))
	}
	for ignored := range strings.Lines(example(t, "docker/Dockerfile.dockerignore")) {
		for _, folder := range folders {
			if strings.HasPrefix(folder+"/", filepath.Join(root, strings.TrimSpace(ignored))+"/") {
				t.Errorf("the context leaves out %s, which has a package of the build", strings.TrimSpace(ignored))
			}
		}
	}
}
