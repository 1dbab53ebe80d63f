//! What the hub makes in its own namespace when it is not there: CA, capability keys, and what join
//! lines say of the hub.
//!
//! Owns these Secrets and that ConfigMap. Never replaces a CA or a key: whoever creates first wins,
//! everybody else reads. Fails while the API server does not let it; the start waits for it.

use std::collections::BTreeMap;

use fairlead_crds::keys;
use fairlead_translate::CapabilityKeys;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use crate::clock;
use crate::pki::{Ca, CaPem, PkiError, make_ca};

/// Start of a capability key's name in its Secret; the epoch follows.
const CAPABILITY_PREFIX: &str = "capability-";
const KEY_BYTES: usize = 32;

/// Why the hub's own objects are not there.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The API server did not do it.
    #[error("{operation} {name} failed")]
    Api {
        /// What was tried.
        operation: &'static str,
        /// On which object.
        name: &'static str,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// The CA cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A Secret lacks what it is for.
    #[error(
        "Secret {name} has no usable {key}; restore it from a backup, or delete it to start anew"
    )]
    Damaged {
        /// The Secret.
        name: &'static str,
        /// The key in it.
        key: &'static str,
    },
}

fn api(operation: &'static str, name: &'static str) -> impl FnOnce(kube::Error) -> BootstrapError {
    move |source| BootstrapError::Api { operation, name, source: Box::new(source) }
}

/// Reads the CA, making it at the very first start.
///
/// # Errors
/// When the API server does not answer, or the Secret is damaged.
pub async fn ensure_ca(client: &Client, namespace: &str) -> Result<Ca, BootstrapError> {
    let name = keys::SECRET_HUB_CA;
    let make = || {
        let pem = make_ca(clock::now())?;
        let bytes = |text: String| ByteString(text.into_bytes());
        Ok([("tls.crt".into(), bytes(pem.certificate)), ("tls.key".into(), bytes(pem.key))].into())
    };
    let secret = ensure_secret(client, namespace, name, "kubernetes.io/tls", make).await?;
    let text = |key: &'static str| {
        let bytes = secret.get(key).map(|bytes| bytes.0.clone());
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        text.ok_or(BootstrapError::Damaged { name, key })
    };
    Ok(Ca::open(&CaPem { certificate: text("tls.crt")?, key: text("tls.key")? })?)
}

/// Reads the capability keys, making the first at the very first start.
///
/// # Errors
/// When the API server does not answer, or the Secret holds no key.
pub async fn ensure_keys(
    client: &Client,
    namespace: &str,
) -> Result<CapabilityKeys, BootstrapError> {
    let name = keys::SECRET_HUB_KEYS;
    let make = || {
        let key: [u8; KEY_BYTES] = rand::random();
        Ok([(format!("{CAPABILITY_PREFIX}1"), ByteString(key.to_vec()))].into())
    };
    let secret = ensure_secret(client, namespace, name, "Opaque", make).await?;
    let keys = read_keys(&secret);
    if keys.epochs.is_empty() {
        return Err(BootstrapError::Damaged { name, key: "capability-1" });
    }
    Ok(keys)
}

fn read_keys(data: &BTreeMap<String, ByteString>) -> CapabilityKeys {
    let epoch = |(name, bytes): (&String, &ByteString)| {
        let epoch = name.strip_prefix(CAPABILITY_PREFIX)?.parse().ok()?;
        Some((epoch, bytes.0.as_slice().try_into().ok()?))
    };
    CapabilityKeys { epochs: data.iter().filter_map(epoch).collect() }
}

async fn ensure_secret(
    client: &Client,
    namespace: &str,
    name: &'static str,
    kind: &str,
    make: impl FnOnce() -> Result<BTreeMap<String, ByteString>, BootstrapError>,
) -> Result<BTreeMap<String, ByteString>, BootstrapError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(secret) = secrets.get_opt(name).await.map_err(api("reading Secret", name))? {
        return Ok(secret.data.unwrap_or_default());
    }
    let mut secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {
            keys::MANAGED_BY: keys::FAIRLEAD, keys::PART_OF: keys::FAIRLEAD,
        }},
        "type": kind,
    }))
    .expect("the object is a Secret");
    secret.data = Some(make()?);
    let params = PostParams {
        field_manager: Some(keys::FIELD_MANAGER_HUB.to_owned()),
        ..PostParams::default()
    };
    match secrets.create(&params, &secret).await {
        Ok(secret) => {
            tracing::info!(secret = name, "made a Secret of the hub");
            Ok(secret.data.unwrap_or_default())
        }
        // Another hub process was faster: its Secret counts.
        Err(kube::Error::Api(status)) if status.is_already_exists() || status.is_conflict() => {
            let secret = secrets.get(name).await.map_err(api("reading Secret", name))?;
            Ok(secret.data.unwrap_or_default())
        }
        Err(error) => Err(api("creating Secret", name)(error)),
    }
}

/// Says in the hub's ConfigMap what join lines must tell.
///
/// # Errors
/// When the API server does not do it.
pub async fn publish_hub(
    client: &Client,
    namespace: &str,
    ca: &Ca,
    advertise: Option<&str>,
) -> Result<(), BootstrapError> {
    let name = keys::CONFIG_MAP_HUB;
    let mut data = json!({
        "ca.crt": ca.certificate_pem(),
        "ca-hash": ca.hash(),
        "version": env!("CARGO_PKG_VERSION"),
    });
    if let Some(address) = advertise {
        // Without the flag the address is somebody else's field: the chart's, or a person's.
        data["address"] = json!(address);
    }
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {keys::PART_OF: keys::FAIRLEAD}},
        "data": data,
    });
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(keys::FIELD_MANAGER_HUB).force();
    let applied = maps.patch(name, &params, &Patch::Apply(&object)).await;
    applied.map(|_| ()).map_err(api("writing ConfigMap", name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_keys_with_an_epoch_count() {
        let row = |name: &str, len: usize| (name.to_owned(), ByteString(vec![7; len]));
        let data = [
            row("capability-2", 32),
            row("capability-1", 31),
            row("capability-x", 32),
            row("x", 32),
        ];
        let keys = read_keys(&data.into());
        assert_eq!(keys.epochs, [(2, [7; 32])].into());
    }
}
