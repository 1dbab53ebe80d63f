//! What the hub does again from time to time: it says where it is and who it is, and renews its own certificate.
//!
//! Owns these two loops, and the names by which agents may dial the hub. Both try again by themselves, and
//! neither stops the hub.

use std::sync::Arc;
use std::time::Duration;

use fairlead_crds::keys;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use tokio::sync::watch::Receiver;

use crate::args::RunArgs;
use crate::authority::{Authorities, Authority};
use crate::pki::{SERVER_NAME, SERVER_RENEWAL};
use crate::tls::HubCertificate;
use crate::{bootstrap, clock};

/// How often the hub says again in its ConfigMap who it is.
const PUBLISH_PERIOD: Duration = Duration::from_secs(600);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// Says in the hub's ConfigMap who it is: again when its CA changes, and from time to time.
pub async fn publish(client: Client, args: RunArgs, authority: Arc<Authority>) {
    let mut changes = authority.subscribe();
    loop {
        let (advertise, now) = (args.advertise.as_deref(), changes.borrow_and_update().clone());
        let told = bootstrap::publish_hub(&client, &args.namespace, now.server(), advertise).await;
        let pause = match told {
            Ok(()) => PUBLISH_PERIOD,
            Err(error) => {
                let error = anyhow::Error::from(error);
                tracing::warn!(
                    error = format!("{error:#}"),
                    "joining clusters cannot learn of the hub"
                );
                RETRY
            }
        };
        wait_change(&mut changes, pause).await;
    }
}

/// Waits until the CA changes, but no longer than so.
async fn wait_change(changes: &mut Receiver<Arc<Authorities>>, pause: Duration) {
    // What sends changes lives as long as the process.
    let _ = tokio::time::timeout(pause, changes.changed()).await;
}

/// Renews the hub's own certificate: when its CA changes, and from time to time.
pub async fn renew(
    client: Client,
    args: RunArgs,
    authority: Arc<Authority>,
    certificate: Arc<HubCertificate>,
) {
    let mut changes = authority.subscribe();
    loop {
        wait_change(&mut changes, SERVER_RENEWAL).await;
        let names = server_names(&client, &args).await;
        let now = changes.borrow_and_update().clone();
        let renewed = now.server().issue_server(&names, clock::now()).map_err(anyhow::Error::from);
        match renewed.and_then(|next| Ok(certificate.swap(next)?)) {
            Ok(()) => tracing::info!("renewed the hub's certificate"),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "cannot renew the hub's certificate");
            }
        }
    }
}

/// Every name by which agents may dial the hub.
pub async fn server_names(client: &Client, args: &RunArgs) -> Vec<String> {
    let (namespace, hub) = (&args.namespace, keys::HUB);
    let mut names = vec![
        SERVER_NAME.to_owned(),
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
        hub.to_owned(),
        format!("{hub}.{namespace}"),
        format!("{hub}.{namespace}.svc"),
        format!("{hub}.{namespace}.svc.cluster.local"),
    ];
    let listen = args.listen.ip();
    if !listen.is_unspecified() {
        names.push(listen.to_string());
    }
    let address = match &args.advertise {
        Some(address) => Some(address.clone()),
        None => published_address(client, namespace).await,
    };
    names.extend(address.as_deref().and_then(host_of));
    names.sort();
    names.dedup();
    names
}

/// The address that somebody else wrote into the hub's ConfigMap.
async fn published_address(client: &Client, namespace: &str) -> Option<String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = maps.get_opt(keys::CONFIG_MAP_HUB).await.ok()??;
    map.data?.remove("address")
}

/// The host of `https://host:port`.
fn host_of(address: &str) -> Option<String> {
    let uri: http::Uri = address.parse().ok()?;
    let host = uri.host()?;
    Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_an_address_is_found() {
        let rows = [
            ("https://hub.example.com:8443", Some("hub.example.com")),
            ("https://10.0.0.1:1", Some("10.0.0.1")),
            ("https://[fd00::1]:8443", Some("fd00::1")),
            ("", None),
        ];
        for (address, want) in rows {
            assert_eq!(host_of(address).as_deref(), want, "{address}");
        }
    }
}
