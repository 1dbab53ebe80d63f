//! Envoy Gateway of a member: without containers, in its "host" mode, with an Envoy below it.
//!
//! The harness plays two outsiders for it: the cloud's load balancer (an address in the status of
//! a Service) and the kubelet (available replicas of a Deployment). Everything else is its own.
//! Envoy is its child and dies with it; one that died alone is not started again by it, so a
//! gateway comes back by a start of both.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    clock::Clock,
    cluster::{Cluster, Site},
    launch::{Access, Bind, FileTree, Launch},
    object::{ObjectKey, fill, namespace, parse},
    process::Unit,
    tool::{ENVOY_VERSION, Toolbox},
};

/// The namespace of Envoy Gateway and of the objects played for it.
pub const SYSTEM: &str = "envoy-gateway-system";
/// The class of every member's gateways.
pub const CLASS: &str = "eg";
const START_LIMIT: Duration = Duration::from_secs(120);

pub struct Gateway {
    unit: Unit,
    launch: Launch,
    certgen: Unit,
}

impl Gateway {
    /// Writes configuration and certificates; nothing runs yet.
    pub(crate) fn prepare(
        cluster: &str,
        dir: &Path,
        site: &Site<'_>,
        kubeconfig: &Path,
    ) -> Result<Self> {
        let home = dir.join("envoy-gateway");
        let mountpoint = dir.join("envoy-gateway-root");
        for folder in [&home, &mountpoint] {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        let home_text = home.display().to_string();
        let config = home.join("envoy-gateway.yaml");
        let text = fill(include_str!("../manifests/envoy-gateway.yaml"), &[("HOME", &home_text)])?;
        fs::write(&config, text).context("writing Envoy Gateway's configuration")?;
        offer_envoy(&home, site.tools)?;
        copy_certificates(&site.run_folder.join(CERTIFICATES), &home.join("config"))?;

        let program = site.tools.envoy_gateway.display().to_string();
        let env = BTreeMap::from([
            ("KUBECONFIG".to_owned(), kubeconfig.display().to_string()),
            ("ENVOY_GATEWAY_NAMESPACE".to_owned(), SYSTEM.to_owned()),
            ("HOME".to_owned(), home_text),
            ("PATH".to_owned(), "/usr/bin:/bin".to_owned()),
        ]);
        let tree = FileTree { mountpoint, binds: binds(site, &home), rest: Access::ReadWrite };
        let launch = |argv: Vec<String>| Launch {
            argv,
            env: env.clone(),
            netns: Some(site.namespace.clone()),
            root: Some(tree.clone()),
        };
        let log = |name: &str| site.run_folder.join(format!("{cluster}-{name}.log"));
        let server = vec![
            program.clone(),
            "server".into(),
            "--config-path".into(),
            config.display().to_string(),
        ];
        // Writes the Secret that Envoy Gateway wants for client certificates towards backends.
        let certgen = vec![program, "certgen".into(), "--disable-topology-injector".into()];
        let server = launch(server);
        Ok(Self {
            unit: Unit::new(format!("gateway of {cluster}"), log("gateway"), server.clone()),
            launch: server,
            certgen: Unit::new(
                format!("certgen of {cluster}"),
                log("gateway-certgen"),
                launch(certgen),
            ),
        })
    }

    /// Writes the objects that come before the first start, and starts it.
    pub(crate) async fn install(&self, cluster: &Cluster) -> Result<()> {
        let objects = cluster.objects();
        objects.apply(&namespace(SYSTEM)).await?;
        self.certgen.start().await?;
        let version = [("ENVOY_VERSION", ENVOY_VERSION)];
        let played = fill(include_str!("../manifests/gateway-class.yaml"), &version)?;
        objects.apply_yaml(&played).await?;
        let address = cluster.local()?.address.to_string();
        let statuses =
            fill(include_str!("../manifests/gateway-status.yaml"), &[("ADDRESS", &address)])?;
        for status in parse(&statuses)? {
            objects.apply_status(&status).await?;
        }
        let how = self.certgen.ended().await;
        if how != "exit status: 0" {
            bail!("{} failed ({how}); {}", self.certgen.name(), self.certgen.story());
        }
        self.unit.start().await?;
        objects.apply_yaml(include_str!("../manifests/gateway-class-only.yaml")).await?;
        let class = ObjectKey::new("gateway.networking.k8s.io/v1", "GatewayClass", "", CLASS);
        let accepted = objects.wait_condition(&class, "Accepted", START_LIMIT);
        self.unit.unless_it_ends(accepted).await
    }

    /// Starts it again after a kill, by this clock.
    pub(crate) async fn start(&self, clock: &Clock) -> Result<()> {
        self.unit.set_launch(clock.equip(self.launch.clone()));
        self.unit.start().await
    }

    /// Kills it and its Envoy at once.
    pub(crate) async fn kill(&self) {
        // Envoy would follow by itself, but a moment later.
        self.unit.kill_family().await;
    }

    pub(crate) fn is_running(&self) -> bool {
        self.unit.is_running()
    }
}

/// Folder in the run folder with xDS certificates; all members of a world share one set.
pub(crate) const CERTIFICATES: &str = "envoy-gateway-certificates";

/// Makes the xDS certificates of a world. Blocks for a moment.
pub(crate) fn make_certificates(run_folder: &Path, tools: &Toolbox) -> Result<()> {
    let home = run_folder.join(CERTIFICATES);
    let output = Command::new(&tools.envoy_gateway)
        .args(["certgen", "--local", "--config-home"])
        .arg(&home)
        .env("ENVOY_GATEWAY_NAMESPACE", SYSTEM)
        .output()
        .context("starting envoy-gateway certgen")?;
    if !output.status.success() {
        bail!("envoy-gateway certgen failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn copy_certificates(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("listing {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_certificates(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).context("copying a certificate")?;
        }
    }
    Ok(())
}

/// Envoy Gateway looks for the Envoy of a version in a folder of its data home.
fn offer_envoy(home: &Path, tools: &Toolbox) -> Result<()> {
    let bin = home.join("data/envoy-versions").join(ENVOY_VERSION).join("bin");
    fs::create_dir_all(&bin).context("making Envoy's folder")?;
    let link = bin.join("envoy");
    if link.exists() {
        return Ok(());
    }
    std::os::unix::fs::symlink(&tools.envoy, link).context("linking Envoy")
}

/// What Envoy Gateway sees of the machine: the run folder, the tools, and its certificates where
/// it insists on finding them.
fn binds(site: &Site<'_>, home: &Path) -> Vec<Bind> {
    let same =
        |path: &Path, access| Bind { outside: path.to_owned(), inside: path.to_owned(), access };
    let folder = |file: &Path| file.parent().map(Path::to_path_buf).unwrap_or_default();
    vec![
        same(site.run_folder, Access::ReadWrite),
        same(&folder(&site.tools.envoy_gateway), Access::ReadOnly),
        same(&folder(&site.tools.envoy), Access::ReadOnly),
        Bind {
            outside: home.join("config/certs/envoy-gateway"),
            inside: PathBuf::from("/certs"),
            access: Access::ReadOnly,
        },
    ]
}
