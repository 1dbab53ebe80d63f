//! What the hub makes in its own namespace when it is not there: CA, capability keys, and what join
//! lines say of the hub.
//!
//! Owns the form of these Secrets and that ConfigMap. Never replaces a CA or a key by itself: whoever
//! creates first wins, everybody else reads; what a change asked for makes of them is here too, when is
//! [`crate::rotation`]'s. Fails while the API server does not let it; the start waits for it.

use std::collections::BTreeMap;

use fairlead_crds::keys;
use fairlead_translate::CapabilityKeys;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use crate::authority::Authorities;
use crate::clock;
use crate::pki::{Ca, CaPem, PkiError, make_ca};

/// Start of a capability key's name in its Secret; the epoch follows.
const CAPABILITY_PREFIX: &str = "capability-";
const KEY_BYTES: usize = 32;
const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";
/// The CA that comes after the one of [`CERT`], while it changes.
const NEXT_CERT: &str = "next.crt";
const NEXT_KEY: &str = "next.key";

type Data = BTreeMap<String, ByteString>;

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
pub async fn ensure_ca(client: &Client, namespace: &str) -> Result<Authorities, BootstrapError> {
    let name = keys::SECRET_HUB_CA;
    let make = || {
        let pem = make_ca(clock::now())?;
        let bytes = |text: String| ByteString(text.into_bytes());
        Ok([(CERT.into(), bytes(pem.certificate)), (KEY.into(), bytes(pem.key))].into())
    };
    let secret = ensure_secret(client, namespace, name, "kubernetes.io/tls", make).await?;
    read_authorities(&secret)
}

/// The CAs in their Secret.
///
/// # Errors
/// When one of them cannot be used.
pub fn read_authorities(data: &Data) -> Result<Authorities, BootstrapError> {
    let text = |key: &'static str| {
        let bytes = data.get(key).map(|bytes| bytes.0.clone());
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        text.ok_or(BootstrapError::Damaged { name: keys::SECRET_HUB_CA, key })
    };
    let open = |certificate, key| -> Result<Ca, BootstrapError> {
        Ok(Ca::open(&CaPem { certificate: text(certificate)?, key: text(key)? })?)
    };
    let next = data.contains_key(NEXT_CERT).then(|| open(NEXT_CERT, NEXT_KEY)).transpose()?;
    Ok(Authorities::new(open(CERT, KEY)?, next))
}

/// The same CA with a new one beside it; one that is there already stays.
///
/// # Errors
/// When a key cannot be made.
pub fn with_next_ca(data: &Data) -> Result<Data, BootstrapError> {
    let mut data = data.clone();
    if !data.contains_key(NEXT_CERT) {
        let pem = make_ca(clock::now())?;
        data.insert(NEXT_CERT.to_owned(), ByteString(pem.certificate.into_bytes()));
        data.insert(NEXT_KEY.to_owned(), ByteString(pem.key.into_bytes()));
    }
    Ok(data)
}

/// The new CA alone.
pub fn promote_next_ca(data: &Data) -> Data {
    let mut data = data.clone();
    for (from, to) in [(NEXT_CERT, CERT), (NEXT_KEY, KEY)] {
        if let Some(bytes) = data.remove(from) {
            data.insert(to.to_owned(), bytes);
        }
    }
    data
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
    read_keys(&secret)
}

/// The capability keys in their Secret.
///
/// # Errors
/// When there is none.
pub fn read_keys(data: &Data) -> Result<CapabilityKeys, BootstrapError> {
    let keys = whole_keys(data);
    if keys.epochs.is_empty() {
        let (name, key) = (keys::SECRET_HUB_KEYS, "capability-1");
        return Err(BootstrapError::Damaged { name, key });
    }
    Ok(keys)
}

/// The same keys and a new one, which is the newest.
pub fn with_new_key(data: &Data) -> Data {
    let mut data = data.clone();
    let next = whole_keys(&data).newest().unwrap_or(0) + 1;
    let key: [u8; KEY_BYTES] = rand::random();
    data.insert(format!("{CAPABILITY_PREFIX}{next}"), ByteString(key.to_vec()));
    data
}

/// The keys that doors take, without those that nobody takes any more.
pub fn without_old_keys(data: &Data) -> Data {
    let accepted: Vec<String> =
        whole_keys(data).accepted().map(|epoch| format!("{CAPABILITY_PREFIX}{epoch}")).collect();
    let stays = |name: &String| !name.starts_with(CAPABILITY_PREFIX) || accepted.contains(name);
    data.clone().into_iter().filter(|(name, _)| stays(name)).collect()
}

fn whole_keys(data: &Data) -> CapabilityKeys {
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
    make: impl FnOnce() -> Result<Data, BootstrapError>,
) -> Result<Data, BootstrapError> {
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
#[expect(clippy::unwrap_used, reason = "tests")]
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
        let keys = read_keys(&data.into()).unwrap();
        assert_eq!(keys.epochs, [(2, [7; 32])].into());
        assert!(read_keys(&Data::new()).is_err());
    }

    #[test]
    fn after_three_additions_the_first_key_is_gone_and_nothing_else() {
        let mut data = Data::from([
            ("capability-1".to_owned(), ByteString(vec![7; 32])),
            ("note".to_owned(), ByteString(vec![1])),
        ]);
        for newest in 2..=4 {
            data = with_new_key(&data);
            assert_eq!(read_keys(&data).unwrap().newest(), Some(newest));
        }
        let kept = without_old_keys(&data);
        let epochs: Vec<u32> = read_keys(&kept).unwrap().epochs.into_keys().collect();
        assert_eq!(epochs, [2, 3, 4]);
        assert!(kept.contains_key("note"));
        assert_eq!(without_old_keys(&kept), kept);
    }

    #[test]
    fn a_new_ca_comes_beside_the_old_and_then_alone() {
        let pem = make_ca(clock::now()).unwrap();
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let one = Data::from([
            (CERT.to_owned(), bytes(&pem.certificate)),
            (KEY.to_owned(), bytes(&pem.key)),
        ]);
        let hash = |data: &Data| {
            let read = read_authorities(data).unwrap();
            (read.server().hash(), read.signer().hash(), read.all().count())
        };
        let two = with_next_ca(&one).unwrap();
        assert_eq!(
            with_next_ca(&two).unwrap(),
            two,
            "a step that is taken again makes no third CA"
        );
        let last = promote_next_ca(&two);
        let (old, new) = (hash(&one).0, hash(&two).1);
        assert_ne!(old, new);
        assert_eq!(hash(&two), (old, new.clone(), 2));
        assert_eq!(hash(&last), (new.clone(), new, 1));
        assert_eq!(promote_next_ca(&last), last);
        let broken = Data::from([(NEXT_CERT.to_owned(), bytes("x"))]);
        assert!(read_authorities(&one.clone().into_iter().chain(broken).collect()).is_err());
    }
}
