//! What a cluster's own people let the hub do there: `agent.yaml`, the chart's `consent`.
//!
//! The hub can only narrow it. Fails for any field or value that it does not know: a misspelt limit
//! must not be no limit.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_crds::keys;
use fairlead_model::id::{is_label, printable};
use fairlead_model::snapshot::WeakDoor;
use serde::{Deserialize, Serialize};

/// The agent's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AgentConfig {
    /// Whose Services are reported.
    pub export_policy: ExportPolicy,
    /// Namespaces where Services are reported and objects written; `*` is all.
    pub allowed_namespaces: BTreeSet<String>,
    /// Never these.
    pub denied_namespaces: BTreeSet<String>,
    /// Kinds that may follow a global route from the hub.
    pub following_kinds: Vec<FollowingKind>,
    /// Classes of doors allowed besides Mutual.
    pub weak_doors: BTreeSet<WeakDoor>,
    /// Class for Gateways that Fairlead creates here, in place of the MemberCluster's; empty = that one.
    pub gateway_class_name: String,
    /// Corrections of what a GatewayClass can do, by its name.
    pub capabilities: BTreeMap<String, CapabilityFix>,
}

/// Whose Services are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ExportPolicy {
    /// Those whose owners made a ServiceExport.
    #[default]
    Explicit,
    /// Every Service of the allowed namespaces.
    All,
}

/// A kind that may follow a global route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FollowingKind {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Plural, for RBAC.
    pub resource: String,
}

/// A correction of what a GatewayClass can do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CapabilityFix {
    /// Features that it has, whatever else is said.
    pub supported: BTreeSet<String>,
    /// Features that it has not.
    pub unsupported: BTreeSet<String>,
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A namespace that cannot be one.
    #[error("{field}: {value:?} is no namespace ({hint})")]
    Namespace {
        /// Where.
        field: &'static str,
        /// What.
        value: String,
        /// What would be right.
        hint: &'static str,
    },
    /// An entry with an empty part.
    #[error("followingKinds: {kind} ({group}) has no group, kind or resource")]
    FollowingKind {
        /// Group.
        group: String,
        /// Kind.
        kind: String,
    },
    /// A feature that is said to be both.
    #[error("capabilities.{class}: {feature} is both supported and unsupported")]
    Capability {
        /// GatewayClass.
        class: String,
        /// Feature.
        feature: String,
    },
}

impl FollowingKind {
    fn of(known: &keys::FollowingKind) -> Self {
        let [group, kind, resource] = [known.group, known.kind, known.resource].map(str::to_owned);
        Self { group, kind, resource }
    }
}

impl Default for AgentConfig {
    /// As the chart's values: only what owners export, everywhere but in the cluster's own namespaces.
    fn default() -> Self {
        Self {
            export_policy: ExportPolicy::Explicit,
            allowed_namespaces: ["*".to_owned()].into(),
            denied_namespaces: ["kube-system", "kube-public", "kube-node-lease"]
                .map(str::to_owned)
                .into(),
            following_kinds: keys::FOLLOWING_KINDS.iter().map(FollowingKind::of).collect(),
            weak_doors: BTreeSet::new(),
            gateway_class_name: String::new(),
            capabilities: BTreeMap::new(),
        }
    }
}

impl AgentConfig {
    /// Checks what types alone cannot say.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that has no meaning.
    pub fn validate(&self) -> Result<(), ConfigError> {
        const ALLOWED: &str =
            "a lower-case name of at most 63 characters, or \"*\" for all; no patterns";
        const DENIED: &str = "a lower-case name of at most 63 characters; no patterns";
        let wrong = |field, value: &str, hint| ConfigError::Namespace {
            field,
            value: printable(value),
            hint,
        };
        let is_name = |name: &String| is_label(name, 63);
        if let Some(bad) = self.allowed_namespaces.iter().find(|ns| *ns != "*" && !is_name(ns)) {
            return Err(wrong("allowedNamespaces", bad, ALLOWED));
        }
        if let Some(bad) = self.denied_namespaces.iter().find(|ns| !is_name(ns)) {
            return Err(wrong("deniedNamespaces", bad, DENIED));
        }
        for FollowingKind { group, kind, resource } in &self.following_kinds {
            if group.is_empty() || kind.is_empty() || resource.is_empty() {
                return Err(ConfigError::FollowingKind {
                    group: printable(group),
                    kind: printable(kind),
                });
            }
        }
        for (class, fix) in &self.capabilities {
            if let Some(feature) = fix.supported.intersection(&fix.unsupported).next() {
                let (class, feature) = (printable(class), printable(feature));
                return Err(ConfigError::Capability { class, feature });
            }
        }
        Ok(())
    }

    /// Namespaces where we may report and write; none = all that are not denied.
    pub fn namespaces_allowed(&self) -> Option<BTreeSet<String>> {
        (!self.allowed_namespaces.contains("*")).then(|| self.allowed_namespaces.clone())
    }

    /// Whether we may report and write in a namespace.
    pub fn allows(&self, namespace: &str) -> bool {
        let allowed = &self.allowed_namespaces;
        (allowed.contains("*") || allowed.contains(namespace))
            && !self.denied_namespaces.contains(namespace)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn nothing_said_is_the_default() {
        let config: AgentConfig = from_value(json!({})).unwrap();
        assert_eq!(config, AgentConfig::default());
        assert!(config.allows("shop") && !config.allows("kube-system"));
        assert_eq!(config.namespaces_allowed(), None);
    }

    #[test]
    fn values_of_the_chart_are_read() {
        let config: AgentConfig = from_value(json!({
            "exportPolicy": "All", "allowedNamespaces": ["shop", "infra"], "deniedNamespaces": ["infra"],
            "followingKinds": [{"group": "gateway.envoyproxy.io", "kind": "BackendTrafficPolicy", "resource": "backendtrafficpolicies"}],
            "weakDoors": ["ServerOnly"], "gatewayClassName": "eg",
            "capabilities": {"eg": {"supported": ["A"], "unsupported": ["B"]}},
        }))
        .unwrap();
        config.validate().unwrap();
        assert!(config.allows("shop") && !config.allows("infra") && !config.allows("web"));
    }

    #[test]
    fn misspelt_limits_are_refused() {
        for bad in [
            json!({"deniedNamespace": ["a"]}),
            json!({"exportPolicy": "explicit"}),
            json!({"weakDoors": ["Mutual"]}),
            json!({"capabilities": {"eg": {"suported": []}}}),
        ] {
            assert!(from_value::<AgentConfig>(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn values_without_meaning_are_named() {
        let error =
            |value| from_value::<AgentConfig>(value).unwrap().validate().unwrap_err().to_string();
        assert!(
            error(json!({"allowedNamespaces": ["team-*"]}))
                .contains("allowedNamespaces: \"team-*\"")
        );
        assert!(error(json!({"deniedNamespaces": ["*"]})).contains("deniedNamespaces"));
        let both = json!({"eg": {"supported": ["A"], "unsupported": ["A"]}});
        assert!(error(json!({"capabilities": both})).contains("capabilities.eg: A"));
    }
}
