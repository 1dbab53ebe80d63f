//! Services of a member that other members may use.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_crds::keys;
use fairlead_model::snapshot::{Consent, GrantFrom, PortState, ServiceState};
use fairlead_model::{Json, Note, NsName, Reason, RouteKind, ServicePort};

use super::slice::{ingest_slice_counts, sum_slice_counts};
use super::{AgentConfig, ExportPolicy};
use crate::raw;

/// Ports of one Service that are reported.
const PORTS_MAX: usize = 128;
/// Grants of one Service that are reported.
const GRANTS_MAX: usize = 1_024;

/// The state of a Service, when it is exported; also when the member's own configuration refuses that,
/// so that the hub can say so. `slices` and `grants` are those of the Service and of its namespace.
pub fn ingest_service<'a>(
    service: &Json,
    export: Option<&Json>,
    slices: impl IntoIterator<Item = &'a Json>,
    grants: impl IntoIterator<Item = &'a Json>,
    config: &AgentConfig,
) -> (Option<ServiceState>, Vec<Note>) {
    let mut notes = Vec::new();
    let Some(name) = raw::ns_name(service) else { return (None, notes) };
    let export = export.filter(|export| !raw::is_deleting(export));
    if raw::is_deleting(service) || !is_exported(&name, service, export, config) {
        return (None, notes);
    }
    let subject = format!("Service {name}");
    if raw::text(service, "/spec/type") == Some("ExternalName") {
        // It could point a member's gateway at anything its own network reaches (CVE-2021-25740).
        if export.is_some() {
            let message = "an ExternalName Service is never exported";
            notes.push(Note::new(subject, Reason::ExportNotAllowed, message));
        }
        return (None, notes);
    }
    let counts: Vec<_> = slices.into_iter().filter_map(ingest_slice_counts).collect();
    let without_port: u32 =
        counts.iter().fold(0, |sum, slice| sum.saturating_add(slice.without_port));
    if without_port > 0 {
        let message = format!(
            "{without_port} endpoints are in EndpointSlices without ports and do not count; \
             check that targetPort is a port of the pods"
        );
        notes.push(Note::new(&subject, Reason::NoReadyEndpoints, message));
    }
    let allowed = config.allows(&name.namespace);
    let state = ServiceState {
        exported_at: raw::created_at(export.unwrap_or(service)),
        consent: if allowed { Consent::Given } else { Consent::Refused },
        ports: ports(service, &subject, &mut notes),
        zones: sum_slice_counts(&counts),
        grants: ingest_grants(&name.name, grants),
    };
    (Some(state), notes)
}

fn is_exported(name: &NsName, service: &Json, export: Option<&Json>, config: &AgentConfig) -> bool {
    if export.is_some() {
        return true;
    }
    // Under `All` nobody asked for this one, so what is the cluster's or ours stays at home.
    let homely = &*name.namespace == keys::NAMESPACE
        || raw::is_ours(service)
        || (&*name.namespace == "default" && &*name.name == "kubernetes");
    match config.export_policy {
        ExportPolicy::Explicit => false,
        ExportPolicy::All => !homely && config.allows(&name.namespace),
    }
}

fn ports(service: &Json, subject: &str, notes: &mut Vec<Note>) -> BTreeMap<ServicePort, PortState> {
    let written = raw::list(service, "/spec/ports");
    if written.len() > PORTS_MAX {
        let message = format!("{} ports, the first {PORTS_MAX} are used", written.len());
        notes.push(Note::new(subject, Reason::TooLarge, message));
    }
    let mut ports: BTreeMap<ServicePort, PortState> = BTreeMap::new();
    for port in written.iter().take(PORTS_MAX) {
        let Some(number) = raw::port(port, "port") else { continue };
        let text = |name: &str| raw::field(port, name).unwrap_or_default().to_owned();
        let protocol = raw::field(port, "protocol").unwrap_or("TCP").to_owned();
        let state = PortState { name: text("name"), protocol, app_protocol: text("appProtocol") };
        // One number may stand twice, for TCP and UDP (DNS, HTTP/3): TCP is what routes use.
        if state.protocol == "TCP" || !ports.contains_key(&number) {
            ports.insert(number, state);
        }
    }
    ports
}

/// From where the owners of a Service let routes refer to it. Our own grants are no owner's word.
pub fn ingest_grants<'a>(
    service: &str,
    grants: impl IntoIterator<Item = &'a Json>,
) -> BTreeSet<GrantFrom> {
    let mut found = BTreeSet::new();
    for grant in grants.into_iter().filter(|grant| !raw::is_ours(grant) && !raw::is_deleting(grant))
    {
        let names = |to: &Json| {
            to.get("group").and_then(Json::as_str).unwrap_or_default().is_empty()
                && raw::field(to, "kind") == Some("Service")
                && names_it(to, service)
        };
        if !raw::list(grant, "/spec/to").iter().any(names) {
            continue;
        }
        for from in raw::list(grant, "/spec/from") {
            found.extend(grant_from(from).filter(|_| found.len() < GRANTS_MAX));
        }
    }
    found
}

