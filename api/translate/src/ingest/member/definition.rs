//! CustomResourceDefinitions → which kinds the member serves, and which Gateway API it has.

use std::collections::BTreeSet;

use fairlead_crds::keys;
use fairlead_model::Json;

use super::AgentConfig;
use crate::raw;

/// What the member's definitions say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Definitions {
    /// `bundle-version` of the Gateway API; none when it is absent.
    pub gateway_api_version: Option<String>,
    /// Its channel.
    pub gateway_api_channel: Option<String>,
    /// Kinds that are served and that we may write: `GROUP/VERSION/KIND`.
    pub kinds: BTreeSet<String>,
}

/// Kinds that every API server serves.
const BUILT_IN: [&str; 3] = ["/v1/Service", "/v1/ConfigMap", "discovery.k8s.io/v1/EndpointSlice"];

/// Reads definitions.
pub fn ingest_definitions<'a>(
    definitions: impl IntoIterator<Item = &'a Json>,
    config: &AgentConfig,
) -> Definitions {
    let mut found =
        Definitions { kinds: BUILT_IN.map(str::to_owned).into(), ..Definitions::default() };
    for definition in definitions {
        let group = raw::text(definition, "/spec/group").unwrap_or_default();
        let Some(kind) = raw::text(definition, "/spec/names/kind") else { continue };
        if group == keys::GATEWAY_GROUP && kind == "HTTPRoute" {
            let annotation = |key| raw::annotation(definition, key).map(raw::bounded);
            found.gateway_api_version = annotation(keys::GATEWAY_BUNDLE_VERSION);
            found.gateway_api_channel = annotation(keys::GATEWAY_CHANNEL);
        }
        if may_write(group, kind, config) {
            let served = raw::list(definition, "/spec/versions").iter().filter(|version| {
                version.get("served").and_then(Json::as_bool).unwrap_or_default()
            });
            let names = served.filter_map(|version| raw::field(version, "name"));
            found.kinds.extend(names.map(|version| format!("{group}/{version}/{kind}")));
        }
    }
    found
}

fn may_write(group: &str, kind: &str, config: &AgentConfig) -> bool {
    [keys::GATEWAY_GROUP, keys::MCS_GROUP, "externaldns.k8s.io"].contains(&group)
        || config
            .following_kinds
            .iter()
            .any(|following| following.group == group && following.kind == kind)
}
