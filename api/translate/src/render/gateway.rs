//! Global gateways as a member serves them: Gateways that we make, and one field of lent ones.

use std::collections::BTreeSet;

use fairlead_crds::keys;
use fairlead_model::bundle::{Claim, Gate};
use fairlead_model::plan::{GatewayPlan, MemberPlan};
use fairlead_model::{Json, NsName, Reason};
use serde_json::json;

use super::grant::{self, GRANT_ENTRIES_MAX};
use super::{Draft, GATEWAY_API, metadata, mirror_annotations};
use crate::{names, shard};

/// Renders every global gateway of the plan, and the grants for our client certificate.
pub(super) fn render_gateways(plan: &MemberPlan, draft: &mut Draft) {
    let mut namespaces = BTreeSet::new();
    for (global, gateway) in &plan.gateways {
        match gateway {
            GatewayPlan::Created { class, spec } => {
                namespaces.insert(global.namespace.to_string());
                render_created(global, class, spec, draft);
            }
            GatewayPlan::Lent { local } => {
                namespaces.insert(local.namespace.to_string());
                draft.put_as(lent(local), Gate::Open, Claim::Fields);
            }
        }
    }
    render_client_cert_grants(namespaces, draft);
}

fn render_created(global: &NsName, class: &str, spec: &Json, draft: &mut Draft) {
    let subject = format!("Gateway/{global}");
    let Some(mut spec) = spec.as_object().cloned() else {
        draft.note(subject, Reason::Unreadable, "its spec is no object");
        return;
    };
    spec.insert("gatewayClassName".into(), class.into());
    // Who may attach is settled in the hub: here they would let in sets and routes of the member's own.
    spec.remove("allowedListeners");
    spec.remove("defaultScope");
    let mut spec = Json::Object(spec);
    set_client_cert(&mut spec);
    let mut metadata = metadata(&global.namespace, &names::gateway_mirror(&global.name));
    metadata["annotations"] = mirror_annotations(&subject);
    draft.put(json!({
        "apiVersion": GATEWAY_API,
        "kind": "Gateway",
        "metadata": metadata,
        "spec": spec,
    }));
}

/// Of a Gateway that is the member's own we apply one field. Not even our label: it is not ours.
fn lent(local: &NsName) -> Json {
    let mut spec = json!({});
    set_client_cert(&mut spec);
    json!({
        "apiVersion": GATEWAY_API,
        "kind": "Gateway",
        "metadata": {"namespace": &*local.namespace, "name": &*local.name},
        "spec": spec,
    })
}

/// What the Gateway shows at other members' doors. Neighbouring fields of `spec.tls` stay.
fn set_client_cert(spec: &mut Json) {
    // What is not as the API says is replaced, or the API server would refuse all of the Gateway.
    if !spec["tls"].is_object() {
        spec["tls"] = json!({});
    }
    if !spec["tls"]["backend"].is_object() {
        spec["tls"]["backend"] = json!({});
    }
    spec["tls"]["backend"]["clientCertificateRef"] = json!({
        "group": "",
        "kind": "Secret",
        "namespace": keys::NAMESPACE,
        "name": keys::SECRET_EAST_WEST_CLIENT,
    });
}

fn render_client_cert_grants(namespaces: BTreeSet<String>, draft: &mut Draft) {
    // Within our own namespace no grant is needed.
    let others = namespaces.into_iter().filter(|namespace| namespace != keys::NAMESPACE).collect();
    for (bits, namespaces) in shard::shard(others, GRANT_ENTRIES_MAX, String::clone) {
        draft.put(grant::grant(
            keys::NAMESPACE,
            &names::client_cert_grant(&bits),
            namespaces.iter().map(|namespace| grant::from("Gateway", namespace)).collect(),
            vec![grant::to("Secret", keys::SECRET_EAST_WEST_CLIENT)],
        ));
    }
}
