//! From a Deployment's template to a process: what to run, with which environment and files.
//!
//! Pure but for looking whether a binary exists. What it does not understand is an error that
//! names the field: running a container without a part of its template would prove nothing.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Container, EnvVar, Pod, PodSpec, Probe as ProbeSpec, Volume, VolumeMount},
    },
    apimachinery::pkg::{apis::meta::v1::OwnerReference, util::intstr::IntOrString},
};
use kube::{Resource, ResourceExt, api::ObjectMeta};
use sha2::{Digest, Sha256};

use super::{NAMESPACE, volume::Volumes};
use crate::{
    cluster::{API_PORT, Local},
    launch::{Access, Bind, FileTree, Launch},
};

/// Where the service account's files appear in every container.
pub(super) const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Where the program itself appears in its file tree.
const PROGRAM_FOLDER: &str = "/opt/fairlead";

/// Everything about a Pod that follows from its template.
#[derive(Clone, Debug)]
pub(super) struct PodPlan {
    /// Changes when the template does.
    pub(super) hash: String,
    /// File name of the binary.
    pub(super) program: String,
    pub(super) container: String,
    pub(super) image: String,
    pub(super) service_account: String,
    pub(super) mounts_token: bool,
    pub(super) volumes: Vec<Volume>,
    pub(super) probe: Option<Probe>,
    args: Vec<String>,
    env: Vec<EnvVar>,
    mounts: Vec<VolumeMount>,
    rest: Access,
    node: String,
    address: Ipv4Addr,
    spec: PodSpec,
    labels: BTreeMap<String, String>,
}

pub(super) fn plan_pod(deployment: &Deployment, node: &str, address: Ipv4Addr) -> Result<PodPlan> {
    let spec = deployment.spec.as_ref().context("it has no spec")?;
    let pod = spec.template.spec.clone().context("its template has no spec")?;
    ensure!(pod.init_containers.is_none(), "init containers are not played");
    let [container] = pod.containers.as_slice() else {
        bail!("exactly one container is played, the template has {}", pod.containers.len());
    };
    ensure!(container.env_from.is_none(), "envFrom is not played");
    let template = serde_json::to_vec(&spec.template).context("reading the template")?;
    let hash = Sha256::digest(template).iter().take(5).map(|b| format!("{b:02x}")).collect();
    let (program, args) = program_and_args(container)?;
    let labels = spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone());
    Ok(PodPlan {
        hash,
        program,
        args,
        container: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        service_account: pod.service_account_name.clone().unwrap_or_else(|| "default".into()),
        mounts_token: pod.automount_service_account_token != Some(false),
        volumes: pod.volumes.clone().unwrap_or_default(),
        probe: container.readiness_probe.as_ref().map(|p| Probe::of(p, container)).transpose()?,
        env: container.env.clone().unwrap_or_default(),
        mounts: container.volume_mounts.clone().unwrap_or_default(),
        rest: rest_of_tree(container),
        node: node.to_owned(),
        address,
        labels: labels.unwrap_or_default(),
        spec: pod.clone(),
    })
}

/// The binary is named by the command if there is one, else by the image, as entry points are.
fn program_and_args(container: &Container) -> Result<(String, Vec<String>)> {
    let mut args = container.args.clone().unwrap_or_default();
    if let Some((first, rest)) = container.command.as_deref().and_then(<[_]>::split_first) {
        args.splice(0..0, rest.iter().cloned());
        return Ok((last_part(first).to_owned(), args));
    }
    let image =
        container.image.as_deref().context("the container has neither command nor image")?;
    let name = last_part(image.split('@').next().unwrap_or(image));
    Ok((name.split(':').next().unwrap_or(name).to_owned(), args))
}

fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn rest_of_tree(container: &Container) -> Access {
    let security = container.security_context.as_ref();
    match security.and_then(|context| context.read_only_root_filesystem) {
        Some(true) => Access::ReadOnly,
        _ => Access::ReadWrite,
    }
}

