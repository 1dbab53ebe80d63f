//! DNSEndpoint: names for the ExternalDNS of the member, one object per DNSPolicy.

use std::net::IpAddr;

use fairlead_crds::keys;
use fairlead_model::Json;
use fairlead_model::dns::{DnsName, PublishedSet};
use fairlead_model::plan::MemberPlan;
use serde_json::json;

use super::{Draft, metadata};
use crate::names;

pub(super) fn render_endpoints(plan: &MemberPlan, draft: &mut Draft) {
    for (policy, published) in &plan.published {
        let endpoints: Vec<Json> =
            published.iter().flat_map(|(name, set)| endpoints(name, set)).collect();
        let name = names::dns_endpoint(&policy.namespace, &policy.name);
        draft.put(json!({
            "apiVersion": "externaldns.k8s.io/v1alpha1",
            "kind": "DNSEndpoint",
            "metadata": metadata(keys::NAMESPACE, &name),
            "spec": {"endpoints": endpoints},
        }));
    }
}

/// One for each type that has targets: ExternalDNS takes an endpoint without targets for a wish to have
/// none.
fn endpoints(name: &DnsName, set: &PublishedSet) -> Vec<Json> {
    let of = |is: fn(&&IpAddr) -> bool| -> Vec<String> {
        set.addresses.iter().filter(is).map(ToString::to_string).collect()
    };
    let alias = set.alias.iter().map(ToString::to_string).collect();
    let servers = set.servers.iter().map(ToString::to_string).collect();
    let (v4, v6) = (of(|ip| ip.is_ipv4()), of(|ip| ip.is_ipv6()));
    [("A", v4), ("AAAA", v6), ("CNAME", alias), ("NS", servers)]
        .into_iter()
        .filter(|(_, targets)| !targets.is_empty())
        .map(|(kind, targets)| {
            json!({
                "dnsName": name.as_str(),
                "recordType": kind,
                "recordTTL": set.ttl_s,
                "targets": targets,
            })
        })
        .collect()
}
