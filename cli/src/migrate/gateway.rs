//! The global gateway that all hosts of the Ingresses need, and what stands around it.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_crds::keys;
use fairlead_model::{Json, NsName};
use serde_json::json;

use super::{Ingress, Options, route};
use crate::migrate::annotation::ToHttps;

/// Listener for requests without TLS.
const PLAIN: &str = "http";

/// Hosts, and the Secrets with their certificates.
#[derive(Default)]
pub(super) struct Hosts {
    /// Secret by host, with TLS.
    tls: BTreeMap<String, NsName>,
    /// Hosts that send their clients to HTTPS, by namespace.
    to_https: BTreeMap<String, BTreeSet<String>>,
}

impl Hosts {
    /// Takes an Ingress in; hosts that are to be HTTPS only and cannot be.
    pub(super) fn add(&mut self, ingress: &Ingress<'_>) -> Vec<String> {
        let namespace = &*ingress.name.namespace;
        let blocks = ingress.spec["tls"].as_array().into_iter().flatten();
        let all_hosts: Vec<&str> =
            ingress.rules().iter().filter_map(|rule| rule["host"].as_str()).collect();
        let mut with_tls = BTreeSet::new();
        for block in blocks {
            let Some(secret) = block["secretName"].as_str() else { continue };
            let named: Vec<&str> =
                block["hosts"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
            for host in if named.is_empty() { &all_hosts } else { &named } {
                let secret = NsName::new(namespace, secret);
                self.tls.entry((*host).to_owned()).or_insert(secret);
                with_tls.insert((*host).to_owned());
            }
        }
        let missing = match ingress.settings.to_https {
            ToHttps::Always => {
                let without = all_hosts.iter().filter(|host| !with_tls.contains(**host));
                without.map(|host| (*host).to_owned()).collect()
            }
            ToHttps::Never | ToHttps::WithTls => Vec::new(),
        };
        if ingress.settings.to_https != ToHttps::Never && !with_tls.is_empty() {
            self.to_https.entry(namespace.to_owned()).or_default().extend(with_tls);
        }
        missing
    }

    pub(super) fn gateway(&self, options: &Options) -> Json {
        let allowed = json!({"namespaces": {"from": "All"}});
        let mut listeners = vec![json!({
            "name": PLAIN, "port": 80, "protocol": "HTTP", "allowedRoutes": allowed,
        })];
        for (number, (host, secret)) in (1..).zip(&self.tls) {
            let mut certificate = json!({"name": &*secret.name});
            if secret.namespace != options.gateway.namespace {
                certificate["namespace"] = json!(&*secret.namespace);
            }
            listeners.push(json!({
                "name": format!("https-{number}"), "port": 443, "protocol": "HTTPS", "hostname": host,
                "tls": {"mode": "Terminate", "certificateRefs": [certificate]},
                "allowedRoutes": allowed,
            }));
        }
        json!({
            "apiVersion": format!("{}/v1", keys::GATEWAY_GROUP), "kind": "Gateway",
            "metadata": {"namespace": &*options.gateway.namespace, "name": &*options.gateway.name},
            "spec": {"gatewayClassName": keys::GATEWAY_CLASS, "listeners": listeners},
        })
    }

    /// Routes that send clients to HTTPS, on the listener without TLS; the hosts' other routes keep
    /// away from that listener, where their longer paths would win.
    pub(super) fn redirects(&self, options: &Options) -> Vec<Json> {
        let of = |(namespace, hosts): (&String, &BTreeSet<String>)| {
            let spec = json!({
                "parentRefs": [{
                    "namespace": &*options.gateway.namespace, "name": &*options.gateway.name,
                    "sectionName": PLAIN,
                }],
                "hostnames": hosts,
                "rules": [{"filters": [{"type": "RequestRedirect",
                    "requestRedirect": {"scheme": "https", "statusCode": 301}}]}],
            });
            route(namespace, "redirect-to-https", &spec)
        };
        self.to_https.iter().map(of).collect()
    }

    /// Parents of a route with these hostnames.
    pub(super) fn parents(&self, hostnames: &[String], options: &Options) -> Vec<Json> {
        let whole =
            json!({"namespace": &*options.gateway.namespace, "name": &*options.gateway.name});
        let is_redirected =
            |host: &String| self.to_https.values().any(|hosts| hosts.contains(host));
        if hostnames.is_empty() || !hostnames.iter().any(is_redirected) {
            return vec![whole];
        }
        let listener = |host: &String| {
            let at = self.tls.keys().position(|known| known == host)?;
            let mut parent = whole.clone();
            parent["sectionName"] = json!(format!("https-{}", at + 1));
            Some(parent)
        };
        hostnames.iter().filter_map(listener).collect()
    }

    /// Lets the gateway use Secrets of other namespaces, in the members, where the Secrets are.
    pub(super) fn grants(&self, options: &Options) -> Vec<Json> {
        let mut secrets: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for secret in self.tls.values() {
            if secret.namespace != options.gateway.namespace {
                secrets.entry(&secret.namespace).or_default().insert(&secret.name);
            }
        }
        let grant = |(namespace, names): (&str, BTreeSet<&str>)| {
            json!({
                "apiVersion": format!("{}/v1", keys::GATEWAY_GROUP), "kind": "ReferenceGrant",
                "metadata": {"namespace": namespace, "name": "certificates-of-gateway"},
                "spec": {
                    "from": [{"group": keys::GATEWAY_GROUP, "kind": "Gateway",
                        "namespace": &*options.gateway.namespace}],
                    "to": names.iter().map(|name| json!({"group": "", "kind": "Secret", "name": name}))
                        .collect::<Vec<_>>(),
                },
            })
        };
        secrets.into_iter().map(grant).collect()
    }
}