impl PodPlan {
    /// The Pod object, already bound to the node.
    pub(super) fn pod_object(
        &self,
        deployment: &Deployment,
        node: &str,
        label: &str,
    ) -> Result<Pod> {
        let name = deployment.name_any();
        let mut labels = self.labels.clone();
        labels.insert(label.to_owned(), name.clone());
        let owner = OwnerReference {
            api_version: Deployment::api_version(&()).into_owned(),
            kind: Deployment::kind(&()).into_owned(),
            name: name.clone(),
            uid: deployment.uid().context("the Deployment has no uid")?,
            controller: Some(true),
            block_owner_deletion: None,
        };
        let mut spec = self.spec.clone();
        spec.node_name = Some(node.to_owned());
        Ok(Pod {
            metadata: ObjectMeta {
                name: Some(format!("{name}-{}", self.hash)),
                namespace: Some(NAMESPACE.to_owned()),
                labels: Some(labels),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
            status: None,
        })
    }

    /// How to start the container's process.
    pub(super) fn launch(
        &self,
        local: &Local,
        pod: &str,
        volumes: &Volumes,
        programs: &Path,
    ) -> Result<Launch> {
        let outside = programs.join(&self.program);
        ensure!(outside.is_file(), "{} is not built", outside.display());
        let inside = Path::new(PROGRAM_FOLDER).join(&self.program);
        let env = self.environment(pod, local.address)?;
        let mut argv = vec![inside.display().to_string()];
        argv.extend(self.args.iter().map(|arg| expand(arg, &env)));
        let mut binds = vec![Bind { outside, inside, access: Access::ReadOnly }];
        for mount in &self.mounts {
            binds.push(bind_of(mount, volumes)?);
        }
        if self.mounts_token {
            binds.push(Bind {
                outside: volumes.service_account().to_owned(),
                inside: PathBuf::from(SERVICE_ACCOUNT),
                access: Access::ReadOnly,
            });
        }
        let root = FileTree { mountpoint: volumes.mountpoint().to_owned(), binds, rest: self.rest };
        Ok(Launch { argv, env, netns: Some(local.pods.namespace.clone()), root: Some(root) })
    }

    fn environment(&self, pod: &str, api: Ipv4Addr) -> Result<BTreeMap<String, String>> {
        let mut env = BTreeMap::from([
            ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
            ("HOME".to_owned(), "/".to_owned()),
            ("HOSTNAME".to_owned(), pod.to_owned()),
            ("KUBERNETES_SERVICE_HOST".to_owned(), api.to_string()),
            ("KUBERNETES_SERVICE_PORT".to_owned(), API_PORT.to_string()),
            ("KUBERNETES_SERVICE_PORT_HTTPS".to_owned(), API_PORT.to_string()),
        ]);
        for variable in &self.env {
            let value = self.value_of(variable, pod)?;
            let value = expand(&value, &env);
            env.insert(variable.name.clone(), value);
        }
        Ok(env)
    }

    fn value_of(&self, variable: &EnvVar, pod: &str) -> Result<String> {
        let Some(source) = &variable.value_from else {
            return Ok(variable.value.clone().unwrap_or_default());
        };
        let path = source.field_ref.as_ref().map(|field| field.field_path.as_str());
        Ok(match path {
            Some("metadata.name") => pod.to_owned(),
            Some("metadata.namespace") => NAMESPACE.to_owned(),
            Some("spec.nodeName") => self.node.clone(),
            Some("spec.serviceAccountName") => self.service_account.clone(),
            Some("status.podIP" | "status.hostIP") => self.address.to_string(),
            other => bail!("env {}: source {other:?} is not played", variable.name),
        })
    }
}

fn bind_of(mount: &VolumeMount, volumes: &Volumes) -> Result<Bind> {
    ensure!(mount.sub_path_expr.is_none(), "subPathExpr is not played");
    let (folder, kind) = volumes.folder(&mount.name)?;
    let outside = match &mount.sub_path {
        Some(path) => folder.join(path),
        None => folder.to_owned(),
    };
    let access = if mount.read_only == Some(true) { Access::ReadOnly } else { kind };
    Ok(Bind { outside, inside: PathBuf::from(&mount.mount_path), access })
}

/// Replaces `$(NAME)` as Kubernetes does: unknown names stay, `$$(` escapes.
fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(escaped) = rest.strip_prefix('$') {
            result.push('$');
            rest = escaped;
        } else if let Some((name, after)) =
            rest.strip_prefix('(').and_then(|rest| rest.split_once(')'))
        {
            match env.get(name) {
                Some(value) => result.push_str(value),
                None => result.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result + rest
}

/// A readiness probe.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Probe {
    Http { port: u16, path: String },
    Tcp { port: u16 },
}

impl Probe {
    fn of(spec: &ProbeSpec, container: &Container) -> Result<Self> {
        if let Some(get) = &spec.http_get {
            ensure!(get.scheme.as_deref() != Some("HTTPS"), "HTTPS probes are not played");
            let port = resolve_port(&get.port, container)?;
            return Ok(Self::Http { port, path: get.path.clone().unwrap_or_else(|| "/".into()) });
        }
        if let Some(tcp) = &spec.tcp_socket {
            return Ok(Self::Tcp { port: resolve_port(&tcp.port, container)? });
        }
        bail!("only httpGet and tcpSocket readiness probes are played")
    }

