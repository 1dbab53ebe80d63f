//! Which Gateway API a cluster has, and whether Fairlead can work with it.
//!
//! Never installs or replaces its definitions: their version belongs to the cluster's gateways.

use fairlead_crds::keys;
use fairlead_model::{Json, Reason};

use crate::cluster::{Cluster, definition};
use crate::failure::Failure;

/// Oldest version that has what the doors need: client certificates on both sides of a Gateway.
const OLDEST: (u32, u32) = (1, 5);
/// Version that Fairlead was tried with.
const TRIED: (u32, u32) = (1, 6);
/// Version whose install line is shown.
const PROPOSED: &str = "v1.6.1";

/// Kinds that a hub and a member both need.
const KINDS: [&str; 4] = ["gatewayclasses", "gateways", "httproutes", "referencegrants"];
/// What a member needs besides.
const MEMBER_KINDS: [&str; 1] = ["backendtlspolicies"];

/// What a cluster is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Global routes are declared in it.
    Hub,
    /// Its gateways serve them.
    Member,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A version that was tried.
    Tried(String),
    /// A version that should do but was not tried.
    Untested(String),
    /// It cannot work.
    Refused(String),
}

/// Looks at the cluster. A refusal is a failure; an untested version is a text to warn with.
pub(crate) async fn check(cluster: &Cluster, role: Role) -> Result<Verdict, Failure> {
    let mut found = Vec::new();
    for plural in kinds(role) {
        let name = format!("{plural}.{}", keys::GATEWAY_GROUP);
        found.push((name.clone(), cluster.get(&definition(), "", &name).await?));
    }
    let verdict = judge(&found);
    if let Verdict::Refused(why) = &verdict {
        let what = format!("the Gateway API of {} does not fit", cluster.server());
        return Err(Failure::failed(what, why).next(install_hint()));
    }
    Ok(verdict)
}

fn kinds(role: Role) -> Vec<&'static str> {
    let more: &[&str] = if role == Role::Member { &MEMBER_KINDS } else { &[] };
    KINDS.iter().chain(more).copied().collect()
}

fn install_hint() -> String {
    format!(
        "install Gateway API {PROPOSED} or the version that your gateway brings, then run this again:\n\
         kubectl apply --server-side -f https://github.com/kubernetes-sigs/gateway-api/releases/\
         download/{PROPOSED}/standard-install.yaml"
    )
}

fn judge(found: &[(String, Option<Json>)]) -> Verdict {
    let missing: Vec<&str> =
        found.iter().filter(|(_, crd)| crd.is_none()).map(|(name, _)| name.as_str()).collect();
    if !missing.is_empty() {
        return Verdict::Refused(format!("not installed: {}", missing.join(", ")));
    }
    let text = |key: &str| {
        let annotations = found.iter().filter_map(|(_, crd)| crd.as_ref());
        let mut values = annotations.filter_map(|crd| crd["metadata"]["annotations"][key].as_str());
        values.next().unwrap_or("").to_owned()
    };
    let (version, channel) = (text(keys::GATEWAY_BUNDLE_VERSION), text(keys::GATEWAY_CHANNEL));
    let shown = match channel.as_str() {
        "" | "standard" => version.clone(),
        channel => format!("{version} ({channel})"),
    };
    match minor(&version) {
        None => Verdict::Untested(format!(
            "the Gateway API definitions do not say their version ({}: {})",
            Reason::UntestedVersion,
            fairlead_model::id::printable(&shown),
        )),
        Some(minor) if minor < OLDEST => Verdict::Refused(format!(
            "version {shown} is too old; {}.{} is the oldest that has client certificates for Gateways",
            OLDEST.0, OLDEST.1
        )),
        Some(minor) if minor == TRIED => Verdict::Tried(shown),
        Some(_) => Verdict::Untested(format!(
            "Gateway API {shown} was not tried with this version ({}); {}.{} was",
            Reason::UntestedVersion,
            TRIED.0,
            TRIED.1
        )),
    }
}

fn minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.strip_prefix('v').unwrap_or(version).split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(version: &str, channel: &str) -> Vec<(String, Option<Json>)> {
        let annotations =
            json!({keys::GATEWAY_BUNDLE_VERSION: version, keys::GATEWAY_CHANNEL: channel});
        vec![("gateways".into(), Some(json!({"metadata": {"annotations": annotations}})))]
    }

    #[test]
    fn absent_and_old_versions_are_refused_by_name() {
        let Verdict::Refused(why) = judge(&[("gateways.x".into(), None)]) else {
            panic!("absent definitions were accepted");
        };
        assert_eq!(why, "not installed: gateways.x");
        let Verdict::Refused(why) = judge(&found("v1.4.1", "standard")) else {
            panic!("an old version was accepted");
        };
        assert!(why.contains("v1.4.1") && why.contains("1.5"), "{why}");
    }

    #[test]
    fn the_tried_version_passes_and_others_warn() {
        assert_eq!(judge(&found("v1.6.1", "standard")), Verdict::Tried("v1.6.1".into()));
        let shown = "v1.6.0-rc.1 (experimental)".to_owned();
        assert_eq!(judge(&found("v1.6.0-rc.1", "experimental")), Verdict::Tried(shown));
        for other in ["v1.5.0", "v1.7.0", "v2.0.0", "", "main"] {
            let Verdict::Untested(why) = judge(&found(other, "standard")) else {
                panic!("{other:?} was not said to be untested");
            };
            assert!(why.contains("UntestedVersion"), "{why}");
        }
    }

    #[test]
    fn a_member_needs_more_kinds_than_a_hub() {
        assert!(!kinds(Role::Hub).contains(&"backendtlspolicies"));
        assert!(kinds(Role::Member).contains(&"backendtlspolicies"));
    }
}
