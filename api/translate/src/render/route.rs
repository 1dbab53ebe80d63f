//! Global routes as an entry serves them: the user's spec, with other parents and other backends.
//!
//! Everything else in the spec is carried as it was written, also what this version does not know.

use std::collections::BTreeMap;

use fairlead_crds::keys;
use fairlead_model::bundle::{Claim, Gate, RuleId};
use fairlead_model::plan::{
    LocalParent, MemberPlan, Passage, RoutePlan, RulePlan, SNI_LANES, Slot, SlotTarget,
};
use fairlead_model::policy::BackendTarget;
use fairlead_model::recipe::Serve;
use fairlead_model::{Json, MemberId, NsName, ObjectId, Reason, Way};
use serde_json::json;

use super::filter::{self, MirrorTargets};
use super::follow;
use super::peer::Inner;
use super::{Draft, metadata, mirror_annotations, set_label};
use crate::capability::capability;
use crate::{CapabilityKeys, names};

/// Renders every global route that this entry serves.
pub(super) fn render_routes(plan: &MemberPlan, keyring: &CapabilityKeys, draft: &mut Draft) {
    for (key, route) in &plan.routes {
        let subject = key.to_string();
        let Some(spec) = route.route.spec.as_object() else {
            draft.note(subject, Reason::Unreadable, "its spec is no object");
            continue;
        };
        let mut spec = Json::Object(spec.clone());
        spec["parentRefs"] = route.parents.iter().map(parent_ref).collect();
        // The other way of naming parents: would attach the route to the member's own Gateways.
        spec.as_object_mut().expect("an object, see above").remove("useDefaultGateways");
        let writer = Writer { plan, route, keyring, subject };
        let rendered = writer.render_rules(&mut spec, draft);
        let mut metadata = metadata(&key.name.namespace, &names::route_mirror(&key.name.name));
        metadata["annotations"] = mirror_annotations(&writer.subject);
        for (label, value) in &route.route.labels {
            if !is_of_a_deployer(label) {
                set_label(&mut metadata, label, value);
            }
        }
        let content = json!({
            "apiVersion": route.route.api_version,
            "kind": key.kind.as_str(),
            "metadata": metadata,
            "spec": spec,
        });
        if let Some(object) = draft.put_as(content, Gate::Open, Claim::Whole) {
            keep_recipes(&object, route, &rendered, draft);
        }
    }
}

/// Labels by which deployers (Argo CD, Flux, Helm) know what is theirs: one in the member would take our
/// copy for a leftover and delete it.
fn is_of_a_deployer(label: &str) -> bool {
    const DOMAINS: [&str; 5] = [
        "argocd.argoproj.io",
        "kustomize.toolkit.fluxcd.io",
        "helm.toolkit.fluxcd.io",
        "helm.sh",
        "fairlead.dev",
    ];
    const LABELS: [&str; 3] = [keys::MANAGED_BY, keys::PART_OF, "app.kubernetes.io/instance"];
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    LABELS.contains(&label) || DOMAINS.contains(&domain)
}

fn parent_ref(parent: &LocalParent) -> Json {
    let mut reference = json!({
        "group": keys::GATEWAY_GROUP,
        "kind": "Gateway",
        "namespace": &*parent.gateway.namespace,
        "name": &*parent.gateway.name,
    });
    if let Some(section) = &parent.section {
        reference["sectionName"] = section.as_str().into();
    }
    if let Some(port) = parent.port {
        reference["port"] = port.into();
    }
    reference
}

/// Position in the rendered route → position in the plan.
type Rendered = BTreeMap<u16, usize>;

/// Keeps the recipe of every rule whose weights the agent may change.
fn keep_recipes(object: &ObjectId, route: &RoutePlan, rendered: &Rendered, draft: &mut Draft) {
    for (&position, &planned) in rendered {
        let Some(rule) = route.rules.get(planned) else { continue };
        let has_candidates = rule.recipe.backends.iter().any(|backend| match &backend.serve {
            Serve::Members { tiers, .. } => tiers.iter().any(|tier| !tier.candidates.is_empty()),
            Serve::Fixed { .. } => false,
        });
        if has_candidates {
            let id = RuleId { object: object.clone(), rule: position };
            draft.bundle.recipes.insert(id, rule.recipe.clone());
        }
    }
}

struct Writer<'a> {
    plan: &'a MemberPlan,
    route: &'a RoutePlan,
    keyring: &'a CapabilityKeys,
    subject: String,
}