    pub(super) async fn passes(&self, address: Ipv4Addr) -> bool {
        const LIMIT: Duration = Duration::from_secs(1);
        let probe = async {
            match self {
                Self::Http { port, path } => {
                    let status = crate::http1::get_status((address, *port).into(), path).await;
                    status.is_ok_and(|status| status.is_success() || status.is_redirection())
                }
                Self::Tcp { port } => {
                    tokio::net::TcpStream::connect((address, *port)).await.is_ok()
                }
            }
        };
        tokio::time::timeout(LIMIT, probe).await.unwrap_or(false)
    }
}

fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let ports = container.ports.as_deref().unwrap_or_default();
            let found = ports.iter().find(|port| port.name.as_ref() == Some(name));
            found.with_context(|| format!("the container has no port {name}"))?.container_port
        }
    };
    u16::try_from(number).with_context(|| format!("{number} is not a port"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn mk_deployment(container: &str) -> Deployment {
        let yaml = format!(
            "metadata: {{name: d, uid: u}}\nspec:\n  selector: {{}}\n  template:\n    spec:\n      \
             containers: [{container}]\n"
        );
        serde_saphyr::from_str(&yaml).unwrap()
    }

    fn mk_plan(container: &str) -> Result<PodPlan> {
        plan_pod(&mk_deployment(container), "east-node", Ipv4Addr::new(10, 77, 2, 1))
    }

    #[test]
    fn image_names_the_program_when_there_is_no_command() {
        let plan = mk_plan("{name: c, image: 'ghcr.io/f/fairlead-hub:0.1@sha256:ab', args: [-v]}");
        let plan = plan.unwrap();
        assert_eq!(
            (plan.program.as_str(), plan.args.as_slice()),
            ("fairlead-hub", &["-v".into()][..])
        );
        let plan = mk_plan("{name: c, image: x, command: [/bin/fairlead-agent, run], args: [-v]}");
        let plan = plan.unwrap();
        assert_eq!(plan.program, "fairlead-agent");
        assert_eq!(plan.args, ["run", "-v"]);
    }

    #[test]
    fn args_and_env_see_the_downward_api() {
        let plan = mk_plan(
            "{name: c, image: x, env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: \
             spec.nodeName}}}, {name: ID, value: '$(NODE)/$(POD)'}]}",
        );
        let env = plan.unwrap().environment("pod-1", Ipv4Addr::new(10, 77, 2, 1)).unwrap();
        assert_eq!(env["NODE"], "east-node");
        assert_eq!(env["ID"], "east-node/$(POD)");
        assert_eq!(expand("$$(NODE) $(NODE) $5", &env), "$(NODE) east-node $5");
    }

    #[test]
    fn named_probe_port_is_resolved() {
        let plan = mk_plan(
            "{name: c, image: x, ports: [{name: health, containerPort: 8088}], readinessProbe: \
             {httpGet: {path: /readyz, port: health}}}",
        );
        let wanted = Probe::Http { port: 8088, path: "/readyz".into() };
        assert_eq!(plan.unwrap().probe, Some(wanted));
    }

    #[test]
    fn what_is_not_played_is_refused() {
        assert!(mk_plan("{name: c, image: x, envFrom: [{}]}").is_err());
        assert!(mk_plan("{name: c, image: x}, {name: d, image: y}").is_err());
        assert!(mk_plan("{name: c, image: x, readinessProbe: {exec: {command: [a]}}}").is_err());
    }
}