/// Without a name a grant is for all objects of the kind; a name that is no text is for none.
fn names_it(to: &Json, name: &str) -> bool {
    match to.get("name") {
        None | Some(Json::Null) => true,
        Some(value) => value.as_str().is_some_and(|text| text == name || text.is_empty()),
    }
}

fn grant_from(from: &Json) -> Option<GrantFrom> {
    if raw::field(from, "group") != Some(keys::GATEWAY_GROUP) {
        return None;
    }
    let kind = raw::field(from, "kind")?;
    let kind = RouteKind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    Some(GrantFrom { kind, namespace: raw::field(from, "namespace")?.to_owned() })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use fairlead_model::Millis;
    use serde_json::json;

    fn service() -> Json {
        json!({"metadata": {"name": "cart", "namespace": "shop", "creationTimestamp": "1970-01-01T00:00:05Z"},
            "spec": {"ports": [
                {"name": "dns-udp", "port": 53, "protocol": "UDP"},
                {"name": "dns", "port": 53},
                {"name": "web", "port": 80, "appProtocol": "kubernetes.io/h2c"},
                {"port": 0}, {"port": "x"}]}})
    }

    fn export() -> Json {
        json!({"metadata": {"name": "cart", "namespace": "shop", "creationTimestamp": "1970-01-01T00:00:09.5Z"}})
    }

    fn ingest(
        service: &Json,
        export: Option<&Json>,
        config: &AgentConfig,
    ) -> (Option<ServiceState>, Vec<Note>) {
        ingest_service(service, export, [], [], config)
    }

    fn all() -> AgentConfig {
        AgentConfig { export_policy: ExportPolicy::All, ..AgentConfig::default() }
    }

    #[test]
    fn no_export_no_report() {
        assert_eq!(ingest(&service(), None, &AgentConfig::default()), (None, vec![]));
    }

    #[test]
    fn export_is_as_old_as_its_object() {
        let state = ingest(&service(), Some(&export()), &AgentConfig::default()).0.unwrap();
        assert_eq!((state.exported_at, state.consent), (Millis(9_500), Consent::Given));
        assert_eq!(state.ports.keys().copied().collect::<Vec<_>>(), [53, 80]);
        assert_eq!((&*state.ports[&53].protocol, &*state.ports[&53].name), ("TCP", "dns"));
        assert_eq!(state.ports[&80].app_protocol, "kubernetes.io/h2c");
    }

    #[test]
    fn export_that_the_configuration_refuses_is_reported_as_refused() {
        let config = AgentConfig { denied_namespaces: ["shop".into()].into(), ..all() };
        let state = ingest(&service(), Some(&export()), &config).0.unwrap();
        assert_eq!(state.consent, Consent::Refused);
        assert_eq!(ingest(&service(), None, &config).0, None);
    }

    #[test]
    fn policy_all_exports_what_is_not_the_clusters_or_ours() {
        assert_eq!(ingest(&service(), None, &all()).0.unwrap().exported_at, Millis(5_000));
        let mut ours = service();
        ours["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "fairlead"});
        assert_eq!(ingest(&ours, None, &all()).0, None);
        let api = json!({"metadata": {"name": "kubernetes", "namespace": "default"}});
        assert_eq!(ingest(&api, None, &all()).0, None);
    }

    #[test]
    fn external_names_are_never_exported() {
        let mut external = service();
        external["spec"]["type"] = "ExternalName".into();
        let (state, notes) = ingest(&external, Some(&export()), &all());
        assert_eq!((state, notes[0].reason), (None, Reason::ExportNotAllowed));
    }

    #[test]
    fn endpoints_without_ports_are_said() {
        let slice = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"]}]});
        let (state, notes) = ingest_service(&service(), Some(&export()), [&slice], [], &all());
        assert_eq!((state.unwrap().counts().total, notes[0].reason), (0, Reason::NoReadyEndpoints));
    }

    #[test]
    fn grants_count_for_the_service_or_for_all() {
        let grant = |to: Json| {
            json!({"spec": {"to": [to], "from": [
                {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "web"},
                {"group": "example.com", "kind": "HTTPRoute", "namespace": "bad"},
                {"group": "gateway.networking.k8s.io", "kind": "Odd", "namespace": "bad"}]}})
        };
        let count = |to| ingest_grants("cart", [&grant(to)]).len();
        assert_eq!(count(json!({"kind": "Service"})), 1);
        assert_eq!(count(json!({"group": "", "kind": "Service", "name": "cart"})), 1);
        assert_eq!(count(json!({"group": "", "kind": "Service", "name": "other"})), 0);
        assert_eq!(count(json!({"group": "", "kind": "Service", "name": 3})), 0);
        assert_eq!(count(json!({"group": "", "kind": "Secret"})), 0);
        let mut ours = grant(json!({"kind": "Service"}));
        ours["metadata"] = json!({"labels": {"app.kubernetes.io/managed-by": "fairlead"}});
        assert!(ingest_grants("cart", [&ours]).is_empty());
    }
}
