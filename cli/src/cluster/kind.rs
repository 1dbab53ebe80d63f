//! Kinds of objects: where their API serves them, and what discovery says of a cluster's own.

use fairlead_crds::keys;
use fairlead_model::Json;

/// Where the objects of a kind live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Without a namespace.
    Cluster,
    /// In a namespace.
    Namespaced,
}

/// A kind of object as its API serves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kind {
    /// API group, empty for core.
    pub(crate) group: String,
    /// Version.
    pub(crate) version: String,
    /// Kind.
    pub(crate) kind: String,
    /// Plural, as in paths.
    pub(crate) plural: String,
    /// Where its objects live.
    pub(crate) scope: Scope,
}

impl Kind {
    pub(super) fn new(api_version: &str, kind: &str, plural: &str, scope: Scope) -> Self {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Self {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            plural: plural.into(),
            scope,
        }
    }

    /// The kind of an object that this tool installs or reads by name.
    ///
    /// A closed table: the CLI never applies what it did not bring along.
    pub(crate) fn known(api_version: &str, kind: &str) -> Self {
        let scope = match kind {
            "Namespace"
            | "CustomResourceDefinition"
            | "ClusterRole"
            | "ClusterRoleBinding"
            | "GatewayClass"
            | "MemberCluster" => Scope::Cluster,
            _ => Scope::Namespaced,
        };
        let plural = match kind {
            "GatewayClass" => "gatewayclasses".to_owned(),
            "NetworkPolicy" => "networkpolicies".to_owned(),
            "Ingress" => "ingresses".to_owned(),
            "EnvoyProxy" => "envoyproxies".to_owned(),
            _ => format!("{}s", kind.to_ascii_lowercase()),
        };
        Self::new(api_version, kind, &plural, scope)
    }

    /// `apiVersion` of its objects.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            return self.version.clone();
        }
        format!("{}/{}", self.group, self.version)
    }

    /// For people: `secrets` or `gateways.gateway.networking.k8s.io`.
    pub(crate) fn resource(&self) -> String {
        if self.group.is_empty() {
            return self.plural.clone();
        }
        format!("{}.{}", self.plural, self.group)
    }

    pub(super) fn path(&self, namespace: &str, name: &str) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        let mut path = format!("{root}/{}", self.api_version());
        if self.scope == Scope::Namespaced && !namespace.is_empty() {
            path.push_str(&format!("/namespaces/{namespace}"));
        }
        path.push_str(&format!("/{}", self.plural));
        if !name.is_empty() {
            path.push_str(&format!("/{name}"));
        }
        path
    }
}

/// Core kinds that are read by name.
pub(crate) fn secret() -> Kind {
    Kind::known("v1", "Secret")
}
/// ConfigMap.
pub(crate) fn config_map() -> Kind {
    Kind::known("v1", "ConfigMap")
}
/// CustomResourceDefinition.
pub(crate) fn definition() -> Kind {
    Kind::known("apiextensions.k8s.io/v1", "CustomResourceDefinition")
}
/// MemberCluster.
pub(crate) fn member_cluster() -> Kind {
    Kind::known(keys::API_VERSION, "MemberCluster")
}
/// GatewayClass.
pub(crate) fn gateway_class() -> Kind {
    Kind::known("gateway.networking.k8s.io/v1", "GatewayClass")
}

/// `GROUP/VERSION`s of a group, the preferred one first.
pub(super) fn served_versions(group: &Json) -> Vec<String> {
    let text = |v: &Json| v["groupVersion"].as_str().map(str::to_owned);
    let mut versions: Vec<String> = text(&group["preferredVersion"]).into_iter().collect();
    for version in group["versions"].as_array().into_iter().flatten().filter_map(text) {
        if !versions.contains(&version) {
            versions.push(version);
        }
    }
    versions
}

pub(super) fn served_kinds(api_version: &str, answer: &Json) -> Vec<Kind> {
    let resources = answer["resources"].as_array().into_iter().flatten();
    let can = |r: &Json, verb: &str| {
        r["verbs"].as_array().is_some_and(|verbs| verbs.iter().any(|v| v == verb))
    };
    let whole = resources.filter(|r| r["name"].as_str().is_some_and(|name| !name.contains('/')));
    whole
        .filter(|r| can(r, "list") && can(r, "delete"))
        .filter_map(|r| {
            let scope = if r["namespaced"] == true { Scope::Namespaced } else { Scope::Cluster };
            Some(Kind::new(api_version, r["kind"].as_str()?, r["name"].as_str()?, scope))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_follow_group_and_scope() {
        assert_eq!(secret().path("a", "b"), "/api/v1/namespaces/a/secrets/b");
        assert_eq!(
            gateway_class().path("", ""),
            "/apis/gateway.networking.k8s.io/v1/gatewayclasses"
        );
        assert_eq!(secret().path("", ""), "/api/v1/secrets");
    }

    #[test]
    fn preferred_versions_come_first_and_subresources_are_no_kinds() {
        let group = json!({"preferredVersion": {"groupVersion": "g/v1"},
            "versions": [{"groupVersion": "g/v1beta1"}, {"groupVersion": "g/v1"}]});
        assert_eq!(served_versions(&group), ["g/v1", "g/v1beta1"]);
        let resources = json!({"resources": [
            {"name": "as", "kind": "A", "namespaced": true, "verbs": ["list", "delete"]},
            {"name": "bs", "kind": "B", "namespaced": true, "verbs": ["create"]},
            {"name": "as/status", "kind": "A", "namespaced": true, "verbs": ["list", "delete"]}]});
        let kinds = served_kinds("g/v1", &resources);
        assert_eq!(kinds, [Kind::new("g/v1", "A", "as", Scope::Namespaced)]);
    }
}
