//! Objects that follow routes and gateways, with the names that their targets have in a member.
//!
//! Secrets that they name are the member's own; nothing is copied but the object itself.

use fairlead_model::follower::{Follower, FollowerPlan};
use fairlead_model::plan::{GatewayPlan, MemberPlan};
use fairlead_model::{Json, NsName, Reason, RouteKey, RouteKind};
use serde_json::json;

use super::{Draft, metadata, mirror_annotations};
use crate::{names, raw};

/// Renders what follows something that this member holds.
pub(super) fn render_following(plan: &MemberPlan, draft: &mut Draft) {
    for FollowerPlan { follower, fits } in &plan.following {
        let held: Vec<&RouteKey> =
            follower.routes.iter().filter(|key| plan.routes.contains_key(*key)).collect();
        if !fits {
            for route in held {
                let message = format!(
                    "{} does not follow: the member does not serve {}, or its agent's configuration \
                     (followingKinds) leaves it out",
                    follower.for_people(),
                    follower.group_version_kind()
                );
                draft.note(route.to_string(), Reason::KindMissing, message);
            }
            continue;
        }
        let Some(spec) = rename_targets(plan, follower, draft) else { continue };
        let name = names::route_mirror(&follower.name.name);
        let mut metadata = metadata(&follower.name.namespace, &name);
        metadata["annotations"] =
            mirror_annotations(&format!("{}/{}", follower.kind, follower.name));
        draft.put(json!({
            "apiVersion": follower.api_version,
            "kind": follower.kind,
            "metadata": metadata,
            "spec": spec,
        }));
    }
}

/// The spec with the targets that this member holds; none when there is no reason to hold it.
fn rename_targets(plan: &MemberPlan, follower: &Follower, draft: &mut Draft) -> Option<Json> {
    let mut spec = (*follower.spec).clone();
    let fields = spec.as_object_mut()?;
    fields.remove("targetSelectors");
    let has_targets = fields.contains_key("targetRef") || fields.contains_key("targetRefs");
    if let Some(target) = fields.get_mut("targetRef")
        && !rename(plan, follower, target, draft)
    {
        fields.remove("targetRef");
    }
    if let Some(targets) = fields.get_mut("targetRefs").and_then(Json::as_array_mut) {
        targets.retain_mut(|target| rename(plan, follower, target, draft));
        if targets.is_empty() {
            fields.remove("targetRefs");
        }
    }
    let keeps_targets = fields.contains_key("targetRef") || fields.contains_key("targetRefs");
    let is_filter = !has_targets && follower.routes.iter().any(|key| plan.routes.contains_key(key));
    (keeps_targets || is_filter).then_some(spec)
}

/// Gives a target the name that it has in this member; false when it is not there, or not ours.
fn rename(plan: &MemberPlan, follower: &Follower, target: &mut Json, draft: &mut Draft) -> bool {
    let (Some(kind), Some(name)) = (raw::field(target, "kind"), raw::field(target, "name")) else {
        return false;
    };
    let name = NsName::new(&follower.name.namespace, name);
    if kind == "Gateway" {
        return match plan.gateways.get(&name) {
            Some(GatewayPlan::Created { .. }) => {
                target["name"] = names::gateway_mirror(&name.name).into();
                true
            }
            Some(GatewayPlan::Lent { local }) => {
                let message = format!(
                    "{} does not follow: Gateway {local} is lent, and the policy would act on its \
                     owner's own routes",
                    follower.for_people()
                );
                draft.note(format!("Gateway/{name}"), Reason::UnsupportedFeature, message);
                false
            }
            None => false,
        };
    }
    let kind = RouteKind::ALL.into_iter().find(|known| known.as_str() == kind);
    let key = kind.map(|kind| RouteKey { kind, name: name.clone() });
    let is_held =
        key.is_some_and(|key| follower.routes.contains(&key) && plan.routes.contains_key(&key));
    if is_held {
        target["name"] = names::route_mirror(&name.name).into();
    }
    is_held
}

/// Gives ExtensionRefs of a list of filters the name that what they lead to has in this member.
pub(super) fn rename_extensions(plan: &MemberPlan, namespace: &str, filters: &mut Json) {
    for filter in filters.as_array_mut().into_iter().flatten() {
        let Some(reference) = filter.get_mut("extensionRef") else { continue };
        let text = |field: &str| raw::field(reference, field).map(str::to_owned);
        let (Some(group), Some(kind), Some(name)) = (text("group"), text("kind"), text("name"))
        else {
            continue;
        };
        let wanted = NsName::new(namespace, &name);
        let follows = plan.following.iter().filter(|following| following.fits).any(|following| {
            let follower = &following.follower;
            follower.group() == group && follower.kind == kind && follower.name == wanted
        });
        // What does not follow is the member's own.
        if follows {
            reference["name"] = names::route_mirror(&name).into();
        }
    }
}