impl Writer<'_> {
    /// Rewrites the rules of a spec. Returns those whose slots are all where the recipe thinks.
    fn render_rules(&self, spec: &mut Json, draft: &mut Draft) -> Rendered {
        let mut rendered = Rendered::new();
        let Some(rules) = spec.get_mut("rules").and_then(Json::as_array_mut) else {
            return rendered;
        };
        let mut kept = Vec::new();
        for (at, mut rule) in std::mem::take(rules).into_iter().enumerate() {
            let subject = format!("{} rules[{at}]", self.subject);
            let (Some(planned), true) = (self.route.rules.get(at), rule.is_object()) else {
                // Kept as it is, it would catch requests and send them who knows where.
                draft.note(
                    subject,
                    Reason::CheckFailed,
                    "the plan does not know this rule; left out",
                );
                continue;
            };
            if self.render_rule(at, &mut rule, planned, &subject, draft)
                && let Ok(position) = u16::try_from(kept.len())
            {
                rendered.insert(position, at);
            }
            kept.push(rule);
        }
        *rules = kept;
        rendered
    }

    /// True when every slot of the plan is in the rule.
    fn render_rule(
        &self,
        at: usize,
        rule: &mut Json,
        planned: &RulePlan,
        subject: &str,
        draft: &mut Draft,
    ) -> bool {
        let targets = self.mirror_targets(at, planned);
        if let Some(filters) = rule.get_mut("filters") {
            if filter::strip_header(filters) {
                let message = format!(
                    "header {} is reserved; the filter leaves it alone",
                    keys::HEADER_BACKEND
                );
                draft.note(subject, Reason::UnsupportedFilter, message);
            }
            filter::rewrite_mirrors(filters, &targets, subject, draft);
            follow::rename_extensions(self.plan, targets.namespace, filters);
        }
        let written = rule.get("backendRefs").and_then(Json::as_array).cloned();
        if written.is_none() && planned.slots.is_empty() {
            return true; // A redirect, or what the implementation answers without backends.
        }
        let written = written.unwrap_or_default();
        let mut refs = Vec::new();
        let crosses = self.crosses_by_header(planned);
        for (index, slot) in planned.slots.iter().enumerate() {
            let subject = format!("{subject}.backendRefs[{}]", slot.backend);
            let base = written.get(usize::from(slot.backend)).filter(|base| base.is_object());
            let mut backend = base.cloned().unwrap_or_else(|| json!({}));
            let lane = planned.lane(index);
            if !self.point(at, &mut backend, (slot, lane), &subject, draft) {
                continue;
            }
            if let Some(filters) = backend.get_mut("filters") {
                filter::rewrite_mirrors(filters, &targets, &subject, draft);
                follow::rename_extensions(self.plan, targets.namespace, filters);
            }
            if crosses {
                filter::forget_header(&mut backend);
            }
            backend["weight"] = planned.recipe.weights.get(index).copied().unwrap_or(0).into();
            refs.push(backend);
        }
        let whole = refs.len() == planned.slots.len();
        rule["backendRefs"] = refs.into();
        whole
    }

    fn crosses_by_header(&self, planned: &RulePlan) -> bool {
        let remote = |slot: &Slot| matches!(slot.target, SlotTarget::Remote { .. });
        self.route.route.key.kind.way() == Way::Header && planned.slots.iter().any(remote)
    }

    fn mirror_targets<'b>(&'b self, at: usize, planned: &RulePlan) -> MirrorTargets<'b> {
        let key = &self.route.route.key;
        let mut targets = BTreeMap::new();
        for target in &planned.mirrors {
            let (service, port) = match target {
                SlotTarget::AsWritten => continue,
                SlotTarget::Local { service, port } | SlotTarget::Remote { service, port, .. } => {
                    (service.clone(), *port)
                }
            };
            let to = match target {
                SlotTarget::Remote { member, .. } => self
                    .passage(member, (&service, port), (Way::Sni, 0))
                    .map(|passage| NsName::new(keys::NAMESPACE, &names::passage(member, passage))),
                SlotTarget::AsWritten | SlotTarget::Local { .. } => Some(service.clone()),
            };
            targets.extend(to.map(|to| ((service, port), to)));
        }
        let rule = self.route.route.rules.get(at);
        let told = rule.map_or(&[][..], |rule| &rule.mirrors);
        MirrorTargets { namespace: &key.name.namespace, targets, told }
    }

    /// The Service of its own that a remote service has here, for the routes of this namespace.
    fn passage(
        &self,
        member: &MemberId,
        (service, port): (&NsName, u16),
        (way, lane): (Way, u16),
    ) -> Option<&Passage> {
        let from = &*self.route.route.key.name.namespace;
        let passages = &self.plan.peers.get(member)?.passages;
        passages.iter().find(|passage| {
            passage.service == *service
                && passage.port == port
                && passage.way == way
                && (passage.lane == lane || way == Way::Port)
                && passage.used_from.namespace == from
        })
    }

    /// Points a backendRef to where its slot leads; false when this kind of route cannot go there.
    fn point(
        &self,
        at: usize,
        backend: &mut Json,
        (slot, lane): (&Slot, u16),
        subject: &str,
        draft: &mut Draft,
    ) -> bool {
        match &slot.target {
            SlotTarget::AsWritten => {
                if self.must_fail(at, slot.backend, backend) {
                    filter::point_to_nothing(backend);
                }
                true
            }
            SlotTarget::Local { service, port } => {
                filter::point_to_service(backend, service, *port);
                true
            }
            SlotTarget::Remote { member, service, port, app_protocol } => {
                let kind = self.route.route.key.kind;
                if kind.way() != Way::Header {
                    let way = (kind.way(), lane);
                    let Some(passage) = self.passage(member, (service, *port), way) else {
                        let (reason, message) = match lane < SNI_LANES {
                            true => {
                                (Reason::CrossingUnsupported, "its door has no way there any more")
                            }
                            false => (
                                Reason::NoPortLeft,
                                "a rule leads to four services of one member at most",
                            ),
                        };
                        let message =
                            format!("{kind} to {service} in {member}: {message}; its share fails");
                        draft.note(subject, reason, message);
                        filter::point_to_nothing(backend);
                        return true;
                    };
                    let own = NsName::new(keys::NAMESPACE, &names::passage(member, passage));
                    filter::point_to_service(backend, &own, passage.port);
                    return true;
                }
                let inner = self.inner(app_protocol, service, subject, draft);
                let peer = NsName::new(keys::NAMESPACE, &names::peer(member));
                filter::point_to_service(backend, &peer, inner.service_port());
                if !self.set_capability(backend, member, service, *port, subject, draft) {
                    // Else a client's own header would go through to the door.
                    filter::point_to_nothing(backend);
                }
                true
            }
        }
    }

    /// A reference that was refused in the hub must not come alive in a member that has an object of
    /// that name. A kind that only the hub does not know may: it is the entry's own gateway's business.
    fn must_fail(&self, rule: usize, backend: u16, written: &Json) -> bool {
        let rule = self.route.route.rules.get(rule);
        let target = rule.and_then(|rule| rule.backends.get(usize::from(backend)));
        let refused = target.is_some_and(|backend| match &backend.target {
            BackendTarget::Invalid(note) => note.reason != Reason::InvalidKind,
            BackendTarget::Own | BackendTarget::Global { .. } => false,
        });
        refused
            || filter::is_service_import(written)
            || crate::raw::field(written, "name").is_none()
    }

    fn inner(
        &self,
        app_protocol: &str,
        service: &NsName,
        subject: &str,
        draft: &mut Draft,
    ) -> Inner {
        let inner = Inner::of(app_protocol);
        let is_grpc = self.route.route.key.kind == fairlead_model::RouteKind::GRPCRoute;
        if is_grpc && inner != Inner::Http2 {
            draft.note(
                subject,
                Reason::UnsupportedValue,
                format!(
                    "the door of the other member speaks HTTP/1.1 to {service}, which gRPC cannot use; \
                     set appProtocol: kubernetes.io/h2c on the port of that Service"
                ),
            );
        }
        inner
    }

    /// False when the request cannot be given its capability.
    fn set_capability(
        &self,
        backend: &mut Json,
        member: &MemberId,
        service: &NsName,
        port: u16,
        subject: &str,
        draft: &mut Draft,
    ) -> bool {
        let Some(peer) = self.plan.peers.get(member) else {
            draft.note(subject, Reason::CheckFailed, format!("{member} is no peer of the plan"));
            return false;
        };
        let namespace = &self.route.route.key.name.namespace;
        let value = self
            .keyring
            .current()
            .and_then(|epoch| capability(self.keyring, epoch, &peer.uid, namespace, service, port));
        // Without a key: said once for all of the bundle.
        let Some(value) = value else { return false };
        let set = filter::set_header(backend, &value);
        if set.is_err() {
            draft.note(
                subject,
                Reason::UnsupportedFilter,
                "its RequestHeaderModifier sets and adds 16 headers each, so there is no room for the \
                 one that crosses; these requests fail",
            );
        }
        set.is_ok()
    }
}
