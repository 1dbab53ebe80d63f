//! A Pod's volumes as folders of this machine, kept in step with their Secrets and ConfigMaps.
//!
//! Files are replaced by rename, so that a reader sees the old or the new text and never half of
//! one. The service account's token is asked for as a kubelet does, bound to the Pod, and renewed
//! before it expires.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use k8s_openapi::{
    ByteString,
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{ConfigMap, KeyToPath, Pod, Secret, ServiceAccount, Volume, VolumeProjection},
    },
};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
};

use super::{NAMESPACE, pod::PodPlan};
use crate::{cluster::Local, launch::Access};

const TOKEN_SECONDS: i64 = 3600;
const RENEW_AFTER: Duration = Duration::from_secs(2400);
/// Secrets and ConfigMaps are looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Volumes {
    sources: Vec<Source>,
    service_account: PathBuf,
    mountpoint: PathBuf,
    /// `None` when the Pod wants no token.
    token: Option<Token>,
    looked: Option<Instant>,
}

struct Source {
    name: String,
    folder: PathBuf,
    content: Content,
}

enum Content {
    Secret {
        name: String,
        items: Option<Vec<KeyToPath>>,
        mode: u32,
        optional: Option<bool>,
    },
    ConfigMap {
        name: String,
        items: Option<Vec<KeyToPath>>,
        mode: u32,
        optional: Option<bool>,
    },
    /// Several Secrets and ConfigMaps in one folder.
    Projected {
        sources: Vec<Content>,
        mode: u32,
    },
    /// The program's own: an emptyDir or a claim.
    Own,
}

struct Token {
    service_account: String,
    pod: String,
    pod_uid: String,
    taken: Option<Instant>,
}

impl Volumes {
    /// Makes the folders of a new Pod. Claims keep what they hold; everything else starts empty.
    pub(super) fn new(local: &Local, deployment: &str, plan: &PodPlan, pod: &Pod) -> Result<Self> {
        let base = local.dir.join("pods").join(deployment);
        if base.exists() {
            fs::remove_dir_all(&base).context("emptying the folders of an earlier Pod")?;
        }
        let mut sources = Vec::new();
        for volume in &plan.volumes {
            let source = Source::of(volume, &base, &local.dir.join("claims"))?;
            fs::create_dir_all(&source.folder).context("making a volume's folder")?;
            sources.push(source);
        }
        let service_account = base.join("service-account");
        let mountpoint = base.join("root");
        fs::create_dir_all(&service_account).context("making the token's folder")?;
        fs::create_dir_all(&mountpoint).context("making the root's folder")?;
        fs::write(service_account.join("ca.crt"), &local.ca_pem).context("writing ca.crt")?;
        fs::write(service_account.join("namespace"), NAMESPACE).context("writing namespace")?;
        let token = plan.mounts_token.then(|| Token {
            service_account: plan.service_account.clone(),
            pod: pod.name_any(),
            pod_uid: pod.uid().unwrap_or_default(),
            taken: None,
        });
        Ok(Self { sources, service_account, mountpoint, token, looked: None })
    }

    /// The folder of a volume and what a container may do there.
    pub(super) fn folder(&self, name: &str) -> Result<(&Path, Access)> {
        let source = self.sources.iter().find(|source| source.name == name);
        let source = source.with_context(|| format!("there is no volume {name}"))?;
        let access = match source.content {
            Content::Own => Access::ReadWrite,
            Content::Secret { .. } | Content::ConfigMap { .. } | Content::Projected { .. } => {
                Access::ReadOnly
            }
        };
        Ok((&source.folder, access))
    }

    pub(super) fn service_account(&self) -> &Path {
        &self.service_account
    }

    pub(super) fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Brings all folders up to date; an error names what is missing.
    pub(super) async fn sync(&mut self, client: &Client) -> Result<()> {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        for source in &self.sources {
            let (files, mode) = source.content.files(client).await?;
            if let Some(files) = files {
                write_all(&source.folder, &files, mode)?;
            }
        }
        if let Some(token) = &mut self.token {
            token.renew(client, &self.service_account).await?;
        }
        self.looked = Some(Instant::now());
        Ok(())
    }
}

impl Source {
    fn of(volume: &Volume, base: &Path, claims: &Path) -> Result<Self> {
        let mut folder = base.join("volumes").join(&volume.name);
        let content = if let Some(secret) = &volume.secret {
            Content::Secret {
                name: secret.secret_name.clone().context("a secret volume names no Secret")?,
                items: secret.items.clone(),
                mode: mode(secret.default_mode),
                optional: secret.optional,
            }
        } else if let Some(map) = &volume.config_map {
            Content::ConfigMap {
                name: map.name.clone(),
                items: map.items.clone(),
                mode: mode(map.default_mode),
                optional: map.optional,
            }
        } else if let Some(projected) = &volume.projected {
            let mode = mode(projected.default_mode);
            let sources = projected.sources.iter().flatten();
            let sources = sources.map(|source| project(source, mode, &volume.name));
            Content::Projected { sources: sources.collect::<Result<_>>()?, mode }
        } else if let Some(claim) = &volume.persistent_volume_claim {
            folder = claims.join(&claim.claim_name);
            Content::Own
        } else if volume.empty_dir.is_some() {
            Content::Own
        } else {
            bail!("volume {}: its kind is not played", volume.name);
        };
        Ok(Self { name: volume.name.clone(), folder, content })
    }
}

/// One source of a projected volume.
fn project(source: &VolumeProjection, mode: u32, volume: &str) -> Result<Content> {
    match (&source.secret, &source.config_map) {
        (Some(secret), None) => Ok(Content::Secret {
            name: secret.name.clone(),
            items: secret.items.clone(),
            mode,
            optional: secret.optional,
        }),
        (None, Some(map)) => Ok(Content::ConfigMap {
            name: map.name.clone(),
            items: map.items.clone(),
            mode,
            optional: map.optional,
        }),
        _ => bail!("volume {volume}: a kind of its projected sources is not played"),
    }
}

fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644)
}

type Files = BTreeMap<String, Vec<u8>>;

impl Content {
    /// The files that the volume is to hold; `None` leaves the folder alone.
    async fn files(&self, client: &Client) -> Result<(Option<Files>, u32)> {
        match self {
            Self::Own => Ok((None, 0)),
            Self::Projected { sources, mode } => {
                let mut all = Files::new();
                for source in sources {
                    let (files, _) = Box::pin(source.files(client)).await?;
                    all.extend(files.unwrap_or_default());
                }
                Ok((Some(all), *mode))
            }
            Self::Secret { name, items, mode, optional } => {
                let api: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
                let found = api.get_opt(name).await.with_context(|| format!("Secret {name}"))?;
                let data = found.map(|secret| secret.data.unwrap_or_default());
                let plain = data.map(|data| data.into_iter().map(|(k, ByteString(v))| (k, v)));
                let files = plain.map(Iterator::collect::<Files>);
                Ok((Some(chosen(files, items.as_deref(), *optional, "Secret", name)?), *mode))
            }
            Self::ConfigMap { name, items, mode, optional } => {
                let api: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
                let found = api.get_opt(name).await.with_context(|| format!("ConfigMap {name}"))?;
                let files = found.map(|map| {
                    let text = map.data.unwrap_or_default().into_iter();
                    let text = text.map(|(key, value)| (key, value.into_bytes()));
                    let binary = map.binary_data.unwrap_or_default().into_iter();
                    text.chain(binary.map(|(k, ByteString(v))| (k, v))).collect::<Files>()
                });
                Ok((Some(chosen(files, items.as_deref(), *optional, "ConfigMap", name)?), *mode))
            }
        }
    }
}

fn chosen(
    files: Option<Files>,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    kind: &str,
    name: &str,
) -> Result<Files> {
    let Some(mut files) = files else {
        if optional == Some(true) {
            return Ok(Files::new());
        }
        bail!("{kind} {NAMESPACE}/{name} does not exist");
    };
    let Some(items) = items else { return Ok(files) };
    let mut chosen = Files::new();
    for item in items {
        match files.remove(&item.key) {
            Some(bytes) => {
                chosen.insert(item.path.clone(), bytes);
            }
            None if optional == Some(true) => {}
            None => bail!("{kind} {NAMESPACE}/{name} has no key {}", item.key),
        }
    }
    Ok(chosen)
}

/// Makes a folder hold exactly these files; those that are equal already are not touched.
fn write_all(folder: &Path, files: &Files, mode: u32) -> Result<()> {
    for (name, bytes) in files {
        write_if_changed(&folder.join(name), bytes, mode)?;
    }
    for entry in fs::read_dir(folder).context("listing a volume")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && !files.contains_key(&name) {
            fs::remove_file(entry.path()).context("removing a file of a volume")?;
        }
    }
    Ok(())
}

fn write_if_changed(file: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    if fs::read(file).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let parent = file.parent().context("a file of a volume has no folder")?;
    fs::create_dir_all(parent).context("making a folder of a volume")?;
    let mut scratch = tempfile::NamedTempFile::new_in(parent).context("writing a volume")?;
    std::io::Write::write_all(&mut scratch, bytes).context("writing a volume")?;
    let permissions = fs::Permissions::from_mode(mode);
    scratch.as_file().set_permissions(permissions).context("writing a volume")?;
    scratch.persist(file).context("replacing a file of a volume")?;
    Ok(())
}

impl Token {
    async fn renew(&mut self, client: &Client, folder: &Path) -> Result<()> {
        if self.taken.is_some_and(|taken| taken.elapsed() < RENEW_AFTER) {
            return Ok(());
        }
        let request = TokenRequest {
            metadata: ObjectMeta::default(),
            spec: Some(TokenRequestSpec {
                audiences: None,
                expiration_seconds: Some(TOKEN_SECONDS),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(self.pod.clone()),
                    uid: Some(self.pod_uid.clone()),
                }),
            }),
            status: None,
        };
        let api: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
        let params = PostParams::default();
        let answer = api.create_token_request(&self.service_account, &params, &request).await;
        let answer = answer
            .with_context(|| format!("a token for ServiceAccount {}", self.service_account))?;
        let token = answer.status.and_then(|status| status.token);
        let token = token.context("the API gave no token")?;
        write_if_changed(&folder.join("token"), token.as_bytes(), 0o600)?;
        self.taken = Some(Instant::now());
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn folder_holds_exactly_the_files_of_the_secret() {
        let dir = tempfile::tempdir().unwrap();
        let one = Files::from([("a".into(), b"1".to_vec()), ("b".into(), b"2".to_vec())]);
        write_all(dir.path(), &one, 0o600).unwrap();
        let two = Files::from([("a".into(), b"3".to_vec())]);
        write_all(dir.path(), &two, 0o600).unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"3");
        assert!(!dir.path().join("b").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no scratch files stay");
    }

    #[test]
    fn a_missing_secret_is_fine_only_when_optional() {
        assert!(chosen(None, None, None, "Secret", "s").is_err());
        assert!(chosen(None, None, Some(true), "Secret", "s").unwrap().is_empty());
        let items = [KeyToPath { key: "k".into(), path: "p".into(), mode: None }];
        let files = Files::from([("k".into(), vec![]), ("other".into(), vec![])]);
        let chosen = chosen(Some(files), Some(&items), None, "Secret", "s").unwrap();
        assert_eq!(chosen.keys().collect::<Vec<_>>(), ["p"]);
    }
}
